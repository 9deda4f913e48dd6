package rooms

import (
	"bytes"
	"testing"

	"maunium.net/go/mautrix/id"
)

func TestHistoryBundleIsForOneDevice(t *testing.T) {
	giver, other := newDevice(t, alice, "PHONE"), newDevice(t, alice, "TABLET")
	private := bytes.Repeat([]byte{3}, 32)
	public, err := HistoryPublicKey(private)
	must(t, err)
	fileKey := bytes.Repeat([]byte{9}, 32)
	peers := HistoryPeers{Giver: alice, Taker: alice, TakerDevice: "LAPTOP"}
	made := func() *HistoryBundleContent {
		h := &HistoryBundleContent{
			Room: testRoom, Request: "r", Device: "PHONE", Suite: uint16(testSuite), Part: 1,
			File: *NewFile("mxc://a.example/x", []byte("sealed")),
		}
		must(t, h.Seal(peers, public, fileKey, giver.key))
		return h
	}
	h := made()
	raw, err := Encode(h)
	must(t, err)
	back, err := DecodeHistoryBundle(raw)
	must(t, err)
	got, err := back.Open(peers, private, giver.cred.Key)
	must(t, err)
	if !bytes.Equal(got, fileKey) {
		t.Fatal("another key came out")
	}
	for name, change := range map[string]func(h *HistoryBundleContent, p *HistoryPeers){
		"another room":           func(h *HistoryBundleContent, _ *HistoryPeers) { h.Room = otherRoom },
		"another request":        func(h *HistoryBundleContent, _ *HistoryPeers) { h.Request = "s" },
		"another giving device":  func(h *HistoryBundleContent, _ *HistoryPeers) { h.Device = "TABLET" },
		"another part":           func(h *HistoryBundleContent, _ *HistoryPeers) { h.Part = 2 },
		"said to be the last":    func(h *HistoryBundleContent, _ *HistoryPeers) { h.Last = true },
		"another file":           func(h *HistoryBundleContent, _ *HistoryPeers) { h.File.SHA256[0] ^= 1 },
		"another place":          func(h *HistoryBundleContent, _ *HistoryPeers) { h.File.MXC = "mxc://a.example/y" },
		"another size":           func(h *HistoryBundleContent, _ *HistoryPeers) { h.File.Size++ },
		"another key":            func(h *HistoryBundleContent, _ *HistoryPeers) { h.Key[0] ^= 1 },
		"another giver":          func(_ *HistoryBundleContent, p *HistoryPeers) { p.Giver = bob },
		"another taker":          func(_ *HistoryBundleContent, p *HistoryPeers) { p.Taker = bob },
		"another taker's device": func(_ *HistoryBundleContent, p *HistoryPeers) { p.TakerDevice = "WATCH" },
	} {
		t.Run(name, func(t *testing.T) {
			h, p := made(), peers
			change(h, &p)
			_, err := h.Open(p, private, giver.cred.Key)
			wantRule(t, err, RuleReceiptForged)
		})
	}
	_, err = made().Open(peers, private, other.cred.Key)
	wantRule(t, err, RuleReceiptForged)
	_, err = made().Open(peers, bytes.Repeat([]byte{4}, 32), giver.cred.Key)
	wantRule(t, err, RuleReceiptForged)
	// A key without a secret: of small order.
	wantRule(t, made().Seal(peers, make([]byte, 32), fileKey, giver.key), RuleContentMalformed)
}

func TestHistoryRequestIsSignedByItsDevice(t *testing.T) {
	d, other := newDevice(t, alice, "LAPTOP"), newDevice(t, alice, "PHONE")
	made := func() *HistoryRequestContent {
		h := &HistoryRequestContent{Room: testRoom, Request: "r", Device: "LAPTOP", Suite: uint16(testSuite), Key: make(Bytes, 32)}
		must(t, h.Sign(alice, d.key))
		return h
	}
	must(t, made().Verify(alice, d.cred.Key))
	for name, change := range map[string]func(h *HistoryRequestContent, user *id.UserID){
		"another room":    func(h *HistoryRequestContent, _ *id.UserID) { h.Room = otherRoom },
		"another request": func(h *HistoryRequestContent, _ *id.UserID) { h.Request = "s" },
		"another device":  func(h *HistoryRequestContent, _ *id.UserID) { h.Device = "PHONE" },
		"another key":     func(h *HistoryRequestContent, _ *id.UserID) { h.Key[0] ^= 1 },
		"another user":    func(_ *HistoryRequestContent, user *id.UserID) { *user = bob },
	} {
		t.Run(name, func(t *testing.T) {
			h, user := made(), id.UserID(alice)
			change(h, &user)
			wantRule(t, h.Verify(user, d.cred.Key), RuleReceiptForged)
		})
	}
	wantRule(t, made().Verify(alice, other.cred.Key), RuleReceiptForged)
}
