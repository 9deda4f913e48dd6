package mls

import "testing"

func TestSentElsewhere(t *testing.T) {
	cfg := &Config{}
	cs := CipherSuite(1)
	key, err := GenerateSignatureKey(cs, cfg.rand())
	noError(t, err)
	g, err := CreateGroup(cfg, cs, []byte("g"), key, LeafOptions{Credential: BasicCredential([]byte("a"))}, nil)
	noError(t, err)
	send := func(g *Group) *Message {
		raw, err := g.Encrypt([]byte("x"), nil)
		noError(t, err)
		m, err := ParseMessage(raw)
		noError(t, err)
		return m
	}
	first := send(g)
	copied, err := LoadGroup(cfg, g.EpochState(), g.RatchetState())
	noError(t, err)
	second, third := send(g), send(g)
	if copied.SentElsewhere(first) {
		t.Error("a message from before the copy counts as sent elsewhere")
	}
	for range 2 { // asking changes nothing
		if !copied.SentElsewhere(second) || !copied.SentElsewhere(third) {
			t.Error("messages that the other copy sent are not noticed")
		}
	}
	if g.SentElsewhere(second) || g.SentElsewhere(third) {
		t.Error("a group's own messages count as sent elsewhere")
	}
	forged := *second
	private := *second.private
	private.ciphertext = append([]byte(nil), private.ciphertext...)
	private.ciphertext[len(private.ciphertext)-1] ^= 1
	forged.private = &private
	if copied.SentElsewhere(&forged) {
		t.Error("a forged message counts as sent elsewhere")
	}
}
