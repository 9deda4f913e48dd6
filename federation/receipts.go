package federation

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"slices"
)

// receipts are those under one list whose signature, signer and refs were
// checked. Whether they count is evaluated.
type receipts struct {
	accepts  []heldAccept // in the order of compare, as are the next two
	votes    []heldVote
	promises []*Promise
	readies  []*heldReady // by member

	fresh []Receipt  // not looked at for evidence yet
	valid []accepted // derived: by ballot
}

type heldAccept struct {
	*Accept
	node *node
}

type heldVote struct {
	*Vote
	node *node
}

// heldReady is the newest ready receipt of a module for a list.
type heldReady struct {
	*Ready
	age timer
}

func (rs *receipts) len() int {
	return len(rs.accepts) + len(rs.votes) + len(rs.promises) + len(rs.readies)
}

func (m *Machine) receiptsOf(config Ref) *receipts {
	rs := m.lists[config]
	if rs == nil {
		rs = &receipts{}
		m.lists[config] = rs
	}
	return rs
}

func (m *Machine) roomFor(config, ref Ref) error {
	if rs := m.lists[config]; rs != nil && rs.len() >= m.cfg.Limits.Receipts {
		return refuse(RuleTooMany, ref, "%d receipts under one list", rs.len())
	}
	return nil
}

// spare is how many receipts of a list are left to what brings a commit to
// finality, and so makes room again: no new commit is accepted into it.
func (m *Machine) spare() int { return max(m.cfg.Limits.Receipts/8, 4) }

// space reports whether so many more receipts under a list can be kept.
func (m *Machine) space(config Ref, more int) bool {
	rs := m.lists[config]
	return rs == nil || rs.len()+more <= m.cfg.Limits.Receipts
}

// signer returns the list entry of a rank and checks the receipt's signature
// by its key.
func (m *Machine) signer(r Receipt, list List, rank uint32, ref Ref) error {
	if int64(rank) >= int64(len(list)) {
		return refuse(RuleForged, ref, "signer %d of a list of %d", rank, len(list))
	}
	if r == m.signing || m.holds(r) {
		return nil
	}
	s := Scope{Room: m.cfg.Room}
	var hash Ref
	if m.cfg.verified != nil {
		if hash = r.Hash(s); m.cfg.verified[hash] == string(list[rank].ReceiptKey) {
			return nil
		}
	}
	if err := r.VerifySignature(s, ed25519.PublicKey(list[rank].ReceiptKey)); err != nil {
		return refuse(RuleForged, ref, "receipt of %s: %w", list[rank].User, err)
	}
	if m.cfg.verified != nil {
		m.cfg.verified[hash] = string(list[rank].ReceiptKey)
	}
	return nil
}

// holds reports whether the very receipt is held already: it was checked then.
// Promises come again with each accept of their ballot.
func (m *Machine) holds(r Receipt) bool {
	var o Receipt
	switch r := r.(type) {
	case *Accept:
		rs := m.lists[r.Config]
		if rs == nil {
			return false
		}
		if at, ok := rs.findAccept(r); ok {
			o = rs.accepts[at].Accept
		}
	case *Vote:
		rs := m.lists[r.Config]
		if rs == nil {
			return false
		}
		if at, ok := rs.findVote(r); ok {
			o = rs.votes[at].Vote
		}
	case *Promise:
		rs := m.lists[r.Config]
		if rs == nil {
			return false
		}
		if at, ok := rs.findPromise(r); ok {
			o = rs.promises[at]
		}
	}
	s := Scope{Room: m.cfg.Room}
	return o != nil && bytes.Equal(o.SignedBytes(s), r.SignedBytes(s))
}

// Checks returns how many signatures Step has to check to take a receipt or an applied
// statement, with what it carries: those that are not held as they are. What waits for
// its commit is checked later, and counted all the same.
func (m *Machine) Checks(ev Event) (n int) {
	proofs := func(ps []Proof) {
		for _, p := range ps {
			if p.Applied != nil {
				n += m.Checks(p.Applied)
			}
		}
	}
	switch ev := ev.(type) {
	case *Applied:
		at, ok := m.nodes[ev.Ref]
		if !ok || !at.checked(ev) {
			n++
		}
		return n
	case *Vote:
		proofs(ev.Proofs)
	case *Promise:
		if ev.LastVote != nil {
			proofs(ev.LastVote.Proofs)
		}
	case *Accept:
		for _, v := range ev.Votes {
			n += m.Checks(v)
		}
		for _, p := range ev.Promises {
			n += m.Checks(p)
		}
	}
	if r, ok := ev.(Receipt); ok && !m.holds(r) {
		n++
	}
	return n
}

func (rs *receipts) findAccept(a *Accept) (int, bool) {
	return slices.BinarySearchFunc(rs.accepts, a, func(h heldAccept, a *Accept) int { return h.compare(a) })
}

func (rs *receipts) findVote(v *Vote) (int, bool) {
	return slices.BinarySearchFunc(rs.votes, v, func(h heldVote, v *Vote) int { return h.compare(v) })
}

func (rs *receipts) findPromise(p *Promise) (int, bool) {
	return slices.BinarySearchFunc(rs.promises, p, (*Promise).compare)
}

// governed finds the list and the commit a receipt is about. With wait set,
// one of them is not held yet.
func (m *Machine) governed(config, ref Ref, hint string, b *batch) (List, *node, Ref, error) {
	n, ok := m.nodes[ref]
	if !ok {
		if !m.lost(ref) {
			b.fetchCommit(ref, hint)
		}
		return nil, nil, ref, nil
	}
	list, _, ok := m.list(config)
	if !ok {
		b.fetchCommit(config, "")
		return nil, nil, config, nil
	}
	if n.governing() != config {
		return nil, nil, Ref{}, refuse(RuleForged, ref, "list %s does not govern the commit", config.Short())
	}
	return list, n, Ref{}, nil
}

func checkBallot(b Ballot, ref Ref) error {
	if b.Round == 0 && b.Rank != 0 {
		return refuse(RuleForged, ref, "round 0 has rank 0 only, not %d", b.Rank)
	}
	return nil
}

func (m *Machine) putAccept(a *Accept, b *batch) (bool, error) {
	switch {
	case a.Ref.IsZero() || a.Config.IsZero() || a.Chain.Counter == 0:
		return false, refuse(RuleMalformed, a.Ref, "accept without ref, list or counter")
	case len(a.Promises) > maxPromises || len(a.Votes) > maxVotes || len(a.EventID) > maxID:
		return false, refuse(RuleMalformed, a.Ref, "accept with %d promises and %d votes", len(a.Promises), len(a.Votes))
	case a.Provisional && (a.Ballot.Round != 0 || len(a.Promises) != 0):
		return false, refuse(RuleMalformed, a.Ref, "provisional accept with a ballot")
	case a.Ballot.Round == 0 && len(a.Promises) != 0:
		return false, refuse(RuleMalformed, a.Ref, "accept of round 0 with promises")
	}
	if !a.Provisional {
		if err := checkBallot(a.Ballot, a.Ref); err != nil {
			return false, err
		}
	}
	if a.Ref == m.base.ref {
		return false, nil
	}
	if m.oldAccept(a) {
		m.wait(a.Ref, a, false) // most likely in vain, so neither written at once nor fetched
		return false, nil
	}
	list, n, on, err := m.governed(a.Config, a.Ref, a.EventID, b)
	if err != nil {
		return false, err
	}
	if n == nil {
		return m.waitReceipt(on, a, b)
	}
	if n.c.Parent != a.Parent || n.epoch != a.Epoch {
		return false, refuse(RuleForged, a.Ref, "parent or epoch is not the commit's")
	}
	if err := m.signer(a, list, a.Ballot.Rank, a.Ref); err != nil {
		return false, err
	}
	for _, p := range a.Promises {
		if p == nil || p.Config != a.Config || p.Ballot != a.Ballot {
			return false, refuse(RuleForged, a.Ref, "a promise for another list or ballot")
		}
		if err := m.checkPromise(p, list); err != nil {
			return false, err
		}
	}
	for _, v := range a.Votes {
		if v == nil || v.Config != a.Config || v.Voter != a.Ballot.Rank {
			return false, refuse(RuleForged, a.Ref, "a vote of another sequencer or list")
		}
		if err := m.checkVote(v, list); err != nil {
			return false, err
		}
	}
	rs := m.receiptsOf(a.Config)
	changed, kept := false, (*Accept)(nil)
	at, held := rs.findAccept(a)
	if !held {
		if err := m.roomFor(a.Config, a.Ref); err != nil {
			return false, err
		}
		h := heldAccept{cloneAccept(a), n}
		rs.accepts = slices.Insert(rs.accepts, at, h)
		rs.fresh = append(rs.fresh, h.Accept)
		changed, kept = true, h.Accept
	}
	for _, v := range a.Votes {
		c, err := m.putVote(v, b)
		changed = changed || c && err == nil
	}
	for _, p := range a.Promises {
		c, err := m.putPromise(p, b)
		changed = changed || c && err == nil
	}
	if kept != nil { // what it carries stands before it in the chain
		m.chain(kept, list[a.Ballot.Rank], b)
	}
	return changed, nil
}

// oldAccept reports whether an accept is about a commit below everything that is
// kept, or about one of a group that is still to be founded.
func (m *Machine) oldAccept(a *Accept) bool {
	_, held := m.nodes[a.Ref]
	_, next := m.nodes[a.Parent]
	return !held && !next && m.TooOld(a.Epoch)
}

func (m *Machine) checkProofs(ref Ref, ps []Proof) error {
	if len(ps) > maxProofs {
		return refuse(RuleMalformed, ref, "%d proofs, at most %d", len(ps), maxProofs)
	}
	for _, p := range ps {
		if p.Applied == nil && p.Commit.IsZero() || p.Applied != nil && len(p.Applied.Signature) > maxSig {
			return refuse(RuleMalformed, ref, "an empty proof")
		}
	}
	return nil
}

func (m *Machine) checkVote(v *Vote, list List) error {
	if v.Ref.IsZero() || v.Config.IsZero() || v.Chain.Counter == 0 || len(v.EventID) > maxID {
		return refuse(RuleMalformed, v.Ref, "vote without ref, list or counter")
	}
	if err := checkBallot(v.Ballot, v.Ref); err != nil {
		return err
	}
	if err := m.checkProofs(v.Ref, v.Proofs); err != nil {
		return err
	}
	if list == nil {
		return nil
	}
	if int64(v.Ballot.Rank) >= int64(len(list)) {
		return refuse(RuleForged, v.Ref, "ballot of rank %d in a list of %d", v.Ballot.Rank, len(list))
	}
	return m.signer(v, list, v.Voter, v.Ref)
}

func (m *Machine) putVote(v *Vote, b *batch) (bool, error) {
	if err := m.checkVote(v, nil); err != nil {
		return false, err
	}
	if v.Ref == m.base.ref {
		return false, nil
	}
	list, n, on, err := m.governed(v.Config, v.Ref, v.EventID, b)
	if err != nil {
		return false, err
	}
	if n == nil {
		return m.waitReceipt(on, v, b)
	}
	if err := m.checkVote(v, list); err != nil {
		return false, err
	}
	rs := m.receiptsOf(v.Config)
	changed := m.putProofs(v.Proofs, !n.votable, b)
	at, held := rs.findVote(v)
	if held {
		return changed, nil
	}
	if err := m.roomFor(v.Config, v.Ref); err != nil {
		return changed, err
	}
	h := heldVote{cloneVote(v), n}
	rs.votes = slices.Insert(rs.votes, at, h)
	rs.fresh = append(rs.fresh, h.Vote)
	m.chain(h.Vote, list[v.Voter], b)
	return true, nil
}

// putProofs records the statements that a vote carries. One that is refused
// proves nothing; the vote then waits for others. With wanted set, a commit that
// is named as a proof and not held is missing, and not one that was dropped.
func (m *Machine) putProofs(ps []Proof, wanted bool, b *batch) bool {
	changed := false
	for _, p := range ps {
		if p.Applied != nil {
			c, err := m.putApplied(p.Applied, b)
			changed = changed || c && err == nil
		} else if _, ok := m.nodes[p.Commit]; !ok && (m.complete || wanted) {
			b.fetchCommit(p.Commit, "")
		}
	}
	return changed
}

func (m *Machine) checkPromise(p *Promise, list List) error {
	if p.Config.IsZero() || p.Ballot.Round == 0 || p.Chain.Counter == 0 {
		return refuse(RuleMalformed, p.Commit(), "promise without list, round or counter")
	}
	if p.LastVote != nil {
		if p.LastVote.Ref.IsZero() || !p.LastVote.Ballot.Less(p.Ballot) {
			return refuse(RuleForged, p.Commit(), "the last vote does not lie below the promised ballot")
		}
		if err := checkBallot(p.LastVote.Ballot, p.Commit()); err != nil {
			return err
		}
		if err := m.checkProofs(p.Commit(), p.LastVote.Proofs); err != nil {
			return err
		}
	}
	if list == nil {
		return nil
	}
	if int64(p.Ballot.Rank) >= int64(len(list)) {
		return refuse(RuleForged, p.Commit(), "ballot of rank %d in a list of %d", p.Ballot.Rank, len(list))
	}
	return m.signer(p, list, p.Promiser, p.Commit())
}

func (m *Machine) putPromise(p *Promise, b *batch) (bool, error) {
	if err := m.checkPromise(p, nil); err != nil {
		return false, err
	}
	list, _, ok := m.list(p.Config)
	if !ok {
		b.fetchCommit(p.Config, "")
		return m.waitReceipt(p.Config, p, b)
	}
	if err := m.checkPromise(p, list); err != nil {
		return false, err
	}
	changed := false
	if v := p.LastVote; v != nil {
		n, ok := m.nodes[v.Ref]
		if !ok && !m.dropped(v.Ref, v.Epoch) {
			b.fetchCommit(v.Ref, "")
		}
		changed = m.putProofs(v.Proofs, ok && !n.votable, b)
	}
	rs := m.receiptsOf(p.Config)
	at, held := rs.findPromise(p)
	if held {
		return changed, nil
	}
	if err := m.roomFor(p.Config, p.Commit()); err != nil {
		return changed, err
	}
	p = clonePromise(p)
	rs.promises = slices.Insert(rs.promises, at, p)
	rs.fresh = append(rs.fresh, p)
	m.chain(p, list[p.Promiser], b)
	return true, nil
}

func (m *Machine) putReady(r *Ready, b *batch) (bool, error) {
	if r.Config.IsZero() || r.Chain.Counter == 0 {
		return false, refuse(RuleMalformed, r.Config, "ready receipt without list or counter")
	}
	list, _, ok := m.list(r.Config)
	if !ok {
		b.fetchCommit(r.Config, "")
		return m.waitReceipt(r.Config, r, b)
	}
	if err := m.signer(r, list, r.Member, r.Config); err != nil {
		return false, err
	}
	rs := m.receiptsOf(r.Config)
	at, held := slices.BinarySearchFunc(rs.readies, r.Member, func(h *heldReady, member uint32) int { return cmp.Compare(h.Member, member) })
	switch {
	case !held:
		rs.readies = slices.Insert(rs.readies, at, &heldReady{Ready: cloneReady(r)})
	case rs.readies[at].Chain.Counter >= r.Chain.Counter:
		return false, nil
	default:
		rs.readies[at] = &heldReady{Ready: cloneReady(r)} // a newer one takes its place
	}
	m.chain(rs.readies[at].Ready, list[r.Member], b)
	return true, nil
}

func (m *Machine) verifyLeaf(n *node, l *leaf, ref Ref, content, sig []byte) error {
	if m.cfg.Verify == nil {
		return refuse(RuleForged, ref, "no way to check a leaf's signature")
	}
	if err := m.cfg.Verify(n.suite, l.key, content, sig); err != nil {
		return refuse(RuleForged, ref, "statement of %s: %w", l.user, err)
	}
	return nil
}

func (m *Machine) putApplied(a *Applied, b *batch) (bool, error) {
	if a.Ref.IsZero() || len(a.Signature) == 0 || len(a.Signature) > maxSig || len(a.EventID) > maxID {
		return false, refuse(RuleMalformed, a.Ref, "statement without ref or signature")
	}
	n, ok := m.nodes[a.Ref]
	if !ok {
		b.fetchCommit(a.Ref, "")
		return m.wait(a.Ref, a, false), nil
	}
	l, ok := n.leaf(a.Leaf)
	if !ok {
		return false, refuse(RuleForged, a.Ref, "leaf %d is blank in its tree", a.Leaf)
	}
	if n.checked(a) {
		return false, nil // votes show again what came by itself
	}
	if err := m.verifyLeaf(n, l, a.Ref, a.Content(n.scope(m.cfg.Room)), a.Signature); err != nil {
		return false, err
	}
	if !n.vouch(voucher{user: l.user, leaf: a.Leaf, since: l.since, applied: cloneApplied(a)}) {
		return false, nil
	}
	m.tellsNew = true
	return true, nil
}

func (m *Machine) putRejected(r *Rejected, b *batch) (bool, error) {
	if r.Ref.IsZero() || len(r.Signature) == 0 || len(r.Signature) > maxSig || len(r.Rule) > maxRule || len(r.EventID) > maxID {
		return false, refuse(RuleMalformed, r.Ref, "statement without ref or signature, or with a long rule")
	}
	n, ok := m.nodes[r.Ref]
	if !ok {
		b.fetchCommit(r.Ref, "")
		return m.wait(r.Ref, r, false), nil
	}
	if n.up == nil {
		return false, nil
	}
	l, ok := n.up.leaf(r.Leaf)
	if !ok {
		return false, refuse(RuleForged, r.Ref, "leaf %d is blank in the parent's tree", r.Leaf)
	}
	if err := m.verifyLeaf(n.up, l, r.Ref, r.Content(n.up.scope(m.cfg.Room)), r.Signature); err != nil {
		return false, err
	}
	o := n.reject
	if o != nil && (o.Leaf < r.Leaf || o.Leaf == r.Leaf && bytes.Compare(o.Signature, r.Signature) <= 0) {
		return false, nil
	}
	c := *r
	c.Signature = bytes.Clone(r.Signature)
	n.reject, m.tellsNew = &c, true
	return true, nil
}

// chain notes a receipt in its key's chain, asks for the one before it if that
// is missing, and retires the own key if the room holds one that this machine
// did not make.
func (m *Machine) chain(r Receipt, s Sequencer, b *batch) {
	at, kept := r.Link(), m.linkOf(r)
	c := m.chains[string(s.ReceiptKey)]
	if c == nil {
		c = &chainMemory{hashes: make(map[uint64]Ref)}
		m.chains[string(s.ReceiptKey)] = c
	}
	if m.mine(s.ReceiptKey) {
		known, ok := c.hashes[at.Counter]
		if at.Counter > m.counter || ok && known != kept.hash {
			m.retire(at.Counter, b)
		}
	}
	_, hasPrev := c.hashes[at.Counter-1]
	if at.Counter > 1 && !hasPrev && (m.complete || c.top > 0 && c.top < at.Counter) {
		b.others = append(b.others, Fetch{Receipt: at.Prev, ReceiptKey: bytes.Clone(s.ReceiptKey), Counter: at.Counter - 1})
	}
	c.note(kept)
}

func (m *Machine) linkOf(r Receipt) link {
	signed := r.SignedBytes(Scope{Room: m.cfg.Room})
	sig, _ := signatureOf(r)
	return link{r, hashReceipt(signed, sig), len(signed)}
}

// retire notes that the room holds a receipt of the own key that this machine
// did not make, and reports whether that is new.
func (m *Machine) retire(counter uint64, b *batch) bool {
	if m.retired {
		return false
	}
	m.retired = true
	b.others = append(b.others, KeyRetired{Counter: counter})
	return true
}

// takeShown looks at a receipt that was shown as one of the own key.
func (m *Machine) takeShown(r Shown, b *batch) error {
	if m.cfg.Self == nil || len(m.cfg.Self.Key) != ed25519.PrivateKeySize {
		return refuse(RuleForged, Ref{}, "a receipt is shown to a machine that signs none")
	}
	own := ed25519.PublicKey(m.cfg.Self.Key[ed25519.PrivateKeySize-ed25519.PublicKeySize:])
	at, err := LinkOf(Scope{Room: m.cfg.Room}, own, r.Signed, r.Signature)
	if err != nil {
		return refuse(RuleForged, Ref{}, "a receipt that is shown as one of the own key: %w", err)
	}
	known := Ref{}
	if c := m.chains[string(own)]; c != nil {
		known = c.hashes[at.Counter]
	}
	if at.Counter > m.counter || !known.IsZero() && known != HashOf(r.Signed, r.Signature) {
		m.dirty = m.retire(at.Counter, b) || m.dirty
	}
	return nil
}

// waitReceipt keeps a receipt until the commit it names is known. One of the
// own key that is newer than this machine's newest tells already now that the
// key must not sign again: its commit may never come. One of nobody in the list that it
// names is refused at once.
func (m *Machine) waitReceipt(on Ref, r Receipt, b *batch) (bool, error) {
	listed, err := m.signedByListed(r)
	if err != nil {
		return false, err
	}
	retired := false
	if counter := r.Link().Counter; m.cfg.Self != nil && !m.retired && counter > m.counter && len(m.cfg.Self.Key) == ed25519.PrivateKeySize {
		own := ed25519.PublicKey(m.cfg.Self.Key[ed25519.PrivateKeySize-ed25519.PublicKeySize:])
		if r.VerifySignature(Scope{Room: m.cfg.Room}, own) == nil {
			retired = m.retire(counter, b)
		}
	}
	if m.lost(on) {
		return retired, nil // it would wait for ever
	}
	return m.wait(on, r, listed) || retired, nil
}

// signedByListed tells whether a receipt about a commit is signed by the sequencer that it
// names, false if the list is not held.
func (m *Machine) signedByListed(ev Event) (bool, error) {
	var config, ref Ref
	var rank uint32
	switch r := ev.(type) {
	case *Accept:
		config, ref, rank = r.Config, r.Ref, r.Ballot.Rank
	case *Vote:
		config, ref, rank = r.Config, r.Ref, r.Voter
	default:
		return false, nil // the others name their list alone
	}
	list, _, ok := m.list(config)
	if !ok {
		return false, nil
	}
	if err := m.signer(ev.(Receipt), list, rank, ref); err != nil {
		return false, err
	}
	return true, nil
}

// listCame looks again at receipts that wait for their commits and name a list that is
// held from now on: those of nobody in it are dropped, as they would have been refused.
func (m *Machine) listCame(config Ref) {
	rest := m.waiting[:0]
	for _, w := range m.waiting {
		if !w.listed && listOf(w.ev) == config {
			var err error
			if w.listed, err = m.signedByListed(w.ev); err != nil {
				continue
			}
		}
		rest = append(rest, w)
	}
	clear(m.waiting[len(rest):])
	m.waiting = rest
}

// listsWent notes which of the receipts that wait name a list that is not held any more.
func (m *Machine) listsWent() {
	for i, w := range m.waiting {
		if w.listed {
			_, _, m.waiting[i].listed = m.list(listOf(w.ev))
		}
	}
}

// listOf returns the list that a receipt about a commit names, or zero.
func listOf(ev Event) Ref {
	switch r := ev.(type) {
	case *Accept:
		return r.Config
	case *Vote:
		return r.Config
	}
	return Ref{}
}

// note remembers a receipt, which is not changed any more.
func (c *chainMemory) note(l link) {
	counter := l.receipt.Link().Counter
	if _, ok := c.hashes[counter]; !ok {
		c.hashes[counter] = l.hash
	}
	// Of two with one counter, which only a liar signs, the order in which they came
	// decides nothing.
	newer := func(than link) bool {
		if than.receipt == nil {
			return true
		}
		at := than.receipt.Link().Counter
		return counter > at || counter == at && less(l.hash, than.hash)
	}
	if newer(c.newest) {
		c.newest = l
	}
	if l.size <= smallReceipt && newer(c.small) {
		c.small = l
	}
	c.top = max(c.top, counter)
	if len(c.hashes) > chainKept {
		for k := range c.hashes {
			if k+chainKept <= c.top {
				delete(c.hashes, k)
			}
		}
	}
	for len(c.hashes) > 2*chainKept { // counters far apart: the lowest go
		low := c.top
		for k := range c.hashes {
			low = min(low, k)
		}
		delete(c.hashes, low)
	}
}

func (m *Machine) mine(key []byte) bool {
	if m.cfg.Self == nil || len(m.cfg.Self.Key) != ed25519.PrivateKeySize {
		return false
	}
	return bytes.Equal(key, m.cfg.Self.Key[ed25519.PrivateKeySize-ed25519.PublicKeySize:])
}

func (v *Vote) compare(o *Vote) int {
	switch {
	case v.Ballot != o.Ballot:
		return v.Ballot.compare(o.Ballot)
	case v.Voter != o.Voter:
		return cmp.Compare(v.Voter, o.Voter)
	case v.Ref != o.Ref:
		return bytes.Compare(v.Ref[:], o.Ref[:])
	}
	return bytes.Compare(v.Signature, o.Signature)
}

func (p *Promise) compare(o *Promise) int {
	switch {
	case p.Ballot != o.Ballot:
		return p.Ballot.compare(o.Ballot)
	case p.Promiser != o.Promiser:
		return cmp.Compare(p.Promiser, o.Promiser)
	}
	return bytes.Compare(p.Signature, o.Signature)
}
