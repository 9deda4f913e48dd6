package mls

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
)

// Whatever is fed, reading it allocates at most eight times its size and a
// mebibyte.
func TestReadingAllocatesInProportion(t *testing.T) {
	vec := func(b []byte) []byte { return appendOpaqueVec(nil, b) }
	rep := func(n int, b ...byte) []byte { return bytes.Repeat(b, n) }
	cat := func(p ...[]byte) []byte { return bytes.Join(p, nil) }
	leaf := unhex(t, goodLeaf)
	inputs := map[string]struct {
		v   func() interface{ unmarshal(*reader) bool }
		raw []byte
	}{
		"extensions": {func() interface{ unmarshal(*reader) bool } { return new(KeyPackage) },
			cat([]byte{0, 1, 0, 1, 0}, leaf, vec(rep(1<<20, 0x30, 0x30, 0)))},
		"proposals": {func() interface{ unmarshal(*reader) bool } { return new(commit) },
			cat(vec(rep(1<<16, 1, 0, 3, 0, 0, 0, 1)), []byte{0})},
		"references": {func() interface{ unmarshal(*reader) bool } { return new(commit) },
			cat(vec(rep(1<<16, 2, 0)), []byte{0})},
		"ciphertexts": {func() interface{ unmarshal(*reader) bool } { return new(updatePath) },
			cat(leaf, vec(cat(rep(1, 0), vec(rep(1<<16, 0, 0)), rep(1, 0), vec(rep(1<<16, 0, 0)), rep(1, 0), vec(rep(1<<16, 0, 0)))))},
		"secrets": {func() interface{ unmarshal(*reader) bool } { return new(Welcome) },
			cat([]byte{0, 1}, vec(rep(1<<16, 0, 0, 0)), []byte{0})},
		"unmerged leaves": {func() interface{ unmarshal(*reader) bool } { return new(parentNode) },
			cat([]byte{0, 0}, vec(rep(1<<20, 0, 0, 0, 1)))},
		"external senders": {func() interface{ unmarshal(*reader) bool } { return new(externalSenders) },
			vec(rep(1<<14, 0, 0, 1, 0))},
		"certificates": {func() interface{ unmarshal(*reader) bool } { return new(Credential) },
			cat([]byte{0, 2}, vec(rep(1<<20, 0)))},
		"psks": {func() interface{ unmarshal(*reader) bool } { return new(groupSecrets) },
			cat([]byte{0, 0}, vec(rep(1<<16, 1, 0, 0)))},
		"capabilities": {func() interface{ unmarshal(*reader) bool } { return new(Capabilities) },
			cat(vec(rep(1<<19, 0, 1)), []byte{0, 0, 0, 0})},
	}
	measure := func(name string, size int, read func() error) {
		t.Helper()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := read()
		runtime.ReadMemStats(&after)
		n := int(after.TotalAlloc - before.TotalAlloc)
		t.Logf("%s: %d bytes in, %d allocated: %v", name, size, n, err)
		if n > 8*size+1<<20 {
			t.Errorf("%s: %d bytes allocated for %d", name, n, size)
		}
	}
	for name, in := range inputs {
		v := in.v()
		measure(name, len(in.raw), func() error { return unmarshal(in.raw, v) })
	}
	// Trees whose nodes are nearly all blank, of which each is one byte.
	for _, n := range []int{20_000, 39_998} {
		tree := vec(cat(rep(n, 0), []byte{1, nodeTypeLeaf}, leaf))
		measure(fmt.Sprintf("tree of %d blanks", n), len(tree), func() error {
			_, err := parseTree(1, tree, (*Config)(nil).limits())
			if err != nil {
				t.Errorf("the tree is refused: %v", err)
			}
			return err
		})
	}
	tree := vec(rep(1<<22, 0))
	measure("tree", len(tree), func() error {
		_, err := parseTree(1, tree, (*Config)(nil).limits())
		return err
	})
}
