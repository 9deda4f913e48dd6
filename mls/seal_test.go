package mls

import "testing"

func TestOnSealSeesEveryMessageKeyOnce(t *testing.T) {
	contents := make(map[[32]byte]int)
	uses := make(map[[32]byte]int)
	cfg := &Config{OnSeal: func(use, content [32]byte) {
		uses[use]++
		contents[content]++
	}}
	cs := CipherSuite(1)
	key, err := GenerateSignatureKey(cs, cfg.rand())
	if err != nil {
		t.Fatal(err)
	}
	g, err := CreateGroup(cfg, cs, []byte("g"), key, LeafOptions{Credential: BasicCredential([]byte("a"))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := g.Encrypt([]byte("the same"), nil); err != nil {
			t.Fatal(err)
		}
	}
	// Each message has a key of its own. What is encrypted differs with the
	// group context only, and Ed25519 signs alike.
	if len(uses) != 3 || len(contents) != 1 {
		t.Errorf("told of %d keys and %d contents, want 3 and 1", len(uses), len(contents))
	}
}
