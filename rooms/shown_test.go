package rooms

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
)

const (
	liar   = id.UserID("@liar:s.test")
	honest = id.UserID("@honest:s.test")
)

// lookFor looks at what is due, every second of a time, and returns when it did.
func lookFor(l *Looks, from, to time.Duration, moved bool, before func(now time.Duration)) (at []time.Duration) {
	for now := from; now < to; now += time.Second {
		if before != nil {
			before(now)
		}
		for _, module := range l.Due(now) {
			at = append(at, now)
			l.Looked(module, now, moved)
		}
	}
	return at
}

func seconds(list ...int) (out []time.Duration) {
	for _, s := range list {
		out = append(out, time.Duration(s)*time.Second)
	}
	return out
}

// TestLooksAtHeadsThatMoveNothing: the wait doubles, over new heads as at the same one, up
// to some minutes, and for no other module's.
func TestLooksAtHeadsThatMoveNothing(t *testing.T) {
	var l Looks
	l.Note(honest, 0)
	if got, want := lookFor(&l, 0, time.Hour, false, nil), seconds(3, 9, 21, 45, 93, 189); !slices.Equal(got, want) {
		t.Errorf("the same head is looked at after %v, want %v", got, want)
	}
	l = Looks{}
	got := lookFor(&l, 0, 20*time.Minute, false, func(now time.Duration) { l.Note(liar, now) })
	if want := seconds(3, 9, 21, 45, 93, 189, 381, 573, 765, 957, 1149); !slices.Equal(got, want) {
		t.Errorf("heads that move on and on are looked at after %v, want %v", got, want)
	}
	l.Note(honest, 20*time.Minute)
	if got, want := l.Next(), 20*time.Minute+LookWait; got != want {
		t.Errorf("another's is looked at at %v, want %v", got, want)
	}
	l.Stop(honest)
	l.Stop(liar)
	l.Note(liar, 3*time.Hour) // after hours of silence
	if got, want := l.Next(), 3*time.Hour+LookWait; got != want {
		t.Errorf("after a rest it is looked at at %v, want %v", got, want)
	}
}

// TestLooksThatAreNotInVain: the next wait is the first again after a look that moved
// something, and where what was looked at came true; a head that shows nothing more in
// between changes nothing.
func TestLooksThatAreNotInVain(t *testing.T) {
	for name, test := range map[string]struct {
		then func(l *Looks)
		want time.Duration // from the third look, which is at 21 s, to the next
	}{
		"a new head":                    {func(l *Looks) { l.Note(liar, 22*time.Second) }, 24 * time.Second},
		"one that shows nothing more":   {func(l *Looks) { l.Note(liar, 22*time.Second); l.CameTrue(liar); l.Note(liar, 23*time.Second) }, 24 * time.Second},
		"one of another list, and back": {func(l *Looks) { l.Stop(liar); l.Note(liar, 22*time.Second) }, 24 * time.Second},
		"what it showed came true":      {func(l *Looks) { l.CameTrue(liar); l.Note(liar, 22*time.Second) }, time.Second + LookWait},
		"it moved the head":             {func(l *Looks) { l.Looked(liar, 21*time.Second, true); l.Note(liar, 22*time.Second) }, LookWait},
	} {
		var l Looks
		l.Note(liar, 0)
		lookFor(&l, 0, 22*time.Second, false, nil)
		test.then(&l)
		if got := l.Next() - 21*time.Second; got != test.want {
			t.Errorf("%s: the next look is %v later, want %v", name, got, test.want)
		}
	}
}

// TestLooksThatOnlyAskForAFile: heads that move on and on, with a file each, are looked at
// as soon as one of the files is there.
func TestLooksThatOnlyAskForAFile(t *testing.T) {
	var l Looks
	var at []time.Duration
	for now := time.Duration(0); now < time.Minute; now += time.Second {
		if now%(20*time.Second) == 0 {
			l.Note(honest, now)
		}
		for range l.Due(now) {
			if there := now%(20*time.Second) >= 5*time.Second; there {
				at = append(at, now)
				l.Looked(honest, now, true)
				l.Stop(honest)
			} else {
				l.Asked(honest, now)
			}
		}
	}
	if want := seconds(6, 26, 46); !slices.Equal(at, want) {
		t.Errorf("looked at after %v, want %v", at, want)
	}
}

// TestLooksAreBounded: modules of which nothing is awaited make room for others.
func TestLooksAreBounded(t *testing.T) {
	var l Looks
	for i := range 3 * maxLooks {
		l.Note(id.UserID(fmt.Sprint("@m", i)), 0)
	}
	if got := len(l.by); got != maxLooks {
		t.Errorf("%d modules are noted, want %d", got, maxLooks)
	}
	l.Stop("@m0")
	l.Note(honest, time.Second)
	if len(l.by) != maxLooks || l.by[honest] == nil {
		t.Error("a module of which nothing is awaited made no room")
	}
}

// TestWhatAHeadShows: what a module's head shows makes another's machine, which has the
// commits alone, hold as much; then it shows nothing that is to be checked.
func TestWhatAHeadShows(t *testing.T) {
	w := newProofWorld(t)
	b := newDevice(t, bob, "LAPTOP")
	w.join(b)
	module := w.modules[0]
	state, err := module.MarshalBinary()
	must(t, err)
	reader, err := federation.Unmarshal(federation.Config{Room: string(testRoom), Verify: VerifyLeafSignature}, state)
	must(t, err)
	at := w.commit(w.g.creator, nil, true, nil)
	commit, ok := module.Known(at)
	if !ok || module.NewestFinal() != at {
		t.Fatal("the commit is not final: the test proves nothing")
	}
	if _, err := reader.Step(commit); err != nil {
		t.Fatal(err)
	}
	raw := w.chain(0).Encode()
	ref := &EventRef{Ref: Hash(at), Event: "$c", Epoch: commit.Epoch}
	head := &HeadContent{Group: b.group.GroupID(), Final: ref, Accepted: ref, Proof: raw}
	if !head.ShowsMore(reader) || head.ShowsMore(module) {
		t.Errorf("it shows more than is held: of the commits alone %v, of all %v", head.ShowsMore(reader), head.ShowsMore(module))
	}
	shown, err := head.Shown(reader, raw)
	must(t, err)
	if err := TakeShown(reader, shown, func(s *ShownEvent) error {
		_, err := reader.Step(s.Event)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if got := reader.NewestFinal(); got != at {
		t.Errorf("final is %s, want %s", got.Short(), at.Short())
	}
	if shown, err = head.Shown(reader, raw); err != nil || len(shown) > 0 || head.ShowsMore(reader) {
		t.Errorf("it shows %d receipts and statements once they are held, %v", len(shown), err)
	}
}

// TestWhatIsTakenInOneLook: what rests on more signatures than are checked in one look
// comes with the next, and a receipt that rests on more than that by itself ends the look.
func TestWhatIsTakenInOneLook(t *testing.T) {
	w := newProofWorld(t)
	m := w.modules[0]
	vote := func(n byte) *federation.Vote {
		v := &federation.Vote{Config: w.root, Ref: federation.Ref{n}, Chain: federation.Chain{Counter: uint64(n)}, Signature: make([]byte, 64)}
		for i := range byte(MaxProofs) {
			v.Proofs = append(v.Proofs, federation.Proof{Applied: &federation.Applied{Ref: w.root, Hash: [32]byte{n, i}, Signature: make([]byte, 64)}})
		}
		return v
	}
	taken := func(shown ...ShownEvent) (n, checks int) {
		t.Helper()
		must(t, TakeShown(m, shown, func(s *ShownEvent) error {
			n++
			checks += m.Checks(s.Event)
			return nil
		}))
		return n, checks
	}
	var votes []*federation.Vote
	var shown []ShownEvent
	for n := range byte(8) {
		votes = append(votes, vote(n+1))
		shown = append(shown, ShownEvent{Event: votes[n]})
	}
	if n, checks := taken(shown...); n == 0 || n == len(shown) || checks >= shownChecks+m.Checks(votes[0]) {
		t.Errorf("of %d votes %d are taken in one look, which takes %d signatures to check", len(shown), n, checks)
	}
	large := ShownEvent{Event: &federation.Accept{Config: w.root, Ref: federation.Ref{9}, Votes: votes, Chain: federation.Chain{Counter: 9}, Signature: make([]byte, 64)}}
	if n, checks := taken(large, shown[0]); n != 1 || checks <= shownChecks {
		t.Errorf("%d are taken with a large accept, which take %d signatures to check", n, checks)
	}
	if n, _ := taken(shown[0], large); n != 2 {
		t.Errorf("%d are taken: a small one that never counts keeps a large one out", n)
	}
}
