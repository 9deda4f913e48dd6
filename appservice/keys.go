package appservice

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/mls"
)

// Names of keys in the store. The receipt keys are Ed25519 seeds: the first, and
// those made since for rooms in which the one before was retired. The external
// sender keys are raw private keys, one for each signature scheme.
const (
	KeyReceipt        = "receipt"
	keyReceiptNext    = "receipt/" // and the number: 2, 3 …
	KeyExternalPrefix = "external/"
)

// Keys are the module's private keys. They live in its database.
type Keys struct {
	// Receipt signs accepts, votes, promises and ready receipts.
	Receipt ed25519.PrivateKey
	// Later are the receipt keys for rooms in which those before are retired.
	Later []ed25519.PrivateKey
	// External signs Remove proposals as an external sender, in the
	// signature scheme of the group.
	External map[mls.SignatureScheme]mls.SignaturePrivateKey
}

// EnsureKeys makes the keys that the database lacks and returns all. A key that
// is there is never replaced.
func EnsureKeys(ctx context.Context, st *store.Store, rand io.Reader) (keys *Keys, made int, err error) {
	keys = &Keys{External: make(map[mls.SignatureScheme]mls.SignaturePrivateKey)}
	err = st.Tx(ctx, func(ctx context.Context) error {
		made = 0
		seed, fresh, err := ensureKey(ctx, st, KeyReceipt, func() ([]byte, error) {
			seed := make([]byte, ed25519.SeedSize)
			_, err := io.ReadFull(rand, seed)
			return seed, err
		})
		if err != nil {
			return err
		}
		if len(seed) != ed25519.SeedSize {
			return fmt.Errorf("appservice: the receipt key in the database has %d bytes, not %d; restore the database from a backup", len(seed), ed25519.SeedSize)
		}
		keys.Receipt, keys.Later = ed25519.NewKeyFromSeed(seed), nil
		made += fresh
		for {
			seed, err := st.Key(ctx, keyReceiptNext+strconv.Itoa(len(keys.Later)+2))
			if errors.Is(err, store.ErrNotFound) {
				break
			}
			if err != nil {
				return err
			}
			if len(seed) != ed25519.SeedSize {
				return fmt.Errorf("appservice: receipt key %d in the database has %d bytes, not %d; restore the database from a backup", len(keys.Later)+2, len(seed), ed25519.SeedSize)
			}
			keys.Later = append(keys.Later, ed25519.NewKeyFromSeed(seed))
		}
		for _, cs := range mls.SupportedCipherSuites() {
			scheme := cs.SignatureScheme()
			if _, done := keys.External[scheme]; done {
				continue
			}
			raw, fresh, err := ensureKey(ctx, st, KeyExternalPrefix+scheme.String(), func() ([]byte, error) {
				key, err := mls.GenerateSignatureKey(cs, rand)
				return key.Bytes(), err
			})
			if err != nil {
				return err
			}
			key, err := mls.ParseSignaturePrivateKey(cs, raw)
			if err != nil {
				return fmt.Errorf("appservice: the external sender key for %s in the database does not parse; restore the database from a backup: %w", scheme, err)
			}
			keys.External[scheme] = key
			made += fresh
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return keys, made, nil
}

// receipt returns the receipt key with an index, and whether there is one.
func (k *Keys) receipt(index int) (ed25519.PrivateKey, bool) {
	if index == 0 {
		return k.Receipt, true
	}
	if index < 0 || index > len(k.Later) {
		return nil, false
	}
	return k.Later[index-1], true
}

// makeReceiptKey makes one more receipt key.
func makeReceiptKey(ctx context.Context, st *store.Store, index int, rand io.Reader) (ed25519.PrivateKey, error) {
	seed, _, err := ensureKey(ctx, st, keyReceiptNext+strconv.Itoa(index+1), func() ([]byte, error) {
		seed := make([]byte, ed25519.SeedSize)
		_, err := io.ReadFull(rand, seed)
		return seed, err
	})
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func ensureKey(ctx context.Context, st *store.Store, name string, draw func() ([]byte, error)) (secret []byte, fresh int, err error) {
	secret, err = st.Key(ctx, name)
	if err == nil || !errors.Is(err, store.ErrNotFound) {
		return secret, 0, err
	}
	if secret, err = draw(); err != nil {
		return nil, 0, fmt.Errorf("appservice: drawing the key %s: %w", name, err)
	}
	isNew, err := st.PutNewKey(ctx, name, secret)
	if err != nil {
		return nil, 0, err
	}
	if isNew {
		return secret, 1, nil
	}
	// Another process was quicker; its key counts.
	secret, err = st.Key(ctx, name)
	return secret, 0, err
}
