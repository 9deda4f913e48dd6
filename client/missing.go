package client

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A sender's messages are counted in each epoch, in what is encrypted, and the
// ratchet that opens them keeps the count over restarts. So a server that keeps a
// message to itself can be noticed by the next one of that device in the epoch. What
// was counted need not have been a message to show: a receipt counts as well, and so
// does what was encrypted and never went out.

const (
	// missingWait is for how long a message may be late before somebody is told.
	missingWait = 2 * time.Minute
	maxMissing  = 64 // gaps of a room that nobody was told of yet
	maxPruned   = 64 // users of a room whose redacted ciphertexts are counted
)

// missing is a gap in the count of a device's messages in an epoch.
type missing struct {
	Ref    rooms.Hash    `json:"ref"`
	Leaf   uint32        `json:"leaf"`
	User   id.UserID     `json:"user"`
	Device id.DeviceID   `json:"device"`
	Below  uint32        `json:"below"` // the generation that showed it last
	Count  uint32        `json:"count"`
	due    time.Duration // when it is told; 0: it was not looked at since the start
}

// noteMissing counts the messages that one which was opened shows to be missing, and
// returns their number. Of the epoch that this device came in with, what was sent
// before it was there cannot be told from what did not come.
func (c *Client) noteMissing(r *room, e *epoch, msg *Message, app *mls.ApplicationMessage) uint32 {
	n, ref := app.Skipped, rooms.Hash(e.ref)
	if n == app.Generation && ref == r.rec.JoinRef {
		n = 0
	}
	at := slices.IndexFunc(r.rec.Missing, func(m missing) bool { return m.Ref == ref && m.Leaf == msg.Leaf })
	if app.Overtaken && at >= 0 {
		r.lessMissing(at)
		return 0
	}
	switch n -= r.takePruned(msg.Sender, n); {
	case n == 0:
	case at >= 0:
		m := &r.rec.Missing[at]
		m.Count, m.Below, m.due = m.Count+n, app.Generation, 0
	default:
		r.rec.Missing = append(r.rec.Missing, missing{Ref: ref, Leaf: msg.Leaf, User: msg.Sender, Device: msg.Device, Below: app.Generation, Count: n})
		r.rec.Missing = r.rec.Missing[max(0, len(r.rec.Missing)-maxMissing):]
	}
	return n
}

// lessMissing notes that one of the messages of a gap is accounted for.
func (r *room) lessMissing(at int) {
	if r.rec.Missing[at].Count--; r.rec.Missing[at].Count == 0 {
		r.rec.Missing = slices.Delete(r.rec.Missing, at, at+1)
	}
}

// notePruned notes a ciphertext that was redacted before it came: nothing tells any
// more where in its sender's count it stood.
func (r *room) notePruned(evt *Event) {
	var content map[string]json.RawMessage
	if evt.Type != rooms.TypeEncrypted || r.rec.Phase != phaseMember || json.Unmarshal(evt.Content, &content) != nil || len(content) > 0 {
		return
	}
	if at := slices.IndexFunc(r.rec.Missing, func(m missing) bool { return m.User == evt.Sender }); at >= 0 {
		r.lessMissing(at)
		return
	}
	if r.rec.Pruned == nil || r.rec.Pruned[evt.Sender] == 0 && len(r.rec.Pruned) >= maxPruned {
		r.rec.Pruned = map[id.UserID]uint32{} // rather tell of one too many
	}
	r.rec.Pruned[evt.Sender]++
}

// takePruned lays ciphertexts of a user that came redacted to a gap of n messages, and
// returns how many.
func (r *room) takePruned(user id.UserID, n uint32) uint32 {
	n = min(n, r.rec.Pruned[user])
	switch {
	case n == 0:
	case n == r.rec.Pruned[user]:
		delete(r.rec.Pruned, user)
	default:
		r.rec.Pruned[user] -= n
	}
	return n
}

// tellMissing tells of the messages that have not come for a while, and reports
// whether there were such. What was said on a branch that lost is sent again.
func (c *Client) tellMissing(r *room) (told bool) {
	now := c.mono()
	var left []missing
	for _, m := range r.rec.Missing {
		if m.due == 0 {
			m.due = now + missingWait
		}
		if now < m.due {
			left = append(left, m)
			continue
		}
		told = true
		if !r.onChain(federation.Ref(m.Ref)) {
			continue
		}
		c.warn(r, fmt.Sprintf("missing/%s/%d/%d", m.Ref, m.Leaf, m.Below), &Warning{
			Sender: m.User, Rule: ruleMissing, Kind: MissingWarning, Reason: string(m.Device), Detail: strconv.FormatUint(uint64(m.Count), 10),
			Text: fmt.Sprintf("what %s sent from the device %s shows that something before it has not come (messages missing: %d): a server is late with it, or keeps it to itself, or it never went out", m.User, m.Device, m.Count),
		})
	}
	r.rec.Missing = left
	return told
}

// ruleMissing is the rule of messages that a server may be keeping to itself.
const ruleMissing = "client/message-missing"
