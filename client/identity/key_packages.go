package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	// MaxStock bounds the key packages of a device at the homeserver, over all
	// suites. Dendrite holds 100 one-time keys of a device over all algorithms
	// and drops the rest without a word.
	MaxStock = 20

	// keepExpired is how long the private parts of an expired key package are
	// kept: a Welcome made just before may be under way.
	keepExpired = 24 * time.Hour
	// lastResortAge is the age at which a key package of last resort is
	// replaced, half of the lifetime of 84 days.
	lastResortAge = 42 * 24 * time.Hour
	// lastResortEvery bounds how often a used one is replaced.
	lastResortEvery = time.Hour
	// keepLastResort is how many key packages of last resort are kept of one
	// suite, the newest included.
	keepLastResort = 3
	// maxKeyPackages bounds the stored key packages of this device.
	maxKeyPackages = 500
	// maxDirect bounds those among them that were handed out on request: anybody
	// can ask, and must not push out what lies at the homeserver.
	maxDirect = 100
)

// ErrNoKeyPackage reports that no key package of a device is to be had: it has
// none at its homeserver and did not answer.
var ErrNoKeyPackage = errors.New("identity: the device has no key package left and did not answer; it can be added when it is online again")

// DefaultStock returns how many key packages of each suite lie at the
// homeserver: two of each, and the rest of MaxStock of the first.
func DefaultStock(suites []mls.CipherSuite) map[mls.CipherSuite]int {
	stock := make(map[mls.CipherSuite]int, len(suites))
	left := MaxStock
	for n := len(suites) - 1; n > 0 && left > 2; n-- {
		stock[suites[n]] = 2
		left -= 2
	}
	if len(suites) > 0 {
		stock[suites[0]] = left
	}
	return stock
}

// packages is what is known about the stock at the homeserver.
type packages struct {
	mu       sync.Mutex
	counts   map[string]int // by algorithm; nil when unknown
	countsAt time.Time
	unused   map[string]bool // algorithms with an unused fallback key; nil where the homeserver says nothing
	asked    map[id.UserID][]time.Time
	waiting  map[string]chan *answer
	refill   sync.Mutex // one refill at a time
}

func (p *packages) init() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts, p.unused = nil, nil
	p.asked = make(map[id.UserID][]time.Time)
	p.waiting = make(map[string]chan *answer)
}

// counted takes the counts of a sync response. Without counts the response
// says nothing new.
func (p *packages) counted(counts map[string]int, unused []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if counts != nil {
		p.counts = counts
	}
	if unused != nil {
		p.unused = make(map[string]bool, len(unused))
		for _, algorithm := range unused {
			p.unused[algorithm] = true
		}
	}
}

func (p *packages) expireCounts(now time.Time, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.counts != nil && now.Sub(p.countsAt) >= after {
		p.counts = nil
	}
}

// Stock tells how many key packages of each suite lie at the homeserver, as it
// said last, and how many should. Have is nil while it has not said.
func (i *Identity) Stock() (have, want map[mls.CipherSuite]int) {
	i.packages.mu.Lock()
	defer i.packages.mu.Unlock()
	want = make(map[mls.CipherSuite]int, len(i.suites))
	if i.packages.counts != nil {
		have = make(map[mls.CipherSuite]int, len(i.suites))
	}
	for _, cs := range i.suites {
		want[cs] = i.stock[cs]
		if have != nil {
			have[cs] = i.packages.counts[string(rooms.SuiteKeyAlgorithm(cs))]
		}
	}
	return have, want
}

// EnsureKeyPackages tops the stock at the homeserver up, and uploads a key
// package of last resort per suite as fallback key. A homeserver without
// fallback keys ignores those.
func (i *Identity) EnsureKeyPackages(ctx context.Context) error {
	i.packages.mu.Lock()
	i.packages.counts = nil
	i.packages.mu.Unlock()
	return i.refill(ctx)
}

// refill uploads what is missing. The private parts are stored first.
func (i *Identity) refill(ctx context.Context) error {
	_, cli, err := i.current()
	if err != nil {
		return err
	}
	i.packages.refill.Lock()
	defer i.packages.refill.Unlock()
	i.packages.mu.Lock()
	counts, unused := i.packages.counts, i.packages.unused
	i.packages.mu.Unlock()
	if counts == nil {
		if counts, err = i.uploadKeys(ctx, cli, new(uploadKeys)); err != nil {
			return fmt.Errorf("identity: ask for the stock of key packages: %w", err)
		}
	}
	stored, err := i.st.KeyPackages(ctx)
	if err != nil {
		return err
	}
	now := i.now()
	if stored, err = i.dropOldPackages(ctx, stored, now); err != nil {
		return err
	}
	req := &uploadKeys{OneTimeKeys: map[id.KeyID]string{}, FallbackKeys: map[id.KeyID]string{}}
	refs, err := i.missingPackages(ctx, req, stored, counts, unused, now)
	if err != nil {
		return err
	}
	if len(refs) == 0 {
		i.packages.mu.Lock()
		i.packages.counts, i.packages.countsAt = counts, now
		i.packages.mu.Unlock()
		return nil
	}
	after, err := i.uploadKeys(ctx, cli, req)
	if err != nil {
		return fmt.Errorf("identity: upload key packages: %w", err)
	}
	err = i.st.Do(ctx, func(ctx context.Context) error {
		for _, ref := range refs {
			if err := i.st.MarkKeyPackageUploaded(ctx, ref); err != nil {
				return err
			}
		}
		return nil
	})
	i.packages.mu.Lock()
	i.packages.counts, i.packages.countsAt = after, now
	if i.packages.unused != nil {
		for key := range req.FallbackKeys {
			algorithm, _ := key.Parse()
			i.packages.unused[string(algorithm)] = true
		}
	}
	i.packages.mu.Unlock()
	i.log.Debug().Int("one_time", len(req.OneTimeKeys)).Int("last_resort", len(req.FallbackKeys)).Msg("Uploaded key packages")
	return err
}

// missingPackages makes and stores what has to be uploaded.
func (i *Identity) missingPackages(ctx context.Context, req *uploadKeys, stored []*store.KeyPackage, counts map[string]int, unused map[string]bool, now time.Time) (refs []mls.KeyPackageRef, err error) {
	total := 0
	for _, n := range i.stock {
		total += n
	}
	add := func(cs mls.CipherSuite, ref mls.KeyPackageRef, message []byte, lastResort bool) {
		keys := req.OneTimeKeys
		if lastResort {
			keys = req.FallbackKeys
		}
		keys[rooms.KeyPackageID(cs, ref)] = rooms.EncodeBase64(message)
		refs = append(refs, ref)
	}
	for _, cs := range i.suites {
		algorithm := string(rooms.SuiteKeyAlgorithm(cs))
		want := i.stock[cs]
		if total > MaxStock {
			want = min(want, MaxStock/len(i.suites))
		}
		missing := 0
		if have := counts[algorithm]; have*2 <= want {
			missing = want - have
		}
		needFallback := true
		for _, kp := range stored {
			if kp.Suite != uint16(cs) {
				continue
			}
			switch {
			case kp.State == store.KeyPackageMade && (kp.LastResort || missing > 0):
				// Made before a crash or a failed upload: the same once more.
				full, err := i.st.KeyPackage(ctx, kp.Ref)
				if err != nil {
					return nil, err
				}
				bundle, err := mls.UnmarshalKeyPackageBundle(full.Bundle)
				if err != nil {
					return nil, fmt.Errorf("identity: stored key package: %w", err)
				}
				add(cs, kp.Ref, bundle.Message(), kp.LastResort)
				if kp.LastResort {
					needFallback = false
				} else {
					missing--
				}
			case kp.LastResort:
				used := kp.State == store.KeyPackageShared || unused != nil && !unused[algorithm]
				if !(used && now.Sub(kp.Created) > lastResortEvery) && now.Sub(kp.Created) < lastResortAge {
					needFallback = false
				}
			}
		}
		for range missing {
			bundle, err := i.makePackage(ctx, cs, false, store.KeyPackageMade, now)
			if err != nil {
				return nil, err
			}
			add(cs, bundle.Ref(), bundle.Message(), false)
		}
		if needFallback {
			bundle, err := i.makePackage(ctx, cs, true, store.KeyPackageMade, now)
			if err != nil {
				return nil, err
			}
			add(cs, bundle.Ref(), bundle.Message(), true)
		}
	}
	return refs, nil
}

// makePackage makes a key package and stores it before anybody sees it.
func (i *Identity) makePackage(ctx context.Context, cs mls.CipherSuite, lastResort bool, state store.KeyPackageState, now time.Time) (*mls.KeyPackageBundle, error) {
	key, err := i.SignatureKey(cs)
	if err != nil {
		return nil, err
	}
	options, err := i.LeafOptions(cs)
	if err != nil {
		return nil, err
	}
	options.LastResort = lastResort
	bundle, err := mls.NewKeyPackage(i.mlsConfig(), cs, key, options)
	if err != nil {
		return nil, fmt.Errorf("identity: make a key package of %s: %w", cs, err)
	}
	data, err := bundle.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("identity: store a key package of %s: %w", cs, err)
	}
	defer clear(data)
	return bundle, i.st.AddKeyPackage(ctx, &store.KeyPackage{
		Ref: bundle.Ref(), Suite: uint16(cs), LastResort: lastResort, State: state, Created: now,
		Expires: time.Unix(int64(bundle.KeyPackage().LeafNode.Lifetime.NotAfter), 0), Bundle: data,
	})
}

func (i *Identity) mlsConfig() *mls.Config {
	return &mls.Config{
		Rand: i.rand, Now: i.now, Authenticator: rooms.Authenticator{},
		ExperimentalSuites: slices.ContainsFunc(i.suites, mls.CipherSuite.Experimental),
	}
}

// dropOldPackages deletes what nobody may use any more, and the oldest of too
// many. It comes with each /sync, and mostly there is nothing to write.
func (i *Identity) dropOldPackages(ctx context.Context, stored []*store.KeyPackage, now time.Time) (kept []*store.KeyPackage, err error) {
	newest, direct := map[uint16]int{}, 0
	var old []*store.KeyPackage
	for _, kp := range slices.Backward(stored) {
		drop := now.After(kp.Expires.Add(keepExpired)) || len(kept) >= maxKeyPackages
		if kp.LastResort {
			newest[kp.Suite]++
			drop = drop || newest[kp.Suite] > keepLastResort
		}
		if kp.State == store.KeyPackageDirect {
			direct++
			drop = drop || direct > maxDirect
		}
		if drop {
			old = append(old, kp)
		} else {
			kept = append(kept, kp)
		}
	}
	if len(old) == 0 {
		return kept, nil
	}
	err = i.st.Do(ctx, func(ctx context.Context) error {
		for _, kp := range old {
			if err := i.st.DeleteKeyPackage(ctx, kp.Ref); err != nil {
				return err
			}
		}
		return nil
	})
	return kept, err
}

// Bundle returns the first key package of ours among the references of a
// Welcome, or ErrNotFound of package store. If shared is set, an epoch may have been
// entered with it that this store does not know of ([store.KeyPackageShared]): nothing
// must be encrypted in the one it opens.
func (i *Identity) Bundle(ctx context.Context, refs []mls.KeyPackageRef) (bundle *mls.KeyPackageBundle, shared bool, err error) {
	for _, ref := range refs {
		kp, err := i.st.KeyPackage(ctx, ref)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		bundle, err := mls.UnmarshalKeyPackageBundle(kp.Bundle)
		clear(kp.Bundle)
		if err != nil {
			return nil, false, fmt.Errorf("identity: stored key package: %w", err)
		}
		return bundle, kp.State == store.KeyPackageShared, nil
	}
	return nil, false, store.ErrNotFound
}

// ShareBundles notes that all key packages of ours are in another copy of this store,
// too. Those of last resort are replaced at the homeserver; the others cannot be taken
// back from it.
func (i *Identity) ShareBundles(ctx context.Context) error { return i.st.ShareKeyPackages(ctx) }

// ConsumeBundle deletes a key package of ours that was used, with its private
// parts. Call it in the transaction that stores the joined group. One of last
// resort stays until it is replaced.
func (i *Identity) ConsumeBundle(ctx context.Context, ref mls.KeyPackageRef) error {
	kp, err := i.st.KeyPackage(ctx, ref)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	clear(kp.Bundle)
	if kp.LastResort {
		return i.st.MarkKeyPackageUsed(ctx, ref)
	}
	return i.st.DeleteKeyPackage(ctx, ref)
}
