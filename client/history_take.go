package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/archive"
	"github.com/matrix-mls/matrix-mls/client/sealed"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// take takes in a part of the history that this device asked for: messages of
// which the homeserver has an encrypted event of that sender.
func (c *Client) take(ctx context.Context, t *historyTask) error {
	bundle, err := rooms.DecodeHistoryBundle(t.Raw)
	if err != nil {
		return err
	}
	c.mu.Lock()
	var ask historyState
	if r := c.rooms[bundle.Room]; r != nil && r.rec.History != nil {
		ask = *r.rec.History
	}
	asked := slices.ContainsFunc(ask.Asked, func(p historyPeer) bool {
		return p.User == t.Sender && p.Device == bundle.Device && !p.Done && !slices.Contains(p.Taken, bundle.Part)
	})
	open := ask.open(c.now()) && ask.Request == bundle.Request && asked
	c.mu.Unlock()
	if !open {
		return dropTask("it was not asked for, or has come before")
	}
	giver, err := c.historyPeerKey(ctx, bundle.Room, t.Sender, bundle.Device, mls.CipherSuite(bundle.Suite))
	if err != nil {
		return err
	}
	peers := rooms.HistoryPeers{Giver: t.Sender, Taker: c.UserID(), TakerDevice: c.DeviceID()}
	key, err := bundle.Open(peers, ask.Key, giver)
	if err != nil {
		return err
	}
	defer clear(key)
	raw, err := c.hs.Download(ctx, string(bundle.File.MXC), rooms.MaxHistoryPart)
	if err != nil {
		return fmt.Errorf("client: history of %s: %w", bundle.Room, err)
	}
	if err := bundle.File.Check(raw); err != nil {
		return err
	}
	list, err := c.readArchive(bytes.NewReader(raw), sealed.Secret{Key: key}, bundle.Room)
	if err != nil {
		return dropTask("%w", err)
	}
	from := HistorySource{User: t.Sender, Device: bundle.Device, Own: t.Sender == c.UserID()}
	walk, end := c.walk(bundle.Room)
	got, dropped, err := c.addHistory(ctx, walk, list, from)
	end()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tell(&HistoryReceived{Room: bundle.Room, User: t.Sender, Device: bundle.Device, Own: from.Own, Messages: got, Dropped: dropped, Last: bundle.Last})
	r := c.rooms[bundle.Room]
	if r == nil || r.rec.History == nil || r.rec.History.Request != bundle.Request {
		return nil
	}
	h := r.rec.History
	left := 0
	h.Asked = slices.Clone(h.Asked)
	for i, p := range h.Asked {
		if p.User == t.Sender && p.Device == bundle.Device {
			h.Asked[i].Done, h.Asked[i].Taken = bundle.Last, append(slices.Clone(p.Taken), bundle.Part)
		}
		if !h.Asked[i].Done {
			left++
		}
	}
	if left == 0 {
		clear(h.Key)
		h.Key = nil
	}
	return c.commitBatch(ctx, r, &batch{})
}

// maxArchive bounds the plaintext of one part.
const maxArchive = rooms.MaxHistoryPart

// readArchive reads all messages of an archive. They have to be of the room.
func (c *Client) readArchive(r io.Reader, s sealed.Secret, room id.RoomID) ([]*archive.Message, error) {
	in, err := archive.NewReader(r, s, maxArchive)
	if err != nil {
		return nil, err
	}
	var list []*archive.Message
	for {
		m, err := in.Next()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		if m.Room != room {
			return nil, fmt.Errorf("%w: a message of another room", archive.ErrContent)
		}
		if len(list) >= c.limits.History {
			return nil, fmt.Errorf("%w: more than %d messages", archive.ErrContent, c.limits.History)
		}
		list = append(list, m)
	}
}

// maxHistoryLookups bounds the events that are asked for one by one, since the
// homeserver did not show them among the others.
const maxHistoryLookups = 200

// historyWalk reads a room's events backwards, to compare with what is told of them.
// What is told of comes in the same order.
type historyWalk struct {
	room  id.RoomID
	token string
	pages int
	done  bool
	// seen are the events that were read; HistoryPages bounds them.
	seen map[id.EventID]walked
	// redacted are the events that were redacted since it began, guarded by Client.mu.
	redacted map[id.EventID]bool
}

// walk begins to compare with a room's events. The caller calls end when all is stored.
func (c *Client) walk(room id.RoomID) (w *historyWalk, end func()) {
	w = &historyWalk{room: room, seen: map[id.EventID]walked{}, redacted: map[id.EventID]bool{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.walks[w] = true
	return w, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.walks, w)
	}
}

// redactedSince tells whether an event was redacted while it was compared. The caller
// holds c.mu.
func (c *Client) redactedSince(room id.RoomID, event id.EventID) bool {
	for w := range c.walks {
		if w.room == room && w.redacted[event] {
			return true
		}
	}
	return false
}

// walked is what is kept of an event that was read.
type walked struct {
	sender    id.UserID // empty: a state event, not encrypted, or redacted
	timestamp int64
}

func (w *historyWalk) note(list ...*Event) {
	for _, evt := range list {
		var of walked
		if evt.StateKey == nil && evt.Type == rooms.TypeEncrypted {
			if _, err := rooms.DecodeEncrypted(evt.Content); err == nil {
				of = walked{sender: evt.Sender, timestamp: evt.Timestamp}
			}
		}
		w.seen[evt.ID] = of
	}
}

// find reads on until all the events that are missing were seen, as far as the
// homeserver gives them. One that it does not show is looked for to the end of what is
// read, once for the whole walk.
func (c *Client) find(ctx context.Context, w *historyWalk, missing []*archive.Message) error {
	unseen := func() (out []id.EventID) {
		for _, m := range missing {
			if _, ok := w.seen[m.EventID]; !ok {
				out = append(out, m.EventID)
			}
		}
		return out
	}
	for !w.done && len(unseen()) > 0 {
		page, next, err := c.hs.Messages(ctx, w.room, w.token, 100)
		if err != nil {
			return err
		}
		w.note(page...)
		w.pages++
		w.done = next == "" || next == w.token || len(page) == 0 || w.pages >= c.limits.HistoryPages
		w.token = next
	}
	left := unseen()
	for _, event := range left[:min(len(left), maxHistoryLookups)] {
		evt, err := c.hs.Event(ctx, w.room, event)
		if err != nil && !isPermanent(err) {
			return err
		}
		if err == nil && evt.ID == event {
			w.note(evt)
		}
	}
	return nil
}

// addHistory stores messages, the newest first, of which the homeserver has an
// encrypted event of that sender.
func (c *Client) addHistory(ctx context.Context, w *historyWalk, list []*archive.Message, from HistorySource) (added, dropped int, err error) {
	roomID := w.room
	var missing []*archive.Message
	twice := map[id.EventID]bool{}
	for _, m := range list {
		known, err := c.st.TimelineEvent(ctx, roomID, m.EventID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return 0, 0, err
		}
		if known == nil && !twice[m.EventID] {
			twice[m.EventID] = true
			missing = append(missing, m)
		}
	}
	if err := c.find(ctx, w, missing); err != nil {
		return 0, 0, fmt.Errorf("client: compare history of %s with the homeserver's: %w", roomID, err)
	}
	var items []*store.TimelineItem
	for _, m := range missing {
		evt := w.seen[m.EventID]
		if evt.sender == "" || evt.sender != m.Sender {
			dropped++
			continue
		}
		item, err := historyItem(c.givenMessage(m, evt.timestamp, from))
		if err != nil {
			return 0, 0, err
		}
		items = append(items, item)
	}
	for some := range slices.Chunk(items, 500) { // others want the lock, too
		n, err := c.storeHistory(ctx, roomID, some)
		if err != nil {
			return 0, 0, err
		}
		added += n
	}
	return added, dropped, nil
}

// givenMessage is a message as another device, or a file, gave it. On whose word it
// is shown an own device may say, nobody else.
func (c *Client) givenMessage(m *archive.Message, timestamp int64, from HistorySource) *Message {
	if from.Own && m.SharedBy != "" && (m.SharedBy != c.UserID() || m.FromFile) {
		from = HistorySource{User: m.SharedBy, File: m.FromFile}
	}
	return &Message{
		Room: m.Room, EventID: m.EventID, Sender: m.Sender, Device: m.Device, Type: m.Type, Content: m.Content, ID: m.ID,
		Timestamp: timestamp, Epoch: m.Epoch, Verification: Unverified, From: &from,
	}
}

func (c *Client) storeHistory(ctx context.Context, roomID id.RoomID, items []*store.TimelineItem) (added int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil {
		return 0, dropTask("the room is gone")
	}
	b := &batch{}
	for _, item := range items {
		if c.redactedSince(roomID, item.EventID) {
			continue
		}
		b.do(func(ctx context.Context) error {
			ok, err := c.st.AddHistory(ctx, item)
			if ok {
				added++
			}
			return err
		})
	}
	if r.rec.History == nil {
		r.rec.History = &historyState{} // nobody was asked yet
	}
	r.rec.History.Held = true
	return added, c.commitBatch(ctx, r, b)
}
