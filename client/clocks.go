package client

import (
	"encoding/binary"
	"encoding/json"
	"time"

	"maunium.net/go/mautrix/id"
)

// clocks says by how much the clocks of servers are ahead of this device's: it may be
// slow, or they fast. What a server's users and modules send comes at once, or later, so
// its newest stamps show it. By how much a clock is behind nothing shows, for an old event
// may have been long under way; that makes messages be sent again too often, at most.
type clocks struct {
	ahead map[string]*ahead // by server; of others nothing is known, or they are not ahead
	wall  int64             // when the clocks were last read: unix milliseconds,
	mono  time.Duration     // and monotonic
	// What was noted before step counts as noted by so much later: the wall clock was set forward.
	step, by int64
}

// ahead is what one server's stamps showed: the most of two spans of time, so that what
// does not hold any more is forgotten, and a cut makes nothing be forgotten.
type ahead struct {
	Now   int64         `json:"now"`            // milliseconds, in this span
	Then  int64         `json:"then,omitempty"` // in the one before
	began time.Duration // when this one began, monotonic
}

const (
	// aheadFor is how long a span of ahead is, at least.
	aheadFor = 10 * time.Minute
	// minAhead is what counts as ahead at all; maxAhead what is still believed.
	minAhead = time.Second
	maxAhead = 24 * time.Hour
	// maxClocks bounds the servers that are remembered, maxServerName their names.
	maxClocks     = 64
	maxServerName = 255
)

// of returns by how many milliseconds the clock of a user's server is ahead.
func (k *clocks) of(user id.UserID) int64 {
	if a := k.ahead[serverOf(user)]; a != nil {
		return max(a.Now, a.Then)
	}
	return 0
}

// read notes what this device's clocks show. Where the wall clock went on by more than the
// monotonic one, it was set forward, or the device was asleep: servers are less ahead now.
// That it was set back their next events show.
func (k *clocks) read(wall int64, mono time.Duration) {
	passed := mono - k.mono
	step := wall - k.wall - passed.Milliseconds()
	if k.wall > 0 && step > (minAhead+passed/16).Milliseconds() {
		k.step, k.by = wall-step, step
		for server, a := range k.ahead {
			a.Now, a.Then = max(0, a.Now-step), max(0, a.Then-step)
			k.drop(server)
		}
	}
	k.wall, k.mono = wall, mono
}

// noted returns in today's time when something was noted, unix milliseconds.
func (k *clocks) noted(at int64) int64 {
	if at <= k.step {
		return at + k.by
	}
	return at
}

// note learns from an event that came just now: read was called.
func (k *clocks) note(evt *Event, own string) {
	server := serverOf(evt.Sender)
	if server == "" || len(server) > maxServerName || evt.Timestamp > k.wall+maxAhead.Milliseconds() || evt.Timestamp < 0 {
		return
	}
	by := max(0, evt.Timestamp-k.wall)
	a := k.ahead[server]
	switch {
	case a == nil && by < minAhead.Milliseconds():
		return
	case a == nil:
		if k.ahead == nil {
			k.ahead = map[string]*ahead{}
		}
		if len(k.ahead) >= maxClocks {
			k.forget(own)
		}
		k.ahead[server] = &ahead{Now: by, began: k.mono}
		return
	case k.mono-a.began >= aheadFor:
		a.Now, a.Then, a.began = by, a.Now, k.mono
	default:
		a.Now = max(a.Now, by)
	}
	k.drop(server)
}

// drop forgets a server that is not ahead any more.
func (k *clocks) drop(server string) {
	if a := k.ahead[server]; max(a.Now, a.Then) < minAhead.Milliseconds() {
		delete(k.ahead, server)
	}
}

// forget makes room: of others' servers that of which nothing was heard for longest.
func (k *clocks) forget(own string) {
	oldest := ""
	for server, a := range k.ahead {
		if o := k.ahead[oldest]; server != own && (o == nil || a.began < o.began || a.began == o.began && server < oldest) {
			oldest = server
		}
	}
	delete(k.ahead, oldest)
}

// syncTime returns what is stored when a response was filed: the time on this device's
// clock, and the clocks of servers.
func (c *Client) syncTime(at int64) ([]byte, error) {
	raw := binary.BigEndian.AppendUint64(nil, uint64(at))
	if len(c.clocks.ahead) == 0 {
		return raw, nil
	}
	ahead, err := json.Marshal(c.clocks.ahead)
	return append(raw, ahead...), err
}

// readSyncTime reads what syncTime made. What cannot be read of the clocks is learnt again.
func (c *Client) readSyncTime(raw []byte) {
	if len(raw) < 8 {
		return
	}
	c.syncAt = int64(binary.BigEndian.Uint64(raw))
	var stored map[string]*ahead
	if len(raw) == 8 || json.Unmarshal(raw[8:], &stored) != nil {
		return
	}
	c.clocks.ahead = map[string]*ahead{}
	for server, a := range stored {
		if a != nil && len(c.clocks.ahead) < maxClocks {
			c.clocks.ahead[server] = &ahead{Now: a.Now, Then: a.Then, began: c.mono()}
		}
	}
}
