package mls

import "hash/maphash"

// A keyIndex finds the tree node that holds a public key. RFC 9420, Section 7.3
// wants encryption keys unique among all nodes and signature keys unique among
// all leaves; the index answers that without walking the tree.
//
// It is an open hash table of node numbers, cut into pages that are shared
// between the trees of neighbouring epochs: a change copies one page. The keys
// themselves stay in the tree. The hash is seeded at random, so that nobody
// can choose keys that collide.
type keyIndex struct {
	seed  maphash.Seed
	pages []*indexPage
	mask  uint32 // slots - 1
	used  int
	dups  int // entries whose key another entry holds as well
	edit  *editToken
}

const indexPageBits = 6
const indexPageSize = 1 << indexPageBits

type indexPage struct {
	edit  *editToken
	slots [indexPageSize]uint32 // node number + 1; 0 is free
}

// keyOf returns the key that the index's entry x stands for.
type keyOf func(x uint32) []byte

func newKeyIndex(entries int, edit *editToken) keyIndex {
	size := uint32(indexPageSize)
	for uint64(size) < 2*uint64(entries) {
		size *= 2
	}
	k := keyIndex{seed: maphash.MakeSeed(), mask: size - 1, edit: edit}
	k.pages = make([]*indexPage, size/indexPageSize)
	for i := range k.pages {
		k.pages[i] = &indexPage{edit: edit}
	}
	return k
}

// clone returns an index that shares every page with k until it is changed.
func (k *keyIndex) clone(edit *editToken) keyIndex {
	c := *k
	c.pages = append([]*indexPage(nil), k.pages...)
	c.edit = edit
	return c
}

func (k *keyIndex) hash(key []byte) uint32 {
	return uint32(maphash.Bytes(k.seed, key)) & k.mask
}

func (k *keyIndex) at(i uint32) uint32 {
	return k.pages[i>>indexPageBits].slots[i&(indexPageSize-1)]
}

func (k *keyIndex) put(i, v uint32) {
	p := k.pages[i>>indexPageBits]
	if p.edit != k.edit {
		c := &indexPage{edit: k.edit, slots: p.slots}
		k.pages[i>>indexPageBits] = c
		p = c
	}
	p.slots[i&(indexPageSize-1)] = v
}

// find returns a node that holds key.
func (k *keyIndex) find(key []byte, of keyOf) (uint32, bool) {
	for i := k.hash(key); ; i = (i + 1) & k.mask {
		v := k.at(i)
		if v == 0 {
			return 0, false
		}
		if string(of(v-1)) == string(key) {
			return v - 1, true
		}
	}
}

// insert adds node x with the given key. A key that is there already is kept
// twice and counted, because proposals may pass through such a state on the
// way to a valid tree.
func (k *keyIndex) insert(x uint32, key []byte, of keyOf) {
	if 2*(k.used+1) > len(k.pages)*indexPageSize {
		k.grow(of)
	}
	i := k.hash(key)
	for there := false; ; i = (i + 1) & k.mask {
		v := k.at(i)
		if v == 0 {
			break
		}
		if !there && string(of(v-1)) == string(key) {
			there = true
			k.dups++
		}
	}
	k.put(i, x+1)
	k.used++
}

// place puts in node x, with a key that need not be looked for.
func (k *keyIndex) place(x uint32, key []byte) {
	i := k.hash(key)
	for k.at(i) != 0 {
		i = (i + 1) & k.mask
	}
	k.put(i, x+1)
}

func (k *keyIndex) grow(of keyOf) {
	old := k.pages
	size := 2 * uint32(len(old)) * indexPageSize
	k.mask = size - 1
	k.pages = make([]*indexPage, size/indexPageSize)
	for i := range k.pages {
		k.pages[i] = &indexPage{edit: k.edit}
	}
	for _, p := range old {
		for _, v := range p.slots {
			if v != 0 {
				k.place(v-1, of(v-1))
			}
		}
	}
}

// remove takes out node x, which holds key.
func (k *keyIndex) remove(x uint32, key []byte, of keyOf) {
	i := k.hash(key)
	for k.at(i) != x+1 {
		if k.at(i) == 0 {
			return
		}
		i = (i + 1) & k.mask
	}
	k.used--
	// Close the gap: move back every later entry of the run that may not
	// stay behind a free slot.
	hole := i
	for j := (i + 1) & k.mask; ; j = (j + 1) & k.mask {
		v := k.at(j)
		if v == 0 {
			break
		}
		home := k.hash(of(v - 1))
		if (j-home)&k.mask >= (j-hole)&k.mask {
			k.put(hole, v)
			hole = j
		}
	}
	k.put(hole, 0)
	if k.dups > 0 {
		if _, ok := k.find(key, of); ok {
			k.dups--
		}
	}
}
