package client

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A message that was sent is kept, in the sealed outbox, until nobody can miss
// it. It is encrypted again, under the same message id, when
//
//   - its epoch leaves the head: who is on the head cannot read it;
//   - its epoch stays, and others have forgotten that epoch's keys before they
//     can have seen it: the commits that made them forget were under way for
//     long, so the message was as well.
//
// Receivers show a message id once.

const (
	// lateAfter is how old a commit has to be, when it comes to a device that was
	// listening, to show that servers did not reach each other.
	lateAfter = time.Minute
	// heldUpAfter is the same for a short cut: it concerns messages that were sent in
	// the cut, or at most lateAfter before it showed. At the end of a long one, which one
	// commit or a chain of several that were held up for seconds may show, it concerns
	// all that are kept: how long nothing was held up, for there was nothing, nobody knows.
	heldUpAfter = 5 * time.Second
	// maxLateSends bounds how often one message is sent again because commits came
	// late: their age is what servers say.
	maxLateSends = 2
	// maxKeptSent bounds the messages of a room that are kept after their epoch
	// became final.
	maxKeptSent = 1000
	// maxLateCommits bounds how many commits a room remembers as late.
	maxLateCommits = 64
)

// A lateCommit came long after it was sent.
type lateCommit struct {
	Ref   rooms.Hash    `json:"ref"`
	Level uint64        `json:"level"`
	Delay time.Duration `json:"delay"`          // between its sending and its coming
	At    int64         `json:"at,omitempty"`   // when it was sent, on this device's clock, unix milliseconds
	Came  int64         `json:"came,omitempty"` // when it came
	By    id.UserID     `json:"by,omitempty"`   // who sent it
}

// lateness tells for how long an event was under way, if the last /sync answer
// before it should have had it; else it is 0. A device that was not listening
// learns nothing from an event's age. The caller holds c.mu.
func (c *Client) lateness(evt *Event) time.Duration {
	now := c.now().UnixMilli()
	sent := c.sentAt(evt)
	late := min(c.syncAt, now) - sent // the clock may have been set back
	switch {
	case c.syncAt == 0 || late < heldUpAfter.Milliseconds():
		return 0
	case late < lateAfter.Milliseconds():
		return time.Duration(late) * time.Millisecond
	}
	return time.Duration(now-sent) * time.Millisecond
}

// sentAt returns when an event was sent, on this device's clock, in unix milliseconds.
func (c *Client) sentAt(evt *Event) int64 { return max(0, evt.Timestamp) - c.clocks.of(evt.Sender) }

// noteLate remembers a commit that came late, at the given time in unix milliseconds,
// or was made while the one below it was on its way, which so came late as well. One that was
// posted again, as the homeserver had refused it, is late with the one below it.
func (c *Client) noteLate(r *room, evt *Event, delay time.Duration, came int64) {
	content, err := rooms.DecodeCommit(evt.Content)
	if err != nil || r.machine == nil {
		return
	}
	opened, err := c.open(r, content, evt)
	if err != nil {
		return // if it waits for its file, it comes here again
	}
	content, ref := opened.content, opened.ref
	if slices.ContainsFunc(r.rec.Late, func(l lateCommit) bool { return l.Ref == rooms.Hash(ref) }) {
		return
	}
	sent := c.sentAt(evt)
	if evt.reposter != "" { // that event tells nothing of when the commit was made: some time after the one below it
		if at := slices.IndexFunc(r.rec.Late, func(l lateCommit) bool { return l.Ref == content.Parent }); at >= 0 {
			sent = r.rec.Late[at].At
		} else {
			return
		}
	}
	if delay == 0 {
		if !slices.ContainsFunc(r.rec.Late, func(l lateCommit) bool { return l.Ref == content.Parent && l.Came >= sent }) {
			return
		}
		delay = time.Duration(max(0, came-sent)) * time.Millisecond
	}
	if level, ok := r.levelAt(federation.Ref(content.Parent)); ok && !r.machine.Held(ref) {
		r.keepLate(lateCommit{Ref: rooms.Hash(ref), Level: level + 1, Delay: delay, At: sent, Came: came, By: evt.Sender})
	}
}

// keepLate remembers a late commit. Nobody has checked it yet, so that of too many
// those of the server, and there of the user, that sent the most give way, the oldest first.
func (r *room) keepLate(l lateCommit) {
	r.rec.Late = append(r.rec.Late, l)
	if len(r.rec.Late) <= maxLateCommits {
		return
	}
	servers, users := map[string]int{}, map[id.UserID]int{}
	for _, o := range r.rec.Late {
		servers[serverOf(o.By)]++
		users[o.By]++
	}
	most := 0
	for i, o := range r.rec.Late { // the first of the most is the oldest
		m := r.rec.Late[most]
		if c := cmp.Compare(servers[serverOf(o.By)], servers[serverOf(m.By)]); c > 0 || c == 0 && users[o.By] > users[m.By] {
			most = i
		}
	}
	r.rec.Late = slices.Delete(r.rec.Late, most, most+1)
}

// missed tells whether those who made the room's final commits forgot the keys of
// an epoch of the given level before a message that was sent then could reach them.
func (c *Client) missed(r *room, level uint64, sent int64) bool {
	return slices.ContainsFunc(r.rec.Late, func(l lateCommit) bool {
		if since := r.cutSince(l); l.Delay < lateAfter && l.Came-since < lateAfter.Milliseconds() && sent < since-lateAfter.Milliseconds() {
			return false // a short cut, long after it
		}
		forgotten := l.Level > level+uint64(c.limits.PastEpochs) || l.Level > level && l.Delay >= c.limits.PastAge
		return forgotten && r.machine.Extends(r.machine.NewestFinal(), federation.Ref(l.Ref))
	})
}

// cutSince returns since when, in unix milliseconds, a cut had lasted that held up a
// commit: others that were under way one after the other show it, the newest of them
// perhaps for seconds only.
func (r *room) cutSince(l lateCommit) int64 {
	since := l.At
	before := slices.SortedFunc(slices.Values(r.rec.Late), func(a, b lateCommit) int { return cmp.Compare(b.At, a.At) })
	for _, o := range before {
		if o.At > 0 && o.At < since && o.Came >= since {
			since = o.At
		}
	}
	return since
}

// stands tells whether an epoch cannot leave the head any more.
func (r *room) stands(ref federation.Ref) bool {
	return r.machine.Final(ref) || r.machine.Extends(r.machine.NewestFinal(), ref)
}

// forgetSent drops the plaintext of sent messages that nobody can miss, and takes
// those back that others have missed. number is the newest final epoch's level.
func (c *Client) forgetSent(b *batch, r *room, number uint64) {
	kept := 0
	rows := c.roomRows(r.id)
	slices.Reverse(rows) // the newest first
	for _, row := range rows {
		if row.item.State != stateSent || row.data.Plain == nil || b.again[row] {
			continue
		}
		ref := row.ref()
		if !r.machine.Held(ref) {
			c.deleteRow(b, row)
			continue
		}
		level, ok := r.levelAt(ref)
		left := c.limits.PastAge - c.now().Sub(time.UnixMilli(row.data.At))
		switch {
		case !r.stands(ref):
		case ok && !c.without[probe.Resend] && row.data.Late < maxLateSends && c.missed(r, level, c.clocks.noted(row.data.sentAt())):
			data := row.data
			data.Late++
			data.Missed = nil
			c.sendAgain(b, row, data)
		case !ok || level+uint64(c.limits.PastEpochs) < number || kept >= maxKeptSent || left <= 0:
			c.deleteRow(b, row)
		default:
			kept++
			r.pruneBy(c.mono() + min(left, c.limits.PastAge)) // the clock may have been set back
		}
	}
}

// requeue takes messages that were encrypted for epochs which left the head
// back to be encrypted again, under the same message id.
func (c *Client) requeue(b *batch, r *room, left []federation.Ref) {
	if c.without[probe.Resend] {
		return
	}
	for _, row := range c.roomRows(r.id) {
		if row.data.Plain != nil && slices.Contains(left, row.ref()) {
			c.sendAgain(b, row, row.data)
		}
	}
}

// requeueAll takes back every message that is not known to be final: this device
// leaves the branch it was on without knowing what of it stays.
func (c *Client) requeueAll(b *batch, r *room) {
	if c.without[probe.Resend] {
		return
	}
	stands := func(ref federation.Ref) bool { return r.machine != nil && r.stands(ref) }
	for _, row := range c.roomRows(r.id) {
		data := row.data
		switch {
		case data.Plain == nil, row.item.State == stateSent && stands(row.ref()):
		case row.item.State != stateSent && data.Missed != nil && !data.Taken && stands(federation.Ref(data.Missed.Ref)):
			c.leaveSent(b, row)
		default:
			data.Missed = nil
			c.sendAgain(b, row, data)
		}
	}
}

// takeBack drops the plaintext of a message of ours that was redacted, in whichever of
// its events: it is not sent again, and its other events are redacted, too. Who redacts
// knows of the first alone.
func (c *Client) takeBack(b *batch, r *room, target id.EventID) {
	for _, row := range c.roomRows(r.id) {
		if target != "" && row.data.Plain != nil && (row.data.EventID == target || slices.Contains(row.data.Was, target)) {
			c.takeRow(b, r, row, row.data, target)
		}
	}
}

// takeRow drops one message for takeBack. data is that of the row.
func (c *Client) takeRow(b *batch, r *room, row *outRow, data outData, target id.EventID) {
	for _, other := range append(slices.Clone(data.Was), data.EventID) {
		if other != target && !data.Taken {
			c.redactSent(b, r, other)
		}
	}
	if row.busy { // settleRow redacts what is on its way
		data.Taken, data.Target = true, data.EventID // which its echo may have told
		c.saveRow(b, row, row.item.State, row.ref(), data)
		return
	}
	c.deleteRow(b, row)
	b.then(func() { c.answer(row, sendResult{event: target}) })
}

// takeBackPruned is for an event of this device that was redacted before it was seen here:
// nothing is in it any more that tells which message it was, but the homeserver says under
// which transaction id it came. The power may have failed, or the process ended, between
// its sending and the note of its event.
func (c *Client) takeBackPruned(r *room, evt *Event, b *batch) bool {
	var content map[string]json.RawMessage
	if evt.Sender != c.UserID() || evt.Type != rooms.TypeEncrypted || json.Unmarshal(evt.Content, &content) != nil || len(content) > 0 {
		return false
	}
	for _, row := range c.roomRows(r.id) {
		try, ok := strings.CutPrefix(evt.Unsigned.TransactionID, row.item.TxnID+".")
		n, err := strconv.Atoi(try)
		if !ok || err != nil || n > row.data.Try || row.data.Plain == nil {
			continue
		}
		data := row.data
		if known := data.EventID == evt.ID || slices.Contains(data.Was, evt.ID); !known {
			if n == data.Try && data.EventID == "" && row.item.State == stateReady {
				data.EventID = evt.ID // what is on its way has become this event
			}
			c.takeRow(b, r, row, data, evt.ID)
		}
		c.redact(r, evt.ID, b)
		return true
	}
	return false
}

// redactSent queues the redaction of an event of ours.
func (c *Client) redactSent(b *batch, r *room, target id.EventID) {
	if target == "" {
		return
	}
	if _, err := c.addRow(b, r, kindRedact, stateReady, federation.Ref{}, outData{Type: "m.room.redaction", Target: target}); err != nil {
		b.do(func(context.Context) error { return err })
	}
}

// maxWas bounds the earlier events of one message that are kept.
const maxWas = 8

// went notes an event in which a message went out that is to be sent again.
func (d *outData) went(evt id.EventID) {
	if evt == "" {
		return
	}
	was := append(slices.Clone(d.Was), evt)
	d.Was = was[max(0, len(was)-maxWas):]
}

func (c *Client) sendAgain(b *batch, row *outRow, data outData) {
	if data.Taken {
		if !row.busy {
			c.deleteRow(b, row)
		}
		return
	}
	data.went(data.EventID)
	b.noteAgain(row)
	data.Content, data.EventID, data.Sent = nil, "", 0
	c.saveRow(b, row, stateQueued, federation.Ref{}, data)
}
