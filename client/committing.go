package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// claim is a key package at hand for the next commit. It stays across lost
// races: it serves at most one Welcome that is sent.
type claim struct {
	pack *mls.KeyPackage
	at   time.Duration
}

func claimKey(user id.UserID, device id.DeviceID) string {
	return string(user) + "\x00" + string(device)
}

const (
	claimAge      = 30 * time.Minute
	maxAddsAtOnce = 200
)

// due is what a commit made now would hold.
type due struct {
	removes []rooms.PlannedRemove
	adds    []rooms.PlannedAdd
	urgent  bool          // do not wait for the committer timer
	asks    bool          // a leaf of the own user, or of one whom it put out, waits for what is asked for
	other   bool          // a change of policy, a fresh path or an era
	renew   bool          // a fresh path on schedule, which waits for its turn
	policy  *rooms.Policy // what the commit sets, nil: no change
	part    bool          // of what our user asked for the commit sets all but the list of modules
}

func (d *due) empty() bool { return len(d.removes) == 0 && len(d.adds) == 0 && !d.other && !d.renew }

// onlyRenews tells whether nothing but a scheduled fresh path is due.
func (d *due) onlyRenews() bool {
	return d.renew && len(d.removes) == 0 && len(d.adds) == 0 && !d.other
}

// badLeaf is a leaf whose device is not among those of its user.
type badLeaf struct {
	user  id.UserID
	since time.Duration
	asked bool // the user's devices were asked for anew
	read  bool // the room's state was asked for, since the user was not seen to have left
}

// dueNow filters the plan: a leaf that fails its check has 60 s to come right,
// and is removed only after the devices of its user were read once more, for a
// homeserver may keep to itself that there is a new one; a device that could not
// be added is tried again later.
func (c *Client) dueNow(r *room, e *epoch, now time.Duration) *due {
	if !r.planned || r.plannedOn != e.ref {
		c.plan(r) // the head may have gone elsewhere since: whatever is committed, who is out goes with it
	}
	d := &due{policy: c.policyDue(r, e), renew: c.refreshDue(r, e)}
	if d.policy == nil && r.rec.NewEra {
		d.policy = r.rec.Policy
	}
	_, waits := r.machine.PendingList()
	r.listAgain(e.ref)
	noList := r.tried["list"] > now || waits // given up for a while, or there is one
	if noList && !r.rec.NewEra && changesList(e, d.policy) {
		d.policy, d.part = withoutList(e, d.policy), true
	}
	d.other = d.policy != nil || r.rec.Refresh || r.staleProposals(e)
	d.urgent = d.other
	auto := c.autoDue(r, e, now)
	if noList && changesList(e, auto) {
		auto = withoutList(e, auto)
	}
	if auto != nil {
		d.policy, d.other = auto, true
	}
	if r.machine.SafeHead() != r.machine.Head() {
		// A commit above is in doubt. A sibling lets the module take another
		// round without it, unless somebody vouches for it first.
		d.other = true
	}
	r.graceAt = 0
	if r.todo == nil || r.plannedOn != e.ref {
		return d
	}
	waiting := slices.ContainsFunc(c.roomRows(r.id), func(row *outRow) bool { return row.item.State == stateQueued })
	maps.DeleteFunc(r.badSince, func(key string, bad *badLeaf) bool { // came right, or is gone
		return (bad.read || r.devices[bad.user]) && !slices.ContainsFunc(r.todo.Removes, func(rm rooms.PlannedRemove) bool { return rm.Cred.String() == key })
	})
	for _, rm := range r.todo.Removes {
		if rm.Leaf == e.group.OwnLeafIndex() || c.without[probe.Leavers] {
			continue // nobody removes the leaf it commits with
		}
		if rm.Reason == rooms.RemoveDevice {
			key := rm.Cred.String()
			bad := r.badSince[key]
			if bad == nil {
				bad = &badLeaf{user: rm.Cred.User, since: now}
				r.badSince[key] = bad
			}
			if at := bad.since + rooms.CredentialGrace; rm.Cred.User != c.UserID() && now < at {
				if r.graceAt == 0 || at < r.graceAt {
					r.graceAt = at
				}
				continue
			}
			if c.asksAnew(r, bad) {
				d.asks = d.asks || rm.Cred.User == c.UserID()
				continue
			}
		}
		if rm.Reason == rooms.RemoveLeft && !c.surelyOut(r, rm.Cred, now) {
			d.asks = d.asks || r.rec.Caused[rm.Cred.User]
			continue
		}
		d.removes = append(d.removes, rm)
		if r.rec.Caused[rm.Cred.User] || rm.Cred.User == c.UserID() || waiting {
			d.urgent = true
		}
	}
	for _, add := range r.todo.Adds {
		if r.tried["add/"+claimKey(add.User, add.Device)] > now || len(d.adds) >= maxAddsAtOnce || r.staysBehind(add.User, add.Device) {
			continue
		}
		d.adds = append(d.adds, add)
		if r.rec.Caused[add.User] || add.User == c.UserID() {
			d.urgent = true
		}
	}
	c.suiteDue(r, e, d)
	return d
}

// surelyOut tells whether the user of a leaf is out of the room. Of one who is not
// seen to have left, the join may not have come yet: the homeserver has it by the
// commit that added the leaf, and is asked for the room's state before that is undone.
func (c *Client) surelyOut(r *room, cred rooms.Credential, now time.Duration) bool {
	if r.state.membership(cred.User) == rooms.MembershipLeave {
		return true
	}
	bad := r.badSince[cred.String()]
	if bad == nil {
		bad = &badLeaf{user: cred.User, since: now}
		r.badSince[cred.String()] = bad
	}
	if !bad.read {
		bad.read = true
		r.state.lose()
		r.want("state", &need{state: true})
		c.poke() // what is to be fetched was looked through already
	}
	return r.state.Known
}

// asksAnew tells whether the devices of a user are being asked for because of a
// leaf that is not among them, and begins to ask. Where nobody answers, what is
// known counts.
func (c *Client) asksAnew(r *room, bad *badLeaf) bool {
	key := "anew:" + string(bad.user)
	if !bad.asked {
		r.want(key, &need{users: []id.UserID{bad.user}, anew: true})
		if r.needs[key] == nil {
			return true // too much is being fetched: later
		}
		bad.asked = true
		c.poke() // what is to be fetched was looked through already
	}
	return r.needs[key] != nil || !r.devices[bad.user]
}

// staleProposals tells whether the group holds a module's proposal that the
// plan does not ask for any more: only a new epoch makes it send again.
func (r *room) staleProposals(e *epoch) bool {
	if !r.planned || r.plannedOn != e.ref {
		return false
	}
	return slices.ContainsFunc(e.group.PendingProposals(), func(p mls.ProposalMessage) bool {
		return !slices.ContainsFunc(r.todo.Removes, func(rm rooms.PlannedRemove) bool { return rm.Leaf == p.Proposal.Remove })
	})
}

// commitWork returns the work of making a commit, if one is due.
func (c *Client) commitWork(r *room, now time.Duration) func(ctx context.Context) {
	if r.machine == nil || r.rec.Membership != "join" {
		return nil
	}
	if work := c.refoundWork(r, now); work != nil {
		return work
	}
	if e := c.heirsEraDue(r); e != nil && (r.pending == nil || !r.pending.Era) && r.tried["commit"] <= now {
		roomID := r.id
		return func(ctx context.Context) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if r := c.rooms[roomID]; r != nil && r.machine != nil {
				if e := c.heirsEraDue(r); e != nil && (r.pending == nil || !r.pending.Era) {
					if err := c.makeHeirsEra(ctx, r, e); err != nil {
						c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to make the commit of an era")
						r.tried["commit"] = c.mono() + 5*time.Second
					}
				}
			}
		}
	}
	e := c.buildOn(r, now)
	if e == nil || r.tried["commit"] > now {
		return nil
	}
	c.dropUnready(r, now)
	c.dropContested(r, e, now)
	if r.pending != nil && federation.Ref(r.pending.Parent) == e.ref {
		if r.pendingSince == 0 || r.pendingRef != federation.Ref(r.pending.Ref) || r.pending.EventID == "" && r.quietUntil() > now { // not sent yet
			r.pendingSince, r.pendingRef = now, federation.Ref(r.pending.Ref)
		} else if c.cameBackChanged(r, now) {
			c.dropAltered(r, now)
		} else if now-r.pendingSince > acceptWait {
			text := "the module has not accepted a change of the group for a while; it waits until the module answers"
			why, servers := c.noMajority(r)
			if why != "" {
				text = "no module has accepted a change of the group for a while: " + why
			}
			c.warn(r, "no-accept/"+r.pendingRef.String(), &Warning{Rule: ruleNoAccept, Kind: NoAcceptWarning, Servers: servers, Detail: why, Text: text})
		}
		return nil // waits for its accept
	}
	r.pendingSince = 0
	d := c.dueNow(r, e, now)
	rests := d.onlyRenews()
	if d.empty() || rests {
		r.racesLost = 0
		if work := c.reInitWork(r, e, d, now); work != nil || !rests {
			r.commitAt = 0
			return work
		}
	}
	// Many who commit at once would each make a commit anew in every epoch, of which one is
	// used: who has lost its place twice lets the delays say who is next. A removal does not
	// wait: nothing is sent before it.
	if !d.urgent || r.racesLost > 1 && len(d.removes) == 0 {
		if r.commitAt == 0 || r.commitOn != e.ref || r.commitRests != rests {
			r.commitOn, r.commitRests = e.ref, rests
			r.commitAt = now + rooms.CommitterDelay(e.ref, e.group.OwnLeafIndex(), e.group.MemberCount())
			if rests {
				r.commitAt += max(0, r.refreshFrom()-now)
			}
			if !d.urgent {
				r.commitAt += committerGrace
			}
		}
		if until := r.rivalUntil(e.ref, now); r.commitAt <= now && now < until { // then all wait, and must not go at once
			r.commitAt = until + rooms.CommitterDelay(e.ref, e.group.OwnLeafIndex(), e.group.MemberCount())
		}
		if rests { // the head may have gone back to where a timer ran out
			r.commitAt = max(r.commitAt, r.refreshFrom())
		}
		if now < r.commitAt {
			return nil
		}
	}
	roomID, ref, adds, cs := r.id, e.ref, d.adds, e.group.CipherSuite()
	policy, err := e.policy()
	if err != nil {
		return nil
	}
	var targets []identity.Target
	for _, add := range adds {
		if have := r.claimed[claimKey(add.User, add.Device)]; have == nil || now-have.at > claimAge {
			targets = append(targets, identity.Target{User: add.User, Device: add.Device, Room: r.id, Need: policy.Verification})
		}
	}
	return func(ctx context.Context) { c.prepareCommit(ctx, roomID, ref, cs, targets) }
}

// rivalUntil returns until when a commit on the given one leaves another member's, which no
// module has answered yet, the first word. In a large room many would else claim key packages
// for the same devices, and make commits of which at most one is used.
func (r *room) rivalUntil(parent federation.Ref, now time.Duration) time.Duration {
	if !slices.ContainsFunc(r.machine.Children(parent), func(ref federation.Ref) bool {
		known, ok := r.machine.Known(ref)
		return ok && known.Barred == "" && known.Era == nil && r.own[ref] == nil && r.rec.Failed[ref.String()] == "" && !r.machine.Accepted(ref)
	}) {
		return 0
	}
	if r.rivalOn != parent {
		r.rivalOn, r.rivalAt = parent, now
	}
	return r.rivalAt + rivalWait
}

// rivalWait is how long another member's commit may wait for its accept before this device
// makes one beside it.
const rivalWait = 10 * time.Second

// cameBackChanged tells whether the homeserver shows an own commit that was sent, and
// did not come back as a commit of the group, otherwise than this device sent it. It
// asks for the event by its name.
func (c *Client) cameBackChanged(r *room, now time.Duration) bool {
	p := r.pending
	if p.EventID == "" || p.External || p.Founding || now < r.pendingSince+alteredWait || r.machine.Held(r.pendingRef) {
		return false
	}
	evt := r.fetched[p.EventID]
	if evt == nil {
		if key := "event:" + string(p.EventID); r.tried["need/"+key] <= now && r.needs[key] == nil {
			r.want(key, &need{event: p.EventID})
			c.poke()
		}
		return false
	}
	content, err := rooms.DecodeCommit(evt.Content)
	if err == nil {
		content, err = c.inlined(r, content, evt)
	}
	var wait *errWait
	if errors.As(err, &wait) {
		return false
	}
	if err != nil {
		return true
	}
	msg, err := mls.ParseMessage(content.Message)
	if err != nil {
		return true
	}
	if ref, err := rooms.CommitRef(msg); err != nil || ref != r.pendingRef {
		return true
	}
	return p.staged != nil && checkGroupInfo(p.staged, p.staged.Merge(), content) != nil
}

// dropAltered gives up an own commit that the homeserver has changed, and that so is
// nobody's. What it wanted is planned again, ever more rarely while that goes on.
func (c *Client) dropAltered(r *room, now time.Duration) {
	wait := alteredWait << min(r.altered, maxAlteredWaits)
	r.altered++
	r.tried["commit"] = now + wait
	c.warn(r, "altered/"+r.pendingRef.String(), &Warning{
		EventID: r.pending.EventID, Rule: ruleAltered, Kind: AlteredWarning, Servers: []string{serverOf(c.UserID())},
		Text: fmt.Sprintf("the homeserver %s does not show a change of the group as this device sent it, so nobody can use it; it is made again in %v", serverOf(c.UserID()), wait),
	})
	b := &batch{}
	c.loseCommit(r, b)
	if err := c.commitBatch(context.Background(), r, b); err != nil {
		c.log.Err(err).Stringer("room_id", r.id).Msg("Failed to give up a commit")
	}
}

// contestedAt returns when an own commit that was sent, and is not accepted, is given
// up for another, 0 for never: modules accept none that leaves out a Remove which
// they proposed, for what they knew when it came.
func (r *room) contestedAt() time.Duration {
	p := r.pending
	if p == nil || p.EventID == "" || p.External || p.Founding || p.Era || p.List || r.pendingSince == 0 || r.pendingRef != federation.Ref(p.Ref) {
		return 0
	}
	tries := 0
	for _, own := range r.own {
		if own.Lost && own.Parent == p.Parent {
			tries++
		}
	}
	if tries >= maxContests {
		return 0
	}
	return r.pendingSince + acceptWait<<tries
}

// unheardWait is how long an own commit waits at least before it is made anew without anything that
// tells why no module accepts it: a module looks at what its homeserver has of the room every five minutes,
// and not again at a commit that it did not accept for what it knew before.
const unheardWait = 6 * time.Minute

// maxContests is how many commits on one are given up for such a Remove: a module
// that is mistaken reads its room again meanwhile.
const maxContests = 5

// dropContested gives up an own commit that no module accepts and that leaves a leaf
// in the group which a module proposed to remove, or that waits for long, as this device may
// have missed such a proposal. What it wanted is planned again,
// with the Remove if this device sees its reason, too.
func (c *Client) dropContested(r *room, e *epoch, now time.Duration) {
	at := r.contestedAt()
	if at == 0 || now < at || federation.Ref(r.pending.Parent) != e.ref || r.machine.Accepted(r.pendingRef) {
		return
	}
	if contested, err := c.contested(r, e); err != nil {
		c.log.Err(err).Stringer("room_id", r.id).Msg("Failed to look at an own commit")
		return
	} else if !contested {
		if now < at+unheardWait {
			return
		}
		r.unheard = e.ref
	}
	b := &batch{}
	c.loseCommit(r, b)
	if err := c.commitBatch(context.Background(), r, b); err != nil {
		c.log.Err(err).Stringer("room_id", r.id).Msg("Failed to give up a commit")
	}
}

// contested tells whether a module proposed a Remove that the own commit leaves out,
// or one for whose reason this device sees nothing.
func (c *Client) contested(r *room, e *epoch) (bool, error) {
	if federation.Ref(r.rec.Contested) == e.ref {
		return true, nil
	}
	staged, err := c.stage(r, e, r.pendingRef, nil, nil)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(e.group.PendingProposals(), func(p mls.ProposalMessage) bool {
		return p.Sender.Type == mls.SenderTypeExternal && p.Proposal.Type == mls.ProposalTypeRemove &&
			p.Proposal.Remove != e.group.OwnLeafIndex() &&
			!slices.ContainsFunc(staged.Removed(), func(l mls.RemovedLeaf) bool { return l.Index == p.Proposal.Remove })
	}), nil
}

// ruleAltered is the rule of own commits that the homeserver has changed.
const ruleAltered = "client/commit-altered"

const (
	// alteredWait is how long an own commit may take to come back before the
	// homeserver is asked for it, and the first wait before it is made again.
	alteredWait     = 10 * time.Second
	maxAlteredWaits = 6 // how often that wait doubles
)

// ruleNoAccept is the rule of commits that no module accepts.
const ruleNoAccept = "client/no-accept"

// noMajority says, where a room has several modules and a commit of ours waits
// or the head has only one module's word, that this side may be the smaller one,
// and what helps; "" otherwise.
func (c *Client) noMajority(r *room) (why string, servers []string) {
	e := r.head()
	if e == nil {
		return "", nil
	}
	policy, err := e.policy()
	if err != nil || len(policy.Sequencers) < 2 {
		return "", nil
	}
	waits := r.pending != nil && r.pendingSince > 0 && c.mono()-r.pendingSince > acceptWait
	waits = waits || !r.unheard.IsZero() && r.unheard == e.ref
	if !waits && r.machine.Status(r.machine.Head()) != federation.StatusSideBranch {
		return "", nil
	}
	for _, seq := range policy.Sequencers {
		servers = append(servers, seq.Server)
	}
	return fmt.Sprintf("this side of the room does not reach a majority of its modules (%s); it goes on when they are back, or when an admin opens a new era",
		strings.Join(servers, ", ")), servers
}

// acceptWait is how long an own commit waits for its accept before a person is
// told that the module does not answer.
const acceptWait = 30 * time.Second

// committerGrace lets whoever caused a change commit it before the others'
// timers begin to run out.
const committerGrace = time.Second

// prepareCommit claims the key packages a commit needs, without the lock, and
// then makes it, unless the head moved meanwhile.
func (c *Client) prepareCommit(ctx context.Context, roomID id.RoomID, head federation.Ref, cs mls.CipherSuite, targets []identity.Target) {
	var claims []identity.Claimed
	var err error
	if len(targets) > 0 {
		claims, err = c.ident.ClaimKeyPackages(ctx, cs, targets)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil || ctx.Err() != nil {
		return
	}
	log := c.log.With().Stringer("room_id", roomID).Logger()
	now := c.mono()
	if err != nil {
		log.Warn().Err(err).Msg("Failed to claim key packages")
		wait := 5 * time.Second
		var limit *RateLimitError
		if errors.As(wrapRateLimit(err), &limit) {
			wait = limit.RetryAfter
		}
		r.tried["commit"] = now + wait
		return
	}
	for _, got := range claims {
		key := claimKey(got.Target.User, got.Target.Device)
		if got.Err != nil || got.KeyPackage == nil {
			log.Info().Err(got.Err).Stringer("user_id", got.Target.User).Stringer("device_id", got.Target.Device).Msg("A device cannot be added now")
			r.tried["add/"+key] = now + time.Minute
			continue
		}
		r.claimed[key] = &claim{pack: got.KeyPackage, at: now}
	}
	if r.machine == nil || r.rec.Phase != phaseMember {
		return
	}
	if e := c.buildOn(r, now); e == nil || e.ref != head {
		return
	}
	if err := c.makeCommit(ctx, r); err != nil {
		log.Err(err).Msg("Failed to make a commit")
		r.tried["commit"] = c.mono() + 5*time.Second
	}
}

// makeCommit makes a commit on the head of everything that is due and persists
// it with its outbox row. Nothing is sent before that.
func (c *Client) makeCommit(ctx context.Context, r *room) error {
	e := c.buildOn(r, c.mono())
	if e == nil || r.pending != nil && federation.Ref(r.pending.Parent) == e.ref {
		return nil
	}
	d := c.dueNow(r, e, c.mono())
	newList := changesList(e, d.policy) && !r.rec.NewEra
	if newList && len(d.removes)+len(d.adds) > 0 {
		// A new list waits for its modules and ranks behind everything else, so
		// nothing else rides on it.
		d.policy, newList = nil, false
	}
	// A scheduled path goes with any other commit where the room bears one.
	options := mls.CommitOptions{ForcePath: d.other || d.renew && c.mono() >= r.refreshFrom()}
	aad := rooms.CommitAAD{Parent: e.ref}
	content := &rooms.CommitContent{Epoch: e.number + 1, Parent: rooms.Hash(e.ref), ParentEvent: c.commitEvent(r, e.ref)}

	if c.without[probe.Removes] && len(d.adds) > 0 {
		d.removes = nil
	}
	// Removes first: a module's proposal by reference where there is one.
	for _, rm := range d.removes {
		if ref, raw, ok := r.proposalFor(e, rm.Leaf); ok {
			options.PendingRefs = append(options.PendingRefs, ref)
			content.Proposals = append(content.Proposals, raw)
			continue
		}
		options.Proposals = append(options.Proposals, mls.Remove(rm.Leaf))
	}
	if c.without[probe.Proposals] {
		for _, p := range e.group.PendingProposals() {
			options.PendingRefs = append(options.PendingRefs, p.Ref)
			content.Proposals = append(content.Proposals, r.rec.Proposals[rooms.EncodeBase64(p.Ref)].Raw)
		}
	}
	policy, err := e.policy()
	if err != nil {
		return err
	}
	var welcomes []welcomeTarget
	admitted, later, size, alone := map[id.UserID]bool{}, map[id.UserID]bool{}, 0, false
	for _, add := range d.adds {
		have := r.claimed[claimKey(add.User, add.Device)]
		if have == nil || later[add.User] {
			continue
		}
		if add.NewUser && !admitted[add.User] {
			admission, _ := c.letsIn(r, e, policy, add.User)
			if admission == nil && policy.Join == rooms.JoinAdmitted {
				later[add.User] = true // it went since this was planned
				continue
			}
			if admission != nil {
				if size += admission.Size(); size > rooms.MaxAdmissionsSize || len(aad.Admissions) > 0 && (alone || r.apart(admission)) {
					later[add.User] = true // with the next commit
					continue
				}
				aad.Admissions, alone = append(aad.Admissions, *admission), r.apart(admission)
			}
			admitted[add.User] = true
		}
		options.Proposals = append(options.Proposals, mls.Add(have.pack))
		welcomes = append(welcomes, welcomeTarget{User: add.User, Device: add.Device, KeyPackage: rooms.Bytes(have.pack.Ref())})
	}
	if d.policy != nil {
		extensions, err := c.nextExtensions(r, e, d.policy)
		if err == nil {
			var have *rooms.Policy
			if have, err = e.policy(); err == nil {
				err = rooms.CheckChange(have, d.policy, c.UserID()) // the branch that won may have taken the office away
			}
		}
		if err != nil {
			c.warn(r, "policy/"+e.ref.String(), &Warning{Rule: ruleOf(err), Kind: PolicyWarning, Detail: err.Error(), Text: "a change of the group's policy was given up: " + err.Error()})
			r.rec.Policy, r.rec.PolicyOn, r.rec.NewEra = nil, nil, false
			r.policyError, r.auto = err, nil
			r.notify()
			return err
		}
		options.Proposals = append(options.Proposals, mls.GroupContextExtensions(extensions))
		if r.rec.NewEra {
			number, _ := r.machine.EraOf()
			aad.Era = number + 1
		}
	}
	if len(options.Proposals) == 0 && len(options.PendingRefs) == 0 && !options.ForcePath {
		return nil
	}
	if options.AuthenticatedData, err = aad.Encode(); err != nil {
		return err
	}
	staged, err := e.group.Commit(options)
	if err != nil {
		return fmt.Errorf("client: commit in %s: %w", r.id, err)
	}
	own := &pending{Parent: rooms.Hash(e.ref), Welcomes: welcomes, List: newList, Policy: d.policy != nil && r.rec.Policy != nil && !d.part, Part: d.policy != nil && d.part, Era: aad.Era > 0, Fresh: r.rec.Copied && options.ForcePath}
	return c.postCommit(ctx, r, staged, own, content, &batch{})
}

// postCommit persists an own commit and queues it.
func (c *Client) postCommit(ctx context.Context, r *room, staged *mls.StagedCommit, own *pending, content *rooms.CommitContent, b *batch) error {
	msg, err := mls.ParseMessage(staged.Message())
	if err != nil {
		return err
	}
	ref, err := rooms.CommitRef(msg)
	if err != nil {
		return err
	}
	info, err := staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	if err != nil {
		return err
	}
	if e := r.epochs[federation.Ref(own.Parent)]; e != nil && !own.External {
		own.Staged, err = staged.MarshalOn(e.group)
	} else {
		own.Staged, err = staged.MarshalBinary()
	}
	if err != nil {
		return err
	}
	own.Ref, own.staged = rooms.Hash(ref), staged
	r.noteMine(own.Ref)
	switch {
	case own.Policy:
		r.rec.PolicyRef = own.Ref
	case own.Part:
		r.rec.PolicyPart = own.Ref
	}
	bundle := &rooms.CommitBundle{Message: staged.Message(), GroupInfo: info}
	for _, p := range content.Proposals {
		bundle.Proposals = append(bundle.Proposals, p)
	}
	for _, kp := range content.KeyPackages {
		bundle.KeyPackages = append(bundle.KeyPackages, kp)
	}
	content.Proposals, content.KeyPackages = nil, nil
	data := outData{Type: rooms.TypeCommit}
	if bundle.Inline() && !c.inFiles {
		content.SetInline(bundle)
		if data.Content, err = rooms.Encode(content); err != nil {
			return err
		}
	} else {
		if data.Upload, err = bundle.Encode(); err != nil {
			return err
		}
		data.Commit = content
	}
	if old := r.pending; old != nil && !old.External {
		c.loseCommit(r, b) // made on another epoch, as below a commit in doubt, and perhaps not sent yet
	}
	r.own[ref], r.pending = own, own
	r.commitAt = 0
	if err := c.savePending(b, r, own); err != nil {
		return err
	}
	if _, err := c.addRow(b, r, kindCommit, stateReady, ref, data); err != nil {
		return err
	}
	b.then(r.notify)
	c.log.Info().Stringer("room_id", r.id).Str("ref", ref.Short()).Uint64("epoch", content.Epoch).
		Int("proposals", len(staged.Proposals())).Msg("Made a commit")
	return c.commitBatch(ctx, r, b)
}

// proposalFor finds a module's proposal to remove a leaf in the given epoch.
func (r *room) proposalFor(e *epoch, leaf mls.LeafIndex) (mls.ProposalRef, rooms.Bytes, bool) {
	for _, p := range e.group.PendingProposals() {
		if p.Proposal.Type != mls.ProposalTypeRemove || p.Proposal.Remove != leaf || p.Sender.Type != mls.SenderTypeExternal {
			continue
		}
		if kept, ok := r.rec.Proposals[rooms.EncodeBase64(p.Ref)]; ok && federation.Ref(kept.On) == e.ref {
			return p.Ref, kept.Raw, true
		}
	}
	return nil, nil, false
}

// savePending persists an own commit.
func (c *Client) savePending(b *batch, r *room, own *pending) error {
	raw, err := json.Marshal(own)
	if err != nil {
		return fmt.Errorf("client: own commit in %s: %w", r.id, err)
	}
	eventID := own.EventID
	b.firm = true
	b.do(func(ctx context.Context) error {
		return c.st.PutPending(ctx, &store.Pending{Room: r.id, Ref: own.Ref[:], Parent: own.Parent[:], EventID: eventID, Data: raw})
	})
	return nil
}

// ErrNothingToRepair is what RepairSequencer says of a room whose modules
// announce the receipt keys that its group names.
var ErrNothingToRepair = errors.New("client: the room's modules have the receipt keys that its group names: there is nothing to repair")

// RepairSequencer moves the room to the receipt keys that its modules' bots
// announce now. It is for modules that lost their database, and their receipt
// key with it. While a majority of the list has its keys this is a change of the
// list; otherwise nothing that the lost keys could sign is needed: an era. Only
// an admin of the group can do it.
func (c *Client) RepairSequencer(ctx context.Context, roomID id.RoomID) error {
	r, e, err := c.lockMember(ctx, roomID)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	lost := c.lostKeys(r, e)
	healthy, quorum := c.healthy(r, e)
	c.mu.Unlock()
	if len(lost) == 0 {
		return fmt.Errorf("%w (%s)", ErrNothingToRepair, roomID)
	}
	rekey := func(p *rooms.Policy) {
		for i := range p.Sequencers {
			if key := lost[p.Sequencers[i].User]; key != nil {
				p.Sequencers[i].ReceiptKey = key
			}
		}
	}
	if healthy < quorum {
		return c.changePolicy(ctx, roomID, rekey, true)
	}
	manual := false
	return c.setList(ctx, roomID, func(_ *room, p *rooms.Policy) ([]federation.Sequencer, error) {
		manual = p.Manual
		rekey(p)
		return p.Sequencers, nil
	}, func() bool { return manual })
}

// healthy returns how many modules of the list are in the room with the keys
// that the group lists, and how many make a majority.
func (c *Client) healthy(r *room, e *epoch) (healthy, quorum int) {
	policy, err := e.policy()
	if err != nil {
		return 0, 1
	}
	present := r.modules()
	for _, s := range policy.Sequencers {
		if r.stateOf(s, present) == SequencerServes {
			healthy++
		}
	}
	return healthy, federation.List(policy.Sequencers).Quorum()
}

// lostKeys returns the new receipt keys of sequencers whose announced key is
// not the group's.
func (c *Client) lostKeys(r *room, e *epoch) map[string][]byte {
	policy, err := e.policy()
	if err != nil {
		return nil
	}
	out := map[string][]byte{}
	for _, seq := range policy.Sequencers {
		if head := r.state.head(id.UserID(seq.User)); head != nil && string(head.ReceiptKey) != string(seq.ReceiptKey) {
			out[seq.User] = head.ReceiptKey
		}
	}
	return out
}

// memberOf returns a room in whose group this device is, and its head.
func (c *Client) memberOf(roomID id.RoomID) (*room, *epoch, error) {
	r := c.rooms[roomID]
	switch {
	case r == nil:
		return nil, nil, fmt.Errorf("%w (%s)", ErrNoRoom, roomID)
	case r.rec.Phase == phaseRemoved:
		return nil, nil, r.outError()
	case !r.isMLS():
		return nil, nil, fmt.Errorf("%w (%s)", ErrNotMLS, roomID)
	}
	e := r.head()
	if e == nil || r.rec.Phase != phaseMember {
		return nil, nil, fmt.Errorf("%w (%s)", ErrNoGroup, roomID)
	}
	return r, e, nil
}

// lockMember waits while the head is a commit that this device cannot read, which
// is settled within seconds: somebody vouches for it, another one takes its place,
// or the device joins again. It returns what memberOf does, with the lock held, also
// where it returns an error.
func (c *Client) lockMember(ctx context.Context, roomID id.RoomID) (*room, *epoch, error) {
	unread := func(r *room) error {
		back := r.rec.Phase == phaseJoining && !r.rec.JoinRef.IsZero()
		if _, _, err := c.memberOf(roomID); (r.rec.Phase == phaseMember || back) && errors.Is(err, ErrNoGroup) {
			return err
		}
		return nil
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.patience)
		defer cancel()
	}
	for {
		err := c.await(ctx, roomID, unread)
		c.mu.Lock()
		if err != nil {
			return nil, nil, err
		}
		if r := c.rooms[roomID]; r == nil || unread(r) == nil {
			return c.memberOf(roomID)
		}
		c.mu.Unlock()
	}
}

// memberWait is how long lockMember waits for the caller's sake who names no time.
const memberWait = 2 * time.Minute

// await waits until check, called with the lock held, returns nil. When ctx
// ends, or the client is closed, it returns why check still fails, too.
func (c *Client) await(ctx context.Context, roomID id.RoomID, check func(r *room) error) error {
	for {
		c.mu.Lock()
		r := c.rooms[roomID]
		if r == nil {
			c.mu.Unlock()
			return fmt.Errorf("%w (%s)", ErrNoRoom, roomID)
		}
		why := check(r)
		changed := r.changed
		fatal, closed := c.fatal, c.closed
		c.mu.Unlock()
		if why == nil {
			return nil
		}
		if fatal != nil {
			return fatal
		}
		if closed {
			return fmt.Errorf("%w (%w)", why, ErrClosed)
		}
		c.poke()
		select {
		case <-changed:
		case <-ctx.Done():
			// The room may have changed since this goroutine last looked.
			if why = c.checked(roomID, check); why == nil {
				return nil
			}
			return fmt.Errorf("%w (%w)", why, ctx.Err())
		}
	}
}

// checked asks once what await waits for.
func (c *Client) checked(roomID id.RoomID, check func(r *room) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.rooms[roomID]; r != nil {
		return check(r)
	}
	return fmt.Errorf("%w (%s)", ErrNoRoom, roomID)
}

// pass waits until the client's clock has gone on by d. It asks the clock now and then, for a clock says nothing by itself.
func (c *Client) pass(ctx context.Context, d time.Duration) error {
	for end := c.mono() + d; ; {
		left := end - c.mono()
		if left <= 0 {
			return nil
		}
		if err := sleep(ctx, min(left, 50*time.Millisecond)); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
