package rooms_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// The creator of a room makes the first epoch of its group: the policy names
// the room and the module that orders commits.
func Example_create() {
	const suite = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	receiptKey := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	policy := rooms.DefaultPolicy("!room:example.org", "@alice:example.org",
		federation.Sequencer{Server: "example.org", User: "@_mls_bot:example.org", ReceiptKey: receiptKey})
	extensions, err := rooms.GroupExtensions(policy, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	cfg := &mls.Config{Authenticator: rooms.Authenticator{}}
	key, err := mls.GenerateSignatureKey(suite, rand.Reader)
	if err != nil {
		fmt.Println(err)
		return
	}
	device := rooms.Credential{User: "@alice:example.org", Device: "PHONE", Key: key.Public()}
	group, err := mls.CreateGroup(cfg, suite, make([]byte, rooms.GroupIDSize), key, rooms.LeafOptions(device), extensions)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, leaf := range rooms.GroupLeaves(group) {
		fmt.Println(leaf.Index, leaf.Cred)
	}
	read, err := rooms.PolicyOf(group)
	fmt.Println(read.Room, read.IsAdmin("@alice:example.org"), err)
	// Output:
	// 0 @alice:example.org PHONE
	// !room:example.org true <nil>
}

// Whatever does not decode is refused under a rule that tells why.
func ExampleDecodeCommit() {
	_, err := rooms.DecodeCommit(json.RawMessage(`{"epoch": 1, "epoch": 2}`))
	fmt.Println(rooms.RuleOf(err))
	_, err = rooms.DecodeCommit(json.RawMessage(`{}`))
	fmt.Println(rooms.RuleOf(err))
	// Output:
	// matrix/hostile-json
	// matrix/redacted-commit
}

// State takes away, admissions give: Bob left, Carol is in the room but nobody
// admitted her.
func ExampleMakePlan() {
	state := rooms.NewRoomState("!room:example.org")
	for user, membership := range map[id.UserID]rooms.Membership{"@alice:example.org": "join", "@bob:example.net": "leave", "@carol:example.com": "join"} {
		state.Members[user] = rooms.Member{Membership: membership}
	}
	plan := rooms.MakePlan(rooms.Inputs{
		State:  state,
		Policy: rooms.DefaultPolicy("!room:example.org", "@alice:example.org"),
		Leaves: []rooms.GroupLeaf{
			{Index: 0, Cred: rooms.Credential{User: "@alice:example.org", Device: "PHONE"}},
			{Index: 1, Cred: rooms.Credential{User: "@bob:example.net", Device: "LAPTOP"}},
		},
	})
	for _, r := range plan.Removes {
		fmt.Println("remove", r.Cred, r.Reason)
	}
	fmt.Println(len(plan.Adds), "adds")
	fmt.Println(rooms.RuleOf(plan.Waiting[0]))
	fmt.Println(rooms.RuleOf(plan.Barrier()))
	// Output:
	// remove @bob:example.net LAPTOP left
	// 0 adds
	// matrix/room-member-not-in-group
	// matrix/member-not-in-room
}

// A message is padded, bound to its room, and keeps its id when it is encrypted
// again.
func ExamplePlaintext() {
	p := &rooms.Plaintext{
		Type: "m.room.message", Content: json.RawMessage(`{"msgtype":"m.text","body":"hello"}`),
		Room: "!room:example.org", MessageID: rooms.NewMessageID([16]byte{1}),
	}
	raw, err := p.Encode()
	fmt.Println(len(raw), err)
	_, err = rooms.DecodePlaintext(raw, "!elsewhere:example.org")
	fmt.Println(rooms.RuleOf(err))
	// Output:
	// 256 <nil>
	// matrix/room-not-group
}
