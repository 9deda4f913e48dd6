package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A ReInit that is final closes a group for good (RFC 9420, Section 11.2). Its
// author then founds the group that follows, with the devices of the old one and
// the key packages that ride with the ReInit; any other member does if that has
// not happened after a while. The founding commit is sequenced like any other;
// of two, one is accepted. Only then the others get their Welcomes.

const (
	// foundWait is how long the author of a ReInit has before others found the
	// next group.
	foundWait = 10 * time.Second
	// foundWelcomeWait is how long a Welcome into an accepted founding is waited
	// for.
	foundWelcomeWait = 20 * time.Second
)

// SuiteChanged reports that a room goes on in a new group of another cipher
// suite.
type SuiteChanged struct {
	Room     id.RoomID
	From, To mls.CipherSuite
	By       id.UserID // who founded the new group
}

func (*SuiteChanged) update() {}

// foundDue returns the closed epoch on which a founding commit of ours is due,
// nil if none is.
func (c *Client) foundDue(r *room, now time.Duration) *epoch {
	e := r.epochs[r.machine.SafeHead()]
	if e == nil || e.group.ReInit() == nil || !r.machine.Final(e.ref) || r.rec.Membership != "join" {
		r.foundAt = 0
		return nil
	}
	if p := r.pending; p != nil && federation.Ref(p.Parent) == e.ref {
		return nil // waits for its accept
	}
	if r.foundAt == 0 || r.foundOn != e.ref {
		r.foundOn, r.foundAt = e.ref, now
		if known, ok := r.machine.Known(e.ref); !ok || !slices.Contains(r.rec.Mine, rooms.Hash(e.ref)) || known.AuthorUser != string(c.UserID()) {
			r.foundAt = now + foundWait + rooms.CommitterDelay(e.ref, e.group.OwnLeafIndex(), e.group.MemberCount())
		}
	}
	if now < r.foundAt || r.tried["found"] > now || r.tried["commit"] > now {
		return nil
	}
	return e
}

// refoundWork returns the work of founding the group that follows a ReInit.
func (c *Client) refoundWork(r *room, now time.Duration) func(ctx context.Context) {
	e := c.foundDue(r, now)
	if e == nil {
		return nil
	}
	roomID, ref, suite := r.id, e.ref, e.group.ReInit().CipherSuite
	policy, err := e.policy()
	if err != nil {
		return nil
	}
	author := slices.Contains(r.rec.Mine, rooms.Hash(ref))
	// The author claimed the key packages. Another founder takes fresh ones where
	// it can: those that ride with the ReInit may be in use.
	var targets []identity.Target
	for _, leaf := range rooms.GroupLeaves(e.group) {
		if leaf.Index == e.group.OwnLeafIndex() || author {
			continue
		}
		if have := r.suitePack(suite, leaf.Cred.User, leaf.Cred.Device); have == nil || now-have.at > suiteWait {
			targets = append(targets, identity.Target{User: leaf.Cred.User, Device: leaf.Cred.Device, Room: r.id, Need: policy.Verification})
		}
	}
	return func(ctx context.Context) {
		var claims []identity.Claimed
		if len(targets) > 0 {
			var err error
			if claims, err = c.ident.ClaimKeyPackages(ctx, suite, targets); err != nil {
				c.log.Debug().Err(err).Stringer("room_id", roomID).Msg("Failed to claim key packages for a new group")
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		r := c.rooms[roomID]
		if r == nil || r.machine == nil || r.rec.Phase != phaseMember || ctx.Err() != nil {
			return
		}
		c.keepSuiteClaims(r, suite, claims)
		if e := c.foundDue(r, c.mono()); e == nil || e.ref != ref {
			return
		}
		if err := c.refound(ctx, r, r.epochs[ref]); err != nil {
			c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to found the group that follows")
			r.tried["found"] = c.mono() + 5*time.Second
		}
	}
}

// refound makes a founding commit on a closed epoch, and queues it.
func (c *Client) refound(ctx context.Context, r *room, e *epoch) error {
	suite := e.group.ReInit().CipherSuite
	carried, err := c.carriedPackages(ctx, r, e, suite)
	if err != nil {
		return err
	}
	var packs []*mls.KeyPackage
	var welcomes []welcomeTarget
	for _, leaf := range rooms.GroupLeaves(e.group) {
		if leaf.Index == e.group.OwnLeafIndex() {
			continue
		}
		key := claimKey(leaf.Cred.User, leaf.Cred.Device)
		pack := carried[key]
		if have := r.suitePack(suite, leaf.Cred.User, leaf.Cred.Device); have != nil {
			pack = have.pack
		}
		if pack == nil {
			return fmt.Errorf("client: no key package of %s is at hand", leaf.Cred)
		}
		packs = append(packs, pack)
		welcomes = append(welcomes, welcomeTarget{User: leaf.Cred.User, Device: leaf.Cred.Device, KeyPackage: rooms.Bytes(pack.Ref())})
	}
	key, err := c.ident.SignatureKey(suite)
	if err != nil {
		return err
	}
	leaf, err := c.ident.LeafOptions(suite)
	if err != nil {
		return err
	}
	staged, err := e.group.ReInitGroup(key, leaf, packs, mls.CommitOptions{})
	if err != nil {
		return fmt.Errorf("client: found the group that follows in %s: %w", r.id, err)
	}
	info, err := staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true, Extensions: []mls.Extension{rooms.FoundingExtension(e.ref)}})
	if err != nil {
		return err
	}
	msg, err := mls.ParseMessage(info)
	if err != nil {
		return err
	}
	ref, err := rooms.RootRef(msg)
	if err != nil {
		return err
	}
	oldKey, err := c.ident.SignatureKey(e.group.CipherSuite())
	if err != nil {
		return err
	}
	consent, err := rooms.SignFounding(e.group, e.group.OwnLeafIndex(), oldKey, e.ref, ref)
	if err != nil {
		return err
	}
	own := &pending{Ref: rooms.Hash(ref), Parent: rooms.Hash(e.ref), Welcomes: welcomes, Founding: true, staged: staged}
	if own.Staged, err = staged.MarshalBinary(); err != nil {
		return err
	}
	next := staged.Merge()
	content := &rooms.CommitContent{
		Epoch: next.Epoch(), Parent: rooms.Hash(e.ref), ParentEvent: c.commitEvent(r, e.ref), Founding: true,
		GroupInfo: info, CoSignatures: []rooms.CoSignature{consent},
		Snapshot: &rooms.Snapshot{TreeHash: next.TreeHash(), AtCommit: rooms.Hash(ref)},
	}
	data := outData{Type: rooms.TypeCommit}
	if tree := next.RatchetTree(); len(tree) <= maxInlineTree {
		content.Snapshot.Tree = tree
		if data.Content, err = rooms.Encode(content); err != nil {
			return err
		}
	} else {
		data.Tree, data.Commit = tree, content
	}
	r.noteMine(own.Ref)
	r.own[ref], r.pending = own, own
	b := &batch{}
	if err := c.savePending(b, r, own); err != nil {
		return err
	}
	if _, err := c.addRow(b, r, kindCommit, stateReady, ref, data); err != nil {
		return err
	}
	b.then(r.notify)
	c.log.Info().Stringer("room_id", r.id).Str("ref", ref.Short()).Stringer("suite", suite).Int("devices", len(packs)+1).Msg("Founding the group that follows")
	return c.commitBatch(ctx, r, b)
}

// carriedPackages returns the key packages that ride with a ReInit and can be
// used: of the device that they name, by the keys that its user publishes.
func (c *Client) carriedPackages(ctx context.Context, r *room, e *epoch, suite mls.CipherSuite) (map[string]*mls.KeyPackage, error) {
	kept, err := c.storedCommit(ctx, r, e.ref)
	if err != nil {
		return nil, err
	}
	policy, err := e.policy()
	if err != nil {
		return nil, err
	}
	out := map[string]*mls.KeyPackage{}
	for _, raw := range kept.KeyPackages {
		msg, err := mls.ParseMessage(raw)
		if err != nil || msg.KeyPackage() == nil || msg.KeyPackage().Validate(c.mlsCfg, suite) != nil {
			continue
		}
		cred, err := rooms.CredentialOf(msg.KeyPackage().LeafNode)
		if err != nil {
			continue
		}
		if list := c.devs[cred.User]; list != nil && list.Check(cred, suite, policy.Verification) != nil {
			continue
		}
		out[claimKey(cred.User, cred.Device)] = msg.KeyPackage()
	}
	return out, nil
}

// uploadFounding stores the tree of a founding commit and returns the content
// that names it.
func (c *Client) uploadFounding(ctx context.Context, row *outRow) ([]byte, error) {
	file := row.data.File
	if file == nil {
		var err error
		if file, err = c.upload(ctx, row.data.Tree); err != nil {
			return nil, err
		}
		row.data.File = file
	}
	content := *row.data.Commit
	snapshot := *content.Snapshot
	snapshot.File = file
	content.Snapshot = &snapshot
	raw, err := rooms.Encode(&content)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	return raw, nil
}

// handleFounding checks a founding commit against the group that it follows and
// gives it to the room's coordination. Its epoch is entered with a Welcome.
func (c *Client) handleFounding(ctx context.Context, r *room, evt *Event, content *rooms.CommitContent, b *batch) error {
	if r.machine == nil {
		if r.rec.Phase == phaseRemoved {
			return nil
		}
		return errWaitGroup
	}
	content, err := c.inlined(r, content, evt)
	if err != nil {
		return err
	}
	info, err := mls.ParseMessage(content.GroupInfo)
	if err != nil {
		return err
	}
	ref, err := rooms.RootRef(info)
	if err != nil {
		return err
	}
	if r.machine.Held(ref) {
		c.setCommitEvent(r, ref, evt.ID)
		return nil
	}
	parent := federation.Ref(content.Parent)
	if !r.machine.Held(parent) {
		if group := info.GroupInfo().GroupID(); bytes.Equal(group, r.rec.Group) || r.former(group) {
			return nil // from before this device was in the group
		}
		r.wantCommit(content.ParentEvent, parent)
		return waitParent(parent)
	}
	tree, err := c.snapshotOf(r, content.Snapshot, evt)
	if err != nil {
		return err
	}
	next, err := mls.NewPublicGroup(c.mlsCfg, info, tree)
	if err != nil {
		return err
	}
	var old interface {
		rooms.Tree
		ReInit() *mls.ReInit
	}
	e, err := c.enter(ctx, r, parent, b)
	if err != nil && !errors.Is(err, errSelfRemoved) {
		return err
	}
	if e != nil {
		old = e.group
	} else {
		public, err := c.publicAt(ctx, r, parent)
		if err != nil {
			return err
		}
		if public == nil {
			return waitParent(parent)
		}
		old = public
	}
	facts, err := rooms.CheckFounding(rooms.CommitInput{
		Room: r.id, Sender: evt.Sender, Event: evt.ID, Content: content, Ref: ref, Tree: old, Parent: parent,
	}, old.ReInit(), next)
	if err != nil {
		return err
	}
	if level, ok := r.levelAt(parent); ok {
		r.noteSuccessor(old.GroupID(), next.GroupID(), level)
	}
	if r.foundOn == parent && r.foundAt > 0 && r.own[ref] == nil {
		r.foundAt = max(r.foundAt, c.mono()+foundWait) // somebody else does it
	}
	r.keepPublic(ref, next)
	kept := *content
	kept.Snapshot = &rooms.Snapshot{Tree: tree}
	return c.takeCommit(ctx, r, facts, &kept, evt, b)
}

// snapshotOf returns the tree that a snapshot names, once it is there.
func (c *Client) snapshotOf(r *room, s *rooms.Snapshot, evt *Event) ([]byte, error) {
	switch {
	case s == nil:
		return nil, errRefusedUpdate(rooms.RuleContentMalformed, "a founding commit without a tree")
	case s.File == nil:
		return s.Tree, nil
	}
	return c.mediaOf(r, s.File, evt, true)
}

// ownFounding reads back an own founding commit.
func (c *Client) ownFounding(own *pending) (*mls.StagedCommit, error) {
	if own.staged == nil {
		staged, err := mls.UnmarshalStagedCommit(c.mlsCfg, nil, own.Staged)
		if err != nil {
			return nil, fmt.Errorf("client: own founding commit %s: %w", federation.Ref(own.Ref).Short(), err)
		}
		own.staged = staged
	}
	return own.staged, nil
}

// foundingWelcome takes a Welcome into the group that follows one this device is
// in. It reports false for any other Welcome.
func (c *Client) foundingWelcome(ctx context.Context, r *room, evt *Event, content *rooms.WelcomeContent, b *batch) (bool, error) {
	ref := federation.Ref(content.Ref)
	if r.epochs[ref] != nil {
		return true, nil
	}
	known, ok := r.machine.Known(ref)
	if !ok {
		if r.machine.Held(ref) || r.state.membership(evt.Sender) != rooms.MembershipJoin {
			return false, nil
		}
		if r.machine.Beside(ref, math.MaxUint64) {
			return false, nil // on a branch that the room left
		}
		// It may have come before the commit that it belongs to: across a cut, long
		// before. That is asked for, and it may come by any other way.
		commit, ok := r.fetched[content.CommitEvent]
		if !ok {
			key := "event:" + string(content.CommitEvent)
			if _, gone := r.tried["need/"+key]; !gone {
				r.want(key, &need{event: content.CommitEvent, late: true})
			}
			return true, waitWelcomed(ref, content.CommitEvent)
		}
		if commit.Type != rooms.TypeCommit {
			return false, nil
		}
		if founding, err := rooms.DecodeCommit(commit.Content); err != nil || !founding.Founding {
			return false, nil
		}
		return true, waitParent(ref)
	}
	if known.Founding == nil {
		return false, nil
	}
	if r.pending != nil && r.pending.External {
		return true, &errWait{"decided:"}
	}
	old := r.epochs[known.Parent]
	if old == nil {
		return true, errRefusedUpdate(rooms.RuleWelcomeNotForUs, "the group before the one it opens is not held any more")
	}
	tree, err := c.snapshotOf(r, &content.Snapshot, evt)
	if err != nil {
		return true, err
	}
	return true, c.joinSuccessor(ctx, r, evt, content, known, old, tree, b)
}

// joinSuccessor enters the epoch of a founding commit.
func (c *Client) joinSuccessor(ctx context.Context, r *room, evt *Event, content *rooms.WelcomeContent, known *federation.Commit, old *epoch, tree []byte, b *batch) error {
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
	packRef, lastResort := bundle.Ref(), bundle.KeyPackage().LastResort()
	group, err := mls.JoinWelcome(c.mlsCfg, msg, bundle, mls.JoinOptions{RatchetTree: tree, Successor: old.group})
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
	public, err := c.publicAt(ctx, r, known.Ref)
	if err != nil {
		return err
	}
	if public == nil || !bytes.Equal(group.GroupContext(), public.GroupContext()) || !bytes.Equal(group.ConfirmationTag(), public.ConfirmationTag()) {
		return errRefusedUpdate(rooms.RuleWelcomeNotForUs, "it opens another epoch than its commit makes")
	}
	if err := c.firstTimeIn(ctx, r, known.Ref); err != nil {
		return err
	}
	b.do(func(ctx context.Context) error { return c.ident.ConsumeBundle(ctx, packRef) })
	e := &epoch{ref: known.Ref, parent: known.Parent, number: group.Epoch(), group: group}
	c.putEpoch(b, r, e)
	b.entered = append(b.entered, e)
	b.then(r.notify)
	c.enteredBy(r, shared)
	if !r.machine.Extends(r.machine.Head(), known.Ref) {
		return nil // a founding that is not, or not yet, on the head
	}
	r.rec.Renew = r.rec.Renew || lastResort // others joined with the same keys
	if r.rec.Phase == phaseJoining {
		r.rec.Phase, r.joinAt = phaseMember, 0
	}
	return c.catchUp(ctx, r, known.Parent, b)
}

// catchUp enters the epochs from a commit up to the head, of which one was not
// this device's to read until now.
func (c *Client) catchUp(ctx context.Context, r *room, from federation.Ref, b *batch) error {
	r.planned = false
	for _, ref := range r.machine.Path(from, r.machine.Head()) {
		e, err := c.enter(ctx, r, ref, b)
		if errors.Is(err, errSelfRemoved) {
			by := id.UserID("")
			if known, ok := r.machine.Known(ref); ok {
				by = id.UserID(known.AuthorUser)
			}
			c.removed(r, by, b)
			return nil
		}
		if err != nil {
			return err
		}
		if e == nil {
			break
		}
		c.noteRemovals(r, e)
		c.settleCommit(r, e, b)
		c.tellEpoch(r, e, false)
		if err := c.entered(r, e, b); err != nil {
			return err
		}
	}
	b.machine = true
	b.then(func() {
		c.poke()
		notifyChan(c.outWake)
	})
	return nil
}

// entered does what follows when the head is in another group than before.
func (c *Client) entered(r *room, e *epoch, b *batch) error {
	group := e.group.GroupID()
	if bytes.Equal(r.rec.Group, group) || r.rec.Phase != phaseMember && r.rec.Phase != phaseJoining {
		return nil
	}
	var old *epoch // the one that the ReInit made
	for _, o := range r.epochs {
		if bytes.Equal(o.group.GroupID(), r.rec.Group) && o.group.ReInit() != nil && bytes.Equal(o.group.ReInit().GroupID, group) {
			old = o
		}
	}
	r.noteGroup(group)
	if len(r.rec.Group) > 0 {
		r.noteFormer(r.rec.Group)
	}
	r.rec.Group, r.rec.Bound = group, group
	r.claimed, r.badSince = map[string]*claim{}, map[string]*badLeaf{}
	r.foundAt, r.unreadSince, r.planned = 0, 0, false
	r.rec.LastPath, r.rec.Sent = c.now().Unix(), 0
	told := &SuiteChanged{Room: r.id, To: e.group.CipherSuite()}
	if known, ok := r.machine.Known(e.ref); ok {
		told.By = id.UserID(known.AuthorUser)
	}
	if old != nil {
		told.From = old.group.CipherSuite()
		if err := c.renewAdmissions(r, old, e, b); err != nil {
			return err
		}
	}
	c.tell(told)
	if s := r.rec.Suite; s != nil {
		if s.Suite == e.group.CipherSuite() {
			c.endSuite(r, nil)
		} else {
			c.endSuite(r, fmt.Errorf("%w: the room moved to %s meanwhile", ErrSuite, e.group.CipherSuite()))
		}
	}
	c.log.Info().Stringer("room_id", r.id).Stringer("suite", told.To).Msg("The room goes on in a new group")
	return nil
}

// renewAdmissions signs again, for the new group, whom this user had admitted to
// the old one and who has not come in yet: an admission names its group.
func (c *Client) renewAdmissions(r *room, old, e *epoch, b *batch) error {
	policy, err := old.policy()
	if err != nil {
		return err
	}
	users := make([]id.UserID, 0, len(r.rec.Admissions))
	for user := range r.rec.Admissions {
		users = append(users, user)
	}
	slices.Sort(users)
	for _, user := range users {
		own := false
		r.keepAdmissions(user, slices.DeleteFunc(r.admissionsOf(user), func(a rooms.Admission) bool {
			if !bytes.Equal(a.Group, old.group.GroupID()) {
				return false
			}
			by, err := rooms.VerifyAdmission(old.group, policy, &a, c.view(r, old.group).RemovedSince)
			own = own || err == nil && by == c.UserID()
			return true // it does for the old group only
		}))
		if !own {
			continue
		}
		if err := c.admitAgain(r, e, user, b); err != nil {
			return err
		}
	}
	if r.rec.Suite == nil {
		return nil
	}
	for _, d := range r.rec.Suite.Drop { // whom we left behind may come back
		if _, done := r.rec.Admissions[d.User]; !done {
			if err := c.admitAgain(r, e, d.User, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// admitAgain admits a user who is in the room, and not in the group, to it.
func (c *Client) admitAgain(r *room, e *epoch, user id.UserID, b *batch) error {
	if m := r.state.membership(user); m != rooms.MembershipJoin && m != rooms.MembershipInvite || len(rooms.LeavesOf(e.group, user)) > 0 {
		return nil
	}
	if err := c.admitUser(r, e, user); err != nil {
		return err
	}
	_, err := c.postAdmission(b, r, e, user)
	return err
}

// unwelcomed looks after a founding on the head into which this device has no
// Welcome. It waits a while. Then, if others are in, it joins by itself; if
// nobody is, it says so, and another member founds the group.
func (c *Client) unwelcomed(ctx context.Context, r *room, ref federation.Ref) error {
	now := c.mono()
	if r.unreadSince == 0 {
		r.unreadSince = now
	}
	if now < r.unreadSince+foundWelcomeWait {
		return nil
	}
	known, ok := r.machine.Known(ref)
	if !ok {
		return nil
	}
	if !slices.Contains(r.machine.NeedsVouching(), ref) {
		r.unreadSince = 0
		c.stuck(r, ref, "")
		return c.commitBatch(ctx, r, &batch{})
	}
	if _, said := r.rec.Failed[ref.String()]; said {
		return nil
	}
	b := &batch{}
	c.cannotApply(r, ref, errRefusedUpdate(rooms.RuleWelcomeNotForUs, "no Welcome into the new group came"))
	if err := c.object(r, ref, known.Parent, b); err != nil {
		return err
	}
	return c.commitBatch(ctx, r, b)
}
