package client

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// handleCommit checks a commit against its parent's epoch and gives it to the
// room's coordination. It is staged only: its epoch is entered when the head
// moves there.
func (c *Client) handleCommit(ctx context.Context, r *room, evt *Event, b *batch) error {
	content, err := rooms.DecodeCommit(evt.Content)
	if err != nil {
		return err
	}
	switch {
	case content.Founding:
		return c.handleFounding(ctx, r, evt, content, b)
	case content.Epoch == 0:
		return c.handleRoot(r, evt, content)
	}
	if r.machine == nil {
		if r.rec.Phase == phaseRemoved {
			return nil
		}
		if len(r.fetched) < maxNeeds {
			r.fetched[evt.ID] = evt // a Welcome may have come before it
		}
		return errWaitGroup
	}
	opened, err := c.open(r, content, evt)
	if err != nil {
		return err
	}
	content, msg, ref := opened.content, opened.msg, opened.ref
	if r.machine.Held(ref) {
		c.setCommitEvent(r, ref, evt.ID)
		return nil
	}
	parent := federation.Ref(content.Parent)
	held := r.machine.Held(parent) || r.epochs[parent] != nil
	if !held {
		if o, ok, err := c.outside(r, msg, content); err != nil || ok {
			if err != nil || o == nil {
				return err
			}
			acts, err := r.machine.Step(*o)
			if err != nil {
				return err
			}
			b.machine = true
			return c.act(ctx, r, acts, b)
		}
	}
	if r.rec.Phase == phaseMember && r.before(msg.GroupID(), content.Epoch) {
		return nil // from before this device was in the group
	}
	if !held {
		r.wantCommit(content.ParentEvent, parent)
		if e := r.head(); e != nil {
			c.look(r, e.ref, lookPages, false)
		}
		return waitParent(parent)
	}
	own := r.own[ref]
	var staged *mls.StagedCommit
	var tree rooms.Tree
	if own != nil && own.External {
		if staged, tree, err = c.ownExternal(own); err != nil {
			return err
		}
	} else {
		e, err := c.enter(ctx, r, parent, b)
		if err != nil && !errors.Is(err, errSelfRemoved) {
			return err
		}
		if e == nil {
			return c.followPublic(ctx, r, parent, msg, ref, content, evt, nil, b)
		}
		tree = e.group
		if own == nil {
			c.checkOwnCommit(r, e, ref, msg, evt.ID)
		}
		if staged, err = c.stage(r, e, ref, msg, content.Proposals); err != nil {
			return c.followPublic(ctx, r, parent, msg, ref, content, evt, err, b)
		}
	}
	if staged.External() && own == nil && staged.Merge() == nil {
		// It puts this device out, so its author's leaf is seen from outside only.
		return c.followPublic(ctx, r, parent, msg, ref, content, evt, nil, b)
	}
	facts, err := c.checkCommit(ctx, r, tree, staged, staged.Merge(), ref, content, evt)
	if facts == nil {
		return err
	}
	if err != nil {
		// This device's own opinion: the commit is a fact all the same, and it
		// is used if others vouch for it.
		c.cannotApply(r, ref, err)
	}
	r.staged[ref] = staged
	return c.takeCommit(ctx, r, facts, content, evt, b)
}

// outside reports whether a commit whose parent is not held never will be: it is
// from before this device was in the group, or on a branch that the room left. If
// the coordination has to know of it, what it is told is returned. Epochs compare
// within a group: those of the next begin again.
func (c *Client) outside(r *room, msg *mls.Message, content *rooms.CommitContent) (*federation.Outside, bool, error) {
	base, _ := r.machine.ScopeAt(r.machine.Base())
	var past []byte
	if _, inTree := r.level(msg.GroupID(), content.Epoch); !inTree && r.former(msg.GroupID()) {
		past = msg.GroupID()
	}
	o, ok, err := rooms.OutsideCommit(content, base.Group, past)
	switch {
	case err != nil || !ok:
		return nil, false, err
	case !o.Past && r.machine.TooOld(o.Epoch):
		return nil, true, nil
	case o.Past || r.machine.Beside(o.Parent, o.Epoch):
		return &o, true, nil
	}
	return nil, false, nil
}

// takeCommit gives a checked commit to the coordination.
func (c *Client) takeCommit(ctx context.Context, r *room, facts *federation.Commit, content *rooms.CommitContent, evt *Event, b *batch) error {
	acts, err := r.machine.Step(facts)
	if err != nil {
		delete(r.staged, facts.Ref)
		return err
	}
	b.machine = true
	c.setCommitEvent(r, facts.Ref, evt.ID)
	c.keepCommit(b, r, facts.Ref, content)
	if own := r.own[facts.Ref]; own != nil && own.staged != nil && c.without[probe.Accept] {
		c.queueWelcomes(r, own, &epoch{ref: facts.Ref, group: own.staged.Merge()}, b)
	}
	if err := c.act(ctx, r, acts, b); err != nil {
		return err
	}
	return c.object(r, facts.Ref, facts.Parent, b)
}

// An openCommit is a commit with its file, read.
type openCommit struct {
	evt     *Event
	content *rooms.CommitContent
	msg     *mls.Message
	ref     federation.Ref
}

// open reads a commit event, with its file. The last one is kept for who needs it again
// in the same step: in a cold tree of thousands it has a ciphertext for each leaf.
func (c *Client) open(r *room, content *rooms.CommitContent, evt *Event) (*openCommit, error) {
	if r.opened != nil && r.opened.evt == evt {
		return r.opened, nil
	}
	content, err := c.inlined(r, content, evt)
	if err != nil {
		return nil, err
	}
	msg, err := mls.ParseMessage(content.Message)
	if err != nil {
		return nil, err
	}
	ref, err := rooms.CommitRef(msg)
	if err != nil {
		return nil, err
	}
	r.opened = &openCommit{evt, content, msg, ref}
	return r.opened, nil
}

// inlined returns the content of a commit event with what was moved to media put
// back.
func (c *Client) inlined(r *room, content *rooms.CommitContent, evt *Event) (*rooms.CommitContent, error) {
	if content.File == nil {
		return content, nil
	}
	data, err := c.mediaOf(r, content.File, evt, c.matters(r, content))
	if err != nil {
		return nil, err
	}
	bundle, err := rooms.DecodeCommitBundle(data)
	if err != nil {
		return nil, err
	}
	out := *content
	out.SetInline(bundle)
	return &out, nil
}

// stage validates a commit against the epoch it was made in. That never
// changes the group.
func (c *Client) stage(r *room, e *epoch, ref federation.Ref, msg *mls.Message, proposals []rooms.Bytes) (*mls.StagedCommit, error) {
	if staged := r.staged[ref]; staged != nil {
		return staged, nil
	}
	if (r.blind || c.blind != nil && c.blind(ref)) && r.own[ref] == nil {
		return nil, errBlind
	}
	if own := r.own[ref]; own != nil {
		if own.staged == nil {
			staged, err := mls.UnmarshalStagedCommit(c.mlsCfg, e.group, own.Staged)
			if err != nil {
				return nil, fmt.Errorf("client: own commit %s: %w", ref.Short(), err)
			}
			own.staged = staged
		}
		return own.staged, nil
	}
	var beside []*mls.Message
	for _, raw := range proposals {
		p, err := mls.ParseMessage(raw)
		if err != nil {
			return nil, err
		}
		if p.ContentType() != mls.ContentTypeProposal {
			return nil, errRefusedUpdate(rooms.RuleContentMalformed, "a commit carries something else beside proposals")
		}
		beside = append(beside, p)
	}
	// A group that remembers proposals sends nothing, and the commit may never be
	// accepted. Beside it, it keeps neither.
	processed, err := e.group.ProcessBeside(beside, msg)
	if err != nil {
		return nil, err
	}
	staged, ok := processed.(*mls.StagedCommit)
	if !ok {
		return nil, errRefusedUpdate(rooms.RuleContentMalformed, "the message of a commit is none")
	}
	return staged, nil
}

var errBlind = errors.New("client: a test lets this device open no commit")

// storedCommit is what is kept of a commit to stage it again after a restart.
type storedCommit struct {
	Message   rooms.Bytes   `json:"message"`
	Proposals []rooms.Bytes `json:"proposals,omitempty"`
	// KeyPackages ride with a ReInit.
	KeyPackages []rooms.Bytes `json:"key_packages,omitempty"`
	// GroupInfo and Tree are what a founding commit has in place of a message.
	GroupInfo rooms.Bytes `json:"group_info,omitempty"`
	Tree      rooms.Bytes `json:"tree,omitempty"`
}

func commitKey(roomID id.RoomID, ref federation.Ref) string {
	return "commit/" + string(roomID) + "/" + ref.String()
}

// keepCommit stores a commit with the step that is going on, which can read it already: the
// commit's accept may have been there before it.
func (c *Client) keepCommit(b *batch, r *room, ref federation.Ref, content *rooms.CommitContent) {
	kept := &storedCommit{Message: content.Message, Proposals: content.Proposals, KeyPackages: content.KeyPackages}
	if content.Founding {
		kept.GroupInfo, kept.Tree = content.GroupInfo, content.Snapshot.Tree
	}
	r.keeping[ref] = kept
	b.then(func() { delete(r.keeping, ref) })
	b.do(func(ctx context.Context) error {
		raw, err := json.Marshal(kept)
		if err != nil {
			return fmt.Errorf("client: commit %s: %w", ref.Short(), err)
		}
		return c.st.PutKV(ctx, commitKey(r.id, ref), raw)
	})
}

// enter returns the epoch that a commit made, merging what was only staged.
// It returns nil for a commit whose epoch this device cannot reach. An epoch that
// was held and dropped is never entered again: its ratchets would begin anew, and
// message keys would be used twice.
func (c *Client) enter(ctx context.Context, r *room, ref federation.Ref, b *batch) (*epoch, error) {
	// From the nearest epoch at hand upwards.
	var chain []federation.Ref
	for at := ref; r.epochs[at] == nil; {
		known, ok := r.machine.Known(at)
		if !ok || len(chain) >= maxWindow {
			return nil, nil
		}
		if _, err := c.st.RejoinSecret(ctx, r.id, at[:]); err == nil {
			return nil, nil // held before
		} else if !errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("%w: %w", errStore, err)
		}
		if own := r.own[at]; known.Founding != nil && (own == nil || !own.Founding) {
			return nil, nil // only a Welcome leads there
		}
		chain = append(chain, at)
		if own := r.own[at]; own != nil && (own.External || own.Founding) {
			break
		}
		at = known.Parent
	}
	slices.Reverse(chain)
	for _, at := range chain {
		known, _ := r.machine.Known(at)
		var staged *mls.StagedCommit
		var err error
		if own := r.own[at]; own != nil && own.External {
			staged, _, err = c.ownExternal(own)
		} else if own != nil && own.Founding {
			staged, err = c.ownFounding(own)
		} else {
			staged, err = c.restage(ctx, r, r.epochs[known.Parent], at)
		}
		if errors.Is(err, errStore) {
			return nil, err
		}
		if err != nil {
			return nil, nil // the coordination knows it, this device cannot read it
		}
		group := staged.Merge()
		if group == nil {
			return nil, errSelfRemoved
		}
		e := &epoch{ref: at, parent: known.Parent, number: group.Epoch(), group: group}
		c.putEpoch(b, r, e)
		b.entered = append(b.entered, e)
		delete(r.staged, at)
	}
	return r.epochs[ref], nil
}

const maxWindow = 256

// errSelfRemoved reports a commit that removes this device.
var errSelfRemoved = errors.New("client: the commit removes this device")

func (c *Client) restage(ctx context.Context, r *room, e *epoch, ref federation.Ref) (*mls.StagedCommit, error) {
	if staged := r.staged[ref]; staged != nil {
		return staged, nil
	}
	kept := new(storedCommit)
	if r.own[ref] == nil {
		var err error
		if kept, err = c.storedCommit(ctx, r, ref); err != nil {
			return nil, err
		}
	}
	var msg *mls.Message
	if len(kept.Message) > 0 {
		var err error
		if msg, err = mls.ParseMessage(kept.Message); err != nil {
			return nil, err
		}
	}
	return c.stage(r, e, ref, msg, kept.Proposals)
}

// cannotApply remembers a commit that failed here. If a module accepts it
// nevertheless, this device says so with a P.reject.
func (c *Client) cannotApply(r *room, ref federation.Ref, err error) {
	if r.rec.Failed == nil {
		r.rec.Failed = map[string]string{}
	}
	if len(r.rec.Failed) < 1024 {
		r.rec.Failed[ref.String()] = ruleOf(err)
	}
}

// handleReceipt gives a receipt or a statement to the room's coordination,
// which checks its signature.
func (c *Client) handleReceipt(ctx context.Context, r *room, evt *Event, b *batch) error {
	ev, err := rooms.DecodeReceipt(evt.Type, string(evt.ID), evt.Content)
	if err != nil {
		return err
	}
	if r.machine == nil {
		if r.rec.Phase == phaseRemoved {
			return nil
		}
		return errWaitGroup
	}
	if ref, ok := receiptRef(ev); ok && r.aheadOfCommits(ref) {
		return &errWait{aheadWait + ref.String()}
	}
	acts, err := r.machine.Step(ev)
	if accept, ok := ev.(*federation.Accept); ok && ruleOf(err) == string(federation.RuleTooOld) {
		if _, closed := r.closing(); closed || r.machine.Held(accept.Parent) {
			// Of a founding, or above one, that has not come yet: in the group that
			// follows a ReInit epochs begin again.
			return &errWait{"founded:"}
		}
	}
	if err != nil {
		return err
	}
	b.machine = true
	switch ev := ev.(type) {
	case *federation.Accept:
		if err := c.object(r, ev.Ref, ev.Parent, b); err != nil {
			return err
		}
		if !r.machine.Held(ev.Ref) && !r.machine.TooOld(ev.Epoch) {
			r.wantCommit(id.EventID(ev.EventID), ev.Ref)
		}
	case *federation.Rejected:
		if own := r.own[ev.Ref]; own != nil && ev.Rule == string(rooms.RuleAddWithoutAdmission) {
			if own.External {
				r.unwelcome = ev.Ref
			} else if r.machine.Held(ev.Ref) {
				if err := c.noteObjection(ctx, r, ev.Ref); err != nil {
					return err
				}
			}
		}
	case *federation.Applied:
		if e := r.epochs[ev.Ref]; e != nil {
			want := federation.AppliedHash(e.group.EpochAuthenticator())
			if subtle.ConstantTimeCompare(want[:], ev.Hash[:]) != 1 {
				// Whose leaf signed it: the event may be a repost in any name.
				if cred := leafCredential(e, ev.Leaf); cred != nil {
					c.warn(r, "applied/"+ev.Ref.String(), &Warning{
						EventID: evt.ID, Sender: cred.User, Rule: string(rooms.RuleReceiptForged), Kind: OtherKeysWarning, Detail: strconv.FormatUint(e.number, 10),
						Text: fmt.Sprintf("%s says that epoch %d has other keys than this device holds", cred.User, e.number),
					})
				}
			}
		}
	}
	return c.act(ctx, r, acts, b)
}

// aheadOfCommits bounds how many receipts are given to the coordination ahead of their commits: it keeps a few hundred
// ([federation.Limits]), and the oldest of them give way.
const aheadOfCommits = 64

// aheadWait is what those wait for, before the commit's ref, that are not given to it.
const aheadWait = "ahead:"

// aheadOfCommits tells whether what names a commit waits until that is held: commits or their files are asked for, as after
// a long absence from a large room, and enough receipts wait for these. An accept that gave way would be missed: the head would pass over
// its epoch, and over what was said in it.
func (r *room) aheadOfCommits(ref federation.Ref) bool {
	return r.machine != nil && !r.machine.Held(ref) && r.lacksCommit() && r.machine.Waiting() >= aheadOfCommits
}

// receiptRef returns which commit a receipt or statement is about.
func receiptRef(ev federation.Event) (federation.Ref, bool) {
	switch ev := ev.(type) {
	case *federation.Accept:
		return ev.Ref, true
	case *federation.Vote:
		return ev.Ref, true
	case *federation.Applied:
		return ev.Ref, true
	case *federation.Rejected:
		return ev.Ref, true
	}
	return federation.Ref{}, false
}

// leafCredential returns who holds a leaf, nil if nobody does.
func leafCredential(e *epoch, index uint32) *rooms.Credential {
	leaf, ok := e.group.Leaf(mls.LeafIndex(index))
	if !ok {
		return nil
	}
	cred, err := rooms.CredentialOf(leaf)
	if err != nil {
		return nil
	}
	return cred
}

// act carries out what the coordination asks for.
func (c *Client) act(ctx context.Context, r *room, acts []federation.Action, b *batch) error {
	c.settleObjections(r)
	for _, act := range acts {
		if r.machine == nil {
			return nil // this device was removed
		}
		switch act := act.(type) {
		case federation.Save:
			b.machine = true
		case federation.HeadChanged:
			if err := c.headChanged(ctx, r, act, b); err != nil {
				return err
			}
		case federation.Finalized:
			r.finalRef = r.machine.NewestFinal()
			c.sweepAdmissions(r)
			if r.machine.Extends(act.Ref, federation.Ref(r.rec.JoinRef)) {
				c.confirmFinal(r)
			}
			c.policyDone(r)
			c.losePassed(r, b)
			r.listCame(act.Ref)
			c.prune(b, r)
		case federation.Doubt:
			if e := r.epochs[act.Ref]; e != nil {
				r.vouchAt[act.Ref] = 1 // at once
			}
			by := r.authorOf(act.Ref)
			c.warn(r, "doubt/"+act.Ref.String(), &Warning{
				Sender: by, Rule: act.Rule, Kind: MemberBehindWarning, Text: fmt.Sprintf("a member could not apply a commit of %s; messages wait until it is settled", by),
			})
		case federation.Fetch:
			r.wantCommit(id.EventID(act.EventID), act.Commit)
		case federation.Evidence:
			c.noteLiar(r, act)
			c.warn(r, "evidence/"+string(act.Signer.ReceiptKey)+string(act.Kind), &Warning{
				Sender: id.UserID(act.Signer.User), Rule: string(act.Kind), Kind: LiarWarning, Servers: []string{act.Signer.Server},
				Text: fmt.Sprintf("the module of %s signed two things that contradict each other; an admin should drop it", act.Signer.Server),
			})
		case federation.Forget:
			for _, ref := range act.Refs {
				c.forgetRef(b, r, ref)
			}
		case federation.Send, federation.KeyRetired:
			return fmt.Errorf("client: internal: a client's machine made a %T", act)
		default:
			return fmt.Errorf("client: internal: unknown action %T", act)
		}
	}
	return nil
}

// headChanged enters the epochs along the way to the new head and settles own
// commits.
func (c *Client) headChanged(ctx context.Context, r *room, act federation.HeadChanged, b *batch) error {
	path := r.machine.Path(act.Fork, act.To)
	lost := act.Fork != act.From
	r.planned = false
	era, final := r.eraNo, r.finalRef
	r.eraNo, _ = r.machine.EraOf()
	defer func() {
		if r.machine == nil {
			return
		}
		if !final.IsZero() {
			c.tellEra(r, era, final)
		}
		r.finalRef = r.machine.NewestFinal()
	}()
	if lost {
		left := r.machine.Path(act.Fork, act.From)
		c.requeue(b, r, left)
		c.look(r, act.Fork, c.limits.GapPages, true)
	}
	for ref, kept := range r.rec.Proposals {
		if federation.Ref(kept.On) != act.To {
			delete(r.rec.Proposals, ref)
		}
	}
	// Where this device came back by an external commit, what lies below it is
	// not its to read.
	back := 0
	for i, ref := range path {
		if own := r.own[ref]; own != nil && own.External {
			back = i
		}
	}
	for _, ref := range path[back:] {
		e, err := c.enter(ctx, r, ref, b)
		if errors.Is(err, errSelfRemoved) {
			by := id.UserID("")
			if known, ok := r.machine.Known(ref); ok {
				by = id.UserID(known.AuthorUser)
				c.noteSuperseded(r, known)
			}
			if r.rec.Membership == "join" && !r.rec.Superseded && !r.machine.Final(ref) {
				c.putOut(r, by, b)
			} else {
				c.removed(r, by, b)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if e == nil {
			break // see watchUnread
		}
		c.noteRemovals(r, e)
		c.noteRefresh(r, e)
		c.settleCommit(r, e, b)
		if err := c.entered(r, e, b); err != nil {
			return err
		}
		if r.rec.Phase == phaseJoining && r.own[ref] != nil && r.own[ref].External {
			c.joined(r, e, b)
		}
		c.tellEpoch(r, e, lost)
		lost = false // once for all epochs of the way
	}
	if (r.rec.Phase == phaseJoining || r.rec.Phase == phaseRemoved) && !r.rec.JoinRef.IsZero() && r.epochs[act.To] != nil {
		// The head came back to where this device can read.
		r.rec.Phase, r.rec.PutOut, r.outSince = phaseMember, 0, 0
	}
	if p := r.pending; p != nil && !slices.Contains(path, federation.Ref(p.Ref)) && federation.Ref(p.Parent) != act.To {
		// Lost the race: what it wanted is planned anew on the new head.
		r.racesLost++
		c.loseCommit(r, b)
	}
	c.prune(b, r)
	b.then(func() {
		r.notify()
		c.poke()
		notifyChan(c.outWake)
	})
	return nil
}

// noteRemovals remembers who was removed and when: an admission from before
// does not let them in again.
func (c *Client) noteRemovals(r *room, e *epoch) {
	known, ok := r.machine.Known(e.ref)
	parent := r.epochs[e.parent]
	if !ok || parent == nil {
		return
	}
	for _, index := range known.Removed {
		leaf, ok := parent.group.Leaf(mls.LeafIndex(index))
		if !ok {
			continue
		}
		cred, err := rooms.ParseCredential(&leaf.Credential)
		if err != nil || len(rooms.LeavesOf(e.group, cred.User)) > 0 {
			continue
		}
		if r.rec.Removals == nil {
			r.rec.Removals = map[id.UserID]uint64{}
		}
		if len(r.rec.Removals) < maxRemovals {
			r.rec.Removals[cred.User] = r.levelOf(e)
		}
		r.keepAdmissions(cred.User, slices.DeleteFunc(r.admissionsOf(cred.User), func(a rooms.Admission) bool {
			return c.removedSince(r, cred.User, federation.Ref(a.Ref))
		}))
	}
}

// tellEpoch reports an epoch on the head.
func (c *Client) tellEpoch(r *room, e *epoch, lost bool) {
	change := &EpochChanged{
		Room: r.id, Epoch: e.number, Ref: e.ref, Parent: e.parent, Status: r.machine.Status(e.ref), Lost: lost, Joined: r.rec.JoinRef == rooms.Hash(e.ref),
	}
	if known, ok := r.machine.Known(e.ref); ok {
		change.Author = id.UserID(known.AuthorUser)
		for _, leaf := range known.Added {
			change.Added = append(change.Added, id.UserID(leaf.User))
		}
		if parent := r.epochs[e.parent]; parent != nil {
			for _, index := range known.Removed {
				if leaf, ok := parent.group.Leaf(mls.LeafIndex(index)); ok {
					if cred, err := rooms.CredentialOf(leaf); err == nil {
						change.Removed = append(change.Removed, cred.User)
					}
				}
			}
		}
	}
	c.log.Info().Stringer("room_id", r.id).Uint64("epoch", e.number).Str("ref", e.ref.Short()).Stringer("status", change.Status).Msg("The head moved")
	c.tell(change)
	if change.Joined {
		notifyChan(c.histWake)
	}
}

// settleCommit does what follows when a commit of ours is on the head: only
// now do the new devices get their Welcome.
func (c *Client) settleCommit(r *room, e *epoch, b *batch) {
	own := r.own[e.ref]
	if own == nil || own.Settled {
		return
	}
	own.Settled = true
	r.settleFresh(own, e)
	c.queueWelcomes(r, own, e, b)
	r.altered, r.racesLost = 0, 0
	if own.External || own.Founding || own.staged == nil || own.staged.HasPath() {
		r.rec.LastPath, r.rec.Sent = c.now().Unix(), 0
		r.rec.Refresh, r.rec.Renew = false, false
	}
	if own.Era {
		r.rec.NewEra, r.rec.HeirsEra = false, nil
	}
	if r.pending == own {
		r.pending = nil
	}
	if err := c.savePending(b, r, own); err != nil {
		b.do(func(context.Context) error { return err })
	}
}

// maxWelcomeAccept is the size up to which an accept rides in a Welcome. One above it, of
// a ballot with many promises, newcomers find in a module's head.
const maxWelcomeAccept = 12_000

// queueWelcomes lets the devices that an own commit adds have their Welcome.
func (c *Client) queueWelcomes(r *room, own *pending, e *epoch, b *batch) {
	if len(own.Welcomes) == 0 || own.staged == nil {
		return
	}
	data := outData{Tree: e.group.RatchetTree(), TreeHash: e.group.TreeHash(), EventID: c.commitEvent(r, e.ref)}
	config, _ := r.machine.ConfigAt(e.ref)
	data.Config = rooms.Hash(config)
	data.Era, _ = r.machine.EraAt(e.ref) // the head may lie in a later one
	if a := r.machine.AcceptOf(e.ref); a != nil {
		data.Accept = rooms.AcceptOf(a)
		if raw, err := rooms.Encode(data.Accept); err != nil || len(raw) > maxWelcomeAccept {
			data.Accept = nil
		}
	}
	for _, w := range own.Welcomes {
		if r.served(own, w.KeyPackage) && !c.without[probe.Packages] {
			continue // the device used it up; it finds its leaf without a Welcome and joins again
		}
		welcome, err := own.staged.WelcomeFor(mls.KeyPackageRef(w.KeyPackage))
		if err != nil {
			c.log.Err(err).Stringer("room_id", r.id).Msg("Failed to make a Welcome")
			continue
		}
		data.Welcomes = append(data.Welcomes, welcomeOut{User: w.User, Device: w.Device, Welcome: welcome})
		if !c.without[probe.Packages] {
			delete(r.claimed, claimKey(w.User, w.Device))
		}
	}
	if len(data.Welcomes) > 0 {
		if _, err := c.addRow(b, r, kindWelcome, stateReady, e.ref, data); err != nil {
			b.do(func(context.Context) error { return err })
		}
	}
}

// served tells whether the Welcome for a key package was sent with another
// commit of ours: one that lost its race leaves its key packages to the next,
// and the head may come back to it. Commits below the newest final are
// forgotten, for the head cannot.
func (r *room) served(by *pending, keyPackage rooms.Bytes) bool {
	for _, own := range r.own {
		if own != by && own.Settled && slices.ContainsFunc(own.Welcomes, func(w welcomeTarget) bool { return bytes.Equal(w.KeyPackage, keyPackage) }) {
			return true
		}
	}
	return false
}

// loseCommit gives up an own commit that another one displaces. The commit
// event may be in the room already: it is kept, in case the head comes back.
func (c *Client) loseCommit(r *room, b *batch) {
	p := r.pending
	r.pending = nil
	p.Lost = true
	if err := c.savePending(b, r, p); err != nil {
		b.do(func(context.Context) error { return err })
	}
	for _, row := range c.roomRows(r.id) {
		if row.item.Kind == kindCommit && row.ref() == federation.Ref(p.Ref) && !row.busy {
			c.deleteRow(b, row)
		}
	}
	c.log.Info().Stringer("room_id", r.id).Str("ref", federation.Ref(p.Ref).Short()).Msg("Gave up a commit for another one; what it wanted is planned again")
	if p.External && r.rec.Phase == phaseJoining {
		if r.rec.JoinRef.IsZero() {
			c.startOver(r, b)
		}
		r.joinAt = c.mono() + time.Second
	}
}

// losePassed gives up an own commit that was made below what is final now, or beside it, as beside a commit that was
// in doubt: it may not be sent yet.
func (c *Client) losePassed(r *room, b *batch) {
	p, final := r.pending, r.machine.NewestFinal()
	if p == nil || p.External || p.Founding || p.Era || r.machine.Extends(federation.Ref(p.Parent), final) || r.machine.Extends(final, federation.Ref(p.Ref)) {
		return
	}
	c.loseCommit(r, b)
}

// forgetRef drops everything that is kept under a ref.
func (c *Client) forgetRef(b *batch, r *room, ref federation.Ref) {
	if r.epochs[ref] != nil {
		c.dropEpoch(b, r, ref)
	}
	r.dropStaged(ref)
	delete(r.public, ref)
	delete(r.rec.Events, ref.String())
	delete(r.rec.Failed, ref.String())
	delete(r.rec.Vouched, ref.String())
	delete(r.rec.Rejected, ref.String())
	delete(r.vouchAt, ref)
	delete(r.keeping, ref)
	b.do(func(ctx context.Context) error { return c.st.DeleteKV(ctx, commitKey(r.id, ref)) })
}

// putOut is for a commit that takes this device out, of a user who is in the room, and
// that another may yet take the place of, as where its author does not reach the
// user's homeserver and does not know the device. What was sent before it can be read
// until it is final, and if the head comes back, nothing was lost; for Limits.PastAge at
// the longest, for those who make it final may be silent.
func (c *Client) putOut(r *room, by id.UserID, b *batch) {
	if r.rec.Phase == phaseRemoved {
		return
	}
	r.rec.Phase, r.joinAt, r.rec.PutOut, r.outSince = phaseRemoved, 0, c.now().Unix(), c.mono()
	r.keepAdmissions(c.UserID(), nil)
	c.tell(&Removed{Room: r.id, By: by, Superseded: r.rec.Superseded})
	b.then(r.notify)
}

// outForGood tells whether what put this device out cannot be displaced any more: no
// epoch that it holds is on the newest final commit, or that it was put out long enough
// ago. The user may have been invited again meanwhile.
func (c *Client) outForGood(r *room) bool {
	if r.rec.PutOut == 0 || r.machine == nil || r.rec.Phase != phaseRemoved && r.rec.Phase != phaseNone {
		return false
	}
	if r.outSince == 0 {
		r.outSince = c.mono()
	}
	if most := c.limits.PastAge; c.mono() >= r.outSince+most || c.now().Sub(time.Unix(r.rec.PutOut, 0)) >= most {
		return true
	}
	for ref := range r.epochs {
		if r.machine.Extends(ref, r.machine.NewestFinal()) {
			return false
		}
	}
	return true
}

// outError is the error of what cannot be done as this device is not in the group any
// more.
func (r *room) outError() error {
	if r.rec.Superseded {
		return fmt.Errorf("%w (%s)", ErrSuperseded, r.id)
	}
	return fmt.Errorf("%w (%s)", ErrRemoved, r.id)
}

// removed ends this device's membership of the group.
func (c *Client) removed(r *room, by id.UserID, b *batch) {
	told := r.rec.Phase == phaseRemoved
	r.rec.Phase, r.rec.PutOut = phaseRemoved, 0
	r.keepAdmissions(c.UserID(), nil) // it does not let us in again
	c.dropGroup(r, b)
	if r.rec.Membership != "join" || r.rec.Superseded {
		c.dropMessages(r, b)
	} // else it may come back
	if !told {
		c.tell(&Removed{Room: r.id, By: by, Superseded: r.rec.Superseded})
	}
	b.then(r.notify)
}

// dropMessages gives up what waits to be sent in a room that this device is out of
// for good, as far as it can know: it was meant for those who were in it.
func (c *Client) dropMessages(r *room, b *batch) {
	for _, row := range c.roomRows(r.id) {
		if row.data.Plain != nil || row.item.Kind == kindReceipt {
			c.deleteRow(b, row)
			b.then(func() { c.answer(row, sendResult{err: r.outError()}) })
		}
	}
}

// dropGroup forgets the room's group in memory and store: epochs, own commits
// and coordination.
func (c *Client) dropGroup(r *room, b *batch) {
	for ref := range r.behind {
		c.dropBehind(b, r, ref)
	}
	c.startOver(r, b)
}

// startOver is dropGroup of a device that comes in once more, but for what it left
// behind (leaveBehind).
func (c *Client) startOver(r *room, b *batch) {
	for ref := range r.epochs {
		c.dropEpoch(b, r, ref)
	}
	own := map[federation.Ref]*pending{}
	refs := slices.SortedFunc(maps.Keys(r.own), func(x, y federation.Ref) int { return bytes.Compare(x[:], y[:]) })
	for _, ref := range refs {
		p := r.own[ref]
		if p.External && !p.Settled && len(own) < 4 {
			p.Lost = true // it may be accepted yet
			own[ref] = p
			if event := p.EventID; event != "" { // then it is for the coordination that begins anew, too
				b.do(func(ctx context.Context) error { return c.st.ForgetSeen(ctx, r.id, []id.EventID{event}) })
			}
			if err := c.savePending(b, r, p); err != nil {
				b.do(func(context.Context) error { return err })
			}
			continue
		}
		b.do(func(ctx context.Context) error { return c.st.DeletePending(ctx, r.id, ref[:]) })
	}
	c.requeueAll(b, r)
	r.own, r.pending, r.machine = own, nil, nil
	r.shownBy, r.looks = nil, rooms.Looks{}
	r.staged, r.public = map[federation.Ref]*mls.StagedCommit{}, map[federation.Ref]*mls.PublicGroup{}
	r.vouchAt = map[federation.Ref]time.Duration{}
	r.blocked = nil
	r.rec.JoinRef = rooms.Hash{}
	r.rec.Missing, r.rec.Accounted = nil, nil
	b.do(func(ctx context.Context) error { return c.deleteMachine(ctx, r) })
}

// handleAdmit keeps a member's admission of a user. It is checked when it is
// used, against the group as it is then.
func (c *Client) handleAdmit(r *room, evt *Event) error {
	admission, err := rooms.DecodeAdmission(evt.Content)
	if err != nil {
		return err
	}
	if admission.Room != r.id {
		return errRefusedUpdate(rooms.RuleRoomNotGroup, "the admission is for another room")
	}
	c.takeAdmission(r, admission, evt.Sender)
	r.planned = false
	return nil
}

// handleOwnAdmit keeps an admission of this user that came to this device. Anybody
// can send one: only that of whoever invited us counts or, if /sync shows our join
// without the invite, that of a member.
func (c *Client) handleOwnAdmit(r *room, evt *Event) error {
	switch {
	case r.rec.Phase == phaseMember && r.machine != nil:
		return nil // it lets nobody in any more
	case !r.arrived("invite"):
		return &errWait{"invite:"}
	case evt.Sender == r.rec.Inviter:
	case r.rec.Membership == "join" && r.rec.Inviter == "" && !r.state.Known:
		r.want("state", &need{state: true})
		return &errWait{"state:"}
	case r.rec.Membership != "join" || r.rec.Inviter != "" || r.state.membership(evt.Sender) != rooms.MembershipJoin:
		return errRefusedUpdate(rooms.RuleUnsolicitedKey, fmt.Sprintf("%s, who sent the admission, has not invited this user", evt.Sender))
	}
	return c.handleAdmit(r, evt)
}

// handleRepost takes an event of ours that somebody sent again. It has to
// prove itself: commits, receipts and statements are signed.
func (c *Client) handleRepost(ctx context.Context, r *room, evt *Event, b *batch) error {
	repost, err := rooms.DecodeRepost(evt.Content)
	if err != nil {
		return err
	}
	inner := &Event{ID: evt.ID, RoomID: r.id, Type: repost.Type, Sender: repost.Sender, Timestamp: evt.Timestamp, Content: repost.Content, reposter: evt.Sender}
	switch repost.Type {
	case rooms.TypeCommit:
		if len(r.rec.Late) > 0 {
			c.noteLate(r, inner, 0, c.now().UnixMilli())
		}
		return c.handleCommit(ctx, r, inner, b)
	case rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady, rooms.TypeApplied, rooms.TypeReject:
		return c.handleReceipt(ctx, r, inner, b)
	}
	return errRefusedUpdate(rooms.RuleContentMalformed, "events of this type are not sent again")
}
