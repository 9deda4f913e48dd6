package federation

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// codec writes or reads the persisted state; one function per type does both,
// so that they cannot disagree.
type codec struct {
	reading bool
	version uint32
	buf     []byte
	err     error
}

var errState = errors.New("federation: saved state is damaged; restore a backup or rebuild the room")

func (c *codec) fail() {
	if c.err == nil {
		c.err = errState
	}
}

func (c *codec) take(n int) []byte {
	if c.err != nil || n < 0 || n > len(c.buf) {
		c.fail()
		return nil
	}
	out := c.buf[:n]
	c.buf = c.buf[n:]
	return out
}

func (c *codec) u64(v *uint64) {
	if !c.reading {
		c.buf = binary.BigEndian.AppendUint64(c.buf, *v)
	} else if b := c.take(8); b != nil {
		*v = binary.BigEndian.Uint64(b)
	}
}

func (c *codec) u32(v *uint32) {
	if !c.reading {
		c.buf = binary.BigEndian.AppendUint32(c.buf, *v)
	} else if b := c.take(4); b != nil {
		*v = binary.BigEndian.Uint32(b)
	}
}

func (c *codec) u16(v *uint16) {
	x := uint32(*v)
	c.u32(&x)
	if x > 0xffff {
		c.fail()
	}
	*v = uint16(x)
}

func (c *codec) int(v *int) {
	x := uint64(*v)
	c.u64(&x)
	if x > 1<<62 {
		c.fail()
		return
	}
	*v = int(x)
}

func (c *codec) bool(v *bool) {
	var x uint32
	if *v {
		x = 1
	}
	c.u32(&x)
	if x > 1 {
		c.fail()
	}
	*v = x == 1
}

func (c *codec) ref(r *Ref) {
	if !c.reading {
		c.buf = append(c.buf, r[:]...)
	} else if b := c.take(len(r)); b != nil {
		copy(r[:], b)
	}
}

func (c *codec) bytes(v *[]byte) {
	n := uint32(len(*v))
	c.u32(&n)
	if !c.reading {
		c.buf = append(c.buf, *v...)
	} else if b := c.take(int(n)); b != nil && n > 0 {
		*v = bytes.Clone(b)
	}
}

func (c *codec) str(v *string) {
	b := []byte(*v)
	c.bytes(&b)
	if c.reading {
		*v = string(b)
	}
}

// count codes a length. Each element takes at least four bytes, which bounds
// what a damaged length can allocate.
func (c *codec) count(n int) int {
	x := uint32(n)
	c.u32(&x)
	if c.reading && int64(x)*4 > int64(len(c.buf)) {
		c.fail()
		return 0
	}
	return int(x)
}

func slice[T any](c *codec, s *[]T, f func(*T)) {
	n := c.count(len(*s))
	if c.reading {
		*s = nil
		if n > 0 {
			*s = make([]T, n)
		}
	}
	for i := 0; i < len(*s) && c.err == nil; i++ {
		f(&(*s)[i])
	}
}

func pointer[T any](c *codec, p **T, f func(*T)) {
	has := *p != nil
	c.bool(&has)
	if !has || c.err != nil {
		return
	}
	if c.reading {
		*p = new(T)
	}
	f(*p)
}

func must[T any](c *codec, p **T, f func(*T)) {
	if c.reading {
		*p = new(T)
	}
	f(*p)
}

// fields codes values in order, each by its type.
func (c *codec) fields(vs ...any) {
	for _, v := range vs {
		switch v := v.(type) {
		case *bool:
			c.bool(v)
		case *int:
			c.int(v)
		case *uint16:
			c.u16(v)
		case *uint32:
			c.u32(v)
		case *uint64:
			c.u64(v)
		case *string:
			c.str(v)
		case *[]byte:
			c.bytes(v)
		case *Ref:
			c.ref(v)
		case *[32]byte:
			c.ref((*Ref)(v))
		case *time.Duration:
			x := uint64(*v)
			c.u64(&x)
			*v = time.Duration(x)
		case *OnPartition:
			x := uint16(*v)
			c.u16(&x)
			*v = OnPartition(x)
		case *Ballot:
			c.fields(&v.Round, &v.Rank)
		case *Chain:
			c.fields(&v.Counter, &v.Prev)
		case *List:
			slice(c, (*[]Sequencer)(v), func(s *Sequencer) { c.fields(&s.Server, &s.User, &s.ReceiptKey) })
		case *[]string:
			slice(c, v, c.str)
		case *[]uint32:
			slice(c, v, c.u32)
		case *[]Leaf:
			slice(c, v, c.leaf)
		case *[]Proof:
			slice(c, v, c.proof)
		case *[]*Vote:
			slice(c, v, func(v **Vote) { must(c, v, c.vote) })
		case *[]*Promise:
			slice(c, v, func(p **Promise) { must(c, p, c.promise) })
		case **Applied:
			pointer(c, v, c.applied)
		case **LastVote:
			pointer(c, v, c.lastVote)
		case **Policy:
			pointer(c, v, c.policy)
		default:
			panic(fmt.Sprintf("federation: internal: no form for a saved %T", v))
		}
	}
}

func (c *codec) leaf(l *Leaf)   { c.fields(&l.Index, &l.User, &l.Key) }
func (c *codec) proof(p *Proof) { c.fields(&p.Applied, &p.Commit) }

func (c *codec) policy(p *Policy) {
	c.fields(&p.Sequencers, &p.Admins)
	slice(c, &p.Heirs, func(h *Heir) { c.fields(&h.User, &h.Server) })
	c.fields(&p.Takeover, &p.HeirsWait, &p.Window, &p.OnPartition)
}

func (c *codec) commit(x *Commit) {
	c.fields(&x.Ref, &x.Parent, &x.EventID, &x.ParentEvent, &x.Epoch, &x.Author, &x.AuthorUser, &x.External, &x.Removed, &x.Updated, &x.Added, &x.Policy)
	pointer(c, &x.Era, func(e *Era) { c.fields(&e.Number, &e.ByHeirs, &e.Signers) })
	pointer(c, &x.Founding, func(f *Founding) { c.fields(&f.GroupID, &f.Suite, &f.Leaves) })
	c.fields(&x.OnlyRemoves, &x.Barred)
}

func (c *codec) applied(a *Applied) {
	c.fields(&a.Ref, &a.Leaf, &a.Hash, &a.Signature, &a.EventID)
}

func (c *codec) rejected(r *Rejected) {
	c.fields(&r.Ref, &r.Leaf, &r.Rule, &r.Signature, &r.EventID)
}

func (c *codec) vote(v *Vote) {
	c.fields(&v.Config, &v.Ballot, &v.Voter, &v.Ref, &v.Proofs, &v.Chain, &v.Signature, &v.EventID)
}

func (c *codec) lastVote(v *LastVote) {
	c.fields(&v.Ballot, &v.Ref, &v.Proofs)
	if c.version >= 4 {
		c.fields(&v.Epoch)
	}
}

func (c *codec) promise(p *Promise) {
	c.fields(&p.Config, &p.Ballot, &p.Promiser, &p.LastVote, &p.Chain, &p.Signature)
}

func (c *codec) accept(a *Accept) {
	c.fields(&a.Config, &a.Ballot, &a.Provisional, &a.Ref, &a.Parent, &a.Epoch, &a.Promises, &a.Votes, &a.Chain, &a.Signature, &a.EventID)
}

func (c *codec) ready(r *Ready) { c.fields(&r.Config, &r.Member, &r.Chain, &r.Signature) }

func (c *codec) step(s *ProofStep) {
	c.fields(&s.Ref, &s.Parent, &s.EventID, &s.Epoch, &s.Sets)
	if c.version >= 5 {
		c.fields(&s.Policy)
	}
	c.fields(&s.Era, &s.Config, &s.Votes)
	slice(c, &s.Above, func(l *ProofLink) { c.fields(&l.Ref, &l.Parent, &l.EventID) })
	c.fields(&s.Vouchers)
	slice(c, &s.Keys, func(k *ProofKey) { c.fields(&k.Ref); c.leaf(&k.Leaf); c.fields(&k.Group, &k.Suite) })
}

// The kinds of events in saved states.
const (
	kindCommit uint32 = 1 + iota
	kindAccept
	kindVote
	kindPromise
	kindReady
	kindApplied
	kindRejected
)

// event codes an event with its kind in front.
func (c *codec) event(ev *Event) {
	_, kind := signatureOf(*ev)
	c.u32(&kind)
	switch kind {
	case kindCommit:
		codeAs(c, ev, c.commit)
	case kindAccept:
		codeAs(c, ev, c.accept)
	case kindVote:
		codeAs(c, ev, c.vote)
	case kindPromise:
		codeAs(c, ev, c.promise)
	case kindReady:
		codeAs(c, ev, c.ready)
	case kindApplied:
		codeAs(c, ev, c.applied)
	case kindRejected:
		codeAs(c, ev, c.rejected)
	default:
		c.fail()
	}
}

func codeAs[T any, P interface {
	*T
	Event
}](c *codec, ev *Event, f func(*T)) {
	if c.reading {
		v := P(new(T))
		f(v)
		*ev = v
		return
	}
	f((*ev).(P))
}
