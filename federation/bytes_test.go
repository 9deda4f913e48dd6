package federation_test

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestSignedBytes compares one receipt and statement of each kind, its signed
// bytes and its hash with vectors/bytes.txt, which -update writes.
func TestSignedBytes(t *testing.T) {
	const room, suite = "!room:example.org", mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	seed := func(b byte) []byte { return bytes.Repeat([]byte{b}, ed25519.SeedSize) }
	ref := func(name string) federation.Ref { return sha256.Sum256([]byte(name)) }
	receiptKey := ed25519.NewKeyFromSeed(seed(1))
	leafKey, err := mls.ParseSignaturePrivateKey(suite, seed(2))
	if err != nil {
		t.Fatal(err)
	}
	scope, group := federation.Scope{Room: room}, federation.Scope{Room: room, Group: []byte("group id")}
	var out bytes.Buffer
	show := func(kind string, content any, signed []byte, more ...string) {
		raw, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "\n%s\ncontent %s\nsigned %x\n", kind, raw, signed)
		for i := 0; i < len(more); i += 2 {
			fmt.Fprintf(&out, "%s %s\n", more[i], more[i+1])
		}
	}
	fmt.Fprintf(&out, "# Examples for docs/epochs.md, section 3, in hex. Room %s, group id %x (\"group id\").\n", room, group.Group)
	fmt.Fprintf(&out, "# The receipt key has the seed 01 … 01, the leaf key (suite 1) the seed 02 … 02. A ref \"a\" is SHA-256(\"a\").\n")
	fmt.Fprintf(&out, "receipt_key %x\nleaf_key %x\n", receiptKey.Public(), ed25519.NewKeyFromSeed(seed(2)).Public())

	applied, err := rooms.SignApplied(suite, leafKey, group, ref("b"), 300, []byte("epoch authenticator"))
	if err != nil {
		t.Fatal(err)
	}
	show("applied", rooms.AppliedOf(applied), applied.Content(group))
	rejected, err := rooms.SignReject(suite, leafKey, group, ref("b"), 1, "update-path/decrypt")
	if err != nil {
		t.Fatal(err)
	}
	show("reject", rooms.RejectOf(rejected), rejected.Content(group))

	var prev federation.Ref
	counter := uint64(0)
	receipt := func(kind string, r federation.Receipt, chain *federation.Chain) {
		counter++
		*chain = federation.Chain{Counter: counter, Prev: prev}
		if err := r.Sign(scope, receiptKey); err != nil {
			t.Fatal(err)
		}
		prev = r.Hash(scope)
		_, content := rooms.ReceiptOf(r)
		show(kind, content, r.SignedBytes(scope), "hash", prev.String())
	}
	vote := &federation.Vote{Config: ref("root"), Ref: ref("b"), Proofs: []federation.Proof{{Applied: applied}, {Commit: ref("c")}}}
	receipt("vote", vote, &vote.Chain)
	promise := &federation.Promise{Config: ref("root"), Ballot: federation.Ballot{Round: 1, Rank: 0},
		LastVote: &federation.LastVote{Ref: ref("b"), Proofs: vote.Proofs}}
	receipt("promise", promise, &promise.Chain)
	bare := &federation.Promise{Config: ref("root"), Ballot: federation.Ballot{Round: 2, Rank: 1}}
	receipt("promise without a last vote", bare, &bare.Chain)
	ready := &federation.Ready{Config: ref("l")}
	receipt("ready", ready, &ready.Chain)
	accept := &federation.Accept{Config: ref("root"), Ballot: federation.Ballot{Round: 1, Rank: 0}, Ref: ref("b"), Parent: ref("a"), Epoch: 2,
		Promises: []*federation.Promise{promise}, Votes: []*federation.Vote{vote}}
	receipt("accept", accept, &accept.Chain)
	provisional := &federation.Accept{Config: ref("root"), Provisional: true, Ref: ref("b"), Parent: ref("a"), Epoch: 2}
	receipt("provisional accept", provisional, &provisional.Chain)

	fmt.Fprintf(&out, "\nheirs' co-signature, era 1 on \"b\" with the receipt key above as only sequencer\nsigned %x\n",
		rooms.EraContent(group.Group, 1, ref("b"), []federation.Sequencer{{Server: "example.org", User: "@_mls_bot:example.org",
			ReceiptKey: receiptKey.Public().(ed25519.PublicKey)}}))
	raw := publishedCommit(t)
	m, err := mls.ParseMessage(raw)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rooms.CommitRef(m)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "\nref of a commit (a member's, in the published MLS vector messages.json, first public_message_commit)\nmessage %x\nref %s\n", raw, r)

	const file = "vectors/bytes.txt"
	if *update {
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("got\n%s\nwant\n%s", out.Bytes(), want)
	}
}

func publishedCommit(t *testing.T) []byte {
	t.Helper()
	f, err := os.Open("../mls/testdata/vectors/messages.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all []struct {
		Commit string `json:"public_message_commit"`
	}
	if err := json.NewDecoder(z).Decode(&all); err != nil || len(all) == 0 {
		t.Fatalf("no vector: %v", err)
	}
	raw, err := hex.DecodeString(all[0].Commit)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
