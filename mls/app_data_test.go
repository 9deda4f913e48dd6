package mls

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// testAppData is an application with the components 0x8001 and 0x8002, whose
// data is what was there with every update behind it.
type testAppData struct{}

func (testAppData) UpdateAppData(c ComponentID, old []byte, updates [][]byte) ([]byte, error) {
	if c != 0x8001 && c != 0x8002 {
		return nil, errors.New("unknown component")
	}
	out := bytes.Clone(old)
	for _, u := range updates {
		if string(u) == "bad" {
			return nil, errors.New("bad update")
		}
		out = append(out, u...)
	}
	return out, nil
}

func (testAppData) CheckAppEphemeral(c ComponentID, data []byte) error {
	if c != 0x8001 || string(data) == "bad" {
		return errors.New("not for this application")
	}
	return nil
}

// appDataLeaf returns a leaf that supports application data.
func (w *world) appDataLeaf(name string) LeafOptions {
	o := w.supporting(name, ProposalTypeAppDataUpdate, ProposalTypeAppEphemeral)
	o.Capabilities.Extensions = append(o.Capabilities.Extensions, ExtensionTypeAppDataDictionary)
	return o
}

func newAppDataWorld(t *testing.T) *world {
	w := newRejectWorld(t)
	w.cfg.AppData = testAppData{}
	return w
}

func (w *world) appDataGroup(exts ...Extension) []*Group {
	w.t.Helper()
	return w.groupOf(exts, w.appDataLeaf("member0"), w.appDataLeaf("member1"), w.appDataLeaf("member2"))
}

func update(c ComponentID, data string) Proposal {
	return (&AppDataUpdate{Component: c, Update: []byte(data)}).Proposal()
}

func removal(c ComponentID) Proposal {
	return (&AppDataUpdate{Component: c, Remove: true}).Proposal()
}

func dictionary(t *testing.T, g interface {
	Extension(ExtensionType) ([]byte, bool)
}) AppDataDictionary {
	t.Helper()
	data, ok := g.Extension(ExtensionTypeAppDataDictionary)
	if !ok {
		return nil
	}
	d, err := ParseAppDataDictionary(data)
	noError(t, err)
	return d
}

func TestAppDataUpdate(t *testing.T) {
	w := newAppDataWorld(t)
	gs := w.appDataGroup()
	server := w.public(gs[0])
	step := func(want map[ComponentID]string, i int, o CommitOptions) *StagedCommit {
		t.Helper()
		c, next := w.commit(gs, i, o)
		gs = next
		p, err := server.Process(w.parse(c.Message()))
		w.check(err)
		server = p.(*PublicStagedCommit).Merge()
		for _, g := range []interface {
			Extension(ExtensionType) ([]byte, bool)
		}{gs[0], gs[len(gs)-1], server} {
			d := dictionary(t, g)
			if len(d) != len(want) {
				t.Fatalf("%d components, want %d", len(d), len(want))
			}
			for c, data := range want {
				if got, ok := d.Get(c); !ok || string(got) != data {
					t.Fatalf("component %#x is %q, want %q", c, got, data)
				}
			}
			if !slices.IsSortedFunc(d, func(a, b ComponentData) int { return int(a.Component) - int(b.Component) }) {
				t.Fatal("the dictionary is not sorted")
			}
		}
		return c
	}
	c := step(map[ComponentID]string{0x8002: "x"}, 0, CommitOptions{Proposals: []Proposal{update(0x8002, "x")}})
	if c.HasPath() {
		t.Error("an AppDataUpdate made a path")
	}
	step(map[ComponentID]string{0x8001: "ab", 0x8002: "xy"}, 1, CommitOptions{Proposals: []Proposal{update(0x8001, "a"), update(0x8002, "y"), update(0x8001, "b")}})

	// By reference, beside others, from several members.
	for i, p := range []Proposal{update(0x8001, "c"), removal(0x8002), (&AppEphemeral{Component: 0x8001, Data: []byte("now")}).Proposal()} {
		raw, _, err := gs[i].Propose(p, FramingOptions{Private: i == 1})
		w.check(err)
		for k, g := range gs {
			if k != i {
				w.accept(g, w.parse(raw))
			}
		}
		if i != 1 {
			_, err = server.Process(w.parse(raw))
			w.check(err)
		}
	}
	// A server does not see what is proposed in private; let the Commit say it.
	var public []ProposalRef
	for _, p := range gs[2].PendingProposals() {
		if p.Proposal.AppDataUpdate == nil || !p.Proposal.AppDataUpdate.Remove {
			public = append(public, p.Ref)
		}
	}
	step(map[ComponentID]string{0x8001: "abc"}, 2, CommitOptions{PendingRefs: public, Proposals: []Proposal{removal(0x8002)}})

	// All that is pending is taken that fits together: of two that clash the
	// first, and none that the application refuses.
	for i, p := range []Proposal{update(0x8001, "d"), removal(0x8001), update(0x8001, "bad")} {
		raw, _, err := gs[i].Propose(p, FramingOptions{})
		w.check(err)
		for k, g := range gs {
			if k != i {
				w.accept(g, w.parse(raw))
			}
		}
		_, err = server.Process(w.parse(raw))
		w.check(err)
	}
	c = step(map[ComponentID]string{0x8001: "abcd"}, 0, CommitOptions{Pending: true})
	if n := len(c.Proposals()); n != 1 {
		t.Errorf("%d proposals were committed, want 1", n)
	}
	// GroupContextExtensions beside it.
	dict, _ := gs[0].Extension(ExtensionTypeAppDataDictionary)
	step(map[ComponentID]string{0x8001: "abcde"}, 0, CommitOptions{Proposals: []Proposal{
		update(0x8001, "e"), GroupContextExtensions([]Extension{{ExtensionTypeAppDataDictionary, dict}}),
	}})
	w.talk(gs)
	// Stored and loaded, with a proposal waiting.
	raw, ref, err := gs[1].Propose(update(0x8002, "z"), FramingOptions{})
	w.check(err)
	w.accept(gs[0], w.parse(raw))
	loaded, err := LoadGroup(w.cfg, gs[0].EpochState(), gs[0].RatchetState())
	w.check(err)
	if ps := loaded.PendingProposals(); len(ps) != 1 || !bytes.Equal(ps[0].Ref, ref) || string(ps[0].Proposal.AppDataUpdate.Update) != "z" {
		t.Errorf("the stored proposal came back as %+v", ps)
	}
}

// External senders and those who join may send them.
func TestAppDataUpdateFromOutside(t *testing.T) {
	w := newAppDataWorld(t)
	key := w.key()
	gs := w.appDataGroup(ExternalSendersExtension([]ExternalSender{{SignatureKey: key.Public(), Credential: BasicCredential([]byte("server"))}}))
	raw, err := NewExternalProposal(w.cs, gs[0].GroupID(), gs[0].Epoch(), 0, key, update(0x8001, "outside"), nil)
	w.check(err)
	for _, g := range gs {
		w.accept(g, w.parse(raw))
	}
	_, gs = w.commit(gs, 1, CommitOptions{Pending: true})
	if got, _ := dictionary(t, gs[0]).Get(0x8001); string(got) != "outside" {
		t.Fatalf("component 0x8001 is %q", got)
	}
	m := w.forgeExternal(gs[0], externalForgery{
		options: w.appDataLeaf("joiner"),
		proposals: func(p Proposal) []proposalOrRef {
			return byValue(p, (&AppEphemeral{Component: 0x8001, Data: []byte("hello")}).Proposal())
		},
	})
	s := w.accept(gs[1], m).(*StagedCommit)
	if ps := s.Proposals(); len(ps) != 2 || string(ps[1].Proposal.AppEphemeral.Data) != "hello" {
		t.Errorf("the Commit holds %+v", ps)
	}
}

func TestAppDataDictionaryExtension(t *testing.T) {
	d := AppDataDictionary{{9, []byte("nine")}, {4, nil}, {9, []byte("again")}}
	got, err := ParseAppDataDictionary(d.Extension().Data)
	noError(t, err)
	if len(got) != 2 || got[0].Component != 4 || string(got[1].Data) != "nine" {
		t.Errorf("got %v", got)
	}
	if _, ok := got.Get(5); ok {
		t.Error("component 5 is there")
	}
}

// A KeyPackage of last resort says so by either extension.
func TestLastResortComponent(t *testing.T) {
	w := newRejectWorld(t)
	for name, c := range map[string]struct {
		edit func(o *LeafOptions)
		want bool
	}{
		"none":      {func(o *LeafOptions) {}, false},
		"extension": {func(o *LeafOptions) { o.LastResort = true }, true},
		"component": {func(o *LeafOptions) {
			o.KeyPackageExtensions = []Extension{AppDataDictionary{{Component: ComponentLastResort}}.Extension()}
		}, true},
		"other component": {func(o *LeafOptions) {
			o.KeyPackageExtensions = []Extension{AppDataDictionary{{Component: 5}}.Extension()}
		}, false},
		"malformed": {func(o *LeafOptions) {
			o.KeyPackageExtensions = []Extension{{ExtensionTypeAppDataDictionary, []byte{9}}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := w.options("x")
			c.edit(&o)
			b, err := NewKeyPackage(w.cfg, w.cs, w.key(), o)
			noError(t, err)
			kp := b.KeyPackage()
			if kp.LastResort() != c.want {
				t.Errorf("last resort: %v, want %v", kp.LastResort(), c.want)
			}
			for _, e := range kp.Extensions {
				if !kp.LeafNode.Capabilities.SupportsExtension(e.Type) {
					t.Errorf("the capabilities do not list extension type %d", e.Type)
				}
			}
		})
	}
}

// appDataRow is a row about a Commit with these proposals by value.
func appDataRow(row, rule Rule, proposals func(w *world, gs []*Group) []Proposal) rejectCase {
	if rule == "" {
		rule = row
	}
	return rejectCase{row: row, rule: rule, run: func(t *testing.T) error {
		w := newAppDataWorld(t)
		req := RequiredCapabilities{Proposals: []ProposalType{ProposalTypeAppDataUpdate}}
		gs := w.appDataGroup(req.Extension())
		_, gs = w.commit(gs, 0, CommitOptions{Proposals: []Proposal{update(0x8001, "data")}})
		pub := w.public(gs[1])
		ps := proposals(w, gs)
		if _, err := gs[0].Commit(CommitOptions{Proposals: ps}); !hasRule(err, rule) {
			t.Errorf("our own Commit: %v, want %s", err, rule)
		}
		m := w.forge(gs[0], commitForgery{proposals: byValue(ps...), path: true})
		if err := w.refusePublic(pub, m); !hasRule(err, rule) {
			t.Errorf("as a server: %v, want %s", err, rule)
		}
		return w.refuse(gs[1], m)
	}}
}

var appDataRejects = []rejectCase{
	appDataRow("app-data/update-refused", "", func(*world, []*Group) []Proposal { return []Proposal{update(0x8001, "bad")} }),
	appDataRow("app-data/update-of-unknown-component", "app-data/update-refused", func(*world, []*Group) []Proposal { return []Proposal{update(7, "x")} }),
	appDataRow("app-data/remove-absent", "", func(*world, []*Group) []Proposal { return []Proposal{removal(0x8002)} }),
	appDataRow("app-data/remove-with-others", "", func(w *world, gs []*Group) []Proposal {
		for _, ps := range [][]Proposal{{removal(0x8001), update(0x8001, "x")}, {removal(0x8001), removal(0x8001)}} {
			wantRule(w.t.(*testing.T), w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(ps...), path: true})), "app-data/remove-with-others")
		}
		return []Proposal{update(0x8001, "x"), removal(0x8001)}
	}),
	appDataRow("app-data/ephemeral-refused", "", func(*world, []*Group) []Proposal {
		return []Proposal{(&AppEphemeral{Component: 0x8001, Data: []byte("bad")}).Proposal()}
	}),
	appDataRow("app-data/gce-changes-dictionary", "", func(w *world, gs []*Group) []Proposal {
		other := AppDataDictionary{{0x8001, []byte("other")}}.Extension()
		wantRule(w.t.(*testing.T), w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(GroupContextExtensions([]Extension{other})), path: true})), "app-data/gce-changes-dictionary")
		return []Proposal{GroupContextExtensions(nil)}
	}),
	appDataRow("app-data/dictionary-too-large", "", func(*world, []*Group) []Proposal {
		half := string(make([]byte, 40_000))
		return []Proposal{update(0x8001, half), update(0x8002, half)}
	}),
	{row: "app-data/component-unknown", run: func(t *testing.T) error {
		w := newRejectWorld(t) // without Config.AppData
		gs := w.appDataGroup()
		if _, _, err := gs[0].Propose((&AppEphemeral{Component: 1}).Proposal(), FramingOptions{}); !hasRule(err, "app-data/component-unknown") {
			t.Errorf("our own proposal: %v", err)
		}
		if _, err := gs[0].Commit(CommitOptions{Pending: true, Proposals: []Proposal{update(1, "x")}}); !hasRule(err, "app-data/component-unknown") {
			t.Errorf("our own Commit: %v", err)
		}
		wantRule(t, w.refuse(gs[1], w.propose(gs[0], update(0x8001, "x"))), "app-data/component-unknown")
		return w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(update(0x8001, "x"))}))
	}},
	{row: "app-data/unsupported", rule: "proposal/type-unsupported", run: func(t *testing.T) error {
		w := newAppDataWorld(t)
		var err error
		for _, p := range []Proposal{update(0x8001, "x"), (&AppEphemeral{Component: 0x8001}).Proposal()} {
			gs := w.groupOf(nil, w.appDataLeaf("a"), w.appDataLeaf("b"), w.options("c"))
			// Who is removed by the same Commit need not know the type.
			if _, err := gs[0].Commit(CommitOptions{Proposals: []Proposal{p, Remove(2)}}); err != nil {
				t.Errorf("beside a Remove: %v", err)
			}
			err = w.refuse(gs[1], w.forge(gs[0], commitForgery{proposals: byValue(p)}))
			wantRule(t, err, "proposal/type-unsupported")
		}
		return err
	}},
	{row: "app-data/extension-unsupported", rule: "proposal-list/tree-invalid-after", run: func(t *testing.T) error {
		w := newAppDataWorld(t)
		c := w.supporting("c", ProposalTypeAppDataUpdate, ProposalTypeAppEphemeral)
		gs := w.groupOf(nil, w.appDataLeaf("a"), w.appDataLeaf("b"), c)
		m := w.forge(gs[0], commitForgery{proposals: byValue(update(0x8001, "x"))})
		return w.refuse(gs[1], m)
	}},
	{row: "app-data/dictionary-order", run: func(t *testing.T) error {
		for _, ids := range [][]ComponentID{{1, 1}, {2, 1}} {
			var d AppDataDictionary
			for _, id := range ids {
				d = append(d, ComponentData{Component: id})
			}
			_, err := ParseAppDataDictionary(d.appendTo(nil))
			wantRule(t, err, "app-data/dictionary-order")
			w := newAppDataWorld(t)
			_, err = CreateGroup(w.cfg, w.cs, nil, w.key(), w.appDataLeaf("a"), []Extension{{ExtensionTypeAppDataDictionary, d.appendTo(nil)}})
			wantRule(t, err, "app-data/dictionary-order")
		}
		_, err := ParseAppDataDictionary(AppDataDictionary{{2, nil}, {1, nil}}.appendTo(nil))
		return err
	}},
	{row: "app-data/unknown-operation", rule: "codec/unknown-app-data-operation", run: func(t *testing.T) error {
		noError(t, unmarshal([]byte{0, 1, appDataRemove}, new(AppDataUpdate)))
		wantRule(t, unmarshal([]byte{0, 1, 0}, new(AppDataUpdate)), "codec/unknown-app-data-operation")
		return unmarshal([]byte{0, 1, 3, 0}, new(AppDataUpdate))
	}},
	{row: "app-data/too-many-components", rule: "codec/vector-over-limit", run: func(t *testing.T) error {
		d := make(AppDataDictionary, maxComponents+1)
		for i := range d {
			d[i].Component = ComponentID(i)
		}
		_, err := ParseAppDataDictionary(d[:maxComponents].appendTo(nil))
		noError(t, err)
		_, err = ParseAppDataDictionary(d.appendTo(nil))
		return err
	}},
	{row: "app-data/trailing-bytes", rule: "codec/trailing-bytes-extension", run: func(t *testing.T) error {
		_, err := ParseAppDataDictionary([]byte{0, 0})
		return err
	}},
	{row: "app-data/truncated", rule: "codec/vector-longer-than-input", run: func(t *testing.T) error {
		var err error
		for _, v := range []wireType{&AppDataUpdate{Component: 1, Update: []byte("data")}, &AppDataUpdate{Component: 1, Remove: true}, &AppEphemeral{Component: 1, Data: []byte("data")}} {
			raw := v.appendTo(nil)
			for n := range len(raw) {
				into := wireType(new(AppDataUpdate))
				if _, ok := v.(*AppEphemeral); ok {
					into = new(AppEphemeral)
				}
				if err = unmarshal(raw[:n], into); err == nil {
					t.Errorf("%T: %d of %d bytes were taken", v, n, len(raw))
				}
			}
		}
		return err
	}},
}
