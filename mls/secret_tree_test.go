package mls

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

func testSecret(b byte, n int) secret { return bytes.Repeat([]byte{b}, n) }

func newTestTree(n uint32) *secretTree { return newSecretTree(1, testSecret(7, 32), n) }

// use commits a key and returns a copy of it.
func mustUse(t *testing.T, st *secretTree, leaf LeafIndex, ct ContentType, g uint32, lim *Limits) string {
	t.Helper()
	u, err := st.use(leaf, ct, g, lim)
	if err != nil {
		t.Fatalf("leaf %d, generation %d: %v", leaf, g, err)
	}
	key := fmt.Sprintf("%x %x", []byte(u.key), []byte(u.nonce))
	u.commit()
	return key
}

// In whatever order leaves and generations are asked for, and whenever the
// tree is stored and read, the keys are the same.
func TestSecretTreeGivesTheSameKeysInAnyOrder(t *testing.T) {
	const leaves, generations = 13, 6
	type id struct {
		leaf LeafIndex
		ct   ContentType
		g    uint32
	}
	var ids []id
	for l := range LeafIndex(leaves) {
		for _, ct := range []ContentType{ContentTypeApplication, ContentTypeCommit} {
			for g := range uint32(generations) {
				ids = append(ids, id{l, ct, g})
			}
		}
	}
	lim := (*Config)(nil).limits()
	want := make(map[id]string)
	st := newTestTree(leaves)
	seen := make(map[string]id)
	for _, i := range ids {
		key := mustUse(t, st, i.leaf, i.ct, i.g, lim)
		if other, ok := seen[key]; ok {
			t.Fatalf("%v and %v have the same key", i, other)
		}
		want[i], seen[key] = key, i
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		st := newTestTree(leaves)
		rng.Shuffle(len(ids), func(a, b int) { ids[a], ids[b] = ids[b], ids[a] })
		for _, i := range ids {
			if got := mustUse(t, st, i.leaf, i.ct, i.g, lim); got != want[i] {
				t.Fatalf("%v: got %s, want %s", i, got, want[i])
			}
			if rng.IntN(10) == 0 {
				var ok bool
				if st, ok = unmarshalSecretTree(1, newReader(st.appendTo(nil))); !ok {
					t.Fatal("the stored tree cannot be read")
				}
			}
			if _, err := st.use(i.leaf, i.ct, i.g, lim); err == nil {
				t.Fatalf("%v was given twice", i)
			}
		}
		if st.skipped != 0 {
			t.Errorf("%d keys are kept, though all were used", st.skipped)
		}
	}
}

// A use that is dropped leaves no trace.
func TestSecretTreeUseChangesNothing(t *testing.T) {
	lim := (*Config)(nil).limits()
	st := newTestTree(8)
	for round := range 3 {
		before := st.appendTo(nil)
		for _, leaf := range []LeafIndex{0, 3, 7, 8, 1 << 31} {
			for _, g := range []uint32{0, 1, 5, 500, 5000} {
				if u, err := st.use(leaf, ContentTypeApplication, g, lim); err == nil {
					u.drop()
				}
			}
		}
		if !bytes.Equal(before, st.appendTo(nil)) {
			t.Fatalf("round %d: the tree has changed", round)
		}
		mustUse(t, st, 3, ContentTypeApplication, uint32(5*round+2), lim)
	}
}

func TestSecretTreeKeepsBoundedKeys(t *testing.T) {
	lim := &Limits{MaxForward: 50, MaxForwardTotal: 120, MaxSkipped: 20, MaxSkippedTotal: 64}
	*lim = lim.withDefaults()
	st := newTestTree(64)
	count := func() (n int) {
		for _, l := range st.ratchets {
			for _, r := range []*ratchet{&l.handshake, &l.application} {
				if len(r.skipped) > lim.MaxSkipped {
					t.Fatalf("%d keys are kept for one sender", len(r.skipped))
				}
				n += len(r.skipped)
			}
		}
		return n
	}
	for leaf := range LeafIndex(64) {
		mustUse(t, st, leaf, ContentTypeApplication, 50, lim)
		if n := count(); n != st.skipped || n > lim.MaxSkippedTotal {
			t.Fatalf("%d keys are kept, counted as %d, limit %d", n, st.skipped, lim.MaxSkippedTotal)
		}
	}
	// The newest are there, the oldest are not.
	mustUse(t, st, 63, ContentTypeApplication, 49, lim)
	_, err := st.use(0, ContentTypeApplication, 49, lim)
	wantRule(t, err, "framing/generation-too-old")

	// 50 + 50 + 20 generations may be jumped over, and no more.
	mustUse(t, st, 5, ContentTypeApplication, 101, lim)
	_, err = st.use(5, ContentTypeApplication, 123, lim)
	wantRule(t, err, "framing/generation-too-far")
	mustUse(t, st, 5, ContentTypeApplication, 122, lim)
	mustUse(t, st, 5, ContentTypeApplication, 123, lim)
	_, err = st.use(5, ContentTypeApplication, 125, lim)
	wantRule(t, err, "framing/generation-too-far")
}

// RFC 9420, Section 9.2: what was consumed is gone from memory and store.
func TestSecretTreeConsumedSecretsAreGone(t *testing.T) {
	lim := (*Config)(nil).limits()
	encryption := testSecret(9, 32)
	st := newSecretTree(1, encryption, 4)
	seen := map[string][]byte{"encryption secret": bytes.Clone(encryption)}
	alias := map[string]secret{"encryption secret": encryption}

	u, err := st.use(2, ContentTypeApplication, 0, lim)
	if err != nil {
		t.Fatal(err)
	}
	seen["first ratchet secret"] = bytes.Clone(u.leafNew.application.secret)
	alias["first ratchet secret"] = u.leafNew.application.secret
	seen["key"], alias["key"] = bytes.Clone(u.key), u.key
	seen["nonce"], alias["nonce"] = bytes.Clone(u.nonce), u.nonce
	u.commit()

	u, err = st.use(2, ContentTypeApplication, 2, lim)
	if err != nil {
		t.Fatal(err)
	}
	skipped := u.kept[0].key
	seen["skipped key"], alias["skipped key"] = bytes.Clone(skipped), skipped
	u.commit()
	if !bytes.Contains(st.appendTo(nil), seen["skipped key"]) {
		t.Error("the key of a message not yet seen is not stored")
	}
	mustUse(t, st, 2, ContentTypeApplication, 1, lim)

	stored := st.appendTo(nil)
	for name, value := range seen {
		if bytes.Contains(stored, value) {
			t.Errorf("%s is still stored", name)
		}
		if !bytes.Equal(alias[name], make([]byte, len(value))) {
			t.Errorf("%s is still in memory", name)
		}
	}
	st.zero()
	if _, err := st.use(0, ContentTypeApplication, 0, lim); err == nil {
		t.Error("a wiped tree gives keys")
	}
}

func TestSecretTreeRefusesMalformedStore(t *testing.T) {
	st := newTestTree(8)
	mustUse(t, st, 3, ContentTypeApplication, 4, (*Config)(nil).limits())
	raw := st.appendTo(nil)
	for n := range raw {
		s := newReader(raw[:n])
		if _, ok := unmarshalSecretTree(1, s); ok {
			t.Fatalf("%d of %d bytes were taken", n, len(raw))
		}
	}
	for i, b := range map[int]byte{0: 9, 1: 0xff, 4: 7} {
		bad := bytes.Clone(raw)
		bad[i] = b
		s := newReader(bad)
		_, ok := unmarshalSecretTree(1, s)
		var v *ValidationError
		if ok || !errors.As(s.error(), &v) {
			t.Errorf("byte %d changed to %d was taken", i, b)
		}
	}
}
