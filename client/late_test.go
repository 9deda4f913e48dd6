package client

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestLateMessageOfWhoWasRemovedIsMarked(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	carol.sendAlone(room, "from a member") // nobody has fetched it yet
	bob.sendAlone(room, "from who is removed")
	w.s.held[rooms.TypeEncrypted] = true
	w.must(func() error { return alice.Kick(w.ctx, room, bob.UserID(), "") })
	w.settle(alice, carol)
	w.s.mu.Lock()
	w.s.held[rooms.TypeEncrypted] = false
	for _, evt := range w.s.log { // they come after the commit
		if evt.Type == rooms.TypeEncrypted {
			again := *evt
			w.s.append(&again)
		}
	}
	w.s.mu.Unlock()
	w.settle(alice, carol)
	alice.wantTexts("from a member", "from who is removed")
	for _, u := range alice.got {
		if msg, ok := u.(*Message); ok && (!msg.Late || msg.Removed != (msg.Sender == bob.UserID())) {
			t.Errorf("message of %s: late %v, of a removed device %v", msg.Sender, msg.Late, msg.Removed)
		}
	}
}

// hide takes the first event of a kind out of the room, as if its server could
// not be reached; show brings it to the end.
func (w *world) hide(which func(evt *Event) bool) *Event {
	w.t.Helper()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	at := slices.IndexFunc(w.s.log, which)
	if at < 0 {
		w.t.Fatal("there is no such event")
	}
	hidden := w.s.log[at]
	w.s.log[at] = &Event{ID: "$elsewhere", RoomID: "!elsewhere:example.org", Sender: hidden.Sender, Type: hidden.Type}
	return hidden
}

// hideAll hides all events of a kind.
func (w *world) hideAll(which func(evt *Event) bool) (hidden []*Event) {
	w.t.Helper()
	for range w.s.log {
		w.s.mu.Lock()
		more := slices.ContainsFunc(w.s.log, which)
		w.s.mu.Unlock()
		if !more {
			break
		}
		hidden = append(hidden, w.hide(which))
	}
	return hidden
}

func (w *world) show(hidden *Event) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.log = append(w.s.log, hidden)
}

// waiting lists what the events in a device's inbox wait for.
func (d *testDevice) waiting(room id.RoomID) (what []string) {
	d.w.t.Helper()
	items, err := d.st.Inbox(d.w.ctx, room)
	if err != nil {
		d.w.t.Fatal(err)
	}
	for _, item := range items {
		what = append(what, item.WaitsFor)
	}
	return what
}

// TestWelcomeBeforeItsCommit: the homeserver of who is added may get the Welcome
// some seconds before the commit. What was said in between is read all the same.
func TestWelcomeBeforeItsCommit(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	before := alice.epoch(room)
	dave := w.device("dave", "DAVE1")
	dave.dead = true
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	w.send(bob, room, "to dave")
	w.settle()
	commit := w.hide(func(evt *Event) bool {
		content, err := rooms.DecodeCommit(evt.Content)
		return evt.Type == rooms.TypeCommit && err == nil && content.Epoch == before+1
	})
	dave.dead = false
	dave.turn()
	w.join(dave, room)
	for range 6 {
		dave.turn()
		w.now.add(time.Second)
	}
	if dave.epoch(room) != 0 {
		t.Fatal("dave is in already")
	}
	w.show(commit)
	w.settle()
	dave.wantTexts("to dave")
	if now := alice.epoch(room); now != before+1 {
		t.Errorf("epoch %d, want %d: dave came in by itself", now, before+1)
	}
}

// TestWelcomeLongBeforeItsCommit: a homeserver that is cut off may have nothing of
// the room but the Welcome, for longer than its commit is asked for.
func TestWelcomeLongBeforeItsCommit(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	before := alice.epoch(room)
	dave := w.device("dave", "DAVE1")
	dave.dead = true
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	w.send(bob, room, "to dave")
	w.settle()
	hidden := w.hideAll(func(evt *Event) bool {
		content, err := rooms.DecodeCommit(evt.Content)
		return evt.RoomID == room && (evt.Type == rooms.TypeHead || evt.Type == rooms.TypeCommit && err == nil && content.Epoch == before+1)
	})
	w.module.down = true
	dave.dead = false
	if _, err := dave.hs.Join(w.ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	for range 40 {
		dave.turn()
		w.now.add(10 * time.Second)
	}
	if waiting := dave.waiting(room); !slices.ContainsFunc(waiting, func(what string) bool { return strings.HasPrefix(what, "welcomed:") }) {
		t.Fatalf("the Welcome does not wait for its commit: %q", waiting)
	}
	for _, evt := range hidden {
		w.show(evt)
	}
	for range 3 {
		dave.turn()
	}
	if got := dave.epoch(room); got != before+1 {
		t.Errorf("dave is in epoch %d, want %d", got, before+1)
	}
	w.module.down = false
	w.settle()
	dave.wantTexts("to dave")
	if now := alice.epoch(room); now != before+1 {
		t.Errorf("epoch %d, want %d: dave came in by himself", now, before+1)
	}
}

// TestWelcomeAfterAnOwnCommitThatLost: a newcomer whose Welcome is late comes in by
// itself, by a commit that loses. What was said in the epoch that the Welcome opens, and
// what was committed above it meanwhile, is not lost on it.
func TestWelcomeAfterAnOwnCommitThatLost(t *testing.T) {
	for _, above := range []uint64{0, 1, 3} {
		t.Run(fmt.Sprintf("%d epochs above", above), func(t *testing.T) { welcomeAfterAnOwnCommit(t, above) })
	}
}

// welcomeAfterAnOwnCommit: the own commit is made on one that lies so many epochs above
// the Welcome's.
func welcomeAfterAnOwnCommit(t *testing.T, above uint64) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	before := alice.epoch(room)
	dave := w.device("dave", "DAVE1")
	dave.dead = true
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	w.send(bob, room, "to dave")
	w.settle()
	want := []string{"to dave"}
	for i := range above {
		w.must(func() error { return alice.ChangePolicySelf(room) })
		want = append(want, fmt.Sprintf("between %d", i))
		w.send(bob, room, want[len(want)-1])
		w.settle()
	}
	q := string(dave.UserID()) + "/" + string(dave.DeviceID())
	w.s.mu.Lock()
	late := w.s.toDevice[q]
	w.s.toDevice[q] = nil
	w.s.mu.Unlock()
	if len(late) == 0 {
		t.Fatal("dave has no Welcome")
	}
	w.module.down = true
	dave.dead = false
	if _, err := dave.hs.Join(w.ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	joining := func() bool {
		dave.mu.Lock()
		defer dave.mu.Unlock()
		r := dave.rooms[room]
		return r != nil && r.pending != nil && r.pending.External && r.pending.EventID != ""
	}
	for range 20 {
		if joining() {
			break
		}
		dave.turn()
		w.now.add(3 * time.Second)
	}
	if !joining() {
		t.Fatal("dave does not come in by himself: the test proves nothing")
	}
	w.hide(func(evt *Event) bool {
		return evt.RoomID == room && evt.Type == rooms.TypeCommit && evt.Sender == dave.UserID()
	})
	w.s.mu.Lock()
	w.s.toDevice[q] = append(w.s.toDevice[q], late...)
	w.s.mu.Unlock()
	dave.turn()
	if waiting := dave.waiting(room); !slices.Contains(waiting, "decided:") {
		t.Fatalf("the Welcome does not wait for what becomes of dave's commit: %q", waiting)
	}
	w.module.down = false
	w.must(func() error { return bob.ChangePolicySelf(room) })
	w.settle(alice, bob, carol)
	w.send(bob, room, "above")
	w.settle(alice, bob, carol)
	w.settle()
	dave.wantTexts(append(want, "above")...)
	if now := alice.epoch(room); now != before+2+above {
		t.Errorf("epoch %d, want %d: dave came in by himself", now, before+2+above)
	}
	w.checkNonces()
}

// TestASecondWelcomeAfterTheFirstOnesBranchLost: who was invited in a cut, and comes after it, has a Welcome into the
// branch that lost and another into the head. What it looked at on the first is read once more for the second.
func TestASecondWelcomeAfterTheFirstOnesBranchLost(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(3, nil)
	alice, bob, carol := u[0], u[1], u[2]
	dave := w.deviceOn(w.modules()[2].s, "dave", "DAVE1")
	dave.dead = true
	q := string(dave.UserID()) + "/" + string(dave.DeviceID())
	welcomes := func(want int) {
		t.Helper()
		w.s.mu.Lock()
		defer w.s.mu.Unlock()
		n := 0
		for _, evt := range w.modules()[2].s.toDevice[q] {
			if evt.Type == rooms.TypeWelcome {
				n++
			}
		}
		if n != want {
			t.Fatalf("dave has %d Welcomes, want %d: the test proves nothing", n, want)
		}
	}
	w.cut("s3.example")
	w.must(func() error { return carol.Invite(w.ctx, room, dave.UserID()) })
	w.must(func() error { return alice.ChangePolicySelf(room) })
	if !w.until(300, func() bool { return carol.has(room, dave) }) {
		t.Fatal("carol does not add dave in the cut")
	}
	w.settle()
	welcomes(1)
	w.must(func() error { return carol.ChangePolicySelf(room) })
	w.mend()
	w.settle()
	w.sameEpoch(room, alice, bob, carol)
	welcomes(2)
	want := []string{"to dave"}
	w.send(alice, room, want[0])
	for i := range 3 {
		w.must(func() error { return alice.ChangePolicySelf(room) })
		want = append(want, fmt.Sprintf("above %d", i))
		w.send(bob, room, want[len(want)-1])
		w.settle()
	}
	before := alice.epoch(room)
	dave.dead = false
	dave.turn()
	w.join(dave, room)
	for range 40 {
		w.settle()
		w.now.add(3 * time.Second)
	}
	dave.wantTexts(want...)
	if now := alice.epoch(room); now != before {
		t.Errorf("epoch %d, want %d: dave came in by himself", now, before)
	}
	w.checkNonces()
}

// TestWelcomeWithoutItsCommit is given up one day.
func TestWelcomeWithoutItsCommit(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	welcome, err := rooms.Encode(&rooms.WelcomeContent{
		Room: room, Ref: rooms.Hash{7}, Cfg: rooms.Hash{8}, CommitEvent: "$nowhere", Welcome: rooms.Bytes{1},
		Snapshot: rooms.Snapshot{Tree: rooms.Bytes{1}, TreeHash: rooms.Bytes{1}, AtCommit: rooms.Hash{7}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.s.mu.Lock()
	q := string(bob.UserID()) + "/" + string(bob.DeviceID())
	w.s.toDevice[q] = append(w.s.toDevice[q], &Event{Type: rooms.TypeWelcome, Sender: alice.UserID(), Content: welcome})
	w.s.mu.Unlock()
	for range 10 {
		w.now.add(30 * time.Second)
		w.settle()
	}
	if waiting := bob.waiting(room); len(waiting) != 1 {
		t.Fatalf("%d events wait, want the Welcome: %v", len(waiting), waiting)
	}
	bob.skew = welcomeAge + time.Minute
	w.settle()
	if waiting := bob.waiting(room); len(waiting) != 0 {
		t.Errorf("after a day they still wait for %v", waiting)
	}
}

func TestRoomEventsDoNotPushOutAWelcome(t *testing.T) {
	w := newWorld(t)
	dave := w.device("dave", "DAVE1")
	const room = id.RoomID("!later:" + testServer)
	dave.mu.Lock()
	defer dave.mu.Unlock()
	r := dave.newRoom(room)
	dave.rooms[room] = r
	sender := id.UserID("@inviter:" + testServer)
	add := func(name, eventType string, toDevice bool) {
		raw, err := json.Marshal(inboxData{Event: &Event{ID: id.EventID(name), RoomID: room, Type: eventType, Sender: sender}, ToDevice: toDevice, At: dave.now().UnixMilli()})
		if err == nil {
			err = dave.st.AddInbox(w.ctx, &store.InboxItem{Room: room, EventID: id.EventID(name), Data: raw, WaitsFor: "join:"})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("welcome", rooms.TypeWelcome, true)
	sender = "@liar:" + testServer
	for i := range dave.limits.Waiting + 5 {
		add(fmt.Sprint("$event", i), rooms.TypeCommit, false)
	}
	for i := range maxWelcomesWaiting + 5 {
		add(fmt.Sprint("forged", i), rooms.TypeWelcome, true)
	}
	if err := dave.drain(w.ctx, r); err != nil {
		t.Fatal(err)
	}
	kept := map[string]int{}
	for _, item := range w.inbox(dave, room) {
		kept[item.Event.Type]++
		kept[string(item.Event.ID)]++
	}
	if kept[rooms.TypeCommit] != dave.limits.Waiting || kept[rooms.TypeWelcome] != maxWelcomesBy+1 || kept["welcome"] != 1 {
		t.Errorf("kept %v, want %d events and %d Welcomes with the first", kept, dave.limits.Waiting, maxWelcomesBy+1)
	}
	if last := fmt.Sprint("forged", maxWelcomesWaiting+4); kept[last] != 1 || kept["forged0"] != 0 {
		t.Errorf("of one sender's Welcomes %d of the newest and %d of the oldest are kept", kept[last], kept["forged0"])
	}
	// Many senders together get no more than there is room for, and those who sent
	// most lose first.
	for i := range maxWelcomesWaiting {
		sender = id.UserID(fmt.Sprintf("@liar%d:%s", i/2, testServer))
		add(fmt.Sprint("more", i), rooms.TypeWelcome, true)
	}
	if err := dave.drain(w.ctx, r); err != nil {
		t.Fatal(err)
	}
	kept = map[string]int{}
	for _, item := range w.inbox(dave, room) {
		if item.ToDevice {
			kept["all"]++
			kept[string(item.Event.Sender)]++
		}
	}
	if kept["all"] != maxWelcomesWaiting || kept["@liar:"+testServer] > 2 || kept["@inviter:"+testServer] != 1 {
		t.Errorf("kept %v, want %d Welcomes in all, of the busiest sender no more than of others, and that of the inviter", kept, maxWelcomesWaiting)
	}
}

// inbox returns what waits in a device's inbox.
func (w *world) inbox(d *testDevice, room id.RoomID) (out []inboxData) {
	w.t.Helper()
	items, err := d.st.Inbox(w.ctx, room)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, item := range items {
		if err := d.st.LoadInbox(w.ctx, item); err != nil {
			w.t.Fatal(err)
		}
		var data inboxData
		if err := json.Unmarshal(item.Data, &data); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, data)
	}
	return out
}

// TestInviteAcceptedAfterTheListChanged: the Welcome of somebody who takes their
// time opens an epoch under the list of that time, though the modules show heads
// under another one by then.
func TestInviteAcceptedAfterTheListChanged(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle(alice, bob, carol)
	w.send(bob, room, "under the first list")
	first, ok := alice.rooms[room].machine.ConfigAt(alice.rooms[room].machine.Head())
	if !ok {
		t.Fatal("alice does not know the list")
	}
	w.must(func() error { return alice.SetSequencers(w.ctx, room, testServer, "two.example", "three.example") })
	w.settle(alice, bob, carol)
	w.wantServers(room, []*testDevice{alice, bob, carol}, testServer, "two.example", "three.example")
	w.send(carol, room, "under the second list")
	// What dave enters is looked at before anything above it is final here.
	receipts := []string{rooms.TypeAccept, rooms.TypeVote, rooms.TypeReady}
	w.s.mu.Lock()
	for _, kind := range receipts {
		w.s.held[kind] = true
	}
	w.s.mu.Unlock()
	w.join(dave, room)
	for range 10 {
		dave.turn()
	}
	dave.mu.Lock()
	if m := dave.rooms[room].machine; m == nil {
		t.Error("dave did not enter by the Welcome")
	} else if got, ok := m.ConfigAt(federation.Ref(dave.rooms[room].rec.JoinRef)); !ok || got != first {
		t.Errorf("dave takes the list of then for that of %s (%v), want %s", got.Short(), ok, first.Short())
	}
	dave.mu.Unlock()
	w.s.mu.Lock()
	for _, kind := range receipts {
		w.s.held[kind] = false
	}
	w.s.mu.Unlock()
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
	dave.wantTexts("under the first list", "under the second list")
	w.wantServers(room, []*testDevice{dave}, testServer, "two.example", "three.example")
	if n := dave.Refusals()[string(rooms.RuleReceiptForged)]; n != 0 {
		t.Errorf("%d receipts count as forged", n)
	}
}

// TestInviteAcceptedAfterItsModulesWentAway: if no module shows a head, a Welcome waits
// for one, and does not look again and again. The list that it names may be gone by then.
func TestInviteAcceptedAfterItsModulesWentAway(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(func(p *rooms.Policy) { p.Manual = true })
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle(alice, bob, carol)
	w.must(func() error { return alice.SetSequencers(w.ctx, room, "two.example", "three.example") })
	w.settle(alice, bob, carol)
	w.wantServers(room, []*testDevice{alice, bob, carol}, "two.example", "three.example")
	w.module.down = true
	heads := w.hideAll(func(evt *Event) bool {
		return evt.RoomID == room && evt.Type == rooms.TypeHead
	})
	if _, err := dave.hs.Join(w.ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		dave.turn()
	}
	if waiting := dave.waiting(room); !slices.Contains(waiting, "head:") {
		t.Fatalf("no Welcome waits for a head: %q", waiting)
	}
	select {
	case <-dave.wake:
	default:
	}
	for range 3 {
		dave.Step(w.ctx)
		select {
		case <-dave.wake:
			t.Fatal("the engine asks to be woken though nothing came")
		default:
		}
	}
	for _, evt := range heads {
		w.show(evt)
	}
	for range 5 {
		dave.turn()
	}
	if waiting := dave.waiting(room); slices.Contains(waiting, "head:") || dave.epoch(room) == 0 {
		t.Errorf("dave is in epoch %d, events wait for %q", dave.epoch(room), waiting)
	}
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
}

// TestNewcomerIsNotMisledForGood: a Welcome may come with the wrong list, whose
// receipts then seem to be forged. Its device joins again by what modules prove.
func TestNewcomerIsNotMisledForGood(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(nil)
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle(alice, bob, carol)
	w.s.mu.Lock()
	changed := 0
	for _, evt := range w.s.toDevice[string(dave.UserID())+"/"+string(dave.DeviceID())] {
		if welcome, err := rooms.DecodeWelcome(evt.Content); err == nil {
			welcome.Cfg[0] ^= 1
			if evt.Content, err = rooms.Encode(welcome); err != nil {
				t.Fatal(err)
			}
			changed++
		}
	}
	w.s.mu.Unlock()
	if changed != 1 {
		t.Fatalf("%d Welcomes for dave, want 1", changed)
	}
	w.rest()
	w.join(dave, room)
	w.settle()
	for range 5 {
		w.now.add(lagRejoin)
		w.settle()
	}
	w.send(alice, room, "hello dave")
	w.settle()
	w.sameEpoch(room, alice, bob, carol, dave)
	if texts := dave.texts(); len(texts) == 0 || texts[len(texts)-1] != "hello dave" {
		t.Errorf("dave reads %q", texts)
	}
}

// TestWelcomeWithAnotherEra: a Welcome that names another era than its list was set
// in would have its device refuse the commit that opens the next one.
func TestWelcomeWithAnotherEra(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.federated(nil)
	w.rest()
	dave := w.device("dave:two.example", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle(alice, bob, carol)
	w.s.mu.Lock()
	changed := 0
	for _, evt := range w.s.toDevice[string(dave.UserID())+"/"+string(dave.DeviceID())] {
		if welcome, err := rooms.DecodeWelcome(evt.Content); err == nil {
			welcome.Era += 3
			if evt.Content, err = rooms.Encode(welcome); err != nil {
				t.Fatal(err)
			}
			changed++
		}
	}
	w.s.mu.Unlock()
	if changed != 1 {
		t.Fatalf("%d Welcomes for dave, want 1", changed)
	}
	w.join(dave, room)
	for range 5 {
		w.now.add(joinRetry)
		w.settle()
	}
	if n := dave.Refusals()[string(rooms.RuleWelcomeNotForUs)]; n != 1 {
		t.Errorf("%d Welcomes were refused, want 1", n)
	}
	w.sameEpoch(room, alice, bob, carol, dave)
	dave.mu.Lock()
	defer dave.mu.Unlock()
	if got, _ := dave.rooms[room].machine.EraOf(); got != 0 {
		t.Errorf("dave is in era %d, want 0", got)
	}
}

// TestMediaThatCannotBeHad: what waits for a file goes on when the program was
// started anew, and is refused once the file cannot be had and it does not matter
// any more.
func TestMediaThatCannotBeHad(t *testing.T) {
	for _, restart := range []bool{true, false} {
		t.Run(map[bool]string{true: "started anew", false: "given up"}[restart], func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, _ := w.three("shared")
			w.module.down = true
			bob.mu.Lock()
			head := bob.rooms[room].machine.Head()
			bob.mu.Unlock()
			number := bob.epoch(room) + 1
			if !restart { // it lies below what bob keeps
				number = bob.rooms[room].rec.JoinEpoch
			}
			data := []byte("no bundle of a commit")
			const mxc = "mxc://" + testServer + "/later"
			raw, err := rooms.Encode(&rooms.CommitContent{Epoch: number, Parent: rooms.Hash(head), File: rooms.NewFile(mxc, data)})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := alice.hs.Send(w.ctx, room, rooms.TypeCommit, "by-media", raw); err != nil {
				t.Fatal(err)
			}
			bob.turn()
			if waiting := bob.waiting(room); !slices.Equal(waiting, []string{"media:" + fileKey(rooms.NewFile(mxc, data))}) {
				t.Fatalf("bob waits for %q, want the file", waiting)
			}
			want := string(rooms.RuleMediaHash)
			if restart {
				w.s.mu.Lock()
				w.s.media[mxc] = data
				w.s.mu.Unlock()
				bob.restart()
				want = string(rooms.RuleContentMalformed) // it was looked at
			}
			for range 12 {
				bob.turn()
				w.now.add(10 * time.Second)
			}
			if waiting := bob.waiting(room); len(waiting) != 0 {
				t.Errorf("bob still waits for %q", waiting)
			}
			if n := bob.Refusals()[want]; n == 0 {
				t.Errorf("no event was refused by %s: %v", want, bob.Refusals())
			}
		})
	}
}

// TestMediaThatComesLate: across a cut, a homeserver has the event of a large commit
// before its file. What was said in between is read all the same.
func TestMediaThatComesLate(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	before := alice.epoch(room)
	bob.dead = true
	w.device("dave", "DAVE1").dead = true
	w.must(func() error { return alice.Invite(w.ctx, room, "@dave:"+testServer) })
	w.settle()
	w.send(carol, room, "in between")
	w.settle()
	mxc, data := w.toMedia(before + 1)
	bob.dead = false
	for range 12 {
		bob.turn()
		w.now.add(10 * time.Second)
	}
	if got := bob.epoch(room); got != before {
		t.Fatalf("bob is in epoch %d without the file, want %d", got, before)
	}
	bob.restart()
	bob.turn()
	w.s.mu.Lock()
	w.s.media[mxc] = data
	w.s.mu.Unlock()
	w.now.add(2 * time.Minute)
	w.settle()
	bob.wantTexts("in between")
	w.sameEpoch(room, alice, bob, carol)
	if now := alice.epoch(room); now != before+1 {
		t.Errorf("epoch %d, want %d: bob joined again", now, before+1)
	}
}

// toMedia moves what a commit event holds into a file, as if it had been too large
// for the event. The file is not there yet.
func (w *world) toMedia(epoch uint64) (mxc string, data []byte) {
	w.t.Helper()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for _, evt := range w.s.log {
		content, err := rooms.DecodeCommit(evt.Content)
		if evt.Type != rooms.TypeCommit || err != nil || content.Epoch != epoch {
			continue
		}
		if data, err = content.Bundle().Encode(); err != nil {
			w.t.Fatal(err)
		}
		mxc = "mxc://" + testServer + "/late"
		if evt.Content, err = rooms.Encode(&rooms.CommitContent{
			Epoch: content.Epoch, Parent: content.Parent, ParentEvent: content.ParentEvent, File: rooms.NewFile(id.ContentURIString(mxc), data),
		}); err != nil {
			w.t.Fatal(err)
		}
		return mxc, data
	}
	w.t.Fatal("there is no such commit")
	return "", nil
}
