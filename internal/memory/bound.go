package memory

import (
	"math"
	"runtime"
	"runtime/debug"
	"sync"
)

// Bound has Go's collector run earlier once the program has so many bytes of memory, which count what Go's runtime
// manages: not the program itself, nor what libraries in C take. By itself the runtime lets a program grow to twice
// what lives in it. Where more lives than the bound leaves room for, it moves up to a quarter above what lives, so that
// the program does not spend its time on collecting. Who set GOMEMLIMIT is not interfered with. What is returned takes
// the bound away.
func Bound(bytes int64) (undo func()) {
	if debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return func() {}
	}
	debug.SetMemoryLimit(bytes)
	var mu sync.Mutex
	undone := false
	afterEach(func() bool {
		mu.Lock()
		defer mu.Unlock()
		if !undone {
			debug.SetMemoryLimit(bound(read(), bytes))
		}
		return !undone
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		undone = true
		debug.SetMemoryLimit(math.MaxInt64)
	}
}

// bound returns the limit for what the last collection left.
func bound(s sample, bytes int64) int64 {
	return max(bytes, int64(s.other+s.live+s.live/4))
}

// collected is freed by the next collection.
type collected struct{ _ *collected }

// afterEach calls f after each collection, until it returns false.
func afterEach(f func() bool) {
	runtime.AddCleanup(new(collected), func(f func() bool) {
		if f() {
			afterEach(f)
		}
	}, f)
}
