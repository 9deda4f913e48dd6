package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"maunium.net/go/mautrix/event"

	"github.com/matrix-mls/matrix-mls/client/store"
)

// Media is an encrypted file at the homeserver that this device has the key of.
type Media struct {
	File *event.EncryptedFileInfo `json:"file"`
	MIME string                   `json:"mime"`
	// Own: a client of this proxy uploaded it.
	Own bool `json:"own,omitempty"`
	// Public is where the same file lies unencrypted, because its owner used it
	// where nothing is encrypted.
	Public string `json:"public,omitempty"`
	// Single is the same file without the encryption of the client that uploaded it,
	// which had encrypted it before.
	Single *event.EncryptedFileInfo `json:"single,omitempty"`
}

func mediaKey(mxc string) string { return "proxy/media/" + mxc }

// Media finds the key of a file, nil if this device has none.
func (a *Account) Media(ctx context.Context, mxc string) (*Media, error) {
	raw, err := a.st.GetKV(ctx, mediaKey(mxc))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	m := new(Media)
	if err == nil {
		err = json.Unmarshal(raw, m)
	}
	if err != nil {
		return nil, fmt.Errorf("account: key of %s: %w", mxc, err)
	}
	return m, nil
}

// KeepMedia keeps the key of a file. One that is known stays as it is, except
// that it may become public, and lie encrypted once only.
func (a *Account) KeepMedia(ctx context.Context, mxc string, m *Media) error {
	a.mediaMu.Lock()
	defer a.mediaMu.Unlock()
	known, err := a.Media(ctx, mxc)
	if err != nil {
		return err
	}
	if known != nil {
		before := *known
		if known.Public == "" {
			known.Public = m.Public
		}
		if known.Single == nil {
			known.Single = m.Single
		}
		if *known == before {
			return nil
		}
		m = known
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("account: key of %s: %w", mxc, err)
	}
	return a.st.PutKV(ctx, mediaKey(mxc), raw)
}
