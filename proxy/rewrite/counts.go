package rewrite

import (
	"cmp"
	"encoding/json"
	"slices"

	"maunium.net/go/mautrix/id"
)

// Counts are unread counts as /sync has them.
type Counts struct {
	Notify    int `json:"notification_count"`
	Highlight int `json:"highlight_count"`
}

// Counts are what the homeserver says is unread in a joined room: in all of it, or,
// if threads is not nil, outside of threads and in each of them.
func (w *Window) Counts(asked Selection) (all Counts, threads map[string]Counts) {
	_ = json.Unmarshal(w.room["unread_notifications"], &all)
	if asked.Threads {
		threads = map[string]Counts{}
		_ = json.Unmarshal(w.room["unread_thread_notifications"], &threads)
		if threads == nil {
			threads = map[string]Counts{}
		}
	}
	return all, threads
}

// SetCounts puts other counts in their place.
func (w *Window) SetCounts(all Counts, threads map[string]Counts) {
	// What else is said there stays.
	counts := w.room.object("unread_notifications")
	if counts == nil && all == (Counts{}) && len(threads) == 0 {
		return
	}
	if counts == nil {
		counts = fields{}
	}
	counts["notification_count"], _ = json.Marshal(all.Notify)
	counts["highlight_count"], _ = json.Marshal(all.Highlight)
	w.room["unread_notifications"] = counts.raw()
	delete(w.room, "unread_thread_notifications")
	if len(threads) > 0 {
		w.room["unread_thread_notifications"], _ = json.Marshal(threads)
	}
}

// Receipt is a user's read receipt.
type Receipt struct {
	Event  id.EventID
	Thread string
}

// Receipts are a user's read receipts among the ephemeral events of a room, public
// and private ones.
func (w *Window) Receipts(user id.UserID) []Receipt {
	var events []json.RawMessage
	_ = json.Unmarshal(w.room.object("ephemeral")["events"], &events)
	var out []Receipt
	for _, raw := range events {
		out = append(out, ReceiptsOf(raw, user)...)
	}
	return out
}

// ReceiptsOf are a user's read receipts in an m.receipt event (Matrix client-server
// API, "Receipts").
func ReceiptsOf(raw json.RawMessage, user id.UserID) (out []Receipt) {
	f, _ := parse(raw)
	if f.text("type") != "m.receipt" {
		return nil
	}
	for event, byType := range f.object("content") {
		kinds, _ := parse(byType)
		for _, kind := range []string{"m.read", "m.read.private"} {
			mine, ok := parse(kinds.object(kind)[string(user)])
			if !ok {
				continue
			}
			out = append(out, Receipt{Event: id.EventID(event), Thread: mine.text("thread_id")})
		}
	}
	return out
}

// PushRules is the content of m.push_rules, if the answer brings that along.
func (s *Sync) PushRules() json.RawMessage {
	var events []json.RawMessage
	_ = json.Unmarshal(s.body.object("account_data")["events"], &events)
	return pushRules(events)
}

func pushRules(events []json.RawMessage) json.RawMessage {
	for _, raw := range events {
		if f, ok := parse(raw); ok && f.text("type") == "m.push_rules" {
			return f["content"]
		}
	}
	return nil
}

// Notice is an entry of GET /notifications: an event that notified.
type Notice struct {
	Room  id.RoomID
	Event Event
	// Judge: the event came as a ciphertext, so the homeserver did not know what
	// it notified of.
	Judge bool
	f     fields
}

// Notices reads the entries of an answer to GET /notifications and rewrites their
// events. What is not for the client is left out.
func Notices(body json.RawMessage, v View) (out []Notice, next string, err error) {
	f, ok := parse(body)
	if !ok {
		return nil, "", ErrNotAnObject
	}
	var all []json.RawMessage
	_ = json.Unmarshal(f["notifications"], &all)
	for _, raw := range all {
		n, ok := parse(raw)
		if !ok {
			continue
		}
		notice := Notice{Room: id.RoomID(n.text("room_id")), f: n}
		_, _, notice.Judge = IsCiphertext(n["event"])
		if notice.Event = One(notice.Room, n["event"], v); notice.Event.Raw != nil {
			out = append(out, notice)
		}
	}
	return out, f.text("next_token"), nil
}

// NoticeEvents are the events of an answer to GET /notifications as they came, by
// room.
func NoticeEvents(body json.RawMessage) map[id.RoomID][]json.RawMessage {
	f, _ := parse(body)
	var all []json.RawMessage
	_ = json.Unmarshal(f["notifications"], &all)
	out := map[id.RoomID][]json.RawMessage{}
	for _, raw := range all {
		n, _ := parse(raw)
		room := id.RoomID(n.text("room_id"))
		out[room] = append(out[room], n["event"])
	}
	return out
}

// NewNotice is an entry of the proxy's own.
func NewNotice(room id.RoomID, e Event) Notice {
	at, _ := json.Marshal(e.Time)
	return Notice{Room: room, Event: e, f: fields{
		"room_id": quote(string(room)), "read": json.RawMessage("false"), "ts": at, "actions": json.RawMessage(`["notify"]`),
	}}
}

// Time is when the event notified, in milliseconds.
func (n *Notice) Time() (at int64) {
	_ = json.Unmarshal(n.f["ts"], &at)
	return at
}

// SortNotices puts the newest first.
func SortNotices(all []Notice) {
	slices.SortStableFunc(all, func(a, b Notice) int { return cmp.Compare(b.Time(), a.Time()) })
}

// Highlighted tells whether the actions highlight the event.
func (n *Notice) Highlighted() bool {
	var actions []json.RawMessage
	_ = json.Unmarshal(n.f["actions"], &actions)
	for _, raw := range actions {
		if a, ok := parse(raw); ok && a.text("set_tweak") == "highlight" && string(a["value"]) != "false" {
			return true
		}
	}
	return false
}

// SetActions puts other actions in the place of the entry's.
func (n *Notice) SetActions(actions json.RawMessage) { n.f["actions"] = actions }

// Raw is the entry.
func (n *Notice) Raw() json.RawMessage {
	n.f["event"] = n.Event.Raw
	return n.f.raw()
}

// ContentOf is the sender, type and content of an event.
func ContentOf(raw json.RawMessage) (sender id.UserID, eventType string, content json.RawMessage) {
	f, _ := parse(raw)
	return id.UserID(f.text("sender")), f.text("type"), f["content"]
}

// MessageEvent makes the event of a message that was read.
func MessageEvent(room id.RoomID, e id.EventID, at int64, r Reading) Event {
	ts, _ := json.Marshal(at)
	return Event{ID: e, Sender: r.Sender, Time: at, Raw: fields{
		"type": quote(r.Type), "sender": quote(string(r.Sender)), "room_id": quote(string(room)), "event_id": quote(string(e)),
		"origin_server_ts": ts, "content": shared(r, r.Language),
	}.raw()}
}

// WithThread bundles a thread with the event that it begins with (Matrix
// client-server API, "Server-side aggregation of m.thread relationships").
func WithThread(root, latest Event, count int, participated bool) Event {
	f, ok := parse(root.Raw)
	if !ok {
		return root
	}
	unsigned := orNew(f.object("unsigned"))
	relations := orNew(unsigned.object("m.relations"))
	relations["m.thread"] = threadOf(latest, count, participated)
	unsigned["m.relations"] = relations.raw()
	f["unsigned"] = unsigned.raw()
	root.Raw = f.raw()
	return root
}

func threadOf(latest Event, count int, participated bool) json.RawMessage {
	thread := fields{"latest_event": latest.Raw}
	thread["count"], _ = json.Marshal(count)
	thread["current_user_participated"], _ = json.Marshal(participated)
	return thread.raw()
}
