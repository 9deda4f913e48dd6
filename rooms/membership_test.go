package rooms

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

func stateOf(members map[id.UserID]Membership) *RoomState {
	s := NewRoomState(testRoom)
	for u, m := range members {
		s.Members[u] = Member{Membership: m, Event: id.EventID("$" + string(u[1:])), Sender: u}
	}
	return s
}

func leafOf(i mls.LeafIndex, user id.UserID, device id.DeviceID) GroupLeaf {
	return GroupLeaf{Index: i, Cred: Credential{user, device, []byte(string(user) + string(device))}}
}

func deviceOf(user id.UserID, device id.DeviceID) Device {
	return Device{Device: device, Key: []byte(string(user) + string(device))}
}

func TestPlan(t *testing.T) {
	problem := refuse(RuleDeviceKeyNotCrossSigned, "device", "not signed")
	for _, test := range []struct {
		name    string
		in      Inputs
		edit    func(*Inputs)
		removes string
		adds    string
		waiting []Rule
		barrier Rule
	}{
		{
			name: "nothing to do",
			in:   Inputs{State: stateOf(map[id.UserID]Membership{alice: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")}, Devices: map[id.UserID][]Device{alice: {deviceOf(alice, "A")}}},
		},
		{
			name:    "who left goes, and blocks",
			in:      Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "leave"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(1, bob, "B"), leafOf(2, bob, "C")}},
			removes: "1 left $bob:example.net, 2 left $bob:example.net", barrier: RuleMemberNotInRoom,
		},
		{
			name:    "who is banned goes, and blocks",
			in:      Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "ban"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(1, bob, "B")}},
			removes: "1 banned $bob:example.net", barrier: RuleMemberNotInRoom,
		},
		{
			name:    "who was never in the room goes",
			in:      Inputs{State: stateOf(map[id.UserID]Membership{alice: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(1, bob, "B")}},
			removes: "1 left ", barrier: RuleMemberNotInRoom,
		},
		{
			name:    "who knocks again goes",
			in:      Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "knock"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(1, bob, "B")}},
			removes: "1 left $bob:example.net", barrier: RuleMemberNotInRoom,
		},
		{
			name: "an invited leaf stays",
			in:   Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "invite"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(1, bob, "B")}},
		},
		{
			name: "a leaf of who left and is only invited again goes, and blocks, where history shows from the join",
			in:   Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "invite"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(1, bob, "B")}},
			edit: func(in *Inputs) { in.State.HistoryVisibility = "joined" }, removes: "1 left $bob:example.net", barrier: RuleMemberNotInRoom,
		},
		{
			name: "a joined user without admission gets nothing",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: {deviceOf(bob, "B")}}},
			waiting: []Rule{RuleRoomMemberNotInGroup},
		},
		{
			name: "an admitted user is added with all devices",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: {deviceOf(bob, "C"), deviceOf(bob, "B"), {Device: "old"}}}, Admitted: map[id.UserID]bool{bob: true}},
			adds: "@bob:example.net B new, @bob:example.net C new",
		},
		{
			name: "an admitted user who was banned is not added",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "ban"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: {deviceOf(bob, "B")}}, Admitted: map[id.UserID]bool{bob: true}},
		},
		{
			name: "an invited user is added at once where history shows from the invite",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "invite"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: {deviceOf(bob, "B")}}, Admitted: map[id.UserID]bool{bob: true}},
			adds: "@bob:example.net B new",
		},
		{
			name: "an invited user waits for the join where history shows from the join",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "invite"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: {deviceOf(bob, "B")}}, Admitted: map[id.UserID]bool{bob: true}},
			edit: func(in *Inputs) { in.State.HistoryVisibility = "joined" },
		},
		{
			name: "a further device of a member needs no admission",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{alice: {deviceOf(alice, "A"), deviceOf(alice, "B")}}},
			adds: "@alice:example.org B",
		},
		{
			name: "a device that is not cross-signed waits",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{alice: {deviceOf(alice, "A"), {Device: "B", Key: []byte{1}, Problem: problem}}}},
			waiting: []Rule{RuleDeviceKeyNotCrossSigned},
		},
		{
			name: "a leaf that fails its check goes, and blocks",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(1, alice, "B")},
				Devices: map[id.UserID][]Device{alice: {deviceOf(alice, "A"), {Device: "B", Key: []byte(string(alice) + "B"), Problem: problem}}}},
			removes: "1 device ", waiting: []Rule{RuleDeviceKeyNotCrossSigned}, barrier: RuleMemberNotInRoom,
		},
		{
			name: "a device that logged out goes, and blocks",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(1, alice, "B")},
				Devices: map[id.UserID][]Device{alice: {deviceOf(alice, "A")}}},
			removes: "1 device ", barrier: RuleMemberNotInRoom,
		},
		{
			name: "the older leaf of a device goes, and does not block",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(4, alice, "A")},
				Devices: map[id.UserID][]Device{alice: {deviceOf(alice, "A")}}},
			removes: "0 duplicate ",
		},
		{
			name: "of two leaves of a device the one with its key stays",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join"}),
				Leaves:  []GroupLeaf{leafOf(0, alice, "A"), {Index: 4, Cred: Credential{alice, "A", []byte("old")}}},
				Devices: map[id.UserID][]Device{alice: {deviceOf(alice, "A")}}},
			removes: "4 duplicate ",
		},
		{
			name:    "a malformed credential goes, and blocks",
			in:      Inputs{State: stateOf(map[id.UserID]Membership{alice: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), {Index: 3}}},
			removes: "3 credential ", barrier: RuleMemberNotInRoom,
		},
		{
			name: "a silent leaf goes if the policy says so, and does not block",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A"), leafOf(1, bob, "B")},
				Silent: map[mls.LeafIndex]time.Duration{1: 91 * 24 * time.Hour}},
			edit:    func(in *Inputs) { in.Policy.RemoveSilent = 90 * 24 * time.Hour },
			removes: "1 silent ", waiting: []Rule{RuleRoomMemberNotInGroup},
		},
		{
			name: "in an open room who joins is added",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: {deviceOf(bob, "B")}}},
			edit: func(in *Inputs) { in.Policy.Join = JoinOpen },
			adds: "@bob:example.net B new",
		},
		{
			name: "where the join rule decides, a public room adds who joins",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: {deviceOf(bob, "B")}}},
			edit: func(in *Inputs) { in.Policy.Join, in.State.JoinRule = JoinByRule, "public" },
			adds: "@bob:example.net B new",
		},
		{
			name: "where the join rule decides, an invite still needs an admission",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: {deviceOf(bob, "B")}}},
			edit:    func(in *Inputs) { in.Policy.Join = JoinByRule },
			waiting: []Rule{RuleRoomMemberNotInGroup},
		},
		{
			name: "where the join rule decides, who is only invited to a public room needs an admission",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "invite"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: {deviceOf(bob, "B")}}},
			edit:    func(in *Inputs) { in.Policy.Join, in.State.JoinRule = JoinByRule, "public" },
			waiting: []Rule{RuleRoomMemberNotInGroup},
		},
		{
			name: "bots are neither added nor waited for",
			in:   Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", testBot: "join", dave: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")}},
			edit: func(in *Inputs) { in.State.Functional = []id.UserID{dave} },
		},
		{
			name: "a user without a device is named",
			in: Inputs{State: stateOf(map[id.UserID]Membership{alice: "join", bob: "join"}), Leaves: []GroupLeaf{leafOf(0, alice, "A")},
				Devices: map[id.UserID][]Device{bob: nil}, Admitted: map[id.UserID]bool{bob: true}},
			waiting: []Rule{RuleRoomMemberNotInGroup},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := test.in
			in.Policy = testPolicy()
			if test.edit != nil {
				test.edit(&in)
			}
			p := MakePlan(in)
			var removes, adds []string
			for _, r := range p.Removes {
				removes = append(removes, fmt.Sprintf("%d %s %s", r.Leaf, r.Reason, r.Event))
			}
			for _, a := range p.Adds {
				s := fmt.Sprintf("%s %s", a.User, a.Device)
				if a.NewUser {
					s += " new"
				}
				adds = append(adds, s)
			}
			if got := joinComma(removes); got != test.removes {
				t.Errorf("removes %q, want %q", got, test.removes)
			}
			if got := joinComma(adds); got != test.adds {
				t.Errorf("adds %q, want %q", got, test.adds)
			}
			var waiting []Rule
			for _, err := range p.Waiting {
				waiting = append(waiting, RuleOf(err))
			}
			if !slices.Equal(waiting, test.waiting) {
				t.Errorf("waiting %v, want %v", p.Waiting, test.waiting)
			}
			if got := RuleOf(p.Barrier()); got != test.barrier {
				t.Errorf("barrier %q, want %q", got, test.barrier)
			}
		})
	}
}

func joinComma(s []string) string {
	out := ""
	for i, x := range s {
		if i > 0 {
			out += ", "
		}
		out += x
	}
	return out
}

// TestPlanProperties checks on random rooms what must hold of every plan:
// nobody comes in without an admission, nobody who is gone stays, and a plan
// carried out leaves nothing to do.
func TestPlanProperties(t *testing.T) {
	users := []id.UserID{alice, bob, carol, dave}
	devices := []id.DeviceID{"A", "B", "C"}
	rapid.Check(t, func(t *rapid.T) {
		in := Inputs{State: NewRoomState(testRoom), Policy: testPolicy(), Devices: map[id.UserID][]Device{}, Admitted: map[id.UserID]bool{}}
		in.Policy.Join = rapid.SampledFrom([]JoinPolicy{JoinAdmitted, JoinByRule, JoinOpen}).Draw(t, "join")
		in.State.JoinRule = rapid.SampledFrom([]string{"invite", "public", "knock"}).Draw(t, "rule")
		in.State.HistoryVisibility = rapid.SampledFrom([]string{"joined", "invited", "shared"}).Draw(t, "history")
		for _, u := range users {
			in.State.Members[u] = Member{Membership: rapid.SampledFrom([]Membership{"", "join", "invite", "knock", "leave", "ban"}).Draw(t, "membership")}
			in.Admitted[u] = rapid.Bool().Draw(t, "admitted")
			if rapid.Bool().Draw(t, "fetched") {
				in.Devices[u] = nil
				for _, d := range devices {
					if rapid.Bool().Draw(t, "device") {
						dev := deviceOf(u, d)
						if rapid.Bool().Draw(t, "problem") {
							dev.Problem = refuse(RuleDeviceKeyNotCrossSigned, "x", "y")
						}
						in.Devices[u] = append(in.Devices[u], dev)
					}
				}
			}
		}
		for i := range rapid.IntRange(0, 8).Draw(t, "leaves") {
			in.Leaves = append(in.Leaves, leafOf(mls.LeafIndex(i), rapid.SampledFrom(users).Draw(t, "user"), rapid.SampledFrom(devices).Draw(t, "leaf device")))
		}
		plan := MakePlan(in)
		removed := map[mls.LeafIndex]bool{}
		for _, r := range plan.Removes {
			removed[r.Leaf] = true
		}
		var left []GroupLeaf
		had := map[id.UserID]bool{}
		for _, l := range in.Leaves {
			m := in.State.Members[l.Cred.User].Membership
			if !removed[l.Index] && m != MembershipJoin && !(m == MembershipInvite && in.State.AddsOnInvite()) {
				t.Fatalf("leaf %d of %s stays, who is %q", l.Index, l.Cred.User, m)
			}
			if !removed[l.Index] {
				left = append(left, l)
				had[l.Cred.User] = true
			}
		}
		for _, a := range plan.Adds {
			if m := in.State.Members[a.User].Membership; m != MembershipJoin && !(m == MembershipInvite && in.State.AddsOnInvite()) {
				t.Fatalf("adds %s, who is %q", a.User, m)
			}
			if !had[a.User] && !in.Admitted[a.User] && in.Policy.Join == JoinAdmitted {
				t.Fatalf("adds %s without an admission", a.User)
			}
			if a.NewUser == had[a.User] {
				t.Fatalf("%s new: %v, had a leaf: %v", a.User, a.NewUser, had[a.User])
			}
			left = append(left, leafOf(mls.LeafIndex(100+len(left)), a.User, a.Device))
		}
		again := in
		again.Leaves = left
		if p := MakePlan(again); !p.Empty() {
			t.Fatalf("a second plan is not empty: %+v", p)
		} else if err := p.Barrier(); err != nil {
			t.Fatalf("sending is blocked after the plan was carried out: %v", err)
		}
		// The order of leaves and devices decides nothing.
		shuffled := in
		shuffled.Leaves = slices.Clone(in.Leaves)
		slices.Reverse(shuffled.Leaves)
		if got := fmt.Sprintf("%+v %+v", MakePlan(shuffled).Removes, MakePlan(shuffled).Adds); got != fmt.Sprintf("%+v %+v", plan.Removes, plan.Adds) {
			t.Fatalf("plan depends on the order of leaves")
		}
	})
}

func TestRoomState(t *testing.T) {
	s := NewRoomState(testRoom)
	apply := func(typ, key, content string) error {
		return s.Apply(typ, key, alice, "$e", json.RawMessage(content))
	}
	must(t, apply(TypeCreate, "", `{"room_version":"11","`+KeyCreateAlgorithm+`":"`+Algorithm+`"}`))
	if !s.IsMLS() || s.CheckAlgorithm() != nil {
		t.Error("the create event names MLS, the state does not")
	}
	must(t, apply(TypeEncryption, "", `{"algorithm":"`+Algorithm+`"}`))
	must(t, s.CheckAlgorithm())
	for _, content := range []string{`{"algorithm":"m.megolm.v1.aes-sha2"}`, `{}`, `{"algorithm":null}`} {
		_ = apply(TypeEncryption, "", content)
		wantRule(t, s.CheckAlgorithm(), RuleAlgorithmDowngrade)
	}
	wantRule(t, apply(TypeEncryption, "", `{"algorithm":7}`), RuleContentMalformed)
	wantRule(t, s.CheckAlgorithm(), RuleAlgorithmDowngrade)

	must(t, apply(TypeJoinRules, "", `{"join_rule":"public"}`))
	for _, custom := range []string{`{"join_rule":"org.example.custom"}`, `{}`, `{"join_rule":"invite"}`} {
		must(t, apply(TypeJoinRules, "", custom))
		if s.JoinRule != "invite" {
			t.Errorf("join rule %q after %s", s.JoinRule, custom)
		}
	}
	wantRule(t, apply(TypeJoinRules, "", `{"join_rule":["public"]}`), RuleContentMalformed)
	if s.JoinRule != "invite" {
		t.Errorf("join rule %q", s.JoinRule)
	}
	must(t, apply(TypeHistoryVisibility, "", `{"history_visibility":"custom"}`))
	if s.AddsOnInvite() {
		t.Error("an unknown history visibility shows messages before the join")
	}
	wantRule(t, apply(TypeMember, string(bob), `{"membership":"join","membership":"ban"}`), RuleHostileJSON)
	if s.InRoom(bob) {
		t.Error("a user is in the room by a member event that cannot be read")
	}
}

func TestPower(t *testing.T) {
	s := NewRoomState(testRoom)
	must(t, s.Apply(TypeCreate, "", alice, "$c", json.RawMessage(`{"room_version":"10"}`)))
	if !s.CanSend(alice, TypeEncryption, true) {
		t.Error("the creator has no power in a room without power levels")
	}
	must(t, s.Apply(TypePowerLevels, "", alice, "$p", json.RawMessage(`{"users":{"`+string(alice)+`":100,"`+string(bob)+`":"50"},"events":{"`+TypeCommit+`":0},"events_default":10}`)))
	for _, test := range []struct {
		user  id.UserID
		typ   string
		state bool
		want  bool
	}{
		{carol, TypeCommit, false, true}, {carol, TypeProposal, false, false}, {bob, TypeProposal, false, true},
		{bob, TypeHead, true, true}, {carol, TypeHead, true, false},
	} {
		if got := s.CanSend(test.user, test.typ, test.state); got != test.want {
			t.Errorf("CanSend(%s, %s) = %v, want %v", test.user, test.typ, got, test.want)
		}
	}
	if !s.CanKick(bob, carol) || s.CanKick(bob, alice) || s.CanKick(carol, bob) {
		t.Error("CanKick misjudges")
	}
	if missing := s.MissingPower(carol); len(missing) != len(PowerLevelTypes())-1 || slices.Contains(missing, TypeCommit) {
		t.Errorf("missing %v", missing)
	}
	wantRule(t, s.Apply(TypePowerLevels, "", alice, "$p", json.RawMessage(`{"users":{"`+string(alice)+`":"x"}}`)), RuleContentMalformed)
	if s.CanSend(bob, "m.room.message", false) {
		t.Error("power levels that cannot be read give power")
	}
	must(t, s.Apply(TypeCreate, "", alice, "$c", json.RawMessage(`{"room_version":"12","additional_creators":["`+string(bob)+`"]}`)))
	must(t, s.Apply(TypePowerLevels, "", alice, "$p", json.RawMessage(`{"events":{"x":150}}`)))
	if !s.CanSend(alice, "x", true) || !s.CanSend(bob, "x", true) || s.CanSend(carol, "x", true) {
		t.Error("the creator of a room of version 12 is not above all levels")
	}
}

func TestCommitterDelay(t *testing.T) {
	for _, n := range []int{2, 10, 100, 1000, 5000} {
		soon, at := 0, time.Duration(math.MaxInt64)
		for i := range n {
			d := CommitterDelay(federation.Ref{byte(n)}, mls.LeafIndex(i), n)
			if d < 0 || d > CommitterSpan {
				t.Fatalf("delay %v of leaf %d of %d", d, i, n)
			}
			at = min(at, d)
			if d < time.Second {
				soon++
			}
		}
		if at > 2*time.Second || n >= 100 && (soon < 1 || soon > 20) {
			t.Errorf("%d leaves: first after %v, %d within a second", n, at, soon)
		}
	}
	if d := CommitterDelay(federation.Ref{1}, 0, 1); d != 0 {
		t.Errorf("the only leaf waits %v", d)
	}
	if CommitterDelay(federation.Ref{1}, 3, 50) == CommitterDelay(federation.Ref{2}, 3, 50) {
		t.Error("the delay does not depend on the parent")
	}
}

func TestVoucherDelay(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 100, 1000, 5000} {
		ref := federation.Ref{byte(n), 1}
		vouchers := make([]uint32, n)
		for i := range vouchers {
			vouchers[i] = uint32(3*i + 1)
		}
		var delays []time.Duration
		for i := 0; i < n; i += max(n/100, 1) {
			delays = append(delays, VoucherDelay(ref, mls.LeafIndex(vouchers[i]), vouchers))
		}
		slices.Sort(delays)
		if last := delays[len(delays)-1]; delays[0] < 0 || last > CommitterSpan {
			t.Fatalf("%d vouchers: delays from %v to %v", n, delays[0], last)
		}
		if n > 100 { // some of them
			continue
		}
		if delays[0] != VoucherGrace {
			t.Errorf("%d vouchers: the first waits %v", n, delays[0])
		}
		if n > 1 && (delays[1]-delays[0] < 700*time.Millisecond || delays[1]-delays[0] > VoucherStep) {
			t.Errorf("%d vouchers: the second waits %v: it would not have heard the first, or takes too long if that is away", n, delays[1])
		}
	}
	some := []uint32{1, 4, 7, 10}
	first := map[mls.LeafIndex]bool{}
	for i := range 50 {
		for _, leaf := range some {
			if VoucherDelay(federation.Ref{byte(i), 2}, mls.LeafIndex(leaf), some) == VoucherGrace {
				first[mls.LeafIndex(leaf)] = true
			}
		}
	}
	if len(first) != len(some) {
		t.Errorf("only %v are ever the first", first)
	}
}
