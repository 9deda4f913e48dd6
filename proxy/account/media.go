package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
)

// Media is an encrypted file at the homeserver that this device has the key of.
type Media struct {
	File *event.EncryptedFileInfo `json:"file"`
	MIME string                   `json:"mime"`
	// Own: a client of this proxy uploaded it.
	Own bool `json:"own,omitempty"`
	// Raw: it lies at the homeserver as the client uploaded it, which had encrypted
	// it by itself. File is nil.
	Raw bool `json:"raw,omitempty"`
	// Public is where the same file lies unencrypted, because its owner used it
	// where nothing is encrypted.
	Public string `json:"public,omitempty"`
	// Single is the same file without the encryption of the client that uploaded it,
	// which had encrypted it before.
	Single *event.EncryptedFileInfo `json:"single,omitempty"`
	// Of is the file that this one is the Single of.
	Of string `json:"of,omitempty"`
	// Events are the messages that name the file with this key, as their rooms and
	// ids. Many: they are too many to be listed.
	Events []string `json:"events,omitempty"`
	Many   bool     `json:"many,omitempty"`
}

// File is a file that a message names, at an address that goes with its key.
type File struct {
	MXC   string
	Media *Media
}

// maxNaming bounds the messages that are known to name a file.
const maxNaming = 100

// filesKey is where the files that a message names are listed.
func filesKey(room id.RoomID, event id.EventID) string { return filesOf(room) + string(event) }

func filesOf(room id.RoomID) string { return "proxy/files/" + url.PathEscape(string(room)) + "/" }

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
		changed := false
		if known.Public == "" && m.Public != "" {
			known.Public, changed = m.Public, true
		}
		if known.Single == nil && m.Single != nil {
			known.Single, changed = m.Single, true
		}
		if !changed {
			return nil
		}
		m = known
	}
	return a.putMedia(ctx, mxc, m)
}

// putMedia writes the key of a file. The caller holds a.mediaMu.
func (a *Account) putMedia(ctx context.Context, mxc string, m *Media) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("account: key of %s: %w", mxc, err)
	}
	return a.st.PutKV(ctx, mediaKey(mxc), raw)
}

// KeepFiles keeps the keys of the files that a message names, as long as a message
// names them: see DropFiles.
func (a *Account) KeepFiles(ctx context.Context, room id.RoomID, event id.EventID, files []File) error {
	a.mediaMu.Lock()
	defer a.mediaMu.Unlock()
	name := filesKey(room, event)
	var list []string
	changed := map[string]*Media{}
	for _, f := range files {
		list = append(list, f.MXC)
		m, err := a.Media(ctx, f.MXC)
		if err != nil {
			return err
		}
		if m == nil {
			m = f.Media
		}
		if m.Many || slices.Contains(m.Events, name) {
			continue
		}
		if m.Events = append(m.Events, name); len(m.Events) > maxNaming {
			m.Events, m.Many = nil, true
		}
		changed[f.MXC] = m
	}
	if len(changed) == 0 {
		return nil
	}
	return a.st.Do(ctx, func(ctx context.Context) error {
		for mxc, m := range changed {
			if err := a.putMedia(ctx, mxc, m); err != nil {
				return err
			}
		}
		raw, err := json.Marshal(list)
		if err != nil {
			return fmt.Errorf("account: files of %s: %w", event, err)
		}
		return a.st.PutKV(ctx, name, raw)
	})
}

// DropFiles deletes the keys of the files that a message named which is gone, but for
// those that another message names. A message that is read again brings them back.
func (a *Account) DropFiles(ctx context.Context, room id.RoomID, event id.EventID) error {
	return a.dropFiles(ctx, filesKey(room, event))
}

func (a *Account) dropFiles(ctx context.Context, name string) error {
	a.mediaMu.Lock()
	defer a.mediaMu.Unlock()
	raw, err := a.st.GetKV(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	var list []string
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		return fmt.Errorf("account: files of a message: %w", err)
	}
	return a.st.Do(ctx, func(ctx context.Context) error {
		for _, mxc := range list {
			if err := a.dropFile(ctx, mxc, name); err != nil {
				return err
			}
		}
		return a.st.DeleteKV(ctx, name)
	})
}

// dropFile forgets that a message names a file, and the key under that address if it
// was the last one. What a client of this proxy uploaded is kept under its own address:
// account data, an avatar or a draft may name it, too.
func (a *Account) dropFile(ctx context.Context, mxc, name string) error {
	m, err := a.Media(ctx, mxc)
	if err != nil || m == nil || m.Many {
		return err
	}
	m.Events = slices.DeleteFunc(m.Events, func(e string) bool { return e == name })
	if len(m.Events) > 0 || m.Own {
		return a.putMedia(ctx, mxc, m)
	}
	return a.st.DeleteKV(ctx, mediaKey(mxc))
}

// forgetFiles deletes the keys of the files that a room's messages named.
func (a *Account) forgetFiles(ctx context.Context, room id.RoomID) error {
	for {
		names, err := a.st.KVKeys(ctx, filesOf(room), 100)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, name := range names {
			if err := a.dropFiles(ctx, name); err != nil {
				return err
			}
		}
	}
}
