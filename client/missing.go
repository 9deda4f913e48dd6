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
	// missingLonger is how much later a gap is told that could be asked for, and was not yet;
	// and askPauseSlow more, if it has to wait for that.
	missingLonger = 5 * time.Minute
	// missingRestart is for how long at least such a gap is kept from when a device starts.
	missingRestart = 90 * time.Second
	missingPause   = 10 * time.Second // between two looks at what keeps a gap from being told
	maxMissing     = 64               // gaps of a room that nobody was told of yet
	maxMissingOf   = 4                // and of one device in an epoch; those after are one
	maxAccounted   = 64               // entries of ciphertexts that no gap was laid to
	accountedNear  = 1                // levels from the head of then, where nothing tells the epoch
)

// missing is a gap in the count of a device's messages in an epoch.
type missing struct {
	Ref    rooms.Hash    `json:"ref"`
	Leaf   uint32        `json:"leaf"`
	User   id.UserID     `json:"user"`
	Device id.DeviceID   `json:"device"`
	From   uint32        `json:"from"`  // the first generation of the gap
	Below  uint32        `json:"below"` // the one that showed it
	Count  uint32        `json:"count"`
	Due    int64         `json:"due"`             // when it is told, Unix milliseconds
	Asked  bool          `json:"asked,omitempty"` // for it, or others have done so often enough
	Asks   []id.UserID   `json:"asks,omitempty"`  // others who did
	Slow   bool          `json:"slow,omitempty"`  // a delivery receipt showed it
	Again  []uint32      `json:"again,omitempty"` // what came in other ciphertexts
	Later  bool          `json:"later,omitempty"` // Due was put off, for it was asked for
	due    time.Duration // as Due, monotonic; 0: not known since the start
	last   time.Duration // when it is told though it could still be asked for, monotonic; 0: as due
	noted  time.Duration // monotonic; 0: before the start
	ask    time.Duration // when it is asked for, monotonic; 0: not known since the start
}

// accounted are ciphertexts of a user that this device has seen and never opens, and
// that no gap was laid to yet.
type accounted struct {
	User  id.UserID  `json:"user"`
	Ref   rooms.Hash `json:"ref,omitzero"`    // their epoch, as the ciphertext says
	Level uint64     `json:"level,omitempty"` // of the head when they came, where nothing says their epoch
	Count uint32     `json:"count"`
}

// noteMissing counts the messages that one which was opened shows to be missing, has
// them looked for, and returns their number. Of the epoch that this device came in
// with, what was sent before it was there cannot be told from what did not come.
func (c *Client) noteMissing(r *room, e *epoch, evtType string, cred *rooms.Credential, app *mls.ApplicationMessage) uint32 {
	skipped, ref, leaf := app.Skipped, rooms.Hash(e.ref), uint32(app.Sender)
	if skipped == app.Generation && ref == r.rec.JoinRef {
		skipped = 0
	}
	if app.Overtaken {
		at := slices.IndexFunc(r.rec.Missing, func(m missing) bool {
			return m.Ref == ref && m.Leaf == leaf && m.holds(app.Generation)
		})
		if at >= 0 {
			r.lessMissing(at)
		}
		return 0
	}
	if skipped == 0 {
		return 0
	}
	// What was seen and not opened need not be what is missing: it is looked for in any case.
	c.look(r, e.ref, lookPages, false)
	n := skipped - r.takeAccounted(cred.User, ref, r.levelOf(e), skipped)
	if n == 0 {
		return 0
	}
	gap := missing{
		Slow: evtType == rooms.TypeReceipt, Ref: ref, Leaf: leaf, User: cred.User, Device: cred.Device, From: app.Generation - skipped, Below: app.Generation, Count: n,
		Due: c.now().Add(missingWait).UnixMilli(), due: c.mono() + missingWait, noted: c.mono(),
	}
	of, last := 0, 0
	for i, m := range r.rec.Missing {
		if m.Ref == ref && m.Leaf == leaf {
			of, last = of+1, i
		}
	}
	if of >= maxMissingOf { // those before keep their time, so that no row of gaps puts off that it is told
		gap.From, gap.Count, gap.Again = r.rec.Missing[last].From, r.rec.Missing[last].Count+n, r.rec.Missing[last].Again
		r.rec.Missing = slices.Delete(r.rec.Missing, last, last+1)
	}
	gap.last = gap.due + gap.longer()
	gap.ask = c.mono() + missingAsk + askTurn(&gap, e)
	r.rec.Missing = boundOf(append(r.rec.Missing, gap), maxMissing, func(m missing) id.UserID { return m.User })
	return n
}

// longer is for how long it may be told later that a gap could still be asked for.
func (m *missing) longer() time.Duration {
	if m.Slow {
		return askPauseSlow + missingLonger
	}
	return missingLonger
}

// boundOf takes the oldest entry of the user who has most of them out of a list with more than most, so that nobody
// pushes out what there is of others.
func boundOf[T any](list []T, most int, of func(T) id.UserID) []T {
	for len(list) > most {
		count, worst := map[id.UserID]int{}, id.UserID("")
		for _, one := range list {
			count[of(one)]++
		}
		for _, one := range list { // of those with as many, who has the oldest
			if worst == "" || count[of(one)] > count[worst] {
				worst = of(one)
			}
		}
		at := slices.IndexFunc(list, func(one T) bool { return of(one) == worst })
		list = slices.Delete(list, at, at+1)
	}
	return list
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
	if json.Unmarshal(evt.Content, &content) == nil && len(content) == 0 && r.rec.Phase == phaseMember {
		r.account(evt.Sender, rooms.Hash{})
	}
}

// noteGivenUp notes a ciphertext that waited for its epoch while too many did. The
// caller writes the room's record.
func (r *room) noteGivenUp(evt *Event) {
	content, err := rooms.DecodeEncrypted(evt.Content)
	if err != nil {
		return
	}
	msg, err := mls.ParseMessage(content.Ciphertext)
	if err != nil {
		return
	}
	if aad, err := rooms.DecodeMessageAAD(msg.AuthenticatedData()); err == nil {
		r.account(evt.Sender, rooms.Hash(aad.Head))
	}
}

// account lays a ciphertext that is never opened to a gap of its sender's, or notes it
// for one that is not seen yet. The zero ref is for an epoch that nothing tells.
func (r *room) account(user id.UserID, ref rooms.Hash) {
	at := slices.IndexFunc(r.rec.Missing, func(m missing) bool { return m.User == user && (ref.IsZero() || m.Ref == ref) })
	if at >= 0 {
		r.lessMissing(at)
		return
	}
	one := accounted{User: user, Ref: ref, Count: 1}
	if head := r.head(); ref.IsZero() && head != nil {
		one.Level = r.levelOf(head)
	}
	r.oldAccounted()
	at = slices.IndexFunc(r.rec.Accounted, func(a accounted) bool { return a.User == user && a.Ref == ref && a.Level == one.Level })
	if at >= 0 {
		r.rec.Accounted[at].Count++
		return
	}
	r.rec.Accounted = boundOf(append(r.rec.Accounted, one), maxAccounted, func(a accounted) id.UserID { return a.User })
}

// takeAccounted lays ciphertexts of a user that are never opened to a gap of n
// messages in an epoch, and returns how many.
func (r *room) takeAccounted(user id.UserID, ref rooms.Hash, level uint64, n uint32) (taken uint32) {
	r.oldAccounted()
	for i := range r.rec.Accounted {
		a := &r.rec.Accounted[i]
		if a.User != user || !a.Ref.IsZero() && a.Ref != ref || a.Ref.IsZero() && max(a.Level, level)-min(a.Level, level) > accountedNear {
			continue
		}
		some := min(n-taken, a.Count)
		a.Count, taken = a.Count-some, taken+some
	}
	r.rec.Accounted = slices.DeleteFunc(r.rec.Accounted, func(a accounted) bool { return a.Count == 0 })
	return taken
}

// oldAccounted forgets ciphertexts of epochs that nothing tells, once the head has
// moved on: or one redaction of long ago would hide that a server keeps a message.
func (r *room) oldAccounted() {
	head := r.head()
	if head == nil {
		return
	}
	level := r.levelOf(head)
	r.rec.Accounted = slices.DeleteFunc(r.rec.Accounted, func(a accounted) bool { return a.Ref.IsZero() && a.Level+accountedNear < level })
}

// tellMissing tells of the messages that have not come for a while, and reports
// whether there were such. What was said on a branch that lost is sent again. Nothing
// is told before /sync answered, nor before the history was read since the gap was
// noted and since the start, nor, for some minutes, while it can be asked for.
func (c *Client) tellMissing(r *room) (told bool) {
	r.missAt = 0
	if len(r.rec.Missing) == 0 {
		return false
	}
	now, wall := c.mono(), c.now()
	settled := c.missingSettled(r)
	var left []missing
	for _, m := range r.rec.Missing {
		if m.due == 0 {
			m.due = now + min(max(0, time.UnixMilli(m.Due).Sub(wall)), missingWait)
			m.last = now + min(max(missingRestart, time.UnixMilli(m.Due).Sub(wall)+m.longer()), missingWait+m.longer())
		}
		at, looked := m.due, r.looked > 0 && r.looked >= m.noted
		if c.mayAsk(r, &m) {
			at = max(at, m.last)
		}
		if settled && !looked {
			c.look(r, federation.Ref(m.Ref), lookPages, false)
		}
		if !settled || !looked {
			at = now + missingPause
		}
		if now < at {
			left = append(left, m)
			if r.missAt == 0 || at < r.missAt {
				r.missAt = at
			}
			continue
		}
		told = true
		if !r.onChain(federation.Ref(m.Ref)) {
			continue
		}
		c.warn(r, fmt.Sprintf("missing/%s/%d/%d", m.Ref, m.Leaf, m.Below), &Warning{
			Sender: m.User, Rule: ruleMissing, Kind: MissingWarning, Reason: string(m.Device), Detail: strconv.FormatUint(uint64(m.Count), 10),
			Text: fmt.Sprintf("what %s sent from the device %s shows that something before it has not come (messages missing: %d): it may never have gone out, a server may be late with it, or keep it to itself", m.User, m.Device, m.Count),
		})
	}
	r.rec.Missing = left
	return told
}

// missingSettled tells whether nothing is under way that may bring what is missing.
func (c *Client) missingSettled(r *room) bool {
	return c.hasSynced() && r.needs[lookNow] == nil && r.needs[lookLater] == nil
}

// missingLooked tells whether the history was read since a gap was noted, and since
// the start.
func (c *Client) missingLooked(r *room, m *missing) bool {
	return c.missingSettled(r) && r.looked > 0 && r.looked >= m.noted
}

// ruleMissing is the rule of messages that a server may be keeping to itself.
const ruleMissing = "client/message-missing"
