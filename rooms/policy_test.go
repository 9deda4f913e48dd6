package rooms

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
)

func fullPolicy() *Policy {
	p := testPolicy()
	p.Predecessor = &Predecessor{Group: []byte{1, 2}, Room: otherRoom, Ref: Hash{3}}
	p.Sequencers = append(p.Sequencers, federation.Sequencer{Server: "example.net", User: "@mod:example.net", ReceiptKey: []byte(ed25519Key(2)[32:])})
	p.Heirs = []federation.Heir{{User: string(bob), Server: "example.net"}, {User: string(carol), Server: "example.com"}}
	p.Admit, p.Admitters = AdmitListed, []id.UserID{bob}
	p.Join, p.OnPartition, p.History, p.Verification = JoinByRule, federation.OnPartitionFreeze, HistoryShared, VerifyTOFU
	p.SuiteFloor = []Suite{1, 2}
	p.RemoveSilent = 90 * 24 * time.Hour
	return p
}

func TestPolicyRoundTrip(t *testing.T) {
	for name, p := range map[string]*Policy{"default": testPolicy(), "full": fullPolicy()} {
		t.Run(name, func(t *testing.T) {
			raw, err := p.Encode()
			must(t, err)
			got, err := DecodePolicy(raw)
			must(t, err)
			if diff := cmp.Diff(p, got); diff != "" {
				t.Errorf("round trip (-want +got):\n%s", diff)
			}
			for n := range raw {
				if _, err := DecodePolicy(raw[:n]); err == nil {
					t.Errorf("accepted after %d of %d bytes", n, len(raw))
				}
			}
			_, err = DecodePolicy(append(raw, 0))
			wantRule(t, err, RulePolicyMalformed)
		})
	}
}

func TestDefaultPolicyIsTheDocumentedOne(t *testing.T) {
	p := testPolicy()
	if p.Takeover != 30*time.Second || p.HeirsWait != 10*time.Minute || p.Window != 16 || p.OnPartition != federation.OnPartitionFork ||
		p.Verification != VerifyCross || p.Join != JoinAdmitted || p.Admit != AdmitMembers || p.RemoveSilent != 0 || p.SuiteOrder[0] != 1 {
		t.Errorf("default policy %+v", p)
	}
}

func TestPolicyRefusals(t *testing.T) {
	low := make([]byte, 32)
	low[0] = 1 // the identity: a point of order 1
	for _, test := range []struct {
		name string
		edit func(*Policy)
		rule Rule
	}{
		{"algorithm", func(p *Policy) { p.Algorithm = "m.megolm.v1.aes-sha2" }, RuleAlgorithmDowngrade},
		{"no room", func(p *Policy) { p.Room = "" }, RulePolicyMalformed},
		{"room is a user", func(p *Policy) { p.Room = "@a:b" }, RulePolicyMalformed},
		{"creator", func(p *Policy) { p.Creator = "alice" }, RulePolicyMalformed},
		{"no sequencer", func(p *Policy) { p.Sequencers = nil }, RulePolicyMalformed},
		{"too many sequencers", func(p *Policy) { p.Sequencers = make([]federation.Sequencer, 17) }, RulePolicyMalformed},
		{"sequencer twice", func(p *Policy) { p.Sequencers[1].Server = p.Sequencers[0].Server }, RulePolicyMalformed},
		{"receipt key twice", func(p *Policy) { p.Sequencers[1].ReceiptKey = p.Sequencers[0].ReceiptKey }, RulePolicyMalformed},
		{"short receipt key", func(p *Policy) { p.Sequencers[0].ReceiptKey = []byte{1} }, RulePolicyMalformed},
		{"receipt key of low order", func(p *Policy) { p.Sequencers[0].ReceiptKey = low }, RulePolicyMalformed},
		{"takeover", func(p *Policy) { p.Takeover = time.Millisecond }, RulePolicyMalformed},
		{"takeover in nanoseconds", func(p *Policy) { p.Takeover = time.Minute + 1 }, RulePolicyMalformed},
		{"heirs wait", func(p *Policy) { p.HeirsWait = time.Second }, RulePolicyMalformed},
		{"window", func(p *Policy) { p.Window = 0 }, RulePolicyMalformed},
		{"partition", func(p *Policy) { p.OnPartition = 2 }, RulePolicyMalformed},
		{"no admin", func(p *Policy) { p.Admins = nil }, RulePolicyMalformed},
		{"admin twice", func(p *Policy) { p.Admins = []id.UserID{alice, alice} }, RulePolicyMalformed},
		{"heir of the creator's server", func(p *Policy) { p.Heirs = []federation.Heir{{User: "@x:example.org", Server: "example.org"}} }, RulePolicyMalformed},
		{"heir of another server", func(p *Policy) { p.Heirs = []federation.Heir{{User: string(bob), Server: "example.com"}} }, RulePolicyMalformed},
		{"four heirs of a server", func(p *Policy) {
			p.Heirs = nil
			for _, u := range []string{"a", "b", "c", "d"} {
				p.Heirs = append(p.Heirs, federation.Heir{User: "@" + u + ":example.net", Server: "example.net"})
			}
		}, RulePolicyMalformed},
		{"admit", func(p *Policy) { p.Admit = 3 }, RulePolicyMalformed},
		{"admitters without rule", func(p *Policy) { p.Admit = AdmitMembers }, RulePolicyMalformed},
		{"rule without admitters", func(p *Policy) { p.Admitters = nil }, RulePolicyMalformed},
		{"join", func(p *Policy) { p.Join = 3 }, RulePolicyMalformed},
		{"history", func(p *Policy) { p.History = 2 }, RulePolicyMalformed},
		{"verification", func(p *Policy) { p.Verification = 3 }, RulePolicyMalformed},
		{"no suite", func(p *Policy) { p.SuiteOrder = nil }, RulePolicyMalformed},
		{"suite 0", func(p *Policy) { p.SuiteOrder = []Suite{0} }, RulePolicyMalformed},
		{"suite twice", func(p *Policy) { p.SuiteFloor = []Suite{1, 1} }, RulePolicyMalformed},
		{"silent", func(p *Policy) { p.RemoveSilent = time.Hour }, RulePolicyMalformed},
		{"predecessor", func(p *Policy) { p.Predecessor.Ref = Hash{} }, RulePolicyMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := fullPolicy()
			test.edit(p)
			_, err := p.Encode()
			wantRule(t, err, test.rule)
		})
	}
}

func TestWhoMayChangeThePolicy(t *testing.T) {
	for _, test := range []struct {
		name   string
		author id.UserID
		edit   func(*Policy)
		rule   Rule
	}{
		{"nothing, by anyone", carol, func(*Policy) {}, ""},
		{"window, by an admin", alice, func(p *Policy) { p.Window = 8 }, ""},
		{"window, by an heir", bob, func(p *Policy) { p.Window = 8 }, RulePolicyNotEntitled},
		{"admins, by themselves", carol, func(p *Policy) { p.Admins = []id.UserID{carol} }, RulePolicyNotEntitled},
		{"creator, by an admin", alice, func(p *Policy) { p.Creator = "@x:example.org" }, RulePolicyNotEntitled},
		{"predecessor, by an admin", alice, func(p *Policy) { p.Predecessor = nil }, RulePolicyNotEntitled},
		{"room, by an admin", alice, func(p *Policy) { p.Room = otherRoom }, RuleRoomNotGroup},
		{"algorithm, by an admin", alice, func(p *Policy) { p.Algorithm = "m.megolm.v1.aes-sha2" }, RuleAlgorithmDowngrade},
		{"the last admin goes", alice, func(p *Policy) { p.Admins = nil }, RulePolicyMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			to := fullPolicy()
			test.edit(to)
			err := CheckChange(fullPolicy(), to, test.author)
			if test.rule == "" {
				must(t, err)
				return
			}
			wantRule(t, err, test.rule)
		})
	}
}

func TestWhoMayAdmit(t *testing.T) {
	p := fullPolicy()
	for _, test := range []struct {
		rule AdmitPolicy
		want []id.UserID
	}{{AdmitMembers, []id.UserID{alice, bob, carol}}, {AdmitAdmins, []id.UserID{alice}}, {AdmitListed, []id.UserID{alice, bob}}} {
		p.Admit = test.rule
		for _, u := range []id.UserID{alice, bob, carol} {
			if got, want := p.MayAdmit(u), slices.Contains(test.want, u); got != want {
				t.Errorf("rule %d: MayAdmit(%s) = %v, want %v", test.rule, u, got, want)
			}
		}
	}
}

func FuzzPolicy(f *testing.F) {
	for _, p := range []*Policy{testPolicy(), fullPolicy()} {
		raw, err := p.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := DecodePolicy(raw)
		if err != nil {
			return
		}
		again, err := p.Encode()
		if err != nil || string(again) != string(raw) {
			t.Fatalf("decoded, but encodes to %x, %v", again, err)
		}
	})
}

func TestSuiteChoice(t *testing.T) {
	p := testPolicy()
	offers := []Offer{{alice, "PHONE", []Suite{1, 2, 3}}, {bob, "LAPTOP", []Suite{2, 3}}, {carol, "TABLET", []Suite{3, 2, 7}}}
	if s, err := ChooseSuite(p, offers); err != nil || s != 3 {
		t.Errorf("suite %d, %v, want 3", s, err)
	}
	if s, err := ChooseSuite(p, append(offers[:1:1], offers[1])); err != nil || s != 3 {
		t.Errorf("suite %d, %v, want 3: one device lacks suite 1", s, err)
	}
	p.SuiteFloor = []Suite{2, 7}
	if s, err := ChooseSuite(p, offers); err != nil || s != 2 {
		t.Errorf("suite %d, %v, want 2", s, err)
	}
	p.SuiteFloor = []Suite{7}
	_, err := ChooseSuite(p, offers)
	wantRule(t, err, RuleNoCommonSuite)
	for _, want := range []string{"@alice:example.org PHONE", "@bob:example.net LAPTOP", "update these devices"} {
		if err == nil || !contains(err.Error(), want) {
			t.Errorf("error %v does not name %q", err, want)
		}
	}
	if err != nil && contains(err.Error(), "TABLET") {
		t.Errorf("error %v names a device that has the suite", err)
	}
	wantRule(t, CheckSuite(1, offers), RuleNoCommonSuite)
	must(t, CheckSuite(3, offers))
	if !Weaker(4, 1) || !Weaker(1, 2) || Weaker(1, 3) || Weaker(1, 4) {
		t.Error("Weaker misjudges")
	}
}
