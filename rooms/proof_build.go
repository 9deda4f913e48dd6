package rooms

import (
	"slices"

	"github.com/matrix-mls/matrix-mls/federation"
)

// ProofSource looks up the content of a commit event, with what was moved to
// media put back; nil if it is not held.
type ProofSource func(ref federation.Ref) *CommitContent

// NewProofChain puts together what a head shows: what package federation keeps
// of the way from the root to the newest final, with the commits themselves.
// path are the commits above the last step up to the accepted one, accept is of
// the last of them. It returns nil if something needed is not held: the chain
// then shows nothing.
func NewProofChain(chain federation.ProofChain, root federation.Ref, path []federation.Ref, accept *federation.Accept, source ProofSource) *ProofChain {
	first := source(root)
	if !chain.FromRoot || first == nil {
		return nil
	}
	p := &ProofChain{Root: first.GroupInfo}
	return p.extend(chain, path, accept, source)
}

// LeadingTo returns what of a chain leads to a commit on its way, for
// [ProofChain.Continue]; above tells which of the commits that it shows lie above that.
// It is false if that is not to be seen: up to the newest final commit all steps are
// shown that change something, and of those above it only the commits.
func (p *ProofChain) LeadingTo(above func(federation.Ref) bool) (*ProofChain, bool) {
	out := &ProofChain{Root: p.Root}
	for i := range p.Steps {
		c, err := parseProofCommit(p.Steps[i].Commit.Message)
		switch {
		case err != nil:
			return nil, false
		case above(c.ref):
			return out, true
		case c.policy != nil || c.aad.Era > 0:
			out.Steps = append(out.Steps, p.Steps[i])
		}
	}
	for i := range p.Path {
		c, err := parseProofCommit(p.Path[i].Message)
		switch {
		case err != nil:
			return nil, false
		case above(c.ref):
			return out, true
		case c.policy != nil:
			return nil, false
		}
	}
	return out, true
}

// Continue puts a chain together as [NewProofChain] does, for who did not see the group's
// beginning: the receiver leads to the commit from which on chain holds all steps.
func (p *ProofChain) Continue(chain federation.ProofChain, path []federation.Ref, accept *federation.Accept, source ProofSource) *ProofChain {
	next := &ProofChain{Root: p.Root, Steps: slices.Clip(p.Steps)}
	return next.extend(chain, path, accept, source)
}

// extend adds steps and path to the steps that a chain has.
func (p *ProofChain) extend(chain federation.ProofChain, path []federation.Ref, accept *federation.Accept, source ProofSource) *ProofChain {
	if len(p.Steps)+len(chain.Steps) > maxProofSteps || len(path) > maxProofAbove {
		return nil
	}
	p.Accept = accept
	message := func(ref federation.Ref) (ProofCommit, bool) {
		c := source(ref)
		if c == nil {
			return ProofCommit{}, false
		}
		if c.Founding {
			return ProofCommit{Message: c.GroupInfo}, true
		}
		return ProofCommit{Message: c.Message}, true
	}
	signed := func(ref federation.Ref) (ProofCommit, bool) {
		c, ok := message(ref)
		if ok {
			parent := source(federation.Ref(source(ref).Parent))
			if ok = parent != nil; ok {
				c.Context = parent.GroupInfo
			}
		}
		return c, ok
	}
	for i := range chain.Steps {
		from := &chain.Steps[i]
		s := ProofStep{Votes: from.Votes, Vouchers: from.Vouchers, Keys: from.Keys}
		var ok bool
		if from.Era > 0 {
			if s.Commit, ok = signed(from.Ref); ok {
				s.CoSignatures = source(from.Ref).CoSignatures
			}
		} else {
			s.Commit, ok = message(from.Ref)
		}
		if !ok || len(from.Above) > maxProofAbove {
			return nil
		}
		for _, link := range from.Above {
			c, ok := message(link.Ref)
			if !ok {
				return nil
			}
			s.Above = append(s.Above, c)
		}
		seen := make(map[federation.Ref]bool)
		vouch := func(list []federation.Proof) {
			for _, v := range list {
				if v.Applied == nil && !seen[v.Commit] && len(s.Vouching) < maxProofAbove {
					seen[v.Commit] = true
					if c, ok := signed(v.Commit); ok {
						s.Vouching = append(s.Vouching, c)
					}
				}
			}
		}
		vouch(s.Vouchers)
		for _, v := range s.Votes {
			vouch(v.Proofs)
		}
		p.Steps = append(p.Steps, s)
	}
	for _, ref := range path {
		c, ok := message(ref)
		if !ok {
			return nil
		}
		p.Path = append(p.Path, c)
	}
	if len(path) == 0 {
		p.Accept = nil
	}
	return p
}
