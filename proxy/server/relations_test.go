package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// TestRelationsComeInPagesOfTheSizeAskedFor: what the homeserver and the store have comes once, in order, and no more of it at
// once than the client asked for.
func TestRelationsComeInPagesOfTheSizeAskedFor(t *testing.T) {
	pages := [][]int{{20, 19, 14}, {13, 5}, {1}} // of the homeserver, the newest first
	here := []int{2, 3, 15, 16, 17, 18, 21}
	for _, forward := range []bool{false, true} {
		there := pages
		want := []int{21, 20, 19, 18, 17, 16, 15, 14, 13, 5, 3, 2, 1}
		if forward {
			there = [][]int{{1}, {5, 13}, {14, 19, 20}}
			slices.Reverse(want)
		}
		for limit := 0; limit <= 14; limit++ {
			t.Run(fmt.Sprintf("forward %t, %d at a time", forward, limit), func(t *testing.T) {
				var got []int
				for from, calls := "", 0; ; calls++ {
					if calls > 50 {
						t.Fatal("it does not end")
					}
					at, ours := decodeRelated(from)
					if ours {
						from = at.There
					}
					var n int
					_, _ = fmt.Sscan(from, &n)
					var came []json.RawMessage
					next := ""
					if !at.Over {
						for _, e := range there[n] {
							came = append(came, fmt.Appendf(nil, `{"event_id":"$%02d"}`, e))
						}
						if n+1 < len(there) {
							next = fmt.Sprint(n + 1)
						}
					}
					var a, b []rewrite.Event
					for _, raw := range at.after(came) {
						var evt struct {
							ID id.EventID `json:"event_id"`
						}
						var e int
						_ = json.Unmarshal(raw, &evt)
						_, _ = fmt.Sscanf(string(evt.ID), "$%d", &e)
						a = append(a, rewrite.Event{ID: evt.ID, Time: int64(e)})
					}
					if calls == 0 || ours {
						for _, e := range here {
							b = append(b, rewrite.Event{ID: id.EventID(fmt.Sprintf("$%02d", e)), Time: int64(e)})
						}
					}
					page := a
					if b != nil {
						page, next = at.merge(a, b, limit, next, forward)
						if calls == 0 && limit == 0 && len(page) != len(a)+len(b) {
							t.Fatalf("a page of %d without a limit, want all of %d and %d", len(page), len(a), len(b))
						}
						if limit > 0 && len(page) > limit {
							t.Fatalf("a page of %d", len(page))
						}
					}
					for _, e := range page {
						got = append(got, int(e.Time))
					}
					if from = next; from == "" {
						break
					}
				}
				if limit == 0 { // in order in each page alone
					slices.SortFunc(got, func(a, b int) int { return slices.Index(want, a) - slices.Index(want, b) })
				}
				if !slices.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		}
	}
}

// keep puts messages into the store of the account's device, as if it had read them.
func (w *deviceWorld) keep(messages ...*client.Message) {
	w.t.Helper()
	dir := w.account().Dir()
	w.proxy.Close()
	w.accounts.Close()
	path := filepath.Join(dir, "client.db")
	key, err := store.LoadKey(store.KeyOptions{Path: filepath.Join(dir, "store.key"), Store: path, Getenv: func(string) string { return "" }})
	if err != nil {
		w.t.Fatal(err)
	}
	st, err := store.Open(w.t.Context(), store.Options{Path: path, Key: key})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, m := range messages {
		var content struct {
			Relates struct {
				Type  string     `json:"rel_type"`
				Event id.EventID `json:"event_id"`
			} `json:"m.relates_to"`
		}
		raw, err := json.Marshal(m)
		err = errors.Join(err, json.Unmarshal(m.Content, &content))
		if err == nil {
			err = st.AddTimeline(w.t.Context(), &store.TimelineItem{
				Room: m.Room, EventID: m.EventID, Mid: string(m.EventID), Sender: m.Sender, Type: m.Type, Timestamp: m.Timestamp, Data: raw,
				Target: content.Relates.Event, Relation: content.Relates.Type,
			})
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.tells = w.joined()
	w.mu.Unlock()
	w.start()
	if err := w.account().Ready(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// TestWhatBelongsToAMessageIsBundled: a homeserver that bundles nothing (Dendrite), or cannot know what counts, is made up for
// on each path that has messages.
func TestWhatBelongsToAMessageIsBundled(t *testing.T) {
	const peer = id.UserID("@b:one")
	said := func(event id.EventID, sender id.UserID, at int64, content string) *client.Message {
		return &client.Message{Room: mlsRoom, EventID: event, Sender: sender, Type: "m.room.message", Timestamp: at, Content: json.RawMessage(content)}
	}
	edit := func(text string) string {
		return fmt.Sprintf(`{"body":"* %s","m.new_content":{"body":%q},"m.relates_to":{"rel_type":"m.replace","event_id":"$root"}}`, text, text)
	}
	const inThread = `{"body":"a reply","m.relates_to":{"rel_type":"m.thread","event_id":"$root"}}`
	w := newDeviceWorld(t)
	w.keep(said("$root", peer, 1, `{"body":"first"}`), said("$e2", peer, 3, edit("the newest")), said("$e1", peer, 2, edit("an older one")),
		said("$forged", "@evil:one", 9, edit("somebody else's")), said("$t1", peer, 4, inThread), said("$t2", deviceUser, 5, inThread))
	cipher := func(event string, sender id.UserID) string {
		return fmt.Sprintf(`{"event_id":%q,"type":"m.room.encrypted","sender":%q,"origin_server_ts":1,"content":{"algorithm":"io.github.matrix-mls.v1","ciphertext":"AAAA"}}`, event, sender)
	}
	root, reply, change := cipher("$root", peer), cipher("$t1", peer), cipher("$e1", peer)
	list := `{"chunk":[` + root + `,` + reply + `,` + change + `]}`
	w.mu.Lock()
	w.get = func(_ id.RoomID, what string, _ url.Values) (int, string) {
		switch {
		case what == "event/$root":
			return 200, root
		case strings.HasPrefix(what, "context/"):
			return 200, `{"event":` + root + `,"events_before":[` + reply + `],"events_after":[` + change + `]}`
		case what == "messages", strings.HasPrefix(what, "relations/"):
			return 200, list
		case what == "threads":
			return 404, `{"errcode":"M_UNRECOGNIZED"}`
		}
		return 0, ""
	}
	w.mu.Unlock()
	type event struct {
		ID       id.EventID `json:"event_id"`
		Unsigned struct {
			Relations struct {
				Edit *struct {
					ID id.EventID `json:"event_id"`
				} `json:"m.replace"`
				Thread *struct {
					Latest struct {
						ID id.EventID `json:"event_id"`
					} `json:"latest_event"`
					Count        int
					Participated bool `json:"current_user_participated"`
				} `json:"m.thread"`
			} `json:"m.relations"`
		}
	}
	rooms := "/_matrix/client/v1/rooms/" + string(mlsRoom)
	for name, path := range map[string]string{
		"messages": "/_matrix/client/v3/rooms/" + string(mlsRoom) + "/messages?dir=b&limit=10", "context": "/_matrix/client/v3/rooms/" + string(mlsRoom) + "/context/$root",
		"event": "/_matrix/client/v3/rooms/" + string(mlsRoom) + "/event/$root", "relations": rooms + "/relations/$root?limit=9", "threads": rooms + "/threads",
	} {
		t.Run(name, func(t *testing.T) {
			status, body := w.do("GET", path, "")
			var answer struct {
				event
				Event  event
				Chunk  []event
				Before []event `json:"events_before"`
				After  []event `json:"events_after"`
			}
			if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 {
				t.Fatalf("%d %s: %v", status, body, err)
			}
			found := false
			for _, e := range slices.Concat(answer.Chunk, answer.Before, answer.After, []event{answer.Event, answer.event}) {
				is := e.Unsigned.Relations
				if e.ID != "$root" {
					if is.Edit != nil || is.Thread != nil {
						t.Errorf("%s has %+v", e.ID, is)
					}
					continue
				}
				found = true
				if is.Edit == nil || is.Edit.ID != "$e2" || is.Thread == nil || is.Thread.Latest.ID != "$t2" || is.Thread.Count != 2 || !is.Thread.Participated {
					t.Errorf("the message has %+v, %+v", is.Edit, is.Thread)
				}
			}
			if !found {
				t.Errorf("the message is not there: %s", body)
			}
		})
	}
}
