package simulation

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/internal/simnet"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// mutant names a rule that a run leaves out, of clients (package probe) or of what
// servers, modules and disks do here.
type mutant string

const (
	acceptsKept   mutant = "a server keeps accepts to itself, whoever posts or shows them"
	appliedKept   mutant = "a server keeps what members vouch for to itself"
	messagesKept  mutant = "a server keeps messages to itself"
	plaintext     mutant = "a device sends what it encrypts in the clear, too"
	exporterTold  mutant = "a device tells the exporter secret of an epoch"
	keyUploaded   mutant = "a device uploads its signature key"
	strangersKey  mutant = "who has a user's self-signing key adds a device"
	kickSwallowed mutant = "a server says that it put somebody out, and does not"

	promisesKept    mutant = "servers keep promises to themselves"
	vouchedFalsely  mutant = "a second member vouches for what nobody can apply"
	ownReceiptsKept mutant = "a server shows a module nothing of what it signed"
	forgottenUntold mutant = "a server tells nobody of a membership that it forgot"
)

// TestPropertiesTurnRed: without a rule the property breaks that rests on it, in a
// script that holds with the rule.
func TestPropertiesTurnRed(t *testing.T) {
	const two = "servers=2 modules=1 users=2 window=16 history=shared"
	for _, test := range []struct {
		without  mutant
		faults   string
		steps    string
		property string
	}{
		{acceptsKept, two, "run 2\npolicy 0 1 0\nrun 7\n", "1 convergence"},
		{appliedKept, two, "run 2\npolicy 0 1 0\nrun 7\n", "2 a live majority regains finality"},
		{messagesKept, two, "send 0\nrun 7\n", "4 no lost message"},
		{plaintext, two, "send 0\nrun 2\n", "5 server blindness"},
		{exporterTold, two, "send 0\nrun 2\n", "5 server blindness"},
		{keyUploaded, two, "send 0\nrun 2\n", "5 server blindness"},
		{probe.Barrier, "servers=2 modules=1 users=3 window=16 history=shared members", "crash 1 0\nleave 0 1 1\nsend 0\nrun 3\n", "6 removal"},
		{probe.Forget, "servers=1 modules=1 users=2 window=3 history=shared", manyPolicies, "7 bounded forks"},
		{strangersKey, two, "run 5\nrun 9\n", "8 membership soundness"},
		{promisesKept, "servers=3 modules=3 users=3 window=16 history=shared lists hang", "list 0 7 0\nrun 12\nhang 0 0 0\npolicy 0 1 0\nrun 12\n", "2 a live majority regains finality"},
		{vouchedFalsely, "servers=2 modules=1 users=3 window=16 history=shared bad members", "invite 2 0 0\nrun 12\n", "2 finality"},
		{probe.Rejoin, "servers=2 modules=1 users=3 window=16 history=shared half members", "invite 2 0 0\nrun 12\n", "1 convergence"},
		{probe.Copies, "servers=1 modules=1 users=2 window=16 history=shared backup", "backup 1 0 0\nsend 0 0 0\nrun 3\nbackup 1 0 0\nsend 0 0 0\nrun 3\n", "15 crash safety"},
		{ownReceiptsKept, "servers=1 modules=1 users=2 window=16 history=shared backup", "backup 0 0 0\npolicy 0 1 0\nrun 9\nbackup 0 0 0\npolicy 0 0 0\nrun 9\n", "15 crash safety"},
		{forgottenUntold, "servers=2 modules=1 users=3 window=16 history=joined members reset", "leave 0 2 1\nrun 9\ninvite 0 0 0\nrun 3\ninvite 0 0 1\nrun 9\nreset 1 1 0\nrun 9\n", "11 live proposals"},
		{probe.Accept, "servers=2 modules=1 users=2 window=16 history=shared members", "invite 1 0 0\nrun 9\n", "12 Welcome only after accept"},
		{probe.Packages, "servers=2 modules=1 users=2 window=16 history=shared members", "invite 0 0 0\nrun 9\ninvite 0 0 1\nrun 9\nleave 0 2 1\nrun 9\ninvite 0 0 0\nrun 9\n", "13 one Welcome for each key package"},
		{probe.Confirm, "servers=3 modules=3 users=3 window=16 history=shared members split", "run 12\nsplit 5 0 0\npolicy 0 1 0\ninvite 2 0 2\nrun 12\nrun 12\nrun 12\nrun 12\ninvite 0 0 3\nrun 12\n", "14 newcomers"},
		{probe.Proof, "servers=3 modules=3 users=3 window=16 history=shared members split liar", "run 12\nsplit 5 0 0\npolicy 0 1 0\ninvite 2 0 2\nrun 12\nrun 12\nrun 12\nrun 12\ninvite 0 0 3\nrun 12\nlie 0 4 5\nrun 9\n", "14 newcomers"},
		{probe.Proposals, "servers=2 modules=1 users=3 window=16 history=shared propose", "propose 0 1 2\nrun 9\n", "9 no forgery"},
		{probe.Tags, "servers=2 modules=1 users=2 window=16 history=shared swap", "swap 0 0 0\npolicy 0 1 0\nrun 9\n", "7 bounded forks"},
		{probe.Unready, "servers=3 modules=3 users=3 window=16 history=shared lists hang", "list 0 6 0\nhang 2 0 0\nrun 12\nlist 0 1 0\nrun 12\n", "10 bounded censorship"},
		{probe.Removes, "servers=3 modules=3 users=4 window=16 history=shared members parted", "part 1 0 0\nleave 0 1 2\ninvite 0 0 0\neach 0\nwait 12\neach 0\nwait 2\nheal\nwait 2\n", "6 removal"},
		{probe.Once, "servers=3 modules=3 users=3 window=16 history=shared parted", "part 1 0 0\neach 0\nwait 12\neach 0\nwait 2\nheal\nwait 2\n", "4 no lost message"},
		{probe.Stale, "servers=2 modules=1 users=3 window=16 history=shared half members stale", "policy 0 1 0\nrun 9\ninvite 2 0 0\nrun 12\nheal\npolicy 0 0 0\nrun 12\n", "14 newcomers"},
		{probe.Admission, "servers=2 modules=1 users=2 window=16 history=shared forge", "forge 0\nrun 12\n", "17 no server's act alone"},
		{probe.Signed, "servers=2 modules=1 users=2 window=16 history=shared fake", "fake 1\nrun 12\n", "8 membership soundness"},
		{probe.Durable, "servers=2 modules=1 users=2 window=16 history=shared crash", "run 12\ncrash 0 2\nsend 0\nrun 11\nsend 0\nrun 7\n", "15 crash safety"},
		{probe.Inclusion, "servers=2 modules=1 users=3 window=16 history=shared members keep away", "run 12\nkeep 1\naway 0 230\nleave 1 0 0\nwait 2\neach 1\nwait 1\n", "11 live proposals"},
		{probe.Resend, "servers=3 modules=3 users=3 window=6 history=shared parted", "run 12\npart 1 0 0\neach 0\nwait 3\n" + fourTimesEach + "heal\nwait 2\n", "4 no lost message"},
		{kickSwallowed, "servers=2 modules=1 users=3 window=16 history=shared members", "leave 0 2 1\nrun 9\n", "9 no forgery"},
	} {
		if raceEnabled && test.without != probe.Barrier {
			continue // all of them run without the race detector
		}
		t.Run(string(test.without), func(t *testing.T) {
			sc, err := parseScript("seed 1\nfaults " + test.faults + "\n" + test.steps)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := run(t, sc, nil); err != nil {
				t.Fatalf("with all rules: %v", err)
			}
			sc.without = test.without
			_, err = run(t, sc, nil)
			var v *violation
			if !errors.As(err, &v) || v.property != test.property {
				t.Errorf("got %v, want a violation of %s", err, test.property)
			}
		})
	}
}

// TestKeptScriptsTurnRed: the same of a rule that only a kept script needs.
func TestKeptScriptsTurnRed(t *testing.T) {
	if raceEnabled {
		return // runs without the race detector
	}
	for _, test := range []struct {
		without          mutant
		script, property string
	}{
		{probe.Behind, "said-before-who-came-in-again-knew", "4 no lost message"},
	} {
		t.Run(string(test.without), func(t *testing.T) {
			text, err := os.ReadFile("testdata/" + test.script + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			sc, err := parseScript(string(text)) // holds with the rule: TestKeptScripts
			if err != nil {
				t.Fatal(err)
			}
			sc.without = test.without
			_, err = run(t, sc, nil)
			var v *violation
			if !errors.As(err, &v) || v.property != test.property {
				t.Errorf("got %v, want a violation of %s", err, test.property)
			}
		})
	}
}

const manyPolicies = "policy 0 0 0\nrun 7\npolicy 0 2 0\nrun 7\n" + fourPolicies + fourPolicies + fourPolicies + fourPolicies + fourPolicies

const fourPolicies = "policy 0 0 0\nrun 7\npolicy 0 1 0\nrun 7\npolicy 0 0 0\nrun 7\npolicy 0 1 0\nrun 7\n"

const fourTimesEach = "each 0\nwait 2\neach 0\nwait 2\neach 0\nwait 2\neach 0\nwait 2\n"

// mutate leaves the run's rule out from here on.
func (w *world) mutate() {
	keep := func(kinds ...string) {
		last := w.net.Servers[len(w.net.Servers)-1]
		if kinds[0] == rooms.TypeApplied {
			last = w.net.Servers[0]
		}
		w.net.Hide = func(at *simnet.Server, e *simnet.Event) bool { return at == last && slices.Contains(kinds, e.Type) }
	}
	everywhere := func(kind string) {
		w.net.Hide = func(_ *simnet.Server, e *simnet.Event) bool { return e.Type == kind || e.Type == rooms.TypeRepost }
	}
	switch w.script.without {
	case promisesKept:
		everywhere(rooms.TypePromise)
	case acceptsKept:
		keep(rooms.TypeAccept, rooms.TypeRepost, rooms.TypeHead) // clients take them from heads, too
	case appliedKept:
		keep(rooms.TypeApplied, rooms.TypeRepost)
	case messagesKept:
		keep(rooms.TypeEncrypted)
	case strangersKey:
		w.strangersDevice(w.devices[1], true)
	case probe.Tags, probe.Inclusion:
		for _, m := range w.modules {
			m.probe.Without[string(w.script.without)] = true
		}
	case probe.Barrier, probe.Forget, probe.Rejoin, probe.Copies, probe.Accept, probe.Packages, probe.Confirm, probe.Proof, probe.Proposals, probe.Unready,
		probe.Removes, probe.Once, probe.Stale, probe.Behind, probe.Admission, probe.Signed, probe.Resend, probe.Durable:
		for _, d := range w.devices {
			d.probe.Without[string(w.script.without)] = true
		}
	}
}

// kept tells whether a server keeps an event from its module.
func (m *module) kept(e *simnet.Event) bool {
	return m.w.lying && m.w.script.without == ownReceiptsKept && e.Sender == m.user
}

// vouch lets a second member say that it applied what nobody can apply.
func (w *world) vouch(by *device, ref federation.Ref) {
	d := pick(w.devices, 0, func(d *device) bool { return d.user != by.user && d.member() })
	if w.script.without != vouchedFalsely || d == nil {
		return
	}
	h := d.held()
	group := h.Epochs[h.Machine.Head()]
	scope := federation.Scope{Room: string(w.room), Group: group.GroupID()}
	a, err := rooms.SignApplied(suite, w.net.User(d.user).Devices[d.id].MLS[suite], scope, ref, group.OwnLeafIndex(), make([]byte, 32))
	if err != nil {
		w.fail("%v", err)
	}
	raw, err := rooms.Encode(rooms.AppliedOf(a))
	if err != nil {
		w.fail("%v", err)
	}
	d.server.Send(d.user, w.room, rooms.TypeApplied, nil, raw)
}
