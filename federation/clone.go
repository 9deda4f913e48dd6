package federation

import (
	"bytes"
	"slices"
)

// What a machine keeps shares no memory with its caller's values.

func cloneApplied(a *Applied) *Applied {
	c := *a
	c.Signature = bytes.Clone(a.Signature)
	return &c
}

func cloneProofs(ps []Proof) []Proof {
	out := slices.Clone(ps)
	for i := range out {
		if out[i].Applied != nil {
			out[i].Applied = cloneApplied(out[i].Applied)
		}
	}
	return out
}

func cloneVote(v *Vote) *Vote {
	c := *v
	c.Proofs, c.Signature = cloneProofs(v.Proofs), bytes.Clone(v.Signature)
	return &c
}

func clonePromise(p *Promise) *Promise {
	c := *p
	c.Signature = bytes.Clone(p.Signature)
	if p.LastVote != nil {
		l := *p.LastVote
		l.Proofs = cloneProofs(l.Proofs)
		c.LastVote = &l
	}
	return &c
}

func cloneReady(r *Ready) *Ready {
	c := *r
	c.Signature = bytes.Clone(r.Signature)
	return &c
}

func cloneAccept(a *Accept) *Accept {
	c := *a
	c.Signature = bytes.Clone(a.Signature)
	c.Promises, c.Votes = nil, nil
	for _, p := range a.Promises {
		c.Promises = append(c.Promises, clonePromise(p))
	}
	for _, v := range a.Votes {
		c.Votes = append(c.Votes, cloneVote(v))
	}
	return &c
}

// sameEvent reports whether two waiting events are the same.
func sameEvent(a, b Event) bool {
	x, kindA := signatureOf(a)
	y, kindB := signatureOf(b)
	if kindA != kindB || !bytes.Equal(x, y) {
		return false
	}
	c, d := &codec{version: stateVersion}, &codec{version: stateVersion}
	c.event(&a)
	d.event(&b)
	return bytes.Equal(c.buf, d.buf)
}

// sizeOf returns the size of an event as it is stored.
func sizeOf(ev Event) int {
	c := &codec{version: stateVersion}
	c.event(&ev)
	return len(c.buf)
}

// signatureOf returns what nearly always tells events apart: the signature, or
// a commit's ref, and the kind.
func signatureOf(ev Event) ([]byte, uint32) {
	switch ev := ev.(type) {
	case *Commit:
		return ev.Ref[:], kindCommit
	case *Accept:
		return ev.Signature, kindAccept
	case *Vote:
		return ev.Signature, kindVote
	case *Promise:
		return ev.Signature, kindPromise
	case *Ready:
		return ev.Signature, kindReady
	case *Applied:
		return ev.Signature, kindApplied
	case *Rejected:
		return ev.Signature, kindRejected
	}
	return nil, 0
}
