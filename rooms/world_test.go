package rooms

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

const (
	testSuite = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	testRoom  = id.RoomID("!room:example.org")
	otherRoom = id.RoomID("!other:example.org")
	alice     = id.UserID("@alice:example.org")
	bob       = id.UserID("@bob:example.net")
	carol     = id.UserID("@carol:example.com")
	dave      = id.UserID("@dave:example.net")
	testBot   = id.UserID("@_mls_bot:example.org")
)

// newSeed returns a seeded source of bytes.
func newSeed(n uint64) *rand.ChaCha8 {
	var seed [32]byte
	for i := range 8 {
		seed[i] = byte(n >> (8 * i))
	}
	return rand.NewChaCha8(seed)
}

func testConfig(n uint64) *mls.Config {
	return &mls.Config{Rand: newSeed(n), Now: func() time.Time { return time.Unix(1_790_000_000, 0) }, Authenticator: Authenticator{}}
}

func ed25519Key(n uint64) ed25519.PrivateKey {
	var seed [32]byte
	_, _ = newSeed(n + 1<<32).Read(seed[:])
	return ed25519.NewKeyFromSeed(seed[:])
}

func testSequencer() federation.Sequencer {
	return federation.Sequencer{Server: "example.org", User: string(testBot), ReceiptKey: ed25519Key(1).Public().(ed25519.PublicKey)}
}

func testPolicy() *Policy { return DefaultPolicy(testRoom, alice, testSequencer()) }

// testDevice is a device with its MLS state.
type testDevice struct {
	t      *testing.T
	cfg    *mls.Config
	cred   Credential
	key    mls.SignaturePrivateKey
	bundle *mls.KeyPackageBundle
	group  *mls.Group
}

func newDevice(t *testing.T, user id.UserID, device id.DeviceID) *testDevice {
	t.Helper()
	n := uint64(len(user))<<8 ^ uint64(user[1])<<16 ^ uint64(len(device)) ^ uint64(device[0])<<24
	d := &testDevice{t: t, cfg: testConfig(n)}
	var err error
	d.key, err = mls.GenerateSignatureKey(testSuite, d.cfg.Rand)
	must(t, err)
	d.cred = Credential{User: user, Device: device, Key: d.key.Public()}
	d.bundle, err = mls.NewKeyPackage(d.cfg, testSuite, d.key, LeafOptions(d.cred))
	must(t, err)
	return d
}

// keyPackage returns the key package as another device reads it.
func (d *testDevice) keyPackage() *mls.KeyPackage {
	m, err := mls.ParseMessage(d.bundle.Message())
	must(d.t, err)
	return m.KeyPackage()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testGroup is a group and the refs of its epochs.
type testGroup struct {
	t       *testing.T
	creator *testDevice
	head    federation.Ref
	members []*testDevice
	sender  mls.SignaturePrivateKey // of the module
}

// newGroup founds a group of alice's PHONE under a policy.
func newGroup(t *testing.T, p *Policy) *testGroup {
	t.Helper()
	g := &testGroup{t: t, creator: newDevice(t, alice, "PHONE")}
	var err error
	g.sender, err = mls.GenerateSignatureKey(testSuite, newSeed(99))
	must(t, err)
	exts, err := GroupExtensions(p, []mls.ExternalSender{{SignatureKey: g.sender.Public(), Credential: mls.BasicCredential([]byte(testBot))}})
	must(t, err)
	g.creator.group, err = mls.CreateGroup(g.creator.cfg, testSuite, make([]byte, GroupIDSize), g.creator.key, LeafOptions(g.creator.cred), exts)
	must(t, err)
	info, err := g.creator.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	must(t, err)
	m, err := mls.ParseMessage(info)
	must(t, err)
	g.head, err = RootRef(m)
	must(t, err)
	g.members = []*testDevice{g.creator}
	return g
}

// made is a commit that is not merged yet.
type made struct {
	by     *testDevice
	staged *mls.StagedCommit
	in     CommitInput
}

// commit makes a commit by a member on the head. aad may be nil.
func (g *testGroup) commit(by *testDevice, aad *CommitAAD, o mls.CommitOptions) *made {
	g.t.Helper()
	if aad == nil {
		aad = &CommitAAD{}
	}
	if aad.Parent.IsZero() {
		aad.Parent = g.head
	}
	raw, err := aad.Encode()
	must(g.t, err)
	o.AuthenticatedData = raw
	staged, err := by.group.Commit(o)
	must(g.t, err)
	return g.input(by, staged, by.group)
}

func (g *testGroup) input(by *testDevice, staged *mls.StagedCommit, parent Tree) *made {
	g.t.Helper()
	m, err := mls.ParseMessage(staged.Message())
	must(g.t, err)
	ref, err := CommitRef(m)
	must(g.t, err)
	return &made{by: by, staged: staged, in: CommitInput{
		Room: testRoom, Sender: by.cred.User, Event: "$commit", Ref: ref, Tree: parent, Parent: g.head, Staged: staged, Next: NextOf(staged),
		Content: &CommitContent{Epoch: staged.Epoch(), Parent: Hash(g.head), Message: staged.Message()},
	}}
}

// add makes a commit of alice that adds devices with admissions for their
// users, and lets everybody merge it.
func (g *testGroup) add(devices ...*testDevice) {
	g.t.Helper()
	var o mls.CommitOptions
	aad := &CommitAAD{}
	seen := make(map[id.UserID]bool)
	for _, d := range devices {
		o.Proposals = append(o.Proposals, mls.Add(d.keyPackage()))
		if !seen[d.cred.User] {
			seen[d.cred.User] = true
			aad.Admissions = append(aad.Admissions, *g.admit(g.creator, d.cred.User))
		}
	}
	o.WelcomeRatchetTree = true
	c := g.commit(g.creator, aad, o)
	_, err := CheckCommit(c.in)
	must(g.t, err)
	g.merge(c)
	for _, d := range devices {
		raw, err := c.staged.WelcomeFor(d.bundle.KeyPackage().Ref())
		must(g.t, err)
		m, err := mls.ParseMessage(raw)
		must(g.t, err)
		d.group, err = mls.JoinWelcome(d.cfg, m, d.bundle, mls.JoinOptions{})
		must(g.t, err)
		g.members = append(g.members, d)
	}
}

// merge lets all members take a commit.
func (g *testGroup) merge(c *made) {
	g.t.Helper()
	m, err := mls.ParseMessage(c.staged.Message())
	must(g.t, err)
	var stay []*testDevice
	for _, d := range g.members {
		if d == c.by {
			d.group = c.staged.Merge()
		} else {
			p, err := d.group.Process(m)
			must(g.t, err)
			d.group = p.(*mls.StagedCommit).Merge()
		}
		if d.group != nil {
			stay = append(stay, d)
		}
	}
	g.members, g.head = stay, c.in.Ref
}

func (g *testGroup) admit(by *testDevice, user id.UserID) *Admission {
	g.t.Helper()
	a, err := SignAdmission(by.group, testRoom, g.head, by.group.OwnLeafIndex(), by.key, user, nil)
	must(g.t, err)
	return a
}

// wantRule checks that an error names a rule.
func wantRule(t *testing.T, err error, rule Rule) {
	t.Helper()
	var r *Refusal
	switch {
	case err == nil:
		t.Errorf("accepted, want %s", rule)
	case !errors.As(err, &r):
		t.Errorf("error without rule: %v, want %s", err, rule)
	case r.Rule != rule:
		t.Errorf("rule %s, want %s: %v", r.Rule, rule, err)
	}
}

// testIdentity is a user's cross-signing keys and devices.
type testIdentity struct {
	user                id.UserID
	master, self, users ed25519.PrivateKey
}

func newIdentity(user id.UserID) *testIdentity {
	n := uint64(user[1]) << 8
	return &testIdentity{user: user, master: ed25519Key(n + 1), self: ed25519Key(n + 2), users: ed25519Key(n + 3)}
}

func pub(k ed25519.PrivateKey) string { return EncodeBase64(k.Public().(ed25519.PublicKey)) }

// signJSON adds signatures to an object.
func signJSON(t *testing.T, obj map[string]any, user id.UserID, keys map[string]ed25519.PrivateKey) {
	t.Helper()
	delete(obj, "signatures")
	raw, err := json.Marshal(obj)
	must(t, err)
	v, err := parseJSON(raw, canonicalNumbers)
	must(t, err)
	signatures := make(map[string]string)
	for name, k := range keys {
		signatures["ed25519:"+name] = EncodeBase64(ed25519.Sign(k, v.appendCanonical(nil, "unsigned")))
	}
	obj["signatures"] = map[string]any{string(user): signatures}
}

func rawJSON(t *testing.T, v any) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(v)
	must(t, err)
	return raw
}

// cross returns the user's master and self-signing keys as /keys/query has them.
func (i *testIdentity) cross(t *testing.T) (master, self json.RawMessage) {
	m := map[string]any{"user_id": i.user, "usage": []string{"master"}, "keys": map[string]string{"ed25519:" + pub(i.master): pub(i.master)}}
	s := map[string]any{"user_id": i.user, "usage": []string{"self_signing"}, "keys": map[string]string{"ed25519:" + pub(i.self): pub(i.self)}}
	signJSON(t, s, i.user, map[string]ed25519.PrivateKey{pub(i.master): i.master})
	return rawJSON(t, m), rawJSON(t, s)
}

func (i *testIdentity) parsed(t *testing.T) *CrossSigning {
	t.Helper()
	m, s := i.cross(t)
	c, err := ParseCrossSigning(m, s, i.user)
	must(t, err)
	return c
}

// device returns device keys with the leaf's MLS key, signed by the device and,
// if crossSigned, by the self-signing key.
func (i *testIdentity) device(t *testing.T, d *testDevice, own ed25519.PrivateKey, crossSigned bool) map[string]any {
	obj := map[string]any{
		"user_id": i.user, "device_id": d.cred.Device, "algorithms": []string{string(SuiteKeyAlgorithm(testSuite))},
		"keys": map[string]string{
			"ed25519:" + string(d.cred.Device):            pub(own),
			string(DeviceKeyID(testSuite, d.cred.Device)): EncodeBase64(d.cred.Key),
		},
		"unsigned": map[string]any{"device_display_name": "a phone"},
	}
	keys := map[string]ed25519.PrivateKey{string(d.cred.Device): own}
	if crossSigned {
		keys[pub(i.self)] = i.self
	}
	signJSON(t, obj, i.user, keys)
	return obj
}
