package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// claimAtOnce is for how many devices one request claims keys.
const claimAtOnce = 200

// claimer makes several requests of one that claims one-time keys of many devices. mautrix claims those of all in one, and
// homeservers give each other ten seconds to answer: of thousands of devices, those of other servers would get no key.
type claimer struct{ next http.RoundTripper }

type (
	claims  map[string]map[string]json.RawMessage // by user and device
	claimed struct {
		Keys     claims                     `json:"one_time_keys"`
		Failures map[string]json.RawMessage `json:"failures"`
	}
)

// RoundTrip implements [http.RoundTripper].
func (c *claimer) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(req.URL.Path, "/keys/claim") || req.Body == nil {
		return c.next.RoundTrip(req)
	}
	raw, err := io.ReadAll(req.Body)
	if closing := req.Body.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return nil, err
	}
	var all struct {
		Keys    claims `json:"one_time_keys"`
		Timeout int    `json:"timeout,omitempty"`
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("a claim of keys: %w", err)
	}
	out := claimed{claims{}, map[string]json.RawMessage{}}
	var resp *http.Response
	for _, part := range all.Keys.split(claimAtOnce) {
		all.Keys = part
		if raw, err = json.Marshal(all); err != nil {
			return nil, err
		}
		one := req.Clone(req.Context())
		one.Body, one.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
		one.GetBody = nil
		if resp, err = c.next.RoundTrip(one); err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return resp, nil
		}
		var got claimed
		err = json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(&got)
		if closing := resp.Body.Close(); err == nil {
			err = closing
		}
		if err != nil {
			return nil, fmt.Errorf("the answer to a claim of keys: %w", err)
		}
		for user, devices := range got.Keys {
			for device, key := range devices {
				out.Keys.put(user, device, key)
			}
		}
		for server, why := range got.Failures {
			out.Failures[server] = why
		}
	}
	if raw, err = json.Marshal(out); err != nil {
		return nil, err
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
	resp.Header.Del("Content-Length")
	return resp, nil
}

func (c claims) put(user, device string, value json.RawMessage) {
	if c[user] == nil {
		c[user] = map[string]json.RawMessage{}
	}
	c[user][device] = value
}

// split divides the devices among maps of at most so many; of nothing it makes one that is empty.
func (c claims) split(most int) (parts []claims) {
	count := most
	for user, devices := range c {
		for device, value := range devices {
			if count == most {
				parts, count = append(parts, claims{}), 0
			}
			parts[len(parts)-1].put(user, device, value)
			count++
		}
	}
	if parts == nil {
		parts = []claims{{}}
	}
	return parts
}
