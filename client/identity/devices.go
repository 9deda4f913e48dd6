package identity

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	maxUsersPerQuery = 50
	maxDevices       = 500 // of one user that are looked at
	maxCachedLists   = 10_000
	maxAsked         = 3 // times that a list is asked for which changes meanwhile
)

// MasterState is what is known about a user's master key.
type MasterState string

// States of a master key.
const (
	MasterNone     MasterState = "none"     // the user has no cross-signing keys
	MasterTOFU     MasterState = "tofu"     // the key seen first, not compared by a person
	MasterChanged  MasterState = "changed"  // not the key seen first
	MasterVerified MasterState = "verified" // signed with our user-signing key
	MasterOwn      MasterState = "own"      // our own, made, recovered or compared by this device
)

// UserDevices is what is known about a user's devices.
type UserDevices struct {
	User        id.UserID
	MasterKey   string // unpadded base64, "" when there is none
	MasterState MasterState
	Devices     map[id.DeviceID]*Device
	// Stale: the user's server could not be asked. What is here was known
	// before; without devices it says nothing about which ones there are.
	Stale bool
	// Nothing: the homeserver answered, but has nothing about the user, who is of
	// another server. Either they have no keys, or it does not say that it could
	// not reach their server.
	Nothing bool

	cross *rooms.CrossSigning
	known rooms.Known
	until time.Time // a stale list is asked for again after this
}

// Device is one device of a user.
type Device struct {
	ID          id.DeviceID
	Name        string // as its server shows it; nobody signed it
	Ed25519     string
	CrossSigned bool // signed by its user's self-signing key
	Verified    bool // cross-signed, and the user's master key is verified or our own
	MLSKeys     map[mls.CipherSuite]mls.SignaturePublicKey

	keys      *rooms.DeviceKeys
	firstSeen []byte
}

// Check tells whether a leaf's credential is bound to one of the user's
// devices as a room's required verification says. See rooms.CheckBinding.
func (u *UserDevices) Check(cred *rooms.Credential, cs mls.CipherSuite, need rooms.Verification) error {
	known := u.known
	var keys *rooms.DeviceKeys
	if d := u.Devices[cred.Device]; d != nil {
		keys, known.Device = d.keys, d.firstSeen
	}
	return rooms.CheckBinding(cred, cs, keys, u.cross, known, need)
}

// CheckAdmission tells whether the user is still the one whom a member
// admitted: the master key is the one that the admission names, if it names one.
func (u *UserDevices) CheckAdmission(a *rooms.Admission) error { return a.CheckAdmittedKey(u.cross) }

// SortedDevices returns the devices in the order of their ids.
func (u *UserDevices) SortedDevices() []*Device {
	out := make([]*Device, 0, len(u.Devices))
	for _, d := range u.Devices {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b *Device) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out
}

// userRecord is the stored form: the homeserver's answer, which is checked
// again each time it is read, and what was seen first.
type userRecord struct {
	Master      json.RawMessage                 `json:"master,omitempty"`
	SelfSigning json.RawMessage                 `json:"self_signing,omitempty"`
	UserSigning json.RawMessage                 `json:"user_signing,omitempty"`
	Devices     map[id.DeviceID]json.RawMessage `json:"devices,omitempty"`
	FirstMaster string                          `json:"first_master,omitempty"`
	WasVerified bool                            `json:"was_verified,omitempty"` // FirstMaster was verified by a person
	FirstKeys   map[id.DeviceID]string          `json:"first_keys,omitempty"`   // Ed25519 keys of devices
	Nothing     bool                            `json:"nothing,omitempty"`      // see UserDevices
}

// deviceLists caches what the store holds.
type deviceLists struct {
	mu     sync.Mutex
	cache  map[id.UserID]*UserDevices
	change map[id.UserID]uint64 // number of the last notice about a user
	notice uint64
	floor  uint64               // notices up to this one are forgotten
	query  sync.Mutex           // one query at a time
	turns  map[id.UserID]uint64 // when users were last asked for alone, as a count
	turn   uint64
}

// byTurn returns the users in the order in which they were last asked for alone.
func (d *deviceLists) byTurn(users []id.UserID) []id.UserID {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := slices.Clone(users)
	slices.SortStableFunc(out, func(a, b id.UserID) int { return cmp.Compare(d.turns[a], d.turns[b]) })
	return out
}

func (d *deviceLists) noteTurn(user id.UserID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turns == nil || len(d.turns) >= maxCachedLists {
		d.turns = make(map[id.UserID]uint64)
	}
	d.turn++
	d.turns[user] = d.turn
}

func (d *deviceLists) init() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cache = make(map[id.UserID]*UserDevices)
	d.change = make(map[id.UserID]uint64)
}

func (d *deviceLists) get(user id.UserID) *UserDevices {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cache[user]
}

// fresh returns a cached list unless it is time to ask for it again.
func (d *deviceLists) fresh(user id.UserID, now time.Time) *UserDevices {
	u := d.get(user)
	if u != nil && u.Stale && !now.Before(u.until) {
		return nil
	}
	return u
}

// StaleAfter is how long after a failed question another server is asked again.
const StaleAfter = time.Minute

func (d *deviceLists) put(u *UserDevices) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.cache) >= maxCachedLists {
		clear(d.cache)
	}
	d.cache[u.User] = u
}

// outdate forgets a cached list and counts the notice.
func (d *deviceLists) outdate(user id.UserID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.cache, user)
	d.notice++
	if len(d.change) >= maxCachedLists {
		clear(d.change)
		d.floor = d.notice
	}
	d.change[user] = d.notice
}

// forget drops the cache; the store keeps what it has.
func (d *deviceLists) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.cache)
}

func (d *deviceLists) position() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.notice
}

// changedSince tells whether a notice about the user came after a position.
func (d *deviceLists) changedSince(user id.UserID, position uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.change[user] > position || d.floor > position
}

// listsChanged notes what a sync said about device lists. A user that left
// our rooms is no longer reported, so that list is outdated, too.
func (i *Identity) listsChanged(ctx context.Context, changed, left []id.UserID, all bool) error {
	users := slices.Concat(changed, left)
	if all {
		stored, err := i.st.DeviceListUsers(ctx)
		if err != nil {
			return err
		}
		users = append(users, stored...)
	}
	if len(users) == 0 {
		return nil
	}
	for _, u := range users {
		i.lists.outdate(u) // before it is stored: an answer that is filed in between is from before
	}
	err := i.st.Do(ctx, func(ctx context.Context) error {
		for _, u := range users {
			if err := i.st.MarkDeviceListOutdated(ctx, u); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, u := range users {
		i.lists.outdate(u)
	}
	if slices.Contains(users, i.UserID()) {
		i.lists.forget() // whether others are verified may have changed
	}
	for _, u := range changed {
		i.notifyChanged(u)
	}
	return nil
}

// Outdate has a user's devices asked for anew by whoever needs them next, though
// no sync said that they changed. It fails if the store does.
func (i *Identity) Outdate(ctx context.Context, user id.UserID) error {
	return i.listsChanged(ctx, []id.UserID{user}, nil, false)
}

// Devices returns a user's devices; see [Identity.DevicesOf].
func (i *Identity) Devices(ctx context.Context, user id.UserID) (*UserDevices, error) {
	if err := rooms.CheckUserID(user); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	all, err := i.DevicesOf(ctx, []id.UserID{user})
	if err != nil {
		return nil, err
	}
	return all[user], nil
}

// DevicesOf returns the devices of users. Those that are unknown or outdated
// are asked for at the homeserver; when another server cannot be reached, what
// was known before is returned. A user about whom nothing is known has no
// devices.
func (i *Identity) DevicesOf(ctx context.Context, users []id.UserID) (map[id.UserID]*UserDevices, error) {
	out := make(map[id.UserID]*UserDevices, len(users))
	missing, err := i.cachedLists(ctx, users, out)
	if err != nil || len(missing) == 0 {
		return out, err
	}
	i.lists.query.Lock()
	defer i.lists.query.Unlock()
	// Somebody else may have asked in the meantime. Our own list comes first:
	// others are judged by our own user-signing key.
	own := i.UserID()
	missing = append([]id.UserID{own}, slices.DeleteFunc(missing, func(u id.UserID) bool { return u == own })...)
	if missing, err = i.cachedLists(ctx, missing, out); err != nil {
		return nil, err
	}
	silent := map[id.UserID]bool{}
	for ask, try := missing, 0; len(ask) > 0 && try < maxAsked; try++ {
		for batch := range slices.Chunk(ask, maxUsersPerQuery) {
			failed, err := i.queryKeys(ctx, batch, askTimeout)
			if err != nil {
				return nil, err
			}
			if failed, err = i.askAlone(ctx, failed); err != nil {
				return nil, err
			}
			for _, u := range failed {
				silent[u] = true
			}
		}
		// A notice may have come while the answer was under way.
		var again []id.UserID
		for _, u := range ask {
			if _, outdated, err := i.record(ctx, u); err != nil {
				return nil, err
			} else if outdated && !silent[u] {
				again = append(again, u)
			}
		}
		ask = again
	}
	if !slices.Contains(users, own) {
		defer delete(out, own)
	}
	for _, u := range missing {
		record, outdated, err := i.record(ctx, u)
		if err != nil {
			return nil, err
		}
		if out[u], err = i.judge(ctx, u, record); err != nil {
			return nil, err
		}
		if outdated && !silent[u] {
			continue // it changes all the time: asked for by whoever needs it next
		}
		if outdated {
			out[u].Stale, out[u].Nothing, out[u].until = true, record.Nothing, i.now().Add(StaleAfter)
		}
		if err := i.noteVerified(ctx, out[u], record); err != nil {
			return nil, err
		}
		i.lists.put(out[u])
	}
	return out, nil
}

// noteVerified remembers that a person has compared the user's present master
// key: when it changes later, that is worth a louder warning.
func (i *Identity) noteVerified(ctx context.Context, u *UserDevices, r *userRecord) error {
	if u.MasterState != MasterVerified && u.MasterState != MasterOwn || r.WasVerified && r.FirstMaster == u.MasterKey {
		return nil
	}
	return i.st.Do(ctx, func(ctx context.Context) error {
		r, outdated, err := i.record(ctx, u.User)
		if err != nil || r == nil {
			return err
		}
		r.FirstMaster, r.WasVerified = u.MasterKey, true
		return i.putRecord(ctx, u.User, r, outdated)
	})
}

// cachedLists fills out with the lists that are known and fresh and returns the
// users that are not.
func (i *Identity) cachedLists(ctx context.Context, users []id.UserID, out map[id.UserID]*UserDevices) (missing []id.UserID, err error) {
	for _, u := range users {
		if out[u] != nil {
			continue
		}
		if rooms.CheckUserID(u) != nil {
			// One malformed member must not hide the devices of all others.
			out[u] = &UserDevices{User: u, MasterState: MasterNone, Devices: map[id.DeviceID]*Device{}}
			continue
		}
		if c := i.lists.fresh(u, i.now()); c != nil {
			out[u] = c
			continue
		}
		record, outdated, err := i.record(ctx, u)
		if err != nil {
			return nil, err
		}
		if record == nil || outdated {
			missing = append(missing, u)
			continue
		}
		if out[u], err = i.judge(ctx, u, record); err != nil {
			return nil, err
		}
		i.lists.put(out[u])
	}
	return missing, nil
}

// record reads a stored list; nil when there is none.
func (i *Identity) record(ctx context.Context, user id.UserID) (*userRecord, bool, error) {
	data, outdated, err := i.st.DeviceList(ctx, user)
	if errors.Is(err, store.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	r := new(userRecord)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, false, fmt.Errorf("identity: the stored device list of %s is damaged", user)
	}
	return r, outdated, nil
}

// queriedKeys is the answer to POST /keys/query, with every object as received.
type queriedKeys struct {
	DeviceKeys  map[id.UserID]map[id.DeviceID]json.RawMessage `json:"device_keys"`
	Master      map[id.UserID]json.RawMessage                 `json:"master_keys"`
	SelfSigning map[id.UserID]json.RawMessage                 `json:"self_signing_keys"`
	UserSigning map[id.UserID]json.RawMessage                 `json:"user_signing_keys"`
	Failures    map[string]json.RawMessage                    `json:"failures"`
}

// How long our homeserver may take to ask other servers.
const (
	askTimeout = 10 * time.Second
	// aloneTimeout is longer than Dendrite waits for its own worker, for each
	// user: after a server was out of reach once the worker leaves it alone for 10
	// minutes, and only with what is left of the time is the server asked itself.
	aloneTimeout = 25 * time.Second
)

// maxMisses is how many users of a server are asked for alone in vain.
const maxMisses = 2

// askAlone asks for users whose server did not answer once more, each in a
// request of its own, until a server is said not to answer, or there was no answer
// twice. The latter may also mean that a user has no keys, so those come first who
// were not asked for in this way for longest. It returns those about whom there is
// no answer.
func (i *Identity) askAlone(ctx context.Context, users []id.UserID) (failed []id.UserID, err error) {
	misses := map[string]int{}
	for _, u := range i.lists.byTurn(users) {
		if misses[u.Homeserver()] >= maxMisses {
			failed = append(failed, u)
			continue
		}
		i.lists.noteTurn(u)
		none, err := i.queryKeys(ctx, []id.UserID{u}, aloneTimeout)
		if err != nil {
			return nil, err
		}
		if len(none) == 0 {
			continue
		}
		failed = append(failed, u)
		misses[u.Homeserver()]++
		if r, _, err := i.record(ctx, u); err != nil {
			return nil, err
		} else if r != nil && !r.Nothing {
			misses[u.Homeserver()] = maxMisses // it is said to be out of reach
		}
	}
	return failed, nil
}

// queryKeys asks for the devices of users and stores the answer. It returns those
// about whom there is none.
func (i *Identity) queryKeys(ctx context.Context, users []id.UserID, timeout time.Duration) (failed []id.UserID, err error) {
	_, cli, err := i.current()
	if err != nil {
		return nil, err
	}
	position := i.lists.position()
	ask := make(map[id.UserID][]string, len(users))
	for _, u := range users {
		ask[u] = []string{}
	}
	var resp queriedKeys
	body := map[string]any{"device_keys": ask, "timeout": timeout.Milliseconds()}
	if err := i.do(ctx, cli, http.MethodPost, cli.BuildClientURL("v3", "keys", "query"), body, &resp); err != nil {
		return nil, fmt.Errorf("identity: ask for devices: %w", err)
	}
	err = i.st.Do(ctx, func(ctx context.Context) error {
		failed = nil // a transaction may be tried again
		for _, u := range users {
			old, _, err := i.record(ctx, u)
			if err != nil {
				return err
			}
			devices, answered := resp.DeviceKeys[u]
			if _, silent := resp.Failures[u.Homeserver()]; silent || !answered && len(resp.Failures) > 0 || i.nothing(u, old, &resp) {
				failed = append(failed, u)
				i.log.Info().Stringer("user_id", u).Msg("The devices of a user could not be asked for; using what is known")
				if old == nil {
					old = new(userRecord)
				}
				old.Nothing = !silent && len(resp.Failures) == 0
				if err := i.putRecord(ctx, u, old, true); err != nil {
					return err
				}
				continue
			}
			if len(devices) > maxDevices {
				i.log.Warn().Stringer("user_id", u).Int("devices", len(devices)).Msg("Too many devices of a user, none is used")
				devices = nil
			}
			record := i.merge(u, old, &userRecord{
				Master: resp.Master[u], SelfSigning: resp.SelfSigning[u], UserSigning: resp.UserSigning[u], Devices: devices,
			})
			if err := i.putRecord(ctx, u, record, i.lists.changedSince(u, position)); err != nil {
				return err
			}
		}
		return nil
	})
	return failed, err
}

// nothing tells whether an answer knows nothing of a user of another server.
// Dendrite names no server that it could not reach as long as it has an answer
// about anybody. Who logs out everywhere keeps the master key, so that is no
// answer; without one it is if their devices were known, and none are left.
func (i *Identity) nothing(u id.UserID, old *userRecord, resp *queriedKeys) bool {
	if u.Homeserver() == i.UserID().Homeserver() || len(resp.DeviceKeys[u]) > 0 || len(resp.Master[u]) > 0 {
		return false
	}
	_, answered := resp.DeviceKeys[u]
	return !answered || old == nil || old.FirstMaster != "" || len(old.FirstKeys) == 0
}

// merge keeps what was seen first.
func (i *Identity) merge(user id.UserID, old, fresh *userRecord) *userRecord {
	if old != nil {
		fresh.FirstMaster, fresh.WasVerified, fresh.FirstKeys = old.FirstMaster, old.WasVerified, old.FirstKeys
	}
	if cross, err := rooms.ParseCrossSigning(fresh.Master, fresh.SelfSigning, user); err == nil && fresh.FirstMaster == "" {
		fresh.FirstMaster = rooms.EncodeBase64(cross.Master)
	}
	first := make(map[id.DeviceID]string, len(fresh.Devices))
	for device, raw := range fresh.Devices {
		if key, ok := fresh.FirstKeys[device]; ok {
			first[device] = key
		} else if keys, err := rooms.ParseDeviceKeys(raw, user, device); err == nil {
			first[device] = rooms.EncodeBase64(keys.Ed25519)
		}
	}
	// A device id that is gone must not come back with another key.
	for device, key := range fresh.FirstKeys {
		if len(first) < 2*maxDevices {
			first[device] = key
		}
	}
	fresh.FirstKeys = first
	return fresh
}

func (i *Identity) putRecord(ctx context.Context, user id.UserID, r *userRecord, outdated bool) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("identity: encode the device list of %s: %w", user, err)
	}
	return i.st.PutDeviceList(ctx, user, data, outdated)
}

// judge checks a stored answer and says what follows from it.
func (i *Identity) judge(ctx context.Context, user id.UserID, r *userRecord) (*UserDevices, error) {
	u := &UserDevices{User: user, MasterState: MasterNone, Devices: make(map[id.DeviceID]*Device)}
	if r == nil {
		return u, nil
	}
	if len(r.Master) > 0 {
		cross, err := rooms.ParseCrossSigning(r.Master, r.SelfSigning, user)
		if err != nil {
			i.log.Info().Stringer("user_id", user).Err(err).Msg("The cross-signing keys of a user are refused")
		} else {
			u.cross, u.MasterKey = cross, rooms.EncodeBase64(cross.Master)
			if u.MasterState, err = i.masterState(ctx, user, r, u.MasterKey); err != nil {
				return nil, err
			}
		}
	}
	if first, err := rooms.DecodeBase64(r.FirstMaster); err == nil && len(first) > 0 {
		u.known = rooms.Known{Master: first, Verified: r.WasVerified}
		if u.MasterState == MasterVerified || u.MasterState == MasterOwn {
			u.known = rooms.Known{Master: u.cross.Master, Verified: true}
		}
	}
	for device, raw := range r.Devices {
		keys, err := rooms.ParseDeviceKeys(raw, user, device)
		if err != nil {
			i.log.Debug().Stringer("user_id", user).Stringer("device_id", device).Err(err).Msg("A device is ignored")
			continue
		}
		d := &Device{ID: device, Ed25519: rooms.EncodeBase64(keys.Ed25519), MLSKeys: keys.MLS, Name: displayName(raw), keys: keys.AgainstOnly(u.cross)}
		if first, err := rooms.DecodeBase64(r.FirstKeys[device]); err == nil {
			d.firstSeen = first
		}
		if u.cross != nil {
			ssk := rooms.EncodeBase64(u.cross.SelfSigning)
			ok, err := signatures.VerifySignatureJSON(raw, user, ssk, id.Ed25519(ssk))
			d.CrossSigned = err == nil && ok && device.String() != ssk && device.String() != u.MasterKey && d.Ed25519 != ssk && d.Ed25519 != u.MasterKey
		}
		d.Verified = d.CrossSigned && (u.MasterState == MasterVerified || u.MasterState == MasterOwn)
		u.Devices[device] = d
	}
	return u, nil
}

// displayName reads what a device is called; nobody vouches for it.
func displayName(raw json.RawMessage) string {
	var v struct {
		Unsigned struct {
			Name string `json:"device_display_name"`
		} `json:"unsigned"`
	}
	if json.Unmarshal(raw, &v) != nil || len(v.Unsigned.Name) > 200 {
		return ""
	}
	return v.Unsigned.Name
}

// masterState compares a user's master key with what is known.
func (i *Identity) masterState(ctx context.Context, user id.UserID, r *userRecord, master string) (MasterState, error) {
	own := i.UserID()
	trusted, err := i.trustedMaster(ctx)
	if err != nil {
		return "", err
	}
	if user == own {
		switch {
		case trusted != "" && trusted == master:
			return MasterOwn, nil
		case trusted != "" || r.FirstMaster != master:
			return MasterChanged, nil
		}
		return MasterTOFU, nil
	}
	if trusted != "" {
		usk, err := i.ownUserSigningKey(ctx, trusted)
		if err != nil {
			return "", err
		}
		if usk != "" {
			if ok, err := signatures.VerifySignatureJSON(r.Master, own, usk, id.Ed25519(usk)); err == nil && ok {
				return MasterVerified, nil
			}
		}
	}
	if r.FirstMaster != master {
		return MasterChanged, nil
	}
	return MasterTOFU, nil
}

// ownUserSigningKey returns our user-signing key if the trusted master key
// signed it, else "".
func (i *Identity) ownUserSigningKey(ctx context.Context, master string) (string, error) {
	own := i.UserID()
	record, _, err := i.record(ctx, own)
	if err != nil || record == nil || len(record.UserSigning) == 0 {
		return "", err
	}
	var key struct {
		User  id.UserID         `json:"user_id"`
		Usage []string          `json:"usage"`
		Keys  map[string]string `json:"keys"`
	}
	if json.Unmarshal(record.UserSigning, &key) != nil || key.User != own || !slices.Contains(key.Usage, "user_signing") || len(key.Keys) != 1 {
		return "", nil
	}
	ok, err := signatures.VerifySignatureJSON(record.UserSigning, own, master, id.Ed25519(master))
	if err != nil || !ok {
		return "", nil
	}
	for keyID, text := range key.Keys {
		if raw, err := base64.RawStdEncoding.DecodeString(text); err == nil && len(raw) == 32 && keyID == "ed25519:"+text {
			return text, nil
		}
	}
	return "", nil
}

// AcceptIdentity takes a user's present master key for the one seen first,
// after it changed and a person decided that this is right.
func (i *Identity) AcceptIdentity(ctx context.Context, user id.UserID) error {
	u, err := i.Devices(ctx, user)
	if err != nil {
		return err
	}
	if u.MasterKey == "" {
		return fmt.Errorf("identity: %s has no cross-signing keys to accept", user)
	}
	err = i.st.Do(ctx, func(ctx context.Context) error {
		r, outdated, err := i.record(ctx, user)
		if err != nil || r == nil {
			return err
		}
		r.FirstMaster, r.WasVerified = u.MasterKey, false
		return i.putRecord(ctx, user, r, outdated)
	})
	i.lists.outdate(user)
	i.notifyChanged(user)
	return err
}
