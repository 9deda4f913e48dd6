// Package memory gives back to the system what a program that serves for weeks does not need while nothing happens.
package memory

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// interval is how often is looked whether anything happens.
	interval = time.Minute
	// calm is up to how many bytes are allocated in an interval in which nothing happens.
	calm = 8 << 20
	// worth is from how many bytes on it is worth a collection, above what the last one could not return: what lies
	// scattered among what lives.
	worth = 2 << 20
)

// ReturnIdle gives back unused memory whenever the program has been quiet for a minute, until ctx ends. By itself Go's
// runtime keeps, for its next collection, as much once more as lives; a busy program needs that, one that waits does not.
func ReturnIdle(ctx context.Context) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var left uint64 // was not used after the last collection, and could not be returned
	for last := read(); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := read()
		if due(last, now, left) {
			debug.FreeOSMemory()
			now = read()
			left = now.unused
		}
		left = min(left, now.unused)
		last = now
	}
}

// sample is what the runtime says of the heap, in bytes.
type sample struct {
	allocated uint64 // ever
	unused    uint64 // held of the system's, and not found alive by the last collection
	live      uint64 // found alive by it
	other     uint64 // held besides the heap: stacks, and what the runtime notes
}

func due(last, now sample, left uint64) bool {
	return now.allocated-last.allocated < calm && now.unused >= left+worth
}

func read() sample {
	values := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(values)
	of := func(n int) uint64 { return values[n].Value.Uint64() }
	held := of(2) + of(3) + of(4)
	all := of(5) - of(6)
	return sample{allocated: of(0), unused: held - min(held, of(1)), live: of(1), other: all - min(all, held)}
}
