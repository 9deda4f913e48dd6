package mls

import "testing"

// A member cannot stop Commits by an Update that no longer supports what another
// proposes: the Update waits.
func TestPendingApplicationDataAndUpdatesThatClash(t *testing.T) {
	w := newAppDataWorld(t)
	for name, p := range map[string]Proposal{
		"AppDataUpdate": update(0x8001, "x"),
		"AppEphemeral":  (&AppEphemeral{Component: 0x8001, Data: []byte("x")}).Proposal(),
	} {
		gs := w.appDataGroup()
		raw, _, err := gs[2].Propose(p, FramingOptions{})
		w.check(err)
		leaf := w.options("member1")
		caps := DefaultCapabilities()
		caps.Extensions = []ExtensionType{ExtensionTypeAppDataDictionary}
		leaf.Capabilities = &caps
		up, _, err := gs[1].ProposeUpdate(&leaf, FramingOptions{})
		w.check(err)
		for _, m := range [][]byte{raw, up} {
			_, err := gs[0].Process(w.parse(m))
			w.check(err)
		}
		sc, err := gs[0].Commit(CommitOptions{Pending: true})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if n := len(sc.Proposals()); n != 1 || sc.Proposals()[0].Proposal.Type != p.Type {
			t.Errorf("%s: %d proposals are committed", name, n)
		}
	}
}
