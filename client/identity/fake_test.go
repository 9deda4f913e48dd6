package identity

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/mls"
)

// homeserver adds to the homeserver in memory what the tests here do with it.
type homeserver struct {
	*hstest.Server
	t *testing.T
}

func newHomeserver(t *testing.T, fallback bool) *homeserver {
	return &homeserver{Server: hstest.New(t, fallback), t: t}
}

func (h *homeserver) device(i *Identity) *hstest.Device {
	h.Mu.Lock()
	defer h.Mu.Unlock()
	return h.Devices[i.UserID()][i.DeviceID().String()]
}

var suites = []mls.CipherSuite{1, 3}

// openIdentity opens an identity on a store of its own.
func openIdentity(t *testing.T, now func() time.Time) *Identity {
	t.Helper()
	st, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "client.db"), Key: make(store.Key, store.KeySize)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	i, err := Open(t.Context(), Options{Store: st, Suites: suites, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// login returns a logged-in device of a user.
func (h *homeserver) loginDevice(user id.UserID) *Identity {
	h.t.Helper()
	i := openIdentity(h.t, nil)
	if err := i.LoginPassword(h.t.Context(), Login{Homeserver: h.URL, User: string(user), DeviceName: "test"}, "secret"); err != nil {
		h.t.Fatal(err)
	}
	return i
}

// syncOnce takes what there is.
func syncOnce(t *testing.T, i *Identity) {
	t.Helper()
	resp, err := i.Sync(t.Context(), SyncRequest{Since: "n"})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.ProcessSync(t.Context(), resp); err != nil {
		t.Fatal(err)
	}
}

// keepSyncing syncs until the test ends.
func keepSyncing(t *testing.T, all ...*Identity) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, i := range all {
		wg.Go(func() {
			for ctx.Err() == nil {
				resp, err := i.Sync(ctx, SyncRequest{Since: "n", Timeout: 10 * time.Second})
				if err == nil {
					err = i.ProcessSync(ctx, resp)
				}
				if err != nil && ctx.Err() == nil {
					t.Errorf("sync: %v", err)
					return
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
}
