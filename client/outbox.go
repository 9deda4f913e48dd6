package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Kinds of outbox rows, in the order in which they are sent when several wait:
// commits before chat.
const (
	kindCommit  = "commit"    // a commit of ours
	kindProof   = "statement" // applied, reject, admission
	kindWelcome = "welcome"   // to-device, after the accept
	kindAdmit   = "admission" // to-device, beside the one in the room
	kindChat    = "chat"      // an application message
	kindReceipt = "receipt"   // delivery receipts
	kindRedact  = "redaction" // of an event in which a message of ours went out once more
	kindForeign = "foreign"   // an application message that a bot's own client sends
)

// toDevice tells whether rows of a kind go to devices, and not into the room.
func toDevice(kind string) bool { return kind == kindWelcome || kind == kindAdmit }

func kindPriority(kind string) int {
	switch kind {
	case kindCommit:
		return 0
	case kindProof, kindRedact:
		return 1
	case kindWelcome, kindAdmit:
		return 2
	case kindReceipt:
		return 4
	default:
		return 3
	}
}

// States of outbox rows.
const (
	stateQueued = "queued" // plaintext only: waits until the room can send
	stateReady  = "ready"  // may be sent
	stateSent   = "sent"   // an event; kept until nobody can miss it (resend.go)
)

// outData is the sealed part of an outbox row.
type outData struct {
	Type    string           `json:"type"`
	Content json.RawMessage  `json:"content,omitempty"` // what is sent
	Plain   *rooms.Plaintext `json:"plain,omitempty"`   // chat: what was encrypted
	EventID id.EventID       `json:"event_id,omitempty"`
	// Was are events in which it was sent before, the newest last.
	Was []id.EventID `json:"was,omitempty"`
	// Taken tells that it was redacted while it was on its way once more.
	Taken bool `json:"taken,omitempty"`
	// Target is what a redaction redacts; of a message that is taken, the event whose
	// redaction is queued.
	Target id.EventID `json:"target,omitempty"`
	// Try counts how often the message was encrypted: each ciphertext has a
	// transaction id of its own, or the homeserver would drop it as repeated.
	Try int   `json:"try,omitempty"`
	At  int64 `json:"at"` // unix milliseconds
	// Sent is when the homeserver took it, unix milliseconds; 0 before that.
	Sent int64 `json:"sent,omitempty"`
	// Gen is the generation it was encrypted under last.
	Gen uint32 `json:"gen,omitempty"`
	// Acks are those of a delivery receipt.
	Acks []rooms.Ack `json:"acks,omitempty"`
	// Missing is what it asks for.
	Missing []rooms.MissingMessages `json:"missing,omitempty"`
	// Asked tells that it was sent again because somebody missed it.
	Asked bool `json:"asked,omitempty"`
	// Missed is how it was sent, from when somebody asks for it until it has gone out once
	// more.
	Missed *rooms.Earlier `json:"missed,omitempty"`
	// Late counts how often it was sent again because commits came late.
	Late int `json:"late,omitempty"`

	// Welcomes: who gets one, and the tree they need.
	Welcomes []welcomeOut         `json:"welcomes,omitempty"`
	Config   rooms.Hash           `json:"config,omitzero"` // that governs what follows the epoch they open
	Era      uint64               `json:"era,omitempty"`
	Accept   *rooms.AcceptContent `json:"accept,omitempty"` // of the epoch they open
	Tree     rooms.Bytes          `json:"tree,omitempty"`
	TreeHash rooms.Bytes          `json:"tree_hash,omitempty"`
	File     *rooms.File          `json:"file,omitempty"`
	// To is who gets an admission.
	To *admitOut `json:"to,omitempty"`
	// Commit: what goes to media first, if the commit is too large for an event.
	Upload rooms.Bytes          `json:"upload,omitempty"`
	Commit *rooms.CommitContent `json:"commit,omitempty"`
}

// sentAt returns when a message was sent, as far as that is known.
func (d *outData) sentAt() int64 { return max(d.At, d.Sent) }

type welcomeOut struct {
	User    id.UserID   `json:"user"`
	Device  id.DeviceID `json:"device"`
	Welcome rooms.Bytes `json:"welcome"`
}

// An admitOut names a user's devices.
type admitOut struct {
	User    id.UserID     `json:"user"`
	Devices []id.DeviceID `json:"devices"`
}

// each returns one content for each device.
func (a *admitOut) each(content json.RawMessage) map[id.DeviceID]json.RawMessage {
	out := make(map[id.DeviceID]json.RawMessage, len(a.Devices))
	for _, device := range a.Devices {
		out[device] = content
	}
	return out
}

type outRow struct {
	item *store.OutboxItem
	data outData
	held time.Duration // monotonic time before which it is not tried again
	busy bool
	fail int
	// after: it is sent once what is under way beside the outbox is over, see Invite.
	// After a restart nothing is.
	after bool
}

func (row *outRow) ref() federation.Ref {
	var ref federation.Ref
	copy(ref[:], row.item.Ref)
	return ref
}

type sendResult struct {
	event id.EventID
	err   error
}

func (c *Client) loadOutbox(ctx context.Context) error {
	items, err := c.st.Outbox(ctx, "")
	if err != nil {
		return err
	}
	c.rows = nil
	for _, item := range items {
		row := &outRow{item: item}
		if err := json.Unmarshal(item.Data, &row.data); err != nil {
			return fmt.Errorf("client: outbox row %d: %w", item.ID, err)
		}
		c.rows = append(c.rows, row)
	}
	return nil
}

// addRow queues a row in the step's transaction.
func (c *Client) addRow(b *batch, r *room, kind, state string, ref federation.Ref, data outData) (*outRow, error) {
	txnID, err := c.newID()
	if err != nil {
		return nil, err
	}
	if data.At == 0 {
		data.At = c.now().UnixMilli()
	}
	row := &outRow{item: &store.OutboxItem{Room: r.id, TxnID: "mls" + txnID, Kind: kind, State: state, Ref: refBytes(ref)}, data: data}
	b.firm = b.firm || state != stateQueued
	b.do(func(ctx context.Context) error {
		raw, err := encodeKept(&row.data)
		if err != nil {
			return fmt.Errorf("client: outbox: %w", err)
		}
		row.item.Data = raw
		return c.st.AddOutbox(ctx, row.item)
	})
	b.then(func() {
		c.rows = append(c.rows, row)
		notifyChan(c.outWake)
	})
	return row, nil
}

func refBytes(ref federation.Ref) []byte {
	if ref.IsZero() {
		return nil
	}
	return ref[:]
}

// saveRow writes a row's new content and state in the step's transaction.
func (c *Client) saveRow(b *batch, row *outRow, state string, ref federation.Ref, data outData) {
	b.firm = b.firm || state == stateReady
	b.do(func(ctx context.Context) error {
		raw, err := encodeKept(&data)
		if err != nil {
			return fmt.Errorf("client: outbox: %w", err)
		}
		next := *row.item
		next.State, next.Ref, next.Data = state, refBytes(ref), raw
		return c.st.UpdateOutbox(ctx, &next)
	})
	b.then(func() {
		row.item.State, row.item.Ref, row.data = state, refBytes(ref), data
		notifyChan(c.outWake)
	})
}

func (c *Client) deleteRow(b *batch, row *outRow) {
	b.do(func(ctx context.Context) error { return c.st.DeleteOutbox(ctx, row.item.ID) })
	b.then(func() { c.rows = slices.DeleteFunc(c.rows, func(o *outRow) bool { return o == row }) })
}

// roomRows returns the rows of a room in order.
func (c *Client) roomRows(roomID id.RoomID) []*outRow {
	var list []*outRow
	for _, row := range c.rows {
		if row.item.Room == roomID {
			list = append(list, row)
		}
	}
	return list
}

// answer tells everybody who waits for a row how it ended.
func (c *Client) answer(row *outRow, res sendResult) {
	for _, ch := range c.waiters[row.item.ID] {
		ch <- res
	}
	delete(c.waiters, row.item.ID)
}

// outboxLoop sends what is ready.
func (c *Client) outboxLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := time.Minute
		if at := c.Flush(ctx); at > 0 {
			wait = max(at-c.mono(), 0)
		}
		timer.Reset(min(wait, time.Minute))
		select {
		case <-ctx.Done():
			return
		case <-c.outWake:
		case <-timer.C:
		}
	}
}

// Flush sends what may be sent now: commits before chat, and within a room in
// order. It returns when, on the monotonic clock, something that failed is to
// be tried again (0: nothing). Start calls it; tests call it by themselves.
func (c *Client) Flush(ctx context.Context) (next time.Duration) {
	for ctx.Err() == nil {
		c.mu.Lock()
		row, at := c.nextRow()
		if row == nil {
			c.mu.Unlock()
			return at
		}
		row.busy = true
		item := *row.item
		sending := &outRow{item: &item, data: row.data} // the engine may change the row meanwhile
		c.mu.Unlock()

		evt, err := c.sendRow(ctx, sending)

		c.mu.Lock()
		row.busy = false
		if sending.data.File != nil {
			row.data.File = sending.data.File // uploaded: not again
		}
		c.settleRow(ctx, row, evt, err)
		c.mu.Unlock()
		if err == nil && item.Kind == kindChat {
			// Taken back later, it is found by its event alone: that is not forgotten. Who
			// waited has been answered.
			if err := c.st.Settle(context.WithoutCancel(ctx)); err != nil {
				c.log.Err(err).Msg("Failed to store the outcome of a sending")
			}
		}
	}
	return 0
}

// nextRow picks the row to send. A message encrypted for an epoch that is not
// the head any more is not sent: it goes back to be encrypted again, for a
// member may have been removed since.
func (c *Client) nextRow() (*outRow, time.Duration) {
	now := c.mono()
	var best *outRow
	var next time.Duration
	blocked := map[id.RoomID]int{} // room → priority of the first row that must wait
	later := func(at time.Duration) {
		if next == 0 || at < next {
			next = at
		}
	}
	for _, row := range c.rows {
		prio := kindPriority(row.item.Kind)
		if row.item.Kind == kindForeign || row.item.State != stateReady || row.busy || row.after {
			if row.busy {
				return nil, 0 // one at a time
			}
			continue
		}
		if held, ok := blocked[row.item.Room]; ok && held <= prio {
			continue
		}
		at := row.held
		if !toDevice(row.item.Kind) {
			at = max(at, c.limited)
			if r := c.rooms[row.item.Room]; r != nil {
				at = max(at, r.quietUntil())
			}
		}
		if at > now {
			blocked[row.item.Room] = prio
			later(at)
			continue
		}
		if row.item.Kind == kindChat || row.item.Kind == kindReceipt {
			r := c.rooms[row.item.Room]
			// A room that is not compared yet, or stands behind the barrier, holds
			// back what is encrypted already, too: a leave that was seen comes first.
			if r == nil || r.machine == nil || r.sendEpoch() == nil || r.sendEpoch().ref != row.ref() || c.blockedBy(row.item.Room) != nil {
				if row.item.Kind == kindReceipt {
					continue // it is made anew, and nothing waits for it
				}
				blocked[row.item.Room] = prio
				c.poke() // the engine compares, or encrypts it again
				continue
			}
		}
		if best == nil || prio < kindPriority(best.item.Kind) {
			best = row
		}
	}
	return best, next
}

// sendRow performs the network part of a row.
func (c *Client) sendRow(ctx context.Context, row *outRow) (id.EventID, error) {
	if err := c.crashpoint("before-send-" + row.item.Kind); err != nil {
		return "", err
	}
	if row.item.Kind == kindWelcome {
		return "", c.sendWelcomes(ctx, row)
	}
	if row.item.Kind == kindAdmit {
		to := row.data.To
		return "", c.hs.SendToDevice(ctx, row.data.Type, row.item.TxnID, map[id.UserID]map[id.DeviceID]json.RawMessage{to.User: to.each(row.data.Content)})
	}
	if row.item.Kind == kindRedact {
		return c.hs.Redact(ctx, row.item.Room, row.data.Target, row.item.TxnID, "")
	}
	content := row.data.Content
	if len(row.data.Upload) > 0 {
		var err error
		if content, err = c.uploadCommit(ctx, row); err != nil {
			return "", err
		}
	} else if row.data.Commit != nil {
		var err error
		if content, err = c.uploadFounding(ctx, row); err != nil {
			return "", err
		}
	}
	evt, err := c.hs.Send(ctx, row.item.Room, row.data.Type, fmt.Sprintf("%s.%d", row.item.TxnID, row.data.Try), content)
	if err == nil {
		err = c.crashpoint("after-send-" + row.item.Kind)
	}
	return evt, err
}

// ruleSendRefused is the rule of messages that the homeserver refused for good
// while nobody waited for their sending.
const ruleSendRefused = "client/send-refused"

const maxSendBackoff = 2 * time.Minute

// dropGivenUp drops a commit's row, if the commit was given up, or forgotten, while its request was under way. That of
// the first founding is no commit of ours that waits to be accepted, and stays while its epoch is held.
func (c *Client) dropGivenUp(ctx context.Context, r *room, row *outRow) {
	if row.item.Kind != kindCommit {
		return
	}
	if own := r.own[row.ref()]; own != nil && !own.Lost || own == nil && r.epochs[row.ref()] != nil {
		return
	}
	b := &batch{}
	c.deleteRow(b, row)
	if err := c.commitBatch(ctx, r, b); err != nil {
		c.log.Err(err).Stringer("room_id", r.id).Msg("Failed to drop a commit that was given up")
	}
}

// settleRow records how a sending ended. The caller holds c.mu.
func (c *Client) settleRow(ctx context.Context, row *outRow, evt id.EventID, err error) {
	r := c.rooms[row.item.Room]
	if r == nil {
		return
	}
	log := c.log.With().Stringer("room_id", r.id).Str("kind", row.item.Kind).Logger()
	var limit *RateLimitError
	switch {
	case err == nil:
	case errors.As(err, &limit):
		switch row.item.Kind {
		case kindWelcome, kindAdmit:
			row.held = c.mono() + limit.RetryAfter
		case kindReceipt: // messages find out by themselves
			row.held = c.mono() + max(limit.RetryAfter, receiptPace)
			c.receiptsAt = row.held
		default:
			c.limited = c.mono() + limit.RetryAfter
		}
		log.Debug().Dur("retry_after", limit.RetryAfter).Msg("The homeserver limits the rate")
		c.dropGivenUp(ctx, r, row)
		return
	case isPermanent(err):
		log.Warn().Err(err).Msg("The homeserver refused an event")
		b := &batch{}
		if row.data.Missed != nil && !row.data.Taken { // it was sent once, and was to be sent again for who missed it
			c.leaveSent(b, row)
			if err := c.commitBatch(ctx, r, b); err != nil {
				log.Err(err).Msg("Failed to store the outcome of a sending")
				row.held = c.mono() + time.Second
			}
			c.poke()
			return
		}
		c.deleteRow(b, row)
		if row.item.Kind == kindCommit && r.pending != nil && federation.Ref(r.pending.Ref) == row.ref() {
			ref := row.ref()
			delete(r.own, ref)
			r.pending = nil
			b.do(func(ctx context.Context) error { return c.st.DeletePending(ctx, r.id, ref[:]) })
			r.tried["commit"] = c.mono() + 10*time.Second
		}
		b.then(func() {
			if row.data.Plain != nil && len(c.waiters[row.item.ID]) == 0 {
				var code string
				detail := err.Error()
				if said := (mautrix.HTTPError{}); errors.As(err, &said) && said.RespError != nil {
					code, detail = said.RespError.ErrCode, said.RespError.Err
				}
				c.tell(&Warning{
					Room: r.id, Sender: c.UserID(), Rule: ruleSendRefused, Kind: NotSentWarning, Reason: code, Detail: detail,
					Text: fmt.Sprintf("the homeserver refused a message of ours (%s), and it is not sent: %v", row.data.Plain.MessageID, err),
				})
			}
			c.answer(row, sendResult{err: fmt.Errorf("client: send to %s: %w", r.id, err)})
			r.notify()
		})
		if err := c.commitBatch(ctx, r, b); err != nil {
			log.Err(err).Msg("Failed to store the outcome of a sending")
		}
		c.poke()
		return
	default:
		row.fail++
		row.held = c.mono() + min(time.Second<<min(row.fail-1, 7), maxSendBackoff)
		if ctx.Err() == nil {
			log.Debug().Err(err).Int("attempt", row.fail).Msg("Sending failed, will try again")
		}
		c.dropGivenUp(ctx, r, row)
		return
	}
	// Of what was sent it may be forgotten that it was: it is sent again under the same
	// transaction id then, or comes back. For a message Flush waits for the disk right
	// after this, for it may be taken back.
	b := &batch{soon: row.item.Kind != kindCommit && !toDevice(row.item.Kind)}
	switch row.item.Kind {
	case kindCommit:
		if r.pending != nil && federation.Ref(r.pending.Ref) == row.ref() {
			r.pending.EventID = evt
			if err := c.savePending(b, r, r.pending); err != nil {
				log.Err(err).Msg("Failed to store the outcome of a sending")
				return
			}
		}
		c.setCommitEvent(r, row.ref(), evt)
		c.deleteRow(b, row)
	case kindChat:
		data := row.data
		if data.Taken {
			c.deleteRow(b, row)
			if evt != data.Target {
				c.redactSent(b, r, evt)
			}
			break
		}
		if row.item.State != stateReady { // its epoch left the head meanwhile: it is sent again
			data.went(evt)
			c.saveRow(b, row, row.item.State, row.ref(), data)
			if err := c.commitBatch(ctx, r, b); err != nil {
				log.Err(err).Msg("Failed to store the outcome of a sending")
			}
			return
		}
		data.EventID, data.Sent, data.Missed = evt, c.now().UnixMilli(), nil
		c.saveRow(b, row, stateSent, row.ref(), data)
		r.pruneBy(c.mono() + c.limits.PastAge)
		c.addOwnMessage(b, r, row, evt)
	default:
		c.deleteRow(b, row)
	}
	b.then(func() {
		c.answer(row, sendResult{event: evt})
		r.notify()
	})
	if err := c.commitBatch(ctx, r, b); err != nil {
		log.Err(err).Msg("Failed to store the outcome of a sending")
		row.held = c.mono() + time.Second
		return
	}
	c.poke()
}

// sendWelcomes uploads the tree if it is too large to ride along, and sends
// each new device its Welcome.
func (c *Client) sendWelcomes(ctx context.Context, row *outRow) error {
	snapshot := rooms.Snapshot{TreeHash: row.data.TreeHash, AtCommit: rooms.Hash(row.ref())}
	file := row.data.File
	if len(row.data.Tree) <= maxInlineTree {
		snapshot.Tree = row.data.Tree
	} else {
		if file == nil {
			var err error
			if file, err = c.upload(ctx, row.data.Tree); err != nil {
				return err
			}
			row.data.File = file
		}
		snapshot.File = file
	}
	messages := map[id.UserID]map[id.DeviceID]json.RawMessage{}
	for _, w := range row.data.Welcomes {
		content, err := rooms.Encode(&rooms.WelcomeContent{
			Room: row.item.Room, CommitEvent: row.data.EventID, Ref: rooms.Hash(row.ref()), Cfg: row.data.Config, Era: row.data.Era, Welcome: w.Welcome, Snapshot: snapshot, Accept: row.data.Accept,
		})
		if err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		if messages[w.User] == nil {
			messages[w.User] = map[id.DeviceID]json.RawMessage{}
		}
		messages[w.User][w.Device] = content
	}
	// Synapse takes to-device requests of at most one event's size.
	part, size, n := map[id.UserID]map[id.DeviceID]json.RawMessage{}, 0, 0
	flush := func() error {
		if size == 0 {
			return nil
		}
		err := c.hs.SendToDevice(ctx, rooms.TypeWelcome, fmt.Sprintf("%s.%d", row.item.TxnID, n), part)
		part, size = map[id.UserID]map[id.DeviceID]json.RawMessage{}, 0
		n++
		return err
	}
	for _, w := range row.data.Welcomes {
		content := messages[w.User][w.Device]
		if size+len(content) > rooms.MaxInline && size > 0 {
			if err := flush(); err != nil {
				return err
			}
		}
		if part[w.User] == nil {
			part[w.User] = map[id.DeviceID]json.RawMessage{}
		}
		part[w.User][w.Device] = content
		size += len(content)
	}
	return flush()
}

// maxInlineTree is the size up to which a tree rides in the Welcome.
const maxInlineTree = 16_000

// upload stores public handshake data in media and names it with its hash.
func (c *Client) upload(ctx context.Context, data []byte) (*rooms.File, error) {
	mxc, err := c.hs.Upload(ctx, data, rooms.CommitFileMIME)
	if err != nil {
		return nil, fmt.Errorf("client: upload: %w", err)
	}
	return rooms.NewFile(id.ContentURIString(mxc), data), nil
}

// uploadCommit stores a commit that is too large for an event in media and
// returns the content that names it.
func (c *Client) uploadCommit(ctx context.Context, row *outRow) (json.RawMessage, error) {
	file, err := c.upload(ctx, row.data.Upload)
	if err != nil {
		return nil, err
	}
	content := *row.data.Commit
	content.File = file
	raw, err := rooms.Encode(&content)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	return raw, nil
}
