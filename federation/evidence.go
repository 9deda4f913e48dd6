package federation

import (
	"bytes"
	"crypto/sha256"
	"slices"
)

// findEvidence compares new receipts with those that the same signer never
// honestly signs beside them.
func (m *Machine) findEvidence() []Action {
	var out []Action
	for _, n := range m.order {
		rs := m.lists[n.config]
		if n != m.base && !n.sets || rs == nil || len(rs.fresh) == 0 {
			continue
		}
		list, _, _ := m.list(n.config)
		found := func(kind EvidenceKind, rank uint32, a, b Receipt) {
			s := Scope{Room: m.cfg.Room}
			ha, hb := a.Hash(s), b.Hash(s)
			key := sha256.Sum256(append(ha[:], hb[:]...))
			if m.proven[key] || len(m.proven) >= 1024 {
				return
			}
			m.proven[key] = true
			out = append(out, Evidence{Kind: kind, Config: n.config, Signer: list[rank], A: a, B: b})
		}
		later := rs.fresh[:0]
		for i, r := range rs.fresh {
			if !m.against(rs, r, rs.fresh[i+1:], found) {
				later = append(later, r)
			}
		}
		clear(rs.fresh[len(later):])
		rs.fresh = later
	}
	return out
}

// against calls found with pairs of which r is one, and reports false if r names
// a commit that is still to come. Receipts in rest have their turn after r: one
// of them may hide, as the deepest, those that r is off. What one receipt alone shows, or the absence of
// another, is no evidence: a vote by somebody else than the owner, for what no
// accept is held of, may have been honest.
func (m *Machine) against(rs *receipts, r Receipt, rest []Receipt, found func(kind EvidenceKind, rank uint32, a, b Receipt)) bool {
	switch r := r.(type) {
	case *Accept:
		if r.Provisional {
			return true
		}
		accepts, n := rs.acceptsIn(r.Ballot), m.nodes[r.Ref]
		var top heldAccept
		for _, a := range accepts {
			if a.Accept != r && (top.node == nil || a.node.depth > top.node.depth) && !slices.Contains(rest, Receipt(a.Accept)) {
				top = a
			}
		}
		if offChain(top.node, n) {
			a, b := inOrder(top.Accept, r, top.node, n)
			found(EvidenceAccepts, r.Ballot.Rank, a, b)
		}
		for _, v := range rs.votesIn(r.Ballot) {
			if v.Voter == r.Ballot.Rank {
				offAccepts(accepts, v, found)
			}
		}
	case *Vote:
		var top heldVote
		n := m.nodes[r.Ref]
		for _, v := range rs.votesIn(r.Ballot) {
			if v.Vote != r && v.Voter == r.Voter && (top.node == nil || v.node.depth > top.node.depth) && !slices.Contains(rest, Receipt(v.Vote)) {
				top = v
			}
		}
		if offChain(top.node, n) {
			a, b := inOrder(top.Vote, r, top.node, n)
			found(EvidenceVotes, r.Voter, a, b)
		}
		if r.Voter == r.Ballot.Rank {
			offAccepts(rs.acceptsIn(r.Ballot), heldVote{r, n}, found)
		}
		for _, p := range rs.promises {
			if m.hides(p, r) {
				found(EvidenceHidden, r.Voter, p, r)
			}
		}
	case *Promise:
		for _, p := range rs.promises {
			if p.Ballot == r.Ballot && p.Promiser == r.Promiser && !bytes.Equal(p.Signature, r.Signature) {
				found(EvidencePromises, r.Promiser, p, r)
			}
		}
		for _, v := range rs.votes {
			if m.hides(r, v.Vote) {
				found(EvidenceHidden, r.Promiser, r, v.Vote)
			}
		}
		if r.LastVote != nil && !m.dropped(r.LastVote.Ref, r.LastVote.Epoch) {
			_, ok := m.nodes[r.LastVote.Ref]
			return ok
		}
	}
	return true
}

// offChain reports whether n is neither on the chain of the deepest of some
// receipts' commits, which are one chain or were reported, nor on top of it.
func offChain(deepest, n *node) bool {
	return deepest != nil && !deepest.extends(n) && !n.extends(deepest)
}

// inOrder returns a pair with the deeper commit's first, whichever came first.
func inOrder[R Receipt](a, b R, x, y *node) (R, R) {
	if x.depth > y.depth || x.depth == y.depth && less(x.ref, y.ref) {
		return a, b
	}
	return b, a
}

// hides reports whether a promise omits a vote by its signer, or understates
// it: the last vote in a ballot extends all others there. What is not held is
// not judged.
func (m *Machine) hides(p *Promise, v *Vote) bool {
	if v.Voter != p.Promiser || !v.Ballot.Less(p.Ballot) {
		return false
	}
	if p.LastVote == nil || p.LastVote.Ballot.Less(v.Ballot) {
		return true
	}
	x, ok := m.nodes[p.LastVote.Ref]
	y, ok2 := m.nodes[v.Ref]
	return p.LastVote.Ballot == v.Ballot && ok && ok2 && !x.extends(y)
}

// offAccepts reports a vote by the owner of a ballot beside one of its own
// accepts there: an owner accepts one chain, and votes for what it accepted.
func offAccepts(accepts []heldAccept, v heldVote, found func(EvidenceKind, uint32, Receipt, Receipt)) {
	for _, a := range accepts {
		if offChain(a.node, v.node) {
			found(EvidenceOwner, v.Voter, v.Vote, a.Accept)
			return
		}
	}
}

// acceptsIn returns the accepts of a ballot, without provisional ones.
func (rs *receipts) acceptsIn(b Ballot) []heldAccept {
	at, _ := slices.BinarySearchFunc(rs.accepts, b, func(a heldAccept, b Ballot) int { return a.Ballot.compare(b) })
	end := at
	for end < len(rs.accepts) && rs.accepts[end].Ballot == b && !rs.accepts[end].Provisional {
		end++
	}
	return rs.accepts[at:end]
}

// votesIn returns the votes in a ballot.
func (rs *receipts) votesIn(b Ballot) []heldVote {
	at, _ := slices.BinarySearchFunc(rs.votes, b, func(v heldVote, b Ballot) int { return v.Ballot.compare(b) })
	end := at
	for end < len(rs.votes) && rs.votes[end].Ballot == b {
		end++
	}
	return rs.votes[at:end]
}
