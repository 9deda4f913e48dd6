package mls

import (
	"bytes"
	"testing"
)

func TestOnSealSeesEveryMessageKeyOnce(t *testing.T) {
	var keys [][]byte
	cfg := &Config{OnSeal: func(key, nonce, plaintext []byte) {
		if !bytes.Contains(plaintext, []byte("the same")) {
			t.Errorf("told of %q", plaintext)
		}
		keys = append(keys, append(bytes.Clone(key), nonce...))
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
	if len(keys) != 3 || bytes.Equal(keys[0], keys[1]) || bytes.Equal(keys[1], keys[2]) {
		t.Errorf("told of %d keys, want 3 different ones", len(keys))
	}
}
