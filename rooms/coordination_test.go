package rooms

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

func sequencer(server string, seed uint64) federation.Sequencer {
	return federation.Sequencer{Server: server, User: "@" + BotLocalpart + ":" + server, ReceiptKey: []byte(ed25519Key(seed)[32:])}
}

func leavesOf(users ...id.UserID) []GroupLeaf {
	var out []GroupLeaf
	for i, u := range users {
		out = append(out, GroupLeaf{Index: mls.LeafIndex(i), Cred: Credential{User: u, Device: "D"}})
	}
	return out
}

func TestDefaultSequencers(t *testing.T) {
	a, b, c, d := sequencer("a", 1), sequencer("b", 2), sequencer("c", 3), sequencer("d", 4)
	newB := b
	newB.ReceiptKey = []byte(ed25519Key(9)[32:])
	type list = []federation.Sequencer
	for _, test := range []struct {
		name    string
		now     list
		modules list
		users   []id.UserID
		manual  bool
		want    list
	}{
		{"one server", list{a}, list{a}, []id.UserID{"@1:a"}, false, list{a}},
		{"two buy no finality", list{a}, list{a, b}, []id.UserID{"@1:a", "@2:b"}, false, list{a}},
		{"three", list{a}, list{c, b, a}, []id.UserID{"@1:a", "@2:b", "@3:c"}, false, list{a, b, c}},
		{"oldest members' servers first", list{a}, list{a, b, c, d}, []id.UserID{"@1:a", "@3:d", "@2:b", "@4:c"}, false, list{a, d, b}},
		{"a module without users in the group", list{a}, list{a, b, c}, []id.UserID{"@1:a", "@2:b"}, false, list{a}},
		{"users without a module", list{a}, list{a, b}, []id.UserID{"@1:a", "@2:b", "@3:c"}, false, list{a}},
		{"three stay three", list{a, b, c}, list{a, b, c, d}, []id.UserID{"@1:a", "@2:b", "@3:c", "@4:d"}, false, list{a, b, c}},
		{"order is kept", list{c, a, b}, list{a, b, c}, []id.UserID{"@1:a", "@2:b", "@3:c"}, false, list{c, a, b}},
		{"two get a third", list{b, a}, list{a, b, c}, []id.UserID{"@1:a", "@2:b", "@3:c"}, false, list{b, a, c}},
		{"who left is replaced", list{a, b, c}, list{a, c, d}, []id.UserID{"@1:a", "@3:c", "@4:d"}, false, list{a, c, d}},
		{"nobody to replace it", list{a, b, c}, list{a, c}, []id.UserID{"@1:a", "@3:c"}, false, list{a, b, c}},
		{"the only one left the room", list{a}, list{b}, []id.UserID{"@2:b"}, false, list{b}},
		{"a new key is an admin's matter", list{a, b, c}, list{a, newB, c}, []id.UserID{"@1:a", "@2:b", "@3:c"}, false, list{a, b, c}},
		{"named by admins", list{a}, list{a, b, c}, []id.UserID{"@1:a", "@2:b", "@3:c"}, true, list{a}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := testPolicy()
			p.Sequencers, p.Manual = test.now, test.manual
			if diff := cmp.Diff(test.want, DefaultSequencers(p, test.modules, leavesOf(test.users...))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDefaultHeirs(t *testing.T) {
	heirs := func(users ...id.UserID) []federation.Heir {
		var out []federation.Heir
		for _, u := range users {
			out = append(out, federation.Heir{User: string(u), Server: serverOf(u)})
		}
		return out
	}
	creator := id.UserID("@alice:example.org")
	for _, test := range []struct {
		name  string
		now   []federation.Heir
		users []id.UserID
		edit  func(*Policy)
		want  []federation.Heir
	}{
		{"one server has none", nil, []id.UserID{creator, "@x:example.org"}, nil, nil},
		{"the second server", nil, []id.UserID{creator, "@b:two"}, nil, heirs("@b:two")},
		{"three for each server, the longest members", nil, []id.UserID{creator, "@d:two", "@c:two", "@b:three", "@b:two", "@a:two"}, nil,
			heirs("@d:two", "@c:two", "@b:two", "@b:three")},
		{"who has two devices counts once", nil, []id.UserID{creator, "@b:two", "@b:two", "@c:two"}, nil, heirs("@b:two", "@c:two")},
		{"who is there stays", heirs("@z:two"), []id.UserID{creator, "@b:two", "@c:two", "@d:two", "@z:two"}, nil, heirs("@z:two", "@b:two", "@c:two")},
		{"who left goes", heirs("@z:two"), []id.UserID{creator, "@b:two"}, nil, heirs("@b:two")},
		{"open groups", nil, []id.UserID{creator, "@b:two"}, func(p *Policy) { p.Join = JoinOpen }, nil},
		{"named by admins", heirs("@z:two"), []id.UserID{creator, "@b:two"}, func(p *Policy) { p.Manual = true }, heirs("@z:two")},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := testPolicy()
			p.Creator, p.Heirs = creator, test.now
			if test.edit != nil {
				test.edit(p)
			}
			got := DefaultHeirs(p, leavesOf(test.users...))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			p.Heirs = got
			must(t, p.Validate())
		})
	}
}

// TestManualPolicyRoundTrip: the flag is absent where it says nothing, so that
// each policy has one encoding.
func TestManualPolicyRoundTrip(t *testing.T) {
	p := testPolicy()
	plain, err := p.Encode()
	must(t, err)
	p.Manual = true
	raw, err := p.Encode()
	must(t, err)
	if diff := cmp.Diff(append(plain, 1), raw); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got, err := DecodePolicy(raw)
	must(t, err)
	if diff := cmp.Diff(p, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, tail := range [][]byte{{0}, {2}, {1, 1}} {
		_, err := DecodePolicy(append(plain[:len(plain):len(plain)], tail...))
		wantRule(t, err, RulePolicyMalformed)
	}
	must(t, CheckChange(testPolicy(), p, alice))
	wantRule(t, CheckChange(testPolicy(), p, carol), RulePolicyNotEntitled)
}
