package account

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/store"
)

// Thread is what this device could read of a thread.
type Thread struct {
	Root         id.EventID
	Latest       *client.Message
	Seq          int64 // of the latest
	Count        int   // of replies
	Participated bool  // the own user wrote one
}

// maxThreadList bounds the threads of a room that are listed; of more, those that
// were answered last.
const maxThreadList = 1000

// Threads lists a room's threads, the one that was answered last first, as the
// homeserver would that has such a list. The newest messages are looked at, as many
// as a search looks at.
func (a *Account) Threads(ctx context.Context, room id.RoomID) ([]*Thread, error) {
	return threads(ctx, a.st, room, a.ident.UserID())
}

func threads(ctx context.Context, st *store.Store, room id.RoomID, own id.UserID) ([]*Thread, error) {
	byRoot := map[id.EventID]*Thread{}
	_, _, err := search(ctx, st, room, 0, maxLooked, func(m *client.Message) float64 {
		var content struct {
			Relates struct {
				Type  string     `json:"rel_type"`
				Event id.EventID `json:"event_id"`
			} `json:"m.relates_to"`
		}
		if json.Unmarshal(m.Content, &content) != nil || content.Relates.Type != "m.thread" || content.Relates.Event == "" {
			return 0
		}
		t := byRoot[content.Relates.Event]
		if t == nil {
			if len(byRoot) >= maxThreadList {
				return 0
			}
			t = &Thread{Root: content.Relates.Event, Latest: m}
			byRoot[t.Root] = t
		}
		t.Count++
		t.Participated = t.Participated || m.Sender == own
		return 0
	})
	if err != nil {
		return nil, err
	}
	out := make([]*Thread, 0, len(byRoot))
	for _, t := range byRoot {
		at, err := st.TimelineEvent(ctx, room, t.Latest.EventID)
		if err != nil {
			continue // it was taken back meanwhile
		}
		t.Seq = at.Seq
		if root, err := st.TimelineEvent(ctx, room, t.Root); err == nil && root.Sender == own {
			t.Participated = true
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *Thread) int { return cmp.Compare(b.Seq, a.Seq) })
	return out, nil
}
