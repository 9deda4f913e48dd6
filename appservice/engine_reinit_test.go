package appservice

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const nextSuite = mls.MLS_128_DHKEMP256_AES128GCM_SHA256_P256

// another gives a device a key of another suite, and a key package of it.
func (d *device) another(cs mls.CipherSuite) *device {
	d.t.Helper()
	next := *d
	var err error
	next.key, err = mls.GenerateSignatureKey(cs, d.cfg.Rand)
	must(d.t, err)
	next.cred.Key = next.key.Public()
	next.bundle, err = mls.NewKeyPackage(d.cfg, cs, next.key, rooms.LeafOptions(next.cred))
	must(d.t, err)
	return &next
}

// close makes the commit by which alice closes the group for one of another
// suite, and returns the devices as they will be in that.
func (r *mlsRoom) close(cs mls.CipherSuite) (*madeCommit, []*device) {
	r.t.Helper()
	by := r.members[0]
	policy, err := rooms.PolicyOf(by.group)
	must(r.t, err)
	sender, err := rooms.ModuleSender(bot, r.keys(), cs)
	must(r.t, err)
	reinit, err := rooms.NewReInit(policy.Successor(by.group.GroupID(), r.head), []byte(fmt.Sprintf("%-32s", "next "+r.id)), cs, []mls.ExternalSender{sender})
	must(r.t, err)
	aad := rooms.CommitAAD{Parent: r.head}
	raw, err := aad.Encode()
	must(r.t, err)
	staged, err := by.group.Commit(mls.CommitOptions{Proposals: []mls.Proposal{reinit.Proposal()}, AuthenticatedData: raw})
	must(r.t, err)
	info, err := staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	must(r.t, err)
	content := &rooms.CommitContent{Epoch: staged.Epoch(), Parent: rooms.Hash(r.head), ParentEvent: r.event, Message: staged.Message(), GroupInfo: info}
	var next []*device
	for _, d := range r.members {
		n := d.another(cs)
		next = append(next, n)
		content.KeyPackages = append(content.KeyPackages, n.bundle.Message())
	}
	m, err := mls.ParseMessage(staged.Message())
	must(r.t, err)
	ref, err := rooms.CommitRef(m)
	must(r.t, err)
	out := &madeCommit{by: by, staged: staged, ref: ref}
	out.raw, err = rooms.Encode(content)
	must(r.t, err)
	return out, next
}

// refound makes the founding commit of the group that follows.
func (r *mlsRoom) refound(by *device, next []*device, edit func(c *rooms.CommitContent)) *madeCommit {
	r.t.Helper()
	var packs []*mls.KeyPackage
	var self *device
	for _, d := range next {
		if d.cred.User == by.cred.User && d.cred.Device == by.cred.Device {
			self = d
			continue
		}
		packs = append(packs, d.bundle.KeyPackage())
	}
	staged, err := by.group.ReInitGroup(self.key, rooms.LeafOptions(self.cred), packs, mls.CommitOptions{WelcomeRatchetTree: true})
	must(r.t, err)
	info, err := staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true, Extensions: []mls.Extension{rooms.FoundingExtension(r.head)}})
	must(r.t, err)
	m, err := mls.ParseMessage(info)
	must(r.t, err)
	ref, err := rooms.RootRef(m)
	must(r.t, err)
	consent, err := rooms.SignFounding(by.group, by.group.OwnLeafIndex(), by.key, r.head, ref)
	must(r.t, err)
	group := staged.Merge()
	content := &rooms.CommitContent{
		Epoch: 1, Parent: rooms.Hash(r.head), ParentEvent: r.event, Founding: true, GroupInfo: info, CoSignatures: []rooms.CoSignature{consent},
		Snapshot: &rooms.Snapshot{Tree: group.RatchetTree(), TreeHash: group.TreeHash(), AtCommit: rooms.Hash(ref)},
	}
	if edit != nil {
		edit(content)
	}
	out := &madeCommit{by: self, staged: staged, ref: ref}
	out.raw, err = rooms.Encode(content)
	must(r.t, err)
	return out
}

// enter lets the members of the new group in.
func (r *mlsRoom) enter(c *madeCommit, next []*device) {
	r.t.Helper()
	welcome, err := mls.ParseMessage(c.staged.Welcome())
	must(r.t, err)
	for i, d := range next {
		if d == c.by {
			d.group = c.staged.Merge()
			continue
		}
		d.group, err = mls.JoinWelcome(d.cfg, welcome, d.bundle, mls.JoinOptions{Successor: r.members[i].group})
		must(r.t, err)
	}
	r.members, r.head, r.event = next, c.ref, c.event
}

func (r *mlsRoom) vouchFor(d *device) {
	r.t.Helper()
	a, err := rooms.SignApplied(d.group.CipherSuite(), d.key, federation.Scope{Room: string(r.id), Group: d.group.GroupID()}, r.head, d.group.OwnLeafIndex(), d.group.EpochAuthenticator())
	must(r.t, err)
	raw, err := rooms.Encode(rooms.AppliedOf(a))
	must(r.t, err)
	r.hs.add(r.id, d.cred.User, rooms.TypeApplied, nil, raw)
}

// TestEngineFollowsAChangeOfSuite: a ReInit and the founding of the next group
// are accepted and made final, the head leads newcomers there, and the module
// works in the new group as in the old.
func TestEngineFollowsAChangeOfSuite(t *testing.T) {
	for name, media := range map[string]bool{"tree in the event": false, "tree in media": true} {
		t.Run(name, func(t *testing.T) {
			storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
				m, r, _, b := pair(t, dbCfg)
				old := b.group.GroupID()
				closing, next := r.close(nextSuite)
				r.post(closing)
				m.settle()
				r.merge(closing)
				r.vouchFor(b)
				m.settleFor(10 * time.Second)
				if got := m.machine(r.id).NewestFinal(); got != r.head {
					t.Fatalf("the ReInit is not final: %v", m.refusals())
				}
				founding := r.refound(r.members[1], next, func(c *rooms.CommitContent) {
					if media {
						uri, err := m.hs.Upload(m.ctx, c.Snapshot.Tree, "")
						must(t, err)
						c.Snapshot.File, c.Snapshot.Tree = rooms.NewFile(uri, c.Snapshot.Tree), nil
					}
				})
				r.post(founding)
				m.settle()
				if got := r.accepts(); got[len(got)-1] != founding.ref {
					t.Fatalf("accepted %v, want %v; %v", got, founding.ref, m.refusals())
				}
				r.enter(founding, next)
				r.vouchFor(next[0])
				m.settleFor(10 * time.Second)
				if got := m.machine(r.id).NewestFinal(); got != founding.ref {
					t.Fatal("the founding is not final")
				}
				check := func() {
					t.Helper()
					head := r.keys()
					if !bytes.Equal(head.Group, r.members[0].group.GroupID()) || federation.Ref(head.Accepted.Ref) != r.head || head.Snapshot.AtCommit != head.Accepted.Ref {
						t.Errorf("head %+v", head)
					}
					p, err := head.Check(r.id, head.Proof)
					if err != nil || len(p.Groups) != 2 || !bytes.Equal(p.Groups[0], old) {
						t.Errorf("proof %+v, %v", p, err)
					}
				}
				m.settleFor(2 * time.Minute)
				check()
				// A commit, a restart, another one, and a leave.
				for range 2 {
					c := r.post(r.make(r.members[1], rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
					m.settle()
					r.merge(c)
					m.start()
					m.settle()
				}
				if m.machine(r.id).Head() != r.head {
					t.Error("the module lost its way")
				}
				r.hs.state(r.id, bob, rooms.TypeMember, string(bob), map[string]any{"membership": "leave"})
				m.settleFor(10 * time.Second)
				proposals := r.hs.events(r.id, rooms.TypeProposal)
				if len(proposals) != 1 {
					t.Fatalf("%d proposals to remove who left", len(proposals))
				}
				p, err := rooms.DecodeProposal(proposals[0].Content)
				must(t, err)
				msg, err := mls.ParseMessage(p.Message)
				must(t, err)
				if _, err := r.members[0].group.Process(msg); err != nil {
					t.Errorf("the module's proposal in the new group: %v", err)
				}
			})
		})
	}
}

// TestEngineRefusesBadFoundings: what founds a successor and is none.
func TestEngineRefusesBadFoundings(t *testing.T) {
	m, r, a, b := pair(t, storetest.SQLite(t))
	closing, next := r.close(nextSuite)
	bare := *closing
	content, err := rooms.DecodeCommit(closing.raw)
	must(t, err)
	content.KeyPackages = content.KeyPackages[:1]
	bare.raw, err = rooms.Encode(content)
	must(t, err)
	r.post(&bare)
	m.settle()
	if got := m.refusals(); len(got) != 1 || !strings.Contains(got[0], string(rooms.RuleFoundingIncomplete)) {
		t.Errorf("a ReInit that lacks a key package: %v", got)
	}
	r.post(closing)
	m.settle()
	r.merge(closing)
	r.vouchFor(b)
	m.settle()
	for name, test := range map[string]struct {
		edit func(c *rooms.CommitContent)
		rule string
	}{
		"unsigned by the old leaf": {func(c *rooms.CommitContent) { c.CoSignatures = nil }, string(rooms.RuleFounderUnproven)},
		"another epoch":            {func(c *rooms.CommitContent) { c.Epoch = 2 }, string(rooms.RuleParentMismatch)},
		"another tree":             {func(c *rooms.CommitContent) { c.Snapshot.Tree = b.group.RatchetTree() }, ""},
		"no tree":                  {func(c *rooms.CommitContent) { c.Snapshot = nil }, "welcome/ratchet-tree-absent"},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(m.refusals())
			r.post(r.refound(a, next, test.edit))
			m.settle()
			got := m.refusals()
			if len(got) != before+1 || !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, test.rule) }) {
				t.Errorf("refusals %v, want %s", got, test.rule)
			}
		})
	}
	if got := r.accepts(); got[len(got)-1] != closing.ref {
		t.Error("a bad founding was accepted")
	}
	r.post(r.refound(a, next, nil))
	m.settle()
	if got := r.accepts(); got[len(got)-1] == closing.ref {
		t.Errorf("the good one was not: %v", m.refusals())
	}
}

// TestEngineWaitsForAFounding: a module began late, above the numbers that the
// epochs of the next group have. The accept of a founding, and the commit above
// it, come before the founding itself, and are not lost.
func TestEngineWaitsForAFounding(t *testing.T) {
	dbCfg := storetest.SQLite(t)
	m, r, a, b := pair(t, dbCfg)
	for range 3 {
		c := r.post(r.make(a, rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
		m.settle()
		r.merge(c)
		r.vouchFor(b)
		m.settle()
	}
	n := r.late(m, dbCfg)
	n.settleFor(10 * time.Second)
	look := func() {
		must(t, n.e.Recheck(n.ctx))
		n.settleFor(10 * time.Second)
	}
	if got := n.machine(r.id); got.Head() != r.head || !got.TooOld(4) {
		t.Fatal("the other module did not begin late")
	}
	closing, next := r.close(nextSuite)
	r.post(closing)
	m.settle()
	r.merge(closing)
	r.vouchFor(b)
	m.settleFor(time.Minute)
	look()
	if n.machine(r.id).Head() != r.head {
		t.Fatalf("the ReInit is not the other module's head: %v", n.refusals())
	}
	// The tree of the founding is in media that the other module gets last.
	founding := r.refound(a, next, func(c *rooms.CommitContent) {
		uri, err := m.hs.Upload(m.ctx, c.Snapshot.Tree, "")
		must(t, err)
		c.Snapshot.File, c.Snapshot.Tree = rooms.NewFile(uri, c.Snapshot.Tree), nil
	})
	r.post(founding)
	m.settle()
	r.enter(founding, next)
	above := r.post(r.make(r.members[1], rooms.CommitAAD{}, mls.CommitOptions{ForcePath: true}))
	m.settle()
	if m.machine(r.id).Head() != above.ref {
		t.Fatalf("the module does not follow: %v", m.refusals())
	}
	hs := n.as.(*farHS)
	early := hs.hidden
	hs.hidden = func(ev *homeserver.Event) bool { return early(ev) || ev.ID == founding.event }
	media := m.hs.media
	m.hs.media = nil
	look()
	if n.machine(r.id).Held(founding.ref) {
		t.Fatal("the founding came: the test shows nothing")
	}
	m.hs.media = media
	hs.hidden = early
	look()
	n.settleFor(time.Minute)
	if got := n.machine(r.id).Head(); got != above.ref {
		t.Errorf("head %s, want %s; refused: %v", got.Short(), above.ref.Short(), n.refusals())
	}
}
