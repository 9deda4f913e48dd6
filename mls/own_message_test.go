package mls

import (
	"slices"
	"testing"
)

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

func TestMissingMessages(t *testing.T) {
	gs := newTestGroup(t, testConfig(t), 1, 2)
	var sent []*Message
	for range 6 {
		raw, err := gs[0].Encrypt([]byte("x"), nil)
		noError(t, err)
		m, err := ParseMessage(raw)
		noError(t, err)
		sent = append(sent, m)
	}
	want := func(when string, received uint32, ok bool, missing ...uint32) {
		t.Helper()
		if g, some := gs[1].Received(0); g != received || some != ok {
			t.Errorf("%s: received up to %d, %t", when, g, some)
		}
		if got := gs[1].Missing(0, 0, 6, 10); !slices.Equal(got, missing) {
			t.Errorf("%s: %v are missing, want %v", when, got, missing)
		}
	}
	want("before anything", 0, false)
	for _, step := range []struct {
		generation, received uint32
		ok                   bool
		missing              []uint32
	}{{1, 0, false, []uint32{0}}, {5, 0, false, []uint32{0, 2, 3, 4}}, {0, 1, true, []uint32{2, 3, 4}}, {3, 1, true, []uint32{2, 4}}} {
		_, err := gs[1].Process(sent[step.generation])
		noError(t, err)
		want("after the next", step.received, step.ok, step.missing...)
	}
	if got := gs[1].Missing(0, 3, 5, 10); !slices.Equal(got, []uint32{4}) {
		t.Errorf("from 3 to 5: %v", got)
	}
	if got := gs[1].Missing(0, 0, 6, 1); !slices.Equal(got, []uint32{2}) {
		t.Errorf("the first: %v", got)
	}
	if got := gs[1].Missing(1, 0, 6, 10); got != nil {
		t.Errorf("of who sent nothing: %v", got)
	}
}
