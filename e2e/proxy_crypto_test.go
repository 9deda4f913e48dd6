package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
)

// ownKeys is what a client with encryption of its own says of its device.
type ownKeys struct {
	Device     id.DeviceID          `json:"device"`
	Ed25519    string               `json:"ed25519"`
	Curve25519 string               `json:"curve25519"`
	Trust      map[id.DeviceID]bool `json:"trust"` // the user's devices, and whether the client takes them for signed by the user
}

// apart is what a client with encryption of its own does with that, which is no business of the proxy's.
type apart struct {
	c      *realClient
	user   lab.User
	server *lab.Server
	first  *ownKeys
	master string // the user's public key
}

// apart gives the client the recovery key that the proxy left, and somebody who is not behind the proxy to talk to in a
// room with Megolm.
func (c *realClient) apart(p *localProxy, user lab.User) *apart {
	c.s.Helper()
	files, err := filepath.Glob(filepath.Join(p.state, "accounts", "*", "recovery-key"))
	c.s.must(err)
	if len(files) != 1 {
		c.s.Fatalf("the recovery keys are %q", files)
	}
	raw, err := os.ReadFile(files[0])
	c.s.must(err)
	c.s.must(os.WriteFile(filepath.Join(c.dir, "recovery-key"), raw, 0o600))
	other, err := c.s.w.AddUser(c.s.soon(), p.server.Name, fmt.Sprintf("megolm%d", people.Add(1)))
	c.s.must(err)
	raw, err = json.Marshal(map[string]string{
		"url": p.server.BaseURL, "user": other.UserID, "password": other.Password, "there": token("there"), "back": token("back"),
	})
	c.s.must(err)
	c.s.must(os.WriteFile(filepath.Join(c.dir, "aside.json"), raw, 0o600))
	a := &apart{c: c, user: user, server: p.server}
	a.master, _ = a.published("")
	return a
}

type (
	// publicKeys is what the homeserver publishes of a user's keys.
	publicKeys struct {
		Devices map[string]map[id.DeviceID]signedKeys `json:"device_keys"`
		Master  map[string]signedKeys                 `json:"master_keys"`
		Self    map[string]signedKeys                 `json:"self_signing_keys"`
	}
	signedKeys struct {
		Keys       map[string]string            `json:"keys"`
		Signatures map[string]map[string]string `json:"signatures"`
	}
)

// keys asks the homeserver for a user's keys.
func (s *story) keys(server *lab.Server, user lab.User) (out publicKeys) {
	s.Helper()
	raw, err := e2e.API(s.soon(), server, user, http.MethodPost, "/keys/query", map[string]any{"device_keys": map[string]any{user.UserID: []string{}}})
	s.must(err)
	s.must(json.Unmarshal(raw, &out))
	return out
}

// published asks the homeserver for the user's public key, and the keys of a device with the signatures by the user.
func (a *apart) published(device id.DeviceID) (master string, keys map[string]string) {
	a.c.s.Helper()
	answer := a.c.s.keys(a.server, a.user)
	for _, key := range answer.Master[a.user.UserID].Keys {
		master = key
	}
	keys = answer.Devices[a.user.UserID][device].Keys
	for self := range answer.Self[a.user.UserID].Keys {
		if device != "" && answer.Devices[a.user.UserID][device].Signatures[a.user.UserID][self] == "" {
			a.c.s.Errorf("the device %s of %s is not signed by its user: %+v", device, a.c.name, answer)
		}
	}
	return master, keys
}

// check compares what the client says of its keys with what it said before.
func (a *apart) check(said ownKeys) {
	a.c.s.Helper()
	if devices := slices.Collect(maps.Values(said.Trust)); len(devices) != 2 || slices.Contains(devices, false) || !said.Trust[said.Device] {
		a.c.s.Errorf("of its user's devices, itself and that of the proxy, the client trusts %v", said.Trust)
	}
	if a.first == nil {
		a.first = &said
	}
	if a.first.Device != said.Device || a.first.Ed25519 != said.Ed25519 || a.first.Curve25519 != said.Curve25519 {
		a.c.s.Errorf("the client's keys were %+v and are %+v", *a.first, said)
	}
}

// stands compares what the homeserver publishes with what the client said.
func (a *apart) stands() {
	a.c.s.Helper()
	master, keys := a.published(a.first.Device)
	if want := map[string]string{"ed25519:" + string(a.first.Device): a.first.Ed25519, "curve25519:" + string(a.first.Device): a.first.Curve25519}; !maps.Equal(keys, want) {
		a.c.s.Errorf("the homeserver publishes %v of the client's device, which has %v", keys, want)
	}
	if master == "" || master != a.master {
		a.c.s.Errorf("the user's public key was %q and is %q", a.master, master)
	}
	a.c.s.step("its keys are its own")
}
