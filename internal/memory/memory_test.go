package memory

import (
	"runtime/debug"
	"testing"
)

func TestMemoryIsReturnedInACalmIntervalAlone(t *testing.T) {
	const big = 100 << 20
	for _, c := range []struct {
		name      string
		last, now sample
		left      uint64
		want      bool
	}{
		{"nothing happens and much is unused", sample{allocated: big, unused: big}, sample{allocated: big + calm - 1, unused: worth}, 0, true},
		{"it is busy", sample{allocated: big, unused: 0}, sample{allocated: big + calm, unused: big}, 0, false},
		{"there is little to return", sample{allocated: big, unused: big}, sample{allocated: big, unused: worth - 1}, 0, false},
		{"what is unused could not be returned", sample{allocated: big, unused: big}, sample{allocated: big, unused: worth + big - 1}, big, false},
		{"more is unused than could not be returned", sample{allocated: big, unused: big}, sample{allocated: big, unused: worth + big}, big, true},
	} {
		if got := due(c.last, c.now, c.left); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// What the runtime calls these figures may change with a version of Go, and what is returned has to be
// counted as returned, or a program at rest would collect each minute.
func TestGarbageIsUnusedUntilItIsReturned(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	debug.FreeOSMemory()
	before := read()
	for range 64 {
		garbage = make([]byte, 1<<20)
	}
	garbage = nil
	with := read()
	if more := with.unused - before.unused; more < 60<<20 {
		t.Errorf("64 MiB of garbage are %d bytes that are not used", more)
	}
	if grown := with.allocated - before.allocated; grown < 64<<20 {
		t.Errorf("64 MiB are %d allocated bytes", grown)
	}
	debug.FreeOSMemory()
	if after := read(); after.unused >= before.unused+8<<20 {
		t.Errorf("%d bytes are unused after everything was returned", after.unused)
	}
}

var garbage []byte
