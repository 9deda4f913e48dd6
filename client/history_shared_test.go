package client

import (
	"fmt"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestInviteesGetWhatVisibilityAndPolicyGrant: who is invited gets earlier messages of who invited them, as far as the group's policy lets members share
// and the room's history visibility shows them.
func TestInviteesGetWhatVisibilityAndPolicyGrant(t *testing.T) {
	for name, tc := range map[string]struct {
		visibility string
		policy     rooms.HistoryPolicy
		want       []string
	}{
		"shared":                        {"shared", rooms.HistoryShared, []string{"one", "two", "between"}},
		"world_readable":                {"world_readable", rooms.HistoryShared, []string{"one", "two", "between"}},
		"invited":                       {"invited", rooms.HistoryShared, []string{"between"}},
		"joined":                        {"joined", rooms.HistoryShared, nil},
		"shared, the policy forbids it": {"shared", rooms.HistoryNone, []string{"between"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
			room := w.createRoom(alice, CreateOptions{History: tc.visibility, Policy: func(p *rooms.Policy) { p.History = tc.policy }})
			w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
			w.join(bob, room)
			w.send(bob, room, "one")
			w.send(alice, room, "two")
			carol := w.asking("carol", "CAROL1")
			w.must(func() error { return alice.Invite(w.ctx, room, carol.UserID()) })
			w.settle() // where history is not "joined", carol is in the group now
			w.send(bob, room, "between")
			w.join(carol, room)
			w.settle()
			got := carol.bodies(room)
			if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(tc.want))) {
				t.Errorf("carol has %q, want %q", got, tc.want)
			}
			list, err := carol.Messages(w.ctx, room, "", 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list {
				if m.Body() == "between" {
					continue // carol's own device may have opened it
				}
				if m.From == nil || *m.From != (HistorySource{User: alice.UserID(), Device: "ALICE1"}) {
					t.Errorf("%q came from %+v", m.Body(), m.From)
				}
			}
		})
	}
}

// TestWhereHistoryIsForInviteesTheInviteCounts: where the visibility is "invited",
// nobody is given what was said while they were neither invited nor in the room.
func TestWhereHistoryIsForInviteesTheInviteCounts(t *testing.T) {
	for name, tc := range map[string]struct {
		memberships []string // of carol; "said 0" before the first, "said 1" after it, and so on
		want        []int
	}{
		"invited":                           {[]string{"invite", "join"}, []int{1, 2}},
		"joined without an invite":          {[]string{"join"}, []int{1}},
		"left and came back":                {[]string{"invite", "join", "leave", "join"}, []int{4}},
		"left and was invited again":        {[]string{"join", "leave", "invite", "join"}, []int{3, 4}},
		"was banned and came back":          {[]string{"invite", "join", "ban", "leave", "join"}, []int{5}},
		"declined and joined":               {[]string{"invite", "leave", "join"}, []int{3}},
		"joined, and changed their name":    {[]string{"join", "join"}, []int{1, 2}},
		"invited, and changed their name":   {[]string{"invite", "join", "join"}, []int{1, 2, 3}},
		"knocked and was let in":            {[]string{"knock", "invite", "join"}, []int{2, 3}},
		"came back, and changed their name": {[]string{"invite", "join", "leave", "join", "join"}, []int{4, 5}},
		"a membership that cannot be read":  {[]string{"invite", "?", "join"}, []int{3}},
		"is not in the room any more":       {[]string{"invite", "join", "leave"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			alice := w.device("alice", "ALICE1")
			carol := id.UserID("@carol:" + testServer)
			room := w.createRoom(alice, CreateOptions{Public: true, History: "invited", Policy: func(p *rooms.Policy) { p.History = rooms.HistoryShared }})
			w.settle()
			said := []id.EventID{w.send(alice, room, "said 0")}
			for i, membership := range tc.memberships {
				w.s.mu.Lock()
				alice.hs.putState(room, rooms.TypeMember, string(carol), map[string]string{"membership": membership})
				w.s.mu.Unlock()
				said = append(said, w.send(alice, room, fmt.Sprint("said ", i+1)))
			}
			grant, err := alice.granted(w.ctx, room, carol)
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for i, evt := range said {
				if grant[evt] {
					got = append(got, i)
				}
			}
			if !slices.Equal(got, tc.want) || len(grant) != len(got) {
				t.Errorf("carol may be given %v of %d, want %v", got, len(grant), tc.want)
			}
		})
	}
}

// TestWhoJoinsAPublicRoomGetsNothingFromBefore: the same, from end to end.
func TestWhoJoinsAPublicRoomGetsNothingFromBefore(t *testing.T) {
	w := newWorld(t)
	alice := w.device("alice", "ALICE1")
	room := w.createRoom(alice, CreateOptions{Public: true, History: "invited", Policy: func(p *rooms.Policy) { p.History = rooms.HistoryShared }})
	w.settle()
	w.send(alice, room, "before")
	carol := w.asking("carol", "CAROL1")
	w.join(carol, room)
	w.settle()
	if got := carol.bodies(room); len(got) != 0 {
		t.Errorf("carol has %q", got)
	}
	if got := carol.history(); len(got) == 0 || !got[0].Last {
		t.Errorf("carol was told %+v", got)
	}
}

// TestAChangeOfVisibilityKeepsWhatWasBeforeItClosed: a room that is opened does not open what was said in it while it was closed.
func TestAChangeOfVisibilityKeepsWhatWasBeforeItClosed(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.device("alice", "ALICE1"), w.device("bob", "BOB1")
	room := w.createRoom(alice, CreateOptions{History: "joined", Policy: func(p *rooms.Policy) { p.History = rooms.HistoryShared }})
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.join(bob, room)
	w.send(bob, room, "closed")
	w.s.mu.Lock()
	alice.hs.putState(room, rooms.TypeHistoryVisibility, "", map[string]string{"history_visibility": "shared"})
	w.s.mu.Unlock()
	w.settle()
	w.send(bob, room, "open")
	carol := w.asking("carol", "CAROL1")
	w.must(func() error { return alice.Invite(w.ctx, room, carol.UserID()) })
	w.join(carol, room)
	w.settle()
	if got := carol.bodies(room); !slices.Equal(got, []string{"open"}) {
		t.Errorf("carol has %q", got)
	}
	// What others shared with carol stays theirs to share: dave, whom carol
	// invites, gets of it nothing on carol's word.
	dave := w.asking("dave", "DAVE1")
	w.must(func() error {
		return alice.ChangePolicy(w.ctx, room, func(p *rooms.Policy) { p.Admit = rooms.AdmitMembers })
	})
	w.s.mu.Lock()
	alice.hs.putState(room, rooms.TypePowerLevels, "", map[string]any{"users": map[id.UserID]int{alice.UserID(): 100, carol.UserID(): 50}})
	w.s.mu.Unlock()
	w.settle()
	w.must(func() error { return carol.Invite(w.ctx, room, dave.UserID()) })
	dave.turn() // who has not seen the invite does not know whom to ask
	w.join(dave, room)
	w.settle()
	if got := dave.bodies(room); len(got) != 0 {
		t.Errorf("dave has %q", got)
	}
	if got := dave.history(); len(got) == 0 || got[0].Own || got[0].User != carol.UserID() || got[0].Messages != 0 {
		t.Errorf("dave was told %+v", got)
	}
}
