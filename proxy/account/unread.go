package account

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
	"maunium.net/go/mautrix/pushrules"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/store"
)

// Unread counts of MLS rooms. The homeserver counts ciphertexts that came after
// the user's receipt; it knows neither which of them are reactions, edits or
// mentions, nor what rules about texts say. What the device could read is judged
// here by the push rules, and the homeserver's number tells how much else there
// is: what cannot be read counts as it counts there.

// Counts are the numbers of unread events that notify, and of those that are
// highlighted.
type Counts struct {
	Notify    int `json:"notification_count"`
	Highlight int `json:"highlight_count"`
}

// Main is the thread of what is in no thread (Matrix client-server API, "Threaded
// read receipts").
const Main = "main"

// Receipt is a read receipt of the account's own user. Thread is a thread's root,
// Main, or empty for all of them.
type Receipt struct {
	Event  id.EventID
	Thread string
	// Sent is when the event was sent, in milliseconds; 0: it is not known. It is
	// asked for if the event is no message that this device could read.
	Sent int64
}

// Bounds of what is kept of a room: events in memory, and threads with receipts.
const (
	maxItems   = 300
	maxThreads = 100
)

// unread counts what is unread. It is safe for concurrent use.
type unread struct {
	st    *store.Store
	own   id.UserID
	rules rules
	facts func(id.RoomID) (client.RoomFacts, bool)

	mu    sync.Mutex
	rooms map[id.RoomID]*unreadRoom
}

// unreadRoom is what is known of a room's newest messages. Marks are stored,
// everything else is read again after a restart.
type unreadRoom struct {
	marks map[string]mark // by thread; the empty one is of all threads
	items []item          // of the newest messages, oldest first
	from  int64           // items has all that come after this one
	upTo  int64           // the newest that was read
}

// mark is how far a thread was read.
type mark struct {
	Seq   int64      `json:"seq"`
	Event id.EventID `json:"event"`
}

type item struct {
	seq    int64
	event  id.EventID
	own    bool
	thread string     // Main, or its root
	gone   bool       // it was redacted
	target id.EventID // what it edits or refers to, until that is found
	// counted: the homeserver counts its ciphertext, if it counts any of the
	// room's: not, for example, that of an edit, or of a user who was muted.
	counted bool
	verdict
}

func newUnread(st *store.Store, own id.UserID, fetch func(ctx context.Context) (*pushrules.PushRuleset, error), facts func(id.RoomID) (client.RoomFacts, bool)) *unread {
	return &unread{st: st, own: own, facts: facts, rules: rules{own: own, fetch: fetch}, rooms: map[id.RoomID]*unreadRoom{}}
}

func marksKey(room id.RoomID) string { return "proxy/read/" + string(room) }

// room returns what is known of a room. The caller holds u.mu.
func (u *unread) room(ctx context.Context, roomID id.RoomID) (*unreadRoom, error) {
	if r := u.rooms[roomID]; r != nil {
		return r, nil
	}
	r := &unreadRoom{marks: map[string]mark{}}
	raw, err := u.st.GetKV(ctx, marksKey(roomID))
	if err == nil {
		err = json.Unmarshal(raw, &r.marks)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("account: receipts of %s: %w", roomID, err)
	}
	u.rooms[roomID] = r
	return r, nil
}

// read takes in receipts of the own user. One of an event that is before what was
// read changes nothing.
func (u *unread) read(ctx context.Context, receipts map[id.RoomID][]Receipt) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	err := u.st.Do(ctx, func(ctx context.Context) error {
		for roomID, list := range receipts {
			r, err := u.room(ctx, roomID)
			if err != nil {
				return err
			}
			changed := false
			for _, receipt := range list {
				one, err := u.readOne(ctx, roomID, r, receipt)
				if err != nil {
					return err
				}
				changed = changed || one
			}
			if !changed {
				continue
			}
			raw, err := json.Marshal(r.marks)
			if err != nil {
				return fmt.Errorf("account: receipts of %s: %w", roomID, err)
			}
			if err := u.st.PutKV(ctx, marksKey(roomID), raw); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil { // what is in memory may be ahead of the store
		for roomID := range receipts {
			delete(u.rooms, roomID)
		}
	}
	return err
}

func (u *unread) readOne(ctx context.Context, roomID id.RoomID, r *unreadRoom, receipt Receipt) (changed bool, err error) {
	old, known := r.marks[receipt.Thread]
	if known && old.Event == receipt.Event {
		return false, nil
	}
	var seq int64
	switch at, err := u.st.TimelineEvent(ctx, roomID, receipt.Event); {
	case err == nil:
		seq = at.Seq
	case errors.Is(err, store.ErrNotFound):
		// Of an event that is no message, such as a member's, or one that
		// cannot be read: what was sent before it was read.
		if receipt.Sent == 0 {
			return false, nil
		}
		if seq, err = u.st.TimelineAt(ctx, roomID, old.Seq, receipt.Sent); err != nil {
			return false, err
		}
	default:
		return false, err
	}
	if seq <= old.Seq {
		return false, nil
	}
	r.marks[receipt.Thread] = mark{Seq: seq, Event: receipt.Event}
	for len(r.marks) > maxThreads {
		oldest, first := "", int64(0)
		for thread, m := range r.marks {
			if thread != "" && thread != Main && (oldest == "" || m.Seq < first) {
				oldest, first = thread, m.Seq
			}
		}
		delete(r.marks, oldest)
	}
	return true, nil
}

// stale forgets what is in memory of a room: a message there has changed.
func (u *unread) stale(roomID id.RoomID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if r := u.rooms[roomID]; r != nil {
		r.items, r.from, r.upTo = nil, 0, 0
	}
}

// forget deletes what is stored of a room.
func (u *unread) forget(ctx context.Context, roomID id.RoomID) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.rooms, roomID)
	return u.st.DeleteKV(ctx, marksKey(roomID))
}

// catchUp reads the messages that are new, and as many older ones as are needed:
// back to the receipt, or until there are enough of others.
func (u *unread) catchUp(ctx context.Context, roomID id.RoomID, r *unreadRoom, enough int, set *ruleset, room *judged) error {
	if r.upTo > 0 {
		fresh, err := u.st.TimelineSince(ctx, roomID, r.upTo, maxItems+1)
		if err != nil {
			return err
		}
		if len(fresh) <= maxItems {
			for _, row := range fresh {
				r.items = append(r.items, u.item(row, set, room))
				r.upTo = row.Seq
			}
		} else { // more than are kept: begin at the newest
			r.items, r.from, r.upTo = nil, 0, 0
		}
	}
	others := 0
	for _, it := range r.items {
		if it.counted {
			others++
		}
	}
	before := r.from
	if r.upTo == 0 {
		before = 1<<63 - 1
	}
	for before > 0 && others < enough && len(r.items) < maxItems && before > r.marks[""].Seq {
		older, err := u.st.Timeline(ctx, roomID, before, 50)
		if err != nil {
			return err
		}
		// What others gave this device of before it came is not unread.
		older = slices.DeleteFunc(older, func(row *store.TimelineItem) bool { return row.Seq < 0 })
		if len(older) == 0 {
			before = 0
			break
		}
		before = older[0].Seq
		if r.upTo == 0 {
			r.upTo = older[len(older)-1].Seq
		}
		items := make([]item, 0, len(older)+len(r.items))
		for _, row := range older {
			it := u.item(row, set, room)
			items = append(items, it)
			if it.counted {
				others++
			}
		}
		r.items = append(items, r.items...)
	}
	r.from = before
	if n := len(r.items) - maxItems; n > 0 {
		r.items = slices.Delete(r.items, 0, n)
		r.from = r.items[0].seq
	}
	r.followTargets()
	return nil
}

// followTargets puts edits into the threads of what they edit.
func (r *unreadRoom) followTargets() {
	if !slices.ContainsFunc(r.items, func(it item) bool { return it.target != "" }) {
		return
	}
	threads := make(map[id.EventID]string, len(r.items))
	for i := range r.items {
		it := &r.items[i]
		if thread, known := threads[it.target]; known {
			it.thread, it.target = thread, ""
		}
		threads[it.event] = it.thread
	}
}

// item judges a message.
func (u *unread) item(row *store.TimelineItem, set *ruleset, room *judged) item {
	it := item{seq: row.Seq, event: row.EventID, own: row.Sender == u.own, thread: Main}
	var data struct {
		Content json.RawMessage `json:"content"`
	}
	if json.Unmarshal(row.Data, &data) != nil {
		return it
	}
	var content struct {
		Relates struct {
			Type  string     `json:"rel_type"`
			Event id.EventID `json:"event_id"`
		} `json:"m.relates_to"`
	}
	if json.Unmarshal(data.Content, &content) == nil {
		switch content.Relates.Type {
		case "m.thread":
			// Anything else is no event's id, and may be of any length.
			if root := string(content.Relates.Event); strings.HasPrefix(root, "$") && len(root) <= 255 {
				it.thread = root
			}
		case "m.replace", "m.reference": // the homeserver sees these relations, too
			if len(content.Relates.Event) <= 255 {
				it.target = content.Relates.Event
			}
		}
	}
	it.gone = len(data.Content) <= len("{}")
	if !it.own && !it.gone {
		it.verdict = judge(set.all, room, row.Room, row.Sender, row.Type, data.Content)
		it.counted = set.counts(room, row.Room, row.Sender, data.Content)
	}
	return it
}

// count corrects what the homeserver says of a room: all is its count of the
// room, or, if threads is not nil, of what is in no thread, beside counts for each
// thread.
func (u *unread) count(ctx context.Context, roomID id.RoomID, all Counts, threads map[string]Counts) (Counts, map[string]Counts, error) {
	set := u.rules.get(ctx)
	facts, ok := u.facts(roomID)
	if set == nil || !ok {
		return all, threads, nil // as good as what is known
	}
	room := newJudged(facts)
	ciphertexts, protocol := set.blind(room, roomID)
	said := all.Notify
	for _, c := range threads {
		said += c.Notify
	}
	if ciphertexts && said == 0 {
		return all, threads, nil // everything was read
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	r, err := u.room(ctx, roomID)
	if err != nil {
		return all, threads, err
	}
	enough := maxItems
	if ciphertexts {
		enough = min(said, maxItems)
	}
	if err := u.catchUp(ctx, roomID, r, enough, set, room); err != nil {
		return all, threads, err
	}
	own := r.tally(threads != nil, said, ciphertexts)
	correct := func(said Counts, t tally) Counts {
		n := t.notify
		switch {
		case ciphertexts && protocol:
			n = min(n, said.Notify)
		case ciphertexts:
			n = min(n+max(0, said.Notify-t.all), said.Notify)
		case !protocol:
			n += said.Notify
		}
		return Counts{Notify: n, Highlight: min(t.highlight+said.Highlight, n)}
	}
	if threads == nil {
		return correct(all, own[Main]), nil, nil
	}
	out := map[string]Counts{}
	for thread, c := range threads {
		out[thread] = correct(c, own[thread])
	}
	for thread, t := range own {
		if _, known := threads[thread]; !known && thread != Main {
			out[thread] = correct(Counts{}, t)
		}
	}
	for thread, c := range out {
		if c == (Counts{}) {
			delete(out, thread)
		}
	}
	return correct(all, own[Main]), out, nil
}

// tally is what was counted of a thread: messages of others after the receipt that
// the homeserver counts, too, and those that notify and are highlighted.
type tally struct{ all, notify, highlight int }

// unread goes through the messages of others after the receipts, newest first. One
// is answered if an own message came after it in its thread: it was read.
func (r *unreadRoom) unread() iter.Seq2[*item, bool] {
	return func(yield func(*item, bool) bool) {
		spoke := map[string]bool{}
		for i := range slices.Backward(r.items) {
			it := &r.items[i]
			if it.own {
				spoke[it.thread] = true
				continue
			}
			if it.gone || it.seq <= max(r.marks[""].Seq, r.marks[it.thread].Seq) {
				continue
			}
			if !yield(it, spoke[it.thread]) {
				return
			}
		}
	}
}

// tally counts what is unread, by thread if apart is set. If the homeserver counts
// ciphertexts, there are no more than it says: what came late to this device may
// seem to be new, and was read.
func (r *unreadRoom) tally(apart bool, said int, ciphertexts bool) map[string]tally {
	out := map[string]tally{}
	for it, answered := range r.unread() {
		if ciphertexts && said == 0 {
			break
		}
		thread := Main
		if apart {
			thread = it.thread
		}
		t := out[thread]
		if it.counted {
			said--
			t.all++
		}
		if !answered {
			if it.notify {
				t.notify++
			}
			if it.highlight {
				t.highlight++
			}
		}
		out[thread] = t
	}
	return out
}

// Unread corrects the homeserver's counts of an MLS room; see unread.count.
func (a *Account) Unread(ctx context.Context, room id.RoomID, all Counts, threads map[string]Counts) (Counts, map[string]Counts) {
	main, by, err := a.unread.count(ctx, room, all, threads)
	if err != nil {
		a.log.Err(err).Msg("What is unread cannot be counted")
	}
	return main, by
}

// How many events are asked for, and for how long, to take in receipts.
const (
	maxAskedFor = 10
	askedWait   = 3 * time.Second
)

// dated asks when the events of receipts were sent that are no messages here.
func (u *unread) dated(ctx context.Context, receipts map[id.RoomID][]Receipt, sent func(context.Context, id.RoomID, id.EventID) int64) {
	ctx, cancel := context.WithTimeout(ctx, askedWait)
	defer cancel()
	asked := 0
	for roomID, list := range receipts {
		for i := range list {
			_, err := u.st.TimelineEvent(ctx, roomID, list[i].Event)
			if asked == maxAskedFor || !errors.Is(err, store.ErrNotFound) || u.marked(ctx, roomID, list[i]) {
				continue
			}
			asked++
			list[i].Sent = sent(ctx, roomID, list[i].Event)
		}
	}
}

// marked tells whether a receipt is known.
func (u *unread) marked(ctx context.Context, roomID id.RoomID, receipt Receipt) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	r, err := u.room(ctx, roomID)
	return err == nil && r.marks[receipt.Thread].Event == receipt.Event
}

// ReadUpTo takes in the own user's receipts.
func (a *Account) ReadUpTo(ctx context.Context, receipts map[id.RoomID][]Receipt) {
	if len(receipts) == 0 {
		return
	}
	a.unread.dated(ctx, receipts, func(ctx context.Context, room id.RoomID, evt id.EventID) int64 {
		e, err := a.ident.Client().GetEvent(ctx, room, evt)
		if err != nil {
			return 0 // what it is about counts as the homeserver says
		}
		return e.Timestamp
	})
	if err := a.unread.read(ctx, receipts); err != nil {
		a.log.Err(err).Msg("Receipts cannot be kept")
	}
}

// TakePushRules takes in m.push_rules as a client is told it.
func (a *Account) TakePushRules(content json.RawMessage) { a.unread.rules.take(content) }

// Forget deletes what is kept of a room that the user left and forgot: messages,
// receipts, and the keys of files.
func (a *Account) Forget(ctx context.Context, room id.RoomID) error {
	if err := errors.Join(a.unread.forget(ctx, room), a.forgetFiles(ctx, room), a.st.DropTimeline(ctx, room)); err != nil {
		return err
	}
	return a.st.Scrub(ctx)
}

// Judge tells what the push rules say of a message, and whether it notifies. An own
// message never does.
func (a *Account) Judge(ctx context.Context, room id.RoomID, sender id.UserID, eventType string, content json.RawMessage) (actions json.RawMessage, notify bool) {
	set := a.unread.rules.get(ctx)
	facts, ok := a.unread.facts(room)
	if set == nil || !ok {
		return nil, true
	}
	if sender == a.unread.own {
		return nil, false
	}
	v, list := judgeActions(set.all, newJudged(facts), room, sender, eventType, content)
	if list != nil {
		actions, _ = json.Marshal(list)
	}
	return actions, v.notify
}

// Unlisted are the newest unread messages that notify, in rooms of whose
// ciphertexts the homeserver was told not to notify: it does not list them.
func (a *Account) Unlisted(ctx context.Context, limit int) []*client.Message {
	set := a.unread.rules.get(ctx)
	all, err := a.cli.Rooms(ctx)
	if set == nil || err != nil {
		return nil
	}
	var out []*client.Message
	for _, info := range all {
		facts, ok := a.unread.facts(info.ID)
		if !ok || !info.MLS || info.Membership != "join" {
			continue
		}
		events, err := a.unread.unlisted(ctx, info.ID, set, newJudged(facts))
		if err != nil {
			a.log.Err(err).Msg("What is unread cannot be listed")
			continue
		}
		for _, event := range events {
			if m, err := a.cli.Message(ctx, info.ID, event); err == nil {
				out = append(out, m)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b *client.Message) int { return cmp.Compare(b.Timestamp, a.Timestamp) })
	return out[:min(len(out), limit)]
}

// unlisted are a room's unread events that notify, if its ciphertexts do not.
func (u *unread) unlisted(ctx context.Context, roomID id.RoomID, set *ruleset, room *judged) (out []id.EventID, err error) {
	if ciphertexts, _ := set.blind(room, roomID); ciphertexts {
		return nil, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	r, err := u.room(ctx, roomID)
	if err == nil {
		err = u.catchUp(ctx, roomID, r, maxItems, set, room)
	}
	if err != nil {
		return nil, err
	}
	for it, answered := range r.unread() {
		if it.notify && !answered {
			out = append(out, it.event)
		}
	}
	return out, nil
}
