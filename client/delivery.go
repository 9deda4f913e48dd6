package client

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A delivery receipt says of senders' messages up to which generation of an epoch
// all of them were received and decrypted. It is itself a message to the group, so
// no server can make one up; it is of a type that rings no phone, and is not
// acknowledged itself.

const (
	receiptEvery  = 30 * time.Second // between two of this device in a room
	receiptPace   = 15 * time.Second // and in all rooms: homeservers limit how often a user sends, and messages count
	receiptDelay  = 3 * time.Second  // for more that comes at once
	maxDeliveries = 32               // epochs of a room of which others' receipts are kept
	maxReceivers  = 1 << 16          // devices of such an epoch of which the receipts are read
)

// In a group above Limits.ReceiptDevices a receipt is sent on request alone. All its
// devices together send as many as one at that limit would, and what one user
// causes, asking all the time, is no more than they could send themselves.
const (
	askedShare = 3 * time.Second  // for each device of the group, between two receipts of one
	askedPause = 30 * time.Second // the same, between two answers of one to the same user
	maxAskers  = 64               // users of a room whose requests are kept
)

// An asker is a user who asked for receipts in a large group. There is one entry for
// all of a user's devices.
type asker struct {
	User id.UserID     `json:"user"`
	Ref  rooms.Hash    `json:"ref"`            // epoch, and
	Leaf uint32        `json:"leaf"`           // device that asked last
	Upto uint32        `json:"upto"`           // the generation it did so in
	Open bool          `json:"open,omitempty"` // up to there, something is still missing
	Due  int64         `json:"due,omitempty"`  // when the answer goes out, Unix milliseconds; 0: it has
	Next int64         `json:"next,omitempty"` // before then there is no other one
	due  time.Duration // the same, monotonic; 0: not known since the start
	next time.Duration
}

// ErrNoReceipts reports a message of which nobody can say who has it: it is not of
// this device, it did not ask for receipts in a large group, or it was sent long ago.
var ErrNoReceipts = errors.New("client: nothing is known of who has received this message")

// Delivered reports that a device has received and decrypted messages of this one;
// [Client.Delivery] says which.
type Delivered struct {
	Room   id.RoomID
	User   id.UserID
	Device id.DeviceID
}

func (*Delivered) update() {}

// DeliveredTo is a device to which a message was sent.
type DeliveredTo struct {
	User     id.UserID   `json:"user_id"`
	Device   id.DeviceID `json:"device_id"`
	Received bool        `json:"received"` // and decrypted, as it says
}

// Sending is how a message was sent once more, in another epoch.
type Sending struct {
	Ref        rooms.Hash `json:"ref"`
	Generation uint32     `json:"generation"`
}

// delivery is what is kept of an epoch in which this device has sent something.
type delivery struct {
	Own     uint32            `json:"own"`               // leaf
	Sent    uint32            `json:"sent"`              // generations
	Devices []deliveredDevice `json:"devices,omitempty"` // where they have no record of their own yet
}

type deliveredDevice struct {
	Leaf   uint32      `json:"leaf"`
	User   id.UserID   `json:"user"`
	Device id.DeviceID `json:"device"`
	Count  uint32      `json:"count,omitempty"` // of generations that it has, where that has no record of its own yet
}

func deliveryKey(room id.RoomID, ref rooms.Hash) string {
	return "delivery/" + string(room) + "/" + ref.String()
}

// receiversKey is where it is kept to whom was sent in an epoch.
func receiversKey(room id.RoomID, ref rooms.Hash) string {
	return "receivers/" + string(room) + "/" + ref.String()
}

// receivers returns to whom was sent in an epoch.
func (c *Client) receivers(ctx context.Context, room id.RoomID, ref rooms.Hash, d *delivery) (list []deliveredDevice, err error) {
	if len(d.Devices) > 0 {
		return d.Devices, nil
	}
	err = c.getJSON(ctx, receiversKey(room, ref), &list)
	return list, err
}

// deliveredToPrefix is where it is kept which devices have how many of the messages of
// an epoch: a record for each, since each says so by itself.
func deliveredToPrefix(room id.RoomID, ref rooms.Hash) string {
	return "received/" + string(room) + "/" + ref.String() + "/"
}

func deliveredToKey(room id.RoomID, ref rooms.Hash, leaf uint32) string {
	return deliveredToPrefix(room, ref) + strconv.FormatUint(uint64(leaf), 10)
}

// acknowledge notes that a message of a member was opened. The caller writes the
// room's record.
func (c *Client) acknowledge(r *room, e *epoch, sender mls.LeafIndex, msg *Message) {
	if !c.receipts {
		return
	}
	generation, ok := e.group.Received(sender)
	if e.group.MemberCount() > c.limits.ReceiptDevices {
		ok = c.asked(r, e, msg, generation, ok)
	}
	if !ok {
		return
	}
	if len(r.rec.Acks) == 0 {
		r.receiptAt = max(r.receiptAt, c.mono()+receiptDelay)
	}
	r.rec.Acks = mergeAcks(r.rec.Acks, rooms.Ack{Ref: rooms.Hash(e.ref), Leaf: uint32(sender), Generation: generation})
}

// asked notes a message in a large group, and tells whether it is to be acknowledged:
// its sender asks for it, or asked for it in a later one, that came before. generation
// is up to where all has come, if any has.
func (c *Client) asked(r *room, e *epoch, msg *Message, generation uint32, some bool) bool {
	c.wakeAskers(r)
	now, devices := c.mono(), time.Duration(e.group.MemberCount())
	at := slices.IndexFunc(r.rec.Askers, func(a asker) bool { return a.User == msg.Sender })
	if msg.asks && at < 0 {
		r.rec.Askers = slices.DeleteFunc(r.rec.Askers, func(a asker) bool { return a.due == 0 && !a.Open && a.next <= now })
		if at = len(r.rec.Askers); at >= maxAskers {
			return false
		}
		r.rec.Askers = append(r.rec.Askers, asker{User: msg.Sender})
	}
	if at < 0 {
		return false
	}
	a := &r.rec.Askers[at]
	switch ref := rooms.Hash(e.ref); {
	case msg.asks:
		a.Ref, a.Leaf, a.Upto = ref, msg.Leaf, msg.Generation
	case !a.Open || a.Ref != ref || a.Leaf != msg.Leaf:
		return false
	}
	a.Open = !some || generation < a.Upto
	if some && a.due == 0 {
		a.due = max(a.next, now+askedDelay(e, msg, devices*askedShare))
		a.Due = c.now().Add(a.due - now).UnixMilli()
	}
	return some
}

// askedDelay is how long this device waits before it answers a message that asks for
// receipts: all devices of the group share the time, each with a moment of its own.
func askedDelay(e *epoch, msg *Message, span time.Duration) time.Duration {
	sum := sha256.Sum256(fmt.Appendf(nil, "client: asked for receipts\x00%s\x00%d\x00%d\x00%d", e.ref, msg.Leaf, msg.Generation, e.group.OwnLeafIndex()))
	return receiptDelay + time.Duration(binary.BigEndian.Uint64(sum[:])%uint64(span))
}

// wakeAskers sets the times, on the monotonic clock, of requests from before the
// start. The wall clock may have been set back since.
func (c *Client) wakeAskers(r *room) {
	most := askedPause * time.Duration(maxReceivers)
	if head := r.head(); head != nil {
		most = askedPause * time.Duration(head.group.MemberCount())
	}
	for i := range r.rec.Askers {
		a := &r.rec.Askers[i]
		a.due, a.next = c.fromWall(a.due, a.Due, most), c.fromWall(a.next, a.Next, most)
	}
}

// fromWall returns a time on the monotonic clock: the one that is known, or what was
// written of it, at most a while from now.
func (c *Client) fromWall(known time.Duration, wall int64, most time.Duration) time.Duration {
	if known != 0 || wall == 0 {
		return known
	}
	return c.mono() + min(max(0, time.UnixMilli(wall).Sub(c.now())), most)
}

// askedFor is when the first of those who asked for receipts is answered, 0 if none
// waits for that.
func (c *Client) askedFor(r *room) (first time.Duration) {
	c.wakeAskers(r)
	for _, a := range r.rec.Askers {
		if a.due > 0 && (first == 0 || a.due < first) {
			first = a.due
		}
	}
	return first
}

// answered notes that all who asked for receipts get one.
func (c *Client) answered(r *room, e *epoch) {
	pause := askedPause * time.Duration(e.group.MemberCount())
	for i := range r.rec.Askers {
		if a := &r.rec.Askers[i]; a.due > 0 {
			a.due, a.Due = 0, 0
			a.next, a.Next = c.mono()+pause, c.now().Add(pause).UnixMilli()
		}
	}
}

// mergeAcks adds acknowledgements, the higher of two for one sender and epoch. What
// is too much goes, the oldest first: they are cumulative.
func mergeAcks(list []rooms.Ack, more ...rooms.Ack) []rooms.Ack {
	list = slices.Clone(list)
	for _, a := range more {
		if i := slices.IndexFunc(list, func(o rooms.Ack) bool { return o.Ref == a.Ref && o.Leaf == a.Leaf }); i < 0 {
			list = append(list, a)
		} else {
			list[i].Generation = max(list[i].Generation, a.Generation)
		}
	}
	return list[max(0, len(list)-rooms.MaxAcks):]
}

// sendReceipt makes the receipt that is due. One that was made for an epoch that is
// not the head any more is made anew.
func (c *Client) sendReceipt(ctx context.Context, r *room) error {
	e := r.sendEpoch()
	b := &batch{}
	waits, held := false, c.blockedBy(r.id) != nil
	for _, row := range c.roomRows(r.id) {
		switch {
		case row.item.Kind != kindReceipt:
		case row.busy || e != nil && row.ref() == e.ref:
			waits = true
			if !held {
				notifyChan(c.outWake) // it may have been held back until now
			}
		default:
			r.rec.Acks = mergeAcks(row.data.Acks, r.rec.Acks...)
			r.askAnew(row.data.Missing)
			c.deleteRow(b, row)
		}
	}
	if len(b.ops) > 0 {
		return c.commitBatch(ctx, r, b)
	}
	if waits || len(r.rec.Acks) == 0 || e == nil || c.mono() < c.receiptDue(r) || held {
		return nil
	}
	acks := r.rec.Acks
	r.rec.Acks = nil
	if c.receipts {
		err := c.queueReceipt(b, r, e, &rooms.ReceiptPayload{Acks: acks})
		if errors.Is(err, mls.ErrPendingProposals) {
			r.rec.Acks = acks
			return nil
		}
		if err != nil {
			return err
		}
		c.answered(r, e)
		r.receiptAt = c.mono() + max(receiptEvery, receiptPace*time.Duration(1+c.receiptsWaiting())) // others' turn first
		if n := e.group.MemberCount(); n > c.limits.ReceiptDevices {
			r.receiptAt = max(r.receiptAt, c.mono()+askedShare*time.Duration(n))
		}
	}
	return c.commitBatch(ctx, r, b)
}

// queueReceipt encrypts a delivery receipt and queues it.
func (c *Client) queueReceipt(b *batch, r *room, e *epoch, receipt *rooms.ReceiptPayload) error {
	payload, err := rooms.Encode(receipt)
	if err != nil {
		return err
	}
	plain, err := c.newPlaintext(r.id, rooms.TypeReceipt, payload)
	if err != nil {
		return err
	}
	content, err := c.encrypt(r, e, plain)
	if err != nil {
		return err
	}
	c.putRatchet(b, r, e)
	if _, err := c.addRow(b, r, kindReceipt, stateReady, e.ref, outData{Type: rooms.TypeReceipt, Content: content, Acks: receipt.Acks, Missing: receipt.Missing}); err != nil {
		return err
	}
	c.noteAlsoSent(b, r, e)
	c.receiptsAt = c.mono() + receiptPace
	return nil
}

// receiptDue is when the room's next receipt may be made.
func (c *Client) receiptDue(r *room) time.Duration {
	return max(r.receiptAt, c.receiptsAt, c.askedFor(r))
}

// receiptsWaiting counts the rooms in which there is something to acknowledge.
func (c *Client) receiptsWaiting() (n int) {
	for _, r := range c.rooms {
		if len(r.rec.Acks) > 0 {
			n++
		}
	}
	return n
}

// noteAlsoSent counts what this device has sent in an epoch beside the messages of
// which it wants to know who has them: whoever has opened it acknowledges up to there.
func (c *Client) noteAlsoSent(b *batch, r *room, e *epoch) {
	ref, sent := rooms.Hash(e.ref), e.group.Sent()
	if !slices.Contains(r.rec.Delivery, ref) {
		return
	}
	b.do(func(ctx context.Context) error {
		var d delivery
		if err := c.getJSON(ctx, deliveryKey(r.id, ref), &d); err != nil {
			return err
		}
		d.Sent = max(d.Sent, sent)
		return c.putJSON(ctx, deliveryKey(r.id, ref), &d)
	})
}

// noteSent notes, with a message of this device, to whom it was sent. In a large group
// it does so of one that asks for receipts.
func (c *Client) noteSent(b *batch, r *room, e *epoch, generation uint32, asks bool) {
	if !c.receipts {
		return
	}
	if !asks && e.group.MemberCount() > c.limits.ReceiptDevices {
		c.noteAlsoSent(b, r, e)
		return
	}
	ref := rooms.Hash(e.ref)
	var gone []rooms.Hash
	if !slices.Contains(r.rec.Delivery, ref) {
		list := append(slices.Clone(r.rec.Delivery), ref)
		n := max(0, len(list)-maxDeliveries)
		gone, r.rec.Delivery = list[:n], list[n:]
	}
	own := e.group.OwnLeafIndex()
	leaves := rooms.GroupLeaves(e.group)
	b.do(func(ctx context.Context) error {
		for _, old := range gone {
			if err := c.forgetDelivery(ctx, r.id, old); err != nil {
				return err
			}
		}
		var d delivery
		if err := c.getJSON(ctx, deliveryKey(r.id, ref), &d); err != nil {
			return err
		}
		if d.Sent == 0 {
			d.Own = uint32(own)
			list := make([]deliveredDevice, 0, len(leaves))
			for _, leaf := range leaves {
				if leaf.Index != own {
					list = append(list, deliveredDevice{Leaf: uint32(leaf.Index), User: leaf.Cred.User, Device: leaf.Cred.Device})
				}
			}
			if err := c.putJSON(ctx, receiversKey(r.id, ref), list); err != nil {
				return err
			}
		}
		d.Sent = max(d.Sent, generation+1)
		return c.putJSON(ctx, deliveryKey(r.id, ref), &d)
	})
}

func (c *Client) forgetDelivery(ctx context.Context, room id.RoomID, ref rooms.Hash) error {
	for _, key := range []string{deliveryKey(room, ref), receiversKey(room, ref)} {
		if err := c.st.DeleteKV(ctx, key); err != nil {
			return err
		}
	}
	return c.st.DeleteKVs(ctx, deliveredToPrefix(room, ref))
}

// noteResent notes that a message of this device was sent again, in another epoch.
func (c *Client) noteResent(b *batch, known *store.TimelineItem, again *Message) {
	b.do(func(ctx context.Context) error {
		msg, err := messageOf(known)
		if err != nil {
			return err
		}
		sending := Sending{Ref: rooms.Hash(again.Ref), Generation: again.Generation}
		if msg.Ref == again.Ref || slices.Contains(msg.Again, sending) {
			return nil
		}
		msg.Again = append(msg.Again, sending)
		msg.Again = msg.Again[max(0, len(msg.Again)-8):]
		item, err := historyItem(msg)
		if err != nil {
			return err
		}
		item.Seq, item.Ref = known.Seq, known.Ref
		return c.st.UpdateTimeline(ctx, item)
	})
}

// handleDelivery takes in another device's delivery receipt. What it says of
// messages that were never sent is not believed.
func (c *Client) handleDelivery(ctx context.Context, r *room, e *epoch, evt *Event, msg *Message, b *batch) {
	if msg.Type != rooms.TypeReceipt {
		c.refused(r, evt, errRefusedUpdate(rooms.RuleContentMalformed, "it is no delivery receipt"), b)
		return
	}
	payload, err := rooms.DecodeReceiptPayload(msg.Content)
	if err != nil {
		c.refused(r, evt, err, b)
		return
	}
	c.handleQuestion(r, msg.Sender, msg.Device, payload.Missing, b)
	if !c.receipts {
		return
	}
	rose := false
	for _, ack := range payload.Acks {
		if !slices.Contains(r.rec.Delivery, ack.Ref) {
			continue
		}
		b.do(func(ctx context.Context) error {
			var d delivery
			if err := c.getJSON(ctx, deliveryKey(r.id, ack.Ref), &d); err != nil {
				return err
			}
			if ack.Leaf != d.Own || ack.Generation >= d.Sent {
				return nil
			}
			list, err := c.receivers(ctx, r.id, ack.Ref, &d)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(list, func(to deliveredDevice) bool { return to.User == msg.Sender && to.Device == msg.Device })
			if i < 0 {
				return nil
			}
			key := deliveredToKey(r.id, ack.Ref, list[i].Leaf)
			count := list[i].Count
			if err := c.getJSON(ctx, key, &count); err != nil || count > ack.Generation {
				return err
			}
			rose = true
			return c.putJSON(ctx, key, ack.Generation+1)
		})
	}
	b.then(func() {
		if rose {
			c.tell(&Delivered{Room: r.id, User: msg.Sender, Device: msg.Device})
		}
	})
}

// delivered returns how many of the messages of an epoch devices have, by leaf.
func (c *Client) delivered(ctx context.Context, room id.RoomID, ref rooms.Hash) (map[uint32]uint32, error) {
	prefix := deliveredToPrefix(room, ref)
	keys, err := c.st.KVKeys(ctx, prefix, maxReceivers)
	if err != nil {
		return nil, err
	}
	out := make(map[uint32]uint32, len(keys))
	for _, key := range keys {
		leaf, err := strconv.ParseUint(key[len(prefix):], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("client: stored key %q: %w", key, err)
		}
		var count uint32
		if err := c.getJSON(ctx, key, &count); err != nil {
			return nil, err
		}
		out[uint32(leaf)] = count
	}
	return out, nil
}

// Delivery says of a message that this device sent which devices it was sent to,
// and which of them have received and decrypted it, as they say. Those without
// Options.Receipts say nothing. In the order of user and device.
func (c *Client) Delivery(ctx context.Context, roomID id.RoomID, event id.EventID) ([]DeliveredTo, error) {
	msg, err := c.Message(ctx, roomID, event)
	if err != nil {
		return nil, err
	}
	var out []DeliveredTo
	sendings := append([]Sending{{Ref: rooms.Hash(msg.Ref), Generation: msg.Generation}}, msg.Again...)
	for _, s := range sendings {
		if federation.Ref(s.Ref).IsZero() || !msg.Own {
			continue
		}
		var d delivery
		if err := c.getJSON(ctx, deliveryKey(roomID, s.Ref), &d); err != nil {
			return nil, err
		}
		list, err := c.receivers(ctx, roomID, s.Ref, &d)
		if err != nil {
			return nil, err
		}
		counts, err := c.delivered(ctx, roomID, s.Ref)
		if err != nil {
			return nil, err
		}
		for _, to := range list {
			has := max(to.Count, counts[to.Leaf]) > s.Generation
			if i := slices.IndexFunc(out, func(o DeliveredTo) bool { return o.User == to.User && o.Device == to.Device }); i >= 0 {
				out[i].Received = out[i].Received || has
			} else {
				out = append(out, DeliveredTo{User: to.User, Device: to.Device, Received: has})
			}
		}
	}
	if out == nil {
		return nil, fmt.Errorf("%w (%s)", ErrNoReceipts, event)
	}
	slices.SortFunc(out, func(a, b DeliveredTo) int {
		return cmp.Or(cmp.Compare(a.User, b.User), cmp.Compare(a.Device, b.Device))
	})
	return out, nil
}

// LastDelivery says what Delivery says of the last message that this device sent
// into a room, among its newest hundred.
func (c *Client) LastDelivery(ctx context.Context, roomID id.RoomID) (*Message, []DeliveredTo, error) {
	list, err := c.Messages(ctx, roomID, "", 100)
	if err != nil {
		return nil, nil, err
	}
	for _, msg := range slices.Backward(list) {
		if msg.Own {
			to, err := c.Delivery(ctx, roomID, msg.EventID)
			return msg, to, err
		}
	}
	return nil, nil, fmt.Errorf("%w: this device has sent none lately", ErrNoReceipts)
}
