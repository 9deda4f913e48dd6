package client

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A commit that neither /sync nor /event nor the history gives is missing on the
// own homeserver: it took the event for wrong, or threw it away. The room's modules
// hold the commits of the group and post one again when they are asked for it, by
// its ref. That takes seconds; who joins again instead cannot read what lies
// between.

// Bounds of what is asked for.
const (
	maxRequests   = 64 // commits of a room that are remembered as missing
	requestAtOnce = 16
	requestTimes  = 3                // for one commit, by all who miss it together, before its place may go to another one
	requestEvery  = time.Minute      // between the first two questions for it; twice as long each time
	requestSeldom = time.Hour        // at most
	requestAge    = 24 * time.Hour   // then it is not asked for any more
	requestPause  = 10 * time.Second // between two of this device; twice as long each time, up to requestEvery

	// missFails is how often a homeserver fails to give a commit, by a word or by an
	// error, before the modules are asked.
	missFails = 3
)

// request is what is remembered of a commit that the homeserver does not give.
type request struct {
	since time.Duration
	at    time.Duration // not asked for before
	delay time.Duration // of this device: who misses the same commit does not ask at once
	times int
}

// asked counts a question.
func (q *request) asked(now time.Duration) {
	q.at = now + min(requestEvery<<min(q.times, 6), requestSeldom) + q.delay
	q.times++
}

// miss notes that a commit cannot be had from the homeserver. Devices that miss the
// same one do not ask all at once: who sees another's question leaves it at that.
func (c *Client) miss(r *room, ref federation.Ref) {
	if r.machine == nil || r.rec.Phase != phaseMember || r.machine.Held(ref) || r.requests[ref] != nil {
		return
	}
	e := r.lastRead()
	if e == nil {
		return
	}
	if len(r.requests) >= maxRequests {
		r.dropRequest()
	}
	if len(r.requests) >= maxRequests {
		return
	}
	if r.requests == nil {
		r.requests = map[federation.Ref]*request{}
	}
	delay := rooms.CommitterDelay(ref, e.group.OwnLeafIndex(), e.group.MemberCount())
	now := c.mono()
	r.requests[ref] = &request{since: now, at: now + delay, delay: delay}
}

// dropRequest makes place for one more missing commit: what is there now, else the
// one that was asked for most often, in vain.
func (r *room) dropRequest() {
	maps.DeleteFunc(r.requests, func(ref federation.Ref, _ *request) bool { return r.machine.Held(ref) })
	if len(r.requests) < maxRequests {
		return
	}
	var most federation.Ref
	for _, ref := range r.missing() {
		if q, m := r.requests[ref], r.requests[most]; m == nil || q.times > m.times {
			most = ref
		}
	}
	if r.requests[most].times >= requestTimes {
		delete(r.requests, most)
	}
}

// missing returns the commits that are remembered as missing, in order.
func (r *room) missing() []federation.Ref {
	return slices.SortedFunc(maps.Keys(r.requests), func(a, b federation.Ref) int { return bytes.Compare(a[:], b[:]) })
}

// requestMissing asks the room's modules for commits that are missing.
func (c *Client) requestMissing(ctx context.Context, r *room) error {
	now := c.mono()
	if len(r.requests) == 0 || now < r.requestNext {
		return nil
	}
	if slices.ContainsFunc(c.roomRows(r.id), func(row *outRow) bool { return row.data.Type == rooms.TypeRequest }) {
		return nil // the last one is not sent yet
	}
	content := &rooms.RequestContent{}
	for _, ref := range r.missing() {
		q := r.requests[ref]
		if r.machine.Held(ref) {
			delete(r.requests, ref)
			r.requestWait = 0
		} else if now-q.since > requestAge {
			delete(r.requests, ref)
		} else if q.at <= now && len(content.Refs) < requestAtOnce {
			content.Refs = append(content.Refs, rooms.Hash(ref))
		}
	}
	if len(content.Refs) == 0 {
		return nil
	}
	for _, ref := range content.Refs {
		r.requests[federation.Ref(ref)].asked(now)
	}
	r.requestWait = min(max(2*r.requestWait, requestPause), requestEvery)
	r.requestNext = now + r.requestWait
	var err error
	if content.Nonce, err = c.newID(); err != nil {
		return err
	}
	raw, err := rooms.Encode(content)
	if err != nil {
		return err
	}
	b := &batch{}
	if _, err := c.addRow(b, r, kindProof, stateReady, federation.Ref{}, outData{Type: rooms.TypeRequest, Content: raw}); err != nil {
		return err
	}
	c.log.Info().Stringer("room_id", r.id).Int("commits", len(content.Refs)).Msg("Asked the modules for commits that the homeserver does not give")
	return c.commitBatch(ctx, r, b)
}

// askForHeads asks the room's modules to post their heads anew, of which the own
// homeserver shows none that is as new as what this device knows: it may have refused
// the newest for itself, and in a quiet room no other follows. It is asked ever more
// seldom, for what is shown stays old where the homeserver shows no new ones at all.
func (c *Client) askForHeads(ctx context.Context, r *room, now time.Duration) {
	if now < r.headsAskAt {
		return
	}
	r.headsAskAt = now + min(requestEvery<<min(r.headsAsked, 6), requestSeldom)
	r.headsAsked++
	nonce, err := c.newID()
	if err == nil {
		var raw []byte
		if raw, err = rooms.Encode(&rooms.RequestContent{Heads: true, Nonce: nonce}); err == nil {
			b := &batch{}
			if _, err = c.addRow(b, r, kindProof, stateReady, federation.Ref{}, outData{Type: rooms.TypeRequest, Content: raw}); err == nil {
				err = c.commitBatch(ctx, r, b)
			}
		}
	}
	if err != nil {
		c.log.Err(err).Stringer("room_id", r.id).Msg("Failed to ask the modules for their heads")
		return
	}
	c.log.Info().Stringer("room_id", r.id).Msg("Asked the modules for their heads, of which the homeserver shows old ones alone")
}

// nextRequest returns when requestMissing has something to do, 0 if nothing waits.
func (r *room) nextRequest() (next time.Duration) {
	for _, q := range r.requests {
		if at := max(q.at, r.requestNext); next == 0 || at < next {
			next = at
		}
	}
	return next
}

// handleRequest takes note of what somebody else asks for: it need not be asked for
// twice.
func (c *Client) handleRequest(r *room, evt *Event) error {
	content, err := rooms.DecodeRequest(evt.Content)
	if err != nil || evt.Sender == c.UserID() {
		return err
	}
	for _, ref := range content.Refs {
		if q := r.requests[federation.Ref(ref)]; q != nil {
			q.asked(c.mono())
		}
	}
	return nil
}
