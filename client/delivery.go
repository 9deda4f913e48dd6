package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
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
)

// ErrNoReceipts reports a message of which nobody can say who has it: it is not of
// this device, the group was too large, or it was sent long ago.
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
	Own     uint32            `json:"own"`  // leaf
	Sent    uint32            `json:"sent"` // generations
	Devices []deliveredDevice `json:"devices"`
}

type deliveredDevice struct {
	Leaf   uint32      `json:"leaf"`
	User   id.UserID   `json:"user"`
	Device id.DeviceID `json:"device"`
	Count  uint32      `json:"count,omitempty"` // of generations that it has
}

func deliveryKey(room id.RoomID, ref rooms.Hash) string {
	return "delivery/" + string(room) + "/" + ref.String()
}

// acknowledge notes that a message of a member was opened. The caller writes the
// room's record.
func (c *Client) acknowledge(r *room, e *epoch, sender mls.LeafIndex) {
	if !c.receipts || e.group.MemberCount() > c.limits.ReceiptDevices {
		return
	}
	generation, ok := e.group.Received(sender)
	if !ok {
		return
	}
	if len(r.rec.Acks) == 0 {
		r.receiptAt = max(r.receiptAt, c.mono()+receiptDelay)
	}
	r.rec.Acks = mergeAcks(r.rec.Acks, rooms.Ack{Ref: rooms.Hash(e.ref), Leaf: uint32(sender), Generation: generation})
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
	if c.receipts && e.group.MemberCount() <= c.limits.ReceiptDevices {
		payload, err := rooms.Encode(&rooms.ReceiptPayload{Acks: acks})
		if err != nil {
			return err
		}
		plain, err := c.newPlaintext(r.id, rooms.TypeReceipt, payload)
		if err != nil {
			return err
		}
		content, err := c.encrypt(r, e, plain)
		if errors.Is(err, mls.ErrPendingProposals) {
			r.rec.Acks = acks
			return nil
		}
		if err != nil {
			return err
		}
		c.putRatchet(b, r, e)
		if _, err := c.addRow(b, r, kindReceipt, stateReady, e.ref, outData{Type: rooms.TypeReceipt, Content: content, Acks: acks}); err != nil {
			return err
		}
		c.noteReceiptSent(b, r, e)
		c.receiptsAt = c.mono() + receiptPace
		r.receiptAt = c.mono() + max(receiptEvery, receiptPace*time.Duration(1+c.receiptsWaiting())) // others' turn first
	}
	return c.commitBatch(ctx, r, b)
}

// receiptDue is when the room's next receipt may be made.
func (c *Client) receiptDue(r *room) time.Duration { return max(r.receiptAt, c.receiptsAt) }

// receiptsWaiting counts the rooms in which there is something to acknowledge.
func (c *Client) receiptsWaiting() (n int) {
	for _, r := range c.rooms {
		if len(r.rec.Acks) > 0 {
			n++
		}
	}
	return n
}

// noteReceiptSent counts a receipt among what this device has sent in an epoch:
// whoever has opened it acknowledges up to there.
func (c *Client) noteReceiptSent(b *batch, r *room, e *epoch) {
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

// noteSent notes, with a message of this device, to whom it was sent.
func (c *Client) noteSent(b *batch, r *room, e *epoch, generation uint32) {
	if !c.receipts || e.group.MemberCount() > c.limits.ReceiptDevices {
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
			if err := c.st.DeleteKV(ctx, deliveryKey(r.id, old)); err != nil {
				return err
			}
		}
		var d delivery
		if err := c.getJSON(ctx, deliveryKey(r.id, ref), &d); err != nil {
			return err
		}
		if d.Devices == nil {
			d.Own = uint32(own)
			for _, leaf := range leaves {
				if leaf.Index != own {
					d.Devices = append(d.Devices, deliveredDevice{Leaf: uint32(leaf.Index), User: leaf.Cred.User, Device: leaf.Cred.Device})
				}
			}
		}
		d.Sent = max(d.Sent, generation+1)
		return c.putJSON(ctx, deliveryKey(r.id, ref), &d)
	})
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
			i := slices.IndexFunc(d.Devices, func(to deliveredDevice) bool { return to.User == msg.Sender && to.Device == msg.Device })
			if i < 0 || ack.Leaf != d.Own || ack.Generation >= d.Sent || d.Devices[i].Count > ack.Generation {
				return nil
			}
			d.Devices[i].Count, rose = ack.Generation+1, true
			return c.putJSON(ctx, deliveryKey(r.id, ack.Ref), &d)
		})
	}
	b.then(func() {
		if rose {
			c.tell(&Delivered{Room: r.id, User: msg.Sender, Device: msg.Device})
		}
	})
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
		for _, to := range d.Devices {
			has := to.Count > s.Generation
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
