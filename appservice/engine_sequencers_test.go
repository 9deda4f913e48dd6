package appservice

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func diffCounts(a, b map[string]int) map[string]int {
	out := make(map[string]int)
	for k, n := range b {
		if n != a[k] {
			out[k] = n - a[k]
		}
	}
	return out
}

// wantSilence fails if anything at all is posted in the room for an hour.
func (r *worldRoom) wantSilence() {
	r.t.Helper()
	before := r.byType("")
	r.w.run(time.Hour)
	if got := diffCounts(before, r.byType("")); len(got) > 0 {
		r.t.Errorf("an idle room is not silent: %v", got)
	}
}

func TestSequencersPostOneAcceptAndAreSilentWhenIdle(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w := newWorld(t, 3, func(i int) store.Config {
			if i == 0 {
				return cfg
			}
			return freshDatabase(t, cfg)
		})
		r := w.newRoom(3, nil)
		w.run(2 * time.Minute) // heads
		before := r.byType("")
		r.advance(1, 2)
		w.run(15 * time.Second)
		r.wantHead(r.head)
		got := diffCounts(before, r.byType(""))
		if got[rooms.TypeAccept] != 1 || got[rooms.TypeApplied] != 1 || got[rooms.TypeVote] > 3 || got[rooms.TypePromise]+got[rooms.TypeReady]+got[rooms.TypeRepost]+got[rooms.TypeRequest] != 0 {
			t.Errorf("one commit made %v", got)
		}
		w.run(3 * time.Minute)
		r.wantSilence()
	})
}

func TestSequencersBatchTheirVotes(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(3, nil)
	start, before := w.now, r.byType("")
	for range 20 {
		r.advance(1, 2)
	}
	w.run(15 * time.Second)
	r.wantHead(r.head)
	took := w.now - start
	got := diffCounts(before, r.byType(""))
	if got[rooms.TypeAccept] != 20 {
		t.Errorf("%d accepts for 20 commits", got[rooms.TypeAccept])
	}
	for i := range w.servers {
		if most := int(took/(5*time.Second)) + 1; len(r.receipts(i, rooms.TypeVote)) > most+3 {
			t.Errorf("module %d posted %d votes in %v", i, len(r.receipts(i, rooms.TypeVote)), took)
		}
	}
}

func TestSequencersTakeOverFromOneThatIsGone(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(3, nil)
	w.stop(0)
	c := r.update(r.head, 1)
	w.run(29 * time.Second)
	if heads, _ := r.heads(); heads[0] == c.ref {
		t.Fatal("accepted before the takeover's wait was over")
	}
	w.run(3 * time.Second)
	r.apply(c)
	r.vouch(r.devices[2], c.ref)
	w.run(10 * time.Second)
	r.head = c.ref
	r.wantHead(c.ref)
	r.advance(2, 1)
	w.run(10 * time.Second)
	r.wantHead(r.head)
	for i, by := range map[int]string{1: "own", 2: "other"} {
		if got := w.servers[i].metric(metrics.Takeovers, by); got != 1 {
			t.Errorf("server %d: %v takeovers by %s, want 1", i, got, by)
		}
	}
	w.restart(0)
	w.run(time.Minute)
	r.wantHead(r.head)
	r.advance(0, 1)
	w.run(10 * time.Second)
	r.wantHead(r.head)
	w.run(3 * time.Minute)
	r.wantSilence()
	for i, s := range w.servers {
		if got := s.refusals(); len(got) > 0 {
			t.Errorf("server %d refused %v", i, got)
		}
	}
}

func TestSequencersHealAPartition(t *testing.T) {
	for name, alone := range map[string]int{"owner alone": 0, "another alone": 2} {
		t.Run(name, func(t *testing.T) {
			w := sqliteWorld(t, 3)
			r := w.newRoom(3, nil)
			w.run(2 * time.Minute)
			var most []int
			for i := range w.servers {
				if i != alone {
					most = append(most, i)
				}
			}
			fork := r.head
			w.cut([]int{alone}, most)
			a := r.update(fork, alone)
			b := r.update(fork, most[0])
			w.run(10 * time.Minute)
			for i, want := range map[int]*madeCommit{alone: a, most[0]: b, most[1]: b} {
				if got := w.servers[i].machine(r.id).Head(); got != want.ref {
					t.Fatalf("server %d is at %s during the cut, want %s", i, got.Short(), want.ref.Short())
				}
			}
			r.apply(b, most...)
			r.vouch(r.devices[most[1]], b.ref)
			r.apply(a, alone)
			w.run(10 * time.Second)
			if got := w.servers[most[1]].machine(r.id).NewestFinal(); got != b.ref {
				t.Errorf("the majority made %s final, want %s", got.Short(), b.ref.Short())
			}
			w.heal([]int{alone}, most)
			w.run(2 * time.Minute)
			r.wantHead(b.ref)
			r.apply(b)
			r.head = b.ref
			r.advance(alone, most[0])
			w.run(15 * time.Second)
			r.wantHead(r.head)
			w.run(5 * time.Minute)
			r.wantSilence()
		})
	}
}

func TestSequencersRepostWhatAServerSoftFailed(t *testing.T) {
	for name, lost := range map[string]func(w *world, ev *homeserver.Event) bool{
		"an accept": func(w *world, ev *homeserver.Event) bool { return ev.Type == rooms.TypeAccept },
		"a commit":  func(w *world, ev *homeserver.Event) bool { return ev.Type == rooms.TypeCommit },
		"votes":     func(w *world, ev *homeserver.Event) bool { return ev.Type == rooms.TypeVote },
		"all of one server": func(w *world, ev *homeserver.Event) bool {
			return ev.Sender == w.bot(0) && ev.Type != rooms.TypeHead || ev.Sender == w.user(0)
		},
		"all, of all": func(w *world, ev *homeserver.Event) bool {
			return ev.Type != rooms.TypeHead && ev.Type != rooms.TypeRepost
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := sqliteWorld(t, 3)
			r := w.newRoom(3, nil)
			w.run(2 * time.Minute)
			w.refuse = func(at int, ev *homeserver.Event) bool { return at == 2 && lost(w, ev) }
			before := r.byType("")
			r.advance(0, 1)
			w.run(5 * time.Minute)
			r.wantHead(r.head)
			got := diffCounts(before, r.byType(""))
			t.Logf("%v", got)
			if got[rooms.TypeRepost] > 12 || got[rooms.TypeRequest] > 4 {
				t.Errorf("a storm: %v", got)
			}
			r.wantSilence()
		})
	}
}

// chains checks that no module signed two receipts with one counter, and that
// nobody was caught lying.
func (r *worldRoom) wantHonest() {
	r.t.Helper()
	for i, s := range r.w.servers {
		seen := make(map[uint64]string)
		for _, kind := range []string{rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady} {
			for _, ev := range r.receipts(i, kind) {
				got, err := rooms.DecodeReceipt(kind, "", ev.Content)
				must(r.t, err)
				receipt := got.(federation.Receipt)
				hash := receipt.Hash(federation.Scope{Room: string(r.id)}).String()
				if old, ok := seen[receipt.Link().Counter]; ok && old != hash {
					r.t.Errorf("module %d signed two receipts number %d", i, receipt.Link().Counter)
				}
				seen[receipt.Link().Counter] = hash
			}
		}
		for _, why := range s.refusals() {
			if strings.HasPrefix(why, "federation/") {
				r.t.Errorf("server %d: %s", i, why)
			}
		}
	}
}

func TestSequencersCrashBetweenSigningAndSending(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(3, nil)
	w.stop(0) // so that there is a takeover with its promises, too
	crashes := 0
	for round := range 4 {
		c := r.update(r.head, 1+round%2)
		for step := range 40 { // 40 s: accept or promise, votes
			i := 1 + (round+step)%2
			s := w.servers[i]
			s.mute = true
			w.run(500 * time.Millisecond)
			unsent, err := s.st.RoomOutbox(s.ctx, r.id, store.OutboxWaiting, 100)
			must(t, err)
			if len(unsent) > 0 { // else its clocks would never run
				w.restart(i)
				crashes++
			}
			s.mute = false
			w.run(500 * time.Millisecond)
			for _, row := range unsent {
				if row.Type == rooms.TypeHead {
					continue // a newer one may have replaced it
				}
				found := false
				for _, ev := range s.hs.events(r.id, row.Type) {
					found = found || bytes.Equal(ev.Content, row.Content)
				}
				if !found {
					t.Fatalf("what was signed before a crash was not sent as it was: %s", row.Type)
				}
			}
			if w.servers[1].machine(r.id).Accepted(c.ref) && r.groups[r.devices[1]][c.ref] == nil {
				r.apply(c)
				r.vouch(r.devices[2-round%2], c.ref)
			}
		}
		w.run(10 * time.Second)
		r.wantHead(c.ref)
		r.head = c.ref
	}
	if crashes < 8 {
		t.Errorf("only %d crashes", crashes)
	}
	r.wantHonest()
}

func TestSequencersGoToTheNextRoundFromACommitInDoubt(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(3, nil)
	bad := r.update(r.head, 1)
	w.run(time.Second)
	reject, err := rooms.SignReject(engineSuite, r.devices[2].key, federation.Scope{Room: string(r.id), Group: r.groups[r.devices[2]][r.head].GroupID()},
		bad.ref, r.groups[r.devices[2]][r.head].OwnLeafIndex(), "commit/confirmation-tag")
	must(t, err)
	raw, err := rooms.Encode(rooms.RejectOf(reject))
	must(t, err)
	w.servers[2].hs.add(r.id, w.user(2), rooms.TypeReject, nil, raw)
	good := r.update(r.head, 2)
	w.run(10 * time.Second)
	r.apply(good)
	r.vouch(r.devices[0], good.ref)
	w.run(15 * time.Second)
	r.wantHead(good.ref)
	r.head = good.ref
	w.run(3 * time.Minute)
	r.wantSilence()
	r.wantHonest()
}

// relist makes a commit of the creator that sets the list to the modules of
// some servers.
func (r *worldRoom) relist(servers ...int) *madeCommit {
	r.t.Helper()
	return r.commitOn(r.head, r.devices[0], rooms.CommitAAD{}, mls.CommitOptions{Proposals: []mls.Proposal{r.listed(servers...)}})
}

// listed proposes the modules of some servers as the list.
func (r *worldRoom) listed(servers ...int) mls.Proposal {
	r.t.Helper()
	policy, err := rooms.PolicyOf(r.groups[r.devices[0]][r.head])
	must(r.t, err)
	policy.Sequencers = nil
	var senders []mls.ExternalSender
	for _, i := range servers {
		head := r.w.keys(r.id, i)
		policy.Sequencers = append(policy.Sequencers, federation.Sequencer{Server: r.w.name(i), User: string(r.w.bot(i)), ReceiptKey: head.ReceiptKey})
		sender, err := rooms.ModuleSender(r.w.bot(i), head, engineSuite)
		must(r.t, err)
		senders = append(senders, sender)
	}
	exts, err := rooms.GroupExtensions(policy, senders)
	must(r.t, err)
	return mls.GroupContextExtensions(exts)
}

func TestSequencersChangeTheirList(t *testing.T) {
	for name, list := range map[string][]int{"one out, one in": {1, 2, 3}, "all others": {3, 1, 0}, "down to one": {2}} {
		t.Run(name, func(t *testing.T) {
			w := sqliteWorld(t, 4)
			r := w.newRoom(3, nil)
			before := r.byType("")
			c := r.relist(list...)
			w.run(5 * time.Second)
			if got := diffCounts(before, r.byType(""))[rooms.TypeReady]; got == 0 || got > len(list) {
				t.Errorf("%d ready receipts for a list of %d", got, len(list))
			}
			// Until it is final the list before it is in force, wherever that is shown.
			shown := func(want ...string) {
				t.Helper()
				text, err := RoomText(t.Context(), w.servers[2].st, r.id)
				must(t, err)
				picture, err := EpochPicture(t.Context(), w.servers[2].st, r.id, "s2.test", 0)
				must(t, err)
				said := text + strings.Join(strings.Fields(picture.Text()), " ")
				for _, part := range want {
					if !strings.Contains(said, part) {
						t.Errorf("the module does not say %q: %s", part, said)
					}
				}
				if n := strings.Count(said, "being changed to"); n != len(want)-1 {
					t.Errorf("a list to come is said %d times: %s", n, said)
				}
			}
			shown("sequencers in force: 3, a majority is 2", fmt.Sprintf("being changed to (accepted, not final): %d, ", len(list)), "The list is being changed to ")
			r.apply(c)
			r.vouch(r.devices[1], c.ref)
			r.head = c.ref
			w.run(15 * time.Second)
			r.wantHead(c.ref)
			shown(fmt.Sprintf("sequencers: %d, ", len(list)))
			if len(list) > 1 && list[0] == 1 {
				w.stop(0) // it is not in the list any more
			}
			r.advance(1, 2)
			w.run(10 * time.Second)
			r.wantHead(r.head)
			if got := len(r.receipts(list[0], rooms.TypeAccept)); got == 0 {
				t.Errorf("the new owner accepted nothing")
			}
			w.run(3 * time.Minute)
			r.wantSilence()
			r.wantHonest()
		})
	}
}

func TestSequencersRepostWhatWasRedacted(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(3, nil)
	c := r.advance(1, 2)
	w.run(3 * time.Minute)
	redact := func(sender id.UserID, at int, event id.EventID) map[string]int {
		before := r.byType("")
		w.servers[at].hs.add(r.id, sender, typeRedaction, nil, map[string]any{"redacts": event})
		w.run(2 * time.Minute)
		return diffCounts(before, r.byType(""))
	}
	accept := r.receipts(0, rooms.TypeAccept)[0]
	for _, ev := range r.receipts(0, rooms.TypeAccept) {
		accept = ev
	}
	for name, event := range map[string]id.EventID{"commit": c.event, "accept": accept.ID} {
		if got := redact(w.user(0), 0, event); got[rooms.TypeRepost] != 1 {
			t.Errorf("the redacted %s was posted again %d times, want once", name, got[rooms.TypeRepost])
		}
	}
	var again id.EventID
	for _, ev := range w.servers[0].hs.events(r.id, rooms.TypeRepost) {
		again = ev.ID
	}
	if got := redact(w.user(0), 0, again); got[rooms.TypeRepost] != 1 {
		t.Errorf("the redacted repost was posted again %d times, want once", got[rooms.TypeRepost])
	}
	if got := redact(w.user(2), 2, c.event); got[rooms.TypeRepost] != 0 {
		t.Error("a redaction that no homeserver follows caused a repost")
	}
	// A redaction after another ends.
	for range 20 {
		redact(w.user(0), 0, c.event)
	}
	if got := r.byType("")[rooms.TypeRepost]; got > 3+3*repostTimes {
		t.Errorf("%d reposts for 20 redactions", got)
	}
}

// copyDatabase copies a module's database as it is: by a backup that is read
// back, or as a file behind the module's back.
func (s *worldServer) copyDatabase(backup bool) store.Config {
	s.t.Helper()
	if backup {
		var file bytes.Buffer
		_, err := s.st.Backup(s.ctx, &file, store.BackupHeader{}, nil)
		must(s.t, err)
		cfg := storetest.SQLite(s.t)
		_, err = storetest.Open(s.t, cfg, nil).Restore(s.ctx, &file, nil)
		must(s.t, err)
		return cfg
	}
	name, err := s.st.CopyBeforeUpgrade(s.ctx, 1)
	must(s.t, err)
	return store.Config{Type: "sqlite3", URI: name}
}

// restore starts a module on a copy of its database.
func (w *world) restore(i int, cfg store.Config) {
	w.t.Helper()
	w.servers[i].st = storetest.Open(w.t, cfg, nil)
	w.restart(i)
}

func faultOldBackup(t *testing.T) {
	for _, marked := range []bool{true, false} { // by the command, or behind the module's back
		for _, forgets := range []bool{true, false} { // with the homeserver, or without
			t.Run(fmt.Sprintf("old, marked %v, homeserver forgets %v", marked, forgets), func(t *testing.T) {
				w := sqliteWorld(t, 3)
				r := w.newRoom(3, nil)
				w.run(2 * time.Minute)
				old := w.servers[1].copyDatabase(marked)
				r.advance(2, 1)
				r.advance(2, 1)
				w.run(2 * time.Minute)
				signed := len(r.receipts(1, rooms.TypeVote))
				w.stop(1)
				if forgets {
					w.servers[1].hs.hide = func(ev *homeserver.Event) bool {
						return ev.Sender == w.bot(1) && (ev.Type == rooms.TypeVote || ev.Type == rooms.TypeHead)
					}
				}
				w.restore(1, old)
				w.run(time.Minute)
				r.advance(2, 0)
				w.run(3 * time.Minute)
				r.wantHead(r.head)
				if got := len(r.receipts(1, rooms.TypeVote)); got != signed {
					t.Errorf("a module that was set back signed %d votes", got-signed)
				}
				if w.servers[1].machine(r.id).Listed() {
					t.Fatal("the key of a module that was set back still stands")
				}
				r.wantHonest()
				w.run(5 * time.Minute)
				r.wantSilence()
				// An admin puts the new key into the list.
				c := r.relist(0, 1, 2)
				w.run(5 * time.Second)
				r.apply(c)
				r.vouch(r.devices[1], c.ref)
				r.head = c.ref
				w.run(15 * time.Second)
				r.advance(2, 0)
				w.run(15 * time.Second)
				r.wantHead(r.head)
				if got := len(r.receipts(1, rooms.TypeVote)); got <= signed || !w.servers[1].machine(r.id).Listed() {
					t.Error("with a new key in the list the module does not vote")
				}
				w.restart(1)
				r.advance(2, 0)
				w.run(15 * time.Second)
				r.wantHead(r.head)
			})
		}
	}
	t.Run("nobody shows what it signed", func(t *testing.T) {
		w := sqliteWorld(t, 3)
		r := w.newRoom(3, nil)
		w.run(2 * time.Minute)
		old := w.servers[1].copyDatabase(false)
		r.advance(2, 1)
		r.advance(2, 1)
		w.run(2 * time.Minute)
		signed := len(r.receipts(1, rooms.TypeVote))
		w.stop(1)
		w.servers[1].hs.hide = func(ev *homeserver.Event) bool {
			return ev.Sender == w.bot(1) && (ev.Type == rooms.TypeVote || ev.Type == rooms.TypeHead)
		}
		w.refuse = func(at int, ev *homeserver.Event) bool { return at == 1 && ev.Type == rooms.TypeRepost }
		w.restore(1, old)
		w.run(3 * time.Minute)
		r.advance(2, 0)
		w.run(3 * time.Minute)
		if got := len(r.receipts(1, rooms.TypeVote)); got != signed {
			t.Errorf("a module that was set back signed %d votes", got-signed)
		}
		if w.servers[1].machine(r.id).Listed() {
			t.Error("two others report a newer receipt, and the key still stands")
		}
		r.wantHonest()
	})
	t.Run("up to date", func(t *testing.T) {
		w := sqliteWorld(t, 3)
		r := w.newRoom(3, nil)
		w.run(2 * time.Minute)
		w.stop(1)
		w.restore(1, w.servers[1].copyDatabase(true))
		signed := len(r.receipts(1, rooms.TypeVote))
		w.run(time.Minute)
		r.advance(2, 1)
		w.run(time.Minute)
		if got := len(r.receipts(1, rooms.TypeVote)); got <= signed || !w.servers[1].machine(r.id).Listed() {
			t.Error("a module that was moved does not sign any more")
		}
		before := r.byType("")
		w.restart(1)
		w.run(time.Minute)
		if got := diffCounts(before, r.byType("")); got[rooms.TypeRequest] > 0 {
			t.Errorf("a plain start asks again: %v", got)
		}
		r.wantHonest()
	})
	t.Run("alone with it", func(t *testing.T) {
		w := sqliteWorld(t, 3)
		r := w.newRoom(3, nil)
		w.run(2 * time.Minute)
		w.cut([]int{1}, []int{0, 2})
		w.stop(1)
		w.restore(1, w.servers[1].copyDatabase(true))
		signed := r.byType(w.bot(1))
		r.update(r.head, 1)
		w.run(10 * time.Minute)
		got := diffCounts(signed, r.byType(w.bot(1)))
		delete(got, rooms.TypeRequest)
		if len(got) > 0 {
			t.Errorf("a restored module signed without hearing from another: %v", got)
		}
		w.heal([]int{1}, []int{0, 2})
		w.run(5 * time.Minute)
		r.wantHonest()
	})
}

// metric reads a metric of a module: its value, or how often it was observed.
func (s *module) metric(name string, labels ...string) float64 {
	s.t.Helper()
	families, err := s.m.Registry().Gather()
	must(s.t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	metric:
		for _, m := range f.GetMetric() {
			for i, l := range m.GetLabel() {
				if i >= len(labels) || l.GetValue() != labels[i] {
					continue metric
				}
			}
			switch {
			case m.Histogram != nil:
				return float64(m.Histogram.GetSampleCount())
			case m.Gauge != nil:
				return m.Gauge.GetValue()
			}
			return m.GetCounter().GetValue()
		}
	}
	return 0
}

func TestSequencersCountWhatHappens(t *testing.T) {
	w := sqliteWorld(t, 3)
	r := w.newRoom(3, nil)
	w.cut([]int{2}, []int{0, 1})
	fork := r.head
	b := r.update(fork, 0)
	w.run(2 * time.Second)
	r.apply(b, 0, 1)
	r.vouch(r.devices[1], b.ref)
	a := r.update(fork, 2)
	w.run(10 * time.Minute)
	s := w.servers[2]
	if got := s.metric(metrics.RoomsTroubled, troubleProvisional); got != 1 {
		t.Errorf("alone: %v rooms are provisional, want 1", got)
	}
	if got := w.servers[0].metric(metrics.RoomsTroubled, troubleProvisional); got != 0 {
		t.Errorf("in the majority: %v rooms are provisional", got)
	}
	if got := s.machine(r.id).Head(); got != a.ref {
		t.Fatalf("alone the module is at %s, want %s", got.Short(), a.ref.Short())
	}
	for _, c := range []struct {
		name   string
		labels []string
		want   float64
	}{{metrics.Provisional, nil, 1}, {metrics.Takeovers, []string{"own"}, 2}, {metrics.Forks, nil, 0}} {
		if got := s.metric(c.name, c.labels...); got != c.want {
			t.Errorf("alone: %s%v = %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	w.heal([]int{2}, []int{0, 1})
	w.run(5 * time.Minute)
	r.wantHead(b.ref)
	r.head = b.ref
	r.apply(b)
	if got := s.metric(metrics.Forks); got != 1 {
		t.Errorf("after the heal: %v forks, want 1", got)
	}
	c := r.relist(0, 1)
	w.run(5 * time.Second)
	r.apply(c)
	r.vouch(r.devices[1], c.ref)
	w.run(3 * time.Minute)
	for i, s := range w.servers {
		if got := s.metric(metrics.ListChanges); got != 1 {
			t.Errorf("server %d: %v list changes, want 1", i, got)
		}
		if got := s.metric(metrics.FinalitySeconds); got < 3 {
			t.Errorf("server %d: the finality of %v commits was timed", i, got)
		}
		for _, trouble := range troubles {
			if got := s.metric(metrics.RoomsTroubled, trouble); got != 0 {
				t.Errorf("server %d, healed: %v rooms are %s", i, got, trouble)
			}
		}
	}
	// One of two is gone: nothing becomes final any more.
	r.head = c.ref
	w.stop(1)
	r.advance(0, 2)
	w.run(3 * time.Minute)
	if got := w.servers[0].metric(metrics.RoomsTroubled, troubleStalled); got != 1 {
		t.Errorf("without a majority: %v rooms are stalled, want 1", got)
	}
}
