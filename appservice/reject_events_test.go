package appservice

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func rejectReplay(t *testing.T) {
	x := newRefusing(t)
	c := x.update(x.a)
	x.settleFor(time.Second)
	before := x.picture()
	for _, sender := range []id.UserID{alice, alice, bob} {
		x.hs.add(x.id, sender, rooms.TypeCommit, nil, c.raw)
	}
	for _, kind := range []string{rooms.TypeAccept, rooms.TypeApplied} {
		for _, old := range x.hs.events(x.id, kind) {
			x.hs.add(x.id, bob, kind, nil, old.Content)
		}
	}
	x.settleFor(2 * time.Second)
	if x.picture() != before {
		t.Error("a replayed event had an effect")
	}
	n := 0
	for _, ref := range x.accepts() {
		if ref == c.ref {
			n++
		}
	}
	if n != 1 {
		t.Errorf("one commit under four event ids was accepted %d times", n)
	}
	x.merge(c)
	x.apply(x.b, x.head, x.b.group.EpochAuthenticator())
	x.settleFor(10 * time.Second)
	x.wantWorks()
}

// Two homeservers show two commits of one parent, and all that belongs to them,
// in opposite orders.
func rejectForgedOrder(t *testing.T) {
	x := newRefusing(t)
	one, two := x.update(x.a), x.update(x.b)
	x.settleFor(time.Second)
	won, voucher := one, x.b
	if x.machine(x.id).Head() == two.ref {
		won, voucher = two, x.a
	}
	x.merge(won)
	x.apply(voucher, x.head, voucher.group.EpochAuthenticator())
	x.settleFor(10 * time.Second)
	all := slices.Clone(x.hs.rooms[x.id])
	for name, turn := range map[string]bool{"as it came": false, "backwards": true} {
		t.Run(name, func(t *testing.T) {
			hs := newRoomHS()
			hs.push = false
			hs.rooms[x.id] = all
			hs.hide = func(*homeserver.Event) bool { return true }
			n := newModuleWithKeys(t, storetest.SQLite(t), hs, 9) // another key: it only follows
			must(t, n.st.NoteRoom(n.ctx, x.id, store.RoomJoined))
			order := slices.DeleteFunc(slices.Clone(all), func(ev *homeserver.Event) bool { return ev.StateKey != nil })
			if turn {
				slices.Reverse(order)
			}
			for _, ev := range order {
				hs.pushed = append(hs.pushed, ev)
				n.settle()
			}
			n.settleFor(5 * time.Second)
			if got := n.machine(x.id); got.Head() != won.ref || got.NewestFinal() != won.ref {
				t.Errorf("head %s, final %s, want %s for both; refused: %v", got.Head().Short(), got.NewestFinal().Short(), won.ref.Short(), n.refusals())
			}
		})
	}
}

// A commit loses its content: the module that has it posts it again, one that
// sees only what is left of it refuses that.
func rejectRedactedCommit(t *testing.T) {
	x := newRefusing(t)
	c := x.update(x.a)
	x.settleFor(time.Second)
	x.merge(c)
	x.apply(x.b, x.head, x.b.group.EpochAuthenticator())
	x.settleFor(10 * time.Second)
	x.hs.add(x.id, alice, typeRedaction, nil, map[string]any{"redacts": c.event})
	x.settleFor(2 * time.Minute)
	again := x.hs.events(x.id, rooms.TypeRepost)
	if len(again) != 1 {
		t.Fatalf("the redacted commit was posted again %d times, want once", len(again))
	}
	repost, err := rooms.DecodeRepost(again[0].Content)
	must(t, err)
	if repost.Event != c.event || !bytes.Equal(repost.Content, c.raw) {
		t.Error("what was posted again is not the commit")
	}
	x.wantRefused(string(rooms.RuleRedactedCommit), 1, func() { x.hs.add(x.id, bob, rooms.TypeCommit, nil, map[string]any{}) })
}

func rejectTooLarge(t *testing.T) {
	x := newRefusing(t)
	content, err := rooms.DecodeCommit(x.make(x.b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}).raw)
	must(t, err)
	content.Proposals = []rooms.Bytes{make(rooms.Bytes, rooms.MaxInline)}
	raw, err := json.Marshal(content)
	must(t, err)
	x.wantRefused(string(rooms.RuleEventTooLarge), 1, func() { x.hs.add(x.id, bob, rooms.TypeCommit, nil, json.RawMessage(raw)) })
	// One that says it is in media, and is larger than anything that is read.
	content, err = rooms.DecodeCommit(x.make(x.b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}).raw)
	must(t, err)
	content.Message, content.Proposals, content.GroupInfo = nil, nil, nil
	content.File = &rooms.File{MXC: "mxc://mls.test/huge", Size: rooms.MaxFileSize + 1}
	raw, err = json.Marshal(content)
	must(t, err)
	downloads := x.hs.calls["download"]
	x.wantRefused(string(rooms.RuleEventTooLarge), 1, func() { x.hs.add(x.id, bob, rooms.TypeCommit, nil, json.RawMessage(raw)) })
	if x.hs.calls["download"] != downloads {
		t.Error("the module began to read it")
	}
}

func rejectMediaHash(t *testing.T) {
	x := newRefusing(t)
	bad := x.make(x.b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
	x.byMedia(x.module, bad)
	content, err := rooms.DecodeCommit(bad.raw)
	must(t, err)
	x.hs.mu.Lock()
	x.hs.media[content.File.MXC] = slices.Clone(x.hs.media[content.File.MXC])
	x.hs.media[content.File.MXC][40] ^= 1
	x.hs.mu.Unlock()
	x.wantRefused(string(rooms.RuleMediaHash), 1, func() { x.post(bad) })
}

func rejectBase64(t *testing.T) {
	x := newRefusing(t)
	good := x.make(x.b, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true})
	content, err := rooms.DecodeCommit(good.raw)
	must(t, err)
	text := rooms.EncodeBase64(content.Message)
	broken := []string{text + "=", text[:8] + " " + text[8:], text[:8] + "-" + text[9:], text[:len(text)-len(text)%4] + "A", text + "\n"}
	x.wantRefused(string(rooms.RuleBase64Malformed), len(broken), func() {
		for _, s := range broken {
			var raw map[string]any
			must(t, json.Unmarshal(good.raw, &raw))
			raw["message"] = s
			x.hs.add(x.id, bob, rooms.TypeCommit, nil, raw)
		}
	})
}

func rejectHostileJSON(t *testing.T) {
	x := newRefusing(t)
	hostile := []string{
		strings.Repeat(`{"a":`, 200) + `1` + strings.Repeat(`}`, 200),
		`{"epoch":1,"epoch":2}`,
		`{"epoch":1e400}`,
		`{"epoch":18446744073709551616}`,
	}
	x.wantRefused(string(rooms.RuleHostileJSON), len(hostile), func() {
		for _, content := range hostile {
			x.hs.add(x.id, bob, rooms.TypeCommit, nil, json.RawMessage(content))
		}
	})
	b := newBench(t, storetest.SQLite(t), nil, nil)
	b.txn("1", invitation("$i", "!a"), ev("$utf8", "!a", rooms.TypeCommit, "-", "{\"parent\":\"\xff\xfe\"}"))
	wantIDs(t, b.inbox(t), "$i")
	// State that no client of ours makes.
	for kind, content := range map[string]string{
		rooms.TypeJoinRules:   `{"join_rule":{"a":[1]},"allow":17}`,
		rooms.TypePowerLevels: `{"users":[],"events":{"` + rooms.TypeAccept + `":"many"}}`,
		rooms.TypeEncryption:  `{"algorithm":["` + rooms.Algorithm + `"]}`,
		rooms.TypeMember:      `{"membership":{"x":"leave"}}`,
	} {
		key := map[string]string{rooms.TypeMember: string(bob)}[kind]
		x.hs.state(x.id, alice, kind, key, json.RawMessage(content))
	}
	x.settleFor(5 * time.Second)
	if n := len(x.hs.events(x.id, rooms.TypeProposal)); n != 0 {
		t.Errorf("%d Removes were proposed for a membership that says nothing", n)
	}
	x.wantWorks()
}

func rejectASToken(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	paths := map[string]string{
		"/_matrix/app/v1/transactions/1": http.MethodPut, "/_matrix/app/v1/ping": http.MethodPost,
		"/_matrix/app/v1/users/@_mls_x:mls.test": http.MethodGet, "/_matrix/app/v1/rooms/%23x:mls.test": http.MethodGet,
	}
	for path, method := range paths {
		for name, row := range map[string]struct {
			token, query string
			want         int
		}{
			"missing":        {"", "", http.StatusUnauthorized},
			"wrong":          {"Bearer nonsense", "", http.StatusForbidden},
			"empty":          {"Bearer ", "", http.StatusForbidden},
			"as_token":       {"Bearer as-token-planted-0123456789", "", http.StatusForbidden},
			"another's":      {"Bearer hs-token-of-another-service", "", http.StatusForbidden},
			"prefix of it":   {"Bearer " + hsToken[:10], "", http.StatusForbidden},
			"with a tail":    {"Bearer " + hsToken + "x", "", http.StatusForbidden},
			"other scheme":   {"Basic " + hsToken, "", http.StatusUnauthorized},
			"bare":           {hsToken, "", http.StatusUnauthorized},
			"in the query":   {"", "?access_token=" + hsToken, http.StatusUnauthorized},
			"lower-case key": {"bearer " + hsToken, "", http.StatusUnauthorized},
		} {
			t.Run(method+" "+path+" "+name, func(t *testing.T) {
				w := request(b.Handler(), method, path+row.query, row.token, `{"events":[`+invitation("$i", "!a")+`]}`)
				if w.Code != row.want {
					t.Errorf("answer %d, want %d", w.Code, row.want)
				}
				var body struct {
					Code string `json:"errcode"`
				}
				if json.Unmarshal(w.Body.Bytes(), &body) != nil || !strings.HasPrefix(body.Code, "M_") {
					t.Errorf("body %q is no Matrix error", w.Body)
				}
			})
		}
	}
	wantIDs(t, b.inbox(t))
	if got := b.rejected(ruleToken); got != float64(len(paths)*11) {
		t.Errorf("counted %v refusals, want %d", got, len(paths)*11)
	}
	r := httptest.NewRequest(http.MethodPut, "/_matrix/app/v1/transactions/1", strings.NewReader("{}"))
	r.Header["Authorization"] = []string{"Bearer wrong", "Bearer " + hsToken}
	w := httptest.NewRecorder()
	b.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusUnauthorized {
		t.Errorf("two Authorization headers: answer %d", w.Code)
	}
}

func rejectExternalProposal(t *testing.T) {
	x := newRefusing(t)
	propose := func(key mls.SignaturePrivateKey, p mls.Proposal) json.RawMessage {
		msg, err := mls.NewExternalProposal(engineSuite, x.a.group.GroupID(), x.a.group.Epoch(), 0, key, p, rooms.MessageAAD{Head: x.head}.Encode())
		must(t, err)
		raw, err := rooms.Encode(&rooms.ProposalContent{Epoch: x.a.group.Epoch(), Parent: rooms.Hash(x.head), Message: msg})
		must(t, err)
		return raw
	}
	own := x.e.d.Keys.External[engineSuite.SignatureScheme()]
	add := mls.Add(newDevice(t, carol, "TABLET").keyPackage())
	for name, p := range map[string]mls.Proposal{"an Add": add, "a policy": mls.GroupContextExtensions(x.a.group.Extensions())} {
		t.Run("by a module, "+name, func(t *testing.T) {
			x.wantRefused(string(rooms.RuleExternalProposalNotEntitled), 1, func() { x.hs.add(x.id, bot, rooms.TypeProposal, nil, propose(own, p)) })
		})
	}
	t.Run("by a stranger", func(t *testing.T) {
		x.wantRefused("framing/signature-invalid", 1, func() {
			x.hs.add(x.id, carol, rooms.TypeProposal, nil, propose(newDevice(t, carol, "TABLET").key, mls.Remove(0)))
		})
	})
}

// What the module has of two branches is public, and is for each what it would
// be without the other.
func rejectSharedRatchets(t *testing.T) {
	x := newRefusing(t)
	bytesOf := func(ref federation.Ref) []byte {
		group, err := x.e.group(x.ctx, x.e.rooms[x.id], ref)
		must(t, err)
		raw, err := group.MarshalBinary()
		must(t, err)
		return raw
	}
	parent := bytesOf(x.head)
	one, two := x.update(x.a), x.update(x.b)
	x.settleFor(time.Second)
	if !bytes.Equal(bytesOf(x.head), parent) {
		t.Error("following two branches changed the epoch they leave")
	}
	for _, c := range []*madeCommit{one, two} {
		alone, err := mls.UnmarshalPublicGroup(&mls.Config{Authenticator: rooms.Authenticator{}}, parent)
		must(t, err)
		m, err := mls.ParseMessage(c.staged.Message())
		must(t, err)
		p, err := alone.Process(m)
		must(t, err)
		want, err := p.(*mls.PublicStagedCommit).Merge().MarshalBinary()
		must(t, err)
		if !bytes.Equal(bytesOf(c.ref), want) {
			t.Errorf("the branch of %s is not what it is alone", c.by.cred.User)
		}
	}
	// No secret of any of them is in the database.
	secrets := map[string][]byte{}
	for name, g := range map[string]*mls.Group{"the parent": x.a.group, "one branch": one.staged.Merge(), "the other branch": two.staged.Merge()} {
		secrets["authenticator of "+name], secrets["resumption secret of "+name] = g.EpochAuthenticator(), g.ResumptionPSK()
	}
	for _, file := range []string{x.file, x.file + "-wal"} {
		raw, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for name, secret := range secrets {
			for _, form := range [][]byte{secret, []byte(rooms.EncodeBase64(secret)), fmt.Appendf(nil, "%x", secret)} {
				if bytes.Contains(raw, form) {
					t.Errorf("the database holds the %s", name)
				}
			}
		}
	}
}

func rejectForgedReceipts(t *testing.T) {
	x := newRefusing(t)
	parent := x.head
	one, rival := x.update(x.a), x.update(x.b) // one of two wins
	x.settleFor(time.Second)
	voucher := x.b
	if x.machine(x.id).Head() == rival.ref {
		one, rival, voucher = rival, one, x.a
	}
	x.merge(one)
	x.apply(voucher, x.head, voucher.group.EpochAuthenticator())
	x.settleFor(10 * time.Second)
	machine := x.machine(x.id)
	config, ok := machine.ConfigAt(x.head)
	if !ok {
		t.Fatal("no list of sequencers")
	}
	seed, err := x.st.Key(x.ctx, KeyReceipt)
	must(t, err)
	honest, stranger := ed25519.NewKeyFromSeed(seed), ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32))
	scope, late := federation.Scope{Room: string(x.id)}, federation.Chain{Counter: 99, Prev: x.head}
	accept := func() *federation.Accept {
		return &federation.Accept{Config: config, Ref: rival.ref, Parent: parent, Epoch: x.a.group.Epoch(), Chain: late}
	}
	signed := func(r federation.Receipt, scope federation.Scope, key ed25519.PrivateKey) federation.Receipt {
		must(t, r.Sign(scope, key))
		return r
	}
	forged := map[string]func() federation.Receipt{
		"accept by another key":  func() federation.Receipt { return signed(accept(), scope, stranger) },
		"accept in another room": func() federation.Receipt { return signed(accept(), federation.Scope{Room: "!other:mls.test"}, honest) },
		"accept in a ballot of nobody": func() federation.Receipt {
			a := accept()
			a.Ballot = federation.Ballot{Round: 3, Rank: 1}
			return signed(a, scope, honest)
		},
		"vote by another key": func() federation.Receipt {
			return signed(&federation.Vote{Config: config, Ref: x.head, Chain: late}, scope, stranger)
		},
		"vote by no sequencer": func() federation.Receipt {
			return signed(&federation.Vote{Config: config, Ref: x.head, Voter: 7, Chain: late}, scope, stranger)
		},
		"promise by another key": func() federation.Receipt {
			return signed(&federation.Promise{Config: config, Ballot: federation.Ballot{Round: 9}, Chain: late}, scope, stranger)
		},
	}
	for name, receipt := range forged {
		t.Run(name, func(t *testing.T) {
			kind, content := rooms.ReceiptOf(receipt())
			raw, err := rooms.Encode(content)
			must(t, err)
			x.wantRefusedOnly(string(federation.RuleForged), func() { x.hs.add(x.id, bot, kind, nil, raw) })
		})
	}
	applied := func(edit func(a *federation.Applied)) json.RawMessage {
		a, err := rooms.SignApplied(engineSuite, x.b.key, federation.Scope{Room: string(x.id), Group: x.b.group.GroupID()}, x.head, x.b.group.OwnLeafIndex(), x.b.group.EpochAuthenticator())
		must(t, err)
		edit(a)
		raw, err := rooms.Encode(rooms.AppliedOf(a))
		must(t, err)
		return raw
	}
	for name, raw := range map[string]json.RawMessage{
		"applied with a changed signature":   applied(func(a *federation.Applied) { a.Signature[9] ^= 1 }),
		"applied in another leaf's place":    applied(func(a *federation.Applied) { a.Leaf = 0 }),
		"applied with another authenticator": applied(func(a *federation.Applied) { a.Hash[0] ^= 1 }),
	} {
		t.Run(name, func(t *testing.T) {
			x.wantRefusedOnly(string(federation.RuleForged), func() { x.hs.add(x.id, bob, rooms.TypeApplied, nil, raw) })
		})
	}
	x.wantWorks()
}

// wantRefusedOnly is wantRefused without the commit behind it.
func (x *refusing) wantRefusedOnly(rule string, do func()) {
	x.t.Helper()
	before, had := x.picture(), x.refused(rule)
	do()
	x.settleFor(time.Second)
	if got := x.refused(rule) - had; got != 1 {
		x.t.Errorf("%d events were refused by %s, want 1; refused: %v", got, rule, x.refusals())
	}
	if x.picture() != before {
		x.t.Error("what was refused changed something")
	}
}
