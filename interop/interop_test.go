package interop_test

import (
	"crypto/rand"
	"fmt"
	"slices"
	"testing"

	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/mls"
)

// TestInterop runs groups in which package mls, OpenMLS and mls-rs are members together: each creates the group once,
// each does everything once, in each suite that it shares with us, with both framings of handshakes and both ways for
// the ratchet tree (in suite 1 each with each). After every step all members are compared and each sends to each.
func TestInterop(t *testing.T) {
	running := startPeers(t)
	for suite := mls.CipherSuite(1); suite <= 7; suite++ {
		if !suite.Supported() {
			t.Errorf("this build lacks suite %d", suite)
			continue
		}
		libraries := []string{ours}
		for _, name := range []string{interop.OpenMLS, interop.MLSRs} {
			info, err := running[name].Call("info", nil)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(info.Suites, uint16(suite)) {
				libraries = append(libraries, name)
			}
		}
		want := map[mls.CipherSuite]int{1: 3, 2: 3, 3: 3, 4: 1, 5: 2, 6: 1, 7: 2}[suite]
		if len(libraries) != want {
			t.Fatalf("suite %d: the libraries are %v, want %d of them", suite, libraries, want)
		}
		if len(libraries) == 1 {
			continue // no partner has it
		}
		for i, creator := range libraries {
			order := append(slices.Clone(libraries[i:]), libraries[:i]...)
			for _, private := range []bool{false, true} {
				for _, treeExt := range []bool{true, false} {
					if suite != 1 && treeExt == private {
						continue
					}
					name := fmt.Sprintf("suite=%d/creator=%s/handshake=%s/tree=%s", suite, creator,
						map[bool]string{false: "public", true: "private"}[private],
						map[bool]string{true: "inside", false: "beside"}[treeExt])
					t.Run(name, func(t *testing.T) {
						s := &scenario{t: t, peers: running, libraries: order, tag: name, gid: []byte("group " + name),
							o: options{suite: suite, private: private, treeExt: treeExt}}
						s.run()
					})
				}
			}
		}
	}
}

// run is the story of one group. A step that fails ends it: its members no longer agree.
func (s *scenario) run() {
	creator := s.libraries[0]
	steps := []struct {
		name string
		f    func()
	}{{"create and add one of each", func() {
		first := s.client(creator)
		s.must(first.create(s.gid))
		s.members = []named{first}
		var joiners []named
		for _, library := range s.libraries[1:] {
			joiners = append(joiners, s.client(library))
		}
		s.commit(first, request{path: true}, joiners)
		s.watch()
	}}}
	each := func(what string, f func(library string)) {
		for _, library := range s.libraries {
			steps = append(steps, struct {
				name string
				f    func()
			}{what + " by " + library, func() { f(library) }})
		}
	}
	each("add with path", func(l string) {
		s.commit(s.by(l), request{path: true}, []named{s.client(s.after(l))})
	})
	each("add without path", func(l string) {
		s.commit(s.by(l), request{}, []named{s.client(s.after(l)), s.client(l)})
	})
	each("update", func(l string) { s.commit(s.by(l), request{path: true}, nil) })
	each("remove", func(l string) {
		gone := s.last(s.after(l))
		s.commit(s.by(l), request{removes: []uint32{s.index(gone)}, path: true}, nil, gone)
	})
	each("proposals by reference, committed", func(l string) {
		other := s.after(l)
		s.propose(s.last(other), proposal{update: true})
		joiner := s.client(other)
		kp, err := joiner.keyPackage()
		s.must(err)
		s.propose(s.by(other), proposal{add: kp})
		gone := s.last(l)
		i := s.index(gone)
		s.propose(s.by(other), proposal{remove: &i})
		by := s.by(l)
		message, welcome, err := by.commit(request{pending: true, path: true})
		s.must(err)
		s.finish(by, message, welcome, []named{joiner}, gone)
	})
	each("external PSK", func(l string) {
		st, err := s.members[0].state()
		s.must(err)
		id := pskID(st.epoch)
		for _, m := range s.members {
			s.must(m.addPSK(id, []byte("a secret that all members know  ")))
		}
		s.commit(s.by(l), request{psks: [][]byte{id}}, nil)
	})
	each("PSK by reference", func(l string) {
		st, err := s.members[0].state()
		s.must(err)
		id := pskID(st.epoch)
		for _, m := range s.members {
			s.must(m.addPSK(id, []byte("another secret")))
		}
		s.propose(s.by(s.after(l)), proposal{psk: id})
		s.commit(s.by(l), request{pending: true}, nil)
	})
	each("group context extensions", func(l string) {
		s.commit(s.by(l), request{extensions: requiring(l), path: true}, nil)
	})
	each("group context extensions by reference", func(l string) {
		s.propose(s.by(s.after(l)), proposal{extensions: requiring("by reference " + l)})
		s.commit(s.by(l), request{pending: true, path: true}, nil)
	})
	each("proposals from outside, committed", func(l string) {
		// A server that the group lets propose, and a client that asks to be added.
		key, err := mls.GenerateSignatureKey(s.o.suite, rand.Reader)
		s.must(err)
		server := mls.ExternalSender{SignatureKey: key.Public(), Credential: mls.BasicCredential([]byte("server"))}
		exts := append(requiring(l), mls.ExternalSendersExtension([]mls.ExternalSender{server}))
		s.commit(s.by(l), request{extensions: exts, path: true}, []named{s.client(s.after(l))})
		epoch, gone, joiner := s.epoch(), s.last(s.after(l)), s.client(ours)
		removal, err := mls.NewExternalProposal(s.o.suite, s.gid, epoch, 0, key, mls.Remove(mls.LeafIndex(s.index(gone))), nil)
		s.must(err)
		_, err = joiner.keyPackage()
		s.must(err)
		asked, err := mls.NewMemberProposal(s.gid, epoch, joiner.member.(*own).bundle, nil)
		s.must(err)
		for _, raw := range [][]byte{removal, asked} {
			s.deliver(named{}, raw)
		}
		commit, welcome, err := s.by(l).commit(request{pending: true, path: true})
		s.must(err)
		s.finish(s.by(l), commit, welcome, []named{joiner}, gone)
	})
	each("external join", func(l string) {
		joiner := s.client(l)
		s.externalJoin(joiner, s.by(s.after(l)), nil)
		s.members = append(s.members, joiner)
	})
	each("external join with a PSK", func(l string) {
		joiner := s.client(l)
		st, err := s.members[0].state()
		s.must(err)
		id := pskID(st.epoch)
		for _, m := range append(slices.Clone(s.members), joiner) {
			s.must(m.addPSK(id, []byte("a secret from elsewhere")))
		}
		s.externalJoin(joiner, s.by(s.after(l)), nil, id)
		s.members = append(s.members, joiner)
	})
	each("resync by external join", func(l string) {
		back := s.last(l)
		i := s.index(back)
		s.members = slices.DeleteFunc(s.members, func(m named) bool { return m.name == back.name })
		s.externalJoin(back, s.by(s.after(l)), &i)
		s.members = append(s.members, back)
	})
	each("resumption PSK", func(l string) {
		// All members must have been in the epoch: this one, in which everybody is.
		st, err := s.members[0].state()
		s.must(err)
		s.commit(s.by(l), request{path: true}, nil)
		s.commit(s.by(l), request{resumption: []uint64{st.epoch}}, nil)
	})
	each("a commit that loses a race", func(l string) {
		loser, winner := s.by(l), s.by(s.after(l))
		lost := s.client(l)
		kp, err := lost.keyPackage()
		s.must(err)
		_, _, err = loser.commit(request{adds: [][]byte{kp}, path: true})
		s.must(err)
		s.must(loser.clear())
		s.commit(winner, request{path: true}, nil)
	})
	each("message of the epoch before", func(l string) {
		sender := s.by(l)
		late, err := sender.encrypt([]byte("late"), nil)
		s.must(err)
		s.commit(s.by(s.after(l)), request{path: true}, nil)
		for _, m := range s.members {
			if m.name == sender.name {
				continue
			}
			text, _, err := m.decrypt(late)
			s.must(err)
			if string(text) != "late" {
				s.t.Fatalf("%s read %q", m.name, text)
			}
		}
	})
	for _, step := range steps {
		if !s.step(step.name, step.f) {
			return
		}
	}
	s.t.Run("reinit", s.reinit)
}

// reinit closes the group. OpenMLS can not propose that, and goes on in the last epoch as if nothing were.
func (s *scenario) reinit(t *testing.T) {
	s.t = t
	by := s.libraries[0]
	if by == interop.OpenMLS {
		by = s.libraries[1]
	}
	s.commit(s.by(by), request{reinit: &mls.ReInit{GroupID: []byte("the next group"), Version: mls.MLS10, CipherSuite: s.o.suite}}, nil)
	s.agree()
	for _, m := range s.members {
		o, ok := m.member.(*own)
		if !ok {
			continue
		}
		if _, _, err := o.commit(request{path: true}); err == nil {
			t.Errorf("%s commits in a group that is closed", m.name)
		}
	}
}

// externalJoin lets a client in by its own commit, from the GroupInfo of a member.
func (s *scenario) externalJoin(joiner, from named, resync *uint32, psks ...[]byte) {
	s.t.Helper()
	gi, err := from.groupInfo(s.o.treeExt)
	s.must(err)
	var tree []byte
	if !s.o.treeExt {
		tree, err = from.ratchetTree()
		s.must(err)
	}
	commit, err := joiner.externalJoin(gi, tree, resync, psks)
	s.must(err)
	s.deliver(joiner, commit)
}
