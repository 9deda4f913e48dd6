package picture

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/matrix-mls/matrix-mls/federation"
)

func number(n uint64) string { return strconv.FormatUint(n, 10) }

// count says how many there are of something.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	word, rest, _ := strings.Cut(what, " ")
	if rest != "" && word == "more" {
		return strconv.Itoa(n) + " more " + rest + "s"
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// list names some, and says how many there are beside them.
func list(all []string, shown int) string {
	if len(all) > shown {
		return strings.Join(all[:shown], ", ") + " and " + strconv.Itoa(len(all)-shown) + " more"
	}
	if n := len(all); n > 1 {
		return strings.Join(all[:n-1], ", ") + " and " + all[n-1]
	}
	return strings.Join(all, "")
}

// names makes identifiers harmless and names each once, with how often it stands
// there.
func names(ids []string) []string {
	var out []string
	times := make(map[string]int)
	for _, id := range ids {
		if times[id]++; times[id] == 1 {
			out = append(out, id)
		}
	}
	for i, id := range out {
		out[i] = name(id)
		if n := times[id]; n > 1 {
			out[i] += " (" + strconv.Itoa(n) + " devices)"
		}
	}
	return out
}

// The states of a commit, in the order in which a fold counts them.
var stateOrder = []string{"final", "accepted", "provisional", "in doubt", "displaced", "not accepted", "waiting", "not counting"}

func stateOf(c *federation.Surveyed) string {
	switch markOf(c) {
	case MarkFinal:
		return "final"
	case MarkAccepted:
		return "accepted"
	case MarkProvisional:
		return "provisional"
	case MarkDoubt:
		return "in doubt"
	case MarkDisplaced:
		return "displaced"
	}
	if c.Why == federation.ReasonEraRefused || c.Why == federation.ReasonEraUnvouched {
		return "not counting"
	}
	if !c.Beside.IsZero() || c.Why == "" {
		return "not accepted" // another is in its place, or in that of one below it
	}
	return "waiting"
}

func markOf(c *federation.Surveyed) Mark {
	switch c.Status {
	case federation.StatusFinal:
		return MarkFinal
	case federation.StatusAccepted, federation.StatusVotable:
		return MarkAccepted
	case federation.StatusSideBranch:
		return MarkProvisional
	case federation.StatusDoubt:
		return MarkDoubt
	case federation.StatusDisplaced:
		return MarkDisplaced
	}
	switch c.Why {
	case federation.ReasonEraNumber, federation.ReasonEraAdmin, federation.ReasonEraFinal, federation.ReasonEraRef:
		return MarkDisplaced // an era that counts, beside one that comes first
	}
	return MarkWaiting
}

// words says where a commit stands, and everything else about it.
func (d *drawing) words(c *federation.Surveyed) (state string, text []string) {
	state = stateOf(c)
	era := d.at[d.s.Era]
	switch {
	case era != nil && c.Depth < era.Depth && !c.Final && c.OnHead:
		state += ", below the era"
	case c.Status == federation.StatusVotable:
		state += ", waits for votes"
	case c.Status == federation.StatusAccepted:
		state += ", waits for another user's device to apply it"
	case c.Status == federation.StatusDisplaced && c.Final:
		state += ", though final in its era"
	}
	if c.Ref == d.s.Final && c.Ref != d.s.Head {
		state = "newest " + state
	}
	if c.Ref == d.s.Head {
		state = "HEAD, " + state
	}
	if c.Ref == d.s.Base {
		if d.s.FromRoot {
			return state + ", the founding epoch", d.sets(c)
		}
		return state + ", what is kept here begins with it", d.sets(c)
	}
	text = append(text, d.made(c))
	text = append(text, d.sets(c)...)
	if s := accepts(c); s != "" {
		text = append(text, s)
	}
	if s := votes(c); s != "" {
		text = append(text, s)
	}
	if c.Ref == d.s.Era && len(d.s.Overridden) > 0 {
		text = append(text, "overrides "+count(len(d.s.Overridden), "final commit")+": "+d.refs(d.s.Overridden))
	}
	if c.RejectRule != "" {
		s := "rejected by " + name(c.RejectedBy) + ": " + name(c.RejectRule)
		if c.Vouched {
			s += "; others could apply it"
		}
		text = append(text, s)
	}
	if c.Why != "" {
		text = append(text, d.why(c))
	}
	return state, text
}

// made says who made a commit, and what it does with the members.
func (d *drawing) made(c *federation.Surveyed) string {
	s := "by " + name(c.Author)
	if c.External {
		s += ", who let itself in"
		if i := slices.Index(c.Adds, c.Author); i >= 0 {
			c = &federation.Surveyed{Adds: slices.Delete(slices.Clone(c.Adds), i, i+1), Removes: c.Removes, PolicyChange: c.PolicyChange}
		}
	}
	if len(c.Adds) > 0 {
		s += "; adds " + list(names(c.Adds), namesShown)
	}
	if len(c.Removes) > 0 {
		s += "; removes " + list(names(c.Removes), namesShown)
	}
	if c.PolicyChange {
		s += "; changes the policy"
	}
	return s
}

// sets says what list, era or group a commit begins.
func (d *drawing) sets(c *federation.Surveyed) (out []string) {
	var servers []string
	for _, s := range c.Lists {
		servers = append(servers, s.Server)
	}
	order := "nobody"
	if len(servers) > 0 {
		order = list(names(servers), namesShown)
	}
	switch {
	case c.Era > 0 && c.ByHeirs:
		out = append(out, "opens era "+number(c.Era)+" by the heirs, ordered by "+order)
	case c.Era > 0:
		out = append(out, "opens era "+number(c.Era)+", ordered by "+order)
	case c.ListChange:
		out = append(out, "changes who orders commits: "+order)
	case len(c.Lists) > 0:
		out = append(out, "ordered by "+order)
	}
	if c.Suite > 0 {
		out = append(out, "founds the group anew, with cipher suite "+number(uint64(c.Suite)))
	}
	return out
}

// listToCome names the servers of the list change on the head's line that is not final,
// an accepted one first.
func (d *drawing) listToCome() []string {
	var best *federation.Surveyed
	for i := range d.s.Commits {
		c := &d.s.Commits[i]
		if !c.ListChange || c.Final || !c.OnHead && c.Status == federation.StatusDisplaced {
			continue
		}
		above := false // the head's, where it is not on the head
		for up := c; up != nil && !above; up = d.at[up.Parent] {
			above = up.Ref == d.s.Head
		}
		if (c.OnHead || above) && (best == nil || len(c.Accepts) > 0 && len(best.Accepts) == 0) {
			best = c
		}
	}
	if best == nil {
		return nil
	}
	var servers []string
	for _, s := range best.Lists {
		servers = append(servers, s.Server)
	}
	return names(servers)
}

// accepts says who accepted a commit, and how.
func accepts(c *federation.Surveyed) string {
	var parts []string
	for _, a := range c.Accepts {
		s := name(a.Server) + " in ballot " + a.Ballot.String()
		if a.Provisional {
			s = name(a.Server) + " without a majority"
		}
		switch {
		case a.Liar:
			s += " (contradicts itself there)"
		case !a.Itself:
			s += " (with one above it)"
		}
		parts = append(parts, s)
	}
	if len(parts) == 0 {
		return ""
	}
	return "accepted by " + list(parts, namesShown)
}

// votes says who voted for a commit.
func votes(c *federation.Surveyed) string {
	switch {
	case len(c.Votes) > 0 && len(c.Votes) >= c.Quorum:
		return "made final by the votes of " + list(names(c.Votes), namesShown) + " in ballot " + c.VoteBallot.String()
	case len(c.Votes) > 0:
		return fmt.Sprintf("%d of %d votes: %s", len(c.Votes), c.Quorum, list(names(c.Votes), namesShown))
	}
	return ""
}

// refs names commits.
func (d *drawing) refs(refs []federation.Ref) string {
	var out []string
	for _, r := range refs {
		out = append(out, r.Short())
	}
	return list(out, factsShown)
}

// best returns the accept that counts for a commit in the fork choice.
func best(c *federation.Surveyed) (federation.SurveyedAccept, bool) {
	var out federation.SurveyedAccept
	found := false
	for _, a := range c.Accepts { // by rank
		if a.Liar {
			continue
		}
		if !found || out.Provisional && !a.Provisional || !a.Provisional && out.Ballot.Less(a.Ballot) || out.Provisional && a.Provisional && !out.Itself && a.Itself {
			out, found = a, true
		}
	}
	return out, found
}

// why says why another commit comes before c: the fork choice's own reason.
func (d *drawing) why(c *federation.Surveyed) string {
	w := d.at[c.Beside]
	if w == nil {
		w = new(federation.Surveyed)
	}
	first := w.Ref.Short() + " comes first: "
	mine, _ := best(c)
	its, _ := best(w)
	switch c.Why {
	case federation.ReasonUnaccepted:
		if w.Ref.IsZero() {
			return "waits for an accept"
		}
		return "was not accepted; " + w.Ref.Short() + " is in its place"
	case federation.ReasonFinal:
		if w.Final {
			return first + "it is final"
		}
		return first + "a commit above it is final"
	case federation.ReasonEra:
		return first + "it leads to era " + number(d.s.EraNumber)
	case federation.ReasonListChange:
		return first + "a change of who orders commits counts only once it is final"
	case federation.ReasonBallot:
		return first + "it is accepted in ballot " + its.Ballot.String() + ", this only without a majority"
	case federation.ReasonHigherBallot:
		return first + "its ballot " + its.Ballot.String() + " is above " + mine.Ballot.String()
	case federation.ReasonItself:
		return first + "it is accepted itself, this only with one above it"
	case federation.ReasonEquivocation:
		return first + "only who contradicts itself accepted this"
	case federation.ReasonRank:
		return first + name(its.Server) + " ranks before " + name(mine.Server)
	case federation.ReasonRef:
		return first + "nothing else decides, so the lower ref does"
	case federation.ReasonEraNumber:
		return "era " + number(d.s.EraNumber) + " comes first: its number is higher"
	case federation.ReasonEraAdmin:
		return d.s.Era.Short() + " comes first: an admin opened that era, heirs this one"
	case federation.ReasonEraFinal:
		return d.s.Era.Short() + " comes first: it keeps more that was final"
	case federation.ReasonEraRef:
		return d.s.Era.Short() + " comes first: nothing else decides, so the lower ref does"
	case federation.ReasonEraUnvouched:
		return "this era does not count: nobody vouched for it"
	case federation.ReasonEraRefused:
		if c.ByHeirs {
			return "this era does not count: heirs of too few servers open it, or its author is none"
		}
		return "this era does not count: its author may not open one"
	}
	return first + name(string(c.Why))
}

// summary says in sentences how the room stands.
func (d *drawing) summary() {
	s := d.s
	say := func(format string, args ...any) { d.p.Summary = append(d.p.Summary, fmt.Sprintf(format, args...)) }
	head, final := d.at[s.Head], d.at[s.Final]
	if head == nil || final == nil {
		return
	}
	behind := head.Depth - final.Depth
	switch {
	case behind == 0:
		say("The head is epoch %d, %s, and it is final.", head.Epoch, head.Ref.Short())
	default:
		say("The head is epoch %d, %s, %s. The newest final is epoch %d, %s, %s below it.",
			head.Epoch, head.Ref.Short(), stateOf(head), final.Epoch, final.Ref.Short(), count(behind, "commit"))
	}
	if s.EraNumber > 0 {
		text := fmt.Sprintf("Era %d.", s.EraNumber)
		if n := len(s.Overridden); n > 0 {
			text += fmt.Sprintf(" It overrides %s: %s.", count(n, "final commit"), d.refs(s.Overridden))
		}
		say("%s", text)
	}
	var servers []string
	for _, q := range s.Sequencers {
		servers = append(servers, name(q.Server))
	}
	switch n := len(servers); {
	case n == 0:
		say("Nobody orders commits.")
	case n == 1:
		say("%s orders commits alone.", servers[0])
	case s.Sequencers.Quorum() == n:
		say("Commits are ordered by %s; it takes both to make one final.", list(servers, n))
	default:
		say("Commits are ordered by %s; %d of %d make one final.", list(servers, n), s.Sequencers.Quorum(), n)
	}
	if to := d.listToCome(); len(to) > 0 {
		say("The list is being changed to %s.", list(to, len(to)))
	}
	if d.forks > 0 {
		say("%s held here; each displaced branch says why.", map[bool]string{true: "1 fork is", false: strconv.Itoa(d.forks) + " forks are"}[d.forks == 1])
	}
	if s.Usable != s.Head {
		if u := d.at[s.Usable]; u != nil {
			say("Frozen: members send in epoch %d, %s; what is above has to become final first.", u.Epoch, u.Ref.Short())
		}
	}
	if s.Safe != s.Head {
		if u := d.at[s.Safe]; u != nil {
			say("In doubt: new commits are made on epoch %d, %s, below what a member could not apply.", u.Epoch, u.Ref.Short())
		}
	}
	if s.Provisional || head.Status == federation.StatusSideBranch {
		say("This side goes on without a majority, for at most %s; it loses to the other side's when they meet again.", count(s.Window, "commit"))
	}
	if s.Stalled {
		say("Something waits, and nothing becomes final.")
	}
	if a := s.Asked; a != nil {
		say("%s asks to take over with ballot %s: %d of %d promises.", name(a.Server), a.Ballot, a.Promises, a.Quorum)
	}
	d.liars(say)
	for i, m := range s.Missing {
		if i == factsShown {
			say("%s missing, too.", map[bool]string{true: "1 more commit is", false: strconv.Itoa(len(s.Missing)-i) + " more commits are"}[len(s.Missing)-i == 1])
			break
		}
		say("Commit %s is missing; %s for it.", m.Ref.Short(), map[bool]string{true: "1 event waits", false: strconv.Itoa(m.Events) + " events wait"}[m.Events == 1])
	}
}

var kinds = map[federation.EvidenceKind]string{
	federation.EvidenceAccepts:  "accepts that exclude each other",
	federation.EvidenceVotes:    "votes that exclude each other",
	federation.EvidencePromises: "two promises for one ballot",
	federation.EvidenceHidden:   "a promise that hides a vote",
	federation.EvidenceOwner:    "a vote against its own accept",
}

func (d *drawing) liars(say func(string, ...any)) {
	told := make(map[string]bool)
	n := 0
	for _, l := range slices.Concat(d.s.Liars, d.o.Liars) {
		what := kinds[l.Kind]
		if what == "" {
			what = name(string(l.Kind))
		}
		key := string(l.Signer.ReceiptKey) + what
		if told[key] {
			continue
		}
		told[key] = true
		if n++; n <= factsShown {
			say("Caught lying: %s signed %s.", name(l.Signer.Server), what)
		}
	}
	if n > factsShown {
		say("%s of lies, not listed.", count(n-factsShown, "more proof"))
	}
}

// devices says which devices are known to have applied what.
func (d *drawing) devices() {
	type group struct {
		head   string
		depth  int
		beside bool
		who    []device
		n      int
	}
	groups := make(map[federation.Ref]*group)
	silent := &group{}
	add := func(g *group, l federation.SurveyedLeaf) {
		g.n++
		g.who = append(g.who, device{user: l.User, name: d.o.Devices[l.Leaf], own: d.o.Own != nil && d.o.Own(l.Leaf)})
	}
	head := d.at[d.s.Head]
	for _, l := range d.s.Devices {
		ref := l.Reached
		if !l.Beside.IsZero() {
			ref = l.Beside
		}
		c := d.at[ref]
		if c == nil || head == nil {
			add(silent, l)
			continue
		}
		g := groups[ref]
		if g == nil {
			g = &group{depth: c.Depth, beside: !c.OnHead, head: fmt.Sprintf("epoch %d, %s", c.Epoch, c.Ref.Short())}
			switch {
			case c.Ref == d.s.Head:
				g.head += ", the head"
			case g.beside:
				g.head += ", beside the head"
			default:
				g.head += fmt.Sprintf(", %d behind", head.Depth-c.Depth)
			}
			groups[ref] = g
		}
		add(g, l)
	}
	order := make([]*group, 0, len(groups))
	for _, g := range groups {
		order = append(order, g)
	}
	slices.SortFunc(order, func(a, b *group) int {
		if a.beside != b.beside {
			return boolRank(a.beside) - boolRank(b.beside)
		}
		if a.depth != b.depth {
			return b.depth - a.depth
		}
		return strings.Compare(a.head, b.head)
	})
	rest := 0
	for i, g := range order {
		if i >= groupsShown {
			rest += g.n
			continue
		}
		d.p.Devices = append(d.p.Devices, g.head+": "+list(labels(g.who), namesShown))
	}
	if rest > 0 {
		d.p.Devices = append(d.p.Devices, "further behind: "+count(rest, "device"))
	}
	if silent.n > 0 {
		d.p.Devices = append(d.p.Devices, "not heard from yet: "+list(labels(silent.who), namesShown))
	}
}

// device is a device that is named in a list.
type device struct {
	user, name string
	own        bool
}

// labels names devices: the own one first, those without a name by their users.
func labels(all []device) []string {
	var first, named []string
	var users []string
	for _, dev := range all {
		s := name(dev.user)
		if dev.name != "" {
			s += " " + name(dev.name)
		}
		switch {
		case dev.own:
			first = append(first, s+" (this device)")
		case dev.name != "":
			named = append(named, s)
		default:
			users = append(users, dev.user)
		}
	}
	return slices.Concat(first, named, names(users))
}
