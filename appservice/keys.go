package appservice

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/mls"
)

// Names of keys in the store. The receipt key is an Ed25519 seed; the external
// sender keys are raw private keys, one for each signature scheme.
const (
	KeyReceipt        = "receipt"
	KeyExternalPrefix = "external/"
)

// Keys are the module's private keys. They live in its database.
type Keys struct {
	// Receipt signs accepts, votes, promises and ready receipts.
	Receipt ed25519.PrivateKey
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
		keys.Receipt = ed25519.NewKeyFromSeed(seed)
		made += fresh
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
