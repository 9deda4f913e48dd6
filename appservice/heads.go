package appservice

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	inlineTree       = 12_000                // a tree up to this size goes into the event itself
	joinerTime       = 2 * time.Minute       // how long a newcomer is given fresh heads
	publishSoon      = time.Second           // between heads while a newcomer needs them, at least
	publishSlow      = 8 * time.Second       // and at most
	publishRate      = 200_000               // bytes of trees in a second, of one room
	publishShare     = 20 * time.Millisecond // for each room in which one does
	publishRest      = time.Minute           // after the last change, when nobody does
	publishRestSmall = 15 * time.Second      // the same, for a group whose tree fits into the event
	purposeTree      = "tree"                // of an upload
	jobTree          = "snapshot"            // that upload
	contentBinary    = "application/octet-stream"
)

// publication is what a room's newest P.head and the next depend on.
type publication struct {
	joinerUntil  time.Duration // a newcomer may need the newest head until then
	publishPause pause
	changed      time.Duration // when the head was first seen to differ from the published one
	lastPublish  time.Duration
	uploads      bool // the next one has something to upload, as far as is known: it is not made only to be thrown away
}

// publish tells the room what the module knows as newest: its keys when it
// comes in, and the head with a tree when a newcomer needs it, when much has
// changed, or a while after the last change. It returns when to look again.
func (e *Engine) publish(ctx context.Context, r *room, now time.Duration) (time.Duration, error) {
	if !r.loaded || r.status != store.RoomJoined && r.status != store.RoomServing {
		return 0, nil
	}
	if !r.publishPause.ready(now) {
		return r.publishPause.until, nil
	}
	if r.data.Loose && r.data.Announced && r.state.CanSend(e.d.HS.UserID(), rooms.TypeHead, true) {
		r.data.Announced = false // who follows the room only now did not see the one in the timeline
	}
	if !r.live() {
		if r.data.Announced || !r.gap.complete {
			return 0, nil
		}
		return 0, e.sendHead(ctx, r, e.keys(r), nil)
	}
	head := r.m.SafeHead()
	if head == r.data.Published && r.m.NewestFinal() == r.data.Final && r.data.Announced && (r.data.WithTree || now >= r.joinerUntil) {
		r.changed = 0
		return 0, nil
	}
	if r.changed == 0 {
		r.changed = now
	}
	due := r.changed + publishRest // not later for changes in between
	many := r.data.Commits >= e.d.Config.Rooms.SnapshotCommits || r.data.Bytes >= e.d.Config.Rooms.SnapshotBytes
	switch {
	case !r.data.Announced:
		due = now
	case !r.m.Listed() && !r.data.Published.IsZero():
		// The modules of the list serve newcomers.
	case r.data.Published.IsZero():
		due = r.lastPublish + publishSoon
	case now < r.joinerUntil || many:
		// With newcomers in many rooms each waits for some seconds, and so for what the
		// same commit brings about: accepts go first.
		pace := min(max(publishSoon, time.Duration(e.newcomers)*publishShare), publishSlow)
		apart := pace
		if s := r.data.Snapshot; s != nil && s.File != nil { // the tree is uploaded anew each time
			apart = min(apart+time.Duration(s.File.Size)*time.Second/publishRate, publishSlow)
		}
		due = min(due, max(r.lastPublish+apart, r.changed+pace-publishSoon))
	case r.data.Snapshot == nil:
		due = r.changed + publishRestSmall
	}
	if now < due {
		return due, nil
	}
	if e.jobs.under(r.id, jobTree) || e.jobs.under(r.id, jobProof) {
		return 0, nil // until it is uploaded, which publishes a head
	}
	if r.uploads && e.jobs.full() {
		return now + publishSoon, nil
	}
	r.uploads = false
	tree, err := e.group(ctx, r, head)
	if err != nil {
		return 0, err
	}
	raw := tree.RatchetTree()
	snapshot := &rooms.Snapshot{TreeHash: bytes.Clone(tree.TreeHash()), AtCommit: rooms.Hash(head)}
	if len(raw) <= inlineTree {
		snapshot.Tree = raw
		return e.publishHead(ctx, r, head, snapshot, now)
	}
	if s := r.data.Snapshot; s != nil && (now >= r.joinerUntil && !many || s.AtCommit == snapshot.AtCommit && s.File != nil) {
		return e.publishHead(ctx, r, head, s, now)
	}
	if r.uploads = true; e.jobs.full() {
		return now + publishSoon, nil
	}
	e.upload(r, head, raw, snapshot)
	return 0, nil
}

// upload puts a large tree into media, then publishes the head it belongs to.
func (e *Engine) upload(r *room, head federation.Ref, tree []byte, snapshot *rooms.Snapshot) {
	e.jobs.add(&job{room: r.id, key: jobTree, bytes: len(tree), run: func(ctx context.Context) func(context.Context) error {
		uri, err := e.d.HS.Upload(ctx, tree, contentBinary)
		return func(ctx context.Context) error {
			if e.rooms[r.id] != r || r.m == nil || !r.m.Held(head) {
				return nil
			}
			now := e.d.Monotonic()
			if err != nil {
				r.publishPause.fail(now, 5*time.Second, 10*time.Minute)
				roomLog(ctx, r.id).Warn().Err(err).Int("bytes", len(tree)).Bool("temporary", homeserver.IsTemporary(err)).Msg("Could not upload a tree")
				return nil
			}
			e.d.crash(crashUploaded)
			snapshot.File = rooms.NewFile(uri, tree)
			e.d.Metrics.Inc(metrics.Snapshots)
			r.data.Snapshot, r.dirty = snapshot, true
			err := e.update(ctx, r, func(ctx context.Context) error {
				return e.d.Store.PutMedia(ctx, r.id, &store.Media{
					SHA256: hex.EncodeToString(snapshot.File.SHA256[:]), URI: uri, Size: int64(len(tree)), Purpose: purposeTree, Ref: head.String(),
				})
			})
			if err != nil {
				return err
			}
			_, err = e.publishHead(ctx, r, head, snapshot, now)
			return err
		}
	}})
}

// publishWith posts the head with a tree and a proof chain, which is in media if
// it is large.
func (e *Engine) publishWith(ctx context.Context, r *room, head federation.Ref, snapshot *rooms.Snapshot, proof []byte, now time.Duration) error {
	content := e.keys(r)
	scope, _ := r.m.ScopeAt(head)
	config, _ := r.m.ConfigAt(head)
	content.Group, content.Root, content.Snapshot, content.Cfg = scope.Group, r.data.Root, snapshot, rooms.Hash(config)
	content.Era, _ = r.m.EraOf()
	content.Answers = r.anew.answers
	content.Receipts = e.receiptsKnown(r)
	if len(proof) > rooms.MaxInlineProof {
		content.ProofFile = r.data.Proof
	} else {
		content.Proof = proof
	}
	var err error
	if content.Accepted, content.GroupInfo, err = e.eventRef(ctx, r, head); err != nil {
		return err
	}
	if content.Final, _, err = e.eventRef(ctx, r, r.m.NewestFinal()); err != nil {
		return err
	}
	if err := e.sendHead(ctx, r, content, func() {
		r.data.Published, r.data.Final, r.data.WithTree = head, r.m.NewestFinal(), snapshot.AtCommit == rooms.Hash(head)
		if snapshot.AtCommit == rooms.Hash(head) {
			r.data.Commits, r.data.Bytes = 0, 0
		}
	}); err != nil {
		return err
	}
	if e.rooms[r.id] == r {
		r.lastPublish, r.changed = now, 0
		r.publishPause.reset()
	}
	return nil
}

// receiptsKnown returns the newest receipt of each listed module, shown as it was signed
// unless it is the own one: a module whose database is an old copy learns from it what
// it has signed.
func (e *Engine) receiptsKnown(r *room) (known []rooms.ReceiptRef) {
	own := e.receiptKey(r).Public().(ed25519.PublicKey)
	list := r.inForce()
	for _, mark := range r.m.ShownReceipts(list, rooms.MaxShownReceipts/max(len(list), 1)) {
		ref := rooms.ReceiptRef{Key: mark.Key, Counter: mark.Counter, Hash: rooms.Hash(mark.Hash)}
		if !bytes.Equal(mark.Key, own) {
			ref.Signed, ref.Sig = mark.Signed, mark.Signature
		}
		known = append(known, ref)
	}
	return known
}

// eventRef names a commit by its event, with the GroupInfo it carries.
func (e *Engine) eventRef(ctx context.Context, r *room, ref federation.Ref) (*rooms.EventRef, []byte, error) {
	row, err := e.d.Store.Commit(ctx, r.id, ref.String())
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, nil // where a room was joined late
	}
	if err != nil {
		return nil, nil, err
	}
	var sc storedCommit
	if err := json.Unmarshal(row.Content, &sc); err != nil {
		return nil, nil, fmt.Errorf("appservice: stored commit %s: %w", ref.Short(), err)
	}
	c, err := sc.content()
	if err != nil {
		return nil, nil, fmt.Errorf("appservice: stored commit %s: %w", ref.Short(), err)
	}
	gi := []byte(c.GroupInfo)
	if len(gi) > inlineTree {
		gi = nil // with a tree in it: the snapshot is there for that
	}
	return &rooms.EventRef{Ref: rooms.Hash(ref), Event: row.EventID, Epoch: row.Epoch}, gi, nil
}

// keys is what the module says of itself in every room.
func (e *Engine) keys(r *room) *rooms.HeadContent {
	c := &rooms.HeadContent{Version: rooms.Version, ReceiptKey: rooms.Bytes(e.receiptKey(r).Public().(ed25519.PublicKey)), Server: e.d.HS.ServerName(), Nonce: e.nonce()}
	for scheme, key := range e.d.Keys.External {
		c.ExternalSenders = append(c.ExternalSenders, rooms.ExternalSender{Scheme: uint16(scheme), Key: rooms.Bytes(key.Public())})
	}
	if e.mls.ExperimentalSuites {
		for _, cs := range mls.ExperimentalCipherSuites() {
			if rooms.UsableSuite(cs) {
				c.Suites = append(c.Suites, uint16(cs))
			}
		}
	}
	slices.SortFunc(c.ExternalSenders, func(a, b rooms.ExternalSender) int { return int(a.Scheme) - int(b.Scheme) })
	return c
}

// sendHead posts a head: as state where the bot's power allows it, so that
// newcomers see it, else into the timeline. One that still waits to be sent is
// replaced.
func (e *Engine) sendHead(ctx context.Context, r *room, content *rooms.HeadContent, then func()) error {
	raw, err := rooms.Encode(content)
	if rooms.RuleOf(err) == rooms.RuleEventTooLarge {
		for i := range content.Receipts { // named alone, they are asked for
			content.Receipts[i].Signed, content.Receipts[i].Sig = nil, nil
		}
		raw, err = rooms.Encode(content)
	}
	if rooms.RuleOf(err) == rooms.RuleEventTooLarge && len(content.Proof) > 0 {
		content.Proof = nil // newcomers see the room as unconfirmed for a while
		raw, err = rooms.Encode(content)
	}
	if err != nil {
		return err
	}
	bot := e.d.HS.UserID()
	row := &store.OutboxRow{Kind: store.OutboxEvent, Type: rooms.TypeHead, Content: raw, Priority: store.PriorityProposal}
	if r.state.CanSend(bot, rooms.TypeHead, true) {
		row.Kind, row.StateKey = store.OutboxState, string(bot)
	}
	return e.update(ctx, r, func(ctx context.Context) error {
		waiting, err := e.d.Store.RoomOutbox(ctx, r.id, store.OutboxWaiting, 100)
		if err != nil {
			return err
		}
		for _, old := range waiting {
			if old.Type == rooms.TypeHead {
				if err := e.d.Store.DropOutbox(ctx, old.ID); err != nil {
					return err
				}
			}
		}
		r.data.Announced, r.data.Loose, r.dirty = true, row.Kind == store.OutboxEvent, true
		if then != nil {
			then()
		}
		e.d.Metrics.Inc(metrics.Heads)
		return e.put(ctx, r, row)
	})
}
