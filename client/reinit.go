package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Errors of a change of cipher suite.
var (
	// ErrSuite reports a cipher suite that a device, or the group, cannot use.
	ErrSuite = errors.New("client: the cipher suite cannot be used")
	// ErrSuiteNotReady reports devices that have no key package of the new suite.
	ErrSuiteNotReady = errors.New("client: some devices cannot follow to the new cipher suite")
	// ErrSuiteChange says why messages wait while a group is founded anew.
	ErrSuiteChange = errors.New("client: the room is moving to another cipher suite; messages wait until its new group is founded")
)

// SuiteOptions say what an admin accepts for a change of cipher suite.
type SuiteOptions struct {
	// Drop removes the devices that have no key package of the new suite. They
	// come back once they have one.
	Drop bool
	// Weaker allows a suite that is weaker than the present one (rooms.Weaker).
	Weaker bool
}

// SuiteReport says who can follow to another cipher suite.
type SuiteReport struct {
	Room     id.RoomID
	From, To mls.CipherSuite
	Weaker   bool // To is weaker than From: see SuiteOptions
	Ready    int  // devices with a key package of the new suite
	// Missing are the devices without: they stay behind, and come back once they
	// have one.
	Missing []SuiteGap
	// Modules are servers whose module orders the room's commits and cannot
	// follow a group of the new suite.
	Modules []string
}

// SuiteGap is a device that cannot follow to another cipher suite.
type SuiteGap struct {
	User   id.UserID
	Device id.DeviceID
	Reason string
}

// Err returns nil if everybody can follow, and else an error that wraps
// [ErrSuiteNotReady] and names who cannot.
func (s *SuiteReport) Err() error {
	if len(s.Modules) > 0 {
		return fmt.Errorf("%w: the modules of %s do not follow groups of %s; their admins have to allow it, or an admin of the room chooses other modules", ErrSuiteNotReady, strings.Join(s.Modules, ", "), s.To)
	}
	if len(s.Missing) == 0 {
		return nil
	}
	const shown = 5
	var names []string
	for _, gap := range s.Missing[:min(shown, len(s.Missing))] {
		names = append(names, fmt.Sprintf("%s %s (%s)", gap.User, gap.Device, gap.Reason))
	}
	if n := len(s.Missing) - shown; n > 0 {
		names = append(names, fmt.Sprintf("%d more", n))
	}
	return fmt.Errorf("%w %s: %s; wait until they have been online with a client that supports it, or drop them: they come back by themselves once they support it", ErrSuiteNotReady, s.To, strings.Join(names, ", "))
}

// suiteChange is a change of suite that our user asked for.
type suiteChange struct {
	Suite mls.CipherSuite `json:"suite"`
	// Drop are the devices to remove before.
	Drop []suiteDevice `json:"drop,omitempty"`
	// MayDrop: others that turn out to lack a key package go as well.
	MayDrop bool `json:"may_drop,omitempty"`
	// Floor is the policy's floor before the change.
	Floor []mls.CipherSuite `json:"floor,omitempty"`
}

type suiteDevice struct {
	User   id.UserID   `json:"user"`
	Device id.DeviceID `json:"device"`
}

// suiteWait is how long a key package of the next suite is at hand before
// another is claimed.
const suiteWait = 20 * time.Minute

// suiteRefusal says that none of a user's devices can be in a group of a suite,
// and what helps. A user without MLS gets in once they have it.
func suiteRefusal(suite mls.CipherSuite, list *identity.UserDevices) error {
	offers := suiteOffers(list)
	if len(offers) == 0 || slices.ContainsFunc(offers, func(o rooms.Offer) bool { return slices.Contains(o.Suites, suite) }) {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrSuite, rooms.CheckSuite(suite, offers))
}

// suiteOffers returns what a user's devices with MLS can use.
func suiteOffers(list *identity.UserDevices) []rooms.Offer {
	if list == nil {
		return nil
	}
	var offers []rooms.Offer
	for _, d := range list.SortedDevices() {
		if d.CrossSigned && len(d.MLSKeys) > 0 {
			offers = append(offers, rooms.Offer{User: list.User, Device: d.ID, Suites: slices.Sorted(maps.Keys(d.MLSKeys))})
		}
	}
	return offers
}

// firstSuite chooses the suite of a new room: the first in the policy's order
// that this device and, if there is one, those of the invited users support.
// Who cannot use it is refused when they are invited.
func (c *Client) firstSuite(r *room, policy *rooms.Policy) (mls.CipherSuite, error) {
	var offers []rooms.Offer
	if own := c.offers(); own != nil {
		offers = append(offers, rooms.Offer{User: c.UserID(), Device: c.DeviceID(), Suites: own})
	}
	all := offers
	for _, user := range r.foundWith {
		all = append(all, suiteOffers(c.devs[user])...)
	}
	if suite, err := rooms.ChooseSuite(policy, all); err == nil {
		return suite, nil
	}
	return rooms.ChooseSuite(policy, offers)
}

// offers returns the suites that this device offers, as far as its identity says;
// nil if it does not.
func (c *Client) offers() []mls.CipherSuite {
	if i, ok := c.ident.(interface{ Suites() []mls.CipherSuite }); ok {
		return i.Suites()
	}
	return nil
}

// lacks tells whether this device does not offer a suite.
func (c *Client) lacks(suite mls.CipherSuite) bool {
	offers := c.offers()
	return offers != nil && !slices.Contains(offers, suite)
}

// CheckSuite looks whether the devices of a room's group, and its modules, can
// follow to another cipher suite. It claims a key package of each device, which
// ChangeSuite then uses. The room goes on as it is.
func (c *Client) CheckSuite(ctx context.Context, roomID id.RoomID, suite mls.CipherSuite) (*SuiteReport, error) {
	r, e, err := c.lockMember(ctx, roomID)
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	report, targets, err := c.suiteReport(r, e, suite)
	c.mu.Unlock()
	if err != nil {
		return report, err
	}
	claims, err := c.ident.ClaimKeyPackages(ctx, suite, targets)
	if err != nil {
		return nil, fmt.Errorf("client: claim key packages of %s: %w", suite, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, e, err = c.memberOf(roomID); err != nil {
		return nil, err
	}
	failed := c.keepSuiteClaims(r, suite, claims)
	if report, targets, err = c.suiteReport(r, e, suite); err != nil {
		return report, err
	}
	for _, t := range targets {
		reason := "it has no key package of that suite left and did not answer"
		if err := failed[claimKey(t.User, t.Device)]; err != nil && !errors.Is(err, identity.ErrNoKeyPackage) {
			reason = strings.TrimPrefix(err.Error(), "identity: ")
		}
		report.Missing = append(report.Missing, SuiteGap{User: t.User, Device: t.Device, Reason: reason})
	}
	return report, nil
}

// suiteReport begins a report, and returns the devices of which a key package is
// to be claimed. The error is for what no device's key package mends.
func (c *Client) suiteReport(r *room, e *epoch, suite mls.CipherSuite) (*SuiteReport, []identity.Target, error) {
	policy, err := e.policy()
	if err != nil {
		return nil, nil, err
	}
	report := &SuiteReport{Room: r.id, From: e.group.CipherSuite(), To: suite, Weaker: rooms.Weaker(e.group.CipherSuite(), suite)}
	switch _, err := c.ident.SignatureKey(suite); {
	case !rooms.UsableSuite(suite):
		return nil, nil, fmt.Errorf("%w: this build does not know cipher suite %#x", ErrSuite, uint16(suite))
	case err != nil:
		return nil, nil, fmt.Errorf("%w: %s is not offered by this device; experimental suites have to be switched on", ErrSuite, suite)
	case suite == report.From:
		return nil, nil, fmt.Errorf("%w: the room's group uses %s already", ErrSuite, suite)
	case e.group.ReInit() != nil:
		return nil, nil, ErrSuiteChange
	case !policy.MayUse(suite):
		return nil, nil, fmt.Errorf("%w: the group has agreed on a floor without %s; an admin has to change that first", ErrSuite, suite)
	case !policy.IsAdmin(c.UserID()):
		return nil, nil, fmt.Errorf("%w: only an admin of the group changes its cipher suite (%v)", ErrNotAllowed, policy.Admins)
	}
	for _, seq := range policy.Sequencers {
		if !r.moduleFollows(seq, suite) {
			report.Modules = append(report.Modules, seq.Server)
		}
	}
	now := c.mono()
	var targets []identity.Target
	for _, leaf := range rooms.GroupLeaves(e.group) {
		if have := r.suitePack(suite, leaf.Cred.User, leaf.Cred.Device); have != nil && now-have.at < suiteWait {
			report.Ready++
			continue
		}
		targets = append(targets, identity.Target{User: leaf.Cred.User, Device: leaf.Cred.Device, Room: r.id, Need: policy.Verification})
	}
	return report, targets, nil
}

// moduleFollows tells whether a module can follow a group of a suite, by what its
// head says: it has a key of the suite's scheme, and allows experimental ones.
func (r *room) moduleFollows(seq federation.Sequencer, suite mls.CipherSuite) bool {
	head := r.state.head(id.UserID(seq.User))
	if head == nil {
		return false
	}
	if _, err := rooms.ModuleSender(id.UserID(seq.User), head, suite); err != nil {
		return false
	}
	return !suite.Experimental() || slices.Contains(head.Suites, uint16(suite))
}

// keepSuiteClaims keeps claimed key packages for the founding of the next group,
// and returns why others could not be had.
func (c *Client) keepSuiteClaims(r *room, suite mls.CipherSuite, claims []identity.Claimed) map[string]error {
	if r.nextPacks == nil || r.nextSuite != suite {
		r.nextPacks, r.nextSuite = map[string]*claim{}, suite
	}
	failed := map[string]error{}
	for _, got := range claims {
		key := claimKey(got.Target.User, got.Target.Device)
		if got.Err != nil || got.KeyPackage == nil {
			failed[key] = got.Err
			continue
		}
		r.nextPacks[key] = &claim{pack: got.KeyPackage, at: c.mono()}
	}
	return failed
}

// suitePack returns a key package at hand for a group of a suite.
func (r *room) suitePack(suite mls.CipherSuite, user id.UserID, device id.DeviceID) *claim {
	if r.nextSuite != suite {
		return nil
	}
	return r.nextPacks[claimKey(user, device)]
}

// ChangeSuite lets an admin move a room to another cipher suite: the group is
// closed by a ReInit, and its members go on in a new group of the same room.
// First it looks who can follow, while the old group works; if anybody cannot,
// the error wraps [ErrSuiteNotReady], unless options say to drop them. It
// returns once the new group is founded and accepted. If ctx ends before, the
// change goes on.
//
// The history stays; messages that are sent meanwhile go out in the new group.
func (c *Client) ChangeSuite(ctx context.Context, roomID id.RoomID, suite mls.CipherSuite, o SuiteOptions) (*SuiteReport, error) {
	report, err := c.CheckSuite(ctx, roomID, suite)
	if err != nil {
		return report, err
	}
	if report.Weaker && !o.Weaker {
		return report, fmt.Errorf("%w: %s is weaker than %s; say explicitly that this is meant", ErrSuite, suite, report.From)
	}
	if err := report.Err(); err != nil && (!o.Drop || len(report.Modules) > 0) {
		return report, err
	}
	want := &suiteChange{Suite: suite, MayDrop: o.Drop}
	for _, gap := range report.Missing {
		if gap.User == c.UserID() && gap.Device == c.DeviceID() {
			return report, fmt.Errorf("%w: this device has no key package of %s itself", ErrSuiteNotReady, suite)
		}
		want.Drop = append(want.Drop, suiteDevice{gap.User, gap.Device})
	}
	r, e, err := c.lockMember(ctx, roomID)
	if err == nil {
		var policy *rooms.Policy
		if policy, err = e.policy(); err == nil {
			want.Floor = policy.SuiteFloor
			if r.rec.Suite != nil {
				want.Floor = r.rec.Suite.Floor
			}
			r.rec.Suite, r.suiteError, r.planned = want, nil, false
			err = c.commitBatch(ctx, r, &batch{})
		}
	}
	c.mu.Unlock()
	if err != nil {
		return report, err
	}
	return report, c.await(ctx, roomID, func(r *room) error {
		switch {
		case r.suiteError != nil:
			return r.suiteError
		case r.rec.Phase == phaseMember && r.suiteOf() == suite:
			return nil
		}
		return r.suiteState()
	})
}

// suiteState says how far a change of suite is.
func (r *room) suiteState() error {
	if e, closed := r.closing(); closed {
		if !r.machine.Final(e.ref) {
			return errors.New("client: the old group is closed; that waits to become final: a member of another user has to be online")
		}
		return ErrSuiteChange
	}
	if e := r.head(); e != nil && r.machine.Final(e.ref) {
		return errors.New("client: the commit that closes the old group is not accepted yet")
	}
	return errors.New("client: the group's newest change is not final yet; a member of another user has to be online")
}

// suiteDue returns what a change of suite needs done first in an epoch: the
// leaves of devices that stay behind, and the policy that keeps them out until
// they can follow.
func (c *Client) suiteDue(r *room, e *epoch, d *due) {
	s := r.rec.Suite
	if s == nil || len(s.Drop) == 0 || e.group.CipherSuite() == s.Suite {
		return
	}
	for _, leaf := range rooms.GroupLeaves(e.group) {
		if !slices.Contains(s.Drop, suiteDevice{leaf.Cred.User, leaf.Cred.Device}) || leaf.Index == e.group.OwnLeafIndex() ||
			slices.ContainsFunc(d.removes, func(rm rooms.PlannedRemove) bool { return rm.Leaf == leaf.Index }) {
			continue
		}
		d.removes = append(d.removes, rooms.PlannedRemove{Leaf: leaf.Index, Cred: leaf.Cred, Reason: rooms.RemoveSuite})
		d.urgent = true
	}
	if d.urgent && len(d.removes) > 0 && d.policy == nil {
		if policy, err := e.policy(); err == nil && !slices.Equal(policy.SuiteFloor, []mls.CipherSuite{s.Suite}) {
			policy.SuiteFloor = []mls.CipherSuite{s.Suite}
			d.policy, d.other = policy, true
		}
	}
}

// staysBehind tells whether a device is one that we remove for a change of suite.
func (r *room) staysBehind(user id.UserID, device id.DeviceID) bool {
	return r.rec.Suite != nil && slices.Contains(r.rec.Suite.Drop, suiteDevice{user, device})
}

// reInitWork returns the work of closing the group for one of another suite, once
// nothing else is to be committed.
func (c *Client) reInitWork(r *room, e *epoch, d *due, now time.Duration) func(ctx context.Context) {
	s := r.rec.Suite
	if s == nil || !d.empty() && !d.onlyRenews() || r.suiteError != nil {
		return nil
	}
	if e.group.CipherSuite() == s.Suite || e.ref != r.machine.Head() || !r.machine.Final(e.ref) || r.pending != nil || !r.planned || r.plannedOn != e.ref {
		return nil
	}
	report, targets, err := c.suiteReport(r, e, s.Suite)
	if err == nil && len(report.Modules) > 0 {
		err = report.Err()
	}
	if err != nil {
		return func(context.Context) { c.dropSuite(r.id, err) }
	}
	roomID, ref := r.id, e.ref
	return func(ctx context.Context) {
		var claims []identity.Claimed
		if len(targets) > 0 {
			var err error
			if claims, err = c.ident.ClaimKeyPackages(ctx, s.Suite, targets); err != nil {
				c.mu.Lock()
				defer c.mu.Unlock()
				if r := c.rooms[roomID]; r != nil {
					r.tried["commit"] = c.mono() + 5*time.Second
				}
				return
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		r := c.rooms[roomID]
		if r == nil || r.machine == nil || r.rec.Suite == nil || r.rec.Suite.Suite != s.Suite || ctx.Err() != nil {
			return
		}
		failed := c.keepSuiteClaims(r, s.Suite, claims)
		e := c.buildOn(r, c.mono())
		if e == nil || e.ref != ref || r.pending != nil && federation.Ref(r.pending.Parent) == ref {
			return
		}
		if err := c.makeReInit(ctx, r, e, failed); err != nil {
			c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to close a group for another suite")
			r.tried["commit"] = c.mono() + 5*time.Second
		}
	}
}

// makeReInit closes the group.
func (c *Client) makeReInit(ctx context.Context, r *room, e *epoch, failed map[string]error) error {
	s := r.rec.Suite
	report, targets, err := c.suiteReport(r, e, s.Suite)
	if err != nil {
		c.endSuite(r, err)
		return c.commitBatch(ctx, r, &batch{})
	}
	if len(targets) > 0 { // somebody came in meanwhile who cannot follow
		for _, t := range targets {
			report.Missing = append(report.Missing, SuiteGap{t.User, t.Device, "it has no key package of that suite"})
			s.Drop = append(s.Drop, suiteDevice{t.User, t.Device})
		}
		if !s.MayDrop || failed[claimKey(c.UserID(), c.DeviceID())] != nil {
			c.endSuite(r, report.Err())
		}
		r.planned = false
		return c.commitBatch(ctx, r, &batch{})
	}
	policy, err := e.policy()
	if err != nil {
		return err
	}
	next := policy.Successor(e.group.GroupID(), e.ref)
	next.SuiteFloor = s.Floor
	next.SuiteOrder = append([]mls.CipherSuite{s.Suite}, slices.DeleteFunc(slices.Clone(policy.SuiteOrder), func(o mls.CipherSuite) bool { return o == s.Suite })...)
	var senders []mls.ExternalSender
	for _, seq := range next.Sequencers {
		head := r.state.head(id.UserID(seq.User))
		if head == nil {
			continue
		}
		sender, err := rooms.ModuleSender(id.UserID(seq.User), head, s.Suite)
		if err != nil {
			return err
		}
		senders = append(senders, sender)
	}
	groupID := make([]byte, rooms.GroupIDSize)
	if _, err := io.ReadFull(c.rand, groupID); err != nil {
		return fmt.Errorf("client: randomness: %w", err)
	}
	reinit, err := rooms.NewReInit(next, groupID, s.Suite, senders)
	if err != nil {
		return err
	}
	aad := rooms.CommitAAD{Parent: e.ref}
	options := mls.CommitOptions{Proposals: []mls.Proposal{reinit.Proposal()}}
	if options.AuthenticatedData, err = aad.Encode(); err != nil {
		return err
	}
	content := &rooms.CommitContent{Epoch: e.number + 1, Parent: rooms.Hash(e.ref), ParentEvent: c.commitEvent(r, e.ref)}
	for _, leaf := range rooms.GroupLeaves(e.group) {
		content.KeyPackages = append(content.KeyPackages, r.suitePack(s.Suite, leaf.Cred.User, leaf.Cred.Device).pack.Message())
	}
	staged, err := e.group.Commit(options)
	if err != nil {
		return fmt.Errorf("client: close the group of %s: %w", r.id, err)
	}
	return c.postCommit(ctx, r, staged, &pending{Parent: rooms.Hash(e.ref)}, content, &batch{})
}

// dropSuite gives up a change of suite.
func (c *Client) dropSuite(roomID id.RoomID, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil || r.rec.Suite == nil {
		return
	}
	c.endSuite(r, err)
	if err := c.commitBatch(context.Background(), r, &batch{}); err != nil {
		c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to give up a change of suite")
	}
}

// endSuite forgets a change of suite that is done, or given up. A floor that was
// set for it is taken back.
func (c *Client) endSuite(r *room, err error) {
	s := r.rec.Suite
	r.rec.Suite, r.suiteError = nil, err
	if e := r.head(); err != nil && s != nil && e != nil && e.group.ReInit() == nil && !r.rec.NewEra {
		if policy, perr := e.policy(); perr == nil && len(s.Drop) > 0 && policy.IsAdmin(c.UserID()) && !slices.Equal(policy.SuiteFloor, s.Floor) {
			want := policy.Clone()
			if r.rec.Policy != nil { // beside a change under way
				want = r.asked(e.ref, want)
			}
			want.SuiteFloor = s.Floor
			r.ask(e.ref, policy, want)
		}
	}
	if err != nil {
		c.log.Warn().Err(err).Stringer("room_id", r.id).Msg("Gave up a change of cipher suite")
	}
	r.notify()
}
