package client

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// checkCommit holds a validated commit against the group's policy and this
// device's view of the room, and returns what the coordination has to know.
//
// An error with facts is this device's own opinion; an error without means
// that the commit is no event, for everyone.
func (c *Client) checkCommit(ctx context.Context, r *room, tree rooms.Tree, staged rooms.Staged, next groupInfoVerifier, ref federation.Ref, content *rooms.CommitContent, evt *Event) (*federation.Commit, error) {
	if err := checkGroupInfo(staged, next, content); err != nil {
		return nil, err
	}
	checked, err := rooms.CheckCommit(rooms.CommitInput{
		Room: r.id, Sender: evt.Sender, Event: evt.ID, Content: content, Ref: ref,
		Tree: tree, Parent: federation.Ref(content.Parent), Staged: staged, View: c.view(r, tree),
	})
	if rooms.IsOpinion(err) {
		// The reason may be a state event that has not come yet: look once.
		if r.first("view/" + ref.String()) {
			r.state.lose()
			r.want("state", &need{state: true})
			return nil, &errWait{"state:" + ref.String()}
		}
		return checked.Commit, err
	}
	if err != nil {
		return nil, err
	}
	if err := c.checkRejoin(ctx, r, tree, checked, staged); err != nil {
		if rooms.IsOpinion(err) {
			return checked.Commit, err
		}
		return nil, err
	}
	return checked.Commit, nil
}

// first tells whether something is done for a reason for the first time.
func (r *room) first(reason string) bool {
	if r.told[reason] {
		return false
	}
	if r.told == nil || len(r.told) >= maxTold {
		r.told = map[string]bool{} // rather twice than not at all
	}
	r.told[reason] = true
	return true
}

// maxTold bounds what is done once for each reason.
const maxTold = 4096

// groupInfoVerifier is an epoch: *mls.Group or *mls.PublicGroup.
type groupInfoVerifier interface {
	VerifyGroupInfo(m *mls.Message) error
}

// checkGroupInfo checks that the GroupInfo beside a commit is signed by the
// committer for the very epoch the commit makes. A commit without is no event:
// a server that swaps the confirmation tag of an honest commit cannot sign one.
func checkGroupInfo(staged rooms.Staged, next groupInfoVerifier, content *rooms.CommitContent) error {
	info, err := mls.ParseMessage(content.GroupInfo)
	if err != nil {
		return err
	}
	if info.GroupInfo() == nil {
		return &rooms.Refusal{Rule: rooms.RuleContentMalformed, What: "group_info of a commit", Err: errNotGroupInfo}
	}
	if reflect.ValueOf(next).IsNil() {
		return nil // this device is removed and does not learn the next epoch
	}
	if info.GroupInfo().Signer() != staged.Committer() {
		return &rooms.Refusal{Rule: rooms.RuleContentMalformed, What: "group_info of a commit", Err: errNotByCommitter}
	}
	return next.VerifyGroupInfo(info)
}

// view is what this device knows of the room beside the group.
func (c *Client) view(r *room, tree rooms.Tree) rooms.View {
	state := r.state.view
	gone := func(user id.UserID) bool { return !state.InRoom(user) }
	return rooms.View{
		Gone: gone,
		MayRemove: func(author id.UserID, leaf rooms.GroupLeaf) bool {
			if gone(leaf.Cred.User) {
				return true
			}
			for index, node := range tree.Members() { // a device with two leaves
				if index == leaf.Index {
					continue
				}
				if cred, err := rooms.CredentialOf(node); err == nil && cred.User == leaf.Cred.User && cred.Device == leaf.Cred.Device {
					return true
				}
			}
			list := c.devs[leaf.Cred.User]
			if list == nil {
				return true // nothing speaks against it
			}
			policy, err := rooms.PolicyOf(tree)
			if err != nil || list.Check(&leaf.Cred, tree.CipherSuite(), policy.Verification) != nil {
				return true
			}
			return author != "" && state.CanKick(author, leaf.Cred.User)
		},
		MeetsJoinRule: func(user id.UserID) bool {
			return state.Members[user].Membership == rooms.MembershipJoin && state.JoinRule != "invite" && state.JoinRule != "private"
		},
		RemovedSince: func(user id.UserID, since federation.Ref) bool { return c.removedSince(r, user, since) },
	}
}

// removedSince tells whether a user was removed above a commit. What lies too
// far back to be known counts as before every removal that is.
func (c *Client) removedSince(r *room, user id.UserID, since federation.Ref) bool {
	at, removed := r.rec.Removals[user]
	if !removed {
		return false
	}
	level, ok := r.levelAt(since)
	return !ok || level < at
}

// checkProposal checks a module's proposal before this device commits it.
func (c *Client) checkProposal(r *room, e *epoch, proposal *mls.ProposalMessage) error {
	view := c.view(r, e.group)
	return rooms.CheckExternalProposal(proposal.Proposal, proposal.Sender, func(index mls.LeafIndex) bool {
		leaf, ok := e.group.Leaf(index)
		if !ok {
			return false
		}
		cred, err := rooms.CredentialOf(leaf)
		if err != nil {
			return true
		}
		return view.Gone(cred.User)
	})
}

// maxRemovals bounds the users of whom a room remembers when they were removed.
const maxRemovals = 4096

// maxRoots bounds the founding events noted before this device has a group.
const maxRoots = 16

// handleRoot notes the founding event of the group.
func (c *Client) handleRoot(r *room, evt *Event, content *rooms.CommitContent) error {
	info, err := mls.ParseMessage(content.GroupInfo)
	if err != nil {
		return err
	}
	ref, err := rooms.RootRef(info)
	if err != nil {
		return err
	}
	if r.machine != nil && !r.machine.Held(ref) || r.machine == nil && len(r.rec.Events) >= maxRoots {
		return nil // a group that this device does not follow
	}
	c.setCommitEvent(r, ref, evt.ID)
	return nil
}

// ruleKeyLost is the rule of a module that announces another receipt key than
// the group has.
const ruleKeyLost = "client/receipt-key-lost"

// verificationOf says how sure we are of a credential's device.
func verificationOf(list *identity.UserDevices, cred *rooms.Credential, cs mls.CipherSuite) Verification {
	if list == nil {
		return Unverified
	}
	if list.MasterState == identity.MasterChanged {
		return ChangedUser
	}
	device := list.Devices[cred.Device]
	if device == nil || !device.CrossSigned || !bytes.Equal(device.MLSKeys[cs], cred.Key) {
		return Unverified
	}
	if device.Verified {
		return VerifiedUser
	}
	return VerifiedDevice
}

// forgetCaused drops the users for whom nothing is left to do.
func (c *Client) forgetCaused(r *room, leaves []rooms.GroupLeaf) {
	if len(r.rec.Caused) == 0 || !r.planned {
		return
	}
	todo, inGroup := map[id.UserID]bool{}, map[id.UserID]bool{}
	for _, add := range r.todo.Adds {
		todo[add.User] = true
	}
	for _, rm := range r.todo.Removes {
		todo[rm.Cred.User] = true
	}
	for _, leaf := range leaves {
		inGroup[leaf.Cred.User] = true
	}
	for user := range r.rec.Caused {
		gone := r.state.membership(user) == rooms.MembershipLeave || r.state.membership(user) == rooms.MembershipBan
		if !todo[user] && (inGroup[user] || gone) {
			delete(r.rec.Caused, user)
		}
	}
}

func hasLeaf(leaves []rooms.GroupLeaf, user id.UserID, device id.DeviceID) bool {
	return slices.ContainsFunc(leaves, func(l rooms.GroupLeaf) bool { return l.Cred.User == user && l.Cred.Device == device })
}

// planEpoch returns the epoch whose members are compared with the room's: the one
// that a commit is made on.
func (c *Client) planEpoch(r *room) *epoch {
	if e := c.buildOn(r, c.mono()); e != nil {
		return e
	}
	return r.epochs[r.machine.SafeHead()]
}

// leavesIn returns the leaves of an epoch that is planned on, which stay the same: reading them all takes
// milliseconds in a group of thousands, and plan is called for every event.
func (r *room) leavesIn(e *epoch) []rooms.GroupLeaf {
	if r.leaves == nil || r.leavesOf != e.ref {
		r.leaves, r.leavesOf = rooms.GroupLeaves(e.group), e.ref
	}
	return r.leaves
}

// plan compares who should be in the group with who is, and sets the barrier
// and the committer timer by it.
func (c *Client) plan(r *room) {
	e := c.planEpoch(r)
	if e == nil || !r.state.Known {
		return
	}
	policy, err := e.policy()
	if err != nil {
		return
	}
	if r.staleAt > 0 && c.mono() >= r.staleAt {
		r.staleAt, r.listed = 0, false
		for user := range r.devices {
			if list := c.devs[user]; list == nil || list.Stale {
				delete(r.devices, user) // asked again, while messages go on
			}
		}
	}
	use, sends := r.sendEpoch(), federation.Ref{}
	if use != nil {
		sends = use.ref
	}
	same := r.planned && r.plannedOn == e.ref && r.plannedFor == sends
	if same && r.listed {
		return // all below would be as it was
	}
	leaves := r.leavesIn(e)
	var users []id.UserID
	listed := map[id.UserID]bool{}
	for user := range r.state.view.Members {
		if r.state.view.InRoom(user) && !slices.Contains(r.state.view.Functional, user) && !isBot(user) {
			users = append(users, user)
			listed[user] = true
		}
	}
	inGroup := map[id.UserID]bool{}
	for _, leaf := range leaves {
		inGroup[leaf.Cred.User] = true
		if leaf.Cred.User != "" && !listed[leaf.Cred.User] && r.state.view.InRoom(leaf.Cred.User) {
			users = append(users, leaf.Cred.User)
			listed[leaf.Cred.User] = true
		}
	}
	complete := c.wantUsers(r, users)
	r.listed = complete
	if same {
		return
	}
	in := rooms.Inputs{State: r.state.view, Policy: policy, Leaves: leaves, Devices: map[id.UserID][]rooms.Device{}, Admitted: map[id.UserID]bool{}}
	cs := e.group.CipherSuite()
	var unchecked []id.UserID
	for _, user := range users {
		list := c.devs[user]
		if list == nil || !r.devices[user] {
			continue
		}
		if list.Stale && (inGroup[user] || len(list.Devices) > 0 || !list.Nothing) {
			if at := c.mono() + identity.StaleAfter; r.staleAt == 0 {
				r.staleAt = at
			}
			if len(list.Devices) == 0 {
				// Nothing is known: a server that is down logs nobody out, but
				// a leaf that cannot be checked gets no messages either.
				if inGroup[user] {
					unchecked = append(unchecked, user)
				}
				continue
			}
		}
		entries := []rooms.Device{}
		for _, device := range list.SortedDevices() {
			entry := rooms.Device{Device: device.ID, Key: device.MLSKeys[cs], OtherSuite: device.MLSKeys[cs] == nil && len(device.MLSKeys) > 0}
			if entry.Key != nil && !policy.MayUse(cs) && !hasLeaf(leaves, user, device.ID) && !slices.ContainsFunc(policy.SuiteFloor, func(s rooms.Suite) bool { return device.MLSKeys[s] != nil }) {
				entry.Key, entry.OtherSuite = nil, true // the room moves on without it
			}
			if entry.Key != nil {
				entry.Problem = list.Check(&rooms.Credential{User: user, Device: device.ID, Key: entry.Key}, cs, policy.Verification)
			}
			if c.without[probe.Signed] && rooms.RuleOf(entry.Problem) == rooms.RuleDeviceKeyNotCrossSigned {
				entry.Problem = nil
			}
			entries = append(entries, entry)
		}
		if list.Stale {
			// A device that is not in what was known of a server that cannot be asked may have come since, as others
			// saw who added it: it is not taken out, but gets no messages from here either.
			for _, leaf := range leaves {
				if leaf.Cred.User == user && list.Devices[leaf.Cred.Device] == nil && r.badSince[leaf.Cred.String()] == nil {
					entries = append(entries, rooms.Device{Device: leaf.Cred.Device, Key: leaf.Cred.Key})
					unchecked = append(unchecked, user)
				}
			}
		}
		in.Devices[user] = entries
	}
	for _, user := range users {
		if _, admitted := r.rec.Admissions[user]; c.without[probe.Admission] && !admitted && !inGroup[user] {
			_ = c.admitUser(r, e, user)
		}
	}
	for user := range r.rec.Admissions {
		if inGroup[user] {
			continue // nobody has to let them in
		}
		admission, err := c.letsIn(r, e, policy, user)
		if err != nil {
			c.warn(r, "admitted/"+string(user)+"/"+c.devs[user].MasterKey, &Warning{Sender: user, Rule: ruleOf(err), Kind: IdentityWarning, Text: err.Error()})
		}
		if admission != nil {
			in.Admitted[user] = true
		}
	}
	r.todo = rooms.MakePlan(in)
	r.planned, r.plannedOn, r.plannedFor = complete, e.ref, sends
	for _, rm := range r.todo.Removes {
		if rooms.RuleOf(rm.Err) == rooms.RuleIdentityChanged {
			c.warn(r, "identity/"+rm.Cred.String(), &Warning{Sender: rm.Cred.User, Rule: string(rooms.RuleIdentityChanged), Kind: IdentityWarning, Text: rm.Err.Error()})
		}
	}
	if lost := c.lostKeys(r, e); len(lost) > 0 && policy.IsAdmin(c.UserID()) {
		c.warn(r, fmt.Sprintf("key-lost/%x", lost), &Warning{
			Rule: ruleKeyLost, Kind: KeyLostWarning, Text: fmt.Sprintf("the module has lost its receipt key and can accept nothing; an admin of the room, as you are, moves it to the new key: mls-proxy repair '%s'", r.id),
		})
	}
	c.choose(r, e, policy, leaves)
	c.forgetCaused(r, leaves)
	r.blocked = nil
	if use == e || use == nil {
		// Nothing is sent in an epoch that cannot be opened, but commits go on below it.
		r.blocked = barrier(r.todo)
	} else {
		// What is committed already, but may not be used yet, lifts no barrier.
		in.Leaves = rooms.GroupLeaves(use.group)
		r.blocked = barrier(rooms.MakePlan(in))
	}
	if c.without[probe.Barrier] {
		r.blocked = nil
	}
	for _, user := range unchecked {
		r.blocked = append(r.blocked, uncheckedBlock(user))
	}
	if r.machine.SafeHead() != r.machine.Head() {
		r.blocked = append(r.blocked, Block{Kind: BlockDoubt, Text: "a commit is in doubt"})
	}
	if r.planned && len(r.blocked) == 0 {
		notifyChan(c.outWake)
	}
	r.notify()
}
