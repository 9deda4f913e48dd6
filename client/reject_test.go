package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/rejects"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestReject feeds the SDK what it has to refuse. The module's side of each row
// is in package appservice, the pure part in rooms and federation.
func TestReject(t *testing.T) {
	rejects.Run(t, map[string]func(t *testing.T){
		"sender-not-credential":          rejectSenderNotCredential,
		"device-not-credential":          rejectDeviceNotCredential,
		"device-key-not-cross-signed":    rejectUnsignedDevice,
		"room-not-group":                 rejectRoomNotGroup,
		"plaintext-in-encrypted-room":    rejectPlaintext,
		"algorithm-downgrade":            rejectAlgorithmDowngrade,
		"megolm-for-mls":                 rejectMegolm,
		"member-not-in-room":             rejectMemberNotInRoom,
		"room-member-not-in-group":       rejectRoomMemberNotInGroup,
		"unsolicited-key":                rejectUnsolicitedKey,
		"event-id-replayed":              rejectReplay,
		"event-order-forged":             rejectForgedOrder,
		"redacted-commit":                rejectRedactedCommit,
		"event-too-large":                rejectTooLarge,
		"media-hash":                     rejectMediaHash,
		"base64-malformed":               rejectBase64,
		"hostile-json":                   rejectHostileJSON,
		"identity-changed":               rejectChangedIdentity,
		"as-token":                       rejectRefusedToken,
		"key-package-claim-flood":        rejectClaimFlood,
		"add-without-admission":          rejectAddWithoutAdmission,
		"external-proposal-not-entitled": rejectExternalProposal,
		"fork-shares-ratchets":           rejectSharedRatchets,
		"receipt-forged":                 rejectForgedReceipts,
	})
}

// refusing is a room of alice, bob and carol at rest. Bob's client, or his
// homeserver, is the one who does wrong.
type refusing struct {
	*world
	room              id.RoomID
	alice, bob, carol *testDevice
}

func newRefusing(t *testing.T) *refusing {
	t.Helper()
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.settle()
	for _, d := range w.all {
		d.got = nil
	}
	return &refusing{w, room, alice, bob, carol}
}

// honest leaves bob's client out from now on.
func (x *refusing) honest() { x.all = []*testDevice{x.alice, x.carol} }

// show appends events that the module does not see: it is tested elsewhere.
func (x *refusing) show(events ...*Event) {
	x.order()
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	for _, evt := range events {
		evt.RoomID = x.room
		x.s.append(evt)
	}
	x.module.at = len(x.s.log)
}

// picture is what nothing that is refused may change for a device: its head with
// the epoch's tree and secrets, and the messages that it shows.
func (x *refusing) picture(d *testDevice) string {
	d.mu.Lock()
	e := d.rooms[x.room].head()
	out := fmt.Sprintf("%s %d %x %x", e.ref, e.number, e.group.TreeHash(), e.group.EpochAuthenticator())
	d.mu.Unlock()
	return out + fmt.Sprintf("%q", d.texts())
}

// wantRefused fails unless alice's and carol's clients refuse by a rule what is
// done, so many times, and are as before.
func (x *refusing) wantRefused(rule rooms.Rule, times uint64, do func()) {
	x.t.Helper()
	devices := []*testDevice{x.alice, x.carol}
	var before []string
	var had []uint64
	for _, d := range devices {
		before, had = append(before, x.picture(d)), append(had, d.Refusals()[string(rule)])
	}
	do()
	x.settle(devices...)
	for i, d := range devices {
		if got := d.Refusals()[string(rule)] - had[i]; got != times {
			x.t.Errorf("%s refused %d events by %s, want %d; all refusals: %v", d.ident.device, got, rule, times, d.Refusals())
		}
		if after := x.picture(d); after != before[i] {
			x.t.Errorf("what %s refused changed something:\n%s\n%s", d.ident.device, before[i], after)
		}
	}
}

// wantWorks lets carol send, and alice read it.
func (x *refusing) wantWorks() {
	x.t.Helper()
	x.send(x.carol, x.room, "and on")
	x.settle()
	if got := x.alice.texts(); len(got) == 0 || got[len(got)-1] != "and on" {
		x.t.Errorf("alice got %q, want carol's message", got)
	}
	x.sameEpoch(x.room, x.alice, x.carol)
}

// told tells whether a person was shown that a message cannot be read, and why.
func (d *testDevice) toldUndecryptable(reason rooms.Rule) bool {
	return slices.ContainsFunc(d.got, func(u Update) bool { x, ok := u.(*Undecryptable); return ok && x.Final && x.Reason == string(reason) })
}

// last returns the newest event of a type.
func (x *refusing) last(eventType string) *Event {
	x.t.Helper()
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	for _, evt := range slices.Backward(x.s.log) {
		if evt.Type == eventType && evt.RoomID == x.room {
			return evt
		}
	}
	x.t.Fatalf("there is no event of type %s", eventType)
	return nil
}

// commit makes the content of a commit that a device's client would not make.
func (x *refusing) commit(by *testDevice, aad rooms.CommitAAD, o mls.CommitOptions) json.RawMessage {
	x.t.Helper()
	by.mu.Lock()
	defer by.mu.Unlock()
	r := by.rooms[x.room]
	e := r.head()
	aad.Parent = e.ref
	var err error
	if o.AuthenticatedData, err = aad.Encode(); err != nil {
		x.t.Fatal(err)
	}
	staged, err := e.group.Commit(o)
	if err != nil {
		x.t.Fatal(err)
	}
	return x.content(staged, r.rec.Events[e.ref.String()], e.ref)
}

func (x *refusing) content(staged *mls.StagedCommit, parentEvent id.EventID, parent federation.Ref) json.RawMessage {
	x.t.Helper()
	info, err := staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	if err != nil {
		x.t.Fatal(err)
	}
	raw, err := rooms.Encode(&rooms.CommitContent{
		Epoch: staged.Epoch(), Parent: rooms.Hash(parent), ParentEvent: parentEvent, Message: staged.Message(), GroupInfo: info,
	})
	if err != nil {
		x.t.Fatal(err)
	}
	return raw
}

func (x *refusing) byBob(eventType string, content json.RawMessage) *Event {
	return &Event{Type: eventType, Sender: x.bob.UserID(), Content: content}
}

func rejectSenderNotCredential(t *testing.T) {
	x := newRefusing(t)
	x.all = []*testDevice{x.alice}
	x.send(x.alice, x.room, "mine")
	// The server shows it to carol as bob's before it shows the original.
	x.s.mu.Lock()
	var content json.RawMessage
	for _, evt := range x.s.log {
		if evt.Type == rooms.TypeEncrypted {
			content, evt.Sender = evt.Content, x.bob.UserID()
		}
	}
	x.s.append(&Event{RoomID: x.room, Type: rooms.TypeEncrypted, Sender: x.alice.UserID(), Content: content})
	x.s.mu.Unlock()
	x.settle(x.carol)
	x.carol.wantTexts()
	if x.carol.Refusals()[string(rooms.RuleSenderNotCredential)] != 1 || !x.carol.toldUndecryptable(rooms.RuleSenderNotCredential) {
		t.Errorf("refused %v, want %s, and carol told", x.carol.Refusals(), rooms.RuleSenderNotCredential)
	}
	// And a commit, as another member's.
	x.honest()
	x.wantRefused(rooms.RuleSenderNotCredential, 1, func() {
		x.show(&Event{Type: rooms.TypeCommit, Sender: x.carol.UserID(), Content: x.commit(x.bob, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})})
	})
	x.wantWorks()
}

// A device named like its user's cross-signing key, and a device whose key is
// another in the homeserver's list than in the group.
func rejectDeviceNotCredential(t *testing.T) {
	x := newRefusing(t)
	master := b64(pub(x.s.users[x.bob.UserID()].master))
	x.device("bob", master)
	x.settle()
	x.alice.mu.Lock()
	list := x.alice.devs[x.bob.UserID()]
	x.alice.mu.Unlock()
	device := list.Devices[id.DeviceID(master)]
	if device == nil {
		t.Fatal("alice does not know of the device")
	}
	cred := &rooms.Credential{User: x.bob.UserID(), Device: device.ID, Key: device.MLSKeys[x.cs]}
	if err := list.Check(cred, x.cs, rooms.VerifyCross); rooms.RuleOf(err) != rooms.RuleDeviceNotCredential {
		t.Errorf("the device is judged with %v, want %s", err, rooms.RuleDeviceNotCredential)
	}
	if info, _ := x.alice.Room(x.ctx, x.room); info.Devices != 3 {
		t.Errorf("%d devices in the group, want 3: the one named like a key is in", info.Devices)
	}

	x.all = []*testDevice{x.alice, x.carol}
	other, err := mls.GenerateSignatureKey(x.cs, newSeeded("another key"))
	if err != nil {
		t.Fatal(err)
	}
	x.s.mu.Lock()
	x.s.users[x.bob.UserID()].devices["BOB1"].mlsKeys = map[mls.CipherSuite]mls.SignaturePrivateKey{x.cs: other}
	x.s.mu.Unlock()
	for _, d := range x.all {
		d.ident.changed(x.bob.UserID())
	}
	x.settle()
	info, err := x.alice.Room(x.ctx, x.room)
	if err != nil || len(info.Blocked) != 1 || !strings.Contains(info.Blocked[0].Text, "BOB1") || info.Blocked[0].User != x.bob.UserID() || info.Blocked[0].Device != "BOB1" || info.Blocked[0].Kind != BlockDevice {
		t.Errorf("alice is told %q (%v), want that bob's device is in the way", info.Blocked, err)
	}
	x.now.add(rooms.CredentialGrace)
	x.settle()
	if info, _ = x.alice.Room(x.ctx, x.room); info.Devices != 2 {
		t.Errorf("%d devices after a minute, want 2", info.Devices)
	}
	x.wantWorks()
}

func rejectUnsignedDevice(t *testing.T) {
	x := newRefusing(t)
	second := x.device("bob", "BOB2")
	x.s.users[x.bob.UserID()].devices["BOB2"].signed = false
	x.settle()
	info, err := x.alice.Room(x.ctx, x.room)
	if err != nil || info.Devices != 3 {
		t.Fatalf("%d devices in the group (%v), want 3", info.Devices, err)
	}
	x.alice.mu.Lock()
	list := x.alice.devs[x.bob.UserID()]
	x.alice.mu.Unlock()
	cred := &rooms.Credential{User: x.bob.UserID(), Device: "BOB2", Key: list.Devices["BOB2"].MLSKeys[x.cs]}
	if err := list.Check(cred, x.cs, rooms.VerifyCross); rooms.RuleOf(err) != rooms.RuleDeviceKeyNotCrossSigned {
		t.Errorf("the device is judged with %v, want %s", err, rooms.RuleDeviceKeyNotCrossSigned)
	}
	x.wantWorks()
	second.wantTexts()
	// A member who puts it in all the same is not followed.
	x.honest()
	before := x.picture(x.alice)
	add := mls.Add(second.packages()[0].KeyPackage())
	x.show(x.byBob(rooms.TypeCommit, x.commit(x.bob, rooms.CommitAAD{}, mls.CommitOptions{Proposals: []mls.Proposal{add}})))
	x.settle()
	if x.picture(x.alice) != before {
		t.Error("the device came in by a careless member's commit")
	}
}

func (d *testDevice) packages() []*mls.KeyPackageBundle { return d.ident.own().packages }

// A member's message in the group's own encryption that was written for another
// room.
func rejectRoomNotGroup(t *testing.T) {
	x := newRefusing(t)
	x.honest()
	x.bob.mu.Lock()
	r := x.bob.rooms[x.room]
	plain, err := x.bob.newPlaintext("!another:"+testServer, "m.room.message", json.RawMessage(`{"msgtype":"m.text","body":"I agree"}`))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x.bob.encrypt(r, r.head(), plain)
	x.bob.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	x.wantRefused(rooms.RuleRoomNotGroup, 1, func() { x.show(x.byBob(rooms.TypeEncrypted, raw)) })
	if !x.alice.toldUndecryptable(rooms.RuleRoomNotGroup) {
		t.Error("alice is not told")
	}
	x.wantWorks()
}

func rejectPlaintext(t *testing.T) {
	x := newRefusing(t)
	target := x.send(x.alice, x.room, "original")
	x.settle()
	texts := []json.RawMessage{
		json.RawMessage(`{"msgtype":"m.text","body":"forged"}`),
		json.RawMessage(`{"msgtype":"m.text","body":"* forged","m.new_content":{"msgtype":"m.text","body":"forged"},"m.relates_to":{"rel_type":"m.replace","event_id":"` + string(target) + `"}}`),
	}
	x.wantRefused(rooms.RulePlaintext, uint64(len(texts)), func() {
		for _, content := range texts {
			x.show(x.byBob("m.room.message", content))
		}
	})
	warnings := slices.DeleteFunc(slices.Clone(x.alice.got), func(u Update) bool {
		w, ok := u.(*Warning)
		return !ok || w.Rule != string(rooms.RulePlaintext) || w.Sender != x.bob.UserID()
	})
	if len(warnings) != len(texts) {
		t.Errorf("alice is warned %d times, want once for the message and once for the edit", len(warnings))
	}
	x.wantWorks()
}

func rejectAlgorithmDowngrade(t *testing.T) {
	for _, content := range []string{`{"algorithm":"m.megolm.v1.aes-sha2"}`, `{}`} {
		x := newRefusing(t)
		key := ""
		before := x.picture(x.alice)
		x.show(&Event{Type: rooms.TypeEncryption, StateKey: &key, Sender: x.bob.UserID(), Content: json.RawMessage(content)})
		x.settle()
		if !x.alice.warned(rooms.RuleAlgorithmDowngrade) {
			t.Errorf("m.room.encryption became %s and nobody is told", content)
		}
		if x.picture(x.alice) != before {
			t.Error("the group changed")
		}
		x.send(x.alice, x.room, "still sealed")
		x.settle()
		x.bob.wantTexts("still sealed")
		for _, sent := range x.s.sent {
			if bytes.Contains(sent, []byte("still sealed")) {
				t.Error("it was sent in clear")
			}
		}
		x.wantWorks()
	}
}

// TestAlgorithmDowngradeThatSyncLeftOut: a homeserver that shows the new setting in the full state alone hides it from nobody.
func TestAlgorithmDowngradeThatSyncLeftOut(t *testing.T) {
	x := newRefusing(t)
	key := ""
	x.s.mu.Lock()
	x.s.leftOut = func(evt *Event) bool { return evt.Type == rooms.TypeEncryption }
	x.s.mu.Unlock()
	x.show(&Event{Type: rooms.TypeEncryption, StateKey: &key, Sender: x.bob.UserID(), Content: json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2"}`)})
	x.settle()
	if x.alice.warned(rooms.RuleAlgorithmDowngrade) {
		t.Fatal("/sync showed it: the test proves nothing")
	}
	x.alice.mu.Lock()
	r := x.alice.rooms[x.room]
	r.state.lose()
	r.planned = false
	x.alice.mu.Unlock()
	x.settle()
	if !x.alice.warned(rooms.RuleAlgorithmDowngrade) {
		t.Error("nobody is told")
	}
}

func rejectMegolm(t *testing.T) {
	x := newRefusing(t)
	x.wantRefused(rooms.RuleMegolmForMLS, 1, func() {
		x.show(x.byBob(rooms.TypeEncrypted, json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"AAAA","session_id":"x","sender_key":"y","device_id":"BOB1"}`)))
	})
	if !x.alice.toldUndecryptable(rooms.RuleMegolmForMLS) {
		t.Error("alice is not told")
	}
	// What belongs into the room, beside it; and keys that are none of ours.
	commit := x.commit(x.bob, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
	before := x.picture(x.alice)
	x.s.mu.Lock()
	q := string(x.alice.UserID()) + "/" + string(x.alice.DeviceID())
	for eventType, content := range map[string]json.RawMessage{
		rooms.TypeCommit: commit, rooms.TypeAccept: x.acceptOf(commit), "m.room_key": json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2","room_id":"` + string(x.room) + `","session_id":"x","session_key":"y"}`),
		"m.forwarded_room_key": json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2","room_id":"` + string(x.room) + `"}`),
	} {
		x.s.toDevice[q] = append(x.s.toDevice[q], &Event{Type: eventType, Sender: x.bob.UserID(), RoomID: x.room, Content: content})
	}
	x.s.mu.Unlock()
	x.settle(x.alice)
	if x.picture(x.alice) != before {
		t.Error("something that came to the device changed the room's group")
	}
	x.wantWorks()
}

// acceptOf is an accept of a commit by the room's module, as it would be.
func (x *refusing) acceptOf(commit json.RawMessage) json.RawMessage {
	a := x.accept(commit)
	if err := a.Sign(federation.Scope{Room: string(x.room)}, x.module.key); err != nil {
		x.t.Fatal(err)
	}
	_, content := rooms.ReceiptOf(a)
	raw, err := rooms.Encode(content)
	if err != nil {
		x.t.Fatal(err)
	}
	return raw
}

func (x *refusing) accept(commit json.RawMessage) *federation.Accept {
	x.t.Helper()
	content, err := rooms.DecodeCommit(commit)
	if err != nil {
		x.t.Fatal(err)
	}
	msg, err := mls.ParseMessage(content.Message)
	if err != nil {
		x.t.Fatal(err)
	}
	machine := x.module.groups[x.room].machine
	config, ok := machine.ConfigAt(federation.Ref(content.Parent))
	if !ok {
		x.t.Fatal("no list of sequencers")
	}
	return &federation.Accept{Config: config, Ref: refOf(x.world, msg), Parent: federation.Ref(content.Parent), Epoch: content.Epoch, Chain: federation.Chain{Counter: 99, Prev: federation.Ref{1}}}
}

func rejectMemberNotInRoom(t *testing.T) {
	x := newRefusing(t)
	x.module.down = true
	key := string(x.bob.UserID())
	x.s.mu.Lock()
	x.s.append(&Event{RoomID: x.room, Type: rooms.TypeMember, StateKey: &key, Sender: x.alice.UserID(), Content: json.RawMessage(`{"membership":"ban"}`)})
	x.s.mu.Unlock()
	x.honest()
	x.settle()
	ciphertexts := x.count(rooms.TypeEncrypted)
	ctx, cancel := x.timeout(20 * time.Second)
	defer cancel()
	err := x.background(func() error { _, err := x.carol.SendText(ctx, x.room, "not for bob"); return err })
	if !errors.Is(err, ErrBarrier) || !strings.Contains(err.Error(), string(x.bob.UserID())) {
		t.Errorf("sending says %v, want that bob has to be removed first", err)
	}
	if x.count(rooms.TypeEncrypted) != ciphertexts {
		t.Error("something was encrypted while a banned user's leaf is in the group")
	}
	if x.count(rooms.TypeCommit) == 0 {
		t.Error("nobody removes him")
	}
	x.module.down = false
	x.settle()
	x.alice.wantTexts("not for bob") // it waited
	x.bob.turn()
	x.bob.wantTexts()
	if info, _ := x.alice.Room(x.ctx, x.room); info.Devices != 2 {
		t.Errorf("%d devices in the group, want 2", info.Devices)
	}
	x.wantWorks()
}

func (x *refusing) count(eventType string) (n int) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	for _, evt := range x.s.log {
		if evt.Type == eventType {
			n++
		}
	}
	return n
}

func rejectRoomMemberNotInGroup(t *testing.T) {
	x := newRefusing(t)
	mallory := x.device("mallory", "MALLORY1")
	x.join(mallory, x.room) // the server lets her in
	x.settle()
	x.wantWorks()
	mallory.wantTexts()
	members, err := x.alice.Members(x.ctx, x.room)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(members, func(m Member) bool { return m.User == mallory.UserID() })
	if i < 0 || members[i].Device != "" || members[i].Note == "" {
		t.Errorf("members %+v, want mallory without a device and with a reason", members)
	}
	x.alice.mu.Lock()
	defer x.alice.mu.Unlock()
	if w := x.alice.rooms[x.room].todo.Waiting; len(w) != 1 || rooms.RuleOf(w[0]) != rooms.RuleRoomMemberNotInGroup {
		t.Errorf("who waits outside: %v, want %s", w, rooms.RuleRoomMemberNotInGroup)
	}
}

// A Welcome from somebody who is not in the room, and a group that another
// founder shows to one who is invited.
func rejectUnsolicitedKey(t *testing.T) {
	x := newRefusing(t)
	mallory, dave := x.device("mallory", "MALLORY1"), x.device("dave", "DAVE1")
	x.module.deaf = true // dave is not let in yet
	x.must(func() error { return x.bob.Invite(x.ctx, x.room, dave.UserID()) })
	x.join(dave, x.room)
	dave.turn()
	raw, err := rooms.Encode(&rooms.WelcomeContent{
		Room: x.room, CommitEvent: "$nothing", Ref: rooms.Hash{1}, Cfg: rooms.Hash{1}, Welcome: []byte{1},
		Snapshot: rooms.Snapshot{Tree: []byte{1}, TreeHash: make([]byte, 32), AtCommit: rooms.Hash{1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	x.s.mu.Lock()
	q := string(dave.UserID()) + "/" + string(dave.DeviceID())
	x.s.toDevice[q] = append(x.s.toDevice[q], &Event{Type: rooms.TypeWelcome, Sender: mallory.UserID(), Content: raw})
	x.s.mu.Unlock()
	for range 3 {
		dave.turn()
	}
	if n := dave.Refusals()[string(rooms.RuleUnsolicitedKey)]; n != 1 {
		t.Errorf("%d refusals by %s, want 1: %v", n, rooms.RuleUnsolicitedKey, dave.Refusals())
	}
	dave.mu.Lock()
	if dave.rooms[x.room].machine != nil {
		t.Error("dave entered a group")
	}
	dave.mu.Unlock()
}

func rejectChangedIdentity(t *testing.T) {
	t.Run("of who is admitted", func(t *testing.T) {
		w := newWorld(t)
		room, alice, bob, _ := w.three("joined") // who is invited waits outside
		dave := w.device("dave", "DAVE1")
		w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
		w.settle(alice, bob)
		// The homeserver puts another identity in dave's place.
		w.s.mu.Lock()
		w.s.users[dave.UserID()].master = edKey(newSeeded("an impostor's master"))
		w.s.mu.Unlock()
		for _, d := range []*testDevice{alice, bob} {
			d.ident.changed(dave.UserID())
		}
		w.join(dave, room)
		w.settle(alice, bob)
		if info, _ := alice.Room(w.ctx, room); info.Devices != 3 {
			t.Errorf("%d devices in the group, want 3: another key was admitted", info.Devices)
		}
		if !alice.warned(rooms.RuleIdentityChanged) {
			t.Error("nobody is told")
		}
	})
	t.Run("not of whose keys are not known yet", func(t *testing.T) {
		w := newWorld(t)
		room, alice, bob, _ := w.three("joined")
		dave := w.device("dave", "DAVE1")
		w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
		unknown := func(yes bool) {
			w.s.mu.Lock()
			w.s.users[dave.UserID()].unknown = yes
			w.s.mu.Unlock()
			for _, d := range []*testDevice{alice, bob} {
				d.ident.changed(dave.UserID())
			}
		}
		unknown(true)
		w.join(dave, room)
		w.settle(alice, bob)
		if info, _ := bob.Room(w.ctx, room); info.Devices != 3 {
			t.Errorf("%d devices in the group, want 3: the keys were known, and the test proves nothing", info.Devices)
		}
		unknown(false)
		w.settle()
		if bob.warned(rooms.RuleIdentityChanged) || alice.warned(rooms.RuleIdentityChanged) {
			t.Error("somebody is warned of another identity while the homeserver shows none")
		}
		w.sameEpoch(room, alice, bob, dave)
	})
	t.Run("of who was verified", func(t *testing.T) {
		x := newRefusing(t)
		x.honest()
		x.s.mu.Lock()
		u := x.s.users[x.bob.UserID()]
		u.known = rooms.Known{Master: pub(u.master), Verified: true}
		u.master = edKey(newSeeded("another master of bob's"))
		x.s.mu.Unlock()
		before := x.picture(x.alice)
		for _, d := range x.all {
			d.ident.changed(x.bob.UserID())
		}
		x.settle()
		i := slices.IndexFunc(x.alice.got, func(u Update) bool {
			w, ok := u.(*Warning)
			return ok && w.Rule == string(rooms.RuleIdentityChanged) && w.Sender == x.bob.UserID() && strings.Contains(w.Text, "verify "+string(x.bob.UserID())+" again")
		})
		if i < 0 {
			t.Errorf("alice is not warned that the user she verified has other keys: %+v", x.alice.got)
		}
		if x.picture(x.alice) != before {
			t.Error("the group changed at once")
		}
		ctx, cancel := x.timeout(10 * time.Second)
		defer cancel()
		if err := x.background(func() error { _, err := x.carol.SendText(ctx, x.room, "for whom?"); return err }); !errors.Is(err, ErrBarrier) {
			t.Errorf("sending says %v, want %v", err, ErrBarrier)
		}
		x.bob.turn()
		x.bob.wantTexts()
	})
}

// All of dave's key packages are gone, and he comes in all the same. How often
// anybody may ask a device for fresh ones is in package identity
// (TestKeyPackageRequestsAreLimited, TestAskingDoesNotPushOutTheStock).
func rejectClaimFlood(t *testing.T) {
	x := newRefusing(t)
	dave := x.device("dave", "DAVE1")
	x.s.mu.Lock()
	dave.ident.own().packages = nil
	x.s.mu.Unlock()
	// The invite goes out before the admission does: the server of this world shows
	// who joins nothing from before their invite.
	if err := x.alice.Invite(x.ctx, x.room, dave.UserID()); err != nil {
		t.Fatal(err)
	}
	x.join(dave, x.room)
	x.settle()
	x.now.add(joinRetry) // he may have tried before his admission was there
	x.settle()
	x.sameEpoch(x.room, x.alice, x.bob, x.carol, dave)
	x.wantWorks()
	if got := dave.texts(); len(got) != 1 {
		t.Errorf("dave got %q", got)
	}
}

func rejectAddWithoutAdmission(t *testing.T) {
	x := newRefusing(t)
	mallory := x.device("mallory", "MALLORY1")
	x.join(mallory, x.room)
	x.settle()
	x.honest()
	add := mls.Add(mallory.packages()[0].KeyPackage())
	x.wantRefused(rooms.RuleAddWithoutAdmission, 1, func() {
		x.show(x.byBob(rooms.TypeCommit, x.commit(x.bob, rooms.CommitAAD{}, mls.CommitOptions{Proposals: []mls.Proposal{add}})))
	})
	// And by herself.
	g := x.module.groups[x.room]
	ref := g.machine.Head()
	info, err := mls.ParseMessage(g.infos[ref])
	if err != nil {
		t.Fatal(err)
	}
	aad, err := (&rooms.CommitAAD{Parent: ref}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := mallory.ident.LeafOptions(x.cs)
	if err != nil {
		t.Fatal(err)
	}
	staged, err := mls.ExternalJoin(&mls.Config{Rand: newSeeded("mallory joins")}, info, mallory.ident.own().mlsKeys[x.cs],
		mls.ExternalJoinOptions{Leaf: leaf, RatchetTree: g.epochs[ref].RatchetTree(), AuthenticatedData: aad})
	if err != nil {
		t.Fatal(err)
	}
	raw := x.content(staged, g.events[ref], ref)
	x.wantRefused(rooms.RuleAddWithoutAdmission, 1, func() {
		x.show(&Event{Type: rooms.TypeCommit, Sender: mallory.UserID(), Content: raw})
	})
	x.wantWorks()
}
