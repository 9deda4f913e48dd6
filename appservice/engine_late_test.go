package appservice

import (
	"fmt"
	"math"
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

// forgedHead makes a group of one leaf in a user's name, some epochs old, and
// the head that describes it.
func (r *mlsRoom) forgedHead(m *module, user, creator id.UserID, epochs int) *rooms.HeadContent {
	r.t.Helper()
	d := newDevice(r.t, user, "FORGED")
	keys := m.e.keys(&room{})
	policy := rooms.DefaultPolicy(r.id, creator, federation.Sequencer{Server: "mls.test", User: string(bot), ReceiptKey: keys.ReceiptKey})
	exts, err := rooms.GroupExtensions(policy, nil)
	must(r.t, err)
	d.group, err = mls.CreateGroup(d.cfg, engineSuite, fmt.Appendf(nil, "%-32s", "forged"), d.key, rooms.LeafOptions(d.cred), exts)
	must(r.t, err)
	for range epochs {
		staged, err := d.group.Commit(mls.CommitOptions{ForcePath: true})
		must(r.t, err)
		d.group = staged.Merge()
	}
	info, err := d.group.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	must(r.t, err)
	ref := rooms.Hash{1, 2, 3}
	keys.Group, keys.GroupInfo, keys.Cfg = d.group.GroupID(), info, rooms.Hash{4}
	keys.Accepted = &rooms.EventRef{Ref: ref, Event: "$forged", Epoch: uint64(epochs)}
	keys.Root = &rooms.EventRef{Ref: rooms.Hash{4}, Event: "$forged-root"}
	keys.Final = keys.Root
	keys.Snapshot = &rooms.Snapshot{Tree: d.group.RatchetTree(), TreeHash: d.group.TreeHash(), AtCommit: ref}
	return keys
}

// late starts another server's module in a room whose beginning it cannot get.
func (r *mlsRoom) late(m *module, dbCfg store.Config) *module {
	r.t.Helper()
	const other = id.UserID("@_mls_bot:far.test")
	r.hs.state(r.id, bob, rooms.TypeMember, string(other), map[string]any{"membership": "join"})
	m.settleFor(7 * time.Second)
	early := make(map[id.EventID]bool)
	for _, ev := range r.hs.rooms[r.id] {
		early[ev.ID] = true
	}
	n := newModuleWithKeys(r.t, freshDatabase(r.t, dbCfg), r.hs, 9)
	n.as = &farHS{roomHS: r.hs, user: other, server: "far.test", hidden: func(ev *homeserver.Event) bool { return early[ev.ID] }}
	n.start()
	must(r.t, n.st.NoteRoom(n.ctx, r.id, store.RoomJoined))
	n.now = 2 * time.Minute
	return n
}

func TestEngineStartsAtNoMembersHead(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, _, _ := pair(t, dbCfg)
		n := r.late(m, dbCfg)
		r.hs.push = false
		forged, err := rooms.Encode(r.forgedHead(n, alice, alice, 40))
		must(t, err)
		// As state and in the timeline, under his own name and another bot's.
		r.hs.state(r.id, bob, rooms.TypeHead, string(bob), forged)
		r.hs.add(r.id, bob, rooms.TypeHead, nil, forged)
		r.hs.add(r.id, "@_mls_bot:far2.test", rooms.TypeHead, nil, forged)
		// And so many that there would be no place for the real one.
		for i := range 2 * rooms.MaxSequencers {
			user := id.UserID(fmt.Sprintf("@m%d:far.test", i))
			r.hs.state(r.id, user, rooms.TypeHead, string(user), forged)
		}
		n.settleFor(10 * time.Second)
		if got := n.machine(r.id).Head(); got != r.head {
			t.Errorf("the module follows %s, the room's group is at %s", got.Short(), r.head.Short())
		}
	})
}

func TestEngineChecksTheHeadItStartsAt(t *testing.T) {
	for _, test := range []struct {
		name          string
		user, creator id.UserID
		rule          string
	}{
		{"creator without power", alice, bob, ruleRootNotOwned},
		{"leaf of a stranger", "@stranger:far.test", alice, string(rooms.RuleMemberNotInRoom)},
	} {
		t.Run(test.name, func(t *testing.T) {
			hs := newRoomHS()
			m := newModule(t, storetest.SQLite(t), hs)
			r := newRoom(t, hs, "!room:mls.test")
			hs.state(r.id, alice, rooms.TypeMember, string(bob), map[string]any{"membership": "join"})
			m.settle()
			hs.state(r.id, alice, rooms.TypeHead, string(alice), r.forgedHead(m, test.user, test.creator, 3))
			m.start()
			m.settleFor(5 * time.Second)
			if m.e.rooms[r.id].m != nil {
				t.Error("the module follows the group")
			}
			hs.state(r.id, alice, rooms.TypeHead, string(alice), r.forgedHead(m, alice, alice, 3))
			m.start()
			m.settleFor(5 * time.Second)
			if got := m.machine(r.id).Head(); got != (federation.Ref{1, 2, 3}) {
				t.Errorf("got head %s, want the admin's", got.Short())
			}
		})
	}
}

func TestEngineGivesUpALateStartForTheRoomsBeginning(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		hs := newRoomHS()
		m := newModule(t, dbCfg, hs)
		r := newRoom(t, hs, "!room:mls.test")
		m.settle()
		hs.state(r.id, alice, rooms.TypeHead, string(alice), r.forgedHead(m, alice, alice, 40))
		m.start()
		m.settleFor(5 * time.Second)
		if got := m.machine(r.id).Head(); got == r.head {
			t.Fatal("the module did not start at the published head")
		}
		a := r.found()
		c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settleFor(5 * time.Second)
		if got := m.machine(r.id).Head(); got != c.ref {
			t.Errorf("got head %s, want %s of the group that was founded in the room; refused: %v", got.Short(), c.ref.Short(), m.refusals())
		}
		m.start()
		m.settleFor(5 * time.Second)
		if got := m.machine(r.id).Head(); got != c.ref {
			t.Errorf("after a restart: head %s, want %s", got.Short(), c.ref.Short())
		}
	})
}

// TestEngineNotesBranchesBesideItsBeginning: commits on a branch that the room
// left before the module's beginning cannot be checked, and wait for nothing: a
// sequencer that comes back may report a vote for one.
func TestEngineNotesBranchesBesideItsBeginning(t *testing.T) {
	m, r, a, b := pair(t, storetest.SQLite(t))
	head, event := r.head, r.event
	lost := &device{t: t, cfg: b.cfg, cred: b.cred, key: b.key, group: b.group}
	var branch []*madeCommit
	for range 3 {
		c := r.make(lost, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
		lost.group = c.staged.Merge()
		r.head, r.event = c.ref, ""
		branch = append(branch, c)
	}
	r.head, r.event = head, event
	c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
	m.settle()
	r.merge(c)
	r.apply(b, r.head, b.group.EpochAuthenticator())
	m.settleFor(70 * time.Second)
	n := r.late(m, storetest.SQLite(t))
	n.settleFor(10 * time.Second)
	if got := n.machine(r.id).Base(); got != c.ref {
		t.Fatalf("the module begins at %s, want %s", got.Short(), c.ref.Short())
	}
	r.post(branch[2]) // the one above comes first
	n.settle()
	if n.machine(r.id).Beside(branch[2].ref, math.MaxUint64) {
		t.Error("a commit that may be on the head counts as beside it")
	}
	r.post(branch[1])
	n.settle()
	for i, c := range branch {
		if got := n.machine(r.id).Beside(c.ref, math.MaxUint64); got != (i > 0) { // the first is too old anyway
			t.Errorf("commit %d of the branch: beside %v", i, got)
		}
	}
	waiting, _, err := n.st.CountInbox(n.ctx, store.InboxWaiting)
	must(t, err)
	if waiting != 0 || len(n.refusals()) != 0 {
		t.Errorf("%d events wait, refused: %v", waiting, n.refusals())
	}
}
