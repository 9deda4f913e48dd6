package client

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func rejectReplay(t *testing.T) {
	x := newRefusing(t)
	x.send(x.bob, x.room, "once")
	x.settle()
	original := x.last(rooms.TypeEncrypted)
	x.wantRefused("framing/generation-consumed", 2, func() {
		x.show(x.byBob(rooms.TypeEncrypted, original.Content))
		x.show(x.byBob(rooms.TypeEncrypted, original.Content))
	})
	x.alice.wantTexts("once")
	x.carol.wantTexts("once")
	// Commits and receipts under other ids have one effect.
	before := x.picture(x.alice)
	for _, eventType := range []string{rooms.TypeCommit, rooms.TypeAccept, rooms.TypeVote, rooms.TypeApplied} {
		evt := x.last(eventType)
		x.show(&Event{Type: eventType, Sender: evt.Sender, Content: evt.Content})
	}
	x.settle(x.alice, x.carol)
	if x.picture(x.alice) != before {
		t.Error("a replayed event had an effect")
	}
	x.wantWorks()
}

// Two commits at once, and carol's server shows them to her the other way round.
func rejectForgedOrder(t *testing.T) {
	x := newRefusing(t)
	dave, erin := x.device("dave", "DAVE1"), x.device("erin", "ERIN1")
	x.settle()
	for _, err := range []error{x.alice.Invite(x.ctx, x.room, dave.UserID()), x.bob.Invite(x.ctx, x.room, erin.UserID())} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before := len(x.s.log)
	for _, d := range []*testDevice{x.alice, x.bob} {
		d.Step(x.ctx)
		d.Flush(x.ctx)
	}
	x.module.turn()
	for range 3 {
		x.alice.turn()
		x.bob.turn()
		x.module.turn()
	}
	x.s.mu.Lock()
	turned := slices.Clone(x.s.log[before:])
	slices.Reverse(turned)
	kept := slices.Clone(x.s.log)
	copy(x.s.log[before:], turned)
	x.s.mu.Unlock()
	commits := 0
	for _, evt := range turned {
		if evt.Type == rooms.TypeCommit {
			commits++
		}
	}
	if commits < 2 {
		t.Fatalf("%d commits, want a race", commits)
	}
	x.carol.turn()
	x.s.mu.Lock()
	copy(x.s.log, kept)
	x.s.mu.Unlock()
	x.settle()
	x.join(dave, x.room)
	x.join(erin, x.room)
	x.settle()
	x.sameEpoch(x.room, x.alice, x.bob, x.carol, dave, erin)
	x.wantWorks()
}

// A commit is redacted before carol has seen it.
func rejectRedactedCommit(t *testing.T) {
	x := newRefusing(t)
	x.all = []*testDevice{x.alice, x.bob}
	x.must(func() error { return x.alice.ChangePolicy(x.ctx, x.room, func(p *rooms.Policy) { p.Window = 8 }) })
	x.settle()
	commit := x.last(rooms.TypeCommit)
	x.s.mu.Lock()
	commit.Content = json.RawMessage(`{}`)
	raw, _ := json.Marshal(map[string]any{"redacts": commit.ID})
	x.s.append(&Event{RoomID: x.room, Type: "m.room.redaction", Sender: x.bob.UserID(), Content: raw, Redacts: commit.ID})
	x.s.mu.Unlock()
	before := x.picture(x.alice)
	x.settle(x.alice)
	if x.picture(x.alice) != before {
		t.Error("a redaction took alice out of her epoch")
	}
	x.all = []*testDevice{x.alice, x.bob, x.carol}
	x.until(60, func() bool { return x.carol.epoch(x.room) >= x.alice.epoch(x.room) })
	x.settle()
	if x.carol.Refusals()[string(rooms.RuleRedactedCommit)] == 0 {
		t.Errorf("refused %v, want %s", x.carol.Refusals(), rooms.RuleRedactedCommit)
	}
	x.wantWorks()
}

func rejectTooLarge(t *testing.T) {
	x := newRefusing(t)
	events := len(x.s.log)
	err := x.background(func() error { _, err := x.alice.SendText(x.ctx, x.room, strings.Repeat("x", 70_000)); return err })
	if !errors.Is(err, ErrTooLarge) || rooms.RuleOf(err) != rooms.RuleEventTooLarge {
		t.Errorf("sending says %v, want %v", err, ErrTooLarge)
	}
	if len(x.s.log) != events || len(x.alice.roomRowsOf(x.room)) != 0 {
		t.Error("something of it was sent, or waits")
	}
	x.honest()
	var content map[string]any
	if err := json.Unmarshal(x.commit(x.bob, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}), &content); err != nil {
		t.Fatal(err)
	}
	content["proposals"] = []string{rooms.EncodeBase64(make([]byte, rooms.MaxInline))}
	raw, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	x.wantRefused(rooms.RuleEventTooLarge, 1, func() { x.show(x.byBob(rooms.TypeCommit, raw)) })
	x.wantWorks()
}

func rejectMediaHash(t *testing.T) {
	x := newRefusing(t)
	x.honest()
	content, err := rooms.DecodeCommit(x.commit(x.bob, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
	if err != nil {
		t.Fatal(err)
	}
	data, err := content.Bundle().Encode()
	if err != nil {
		t.Fatal(err)
	}
	uri, err := x.bob.hs.Upload(x.ctx, data, "")
	if err != nil {
		t.Fatal(err)
	}
	content.File = rooms.NewFile(id.ContentURIString(uri), data)
	content.Message, content.Proposals, content.GroupInfo = nil, nil, nil
	x.s.mu.Lock()
	x.s.media[uri][40] ^= 1
	x.s.mu.Unlock()
	raw, err := rooms.Encode(content)
	if err != nil {
		t.Fatal(err)
	}
	before := x.picture(x.alice)
	x.show(x.byBob(rooms.TypeCommit, raw))
	if !x.until(200, func() bool { return x.alice.Refusals()[string(rooms.RuleMediaHash)] > 0 }) {
		t.Errorf("refused %v, want %s", x.alice.Refusals(), rooms.RuleMediaHash)
	}
	if x.picture(x.alice) != before {
		t.Error("the group changed")
	}
	x.wantWorks()
}

func rejectBase64(t *testing.T) {
	x := newRefusing(t)
	x.honest()
	good := x.commit(x.bob, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
	content, err := rooms.DecodeCommit(good)
	if err != nil {
		t.Fatal(err)
	}
	text := rooms.EncodeBase64(content.Message)
	broken := []string{text + "=", text[:8] + " " + text[8:], text[:8] + "-" + text[9:], text[:len(text)-len(text)%4] + "A", text + "\n"}
	x.wantRefused(rooms.RuleBase64Malformed, uint64(len(broken)), func() {
		for _, s := range broken {
			var fields map[string]any
			if err := json.Unmarshal(good, &fields); err != nil {
				t.Fatal(err)
			}
			fields["message"] = s
			raw, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			x.show(x.byBob(rooms.TypeCommit, raw))
		}
	})
	x.wantWorks()
}

func rejectHostileJSON(t *testing.T) {
	x := newRefusing(t)
	x.honest()
	hostile := []string{
		strings.Repeat(`{"a":`, 200) + `1` + strings.Repeat(`}`, 200),
		`{"epoch":1,"epoch":2}`,
		`{"epoch":18446744073709551616}`,
	}
	x.wantRefused(rooms.RuleHostileJSON, uint64(len(hostile)), func() {
		for _, content := range hostile {
			x.show(x.byBob(rooms.TypeCommit, json.RawMessage(content)))
		}
	})
	// Every type of ours with contents that say nothing, state that no client
	// of ours makes, and what is genuine, by somebody else.
	before := x.picture(x.alice)
	var events []*Event
	for _, eventType := range append(rooms.PowerLevelTypes(), rooms.TypeEncrypted) {
		if eventType == rooms.TypeHead {
			continue
		}
		for _, content := range append(hostile, `{}`, `{"epoch":-1}`, `{"message":"====","epoch":1}`,
			`{"message":"AAEAAgAA","epoch":9,"parent":"`+strings.Repeat("A", 43)+`","group_info":"AAEAAgAA"}`,
			`{"ciphertext":"AAEAAgAA","algorithm":"`+rooms.Algorithm+`"}`) {
			events = append(events, x.byBob(eventType, json.RawMessage(content)))
		}
	}
	for _, evt := range slices.Clone(x.s.log) {
		if evt.StateKey == nil && strings.HasPrefix(evt.Type, rooms.Prefix) {
			events = append(events, x.byBob(evt.Type, evt.Content))
		}
	}
	empty := ""
	for eventType, content := range map[string]string{
		rooms.TypeJoinRules:   `{"join_rule":{"a":[1]},"allow":17}`,
		rooms.TypePowerLevels: `{"users":[],"events":{"` + rooms.TypeAccept + `":"many"}}`,
	} {
		events = append(events, &Event{Type: eventType, StateKey: &empty, Sender: x.alice.UserID(), Content: json.RawMessage(content)})
	}
	x.show(events...)
	x.settle()
	if x.picture(x.alice) != before {
		t.Error("hostile events changed the group")
	}
	x.wantWorks()
}

// The homeserver takes the client's token no more, for a while: nothing is lost
// and nothing doubled. The SDK itself is called by no homeserver.
func rejectRefusedToken(t *testing.T) {
	x := newRefusing(t)
	before := x.picture(x.carol)
	x.alice.hs.fail = mautrix.HTTPError{Response: &http.Response{StatusCode: http.StatusUnauthorized}, RespError: &mautrix.RespError{ErrCode: "M_UNKNOWN_TOKEN"}}
	x.alice.sendAlone(x.room, "after the login")
	if x.picture(x.carol) != before {
		t.Error("it was sent")
	}
	if rows := x.alice.roomRowsOf(x.room); len(rows) != 1 || slices.ContainsFunc(x.alice.got, func(u Update) bool { w, ok := u.(*Warning); return ok && w.Rule == ruleSendRefused }) {
		t.Errorf("%d messages wait, want the one: a refused token gives up nothing", len(rows))
	}
	x.alice.restart()
	x.settle()
	x.carol.wantTexts("after the login")
	x.bob.wantTexts("after the login")
	x.wantWorks()
}

func rejectExternalProposal(t *testing.T) {
	x := newRefusing(t)
	x.wantRefused(rooms.RuleExternalProposalNotEntitled, 1, func() { x.module.proposeRemove(x.room, x.bob.UserID(), "$lie") })
	g := x.module.groups[x.room]
	ref := g.machine.Head()
	carolAgain, _ := x.register("carol", "CAROL2")
	for name, p := range map[string]mls.Proposal{"Add": mls.Add(carolAgain.own().packages[0].KeyPackage()), "policy": mls.GroupContextExtensions(g.epochs[ref].Extensions())} {
		msg, err := mls.NewExternalProposal(x.cs, g.epochs[ref].GroupID(), g.epochs[ref].Epoch(), 0, x.module.external, p, rooms.MessageAAD{Head: ref}.Encode())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := rooms.Encode(&rooms.ProposalContent{Epoch: g.epochs[ref].Epoch(), Parent: rooms.Hash(ref), Message: msg})
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			x.wantRefused(rooms.RuleExternalProposalNotEntitled, 1, func() {
				x.show(&Event{Type: rooms.TypeProposal, Sender: x.module.bot, Content: raw})
			})
		})
	}
	x.wantWorks()
	if got := x.bob.texts(); len(got) != 1 {
		t.Errorf("bob, who is still a member, got %q", got)
	}
}

// Messages were sent in an epoch, the head left it and its parent's epoch was
// sent in again: no key encrypts twice (the world's recorder sees every one), no
// key that was used opens anything again, and every message is shown once.
func rejectSharedRatchets(t *testing.T) {
	x := newRefusing(t)
	x.send(x.alice, x.room, "in the parent")
	x.settle()
	inParent := x.last(rooms.TypeEncrypted)
	dave := x.device("dave", "DAVE1")
	x.module.noVouching = true
	x.s.held[rooms.TypeApplied] = true
	x.must(func() error { return x.alice.Invite(x.ctx, x.room, dave.UserID()) })
	for range 4 {
		x.module.turn()
		for _, d := range []*testDevice{x.alice, x.bob, x.carol} {
			d.turn()
		}
		x.now.add(time.Second)
	}
	x.sameEpoch(x.room, x.alice, x.bob, x.carol)
	x.send(x.alice, x.room, "sent before the doubt")
	onBranch := x.last(rooms.TypeEncrypted)
	for _, d := range []*testDevice{x.bob, x.carol} {
		d.turn()
	}
	x.bob.wantTexts("in the parent", "sent before the doubt")
	// Carol could not apply the commit, and nobody has vouched for it.
	x.carol.mu.Lock()
	r := x.carol.rooms[x.room]
	head := r.machine.Head()
	known, _ := r.machine.Known(head)
	b := &batch{}
	err := x.carol.sendReject(r, head, known.Parent, "test/cannot-apply", b)
	if err == nil {
		err = x.carol.commitBatch(x.ctx, r, b)
	}
	x.carol.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range x.all {
		d.mu.Lock()
		if r := d.rooms[x.room]; r != nil {
			if r.rec.Failed == nil {
				r.rec.Failed = map[string]string{}
			}
			r.rec.Failed[head.String()], r.rec.Rejected = "test", map[string]bool{head.String(): true} // nobody vouches
		}
		d.mu.Unlock()
	}
	x.settle()
	for _, d := range []*testDevice{x.bob, x.carol} {
		if !slices.ContainsFunc(d.got, func(u Update) bool {
			warning, ok := u.(*Warning)
			return ok && warning.Sender == x.alice.UserID() && strings.Contains(warning.Text, "commit of "+string(x.alice.UserID()))
		}) {
			t.Errorf("%s was not told whose commit could not be applied", d.ident.device)
		}
	}
	x.module.noVouching = false
	x.s.held[rooms.TypeApplied] = false
	x.settle()
	x.join(dave, x.room)
	x.settle()
	x.sameEpoch(x.room, x.alice, x.bob, x.carol, dave)
	x.alice.mu.Lock()
	if x.alice.rooms[x.room].machine.Extends(x.alice.rooms[x.room].machine.Head(), head) {
		t.Error("the commit in doubt was not displaced: the test proves nothing")
	}
	x.alice.mu.Unlock()
	x.bob.wantTexts("in the parent", "sent before the doubt")
	x.carol.wantTexts("in the parent", "sent before the doubt")
	if n := x.count(rooms.TypeEncrypted); n < 3 {
		t.Errorf("%d ciphertexts, want the message of the lost branch to be sent again", n)
	}
	for _, old := range []*Event{inParent, onBranch} {
		x.show(&Event{Type: rooms.TypeEncrypted, Sender: x.alice.UserID(), Content: old.Content})
	}
	x.settle()
	x.bob.wantTexts("in the parent", "sent before the doubt")
	x.carol.wantTexts("in the parent", "sent before the doubt")
	used := uint64(0)
	for _, rule := range []string{"framing/generation-consumed", "framing/epoch-beyond-retention", string(ruleBeyondRetention)} {
		used += x.bob.Refusals()[rule]
	}
	if used != 2 {
		t.Errorf("bob refused %d of the two old ciphertexts: %v", used, x.bob.Refusals())
	}
	x.wantWorks()
}

func rejectForgedReceipts(t *testing.T) {
	x := newRefusing(t)
	x.must(func() error { return x.alice.ChangePolicySelf(x.room) }) // a head above everybody's beginning
	x.settle()
	x.honest()
	rival := x.commit(x.bob, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
	x.show(x.byBob(rooms.TypeCommit, rival)) // valid, and accepted by nobody
	x.settle()
	stranger := edKey(newSeeded("a stranger's key"))
	scope := federation.Scope{Room: string(x.room)}
	head := x.alice.headRef(x.room)
	config, _ := x.module.groups[x.room].machine.ConfigAt(head)
	x.bob.mu.Lock()
	e := x.bob.rooms[x.room].head()
	member := func(edit func(a *federation.Applied)) *federation.Applied {
		a, err := rooms.SignApplied(x.cs, x.bob.ident.own().mlsKeys[x.cs], federation.Scope{Room: string(x.room), Group: e.group.GroupID()}, e.ref, e.group.OwnLeafIndex(), e.group.EpochAuthenticator())
		if err != nil {
			t.Fatal(err)
		}
		edit(a)
		return a
	}
	type forgery struct {
		name    string
		receipt federation.Receipt
		scope   federation.Scope
		key     ed25519.PrivateKey
	}
	other := x.accept(rival)
	other.Ballot = federation.Ballot{Round: 3, Rank: 1}
	forged := []forgery{
		{"accept by another key", x.accept(rival), scope, stranger},
		{"accept in another room", x.accept(rival), federation.Scope{Room: "!other:" + testServer}, x.module.key},
		{"accept in a ballot of nobody", other, scope, x.module.key},
		{"vote by another key", &federation.Vote{Config: config, Ref: head, Chain: federation.Chain{Counter: 99, Prev: federation.Ref{1}}}, scope, stranger},
		{"promise by another key", &federation.Promise{Config: config, Ballot: federation.Ballot{Round: 9}, Chain: federation.Chain{Counter: 99, Prev: federation.Ref{1}}}, scope, stranger},
	}
	applied := map[string]*federation.Applied{
		"applied with a changed signature": member(func(a *federation.Applied) { a.Signature[9] ^= 1 }),
		"applied in another leaf's place":  member(func(a *federation.Applied) { a.Leaf = 0 }),
		"applied with another hash":        member(func(a *federation.Applied) { a.Hash[0] ^= 1 }),
	}
	x.bob.mu.Unlock()
	for _, f := range forged {
		t.Run(f.name, func(t *testing.T) {
			if err := f.receipt.Sign(f.scope, f.key); err != nil {
				t.Fatal(err)
			}
			kind, content := rooms.ReceiptOf(f.receipt)
			raw, err := rooms.Encode(content)
			if err != nil {
				t.Fatal(err)
			}
			x.wantRefused(rooms.Rule(federation.RuleForged), 1, func() {
				x.show(&Event{Type: kind, Sender: x.module.bot, Content: raw})
			})
		})
	}
	for name, a := range applied {
		t.Run(name, func(t *testing.T) {
			raw, err := rooms.Encode(rooms.AppliedOf(a))
			if err != nil {
				t.Fatal(err)
			}
			x.wantRefused(rooms.Rule(federation.RuleForged), 1, func() { x.show(x.byBob(rooms.TypeApplied, raw)) })
		})
	}
	x.wantWorks()
}
