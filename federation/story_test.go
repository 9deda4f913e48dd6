package federation

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestStories runs the scripts in testdata: each tells a story of one room, and
// shows what the machine asks its caller to do.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if strings.Contains(path, "fuzz") {
			return
		}
		s := &story{}
		datadriven.RunTest(t, path, s.run)
	})
}

func (s *story) note(ev Event) {
	if _, ok := ev.(Resume); !ok {
		c := &s.rooms[len(s.rooms)-1]
		c.Events = append(c.Events, ev)
	}
}

func (s *story) noteSent(acts []Action) {
	for _, a := range acts {
		if a, ok := a.(Send); ok {
			s.note(a.Receipt)
		}
	}
}

type story struct {
	w     *world
	m     *Machine
	self  string
	limit Limits
	now   time.Duration
	made  map[string]Event
	rooms []VectorCase // what each room of the script was given

	without rule
}

func (s *story) run(t *testing.T, d *datadriven.TestData) string {
	arg := func(key string) string {
		for _, a := range d.CmdArgs {
			if a.Key == key && len(a.Vals) > 0 {
				return strings.Join(a.Vals, ",")
			}
		}
		return ""
	}
	has := func(key string) bool {
		for _, a := range d.CmdArgs {
			if a.Key == key {
				return true
			}
		}
		return false
	}
	list := func(key string) []string {
		if v := arg(key); v != "" {
			return strings.Split(strings.Trim(v, "()"), ",")
		}
		return nil
	}
	step := func(ev Event) string {
		if id := arg("as"); id != "" {
			s.made[id] = ev
		}
		if has("hold") {
			return "held back\n"
		}
		s.note(ev)
		acts, err := s.m.Step(ev)
		if err != nil {
			return err.Error() + "\n"
		}
		s.noteSent(acts)
		if out := s.w.actions(acts); out != "" {
			return out
		}
		return "nothing\n"
	}
	switch d.Cmd {
	case "room":
		s.w, s.self, s.now, s.made = newWorld(), arg("self"), 0, map[string]Event{}
		s.w.heirs = list("heirs")
		fmt.Sscan(arg("window"), &s.w.window)
		cfg := testConfig(s.self)
		cfg.without = s.without
		if has("keep") {
			fmt.Sscan(arg("keep"), &s.limit.Keep)
		}
		cfg.Limits = s.limit
		base := s.w.base(list("list"), list("admins"), list("leaves"))
		s.rooms = append(s.rooms, VectorCase{Room: testRoom, Base: base, Compacts: has("keep")})
		m, err := New(cfg, base)
		if err != nil {
			return err.Error() + "\n"
		}
		s.m = m
		return s.w.state(m)
	case "commit":
		spec := commitSpec{external: has("external"), onlyRemoves: has("only-removes"), add: list("add"), remove: list("remove"),
			update: list("update"), list: list("list"), admins: list("admins"), heirs: list("heirs"), barred: arg("barred")}
		fmt.Sscan(arg("era"), &spec.era)
		return step(s.w.commit(arg("name"), arg("on"), arg("by"), spec))
	case "accept":
		var ps []*Promise
		for _, id := range list("promises") {
			ps = append(ps, s.made[id].(*Promise))
		}
		return step(s.w.accept(arg("ref"), arg("by"), parseBallot(arg("ballot")), has("provisional"), ps))
	case "vote":
		var proofs []Proof
		for _, p := range list("proofs") {
			ref, leaf, _ := strings.Cut(p, ":")
			proofs = append(proofs, Proof{Applied: s.w.applied(ref, leaf)})
		}
		return step(s.w.vote(arg("ref"), arg("by"), parseBallot(arg("ballot")), proofs))
	case "promise":
		var last *LastVote
		if has("last") {
			ref, ballot, _ := strings.Cut(arg("last"), "@")
			last = &LastVote{Ballot: parseBallot(ballot), Ref: testRef(ref)}
		}
		return step(s.w.promise(arg("list"), arg("by"), parseBallot(arg("ballot")), last))
	case "ready":
		return step(s.w.ready(arg("list"), arg("by")))
	case "applied":
		return step(s.w.applied(arg("ref"), arg("leaf")))
	case "reject":
		return step(s.w.reject(arg("ref"), arg("leaf"), arg("rule")))
	case "deliver":
		return step(s.made[arg("id")])
	case "tick":
		s.now += parseDuration(arg("by"))
		acts := s.m.Tick(s.now)
		s.noteSent(acts)
		if out := s.w.actions(acts); out != "" {
			return out
		}
		return "nothing\n"
	case "restart":
		data, err := s.m.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		cfg := testConfig(s.self)
		cfg.without = s.without
		cfg.Limits = s.limit
		m, err := Unmarshal(cfg, data)
		if err != nil {
			t.Fatal(err)
		}
		again, err := m.MarshalBinary()
		if err != nil || !bytes.Equal(data, again) {
			t.Fatalf("state changed over a restart (%v)", err)
		}
		s.m, s.now = m, 0
		return s.w.state(m)
	case "resume":
		return step(Resume{})
	case "state":
		return s.w.state(s.m)
	}
	t.Fatalf("unknown command %q", d.Cmd)
	return ""
}
