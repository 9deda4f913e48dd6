package memory

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
)

func TestTheBoundLeavesRoomAboveWhatLives(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		live, other uint64
		want        int64
	}{
		{0, 0, 100 * mib},
		{72 * mib, 10 * mib, 100 * mib},
		{80 * mib, 10 * mib, 110 * mib},
		{400 * mib, 10 * mib, 510 * mib},
	} {
		if got := bound(sample{live: c.live, other: c.other}, 100*mib); got != c.want {
			t.Errorf("%d MiB live, %d others: bound %d, want %d", c.live/mib, c.other/mib, got/mib, c.want/mib)
		}
	}
}

// bounded lets a test have the bound, with no other reason to collect.
func bounded(t *testing.T, bytes int64) {
	t.Helper()
	percent := debug.SetGCPercent(-1)
	runtime.GC()
	undo := Bound(bytes)
	t.Cleanup(func() {
		undo()
		debug.SetGCPercent(percent)
	})
}

func TestGarbageIsCollectedBelowTheBound(t *testing.T) {
	s := read()
	bounded(t, int64(s.other+s.live)+32<<20)
	var before, after debug.GCStats
	debug.ReadGCStats(&before)
	for range 512 {
		garbage = make([]byte, 1<<20)
	}
	garbage = nil
	debug.ReadGCStats(&after)
	if after.NumGC == before.NumGC {
		t.Error("512 MiB of garbage were made, and none was collected, where 32 are the bound")
	}
}

func TestTheBoundMovesUpWithWhatLives(t *testing.T) {
	bounded(t, 1<<20)
	held := make([]byte, 64<<20)
	for debug.SetMemoryLimit(-1) < 80<<20 { // what runs after a collection runs beside the program
		runtime.GC()
	}
	runtime.KeepAlive(held)
}

func TestALimitOfTheAdminsIsKept(t *testing.T) {
	debug.SetMemoryLimit(300 << 20)
	defer debug.SetMemoryLimit(math.MaxInt64)
	undo := Bound(1 << 20)
	runtime.GC()
	undo()
	if got := debug.SetMemoryLimit(-1); got != 300<<20 {
		t.Errorf("the limit is %d MiB, not the 300 that were set", got>>20)
	}
}
