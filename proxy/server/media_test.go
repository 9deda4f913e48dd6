package server

import (
	"context"
	"encoding/json"
	"testing"

	"maunium.net/go/mautrix/crypto/attachment"
	"maunium.net/go/mautrix/event"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

type mapOfMedia map[string]*account.Media

func (m mapOfMedia) Media(_ context.Context, mxc string) (*account.Media, error) { return m[mxc], nil }

// TestOwnFilesAreKnownByEitherAddress: one's own file, seen in a room, has an
// address that names its key; whoever uses that one where nothing is encrypted
// means the same file.
func TestOwnFilesAreKnownByEitherAddress(t *testing.T) {
	file := func(key, iv string) *event.EncryptedFileInfo {
		f := &event.EncryptedFileInfo{EncryptedFile: *attachment.NewEncryptedFile()}
		f.Key.Key, f.InitVector = key, iv
		return f
	}
	const plain = "mxc://a.example/own"
	keyed := rewrite.Keyed(plain, json.RawMessage(`{}`))
	for _, tt := range []struct {
		name string
		ask  string
		own  *account.Media
		seen *account.Media
		want bool
	}{
		{"as it was uploaded", plain, &account.Media{File: file("k", "i"), Own: true}, nil, true},
		{"as it was seen", keyed, &account.Media{File: file("k", "i"), Own: true}, &account.Media{File: file("k", "i")}, true},
		{"with another key", keyed, &account.Media{File: file("k", "i"), Own: true}, &account.Media{File: file("x", "i")}, false},
		{"with another vector", keyed, &account.Media{File: file("k", "i"), Own: true}, &account.Media{File: file("k", "x")}, false},
		{"somebody else's", keyed, &account.Media{File: file("k", "i")}, &account.Media{File: file("k", "i")}, false},
		{"unknown", keyed, nil, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ownMedia(t.Context(), mapOfMedia{plain: tt.own, keyed: tt.seen}, tt.ask)
			if err != nil || (got != nil) != tt.want || got != nil && got != tt.own {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestFilesThatCouldRunInTheProxysNameAreOnlySaved(t *testing.T) {
	for _, tt := range []struct{ claimed, kind, disposition string }{
		{"image/png", "image/png", "inline"},
		{"video/mp4; codecs=x", "video/mp4", "inline"},
		{"text/html", "application/octet-stream", "attachment"},
		{"image/svg+xml", "application/octet-stream", "attachment"},
		{"application/xhtml+xml", "application/octet-stream", "attachment"},
		{"application/pdf", "application/pdf", "attachment"},
		{"", "application/octet-stream", "attachment"},
		{"text/html\r\nX: y", "application/octet-stream", "attachment"},
	} {
		if kind, disposition := shownAs(tt.claimed); kind != tt.kind || disposition != tt.disposition {
			t.Errorf("%q is shown as %s, %s; want %s, %s", tt.claimed, kind, disposition, tt.kind, tt.disposition)
		}
	}
}
