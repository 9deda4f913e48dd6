package interop_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/mls"
)

// TestSelfRemove lets members of package mls and OpenMLS leave a group by the SelfRemove proposal of
// draft-ietf-mls-extensions, which both know under number 0x000a: each leaves, each commits it, and one who joins by an
// external commit takes those along who leave. mls-rs has another number for it.
func TestSelfRemove(t *testing.T) {
	running := startPeers(t)
	for _, suite := range []mls.CipherSuite{1, 2, 3} {
		t.Run(fmt.Sprintf("suite=%d", suite), func(t *testing.T) {
			tag := fmt.Sprintf("self-remove suite=%d", suite)
			s := &scenario{t: t, peers: running, libraries: []string{ours, interop.OpenMLS}, tag: tag, gid: []byte("group " + tag),
				o: options{suite: suite, treeExt: true}}
			s.selfRemove()
		})
	}
}

func (s *scenario) selfRemove() {
	leave := func(who named) []byte {
		s.t.Helper()
		var message []byte
		var err error
		switch m := who.member.(type) {
		case *own:
			message, _, err = m.group.Propose(mls.SelfRemove(), mls.FramingOptions{})
		case *foreign:
			var a *interop.Answer
			a, err = m.call("propose_self_remove", nil)
			message = a.Proposal
		}
		s.must(err)
		s.deliver(who, message)
		return message
	}
	for _, step := range []struct {
		name string
		f    func()
	}{
		{"create and add", func() {
			first := s.client(ours)
			s.must(first.create(s.gid))
			s.members = []named{first}
			var joiners []named
			for _, library := range []string{interop.OpenMLS, ours, interop.OpenMLS, ours, interop.OpenMLS} {
				joiners = append(joiners, s.client(library))
			}
			s.commit(first, request{path: true}, joiners)
			s.watch()
		}},
		{"OpenMLS leaves, we commit", func() {
			gone := s.by(interop.OpenMLS)
			leave(gone)
			s.commit(s.by(ours), request{pending: true}, nil, gone)
		}},
		{"we leave, OpenMLS commits", func() {
			gone := s.last(ours)
			leave(gone)
			s.commit(s.by(interop.OpenMLS), request{pending: true}, nil, gone)
		}},
		{"one of each leaves, we commit", func() {
			us, them := s.last(ours), s.last(interop.OpenMLS)
			leave(us)
			leave(them)
			s.commit(s.by(ours), request{pending: true}, nil, us, them)
		}},
		{"more join", func() {
			s.commit(s.by(interop.OpenMLS), request{path: true}, []named{s.client(interop.OpenMLS), s.client(ours)})
		}},
		{"one of each leaves while we join by an external commit", func() {
			us, them := s.last(ours), s.last(interop.OpenMLS)
			var leaving []*mls.Message
			for _, who := range []named{us, them} {
				m, err := mls.ParseMessage(leave(who))
				s.must(err)
				leaving = append(leaving, m)
			}
			info, err := s.by(interop.OpenMLS).groupInfo(true)
			s.must(err)
			joiner := s.client(ours)
			m := joiner.member.(*own)
			parsed, err := mls.ParseMessage(info)
			s.must(err)
			staged, err := mls.ExternalJoin(m.cfg, parsed, m.key, mls.ExternalJoinOptions{Leaf: m.leaf(), SelfRemoves: leaving})
			s.must(err)
			if n := len(staged.Removed()); n != 2 {
				s.t.Fatalf("the external commit removes %d members, want 2", n)
			}
			s.must(m.enter(staged.Merge()))
			s.deliver(joiner, staged.Message(), us, them)
			s.members = append(s.members, joiner)
			if n := len(s.members); n != 3 {
				s.t.Fatalf("%d members, want 3", n)
			}
		}},
		{"all go on", func() {
			for _, m := range slices.Clone(s.members) {
				s.commit(m, request{path: true}, nil)
			}
		}},
	} {
		if !s.step(step.name, step.f) {
			return
		}
	}
}
