package appservice

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	purposeProof = "proof" // of an upload
	jobProof     = "proof" // that upload
)

// proof returns the proof chain that leads to a head, nil if this module cannot
// show one: it came late, and has not seen the group's beginning.
func (e *Engine) proof(ctx context.Context, r *room, head federation.Ref) ([]byte, error) {
	if r.data.Root == nil || r.data.Late {
		return nil, nil
	}
	chain := r.m.ProofChain()
	root := federation.Ref(r.data.Root.Ref)
	from := root
	if n := len(chain.Steps); n > 0 {
		from = chain.Steps[n-1].Ref
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
		held[ref] = c
		return c
	}
	p := rooms.NewProofChain(chain, root, r.m.Path(from, head), r.m.AcceptOf(head), source)
	if failed != nil || p == nil {
		return nil, failed
	}
	return p.Encode(), nil
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
				zerolog.Ctx(ctx).Warn().Err(err).Stringer("room_id", r.id).Int("bytes", len(proof)).Bool("temporary", homeserver.IsTemporary(err)).Msg("Could not upload a proof chain")
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
