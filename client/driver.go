package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// need is something that has to be fetched before a room can go on.
type need struct {
	event  id.EventID
	commit federation.Ref // that the event is, if it is known
	file   *rooms.File
	state  bool
	recent bool // the newest events, by /messages
	look   *lookback
	users  []id.UserID
	anew   bool // whatever is known of these users' devices
	late   bool // the homeserver may get it yet: that it has none is no answer
	// lasts: an event that matters waits for the file. Each failure lets the event
	// say so again.
	lasts  bool
	by     id.UserID // whose event that is
	busy   bool      // it is being fetched, beside the engine's turns
	fail   int
	asked  int           // the how many-th of the room's it is, of a file
	since  time.Duration // monotonic time when it was asked for first, of a file
	notFor time.Duration // monotonic time before which it is not tried again
}

// want asks for something to be fetched.
func (r *room) want(key string, n *need) {
	if asked := r.needs[key]; asked != nil {
		asked.late = asked.late || n.late
		if asked.commit.IsZero() {
			asked.commit = n.commit
		}
	} else if len(r.needs) < maxNeeds || len(r.needs) < 2*maxNeeds && n.event == "" && n.file == nil {
		r.wanted++
		n.asked = r.wanted
		r.needs[key] = n // events and files that others name leave place for the rest
	}
}

// wantCommit asks for a commit by its event, unless that has come and waits for something else.
func (r *room) wantCommit(event id.EventID, ref federation.Ref) {
	if event != "" && r.waiting[event] == nil {
		r.want("event:"+string(event), &need{event: event, commit: ref})
	}
}

const (
	maxNeeds     = 256
	maxTried     = 1024
	maxNeedFails = 8
)

// beforeNeed orders what a room needs. Files come in the order in which events began to wait for
// them, which is mostly that in which they can be used: one that comes before its commit can be made use of gives way
// to others, and has to be fetched again. What failed comes after what did not yet.
func (r *room) beforeNeed(a, b string) int {
	if n, o := r.needs[a], r.needs[b]; n.file != nil && o.file != nil {
		return cmp.Or(cmp.Compare(n.fail, o.fail), cmp.Compare(n.asked, o.asked))
	}
	return cmp.Compare(a, b) // the keys of files begin alike
}

// stepRoom brings one room as far as it goes.
func (c *Client) stepRoom(ctx context.Context, roomID id.RoomID) time.Duration {
	for range 64 {
		c.mu.Lock()
		r := c.rooms[roomID]
		if r == nil || c.fatal != nil {
			c.mu.Unlock()
			return 0
		}
		since := c.mono()
		if err := c.drain(ctx, r); err != nil {
			c.mu.Unlock()
			c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to process a room, will try again")
			return c.mono() + 5*time.Second
		}
		if err := c.maintain(ctx, r); err != nil {
			c.mu.Unlock()
			c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to maintain a room, will try again")
			return c.mono() + 5*time.Second
		}
		now := c.mono()
		work := c.nextWork(r, now) // before what it needs is looked at: it may find out only now
		var due []string
		var next time.Duration
		at := func(t time.Duration) {
			if t > 0 && (next == 0 || t < next) {
				next = t
			}
		}
		for key, n := range r.needs {
			switch {
			case n.busy:
			case n.notFor <= now:
				due = append(due, key)
			default:
				at(n.notFor)
			}
		}
		slices.SortFunc(due, r.beforeNeed)
		if c.beside {
			due = c.fetchFiles(ctx, r, due)
		}
		files := 0
		due = slices.DeleteFunc(due, func(key string) bool {
			n := r.needs[key]
			if n.file != nil {
				files++
			}
			return files > maxMediaCache && n.file != nil // no more than are kept for what waits for them
		})
		fetch := make([]*need, len(due))
		for i, key := range due {
			fetch[i] = r.needs[key]
		}
		at(c.nextTimer(r, since))
		c.mu.Unlock()

		if len(fetch) == 0 && work == nil {
			return next
		}
		for i := range fetch {
			c.fetch(ctx, roomID, due[i], fetch[i])
		}
		if work != nil {
			work(ctx)
		}
		if ctx.Err() != nil {
			return 0
		}
	}
	c.poke()
	return c.mono() + time.Second
}

// drain processes the room's inbox in order until nothing moves, or until the
// history has to be read first. It holds one event at a time.
func (c *Client) drain(ctx context.Context, r *room) error {
	items, err := c.st.Inbox(ctx, r.id)
	if err != nil || len(items) == 0 {
		return err
	}
	if r.headSeen {
		r.headAt, r.headTries = 0, 0
	}
	r.headLook, r.headSeen = r.headSeen || c.mono() >= r.headAt, false
	defer func() { r.letAhead = false }()
	for moved := true; moved; {
		moved = false
		for i, item := range items {
			if r.looking() {
				return nil
			}
			if item == nil || item.WaitsFor != "" && !r.arrived(item.WaitsFor) {
				continue
			}
			done, err := c.process(ctx, r, item)
			if err != nil {
				return err
			}
			if done {
				items[i] = nil
				moved = true
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if !moved && !r.letAhead && !r.lacksCommit() && slices.ContainsFunc(items, waitsAhead) {
			r.letAhead, moved = true, true // their commits are not to come
		}
	}
	return c.trimInbox(ctx, r, items)
}

func (c *Client) warnOnce(r *room, key string, u Update) {
	if r.first(key) {
		c.tell(u)
	}
}

// arrived tells whether what an event waits for is there.
func (r *room) arrived(what string) bool {
	kind, name := what, ""
	for i := range what {
		if what[i] == ':' {
			kind, name = what[:i], what[i+1:]
			break
		}
	}
	switch kind {
	case "group":
		return r.machine != nil
	case "member":
		return r.rec.Phase != phaseJoining
	case "join":
		return r.rec.Membership == "join"
	case "invite":
		return r.rec.Membership == "join" || r.rec.Membership == "invite"
	case "media":
		_, ok := r.media[name]
		n := r.needs[what]
		return ok || n == nil || !n.lasts // given up, or not asked for since a restart; or to say again that it matters
	case "files":
		return r.filesBy(id.UserID(name)) < maxFilesBy
	case "event":
		_, ok := r.fetched[id.EventID(name)]
		return ok || r.needs[what] == nil // not asked for any more: given up, or since a restart
	case "founded":
		return r.machine == nil || !r.machine.TooOld(0)
	case "decided":
		return r.pending == nil || !r.pending.External
	case "state":
		return r.state.Known
	case "looked":
		return r.needs["state"] == nil
	case "head":
		return r.headLook || r.headSeen
	case "displaced":
		return r.machine == nil || r.displaced
	case "welcomed":
		ref, event, _ := strings.Cut(name, "/")
		return r.arrived("event:"+event) || r.arrived("parent:"+ref)
	case "ahead":
		ref, err := federation.ParseRef(name)
		return err != nil || r.machine == nil || r.letAhead || r.machine.Held(ref) || r.machine.Waiting() < aheadOfCommits
	case "epoch", "parent":
		ref, err := federation.ParseRef(name)
		if err != nil || r.machine == nil {
			return err != nil
		}
		if kind == "parent" {
			return r.machine.Held(ref) || r.epochs[ref] != nil || r.machine.Beside(ref, math.MaxUint64)
		}
		return r.epochs[ref] != nil && r.machine.Accepted(ref)
	}
	return true
}

// process handles one inbox row in a transaction of its own. It reports
// whether the row is done; a row that waits stays.
func (c *Client) process(ctx context.Context, r *room, item *store.InboxItem) (bool, error) {
	// What was begun is ended: an event must not count as refused because the
	// client is being closed.
	ctx = context.WithoutCancel(ctx)
	if err := c.st.LoadInbox(ctx, item); errors.Is(err, store.ErrNotFound) {
		return true, nil // another event has settled it
	} else if err != nil {
		return false, err
	}
	defer func() { item.Data, r.opened = nil, nil }()
	var data inboxData
	b := &batch{}
	err := json.Unmarshal(item.Data, &data)
	if err == nil && data.Event == nil {
		err = errors.New("client: inbox row without event")
	}
	if err == nil {
		err = c.handleSafely(ctx, r, &data, b)
	}
	var wait *errWait
	if errors.As(err, &wait) {
		if kept := c.keepEntered(r, b); len(kept.ops) > 0 {
			if err := c.commitBatch(ctx, r, kept); err != nil {
				return false, err
			}
		}
		if r.waiting == nil {
			r.waiting = map[id.EventID]*waitingEvent{}
		}
		r.waiting[item.EventID] = data.waiting()
		if wait.what == item.WaitsFor {
			return false, nil
		}
		item.WaitsFor = wait.what
		return false, c.st.DoSoon(ctx, func(ctx context.Context) error { return c.st.AddInbox(ctx, item) })
	}
	if errors.Is(err, errStore) {
		// What is in memory may be ahead of the store: read it again.
		if rerr := c.reload(ctx, r); rerr != nil {
			c.fatal = errors.Join(err, rerr)
		}
		return false, err
	}
	if err != nil {
		// Refused: nothing of the event has an effect.
		if b.machine || b.torn {
			if rerr := c.reload(ctx, r); rerr != nil {
				c.fatal = errors.Join(err, rerr)
				return false, c.fatal
			}
			b = &batch{}
		} else {
			b = c.keepEntered(r, b)
		}
		if data.Event != nil {
			c.refused(r, data.Event, err, b)
		}
	}
	c.markSettled(b, r, item.EventID, data.Event)
	b.then(r.notify)
	b.soon = !data.ToDevice // the homeserver gives an event of a room again
	if err := c.commitBatch(ctx, r, b); err != nil {
		return false, err
	}
	return true, nil
}

// markSettled notes in a step's transaction that an event was processed.
func (c *Client) markSettled(b *batch, r *room, eventID id.EventID, evt *Event) {
	b.do(func(ctx context.Context) error {
		if _, err := c.st.MarkSeen(ctx, r.id, eventID); err != nil {
			return err
		}
		if evt != nil && evt.Type == rooms.TypeEncrypted {
			if err := c.st.DeleteKV(ctx, redactedKey(r.id, eventID)); err != nil {
				return err
			}
		}
		return c.st.DeleteInbox(ctx, r.id, eventID)
	})
	c.forgetSeen(r, b)
}

// keepEntered returns a batch that writes the epochs which an event led into
// before it turned out to wait, or to be refused: they are used from memory from
// now on, so the store has to have them too.
func (c *Client) keepEntered(r *room, b *batch) *batch {
	kept := &batch{}
	for _, e := range b.entered {
		if r.epochs[e.ref] == e {
			c.putEpoch(kept, r, e)
		}
	}
	return kept
}

// rulePanic counts events whose handling broke an invariant of this program.
const rulePanic rooms.Rule = "client/panic"

// handleSafely dispatches one event. A panic refuses the event, or every start
// of the program would end at it.
func (c *Client) handleSafely(ctx context.Context, r *room, data *inboxData, b *batch) (err error) {
	defer func() {
		if p := recover(); p != nil {
			b.torn = true
			c.log.Error().Stringer("room_id", r.id).Str("type", data.Event.Type).Bytes("stack", debug.Stack()).Msg("An event broke an invariant of the client, please report this")
			err = errRefusedUpdate(rulePanic, "its handling failed")
		}
	}()
	return c.handle(ctx, r, data, b)
}

// errStore marks trouble with the own store: the event is not to blame.
var errStore = errors.New("client: the store failed")

// handle dispatches one event.
func (c *Client) handle(ctx context.Context, r *room, data *inboxData, b *batch) error {
	evt := data.Event
	if data.Taken != nil {
		return c.markTaken(ctx, r, data.Taken, b)
	}
	if data.ToDevice {
		switch evt.Type {
		case rooms.TypeWelcome:
			return c.handleWelcome(ctx, r, evt, b)
		case rooms.TypeAdmit:
			return c.handleOwnAdmit(r, evt)
		}
		return rooms.CheckToDevice(evt.Type)
	}
	r.noteMeanwhile(evt)
	r.hear(evt.Sender, c.mono(), time.Duration(min(max(c.now().UnixMilli()-evt.Timestamp, 0), maxAge.Milliseconds()))*time.Millisecond)
	switch evt.Type {
	case rooms.TypeCommit:
		if data.Late > 0 || len(r.rec.Late) > 0 {
			c.noteLate(r, evt, data.Late, data.At)
		}
		return c.handleCommit(ctx, r, evt, b)
	case rooms.TypeProposal:
		return c.handleProposal(r, evt, b)
	case rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady, rooms.TypeApplied, rooms.TypeReject:
		return c.handleReceipt(ctx, r, evt, b)
	case rooms.TypeAdmit:
		return c.handleAdmit(r, evt)
	case rooms.TypeEra:
		return c.handleEra(ctx, r, evt, b)
	case rooms.TypeHead:
		return c.handleHead(r, evt, b)
	case rooms.TypeRequest:
		return c.handleRequest(r, evt)
	case rooms.TypeRepost:
		return c.handleRepost(ctx, r, evt, b)
	case rooms.TypeEncrypted, rooms.TypeReceipt:
		return c.handleEncrypted(ctx, r, evt, b)
	case "m.room.redaction":
		told := &Redaction{Room: r.id, EventID: evt.ID, Sender: evt.Sender, Target: redactionTarget(evt)}
		c.redact(r, told.Target, b)
		b.then(func() { c.tell(told) })
		return nil
	}
	if err := rooms.CheckUnencrypted(evt.Type, evt.StateKey != nil); err != nil {
		// Own room is switched to MLS with plaintext before it: only what
		// comes after is a fault.
		if r.machine != nil {
			c.tell(&Warning{Room: r.id, EventID: evt.ID, Sender: evt.Sender, Rule: ruleOf(err), Kind: PlaintextWarning, Text: "an unencrypted event came in an encrypted room; do not trust it"})
		}
		return err
	}
	return nil
}

// redactedKey marks a ciphertext in the inbox that was redacted before it could be
// opened. It is there no longer than the ciphertext.
func redactedKey(room id.RoomID, event id.EventID) string {
	return "redacted/" + string(room) + "/" + string(event)
}

// redact takes what a redacted message said out of the store. If it cannot be opened
// yet, it says nothing when it is.
func (c *Client) redact(r *room, target id.EventID, b *batch) {
	for w := range c.walks {
		if w.room == r.id && len(w.redacted) < c.limits.History {
			w.redacted[target] = true
		}
	}
	c.takeBack(b, r, target)
	b.do(func(ctx context.Context) error {
		waits, err := c.st.InInbox(ctx, r.id, target)
		if err == nil && waits {
			err = c.st.PutKV(ctx, redactedKey(r.id, target), []byte{1})
		}
		if err != nil {
			return err
		}
		return c.st.RedactTimeline(ctx, r.id, target, func(data []byte) ([]byte, error) {
			msg := new(Message)
			if err := json.Unmarshal(data, msg); err != nil {
				return nil, fmt.Errorf("client: message %s: %w", target, err)
			}
			msg.Content = json.RawMessage("{}")
			return encodeKept(msg)
		})
	})
}

func redactionTarget(evt *Event) id.EventID {
	if evt.Redacts != "" {
		return evt.Redacts
	}
	var content struct {
		Redacts id.EventID `json:"redacts"`
	}
	if json.Unmarshal(evt.Content, &content) != nil {
		return ""
	}
	return content.Redacts
}

// fetch gets one thing, without the lock. Of what the lock guards in the need it
// reads nothing before it holds it.
func (c *Client) fetch(ctx context.Context, roomID id.RoomID, key string, n *need) {
	var err error
	var apply func(r *room)
	switch {
	case n.event != "":
		var evt *Event
		if evt, err = c.hs.Event(ctx, roomID, n.event); err == nil {
			apply = func(r *room) {
				if len(r.fetched) >= maxNeeds {
					clear(r.fetched)
				}
				r.fetched[n.event] = evt
				if named(evt) {
					if err := c.inboxStep(roomID, evt, false)(ctx); err != nil {
						c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to file a fetched event")
					}
				}
			}
		}
	case n.file != nil:
		var data []byte
		if data, err = c.download(ctx, n); err == nil {
			apply = func(r *room) {
				r.keepFile(n.file, data)
				r.nextFile(fileServer(n.file), c.mono())
			}
		}
	case n.recent:
		var events []*Event
		if events, err = c.recentEvents(ctx, roomID); err == nil {
			apply = func(r *room) {
				for _, evt := range events {
					if evt.StateKey != nil || !c.wanted(r, evt) {
						continue
					}
					if err := c.inboxStep(roomID, evt, false)(ctx); err != nil {
						c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to file a fetched event")
					}
				}
			}
		}
	case n.look != nil:
		var events []*Event
		var held map[id.EventID]bool
		began := c.mono()
		if events, held, err = c.history(ctx, roomID, n.look); err == nil {
			apply = func(r *room) {
				if err := c.fileHistory(ctx, r, key, n.look, events, held); err != nil {
					c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to file the history of a room")
					return
				}
				r.looked = max(r.looked, began)
			}
		}
	case n.state:
		c.mu.Lock()
		if r := c.rooms[roomID]; r != nil {
			r.state.begin()
		}
		c.mu.Unlock()
		var events []*Event
		if events, err = c.hs.State(ctx, roomID); err == nil {
			apply = func(r *room) {
				wasMLS, before := r.state.isMLS(), r.state.view.Encryption
				c.warnSetBacks(r, r.state.replace(events))
				c.checkAlgorithm(r, wasMLS, before)
				for _, evt := range events {
					if evt.Type == rooms.TypeMember && evt.StateKey != nil {
						c.noteAdmission(r, evt)
					}
				}
				r.planned = false
				if err := c.commitBatch(ctx, r, &batch{state: true}); err != nil {
					c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to store the state of a room")
				}
			}
		}
	case len(n.users) > 0:
		var lists *deviceLists
		if n.anew {
			for _, user := range n.users {
				err = errors.Join(err, c.ident.Outdate(ctx, user))
			}
		}
		if err == nil {
			lists, err = c.readDevices(ctx, n.users)
		}
		if err == nil {
			apply = func(r *room) {
				c.keepDevices(r, lists)
				r.planned = false
				if n.anew {
					r.plannedOn = federation.Ref{} // nothing is done by the plan from before
				}
			}
		}
	}
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil || r.needs[key] != n {
		return
	}
	if err == nil {
		delete(r.needs, key)
		apply(r)
		r.headSeen = r.headSeen || n.file != nil || len(n.users) > 0 || n.state // what a head rests on
		return
	}
	if n.state {
		r.state.read = nil
	}
	n.fail++
	wait := min(time.Second<<min(n.fail-1, 6), time.Minute)
	var limit *RateLimitError
	if errors.As(wrapRateLimit(err), &limit) {
		wait = limit.RetryAfter
	}
	lasts := n.lasts && rooms.RuleOf(err) == ""
	n.lasts = false
	if n.look != nil && n.look.hold {
		// What is missing is not given up as long as the room is ours to read.
		lasts = r.rec.Membership == "join"
	}
	if lasts && limit == nil {
		wait = r.fileWait(n)
	}
	n.notFor = c.mono() + wait
	c.log.Debug().Err(err).Stringer("room_id", roomID).Int("attempt", n.fail).Msg("Failed to fetch something")
	if lasts {
		r.restFile(key, n, c.mono())
	}
	if !lasts && (n.fail >= maxNeedFails || isPermanent(err) && n.fail >= 3 && !n.late) {
		delete(r.needs, key)
		now := c.mono()
		r.avoid("need/"+key, now, now+10*time.Minute)
		if n.file != nil {
			c.count(string(rooms.RuleMediaHash))
			if rooms.RuleOf(err) != "" { // another file is there
				r.avoid("wrong/"+key, now, now+10*time.Minute)
			}
		}
		if n.look != nil && r.needs[lookNow] == nil && r.needs[lookLater] == nil {
			r.rec.Look = nil
		}
	}
	if !n.commit.IsZero() && n.fail >= missFails {
		c.miss(r, n.commit)
	}
}

// recentPages is how far back a device looks that notices it lacks something.
const recentPages = 5

// recentEvents reads the newest events of a room, oldest first.
func (c *Client) recentEvents(ctx context.Context, roomID id.RoomID) ([]*Event, error) {
	var out []*Event
	from := ""
	for range recentPages {
		events, next, err := c.page(ctx, roomID, from)
		if err != nil {
			return nil, err
		}
		out = append(out, events...)
		if next == "" || next == from {
			break
		}
		from = next
	}
	slices.Reverse(out)
	return out, nil
}

const (
	lagLook   = 3 * time.Second  // a module knows more than this device: look for it
	lagOther  = 20 * time.Second // it was not found: it may be on another branch
	lagRejoin = 45 * time.Second // it was not found: join again
	lagFile   = 5 * time.Minute  // its file, or another commit's, is not there yet: join again
)

// outgoing lists the modules of the lists below the head, down to what is final.
func (r *room) outgoing() (out []id.UserID) {
	final, head := r.machine.NewestFinal(), r.machine.Head()
	for _, ref := range append(r.machine.Path(final, head), final) {
		if ref == head {
			continue // those of its list are looked at anyway
		}
		policy, _ := r.machine.PolicyAt(ref)
		for _, s := range policy.Sequencers {
			if user := id.UserID(s.User); !slices.Contains(out, user) {
				out = append(out, user)
			}
		}
	}
	return out
}

// watchLag compares this device's head with what the listed modules publish.
// /sync can leave out events for good; whoever notices looks for them, and who
// cannot find them joins again.
func (c *Client) watchLag(r *room) {
	r.showMore = r.showMore[:0]
	c.confirm(r)
	e := r.head()
	if e == nil {
		return
	}
	policy, err := e.policy()
	if err != nil {
		return
	}
	now := c.mono()
	var ahead *rooms.HeadContent
	for _, seq := range policy.Sequencers {
		head := r.state.head(id.UserID(seq.User))
		if head == nil || head.Accepted == nil {
			continue
		}
		if head.ShowsMore(r.machine) {
			r.showMore = append(r.showMore, id.UserID(seq.User))
		}
		if string(head.Group) != string(e.group.GroupID()) {
			if p, err := c.proofOf(r, id.UserID(seq.User), head); err == nil && continues(p, head.Group, e.group.GroupID()) && !r.machine.Held(federation.Ref(head.Accepted.Ref)) {
				ahead = head // the group was founded anew
			}
			continue
		}
		if head.Accepted.Epoch > e.number && !r.machine.Accepted(federation.Ref(head.Accepted.Ref)) {
			ahead = head
		}
	}
	// As long as a list change is not final, the old list alone can make it so.
	for _, user := range r.outgoing() {
		if head := r.state.head(user); head != nil && head.Accepted != nil && !slices.Contains(r.showMore, user) && head.ShowsMore(r.machine) {
			r.showMore = append(r.showMore, user)
		}
	}
	elsewhere := r.elsewhere()
	defer func() {
		// What a module shows may also lie above this device's head: only where it
		// does not, or where the way there was not found, is it another branch.
		was := r.displaced
		r.displaced = elsewhere && (ahead == nil || r.lagSince > 0 && now >= r.lagSince+lagOther)
		if r.displaced && !was {
			c.poke() // a Welcome may wait for it
		}
	}()
	switch {
	case ahead == nil && !elsewhere && !r.beside:
		r.lagSince, r.lagLooked = 0, false
	case r.lagSince == 0:
		r.lagSince = now
	case !r.lagLooked && now >= r.lagSince+lagLook:
		r.lagLooked = true
		r.want("recent", &need{recent: true})
		if ahead != nil {
			r.wantCommit(ahead.Accepted.Event, federation.Ref(ahead.Accepted.Ref))
		}
	case now >= r.lagSince+lagRejoin && (now >= r.lagSince+lagFile || !r.awaitsFile(now)):
		r.waitedInVain(now)
		r.lagSince, r.lagLooked = 0, false
		c.stuck(r, r.machine.Head(), "")
	}
}

// wantUsers asks for the device lists of users that are not at hand.
func (c *Client) wantUsers(r *room, users []id.UserID) (complete bool) {
	var missing []id.UserID
	for _, user := range users {
		if !r.devices[user] || c.devs[user] == nil {
			missing = append(missing, user)
		}
	}
	if len(missing) == 0 {
		return true
	}
	slices.Sort(missing)
	r.want("devices", &need{users: missing})
	return false
}

// maintain does what time, state and device lists ask for.
func (c *Client) maintain(ctx context.Context, r *room) error {
	if r.foundLate > 0 && c.mono() >= r.foundLate {
		r.foundLate = 0
		r.notify()
	}
	if r.rec.Membership == "join" && !r.state.Known && (r.state.isMLS() || r.machine != nil) {
		r.want("state", &need{state: true})
	}
	c.askAhead(ctx, r)
	if r.rec.Membership == "leave" || r.rec.Membership == "ban" {
		b := &batch{}
		if r.rec.Phase != phaseRemoved && r.rec.Phase != phaseNone || r.machine != nil {
			c.removed(r, id.UserID(r.state.view.Members[c.UserID()].Sender), b)
			return c.commitBatch(ctx, r, b)
		}
		if c.dropMessages(r, b); len(b.ops) > 0 { // the group was told before the room
			return c.commitBatch(ctx, r, b)
		}
	}
	if r.machine != nil {
		b := &batch{}
		if acts := r.machine.Tick(c.mono()); len(acts) > 0 {
			if err := c.act(ctx, r, acts, b); err != nil {
				return err
			}
			if err := c.commitBatch(ctx, r, b); err != nil {
				return err
			}
		}
	}
	if c.outForGood(r) {
		b := &batch{}
		if r.rec.Phase == phaseRemoved {
			c.removed(r, "", b)
		} else { // and let in again: a newcomer
			c.dropGroup(r, b)
			r.rec.PutOut = 0
		}
		if err := c.commitBatch(ctx, r, b); err != nil {
			return err
		}
	}
	if r.pruneAt > 0 && c.mono() >= r.pruneAt {
		b := &batch{}
		if r.machine != nil {
			c.prune(b, r)
		} else {
			r.pruneAt = 0
			c.pruneBehind(b, r, 0)
		}
		if len(b.ops) > 0 {
			if err := c.commitBatch(ctx, r, b); err != nil {
				return err
			}
		}
	}
	if r.rec.Phase == phaseMember && r.machine != nil {
		if err := c.watchUnread(ctx, r); err != nil {
			return err
		}
		c.watchLag(r)
		if err := c.takeShown(ctx, r); err != nil {
			return err
		}
	}
	if r.rec.Phase == phaseMember && r.machine != nil {
		if err := c.requestMissing(ctx, r); err != nil {
			return err
		}
	}
	if r.rec.Phase == phaseMember && r.machine != nil {
		if err := c.vouch(ctx, r); err != nil {
			return err
		}
		c.watchUnvouched(r)
		c.watchStandstill(r)
		c.watchCopy(r)
		c.plan(r)
		if err := c.supportEras(ctx, r); err != nil {
			return err
		}
		if err := c.resendMissed(ctx, r); err != nil {
			return err
		}
		if err := c.encryptQueued(ctx, r); err != nil {
			return err
		}
		if err := c.sendReceipt(ctx, r); err != nil {
			return err
		}
		if err := c.askMissing(ctx, r); err != nil {
			return err
		}
		if c.tellMissing(r) {
			if err := c.commitBatch(ctx, r, &batch{soon: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

// nextWork returns what has to be done outside of the lock now: a commit to
// prepare, or a way into the group.
func (c *Client) nextWork(r *room, now time.Duration) func(ctx context.Context) {
	switch {
	case r.rec.Phase == phaseFounding:
		return c.foundWork(r, now)
	case r.rec.Phase == phaseMember:
		return c.commitWork(r, now)
	case r.rec.Membership == "join" && (r.rec.Phase == phaseNone || r.rec.Phase == phaseJoining || r.rec.Phase == phaseRemoved):
		return c.joinWork(r, now)
	}
	return nil
}

// overdueIn is when a room is looked at again for what became due while it was
// looked at: later than at once, or a clock that stands would make it spin.
const overdueIn = time.Millisecond

// nextTimer returns the time of the room's next timer, 0 if there is none. On a busy
// machine one may have run out after it was looked at: the look began at since.
func (c *Client) nextTimer(r *room, since time.Duration) time.Duration {
	var next time.Duration
	now := c.mono()
	at := func(t time.Duration) {
		if t <= since {
			return
		}
		if t <= now {
			t = now + overdueIn
		}
		if next == 0 || t < next {
			next = t
		}
	}
	at(r.commitAt)
	at(r.joinAt)
	if r.pending != nil && r.pending.External && r.joinAt > now {
		at(min(r.joinAt, r.joinSince+maxJoinWait)) // a newer head may have been shown meanwhile
	}
	at(r.headAt)
	at(r.nextRequest())
	if len(r.rec.Acks) > 0 {
		at(c.receiptDue(r))
	}
	at(r.missAt)
	at(r.askAt)
	at(r.resendAt)
	at(r.pruneAt)
	at(r.graceAt)
	at(r.staleAt)
	at(r.tried["commit"])
	at(r.tried["list"])
	at(r.autoAt)
	at(r.foundLate)
	at(r.foundAt)
	at(r.tried["found"])
	if r.unreadSince > 0 {
		at(r.unreadSince + foundWelcomeWait)
	}
	if r.listSince > 0 {
		at(r.listSince + listWait)
	}
	if r.pending != nil && r.pending.List {
		at(r.pendingSince + listWait)
	}
	if r.pending != nil && r.pendingSince > 0 {
		at(r.pendingSince + alteredWait)
		if due := r.contestedAt(); due > 0 {
			at(due)
			at(due + unheardWait)
		}
	}
	if r.unvouchedSince > 0 {
		at(r.unvouchedSince + unvouchedWait)
	}
	at(c.standstillAt(r))
	if r.lagSince > 0 {
		at(r.lagSince + lagLook)
		at(r.lagSince + lagOther)
		at(r.lagSince + lagRejoin)
		at(r.lagSince + lagFile)
	}
	if next := r.looks.Next(); next > 0 {
		at(next)
	}
	for _, t := range r.vouchAt {
		at(t)
	}
	if r.vouchDue > 0 && r.machine != nil && r.rec.Phase == phaseMember {
		// On a busy machine it may have become due since it was looked at.
		at(max(r.vouchDue, now+overdueIn))
	}
	if r.machine != nil {
		if t, ok := r.machine.Next(); ok {
			at(t)
		}
	}
	return next
}
