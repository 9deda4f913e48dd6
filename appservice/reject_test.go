package appservice

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/rejects"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestReject feeds the module what it has to refuse. The SDK's side of each row
// is in package client, the pure part in rooms and federation.
func TestReject(t *testing.T) {
	rejects.Run(t, map[string]func(t *testing.T){
		"sender-not-credential":          rejectSenderNotCredential,
		"device-not-credential":          rejectDeviceNotCredential,
		"device-key-not-cross-signed":    func(t *testing.T) { rejectByAMember(t, rooms.RuleDeviceKeyNotCrossSigned) },
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
		"identity-changed":               func(t *testing.T) { rejectByAMember(t, rooms.RuleIdentityChanged) },
		"as-token":                       rejectASToken,
		"key-package-claim-flood":        rejectClaimFlood,
		"add-without-admission":          rejectAddWithoutAdmission,
		"external-proposal-not-entitled": rejectExternalProposal,
		"fork-shares-ratchets":           rejectSharedRatchets,
		"receipt-forged":                 rejectForgedReceipts,
	})
}

// refusing is a module at rest with a room of alice and bob.
type refusing struct {
	*module
	*mlsRoom
	hs   *roomHS
	t    *testing.T
	a, b *device
	file string // the database
}

func newRefusing(t *testing.T) *refusing {
	t.Helper()
	cfg := storetest.SQLite(t)
	m, r, a, b := pair(t, cfg)
	m.settleFor(10 * time.Second) // the vote
	return &refusing{m, r, m.hs, t, a, b, cfg.URI}
}

// picture is what nothing that is refused may change: the machine with all
// receipts, the group's tree, and what the module ever posted.
func (x *refusing) picture() string {
	x.t.Helper()
	m := x.machine(x.id)
	machine, err := m.MarshalBinary()
	must(x.t, err)
	group, err := x.e.group(x.ctx, x.e.rooms[x.id], m.Head())
	must(x.t, err)
	tree, err := group.MarshalBinary()
	must(x.t, err)
	x.hs.mu.Lock()
	posted := len(x.hs.txns)
	x.hs.mu.Unlock()
	return fmt.Sprintf("%x %x %d", machine, tree, posted)
}

// refused counts the refusals under a rule.
func (x *refusing) refused(rule string) int {
	return len(slices.DeleteFunc(x.refusals(), func(r string) bool { return !strings.HasPrefix(r, rule+" ") }))
}

// wantRefused fails unless what is done is refused by a rule, once for each of
// the events it makes, changes nothing, and the room works on.
func (x *refusing) wantRefused(rule string, times int, do func()) {
	x.t.Helper()
	before, had := x.picture(), x.refused(rule)
	do()
	x.settleFor(2 * time.Second)
	if got := x.refused(rule) - had; got != times {
		x.t.Errorf("%d events were refused by %s, want %d; refused: %v", got, rule, times, x.refusals())
	}
	if x.picture() != before {
		x.t.Error("what was refused changed something")
	}
	x.wantWorks()
}

// wantWorks lets alice commit.
func (x *refusing) wantWorks() {
	x.t.Helper()
	good := x.update(x.a)
	x.settleFor(2 * time.Second)
	if got := x.machine(x.id).Head(); got != good.ref {
		x.t.Fatalf("head %s, want the good commit %s; refused: %v", got.Short(), good.ref.Short(), x.refusals())
	}
	x.merge(good)
	x.apply(x.b, x.head, x.b.group.EpochAuthenticator())
	x.settleFor(10 * time.Second)
}

// update posts a commit that changes nothing but its author's keys.
func (x *refusing) update(by *device) *madeCommit {
	return x.post(x.make(by, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
}

// keyPackage is a key package of a device, as others read it.
func (d *device) keyPackage() *mls.KeyPackage {
	d.t.Helper()
	m, err := mls.ParseMessage(d.bundle.Message())
	must(d.t, err)
	return m.KeyPackage()
}

func rejectSenderNotCredential(t *testing.T) {
	x := newRefusing(t)
	bad := x.make(x.b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
	x.wantRefused(string(rooms.RuleSenderNotCredential), 1, func() { x.hs.add(x.id, carol, rooms.TypeCommit, nil, bad.raw) })
}

// A leaf whose credential names another key than the leaf signs with, such as a
// cross-signing key.
func rejectDeviceNotCredential(t *testing.T) {
	x := newRefusing(t)
	d, other := newDevice(t, bob, "PHONE"), newDevice(t, bob, "MASTER")
	d.cred.Key = other.cred.Key
	careless := &mls.Config{Rand: d.cfg.Rand}
	var err error
	d.bundle, err = mls.NewKeyPackage(careless, engineSuite, d.key, rooms.LeafOptions(d.cred))
	must(t, err)
	checks := x.b.cfg.Authenticator
	x.b.cfg.Authenticator = nil // bob's client is careless, too
	bad := x.make(x.b, rooms.CommitAAD{}, mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(d.keyPackage())}})
	x.b.cfg.Authenticator = checks
	x.wantRefused(string(rooms.RuleDeviceNotCredential), 1, func() { x.post(bad) })
}

// The module knows no device keys. Members do: what one of them refuses is in
// doubt, never becomes final, and gives way to a sibling.
func rejectByAMember(t *testing.T, rule rooms.Rule) {
	x := newRefusing(t)
	bad := x.post(x.make(x.a, rooms.CommitAAD{}, mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(newDevice(t, bob, "NEW").keyPackage())}}))
	x.settleFor(time.Second)
	reject, err := rooms.SignReject(engineSuite, x.b.key, federation.Scope{Room: string(x.id), Group: x.b.group.GroupID()}, bad.ref, x.b.group.OwnLeafIndex(), string(rule))
	must(t, err)
	raw, err := rooms.Encode(rooms.RejectOf(reject))
	must(t, err)
	x.hs.add(x.id, bob, rooms.TypeReject, nil, raw)
	x.settleFor(20 * time.Second)
	if final := x.machine(x.id).NewestFinal(); final == bad.ref {
		t.Fatal("a commit that a member refuses became final")
	}
	good := x.update(x.b)
	x.settleFor(20 * time.Second)
	if got := x.machine(x.id).Head(); got != good.ref {
		t.Fatalf("head %s, want the sibling %s of the refused commit", got.Short(), good.ref.Short())
	}
	var out bytes.Buffer
	families, err := x.m.Registry().Gather()
	must(t, err)
	for _, f := range families {
		if strings.Contains(f.GetName(), "doubt") {
			fmt.Fprintf(&out, "%v", f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	if out.String() != "1" {
		t.Errorf("doubts counted: %q, want 1", out.String())
	}
	x.merge(good)
	x.apply(x.a, x.head, x.a.group.EpochAuthenticator())
	x.settleFor(10 * time.Second)
	x.wantWorks()
}

// One room's group, founded in another room.
func rejectRoomNotGroup(t *testing.T) {
	x := newRefusing(t)
	other := newRoom(t, x.hs, "!other:mls.test")
	x.settle()
	root := x.hs.events(x.id, rooms.TypeCommit)[0]
	x.wantRefused(string(rooms.RuleRoomNotGroup), 1, func() { x.hs.add(other.id, alice, rooms.TypeCommit, nil, root.Content) })
	if x.e.rooms[other.id].m != nil {
		t.Error("the module follows one group in two rooms")
	}
}

// The module keeps nothing of what is not encrypted, and takes nothing from it
// that poses as one of ours.
func rejectPlaintext(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	b.txn("1", invitation("$i", "!a"),
		ev("$message", "!a", "m.room.message", "-", `{"msgtype":"m.text","body":"planted"}`),
		ev("$edit", "!a", "m.room.message", "-", `{"msgtype":"m.text","body":"* planted","m.new_content":{"msgtype":"m.text","body":"planted"},"m.relates_to":{"rel_type":"m.replace","event_id":"$message"}}`),
		ev("$reaction", "!a", "m.reaction", "-", `{"m.relates_to":{"rel_type":"m.annotation","event_id":"$message","key":"planted"}}`))
	wantIDs(t, b.inbox(t), "$i")

	x := newRefusing(t)
	x.wantRefused(string(rooms.RuleContentMalformed), 1, func() {
		x.hs.add(x.id, bob, rooms.TypeCommit, nil, map[string]any{"msgtype": "m.text", "body": "planted"})
	})
}

// The setting in the room's state is not what counts: what the members signed
// is, and the module says that somebody touched it.
func rejectAlgorithmDowngrade(t *testing.T) {
	for name, content := range map[string]map[string]any{
		"Megolm": {"algorithm": "m.megolm.v1.aes-sha2"}, "none": {},
	} {
		t.Run(name, func(t *testing.T) {
			x := newRefusing(t)
			x.wantRefused(string(rooms.RuleAlgorithmDowngrade), 1, func() { x.hs.state(x.id, alice, rooms.TypeEncryption, "", content) })
			x.start()
			x.wantWorks() // also after a restart
		})
	}
	// Nor may a commit take the algorithm out of the policy.
	x := newRefusing(t)
	policy, err := rooms.PolicyOf(x.a.group)
	must(t, err)
	senders, err := rooms.ExternalSendersOf(x.a.group)
	must(t, err)
	exts, err := rooms.GroupExtensions(policy, senders)
	must(t, err)
	for i := range exts {
		if exts[i].Type == rooms.ExtensionPolicy {
			exts[i].Data = bytes.Replace(exts[i].Data, []byte(rooms.Algorithm), []byte("io.github.matrix-mls.v0"), 1)
		}
	}
	x.wantRefused(string(rooms.RuleAlgorithmDowngrade), 1, func() {
		x.post(x.make(x.a, rooms.CommitAAD{}, mls.CommitOptions{Proposals: []mls.Proposal{mls.GroupContextExtensions(exts)}}))
	})
}

// Ciphertexts of other algorithms and anything that comes beside the room.
func rejectMegolm(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	direct := `{"type":"` + rooms.TypeWelcome + `","sender":"@eve:far.test","content":{},"to_user_id":"@_mls_bot:mls.test"},{"type":"m.room_key","sender":"@eve:far.test","content":{"algorithm":"m.megolm.v1.aes-sha2"}},` +
		`{"type":"` + rooms.TypeCommit + `","sender":"@eve:far.test","room_id":"!a","event_id":"$direct","content":{}}`
	w := request(b.Handler(), http.MethodPut, "/_matrix/app/v1/transactions/1", "Bearer "+hsToken, `{"events":[`+invitation("$i", "!a")+`,`+
		ev("$megolm", "!a", rooms.TypeEncrypted, "-", `{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"AAAA","session_id":"x"}`)+
		`],"to_device":[`+direct+`],"de.sorunome.msc2409.to_device":[`+direct+`],"ephemeral":[`+direct+`]}`)
	if w.Code != http.StatusOK {
		t.Fatalf("answer %d", w.Code)
	}
	wantIDs(t, b.inbox(t), "$i")

	// A Megolm room is no room for the module.
	hs := newRoomHS()
	m := newModule(t, storetest.SQLite(t), hs)
	r := newRoom(t, hs, "!megolm:mls.test")
	hs.state(r.id, alice, rooms.TypeEncryption, "", map[string]any{"algorithm": "m.megolm.v1.aes-sha2"})
	m.settleFor(5 * time.Second)
	if got := m.e.rooms[r.id]; got != nil && got.m != nil || len(hs.events(r.id, rooms.TypeAccept)) > 0 {
		t.Error("the module serves a Megolm room")
	}
}

func rejectMemberNotInRoom(t *testing.T) {
	x := newRefusing(t)
	reason := x.hs.state(x.id, alice, rooms.TypeMember, string(bob), map[string]any{"membership": "ban"})
	x.settleFor(20 * time.Second)
	proposals := x.hs.events(x.id, rooms.TypeProposal)
	if len(proposals) != 1 {
		t.Fatalf("%d proposals, want the Remove", len(proposals))
	}
	p, err := rooms.DecodeProposal(proposals[0].Content)
	must(t, err)
	if p.Reason != reason.ID {
		t.Errorf("the proposal gives %s as its reason, want the ban", p.Reason)
	}
	before := x.picture()
	accepts := len(x.accepts())
	x.update(x.a) // leaves him in
	x.settleFor(2 * time.Second)
	if len(x.accepts()) != accepts {
		t.Error("a commit that leaves the banned user in was accepted")
	}
	if x.picture() == before {
		t.Error("the commit is not known: others may see the room otherwise")
	}
	m, err := mls.ParseMessage(p.Message)
	must(t, err)
	_, err = x.a.group.Process(m)
	must(t, err)
	good := x.post(x.make(x.a, rooms.CommitAAD{}, mls.CommitOptions{Pending: true}, p.Message))
	x.settleFor(2 * time.Second)
	if got := x.machine(x.id).Head(); got != good.ref {
		t.Errorf("head %s, want the removal; refused: %v", got.Short(), x.refusals())
	}
}

// A homeserver lets somebody into the room.
func rejectRoomMemberNotInGroup(t *testing.T) {
	x := newRefusing(t)
	group := func() string {
		tree, err := x.e.group(x.ctx, x.e.rooms[x.id], x.machine(x.id).Head())
		must(t, err)
		return fmt.Sprintf("%v", rooms.GroupLeaves(tree))
	}
	before := group()
	x.hs.state(x.id, carol, rooms.TypeMember, string(carol), map[string]any{"membership": "join"})
	x.settleFor(20 * time.Second)
	if group() != before || len(x.hs.events(x.id, rooms.TypeProposal)) != 0 {
		t.Error("a member of the room got into the group, or was proposed, without a member's word")
	}
	x.wantRefused(string(rooms.RuleAddWithoutAdmission), 1, func() {
		x.post(x.make(x.b, rooms.CommitAAD{}, mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(newDevice(t, carol, "TABLET").keyPackage())}}))
	})
}

// Groups that nobody asked for: another founding epoch, and another group in the
// head of somebody who orders nothing.
func rejectUnsolicitedKey(t *testing.T) {
	x := newRefusing(t)
	forged := x.forgedHead(x.module, alice, alice, 40)
	second, err := rooms.Encode(&rooms.CommitContent{GroupInfo: forgedRoot(x, alice)})
	must(t, err)
	x.wantRefused(ruleSecondRoot, 1, func() { x.hs.add(x.id, alice, rooms.TypeCommit, nil, second) })
	raw, err := rooms.Encode(forged)
	must(t, err)
	before := x.picture()
	x.hs.state(x.id, bob, rooms.TypeHead, string(bob), raw)
	x.hs.add(x.id, bob, rooms.TypeHead, nil, raw)
	x.hs.add(x.id, "@_mls_bot:far.test", rooms.TypeHead, nil, raw)
	x.settleFor(5 * time.Second)
	if x.picture() != before {
		t.Error("a stranger's head changed the room")
	}
	x.start()
	x.settleFor(5 * time.Second)
	x.wantWorks()
}

// forgedRoot is the GroupInfo of another founding epoch in a user's name.
func forgedRoot(x *refusing, user id.UserID) []byte {
	x.t.Helper()
	d := newDevice(x.t, user, "FORGED")
	policy, err := rooms.PolicyOf(x.a.group)
	must(x.t, err)
	exts, err := rooms.GroupExtensions(policy, nil)
	must(x.t, err)
	d.group, err = mls.CreateGroup(d.cfg, engineSuite, fmt.Appendf(nil, "%-32s", "forged"), d.key, rooms.LeafOptions(d.cred), exts)
	must(x.t, err)
	info, err := d.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	must(x.t, err)
	return info
}

// The module has no key packages, and nothing that reaches it beside rooms makes
// it keep, ask for or send anything.
func rejectClaimFlood(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	var asks []string
	for i := range 500 {
		asks = append(asks, fmt.Sprintf(`{"type":%q,"sender":"@eve:far.test","to_user_id":"@_mls_bot:mls.test","content":{"room_id":"!a","suite":1,"request_id":"r%d"}}`, rooms.TypeKeyPackageRequest, i))
	}
	body := `{"events":[],"to_device":[` + strings.Join(asks, ",") + `],"device_one_time_keys_count":{"@_mls_bot:mls.test":{"X":{"signed_curve25519":0}}}}`
	for txn := range 20 {
		if w := request(b.Handler(), http.MethodPut, fmt.Sprintf("/_matrix/app/v1/transactions/%d", txn), "Bearer "+hsToken, body); w.Code != http.StatusOK {
			t.Fatalf("answer %d", w.Code)
		}
	}
	wantIDs(t, b.inbox(t))
	due, err := b.store.DueOutbox(t.Context(), 10)
	if err != nil || len(due) != 0 || len(b.hs.all()) != 0 {
		t.Errorf("%d rows to send, %v, %d sent: want nothing", len(due), err, len(b.hs.all()))
	}
}

func rejectAddWithoutAdmission(t *testing.T) {
	x := newRefusing(t)
	x.hs.state(x.id, alice, rooms.TypeMember, string(carol), map[string]any{"membership": "join"})
	x.settleFor(5 * time.Second)
	d := newDevice(t, carol, "TABLET")
	x.wantRefused(string(rooms.RuleAddWithoutAdmission), 1, func() {
		x.post(x.make(x.b, rooms.CommitAAD{}, mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(d.keyPackage())}}))
	})
	// By herself, and with the word of somebody who is no member.
	for _, admissions := range [][]rooms.Admission{nil, {*forgedAdmission(x, d)}} {
		raw, err := x.a.group.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
		must(t, err)
		info, err := mls.ParseMessage(raw)
		must(t, err)
		aad := rooms.CommitAAD{Parent: x.head, Admissions: admissions}
		signed, err := aad.Encode()
		must(t, err)
		staged, err := mls.ExternalJoin(d.cfg, info, d.key, mls.ExternalJoinOptions{Leaf: rooms.LeafOptions(d.cred), RatchetTree: x.a.group.RatchetTree(), AuthenticatedData: signed})
		must(t, err)
		x.wantRefused(string(rooms.RuleAddWithoutAdmission), 1, func() { x.post(x.made(d, staged, nil)) })
	}
}

// forgedAdmission is an admission in alice's place, signed by the newcomer.
func forgedAdmission(x *refusing, d *device) *rooms.Admission {
	x.t.Helper()
	a, err := rooms.SignAdmission(x.a.group, x.id, x.head, x.a.group.OwnLeafIndex(), d.key, d.cred.User, nil)
	must(x.t, err)
	return a
}
