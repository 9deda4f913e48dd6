package interop_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/mls"
)

// TestReInit lets groups of package mls and mls-rs go on in another group by a ReInit, by value and by reference, with
// each as the founder of the next: in the suite they had, and in the other one with the same signatures. OpenMLS can
// not.
func TestReInit(t *testing.T) {
	running := startPeers(t)
	for _, suites := range [][2]mls.CipherSuite{{1, 1}, {1, 3}, {3, 1}, {2, 2}, {5, 5}, {7, 7}} {
		for _, private := range []bool{false, true} {
			name := fmt.Sprintf("suite=%d/next=%d/handshake=%s", suites[0], suites[1], map[bool]string{false: "public", true: "private"}[private])
			t.Run(name, func(t *testing.T) {
				tag := "reinit " + name
				s := &scenario{t: t, peers: running, libraries: []string{ours, interop.MLSRs}, tag: tag, gid: []byte("group 0 " + tag),
					o: options{suite: suites[0], private: private, treeExt: !private}}
				ok := s.step("create and add", func() {
					first := s.client(ours)
					s.must(first.create(s.gid))
					s.members = []named{first}
					s.commit(first, request{path: true}, []named{s.client(interop.MLSRs), s.client(ours), s.client(interop.MLSRs)})
				})
				for i, library := range []string{ours, interop.MLSRs, ours, interop.MLSRs} {
					byReference := i >= 2
					ok = ok && s.step(fmt.Sprintf("group %d, founded by %s, by reference: %v", i+1, library, byReference), func() {
						// From the second suite back to the first, and so on.
						s.reinitialize(s.by(s.after(library)), s.last(library), suites[1-i%2], fmt.Appendf(nil, "group %d %s", i+1, tag), byReference)
						s.agree()
						s.commit(s.by(s.after(library)), request{path: true}, nil)
					})
				}
			})
		}
	}
}

// reinitialize closes the group by a ReInit and lets all members go on in the one that it names, which one of them
// founds. The suite's signature scheme must be that of the group.
func (s *scenario) reinitialize(by, founder named, suite mls.CipherSuite, gid []byte, byReference bool) {
	s.t.Helper()
	next := &mls.ReInit{GroupID: gid, Version: mls.MLS10, CipherSuite: suite}
	if byReference {
		s.propose(by, proposal{reinit: next})
		s.commit(founder, request{pending: true, path: true}, nil)
	} else {
		s.commit(by, request{reinit: next, path: true}, nil)
	}
	s.agree()
	s.o.suite = suite
	var packages [][]byte
	for _, m := range s.members {
		kp, err := m.closed(suite)
		s.must(err)
		if m.name != founder.name {
			packages = append(packages, kp)
		}
	}
	welcome, tree, err := founder.found(packages)
	s.must(err)
	if s.o.treeExt {
		tree = nil
	}
	for _, m := range s.members {
		if m.name != founder.name {
			s.must(m.follow(welcome, tree))
		}
	}
	s.gid, s.observers = gid, nil
	i := slices.IndexFunc(s.members, func(m named) bool { return m.name == founder.name })
	s.members = append([]named{founder}, slices.Delete(slices.Clone(s.members), i, i+1)...)
}
