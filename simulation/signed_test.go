package simulation

import (
	"encoding/json"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// signed is what an honest module is held to: 15, no counter, promise, vote or
// accept contradicts one before, whatever crashes there were.
type signed struct {
	counters map[numbered]federation.Ref
	promised map[federation.Ref]federation.Ballot
	votes    map[federation.Ref]*federation.Vote
	accepts  map[federation.Ref]map[federation.Ballot]*federation.Accept
}

// numbered is a place in the chain of receipts of one of a module's keys.
type numbered struct {
	key     int // 0: the first
	counter uint64
}

func (s *signed) init() {
	*s = signed{
		counters: map[numbered]federation.Ref{}, promised: map[federation.Ref]federation.Ballot{},
		votes: map[federation.Ref]*federation.Vote{}, accepts: map[federation.Ref]map[federation.Ballot]*federation.Accept{},
	}
}

func (m *module) withholds(eventType string) bool {
	return eventType == rooms.TypeAccept || eventType == rooms.TypeVote
}

// judgeModule looks at what a module sends.
func (w *world) judgeModule(m *module, kind string, content json.RawMessage) {
	switch kind {
	case rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady:
	default:
		return
	}
	defer func() { // the module sends from a goroutine of its own
		if v, ok := recover().(*violation); ok {
			w.later = v
		}
	}()
	ev, err := rooms.DecodeReceipt(kind, "", content)
	if err != nil {
		w.fail("%s sends what is no receipt: %v", m.name, err)
	}
	w.judgeReceipt(m, ev.(federation.Receipt))
}

func (w *world) judgeReceipt(m *module, r federation.Receipt) {
	s := &m.signed
	if a, ok := r.(*federation.Accept); ok {
		for _, v := range a.Votes {
			w.judgeReceipt(m, v)
		}
	}
	link, hash := r.Link(), r.Hash(federation.Scope{Room: string(w.room)})
	at := numbered{m.keyOf(r), link.Counter}
	if old, ok := s.counters[at]; ok {
		if old != hash {
			broken("15 crash safety", "%s signed two receipts with counter %d", m.name, link.Counter)
		}
		return // sent again, unchanged
	}
	s.counters[at] = hash
	switch r := r.(type) {
	case *federation.Promise:
		w.stats.promises++
		if r.Promiser == r.Ballot.Rank {
			w.stats.takeovers++
		}
		if !s.promised[r.Config].Less(r.Ballot) {
			broken("15 crash safety", "%s promised %s after %s", m.name, r.Ballot, s.promised[r.Config])
		}
		s.promised[r.Config] = r.Ballot
		last := s.votes[r.Config]
		if (last == nil) != (r.LastVote == nil) || last != nil && (last.Ref != r.LastVote.Ref || last.Ballot != r.LastVote.Ballot) {
			broken("15 crash safety", "%s does not report its last vote", m.name)
		}
	case *federation.Vote:
		w.stats.votes++
		if r.Ballot.Less(s.promised[r.Config]) {
			broken("15 crash safety", "%s voted in %s below its promise %s", m.name, r.Ballot, s.promised[r.Config])
		}
		if last := s.votes[r.Config]; last != nil && last.Ballot == r.Ballot && (last.Ref == r.Ref || !w.extends(r.Ref, last.Ref)) {
			broken("15 crash safety", "%s voted twice in %s", m.name, r.Ballot)
		}
		s.votes[r.Config], m.vote = r, r
	case *federation.Accept:
		w.stats.accepts++
		if r.Provisional {
			w.stats.provisional++
			break
		}
		if r.Ballot.Less(s.promised[r.Config]) {
			broken("15 crash safety", "%s accepted in %s below its promise %s", m.name, r.Ballot, s.promised[r.Config])
		}
		if s.accepts[r.Config] == nil {
			s.accepts[r.Config] = map[federation.Ballot]*federation.Accept{}
		}
		if last := s.accepts[r.Config][r.Ballot]; last != nil && !w.extends(r.Ref, last.Ref) {
			broken("15 crash safety", "%s accepted two chains in %s", m.name, r.Ballot)
		}
		s.accepts[r.Config][r.Ballot], m.accept = r, r
	}
}
