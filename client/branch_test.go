package client

import (
	"crypto/ed25519"
	"crypto/rand"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestNewcomersJoinInNoBranchBesideItsProof: somebody who was removed, and is in the public
// room again, posts a head with the honest module's proof, and beside it the GroupInfo and the
// tree of a branch of their own, of the same epoch number, whose list of modules is theirs.
func TestNewcomersJoinInNoBranchBesideItsProof(t *testing.T) {
	w := newWorld(t)
	alice, mallory := w.device("alice", "ALICE1"), w.device("1mallory", "MALLORY1")
	room := w.createRoom(alice, CreateOptions{Public: true, History: "joined", Policy: func(p *rooms.Policy) { p.Join = rooms.JoinAdmitted }})
	w.settle()
	w.must(func() error { return alice.Invite(w.ctx, room, mallory.UserID()) })
	w.join(mallory, room)
	w.settle()
	w.sameEpoch(room, alice, mallory)

	mallory.mu.Lock()
	r := mallory.rooms[room]
	e := r.head()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := rooms.PolicyOf(e.group)
	if err != nil {
		t.Fatal(err)
	}
	policy.Sequencers = federation.List{{Server: testServer, User: string(mallory.UserID()), ReceiptKey: pub}}
	exts, err := mallory.nextExtensions(r, e, policy)
	if err != nil {
		t.Fatal(err)
	}
	aad, _ := (&rooms.CommitAAD{Parent: e.ref}).Encode()
	staged, err := e.group.Commit(mls.CommitOptions{Proposals: []mls.Proposal{mls.GroupContextExtensions(exts)}, ForcePath: true, AuthenticatedData: aad})
	if err != nil {
		t.Fatal(err)
	}
	evil := staged.Merge()
	mallory.mu.Unlock()

	w.must(func() error { return alice.Kick(w.ctx, room, mallory.UserID(), "") })
	w.settle()
	w.join(mallory, room) // the room is public; the group is not
	w.settle()
	bob := w.device("bob", "BOB1")
	w.must(func() error { return alice.Invite(w.ctx, room, bob.UserID()) })
	w.settle(alice, mallory)

	alice.mu.Lock()
	honest := *alice.rooms[room].state.head(botOf(testServer))
	alice.mu.Unlock()
	for evil.Epoch() < honest.Accepted.Epoch {
		aad, _ := (&rooms.CommitAAD{Parent: e.ref}).Encode()
		staged, err := evil.Commit(mls.CommitOptions{ForcePath: true, AuthenticatedData: aad})
		if err != nil {
			t.Fatal(err)
		}
		evil = staged.Merge()
	}
	forged := honest
	if forged.GroupInfo, err = evil.GroupInfo(mls.GroupInfoOptions{ExternalPub: true}); err != nil {
		t.Fatal(err)
	}
	forged.ReceiptKey = rooms.Bytes(pub)
	forged.Snapshot = &rooms.Snapshot{Tree: evil.RatchetTree(), TreeHash: evil.TreeHash(), AtCommit: honest.Accepted.Ref}
	raw, err := rooms.Encode(&forged)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mallory.hs.SendState(w.ctx, room, rooms.TypeHead, string(mallory.UserID()), raw); err != nil {
		t.Fatal(err)
	}
	// Alice is offline: bob comes in by himself.
	bob.turn()
	joined := make(chan error, 1)
	go func() { _, err := bob.Join(w.ctx, string(room), nil); joined <- err }()
	by := id.UserID("")
	for range 60 {
		bob.turn()
		w.order()
		w.now.add(2e9)
		bob.mu.Lock()
		if r := bob.rooms[room]; r != nil && by == "" {
			by = r.joinBy
		}
		bob.mu.Unlock()
	}
	if by != botOf(testServer) {
		t.Errorf("it joins at the head of %q", by)
	}
	bob.mu.Lock()
	r = bob.rooms[room]
	forgedHead := r.state.head(mallory.UserID())
	if forgedHead == nil {
		t.Error("the forged head is not there: the test shows nothing")
	} else if _, err := bob.proofOf(r, mallory.UserID(), forgedHead); err != nil {
		t.Errorf("its proof is not the honest one: %v", err)
	}
	bob.mu.Unlock()
}
