// Package connect makes connections to a homeserver that end soon after the
// network that they were made in: after a suspend, or where a machine has got
// another address, nobody says that they are over, and what waits for an answer on
// one would wait for minutes.
package connect

import (
	"net"
	"net/http"
	"time"

	"github.com/matrix-mls/matrix-mls/proxy/trust"
)

const (
	// dead is how long nothing is heard of what was sent, or of what was asked of a
	// connection that is silent, until it is given up.
	dead = 20 * time.Second
	// patience is how many times as long what is uploaded may wait: systems take a
	// server that is there, and does not read, for one that is gone.
	patience = 4
	// fits is how long the body of a request is that a server's system takes in though
	// the server does not read: half of the least that those of today offer.
	fits = 32 << 10
)

// Transport makes connections that are given up once the other side is not heard
// of any more. Requests that wait on one fail then, and others take a new one. What
// is uploaded has connections of its own, which are given up later. The caller ends
// it by CloseIdleConnections.
type Transport struct{ requests, uploads *http.Transport }

// New returns a transport that does otherwise what http.DefaultTransport does.
func New() *Transport { return transport(dead) }

func transport(dead time.Duration) *Transport {
	t := &Transport{requests: pool(dead), uploads: pool(patience * dead)}
	// After a suspend an upload does not wait on one that is dead.
	t.uploads.IdleConnTimeout = dead
	return t
}

// RoundTrip carries a request out, as http.Transport does. What is wrong with the
// other side's certificate it says in words (trust.Error).
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.roundTrip(req)
	return resp, trust.Of(req.URL.Host, err)
}

func (t *Transport) roundTrip(req *http.Request) (*http.Response, error) {
	// A length of 0 beside a body says that it is not known.
	if unknown := req.ContentLength <= 0; req.Body != nil && req.Body != http.NoBody && (unknown || req.ContentLength > fits) {
		return t.uploads.RoundTrip(req)
	}
	return t.requests.RoundTrip(req)
}

// CloseIdleConnections closes the connections that no request has.
func (t *Transport) CloseIdleConnections() {
	t.requests.CloseIdleConnections()
	t.uploads.CloseIdleConnections()
}

// pool makes connections that are given up after a time.
func pool(dead time.Duration) *http.Transport {
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
