package mls

import (
	"bytes"
	"fmt"
	"io"
)

// A nodeKey is a private key of the ratchet tree with its public half.
type nodeKey struct {
	priv hpkePrivateKey
	pub  HPKEPublicKey
}

// nodeKeys are the private keys that one member holds: those of its leaf and of
// nodes on its direct path.
type nodeKeys map[nodeIndex]nodeKey

// keep returns the keys that belong to nodes of t.
func (k nodeKeys) keep(t *ratchetTree) nodeKeys {
	out := make(nodeKeys, len(k)+1)
	for x, key := range k {
		if x.inTree(t.size) && bytes.Equal(t.publicKey(x), key.pub) {
			out[x] = key
		}
	}
	return out
}

// A pathSecret is the secret of one node of a filtered direct path.
type pathSecret struct {
	step   pathStep
	secret secret
}

// derivePath derives keys for the steps from a secret for the first of them,
// and the commit secret that follows the last. RFC 9420, Section 7.4.
func derivePath(cs CipherSuite, first secret, steps []pathStep) ([]pathSecret, []nodeKey, secret, error) {
	secrets := make([]pathSecret, len(steps))
	keys := make([]nodeKey, len(steps))
	s := first
	for i, step := range steps {
		node := cs.deriveSecret(s, "node")
		priv, pub, err := cs.deriveKeyPair(node)
		node.zero()
		if err != nil {
			return nil, nil, nil, fmt.Errorf("mls: deriving the key of node %d: %w", step.node, err)
		}
		keys[i] = nodeKey{priv, pub}
		secrets[i] = pathSecret{step, s}
		s = cs.deriveSecret(s, "path")
	}
	return secrets, keys, s, nil
}

// A newPath is a committer's path before it is encrypted.
type newPath struct {
	leaf         *LeafNode
	secrets      []pathSecret
	keys         nodeKeys // all private keys of the path, the leaf's included
	commitSecret secret
}

// createPath gives the direct path of index new keys and puts them into the
// tree. fill completes and signs the leaf once its parent hash is known. RFC
// 9420, Section 7.5.
func (t *ratchetTree) createPath(index LeafIndex, rand io.Reader, makeLeaf func(pub HPKEPublicKey, parentHash []byte) (*LeafNode, error)) (*newPath, error) {
	leafPriv, leafPub, err := t.cs.generateKeyPair(rand)
	if err != nil {
		return nil, fmt.Errorf("mls: generating a leaf key: %w", err)
	}
	first := make(secret, t.cs.HashLen())
	if _, err := io.ReadFull(rand, first); err != nil {
		return nil, fmt.Errorf("mls: generating a path secret: %w", err)
	}
	steps := t.filteredDirectPath(index)
	secrets, keys, commitSecret, err := derivePath(t.cs, first, steps)
	if err != nil {
		return nil, err
	}
	pubs := make([]HPKEPublicKey, len(keys))
	for i := range keys {
		pubs[i] = keys[i].pub
	}
	parentHash := t.setPath(index, steps, pubs)
	leaf, err := makeLeaf(leafPub, parentHash)
	if err != nil {
		return nil, err
	}
	t.setLeaf(index, leaf)
	p := &newPath{leaf: leaf, secrets: secrets, commitSecret: commitSecret, keys: nodeKeys{index.node(): {leafPriv, leafPub}}}
	for i := range steps {
		p.keys[steps[i].node] = keys[i]
	}
	return p, nil
}

// setPath blanks the direct path of a leaf, puts new keys at its filtered
// nodes, and returns the parent hash that the leaf must carry. RFC 9420,
// Sections 7.5 and 7.9.1.
func (t *ratchetTree) setPath(index LeafIndex, steps []pathStep, keys []HPKEPublicKey) []byte {
	t.blankPath(index)
	var above []byte // the root has an empty parent_hash
	for i := len(steps) - 1; i >= 0; i-- {
		p := &parentNode{encryptionKey: keys[i], parentHash: above}
		t.setParent(steps[i].node, p)
		above = t.parentHash(p, steps[i].copath)
	}
	return above
}

// recipients returns the nodes to which the secret of a step is encrypted: the
// resolution of its child on the copath without the leaves that the Commit
// adds, which learn it from the Welcome. RFC 9420, Section 7.6.
func (t *ratchetTree) recipients(buf []nodeIndex, step pathStep, added []LeafIndex) []nodeIndex {
	r := t.appendResolution(buf[:0], step.copath)
	if len(added) == 0 {
		return r
	}
	// added is sorted: leaves are taken from left to right.
	out := r[:0]
	for _, x := range r {
		if x.isLeaf() {
			if below, _ := splitLeaves(added, uint32(x.leaf())); len(below) < len(added) && added[len(below)] == x.leaf() {
				continue
			}
		}
		out = append(out, x)
	}
	return out
}

// encrypt seals the secrets of the path. t must be finished, so that the group
// context could name its hash.
func (p *newPath) encrypt(t *ratchetTree, added []LeafIndex, groupContext []byte, rand io.Reader) (*updatePath, error) {
	up := &updatePath{leaf: p.leaf, nodes: make([]updatePathNode, len(p.secrets))}
	var buf []nodeIndex
	var pubs []HPKEPublicKey
	var of []int // the step of each recipient
	for i := range p.secrets {
		step := p.secrets[i].step
		up.nodes[i].encryptionKey = t.publicKey(step.node)
		buf = t.recipients(buf, step, added)
		for _, x := range buf {
			pubs = append(pubs, t.publicKey(x))
			of = append(of, i)
		}
	}
	seal := newSealer(t.cs, "UpdatePathNode", groupContext)
	cts, err := seal.sealAll(rand, pubs, func(k int) secret { return p.secrets[of[k]].secret.clone() })
	if err != nil {
		return nil, fmt.Errorf("mls: encrypting path secrets: %w", err)
	}
	for k, i := range of {
		up.nodes[i].ciphertexts = append(up.nodes[i].ciphertexts, cts[k])
	}
	return up, nil
}

// secretFor returns the path secret that the Welcome gives to a new member: the
// one of the lowest node above both it and the committer.
func (p *newPath) secretFor(committer, member LeafIndex) secret {
	x := commonAncestor(committer.node(), member.node())
	for i := range p.secrets {
		if p.secrets[i].step.node == x {
			return p.secrets[i].secret
		}
	}
	return nil
}

// zero wipes the secrets of a path, but not its keys.
func (p *newPath) zero() {
	for i := range p.secrets {
		p.secrets[i].secret.zero()
	}
}

// applyPath checks an UpdatePath by index as far as anybody can and puts it
// into the tree, to which the Commit's proposals have been applied. RFC 9420,
// Sections 7.5, 7.6 and 12.4.2. The leaf has been checked already.
func (t *ratchetTree) applyPath(index LeafIndex, path *updatePath, added []LeafIndex) ([]pathStep, error) {
	steps := t.filteredDirectPath(index)
	if len(path.nodes) != len(steps) {
		return nil, invalid("commit/path-length", "7.6", "an UpdatePath of %d nodes where %d are due", len(path.nodes), len(steps))
	}
	keys := make([]HPKEPublicKey, len(steps))
	var buf []nodeIndex
	for i := range path.nodes {
		n := &path.nodes[i]
		buf = t.recipients(buf, steps[i], added)
		if len(n.ciphertexts) != len(buf) {
			return nil, invalid("commit/path-ciphertext-count", "7.6", "%d ciphertexts for node %d where %d are due", len(n.ciphertexts), steps[i].node, len(buf))
		}
		if err := t.cs.validateHPKEPublicKey(n.encryptionKey); err != nil {
			return nil, fmt.Errorf("mls: encryption key of path node %d: %w", steps[i].node, err)
		}
		if t.hasEncryptionKey(n.encryptionKey) {
			return nil, invalid("commit/path-key-reused", "12.4.2", "the key of path node %d is in the tree already", steps[i].node)
		}
		for _, k := range keys[:i] {
			if bytes.Equal(k, n.encryptionKey) {
				return nil, invalid("commit/path-keys-equal", "12.4.2", "two nodes of the path have the same key")
			}
		}
		if bytes.Equal(n.encryptionKey, path.leaf.EncryptionKey) {
			return nil, invalid("commit/path-keys-equal", "12.4.2", "the leaf and a node of the path have the same key")
		}
		keys[i] = bytes.Clone(n.encryptionKey)
	}
	if t.hasEncryptionKey(path.leaf.EncryptionKey) {
		return nil, invalid("leaf-node/encryption-key-not-unique", "7.3", "the encryption_key of the path's leaf is in the tree already")
	}
	if want := t.setPath(index, steps, keys); !bytes.Equal(want, path.leaf.ParentHash) {
		return nil, invalid("commit/path-parent-hash", "7.9.2", "the parent_hash of the path's leaf is not the path's")
	}
	t.setLeaf(index, path.leaf)
	return steps, nil
}

// openPath decrypts the path secret meant for the member own, who holds keys
// for the tree without the path, and derives the keys above. t is the tree
// with the path. It returns the member's new keys and the commit secret. RFC
// 9420, Section 7.5.
func (t *ratchetTree) openPath(own LeafIndex, keys nodeKeys, steps []pathStep, path *updatePath, added []LeafIndex, groupContext []byte) (nodeKeys, secret, error) {
	for i, step := range steps {
		if !step.copath.contains(own.node()) {
			continue
		}
		for k, x := range t.recipients(nil, step, added) {
			key, ok := keys[x]
			if !ok || !bytes.Equal(key.pub, t.publicKey(x)) {
				continue
			}
			ps, err := t.cs.decryptWithLabel(key.priv, key.pub, "UpdatePathNode", groupContext, path.nodes[i].ciphertexts[k])
			if err != nil {
				return nil, nil, invalid("commit/path-secret-undecryptable", "7.5", "the path secret for node %d: %w", step.node, err)
			}
			return t.mergePath(keys, ps, steps[i:])
		}
		return nil, nil, invalid("commit/path-secret-undecryptable", "7.5", "no ciphertext is for a key of ours")
	}
	return nil, nil, invalid("commit/path-secret-undecryptable", "7.5", "the path does not lead to us")
}

// mergePath derives the keys of steps from a path secret, which it wipes,
// compares them with the tree, and adds them to keys.
func (t *ratchetTree) mergePath(keys nodeKeys, ps secret, steps []pathStep) (nodeKeys, secret, error) {
	if len(ps) != t.cs.HashLen() {
		return nil, nil, invalid("commit/path-secret-undecryptable", "7.4", "a path secret of %d bytes where %d are due", len(ps), t.cs.HashLen())
	}
	secrets, derived, commitSecret, err := derivePath(t.cs, ps, steps)
	if err != nil {
		return nil, nil, err
	}
	for i := range secrets {
		secrets[i].secret.zero()
	}
	out := keys.keep(t)
	for i, step := range steps {
		if !bytes.Equal(derived[i].pub, t.publicKey(step.node)) {
			return nil, nil, invalid("commit/path-public-key-mismatch", "7.5", "the key derived for node %d is not the one in the tree", step.node)
		}
		out[step.node] = derived[i]
	}
	return out, commitSecret, nil
}
