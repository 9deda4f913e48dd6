package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
)

// selfSigner is a user's new self-signing key.
type selfSigner struct {
	s      *story
	d      *e2e.Device
	key    olm.PKSigning
	master olm.PKSigning
}

// unsigns gives a device's user a new self-signing key, as one makes who has lost the old one: the identity is the same,
// and no device is signed.
func (s *story) unsigns(d *e2e.Device) *selfSigner {
	s.Helper()
	cli, err := mautrix.NewClient(d.Server.BaseURL, d.UserID(), d.User.AccessToken)
	s.must(err)
	secrets := ssss.NewSSSSMachine(cli)
	keyID, meta, err := secrets.GetDefaultKeyData(s.soon())
	s.must(err)
	recovery, err := meta.VerifyRecoveryKey(keyID, d.Recovery)
	s.must(err)
	seed, err := secrets.GetDecryptedAccountData(s.soon(), event.AccountDataCrossSigningMaster, recovery)
	s.must(err)
	n := &selfSigner{s: s, d: d}
	n.master, err = olm.NewPKSigningFromSeed(seed)
	s.must(err)
	n.key, err = olm.NewPKSigning()
	s.must(err)
	public := n.key.PublicKey()
	content := mautrix.CrossSigningKeys{
		UserID: d.UserID(), Usage: []id.CrossSigningUsage{id.XSUsageSelfSigning},
		Keys: map[id.KeyID]id.Ed25519{id.NewKeyID(id.KeyAlgorithmEd25519, public.String()): public},
	}
	sig, err := n.master.SignJSON(content)
	s.must(err)
	content.Signatures = signatures.NewSingleSignature(d.UserID(), id.KeyAlgorithmEd25519, n.master.PublicKey().String(), sig)
	_, err = e2e.API(s.soon(), d.Server, d.User, http.MethodPost, "/keys/device_signing/upload", map[string]any{
		"self_signing_key": content,
		"auth": map[string]any{
			"type": mautrix.AuthTypePassword, "password": d.User.Password,
			"identifier": mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: d.User.UserID},
		},
	})
	s.must(err)
	s.step("%s is not signed any more", d.Name)
	return n
}

// signs signs the device with the new key.
func (n *selfSigner) signs() {
	n.s.Helper()
	user, device := n.d.UserID(), n.d.DeviceID().String()
	raw, err := e2e.API(n.s.soon(), n.d.Server, n.d.User, http.MethodPost, "/keys/query", map[string]any{"device_keys": map[string]any{user.String(): []string{}}})
	n.s.must(err)
	var list struct {
		Devices map[id.UserID]map[string]map[string]any `json:"device_keys"`
		Masters map[id.UserID]mautrix.CrossSigningKeys  `json:"master_keys"`
	}
	n.s.must(json.Unmarshal(raw, &list))
	if keys := list.Masters[user]; keys.FirstKey() != n.master.PublicKey() {
		n.s.Fatalf("the identity of %s was %s and is %s", user, n.master.PublicKey(), keys.FirstKey())
	}
	keys := list.Devices[user][device]
	if keys == nil {
		n.s.Fatalf("%s has no device %s", user, device)
	}
	delete(keys, "signatures")
	delete(keys, "unsigned")
	sig, err := n.key.SignJSON(keys)
	n.s.must(err)
	keys["signatures"] = signatures.NewSingleSignature(user, id.KeyAlgorithmEd25519, n.key.PublicKey().String(), sig)
	raw, err = e2e.API(n.s.soon(), n.d.Server, n.d.User, http.MethodPost, "/keys/signatures/upload", map[string]any{user.String(): map[string]any{device: keys}})
	n.s.must(err)
	var answer struct{ Failures map[string]any }
	n.s.must(json.Unmarshal(raw, &answer))
	if len(answer.Failures) > 0 {
		n.s.Fatalf("the homeserver does not take the signature: %s", raw)
	}
	n.s.step("%s is signed again", n.d.Name)
}

// waiting is a message that a client has tried to send.
type waiting struct {
	c       *plainClient
	p       *localProxy
	room    id.RoomID
	text    string
	answers chan answered
	before  int // ciphertexts of the client's user in the room
}

type answered struct {
	status int
	body   []byte
	err    error
}

func (w *waiting) path() string {
	return "/_matrix/client/v3/rooms/" + url.PathEscape(string(w.room)) + "/send/m.room.message/waits"
}

func (w *waiting) content() []byte { return []byte(`{"msgtype":"m.text","body":"` + w.text + `"}`) }

// knows waits until the client's MLS device knows why nothing is to go out.
func (w *waiting) knows(why ...string) {
	s := w.c.s
	s.Helper()
	device := w.p.device(w.c)
	s.eventually("the MLS device knows why to wait", func() string {
		var last string
		for _, line := range strings.Split(device.run("rooms", "--json"), "\n") {
			var room struct {
				ID      id.RoomID `json:"room_id"`
				Blocked []string  `json:"blocked"`
			}
			if json.Unmarshal([]byte(line), &room) != nil || room.ID != w.room {
				continue
			}
			last = line
			if len(room.Blocked) > 0 && containsAll(room.Blocked[0], why) {
				return ""
			}
		}
		return last
	})
}

func containsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}

// tries lets the client send its message, which it is told at last that it has to wait for.
func (w *waiting) tries() {
	w.answers = make(chan answered, 1)
	ctx := w.c.s.soon()
	go func() {
		status, body, err := w.c.request(ctx, http.MethodPut, w.path(), w.content())
		w.answers <- answered{status, body, err}
	}()
}

// waits checks what the client is told, what its person is, and that nothing has gone out.
func (w *waiting) waits(at *e2e.Device, notice string, why ...string) {
	s := w.c.s
	s.Helper()
	got := <-w.answers
	s.must(got.err)
	var refusal struct {
		Code  string `json:"errcode"`
		Error string `json:"error"`
		After int    `json:"retry_after_ms"`
	}
	if err := json.Unmarshal(got.body, &refusal); err != nil || got.status != http.StatusTooManyRequests || refusal.Code != "M_LIMIT_EXCEEDED" ||
		refusal.After <= 0 || !containsAll(refusal.Error, append(why, "not yet: ")) || strings.Contains(refusal.Error, "context") {
		s.Errorf("the client is told %d %s, want M_LIMIT_EXCEEDED that says %q", got.status, got.body, why)
	}
	s.step("the client is told: %s", refusal.Error)
	told := w.c.until("the notice", w.room, func(e *event.Event) bool {
		return strings.HasPrefix(body(e), "What you have written in this room waits, and goes out by itself.")
	})
	if !strings.Contains(body(told), notice) || told.Sender != w.c.UserID {
		s.Errorf("the person is told %q by %s, want that %q", body(told), told.Sender, notice)
	}
	if n := s.ciphertexts(at, w.room, w.c.UserID); n != w.before {
		s.Errorf("%d messages have gone out while they had to wait", n-w.before)
	}
}

// arrives waits until a device has the message, which the client did not send again, and lets the client do that: it is
// sent once.
func (w *waiting) arrives(at *e2e.Device, others ...*e2e.Device) id.EventID {
	s := w.c.s
	s.Helper()
	m, err := at.WaitText(s.soon(), w.room, w.text)
	s.must(err)
	if m.Sender != w.c.UserID {
		s.Errorf("the message is of %s, want %s", m.Sender, w.c.UserID)
	}
	for _, d := range others {
		_, err := d.WaitText(s.soon(), w.room, w.text)
		s.must(err)
	}
	status, raw := w.c.ask(http.MethodPut, w.path(), w.content())
	if status != http.StatusOK || !strings.Contains(string(raw), `"`+string(m.EventID)+`"`) {
		s.Errorf("the client's repetition is answered with %d %s, want the event %s", status, raw, m.EventID)
	}
	if own := w.c.reads(w.room, w.text); own.ID != m.EventID {
		s.Errorf("its own message came back as %s, want %s", own.ID, m.EventID)
	}
	if n := s.ciphertexts(at, w.room, w.c.UserID); n != w.before+1 {
		s.Errorf("%d messages have gone out, want one", n-w.before)
	}
	return m.EventID
}

// TestProxyWaits: while a member who has left is still in the group, since no module answers, and while a member's device
// fails the room's check, a client's message waits: the client is told so and why, its person too, nothing goes out, and
// it goes out by itself once the cause is gone.
func TestProxyWaits(t *testing.T) {
	s := tell(t, "sqlite")
	alice, carol, dave := s.person("syn1", "alice"), s.person("syn1", "carol"), s.person("syn1", "dave")
	user, err := s.w.AddUser(s.ctx, "syn2", fmt.Sprintf("plain%d", people.Add(1)))
	s.must(err)
	p := s.proxy("syn2")
	waits := map[*e2e.Device]*waiting{}
	for _, d := range []*e2e.Device{carol, dave} { // a room and a client each: notices of the other room are not lost
		w := &waiting{c: p.client(user), p: p, text: token("waits for " + d.Name)}
		w.room = s.room(client.CreateOptions{}, alice, d)
		s.must(alice.Invite(s.soon(), w.room, w.c.UserID))
		w.c.accepts(alice, w.room)
		first := token("before")
		sent := w.c.send(w.room, "m.room.message", "1", map[string]any{"msgtype": "m.text", "body": first})
		s.hears(alice, w.c.UserID, sent)
		s.hears(d, w.c.UserID, sent)
		w.before = s.ciphertexts(alice, w.room, w.c.UserID)
		if w.before != 1 {
			t.Fatalf("%d messages of the client's are in the room, want 1", w.before)
		}
		waits[d] = w
	}
	left, unsigned := waits[carol], waits[dave]
	for _, server := range []string{"syn1", "syn2"} {
		s.must(s.w.Kill(s.ctx, s.w.Module(server).Name))
		t.Cleanup(func() {
			if !s.w.Answers(t.Context(), server) {
				if err := s.w.StartModule(context.WithoutCancel(t.Context()), server); err != nil {
					t.Error(err)
				}
			}
		})
	}
	kept := s.keep(carol, left.room)
	s.must(carol.Leave(s.soon(), left.room))
	signer := s.unsigns(dave)
	hasLeft := []string{carol.UserID().String(), "left the room"}
	fails := []string{dave.UserID().String(), dave.DeviceID().String(), "not signed by its user's self-signing key"}
	left.knows(hasLeft...)
	unsigned.knows(fails...)
	left.tries()
	unsigned.tries()
	left.waits(alice, carol.UserID().String()+" has left the room", hasLeft...)
	unsigned.waits(alice, "The device "+dave.DeviceID().String()+" of "+dave.UserID().String()+" fails its check", fails...)

	signer.signs()
	unsigned.arrives(alice, dave)
	s.step("what waited for the check has gone out")
	if n := s.ciphertexts(alice, left.room, left.c.UserID); n != left.before {
		t.Errorf("%d messages have gone out to who has left", n-left.before)
	}

	for _, server := range []string{"syn1", "syn2"} {
		s.must(s.w.StartModule(s.soon(), server))
	}
	sent := left.arrives(alice)
	ciphertext, err := e2e.Ciphertext(s.ctx, alice.Server, alice.User, left.room, sent)
	s.must(err)
	if opened, err := kept.Opens(ciphertext); err != nil || opened || carol.Has(left.room, left.text) {
		t.Errorf("carol has left, and what she kept opens what waited: %t, %v", opened, err)
	}
	s.step("what waited for the removal has gone out")
	s.blind([]string{left.text, unsigned.text})
}
