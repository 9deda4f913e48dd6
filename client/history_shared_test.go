package client

import (
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
	w.join(dave, room)
	w.settle()
	if got := dave.bodies(room); len(got) != 0 {
		t.Errorf("dave has %q", got)
	}
	if got := dave.history(); len(got) == 0 || got[0].Own || got[0].User != carol.UserID() || got[0].Messages != 0 {
		t.Errorf("dave was told %+v", got)
	}
}
