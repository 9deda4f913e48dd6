package main

import (
	"errors"
	"net"
	"testing"
)

func TestTakenPortsAreFoundBeforeAnythingStarts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := portsFree(l.Addr().(*net.TCPAddr).Port - 3); !errors.Is(err, errPorts) {
		t.Errorf("got %v, want errPorts", err)
	}
}
