package rooms

import (
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// VerifyLeafSignature checks a statement by an MLS leaf key; it is the Verify
// of federation.Config.
func VerifyLeafSignature(suite uint16, key, content, signature []byte) error {
	if err := mls.VerifyWithLabel(mls.CipherSuite(suite), key, LabelStatement, content, signature); err != nil {
		return &Refusal{Rule: RuleReceiptForged, What: "statement", Err: err}
	}
	return nil
}

// SignApplied makes the statement that a leaf applied a commit and holds its
// epoch's secrets.
func SignApplied(cs mls.CipherSuite, key mls.SignaturePrivateKey, scope federation.Scope, ref federation.Ref, leaf mls.LeafIndex, epochAuthenticator []byte) (*federation.Applied, error) {
	a := &federation.Applied{Ref: ref, Leaf: uint32(leaf), Hash: federation.AppliedHash(epochAuthenticator)}
	sig, err := mls.SignWithLabel(cs, key, LabelStatement, a.Content(scope))
	a.Signature = sig
	return a, err
}

// SignReject makes the statement that a leaf of the parent's tree could not
// apply a commit. rule is the name of the check that failed.
func SignReject(cs mls.CipherSuite, key mls.SignaturePrivateKey, scope federation.Scope, ref federation.Ref, leaf mls.LeafIndex, rule string) (*federation.Rejected, error) {
	r := &federation.Rejected{Ref: ref, Leaf: uint32(leaf), Rule: rule}
	sig, err := mls.SignWithLabel(cs, key, LabelStatement, r.Content(scope))
	r.Signature = sig
	return r, err
}

// AppliedOf returns the event content of a statement.
func AppliedOf(a *federation.Applied) *AppliedContent {
	return &AppliedContent{Ref: Hash(a.Ref), Leaf: a.Leaf, Hash: a.Hash, Sig: a.Signature}
}

// Statement returns the statement of an event. eventID may be empty.
func (c *AppliedContent) Statement(eventID string) *federation.Applied {
	return &federation.Applied{Ref: federation.Ref(c.Ref), Leaf: c.Leaf, Hash: c.Hash, Signature: c.Sig, EventID: eventID}
}

// RejectOf returns the event content of a statement.
func RejectOf(r *federation.Rejected) *RejectContent {
	return &RejectContent{Ref: Hash(r.Ref), Leaf: r.Leaf, Rule: r.Rule, Sig: r.Signature}
}

// Statement returns the statement of an event. eventID may be empty.
func (c *RejectContent) Statement(eventID string) *federation.Rejected {
	return &federation.Rejected{Ref: federation.Ref(c.Ref), Leaf: c.Leaf, Rule: c.Rule, Signature: c.Sig, EventID: eventID}
}

func proofsOf(proofs []federation.Proof) []Proof {
	var out []Proof
	for _, p := range proofs {
		if p.Applied != nil {
			out = append(out, Proof{Applied: AppliedOf(p.Applied)})
		} else {
			out = append(out, Proof{Commit: Hash(p.Commit)})
		}
	}
	return out
}

func receiptProofs(proofs []Proof) []federation.Proof {
	var out []federation.Proof
	for _, p := range proofs {
		if p.Applied != nil {
			out = append(out, federation.Proof{Applied: p.Applied.Statement("")})
		} else {
			out = append(out, federation.Proof{Commit: federation.Ref(p.Commit)})
		}
	}
	return out
}

func baseOf(cfg federation.Ref, rank uint32, c federation.Chain, sig []byte) ReceiptBase {
	return ReceiptBase{Cfg: Hash(cfg), Rank: rank, Counter: c.Counter, Prev: Hash(c.Prev), Sig: sig}
}

func (b *ReceiptBase) chain() federation.Chain {
	return federation.Chain{Counter: b.Counter, Prev: federation.Ref(b.Prev)}
}

// VoteOf returns the event content of a vote.
func VoteOf(v *federation.Vote) *VoteContent {
	c := voteOf(v)
	return &c
}

func voteOf(v *federation.Vote) VoteContent {
	return VoteContent{
		ReceiptBase: baseOf(v.Config, v.Voter, v.Chain, v.Signature), Ballot: Ballot(v.Ballot), Ref: Hash(v.Ref),
		Event: id.EventID(v.EventID), Proofs: proofsOf(v.Proofs),
	}
}

// Receipt returns the vote of an event.
func (c *VoteContent) Receipt() *federation.Vote {
	return &federation.Vote{
		Config: federation.Ref(c.Cfg), Ballot: federation.Ballot(c.Ballot), Voter: c.Rank, Ref: federation.Ref(c.Ref),
		Proofs: receiptProofs(c.Proofs), Chain: c.chain(), Signature: c.Sig, EventID: string(c.Event),
	}
}

// PromiseOf returns the event content of a promise.
func PromiseOf(p *federation.Promise) *PromiseContent {
	c := promiseOf(p)
	return &c
}

func promiseOf(p *federation.Promise) PromiseContent {
	c := PromiseContent{ReceiptBase: baseOf(p.Config, p.Promiser, p.Chain, p.Signature), Ballot: Ballot(p.Ballot)}
	if l := p.LastVote; l != nil {
		c.Last = &LastVote{Ballot: Ballot(l.Ballot), Ref: Hash(l.Ref), Epoch: l.Epoch, Proofs: proofsOf(l.Proofs)}
	}
	return c
}

// Receipt returns the promise of an event.
func (c *PromiseContent) Receipt() *federation.Promise {
	p := &federation.Promise{
		Config: federation.Ref(c.Cfg), Ballot: federation.Ballot(c.Ballot), Promiser: c.Rank, Chain: c.chain(), Signature: c.Sig,
	}
	if l := c.Last; l != nil {
		p.LastVote = &federation.LastVote{Ballot: federation.Ballot(l.Ballot), Ref: federation.Ref(l.Ref), Epoch: l.Epoch, Proofs: receiptProofs(l.Proofs)}
	}
	return p
}

// ReadyOf returns the event content of a ready receipt.
func ReadyOf(r *federation.Ready) *ReadyContent {
	return &ReadyContent{baseOf(r.Config, r.Member, r.Chain, r.Signature)}
}

// Receipt returns the ready receipt of an event.
func (c *ReadyContent) Receipt() *federation.Ready {
	return &federation.Ready{Config: federation.Ref(c.Cfg), Member: c.Rank, Chain: c.chain(), Signature: c.Sig}
}

// AcceptOf returns the event content of an accept.
func AcceptOf(a *federation.Accept) *AcceptContent {
	c := &AcceptContent{
		ReceiptBase: baseOf(a.Config, a.Ballot.Rank, a.Chain, a.Signature), Ref: Hash(a.Ref), Parent: Hash(a.Parent),
		Event: id.EventID(a.EventID), Epoch: a.Epoch, Provisional: a.Provisional,
	}
	if !a.Provisional {
		b := Ballot(a.Ballot)
		c.Ballot = &b
	}
	for _, p := range a.Promises {
		c.Promises = append(c.Promises, promiseOf(p))
	}
	for _, v := range a.Votes {
		c.Votes = append(c.Votes, voteOf(v))
	}
	return c
}

// Receipt returns the accept of an event.
func (c *AcceptContent) Receipt() *federation.Accept {
	a := &federation.Accept{
		Config: federation.Ref(c.Cfg), Provisional: c.Provisional, Ref: federation.Ref(c.Ref), Parent: federation.Ref(c.Parent),
		Epoch: c.Epoch, Chain: c.chain(), Signature: c.Sig, EventID: string(c.Event),
	}
	if c.Ballot != nil {
		a.Ballot = federation.Ballot(*c.Ballot)
	} else {
		a.Ballot.Rank = c.Rank
	}
	for i := range c.Promises {
		a.Promises = append(a.Promises, c.Promises[i].Receipt())
	}
	for i := range c.Votes {
		a.Votes = append(a.Votes, c.Votes[i].Receipt())
	}
	return a
}

// ReceiptOf returns the event type and content of any receipt of package
// federation.
func ReceiptOf(r federation.Receipt) (eventType string, content interface{ validate() error }) {
	switch r := r.(type) {
	case *federation.Accept:
		return TypeAccept, AcceptOf(r)
	case *federation.Vote:
		return TypeVote, VoteOf(r)
	case *federation.Promise:
		return TypePromise, PromiseOf(r)
	case *federation.Ready:
		return TypeReady, ReadyOf(r)
	}
	panic("rooms: internal: receipt of an unknown kind")
}

// DecodeReceipt reads the content of an event of one of the types [TypeAccept],
// [TypeVote], [TypePromise], [TypeReady], [TypeApplied] and [TypeReject] as an
// event of package federation. Signatures are federation's to check.
func DecodeReceipt(eventType, eventID string, raw []byte) (federation.Event, error) {
	switch eventType {
	case TypeAccept:
		c, err := DecodeAccept(raw)
		if err != nil {
			return nil, err
		}
		return c.Receipt(), nil
	case TypeVote:
		c, err := DecodeVote(raw)
		if err != nil {
			return nil, err
		}
		return c.Receipt(), nil
	case TypePromise:
		c, err := DecodePromise(raw)
		if err != nil {
			return nil, err
		}
		return c.Receipt(), nil
	case TypeReady:
		c, err := DecodeReady(raw)
		if err != nil {
			return nil, err
		}
		return c.Receipt(), nil
	case TypeApplied:
		c, err := DecodeApplied(raw)
		if err != nil {
			return nil, err
		}
		return c.Statement(eventID), nil
	case TypeReject:
		c, err := DecodeReject(raw)
		if err != nil {
			return nil, err
		}
		return c.Statement(eventID), nil
	}
	return nil, malformed("type", "%s is no receipt", shorten(eventType))
}
