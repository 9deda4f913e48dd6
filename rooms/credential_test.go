package rooms

import (
	"crypto/ed25519"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
)

func contains(s, sub string) bool { return strings.Contains(s, sub) }

func TestCredentialRoundTrip(t *testing.T) {
	for _, c := range []Credential{
		{alice, "PHONE", make([]byte, 32)},
		{id.UserID("@" + strings.Repeat("a", 100) + ":example.org"), id.DeviceID(strings.Repeat("D", 64)), make([]byte, 133)},
		{alice, "ünïcode", make([]byte, 57)},
	} {
		m := c.MLS()
		got, err := ParseCredential(&m)
		if err != nil || got.User != c.User || got.Device != c.Device || string(got.Key) != string(c.Key) {
			t.Errorf("ParseCredential(%v) = %v, %v", c, got, err)
		}
	}
}

func TestCredentialMalformed(t *testing.T) {
	good := Credential{alice, "PHONE", make([]byte, 32)}.MLS().Identity
	long := Credential{id.UserID("@" + strings.Repeat("a", 300) + ":x"), "D", []byte{1}}.MLS().Identity
	for name, c := range map[string]mls.Credential{
		"another type":      {Type: mls.CredentialTypeX509, Identity: good},
		"empty":             mls.BasicCredential(nil),
		"text":              mls.BasicCredential([]byte("@alice:example.org")),
		"trailing byte":     mls.BasicCredential(append(append([]byte(nil), good...), 0)),
		"truncated":         mls.BasicCredential(good[:len(good)-1]),
		"long length form":  mls.BasicCredential(append([]byte{0x40}, good...)),
		"length of 4 GiB":   mls.BasicCredential([]byte{0x80, 0xff, 0xff, 0xff, 0}),
		"user too long":     mls.BasicCredential(long),
		"no user":           Credential{"", "D", []byte{1}}.MLS(),
		"user no server":    Credential{"@alice", "D", []byte{1}}.MLS(),
		"user with newline": Credential{"@a\n:b", "D", []byte{1}}.MLS(),
		"no device":         Credential{alice, "", []byte{1}}.MLS(),
		"device control":    Credential{alice, "a\x00b", []byte{1}}.MLS(),
		"device UTF-8":      Credential{alice, "\xff", []byte{1}}.MLS(),
		"no key":            Credential{alice, "D", nil}.MLS(),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseCredential(&c)
			wantRule(t, err, RuleCredentialMalformed)
		})
	}
}

func TestAuthenticator(t *testing.T) {
	leaf := func(c Credential, key []byte) *mls.LeafNode {
		return &mls.LeafNode{Credential: c.MLS(), SignatureKey: key}
	}
	k1, k2 := make([]byte, 32), []byte(strings.Repeat("k", 32))
	a := Authenticator{}
	must(t, a.ValidateCredential(leaf(Credential{alice, "A", k1}, k1)))
	wantRule(t, a.ValidateCredential(leaf(Credential{alice, "A", k1}, k2)), RuleDeviceNotCredential)
	same := leaf(Credential{alice, "A", k1}, k1)
	for _, test := range []struct {
		next *mls.LeafNode
		want bool
	}{
		{leaf(Credential{alice, "A", k1}, k1), true},
		{leaf(Credential{alice, "A", k2}, k2), true},
		{leaf(Credential{alice, "B", k1}, k1), false},
		{leaf(Credential{bob, "A", k1}, k1), false},
		{&mls.LeafNode{Credential: mls.BasicCredential([]byte("x"))}, false},
	} {
		if got := a.SameClient(same, test.next); got != test.want {
			t.Errorf("SameClient(%v) = %v, want %v", test.next.Credential, got, test.want)
		}
	}
}

func TestKeyPackageIDs(t *testing.T) {
	for _, cs := range mls.SupportedCipherSuites() {
		key := KeyPackageID(cs, []byte{1, 2, 3})
		if strings.Count(string(key), ":") != 1 || !strings.HasPrefix(string(key), "de.bwi.mls.v1.MLS_") {
			t.Errorf("key id %q", key)
		}
		got, ref, err := ParseKeyPackageID(key)
		if err != nil || got != cs || string(ref) != "\x01\x02\x03" {
			t.Errorf("ParseKeyPackageID(%q) = %v, %x, %v", key, got, ref, err)
		}
	}
	for _, bad := range []id.KeyID{"", "signed_curve25519:AAAA", "de.bwi.mls.v1.MLS_9:AAAA", "de.bwi.mls.v1." + id.KeyID(testSuite.String()), "de.bwi.mls.v1." + id.KeyID(testSuite.String()) + ":", "de.bwi.mls.v1." + id.KeyID(testSuite.String()) + ":A=="} {
		if _, _, err := ParseKeyPackageID(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestBinding(t *testing.T) {
	d := newDevice(t, alice, "PHONE")
	i := newIdentity(alice)
	own := ed25519Key(50)
	parse := func(obj map[string]any) *DeviceKeys {
		t.Helper()
		k, err := ParseDeviceKeys(rawJSON(t, obj), alice, "PHONE")
		must(t, err)
		return k
	}
	signed, unsigned := parse(i.device(t, d, own, true)), parse(i.device(t, d, own, false))
	other := newIdentity(alice)
	other.master, other.self = ed25519Key(77), ed25519Key(78)
	cross, stranger := i.parsed(t), other.parsed(t)
	wrongKey := d.cred
	wrongKey.Key = make([]byte, 32)
	for _, test := range []struct {
		name   string
		cred   Credential
		device *DeviceKeys
		cross  *CrossSigning
		known  Known
		need   Verification
		rule   Rule
	}{
		{"cross-signed", d.cred, signed, cross, Known{}, VerifyCross, ""},
		{"cross-signed and known", d.cred, signed, cross, Known{Master: cross.Master, Verified: true}, VerifyCross, ""},
		{"not cross-signed", d.cred, unsigned, cross, Known{}, VerifyCross, RuleDeviceKeyNotCrossSigned},
		{"no cross-signing", d.cred, signed, nil, Known{}, VerifyCross, RuleDeviceKeyNotCrossSigned},
		{"signed by another identity", d.cred, signed, stranger, Known{}, VerifyCross, RuleDeviceKeyNotCrossSigned},
		{"identity changed", d.cred, signed, cross, Known{Master: stranger.Master, Verified: true}, VerifyCross, RuleIdentityChanged},
		{"identity vanished", d.cred, signed, nil, Known{Master: cross.Master}, VerifyCross, RuleIdentityChanged},
		{"identity changed, tofu", d.cred, unsigned, cross, Known{Master: stranger.Master}, VerifyTOFU, RuleIdentityChanged},
		{"tofu, first time", d.cred, unsigned, nil, Known{}, VerifyTOFU, ""},
		{"tofu, same key", d.cred, unsigned, nil, Known{Device: own.Public().(ed25519.PublicKey)}, VerifyTOFU, ""},
		{"tofu, other key", d.cred, unsigned, nil, Known{Device: make([]byte, 32)}, VerifyTOFU, RuleIdentityChanged},
		{"none", d.cred, unsigned, nil, Known{}, VerifyNone, ""},
		{"no such device", d.cred, nil, cross, Known{}, VerifyNone, RuleDeviceNotCredential},
		{"other MLS key", wrongKey, signed, cross, Known{}, VerifyNone, RuleDeviceNotCredential},
		{"keys of another device", Credential{alice, "WEB", d.cred.Key}, signed, cross, Known{}, VerifyCross, RuleDeviceNotCredential},
		{"keys of another user", Credential{bob, "PHONE", d.cred.Key}, signed, cross, Known{}, VerifyCross, RuleDeviceNotCredential},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := CheckBinding(&test.cred, testSuite, test.device, test.cross, test.known, test.need)
			for _, against := range []*CrossSigning{cross, stranger, nil} { // whatever was looked for before
				if test.device == nil {
					break
				}
				if again := CheckBinding(&test.cred, testSuite, test.device.Against(against), test.cross, test.known, test.need); RuleOf(again) != test.rule {
					t.Errorf("with what is known of another identity: %v, want %q", again, test.rule)
				}
			}
			if test.device != nil {
				if again := CheckBinding(&test.cred, testSuite, test.device.AgainstOnly(test.cross), test.cross, test.known, test.need); RuleOf(again) != test.rule {
					t.Errorf("without signatures: %v, want %q", again, test.rule)
				}
				if test.cross != nil && test.device.AgainstOnly(stranger).AgainstOnly(test.cross).CrossSignedBy(test.cross) && test.cross != stranger {
					t.Error("without signatures it is signed by another identity")
				}
			}
			if test.rule == "" {
				must(t, err)
				return
			}
			wantRule(t, err, test.rule)
			if r, ok := err.(*Refusal); !ok || r.Remedy == "" || !contains(err.Error(), string(test.cred.User)) || !contains(err.Error(), string(test.cred.Device)) {
				t.Errorf("error %v names no user, device or remedy", err)
			}
		})
	}
}

// TestDeviceNamedLikeACrossSigningKey is the confusion of CVE-2022-39250: a
// homeserver makes a device whose id is a cross-signing key.
func TestDeviceNamedLikeACrossSigningKey(t *testing.T) {
	i := newIdentity(alice)
	for name, k := range map[string]ed25519.PrivateKey{"master": i.master, "self-signing": i.self} {
		d := newDevice(t, alice, id.DeviceID(pub(k)))
		keys, err := ParseDeviceKeys(rawJSON(t, i.device(t, d, k, true)), alice, d.cred.Device)
		must(t, err)
		t.Run(name, func(t *testing.T) {
			wantRule(t, CheckBinding(&d.cred, testSuite, keys, i.parsed(t), Known{}, VerifyCross), RuleDeviceNotCredential)
		})
	}
}

func TestDeviceKeysRefused(t *testing.T) {
	i, d, own := newIdentity(alice), newDevice(t, alice, "PHONE"), ed25519Key(50)
	low := make([]byte, 32)
	low[0] = 1
	for _, test := range []struct {
		name string
		edit func(obj map[string]any)
		rule Rule
	}{
		{"unchanged", func(map[string]any) {}, ""},
		{"unsigned data changed", func(o map[string]any) { o["unsigned"] = map[string]any{"x": 1} }, ""},
		{"other user", func(o map[string]any) { o["user_id"] = bob }, RuleDeviceNotCredential},
		{"other device", func(o map[string]any) { o["device_id"] = "WEB" }, RuleDeviceNotCredential},
		{"key added by the server", func(o map[string]any) { o["keys"].(map[string]string)["curve25519:PHONE"] = "AAAA" }, RuleDeviceNotCredential},
		{"MLS key changed by the server", func(o map[string]any) {
			o["keys"].(map[string]string)[string(DeviceKeyID(testSuite, "PHONE"))] = EncodeBase64(make([]byte, 32))
		}, RuleDeviceNotCredential},
		{"no signature", func(o map[string]any) { delete(o, "signatures") }, RuleDeviceNotCredential},
		{"no key", func(o map[string]any) { delete(o["keys"].(map[string]string), "ed25519:PHONE") }, RuleDeviceNotCredential},
		{"key of low order", func(o map[string]any) { o["keys"].(map[string]string)["ed25519:PHONE"] = EncodeBase64(low) }, RuleDeviceNotCredential},
		{"keys of another type", func(o map[string]any) { o["keys"] = []string{"x"} }, RuleContentMalformed},
		{"a float", func(o map[string]any) { o["x"] = 1.5 }, RuleHostileJSON},
	} {
		t.Run(test.name, func(t *testing.T) {
			obj := i.device(t, d, own, true)
			test.edit(obj)
			_, err := ParseDeviceKeys(rawJSON(t, obj), alice, "PHONE")
			if test.rule == "" {
				must(t, err)
				return
			}
			wantRule(t, err, test.rule)
		})
	}
}

func TestDeviceKeysFoundElsewhere(t *testing.T) {
	i, d, own := newIdentity(alice), newDevice(t, alice, "PHONE"), ed25519Key(50)
	raw := rawJSON(t, i.device(t, d, own, true))
	_, err := ParseDeviceKeys(raw, alice, "WEB")
	wantRule(t, err, RuleDeviceNotCredential)
	// Bob's homeserver serves Alice's keys as his, signed by a key it holds.
	obj := i.device(t, d, own, true)
	signJSON(t, obj, bob, map[string]ed25519.PrivateKey{"PHONE": own})
	_, err = ParseDeviceKeys(rawJSON(t, obj), bob, "PHONE")
	wantRule(t, err, RuleDeviceNotCredential)
}

func TestCrossSigningKeys(t *testing.T) {
	i := newIdentity(alice)
	m, s := i.cross(t)
	cross := i.parsed(t)
	t.Run("roles swapped", func(t *testing.T) {
		_, err := ParseCrossSigning(s, m, alice)
		wantRule(t, err, RuleContentMalformed)
	})
	t.Run("other user", func(t *testing.T) {
		_, err := ParseCrossSigning(m, s, bob)
		wantRule(t, err, RuleContentMalformed)
	})
	t.Run("self-signing key of another master", func(t *testing.T) {
		o := newIdentity(alice)
		o.master = ed25519Key(500)
		m2, _ := o.cross(t)
		_, err := ParseCrossSigning(m2, s, alice)
		wantRule(t, err, RuleDeviceKeyNotCrossSigned)
	})
	t.Run("missing", func(t *testing.T) {
		_, err := ParseCrossSigning(nil, s, alice)
		wantRule(t, err, RuleHostileJSON)
	})
	t.Run("signed by a viewer", func(t *testing.T) {
		viewer := ed25519Key(600)
		obj := map[string]any{"user_id": alice, "usage": []string{"master"}, "keys": map[string]string{"ed25519:" + pub(i.master): pub(i.master)}}
		signJSON(t, obj, bob, map[string]ed25519.PrivateKey{pub(viewer): viewer})
		c, err := ParseCrossSigning(rawJSON(t, obj), s, alice)
		must(t, err)
		if !c.SignedBy(bob, pub(viewer), viewer.Public().(ed25519.PublicKey)) {
			t.Error("signature of the viewer is not seen")
		}
		if cross.SignedBy(bob, pub(viewer), viewer.Public().(ed25519.PublicKey)) || c.SignedBy(carol, pub(viewer), viewer.Public().(ed25519.PublicKey)) {
			t.Error("a signature is seen where there is none")
		}
	})
	t.Run("user-signing", func(t *testing.T) {
		obj := map[string]any{"user_id": alice, "usage": []string{"user_signing"}, "keys": map[string]string{"ed25519:" + pub(i.users): pub(i.users)}}
		signJSON(t, obj, alice, map[string]ed25519.PrivateKey{pub(i.master): i.master})
		if _, err := ParseUserSigning(rawJSON(t, obj), cross); err != nil {
			t.Error(err)
		}
		signJSON(t, obj, alice, map[string]ed25519.PrivateKey{pub(i.master): i.self})
		_, err := ParseUserSigning(rawJSON(t, obj), cross)
		wantRule(t, err, RuleDeviceKeyNotCrossSigned)
	})
}

func FuzzParseCredential(f *testing.F) {
	f.Add(Credential{alice, "PHONE", make([]byte, 32)}.MLS().Identity)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := mls.BasicCredential(raw)
		p, err := ParseCredential(&c)
		if err != nil {
			return
		}
		if again := p.MLS(); string(again.Identity) != string(raw) {
			t.Fatalf("%x decodes to what encodes to %x", raw, again.Identity)
		}
	})
}

func FuzzDeviceKeys(f *testing.F) {
	f.Add([]byte(`{"user_id":"@alice:example.org","device_id":"PHONE","keys":{"ed25519:PHONE":"AAAA"},"signatures":{"@alice:example.org":{"ed25519:PHONE":"AA"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := ParseDeviceKeys(raw, alice, "PHONE"); err != nil && RuleOf(err) == "" {
			t.Fatalf("error without rule: %v", err)
		}
		if _, err := ParseCrossSigning(raw, raw, alice); err == nil {
			t.Fatal("one key is accepted as master and self-signing key")
		}
	})
}
