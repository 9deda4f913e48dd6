package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/archive"
	"github.com/matrix-mls/matrix-mls/client/sealed"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// give answers a request for history, part by part, the newest messages first.
// What was given is kept, so that a restart goes on with the next part.
func (c *Client) give(ctx context.Context, t *historyTask) error {
	req, err := rooms.DecodeHistoryRequest(t.Raw)
	if err != nil {
		return err
	}
	cs := mls.CipherSuite(req.Suite)
	if t.Sender == c.UserID() && req.Device == c.DeviceID() {
		return dropTask("it is this device's own")
	}
	theirs, err := c.historyPeerKey(ctx, t.Room, t.Sender, req.Device, cs)
	if err != nil {
		return err
	}
	if err := req.Verify(t.Sender, theirs); err != nil {
		return err
	}
	if err := c.mayGive(t, req); err != nil {
		return err
	}
	if t.Sender != c.UserID() && t.grant == nil {
		if t.grant, err = c.granted(ctx, t.Room, t.Sender); err != nil {
			return err
		}
	}
	ours, err := c.ident.SignatureKey(cs)
	if err != nil {
		return dropTask("no key for %s: %w", cs, err)
	}
	for {
		part, err := c.historyPart(ctx, t)
		if err != nil {
			return err
		}
		mxc, err := c.uploadRetrying(ctx, part.sealed)
		if err != nil {
			return fmt.Errorf("client: upload history of %s: %w", t.Room, err)
		}
		bundle := &rooms.HistoryBundleContent{
			Room: t.Room, Request: req.Request, Device: c.DeviceID(), Suite: req.Suite, Part: t.Part, Last: part.last,
			File: *rooms.NewFile(id.ContentURIString(mxc), part.sealed),
		}
		peers := rooms.HistoryPeers{Giver: c.UserID(), Taker: t.Sender, TakerDevice: req.Device}
		err = bundle.Seal(peers, req.Key, part.key, ours)
		clear(part.key)
		if err != nil {
			return err
		}
		raw, err := rooms.Encode(bundle)
		if err != nil {
			return err
		}
		to := map[id.UserID]map[id.DeviceID]json.RawMessage{t.Sender: {req.Device: raw}}
		// A part that is sent once more after a crash has another key: it needs a
		// transaction of its own.
		txn, err := c.newID()
		if err != nil {
			return err
		}
		if err := c.hs.SendToDevice(ctx, rooms.TypeHistoryBundle, "mlsh"+txn, to); err != nil {
			return err
		}
		c.log.Info().Stringer("room_id", t.Room).Stringer("device_id", req.Device).Uint32("part", t.Part).Int("messages", part.messages).Msg("Gave history to a device")
		if part.last {
			return nil
		}
		c.mu.Lock()
		t.Part, t.Before, t.Given, t.fail = t.Part+1, part.before, t.Given+part.messages, 0
		err = c.st.Do(context.WithoutCancel(ctx), c.saveTasks)
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// mayGive refuses a request that was answered, and holds one that comes too soon
// after another of that device for that room. Each answer makes the next one wait
// longer, until the device has not asked for a day.
func (c *Client) mayGive(t *historyTask, req *rooms.HistoryRequestContent) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.begun || t.Part > 0 {
		return nil
	}
	key := fmt.Sprintf("%s/%s/%s", t.Room, t.Sender, req.Device)
	now, pause := c.mono(), historyPause
	if last, given := c.given[key]; given {
		switch {
		case last.request == req.Request:
			return dropTask("it has been given to %s", req.Device)
		case now < last.until:
			return &heldTask{until: last.until}
		case now < last.until+24*time.Hour:
			pause = min(2*last.pause, historyMaxPause)
		}
	}
	if len(c.given) >= maxGiven {
		clear(c.given)
	}
	c.given[key] = lastGiven{request: req.Request, until: now + pause, pause: pause}
	t.begun = true
	return nil
}

// maxGiven bounds what is remembered of devices that were given history.
const maxGiven = 1024

type lastGiven struct {
	request string
	until   time.Duration
	pause   time.Duration
}

// historyPart is a part of an answer.
type historyPart struct {
	sealed   []byte
	key      []byte
	messages int
	before   int64 // where the next one goes on
	last     bool
}

// historyPart seals the next messages, the newest first.
func (c *Client) historyPart(ctx context.Context, t *historyTask) (*historyPart, error) {
	p := &historyPart{key: make([]byte, sealed.KeySize), before: t.Before}
	if _, err := io.ReadFull(c.rand, p.key); err != nil {
		return nil, fmt.Errorf("client: randomness: %w", err)
	}
	var out bytes.Buffer
	w, err := archive.NewWriter(&out, sealed.Secret{Key: p.key}, archive.Header{User: c.UserID(), Device: c.DeviceID()}, c.rand)
	if err != nil {
		return nil, err
	}
	const page = 200
	for size := 0; size < historyPartSize && !p.last; {
		items, err := c.st.Timeline(ctx, t.Room, p.before, page)
		if err != nil {
			return nil, err
		}
		p.last = len(items) < page
		for _, item := range slices.Backward(items) {
			if full := t.Given+p.messages >= c.limits.History; full || size >= historyPartSize {
				p.last = full
				break
			}
			p.before = item.Seq
			msg, err := messageOf(item)
			if err != nil {
				return nil, err
			}
			if t.Sender != c.UserID() && (!t.grant[msg.EventID] || msg.From != nil && !msg.From.Own) {
				continue
			}
			n, err := w.Add(archived(msg))
			if err != nil {
				continue // what an archive cannot hold, no event can
			}
			size += n
			p.messages++
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	p.sealed = out.Bytes()
	if len(p.sealed) > rooms.MaxHistoryPart {
		return nil, dropTask("a part of %d bytes", len(p.sealed))
	}
	return p, nil
}

// archived makes the line of an archive of a message.
func archived(msg *Message) *archive.Message {
	m := &archive.Message{
		Room: msg.Room, EventID: msg.EventID, Sender: msg.Sender, Device: msg.Device, Type: msg.Type, Content: msg.Content,
		ID: msg.ID, Timestamp: msg.Timestamp, Epoch: msg.Epoch,
	}
	if msg.From != nil && !msg.From.Own {
		m.SharedBy, m.FromFile = msg.From.User, msg.From.File
	}
	return m
}
