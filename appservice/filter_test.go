package appservice

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestFilterIsNotUsedUpByInvites(t *testing.T) {
	now := time.Unix(1790000000, 0)
	f := &filter{
		bot: bot, accepts: func(id.UserID) bool { return true }, maximum: 3, now: func() time.Time { return now },
		known: make(map[id.RoomID]struct{}), left: make(map[id.RoomID]struct{}),
	}
	invited := func(by id.UserID, room int) verdict {
		t.Helper()
		key, id := string(bot), id.RoomID(fmt.Sprintf("!%d", room))
		v := f.judge(&homeserver.Event{Room: id, Sender: by, Type: rooms.TypeMember, StateKey: &key, Content: []byte(`{"membership":"invite"}`)})
		if v == invite {
			f.add(id)
		}
		return v
	}
	want := func(got, want verdict, what string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got verdict %d, want %d", what, got, want)
		}
	}
	for i := range 3 {
		want(invited(bob, i), invite, "a room below the maximum")
	}
	want(invited(alice, 3), decline, "a room above the maximum")
	want(invited(bob, 1), keep, "another invitation to a room that is served")
	for i := range 3 {
		f.leave(id.RoomID(fmt.Sprintf("!%d", i)))
	}
	want(invited(alice, 3), invite, "a room after others were left")
	want(invited(bob, 1), invite, "a room that was left")
	for i := 10; i < 10+2*invitesPerHour; i++ {
		invited(bob, i)
		f.leave(id.RoomID(fmt.Sprintf("!%d", i)))
	}
	want(invited(carol, 1000), decline, "more of one server than an hour takes")
	want(invited("@x:other.test", 1001), invite, "another server's in that hour")
	f.leave("!1001")
	want(invited(alice, 1002), invite, "an own user's, whose server is not counted")
	f.leave("!1002")
	now = now.Add(time.Hour)
	want(invited(carol, 1003), invite, "an hour later")
}

func TestEngineLeavesARoomWithoutAGroup(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, served, _, _ := pair(t, dbCfg)
		empty := newRoom(t, m.hs, "!empty:mls.test")
		m.settleFor(2 * time.Minute)
		for _, room := range []id.RoomID{served.id, empty.id} {
			if m.e.rooms[room].status == store.RoomLeft {
				t.Fatalf("left %s at once", room)
			}
			m.e.rooms[room].data.Joined -= int64(grouplessTime / time.Second)
		}
		m.settleFor(time.Second)
		got, err := m.st.Room(m.ctx, empty.id)
		must(t, err)
		if got.Status != store.RoomLeft || !slices.Contains(m.noted, store.RoomLeft) {
			t.Errorf("got status %s of the room without a group, others were told %v", got.Status, m.noted)
		}
		if got := m.e.rooms[served.id].status; got != store.RoomServing {
			t.Errorf("got status %s of the room with a group", got)
		}
		// It comes again when it is asked.
		m.hs.state(empty.id, alice, rooms.TypeMember, string(bot), map[string]any{"membership": "invite"})
		m.settle()
		if got := m.e.rooms[empty.id].status; got != store.RoomJoined {
			t.Errorf("got status %s after another invitation", got)
		}
	})
}
