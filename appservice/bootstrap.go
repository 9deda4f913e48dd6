package appservice

import (
	"context"
	"errors"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A module that comes into a room late may not get at the group's beginning. It
// then starts at the head that another module publishes. Such a head describes
// a whole group, with its policy and its list of sequencers, and any member can
// post one; nothing in it shows that it is the room's group. So it counts only
// from whom the module would believe the beginning itself.

// noteHead keeps a head, for a start without the group's beginning. Those that
// a start can rest on are never crowded out by others.
func (r *room) noteHead(sender id.UserID, head *rooms.HeadContent, now time.Duration) {
	if r.heads[sender] == nil && len(r.heads) >= rooms.MaxSequencers {
		if !r.mayCount(r.state, sender) {
			return
		}
		for other := range r.heads {
			if !r.mayCount(r.state, other) {
				delete(r.heads, other)
				r.looks.Forget(other)
				break
			}
		}
		if len(r.heads) >= rooms.MaxSequencers {
			return
		}
	}
	r.heads[sender], r.tryBootstrap, r.lookBefore = head, true, true
	r.looks.Note(sender, now)
}

// mayCount reports whether a head of this sender can be of use: to start at, or as that
// of a module of the group's list.
func (r *room) mayCount(s *rooms.RoomState, sender id.UserID) bool {
	return r.lists(sender) || r.loaded && s.MayShow(sender)
}

// lists reports whether a user is a module of a list in force.
func (r *room) lists(user id.UserID) bool {
	return slices.ContainsFunc(r.inForce(), func(s federation.Sequencer) bool { return id.UserID(s.User) == user })
}

// inForce returns the modules, by key, of the lists in force: of the one that governs
// what follows the head, then of those below it, down to what is final. As long as a
// list change is not final, the old list alone can make it so.
func (r *room) inForce() (list federation.List) {
	if r.m == nil {
		return nil
	}
	final, head := r.m.NewestFinal(), r.m.Head()
	var last federation.Ref
	for _, ref := range slices.Backward(append([]federation.Ref{final}, append(r.m.Path(final, head), head)...)) {
		config, _ := r.m.ConfigAt(ref)
		if config == last {
			continue
		}
		last = config
		policy, _ := r.m.PolicyAt(ref)
		for _, s := range policy.Sequencers {
			if _, listed := list.Rank(s.ReceiptKey); !listed {
				list = append(list, s)
			}
		}
	}
	return list
}

// beginning is a head at which the module could start.
type beginning struct {
	head   *rooms.HeadContent
	group  *mls.PublicGroup
	policy *rooms.Policy
	base   federation.Base
}

// beginAt checks what a head describes against itself and the room's state. It
// returns nil without an error if the head holds nothing to begin with; coming
// means that its tree is being fetched.
func (e *Engine) beginAt(r *room, head *rooms.HeadContent) (b *beginning, coming bool, err error) {
	s := head.Snapshot
	if head.Accepted == nil || head.Root == nil || len(head.GroupInfo) == 0 || s == nil || s.AtCommit != head.Accepted.Ref {
		return nil, false, nil
	}
	gi, err := head.Parse()
	if err != nil {
		return nil, false, err
	}
	tree := []byte(s.Tree)
	if s.File != nil {
		data, bad, ok := e.media.get(s.File.SHA256)
		if !ok {
			e.download(r, s.File)
			return nil, true, nil
		}
		if bad != nil {
			return nil, false, bad
		}
		tree = data
	}
	b = &beginning{head: head}
	if b.group, err = mls.NewPublicGroup(e.mls, gi, tree); err != nil {
		return nil, false, err
	}
	if b.policy, err = rooms.PolicyOf(b.group); err != nil {
		return nil, false, err
	}
	switch {
	case b.policy.Room != r.id:
		return nil, false, refusal(string(rooms.RuleRoomNotGroup), "the group is bound to room %s", b.policy.Room)
	case !r.state.MayFound(b.policy.Creator):
		return nil, false, refusal(ruleRootNotOwned, "the group names %s as creator, who neither created the room nor may change its encryption", b.policy.Creator)
	}
	for _, l := range rooms.GroupLeaves(b.group) {
		// One who left may still be in the tree, until a Remove is accepted.
		if r.state.Members[l.Cred.User].Membership == "" {
			return nil, false, refusal(string(rooms.RuleMemberNotInRoom), "the group has %s, who was never in the room", l.Cred.User)
		}
	}
	if len(head.Proof) > 0 {
		// A proof that shows too little is no reason to stay out; a wrong one is.
		if _, err := head.Check(r.id, head.Proof); err != nil && rooms.RuleOf(err) != rooms.RuleFinalNotProven {
			return nil, false, err
		}
	}
	config := head.Cfg
	if config.IsZero() {
		config = head.Root.Ref
	}
	b.base, err = rooms.BaseFacts(b.group, federation.Ref(head.Accepted.Ref), head.Accepted.Event, head.Era, federation.Ref(config))
	return b, false, err
}

// bootstrap starts to follow a group at the head that another module publishes,
// where the group's beginning cannot be had. The module then serves newcomers;
// it signs only if its key is in the list there.
func (e *Engine) bootstrap(ctx context.Context, r *room) error {
	log := roomLog(ctx, r.id)
	var senders []id.UserID
	seen := make(map[id.UserID]bool)
	for sender := range r.heads {
		if r.state.MayShow(sender) {
			senders, seen[sender] = append(senders, sender), true
		}
	}
	var best *beginning
	for len(senders) > 0 {
		head := r.heads[senders[0]]
		b, coming, err := e.beginAt(r, head)
		switch {
		case err != nil:
			e.d.Metrics.Rejected(ruleOf(err))
			log.Warn().Err(err).Stringer("sender", senders[0]).Msg("Cannot start at the head that another module publishes")
		case coming:
			r.tryBootstrap = true
		case b != nil:
			if best == nil || b.base.Epoch > best.base.Epoch || b.base.Epoch == best.base.Epoch && compareRefs(b.base.Ref, best.base.Ref) < 0 {
				best = b
			}
			// What the group's own sequencers say of the same group counts, too:
			// the module that is believed first may have been gone for long.
			for _, s := range b.policy.Sequencers {
				user := id.UserID(s.User)
				if other := r.heads[user]; other != nil && !seen[user] && other.Root != nil && other.Root.Ref == head.Root.Ref {
					senders, seen[user] = append(senders, user), true
				}
			}
		}
		senders = senders[1:]
	}
	if best == nil || r.tryBootstrap {
		return nil
	}
	return e.update(ctx, r, func(ctx context.Context) error {
		m, err := federation.New(e.machineConfig(r), best.base)
		if err != nil {
			log.Warn().Err(err).Msg("Cannot start at the head that another module publishes")
			return nil
		}
		r.m, r.status, r.dirty, r.stepped, r.planDirty, r.retryWaiting = m, store.RoomServing, true, true, true, true
		r.data.Root, r.data.Late, r.lookBefore = best.head.Root, true, true
		if err := e.setBegan(ctx, r.id, &began{Base: best.base.Ref, Info: best.head.GroupInfo}); err != nil {
			return err
		}
		if best.head.Root.Event != "" {
			e.fetchEvent(r, best.head.Root.Event) // to see whether it is there after all
		}
		log.Info().Str("ref", best.base.Ref.Short()).Uint64("epoch", best.base.Epoch).Msg("Joined a room late, following its group from the published head")
		return e.keepGroup(ctx, r, best.base.Ref, best.group, true)
	})
}

func compareRefs(a, b federation.Ref) int { return compareStrings(string(a[:]), string(b[:])) }

// replaceable reports whether the group that the module follows can give way to
// a beginning that was found later: it started at a published head, has not seen
// the beginning that head names, and has signed nothing since.
func (e *Engine) replaceable(ctx context.Context, r *room) (bool, error) {
	if !r.data.Late {
		return false, nil
	}
	_, err := e.d.Store.NewestReceipt(ctx, r.id, string(e.d.HS.UserID()))
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	return false, err
}

// forgetGroup drops the group that the module follows, and has all that was
// held against it looked at again.
func (e *Engine) forgetGroup(ctx context.Context, r *room) error {
	refs, err := e.d.Store.GroupRefs(ctx, r.id)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if err := e.d.Store.DeleteGroup(ctx, r.id, ref); err != nil {
			return err
		}
	}
	if err := e.d.Store.ReopenRoom(ctx, r.id); err != nil {
		return err
	}
	if err := e.d.Store.Unset(ctx, beganKey(r.id)); err != nil {
		return err
	}
	r.m, r.dirty, r.resumed, r.nextAct = nil, true, false, 0
	r.groups, r.wants = make(map[federation.Ref]*mls.PublicGroup), make(map[federation.Ref]*want)
	r.proposals, r.leaving, r.proposed = make(map[federation.Ref][]heldProposal), nil, make(map[string]bool)
	r.anew = again{}
	r.data = roomData{Announced: r.data.Announced, Loose: r.data.Loose, Compared: r.data.Compared, Key: r.data.Key, Restored: r.data.Restored, InvitedAgain: r.data.InvitedAgain}
	r.looks, r.shownMark, r.publication = rooms.Looks{}, shownMark{}, publication{}
	return nil
}
