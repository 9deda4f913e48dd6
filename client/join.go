package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

var (
	errNotGroupInfo   = errors.New("the message is no GroupInfo")
	errWelcomeDue     = errors.New("client: somebody added this device, a Welcome is on its way")
	errNotByCommitter = errors.New("it is signed by somebody else than the committer")
)

// headList returns the ref of the commit that set the list of sequencers in
// force, and the number of the era, as a module's head says.
func headList(head *rooms.HeadContent) (federation.Ref, uint64) {
	if !head.Cfg.IsZero() {
		return federation.Ref(head.Cfg), head.Era
	}
	return federation.Ref(head.Root.Ref), 0
}

// How long a new member waits for somebody to add it before it adds itself.
const (
	joinDelay      = 4 * time.Second
	joinAcceptWait = 15 * time.Second
	joinRetry      = 20 * time.Second
)

// lookWelcome is the key of the last look at the state for a Welcome's sake.
const lookWelcome = "look/welcome"

// handleWelcome enters the group with a Welcome that followed an accepted
// commit. It waits until the user is in the room, for only then can the commit
// be read that the Welcome claims to belong to.
func (c *Client) handleWelcome(ctx context.Context, r *room, evt *Event, b *batch) error {
	content, err := rooms.DecodeWelcome(evt.Content)
	if err != nil {
		return err
	}
	if r.machine != nil && (r.rec.Phase == phaseMember || r.rec.Phase == phaseJoining) {
		if done, err := c.foundingWelcome(ctx, r, evt, content, b); done {
			return err
		}
	}
	if r.rec.Phase == phaseMember && r.machine != nil {
		if !r.rec.Unconfirmed || r.machine.Held(federation.Ref(content.Ref)) {
			return nil // in the group already
		}
		if !r.displaced {
			return &errWait{"displaced:"} // the commit that added this device still stands
		}
	}
	if r.rec.Membership != "join" {
		return &errWait{"join:"}
	}
	if !r.state.Known {
		r.want("state", &need{state: true})
		return &errWait{"state:"}
	}
	err = rooms.CheckUnsolicited(content, r.state.view, c.UserID())
	if err == nil && r.state.membership(evt.Sender) != rooms.MembershipJoin {
		err = errRefusedUpdate(rooms.RuleUnsolicitedKey, fmt.Sprintf("%s, who sent the Welcome, is not in the room", evt.Sender))
	}
	// Anybody can send a Welcome, so not each one has the state read, and until
	// it is, what is known of it counts.
	if now := c.mono(); err != nil && r.tried[lookWelcome] <= now && r.lookFor(evt.ID) {
		r.tried[lookWelcome] = now + lookPause
		r.want("state", &need{state: true})
		return &errWait{"looked:" + string(evt.ID)}
	}
	if err != nil {
		return err
	}
	if r.pending != nil && r.pending.External {
		return &errWait{"decided:"} // we are joining by ourselves already
	}
	commitEvent, ok := r.fetched[content.CommitEvent]
	if !ok {
		if key := "event:" + string(content.CommitEvent); r.tried["need/"+key] <= c.mono() {
			r.want(key, &need{event: content.CommitEvent, late: true})
		}
		return waitWelcomed(federation.Ref(content.Ref), content.CommitEvent)
	}
	ref, tag, err := c.welcomedBy(r, content, commitEvent)
	if err != nil {
		return err
	}
	tree := []byte(content.Snapshot.Tree)
	if file := content.Snapshot.File; file != nil {
		if tree, err = c.mediaOf(r, file, evt, true); err != nil {
			return err
		}
	}
	msg, err := mls.ParseMessage(content.Welcome)
	if err != nil {
		return err
	}
	if msg.Welcome() == nil {
		return errRefusedUpdate(rooms.RuleWelcomeNotForUs, "the message is no Welcome")
	}
	bundle, shared, err := c.ident.Bundle(ctx, msg.Welcome().Recipients())
	if err != nil {
		return errRefusedUpdate(rooms.RuleUnsolicitedKey, "it is for none of this device's key packages")
	}
	packRef := bundle.Ref()
	lastResort := bundle.KeyPackage().LastResort()
	group, err := mls.JoinWelcome(c.mlsCfg, msg, bundle, mls.JoinOptions{RatchetTree: tree})
	if err != nil {
		return err
	}
	key, err := c.ident.SignatureKey(group.CipherSuite())
	if err != nil {
		return err
	}
	own := &rooms.Credential{User: c.UserID(), Device: c.DeviceID(), Key: key.Public()}
	if _, err := rooms.CheckJoined(content, evt.Sender, own, group, group.OwnLeafIndex()); err != nil {
		return err
	}
	if ok, coming := c.succeeds(r, group.GroupID(), c.boundGroup(r)); coming {
		return r.waitHead(c.mono())
	} else if !ok {
		return errRefusedUpdate(rooms.RuleRoomNotGroup, "it opens another group than the one this device belongs to")
	}
	if !bytes.Equal(group.ConfirmationTag(), tag) {
		return errRefusedUpdate(rooms.RuleWelcomeNotForUs, "it opens another epoch than its commit makes")
	}
	if err := c.firstTimeIn(ctx, r, ref); err != nil {
		return err
	}
	if err := c.welcomeShown(r, content, group); err != nil {
		return err
	}
	base, err := rooms.BaseFacts(group, ref, content.CommitEvent, content.Era, federation.Ref(content.Cfg))
	if err != nil {
		return err
	}
	machine, err := federation.New(c.machineConfig(r.id), base)
	if err != nil {
		return err
	}
	was := r.machine != nil && r.rec.Phase == phaseMember
	if r.machine != nil || len(r.epochs) > 0 {
		c.startOver(r, b)
	}
	again := r.rec.Meanwhile // joined forgets it
	r.machine = machine
	b.machine = true
	b.do(func(ctx context.Context) error { return c.ident.ConsumeBundle(ctx, packRef) })
	e := &epoch{ref: ref, number: group.Epoch(), group: group}
	r.noteGroup(group.GroupID())
	c.putEpoch(b, r, e)
	c.setCommitEvent(r, ref, content.CommitEvent)
	c.joined(r, e, b)
	c.readAgain(r, ref, again, b)
	if was { // what came on the branch that lost was looked at there, where it counts for nothing
		c.lookAfresh(r, ref)
	}
	r.rec.Renew = lastResort // others joined with the same keys
	c.enteredBy(r, shared)
	c.tellEpoch(r, e, false)
	return nil
}

// lookFor tells whether the state was not read for a Welcome's sake yet.
func (r *room) lookFor(welcome id.EventID) bool {
	if r.lookedFor[welcome] {
		return false
	}
	if r.lookedFor == nil || len(r.lookedFor) >= maxWelcomesWaiting {
		r.lookedFor = map[id.EventID]bool{}
	}
	r.lookedFor[welcome] = true
	return true
}

// firstTimeIn refuses to enter an epoch that this device was in before, which a
// Welcome for a key package of last resort allows again: the message keys of its
// leaf would be used twice.
func (c *Client) firstTimeIn(ctx context.Context, r *room, ref federation.Ref) error {
	_, err := c.st.RejoinSecret(ctx, r.id, ref[:])
	if err == nil {
		return errRefusedUpdate(rooms.RuleWelcomeNotForUs, "this device was in that epoch before")
	}
	if !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	return nil
}

// welcomedBy checks that the event a Welcome names is the commit it names, and
// returns its ref and confirmation tag.
func (c *Client) welcomedBy(r *room, welcome *rooms.WelcomeContent, evt *Event) (federation.Ref, []byte, error) {
	if evt.Type != rooms.TypeCommit {
		return federation.Ref{}, nil, errRefusedUpdate(rooms.RuleWelcomeNotForUs, "the event it names is no commit")
	}
	content, err := rooms.DecodeCommit(evt.Content)
	if err != nil {
		return federation.Ref{}, nil, err
	}
	if content, err = c.inlined(r, content, evt); err != nil {
		return federation.Ref{}, nil, err
	}
	msg, err := mls.ParseMessage(content.Message)
	if err != nil {
		return federation.Ref{}, nil, err
	}
	ref, err := rooms.CommitRef(msg)
	if err != nil {
		return federation.Ref{}, nil, err
	}
	if ref != federation.Ref(welcome.Ref) {
		return federation.Ref{}, nil, errRefusedUpdate(rooms.RuleWelcomeNotForUs, "the event it names is another commit")
	}
	return ref, msg.ConfirmationTag(), nil
}

// welcomeShown asks whether a Welcome's commit was accepted in a group that is the room's:
// by what modules prove from its beginning and, where nothing proves anything, by what
// they show. Anybody can send a Welcome, into a group of their own as well. One that
// nothing shows yet waits for a head.
func (c *Client) welcomeShown(r *room, welcome *rooms.WelcomeContent, group *mls.Group) error {
	s := c.shownBy(r, c.boundGroup(r))
	if len(s.by) == 0 && s.coming {
		return r.waitHead(c.mono())
	}
	var refused error
	for _, bot := range r.state.bots() {
		p := s.by[bot]
		if len(s.by) == 0 && !s.bad[bot] {
			p = s.unproven[bot]
		}
		if p == nil {
			continue
		}
		err := p.CheckWelcome(welcome, group)
		if err == nil {
			return nil
		}
		if rooms.RuleOf(err) != rooms.RuleFinalNotProven {
			refused = err
		}
	}
	if refused != nil && !s.coming {
		return refused
	}
	return r.waitHead(c.mono())
}

// maxMeanwhile bounds what is remembered of what came while this device joined by
// itself.
const maxMeanwhile = 256

// noteMeanwhile remembers that an event of the group came while it was open whether an
// own commit lets this device in. What it looks at such an event with goes if a Welcome
// does after all.
func (r *room) noteMeanwhile(evt *Event) {
	if r.rec.Phase != phaseJoining || !r.rec.JoinRef.IsZero() || r.machine == nil || slices.Contains(r.rec.Meanwhile, evt.ID) {
		return
	}
	if coordinates(evt.Type) {
		r.rec.Meanwhile = append(r.rec.Meanwhile, evt.ID)
		if n := len(r.rec.Meanwhile) - maxMeanwhile; n > 0 {
			r.rec.Meanwhile = slices.Delete(r.rec.Meanwhile, 0, n)
		}
	}
}

// coordinates tells whether events of a type are for the room's coordination.
func coordinates(eventType string) bool {
	switch eventType {
	case rooms.TypeCommit, rooms.TypeProposal, rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady, rooms.TypeApplied, rooms.TypeReject, rooms.TypeRepost:
		return true
	}
	return false
}

// readAgain has what came meanwhile read from the room's history once more, for the
// epoch that a Welcome opened.
func (c *Client) readAgain(r *room, ref federation.Ref, events []id.EventID, b *batch) {
	if len(events) == 0 {
		return
	}
	b.do(func(ctx context.Context) error { return c.st.ForgetSeen(ctx, r.id, events) })
	c.look(r, ref, c.limits.GapPages, true)
}

// joined marks this device as a member from an epoch on.
func (c *Client) joined(r *room, e *epoch, b *batch) {
	r.rec.Phase, r.rec.Meanwhile = phaseMember, nil
	r.rec.PutOut, r.outSince = 0, 0
	r.noteGroup(e.group.GroupID())
	c.noteBefore(r, e)
	r.rec.Group, r.rec.Bound = e.group.GroupID(), e.group.GroupID()
	if r.rec.JoinRef.IsZero() { // else it only came back
		r.rec.JoinRef, r.rec.JoinEpoch = rooms.Hash(e.ref), r.levelOf(e)
		r.rec.JoinEvent = c.commitEvent(r, e.ref)
		r.rec.Unconfirmed = !c.without[probe.Confirm]
		r.noteHeads()
	}
	r.joinTries, r.joinBy, r.joinFails = 0, "", nil
	r.headsAsked = 0
	r.rec.LastPath, r.rec.Sent = c.now().Unix(), 0
	r.joinAt, r.planned, r.lastJoinError = 0, false, nil
	r.eraNo, _ = r.machine.EraOf()
	r.finalRef = r.machine.NewestFinal()
	b.then(func() {
		r.notify()
		c.poke()
	})
}

// waitHead lets a Welcome wait until a module publishes something, or what a head
// rests on was fetched, or for a while.
func (r *room) waitHead(now time.Duration) error {
	if now >= r.headAt { // else it is set for others that wait
		r.headAt = now + min(headWait<<min(r.headTries, 6), headWaitMax)
		r.headTries++
	}
	return &errWait{"head:"}
}

// headWait is how long a Welcome waits for heads before it looks at them again,
// though nothing came: twice as long each time, up to headWaitMax.
const (
	headWait    = 5 * time.Second
	headWaitMax = 5 * time.Minute
)

// boundTo returns the only group of the room that this device may enter, nil if
// nothing says which: the one it was in, or the one that whoever invited it
// admitted it to. Anybody with the power for it can post a P.head, with a group
// of their own.
func (r *room) boundTo(own id.UserID) []byte {
	if len(r.rec.Bound) > 0 {
		return r.rec.Bound
	}
	if a, ok := r.rec.Admissions[own]; ok && r.rec.Inviter != "" && r.rec.Admitter == r.rec.Inviter {
		return a.Group
	}
	return nil
}

// boundGroup returns the group that boundTo does, unless an inviter's word stands against
// proofs: somebody in the room may have invited this user into a group of their own.
func (c *Client) boundGroup(r *room) []byte {
	bound := r.boundTo(c.UserID())
	if bound == nil || len(r.rec.Bound) > 0 {
		return bound
	}
	all := c.shownBy(r, nil)
	for _, p := range all.by {
		if slices.ContainsFunc(p.Groups, func(id []byte) bool { return bytes.Equal(id, bound) }) {
			return bound
		}
	}
	if len(all.by) > 0 {
		return nil
	}
	return bound
}

// usableHead returns the P.head that a newcomer joins at: of those that are
// proven from the group's beginning the newest, in the newest era; where none is,
// the newest that shows nothing wrong; in either case rather of a module that is
// on the list of the group it shows, for one that is not proven can be joined at
// nowhere else. One
// that lies below a final commit that another proves is stale: an external commit
// there would undo what happened since. What a module shows may be a lie from long
// ago, list and all: where joining failed, the others go first for a while. They
// have to be of the same group, and as well proven where nothing says which group it
// is to be: no failure leads into a group that somebody else founded. coming means
// that a proof is being fetched.
func (c *Client) usableHead(r *room) (by id.UserID, best *rooms.HeadContent, coming bool) {
	bound := c.boundGroup(r)
	s := c.shownBy(r, bound)
	if s.coming {
		return "", nil, true
	}
	bestListed, bestRests, now := false, false, c.mono()
	for _, bot := range r.state.bots() {
		head := r.state.head(bot)
		if head == nil || head.Accepted == nil || head.Snapshot == nil || len(head.GroupInfo) == 0 || head.Root == nil || s.bad[bot] {
			continue
		}
		proven := s.by[bot]
		if head.Snapshot.AtCommit != head.Accepted.Ref || proven == nil && bound != nil && !bytes.Equal(bound, head.Group) || s.stale(head, proven) {
			continue
		}
		if proven != nil && !head.OfList(proven.Policy.Sequencers) {
			continue // its GroupInfo is of another branch than its proof, or of a list that is not in force
		}
		listed, rests := head.Lists(bot), r.tried["join/"+string(bot)] > now
		if proven != nil && head.Era > r.joinFails[bot].era {
			rests = false // an admin moved the room since: it is not what failed
		}
		switch had := s.by[by]; {
		case best == nil:
		case rests != bestRests && bytes.Equal(head.Group, best.Group) && (bound != nil || (proven == nil) == (had == nil)):
			if rests {
				continue
			}
		case proven != nil && had == nil:
		case proven == nil && had != nil:
			continue
		case listed != bestListed:
			if bestListed {
				continue
			}
		case head.Era != best.Era:
			if head.Era < best.Era {
				continue
			}
		case proven != nil && len(proven.Groups) != len(had.Groups):
			if len(proven.Groups) < len(had.Groups) {
				continue
			}
		case head.Accepted.Epoch <= best.Accepted.Epoch:
			continue
		}
		best, by, bestListed, bestRests = head, bot, listed, rests
	}
	return by, best, false
}

// joinWork returns the work of getting into the group: found it if it is ours
// to found, wait for a Welcome, and after a while join by an external commit.
func (c *Client) joinWork(r *room, now time.Duration) func(ctx context.Context) {
	if !r.state.Known || !r.state.isMLS() || r.rec.Superseded {
		return nil
	}
	bot, head, coming := c.usableHead(r)
	if coming {
		return nil
	}
	if head == nil {
		if c.creating == 0 && r.state.view.Creator == c.UserID() && len(r.rec.Events) == 0 && r.rec.Phase == phaseNone && !r.anyGroup() {
			r.rec.Phase = phaseFounding // interrupted between createRoom and the group
			return c.foundWork(r, now)
		}
		return nil
	}
	if r.joinAt == 0 {
		delay := joinDelay
		if r.rec.Phase == phaseRemoved {
			// Removed and still in the room: somebody meant it, or will add us.
			delay = time.Minute
		}
		r.joinAt = now + delay
	}
	if now < r.joinAt && !(now >= r.joinSince+maxJoinWait && r.surpassed(head)) {
		return nil
	}
	tree := []byte(head.Snapshot.Tree)
	if file := head.Snapshot.File; file != nil {
		var err error
		var coming *errWait
		if tree, err = c.mediaOf(r, file, &Event{Sender: bot}, true); errors.As(err, &coming) {
			if n := r.needs["media:"+fileKey(file)]; n != nil && n.fail < treeFails && now < n.since+fileTimeout {
				return nil
			}
			err = errors.New("its file cannot be had")
		}
		if err != nil { // what still comes is taken at the next try
			r.restModule(bot, head.Era, now)
			r.joinAt, r.lastJoinError = now+joinRetry, fmt.Errorf("client: tree of %s: %w", r.id, err)
			r.notify()
			return nil
		}
	}
	if p := r.pending; p != nil && p.External {
		if r.machine == nil {
			return nil
		}
		if r.joinBy != "" {
			r.restModule(r.joinBy, r.joinEra, now) // no module accepts what is built on its head
			r.joinBy = ""
		}
		b := &batch{}
		c.loseCommit(r, b)
		if err := c.commitBatch(context.Background(), r, b); err != nil {
			return nil
		}
		r.joinAt = now + time.Second // a Welcome that waits for what became of it goes first, and another module does
		return nil
	}
	r.joinAt = now + joinRetry
	roomID := r.id
	admissions := r.admissionsOf(c.UserID())
	proven := c.shownBy(r, c.boundGroup(r)).by[bot] != nil
	return func(ctx context.Context) {
		err := c.externalJoin(ctx, roomID, bot, head, proven, tree, admissions)
		if err == nil || ctx.Err() != nil || errors.Is(err, errWelcomeDue) {
			return
		}
		c.log.Info().Err(err).Stringer("room_id", roomID).Msg("Cannot join the group by itself now")
		c.mu.Lock()
		defer c.mu.Unlock()
		if r := c.rooms[roomID]; r != nil {
			now := c.mono()
			r.joinAt = now + joinRetry
			r.lastJoinError = err
			if rooms.RuleOf(err) == ruleStaleGroupInfo {
				c.askForHeads(ctx, r, now)
			}
			var wrong *headError
			if errors.As(err, &wrong) {
				r.joinAt = now + r.restModule(bot, head.Era, now)
			}
			r.notify()
		}
	}
}

// surpassed tells whether a module shows a newer head than the one that an external commit of
// ours is made on, or that one's own module another, so that no module accepts it any more.
func (r *room) surpassed(head *rooms.HeadContent) bool {
	p := r.pending
	if p == nil || !p.External || federation.Ref(p.Parent) == federation.Ref(head.Accepted.Ref) {
		return false
	}
	shown, ok := r.level(head.Group, head.Accepted.Epoch)
	on, held := r.levelAt(federation.Ref(p.Parent))
	by := r.state.head(r.joinBy)
	moved := by != nil && by.Accepted != nil && by.Accepted.Ref != p.Parent // its branch may have lost, to a shorter one
	return head.Era > r.joinEra || ok && held && shown > on || moved
}

// treeFails is after how many failures to get the tree that a module shows others go
// first, as they do where it does not come for as long as one fetch may take.
const treeFails = 3

// headError reports that a module's head is of no use for joining.
type headError struct{ err error }

func (e *headError) Error() string { return e.err.Error() }
func (e *headError) Unwrap() error { return e.err }

// How long other modules go first after joining by one failed, twice as long each
// time, and the next try waits where there is none.
const (
	joinRest     = time.Minute
	joinRestMax  = time.Hour
	joinRetryMax = 5 * time.Minute
)

// joinFail is how often joining by what a module shows failed, and the era that it
// showed the last time.
type joinFail struct {
	times int
	era   uint64
}

// restModule notes that joining by what a module shows failed. It returns when to
// try again: soon, if another module is there.
func (r *room) restModule(bot id.UserID, era uint64, now time.Duration) time.Duration {
	if r.joinFails == nil || len(r.joinFails) >= maxProofs && r.joinFails[bot].times == 0 {
		r.joinFails = map[id.UserID]joinFail{}
	}
	n := min(r.joinFails[bot].times, 6)
	r.joinFails[bot] = joinFail{times: n + 1, era: era}
	r.avoid("join/"+string(bot), now, now+min(joinRest<<n, joinRestMax))
	for _, other := range r.state.bots() {
		if other != bot && r.state.head(other) != nil && r.tried["join/"+string(other)] <= now {
			return joinDelay
		}
	}
	return min(joinRetry<<n, joinRetryMax)
}

func (r *room) anyGroup() bool {
	for _, bot := range r.state.bots() {
		if head := r.state.head(bot); head != nil && len(head.Group) > 0 {
			return true
		}
	}
	return false
}

// externalJoin joins the group by an external commit on the head, and with the tree,
// that a module publishes (RFC 9420, Section 12.4.3.2). One that is not proven has to be of a
// module that its group lists.
func (c *Client) externalJoin(ctx context.Context, roomID id.RoomID, bot id.UserID, head *rooms.HeadContent, proven bool, tree []byte, admissions []rooms.Admission) error {
	info, err := head.Parse()
	if err != nil {
		return &headError{err}
	}
	if suite := info.GroupInfo().CipherSuite(); c.lacks(suite) {
		return fmt.Errorf("%w: %w", ErrSuite, rooms.CheckSuite(suite, []rooms.Offer{{User: c.UserID(), Device: c.DeviceID(), Suites: c.offers()}}))
	}
	public, err := mls.NewPublicGroup(c.mlsCfg, info, tree)
	if err != nil {
		return &headError{err}
	}
	policy, err := rooms.PolicyOf(public)
	if err != nil {
		return &headError{err}
	}
	if policy.Room != roomID {
		return &headError{errRefusedUpdate(rooms.RuleRoomNotGroup, "the module shows a group of another room")}
	}
	if !proven && !head.Lists(bot) {
		return &headError{errRefusedUpdate(rooms.RuleReceiptForged, fmt.Sprintf("%s is no module of the group it shows", bot))}
	}
	parent := federation.Ref(head.Accepted.Ref)
	aad := rooms.CommitAAD{Parent: parent}
	var resync *mls.LeafIndex
	member := false
	for index, leaf := range public.Members() {
		cred, err := rooms.CredentialOf(leaf)
		if err != nil || cred.User != c.UserID() {
			continue
		}
		member = true
		if cred.Device == c.DeviceID() {
			at := index
			resync = &at
		}
	}
	if resync != nil {
		c.mu.Lock()
		r := c.rooms[roomID]
		first := r != nil && r.resyncAt == 0 && r.rec.Phase == phaseNone
		if first {
			r.resyncAt = c.mono()
			r.joinAt = r.resyncAt + joinRetry
		}
		c.mu.Unlock()
		if first {
			return errWelcomeDue
		}
	}
	for _, admission := range admissions {
		if _, err = rooms.VerifyAdmission(public, policy, &admission, nil); err == nil {
			aad.Admissions = append(aad.Admissions, admission)
			break
		}
	}
	if !member && policy.Join == rooms.JoinAdmitted {
		if len(admissions) == 0 {
			return fmt.Errorf("client: %w: no member has admitted %s to %s; a member who may invite has to", ErrNotAllowed, c.UserID(), roomID)
		}
		if err != nil {
			return err
		}
	}
	plan, err := c.planRejoin(ctx, roomID, bot, head, resync)
	if err != nil {
		return err
	}
	aad.Rejoin = plan.proof
	cs := public.CipherSuite()
	key, err := c.ident.SignatureKey(cs)
	if err != nil {
		return err
	}
	leaf, err := c.ident.LeafOptions(cs)
	if err != nil {
		return err
	}
	lists, err := c.ident.DevicesOf(ctx, []id.UserID{c.UserID()})
	if err != nil {
		return fmt.Errorf("client: own devices: %w", err)
	}
	own := &rooms.Credential{User: c.UserID(), Device: c.DeviceID(), Key: key.Public()}
	if err := lists[c.UserID()].Check(own, cs, policy.Verification); err != nil {
		return err // the members would remove it again
	}
	options := mls.ExternalJoinOptions{Leaf: leaf, RatchetTree: tree, Resync: resync}
	if plan.psk != nil {
		options.PSKs, options.Resumption = []mls.PreSharedKeyID{*plan.psk}, []*mls.Group{plan.common}
	}
	if options.AuthenticatedData, err = aad.Encode(); err != nil {
		return err
	}
	staged, err := mls.ExternalJoin(c.mlsCfg, info, key, options)
	if err != nil {
		return err
	}
	config, era := headList(head)
	base, err := rooms.BaseFacts(public, parent, head.Accepted.Event, era, config)
	if err != nil {
		return err
	}
	machine, err := federation.New(c.machineConfig(roomID), base)
	if err != nil {
		return err
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil || r.rec.Phase == phaseMember || r.rec.Membership != "join" {
		return nil // a Welcome was faster
	}
	b := &batch{}
	if plan.keep && (r.machine == nil || !r.machine.Held(parent)) {
		return nil // it moved on meanwhile
	}
	if !plan.keep {
		c.leaveBehind(r, b)
		c.startOver(r, b)
		r.machine = machine
		b.machine = true
		r.noteGroup(public.GroupID())
		r.rec.Group = public.GroupID()
		level, _ := r.level(public.GroupID(), public.Epoch())
		r.rec.JoinEpoch = level + 1
	}
	r.rec.Phase = phaseJoining
	r.joinBy, r.joinEra = bot, head.Era
	r.joinSince = c.mono()
	r.joinAt = r.joinSince + joinPatience(r.joinTries)
	r.joinTries++
	c.setCommitEvent(r, parent, head.Accepted.Event)
	commit := &pending{Parent: rooms.Hash(parent), External: true, Tree: tree, Info: head.GroupInfo, Fresh: true}
	content := &rooms.CommitContent{Epoch: public.Epoch() + 1, Parent: rooms.Hash(parent), ParentEvent: head.Accepted.Event}
	return c.postCommit(ctx, r, staged, commit, content, b)
}

// ownExternal reads back an own external commit, with the epoch it was made on.
func (c *Client) ownExternal(own *pending) (*mls.StagedCommit, rooms.Tree, error) {
	info, err := mls.ParseMessage(own.Info)
	if err != nil {
		return nil, nil, err
	}
	public, err := mls.NewPublicGroup(c.mlsCfg, info, own.Tree)
	if err != nil {
		return nil, nil, err
	}
	if own.staged == nil {
		if own.staged, err = mls.UnmarshalStagedCommit(c.mlsCfg, nil, own.Staged); err != nil {
			return nil, nil, err
		}
	}
	return own.staged, public, nil
}
