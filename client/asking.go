package client

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A message that did not come, and that the own homeserver's history does not have
// either, is asked of the device that sent it, inside the group, in the form of a
// delivery receipt. Devices that miss the same do not ask all at once: who sees
// another's question waits whether that one helps. The sender sends the message again,
// to all, under its message id, in the head's epoch. Inside the ciphertext nothing shows a
// server which message that is; when it comes, and what an edit, a reply or a message of a
// thread relates to beside the ciphertext, may.
//
// It does so once for each message, for what it still keeps (resend.go), for a bounded
// number of them, one after the other, and while no new user has come into the group, who
// was not to read it. What a later message of this user takes the place of stays as it was
// sent: sent again it would be the newer one.

const (
	missingAsk   = 20 * time.Second // after a gap was noted it is asked for
	missingAgain = 40 * time.Second // after another's question it is asked for once more
	missingTurns = 5                // how much longer those who miss it wait for each other than those who commit
	maxQuestions = 2                // by other users for a gap; then this device leaves it at that
	askPause     = time.Minute      // between two questions of this device to a user: gaps are made by who sends
	askPauseSlow = 10 * time.Minute // and before one for what a delivery receipt shows: or lost questions would lead to questions

	resendSpan    = time.Hour
	maxResends    = 100 // messages of a room that are sent again in that time, because they were asked for
	maxResendsFor = 20  // and of these, for one user
	// resendPace is between two of them, in all rooms: homeservers limit how often a user
	// sends, and what is said now goes before what others ask for.
	resendPace = 5 * time.Second
)

// resends counts what was sent again because it was asked for.
type resends struct {
	since time.Duration
	n     int
	by    map[id.UserID]int
}

// may tells whether one more message may be sent again for a user, and counts it.
func (s *resends) may(asker id.UserID, now time.Duration) bool {
	if s.by == nil || now-s.since >= resendSpan {
		*s = resends{since: now, by: map[id.UserID]int{}}
	}
	if s.n >= maxResends || s.by[asker] >= maxResendsFor {
		return false
	}
	s.n++
	s.by[asker]++
	return true
}

// askTurn is how long this device leaves it to others to ask for a gap.
func askTurn(m *missing, e *epoch) time.Duration {
	seed := sha256.Sum256(fmt.Appendf(nil, "client: missing\x00%s\x00%d\x00%d\x00%d", m.Ref, m.Leaf, m.From, len(m.Asks)))
	return missingTurns * rooms.CommitterDelay(federation.Ref(seed), e.group.OwnLeafIndex(), e.group.MemberCount())
}

// askMissing asks for messages that did not come for a while. It is done once for each
// gap, and only after the history was read for it.
func (c *Client) askMissing(ctx context.Context, r *room) error {
	r.askAt = 0
	e := r.sendEpoch()
	if !c.receipts || e == nil || len(r.rec.Missing) == 0 {
		return nil
	}
	now := c.mono()
	later := func(at time.Duration) {
		if r.askAt == 0 || at < r.askAt {
			r.askAt = at
		}
	}
	var list []rooms.MissingMessages
	var gaps []*missing
	for i := range r.rec.Missing {
		m := &r.rec.Missing[i]
		old := r.epochs[federation.Ref(m.Ref)]
		if m.Asked || old == nil || !r.onChain(old.ref) {
			continue
		}
		if m.ask == 0 {
			m.ask = now + askTurn(m, old)
		}
		at := r.askTime(m)
		if !c.missingLooked(r, m) {
			at = max(at, now+missingPause)
		}
		if now < at {
			later(at)
			continue
		}
		more, full := addMissing(list, m, old)
		if full {
			later(now + missingPause)
		} else if more != nil {
			list, gaps = more, append(gaps, m)
		}
	}
	if len(list) == 0 {
		return nil
	}
	waits := slices.ContainsFunc(c.roomRows(r.id), func(row *outRow) bool { return row.item.Kind == kindReceipt })
	if now < c.receiptsAt || waits || c.blockedBy(r.id) != nil {
		later(max(c.receiptsAt, now+missingPause))
		return nil
	}
	b := &batch{}
	err := c.queueReceipt(b, r, e, &rooms.ReceiptPayload{Acks: []rooms.Ack{}, Missing: list})
	if errors.Is(err, mls.ErrPendingProposals) {
		later(now + missingPause)
		return nil
	}
	if err != nil {
		return err
	}
	maps.DeleteFunc(r.askedAt, func(_ id.UserID, at time.Duration) bool { return at+askPauseSlow <= now })
	if r.askedAt == nil {
		r.askedAt = map[id.UserID]time.Duration{}
	}
	for _, m := range gaps {
		m.Asked = true
		c.tellLater(m)
		r.askedAt[m.User] = now
	}
	c.log.Info().Stringer("room_id", r.id).Int("senders", len(list)).Msg("Asked for messages that did not come")
	return c.commitBatch(ctx, r, b)
}

// mayAsk tells whether this device can ask for a gap, and has not done so yet.
func (c *Client) mayAsk(r *room, m *missing) bool {
	e := r.epochs[federation.Ref(m.Ref)]
	if !c.receipts || m.Asked || e == nil || !r.onChain(e.ref) {
		return false
	}
	some, _ := addMissing(nil, m, e)
	return some != nil
}

// tellLater leaves time for the answer to a question for a gap before it is told, once.
func (c *Client) tellLater(m *missing) {
	if m.Later {
		return
	}
	m.Later = true
	m.Due = max(m.Due, c.now().Add(missingWait).UnixMilli())
	m.due = max(m.due, c.mono()+missingWait)
	m.last = max(m.last, m.due)
}

// askTime is when a gap is asked for at the soonest.
func (r *room) askTime(m *missing) time.Duration {
	at, asked := r.askedAt[m.User]
	switch {
	case !asked:
		return m.ask
	case m.Slow:
		return max(m.ask, at+askPauseSlow)
	}
	return max(m.ask, at+askPause)
}

// addMissing adds the messages of a gap to a question, and tells whether there is no
// place for them. It returns nil if there is none of them that could still be opened.
func addMissing(list []rooms.MissingMessages, m *missing, e *epoch) (more []rooms.MissingMessages, full bool) {
	var generations []uint32
	for _, g := range e.group.Missing(mls.LeafIndex(m.Leaf), m.From, m.Below, rooms.MaxMissingOf) {
		if !slices.Contains(m.Again, g) {
			generations = append(generations, g)
		}
	}
	if len(generations) == 0 {
		return nil, false
	}
	at := slices.IndexFunc(list, func(o rooms.MissingMessages) bool { return o.Ref == m.Ref && o.Leaf == m.Leaf })
	switch {
	case at < 0 && len(list) == rooms.MaxMissing, at >= 0 && len(list[at].Generations)+len(generations) > rooms.MaxMissingOf:
		return nil, true
	case at < 0:
		return append(list, rooms.MissingMessages{Ref: m.Ref, Leaf: m.Leaf, Generations: generations}), false
	}
	list[at].Generations = append(list[at].Generations, generations...)
	return list, false
}

// askAnew takes back a question that was not sent.
func (r *room) askAnew(list []rooms.MissingMessages) {
	for i := range r.rec.Missing {
		m := &r.rec.Missing[i]
		if slices.ContainsFunc(list, func(o rooms.MissingMessages) bool { return m.in(&o) }) {
			m.Asked = false
			delete(r.askedAt, m.User)
		}
	}
}

// in tells whether a gap is among what a question names.
func (m *missing) in(o *rooms.MissingMessages) bool {
	return m.Ref == o.Ref && m.Leaf == o.Leaf && slices.ContainsFunc(o.Generations, func(g uint32) bool { return m.From <= g && g < m.Below })
}

// handleQuestion takes in what a member misses: this device need not ask for it, too,
// and sends its own again. Of one user a question counts once: who has used up what is
// sent again for them does not keep others from asking.
func (c *Client) handleQuestion(r *room, asker id.UserID, device id.DeviceID, list []rooms.MissingMessages, b *batch) {
	for _, o := range list {
		for i := range r.rec.Missing {
			m := &r.rec.Missing[i]
			old := r.epochs[federation.Ref(m.Ref)]
			if m.Asked || old == nil || !m.in(&o) || slices.Contains(m.Asks, asker) {
				continue
			}
			if m.Asks = append(slices.Clone(m.Asks), asker); len(m.Asks) >= maxQuestions {
				m.Asked = true
				c.tellLater(m)
			} else {
				m.ask = c.mono() + missingAgain + askTurn(m, old)
			}
		}
		c.sendMissed(r, asker, device, &o, b)
	}
}

// sendMissed notes those of this device's messages that a member did not get, to be sent
// again. What has no event yet is left to who sends it: this device, or a bot's own client.
func (c *Client) sendMissed(r *room, asker id.UserID, device id.DeviceID, o *rooms.MissingMessages, b *batch) {
	e, head := r.epochs[federation.Ref(o.Ref)], r.sendEpoch()
	if e == nil || head == nil || uint32(e.group.OwnLeafIndex()) != o.Leaf || !r.onChain(e.ref) {
		return
	}
	checked := false
	for _, row := range c.roomRows(r.id) {
		data := row.data
		if data.Plain == nil || data.EventID == "" || data.Asked || data.Taken || row.busy || row.item.State != stateSent || row.ref() != e.ref ||
			!slices.Contains(o.Generations, data.Gen) || b.again[row] {
			continue
		}
		if !checked && (!inGroup(head, asker, device) || newcomers(e, head)) {
			return
		}
		checked = true
		if !r.resends.may(asker, c.mono()) {
			return
		}
		data.Asked, data.Missed = true, &rooms.Earlier{Ref: o.Ref, Generation: data.Gen}
		c.saveRow(b, row, stateSent, e.ref, data)
		b.noteAgain(row)
	}
}

// resendMissed takes the next of the messages that are asked for, if there is one whose
// time has come, back to be encrypted again at once.
func (c *Client) resendMissed(ctx context.Context, r *room) error {
	r.resendAt = 0
	b := &batch{}
	for _, row := range c.roomRows(r.id) {
		if row.item.State != stateSent || row.data.Missed == nil {
			continue
		}
		if c.blockedBy(r.id) != nil {
			break // what unblocks it has the room looked at
		}
		now := c.mono()
		if at := max(c.resendAt, c.limited); now < at {
			r.resendAt = at
			break
		}
		data := row.data
		old, err := c.replaced(ctx, r, row)
		if err != nil {
			return err
		}
		if old || r.missedInVain(&data, r.sendEpoch()) {
			data.Missed = nil
			c.saveRow(b, row, stateSent, row.ref(), data)
			continue
		}
		plain := *data.Plain
		if plain.Again = data.Missed; checkPlaintext(&plain) == nil { // else they are not told which it is
			data.Plain = &plain
		}
		c.sendAgain(b, row, data)
		c.resendAt = now + resendPace
	}
	if len(b.ops) == 0 {
		return nil
	}
	return c.commitBatch(ctx, r, b)
}

// missedInVain tells of a message that is to be encrypted for an epoch because somebody
// missed it whether others have come in meanwhile, so that it stays as it was sent. One
// whose first epoch has left the head is sent again in any case.
func (r *room) missedInVain(data *outData, e *epoch) bool {
	if data.Missed == nil || !r.onChain(federation.Ref(data.Missed.Ref)) {
		return false
	}
	before := r.epochs[federation.Ref(data.Missed.Ref)]
	return before == nil || newcomers(before, e)
}

// replaced tells whether a message takes the place of another one, as edits and the answers
// of polls do, and a later one of this user, from whichever device, takes it now.
func (c *Client) replaced(ctx context.Context, r *room, row *outRow) (bool, error) {
	relation, target := placeOf(row.data.Plain.Content)
	if relation == "" {
		return false, nil
	}
	later := false
	for _, other := range c.roomRows(r.id) {
		if other == row {
			later = true
		} else if later && other.data.Plain != nil {
			if rel, t := placeOf(other.data.Plain.Content); rel == relation && t == target {
				return true, nil
			}
		}
	}
	own, err := c.st.TimelineByMid(ctx, r.id, c.UserID(), row.data.Plain.MessageID)
	if errors.Is(err, store.ErrNotFound) {
		return true, nil // nothing tells what came after it
	}
	if err != nil {
		return false, err
	}
	items, err := c.st.TimelineSince(ctx, r.id, own.Seq, store.MaxTimelinePage)
	if err != nil {
		return false, err
	}
	for _, item := range items {
		if item.Sender != c.UserID() {
			continue
		}
		msg, err := messageOf(item)
		if err != nil {
			return false, err
		}
		if rel, t := placeOf(msg.Content); rel == relation && t == target {
			return true, nil
		}
	}
	return len(items) == store.MaxTimelinePage, nil // what is beyond may be one
}

// placeOf returns the relation and target of a message of which the latest counts.
func placeOf(content json.RawMessage) (relation string, target id.EventID) {
	var c struct {
		Relates struct {
			Type  string     `json:"rel_type"`
			Event id.EventID `json:"event_id"`
		} `json:"m.relates_to"`
	}
	if json.Unmarshal(content, &c) != nil || c.Relates.Type != RelationEdit && c.Relates.Type != relationReference {
		return "", ""
	}
	return c.Relates.Type, c.Relates.Event
}

// leaveSent takes it back that a message is sent again.
func (c *Client) leaveSent(b *batch, row *outRow) {
	data, plain := row.data, *row.data.Plain
	ref := federation.Ref(data.Missed.Ref)
	plain.Again = nil
	data.Plain, data.Content, data.Gen, data.Missed = &plain, nil, data.Missed.Generation, nil
	if n := len(data.Was); n > 0 && data.EventID == "" {
		data.EventID, data.Was = data.Was[n-1], data.Was[:n-1]
	}
	c.saveRow(b, row, stateSent, ref, data)
	if data.EventID != "" {
		b.then(func() { c.answer(row, sendResult{event: data.EventID}) })
	}
}

// inGroup tells whether a user's device is in the group of an epoch.
func inGroup(e *epoch, user id.UserID, device id.DeviceID) bool {
	return slices.ContainsFunc(rooms.LeavesOf(e.group, user), func(l rooms.GroupLeaf) bool { return l.Cred.Device == device })
}

// newcomers tells whether there are users in the group of an epoch who were not in
// that of an earlier one.
func newcomers(before, now *epoch) bool {
	if before == now {
		return false
	}
	were := map[id.UserID]bool{}
	for _, leaf := range rooms.GroupLeaves(before.group) {
		were[leaf.Cred.User] = true
	}
	return slices.ContainsFunc(rooms.GroupLeaves(now.group), func(leaf rooms.GroupLeaf) bool { return !were[leaf.Cred.User] })
}

// cameAgain notes that a message of a gap came in another ciphertext.
func (r *room) cameAgain(msg *Message) {
	if msg.again == nil {
		return
	}
	at := slices.IndexFunc(r.rec.Missing, func(m missing) bool {
		return m.User == msg.Sender && m.Device == msg.Device && m.Ref == msg.again.Ref && m.holds(msg.again.Generation)
	})
	if at >= 0 {
		m := &r.rec.Missing[at]
		m.Again = append(slices.Clone(m.Again), msg.again.Generation)
		r.lessMissing(at)
	}
}

// holds tells whether a message of a gap has not come in any way.
func (m *missing) holds(generation uint32) bool {
	return m.From <= generation && generation < m.Below && !slices.Contains(m.Again, generation)
}
