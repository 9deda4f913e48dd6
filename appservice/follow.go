package appservice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func federationRule(err error) string {
	if r, ok := errors.AsType[*federation.Error](err); ok {
		return string(r.Rule)
	}
	return ""
}

// take looks at one event, inside the transaction that marks it. An error is
// storage or a bug; what is wrong with the event is in the outcome.
func (e *Engine) take(ctx context.Context, r *room, ev *store.InboxEvent) (outcome, error) {
	if len(ev.Raw) == 0 {
		return ignored, nil
	}
	parsed, err := homeserver.ParseEvent(ev.Raw, ev.Room)
	if err != nil {
		return refused(err), nil
	}
	if ev.StateKey != nil && ev.Type != rooms.TypeHead {
		return e.takeState(ctx, r, ev, parsed)
	}
	e.heard(r, ev.Sender)
	r.state.Spoke(ev.Sender)
	if r.status == store.RoomLeft {
		return ignored, nil
	}
	if ev.Source == store.SourceMessages && bytes.Equal(bytes.TrimSpace(parsed.Content), []byte("{}")) {
		// From before the server's first user joined: it was given the event
		// without its content. What it held comes by a head, or is posted again.
		return ignored, nil
	}
	return e.takeContent(ctx, r, &message{
		event: ev.EventID, sender: ev.Sender, kind: ev.Type, content: parsed.Content, isState: ev.StateKey != nil, redacts: parsed.Redacts,
	})
}

// message is an event of ours, or one that somebody posted again.
type message struct {
	event   id.EventID
	sender  id.UserID
	kind    string
	content json.RawMessage
	isState bool
	redacts id.EventID // of a redaction
	reposts int
}

func (e *Engine) takeContent(ctx context.Context, r *room, msg *message) (outcome, error) {
	switch msg.kind {
	case rooms.TypeCommit:
		return settle(e.takeCommit(ctx, r, msg))
	case rooms.TypeProposal:
		return settle(e.takeProposal(ctx, r, msg))
	case rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady, rooms.TypeApplied, rooms.TypeReject:
		ev, err := rooms.DecodeReceipt(msg.kind, string(msg.event), msg.content)
		if err != nil {
			return refused(err), nil
		}
		if r.m == nil {
			return waiting, nil
		}
		err = e.step(ctx, r, ev)
		if federationRule(err) == string(federation.RuleTooOld) {
			return ignored, nil
		}
		if a, ok := ev.(*federation.Accept); ok && err == nil && r.m.TooOld(a.Epoch) && !r.m.Held(a.Ref) {
			// Epochs begin again in the group that follows a ReInit.
			if tree, err := e.group(ctx, r, r.m.Head()); err == nil && tree.ReInit() != nil {
				return waiting, nil // of a founding, or above one, that has not come yet
			}
			return ignored, nil
		}
		if err == nil {
			err = e.keepReceipt(ctx, r, msg, ev)
		}
		return settle(done, err)
	case rooms.TypeHead:
		return settle(e.takeHead(ctx, r, msg))
	case typeRedaction:
		return done, e.takeRedaction(ctx, r, msg)
	case rooms.TypeRequest:
		return settle(e.takeRequest(ctx, r, msg))
	case rooms.TypeRepost:
		if msg.reposts > 0 {
			return refused(refusal(ruleNotForUs, "an event that was posted again and again")), nil
		}
		c, err := rooms.DecodeRepost(msg.content)
		if err != nil {
			return refused(err), nil
		}
		if done, out := e.repostNeedsSender(r, c); done {
			return out, nil
		}
		e.sawRepost(r, msg, c)
		if c.Event == "" {
			c.Event = msg.event
		}
		return e.takeContent(ctx, r, &message{event: c.Event, sender: c.Sender, kind: c.Type, content: c.Content, reposts: 1})
	case rooms.TypeAdmit, rooms.TypeEra, rooms.TypeReceipt:
		return ignored, nil // members check and read these
	}
	return ignored, nil
}

// repostNeedsSender deals with what was posted again and rests on who sent it:
// the sender that a repost names is only its poster's word. What founds a group
// is asked for by its event; what a module or member says of itself is refused.
// Everything else is signed by a leaf or a receipt key.
func (e *Engine) repostNeedsSender(r *room, c *rooms.RepostContent) (bool, outcome) {
	switch c.Type {
	case rooms.TypeHead, rooms.TypeRequest:
		return true, refused(refusal(ruleNotForUs, "an event of type %s counts from its sender only", c.Type))
	case rooms.TypeCommit:
		content, err := rooms.DecodeCommit(c.Content)
		if err != nil {
			return true, refused(err)
		}
		if content.Epoch != 0 && !content.Founding {
			return false, outcome{}
		}
		if (r.m == nil || content.Founding) && c.Event != "" {
			e.fetchEvent(r, c.Event)
		}
		return true, ignored
	}
	return false, outcome{}
}

// settle turns what an event is refused for into its outcome; other errors stay
// errors, so that the event comes again.
func settle(out outcome, err error) (outcome, error) {
	if err == nil {
		return out, nil
	}
	if rule := ruleOf(err); rule != ruleFailed {
		return refused(err), nil
	}
	return out, err
}

// storedCommit is a commit as the database keeps it: the event's content and,
// if it named media, what the media held.
type storedCommit struct {
	Event  json.RawMessage `json:"event"`
	Bundle []byte          `json:"bundle,omitempty"`
}

func (sc *storedCommit) content() (*rooms.CommitContent, error) {
	c, err := rooms.DecodeCommit(sc.Event)
	if err != nil {
		return nil, err
	}
	if len(sc.Bundle) > 0 {
		b, err := rooms.DecodeCommitBundle(sc.Bundle)
		if err != nil {
			return nil, err
		}
		c.SetInline(b)
	}
	return c, nil
}

// takeCommit follows a commit: it is checked against its parent's tree, given
// to the machine as a fact, and the group's state after it is kept.
func (e *Engine) takeCommit(ctx context.Context, r *room, msg *message) (outcome, error) {
	c, err := rooms.DecodeCommit(msg.content)
	if err != nil {
		return done, err
	}
	sc := &storedCommit{Event: msg.content}
	if c.File != nil {
		if r.m != nil && !c.Founding && r.m.TooOld(c.Epoch) && !r.m.Held(federation.Ref(c.Parent)) {
			return ignored, nil // not worth the file; a later one in a new group asks for it again
		}
		data, bad, ok := e.media.get(c.File.SHA256)
		if !ok {
			e.download(r, c.File)
			return waiting, nil
		}
		if bad != nil {
			return done, bad
		}
		b, err := rooms.DecodeCommitBundle(data)
		if err != nil {
			return done, err
		}
		c.SetInline(b)
		sc.Bundle = data
	}
	switch {
	case c.Founding:
		return e.takeFounding(ctx, r, msg, c, sc)
	case c.Epoch == 0:
		return e.takeRoot(ctx, r, msg, c, sc)
	}
	parent := federation.Ref(c.Parent)
	switch {
	case r.m == nil:
		r.gap.wanted = true
		return waiting, nil
	case !r.m.Held(parent):
		switch place, err := e.outside(ctx, r, c); {
		case err != nil:
			return done, err
		case place.settled:
			return ignored, e.stepOutside(ctx, r, place)
		}
		r.want(federation.Fetch{Commit: parent, EventID: string(c.ParentEvent)})
		return waiting, nil
	}
	m, err := mls.ParseMessage(c.Message)
	if err != nil {
		return done, err
	}
	ref, err := rooms.CommitRef(m)
	if err != nil {
		return done, err
	}
	if r.m.Held(ref) {
		return done, nil
	}
	tree, err := e.group(ctx, r, parent)
	if err != nil {
		return done, err
	}
	staged, err := stage(tree, c)
	if err != nil {
		return done, err
	}
	gi, err := mls.ParseMessage(c.GroupInfo)
	if err != nil {
		return done, err
	}
	// A commit whose signed GroupInfo does not carry its tag and context is no
	// event: who swaps the tag of an honest commit cannot sign one.
	if err := staged.VerifyGroupInfo(gi); err != nil && !e.without[probe.Tags] {
		return done, err
	}
	checked, err := rooms.CheckCommit(rooms.CommitInput{
		Room: r.id, Sender: msg.sender, Event: msg.event, Content: c, Ref: ref, Tree: tree, Parent: parent, Staged: staged,
		View: rooms.View{Gone: r.gone()},
	})
	switch {
	case err == nil:
		checked.Commit.Barred = e.skips(r, parent, checked)
	case checked != nil && rooms.IsOpinion(err):
		// Others may see it otherwise, so it is an event; this module does not
		// accept it.
		checked.Commit.Barred = cut(err.Error(), 500)
	default:
		return done, err
	}
	return done, e.keepCommit(ctx, r, checked.Commit, staged.Merge(), msg, sc, false)
}

// keepCommit gives a checked commit to the machine and keeps it.
func (e *Engine) keepCommit(ctx context.Context, r *room, c *federation.Commit, after *mls.PublicGroup, msg *message, sc *storedCommit, always bool) error {
	if err := e.step(ctx, r, c); err != nil {
		return err
	}
	if !r.m.Held(c.Ref) {
		return nil // it waits in the machine, or was compacted away at once
	}
	if err := e.keepGroup(ctx, r, c.Ref, after, always); err != nil {
		return err
	}
	if err := e.putCommit(ctx, r, c.Ref, c.Parent.String(), c.Epoch, msg, sc); err != nil {
		return err
	}
	delete(r.wants, c.Ref)
	if r.arrived == nil {
		r.arrived = make(map[federation.Ref]time.Duration)
	}
	if len(r.arrived) < maxArrived {
		r.arrived[c.Ref] = e.d.Monotonic()
	}
	r.dirty, r.retryWaiting, r.moved = true, true, max(r.moved, reopenAtOnce)
	zerolog.Ctx(ctx).Debug().Str("ref", c.Ref.Short()).Uint64("epoch", c.Epoch).Str("barred", c.Barred).Msg("Followed a commit")
	return nil
}

func (e *Engine) putCommit(ctx context.Context, r *room, ref federation.Ref, parent string, epoch uint64, msg *message, sc *storedCommit) error {
	content, err := json.Marshal(sc)
	if err != nil {
		return fmt.Errorf("appservice: internal: %w", err)
	}
	return e.d.Store.PutCommit(ctx, r.id, &store.Commit{
		Ref: ref.String(), Parent: parent, Epoch: epoch, EventID: msg.event, Sender: msg.sender, Status: "held", Content: content,
	})
}

// stage checks a commit with its proposals against its parent's tree. The
// proposals stay with the tree, as they are valid in that epoch. One that the
// tree does not take changes nothing: if the commit names it, the commit fails.
func stage(tree *mls.PublicGroup, c *rooms.CommitContent) (*mls.PublicStagedCommit, error) {
	for _, raw := range c.Proposals {
		p, err := mls.ParseMessage(raw)
		if err != nil {
			return nil, err
		}
		if _, err := tree.Process(p); err != nil {
			if _, ok := errors.AsType[*mls.ValidationError](err); !ok {
				return nil, err
			}
		}
	}
	m, err := mls.ParseMessage(c.Message)
	if err != nil {
		return nil, err
	}
	p, err := tree.Process(m)
	if err != nil {
		return nil, err
	}
	staged, ok := p.(*mls.PublicStagedCommit)
	if !ok {
		return nil, refusal(string(rooms.RuleContentMalformed), "the message of a commit event is no commit")
	}
	return staged, nil
}

// takeRoot takes the founding epoch of the room's group.
func (e *Engine) takeRoot(ctx context.Context, r *room, msg *message, c *rooms.CommitContent, sc *storedCommit) (outcome, error) {
	if !r.loaded {
		return waiting, nil // who created the room is not known yet
	}
	gi, err := mls.ParseMessage(c.GroupInfo)
	if err != nil {
		return done, err
	}
	ref, err := rooms.RootRef(gi)
	if err != nil {
		return done, err
	}
	known := r.m != nil && r.data.Root != nil && federation.Ref(r.data.Root.Ref) == ref
	if known && !r.data.Late {
		return done, nil
	}
	if r.m != nil && !known {
		yields, err := e.replaceable(ctx, r)
		if err != nil {
			return done, err
		}
		if !yields {
			return done, refusal(ruleSecondRoot, "the room has a group already, and event %s founds another", msg.event)
		}
	}
	pg, err := mls.NewPublicGroup(e.mls, gi, nil)
	if err != nil {
		return done, err
	}
	policy, err := rooms.PolicyOf(pg)
	if err != nil {
		return done, err
	}
	switch {
	case policy.Room != r.id:
		return done, refusal(string(rooms.RuleRoomNotGroup), "the group is bound to room %s", policy.Room)
	case policy.Creator != msg.sender:
		return done, refusal(ruleRootNotOwned, "the founding epoch names %s as creator and was sent by %s", policy.Creator, msg.sender)
	case pg.Epoch() != 0 || pg.MemberCount() != 1:
		return done, refusal(ruleRootNotOwned, "the founding epoch has number %d and %d leaves", pg.Epoch(), pg.MemberCount())
	}
	for _, l := range rooms.GroupLeaves(pg) {
		if l.Cred.User != msg.sender {
			return done, refusal(string(rooms.RuleSenderNotCredential), "the founding leaf is of %s, the event by %s", l.Cred.User, msg.sender)
		}
	}
	if !r.state.MayFound(msg.sender) {
		return done, refusal(ruleRootNotOwned, "%s neither created the room nor may change its encryption", msg.sender)
	}
	if known { // the head that the module started at was of this group
		r.data.Late, r.dirty = false, true
		return done, nil
	}
	base, err := rooms.BaseFacts(pg, ref, msg.event, 0, federation.Ref{})
	if err != nil {
		return done, err
	}
	if r.m != nil {
		roomLog(ctx, r.id).Warn().Str("ref", ref.Short()).Msg("Found the beginning of the room's group, which is not the one that was followed")
		if err := e.forgetGroup(ctx, r); err != nil {
			return done, err
		}
	}
	return done, e.begin(ctx, r, base, pg, msg, sc)
}

// begin starts to follow a group.
func (e *Engine) begin(ctx context.Context, r *room, base federation.Base, pg *mls.PublicGroup, msg *message, sc *storedCommit) error {
	m, err := federation.New(e.machineConfig(r), base)
	if err != nil {
		return err
	}
	r.m, r.status, r.dirty, r.stepped, r.planDirty, r.retryWaiting = m, store.RoomServing, true, true, true, true
	r.data.Root = &rooms.EventRef{Ref: rooms.Hash(base.Ref), Event: msg.event, Epoch: base.Epoch}
	// The room must be there before what refers to it, and it is.
	if err := e.keepGroup(ctx, r, base.Ref, pg, true); err != nil {
		return err
	}
	roomLog(ctx, r.id).Info().Str("ref", base.Ref.Short()).Bool("listed", m.Listed()).Msg("Following the group of a room")
	r.moved = 100 * reopenAtOnce
	return e.putCommit(ctx, r, base.Ref, "", base.Epoch, msg, sc)
}

// takeFounding takes the founding commit of a group's successor.
func (e *Engine) takeFounding(ctx context.Context, r *room, msg *message, c *rooms.CommitContent, sc *storedCommit) (outcome, error) {
	parent := federation.Ref(c.Parent)
	if r.m == nil || !r.m.Held(parent) {
		if r.m != nil {
			r.want(federation.Fetch{Commit: parent, EventID: string(c.ParentEvent)})
		}
		return waiting, nil
	}
	gi, err := mls.ParseMessage(c.GroupInfo)
	if err != nil {
		return done, err
	}
	ref, err := rooms.RootRef(gi)
	if err != nil {
		return done, err
	}
	if r.m.Held(ref) {
		return done, nil
	}
	var tree []byte
	if s := c.Snapshot; s != nil && s.File != nil {
		data, bad, ok := e.media.get(s.File.SHA256)
		if !ok {
			e.download(r, s.File)
			return waiting, nil
		}
		if bad != nil {
			return done, bad
		}
		tree = data
	} else if s != nil {
		tree = s.Tree
	}
	next, err := mls.NewPublicGroup(e.mls, gi, tree)
	if err != nil {
		return done, err
	}
	old, err := e.group(ctx, r, parent)
	if err != nil {
		return done, err
	}
	fc, err := rooms.CheckFounding(rooms.CommitInput{
		Room: r.id, Sender: msg.sender, Event: msg.event, Content: c, Ref: ref, Tree: old, Parent: parent,
	}, old.ReInit(), next)
	if err != nil {
		return done, err
	}
	return done, e.keepCommit(ctx, r, fc, next, msg, sc, true)
}

// download fetches media that an event names; the events that wait for it are
// looked at again when it came.
func (e *Engine) download(r *room, f *rooms.File) {
	key := fmt.Sprintf("media %x", f.SHA256[:])
	hash, uri, size := [32]byte(f.SHA256), f.MXC, f.Size
	limit := min(e.d.Config.Limits.MediaBytes, rooms.MaxFileSize)
	file := *f
	if p := r.mediaPause[hash]; p != nil && !p.ready(e.d.Monotonic()) {
		r.retryAt(p.until)
		return
	}
	e.jobs.add(&job{room: r.id, key: key, media: true, run: func(ctx context.Context) func(context.Context) error {
		var data []byte
		var err error
		if size > limit {
			err = refusal(string(rooms.RuleEventTooLarge), "media of %d bytes, at most %d are read", size, limit)
		} else {
			data, err = e.d.HS.Download(ctx, uri, size)
		}
		return func(ctx context.Context) error {
			r := e.rooms[r.id] // it may have been read anew meanwhile
			if r == nil {
				return nil
			}
			if _, ok := errors.AsType[*ruleError](err); err != nil && !ok && homeserver.IsTemporary(err) || errors.Is(err, homeserver.ErrNotFound) {
				// It may still come: federated media is there a little later.
				p := r.mediaPause[hash]
				if p == nil {
					p = new(pause)
					r.notePause(hash, p)
				}
				if p.fail(e.d.Monotonic(), mediaRetry, mediaRetryMax); p.tries < mediaTries {
					r.retryAt(p.until)
					return nil
				}
				err = refusal(string(rooms.RuleMediaHash), "media %s cannot be had: %v", uri, err)
			}
			if err == nil {
				err = file.Check(data)
			}
			if err != nil && ruleOf(err) == ruleFailed {
				err = refusal(string(rooms.RuleMediaHash), "media %s cannot be had: %v", uri, err)
			}
			if err != nil {
				data = nil
			}
			delete(r.mediaPause, hash)
			e.media.put(hash, data, err)
			r.retryWaiting = true
			return nil
		}
	}})
}

// gone tells who has left the room or is banned, as far as the module knows.
func (r *room) gone() func(id.UserID) bool {
	if !r.loaded {
		return nil
	}
	state := r.state
	return func(user id.UserID) bool {
		switch state.Members[user].Membership {
		case rooms.MembershipLeave, rooms.MembershipBan, rooms.MembershipKnock:
			return true // what is not known is no reason
		}
		return false
	}
}

// headChanged counts what the head gained and lost, for the next snapshot.
func (e *Engine) headChanged(ctx context.Context, r *room, a federation.HeadChanged) error {
	now := e.d.Monotonic()
	for _, ref := range r.m.Path(a.Fork, a.To) {
		r.data.Commits++
		if c, ok := r.m.Known(ref); ok {
			if len(c.Added) > 0 || c.Founding != nil {
				r.joinerUntil = now + joinerTime
			}
			if c.Founding != nil {
				r.data.Snapshot = nil // it is of another group
			}
			if config, _ := r.m.ConfigAt(ref); c.Era != nil {
				e.d.Metrics.Inc(metrics.Eras)
			} else if config == ref {
				e.d.Metrics.Inc(metrics.ListChanges)
			}
		}
		if row, err := e.d.Store.Commit(ctx, r.id, ref.String()); err == nil {
			r.data.Bytes += int64(len(row.Content))
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	if a.Fork != a.From {
		e.d.Metrics.Inc(metrics.Forks)
		for range r.m.Path(a.Fork, a.From) {
			e.d.Metrics.Inc(metrics.Commits, "lost")
		}
	}
	clear(r.proposed)
	r.planAt = now + replanDelay
	return nil
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
