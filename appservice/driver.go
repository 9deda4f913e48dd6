package appservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Bounds of the engine.
const (
	tickLatency   = 200 * time.Millisecond // a busy inbox delays what is due by no more
	roomsInMemory = 2000                   // idle rooms above this are put away
	roomIdle      = 10 * time.Minute
	refreshRooms  = time.Minute // how often rooms are looked for that came without an event
)

// Rules of refusals that the engine decides.
const (
	ruleWaitedTooLong = "room/waited-too-long"
	ruleTooManyWait   = "room/too-many-waiting"
	ruleSecondRoot    = "room/second-root"
	ruleRootNotOwned  = "room/root-not-by-creator"
	ruleNotForUs      = "room/unknown-type"
	ruleInclusion     = "room/removal-skipped"
	ruleTooOld        = "room/commit-too-old"
	ruleGroupInfo     = "room/group-info-missing"
	ruleNotShown      = "room/receipt-not-shown"
)

// Engine follows the rooms: it is the driver around the pure packages rooms,
// federation and mls, and the only place where they meet the database and the
// homeserver. All its methods are called from one goroutine; what waits for the
// homeserver runs in others, and comes back as a function that this goroutine
// calls.
//
// For each input it writes the room's new state, the rows to send and the mark
// on the input in one transaction. If that fails, what it holds of the room in
// memory is thrown away and read again.
type Engine struct {
	d     Deps
	mls   *mls.Config
	rooms map[id.RoomID]*room
	jobs  jobs
	media mediaCache

	restored    string // names the newest restore of the database from a backup; "" for none
	started     bool
	nextRefresh time.Duration
	nextCount   time.Duration
	failing     map[id.RoomID]*pause // rooms that could not be read or worked on
	treesGrew   bool                 // trees came into memory since they were counted
	treesMost   int                  // bytes that they may take
	newcomers   int                  // rooms in which somebody needs fresh heads
	without     map[string]bool      // rules that tests leave out: see package probe
}

// NewEngine makes an engine.
func NewEngine(d Deps) *Engine {
	if d.crash == nil {
		d.crash = func(string) {}
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	e := &Engine{
		d:     d,
		rooms: make(map[id.RoomID]*room), failing: make(map[id.RoomID]*pause),
		mls: &mls.Config{Rand: d.Rand, Now: d.Now, ExperimentalSuites: d.Config.Rooms.ExperimentalSuites, Authenticator: rooms.Authenticator{}, Limits: mls.Limits{
			MaxMembers: d.Config.Limits.Leaves, MaxProposals: d.Config.Limits.CommitProposals,
			MaxSenderProposals: d.Config.Limits.CachedProposalsPerSender, MaxCachedProposals: d.Config.Limits.CachedProposalsPerEpoch,
		}},
	}
	e.jobs.wake, e.jobs.inline = d.Wake, d.inline
	e.media.limit, e.treesMost = 64<<20, treesInMemory
	return e
}

// Start loads the rooms. Each is compared with the homeserver before the module
// signs anything in it.
func (e *Engine) Start(ctx context.Context) error {
	e.rooms = make(map[id.RoomID]*room)
	var err error
	if e.restored, err = e.d.Store.Get(ctx, store.KeyRestored); err != nil {
		return err
	}
	known, err := e.d.Store.KnownRooms(ctx)
	if err != nil {
		return err
	}
	for room, status := range known {
		if status == store.RoomLeft {
			continue
		}
		if _, err := e.room(ctx, room); err != nil {
			if err := e.setAside(ctx, room, err, e.d.Monotonic()); err != nil {
				return err
			}
		}
	}
	e.started = true
	return nil
}

// setAside puts a room away that cannot be read or worked on, and looks at it
// again later: one damaged room must not stop the others. It returns the error
// if it is not the room's: the database does not answer or is another's.
func (e *Engine) setAside(ctx context.Context, room id.RoomID, err error, now time.Duration) error {
	if ctx.Err() != nil || errors.Is(err, store.ErrTakenOver) || e.d.Store.Ping(ctx) != nil {
		return err
	}
	delete(e.rooms, room)
	p := e.failing[room]
	if p == nil {
		p = new(pause)
		e.failing[room] = p
	}
	p.fail(now, time.Second, 10*time.Minute)
	e.d.Metrics.Inc(metrics.EngineErrors)
	roomLog(ctx, room).Error().Err(err).Dur("retry_in", p.until-now).Msg("Could not work on a room, the others go on")
	return nil
}

// retryRooms looks again at rooms that were set aside and returns when the next
// of them is due.
func (e *Engine) retryRooms(ctx context.Context, now time.Duration) (next time.Duration, err error) {
	for room, p := range e.failing {
		if p.ready(now) && e.rooms[room] == nil {
			if _, err := e.room(ctx, room); err != nil {
				if err := e.setAside(ctx, room, err, now); err != nil {
					return 0, err
				}
			}
		}
		if p.until > now && (next == 0 || p.until < next) {
			next = p.until
		}
	}
	return next, nil
}

// Recheck compares rooms, or all of them, with their history as soon as it can.
func (e *Engine) Recheck(ctx context.Context, some ...id.RoomID) error {
	if len(some) > 0 {
		for _, room := range some {
			if e.failing[room] != nil {
				continue
			}
			r, err := e.room(ctx, room)
			if err != nil {
				if err := e.setAside(ctx, room, err, e.d.Monotonic()); err != nil {
					return err
				}
				continue
			}
			r.gap.wanted = r.gap.wanted || r.status == store.RoomJoined || r.status == store.RoomServing
		}
		return nil
	}
	for _, r := range e.rooms {
		r.needState, r.gap.wanted = true, true
	}
	return nil
}

// outcome is what became of an event.
type outcome struct {
	status store.InboxStatus
	rule   string
	detail string
}

var (
	done    = outcome{status: store.InboxDone}
	ignored = outcome{status: store.InboxIgnored}
	waiting = outcome{status: store.InboxWaiting}
)

// refused makes an outcome of an error of the packages mls, rooms or
// federation.
func refused(err error) outcome {
	return outcome{status: store.InboxRefused, rule: ruleOf(err), detail: err.Error()}
}

// ruleOf names why something was refused: by the rule of ours, if there is one,
// whatever package mls found on the way there.
func ruleOf(err error) string {
	if r, ok := errors.AsType[*ruleError](err); ok {
		return r.rule
	}
	if r := rooms.RuleOf(err); r != "" {
		return string(r)
	}
	if r := federationRule(err); r != "" {
		return r
	}
	if v, ok := errors.AsType[*mls.ValidationError](err); ok {
		return string(v.Rule)
	}
	return ruleFailed
}

// ruleError is a refusal that the engine decides itself.
type ruleError struct{ rule, text string }

func (e *ruleError) Error() string { return "appservice: " + e.text }

func refusal(rule, format string, args ...any) error {
	return &ruleError{rule, fmt.Sprintf(format, args...)}
}

// HandleEvent takes one event out of the inbox.
func (e *Engine) HandleEvent(ctx context.Context, ev *store.InboxEvent) error {
	r, err := e.room(ctx, ev.Room)
	if err != nil {
		return err
	}
	if err := e.handle(ctx, r, ev); err != nil {
		return err
	}
	if r := e.rooms[ev.Room]; r != nil && e.d.Monotonic()-r.lastTick > tickLatency && r.live() {
		_, err = e.tickRoom(ctx, r, e.d.Monotonic())
	}
	return err
}

// handle takes an event in, in one transaction with its effect.
func (e *Engine) handle(ctx context.Context, r *room, ev *store.InboxEvent) error {
	var out outcome
	err := e.update(ctx, r, func(ctx context.Context) error {
		var err error
		if out, err = e.take(ctx, r, ev); err != nil {
			return err
		}
		if out.status == store.InboxWaiting && ev.Status != store.InboxWaiting {
			if err := e.makePlace(ctx, r); err != nil {
				return err
			}
		}
		if out.status == store.InboxRefused {
			if err := e.d.Store.PutRefusal(ctx, &store.Refusal{Room: ev.Room, Event: ev.EventID, Rule: out.rule, Detail: out.detail}); err != nil {
				return err
			}
		}
		return e.d.Store.FinishInbox(ctx, ev.EventID, out.status, out.rule)
	})
	if err != nil {
		return err
	}
	switch {
	case out.status == store.InboxWaiting && ev.Status != store.InboxWaiting:
		r.waiting++
		r.waitSince[ev.EventID] = e.d.Monotonic()
	case out.status != store.InboxWaiting && ev.Status == store.InboxWaiting && r.waiting > 0:
		r.waiting--
	}
	if out.status != store.InboxWaiting {
		delete(r.waitSince, ev.EventID)
	}
	if out.status == store.InboxRefused {
		e.d.Metrics.Rejected(out.rule)
		zerolog.Ctx(ctx).Warn().Str("rule", out.rule).Str("detail", out.detail).Msg("Refused an event")
	}
	return nil
}

// makePlace lets one more event wait. If too many do, the oldest of whoever has
// the most of them waiting goes: who floods a room crowds out itself.
func (e *Engine) makePlace(ctx context.Context, r *room) error {
	full, where := r.waiting, r.id
	if full < e.d.Config.Limits.WaitingPerRoom {
		n, _, err := e.d.Store.CountInbox(ctx, store.InboxWaiting)
		if err != nil || n < e.d.Config.Limits.WaitingTotal {
			return err
		}
		full, where = n, "" // in the room where the most wait
	}
	old, err := e.d.Store.OldestWaiting(ctx, where)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if r := e.rooms[old.Room]; r != nil {
		r.waiting, r.passed = max(r.waiting-1, 0), true
		delete(r.waitSince, old.EventID)
	}
	e.d.Metrics.Rejected(ruleTooManyWait)
	detail := fmt.Sprintf("%d events wait, most of them of %s; it is looked at again when the group has moved on", full, old.Sender)
	if err := e.d.Store.PutRefusal(ctx, &store.Refusal{Room: old.Room, Event: old.EventID, Rule: ruleTooManyWait, Detail: detail}); err != nil {
		return err
	}
	return e.d.Store.FinishInbox(ctx, old.EventID, store.InboxRefused, ruleTooManyWait)
}

// reopenAtOnce is how many events of one sender, which waited in vain, are
// looked at again at each commit that is followed.
const reopenAtOnce = 10

// reopen has events looked at again that waited in vain: what they waited for
// may have come.
func (e *Engine) reopen(ctx context.Context, r *room) error {
	perSender := r.moved
	r.moved = 0
	if !r.passed || perSender == 0 {
		return nil
	}
	n, err := e.d.Store.ReopenInbox(ctx, r.id, perSender, ruleTooManyWait, ruleWaitedTooLong)
	if err != nil {
		return err
	}
	if r.passed = n > 0; r.passed {
		e.d.Wake()
	}
	return nil
}

// update runs fn in a transaction that also stores the room. If it fails the
// room is read again at its next use.
func (e *Engine) update(ctx context.Context, r *room, fn func(ctx context.Context) error) (err error) {
	stored := false
	defer func() {
		if !stored { // fn failed, or an invariant broke in it
			delete(e.rooms, r.id)
		}
	}()
	err = e.d.Store.Tx(ctx, func(ctx context.Context) error {
		if err := e.d.Store.LockRoom(ctx, string(r.id)); err != nil {
			return err
		}
		if err := fn(ctx); err != nil {
			return err
		}
		if err := r.store(ctx, e.d.Store); err != nil {
			return err
		}
		e.d.crash(crashRoomStoring)
		return nil
	})
	if err != nil {
		return err
	}
	e.d.crash(crashRoomStored)
	stored = true
	if r.noted != r.status {
		r.noted = r.status
		e.d.NoteStatus(r.id, r.status)
	}
	if r.sends {
		r.sends = false
		e.d.WakeOutbox()
	}
	return nil
}

// Tick does what is due in every room.
func (e *Engine) Tick(ctx context.Context, now time.Duration) (time.Duration, error) {
	for _, r := range e.rooms {
		if r.gap.draining {
			rest, err := e.d.Store.RoomInbox(ctx, r.id, store.InboxNew, 1)
			if err != nil {
				return 0, err
			}
			if len(rest) == 0 {
				r.gap.draining, r.gap.complete, r.stepped = false, true, true
			}
		}
	}
	if err := e.jobs.finish(ctx); err != nil {
		return 0, err
	}
	if now >= e.nextRefresh {
		// Rooms that the bot is in and that came without an event.
		e.nextRefresh = now + refreshRooms
		known, err := e.d.Store.KnownRooms(ctx)
		if err != nil {
			return 0, err
		}
		for room, status := range known {
			if r := e.rooms[room]; r != nil && r.status == store.RoomLeft && status != store.RoomLeft {
				delete(e.rooms, room) // the bot is in it after all
			}
			if status != store.RoomLeft && e.rooms[room] == nil && e.failing[room] == nil && (status != store.RoomServing || len(e.rooms) < roomsInMemory) {
				if _, err := e.room(ctx, room); err != nil {
					if err := e.setAside(ctx, room, err, now); err != nil {
						return 0, err
					}
				}
			}
		}
	}
	next := e.nextRefresh
	retry, err := e.retryRooms(ctx, now)
	if err != nil {
		return 0, err
	}
	if retry > 0 {
		next = min(next, retry)
	}
	e.newcomers = 0
	for _, r := range e.rooms {
		if now < r.joinerUntil {
			e.newcomers++
		}
	}
	for _, r := range e.inOrder() {
		at, err := e.tickRoom(ctx, r, now)
		if err != nil {
			if err := e.setAside(ctx, r.id, err, now); err != nil {
				return 0, err
			}
			next = min(next, e.failing[r.id].until)
			continue
		}
		if p := e.failing[r.id]; p != nil && p.ready(now) {
			delete(e.failing, r.id)
		}
		if at > 0 {
			next = min(next, at)
		}
	}
	e.putAway(now)
	e.putTreesAway()
	e.countTrouble(now)
	e.jobs.start(ctx)
	return next, nil
}

// inOrder returns the loaded rooms, the one that was looked at longest ago
// first.
func (e *Engine) inOrder() []*room {
	out := make([]*room, 0, len(e.rooms))
	for _, r := range e.rooms {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *room) int {
		if a.lastTick != b.lastTick {
			return int(min(max(a.lastTick-b.lastTick, -1), 1))
		}
		return compareStrings(string(a.id), string(b.id))
	})
	return out
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// putAway forgets rooms that are idle, if many are loaded.
func (e *Engine) putAway(now time.Duration) {
	if len(e.rooms) <= roomsInMemory {
		return
	}
	for room, r := range e.rooms {
		if now-r.touched > roomIdle && r.idle() {
			delete(e.rooms, room)
		}
		if len(e.rooms) <= roomsInMemory {
			return
		}
	}
}

// tickRoom does what is due in one room and returns when it wants to be called
// again.
func (e *Engine) tickRoom(ctx context.Context, r *room, now time.Duration) (time.Duration, error) {
	r.lastTick = now
	if r.status == store.RoomLeft {
		return 0, nil
	}
	var next time.Duration
	soonest := func(at time.Duration) {
		if at > 0 && (next == 0 || at < next) {
			next = at
		}
	}
	if r.retake && r.m != nil {
		r.retake = false
		if err := e.retakeProposals(ctx, r); err != nil {
			return 0, err
		}
	}
	for r.retryWaiting {
		r.retryWaiting = false
		progress, err := e.takeWaiting(ctx, r)
		if err != nil {
			return 0, err
		}
		if !progress {
			break
		}
	}
	// Only now: until here, what had come for one of them may have let it wait on.
	if err := e.reopen(ctx, r); err != nil {
		return 0, err
	}
	if r.tryBootstrap && r.m == nil && r.loaded && r.gap.complete && !r.gap.wanted {
		r.tryBootstrap = false
		if err := e.bootstrap(ctx, r); err != nil {
			return 0, err
		}
	}
	soonest(e.askHomeserver(r, now))
	ask, err := e.askRoom(ctx, r, now)
	if err != nil {
		return 0, err
	}
	soonest(ask)
	answer, err := e.postAgain(ctx, r, now)
	if err != nil {
		return 0, err
	}
	soonest(answer)
	take, err := e.takeShown(ctx, r, now)
	if err != nil {
		return 0, err
	}
	soonest(take)
	before, err := e.takeBefore(ctx, r, now)
	if err != nil {
		return 0, err
	}
	soonest(before)
	if r.live() && (r.stepped || r.nextAct > 0 && now >= r.nextAct) {
		if err := e.act(ctx, r, now); err != nil {
			return 0, err
		}
	}
	if r.live() {
		soonest(r.nextAct)
	}
	if r.planDirty && r.live() && r.loaded {
		if now < r.planAt {
			soonest(r.planAt)
		} else if err := e.proposeRemoves(ctx, r); err != nil {
			return 0, err
		}
	}
	if err := e.leaveIdle(ctx, r); err != nil || r.status == store.RoomLeft {
		return 0, err
	}
	at, err := e.publish(ctx, r, now)
	if err != nil {
		return 0, err
	}
	soonest(at)
	return next, nil
}

// takeWaiting looks again at events that waited for something, and reports
// whether any of them waits no more.
func (e *Engine) takeWaiting(ctx context.Context, r *room) (progress bool, err error) {
	rows, err := e.d.Store.RoomInbox(ctx, r.id, store.InboxWaiting, e.d.Config.Limits.WaitingPerRoom+1)
	if err != nil {
		return false, err
	}
	r.waiting = len(rows)
	late := e.d.Config.Limits.WaitingTime.D()
	now := e.d.Monotonic()
	for _, ev := range rows {
		since, ok := r.waitSince[ev.EventID]
		if !ok { // from before the module started
			since = now
			r.waitSince[ev.EventID] = now
		}
		if e.stillWaits(ctx, r, ev) {
			if late > 0 && r.gap.complete && now-since > late {
				if err := e.d.Store.FinishInbox(ctx, ev.EventID, store.InboxRefused, ruleWaitedTooLong); err != nil {
					return false, err
				}
				e.d.Metrics.Rejected(ruleWaitedTooLong)
				r.waiting--
				r.passed = true
				delete(r.waitSince, ev.EventID)
			}
			continue
		}
		before := r.waiting
		if err := e.handle(ctx, r, ev); err != nil {
			return false, err
		}
		progress = progress || r.waiting < before
	}
	return progress, nil
}

// stillWaits tells at little cost that an event has to wait on.
func (e *Engine) stillWaits(ctx context.Context, r *room, ev *store.InboxEvent) bool {
	parsed, err := homeserver.ParseEvent(ev.Raw, r.id)
	if err != nil {
		return false
	}
	content := parsed.Content
	kind := ev.Type
	if kind == rooms.TypeRepost {
		c, err := rooms.DecodeRepost(content)
		if err != nil {
			return false
		}
		kind, content = c.Type, c.Content
	}
	if kind != rooms.TypeCommit {
		return r.m == nil
	}
	c, err := rooms.DecodeCommit(content)
	if err != nil {
		return false
	}
	switch {
	case c.Epoch == 0:
		return !r.loaded
	case r.m == nil:
		return true
	}
	parent := federation.Ref(c.Parent)
	held := r.m.Held(parent)
	if c.File != nil {
		if !held && r.m.TooOld(c.Epoch) {
			return false
		}
		data, bad, ok := e.media.get(c.File.SHA256)
		if !ok {
			e.download(r, c.File)
			return true
		}
		b, err := rooms.DecodeCommitBundle(data)
		if bad != nil || err != nil {
			return false
		}
		c.SetInline(b)
	}
	if held {
		return false
	}
	if !c.Founding {
		if place, err := e.outside(ctx, r, c); err != nil || place.settled {
			return false
		}
	}
	r.want(federation.Fetch{Commit: parent, EventID: string(c.ParentEvent)})
	return true
}
