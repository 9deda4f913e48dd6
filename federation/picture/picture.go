package picture

import (
	"cmp"
	"slices"

	"github.com/matrix-mls/matrix-mls/federation"
)

// Options say what a survey does not know, and how much is drawn.
type Options struct {
	Title   string            // the room's name
	Source  string            // whose view it is, such as "as the module of one.example sees it"
	Devices map[uint32]string // names of devices, by leaf
	Own     func(leaf uint32) bool
	Liars   []federation.Liar // that the caller caught before
	Rows    int               // commits of the chain that are drawn one by one; default 24
}

const (
	defaultRows   = 24
	nearHead      = 8  // commits below the head that are never folded
	branchesShown = 4  // branches of one fork
	branchCommits = 3  // commits of one branch
	branchBudget  = 40 // commits beside the head, in all
	namesShown    = 6  // names in one list
	groupsShown   = 6  // of devices
	factsShown    = 4  // of a kind, in the summary
)

// Mark is what a commit is drawn as.
type Mark string

// The marks.
const (
	MarkFinal       Mark = "final"
	MarkAccepted    Mark = "accepted"
	MarkProvisional Mark = "provisional" // accepted without a majority
	MarkDoubt       Mark = "in-doubt"
	MarkDisplaced   Mark = "displaced" // another commit comes first
	MarkWaiting     Mark = "waiting"
	MarkFold        Mark = "folded" // several commits in one row
)

// Picture is a room's epochs, in words, newest first.
type Picture struct {
	Title   string   `json:"title,omitempty"`
	Room    string   `json:"room_id"`
	Source  string   `json:"source,omitempty"`
	Summary []string `json:"summary"`
	Rows    []Row    `json:"rows"`
	// Devices say who is known to have applied what.
	Devices []string `json:"devices"`
}

// Row is a commit, or a fold of several.
type Row struct {
	Lane  int    `json:"lane"` // 0: the chain that ends in the head; 1: a branch beside it
	Mark  Mark   `json:"mark"`
	Head  bool   `json:"head,omitempty"`
	Era   uint64 `json:"era,omitempty"` // that the commit opens
	Epoch uint64 `json:"epoch,omitempty"`
	Ref   string `json:"ref,omitempty"` // whole; none in a fold
	// State says in words where it stands, Text what else there is to say.
	State string   `json:"state"`
	Text  []string `json:"text,omitempty"`
	// Joins is set in the lowest row of a branch: it begins on the next commit of
	// the chain.
	Joins bool `json:"joins,omitempty"`
}

// short is the part of a ref that is drawn.
func (r *Row) short() string {
	if len(r.Ref) < 8 {
		return ""
	}
	return r.Ref[:8]
}

// drawing is what Of works with.
type drawing struct {
	s      *federation.Survey
	o      Options
	at     map[federation.Ref]*federation.Surveyed
	kids   map[federation.Ref][]*federation.Surveyed
	height map[federation.Ref]int // commits above, on the longest way
	size   map[federation.Ref]int // commits above, in all
	left   int                    // of branchBudget
	forks  int
	p      *Picture
}

// Of draws a survey.
func Of(s *federation.Survey, o Options) *Picture {
	if o.Rows <= 0 {
		o.Rows = defaultRows
	}
	d := &drawing{
		s: s, o: o, at: make(map[federation.Ref]*federation.Surveyed, len(s.Commits)), kids: make(map[federation.Ref][]*federation.Surveyed),
		height: make(map[federation.Ref]int), size: make(map[federation.Ref]int), left: branchBudget,
		p: &Picture{Title: heading(o.Title), Room: name(s.Room), Source: heading(o.Source)},
	}
	if s.Room == "" {
		d.p.Room = ""
	}
	for i := range s.Commits {
		c := &s.Commits[i]
		d.at[c.Ref] = c
		if i > 0 {
			d.kids[c.Parent] = append(d.kids[c.Parent], c)
		}
	}
	for i := len(s.Commits) - 1; i > 0; i-- {
		c := &s.Commits[i]
		d.height[c.Parent] = max(d.height[c.Parent], d.height[c.Ref]+1)
		d.size[c.Parent] += d.size[c.Ref] + 1
	}
	d.chain()
	d.summary()
	d.devices()
	return d.p
}

// chain draws the commits from the head down, with what branches off them.
func (d *drawing) chain() {
	var path []*federation.Surveyed
	for c := d.at[d.s.Head]; c != nil; c = d.at[c.Parent] {
		path = append(path, c)
		if c.Ref == d.s.Base {
			break
		}
	}
	shown := make([]bool, len(path))
	n := 0
	for i, c := range path {
		eventful := c.Ref == d.s.Final || c.Era > 0 || c.ListChange || len(d.beside(c)) > 0 || i > 0 && len(d.beside(path[i-1])) > 0
		if n < d.o.Rows && (i < nearHead || eventful) || i == len(path)-1 {
			shown[i] = true
			n++
		}
	}
	for _, c := range path {
		if d.forked(c) {
			d.forks++
		}
	}
	for i := 0; i < len(path); {
		if shown[i] || i+1 < len(path) && shown[i+1] {
			d.branches(path[i])
			d.row(path[i], 0, false)
			i++
			continue
		}
		j := i
		for j < len(path) && !shown[j] {
			j++
		}
		d.fold(path[i:j])
		i = j
	}
}

// beside returns the commits on c that are not on the head: accepted ones first.
func (d *drawing) beside(c *federation.Surveyed) []*federation.Surveyed {
	var out []*federation.Surveyed
	for _, k := range d.kids[c.Ref] {
		if !k.OnHead {
			out = append(out, k)
		}
	}
	slices.SortStableFunc(out, func(a, b *federation.Surveyed) int {
		return cmp.Or(boolRank(d.speaks(b))-boolRank(d.speaks(a)), d.height[b.Ref]-d.height[a.Ref])
	})
	return out
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// speaks reports whether a commit was accepted by anybody, or opens an era.
func (d *drawing) speaks(c *federation.Surveyed) bool { return len(c.Accepts) > 0 || c.Era > 0 }

// forked reports whether the fork choice had to choose above c.
func (d *drawing) forked(c *federation.Surveyed) bool {
	n := 0
	for _, k := range d.kids[c.Ref] {
		if k.OnHead || k.Why != federation.ReasonUnaccepted && k.Why != federation.ReasonEraUnvouched && k.Why != federation.ReasonEraRefused {
			n++
		}
	}
	return n > 1
}

// branches draws what branches off c.
func (d *drawing) branches(c *federation.Surveyed) {
	all := d.beside(c)
	hidden := 0
	for i, k := range all {
		if i >= branchesShown || d.left <= 0 {
			hidden += 1 + d.size[k.Ref]
			continue
		}
		d.branch(k)
	}
	if hidden > 0 {
		d.p.Rows = append(d.p.Rows, Row{Lane: 1, Mark: MarkFold, State: count(hidden, "more commit") + " beside the head, not drawn", Joins: true})
	}
}

// branch draws a branch from its tip down to its first commit.
func (d *drawing) branch(first *federation.Surveyed) {
	path := []*federation.Surveyed{first}
	for {
		all := d.beside(path[len(path)-1])
		if len(all) == 0 {
			break
		}
		path = append(path, all[0])
	}
	slices.Reverse(path)
	aside := d.size[first.Ref] + 1 - len(path)
	drawn := min(len(path), branchCommits)
	if len(path) == branchCommits+1 {
		drawn++ // rather than a fold of one
	}
	for i, c := range path {
		switch {
		case i < drawn-1 || i == len(path)-1:
			d.row(c, 1, i == len(path)-1)
			if i == len(path)-1 && aside > 0 {
				r := &d.p.Rows[len(d.p.Rows)-1]
				r.Text = append(r.Text, count(aside, "more commit")+" on branches of this one, not drawn")
			}
		case i == drawn-1:
			d.p.Rows = append(d.p.Rows, Row{Lane: 1, Mark: MarkFold, State: d.foldText(path[i : len(path)-1])})
		}
	}
	d.left -= drawn
}

func (d *drawing) fold(cs []*federation.Surveyed) {
	r := Row{Mark: MarkFold, State: d.foldText(cs)}
	hidden := 0
	for _, c := range cs {
		for _, k := range d.beside(c) {
			hidden += 1 + d.size[k.Ref]
		}
	}
	if hidden > 0 {
		r.Text = append(r.Text, count(hidden, "commit")+" beside them, not drawn")
	}
	d.p.Rows = append(d.p.Rows, r)
}

// foldText says what a fold holds.
func (d *drawing) foldText(cs []*federation.Surveyed) string {
	states := make(map[string]int)
	for _, c := range cs {
		states[stateOf(c)]++
	}
	text := count(len(cs), "commit") + ", epochs " + number(cs[len(cs)-1].Epoch) + " to " + number(cs[0].Epoch)
	if len(states) == 1 {
		return text + ", all " + stateOf(cs[0])
	}
	for _, st := range stateOrder {
		if n := states[st]; n > 0 {
			text += "; " + number(uint64(n)) + " " + st
		}
	}
	return text
}

func (d *drawing) row(c *federation.Surveyed, lane int, joins bool) {
	r := Row{Lane: lane, Mark: markOf(c), Head: c.Ref == d.s.Head, Era: c.Era, Epoch: c.Epoch, Ref: c.Ref.String(), Joins: joins}
	r.State, r.Text = d.words(c)
	d.p.Rows = append(d.p.Rows, r)
}
