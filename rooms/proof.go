package rooms

import (
	"golang.org/x/crypto/cryptobyte"

	"github.com/matrix-mls/matrix-mls/federation"
)

// Bounds of a proof chain.
const (
	proofVersion   = 1
	maxProofSteps  = 256
	maxProofAbove  = 64   // commits shown above one step, or above the newest final
	maxProofKeys   = 4096 // leaf keys of one step
	MaxInlineProof = 8000 // bytes of a chain inside a head; more goes to media
)

// ProofChain is what a head shows to newcomers: that its list of sequencers, its
// era and its final commit follow from the group's beginning. It is checked by
// [ProofChain.Check].
type ProofChain struct {
	Root   []byte             // MLSMessage: the GroupInfo that founded the group, with its tree
	Steps  []ProofStep        // from the beginning: changes of list, policy and era, and the newest final commit
	Path   []ProofCommit      // the commits above the last step, up to the accepted one
	Accept *federation.Accept // of the last of Path; nil if Path is empty
}

// ProofCommit is a commit as its author signed it.
type ProofCommit struct {
	Message []byte // MLSMessage: a PublicMessage, or the GroupInfo of a founding commit
	Context []byte // MLSMessage: a GroupInfo of the epoch it was made in, where its signature is checked
}

// ProofStep is a commit that changes list, policy or era, or the newest final
// one, with what made it final. An era commit has no votes.
type ProofStep struct {
	Commit       ProofCommit
	CoSignatures []CoSignature         // of an heirs' era
	Votes        []*federation.Vote    // of a majority, in one ballot, for the commit or one of Above
	Above        []ProofCommit         // the commits from this one up to the highest that votes name
	Vouchers     []federation.Proof    // statements, beside those in the votes
	Vouching     []ProofCommit         // the commits by which members vouch
	Keys         []federation.ProofKey // whose leaves signed
}

// Encode returns the bytes for a head or for media.
func (p *ProofChain) Encode() []byte {
	b := []byte{proofVersion}
	b = appendLongVec(b, p.Root)
	b = appendUint16(b, uint16(len(p.Steps)))
	for i := range p.Steps {
		s := &p.Steps[i]
		b = appendProofCommit(b, &s.Commit)
		b = appendUint16(b, uint16(len(s.CoSignatures)))
		for _, c := range s.CoSignatures {
			b = appendUint32(b, c.Leaf)
			b = appendVec(b, c.Sig)
		}
		b = appendUint16(b, uint16(len(s.Votes)))
		for _, v := range s.Votes {
			b = appendVote(b, v)
		}
		b = appendProofCommits(b, s.Above)
		b = appendProofs(b, s.Vouchers)
		b = appendProofCommits(b, s.Vouching)
		b = appendUint16(b, uint16(len(s.Keys)))
		for _, k := range s.Keys {
			b = append(b, k.Ref[:]...)
			b = appendUint32(b, k.Leaf.Index)
			b = appendVec(b, k.Leaf.User)
			b = appendVec(b, k.Leaf.Key)
			b = appendVec(b, k.Group)
			b = appendUint16(b, k.Suite)
		}
	}
	b = appendProofCommits(b, p.Path)
	b = appendBool(b, p.Accept != nil)
	if a := p.Accept; a != nil {
		b = append(b, a.Config[:]...)
		b = appendBallot(b, a.Ballot)
		b = appendBool(b, a.Provisional)
		b = append(b, a.Ref[:]...)
		b = append(b, a.Parent[:]...)
		b = appendUint64(b, a.Epoch)
		b = appendUint16(b, uint16(len(a.Promises)))
		for _, q := range a.Promises {
			b = appendPromise(b, q)
		}
		b = appendUint16(b, uint16(len(a.Votes)))
		for _, v := range a.Votes {
			b = appendVote(b, v)
		}
		b = appendChain(b, a.Chain, a.Signature)
	}
	return b
}

func appendProofCommit(b []byte, c *ProofCommit) []byte {
	return appendLongVec(appendLongVec(b, c.Message), c.Context)
}

func appendProofCommits(b []byte, list []ProofCommit) []byte {
	b = appendUint16(b, uint16(len(list)))
	for i := range list {
		b = appendProofCommit(b, &list[i])
	}
	return b
}

func appendBallot(b []byte, v federation.Ballot) []byte {
	return appendUint32(appendUint64(b, v.Round), v.Rank)
}

func appendChain(b []byte, c federation.Chain, sig []byte) []byte {
	b = appendUint64(b, c.Counter)
	b = append(b, c.Prev[:]...)
	return appendVec(b, sig)
}

func appendProofs(b []byte, list []federation.Proof) []byte {
	b = appendUint16(b, uint16(len(list)))
	for _, p := range list {
		b = appendBool(b, p.Applied != nil)
		if p.Applied == nil {
			b = append(b, p.Commit[:]...)
			continue
		}
		b = append(b, p.Applied.Ref[:]...)
		b = appendUint32(b, p.Applied.Leaf)
		b = append(b, p.Applied.Hash[:]...)
		b = appendVec(b, p.Applied.Signature)
	}
	return b
}

func appendVote(b []byte, v *federation.Vote) []byte {
	b = append(b, v.Config[:]...)
	b = appendBallot(b, v.Ballot)
	b = appendUint32(b, v.Voter)
	b = append(b, v.Ref[:]...)
	b = appendProofs(b, v.Proofs)
	return appendChain(b, v.Chain, v.Signature)
}

func appendPromise(b []byte, p *federation.Promise) []byte {
	b = append(b, p.Config[:]...)
	b = appendBallot(b, p.Ballot)
	b = appendUint32(b, p.Promiser)
	b = appendBool(b, p.LastVote != nil)
	if l := p.LastVote; l != nil {
		b = appendBallot(b, l.Ballot)
		b = append(b, l.Ref[:]...)
		b = appendUint64(b, l.Epoch)
		b = appendProofs(b, l.Proofs)
	}
	return appendChain(b, p.Chain, p.Signature)
}

// proofReader reads a chain. Every list is bounded, and what is read is no longer
// than the input.
type proofReader struct{ cryptobyte.String }

// DecodeProof reads a proof chain, after [File.Check] where it came from media.
// Two encodings of one chain do not exist. The receipts and statements in it have the
// form that they need to come as events; their signatures were not checked.
func DecodeProof(raw []byte) (*ProofChain, error) {
	p := new(ProofChain)
	r := &proofReader{raw}
	if len(raw) > MaxFileSize || !r.chain(p) {
		return nil, malformed("proof", "does not decode as version %d", proofVersion)
	}
	if err := p.checkForm(); err != nil {
		return nil, inContent("proof", err)
	}
	return p, nil
}

// checkForm refuses a chain with a receipt or statement that could be no event. Who
// reads the chain takes them for events, and who only sees events has to come to the
// same result.
func (p *ProofChain) checkForm() error {
	for i := range p.Steps {
		s := &p.Steps[i]
		for _, v := range s.Votes {
			if err := VoteOf(v).validate(); err != nil {
				return inContent("vote", err)
			}
		}
		if err := validateProofs(proofsOf(s.Vouchers)); err != nil {
			return err
		}
	}
	if a := p.Accept; a != nil {
		if a.Provisional && a.Ballot.Round > 0 { // its event names no round
			return malformed("accept", "is provisional in round %d", a.Ballot.Round)
		}
		if err := AcceptOf(a).validate(); err != nil {
			return inContent("accept", err)
		}
	}
	return nil
}

func (r *proofReader) chain(p *ProofChain) bool {
	var version uint8
	if !r.ReadUint8(&version) || version != proofVersion || !readLongVec(&r.String, &p.Root) ||
		!readList(&r.String, maxProofSteps, func() bool {
			var s ProofStep
			ok := r.step(&s)
			p.Steps = append(p.Steps, s)
			return ok
		}) || !r.commits(&p.Path) {
		return false
	}
	var has bool
	if !readBool(&r.String, &has) {
		return false
	}
	if has {
		p.Accept = new(federation.Accept)
		if !r.accept(p.Accept) {
			return false
		}
	}
	return r.Empty()
}

func (r *proofReader) commit(c *ProofCommit) bool {
	return readLongVec(&r.String, &c.Message) && readLongVec(&r.String, &c.Context)
}

func (r *proofReader) commits(out *[]ProofCommit) bool {
	return readList(&r.String, maxProofAbove, func() bool {
		var c ProofCommit
		ok := r.commit(&c)
		*out = append(*out, c)
		return ok
	})
}

func (r *proofReader) step(s *ProofStep) bool {
	return r.commit(&s.Commit) &&
		readList(&r.String, maxAdmitters, func() bool {
			var c CoSignature
			ok := r.ReadUint32(&c.Leaf) && readVec(&r.String, &c.Sig, maxSigSize)
			s.CoSignatures = append(s.CoSignatures, c)
			return ok
		}) &&
		readList(&r.String, MaxSequencers, func() bool { return r.vote(&s.Votes) }) &&
		r.commits(&s.Above) && r.proofs(&s.Vouchers) && r.commits(&s.Vouching) &&
		readList(&r.String, maxProofKeys, func() bool {
			var k federation.ProofKey
			ok := r.ref(&k.Ref) && r.ReadUint32(&k.Leaf.Index) && readVec(&r.String, &k.Leaf.User, maxName) &&
				readVec(&r.String, &k.Leaf.Key, maxKeySize) && readVec(&r.String, &k.Group, maxName) && r.ReadUint16(&k.Suite)
			s.Keys = append(s.Keys, k)
			return ok
		})
}

func (r *proofReader) ref(out *federation.Ref) bool { return r.CopyBytes(out[:]) }

func (r *proofReader) ballot(out *federation.Ballot) bool {
	return r.ReadUint64(&out.Round) && r.ReadUint32(&out.Rank)
}

func (r *proofReader) receipt(c *federation.Chain, sig *[]byte) bool {
	return r.ReadUint64(&c.Counter) && r.ref(&c.Prev) && readVec(&r.String, sig, maxSigSize)
}

func (r *proofReader) proofs(out *[]federation.Proof) bool {
	return readList(&r.String, MaxProofs, func() bool {
		var p federation.Proof
		var applied, ok bool
		if !readBool(&r.String, &applied) {
			return false
		}
		if applied {
			a := new(federation.Applied)
			p.Applied = a
			ok = r.ref(&a.Ref) && r.ReadUint32(&a.Leaf) && r.CopyBytes(a.Hash[:]) && readVec(&r.String, &a.Signature, maxSigSize)
		} else {
			ok = r.ref(&p.Commit)
		}
		*out = append(*out, p)
		return ok
	})
}

func (r *proofReader) vote(out *[]*federation.Vote) bool {
	v := new(federation.Vote)
	*out = append(*out, v)
	return r.ref(&v.Config) && r.ballot(&v.Ballot) && r.ReadUint32(&v.Voter) && r.ref(&v.Ref) && r.proofs(&v.Proofs) && r.receipt(&v.Chain, &v.Signature)
}

func (r *proofReader) promise(out *[]*federation.Promise) bool {
	p := new(federation.Promise)
	*out = append(*out, p)
	var last bool
	if !r.ref(&p.Config) || !r.ballot(&p.Ballot) || !r.ReadUint32(&p.Promiser) || !readBool(&r.String, &last) {
		return false
	}
	if last {
		p.LastVote = new(federation.LastVote)
		if !r.ballot(&p.LastVote.Ballot) || !r.ref(&p.LastVote.Ref) || !r.ReadUint64(&p.LastVote.Epoch) || !r.proofs(&p.LastVote.Proofs) {
			return false
		}
	}
	return r.receipt(&p.Chain, &p.Signature)
}

func (r *proofReader) accept(a *federation.Accept) bool {
	return r.ref(&a.Config) && r.ballot(&a.Ballot) && readBool(&r.String, &a.Provisional) && r.ref(&a.Ref) && r.ref(&a.Parent) && r.ReadUint64(&a.Epoch) &&
		readList(&r.String, MaxSequencers, func() bool { return r.promise(&a.Promises) }) &&
		readList(&r.String, MaxSequencers, func() bool { return r.vote(&a.Votes) }) &&
		r.receipt(&a.Chain, &a.Signature)
}
