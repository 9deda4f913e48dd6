package mls_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"log"

	"github.com/matrix-mls/matrix-mls/mls"
)

const suite = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519

// client is what an application keeps for one of its devices.
type client struct {
	name   string
	key    mls.SignaturePrivateKey
	bundle *mls.KeyPackageBundle
	group  *mls.Group
}

// newClient makes a signature key, and a KeyPackage for others to add the
// client with.
func newClient(name string) *client {
	key, err := mls.GenerateSignatureKey(suite, rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	bundle, err := mls.NewKeyPackage(nil, suite, key, mls.LeafOptions{Credential: mls.BasicCredential([]byte(name))})
	if err != nil {
		log.Fatal(err)
	}
	return &client{name: name, key: key, bundle: bundle}
}

// create makes a group with one member.
func (c *client) create() {
	var err error
	c.group, err = mls.CreateGroup(nil, suite, []byte("group 1"), c.key, mls.LeafOptions{Credential: mls.BasicCredential([]byte(c.name))}, nil)
	if err != nil {
		log.Fatal(err)
	}
}

// add adds another client, which joins at once.
func (c *client) add(other *client) {
	m, err := mls.ParseMessage(other.bundle.Message()) // as it came from a key server
	if err != nil {
		log.Fatal(err)
	}
	commit, err := c.group.Commit(mls.CommitOptions{
		Proposals:          []mls.Proposal{mls.Add(m.KeyPackage())},
		WelcomeRatchetTree: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	// Once the delivery service has accepted the Commit:
	c.group = commit.Merge()
	other.join(commit.Welcome())
}

// join joins a group by a Welcome.
func (c *client) join(welcome []byte) {
	m, err := mls.ParseMessage(welcome)
	if err != nil {
		log.Fatal(err)
	}
	if c.group, err = mls.JoinWelcome(nil, m, c.bundle, mls.JoinOptions{}); err != nil {
		log.Fatal(err)
	}
}

// receive processes a message that was sent to the group.
func (c *client) receive(raw []byte) {
	m, err := mls.ParseMessage(raw)
	if err != nil {
		log.Fatal(err)
	}
	p, err := c.group.Process(m)
	if err != nil {
		log.Fatal(err)
	}
	switch p := p.(type) {
	case *mls.ApplicationMessage:
		leaf, _ := c.group.Leaf(p.Sender)
		fmt.Printf("%s reads %q from %s\n", c.name, p.Plaintext, leaf.Credential.Identity)
	case *mls.ProposalMessage:
		fmt.Printf("%s keeps a proposal\n", c.name)
	case *mls.StagedCommit:
		if p.SelfRemoved() {
			fmt.Printf("%s was removed\n", c.name)
			return
		}
		c.group = p.Merge()
		fmt.Printf("%s is in epoch %d with %d members\n", c.name, c.group.Epoch(), c.group.MemberCount())
	}
}

func ExampleCreateGroup() {
	alice := newClient("alice")
	group, err := mls.CreateGroup(nil, suite, []byte("group 1"), alice.key, mls.LeafOptions{
		Credential: mls.BasicCredential([]byte("alice")),
	}, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(group.CipherSuite(), "epoch", group.Epoch(), "members", group.MemberCount())
	// Output: MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519 epoch 0 members 1
}

func ExampleJoinWelcome() {
	alice, bob := newClient("alice"), newClient("bob")
	alice.create()

	// Alice adds Bob with the KeyPackage that he published.
	kp, err := mls.ParseMessage(bob.bundle.Message())
	if err != nil {
		log.Fatal(err)
	}
	commit, err := alice.group.Commit(mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(kp.KeyPackage())}})
	if err != nil {
		log.Fatal(err)
	}
	// The Commit goes to the group. Once it is accepted, Alice merges it and
	// sends Bob his Welcome and, beside it, the ratchet tree.
	alice.group = commit.Merge()
	raw, err := commit.WelcomeFor(bob.bundle.Ref())
	if err != nil {
		log.Fatal(err)
	}
	welcome, err := mls.ParseMessage(raw)
	if err != nil {
		log.Fatal(err)
	}
	bob.group, err = mls.JoinWelcome(nil, welcome, bob.bundle, mls.JoinOptions{RatchetTree: alice.group.RatchetTree()})
	if err != nil {
		log.Fatal(err)
	}
	for i, leaf := range bob.group.Members() {
		fmt.Println(i, string(leaf.Credential.Identity))
	}
	// Output:
	// 0 alice
	// 1 bob
}

func ExampleGroup_Encrypt() {
	alice, bob := newClient("alice"), newClient("bob")
	alice.create()
	alice.add(bob)

	message, err := alice.group.Encrypt([]byte("hello"), nil)
	if err != nil {
		log.Fatal(err)
	}
	// Store this before the message leaves.
	_ = alice.group.RatchetState()
	bob.receive(message)
	// Output: bob reads "hello" from alice
}

// What arrives is parsed, processed, and then is one of three things.
func ExampleGroup_Process() {
	alice, bob := newClient("alice"), newClient("bob")
	alice.create()
	alice.add(bob)
	text, err := alice.group.Encrypt([]byte("hello"), []byte("sent from work"))
	if err != nil {
		log.Fatal(err)
	}
	commit, err := alice.group.Commit(mls.CommitOptions{})
	if err != nil {
		log.Fatal(err)
	}

	for _, raw := range [][]byte{text, text, commit.Message()} {
		m, err := mls.ParseMessage(raw)
		if err != nil {
			log.Fatal(err)
		}
		p, err := bob.group.Process(m)
		var refused *mls.ValidationError
		if errors.As(err, &refused) {
			fmt.Println("refused:", refused.Rule)
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		switch p := p.(type) {
		case *mls.ApplicationMessage:
			fmt.Printf("%q, with %q for all to see\n", p.Plaintext, p.AuthenticatedData)
		case *mls.ProposalMessage: // kept until somebody commits it
		case *mls.StagedCommit: // changes nothing until it is merged
			bob.group = p.Merge()
			fmt.Println("epoch", bob.group.Epoch())
		}
	}
	// Output:
	// "hello", with "sent from work" for all to see
	// refused: framing/generation-consumed
	// epoch 2
}

// Members derive the same secrets for use outside of MLS; nobody else can.
func ExampleGroup_Export() {
	alice, bob := newClient("alice"), newClient("bob")
	alice.create()
	alice.add(bob)

	key, err := alice.group.Export("call encryption", []byte("call 7"), 32)
	if err != nil {
		log.Fatal(err)
	}
	same, err := bob.group.Export("call encryption", []byte("call 7"), 32)
	if err != nil {
		log.Fatal(err)
	}
	other, err := bob.group.Export("call encryption", []byte("call 8"), 32)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(key), bytes.Equal(key, same), bytes.Equal(key, other))
	// Output: 32 true false
}

// A secret that the members share already, such as one from a QR code, goes
// into the keys of the next epoch.
func ExamplePSK() {
	secrets := map[string][]byte{"shown as a QR code": []byte("a secret of 32 bytes, or of more")}
	cfg := &mls.Config{PSK: func(id mls.PreSharedKeyID) ([]byte, bool) {
		secret, ok := secrets[string(id.ID)]
		return secret, ok
	}}
	alice := newClient("alice")
	group, err := mls.CreateGroup(cfg, suite, []byte("group 1"), alice.key, mls.LeafOptions{
		Credential: mls.BasicCredential([]byte("alice")),
	}, nil)
	if err != nil {
		log.Fatal(err)
	}
	commit, err := group.Commit(mls.CommitOptions{Proposals: []mls.Proposal{mls.PSK(mls.PreSharedKeyID{
		Type: mls.PSKTypeExternal, ID: []byte("shown as a QR code"),
	})}})
	if err != nil {
		log.Fatal(err)
	}
	// A member without the secret refuses this Commit.
	group = commit.Merge()
	fmt.Println("epoch", group.Epoch())
	// Output: epoch 1
}

// A Commit without proposals gives the committer's part of the tree new keys:
// whoever knew the old ones is locked out.
func ExampleGroup_Commit_update() {
	alice, bob := newClient("alice"), newClient("bob")
	alice.create()
	alice.add(bob)

	commit, err := bob.group.Commit(mls.CommitOptions{})
	if err != nil {
		log.Fatal(err)
	}
	alice.receive(commit.Message())
	bob.group = commit.Merge()
	fmt.Println("same epoch:", bytes.Equal(alice.group.EpochAuthenticator(), bob.group.EpochAuthenticator()))
	// Output:
	// alice is in epoch 2 with 2 members
	// same epoch: true
}

func ExampleGroup_Commit_remove() {
	alice, bob, carol := newClient("alice"), newClient("bob"), newClient("carol")
	alice.create()
	alice.add(bob)
	commit, err := alice.group.Commit(mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(carol.bundle.KeyPackage())}, WelcomeRatchetTree: true})
	if err != nil {
		log.Fatal(err)
	}
	alice.group = commit.Merge()
	bob.receive(commit.Message())
	carol.join(commit.Welcome())

	commit, err = alice.group.Commit(mls.CommitOptions{Proposals: []mls.Proposal{mls.Remove(bob.group.OwnLeafIndex())}})
	if err != nil {
		log.Fatal(err)
	}
	alice.group = commit.Merge()
	bob.receive(commit.Message())
	carol.receive(commit.Message())
	// Output:
	// bob is in epoch 2 with 3 members
	// bob was removed
	// carol is in epoch 3 with 2 members
}

// Proposals come first, and any member may commit them.
func ExampleGroup_Propose() {
	alice, bob := newClient("alice"), newClient("bob")
	alice.create()
	alice.add(bob)

	proposal, _, err := bob.group.ProposeUpdate(nil, mls.FramingOptions{})
	if err != nil {
		log.Fatal(err)
	}
	alice.receive(proposal)
	commit, err := alice.group.Commit(mls.CommitOptions{Pending: true})
	if err != nil {
		log.Fatal(err)
	}
	alice.group = commit.Merge()
	bob.receive(commit.Message())
	// Output:
	// alice keeps a proposal
	// bob is in epoch 2 with 2 members
}

func ExampleExternalJoin() {
	alice, bob := newClient("alice"), newClient("bob")
	alice.create()
	raw, err := alice.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	if err != nil {
		log.Fatal(err)
	}

	// Bob finds the GroupInfo and lets himself in.
	info, err := mls.ParseMessage(raw)
	if err != nil {
		log.Fatal(err)
	}
	commit, err := mls.ExternalJoin(nil, info, bob.key, mls.ExternalJoinOptions{
		Leaf: mls.LeafOptions{Credential: mls.BasicCredential([]byte("bob"))},
	})
	if err != nil {
		log.Fatal(err)
	}
	alice.receive(commit.Message())
	bob.group = commit.Merge()

	message, err := bob.group.Encrypt([]byte("hello"), nil)
	if err != nil {
		log.Fatal(err)
	}
	alice.receive(message)
	// Output:
	// alice is in epoch 1 with 2 members
	// alice reads "hello" from bob
}

// A server that has no secrets checks Commits and follows the tree.
func ExampleNewPublicGroup() {
	alice, bob := newClient("alice"), newClient("bob")
	alice.create()
	raw, err := alice.group.GroupInfo(mls.GroupInfoOptions{})
	if err != nil {
		log.Fatal(err)
	}
	info, err := mls.ParseMessage(raw)
	if err != nil {
		log.Fatal(err)
	}
	server, err := mls.NewPublicGroup(nil, info, alice.group.RatchetTree())
	if err != nil {
		log.Fatal(err)
	}

	commit, err := alice.group.Commit(mls.CommitOptions{Proposals: []mls.Proposal{mls.Add(bob.bundle.KeyPackage())}})
	if err != nil {
		log.Fatal(err)
	}
	m, err := mls.ParseMessage(commit.Message())
	if err != nil {
		log.Fatal(err)
	}
	p, err := server.Process(m)
	if err != nil {
		log.Fatal(err)
	}
	server = p.(*mls.PublicStagedCommit).Merge()
	fmt.Println("epoch", server.Epoch(), "members", server.MemberCount())
	// Output: epoch 1 members 2
}

// State comes in two parts: one for the epoch, one that messages change.
func ExampleLoadGroup() {
	alice := newClient("alice")
	alice.create()
	epoch, ratchets := alice.group.EpochState(), alice.group.RatchetState()

	group, err := mls.LoadGroup(nil, epoch, ratchets)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("epoch", group.Epoch(), "members", group.MemberCount())
	// Output: epoch 0 members 1
}

// In a large group, what an epoch and a message change is little: a head and a
// delta of the tree, and pages of the ratchets.
func ExampleStoredGroup_Load() {
	alice, bob := newClient("alice"), newClient("bob")
	alice.create()
	alice.add(bob)
	stored := mls.StoredGroup{Head: alice.group.EpochHead(), Tree: alice.group.RatchetTree(), RatchetState: alice.group.RatchetState()}

	// The next epoch: what is new of it is all that is written.
	commit, err := alice.group.Commit(mls.CommitOptions{})
	if err != nil {
		log.Fatal(err)
	}
	next := commit.Merge()
	stored.Head = next.EpochHead()
	stored.Deltas = append(stored.Deltas, next.TreeDelta(alice.group))
	stored.RatchetState = next.RatchetState()

	group, err := stored.Load(nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("epoch", group.Epoch(), "members", group.MemberCount())
	// Output: epoch 2 members 2
}

// A ReInit closes a group. Its members go on in another, of another suite if
// need be, to which the old one's resumption PSK binds it.
func ExampleGroup_ReInitGroup() {
	const next = mls.MLS_256_DHKEMX448_AES256GCM_SHA512_Ed448
	alice, bob := newClient("alice"), newClient("bob")
	alice.create()
	alice.add(bob)
	reinit := mls.ReInit{GroupID: []byte("group 2"), Version: mls.MLS10, CipherSuite: next}
	commit, err := alice.group.Commit(mls.CommitOptions{Proposals: []mls.Proposal{reinit.Proposal()}})
	if err != nil {
		log.Fatal(err)
	}
	bob.receive(commit.Message())
	alice.group = commit.Merge()
	_, err = alice.group.Encrypt([]byte("too late"), nil)
	fmt.Println(err)

	// New keys and key packages, in the new suite.
	fresh := func(name string) (mls.SignaturePrivateKey, *mls.KeyPackageBundle) {
		key, err := mls.GenerateSignatureKey(next, rand.Reader)
		if err != nil {
			log.Fatal(err)
		}
		bundle, err := mls.NewKeyPackage(nil, next, key, mls.LeafOptions{Credential: mls.BasicCredential([]byte(name))})
		if err != nil {
			log.Fatal(err)
		}
		return key, bundle
	}
	key, _ := fresh("alice")
	_, bundle := fresh("bob")
	founding, err := alice.group.ReInitGroup(key, mls.LeafOptions{Credential: mls.BasicCredential([]byte("alice"))},
		[]*mls.KeyPackage{bundle.KeyPackage()}, mls.CommitOptions{WelcomeRatchetTree: true})
	if err != nil {
		log.Fatal(err)
	}
	welcome, err := mls.ParseMessage(founding.Welcome())
	if err != nil {
		log.Fatal(err)
	}
	alice.group = founding.Merge()
	bob.group, err = mls.JoinWelcome(nil, welcome, bundle, mls.JoinOptions{Resumption: []*mls.Group{bob.group}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(bob.group.CipherSuite(), "epoch", bob.group.Epoch(), "members", bob.group.MemberCount())
	// Output:
	// bob is in epoch 2 with 2 members
	// mls: framing/group-closed (RFC 9420, Section 12.4.2): the group is closed by a ReInit
	// MLS_256_DHKEMX448_AES256GCM_SHA512_Ed448 epoch 1 members 2
}

// Who leaves asks for it, and the others commit that: alone, nobody can.
func ExampleSelfRemove() {
	alice, bob := newClient("alice"), newClient("bob")
	caps := mls.DefaultCapabilities()
	caps.Proposals = append(caps.Proposals, mls.ProposalTypeSelfRemove)
	leaf := func(name string) mls.LeafOptions {
		return mls.LeafOptions{Credential: mls.BasicCredential([]byte(name)), Capabilities: &caps}
	}
	var err error
	if bob.bundle, err = mls.NewKeyPackage(nil, suite, bob.key, leaf("bob")); err != nil {
		log.Fatal(err)
	}
	if alice.group, err = mls.CreateGroup(nil, suite, []byte("group 1"), alice.key, leaf("alice"), nil); err != nil {
		log.Fatal(err)
	}
	alice.add(bob)

	proposal, _, err := bob.group.Propose(mls.SelfRemove(), mls.FramingOptions{})
	if err != nil {
		log.Fatal(err)
	}
	alice.receive(proposal)
	commit, err := alice.group.Commit(mls.CommitOptions{Pending: true})
	if err != nil {
		log.Fatal(err)
	}
	alice.group = commit.Merge()
	bob.receive(commit.Message())
	fmt.Println("members", alice.group.MemberCount())
	// Output:
	// alice keeps a proposal
	// bob was removed
	// members 1
}
