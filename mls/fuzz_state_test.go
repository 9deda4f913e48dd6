package mls

import (
	"bytes"
	"testing"
)

// What our own store holds may be damaged: no panic, memory in proportion, and
// what is taken is written back as it was.

func FuzzLoadEpochState(f *testing.F) {
	w := newFuzzGroups(f)
	f.Add(w.epoch)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var g *Group
		var err error
		boundedMemory(t, len(raw), func() func() {
			return func() { g, err = LoadGroup(w.cfg, raw, w.ratchets) }
		})
		if err == nil && !bytes.Equal(g.EpochState(), raw) {
			t.Error("another epoch state is written than was read")
		}
	})
}

func FuzzLoadRatchetState(f *testing.F) {
	w := newFuzzGroups(f)
	f.Add(w.ratchets)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var g *Group
		var err error
		boundedMemory(t, len(raw), func() func() {
			return func() { g, err = LoadGroup(w.cfg, w.epoch, raw) }
		})
		if err == nil {
			if !bytes.Equal(g.RatchetState(), raw) {
				t.Error("another ratchet state is written than was read")
			}
			_, _ = g.Encrypt([]byte("text"), nil)
		}
	})
}

func FuzzUnmarshalStagedCommit(f *testing.F) {
	w := newFuzzGroups(f)
	g, err := LoadGroup(w.cfg, w.epoch, w.ratchets)
	if err != nil {
		f.Fatal(err)
	}
	for _, o := range []CommitOptions{{}, {Proposals: []Proposal{Remove(2)}}, {Proposals: []Proposal{Add(newTestClient(f, w.cfg, 1, 9).KeyPackage())}}} {
		sc, err := g.Commit(o)
		if err != nil {
			f.Fatal(err)
		}
		raw, err := sc.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		if raw, err = sc.MarshalOn(g); err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := groupState(g)
		var sc *StagedCommit
		var err error
		boundedMemory(t, len(raw), func() func() {
			return func() { sc, err = UnmarshalStagedCommit(w.cfg, g, raw) }
		})
		if !bytes.Equal(before, groupState(g)) {
			t.Errorf("the group has changed: %v", err)
		}
		if err != nil {
			return
		}
		if raw[0] == stagedOnFormat {
			// A difference may name what is the same; what it leads to may not differ.
			back, err := sc.MarshalOn(g)
			if err == nil {
				_, err = UnmarshalStagedCommit(w.cfg, g, back)
			}
			if err != nil {
				t.Errorf("a staged commit that was read is not read again: %v", err)
			}
			return
		}
		if back, err := sc.MarshalBinary(); err != nil || !bytes.Equal(back, raw) {
			t.Errorf("another staged commit is written than was read: %v", err)
		}
	})
}

func FuzzUnmarshalKeyPackageBundle(f *testing.F) {
	w := newFuzzGroups(f)
	raw, err := newTestClient(f, w.cfg, 1, 9).MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var b *KeyPackageBundle
		var err error
		boundedMemory(t, len(raw), func() func() {
			return func() { b, err = UnmarshalKeyPackageBundle(raw) }
		})
		if err != nil {
			return
		}
		if back, err := b.MarshalBinary(); err != nil || !bytes.Equal(back, raw) {
			t.Errorf("another bundle is written than was read: %v", err)
		}
	})
}

func FuzzUnmarshalPublicGroup(f *testing.F) {
	w := newFuzzGroups(f)
	info, err := w.groups[0].GroupInfo(GroupInfoOptions{RatchetTree: true})
	if err != nil {
		f.Fatal(err)
	}
	pg, err := NewPublicGroup(w.cfg, mustParse(f, info), nil)
	if err != nil {
		f.Fatal(err)
	}
	state, err := pg.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(state)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var pg *PublicGroup
		var err error
		boundedMemory(t, len(raw), func() func() {
			return func() { pg, err = UnmarshalPublicGroup(w.cfg, raw) }
		})
		if err != nil {
			return
		}
		if back, err := pg.MarshalBinary(); err != nil || !bytes.Equal(back, raw) {
			t.Errorf("another state is written than was read: %v", err)
		}
	})
}
