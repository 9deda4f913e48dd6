package rooms

import (
	"bytes"
	"encoding/json"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
)

// A receipt that did not come by itself may still stand in a module's head: its proof
// chain holds the votes for what it shows as final, and the accept of its newest commit.
// Each is signed, so it counts wherever it is read. Members and modules alike look there,
// as seldom as [Looks] says and as far as [TakeShown] goes: all of it is what one module
// chose to publish.

const (
	// LookWait is how long a receipt may come later than a head that rests on it. The
	// wait doubles with each look at a module's heads that moved nothing.
	LookWait  = 3 * time.Second
	lookTimes = 6         // at one head; the wait doubles as often at most
	lookTwice = 2         // at one head, after so many in vain: the first may only ask for its proof chain
	lookRests = time.Hour // without a look, after which the wait is the first again
	maxLooks  = 4 * MaxSequencers

	shownSteps  = 16  // of a head's proof chain, the newest ones
	shownAtOnce = 4   // of these
	shownChecks = 512 // signatures checked in one look, but for the receipt that reaches it
)

// Looks is when to look at the heads of modules for what did not come by itself. The
// zero value is ready for use.
type Looks struct {
	by map[id.UserID]*look
}

type look struct {
	at    time.Duration // when its head is looked at; 0: it is not
	pause time.Duration // not before, whatever its module publishes
	times int           // how often this head was
	vain  int           // looks at the module's heads in sequence that moved nothing
}

// Note has the head of a module looked at a little later, because it is new, or because
// more of it may count now. One that moves on and on is looked at all the same, but no
// sooner than the looks before allow.
func (l *Looks) Note(module id.UserID, now time.Duration) {
	s := l.by[module]
	if s == nil {
		if l.by == nil {
			l.by = make(map[id.UserID]*look)
		}
		for other, o := range l.by {
			if len(l.by) >= maxLooks && o.at == 0 {
				delete(l.by, other)
			}
		}
		if len(l.by) >= maxLooks {
			return
		}
		s = &look{}
		l.by[module] = s
	}
	if s.vain > 0 && now >= s.pause+lookRests {
		s.vain, s.pause = 0, 0
	}
	s.times = 0
	if at := max(now+LookWait, s.pause); s.at == 0 || at < s.at {
		s.at = at
	}
}

// Due returns the modules at whose heads it is time to look, in order.
func (l *Looks) Due(now time.Duration) (out []id.UserID) {
	for module, s := range l.by {
		if s.at > 0 && now >= s.at {
			out = append(out, module)
		}
	}
	slices.Sort(out)
	return out
}

// Next returns when to look again, 0 if there is nothing to look at.
func (l *Looks) Next() (next time.Duration) {
	for _, s := range l.by {
		if s.at > 0 && (next == 0 || s.at < next) {
			next = s.at
		}
	}
	return next
}

// Looked notes a look at a module's head, and whether it moved the room's head or what
// is final.
func (l *Looks) Looked(module id.UserID, now time.Duration, moved bool) {
	s := l.by[module]
	if s == nil {
		return
	}
	if s.vain = min(s.vain+1, lookTimes); moved {
		s.vain = 0
	}
	s.times++
	s.pause = now + LookWait<<s.vain
	s.at = s.pause
	if s.times >= lookTimes || s.vain == lookTimes && s.times >= lookTwice {
		s.at = 0
	}
}

// Asked notes a look that found nothing to look at yet: the head's proof chain has to be
// downloaded. Nothing was checked, so it was not in vain, and the next look is soon: a
// head that moves meanwhile may bring another file.
func (l *Looks) Asked(module id.UserID, now time.Duration) {
	s := l.by[module]
	if s == nil {
		return
	}
	s.times++
	s.pause = now + LookWait
	s.at = s.pause
	if s.times >= lookTimes {
		s.at = 0
	}
}

// Stop notes that there is nothing to see in the head that a module shows now.
func (l *Looks) Stop(module id.UserID) {
	if s := l.by[module]; s != nil {
		s.at = 0
	}
}

// CameTrue notes that what a module's head shows is held. Where it was looked at before,
// that was not in vain.
func (l *Looks) CameTrue(module id.UserID) {
	s := l.by[module]
	if s == nil {
		return
	}
	if s.at = 0; s.times > 0 {
		s.vain, s.pause = 0, 0
	}
}

// Forget drops what is noted of a module.
func (l *Looks) Forget(module id.UserID) { delete(l.by, module) }

// ShowsMore tells whether a head shows a commit as accepted, or as final, that a machine
// does not hold as such.
func (h *HeadContent) ShowsMore(m *federation.Machine) bool {
	if h.Accepted == nil || len(h.Proof) == 0 && h.ProofFile == nil {
		return false
	}
	final := m.NewestFinal()
	for _, ref := range []federation.Ref{m.Head(), final} {
		if scope, ok := m.ScopeAt(ref); !ok || !bytes.Equal(scope.Group, h.Group) {
			return false // the group was founded anew, and that is not final yet
		}
	}
	newer := func(shown *EventRef) bool {
		if known, ok := m.Known(final); ok {
			return shown.Epoch > known.Epoch
		}
		return federation.Ref(shown.Ref) != m.Base() && !m.TooOld(shown.Epoch)
	}
	if !m.Accepted(federation.Ref(h.Accepted.Ref)) && newer(h.Accepted) {
		return true
	}
	return h.Final != nil && !m.Final(federation.Ref(h.Final.Ref)) && newer(h.Final)
}

// ShownEvent is a receipt of a head's proof chain, or a statement that one rests on.
type ShownEvent struct {
	Event   federation.Event
	Kind    string          // of the event that a receipt comes in; "" for a statement
	Content json.RawMessage // of that event
}

// Shown returns what a head's proof chain holds, above what is final, and a machine does
// not: what takes the fewest signatures to check first. raw is the chain: [HeadContent.Proof],
// or what was downloaded for ProofFile. Nothing is checked yet: see [TakeShown].
func (h *HeadContent) Shown(m *federation.Machine, raw []byte) (out []ShownEvent, err error) {
	chain, err := DecodeProof(raw)
	if err != nil {
		return nil, err
	}
	receipt := func(r federation.Receipt) {
		kind, content := ReceiptOf(r)
		raw, err := Encode(content)
		if err != nil {
			return // no event could bring it to those who do not see the head
		}
		out = append(out, ShownEvent{r, kind, raw})
	}
	newest, steps := chain.Steps[max(0, len(chain.Steps)-shownSteps):], 0
	for i, step := range newest {
		wanted := func(v *federation.Vote) bool { return m.Held(v.Ref) && !m.Final(v.Ref) }
		if i < len(newest)-1 && (steps >= shownAtOnce || !slices.ContainsFunc(step.Votes, wanted)) {
			continue // it lies below the base, is final, or comes with the next look
		}
		steps++
		for _, p := range step.Vouchers {
			if a := p.Applied; a != nil && m.Held(a.Ref) && !m.Votable(a.Ref) { // else it makes nothing votable
				out = append(out, ShownEvent{Event: a})
			}
		}
		voters := make(map[uint32]bool)
		for _, v := range step.Votes {
			final := h.Final != nil && v.Ref == federation.Ref(h.Final.Ref)
			if voters[v.Voter] || !final && !m.Held(v.Ref) {
				continue
			}
			voters[v.Voter] = true
			if final {
				v.EventID = string(h.Final.Event)
			}
			receipt(v)
		}
	}
	if a := chain.Accept; a != nil && h.Accepted != nil && a.Ref == federation.Ref(h.Accepted.Ref) {
		a.EventID = string(h.Accepted.Event)
		receipt(a)
	}
	checks := make(map[federation.Event]int, len(out))
	for _, s := range out {
		checks[s.Event] = m.Checks(s.Event)
	}
	out = slices.DeleteFunc(out, func(s ShownEvent) bool { return checks[s.Event] == 0 })
	slices.SortStableFunc(out, func(a, b ShownEvent) int { return checks[a.Event] - checks[b.Event] })
	return out, nil
}

// TakeShown hands what a head shows on to take, which has the machine check it, as far as
// one look goes: the rest comes with the next. The receipt that reaches the bound is
// taken whole, or small ones that never count could keep a large one out for ever. It
// ends with the first error of take.
func TakeShown(m *federation.Machine, shown []ShownEvent, take func(s *ShownEvent) error) error {
	done := 0
	for i := range shown {
		if done >= shownChecks {
			return nil
		}
		done += m.Checks(shown[i].Event) // fewer by now, where several rest on the same
		if err := take(&shown[i]); err != nil {
			return err
		}
	}
	return nil
}
