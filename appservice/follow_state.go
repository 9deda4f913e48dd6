package appservice

import (
	"context"
	"errors"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// maxStateLog bounds the state events that are kept while a room's state is read.
const maxStateLog = 10_000

const (
	mediaRetry    = 2 * time.Second
	mediaRetryMax = 2 * time.Minute
	mediaTries    = 12
)

// takeState takes a state event of the Matrix specification.
func (e *Engine) takeState(ctx context.Context, r *room, ev *store.InboxEvent, parsed *homeserver.Event) (outcome, error) {
	bot := e.d.HS.UserID()
	if ev.Type == rooms.TypeMember && *ev.StateKey == string(bot) {
		return done, e.takeOwnMembership(ctx, r, ev, membership(parsed.Content))
	}
	if r.status == store.RoomLeft {
		return ignored, nil
	}
	if !r.loaded {
		r.needState = true
	}
	if e.jobs.under(r.id, "state") && len(r.stateLog) < maxStateLog {
		r.stateLog = append(r.stateLog, ev)
	}
	if ev.Type == rooms.TypeMember && ev.Source == store.SourceTransaction {
		e.quietFor(r, id.UserID(*ev.StateKey), membership(parsed.Content))
	}
	who, gone := id.UserID(*ev.StateKey), r.gone()
	was := gone != nil && gone(who)
	if err := r.state.Apply(ev.Type, *ev.StateKey, ev.Sender, ev.EventID, parsed.Content); err != nil {
		return refused(err), nil
	}
	if ev.Type == rooms.TypeEncryption && r.m != nil && r.loaded {
		if err := r.state.CheckAlgorithm(); err != nil {
			// The group goes on: what its members signed counts. But clients
			// that know no MLS may send in clear now, which an admin has to see.
			return refused(err), nil
		}
	}
	if ev.Type == rooms.TypeMember {
		r.planDirty = true
		r.went(func(user id.UserID) bool { return user != who || was }, e.d.Monotonic())
		switch membership(parsed.Content) {
		case "join", "invite":
			r.joinerUntil = e.d.Monotonic() + joinerTime
		}
	}
	return done, nil
}

// joinQuiet is how long the module sends nothing while a server joins a room;
// moduleQuiet, at the most, when that server has a module: it speaks as soon as
// its server can send into the room, which ends the quiet.
const (
	joinQuiet   = 3 * time.Second
	inviteQuiet = 6 * time.Second // from a module's invite on: it joins at once
	moduleQuiet = 20 * time.Second
)

// quietFor holds what the module has to send when another server joins the
// room, or is about to because its module was invited: Dendrite loses its first
// join of a room if other events reach it around it.
func (e *Engine) quietFor(r *room, user id.UserID, membership string) {
	local, server, err := user.Parse()
	if err != nil || server == e.d.HS.ServerName() || e.d.HoldRoom == nil {
		return
	}
	if membership != "join" && (membership != "invite" || local != rooms.BotLocalpart) {
		return
	}
	for member, m := range r.state.Members {
		if m.Membership != rooms.MembershipJoin {
			continue
		}
		if _, other, err := member.Parse(); err == nil && other == server {
			return // the server is in the room already
		}
	}
	quiet := joinQuiet
	switch {
	case membership == "invite":
		quiet = inviteQuiet
	case local == rooms.BotLocalpart:
		quiet = moduleQuiet
	}
	if r.quiet == nil {
		r.quiet = make(map[id.UserID]time.Duration)
	}
	r.quiet[user] = e.d.Monotonic() + quiet
	e.holdQuiet(r)
}

// heard ends the quiet for a server whose module has spoken.
func (e *Engine) heard(r *room, sender id.UserID) {
	if _, waits := r.quiet[sender]; waits && e.d.HoldRoom != nil {
		delete(r.quiet, sender)
		e.holdQuiet(r)
	}
}

// holdQuiet holds the room as long as a server is joining it.
func (e *Engine) holdQuiet(r *room) {
	now, longest := e.d.Monotonic(), time.Duration(0)
	for user, until := range r.quiet {
		if until <= now {
			delete(r.quiet, user)
		}
		longest = max(longest, until-now)
	}
	e.d.HoldRoom(r.id, longest)
}

// takeOwnMembership follows what becomes of the bot in the room.
func (e *Engine) takeOwnMembership(ctx context.Context, r *room, ev *store.InboxEvent, membership string) error {
	log := roomLog(ctx, r.id)
	switch membership {
	case "invite":
		var via []string
		if _, server, err := ev.Sender.Parse(); err == nil {
			via = []string{server}
		}
		if r.status == store.RoomJoined || r.status == store.RoomServing {
			// It was put out meanwhile, of which it may not have heard yet, or this
			// invite was told of before.
			if ev.Source != store.SourceMessages {
				r.data.InvitedAgain, r.dirty = &reinvite{Via: via}, true
				e.wantMember(r)
			}
			return nil
		}
		r.status, r.needJoin, r.dirty, r.joinVia = store.RoomInvited, true, true, via
		log.Info().Stringer("inviter", ev.Sender).Msg("Invited to a room")
	case "join":
		if r.status == store.RoomInvited || r.status == store.RoomLeft {
			e.joined(r)
		}
	case "leave", "ban":
		if r.status != store.RoomLeft && ev.Source != store.SourceMessages {
			// It may be an old one that came late.
			e.wantMember(r)
		}
	}
	return nil
}

// reinvite is an invite that came to a room the module took itself to be in.
type reinvite struct {
	Via []string `json:"via,omitempty"`
}

// wantMember has the homeserver asked whether the bot is still in a room; an
// answer that is under way may be from before what makes it doubtful.
func (e *Engine) wantMember(r *room) {
	r.needMember, r.memberAgain = true, e.jobs.under(r.id, "member")
}

// askMember asks whether the bot is still in a room.
func (e *Engine) askMember(r *room) {
	e.jobs.add(&job{room: r.id, key: "member", run: func(ctx context.Context) func(context.Context) error {
		joined, err := e.d.HS.JoinedRooms(ctx)
		return func(ctx context.Context) error {
			if e.rooms[r.id] != r || !r.needMember {
				return nil
			}
			if err != nil {
				r.memberPause.fail(e.d.Monotonic(), time.Second, time.Minute)
				return nil
			}
			if r.memberAgain {
				r.memberAgain = false
				return nil
			}
			again := r.data.InvitedAgain
			r.needMember, r.data.InvitedAgain = false, nil
			r.dirty = r.dirty || again != nil
			r.memberPause.reset()
			if slices.Contains(joined, r.id) {
				if again == nil {
					return nil
				}
				return e.update(ctx, r, func(context.Context) error { return nil })
			}
			log := roomLog(ctx, r.id)
			r.dirty, r.needState = true, false
			if again != nil {
				log.Info().Msg("Put out of a room and invited again")
				r.status, r.needJoin, r.joinVia = store.RoomInvited, true, again.Via
			} else {
				log.Info().Msg("The module left a room")
				r.status, r.needJoin = store.RoomLeft, false
			}
			return e.update(ctx, r, func(context.Context) error { return nil })
		}
	}})
}

// joined notes that the bot is in the room.
func (e *Engine) joined(r *room) {
	r.status = store.RoomJoined
	if r.m != nil {
		r.status = store.RoomServing
	}
	r.dirty, r.needJoin, r.needState, r.loaded = true, false, true, false
	r.gap.wanted, r.gap.complete = true, false
	r.data.Announced, r.data.Joined = false, 0
}

// askHomeserver queues the questions that are open and returns when the next
// may be asked.
func (e *Engine) askHomeserver(r *room, now time.Duration) (next time.Duration) {
	at := func(t time.Duration) {
		if t > now && (next == 0 || t < next) {
			next = t
		}
	}
	if r.needMember {
		if r.memberPause.ready(now) {
			e.askMember(r)
		}
		at(r.memberPause.until)
	}
	if r.needJoin {
		if r.joinPause.ready(now) {
			e.join(r)
		}
		at(r.joinPause.until)
		return next
	}
	if r.status == store.RoomInvited || r.status == store.RoomLeft {
		return 0
	}
	if r.needState {
		if r.statePause.ready(now) {
			e.readState(r)
		}
		at(r.statePause.until)
	}
	at(e.fillGaps(r, now))
	if r.retryTime > 0 {
		if now >= r.retryTime {
			r.retryTime, r.retryWaiting = 0, true
			at(now + time.Millisecond)
		}
		at(r.retryTime)
	}
	return next
}

// retryAt asks for another look at waiting events.
func (r *room) retryAt(at time.Duration) {
	if r.retryTime == 0 || at < r.retryTime {
		r.retryTime = at
	}
}

func (r *room) notePause(hash [32]byte, p *pause) {
	if r.mediaPause == nil || len(r.mediaPause) >= 1024 {
		r.mediaPause = make(map[[32]byte]*pause)
	}
	r.mediaPause[hash] = p
}

func (e *Engine) join(r *room) {
	via := r.joinVia
	e.jobs.add(&job{room: r.id, key: "join", run: func(ctx context.Context) func(context.Context) error {
		err := e.d.HS.Join(ctx, r.id, via)
		return func(ctx context.Context) error {
			if err == nil {
				e.d.crash(crashJoined)
			}
			if e.rooms[r.id] != r || !r.needJoin {
				return nil
			}
			log := roomLog(ctx, r.id)
			switch {
			case err == nil:
				log.Info().Msg("Joined a room")
				e.joined(r)
			case homeserver.IsTemporary(err):
				log.Warn().Err(err).Msg("Could not join a room yet")
				r.joinPause.fail(e.d.Monotonic(), time.Second, 5*time.Minute)
				return nil
			default:
				if r.joinPause.tries < 5 {
					// An invitation over federation may be known before it can be used.
					r.joinPause.fail(e.d.Monotonic(), 2*time.Second, time.Minute)
					return nil
				}
				log.Warn().Err(err).Msg("Gave up joining a room")
				r.status, r.needJoin, r.dirty = store.RoomLeft, false, true
			}
			return e.update(ctx, r, func(context.Context) error { return nil })
		}
	}})
}

// readState reads the whole state of a room.
func (e *Engine) readState(r *room) {
	if !e.jobs.add(&job{room: r.id, key: "state", run: func(ctx context.Context) func(context.Context) error {
		events, err := e.d.HS.State(ctx, r.id)
		return func(ctx context.Context) error {
			if e.rooms[r.id] != r {
				return nil
			}
			return e.gotState(ctx, r, events, err)
		}
	}}) {
		return
	}
	r.stateLog = nil
}

func (e *Engine) gotState(ctx context.Context, r *room, events []*homeserver.Event, err error) error {
	log := roomLog(ctx, r.id)
	if err != nil {
		r.statePause.fail(e.d.Monotonic(), time.Second, 5*time.Minute)
		if errors.Is(err, homeserver.ErrForbidden) && r.statePause.tries > 5 {
			log.Warn().Err(err).Msg("The module is not in the room any more")
			r.status, r.needState, r.dirty = store.RoomLeft, false, true
			return e.update(ctx, r, func(context.Context) error { return nil })
		}
		log.Warn().Err(err).Msg("Could not read a room's state yet")
		return nil
	}
	state := rooms.NewRoomState(r.id)
	var heads []*homeserver.Event
	for _, ev := range events {
		if ev.StateKey == nil {
			continue
		}
		if ev.Type == rooms.TypeHead {
			if *ev.StateKey == string(ev.Sender) && ev.Sender != e.d.HS.UserID() {
				heads = append(heads, ev)
			}
			continue
		}
		// What cannot be used counts as absent.
		_ = state.Apply(ev.Type, *ev.StateKey, ev.Sender, ev.ID, ev.Content)
	}
	if r.loaded {
		came := make(map[id.UserID]bool)
		for _, ev := range r.stateLog {
			if ev.Type == rooms.TypeMember {
				came[id.UserID(*ev.StateKey)] = true
			}
		}
		all := len(r.stateLog) >= maxStateLog
		for _, back := range state.Succeed(r.state, func(user id.UserID) bool { return all || came[user] }) {
			e.d.Metrics.Inc(metrics.MembershipsSetBack)
			log.Warn().Stringer("user_id", back.User).Stringer("event_id", back.Was.Event).Str("was", string(back.Was.Membership)).Str("now", string(back.Now.Membership)).
				Msg("State resolution forgot a membership: nobody left, and nobody was put out or let in")
		}
	}
	for _, ev := range r.stateLog { // came while the state was being read
		if parsed, err := homeserver.ParseEvent(ev.Raw, r.id); err == nil {
			_ = state.Apply(ev.Type, *ev.StateKey, ev.Sender, ev.EventID, parsed.Content)
		}
	}
	r.stateLog = nil
	was := r.gone()
	if was == nil {
		was = func(id.UserID) bool { return true } // nobody was said to be there
	}
	r.state, r.loaded, r.needState, r.planDirty, r.retryWaiting, r.tryBootstrap = state, true, false, true, true, true
	r.went(was, e.d.Monotonic())
	for _, ev := range heads {
		if r.heads[ev.Sender] == nil && len(r.heads) >= rooms.MaxSequencers && !r.mayCount(state, ev.Sender) {
			continue // it would be parsed for nothing
		}
		if head, err := rooms.DecodeHead(ev.Content); err == nil {
			r.noteHead(ev.Sender, head, e.d.Monotonic())
		}
	}
	r.statePause.reset()
	if r.m == nil && state.Encryption != "" && !state.IsMLS() {
		log.Info().Msg("Leaving a room that is encrypted in another way")
		return e.leave(ctx, r, "This room does not use MLS")
	}
	return nil
}

// leave takes the bot out of a room.
func (e *Engine) leave(ctx context.Context, r *room, reason string) error {
	r.status, r.dirty, r.needState = store.RoomLeft, true, false
	e.jobs.add(&job{room: r.id, key: "leave", run: func(ctx context.Context) func(context.Context) error {
		err := e.d.HS.Leave(ctx, r.id, reason)
		return func(ctx context.Context) error {
			if err != nil {
				roomLog(ctx, r.id).Warn().Err(err).Msg("Could not leave a room")
			}
			return nil
		}
	}})
	return e.update(ctx, r, func(context.Context) error { return nil })
}

// grouplessTime is how long the bot stays in a room in which no group begins:
// rooms that it is in are counted, and anybody can invite it.
const grouplessTime = 24 * time.Hour

// leaveIdle leaves a room in which no group began. A client that wants one
// there invites the bot again.
func (e *Engine) leaveIdle(ctx context.Context, r *room) error {
	switch {
	case r.status != store.RoomJoined || r.m != nil:
		return nil
	case r.data.Joined == 0:
		r.data.Joined, r.dirty = e.d.Now().Unix(), true
		return e.update(ctx, r, func(context.Context) error { return nil })
	case r.state.Encryption == "" && slices.ContainsFunc(e.d.Config.AppService.Admins, func(who string) bool {
		return r.state.Members[id.UserID(who)].Membership == rooms.MembershipJoin
	}):
		return nil // an admin talks to the module here
	case !r.loaded || !r.gap.complete || e.d.Now().Sub(time.Unix(r.data.Joined, 0)) < grouplessTime:
		return nil
	}
	roomLog(ctx, r.id).Info().Msg("Leaving a room in which no group began")
	return e.leave(ctx, r, "No encrypted group has begun in this room; invite me again when you want one")
}

// takeHead reads what another module knows as newest, to see what is missing
// here.
func (e *Engine) takeHead(ctx context.Context, r *room, msg *message) (outcome, error) {
	if msg.sender == e.d.HS.UserID() {
		return ignored, nil
	}
	head, err := rooms.DecodeHead(msg.content)
	if err != nil {
		return done, err
	}
	r.noteHead(msg.sender, head, e.d.Monotonic())
	r.hear(msg.sender, head)
	if r.m == nil {
		return done, nil
	}
	for _, known := range []*rooms.EventRef{head.Accepted, head.Final} {
		if known != nil && !r.m.Held(federation.Ref(known.Ref)) {
			r.want(federation.Fetch{Commit: federation.Ref(known.Ref), EventID: string(known.Event)})
			if w := r.wants[federation.Ref(known.Ref)]; w != nil {
				w.first = true
			}
		}
	}
	r.compareMarks(head)
	if !r.lists(msg.sender) {
		return done, nil
	}
	_, err = e.ownReceipts(ctx, r, head)
	return done, err
}
