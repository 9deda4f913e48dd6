// Package deaf lets tests have connections that are dead as after a change of the
// network: nobody closes them, and nothing that is sent is acknowledged.
package deaf

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"unsafe"
)

// Make lets the kernel drop everything that comes for a connection from now on.
// The caller must neither write to it nor close it while it is to be dead: both
// would be heard.
func Make(conn net.Conn) error {
	source, ok := conn.(syscall.Conn)
	if !ok {
		return errors.New("deaf: not a connection of the system's")
	}
	raw, err := source.SyscallConn()
	if err != nil {
		return fmt.Errorf("deaf: %w", err)
	}
	nothing := syscall.SockFilter{Code: syscall.BPF_RET | syscall.BPF_K, K: 0}
	program := syscall.SockFprog{Len: 1, Filter: &nothing}
	var failed error
	err = raw.Control(func(fd uintptr) {
		_, _, errno := syscall.Syscall6(syscall.SYS_SETSOCKOPT, fd, syscall.SOL_SOCKET, syscall.SO_ATTACH_FILTER, uintptr(unsafe.Pointer(&program)), unsafe.Sizeof(program), 0)
		if errno != 0 {
			failed = errno
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("deaf: %w", err)
	}
	return nil
}
