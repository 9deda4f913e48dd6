package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"
)

const (
	packetIgnoreOutgoing = 23 // of linux/if_packet.h: on the loopback interface everything that goes out comes, too
	recordBuffer         = 256 << 20
)

// loopback opens the loopback interface for reading the packets from and to ports: a block of them, and one more.
func loopback(first, last, more uint16) (*os.File, error) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, int(htons(syscall.ETH_P_IP)))
	if err != nil {
		return nil, needs("CAP_NET_RAW", err)
	}
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, recordBuffer); err != nil {
		return nil, errors.Join(needs("CAP_NET_ADMIN", err), syscall.Close(fd))
	}
	err = errors.Join(
		syscall.SetsockoptInt(fd, syscall.SOL_PACKET, packetIgnoreOutgoing, 1),
		attach(fd, onlyPorts(uint32(first), uint32(last), uint32(more))),
		syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: htons(syscall.ETH_P_IP), Ifindex: lo.Index}),
	)
	if err != nil {
		return nil, errors.Join(err, syscall.Close(fd))
	}
	return os.NewFile(uintptr(fd), "lo"), nil
}

// onlyPorts is a program for the kernel that passes over what a recording does not want: several go on at once, and most of
// what this machine says to itself is for none of them.
func onlyPorts(first, last, more uint32) []syscall.SockFilter {
	const load, half, index = syscall.BPF_LD, syscall.BPF_H, syscall.BPF_IND
	jump := func(how uint16, k uint32, yes, no uint8) syscall.SockFilter {
		return syscall.SockFilter{Code: syscall.BPF_JMP | how | syscall.BPF_K, Jt: yes, Jf: no, K: k}
	}
	step := func(code uint16, k uint32) syscall.SockFilter { return syscall.SockFilter{Code: code, K: k} }
	return []syscall.SockFilter{
		step(load|half|syscall.BPF_ABS, 12), // what the frame carries
		jump(syscall.BPF_JEQ, syscall.ETH_P_IP, 0, 12),
		step(load|syscall.BPF_B|syscall.BPF_ABS, 23), // what the IP packet carries
		jump(syscall.BPF_JEQ, syscall.IPPROTO_TCP, 0, 10),
		step(syscall.BPF_LDX|syscall.BPF_B|syscall.BPF_MSH, 14), // how long its header is
		step(load|half|index, 14),                               // from
		jump(syscall.BPF_JGE, first, 0, 1),
		jump(syscall.BPF_JGT, last, 0, 5),
		jump(syscall.BPF_JEQ, more, 4, 0),
		step(load|half|index, 16), // to
		jump(syscall.BPF_JGE, first, 0, 1),
		jump(syscall.BPF_JGT, last, 0, 1),
		jump(syscall.BPF_JEQ, more, 0, 1),
		step(syscall.BPF_RET|syscall.BPF_K, 1<<18), // as much of it
		step(syscall.BPF_RET|syscall.BPF_K, 0),
	}
}

// attach gives a socket such a program.
func attach(fd int, program []syscall.SockFilter) error {
	p := syscall.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := syscall.Syscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), syscall.SOL_SOCKET, syscall.SO_ATTACH_FILTER, uintptr(unsafe.Pointer(&p)), unsafe.Sizeof(p), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func needs(capability string, err error) error {
	return fmt.Errorf("read what goes over the loopback interface, for which root needs %s: %w", capability, err)
}

// dropped tells how many packets there was no place for since it was last asked (PACKET_STATISTICS of packet(7)).
func dropped(device *os.File) (int, error) {
	conn, err := device.SyscallConn()
	if err != nil {
		return 0, err
	}
	const packetStatistics = 6
	var stats struct{ packets, drops uint32 }
	size := uint32(unsafe.Sizeof(stats))
	var errno syscall.Errno
	err = conn.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.SOL_PACKET, packetStatistics, uintptr(unsafe.Pointer(&stats)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return int(stats.drops), err
}

// htons is a number of two bytes as the network writes it.
func htons(n uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}
