package mls

import (
	"bytes"
	"crypto/rand"
	"testing"
)

// TestVerifySender: a commit's signature is checked by who has a GroupInfo of its
// epoch and the sender's key, and nothing else of the group.
func TestVerifySender(t *testing.T) {
	const cs = MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	key, err := GenerateSignatureKey(cs, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := GenerateSignatureKey(cs, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := LeafOptions{Credential: BasicCredential([]byte("alice"))}
	parse := func(raw []byte, err error) *Message {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		m, err := ParseMessage(raw)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	create := func(id string) *Group {
		g, err := CreateGroup(nil, cs, []byte(id), key, leaf, nil)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	g := create("one")
	info := func(g *Group) *GroupInfo { return parse(g.GroupInfo(GroupInfoOptions{})).GroupInfo() }
	ext := new(RequiredCapabilities).Extension()
	staged, err := g.Commit(CommitOptions{Proposals: []Proposal{GroupContextExtensions([]Extension{ext})}})
	if err != nil {
		t.Fatal(err)
	}
	m := parse(staged.Message(), nil)
	if exts, ok := m.CommitExtensions(); !ok || len(exts) != 1 || exts[0].Type != ext.Type {
		t.Errorf("extensions of the commit: %v", exts)
	}
	next := staged.Merge()
	plain, err := next.Commit(CommitOptions{ForcePath: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := parse(plain.Message(), nil).CommitExtensions(); ok {
		t.Error("a commit without extensions proposes some")
	}
	if _, ok := parse(g.GroupInfo(GroupInfoOptions{})).CommitExtensions(); ok {
		t.Error("a GroupInfo proposes extensions")
	}
	unknown, err := g.GroupInfo(GroupInfoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	copy(unknown[6:], []byte{0xfa, 0xfa}) // the suite in its GroupContext
	for _, test := range []struct {
		name string
		m    *Message
		at   *GroupInfo
		key  SignaturePublicKey
		rule Rule
	}{
		{"as it is", m, info(g), key.Public(), ""},
		{"another key", m, info(g), other.Public(), "framing/signature-invalid"},
		{"no key", m, info(g), nil, "framing/signature-invalid"},
		{"the epoch it makes", m, info(next), key.Public(), "framing/epoch-old"},
		{"an epoch before", parse(plain.Message(), nil), info(g), key.Public(), "framing/epoch-future"},
		{"another group", m, info(create("two")), key.Public(), "framing/group-id"},
		{"a suite that nobody knows", m, parse(unknown, nil).GroupInfo(), key.Public(), "crypto/cipher-suite-unsupported"},
		{"no GroupInfo", m, nil, key.Public(), "framing/group-id"},
		{"no PublicMessage", parse(g.GroupInfo(GroupInfoOptions{})), info(g), key.Public(), "framing/group-id"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.m.VerifySender(test.at, test.key)
			if test.rule == "" && err != nil || test.rule != "" && !hasRule(err, test.rule) {
				t.Errorf("got %v, want %q", err, test.rule)
			}
		})
	}
	read := 0
	for at := 40; at < len(staged.Message())-70; at++ { // what lies behind is tags
		raw := bytes.Clone(staged.Message())
		raw[at] ^= 1
		changed, err := ParseMessage(raw)
		if err != nil {
			continue
		}
		if read++; changed.VerifySender(info(g), key.Public()) == nil {
			t.Errorf("byte %d changed, and the signature holds", at)
		}
	}
	if read < 50 {
		t.Errorf("only %d changed messages could be read", read)
	}
}
