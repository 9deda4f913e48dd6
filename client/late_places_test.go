package client

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestForgedLateCommitsTakeNoPlaceOfOthers: whoever sends many commits that claim to be
// old, alone or with other users of their server, pushes out their own.
func TestForgedLateCommitsTakeNoPlaceOfOthers(t *testing.T) {
	for _, users := range []int{1, 40} {
		r := new(room)
		n := byte(0)
		add := func(by id.UserID) rooms.Hash {
			n++
			l := lateCommit{Ref: rooms.Hash{n}, Delay: time.Hour, By: by}
			r.keepLate(l)
			return l.Ref
		}
		honest := []rooms.Hash{add("@alice:one.example"), add("@bob:two.example"), add("@bea:two.example")}
		var forged rooms.Hash
		for i := range 150 {
			forged = add(id.UserID(fmt.Sprintf("@mallory%d:three.example", i%users)))
		}
		kept := func(ref rooms.Hash) bool {
			return slices.ContainsFunc(r.rec.Late, func(l lateCommit) bool { return l.Ref == ref })
		}
		if len(r.rec.Late) != maxLateCommits || slices.ContainsFunc(honest, func(h rooms.Hash) bool { return !kept(h) }) || !kept(forged) {
			t.Errorf("%d users of one server: %d are kept, those of the others %v, the newest %v", users, len(r.rec.Late),
				[]bool{kept(honest[0]), kept(honest[1]), kept(honest[2])}, kept(forged))
		}
	}
	// Of one server's users the one who sends the most gives way.
	r := new(room)
	for i := range 100 {
		r.keepLate(lateCommit{Ref: rooms.Hash{1, byte(i)}, By: "@mallory:one.example"})
		if i%10 == 0 {
			r.keepLate(lateCommit{Ref: rooms.Hash{2, byte(i)}, By: "@alice:one.example"})
		}
	}
	if n := len(slices.DeleteFunc(slices.Clone(r.rec.Late), func(l lateCommit) bool { return l.By != "@alice:one.example" })); n != 10 {
		t.Errorf("%d of alice's 10 are kept", n)
	}
}
