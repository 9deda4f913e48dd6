package client

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// newcomer makes a device look at a room's heads as somebody does who knows
// nothing but the room's state.
func newcomer(w *world, d *testDevice, room id.RoomID) *strangeRoom {
	w.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.newRoom(room)
	raw, err := json.Marshal(d.rooms[room].state)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := json.Unmarshal(raw, r.state); err != nil {
		w.t.Fatal(err)
	}
	r.state.room = room
	r.state.rebuild()
	return &strangeRoom{r}
}

// strangeRoom is a room of nobody's store.
type strangeRoom struct{ *room }

// look returns the head that a device would join at, once everything it needs is
// there.
func (d *testDevice) look(r *strangeRoom) (id.UserID, *rooms.HeadContent) {
	d.w.t.Helper()
	for range 10 {
		d.mu.Lock()
		by, head, coming := d.usableHead(r.room)
		needs := r.needs
		r.needs = map[string]*need{}
		d.mu.Unlock()
		if !coming {
			return by, head
		}
		for key, n := range needs {
			switch {
			case n.file != nil:
				data, err := d.hs.Download(d.w.ctx, string(n.file.MXC), n.file.Size)
				if err == nil {
					err = n.file.Check(data)
				}
				d.mu.Lock()
				if err == nil {
					r.keepFile(n.file, data)
				} else {
					r.tried["need/"+key] = 1 << 60
				}
				d.mu.Unlock()
			case len(n.users) > 0:
				lists, err := d.ident.DevicesOf(d.w.ctx, n.users)
				if err != nil {
					d.w.t.Fatal(err)
				}
				d.mu.Lock()
				for user, list := range lists {
					d.devs[user], r.devices[user] = list, true
				}
				d.mu.Unlock()
			}
		}
	}
	d.w.t.Fatal("what the heads need never comes")
	return "", nil
}

func (r *strangeRoom) put(t *testing.T, bot id.UserID, head *rooms.HeadContent) {
	t.Helper()
	raw, err := rooms.Encode(head)
	if err != nil {
		t.Fatal(err)
	}
	key := string(bot)
	r.state.set(&Event{ID: id.EventID(fmt.Sprintf("$put%s%x", bot, sha256.Sum256(raw))), Type: rooms.TypeHead, Sender: bot, StateKey: &key, Content: raw})
}

// TestNewcomersJoinAtWhatIsProven: of the heads in a room, a newcomer takes the
// newest that is proven from the room's beginning.
func TestNewcomersJoinAtWhatIsProven(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(nil)
	w.rest()
	old := newcomer(w, bob, room)
	oldest := *old.state.head(botOf("three.example"))
	w.must(func() error { return alice.Kick(w.ctx, room, carol.UserID(), "") })
	w.settle()
	// Mallory founds a group of their own for the same room.
	mallory := w.device("mallory:two.example", "MALLORY1")
	var other id.RoomID
	w.must(func() (err error) {
		other, err = mallory.CreateRoom(w.ctx, CreateOptions{Policy: func(p *rooms.Policy) { p.Room = room; p.Creator = alice.UserID() }})
		return err
	})
	w.settle()
	forged := *mallory.rooms[other].state.head(botOf("two.example"))
	forged.Accepted = &rooms.EventRef{Ref: forged.Accepted.Ref, Event: forged.Accepted.Event, Epoch: 99}

	unproven := forged
	unproven.Proof, unproven.ProofFile = nil, nil
	honest := []id.UserID{botOf(testServer), botOf("two.example"), botOf("three.example")}
	r := newcomer(w, bob, room)
	if s := bob.shownOf(r); len(s.by) != 3 {
		t.Fatalf("%d of three modules prove their heads", len(s.by))
	}
	newest := r.state.head(botOf(testServer)).Accepted.Epoch
	for _, test := range []struct {
		name string
		edit func(r *strangeRoom)
		want func(by id.UserID, head *rooms.HeadContent) bool
	}{
		{"as it is", func(*strangeRoom) {}, func(by id.UserID, head *rooms.HeadContent) bool {
			return slices.Contains(honest, by) && head.Accepted.Epoch == newest
		}},
		{"a group of somebody else", func(r *strangeRoom) { r.put(t, mallory.UserID(), &forged) }, func(by id.UserID, head *rooms.HeadContent) bool {
			return slices.Contains(honest, by)
		}},
		{"a group of somebody else, where joining by all others failed", func(r *strangeRoom) {
			r.put(t, mallory.UserID(), &unproven)
			restAll(bob, r, honest)
		}, func(by id.UserID, _ *rooms.HeadContent) bool { return slices.Contains(honest, by) }},
		{"a group of somebody else by the same id, where joining by all others failed", func(r *strangeRoom) {
			head := unproven
			head.Group = r.state.head(honest[0]).Group
			r.put(t, mallory.UserID(), &head)
			restAll(bob, r, honest)
		}, func(by id.UserID, _ *rooms.HeadContent) bool { return slices.Contains(honest, by) }},
		{"a higher epoch without a proof", func(r *strangeRoom) {
			head := *r.state.head(honest[0])
			head.Proof, head.ProofFile = nil, nil
			head.Accepted = &rooms.EventRef{Ref: head.Accepted.Ref, Event: head.Accepted.Event, Epoch: 99}
			r.put(t, honest[0], &head)
		}, func(by id.UserID, _ *rooms.HeadContent) bool { return by == honest[1] || by == honest[2] }},
		{"an old head alone is better than none", func(r *strangeRoom) {
			for _, bot := range honest {
				r.put(t, bot, &oldest)
			}
		}, func(_ id.UserID, head *rooms.HeadContent) bool { return head.Accepted.Epoch == oldest.Accepted.Epoch }},
		{"an old head beside a newer one is stale", func(r *strangeRoom) {
			r.put(t, honest[0], &oldest)
			r.put(t, honest[1], &oldest)
		}, func(by id.UserID, _ *rooms.HeadContent) bool { return by == honest[2] }},
		{"a lower era", func(r *strangeRoom) {
			for _, bot := range honest[1:] {
				head := *r.state.head(bot)
				head.Era = 7
				r.put(t, bot, &head)
			}
		}, func(by id.UserID, _ *rooms.HeadContent) bool { return by == honest[0] }}, // the others name an era that they do not prove
		{"another beginning", func(r *strangeRoom) {
			for _, bot := range honest[1:] {
				head := *r.state.head(bot)
				head.Root = &rooms.EventRef{Ref: rooms.Hash{1}, Event: "$x"}
				r.put(t, bot, &head)
			}
		}, func(by id.UserID, _ *rooms.HeadContent) bool { return by == honest[0] }},
		{"another list", func(r *strangeRoom) {
			for _, bot := range honest[1:] {
				head := *r.state.head(bot)
				head.Cfg = rooms.Hash{1}
				r.put(t, bot, &head)
			}
		}, func(by id.UserID, _ *rooms.HeadContent) bool { return by == honest[0] }},
		{"another final", func(r *strangeRoom) {
			for _, bot := range honest[1:] {
				head := *r.state.head(bot)
				head.Final = &rooms.EventRef{Ref: rooms.Hash{1}, Event: "$x"}
				r.put(t, bot, &head)
			}
		}, func(by id.UserID, _ *rooms.HeadContent) bool { return by == honest[0] }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newcomer(w, bob, room)
			test.edit(r)
			by, head := bob.look(r)
			if head == nil || !test.want(by, head) {
				t.Errorf("it would join at a head of %s: %+v", by, head)
			}
		})
	}
	t.Run("a founder's device that is logged out", func(t *testing.T) {
		w.s.users[alice.UserID()].devices["ALICE1"].gone = true
		defer func() { w.s.users[alice.UserID()].devices["ALICE1"].gone = false }()
		r := newcomer(w, bob, room)
		bob.look(r)
		if s := bob.shownOf(r); len(s.by) != 0 || len(s.bad) != 0 {
			t.Errorf("%d heads count as proven, %d as wrong", len(s.by), len(s.bad))
		}
	})
}

// restAll notes that joining by what these modules show failed.
func restAll(d *testDevice, r *strangeRoom, bots []id.UserID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, bot := range bots {
		r.restModule(bot, 0, d.mono())
	}
}

func (d *testDevice) shownOf(r *strangeRoom) *shown {
	d.look(r)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shownBy(r.room, nil)
}

// TestNewcomersJoinAtTheHeadOfAListedModule: a module that was taken off the list
// follows the room and shows heads as new as the others', or newer.
func TestNewcomersJoinAtTheHeadOfAListedModule(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.must(func() error { return alice.AddSequencers(w.ctx, room, "two.example", "three.example") })
	w.settle()
	w.must(func() error { return alice.DropSequencers(w.ctx, room, testServer) })
	w.settle()
	dropped, listed := botOf(testServer), botOf("two.example")
	w.must(func() error { return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Window = 8 }) })
	w.settle()
	w.rest()
	r := newcomer(w, bob, room)
	for _, bot := range []id.UserID{dropped, listed} {
		head := r.state.head(bot)
		if s := bob.shownOf(r); head == nil || head.Snapshot == nil || s.by[bot] == nil {
			t.Fatalf("%s shows no proven head: %+v", bot, head)
		}
		if head.Lists(bot) != (bot == listed) {
			t.Errorf("%s is on the list of what it shows: %t", bot, head.Lists(bot))
		}
	}
	if by, head := bob.look(r); head == nil || !head.Lists(by) {
		t.Errorf("it would join at the head of %s, which is not on the list", by)
	}
	// Its place among many heads does not depend on who came first (see state_test.go).
	for user, want := range map[id.UserID]bool{listed: true, botOf("three.example"): true, dropped: false, botOf("evil.example"): false} {
		if got := bob.isListed(r.room, user); got != want {
			t.Errorf("%s is taken for listed: %v, want %v", user, got, want)
		}
	}
	devices := bob.devs
	bob.devs = nil
	if bob.isListed(r.room, listed) {
		t.Error("a list counts that rests on nobody's device")
	}
	bob.devs = devices
	// The listed ones have not shown the newest epoch yet.
	old := *r.state.head(listed)
	for _, bot := range r.state.bots() {
		if bot != dropped {
			r.put(t, bot, &old)
		}
	}
	if by, head := bob.look(r); head == nil || by == dropped {
		t.Errorf("it would join at the head of %s, which is not on the list", by)
	}
	// The listed ones prove nothing, for they lack what they would have to show.
	r.rec.Bound, r.proofs = old.Group, nil
	for _, bot := range r.state.bots() {
		if bot != dropped {
			head := old
			head.Proof, head.ProofFile = nil, nil
			r.put(t, bot, &head)
		}
	}
	by, head := bob.look(r)
	if by != dropped {
		t.Fatalf("it would join at the head of %s, which is not proven", by)
	}
	join := func(proven bool) error {
		return bob.externalJoin(w.ctx, room, by, head, proven, head.Snapshot.Tree, nil)
	}
	if err := join(false); rooms.RuleOf(err) != rooms.RuleReceiptForged {
		t.Errorf("a head of a module that is not on the list, not proven: %v", err)
	}
	if err := join(true); err != nil {
		t.Errorf("the same, proven: %v", err)
	}
}

// TestNewcomersAreConfirmed: who joins is shown as unconfirmed until a module
// proves the epoch, or one above it, final.
func TestNewcomersAreConfirmed(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.federated(nil)
	w.rest()
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.join(dave, room)
	w.settle()
	info, err := dave.Room(w.ctx, room)
	if err != nil || info.Unconfirmed || info.Phase != "member" {
		t.Errorf("unconfirmed %v, phase %s, %v", info.Unconfirmed, info.Phase, err)
	}
	// Without any vote it stays so.
	w.module.noVouching, w.more[0].noVouching, w.more[1].noVouching = true, true, true
	erin := w.device("erin:two.example", "ERIN1")
	w.must(func() error { return alice.Invite(w.ctx, room, erin.UserID()) })
	w.join(erin, room)
	w.settle()
	info, err = erin.Room(w.ctx, room)
	if err != nil || !info.Unconfirmed || info.Phase != "member" {
		t.Errorf("without votes: unconfirmed %v, phase %s, %v", info.Unconfirmed, info.Phase, err)
	}
}

// TestBaseOfAnEraConfirmsNoNewcomer: it is final by its author's word, and beside
// what a newcomer joined at there may be another one of the same number.
func TestBaseOfAnEraConfirmsNoNewcomer(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.federated(nil)
	w.rest()
	w.module.noVouching, w.more[0].noVouching, w.more[1].noVouching = true, true, true
	erin := w.device("erin:two.example", "ERIN1")
	w.must(func() error { return alice.Invite(w.ctx, room, erin.UserID()) })
	w.join(erin, room)
	w.settle()
	w.s.held[rooms.TypeHead] = true
	w.module.noVouching, w.more[0].noVouching, w.more[1].noVouching = false, false, false
	w.must(func() error { return alice.OpenEra(w.ctx, room, "two.example") })
	w.settle()
	erin.mu.Lock()
	r := erin.rooms[room]
	era, base := r.machine.EraOf()
	if era != 1 || r.machine.NewestFinal() != base {
		t.Fatalf("era %d, whose base is not the newest final", era)
	}
	if !r.rec.Unconfirmed {
		t.Error("confirmed without anybody's proof")
	}
	// Were it the other one that counts, this device would find its way there.
	bot := botOf("two.example")
	head := *r.state.head(bot)
	head.Accepted = &rooms.EventRef{Ref: rooms.Hash{1}, Event: "$other", Epoch: r.head().number}
	(&strangeRoom{r}).put(t, bot, &head)
	erin.watchLag(r)
	if !r.displaced {
		t.Error("an era beside the one it is in does not count as another branch")
	}
	r.state.Known = false // it asks for the room's state, with the heads
	erin.mu.Unlock()
	w.settle()
	if info, err := erin.Room(w.ctx, room); err != nil || info.Unconfirmed {
		t.Errorf("a module's proof does not confirm it: %v", err)
	}
}

// TestHeadAboveIsNoOtherBranch: what modules show above a newcomer's head is for
// some time what it has not seen yet. Were it another branch at once, a Welcome
// that was under way for long would take the newcomer back to where it leads.
func TestHeadAboveIsNoOtherBranch(t *testing.T) {
	w := newWorld(t)
	room, alice, _, _ := w.federated(nil)
	w.rest()
	w.module.noVouching, w.more[0].noVouching, w.more[1].noVouching = true, true, true
	erin := w.device("erin:two.example", "ERIN1")
	w.must(func() error { return alice.Invite(w.ctx, room, erin.UserID()) })
	w.join(erin, room)
	w.settle()
	erin.mu.Lock()
	defer erin.mu.Unlock()
	r := erin.rooms[room]
	if !r.rec.Unconfirmed || r.elsewhere() {
		t.Fatalf("unconfirmed %v, elsewhere %v before anything is shown", r.rec.Unconfirmed, r.elsewhere())
	}
	show := func(epoch uint64) {
		for _, server := range []string{testServer, "two.example", "three.example"} {
			head := *r.state.head(botOf(server))
			head.Accepted = &rooms.EventRef{Ref: rooms.Hash{byte(epoch)}, Event: "$other", Epoch: epoch}
			(&strangeRoom{r}).put(t, botOf(server), &head)
		}
		erin.watchLag(r)
	}
	own := r.head().number
	show(own + 1)
	if !r.elsewhere() || r.displaced {
		t.Errorf("a head above: elsewhere %v, displaced %v at once", r.elsewhere(), r.displaced)
	}
	w.now.add(lagOther)
	show(own + 1)
	if !r.displaced {
		t.Error("a head that was looked for in vain does not count as another branch")
	}
	r.displaced = false
	show(own)
	if !r.displaced {
		t.Error("a head of the same epoch does not count as another branch")
	}
}

// TestWhereJoiningFailedOthersGoFirst: that a module is on the list is its own word
// until a device has joined. Where it failed by what one shows, the others go first,
// ever longer.
func TestWhereJoiningFailedOthersGoFirst(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.rest()
	liar := botOf(testServer)
	lie := *newcomer(w, bob, room).state.head(liar) // from when it was on the list
	w.must(func() error { return alice.SetSequencers(w.ctx, room, "two.example", "three.example") })
	w.settle()
	r := newcomer(w, bob, room)
	r.rec.Bound = lie.Group // the invite says which group it is
	r.put(t, liar, &lie)
	for _, bot := range r.state.bots() {
		if head := *r.state.head(bot); bot != liar { // what would show that the lie is old is not there
			head.Proof, head.ProofFile = nil, nil
			r.put(t, bot, &head)
		}
	}
	if by, _ := bob.look(r); by != liar {
		t.Fatalf("it would join at the head of %s: the test shows nothing", by)
	}
	var waits []time.Duration
	for range 4 {
		bob.mu.Lock()
		r.restModule(liar, 0, bob.mono())
		bob.mu.Unlock()
		if by, _ := bob.look(r); by == liar || by == "" {
			t.Fatalf("it would join at the head of %q again", by)
		}
		began := w.now.get()
		for by := id.UserID(""); by != liar && w.now.get() < began+2*joinRestMax; by, _ = bob.look(r) {
			w.now.add(10 * time.Second)
		}
		waits = append(waits, w.now.get()-began)
	}
	for i, wait := range waits {
		if want := joinRest << i; wait < want || wait > want+20*time.Second {
			t.Errorf("after %d failures the others go first for %v, want %v", i+1, wait, want)
		}
	}
}

// TestProofsAreCheckedOnce: the files of proofs need more room than a device has for
// files. What they showed is remembered without them, as long as the head says the same.
func TestProofsAreCheckedOnce(t *testing.T) {
	w := newWorld(t)
	room, _, bob, _ := w.federated(nil)
	w.rest()
	r := newcomer(w, bob, room)
	for _, bot := range r.state.bots() {
		head := *r.state.head(bot)
		raw := []byte(head.Proof)
		mxc := "mxc://" + testServer + "/" + strings.ReplaceAll(bot.Localpart()+bot.Homeserver(), ".", "-")
		w.s.mu.Lock()
		w.s.media[mxc] = raw
		w.s.mu.Unlock()
		head.Proof, head.ProofFile = nil, rooms.NewFile(id.ContentURIString(mxc), raw)
		r.put(t, bot, &head)
	}
	if s := bob.shownOf(r); len(s.by) != 3 {
		t.Fatalf("%d of three modules prove their heads", len(s.by))
	}
	bob.mu.Lock()
	clear(r.media)
	r.mediaOrder = nil
	by, _, coming := bob.usableHead(r.room)
	again := len(r.needs)
	bob.mu.Unlock()
	if by == "" || coming || again > 0 {
		t.Fatalf("by %q, coming %v, %d things are fetched again", by, coming, again)
	}
	lie := *r.state.head(by)
	lie.Era = 7
	r.put(t, by, &lie)
	if s := bob.shownOf(r); !s.bad[by] {
		t.Error("what a head says beside the same proof is not held against it")
	}
}

// TestJoinByAnotherModule: who cannot join by what one module shows joins by what
// another one does.
func TestJoinByAnotherModule(t *testing.T) {
	for name, spoil := range map[string]func(snapshot *rooms.Snapshot){
		"a tree that is none":     func(s *rooms.Snapshot) { s.File, s.Tree = nil, rooms.Bytes("no tree") },
		"a file that never comes": func(s *rooms.Snapshot) { s.File, s.Tree = rooms.NewFile("mxc://"+testServer+"/never", []byte{1}), nil },
	} {
		t.Run(name, func(t *testing.T) { joinByAnother(t, spoil) })
	}
}

func joinByAnother(t *testing.T, spoil func(snapshot *rooms.Snapshot)) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	w.must(func() error { return alice.SetSequencers(w.ctx, room, "two.example", testServer, "three.example") })
	w.settle()
	erin := w.device("erin:two.example", "ERIN1")
	w.s.lose = "to " + string(erin.UserID())
	w.must(func() error { return alice.Invite(w.ctx, room, erin.UserID()) })
	w.settle(alice, bob, carol)
	w.module.down = true // so that it shows nothing else
	broken := false
	w.s.mu.Lock()
	for _, evt := range w.s.log {
		if evt.RoomID != room || evt.Type != rooms.TypeHead || evt.Sender != botOf(testServer) {
			continue
		}
		head, err := rooms.DecodeHead(evt.Content)
		if err != nil || head.Snapshot == nil {
			continue
		}
		spoil(head.Snapshot)
		if evt.Content, err = rooms.Encode(head); err != nil {
			t.Fatal(err)
		}
		broken = true
	}
	w.s.mu.Unlock()
	if !broken {
		t.Fatal("the module shows no tree: the test shows nothing")
	}
	if _, err := erin.hs.Join(w.ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		w.order()
		for _, d := range w.all {
			d.turn()
		}
		w.now.add(time.Second)
	}
	w.sameEpoch(room, alice, bob, carol, erin)
}
