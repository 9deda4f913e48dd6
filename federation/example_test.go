package federation_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/matrix-mls/matrix-mls/federation"
)

// A module with the room's only receipt key accepts a commit, and votes for it
// once another user vouched.
func Example() {
	const room = "!room:example.org"
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	leaf := func(n byte) ed25519.PrivateKey {
		return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
	}
	public := func(k ed25519.PrivateKey) []byte { return k.Public().(ed25519.PublicKey) }

	group := []byte("group id")
	m, err := federation.New(federation.Config{
		Room: room,
		Self: &federation.Identity{Server: "example.org", User: "@_mls_bot:example.org", Key: key},
		Verify: func(_ uint16, key, content, signature []byte) error {
			if !ed25519.Verify(key, content, signature) {
				return errors.New("signature does not match")
			}
			return nil
		},
	}, federation.Base{
		Ref: sha256.Sum256([]byte("root")), GroupID: group, Suite: 1,
		Policy: federation.Policy{
			Sequencers: federation.List{{Server: "example.org", User: "@_mls_bot:example.org", ReceiptKey: public(key)}},
			Admins:     []string{"@alice:example.org"},
		},
		Leaves: []federation.Leaf{
			{Index: 0, User: "@alice:example.org", Key: public(leaf(2))},
			{Index: 1, User: "@bob:example.net", Key: public(leaf(3))},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	// The driver persists at Save, then sends, then does the rest.
	carryOut := func(acts []federation.Action) {
		for _, a := range acts {
			switch a := a.(type) {
			case federation.Save:
				fmt.Println("persist the machine")
			case federation.Send:
				fmt.Printf("send %T %d\n", a.Receipt, a.Receipt.Link().Counter)
			case federation.Finalized:
				fmt.Println("final:", a.Ref == m.Head())
			}
		}
	}

	commit := &federation.Commit{
		Ref: sha256.Sum256([]byte("commit")), Parent: m.Head(), Epoch: 1, Author: 0, AuthorUser: "@alice:example.org",
	}
	acts, err := m.Step(commit)
	if err != nil {
		fmt.Println(err)
		return
	}
	carryOut(acts)
	carryOut(m.Tick(1 * time.Second))

	applied := &federation.Applied{Ref: commit.Ref, Leaf: 1, Hash: federation.AppliedHash([]byte("epoch authenticator"))}
	applied.Signature = ed25519.Sign(leaf(3), applied.Content(federation.Scope{Room: room, Group: group}))
	if acts, err = m.Step(applied); err != nil {
		fmt.Println(err)
		return
	}
	carryOut(acts)
	carryOut(m.Tick(2 * time.Second))
	carryOut(m.Tick(7 * time.Second))
	// Output:
	// persist the machine
	// persist the machine
	// send *federation.Accept 1
	// persist the machine
	// persist the machine
	// send *federation.Vote 2
	// final: true
}
