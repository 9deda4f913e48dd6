package connect

import (
	"context"
	"syscall"
	"time"
)

// tcpUserTimeout is of linux/tcp.h.
const tcpUserTimeout = 18

// giveUp lets the kernel give a connection up on which what was sent is not
// acknowledged: while that waits, it does not ask whether the other side is there.
// It does so, too, where the other side acknowledges, and takes in nothing more.
func giveUp(after time.Duration) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, _, _ string, c syscall.RawConn) error {
		// A system that does not know it gives connections up later.
		return c.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(after.Milliseconds()))
		})
	}
}
