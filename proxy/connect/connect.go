// Package connect makes connections to a homeserver that end soon after the
// network that they were made in: after a suspend, or where a machine has got
// another address, nobody says that they are over, and what waits for an answer on
// one would wait for minutes.
package connect

import (
	"net"
	"net/http"
	"time"
)

// dead is how long nothing is heard of what was sent, or of what was asked of a
// connection that is silent, until it is given up.
const dead = 20 * time.Second

// Transport returns a transport like http.DefaultTransport whose connections are
// given up once the other side is not heard of any more. Requests that wait on one
// fail then, and others take a new one. The caller ends it by CloseIdleConnections.
func Transport() *http.Transport { return transport(dead) }

func transport(dead time.Duration) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	step := max(dead/4, time.Second) // what systems count in
	dialer := &net.Dialer{
		Timeout:         30 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * step, Interval: step, Count: 2},
		ControlContext:  giveUp(dead),
	}
	t.DialContext = dialer.DialContext
	t.MaxIdleConnsPerHost = 64
	// Where HTTP/2 is spoken, many requests share a connection, and its writes hide its silence from the kernel.
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 2 * step, PingTimeout: 2 * step}
	return t
}
