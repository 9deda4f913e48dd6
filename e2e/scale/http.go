package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// traffic is what went between the clients and their homeservers.
type traffic struct {
	Requests      int64 `json:"requests"` // without /sync
	Up            int64 `json:"bytes_up"`
	Down          int64 `json:"bytes_down"`
	ToDevice      int64 `json:"to_device"` // messages, one for each device
	ToDeviceBytes int64 `json:"to_device_bytes"`
	PackagesAsked int64 `json:"packages_asked"` // of these messages, those that ask for a key package, as none is left
	Welcomes      int64 `json:"welcomes"`       // and those that let a device into the group
}

func (t traffic) minus(o traffic) traffic {
	return traffic{t.Requests - o.Requests, t.Up - o.Up, t.Down - o.Down, t.ToDevice - o.ToDevice, t.ToDeviceBytes - o.ToDeviceBytes, t.PackagesAsked - o.PackagesAsked, t.Welcomes - o.Welcomes}
}

// counter makes the requests of all clients and counts them.
type counter struct {
	next                                                                 http.RoundTripper
	requests, up, down, toDevice, toDeviceBytes, packagesAsked, welcomes atomic.Int64
}

func newCounter() *counter {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, 256
	return &counter{next: t}
}

func (c *counter) client() *http.Client {
	return &http.Client{Transport: c, Timeout: 3 * time.Minute}
}

func (c *counter) now() traffic {
	return traffic{c.requests.Load(), c.up.Load(), c.down.Load(), c.toDevice.Load(), c.toDeviceBytes.Load(), c.packagesAsked.Load(), c.welcomes.Load()}
}

// RoundTrip implements [http.RoundTripper].
func (c *counter) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(req.URL.Path, "/sync") {
		c.requests.Add(1)
	}
	c.up.Add(max(req.ContentLength, 0))
	if strings.Contains(req.URL.Path, "/sendToDevice/") && req.Body != nil {
		raw, err := io.ReadAll(req.Body)
		if err == nil {
			err = req.Body.Close()
		}
		if err != nil {
			return nil, err
		}
		c.countToDevice(raw, req.URL.Path)
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(raw))
	}
	resp, err := c.next.RoundTrip(req)
	if err == nil {
		resp.Body = &countedBody{resp.Body, &c.down}
	}
	return resp, err
}

func (c *counter) countToDevice(raw []byte, path string) {
	var body struct {
		Messages map[string]map[string]json.RawMessage `json:"messages"`
	}
	if json.Unmarshal(raw, &body) != nil {
		return
	}
	for _, devices := range body.Messages {
		for _, content := range devices {
			c.toDevice.Add(1)
			switch {
			case strings.Contains(path, "/"+rooms.TypeKeyPackageRequest+"/"):
				c.packagesAsked.Add(1)
			case strings.Contains(path, "/"+rooms.TypeWelcome+"/"):
				c.welcomes.Add(1)
			}
			c.toDeviceBytes.Add(int64(len(content)))
		}
	}
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// answerError is an answer of a homeserver that is not 200.
type answerError struct {
	status int
	code   string
	text   string
}

func (e *answerError) Error() string { return fmt.Sprintf("%d %s", e.status, e.text) }

// call makes one request for somebody whose device nobody runs.
func (c *counter) call(ctx context.Context, method, url, token string, body, into any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, req.URL.Path, err)
	}
	if resp.StatusCode != http.StatusOK {
		e := &answerError{status: resp.StatusCode, text: fmt.Sprintf("%.500s", answer)}
		var said struct {
			Code string `json:"errcode"`
		}
		if json.Unmarshal(answer, &said) == nil {
			e.code = said.Code
		}
		if into != nil && resp.StatusCode == http.StatusUnauthorized { // it asks to authenticate once more
			_ = json.Unmarshal(answer, into)
		}
		return fmt.Errorf("%s %s: %w", method, req.URL.Path, e)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer, into)
}
