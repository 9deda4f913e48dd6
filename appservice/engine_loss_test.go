package appservice

import (
	"context"
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestEngineFindsALostEventBehindPagesOfKnownOnes(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		m, r, a, _ := pair(t, cfg)
		m.settleFor(time.Second)
		m.hs.mute = func(ev *homeserver.Event) bool { return ev.Type == rooms.TypeCommit }
		c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.hs.mute = nil
		for i := range 25 { // two pages and a half of the fake's
			m.hs.add(r.id, bob, rooms.TypeReceipt, nil, map[string]any{"n": i})
		}
		m.settleFor(m.cfg.Rooms.GapCheck.D() + time.Minute)
		if got := r.accepts(); got[len(got)-1] != c.ref {
			t.Errorf("the lost commit %s was never found: accepted %v", c.ref.Short(), got)
		}
	})
}

func TestEngineFoundsNoGroupOnAPostersWord(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		hs := newRoomHS()
		m := newModule(t, cfg, hs)
		r := newRoom(t, hs, "!room:mls.test")
		m.settle()
		// bob makes a founding epoch in alice's name, before she does.
		forged := newDevice(t, alice, "FORGED")
		head := r.keys()
		policy := rooms.DefaultPolicy(r.id, alice, federation.Sequencer{Server: "mls.test", User: string(bot), ReceiptKey: head.ReceiptKey})
		sender, err := rooms.ModuleSender(bot, head, engineSuite)
		must(t, err)
		exts, err := rooms.GroupExtensions(policy, []mls.ExternalSender{sender})
		must(t, err)
		forged.group, err = mls.CreateGroup(forged.cfg, engineSuite, fmt.Appendf(nil, "%-32s", "forged"), forged.key, rooms.LeafOptions(forged.cred), exts)
		must(t, err)
		info, err := forged.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
		must(t, err)
		content, err := rooms.Encode(&rooms.CommitContent{GroupInfo: info})
		must(t, err)
		own := hs.add(r.id, bob, rooms.TypeCommit, nil, content)
		for _, event := range []id.EventID{"", "$nowhere", own.ID} {
			again, err := rooms.Encode(&rooms.RepostContent{Type: rooms.TypeCommit, Sender: alice, Event: event, Content: content})
			must(t, err)
			hs.add(r.id, bob, rooms.TypeRepost, nil, again)
		}
		m.settleFor(10 * time.Second)
		r.found()
		m.settle()
		if got := m.machine(r.id).Head(); got != r.head {
			t.Errorf("the module follows %s, the room's group begins with %s: %v", got.Short(), r.head.Short(), m.refusals())
		}
	})
}

func TestEngineTakesARepostedRootFromItsEvent(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		hs := newRoomHS()
		m := newModule(t, cfg, hs)
		r := newRoom(t, hs, "!room:mls.test")
		m.settle()
		hs.mute = func(ev *homeserver.Event) bool { return ev.Type == rooms.TypeCommit }
		r.found()
		root := hs.events(r.id, rooms.TypeCommit)[0]
		again, err := rooms.Encode(&rooms.RepostContent{Type: rooms.TypeCommit, Sender: alice, Event: root.ID, Content: root.Content})
		must(t, err)
		hs.add(r.id, bob, rooms.TypeRepost, nil, again)
		m.settle()
		if got := m.machine(r.id).Head(); got != r.head {
			t.Errorf("the module follows %s, want %s", got.Short(), r.head.Short())
		}
	})
}

// slowState is a homeserver that does not give the state of a room yet.
type slowState struct {
	*roomHS
	slow bool
}

func (h *slowState) State(ctx context.Context, room id.RoomID) ([]*homeserver.Event, error) {
	if h.slow {
		return nil, &homeserver.Error{Op: "state", Kind: homeserver.ErrServer, Status: 500}
	}
	return h.roomHS.State(ctx, room)
}

func TestEngineRebuildsALongRoomWhoseStateComesLate(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		m, r, a, b := pair(t, cfg)
		for range 40 { // more events than may wait in one room
			c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
			m.settle()
			r.merge(c)
			r.apply(b, r.head, b.group.EpochAuthenticator())
			m.settle()
		}
		fresh := newModuleWithKeys(t, freshDatabase(t, cfg), m.hs, 9)
		hs := &slowState{m.hs, true}
		fresh.as = hs
		must(t, fresh.st.NoteRoom(fresh.ctx, r.id, store.RoomJoined))
		fresh.start()
		fresh.settleFor(5 * time.Second)
		hs.slow = false
		fresh.settleFor(time.Minute)
		if got := fresh.machine(r.id).Head(); got != r.head {
			t.Errorf("rebuilt up to %s, want %s; %d refusals", got.Short(), r.head.Short(), len(fresh.refusals()))
		}
	})
}

func TestEngineGoesOnBesideADamagedRoom(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		m, r, a, _ := pair(t, cfg)
		bad := &store.Room{ID: "!bad:mls.test", Status: store.RoomServing, Machine: []byte("damaged")}
		must(t, m.st.PutRoom(m.ctx, bad))
		m.start()
		// Another one whose group's state cannot be read when it is needed.
		groups, err := m.st.GroupRefs(m.ctx, r.id)
		must(t, err)
		torn := newRoom(t, m.hs, "!torn:mls.test")
		m.settle()
		torn.found()
		m.settle()
		must(t, m.st.PutGroup(m.ctx, torn.id, torn.head.String(), []byte("damaged")))
		delete(m.e.rooms, torn.id)
		m.settleFor(2 * time.Minute)
		c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		if got := r.accepts(); len(groups) == 0 || got[len(got)-1] != c.ref {
			t.Errorf("beside damaged rooms nothing is accepted: %v", got)
		}
		// What was mended comes back by itself.
		bad.Machine = nil
		must(t, m.st.PutRoom(m.ctx, bad))
		m.settleFor(11 * time.Minute)
		if m.e.rooms[bad.ID] == nil || m.e.failing[bad.ID] != nil {
			t.Error("the mended room is still set aside")
		}
	})
}
