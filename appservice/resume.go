package appservice

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A module signs nothing after a start before it knows that its database is not
// older than what it has signed: it would vote a second time. Always, the room's
// history was compared before, and no sequencer's head that the room holds names
// a receipt of the own key that is not here; if one does, that receipt is asked
// for, and shows itself forged or retires the key. After a restore from a
// backup the homeserver may have gone back in time as well, so besides q - 1 of
// the other sequencers must have said anew what they know, q being a majority.

// askHeadsEvery is how often a restored module asks the others for their heads.
const askHeadsEvery = 2 * time.Minute

// comparison is how far a room was compared before the module signs in it.
type comparison struct {
	nonce   string             // of the question for heads
	heard   map[id.UserID]bool // modules that answered it
	askNext time.Duration
	warned  bool
}

// hear notes that a module answered what a restored one asked.
func (r *room) hear(sender id.UserID, head *rooms.HeadContent) {
	if r.resumed || r.resume.nonce == "" || !slices.Contains(head.Answers, r.resume.nonce) || len(r.resume.heard) >= 64 {
		return
	}
	if r.resume.heard == nil {
		r.resume.heard = make(map[id.UserID]bool)
	}
	r.resume.heard[sender], r.stepped = true, true
}

// mayResume reports whether the module may sign in a room after a start.
func (e *Engine) mayResume(ctx context.Context, r *room, now time.Duration) (bool, error) {
	own := e.receiptKey(r).Public().(ed25519.PublicKey)
	policy, _ := r.m.PolicyAt(r.m.Head())
	if _, listed := policy.Sequencers.Rank(own); !listed && e.restored == r.data.Restored {
		return true, nil // nothing it signs counts, but for ready receipts of a new list
	}
	if len(policy.Sequencers) > 1 && !r.loaded {
		return false, nil
	}
	others, answered := 0, 0
	for _, s := range policy.Sequencers {
		user := id.UserID(s.User)
		if bytes.Equal(s.ReceiptKey, own) {
			continue
		}
		others++
		if r.resume.heard[user] {
			answered++
		}
		head := r.heads[user]
		if head == nil {
			continue
		}
		for _, mark := range head.Receipts {
			if !bytes.Equal(mark.Key, own) {
				continue
			}
			ahead, err := e.isAhead(ctx, r, mark.Counter, federation.Ref(mark.Hash))
			if err != nil {
				return false, err
			}
			if ahead {
				if !r.resume.warned {
					r.resume.warned = true
					zerolog.Ctx(ctx).Error().Stringer("room_id", r.id).Stringer("sender", user).Uint64("counter", mark.Counter).
						Msg("A sequencer knows a receipt of this module's key that the database does not hold. The module signs nothing in the room until that receipt is here; is the database an old copy?")
				}
				r.wantReceipt(federation.Fetch{Receipt: federation.Ref(mark.Hash), ReceiptKey: own, Counter: mark.Counter})
				return false, nil
			}
		}
	}
	if e.restored == r.data.Restored || others == 0 || answered >= policy.Sequencers.Quorum()-1 {
		return true, nil
	}
	if now >= r.resume.askNext {
		r.resume.askNext = now + askHeadsEvery
		if r.resume.nonce == "" {
			r.resume.nonce = e.nonce()
		}
		r.anew.heads = r.resume.nonce
		if !r.resume.warned {
			r.resume.warned = true
			zerolog.Ctx(ctx).Info().Stringer("room_id", r.id).Int("others", others).Msg("The database was restored: asking the room's other sequencers what this module has signed")
		}
	}
	if r.nextAct == 0 || r.resume.askNext < r.nextAct {
		r.nextAct = r.resume.askNext
	}
	return false, nil
}

// isAhead reports whether a receipt of the own key, named by another module, is
// newer than all that the database holds.
func (e *Engine) isAhead(ctx context.Context, r *room, counter uint64, hash federation.Ref) (bool, error) {
	if _, err := e.d.Store.Receipt(ctx, r.id, hash.String()); err == nil || !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	return counter > r.m.Signed(), nil
}

// maxReceiptKeys bounds how often a room's key can be retired.
const maxReceiptKeys = 100

// receiptKey returns the key that signs in a room.
func (e *Engine) receiptKey(r *room) ed25519.PrivateKey {
	key, ok := e.d.Keys.receipt(r.data.Key)
	if !ok {
		return e.d.Keys.Receipt // room refuses such a room
	}
	return key
}

// rekey gives a room whose key is retired the next one, and lets the room know.
// It signs once an admin has put it into the list.
func (e *Engine) rekey(ctx context.Context, r *room) error {
	next := r.data.Key + 1
	if next >= maxReceiptKeys {
		return nil
	}
	// The database says what keys there are: a key made in a transaction that
	// failed is none.
	key, err := makeReceiptKey(ctx, e.d.Store, next, e.d.Rand)
	if err != nil {
		return err
	}
	e.d.Keys.Later = append(e.d.Keys.Later[:next-1:next-1], append([]ed25519.PrivateKey{key}, e.d.Keys.Later[min(next, len(e.d.Keys.Later)):]...)...)
	saved, err := r.m.MarshalBinary()
	if err != nil {
		return err
	}
	r.data.Key = next
	if r.m, err = federation.Unmarshal(e.machineConfig(r), saved); err != nil {
		return err
	}
	r.m.Rekey()
	r.resumed, r.dirty, r.data.Announced = false, true, false
	e.d.crash(crashRekeyed)
	return nil
}
