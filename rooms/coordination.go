package rooms

import (
	"bytes"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
)

// federatedModules is how many sequencers a room of several servers gets: with
// two, neither could be missed for a majority.
const federatedModules = 3

// serversOf returns the servers that have users in the group, those of the
// longest members first (by leaf, then by name).
func serversOf(leaves []GroupLeaf) []string {
	first := make(map[string]GroupLeaf)
	for _, l := range leaves {
		server := serverOf(l.Cred.User)
		if old, ok := first[server]; server != "" && (!ok || l.Index < old.Index) {
			first[server] = l
		}
	}
	out := make([]string, 0, len(first))
	for server := range first {
		out = append(out, server)
	}
	slices.SortFunc(out, func(a, b string) int {
		if first[a].Index != first[b].Index {
			return int(first[a].Index) - int(first[b].Index)
		}
		return strings.Compare(a, b)
	})
	return out
}

// DefaultSequencers returns the list that the admins' clients give a group
// whose policy is not [Policy.Manual]: what it has until three servers with
// users in the group have modules in the room, then three (two buy no
// finality), those in the list already first. A module that left the room gives
// its place to another one; otherwise a list is left as it is. modules are
// those in the room, with the keys they announce.
func DefaultSequencers(p *Policy, modules []federation.Sequencer, leaves []GroupLeaf) []federation.Sequencer {
	if p.Manual {
		return p.Sequencers
	}
	byServer := make(map[string]federation.Sequencer)
	for _, m := range modules {
		byServer[m.Server] = m
	}
	var list, gone, spare []federation.Sequencer
	for _, s := range p.Sequencers {
		if _, ok := byServer[s.Server]; ok {
			list = append(list, s)
		} else {
			gone = append(gone, s)
		}
	}
	for _, server := range serversOf(leaves) {
		m, ok := byServer[server]
		if ok && !slices.ContainsFunc(p.Sequencers, func(s federation.Sequencer) bool {
			return s.Server == server || s.User == m.User || bytes.Equal(s.ReceiptKey, m.ReceiptKey)
		}) {
			spare = append(spare, m)
		}
	}
	want := len(p.Sequencers)
	if want < federatedModules && len(list)+len(spare) >= federatedModules {
		want = federatedModules
	}
	if missing := want - len(list); missing > 0 {
		list = append(list, spare[:min(missing, len(spare))]...)
	}
	if missing := want - len(list); missing > 0 { // nobody to take the place
		list = append(list, gone[:min(missing, len(gone))]...)
	}
	if sameSequencers(list, p.Sequencers) {
		return p.Sequencers // in its order
	}
	return list
}

// sameSequencers tells whether two lists hold the same entries in any order.
func sameSequencers(a, b []federation.Sequencer) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(s federation.Sequencer) bool {
		return !slices.ContainsFunc(b, func(o federation.Sequencer) bool {
			return s.Server == o.Server && s.User == o.User && bytes.Equal(s.ReceiptKey, o.ReceiptKey)
		})
	})
}

// DefaultHeirs returns the heirs that the admins' clients give a group whose
// policy is not [Policy.Manual]: up to three users of each server other than
// the creator's. Heirs that are in the group stay; the longest members come
// next. A group that anyone may join ([JoinOpen]) has only those that its
// admins name.
func DefaultHeirs(p *Policy, leaves []GroupLeaf) []federation.Heir {
	if p.Manual || p.Join == JoinOpen {
		return p.Heirs
	}
	users := make(map[string][]id.UserID) // by server, longest members first
	sorted := slices.Clone(leaves)
	slices.SortFunc(sorted, func(a, b GroupLeaf) int { return int(a.Index) - int(b.Index) })
	for _, l := range sorted {
		server := serverOf(l.Cred.User)
		if server != "" && server != serverOf(p.Creator) && !slices.Contains(users[server], l.Cred.User) {
			users[server] = append(users[server], l.Cred.User)
		}
	}
	var out []federation.Heir
	count := make(map[string]int)
	for _, h := range p.Heirs {
		if slices.Contains(users[h.Server], id.UserID(h.User)) {
			out = append(out, h)
			count[h.Server]++
		}
	}
	for _, server := range serversOf(leaves) {
		for _, user := range users[server] {
			h := federation.Heir{User: string(user), Server: server}
			if count[server] < maxHeirsSrv && len(out) < maxHeirs && !slices.Contains(out, h) {
				out = append(out, h)
				count[server]++
			}
		}
	}
	return out
}
