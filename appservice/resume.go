package appservice

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A module signs nothing after a start before it knows that its database is not
// older than what it has signed: it would vote a second time. Always, the room's
// history was compared before, and no sequencer's head that the room holds shows a
// receipt of the own key that is not here; if one does, the key is retired. A receipt
// that a head names and does not show is nobody's proof: it is looked for, for a while.
// After a restore from a backup the homeserver may have gone back in time as well, so
// besides q - 1 of the other sequencers must have said anew what they know, q being a
// majority.

// askHeadsEvery is how often a restored module asks the others for their heads.
const askHeadsEvery = 2 * time.Minute

// nameWait is how long a module that starts looks for receipts of its own key which heads
// name and do not show. Whoever holds one has it posted again within two minutes. It is
// the whole wait, for however many: else who makes up names would silence it for good.
const nameWait = 5 * time.Minute

// comparison is how far a room was compared before the module signs in it.
type comparison struct {
	nonce   string             // of the question for heads
	heard   map[id.UserID]bool // modules that answered it
	askNext time.Duration
	warned  bool
	named   time.Duration // until when receipts that are only named are looked for
	inVain  bool          // they were
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
	list := r.inForce()
	if _, listed := list.Rank(own); !listed && e.restored == r.data.Restored {
		return true, nil // nothing it signs counts, but for ready receipts of a new list
	}
	if len(list) > 1 && !r.loaded {
		return false, nil
	}
	var names []id.UserID
	for user, head := range r.heads {
		if !r.lists(user) {
			continue
		}
		named, err := e.ownReceipts(ctx, r, head)
		if err != nil {
			return false, err
		}
		if r.m.Retired() {
			return false, nil // the next act gives the room another key
		}
		if named {
			names = append(names, user)
		}
	}
	if wait, err := e.lookForNamed(ctx, r, names, now); wait || err != nil {
		return false, err
	}
	others, answered := 0, 0
	for _, s := range policy.Sequencers {
		if bytes.Equal(s.ReceiptKey, own) {
			continue
		}
		others++
		if r.resume.heard[id.UserID(s.User)] {
			answered++
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
			roomLog(ctx, r.id).Info().Int("others", others).Msg("The database was restored: asking the room's other sequencers what this module has signed")
		}
	}
	if r.nextAct == 0 || r.resume.askNext < r.nextAct {
		r.nextAct = r.resume.askNext
	}
	return false, nil
}

// ownReceipts looks at what a listed module's head says of this module's own receipts.
// One that it shows and the database does not hold retires the key. named tells that it
// names one above all that this module signed, and does not show it.
func (e *Engine) ownReceipts(ctx context.Context, r *room, head *rooms.HeadContent) (named bool, err error) {
	own := e.receiptKey(r).Public().(ed25519.PublicKey)
	top := uint64(0)
	for _, mark := range head.Receipts {
		if !bytes.Equal(mark.Key, own) {
			continue
		}
		_, err := e.d.Store.Receipt(ctx, r.id, federation.Ref(mark.Hash).String())
		if err == nil {
			continue
		}
		if !errors.Is(err, store.ErrNotFound) {
			return false, err
		}
		if len(mark.Signed) > 0 {
			acts, err := r.m.Step(federation.Shown{Signed: mark.Signed, Signature: mark.Sig})
			if err == nil {
				if err := e.carryOut(ctx, r, acts); err != nil {
					return false, err
				}
				continue
			}
		}
		top = max(top, mark.Counter)
	}
	return top > r.m.Signed(), nil
}

// lookForNamed reports whether the module still waits for receipts of its own key that
// the heads of some name and do not show. They are asked for in the room (compareMarks).
func (e *Engine) lookForNamed(ctx context.Context, r *room, names []id.UserID, now time.Duration) (wait bool, err error) {
	if len(names) == 0 || r.resume.inVain {
		return false, nil
	}
	slices.Sort(names)
	log := roomLog(ctx, r.id).With().Any("senders", names).Logger()
	if r.resume.named == 0 {
		r.resume.named = now + nameWait
		for _, user := range names {
			r.compareMarks(r.heads[user])
		}
		log.Error().Dur("for", nameWait).Msg("Sequencers name a receipt of this module's key that the database does not hold, and do not show it. The module signs nothing in the room until it has looked for it; is the database an old copy?")
	}
	if now < r.resume.named {
		if r.nextAct == 0 || r.resume.named < r.nextAct {
			r.nextAct = r.resume.named
		}
		return true, nil
	}
	r.resume.inVain = true
	e.d.Metrics.Rejected(ruleNotShown)
	log.Error().Msg("Nobody shows the receipt of this module's key that sequencers name: they lie, or run an older version. The module signs again; an admin of the room should take a liar off the list")
	detail := fmt.Sprintf("%s name a receipt of this module's key that nobody shows: they lie, or run an older version; an admin of the room should take a liar off the list", names)
	return false, e.d.Store.PutRefusal(ctx, &store.Refusal{Room: r.id, Rule: ruleNotShown, Detail: detail})
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
