package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Update is what a handler receives: *Message, *Undecryptable, *Invited,
// *EpochChanged, *EraOpened, *Redaction, *Removed, *HistoryReceived, *Delivered, *MessageMarked or *Warning.
type Update interface{ update() }

// Verification says how sure we are that a device belongs to its user.
type Verification string

// The values of Verification.
const (
	VerifiedUser   Verification = "verified"     // cross-signed, and a person compared the user's key
	VerifiedDevice Verification = "cross-signed" // by its user, whose key was seen first here
	Unverified     Verification = "unverified"
	ChangedUser    Verification = "changed" // the user's key is not the one known before
)

// Message is a decrypted event. Sender and Device come from the sender's
// credential in the group, not from the homeserver, and equal the event's
// sender.
type Message struct {
	Room         id.RoomID       `json:"room_id"`
	EventID      id.EventID      `json:"event_id"`
	Sender       id.UserID       `json:"sender"`
	Device       id.DeviceID     `json:"device_id"`
	Type         string          `json:"type"`
	Content      json.RawMessage `json:"content"`
	ID           string          `json:"mid"` // the message's own id inside the ciphertext
	Timestamp    int64           `json:"timestamp"`
	Epoch        uint64          `json:"epoch"`
	Ref          federation.Ref  `json:"-"`
	Leaf         uint32          `json:"leaf"`
	Generation   uint32          `json:"generation"`
	Verification Verification    `json:"verification"`
	Own          bool            `json:"own,omitempty"`     // sent by this device
	Late         bool            `json:"late,omitempty"`    // of an epoch that is not the head any more
	Removed      bool            `json:"removed,omitempty"` // late, and its device is not in the group any more
	// Missing is how many messages that its device sent in the epoch before this one it
	// overtook: they had not come yet, and no earlier one had overtaken them.
	Missing uint32    `json:"missing,omitempty"`
	Again   []Sending `json:"again,omitempty"` // own: how it was sent again, after its epoch left the head
	// From is set if another device gave the message to this one, which was not in
	// the group when it was sent. What it says of sender, device and content, beyond
	// that the homeserver has an encrypted event of the sender, is the giver's word.
	From *HistorySource `json:"from,omitempty"`

	asks  bool           // for receipts, when it was opened
	again *rooms.Earlier // the ciphertext that was missed
}

// Body returns the body of an m.room.message, or "".
func (m *Message) Body() string {
	var content struct {
		Body string `json:"body"`
	}
	if json.Unmarshal(m.Content, &content) != nil {
		return ""
	}
	return content.Body
}

// Undecryptable reports an encrypted event that cannot be shown. Unless Final,
// it is kept and tried again.
type Undecryptable struct {
	Room    id.RoomID
	EventID id.EventID
	Sender  id.UserID // as the homeserver says
	Epoch   uint64
	Reason  string // a rule, or what is missing
	Final   bool
}

// Invited reports an invite.
type Invited struct {
	Room   id.RoomID
	By     id.UserID
	MLS    bool
	Admits bool // the invite carries an admission
}

// EpochChanged reports that the room's head moved.
type EpochChanged struct {
	Room    id.RoomID
	Epoch   uint64
	Ref     federation.Ref
	Parent  federation.Ref // of the epoch before it on this branch
	Status  federation.Status
	Author  id.UserID
	Added   []id.UserID // one entry for each device
	Removed []id.UserID
	Joined  bool // this device entered the group with it
	Lost    bool // commits left the head: messages sent in them are sent again; of several epochs at once, the first says so
}

// Removed reports that this device is not in the group any more.
type Removed struct {
	Room id.RoomID
	By   id.UserID
	// Superseded: nobody put it out, another copy of its store took its place.
	Superseded bool
}

// Warning is something a person should see: plaintext in an encrypted room, a
// changed algorithm or identity, a commit that could not be applied.
type Warning struct {
	Room    id.RoomID
	EventID id.EventID
	Sender  id.UserID
	Rule    string
	Kind    WarningKind // "" for what none of them names
	Text    string
	// Servers are those that the text names, and Detail what it says beyond what its
	// Kind tells, in English. Reason is a name for that, where its Kind has some.
	Servers []string
	Detail  string
	Reason  string
	// Absent are those of Servers whose module is not in the room, and Rekeyed those
	// whose module announces another key than the list has, in a NotReadyWarning.
	Absent, Rekeyed []string
	// Standstill is what a StandstillWarning tells.
	Standstill *Standstill
}

// WarningKind names the warnings that programs tell people in words of their own.
type WarningKind string

// The values of WarningKind.
const (
	// IdentityWarning: the keys of Sender, or of a device of theirs, are not those
	// known before.
	IdentityWarning WarningKind = "identity"
	// PlaintextWarning: EventID came unencrypted into an encrypted room.
	PlaintextWarning WarningKind = "plaintext"
	// BehindWarning: this device cannot follow the group and joins again.
	BehindWarning WarningKind = "behind"
	// MemberBehindWarning: a member could not apply a commit of Sender's.
	MemberBehindWarning WarningKind = "member-behind"
	// NotAppliedWarning: this device could not apply a commit of Sender's, and said so.
	NotAppliedWarning WarningKind = "not-applied"
	// EncryptionWarning: the room's encryption setting was changed. The group goes on.
	EncryptionWarning WarningKind = "encryption"
	// StandstillWarning: nothing becomes final any more; this device's user can open an
	// era.
	StandstillWarning WarningKind = "standstill"
	// UnvouchedWarning: everybody who could confirm a commit of Sender's has left.
	// Servers are those of a new era that this device's user, an admin, can open.
	UnvouchedWarning WarningKind = "unvouched"
	// KeyLostWarning: the module has lost its receipt key; this device's user, an
	// admin, can move the room to the new one.
	KeyLostWarning WarningKind = "key-lost"
	// HeirsWarning: an heir wants to go on in a new era with the modules of Servers,
	// and this device, an heir's too, consents.
	HeirsWarning WarningKind = "heirs"
	// LiarWarning: the module of Servers signed two things that contradict each other.
	LiarWarning WarningKind = "liar"
	// OtherKeysWarning: Sender says that an epoch, Detail, has other keys than here.
	OtherKeysWarning WarningKind = "other-keys"
	// NoAcceptWarning: no module accepts a change of the group. With Servers, this side
	// of the room does not reach a majority of their modules, as Detail says.
	NoAcceptWarning WarningKind = "no-accept"
	// AlteredWarning: the homeserver, Servers, does not show a change of the group as
	// it was sent. It is made again.
	AlteredWarning WarningKind = "altered"
	// NotReadyWarning: a change of the room's modules is not in force; Reason and Detail
	// say why, and Servers are those whose modules' word is waited for, or, where that is
	// the word of the present list's, those of them that do not serve.
	NotReadyWarning WarningKind = "not-ready"
	// PolicyWarning: a change of the group's policy was given up; Detail says why.
	PolicyWarning WarningKind = "policy"
	// ProofWarning: what the module of Sender shows does not follow from the room's
	// beginning, and is not used; Detail says why.
	ProofWarning WarningKind = "proof"
	// CopyWarning: the store of this device is an old copy, or another program uses one.
	CopyWarning WarningKind = "copy"
	// SupersededWarning: another copy of this device's store has taken its place.
	SupersededWarning WarningKind = "superseded"
	// NotSentWarning: the homeserver refused a message of ours; Detail is what it said,
	// and Reason its error code, if it was an answer.
	NotSentWarning WarningKind = "not-sent"
	// MissingWarning: messages of Sender, from the device Reason, did not come, as later
	// ones show. Detail is how many. They may come yet.
	MissingWarning WarningKind = "missing"
	// AdmissionWarning: members say that Sender's admission is void, and this device lets
	// them in by it no more. Somebody has to invite or admit them again.
	AdmissionWarning WarningKind = "admission"
	// SetBackWarning: the homeserver does not show a membership of Sender's any more,
	// EventID, although no event took its place; Reason is the one that counts again, or
	// "none". Nobody did that: servers that were parted settled on one state. Of more
	// than five at once there is one warning without a Sender; Detail is how many, and
	// the first users.
	SetBackWarning WarningKind = "set-back"
)

// Reasons of a NotReadyWarning.
const (
	WaitsForReady  = "ready"  // too few of its modules have said that they are ready
	WaitsForAccept = "accept" // the present modules have not accepted it
	WaitsForFinal  = "final"  // they have, and have not made it final
)

// Standstill is what is known of a room in which nothing becomes final any more
// although something waits.
type Standstill struct {
	For time.Duration `json:"for"`
	// Silent are the servers of the modules that were not heard from meanwhile; none:
	// most modules are there.
	Silent []string `json:"silent,omitempty"`
	// Servers are whose modules a new era can go on with; none: nobody knows one.
	Servers []string `json:"servers,omitempty"`
	Admin   bool     `json:"admin,omitempty"` // this device's user is one
	Heir    bool     `json:"heir,omitempty"`
}

// MessageMarked reports that a message which was taken ahead of this device's own /sync (see
// [Client.TakeAhead]), and handed on, turned out to have come late: Late, and Removed, say so now.
type MessageMarked struct{ *Message }

// Redaction reports that an event was taken out of the room's history.
type Redaction struct {
	Room    id.RoomID
	EventID id.EventID
	Sender  id.UserID
	Target  id.EventID
}

func (*Redaction) update()     {}
func (*MessageMarked) update() {}
func (*Message) update()       {}
func (*Undecryptable) update() {}
func (*Invited) update()       {}
func (*EpochChanged) update()  {}
func (*Removed) update()       {}
func (*Warning) update()       {}

// tell queues an update that is not a message. The caller holds c.mu.
func (c *Client) tell(u Update) {
	if len(c.updates) < maxUpdates {
		c.updates = append(c.updates, u)
	}
	notifyChan(c.updWake)
}

// warn tells a person something once for each key.
func (c *Client) warn(r *room, key string, w *Warning) {
	if r.rec.Warned == nil {
		r.rec.Warned = map[string]bool{}
	}
	if r.rec.Warned[key] {
		return
	}
	if len(r.rec.Warned) >= maxWarned {
		clear(r.rec.Warned) // rather say something twice than not at all
	}
	r.rec.Warned[key] = true
	w.Room = r.id
	c.log.Warn().Stringer("room_id", r.id).Str("rule", w.Rule).Msg("Something in a room is not right")
	c.tell(w)
}

const maxWarned = 256

const deliveredKey = "delivered/seq"

// updateLoop hands messages and other updates to the handler. A message counts
// as handed on once the handler returned.
func (c *Client) updateLoop(ctx context.Context) {
	for {
		if err := c.Deliver(ctx); err != nil && ctx.Err() == nil {
			c.log.Err(err).Msg("Failed to hand messages on")
		}
		select {
		case <-ctx.Done():
			return
		case <-c.updWake:
		case <-time.After(time.Minute):
		}
	}
}

// Deliver calls the handler for everything that is new. Start calls it.
func (c *Client) Deliver(ctx context.Context) error {
	for ctx.Err() == nil {
		c.mu.Lock()
		updates := c.updates
		c.updates = nil
		c.mu.Unlock()
		for _, u := range updates {
			if c.handler != nil {
				c.handler(ctx, u)
			}
		}
		n, err := c.deliverMessages(ctx)
		if err != nil {
			return err
		}
		if n == 0 && len(updates) == 0 {
			return nil
		}
	}
	return ctx.Err()
}

func (c *Client) deliverMessages(ctx context.Context) (int, error) {
	after, err := c.cursor(ctx)
	if err != nil {
		return 0, err
	}
	items, err := c.st.TimelineSince(ctx, "", after, 100)
	if err != nil {
		return 0, err
	}
	for _, item := range items {
		msg, err := messageOf(item)
		if err != nil {
			return 0, err
		}
		if c.handler != nil {
			c.handler(ctx, msg)
		}
		err = c.st.DoSoon(ctx, func(ctx context.Context) error {
			return c.st.PutKV(ctx, deliveredKey, strconv.AppendInt(nil, item.Seq, 10))
		})
		if err != nil {
			return 0, err
		}
	}
	return len(items), nil
}

func (c *Client) cursor(ctx context.Context) (int64, error) {
	raw, err := c.st.GetKV(ctx, deliveredKey)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	seq, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("client: cursor of delivered messages: %w", err)
	}
	return seq, nil
}

func messageOf(item *store.TimelineItem) (*Message, error) {
	msg := new(Message)
	if err := json.Unmarshal(item.Data, msg); err != nil {
		return nil, fmt.Errorf("client: message %s: %w", item.EventID, err)
	}
	copy(msg.Ref[:], item.Ref)
	return msg, nil
}

// addMessage stores a decrypted event, in the transaction of the ratchet step
// that opened it.
func (c *Client) addMessage(b *batch, msg *Message) {
	b.do(func(ctx context.Context) error {
		switch _, err := c.st.GetKV(ctx, redactedKey(msg.Room, msg.EventID)); {
		case err == nil:
			msg.Content = json.RawMessage("{}")
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		raw, err := encodeKept(msg)
		if err != nil {
			return fmt.Errorf("client: message %s: %w", msg.EventID, err)
		}
		if err := c.dropHistory(ctx, msg); err != nil {
			return err
		}
		target, relation := relationOf(msg.Content)
		return c.st.AddTimeline(ctx, &store.TimelineItem{
			Room: msg.Room, EventID: msg.EventID, Mid: msg.ID, Sender: msg.Sender, Type: msg.Type,
			Timestamp: msg.Timestamp, Epoch: msg.Epoch, Ref: refBytes(msg.Ref), Data: raw, Target: target, Relation: relation,
		})
	})
	b.then(func() { notifyChan(c.updWake) })
}

// Messages returns up to limit decrypted messages of a room, oldest first,
// before the given one ("" for the newest).
func (c *Client) Messages(ctx context.Context, roomID id.RoomID, before id.EventID, limit int) ([]*Message, error) {
	var seq int64
	if before != "" {
		item, err := c.st.TimelineEvent(ctx, roomID, before)
		if err != nil {
			return nil, err
		}
		seq = item.Seq
	}
	items, err := c.st.Timeline(ctx, roomID, seq, limit)
	if err != nil {
		return nil, err
	}
	out := make([]*Message, 0, len(items))
	for _, item := range items {
		msg, err := messageOf(item)
		if err != nil {
			return nil, err
		}
		out = append(out, msg)
	}
	return out, nil
}

// Message returns one decrypted message.
func (c *Client) Message(ctx context.Context, roomID id.RoomID, eventID id.EventID) (*Message, error) {
	item, err := c.st.TimelineEvent(ctx, roomID, eventID)
	if err != nil {
		return nil, err
	}
	return messageOf(item)
}

// ruleOf names why something was refused.
func ruleOf(err error) string {
	if rule := rooms.RuleOf(err); rule != "" {
		return string(rule)
	}
	var fed *federation.Error
	if errors.As(err, &fed) {
		return string(fed.Rule)
	}
	var invalid *mls.ValidationError
	if errors.As(err, &invalid) {
		return string(invalid.Rule)
	}
	return "unknown"
}
