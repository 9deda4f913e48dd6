package appservice

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
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

func TestEngineJoinsAndSaysWhoItIs(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		hs := newRoomHS()
		m := newModule(t, dbCfg, hs)
		r := newRoom(t, hs, "!room:mls.test")
		m.settle()
		head := r.keys()
		if len(head.ReceiptKey) != 32 || len(head.ExternalSenders) != 5 || head.Server != "mls.test" || head.Accepted != nil {
			t.Errorf("got head %+v, want a key, a sender for each of 5 schemes and no group", head)
		}
		if heads := hs.events(r.id, rooms.TypeHead); len(heads) != 1 || heads[0].StateKey == nil || *heads[0].StateKey != string(bot) {
			t.Errorf("got %d heads, want one state event under the bot's name", len(heads))
		}
		m.start()
		m.settleFor(5 * time.Second)
		if got := len(hs.events(r.id, rooms.TypeHead)); got != 1 {
			t.Errorf("after a restart the module said it again: %d heads", got)
		}
	})
}

// TestEngineSaysItAgainOnceItMaySetState: what stands in the timeline only is
// missed by whoever begins to follow the room later.
func TestEngineSaysItAgainOnceItMaySetState(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		hs := newRoomHS()
		m := newModule(t, dbCfg, hs)
		const room = "!plain:mls.test"
		hs.state(room, alice, rooms.TypeCreate, "", map[string]any{"creator": alice})
		hs.state(room, alice, rooms.TypeMember, string(alice), map[string]any{"membership": "join"})
		hs.state(room, alice, rooms.TypePowerLevels, "", map[string]any{"users": map[id.UserID]int{alice: 100}})
		hs.state(room, alice, rooms.TypeMember, string(bot), map[string]any{"membership": "invite"})
		m.settle()
		if heads := hs.events(room, rooms.TypeHead); len(heads) != 1 || heads[0].StateKey != nil {
			t.Fatalf("got %d heads without power, want one in the timeline", len(heads))
		}
		m.start() // what it remembers of its head outlives a restart
		hs.state(room, alice, rooms.TypePowerLevels, "", map[string]any{"users": map[id.UserID]int{alice: 100}, "events": map[string]int{rooms.TypeHead: 0}})
		m.settleFor(5 * time.Second)
		heads := hs.events(room, rooms.TypeHead)
		if len(heads) != 2 || heads[1].StateKey == nil || *heads[1].StateKey != string(bot) {
			t.Fatalf("got %d heads, want a second one, as state", len(heads))
		}
		m.settleFor(time.Minute)
		if got := len(hs.events(room, rooms.TypeHead)); got != len(heads) {
			t.Errorf("the module said it %d times more", got-len(heads))
		}
	})
}

func TestEngineLeavesARoomOfAnotherAlgorithm(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		hs := newRoomHS()
		m := newModule(t, dbCfg, hs)
		const room = "!megolm:mls.test"
		hs.state(room, alice, rooms.TypeCreate, "", map[string]any{"creator": alice})
		hs.state(room, alice, rooms.TypeEncryption, "", map[string]any{"algorithm": "m.megolm.v1.aes-sha2"})
		hs.state(room, alice, rooms.TypeMember, string(bot), map[string]any{"membership": "invite"})
		m.settle()
		got, err := m.st.Room(m.ctx, room)
		must(t, err)
		if got.Status != store.RoomLeft || len(hs.events(room, rooms.TypeHead)) != 0 {
			t.Errorf("got status %s, want left, and no head", got.Status)
		}
	})
}

func TestEngineAcceptsOneOfTwo(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, b := pair(t, dbCfg)
		first := r.post(r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		got := r.accepts()
		if len(got) != 2 || got[1] != first.ref {
			t.Fatalf("got accepts %v, want %v last", got, first.ref)
		}
		r.merge(first)
		// A commit on top by another user vouches; the vote follows.
		second := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settleFor(6 * time.Second)
		if mach := m.machine(r.id); mach.Head() != second.ref || mach.NewestFinal() != first.ref {
			t.Errorf("got head %s and final %s, want %s and %s", mach.Head().Short(), mach.NewestFinal().Short(), second.ref.Short(), first.ref.Short())
		}
		if got := m.refusals(); len(got) != 0 {
			t.Errorf("refused: %v", got)
		}
	})
}

func TestEngineSurvivesACrashBetweenPersistAndSend(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, _ := pair(t, dbCfg)
		c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.deliver()
		rows, err := m.st.NextInbox(m.ctx, 10)
		must(t, err)
		for _, ev := range rows {
			must(t, m.e.HandleEvent(m.ctx, ev))
		}
		_, err = m.e.Tick(m.ctx, m.now)
		must(t, err)
		waiting, err := m.st.RoomOutbox(m.ctx, r.id, store.OutboxWaiting, 10)
		must(t, err)
		if len(waiting) != 1 || waiting[0].Type != rooms.TypeAccept {
			t.Fatalf("got %d rows to send, want one accept", len(waiting))
		}
		m.start() // the accept was not sent
		m.settle()
		accepts := r.hs.events(r.id, rooms.TypeAccept)
		if len(accepts) != 2 || string(accepts[1].Content) != string(waiting[0].Content) {
			t.Fatalf("got %d accepts, want the persisted one sent unchanged", len(accepts))
		}
		if m.machine(r.id).Head() != c.ref {
			t.Error("the head is not the accepted commit")
		}
	})
}

func TestEngineFindsWhatWasNotPushed(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, b := pair(t, dbCfg)
		muted := true
		r.hs.mute = func(ev *homeserver.Event) bool { return muted && ev.Sender != bot }
		lost := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		r.merge(lost)
		muted = false
		// The next commit names the lost one.
		seen := r.post(r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settleFor(3 * time.Second)
		if got := m.machine(r.id).Head(); got != seen.ref {
			t.Errorf("got head %s, want %s", got.Short(), seen.ref.Short())
		}
		// A whole chain that nothing names is found by the comparison at start.
		r.merge(seen)
		muted = true
		var last *madeCommit
		for range 25 {
			last = r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
			r.merge(last)
		}
		m.start()
		m.settleFor(3 * time.Second)
		if got := m.machine(r.id).Head(); got != last.ref {
			t.Errorf("got head %s, want %s", got.Short(), last.ref.Short())
		}
	})
}

func TestEngineAsksTheRoomForWhatNoServerHas(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, b := pair(t, dbCfg)
		lost := r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
		lost.event = "$nobody-serves-it"
		r.merge(lost)
		seen := r.post(r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settleFor(2 * time.Minute)
		asked := r.hs.events(r.id, rooms.TypeRequest)
		if len(asked) == 0 || len(asked) > 4 {
			t.Fatalf("asked %d times in the room, want a few", len(asked))
		}
		req, err := rooms.DecodeRequest(asked[0].Content)
		must(t, err)
		if len(req.Refs) != 1 || federation.Ref(req.Refs[0]) != lost.ref {
			t.Fatalf("asked for %v, want %v", req.Refs, lost.ref)
		}
		raw, err := rooms.Encode(&rooms.RepostContent{Type: rooms.TypeCommit, Sender: alice, Content: lost.raw})
		must(t, err)
		r.hs.add(r.id, bob, rooms.TypeRepost, nil, raw)
		m.settleFor(3 * time.Second)
		if got := m.machine(r.id).Head(); got != seen.ref {
			t.Errorf("got head %s, want %s", got.Short(), seen.ref.Short())
		}
	})
}

func TestEnginePostsAgainWhatOthersLack(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, _, _ := pair(t, dbCfg)
		accepts, err := m.st.Receipts(m.ctx, r.id)
		must(t, err)
		hash, err := federation.ParseRef(accepts[0].Hash)
		must(t, err)
		raw, err := rooms.Encode(&rooms.RequestContent{Refs: []rooms.Hash{rooms.Hash(r.head)}, Receipts: []rooms.Hash{rooms.Hash(hash)}, Nonce: "x"})
		must(t, err)
		for range 3 {
			r.hs.add(r.id, bob, rooms.TypeRequest, nil, raw)
		}
		m.settle()
		var kinds []string
		for _, ev := range r.hs.events(r.id, rooms.TypeRepost) {
			c, err := rooms.DecodeRepost(ev.Content)
			must(t, err)
			kinds = append(kinds, c.Type)
		}
		if strings.Join(kinds, " ") != rooms.TypeCommit+" "+rooms.TypeAccept {
			t.Errorf("got %v, want the commit and the accept once", kinds)
		}
		r.hs.add(r.id, "@stranger:far.test", rooms.TypeRequest, nil, raw)
		m.settle()
		if got := m.refusals(); len(got) != 1 || !strings.HasPrefix(got[0], string(rooms.RuleMemberNotInRoom)) {
			t.Errorf("got refusals %v, want the stranger's request", got)
		}
	})
}

// TestEngineShowsItsHeadAnewToWhoAsks: a member whose homeserver keeps the newest head to
// itself gets another one, at most once in a minute, whoever asks how often.
func TestEngineShowsItsHeadAnewToWhoAsks(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, _, _ := pair(t, dbCfg)
		m.settleFor(5 * time.Minute) // nothing is due any more
		before := len(r.hs.events(r.id, rooms.TypeHead))
		for minute := range 2 {
			for _, nonce := range []string{"one", "two", "three"} {
				raw, err := rooms.Encode(&rooms.RequestContent{Heads: true, Nonce: nonce})
				must(t, err)
				r.hs.add(r.id, bob, rooms.TypeRequest, nil, raw)
				m.settleFor(10 * time.Second)
			}
			heads := r.hs.events(r.id, rooms.TypeHead)
			if got := len(heads) - before; got != minute+1 {
				t.Fatalf("%d heads in the %d. minute, want %d", got, minute+1, minute+1)
			}
			head, err := rooms.DecodeHead(heads[len(heads)-1].Content)
			must(t, err)
			if federation.Ref(head.Accepted.Ref) != r.head || len(head.Answers) > 0 {
				t.Errorf("the head shows %x and answers %q", head.Accepted.Ref, head.Answers)
			}
			m.settleFor(time.Minute)
		}
		raw, err := rooms.Encode(&rooms.RequestContent{Heads: true, Nonce: "four"})
		must(t, err)
		r.hs.add(r.id, "@stranger:far.test", rooms.TypeRequest, nil, raw)
		m.settleFor(time.Minute)
		if got := len(r.hs.events(r.id, rooms.TypeHead)) - before; got != 2 {
			t.Errorf("%d heads after a stranger asked, want 2", got)
		}
	})
}

func TestEngineProposesToRemoveWhoLeft(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, b := pair(t, dbCfg)
		left := r.hs.state(r.id, bob, rooms.TypeMember, string(bob), map[string]any{"membership": "leave"})
		m.settleFor(2 * time.Second)
		proposals := r.hs.events(r.id, rooms.TypeProposal)
		if len(proposals) != 1 {
			t.Fatalf("got %d proposals, want 1", len(proposals))
		}
		p, err := rooms.DecodeProposal(proposals[0].Content)
		must(t, err)
		if p.Reason != left.ID || federation.Ref(p.Parent) != r.head {
			t.Errorf("got reason %s on %x, want %s on the head", p.Reason, p.Parent, left.ID)
		}
		m.start()
		m.settleFor(5 * time.Second)
		if got := len(r.hs.events(r.id, rooms.TypeProposal)); got != 1 {
			t.Fatalf("after a restart: %d proposals for one epoch", got)
		}
		// Another epoch begins without the removal: it is proposed again.
		c := r.post(r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settleFor(2 * time.Second)
		r.merge(c)
		proposals = r.hs.events(r.id, rooms.TypeProposal)
		if len(proposals) != 2 {
			t.Fatalf("got %d proposals, want a second one for the new epoch", len(proposals))
		}
		// Alice, who skips it for long, is not accepted.
		m.settleFor(15 * time.Second)
		n := len(r.accepts())
		r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		if got := len(r.accepts()); got != n {
			t.Fatal("a commit that leaves the removal out was accepted")
		}
		p, err = rooms.DecodeProposal(proposals[1].Content)
		must(t, err)
		msg, err := mls.ParseMessage(p.Message)
		must(t, err)
		if _, err := a.group.Process(msg); err != nil {
			t.Fatalf("members do not take the module's proposal: %v", err)
		}
		good := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{Pending: true}, p.Message))
		m.settleFor(2 * time.Second)
		if got := m.machine(r.id).Head(); got != good.ref {
			t.Fatalf("got head %s, want the removal %s; refused: %v", got.Short(), good.ref.Short(), m.refusals())
		}
		if got := len(r.hs.events(r.id, rooms.TypeProposal)); got != 2 {
			t.Errorf("got %d proposals after the removal, want 2", got)
		}
	})
}

func TestEnginePublishesTheHeadForNewcomers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, _, _ := pair(t, dbCfg)
		m.settleFor(5 * time.Second)
		r.hs.state(r.id, carol, rooms.TypeMember, string(carol), map[string]any{"membership": "join"})
		m.settleFor(3 * time.Second)
		head := r.keys()
		if head.Accepted == nil || federation.Ref(head.Accepted.Ref) != r.head || head.Snapshot == nil || head.Root == nil || head.Final == nil {
			t.Fatalf("got head %+v, want the newest commit with a tree", head)
		}
		proof := []byte(head.Proof)
		if head.ProofFile != nil {
			proof = r.hs.media[head.ProofFile.MXC]
		}
		if got, err := head.Check(r.id, proof); err != nil || got.Creator != alice || len(got.Attested) != 1 {
			t.Errorf("the head does not prove its final commit from the group's beginning: %v", err)
		}
		gi, err := head.Parse()
		must(t, err)
		d := newDevice(t, carol, "TABLET")
		by := r.members[0]
		admission, err := rooms.SignAdmission(by.group, r.id, r.head, by.group.OwnLeafIndex(), by.key, carol, nil)
		must(t, err)
		aad := rooms.CommitAAD{Parent: r.head, Admissions: []rooms.Admission{*admission}}
		raw, err := aad.Encode()
		must(t, err)
		staged, err := mls.ExternalJoin(d.cfg, gi, d.key, mls.ExternalJoinOptions{Leaf: rooms.LeafOptions(d.cred), RatchetTree: head.Snapshot.Tree, AuthenticatedData: raw})
		must(t, err)
		c := r.post(r.made(d, staged, nil))
		m.settle()
		if got := m.machine(r.id).Head(); got != c.ref {
			t.Errorf("got head %s, want the newcomer's commit; refused: %v", got.Short(), m.refusals())
		}
	})
}

func TestEngineRebuildsFromTheRoomAfterDatabaseLoss(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, b := pair(t, dbCfg)
		for i := range 30 {
			c := r.post(r.make([]*device{a, b}[i%2], rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
			m.settle()
			r.merge(c)
		}
		m.settleFor(6 * time.Second)
		before := m.machine(r.id)
		head, final := before.Head(), before.NewestFinal()
		accepts := len(r.accepts())

		// The database is gone, with the receipt key in it.
		r.hs.pushed = nil
		n := newModuleWithKeys(t, freshDatabase(t, dbCfg), r.hs, 9)
		must(t, n.st.NoteRoom(n.ctx, r.id, store.RoomJoined)) // as the comparison with the homeserver's list does
		n.now = 2 * time.Minute
		n.settleFor(5 * time.Second)
		after := n.machine(r.id)
		if after.Head() != head || after.NewestFinal() != final {
			t.Fatalf("got head %s and final %s, want %s and %s; refused: %v", after.Head().Short(), after.NewestFinal().Short(), head.Short(), final.Short(), n.refusals())
		}
		// It announces its new key and signs nothing with it.
		c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		n.settleFor(6 * time.Second)
		if len(r.accepts()) != accepts {
			t.Fatal("the module signed with a key that the room does not list")
		}
		said := r.keys()
		if string(said.ReceiptKey) == string(m.e.keys(m.e.rooms[r.id]).ReceiptKey) {
			t.Fatal("the new key was not announced")
		}
		_ = c

		// An admin's client moves the room to the new key by an era commit.
		policy, err := rooms.PolicyOf(a.group)
		must(t, err)
		policy.Sequencers = []federation.Sequencer{{Server: "mls.test", User: string(bot), ReceiptKey: said.ReceiptKey}}
		sender, err := rooms.ModuleSender(bot, said, engineSuite)
		must(t, err)
		exts, err := rooms.GroupExtensions(policy, []mls.ExternalSender{sender})
		must(t, err)
		era := r.post(r.make(a, rooms.CommitAAD{Era: 1}, mls.CommitOptions{Proposals: []mls.Proposal{mls.GroupContextExtensions(exts)}}))
		n.settle()
		r.merge(era)
		r.apply(b, r.head, b.group.EpochAuthenticator())
		n.settle()
		if got := after.Head(); got != era.ref {
			t.Fatalf("got head %s, want the era %s; refused: %v", got.Short(), era.ref.Short(), n.refusals())
		}
		next := r.post(r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		n.settle()
		if got := r.accepts(); len(got) != accepts+1 || got[accepts] != next.ref {
			t.Fatalf("got %d accepts, want one more under the new key; refused: %v", len(got), n.refusals())
		}
	})
}

func TestEngineRefusesAndGoesOn(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, b := pair(t, dbCfg)
		bad := r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
		// Sent by another user than the one whose device committed.
		r.hs.add(r.id, carol, rooms.TypeCommit, nil, bad.raw)
		r.hs.add(r.id, bob, rooms.TypeCommit, nil, map[string]any{"epoch": "seven"})
		r.hs.add(r.id, bob, rooms.TypeAccept, nil, map[string]any{})
		r.hs.add(r.id, bob, rooms.TypeCommit, nil, map[string]any{}) // redacted
		c, err := rooms.DecodeCommit(bad.raw)
		must(t, err)
		c.Message[len(c.Message)-40] ^= 1 // the confirmation tag, which the GroupInfo does not have then
		swapped, err := rooms.Encode(c)
		must(t, err)
		r.hs.add(r.id, bob, rooms.TypeCommit, nil, swapped)
		again := *c
		again.Epoch, again.Parent, again.ParentEvent, again.Message = 0, rooms.Hash{}, "", nil
		m.settle()
		n := len(m.refusals())
		if n != 5 {
			t.Fatalf("got %d refusals: %v", n, m.refusals())
		}
		if got := len(r.accepts()); got != 1 {
			t.Fatalf("got %d accepts, want no more", got)
		}
		good := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		if got := m.machine(r.id).Head(); got != good.ref {
			t.Errorf("got head %s, want the good commit behind the bad ones", got.Short())
		}
	})
}

func TestEngineTakesCommitsFromMedia(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, b := pair(t, dbCfg)
		file := func(c *madeCommit, spoil bool) {
			content, err := rooms.DecodeCommit(c.raw)
			must(t, err)
			data, err := content.Bundle().Encode()
			must(t, err)
			uri, err := r.hs.Upload(m.ctx, data, "")
			must(t, err)
			content.File = rooms.NewFile(uri, data)
			content.Message, content.Proposals, content.GroupInfo = nil, nil, nil
			if spoil {
				r.hs.media[uri] = append([]byte{1}, data[1:]...)
				r.hs.media[uri][40] ^= 1
			}
			c.raw, err = rooms.Encode(content)
			must(t, err)
		}
		spoiled := r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
		file(spoiled, true)
		r.post(spoiled)
		good := r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
		file(good, false)
		r.post(good)
		m.settleFor(2 * time.Second)
		if got := m.machine(r.id).Head(); got != good.ref {
			t.Errorf("got head %s, want %s", got.Short(), good.ref.Short())
		}
		if got := m.refusals(); len(got) != 1 || !strings.HasPrefix(got[0], string(rooms.RuleMediaHash)) {
			t.Errorf("got refusals %v, want the spoiled media", got)
		}
	})
}

func TestEngineIsQuietWhileAServerJoins(t *testing.T) {
	hs := newRoomHS()
	m := newModule(t, storetest.SQLite(t), hs)
	r := newRoom(t, hs, "!room:mls.test")
	m.settle()
	for _, step := range []struct {
		user       id.UserID
		membership string
		want       int
	}{
		{"@dave:mls.test", "join", 0},       // a user of the own server
		{bob, "invite", 0},                  // joins when it likes
		{"@_mls_bot:far.test", "invite", 1}, // joins at once
		{bob, "join", 2},                    // the first of its server
		{carol, "join", 2},                  // the second
	} {
		hs.state(r.id, alice, rooms.TypeMember, string(step.user), map[string]any{"membership": step.membership})
		m.settle()
		if len(m.held) != step.want {
			t.Errorf("%s of %s: the room was kept quiet %d times, want %d", step.membership, step.user, len(m.held), step.want)
		}
	}
}

func TestEngineIsQuietUntilAJoiningModuleSpeaks(t *testing.T) {
	hs := newRoomHS()
	m := newModule(t, storetest.SQLite(t), hs)
	r := newRoom(t, hs, "!room:mls.test")
	m.settle()
	const module id.UserID = "@_mls_bot:far.test"
	hs.state(r.id, module, rooms.TypeMember, string(module), map[string]any{"membership": "join"})
	m.settle()
	if len(m.held) != 1 || m.held[0] != moduleQuiet {
		t.Fatalf("the room was kept quiet for %v, want once for %v", m.held, moduleQuiet)
	}
	hs.add(r.id, bob, rooms.TypeReceipt, nil, map[string]any{})
	m.settle()
	if len(m.held) != 1 {
		t.Errorf("somebody else's event ended the quiet: %v", m.held)
	}
	hs.add(r.id, module, rooms.TypeReceipt, nil, map[string]any{})
	m.settle()
	if len(m.held) != 2 || m.held[1] != 0 {
		t.Errorf("the module spoke, and the room is quiet still: %v", m.held)
	}
}

func TestEngineSendsARefusedReceiptAgainUnchanged(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, _ := pair(t, dbCfg)
		r.hs.deny = func(kind, _ string) error {
			if kind == rooms.TypeAccept {
				return &homeserver.Error{Op: "send", Kind: homeserver.ErrForbidden, Status: 403}
			}
			return nil
		}
		r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		rows, err := m.st.RoomOutbox(m.ctx, r.id, store.OutboxWaiting, 10)
		must(t, err)
		refused, err := m.st.RoomOutbox(m.ctx, r.id, store.OutboxRefused, 10)
		must(t, err)
		if len(rows) != 1 || len(refused) != 1 || string(rows[0].Content) != string(refused[0].Content) || rows[0].NotUntil.IsZero() {
			t.Fatalf("got %d rows waiting and %d refused, want the same accept once more, later", len(rows), len(refused))
		}
	})
}

func TestEngineSignsNothingBeforeItComparedTheRoom(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, _ := pair(t, dbCfg)
		m.start()
		r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.deliver()
		rows, err := m.st.NextInbox(m.ctx, 10)
		must(t, err)
		m.now += time.Hour
		for _, ev := range rows {
			must(t, m.e.HandleEvent(m.ctx, ev))
		}
		waiting, err := m.st.RoomOutbox(m.ctx, r.id, store.OutboxWaiting, 10)
		must(t, err)
		if len(waiting) != 0 {
			t.Fatal("the module signed before it knew its newest receipt in the room")
		}
		m.settle()
		if got := len(r.accepts()); got != 2 {
			t.Fatalf("got %d accepts, want 2 once the room was compared", got)
		}
	})
}

// TestEngineTakesEventsInAnyOrder hands one room's events to fresh modules in
// many orders, with repetitions, and no history to look anything up in.
func TestEngineTakesEventsInAnyOrder(t *testing.T) {
	m, r, a, b := pair(t, storetest.SQLite(t))
	for i := range 12 {
		two := []*madeCommit{
			r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})),
			r.post(r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})),
		}
		m.settle()
		// The one whose user's last accepted commit is older.
		if got := m.machine(r.id).Head(); got != two[(i+1)%2].ref {
			t.Fatalf("step %d: got head %s, want %s", i, got.Short(), two[(i+1)%2].ref.Short())
		}
		r.merge(two[(i+1)%2])
	}
	m.settleFor(6 * time.Second)
	want, final := m.machine(r.id).Head(), m.machine(r.id).NewestFinal()
	all := slices.Clone(r.hs.rooms[r.id])
	for seed := range byte(8) {
		rng := rand.New(rand.NewChaCha8([32]byte{seed, 1}))
		hs := newRoomHS()
		hs.push = false
		hs.rooms[r.id] = all
		hs.hide = func(ev *homeserver.Event) bool { return true }
		n := newModuleWithKeys(t, storetest.SQLite(t), hs, 9) // another key: it only follows
		must(t, n.st.NoteRoom(n.ctx, r.id, store.RoomJoined))
		shuffled := slices.Clone(all)
		rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		for i, ev := range append(shuffled, shuffled[:len(shuffled)/2]...) {
			if ev.StateKey != nil {
				continue
			}
			hs.pushed = append(hs.pushed, ev)
			if rng.IntN(6) == 0 {
				n.settle()
			}
			if rng.IntN(40) == 0 || i == len(all)/2 {
				n.start()
			}
		}
		n.settleFor(5 * time.Second)
		if got := n.machine(r.id); got.Head() != want || got.NewestFinal() != final {
			t.Fatalf("seed %d: got head %s and final %s, want %s and %s; refused: %v", seed,
				got.Head().Short(), got.NewestFinal().Short(), want.Short(), final.Short(), n.refusals())
		}
	}
}

// TestEngineJoinsLateFromThePublishedHead lets another server's module in when
// the room's beginning cannot be had any more.
func TestEngineJoinsLateFromThePublishedHead(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		m, r, a, b := pair(t, dbCfg)
		first := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		r.merge(first)
		const other = id.UserID("@_mls_bot:far.test")
		r.hs.state(r.id, bob, rooms.TypeMember, string(other), map[string]any{"membership": "join"})
		m.settleFor(7 * time.Second)
		known := len(r.hs.rooms[r.id])
		early := make(map[id.EventID]bool)
		for _, ev := range r.hs.rooms[r.id][:known] {
			early[ev.ID] = true
		}
		far := &farHS{roomHS: r.hs, user: other, server: "far.test", hidden: func(ev *homeserver.Event) bool { return early[ev.ID] }}
		n := newModuleWithKeys(t, freshDatabase(t, dbCfg), r.hs, 9)
		n.as = far
		n.start()
		must(t, n.st.NoteRoom(n.ctx, r.id, store.RoomJoined))
		n.now = 2 * time.Minute
		// What a server is given of the time before its users came has no content.
		r.hs.push = false
		r.hs.add(r.id, alice, rooms.TypeCommit, nil, map[string]any{})
		n.settleFor(10 * time.Second)
		if got := n.refusals(); len(got) != 0 {
			t.Errorf("refused: %v", got)
		}
		if got := n.machine(r.id).Head(); got != first.ref {
			t.Fatalf("got head %s, want %s", got.Short(), first.ref.Short())
		}
		r.hs.push = true
		next := r.post(r.make(b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		if got := m.machine(r.id).Head(); got != next.ref {
			t.Fatalf("the first module did not accept: %v", m.refusals())
		}
		must(t, n.e.Recheck(n.ctx))
		n.settleFor(5 * time.Second)
		if got := n.machine(r.id).Head(); got != next.ref {
			t.Fatalf("got head %s, want %s; refused: %v", got.Short(), next.ref.Short(), n.refusals())
		}
	})
}

func freshDatabase(t *testing.T, like store.Config) store.Config {
	t.Helper()
	if like.Type == "postgres" {
		return storetest.Postgres(t)
	}
	return storetest.SQLite(t)
}

func TestPauseGrowsToItsLimit(t *testing.T) {
	var p pause
	var last time.Duration
	for i := range 50 {
		p.fail(0, time.Second, time.Minute)
		if p.until < last || p.until > time.Minute {
			t.Fatalf("try %d: pause %v after %v", i, p.until, last)
		}
		last = p.until
	}
	if last != time.Minute {
		t.Fatalf("got %v, want %v", last, time.Minute)
	}
}

func TestMediaCacheIsBounded(t *testing.T) {
	c := mediaCache{limit: 1000}
	for i := range 100 {
		c.put([32]byte{byte(i)}, make([]byte, 100), nil)
	}
	if c.size > 1000 || len(c.data) > 10 {
		t.Fatalf("holds %d bytes in %d files", c.size, len(c.data))
	}
	c.put([32]byte{200}, nil, errors.New("bad"))
	if _, bad, ok := c.get([32]byte{200}); !ok || bad == nil {
		t.Fatal("a bad download was forgotten at once")
	}
}
