package rooms

import (
	"encoding/json"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
)

// TestReject feeds one failing input for each rule that this package decides;
// the other tests hold the variants.
func TestReject(t *testing.T) {
	for rule, run := range map[Rule]func(t *testing.T) error{
		RuleSenderNotCredential: func(t *testing.T) error {
			g := newGroup(t, testPolicy())
			m := g.commit(g.creator, nil, mls.CommitOptions{})
			_, err := CheckCommit(m.in)
			must(t, err)
			m.in.Sender = bob
			_, err = CheckCommit(m.in)
			return err
		},
		RuleFounderUnproven: func(t *testing.T) error {
			g := newGroup(t, testPolicy())
			in := CommitInput{Tree: g.creator.group, Content: &CommitContent{}}
			must(t, founderProven(in, &g.creator.cred))
			return founderProven(in, &newDevice(t, alice, "OTHER").cred)
		},
		RuleFoundingIncomplete: func(t *testing.T) error {
			b := newDevice(t, bob, "LAPTOP")
			g := newGroup(t, testPolicy())
			g.add(b)
			must(t, sameDevices(leafNodes(g.creator.group), leafNodes(g.creator.group)))
			return sameDevices(leafNodes(g.creator.group), leafNodes(g.creator.group)[:1])
		},
		RuleDeviceNotCredential: func(t *testing.T) error {
			d, i := newDevice(t, alice, "PHONE"), newIdentity(alice)
			keys, err := ParseDeviceKeys(rawJSON(t, i.device(t, d, ed25519Key(50), true)), alice, "PHONE")
			must(t, err)
			must(t, CheckBinding(&d.cred, testSuite, keys, i.parsed(t), Known{}, VerifyCross))
			return CheckBinding(&Credential{alice, "WEB", d.cred.Key}, testSuite, keys, i.parsed(t), Known{}, VerifyCross)
		},
		RuleDeviceKeyNotCrossSigned: func(t *testing.T) error {
			d, i := newDevice(t, alice, "PHONE"), newIdentity(alice)
			keys, err := ParseDeviceKeys(rawJSON(t, i.device(t, d, ed25519Key(50), false)), alice, "PHONE")
			must(t, err)
			return CheckBinding(&d.cred, testSuite, keys, i.parsed(t), Known{}, VerifyCross)
		},
		RuleRoomNotGroup: func(t *testing.T) error {
			g := newGroup(t, testPolicy())
			m := g.commit(g.creator, nil, mls.CommitOptions{})
			m.in.Room = otherRoom
			_, err := CheckCommit(m.in)
			return err
		},
		RulePlaintext: func(*testing.T) error { return CheckUnencrypted("m.room.message", false) },
		RuleAlgorithmDowngrade: func(t *testing.T) error {
			s := NewRoomState(testRoom)
			must(t, s.Apply(TypeEncryption, "", alice, "$1", json.RawMessage(`{"algorithm":"`+Algorithm+`"}`)))
			must(t, s.CheckAlgorithm())
			must(t, s.Apply(TypeEncryption, "", alice, "$2", json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2"}`)))
			return s.CheckAlgorithm()
		},
		RuleMegolmForMLS: func(*testing.T) error {
			_, err := DecodeEncrypted(json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"AAAA","session_id":"x","sender_key":"y","device_id":"z"}`))
			return err
		},
		RuleMemberNotInRoom: func(*testing.T) error {
			return MakePlan(Inputs{
				State: stateOf(map[id.UserID]Membership{alice: "join", bob: "leave"}), Policy: testPolicy(),
				Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(1, bob, "B")},
			}).Barrier()
		},
		RuleRoomMemberNotInGroup: func(t *testing.T) error {
			p := MakePlan(Inputs{
				State: stateOf(map[id.UserID]Membership{alice: "join", bob: "join"}), Policy: testPolicy(), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: {deviceOf(bob, "B")}},
			})
			if len(p.Adds) > 0 || len(p.Waiting) != 1 {
				t.Fatalf("plan %+v", p)
			}
			return p.Waiting[0]
		},
		RuleUnsolicitedKey: func(t *testing.T) error {
			w := &WelcomeContent{Room: testRoom}
			must(t, CheckUnsolicited(w, stateOf(map[id.UserID]Membership{bob: "invite"}), bob))
			return CheckUnsolicited(w, stateOf(map[id.UserID]Membership{bob: "leave"}), bob)
		},
		RuleWelcomeNotForUs: func(t *testing.T) error {
			g := newGroup(t, testPolicy())
			b := newDevice(t, bob, "LAPTOP")
			g.add(b)
			_, err := CheckJoined(&WelcomeContent{Room: testRoom}, alice, &b.cred, b.group, b.group.OwnLeafIndex())
			must(t, err)
			_, err = CheckJoined(&WelcomeContent{Room: testRoom}, carol, &b.cred, b.group, b.group.OwnLeafIndex())
			wantRule(t, err, RuleUnsolicitedKey)
			_, err = CheckJoined(&WelcomeContent{Room: testRoom}, alice, &b.cred, b.group, 0)
			wantRule(t, err, RuleWelcomeNotForUs)
			_, err = CheckJoined(&WelcomeContent{Room: otherRoom}, alice, &b.cred, b.group, b.group.OwnLeafIndex())
			return err
		},
		RuleRedactedCommit: func(*testing.T) error {
			_, err := DecodeCommit(json.RawMessage(`{}`))
			return err
		},
		RuleEventTooLarge: func(*testing.T) error {
			_, err := Encode(&EncryptedContent{Algorithm: Algorithm, Ciphertext: make(Bytes, 45000)})
			return err
		},
		RuleMediaHash: func(t *testing.T) error {
			f := NewFile("mxc://example.org/a", []byte("tree"))
			must(t, f.Check([]byte("tree")))
			wantRule(t, f.Check([]byte("trees")), RuleMediaHash)
			return f.Check([]byte("treE"))
		},
		RuleBase64Malformed: func(t *testing.T) error {
			for _, s := range []string{"QQ==", "QQ=", "-_-_", "Q Q", "QQ\n", "QR", "QQB", "Q", "é"} {
				_, err := DecodeBase64(s)
				wantRule(t, err, RuleBase64Malformed)
			}
			_, err := DecodeBase64("QQ==")
			return err
		},
		RuleHostileJSON: func(*testing.T) error {
			_, err := DecodeCommit(json.RawMessage(`{"epoch":1,"epoch":2}`))
			return err
		},
		RuleContentMalformed: func(*testing.T) error {
			_, err := DecodeVote(json.RawMessage(`{"ballot":"0,0"}`))
			return err
		},
		RuleIdentityChanged: func(t *testing.T) error {
			d, i := newDevice(t, alice, "PHONE"), newIdentity(alice)
			keys, err := ParseDeviceKeys(rawJSON(t, i.device(t, d, ed25519Key(50), true)), alice, "PHONE")
			must(t, err)
			return CheckBinding(&d.cred, testSuite, keys, i.parsed(t), Known{Master: make([]byte, 32), Verified: true}, VerifyCross)
		},
		RuleAddWithoutAdmission: func(t *testing.T) error {
			g := newGroup(t, testPolicy())
			m := g.commit(g.creator, nil, mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(newDevice(t, bob, "LAPTOP").keyPackage())}})
			_, err := CheckCommit(m.in)
			return err
		},
		RuleExternalProposalNotEntitled: func(t *testing.T) error {
			g := newGroup(t, testPolicy())
			b := newDevice(t, bob, "LAPTOP")
			g.add(b)
			propose := func(p mls.Proposal) *made {
				raw, err := mls.NewExternalProposal(testSuite, g.creator.group.GroupID(), g.creator.group.Epoch(), 0, g.sender, p, MessageAAD{Head: g.head}.Encode())
				must(t, err)
				m, err := mls.ParseMessage(raw)
				must(t, err)
				_, err = g.creator.group.Process(m)
				must(t, err)
				return g.commit(g.creator, nil, mls.CommitOptions{Pending: true})
			}
			remove := propose(mls.Remove(1))
			_, err := CheckCommit(remove.in)
			must(t, err)
			remove.in.View.MayRemove = func(author id.UserID, leaf GroupLeaf) bool { return author != "" }
			_, err = CheckCommit(remove.in)
			wantRule(t, err, RuleExternalProposalNotEntitled)
			wantRule(t, CheckExternalProposal(mls.Remove(1), mls.Sender{Type: mls.SenderTypeExternal}, func(mls.LeafIndex) bool { return false }), RuleExternalProposalNotEntitled)
			wantRule(t, CheckExternalProposal(mls.Remove(1), mls.Sender{Type: mls.SenderTypeMember}, nil), RuleExternalProposalNotEntitled)
			return CheckExternalProposal(mls.Add(newDevice(t, dave, "X").keyPackage()), mls.Sender{Type: mls.SenderTypeExternal}, nil)
		},
		RuleReceiptForged: func(t *testing.T) error {
			d := newDevice(t, alice, "PHONE")
			return VerifyLeafSignature(uint16(testSuite), d.cred.Key, []byte("x"), make([]byte, 64))
		},
		RuleCredentialMalformed: func(*testing.T) error {
			c := mls.BasicCredential([]byte(alice))
			_, err := ParseCredential(&c)
			return err
		},
		RulePolicyMalformed: func(*testing.T) error {
			_, err := DecodePolicy([]byte{1})
			return err
		},
		RulePolicyNotEntitled: func(*testing.T) error {
			p := testPolicy()
			p.Admins = []id.UserID{bob}
			return CheckChange(testPolicy(), p, bob)
		},
		RuleParentMismatch: func(t *testing.T) error {
			g := newGroup(t, testPolicy())
			m := g.commit(g.creator, &CommitAAD{Parent: [32]byte{1}}, mls.CommitOptions{})
			_, err := CheckCommit(m.in)
			wantRule(t, err, RuleParentMismatch)
			m = g.commit(g.creator, nil, mls.CommitOptions{})
			m.in.Content.Parent[0]++
			_, err = CheckCommit(m.in)
			wantRule(t, err, RuleParentMismatch)
			m.in.Content.Parent[0]--
			m.in.Parent[0]++
			_, err = CheckCommit(m.in)
			wantRule(t, err, RuleParentMismatch)
			m.in.Parent[0]--
			m.in.Content.Epoch++
			_, err = CheckCommit(m.in)
			return err
		},
		RuleNoCommonSuite: func(*testing.T) error { return CheckSuite(1, []Offer{{bob, "LAPTOP", []Suite{2}}}) },
		RuleAADMalformed: func(t *testing.T) error {
			g := newGroup(t, testPolicy())
			staged, err := g.creator.group.Commit(mls.CommitOptions{AuthenticatedData: []byte{9}})
			must(t, err)
			_, err = CheckCommit(g.input(g.creator, staged, g.creator.group).in)
			return err
		},
		RuleRemoveNotEntitled: func(t *testing.T) error {
			g := newGroup(t, testPolicy())
			b := newDevice(t, bob, "LAPTOP")
			g.add(b)
			m := g.commit(b, nil, mls.CommitOptions{Proposals: []mls.Proposal{mls.Remove(0)}})
			m.in.View.MayRemove = func(id.UserID, GroupLeaf) bool { return false }
			_, err := CheckCommit(m.in)
			return err
		},
		RuleEraNotEntitled: func(t *testing.T) error {
			g := newGroup(t, testPolicy())
			b := newDevice(t, bob, "LAPTOP")
			g.add(b)
			_, err := CheckCommit(g.commit(b, &CommitAAD{Era: 1}, mls.CommitOptions{}).in)
			return err
		},
	} {
		t.Run(string(rule), func(t *testing.T) {
			err := run(t)
			wantRule(t, err, rule)
		})
	}
}

// TestRefusedCommitsLeaveTheGroupAsItWas compares the group's state before and
// after commits that the policy forbids.
func TestRefusedCommitsLeaveTheGroupAsItWas(t *testing.T) {
	g := newGroup(t, testPolicy())
	before := slices.Concat(g.creator.group.TreeHash(), g.creator.group.ConfirmedTranscriptHash(), g.creator.group.EpochAuthenticator())
	m := g.commit(g.creator, nil, mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(newDevice(t, bob, "LAPTOP").keyPackage())}})
	_, err := CheckCommit(m.in)
	wantRule(t, err, RuleAddWithoutAdmission)
	if after := slices.Concat(g.creator.group.TreeHash(), g.creator.group.ConfirmedTranscriptHash(), g.creator.group.EpochAuthenticator()); !slices.Equal(before, after) {
		t.Error("the group changed")
	}
}

func TestHead(t *testing.T) {
	g := newGroup(t, testPolicy())
	raw, err := g.creator.group.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	must(t, err)
	head := func() *HeadContent {
		return &HeadContent{
			Version: Version, ReceiptKey: make(Bytes, 32), Group: g.creator.group.GroupID(), GroupInfo: raw,
			Accepted:        &EventRef{Ref: Hash(g.head), Event: "$e", Epoch: 0},
			Snapshot:        &Snapshot{Tree: g.creator.group.RatchetTree(), TreeHash: g.creator.group.TreeHash(), AtCommit: Hash(g.head)},
			ExternalSenders: []ExternalSender{{Scheme: uint16(mls.Ed448), Key: Bytes{1}}, {Scheme: uint16(mls.Ed25519), Key: Bytes{2}}},
		}
	}
	m, err := head().Parse()
	must(t, err)
	must(t, CheckGroupInfo(m, g.creator.group, g.creator.group.TreeHash()))
	for name, test := range map[string]struct {
		edit func(*HeadContent)
		rule Rule
	}{
		"epoch":        {func(h *HeadContent) { h.Accepted.Epoch = 4 }, RuleParentMismatch},
		"group":        {func(h *HeadContent) { h.Group = Bytes{1} }, RuleRoomNotGroup},
		"tree hash":    {func(h *HeadContent) { h.Snapshot.TreeHash = Bytes{1} }, RuleMediaHash},
		"no GroupInfo": {func(h *HeadContent) { h.GroupInfo = nil }, RuleContentMalformed},
		"garbage":      {func(h *HeadContent) { h.GroupInfo = Bytes{1, 2} }, RuleContentMalformed},
		"key package":  {func(h *HeadContent) { h.GroupInfo = g.creator.bundle.Message() }, RuleContentMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			h := head()
			test.edit(h)
			_, err := h.Parse()
			wantRule(t, err, test.rule)
		})
	}
	t.Run("stale", func(t *testing.T) {
		g.add(newDevice(t, bob, "LAPTOP"))
		wantRule(t, CheckGroupInfo(m, g.creator.group, g.creator.group.TreeHash()), RuleParentMismatch)
	})
	s, err := ModuleSender(testBot, head(), testSuite)
	if err != nil || string(s.SignatureKey) != "\x02" || string(s.Credential.Identity) != string(testBot) {
		t.Errorf("external sender %+v, %v", s, err)
	}
	_, err = ModuleSender(testBot, head(), mls.MLS_128_DHKEMP256_AES128GCM_SHA256_P256)
	wantRule(t, err, RuleNoCommonSuite)
	must(t, head().Snapshot.CheckSnapshot(head().Snapshot.TreeHash))
	wantRule(t, head().Snapshot.CheckSnapshot([]byte{1}), RuleMediaHash)
}
