package mls

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// largeTree makes a tree of n leaves that were added one after the other.
func largeTree(t testing.TB, w *world, n int) *ratchetTree {
	t.Helper()
	tree := newTree(w.cs, 2*n)
	for i := range n {
		tree.add(w.bundle(fmt.Sprintf("leaf%d", i)).keyPackage.LeafNode)
	}
	return tree
}

func TestHashOfLargeTree(t *testing.T) {
	w := newWorld(t, 1)
	tree := largeTree(t, w, 300)
	// One by one, and on several processors.
	serial := tree.change()
	serial.treeHash(rootIndex(serial.size))
	tree.finish()
	if !bytes.Equal(tree.rootHash(), serial.treeHash(rootIndex(serial.size))) {
		t.Fatal("the hash depends on who computes it")
	}
	ctx := &groupContext{cipherSuite: w.cs, groupID: []byte("group"), treeHash: tree.rootHash()}
	again := mustReparse(t, tree)
	if err := again.validate(w.cfg, ctx); err != nil {
		t.Fatal(err)
	}
	// A wrong signature is found wherever it is, and the lowest is named.
	for _, k := range []LeafIndex{7, 130, 299} {
		bad := tree.change()
		for _, i := range []LeafIndex{k, 299} {
			l := *tree.slot(i.node()).leaf
			l.raw = bytes.Clone(l.raw)
			l.raw[len(l.raw)-61] ^= 1
			bad.own(i.node()).leaf = &l
		}
		bad.edit = nil
		err := bad.validate(w.cfg, ctx)
		if !hasRule(err, "leaf-node/signature-invalid") || !bytes.Contains([]byte(err.Error()), fmt.Appendf(nil, "leaf %d:", k)) {
			t.Errorf("leaf %d: %v", k, err)
		}
	}
}

// TestTreesShareWithoutHarm changes trees at random and keeps all of them: an
// old tree stays as it was, whatever becomes of its successors.
func TestTreesShareWithoutHarm(t *testing.T) {
	for seed := range uint64(4) {
		w := newWorld(t, 1)
		r := rand.New(rand.NewPCG(seed, 2))
		type kept struct {
			tree      *ratchetTree
			raw, hash []byte
		}
		first := largeTree(t, w, 40)
		first.finish()
		all := []kept{{first, first.appendTo(nil), first.rootHash()}}
		for range 60 {
			tree := all[r.IntN(len(all))].tree.change()
			for range 1 + r.IntN(6) {
				i := LeafIndex(r.Uint32N(tree.size))
				l := w.bundle("x").keyPackage.LeafNode
				switch {
				case r.IntN(3) == 0:
					tree.add(l)
				case tree.leaf(i) == nil || tree.count < 2:
				case r.IntN(2) == 0:
					tree.remove(i)
					tree.truncate()
				default:
					steps := tree.filteredDirectPath(i)
					keys := make([]HPKEPublicKey, len(steps))
					for k := range keys {
						keys[k] = w.bundle("y").keyPackage.InitKey
					}
					tree.setPath(i, steps, keys)
					tree.setLeaf(i, l)
				}
			}
			tree.finish()
			all = append(all, kept{tree, tree.appendTo(nil), tree.rootHash()})
		}
		for n, k := range all {
			if !bytes.Equal(k.tree.appendTo(nil), k.raw) {
				t.Fatalf("seed %d: tree %d has changed", seed, n)
			}
			fresh := mustReparse(t, k.tree)
			if !bytes.Equal(fresh.rootHash(), k.hash) || !bytes.Equal(k.tree.rootHash(), k.hash) {
				t.Fatalf("seed %d: tree %d has a wrong hash", seed, n)
			}
			if fresh.size != k.tree.size || fresh.count != k.tree.count || fresh.last != k.tree.last {
				t.Fatalf("seed %d: tree %d has wrong counts", seed, n)
			}
			for x := range nodeIndex(k.tree.nodes()) {
				if key := k.tree.publicKey(x); key != nil && !k.tree.hasEncryptionKey(key) {
					t.Fatalf("seed %d: tree %d has lost the key of node %d", seed, n, x)
				}
			}
			if k.tree.encryptionKeys.used != fresh.encryptionKeys.used || k.tree.encryptionKeys.dups != 0 || k.tree.signatureKeys.used != fresh.signatureKeys.used {
				t.Fatalf("seed %d: tree %d counts its keys wrong", seed, n)
			}
			if len(fresh.profiles.capabilities) != len(k.tree.profiles.capabilities) {
				t.Fatalf("seed %d: tree %d counts its profiles wrong", seed, n)
			}
			for caps, p := range fresh.profiles.capabilities {
				if k.tree.profiles.capabilities[caps].members != p.members {
					t.Fatalf("seed %d: tree %d counts a profile wrong", seed, n)
				}
			}
		}
	}
}

func TestKeyIndexCountsDuplicates(t *testing.T) {
	keys := make([][]byte, 300)
	of := func(x uint32) []byte { return keys[x] }
	e := new(editToken)
	k := newKeyIndex(0, e)
	for i := range keys {
		keys[i] = []byte{byte(i % 100), byte(i % 100 >> 3)}
		k.insert(uint32(i), keys[i], of)
	}
	if k.used != 300 || k.dups != 200 {
		t.Fatalf("%d entries, %d duplicates", k.used, k.dups)
	}
	shared := k.clone(new(editToken))
	for i := range keys[:250] {
		shared.remove(uint32(i), keys[i], of)
	}
	if shared.used != 50 || shared.dups != 0 {
		t.Errorf("%d entries, %d duplicates after removing", shared.used, shared.dups)
	}
	for i := range keys {
		if x, ok := shared.find(keys[i], of); ok != (i%100 >= 50) || ok && x < 250 {
			t.Errorf("key %d: found %d, %v", i, x, ok)
		}
		if _, ok := k.find(keys[i], of); !ok {
			t.Errorf("key %d is gone from the index that was shared", i)
		}
	}
}
