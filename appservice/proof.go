package appservice

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	purposeProof = "proof" // of an upload
	jobProof     = "proof" // that upload
)

// began is what a module keeps that began to follow a group above its beginning.
type began struct {
	Base  federation.Ref `json:"base"`            // where it began
	Info  rooms.Bytes    `json:"group_info"`      // of that epoch, signed by its author
	Proof rooms.Bytes    `json:"proof,omitempty"` // what another module's head proved of the way there
}

func beganKey(room id.RoomID) string { return "began/" + string(room) }

// began returns what the module keeps of where it began, nil if that is the group's
// beginning.
func (e *Engine) began(ctx context.Context, room id.RoomID) (*began, error) {
	raw, err := e.d.Store.Get(ctx, beganKey(room))
	if err != nil || raw == "" {
		return nil, err
	}
	b := new(began)
	if err := json.Unmarshal([]byte(raw), b); err != nil {
		return nil, fmt.Errorf("appservice: where the module began in room %s: %w", room, err)
	}
	return b, nil
}

func (e *Engine) setBegan(ctx context.Context, room id.RoomID, b *began) error {
	raw, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return e.d.Store.Set(ctx, beganKey(room), string(raw))
}

// proof returns the proof chain that leads to a head, nil if this module cannot
// show one: it came late, has not seen the group's beginning, and found nobody who
// proved the way to where it began.
func (e *Engine) proof(ctx context.Context, r *room, head federation.Ref) ([]byte, error) {
	if r.data.Root == nil {
		return nil, nil
	}
	var before *rooms.ProofChain
	var start began
	if !r.m.FromRoot() {
		b, err := e.began(ctx, r.id)
		if err != nil || b == nil || len(b.Proof) == 0 {
			return nil, err
		}
		if before, err = rooms.DecodeProof(b.Proof); err != nil {
			return nil, fmt.Errorf("appservice: what was proven of room %s before the module began: %w", r.id, err)
		}
		start = *b
	}
	chain := r.m.ProofChain()
	root := federation.Ref(r.data.Root.Ref)
	from := root
	if n := len(chain.Steps); n > 0 {
		from = chain.Steps[n-1].Ref
	} else if before != nil {
		return nil, nil // nothing became final since
	}
	var failed error
	held := make(map[federation.Ref]*rooms.CommitContent)
	source := func(ref federation.Ref) *rooms.CommitContent {
		if c, ok := held[ref]; ok {
			return c
		}
		c, err := e.commitContent(ctx, r, ref)
		if err != nil {
			failed = err
		}
		if c == nil && before != nil && ref == start.Base {
			c = &rooms.CommitContent{GroupInfo: start.Info}
		}
		held[ref] = c
		return c
	}
	path, accept := r.m.Path(from, head), r.m.AcceptOf(head)
	var p *rooms.ProofChain
	if before == nil {
		p = rooms.NewProofChain(chain, root, path, accept, source)
	} else if p = before.Continue(chain, path, accept, source); p != nil {
		if _, err := p.Check(r.id, head); err != nil && rooms.RuleOf(err) != rooms.RuleFinalNotProven {
			roomLog(ctx, r.id).Warn().Err(err).Msg("What another module proved does not lead to where this one began")
			return nil, failed
		}
	}
	if failed != nil || p == nil {
		return nil, failed
	}
	return p.Encode(), nil
}

// takeBefore looks in the heads of modules for what proves the way to where this one
// began to follow the group, so that it can prove its own heads, and returns when to look
// again. What such a head shows is checked as newcomers do, but for the devices it rests
// on, which a module does not know: newcomers look for these themselves.
func (e *Engine) takeBefore(ctx context.Context, r *room, now time.Duration) (next time.Duration, err error) {
	if !r.live() || !r.loaded || !r.lookBefore || r.data.Before || r.data.Root == nil || r.m.FromRoot() {
		return 0, nil
	}
	if !r.beforePause.ready(now) {
		return r.beforePause.until, nil
	}
	r.lookBefore = false
	b, err := e.began(ctx, r.id)
	if err != nil || b == nil {
		return 0, err
	}
	for _, sender := range slices.Sorted(maps.Keys(r.heads)) {
		head := r.heads[sender]
		if !r.mayCount(r.state, sender) || head.Accepted == nil || head.Root == nil || head.Root.Ref != r.data.Root.Ref {
			continue
		}
		if !r.m.Extends(federation.Ref(head.Accepted.Ref), b.Base) {
			r.lookBefore = r.lookBefore || !r.m.Held(federation.Ref(head.Accepted.Ref)) // it may still come
			continue
		}
		raw, coming, err := e.proofShown(r, head)
		if err == nil && coming {
			r.lookBefore = true
			continue
		}
		if err == nil {
			_, err = head.Check(r.id, raw)
		}
		if err != nil {
			if rooms.RuleOf(err) != rooms.RuleFinalNotProven {
				e.d.Metrics.Rejected(ruleOf(err))
			}
			continue
		}
		chain, err := rooms.DecodeProof(raw)
		if err != nil {
			continue // Check has read it
		}
		before, ok := chain.LeadingTo(func(ref federation.Ref) bool { return ref != b.Base && r.m.Extends(ref, b.Base) })
		if !ok {
			continue
		}
		b.Proof = before.Encode()
		roomLog(ctx, r.id).Info().Stringer("sender", sender).Msg("Another module proves the way to where this one began to follow the group")
		return 0, e.update(ctx, r, func(ctx context.Context) error {
			r.data.Before, r.data.Published, r.dirty = true, federation.Ref{}, true
			return e.setBegan(ctx, r.id, b)
		})
	}
	r.beforePause.fail(now, 10*time.Second, 10*time.Minute)
	if r.lookBefore {
		return r.beforePause.until, nil
	}
	return 0, nil
}

// proofShown returns the proof chain that a head shows, if any. One that has to be
// fetched is coming.
func (e *Engine) proofShown(r *room, head *rooms.HeadContent) (raw []byte, coming bool, err error) {
	file := head.ProofFile
	if file == nil {
		return head.Proof, false, nil
	}
	data, bad, ok := e.media.get(file.SHA256)
	if !ok {
		e.download(r, file)
	}
	return data, !ok, bad
}

// commitContent reads a commit that was followed, nil if there is none.
func (e *Engine) commitContent(ctx context.Context, r *room, ref federation.Ref) (*rooms.CommitContent, error) {
	row, err := e.d.Store.Commit(ctx, r.id, ref.String())
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var sc storedCommit
	if err := json.Unmarshal(row.Content, &sc); err != nil {
		return nil, err
	}
	return sc.content()
}

// uploadProof puts a proof chain that is too large for an event into media, then
// publishes the head. A homeserver that takes no media costs the proof, not the
// head.
func (e *Engine) uploadProof(r *room, head federation.Ref, proof []byte, snapshot *rooms.Snapshot) {
	e.jobs.add(&job{room: r.id, key: jobProof, bytes: len(proof), run: func(ctx context.Context) func(context.Context) error {
		uri, err := e.d.HS.Upload(ctx, proof, contentBinary)
		return func(ctx context.Context) error {
			if e.rooms[r.id] != r || r.m == nil || !r.m.Held(head) {
				return nil
			}
			now := e.d.Monotonic()
			if err != nil {
				r.publishPause.fail(now, 5*time.Second, 10*time.Minute)
				roomLog(ctx, r.id).Warn().Err(err).Int("bytes", len(proof)).Bool("temporary", homeserver.IsTemporary(err)).Msg("Could not upload a proof chain")
				return e.publishWith(ctx, r, head, snapshot, nil, now)
			}
			r.data.Proof, r.dirty = rooms.NewFile(uri, proof), true
			if err := e.update(ctx, r, func(ctx context.Context) error {
				return e.d.Store.PutMedia(ctx, r.id, &store.Media{
					SHA256: hex.EncodeToString(r.data.Proof.SHA256[:]), URI: uri, Size: int64(len(proof)), Purpose: purposeProof, Ref: head.String(),
				})
			}); err != nil {
				return err
			}
			return e.publishWith(ctx, r, head, snapshot, proof, now)
		}
	}})
}

// publishHead posts the head with a tree and the proof that leads to it. If the
// proof has to wait, it returns when to look again.
func (e *Engine) publishHead(ctx context.Context, r *room, head federation.Ref, snapshot *rooms.Snapshot, now time.Duration) (time.Duration, error) {
	proof, err := e.proof(ctx, r, head)
	if err != nil {
		return 0, err
	}
	if len(proof) > rooms.MaxInlineProof && (r.data.Proof == nil || r.data.Proof.SHA256 != sha256.Sum256(proof)) {
		if r.uploads = true; e.jobs.full() {
			return now + publishSoon, nil
		}
		e.uploadProof(r, head, proof, snapshot)
		return 0, nil
	}
	return 0, e.publishWith(ctx, r, head, snapshot, proof, now)
}
