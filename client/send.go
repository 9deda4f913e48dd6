package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Send encrypts an event and sends it into the room. It returns once the
// homeserver has it. If ctx ends before, the message stays in the outbox and
// goes out later; the error says so.
func (c *Client) Send(ctx context.Context, roomID id.RoomID, eventType string, content any) (id.EventID, error) {
	return c.SendWith(ctx, roomID, eventType, content, SendOptions{})
}

// SendOnce does what Send does, once for each key: called again with the same
// key it sends nothing, whatever the content, and returns the event of the first
// call, or goes on waiting for it. It holds over restarts, for as long as the
// store keeps the message.
func (c *Client) SendOnce(ctx context.Context, roomID id.RoomID, eventType string, content any, key string) (id.EventID, error) {
	raw, err := contentJSON(content)
	if err != nil {
		return "", err
	}
	// The message id does not depend on chance, so that the first one is found.
	sum := sha256.Sum256([]byte("client: send once\x00" + string(c.DeviceID()) + "\x00" + string(roomID) + "\x00" + key))
	plain, err := checkedPlaintext(roomID, eventType, raw, rooms.NewMessageID([16]byte(sum[:16])))
	if err != nil {
		return "", err
	}
	return c.sendPlain(ctx, roomID, plain, true)
}

// SendOptions are what [Client.SendWith] can do beside [Client.Send].
type SendOptions struct {
	// Receipts asks those who get the message to say so, also in a group of more than
	// Limits.ReceiptDevices devices. They take their time, the more the larger the
	// group is, and answer one user seldom: an answer is good for all that came before.
	Receipts bool
}

// SendWith does what Send does, with options.
func (c *Client) SendWith(ctx context.Context, roomID id.RoomID, eventType string, content any, o SendOptions) (id.EventID, error) {
	raw, err := contentJSON(content)
	if err != nil {
		return "", err
	}
	plain, err := c.newPlaintext(roomID, eventType, raw)
	if err != nil {
		return "", err
	}
	if plain.AskReceipts = o.Receipts; o.Receipts {
		if err := checkPlaintext(plain); err != nil {
			return "", err
		}
	}
	return c.sendPlain(ctx, roomID, plain, false)
}

// sendPlain queues a message and waits for its event. With once, one that was
// queued under the same message id before is waited for instead.
func (c *Client) sendPlain(ctx context.Context, roomID id.RoomID, plain *rooms.Plaintext, once bool) (id.EventID, error) {
	c.mu.Lock()
	r, err := c.sendable(roomID)
	if err == nil && c.closed {
		err = ErrClosed
	}
	var row *outRow
	var sent id.EventID
	if err == nil && once {
		row, sent, err = c.sentBefore(ctx, roomID, plain.MessageID)
	}
	if err != nil || sent != "" {
		c.mu.Unlock()
		return sent, err
	}
	if row == nil {
		b := &batch{soon: c.blockedBy(roomID) == nil} // then it is encrypted at once, and on disk with that
		row, err = c.addRow(b, r, kindChat, stateQueued, federation.Ref{}, outData{Type: rooms.TypeEncrypted, Plain: plain})
		if err == nil {
			err = c.commitBatch(ctx, r, b)
		}
		if err != nil {
			c.mu.Unlock()
			return "", err
		}
	}
	answer := make(chan sendResult, 1)
	c.waiters[row.item.ID] = append(c.waiters[row.item.ID], answer)
	c.mu.Unlock()
	c.poke()
	select {
	case res := <-answer:
		if errors.Is(res.err, ErrClosed) { // it goes out later
			return "", errors.Join(res.err, c.st.Settle(context.WithoutCancel(ctx)))
		}
		return res.event, res.err
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		select {
		case res := <-answer: // it came meanwhile
			return res.event, res.err
		default:
		}
		c.stopWaiting(row.item.ID, answer)
		if err := c.st.Settle(context.WithoutCancel(ctx)); err != nil {
			return "", err
		}
		if why := c.blockedBy(roomID); why != nil {
			return "", fmt.Errorf("client: the message waits in the outbox: %w (%w)", why, ctx.Err())
		}
		return "", fmt.Errorf("client: the message waits in the outbox: %w", ctx.Err())
	}
}

// sentBefore finds an own message by its id: in the outbox, or where it was sent.
func (c *Client) sentBefore(ctx context.Context, roomID id.RoomID, mid string) (*outRow, id.EventID, error) {
	for _, row := range c.roomRows(roomID) {
		if row.data.Plain == nil || row.data.Plain.MessageID != mid {
			continue
		}
		if row.item.State == stateSent && row.data.EventID != "" {
			return nil, row.data.EventID, nil
		}
		if n := len(row.data.Was); row.data.Missed != nil && n > 0 { // it is sent again for who missed it
			return nil, row.data.Was[n-1], nil
		}
		return row, "", nil
	}
	item, err := c.st.TimelineByMid(ctx, roomID, c.UserID(), mid)
	if errors.Is(err, store.ErrNotFound) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	return nil, item.EventID, nil
}

// stopWaiting forgets one who waited for a row: how it ends is told as an
// update from now on.
func (c *Client) stopWaiting(rowID int64, answer chan sendResult) {
	c.waiters[rowID] = slices.DeleteFunc(c.waiters[rowID], func(ch chan sendResult) bool { return ch == answer })
	if len(c.waiters[rowID]) == 0 {
		delete(c.waiters, rowID)
	}
}

// contentJSON turns what a caller passes as content into JSON.
func contentJSON(content any) (json.RawMessage, error) {
	switch v := content.(type) {
	case json.RawMessage:
		return v, nil
	case []byte:
		return v, nil
	}
	raw, err := encodeKept(content)
	if err != nil {
		return nil, fmt.Errorf("client: content: %w", err)
	}
	return raw, nil
}

// encodeKept encodes what holds contents of events, each as it was written: json.Marshal
// would write "<", ">" and "&" another way.
func encodeKept(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func (c *Client) newPlaintext(roomID id.RoomID, eventType string, content json.RawMessage) (*rooms.Plaintext, error) {
	var random [16]byte
	if _, err := io.ReadFull(c.rand, random[:]); err != nil {
		return nil, fmt.Errorf("client: randomness: %w", err)
	}
	return checkedPlaintext(roomID, eventType, content, rooms.NewMessageID(random))
}

func checkedPlaintext(roomID id.RoomID, eventType string, content json.RawMessage, mid string) (*rooms.Plaintext, error) {
	plain := &rooms.Plaintext{Type: eventType, Content: content, Room: roomID, MessageID: mid}
	if err := checkPlaintext(plain); err != nil {
		return nil, err
	}
	return plain, nil
}

// checkPlaintext tells whether a message can be sent: once it is in the outbox it is
// too late to say so.
func checkPlaintext(plain *rooms.Plaintext) error {
	_, err := plain.Encode()
	switch {
	case err == nil:
		return nil
	case rooms.RuleOf(err) == rooms.RuleEventTooLarge:
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return fmt.Errorf("client: %w", err)
}

// sendable returns the room if messages may be queued for it.
func (c *Client) sendable(roomID id.RoomID) (*room, error) {
	r := c.rooms[roomID]
	switch {
	case r == nil:
		return nil, fmt.Errorf("%w (%s)", ErrNoRoom, roomID)
	case r.rec.Phase == phaseRemoved:
		return nil, r.outError()
	case !r.isMLS():
		return nil, fmt.Errorf("%w (%s)", ErrNotMLS, roomID)
	}
	return r, nil
}

// blockedBy says why messages of a room wait, nil if they do not.
func (c *Client) blockedBy(roomID id.RoomID) error {
	r := c.rooms[roomID]
	switch {
	case r == nil:
		return ErrNoRoom
	case r.rec.Membership != "join":
		return fmt.Errorf("%w (it has the membership %q)", errNotIn, r.rec.Membership)
	case r.refounding():
		return ErrSuiteChange
	case r.sendEpoch() == nil || r.rec.Phase != phaseMember:
		return ErrNoGroup
	case r.beside:
		return errBeside
	case len(r.blocked) > 0:
		if why, _ := c.noMajority(r); why != "" {
			return fmt.Errorf("%w (%s; %s)", ErrBarrier, r.blocked[0], why)
		}
		return fmt.Errorf("%w (%s)", ErrBarrier, r.blocked[0])
	case len(r.sendEpoch().group.PendingProposals()) > 0:
		return ErrBarrier
	case !r.mayEncrypt(r.sendEpoch()):
		return errCopied
	case !c.hasSynced():
		return errNotSynced
	case !r.planned:
		return errNotCompared
	}
	return nil
}

// errBeside: a module proves a final commit that this newcomer has not come to yet.
var errBeside = errors.New("client: this device has not come up to what is proven to be final")

// errNotIn: the homeserver says that our user is not in the room, or not any more. It would refuse what is
// encrypted, so that nothing in the room told a copy of this store which keys were used.
var errNotIn = errors.New("client: the homeserver says that this user is not in the room; join it, or be invited first")

// errNotCompared: who is in the room was not compared with who is in the group
// since either changed.
var errNotCompared = errors.New("client: the members of the room are being compared with the group's")

// encrypt makes the ciphertext of a message for the head. The caller persists
// the epoch's ratchet in the same transaction, before anything is sent.
func (c *Client) encrypt(r *room, e *epoch, plain *rooms.Plaintext) (json.RawMessage, error) {
	raw, err := plain.Encode()
	if err != nil {
		return nil, err
	}
	ciphertext, err := e.group.Encrypt(raw, rooms.MessageAAD{Head: e.ref}.Encode())
	if err != nil {
		return nil, fmt.Errorf("client: encrypt for %s: %w", r.id, err)
	}
	r.rec.Sent++
	return rooms.Encode(&rooms.EncryptedContent{
		Algorithm: rooms.Algorithm, Ciphertext: ciphertext, CommitEvent: c.commitEvent(r, e.ref),
		RelatesTo: rooms.OuterRelation(plain.Content, r.state.view.RoomVersion), // for the homeserver's threads and /relations; receivers use the one inside
	})
}

// encryptQueued encrypts what waits, and again what was encrypted for an epoch
// that is not the head, or not on the head's chain, any more.
func (c *Client) encryptQueued(ctx context.Context, r *room) error {
	e := r.sendEpoch()
	if e == nil || r.rec.Phase != phaseMember || c.blockedBy(r.id) != nil {
		return nil
	}
	b := &batch{}
	for _, row := range c.roomRows(r.id) {
		if row.data.Plain == nil || row.busy {
			continue
		}
		ref := row.ref()
		switch row.item.State {
		case stateReady:
			if ref == e.ref {
				continue
			}
		case stateSent:
			if ref == e.ref || r.onChain(ref) || c.without[probe.Resend] {
				continue
			}
		}
		if row.data.Taken {
			c.deleteRow(b, row)
			continue
		}
		if r.missedInVain(&row.data, e) {
			c.leaveSent(b, row)
			continue
		}
		gen := e.group.Sent()
		content, err := c.encrypt(r, e, row.data.Plain)
		if errors.Is(err, mls.ErrPendingProposals) {
			return nil // a commit comes first
		}
		if err != nil {
			return err
		}
		data := row.data
		data.Content, data.EventID, data.Gen = content, "", gen
		data.Try++
		if row.item.Kind == kindForeign {
			row.item.Kind = kindChat // the bot's client sent it; from now on it is ours
		}
		c.saveRow(b, row, stateReady, e.ref, data)
	}
	if len(b.ops) == 0 {
		return nil
	}
	if !c.without[probe.Durable] {
		c.putRatchet(b, r, e)
	}
	return c.commitBatch(ctx, r, b)
}

// onChain tells whether a ref lies on the head's chain, or so far below that
// it is forgotten.
func (r *room) onChain(ref federation.Ref) bool {
	if _, known := r.machine.Known(ref); !known {
		return ref != r.machine.Head()
	}
	return r.machine.Extends(r.machine.Head(), ref)
}

// EncryptEvent encrypts an event for a room without sending it: the caller
// sends the result as an m.room.encrypted event, once. It waits until the room
// can send. Package mautrix's client does so through [CryptoHelper].
func (c *Client) EncryptEvent(ctx context.Context, roomID id.RoomID, eventType string, content any) (json.RawMessage, error) {
	raw, err := contentJSON(content)
	if err != nil {
		return nil, err
	}
	plain, err := c.newPlaintext(roomID, eventType, raw)
	if err != nil {
		return nil, err
	}
	for {
		c.mu.Lock()
		r, err := c.sendable(roomID)
		if err != nil {
			c.mu.Unlock()
			return nil, err
		}
		why := c.blockedBy(roomID)
		if errors.Is(why, errNotIn) { // the homeserver would refuse it, and nothing is queued here
			c.mu.Unlock()
			return nil, fmt.Errorf("client: encrypt for %s: %w", roomID, why)
		}
		if why == nil {
			out, err := c.encryptForeign(ctx, r, plain)
			c.mu.Unlock()
			return out, err
		}
		if c.closed {
			c.mu.Unlock()
			return nil, fmt.Errorf("client: encrypt for %s: %w", roomID, errors.Join(why, ErrClosed))
		}
		changed := r.changed
		c.mu.Unlock()
		c.poke()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("client: encrypt for %s: %w", roomID, errors.Join(why, ctx.Err()))
		}
	}
}

func (c *Client) encryptForeign(ctx context.Context, r *room, plain *rooms.Plaintext) (json.RawMessage, error) {
	e := r.sendEpoch()
	gen := e.group.Sent()
	content, err := c.encrypt(r, e, plain)
	if err != nil {
		return nil, err
	}
	b := &batch{}
	c.putRatchet(b, r, e)
	if _, err := c.addRow(b, r, kindForeign, stateSent, e.ref, outData{Type: rooms.TypeEncrypted, Content: content, Plain: plain, Gen: gen}); err != nil {
		return nil, err
	}
	if err := c.commitBatch(ctx, r, b); err != nil {
		return nil, err
	}
	return content, nil
}

// ownCiphertext finds the outbox row that an own event carries.
func (c *Client) ownCiphertext(roomID id.RoomID, content *rooms.EncryptedContent) *outRow {
	want := sha256.Sum256(content.Ciphertext)
	for _, row := range c.roomRows(roomID) {
		if row.data.Plain == nil || len(row.data.Content) == 0 {
			continue
		}
		have, err := rooms.DecodeEncrypted(row.data.Content)
		if err == nil && sha256.Sum256(have.Ciphertext) == want {
			return row
		}
	}
	return nil
}

// addOwnMessage puts a message of this device into the timeline, once.
func (c *Client) addOwnMessage(b *batch, r *room, row *outRow, evt id.EventID) {
	plain := row.data.Plain
	msg := &Message{
		Room: r.id, EventID: evt, Sender: c.UserID(), Device: c.DeviceID(), Type: plain.Type, Content: plain.Content,
		ID: plain.MessageID, Timestamp: row.data.At, Ref: row.ref(), Verification: VerifiedUser, Own: true,
	}
	if e := r.epochs[row.ref()]; e != nil {
		msg.Epoch, msg.Leaf, msg.Generation = e.number, uint32(e.group.OwnLeafIndex()), row.data.Gen
		c.noteSent(b, r, e, row.data.Gen, plain.AskReceipts)
	}
	known, err := c.st.TimelineByMid(context.Background(), r.id, c.UserID(), plain.MessageID)
	if err == nil && known != nil {
		c.noteResent(b, known, msg)
		return
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		b.do(func(context.Context) error { return err })
		return
	}
	c.addMessage(b, msg)
}

// SendText sends a text message.
func (c *Client) SendText(ctx context.Context, roomID id.RoomID, text string) (id.EventID, error) {
	return c.Send(ctx, roomID, event.EventMessage.Type, &event.MessageEventContent{MsgType: event.MsgText, Body: text})
}

// Edit replaces the text of a message of ours.
func (c *Client) Edit(ctx context.Context, roomID id.RoomID, target id.EventID, text string) (id.EventID, error) {
	content := &event.MessageEventContent{MsgType: event.MsgText, Body: text}
	content.SetEdit(target)
	return c.Send(ctx, roomID, event.EventMessage.Type, content)
}

// React sends a reaction, encrypted like every other event.
func (c *Client) React(ctx context.Context, roomID id.RoomID, target id.EventID, key string) (id.EventID, error) {
	return c.Send(ctx, roomID, event.EventReaction.Type, &event.ReactionEventContent{
		RelatesTo: event.RelatesTo{Type: event.RelAnnotation, EventID: target, Key: key},
	})
}

// Redact removes an event from the room's history on all servers. Redactions
// are for homeservers and cannot be encrypted; the reason is public.
func (c *Client) Redact(ctx context.Context, roomID id.RoomID, target id.EventID, reason string) (id.EventID, error) {
	txnID, err := c.newID()
	if err != nil {
		return "", err
	}
	evt, err := c.hs.Redact(ctx, roomID, target, "mls"+txnID, reason)
	if err != nil {
		return "", fmt.Errorf("client: redact %s: %w", target, err)
	}
	return evt, nil
}
