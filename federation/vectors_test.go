package federation_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

var (
	update      = flag.Bool("update", false, "write federation/vectors anew from the stories, the random rooms and the simulator")
	readerSeeds = flag.Int64("reader.seeds", 12, "rooms of TestVectorsByTheSecondReader that are in no vector")
	readerFirst = flag.Int64("reader.first", 20000, "seed of the first of them")
)

// The form of a vector is described in docs/epochs.md.
type vector struct {
	Name   string        `json:"name"`
	About  string        `json:"about"`
	Room   string        `json:"room"`
	Base   vectorBase    `json:"base"`
	Events []vectorEvent `json:"events"`
	Expect vectorOutcome `json:"expect"`
}

type vectorBase struct {
	Ref     rooms.Hash   `json:"ref"`
	Epoch   uint64       `json:"epoch"`
	Era     uint64       `json:"era"`
	Config  rooms.Hash   `json:"cfg"`
	GroupID rooms.Bytes  `json:"group_id"`
	Suite   uint16       `json:"suite"`
	Policy  vectorPolicy `json:"policy"`
	Leaves  []vectorLeaf `json:"leaves"`
}

type vectorLeaf struct {
	Leaf uint32      `json:"leaf"`
	User string      `json:"user"`
	Key  rooms.Bytes `json:"key"`
}

type vectorPolicy struct {
	Sequencers  []vectorSequencer `json:"sequencers"`
	Admins      []string          `json:"admins"`
	Heirs       []vectorHeir      `json:"heirs,omitempty"`
	Takeover    int64             `json:"takeover_ms,omitempty"`
	HeirsWait   int64             `json:"heirs_wait_ms,omitempty"`
	Window      int               `json:"window,omitempty"`
	OnPartition string            `json:"on_partition,omitempty"`
}

type vectorSequencer struct {
	Server string      `json:"server"`
	User   string      `json:"user"`
	Key    rooms.Bytes `json:"receipt_key"`
}

type vectorHeir struct {
	User   string `json:"user"`
	Server string `json:"server"`
}

type vectorEvent struct {
	Type    string          `json:"type"`
	Content json.RawMessage `json:"content"`
}

type vectorCommit struct {
	Ref         rooms.Hash      `json:"ref"`
	Parent      rooms.Hash      `json:"parent"`
	Epoch       uint64          `json:"epoch"`
	Author      uint32          `json:"author"`
	AuthorUser  string          `json:"author_user"`
	External    bool            `json:"external,omitempty"`
	Removed     []uint32        `json:"removed,omitempty"`
	Updated     []vectorLeaf    `json:"updated,omitempty"`
	Added       []vectorLeaf    `json:"added,omitempty"`
	Policy      *vectorPolicy   `json:"policy,omitempty"`
	Era         *vectorEra      `json:"era,omitempty"`
	Founding    *vectorFounding `json:"founding,omitempty"`
	OnlyRemoves bool            `json:"only_removes,omitempty"`
}

type vectorEra struct {
	Number  uint64   `json:"number"`
	ByHeirs bool     `json:"by_heirs,omitempty"`
	Signers []string `json:"signers,omitempty"`
}

type vectorFounding struct {
	GroupID rooms.Bytes  `json:"group_id"`
	Suite   uint16       `json:"suite"`
	Leaves  []vectorLeaf `json:"leaves"`
}

type vectorOutcome struct {
	Head    rooms.Hash              `json:"head"`
	Safe    rooms.Hash              `json:"safe_head"`
	Usable  rooms.Hash              `json:"usable_head"`
	Final   rooms.Hash              `json:"final"`
	Era     uint64                  `json:"era"`
	EraBase rooms.Hash              `json:"era_base"`
	Commits map[string]vectorStatus `json:"commits"`
	// Refused are the indices of the events that are none.
	Refused []int `json:"refused,omitempty"`
	// Evidence lists "kind cfg rank", sorted.
	Evidence []string `json:"evidence,omitempty"`
}

type vectorStatus struct {
	Status   string `json:"status"`
	Accepted bool   `json:"accepted,omitempty"`
	Votable  bool   `json:"votable,omitempty"`
	InDoubt  bool   `json:"in_doubt,omitempty"`
	Final    bool   `json:"final,omitempty"`
}

const typeCommitFacts = "commit"

func leavesOut(ls []federation.Leaf) []vectorLeaf {
	var out []vectorLeaf
	for _, l := range ls {
		out = append(out, vectorLeaf{l.Index, l.User, l.Key})
	}
	return out
}

func leavesIn(ls []vectorLeaf) []federation.Leaf {
	var out []federation.Leaf
	for _, l := range ls {
		out = append(out, federation.Leaf{Index: l.Leaf, User: l.User, Key: l.Key})
	}
	return out
}

func policyOut(p *federation.Policy) *vectorPolicy {
	if p == nil {
		return nil
	}
	out := &vectorPolicy{Sequencers: []vectorSequencer{}, Admins: append([]string{}, p.Admins...), Takeover: p.Takeover.Milliseconds(), HeirsWait: p.HeirsWait.Milliseconds(), Window: p.Window}
	if p.OnPartition == federation.OnPartitionFreeze {
		out.OnPartition = "freeze"
	}
	for _, s := range p.Sequencers {
		out.Sequencers = append(out.Sequencers, vectorSequencer{s.Server, s.User, s.ReceiptKey})
	}
	for _, h := range p.Heirs {
		out.Heirs = append(out.Heirs, vectorHeir(h))
	}
	return out
}

func (p *vectorPolicy) in() *federation.Policy {
	if p == nil {
		return nil
	}
	out := &federation.Policy{Admins: p.Admins, Takeover: time.Duration(p.Takeover) * time.Millisecond,
		HeirsWait: time.Duration(p.HeirsWait) * time.Millisecond, Window: p.Window}
	if p.OnPartition == "freeze" {
		out.OnPartition = federation.OnPartitionFreeze
	}
	for _, s := range p.Sequencers {
		out.Sequencers = append(out.Sequencers, federation.Sequencer{Server: s.Server, User: s.User, ReceiptKey: s.Key})
	}
	for _, h := range p.Heirs {
		out.Heirs = append(out.Heirs, federation.Heir(h))
	}
	return out
}

func (b *vectorBase) in() federation.Base {
	return federation.Base{Ref: federation.Ref(b.Ref), Epoch: b.Epoch, Era: b.Era, Config: federation.Ref(b.Config), GroupID: b.GroupID,
		Suite: b.Suite, Policy: *b.Policy.in(), Leaves: leavesIn(b.Leaves)}
}

func baseOut(b *federation.Base) vectorBase {
	out := vectorBase{Ref: rooms.Hash(b.Ref), Epoch: b.Epoch, Era: b.Era, Config: rooms.Hash(b.Config), GroupID: b.GroupID, Suite: b.Suite,
		Policy: *policyOut(&b.Policy), Leaves: leavesOut(b.Leaves)}
	if out.Config.IsZero() {
		out.Config = out.Ref
	}
	return out
}

func eventOut(t *testing.T, ev federation.Event) vectorEvent {
	t.Helper()
	var out vectorEvent
	var content any
	switch ev := ev.(type) {
	case *federation.Commit:
		c := vectorCommit{Ref: rooms.Hash(ev.Ref), Parent: rooms.Hash(ev.Parent), Epoch: ev.Epoch, Author: ev.Author, AuthorUser: ev.AuthorUser,
			External: ev.External, Removed: ev.Removed, Updated: leavesOut(ev.Updated), Added: leavesOut(ev.Added), Policy: policyOut(ev.Policy),
			OnlyRemoves: ev.OnlyRemoves}
		if ev.Era != nil {
			c.Era = &vectorEra{ev.Era.Number, ev.Era.ByHeirs, ev.Era.Signers}
		}
		if ev.Founding != nil {
			c.Founding = &vectorFounding{ev.Founding.GroupID, ev.Founding.Suite, leavesOut(ev.Founding.Leaves)}
		}
		out.Type, content = typeCommitFacts, c
	case *federation.Applied:
		out.Type, content = rooms.TypeApplied, rooms.AppliedOf(ev)
	case *federation.Rejected:
		out.Type, content = rooms.TypeReject, rooms.RejectOf(ev)
	case federation.Receipt:
		out.Type, content = rooms.ReceiptOf(ev)
	default:
		t.Fatalf("event of type %T", ev)
	}
	raw, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	out.Content = raw
	return out
}

// in reads an event; an error means that it is none.
func (ev *vectorEvent) in() (federation.Event, error) {
	if ev.Type != typeCommitFacts {
		return rooms.DecodeReceipt(ev.Type, "", ev.Content)
	}
	var c vectorCommit
	if err := json.Unmarshal(ev.Content, &c); err != nil {
		return nil, err
	}
	out := &federation.Commit{Ref: federation.Ref(c.Ref), Parent: federation.Ref(c.Parent), Epoch: c.Epoch, Author: c.Author, AuthorUser: c.AuthorUser,
		External: c.External, Removed: c.Removed, Updated: leavesIn(c.Updated), Added: leavesIn(c.Added), Policy: c.Policy.in(), OnlyRemoves: c.OnlyRemoves}
	if c.Era != nil {
		out.Era = &federation.Era{Number: c.Era.Number, ByHeirs: c.Era.ByHeirs, Signers: c.Era.Signers}
	}
	if c.Founding != nil {
		out.Founding = &federation.Founding{GroupID: c.Founding.GroupID, Suite: c.Founding.Suite, Leaves: leavesIn(c.Founding.Leaves)}
	}
	return out, nil
}

// outcome feeds a vector's events to a machine in the given order.
func (v *vector) outcome(t *testing.T, order []int, restart int) vectorOutcome {
	t.Helper()
	cfg := federation.Config{Room: v.Room, Verify: rooms.VerifyLeafSignature}
	m, err := federation.New(cfg, v.Base.in())
	if err != nil {
		t.Fatal(err)
	}
	proofs := map[string]bool{}
	step := func(i int) error {
		ev, err := v.Events[i].in()
		if err != nil {
			return err
		}
		acts, err := m.Step(ev)
		for _, a := range acts {
			if e, ok := a.(federation.Evidence); ok {
				rank, _ := rankOf(m, v, e)
				proofs[fmt.Sprintf("%s %s %d", e.Kind, rooms.Hash(e.Config), rank)] = true
			}
		}
		return err
	}
	old := true
	for n, i := range order {
		_ = step(i)
		if old && !m.TooOld(0) { // epochs begin again: what came too early is fetched again
			old = false
			for _, j := range order[:n] {
				_ = step(j)
			}
		}
		if restart > 0 && n%restart == restart-1 {
			data, err := m.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			if m, err = federation.Unmarshal(cfg, data); err != nil {
				t.Fatal(err)
			}
		}
		if n%5 == 4 {
			m.Tick(time.Duration(n) * time.Second)
		}
	}
	out := vectorOutcome{Head: rooms.Hash(m.Head()), Safe: rooms.Hash(m.SafeHead()), Usable: rooms.Hash(m.UsableHead()), Final: rooms.Hash(m.NewestFinal()),
		Commits: map[string]vectorStatus{}}
	era, base := m.EraOf()
	out.Era, out.EraBase = era, rooms.Hash(base)
	for i := range v.Events {
		if step(i) != nil { // with everything else held, so whatever is refused now is no event
			out.Refused = append(out.Refused, i)
		}
		ev, err := v.Events[i].in()
		if c, ok := ev.(*federation.Commit); ok && err == nil && m.Held(c.Ref) && c.Ref != federation.Ref(v.Base.Ref) {
			out.Commits[rooms.Hash(c.Ref).String()] = vectorStatus{m.Status(c.Ref).String(), m.Accepted(c.Ref), m.Votable(c.Ref), m.InDoubt(c.Ref), m.Final(c.Ref)}
		}
	}
	for p := range proofs {
		out.Evidence = append(out.Evidence, p)
	}
	slices.Sort(out.Evidence)
	return out
}

func rankOf(m *federation.Machine, v *vector, e federation.Evidence) (uint32, bool) {
	policy, ok := m.PolicyAt(e.Config)
	if !ok { // the list below the base
		policy = *v.Base.Policy.in()
	}
	return policy.Sequencers.Rank(e.Signer.ReceiptKey)
}

func vectorFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("vectors/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	return files
}

func readVector(t *testing.T, file string) *vector {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	v := new(vector)
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return v
}

// TestVectors gives each vector's events to a machine, as they stand and in
// other orders, over restarts, and wants the outcome that is written there.
func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	seen := map[string]int{}
	for _, file := range vectorFiles(t) {
		v := readVector(t, file)
		t.Run(v.Name, func(t *testing.T) {
			rng := rand.New(rand.NewSource(int64(len(v.Events))))
			want, err := json.Marshal(v.Expect)
			if err != nil {
				t.Fatal(err)
			}
			for n := range 4 {
				order := rng.Perm(len(v.Events))
				if n == 0 {
					slices.Sort(order)
				}
				if n > 1 { // some come twice
					order = append(order, order[:len(order)/3]...)
				}
				got, err := json.Marshal(v.outcome(t, order, []int{0, 0, 7, 23}[n]))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("order %d\ngot  %s\nwant %s", n, got, want)
				}
			}
		})
		count(seen, v)
	}
	// The vectors have to reach what the page is about.
	for _, k := range []string{"final", "in doubt", "side branch", "displaced", "waiting", "accepted", "votable", "era", "refused", "takeover",
		"list change", "founding", "two-promises-for-one-ballot", "accepts-off-one-chain", "votes-off-one-chain", "vote-understated-in-promise",
		"vote-off-own-accepts"} {
		if seen[k] == 0 {
			t.Errorf("no vector has %q", k)
		}
	}
	t.Log(seen)
}

func count(seen map[string]int, v *vector) {
	for _, s := range v.Expect.Commits {
		seen[s.Status]++
	}
	for _, e := range v.Expect.Evidence {
		seen[strings.Fields(e)[0]]++
	}
	seen["refused"] += len(v.Expect.Refused)
	if v.Expect.Era > 0 {
		seen["era"]++
	}
	for _, ev := range v.Events {
		switch {
		case ev.Type == rooms.TypeAccept && bytes.Contains(ev.Content, []byte(`"promises"`)):
			seen["takeover"]++
		case ev.Type == typeCommitFacts && bytes.Contains(ev.Content, []byte(`"founding"`)):
			seen["founding"]++
		case ev.Type == typeCommitFacts && bytes.Contains(ev.Content, []byte(`"sequencers"`)) && !bytes.Contains(ev.Content, []byte(`"era"`)):
			seen["list change"]++
		}
	}
}

// signStatement returns a function that signs a statement with the leaf key of a
// seed.
func signStatement(t *testing.T) func(seed, content []byte) []byte {
	return func(seed, content []byte) []byte {
		key, err := mls.ParseSignaturePrivateKey(mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519, seed)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := mls.SignWithLabel(mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519, key, rooms.LabelStatement, content)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
}

func writeVectors(t *testing.T) {
	cases := federation.VectorCases(t, signStatement(t))
	for _, f := range vectorFiles(t) {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	total := 0
	for _, c := range cases {
		v := vectorOf(t, &c)
		raw := encodeVector(t, v)
		total += len(raw)
		if err := os.WriteFile(filepath.Join("vectors", v.Name+".json"), raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d bytes of vectors", total)
}

// vectorOf mixes the events of a case and asks the machine for the outcome.
func vectorOf(t *testing.T, c *federation.VectorCase) *vector {
	t.Helper()
	v := &vector{Name: c.Name, About: c.About, Room: c.Room, Base: baseOut(&c.Base)}
	order := rand.New(rand.NewSource(int64(crc32.ChecksumIEEE([]byte(c.Name))))).Perm(len(c.Events))
	for _, i := range order {
		ev := eventOut(t, c.Events[i])
		if edit := c.Edits[i]; edit != nil {
			content := edit(string(ev.Content))
			if content == string(ev.Content) {
				t.Fatalf("%s: the edit of event %d changes nothing in %s", c.Name, i, content)
			}
			ev.Content = json.RawMessage(content)
		}
		v.Events = append(v.Events, ev)
	}
	slices.Sort(order)
	v.Expect = v.outcome(t, order, 0)
	return v
}

// encodeVector puts one event on each line.
func encodeVector(t *testing.T, v *vector) []byte {
	t.Helper()
	enc := func(x any) []byte {
		raw, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\"name\": %s,\n\"about\": %s,\n\"room\": %s,\n\"base\": %s,\n\"events\": [\n", enc(v.Name), enc(v.About), enc(v.Room), enc(v.Base))
	for i, ev := range v.Events {
		b.Write(enc(ev))
		if i < len(v.Events)-1 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "],\n\"expect\": %s}\n", enc(v.Expect))
	return b.Bytes()
}

// TestVectorsByTheSecondReader gives the vectors, and rooms that are in none, to the reader
// written from docs/epochs.md, and compares what it says with the machine's word.
func TestVectorsByTheSecondReader(t *testing.T) {
	dir := t.TempDir()
	files, want := vectorFiles(t), map[string]vectorOutcome{}
	for _, f := range files {
		v := readVector(t, f)
		want[v.Name] = v.Expect
	}
	for _, c := range federation.FreshCases(t, *readerFirst, *readerSeeds, signStatement(t)) {
		v := vectorOf(t, &c)
		want[v.Name] = v.Expect
		f := filepath.Join(dir, v.Name+".json")
		if err := os.WriteFile(f, encodeVector(t, v), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	lines := 0
	sources, err := filepath.Glob("reader/*.py")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no reader: %v", err)
	}
	for _, f := range sources {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		lines += bytes.Count(raw, []byte("\n"))
	}
	if lines > 400 {
		t.Errorf("the reader and what it imports (%s) have %d lines, at most 400 are one page of protocol", strings.Join(sources, ", "), lines)
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatalf("the second reader needs Python 3.10 or newer: %v", err)
	}
	const batch = 200 // files in one command line
	for len(files) > 0 {
		n := min(batch, len(files))
		cmd := exec.Command(python, append([]string{"-B", "reader/reader.py"}, files[:n]...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr.Bytes())
		}
		for _, line := range bytes.Split(bytes.TrimSpace(out), []byte("\n")) {
			var got struct {
				Name    string        `json:"name"`
				Outcome vectorOutcome `json:"outcome"`
			}
			if err := json.Unmarshal(line, &got); err != nil {
				t.Fatalf("%v in %.200s", err, line)
			}
			w, ok := want[got.Name]
			if !ok {
				t.Fatalf("the reader tells of %q, which nobody asked for", got.Name)
			}
			delete(want, got.Name)
			if !reflect.DeepEqual(got.Outcome, w) {
				t.Errorf("%s\nreader  %+v\nmachine %+v", got.Name, got.Outcome, w)
			}
		}
		files = files[n:]
	}
	for name := range want {
		t.Errorf("the reader does not tell of %s", name)
	}
}
