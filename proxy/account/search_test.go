package account

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/store"
)

func TestSearchGoesBackThroughTheStore(t *testing.T) {
	c := newCounting(t, nil)
	has := func(word string) func(m *client.Message) float64 {
		return func(m *client.Message) float64 { return float64(strings.Count(string(m.Content), word)) }
	}
	for i := range searchPage + 20 {
		switch i {
		case 3, 10, searchPage + 10:
			c.say(unreadPeer, "m.room.message", fmt.Sprintf(`{"body":"needle %s"}`, strings.Repeat("needle ", i%7)))
		default:
			c.text(unreadPeer, "")
		}
	}
	// An own message that has not gone out.
	if err := c.st.AddTimeline(t.Context(), &store.TimelineItem{Room: unreadRoomID, EventID: "~local", Data: []byte(`{"content":{"body":"needle"}}`)}); err != nil {
		t.Fatal(err)
	}
	for _, room := range []string{"", string(unreadRoomID)} {
		found, before, err := search(t.Context(), c.st, unreadRoomID[:len(room)], 0, 2, has("needle"))
		if err != nil || len(found) != 2 || found[0].Seq != searchPage+11 || found[1].Seq != 11 || before != 11 {
			t.Fatalf("found %+v before %d, %v", found, before, err)
		}
		found, before, err = search(t.Context(), c.st, unreadRoomID[:len(room)], before, 2, has("needle"))
		if err != nil || len(found) != 1 || found[0].Seq != 4 || before != 0 {
			t.Errorf("then %+v before %d, %v", found, before, err)
		}
	}
	a := &Account{st: c.st}
	best, err := a.Best(t.Context(), "", has("needle"))
	if err != nil || len(best) != 3 || best[0].Rank < best[1].Rank || best[1].Rank < best[2].Rank {
		t.Errorf("the best are %+v, %v", best, err)
	}
	if found, _, err := a.Search(t.Context(), "!other:x", 0, 5, has("needle")); err != nil || len(found) != 0 {
		t.Errorf("in another room there are %+v, %v", found, err)
	}
	// What another device gave, of before this one was there, comes last.
	given := &store.TimelineItem{Room: unreadRoomID, EventID: "$old", Mid: "old", Sender: unreadPeer, Data: []byte(`{"content":{"body":"needle"}}`)}
	older := &store.TimelineItem{Room: unreadRoomID, EventID: "$older", Mid: "older", Sender: unreadPeer, Data: []byte(`{"content":{"body":"needle"}}`)}
	for _, item := range []*store.TimelineItem{given, older} {
		if added, err := c.st.AddHistory(t.Context(), item); err != nil || !added {
			t.Fatal(added, err)
		}
	}
	for _, room := range []string{"", string(unreadRoomID)} {
		found, before, err := search(t.Context(), c.st, unreadRoomID[:len(room)], 4, 1, has("needle"))
		if err != nil || len(found) != 1 || found[0].Seq != given.Seq || before != given.Seq {
			t.Errorf("then %+v before %d, %v", found, before, err)
		}
		found, before, err = search(t.Context(), c.st, unreadRoomID[:len(room)], before, 9, has("needle"))
		if err != nil || len(found) != 1 || found[0].Seq != older.Seq || before != 0 {
			t.Errorf("at last %+v before %d, %v", found, before, err)
		}
	}
	// What was redacted is not found.
	err = c.st.RedactTimeline(t.Context(), unreadRoomID, "$4:x", func([]byte) ([]byte, error) { return []byte(`{"content":{}}`), nil })
	if err != nil {
		t.Fatal(err)
	}
	if best, err = a.Best(t.Context(), "", has("needle")); err != nil || len(best) != 4 {
		t.Errorf("after a redaction %+v, %v", best, err)
	}
}

// TestWhatIsBundled: the newest edit by the sender that is of the message's type, and the thread.
func TestWhatIsBundled(t *testing.T) {
	c := newCounting(t, nil)
	row := func(event id.EventID, sender id.UserID, eventType string, at int64, relation string) {
		t.Helper()
		data := fmt.Sprintf(`{"room":%q,"event_id":%q,"type":%q}`, unreadRoomID, event, eventType)
		err := c.st.AddTimeline(t.Context(), &store.TimelineItem{Room: unreadRoomID, EventID: event, Mid: string(event), Sender: sender, Type: eventType, Timestamp: at, Data: []byte(data), Target: "$root", Relation: relation})
		if err != nil {
			t.Fatal(err)
		}
	}
	bundled := func(own id.UserID) (edit id.EventID, thread *Thread) {
		t.Helper()
		b, err := bundle(t.Context(), c.st, unreadRoomID, "$root", unreadPeer, "m.room.message", own)
		if err != nil {
			t.Fatal(err)
		}
		if b.Edit != nil {
			edit = b.Edit.EventID
		}
		return edit, b.Thread
	}
	if edit, thread := bundled(unreadOwn); edit != "" || thread != nil {
		t.Errorf("with nothing there are %s, %+v", edit, thread)
	}
	row("$e1", unreadPeer, "m.room.message", 5, client.RelationEdit)
	row("$e2", unreadPeer, "m.sticker", 6, client.RelationEdit)
	row("$e3", unreadOwn, "m.room.message", 7, client.RelationEdit)
	row("$t1", "@c:x", "m.room.message", 1, client.RelationThread)
	if edit, thread := bundled(unreadOwn); edit != "$e1" || thread == nil || thread.Count != 1 || thread.Participated || thread.Latest.EventID != "$t1" {
		t.Errorf("there are %s, %+v", edit, thread)
	}
	if _, thread := bundled(unreadPeer); thread == nil || !thread.Participated {
		t.Errorf("who wrote the first has no part in %+v", thread)
	}
	row("$t2", unreadOwn, "m.room.message", 2, client.RelationThread)
	if _, thread := bundled(unreadOwn); thread == nil || thread.Count != 2 || !thread.Participated || thread.Latest.EventID != "$t2" {
		t.Errorf("then there is %+v", thread)
	}
}

func TestNothingThatIsSearchedLiesOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), storeName)
	a := stored(t, path, newKey(t))
	err := a.st.AddTimeline(t.Context(), &store.TimelineItem{Room: unreadRoomID, EventID: "$1:x", Sender: unreadPeer, Type: "m.room.message", Data: []byte(`{"content":{"body":"planted-needle"}}`)})
	if err != nil {
		t.Fatal(err)
	}
	if best, err := a.Best(t.Context(), "", func(*client.Message) float64 { return 1 }); err != nil || len(best) != 1 {
		t.Fatalf("found %+v, %v", best, err)
	}
	a.unread = newUnread(a.st, unreadOwn, nil, nil)
	a.ReadUpTo(t.Context(), map[id.RoomID][]Receipt{unreadRoomID: {{Event: "$1:x"}}})
	if _, err := a.st.MarkSeen(t.Context(), unreadRoomID, "$1:x"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.st.MarkSeen(t.Context(), "!other:x", "$1:x"); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(path + "*")
	for _, file := range files {
		if raw, err := os.ReadFile(file); err != nil || strings.Contains(string(raw), "needle") {
			t.Errorf("%s: it lies open (%v)", file, err)
		}
	}
	// A forgotten room leaves nothing.
	if err := a.Forget(t.Context(), unreadRoomID); err != nil {
		t.Fatal(err)
	}
	if best, err := a.Best(t.Context(), "", func(*client.Message) float64 { return 1 }); err != nil || len(best) != 0 {
		t.Errorf("of a forgotten room there is %+v, %v", best, err)
	}
	if _, err := a.st.GetKV(t.Context(), marksKey(unreadRoomID)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("receipts of a forgotten room: %v", err)
	}
	for room, want := range map[id.RoomID]bool{unreadRoomID: false, "!other:x": true} {
		if seen, err := a.st.Seen(t.Context(), room, "$1:x"); err != nil || seen != want {
			t.Errorf("a message of %s counts as seen: %v, %v", room, seen, err)
		}
	}
	a.Close()
	if raw, err := os.ReadFile(path); err != nil || strings.Contains(string(raw), "needle") {
		t.Errorf("it lies open (%v)", err)
	}
}

func TestReactionsToAMessage(t *testing.T) {
	c := newCounting(t, nil)
	reaction := func(to, key string) string {
		return `{"m.relates_to":{"rel_type":"m.annotation","event_id":"` + to + `","key":"` + key + `"}}`
	}
	to := c.text(unreadPeer, "")
	c.text(unreadPeer, "")
	first := c.say(unreadPeer, "m.reaction", reaction("$1:x", "a"))
	c.say(unreadPeer, "m.reaction", reaction("$2:x", "b"))
	c.say(unreadPeer, "m.room.message", reaction("$1:x", "no reaction"))
	gone := c.say(unreadOwn, "m.reaction", reaction("$1:x", "c"))
	last := c.say(unreadOwn, "m.reaction", reaction("$1:x", "d"))
	waits := &store.TimelineItem{Room: unreadRoomID, EventID: "~waits", Mid: "waits", Sender: unreadOwn, Type: "m.reaction", Data: []byte(`{"content":` + reaction("$1:x", "e") + `}`)}
	if err := c.st.AddTimeline(t.Context(), waits); err != nil {
		t.Fatal(err)
	}
	got, err := reactions(t.Context(), c.st, unreadRoomID, to)
	if err != nil || len(got) != 3 || got[0].EventID != first || got[1].EventID != gone || got[2].EventID != last {
		t.Errorf("reactions %+v, %v", got, err)
	}
	err = c.st.RedactTimeline(t.Context(), unreadRoomID, gone, func([]byte) ([]byte, error) { return []byte(`{"content":{}}`), nil })
	if err != nil {
		t.Fatal(err)
	}
	if got, err = reactions(t.Context(), c.st, unreadRoomID, to); err != nil || len(got) != 2 {
		t.Errorf("after a redaction %+v, %v", got, err)
	}
	if got, err = reactions(t.Context(), c.st, unreadRoomID, "$unknown"); err != nil || got != nil {
		t.Errorf("to what is not known: %+v, %v", got, err)
	}
}

func TestThreadsOfARoom(t *testing.T) {
	c := newCounting(t, nil)
	in := func(root id.EventID) string {
		return `,"m.relates_to":{"rel_type":"m.thread","event_id":"` + string(root) + `"}`
	}
	mine, other, third := c.text(unreadOwn, ""), c.text(unreadPeer, ""), c.text(unreadPeer, "")
	c.text(unreadPeer, in(mine))
	c.text(unreadPeer, in(other))
	last := c.text(unreadPeer, in(mine))
	c.text(unreadOwn, in(third))
	gone := c.text(unreadPeer, in(other))
	err := c.st.RedactTimeline(t.Context(), unreadRoomID, gone, func([]byte) ([]byte, error) { return []byte(`{"content":{}}`), nil })
	if err != nil {
		t.Fatal(err)
	}
	got, err := threads(t.Context(), c.st, unreadRoomID, unreadOwn)
	if err != nil || len(got) != 3 {
		t.Fatalf("%d threads, %v", len(got), err)
	}
	for i, want := range []struct {
		root         id.EventID
		count        int
		participated bool
	}{{third, 1, true}, {mine, 2, true}, {other, 1, false}} {
		if th := got[i]; th.Root != want.root || th.Count != want.count || th.Participated != want.participated || i > 0 && th.Seq >= got[i-1].Seq {
			t.Errorf("thread %d is %+v, want %+v", i, th, want)
		}
	}
	if got[1].Latest.EventID != last {
		t.Errorf("the latest reply is %s, want %s", got[1].Latest.EventID, last)
	}
	if got, err = threads(t.Context(), c.st, "!other:x", unreadOwn); err != nil || len(got) != 0 {
		t.Errorf("another room has %+v, %v", got, err)
	}
}

func BenchmarkSearch(b *testing.B) {
	key := make(store.Key, store.KeySize)
	st, err := store.Open(b.Context(), store.Options{Path: filepath.Join(b.TempDir(), storeName), Key: key})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	const messages = 10_000
	err = st.Do(b.Context(), func(ctx context.Context) error {
		for i := range messages {
			evt := fmt.Sprintf("$%d:x", i)
			data := `{"room_id":"!r:x","event_id":"` + evt + `","sender":"@peer:x","type":"m.room.message","content":{"msgtype":"m.text","body":"` + strings.Repeat("a few words ", 8) + `"}}`
			if err := st.AddTimeline(ctx, &store.TimelineItem{Room: unreadRoomID, EventID: id.EventID(evt), Mid: evt, Sender: unreadPeer, Data: []byte(data)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		found, _, err := search(b.Context(), st, "", 0, 1, func(m *client.Message) float64 { return float64(strings.Count(m.Body(), "needle")) })
		if err != nil || len(found) != 0 {
			b.Fatal(found, err)
		}
	}
	b.ReportMetric(float64(messages)*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
