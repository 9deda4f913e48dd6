package rooms

import "github.com/matrix-mls/matrix-mls/federation"

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
	if !chain.FromRoot || first == nil || len(chain.Steps) > maxProofSteps || len(path) > maxProofAbove {
		return nil
	}
	p := &ProofChain{Root: first.GroupInfo, Accept: accept}
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
