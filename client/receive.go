package client

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// errWait says what an event has to wait for.
type errWait struct{ what string }

func (e *errWait) Error() string { return "client: waits for " + e.what }

func waitEpoch(ref federation.Ref) error  { return &errWait{"epoch:" + ref.String()} }
func waitParent(ref federation.Ref) error { return &errWait{"parent:" + ref.String()} }

// waitWelcomed is for a Welcome whose commit is not at hand: it comes as an event
// that is asked for, or becomes known in any other way.
func waitWelcomed(ref federation.Ref, event id.EventID) error {
	return &errWait{"welcomed:" + ref.String() + "/" + string(event)}
}

var (
	errWaitGroup  error = &errWait{"group"}
	errWaitMember error = &errWait{"member"} // until it is settled where this device comes in
)

// handleEncrypted opens an m.room.encrypted (or delivery receipt) event.
func (c *Client) handleEncrypted(ctx context.Context, r *room, evt *Event, b *batch) error {
	content, err := rooms.DecodeEncrypted(evt.Content)
	if err != nil && c.takeBackPruned(r, evt, b) {
		return nil
	}
	if err != nil {
		r.notePruned(evt)
		return err
	}
	msg, err := mls.ParseMessage(content.Ciphertext)
	if err != nil {
		return err
	}
	aad, err := rooms.DecodeMessageAAD(msg.AuthenticatedData())
	if err != nil {
		return err
	}
	if evt.Sender == c.UserID() {
		if row := c.ownCiphertext(r.id, content); row != nil {
			return c.ownEcho(r, row, evt, b)
		}
		if known, err := c.st.TimelineEvent(ctx, r.id, evt.ID); err == nil && known.Seq > 0 {
			return nil
		}
	}
	if r.machine == nil {
		if r.rec.Phase == phaseRemoved {
			return errRefusedUpdate(rooms.RuleMemberNotInRoom, "this device is not in the group any more")
		}
		return errWaitGroup
	}
	ref := federation.Ref(aad.Head)
	e, behind := r.epochs[ref], r.behind[ref]
	if e == nil && behind != nil {
		e = behind // from before this device came in again
	} else if e == nil && r.machine.Accepted(ref) {
		// Accepted, but never the head here: a branch that lost. Who was in the
		// group where it parted reads it, unless the winning branch put it out.
		if e, err = c.enter(ctx, r, ref, b); errors.Is(err, errSelfRemoved) {
			return errRefusedUpdate(rooms.RuleMemberNotInRoom, "this device was not in the group on that branch")
		} else if err != nil {
			return err
		}
	}
	if e == nil || e != behind && !r.machine.Accepted(ref) {
		if e == nil && r.forgotten(msg.GroupID(), msg.Epoch()) {
			if r.rec.Phase == phaseJoining {
				return errWaitMember // a Welcome may yet open an epoch below the own commit's
			}
			return errRefusedUpdate(ruleBeyondRetention, "it was sent in an epoch this device was not in, or has forgotten")
		}
		if content.CommitEvent != "" && e == nil {
			if _, known := r.machine.Known(ref); !known {
				r.wantCommit(content.CommitEvent, ref)
			}
		}
		return waitEpoch(ref)
	}
	if string(msg.GroupID()) != string(e.group.GroupID()) {
		return errRefusedUpdate(rooms.RuleRoomNotGroup, "it belongs to another group")
	}
	processed, err := e.group.Process(msg)
	if errors.Is(err, mls.ErrOwnMessage) && evt.Sender == c.UserID() {
		c.ownUnknown(r, e, msg, evt.ID)
		return nil // else an earlier ciphertext of a message that was encrypted again
	}
	if err != nil {
		return err
	}
	app, ok := processed.(*mls.ApplicationMessage)
	if !ok {
		return errRefusedUpdate(rooms.RuleContentMalformed, "it is no application message")
	}
	// The key is used up: from here on the ratchet is written whatever the
	// message turns out to be.
	c.putRatchet(b, r, e)
	out, err := c.openMessage(r, e, evt, app)
	if err != nil {
		c.refused(r, evt, err, b)
		return nil
	}
	if evt.Type == rooms.TypeReceipt {
		c.handleDelivery(ctx, r, e, evt, out, b)
		return nil
	}
	c.acknowledge(r, e, app.Sender, out)
	known, err := c.st.TimelineByMid(ctx, r.id, out.Sender, out.ID)
	if err == nil && known != nil && !c.without[probe.Once] {
		return nil // sent again after its epoch left the head, or replayed
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	r.cameAgain(out)
	c.addMessage(b, out)
	return nil
}

// ruleBeyondRetention is the rule of messages whose keys are gone.
const ruleBeyondRetention rooms.Rule = "matrix/epoch-beyond-retention"

func errRefusedUpdate(rule rooms.Rule, text string) error {
	return &rooms.Refusal{Rule: rule, What: "message", Err: errors.New(text)}
}

// openMessage checks a decrypted message against the event that carried it.
func (c *Client) openMessage(r *room, e *epoch, evt *Event, app *mls.ApplicationMessage) (*Message, error) {
	leaf, ok := e.group.Leaf(app.Sender)
	if !ok {
		return nil, errRefusedUpdate(rooms.RuleSenderNotCredential, "its sender has no leaf")
	}
	cred, err := rooms.CredentialOf(leaf)
	if err != nil {
		return nil, err
	}
	missing := c.noteMissing(r, e, evt.Type, cred, app) // the ratchet has moved, whatever becomes of the message
	if cred.User != evt.Sender {
		return nil, errRefusedUpdate(rooms.RuleSenderNotCredential, fmt.Sprintf("the event says %s, the key is of %s", evt.Sender, cred.User))
	}
	plain, err := rooms.DecodePlaintext(app.Plaintext, r.id)
	if err != nil {
		return nil, err
	}
	msg := &Message{
		Room: r.id, EventID: evt.ID, Sender: cred.User, Device: cred.Device, Type: plain.Type, Content: plain.Content,
		ID: plain.MessageID, Timestamp: evt.Timestamp, Epoch: e.number, Ref: e.ref, Leaf: uint32(app.Sender), Generation: app.Generation, Missing: missing,
		asks: plain.AskReceipts, again: plain.Again, Verification: c.verification(cred, e.group.CipherSuite()),
	}
	r.markLate(msg)
	r.spoke[spokeKey{e.ref, uint32(app.Sender)}] = true
	return msg, nil
}

// late tells whether messages of an epoch come late: it is not the head any more.
func (r *room) late(ref federation.Ref) bool {
	send := r.sendEpoch()
	return ref != r.machine.Head() && (send == nil || ref != send.ref)
}

// markLate says of a message whether it came late, and whether its device was out of the group by then.
func (r *room) markLate(msg *Message) {
	msg.Late, msg.Removed = r.late(msg.Ref), false
	if head := r.head(); msg.Late && head != nil {
		msg.Removed = !slices.ContainsFunc(rooms.LeavesOf(head.group, msg.Sender), func(l rooms.GroupLeaf) bool { return l.Cred.Device == msg.Device })
	}
}

// spokeKey names a member's device in an epoch.
type spokeKey struct {
	ref  federation.Ref
	leaf uint32
}

// ownEcho is our own message coming back: it settles the outbox row.
func (c *Client) ownEcho(r *room, row *outRow, evt *Event, b *batch) error {
	if row.item.State == stateSent && row.data.EventID == evt.ID {
		return nil
	}
	data := row.data
	if data.EventID = evt.ID; data.Sent == 0 {
		data.Sent = c.now().UnixMilli()
	}
	if row.item.State == stateReady {
		data.Missed = nil
	}
	c.addOwnMessage(b, r, row, evt.ID)
	c.saveRow(b, row, stateSent, row.ref(), data)
	b.firm = true // taken back later, it is found by this event alone
	r.pruneBy(c.mono() + c.limits.PastAge)
	b.then(func() { c.answer(row, sendResult{event: evt.ID}) })
	return nil
}

// ruleOverLimit is the rule of events that waited while too many did.
const ruleOverLimit = "client/waiting-over-limit"

// refused reports an event that was refused; of a ciphertext it is kept why, in
// the transaction that marks it as processed.
func (c *Client) refused(r *room, evt *Event, err error, b *batch) {
	rule := ruleOf(err)
	c.log.Debug().Stringer("room_id", r.id).Stringer("event_id", evt.ID).Str("type", evt.Type).Str("rule", rule).Msg("Refused an event")
	c.count(rule)
	if evt.Type == rooms.TypeEncrypted {
		b.do(func(ctx context.Context) error { return c.noteRefused(ctx, r.id, evt.ID, rule) })
		c.tell(&Undecryptable{Room: r.id, EventID: evt.ID, Sender: evt.Sender, Reason: rule, Final: true})
	}
}

// count counts a refusal by its rule.
func (c *Client) count(rule string) {
	if c.refusals == nil {
		c.refusals = map[string]uint64{}
	}
	if _, known := c.refusals[rule]; known || len(c.refusals) < 256 {
		c.refusals[rule]++
	}
}

// Refusals returns how many events were refused since Open, by rule.
func (c *Client) Refusals() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]uint64, len(c.refusals))
	for rule, n := range c.refusals {
		out[rule] = n
	}
	return out
}

// before tells whether a commit makes an epoch from before this device was in the
// room's groups, or the one it began with.
func (r *room) before(group []byte, epoch uint64) bool {
	level, ok := r.level(group, epoch)
	if !ok {
		return r.former(group)
	}
	return level <= r.rec.JoinEpoch
}

// forgotten tells whether an epoch is one that this device was not in, or below
// what it keeps.
func (r *room) forgotten(group []byte, epoch uint64) bool {
	level, ok := r.level(group, epoch)
	if !ok {
		return r.former(group)
	}
	final := r.epochs[r.machine.NewestFinal()]
	return level < r.rec.JoinEpoch || final != nil && level+uint64(r.keep) < r.levelOf(final)
}

// verification says how sure we are of a credential's device.
func (c *Client) verification(cred *rooms.Credential, cs mls.CipherSuite) Verification {
	if cred.User == c.UserID() && cred.Device == c.DeviceID() {
		return VerifiedUser
	}
	return verificationOf(c.devs[cred.User], cred, cs)
}

func (c *Client) commitEvent(r *room, ref federation.Ref) id.EventID {
	return r.rec.Events[ref.String()]
}

func (c *Client) setCommitEvent(r *room, ref federation.Ref, evt id.EventID) {
	if r.rec.Events == nil {
		r.rec.Events = map[string]id.EventID{}
	}
	if _, known := r.rec.Events[ref.String()]; !known {
		r.rec.Events[ref.String()] = evt
	}
}
