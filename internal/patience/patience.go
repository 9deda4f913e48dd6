// Package patience tells tests how long to wait on a machine that does other
// things, too, and may stand still for seconds.
package patience

import (
	"sync/atomic"
	"time"
)

// Hang bounds a wait that only a bug makes long.
const Hang = 2 * time.Minute

const tick = 10 * time.Millisecond

// Watch measures a time for a limit that the product promises. What the machine,
// or the test's process, stands still for is left out: it is one tick, however
// long it is. stop ends the measuring.
func Watch() (elapsed func() time.Duration, stop func()) {
	ticker := time.NewTicker(tick)
	end, ended := make(chan struct{}), make(chan struct{})
	var n atomic.Int64
	go func() {
		defer close(ended)
		for {
			select {
			case <-ticker.C:
				n.Add(1)
			case <-end:
				return
			}
		}
	}()
	return func() time.Duration { return time.Duration(n.Load()) * tick }, func() {
		ticker.Stop()
		close(end)
		<-ended
	}
}

// Measure returns how long something takes, as Watch measures it.
func Measure(do func()) time.Duration {
	elapsed, stop := Watch()
	defer stop()
	do()
	return elapsed()
}
