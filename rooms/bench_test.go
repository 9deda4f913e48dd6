package rooms

import (
	"fmt"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
)

// BenchmarkPlan compares a room of 5,000 members with its group, as every
// change of membership does.
func BenchmarkPlan(b *testing.B) {
	in := Inputs{State: NewRoomState(testRoom), Policy: testPolicy(), Devices: map[id.UserID][]Device{}}
	for i := range 5000 {
		u := id.UserID(fmt.Sprintf("@member%d:example.org", i))
		in.State.Members[u] = Member{Membership: MembershipJoin}
		in.Leaves = append(in.Leaves, leafOf(mls.LeafIndex(i), u, "A"))
		in.Devices[u] = []Device{deviceOf(u, "A")}
	}
	b.ReportAllocs()
	for b.Loop() {
		if p := MakePlan(in); !p.Empty() {
			b.Fatalf("plan %+v", p)
		}
	}
}

// BenchmarkDecodeCommit reads the largest commit that fits into an event.
func BenchmarkDecodeCommit(b *testing.B) {
	raw, err := Encode(&CommitContent{Epoch: 2, Parent: Hash{1}, Message: make(Bytes, MaxInline-300), GroupInfo: make(Bytes, 254)})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeCommit(raw); err != nil {
			b.Fatal(err)
		}
	}
}
