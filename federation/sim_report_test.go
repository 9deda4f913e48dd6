package federation

import "fmt"

// tail tells the last events of a run and where everyone stands.
func (s *sim) tail(k int) string {
	out := ""
	for _, ev := range s.log[max(0, len(s.log)-k):] {
		switch ev := ev.(type) {
		case *Commit:
			out += fmt.Sprintf("commit %s on %s by %s ext=%v add=%d rem=%d cannot=%s list=%v era=%v\n", ev.Ref.Short(), ev.Parent.Short(), ev.AuthorUser, ev.External, len(ev.Added), len(ev.Removed), s.cannot[ev.Ref], ev.Policy != nil, ev.Era != nil)
		case *Accept:
			out += fmt.Sprintf("accept %s %s prov=%v by %d list %s votes=%d\n", ev.Ref.Short(), ev.Ballot, ev.Provisional, ev.Ballot.Rank, ev.Config.Short(), len(ev.Votes))
		case *Vote:
			out += fmt.Sprintf("vote %s %s by %d list %s\n", ev.Ref.Short(), ev.Ballot, ev.Voter, ev.Config.Short())
		case *Promise:
			l := "-"
			if ev.LastVote != nil {
				l = ev.LastVote.Ref.Short() + "@" + ev.LastVote.Ballot.String()
			}
			out += fmt.Sprintf("promise %s by %d list %s last %s\n", ev.Ballot, ev.Promiser, ev.Config.Short(), l)
		case *Ready:
			out += fmt.Sprintf("ready %s by %d\n", ev.Config.Short(), ev.Member)
		case *Applied:
			out += fmt.Sprintf("applied %s by leaf %d\n", ev.Ref.Short(), ev.Leaf)
		case *Rejected:
			out += fmt.Sprintf("reject %s by leaf %d\n", ev.Ref.Short(), ev.Leaf)
		}
	}
	for _, x := range s.nodes {
		out += fmt.Sprintf("%s up=%v head=%s safe=%s final=%s usable=%s at=%s inbox=%d log=%d stalled=%v", x.name, x.up, x.m.head.ref.Short(), x.m.SafeHead().Short(), x.m.final.ref.Short(), x.m.UsableHead().Short(), x.at.Short(), len(x.inbox), len(s.log), x.m.stalled(x.m.serving(), true))
		if x.module {
			o := x.m.ownState(x.m.serving())
			out += fmt.Sprintf(" promised=%s open=%v unanswered=%d retired=%v", o.promised, o.open, x.m.turn.unanswered, x.m.retired)
		}
		out += "\n"
	}
	return out
}
