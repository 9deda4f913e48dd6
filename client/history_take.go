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
	got, dropped, err := c.addHistory(ctx, &historyWalk{room: bundle.Room}, list, from)
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
	page  []*Event // the last one read
}

// find returns the events with the given ids, as far as the homeserver gives them.
func (c *Client) find(ctx context.Context, w *historyWalk, ids map[id.EventID]*archive.Message) (map[id.EventID]*Event, error) {
	events := map[id.EventID]*Event{}
	note := func(list ...*Event) {
		for _, evt := range list {
			if ids[evt.ID] != nil {
				events[evt.ID] = evt
			}
		}
	}
	note(w.page...)
	for len(events) < len(ids) && !w.done {
		page, next, err := c.hs.Messages(ctx, w.room, w.token, 100)
		if err != nil {
			return nil, err
		}
		note(page...)
		w.pages++
		w.done = next == "" || next == w.token || len(page) == 0 || w.pages >= c.limits.HistoryPages
		w.token, w.page = next, page
	}
	lookups := 0
	for event := range ids {
		if events[event] != nil || lookups >= maxHistoryLookups {
			continue
		}
		lookups++
		evt, err := c.hs.Event(ctx, w.room, event)
		if err != nil && !isPermanent(err) {
			return nil, err
		}
		if err == nil {
			note(evt)
		}
	}
	return events, nil
}

// addHistory stores messages, the newest first, of which the homeserver has an
// encrypted event of that sender.
func (c *Client) addHistory(ctx context.Context, w *historyWalk, list []*archive.Message, from HistorySource) (added, dropped int, err error) {
	roomID := w.room
	missing := map[id.EventID]*archive.Message{}
	for _, m := range list {
		known, err := c.st.TimelineEvent(ctx, roomID, m.EventID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return 0, 0, err
		}
		if known == nil {
			missing[m.EventID] = m
		}
	}
	events, err := c.find(ctx, w, missing)
	if err != nil {
		return 0, 0, fmt.Errorf("client: compare history of %s with the homeserver's: %w", roomID, err)
	}
	var items []*store.TimelineItem
	for _, m := range list {
		if missing[m.EventID] != m {
			continue
		}
		evt := events[m.EventID]
		if evt == nil || !carries(evt, m) {
			dropped++
			continue
		}
		item, err := historyItem(c.givenMessage(m, evt, from))
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
func (c *Client) givenMessage(m *archive.Message, evt *Event, from HistorySource) *Message {
	if from.Own && m.SharedBy != "" && (m.SharedBy != c.UserID() || m.FromFile) {
		from = HistorySource{User: m.SharedBy, File: m.FromFile}
	}
	return &Message{
		Room: m.Room, EventID: m.EventID, Sender: m.Sender, Device: m.Device, Type: m.Type, Content: m.Content, ID: m.ID,
		Timestamp: evt.Timestamp, Epoch: m.Epoch, Verification: Unverified, From: &from,
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

// carries tells whether an event of the homeserver can be the one that a message
// was in: of that sender, encrypted, and not redacted.
func carries(evt *Event, m *archive.Message) bool {
	if evt.Sender != m.Sender || evt.Type != rooms.TypeEncrypted || evt.StateKey != nil {
		return false
	}
	_, err := rooms.DecodeEncrypted(evt.Content)
	return err == nil
}
