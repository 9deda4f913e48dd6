package interop_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/mls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peers are the running partners, one program for each library.
type peers map[string]*interop.Peer

func startPeers(t *testing.T) peers {
	t.Helper()
	out := peers{}
	for _, library := range []string{interop.OpenMLS, interop.MLSRs} {
		p, err := interop.Start(t.Context(), library, os.Stderr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
		out[library] = p
	}
	return out
}

// A scenario is one group with members of several libraries, and those who watch it from outside.
type scenario struct {
	t     *testing.T
	o     options
	peers peers
	tag   string // makes names unique within the long-lived peer programs
	gid   []byte

	libraries []string // the creator's first
	members   []named
	observers []observer
	made      int
}

type named struct {
	name    string
	library string
	member
}

func (s *scenario) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// client makes a client of a library that is in no group yet.
func (s *scenario) client(library string) named {
	s.t.Helper()
	s.made++
	n := named{name: fmt.Sprintf("%s %s %d", s.tag, library, s.made), library: library}
	var err error
	if library == ours {
		n.member, err = newOwn(n.name, s.o)
	} else {
		n.member, err = newForeign(s.peers[library], n.name, s.o)
	}
	s.must(err)
	return n
}

// by returns the first member of the library.
func (s *scenario) by(library string) named {
	s.t.Helper()
	for _, m := range s.members {
		if m.library == library {
			return m
		}
	}
	s.t.Fatalf("no member of %s is left", library)
	return named{}
}

// last returns the newest member of the library.
func (s *scenario) last(library string) named {
	s.t.Helper()
	for _, m := range slices.Backward(s.members) {
		if m.library == library {
			return m
		}
	}
	s.t.Fatalf("no member of %s is left", library)
	return named{}
}

// after returns the library that comes after this one, around the circle.
func (s *scenario) after(library string) string {
	return s.libraries[(slices.Index(s.libraries, library)+1)%len(s.libraries)]
}

func (s *scenario) epoch() uint64 {
	s.t.Helper()
	st, err := s.members[0].state()
	s.must(err)
	return st.epoch
}

func (s *scenario) index(m named) uint32 {
	s.t.Helper()
	st, err := m.state()
	s.must(err)
	return st.ownIndex
}

// deliver lets everybody but the sender process a handshake message. A member that it removes leaves the scenario.
func (s *scenario) deliver(from named, message []byte, removed ...named) {
	s.t.Helper()
	for _, m := range slices.Clone(s.members) {
		if m.name == from.name {
			continue
		}
		err := m.process(message)
		gone := slices.ContainsFunc(removed, func(r named) bool { return r.name == m.name })
		if gone && m.library == ours && !errors.Is(err, errRemoved) {
			s.t.Fatalf("%s processed its own removal as: %v", m.name, err)
		}
		if !gone {
			s.must(err)
		}
	}
	s.members = slices.DeleteFunc(s.members, func(m named) bool {
		return slices.ContainsFunc(removed, func(r named) bool { return r.name == m.name })
	})
	if !s.o.private {
		for _, o := range s.observers {
			s.must(o.process(message))
		}
	}
}

// commit makes one, delivers it and lets the joiners in.
func (s *scenario) commit(by named, r request, joiners []named, removed ...named) {
	s.t.Helper()
	for _, j := range joiners {
		kp, err := j.keyPackage()
		s.must(err)
		r.adds = append(r.adds, kp)
	}
	message, welcome, err := by.commit(r)
	s.must(err)
	s.finish(by, message, welcome, joiners, removed...)
}

func (s *scenario) finish(by named, message, welcome []byte, joiners []named, removed ...named) {
	s.t.Helper()
	s.must(by.merge())
	s.deliver(by, message, removed...)
	if len(joiners) == 0 {
		return
	}
	if welcome == nil {
		s.t.Fatalf("%s made no Welcome", by.name)
	}
	var tree []byte
	if !s.o.treeExt {
		var err error
		tree, err = by.ratchetTree()
		s.must(err)
	}
	for _, j := range joiners {
		s.must(j.join(welcome, tree))
		s.members = append(s.members, j)
	}
}

// propose sends a proposal to everybody.
func (s *scenario) propose(by named, p proposal) {
	s.t.Helper()
	message, err := by.propose(p)
	s.must(err)
	s.deliver(by, message)
}

// step runs f and then compares everything that members must agree on.
func (s *scenario) step(name string, f func()) bool {
	outer := s.t
	defer func() { s.t = outer }()
	return outer.Run(name, func(t *testing.T) {
		s.t = t
		f()
		s.agree()
		s.talk()
	})
}

func (s *scenario) agree() {
	s.t.Helper()
	var want state
	var secret []byte
	for i, m := range s.members {
		got, err := m.state()
		s.must(err)
		got.ownIndex = 0
		x, err := m.export("interop", []byte{1, 2}, 40)
		s.must(err)
		switch {
		case i == 0:
			want, secret = got, x
		case got != want:
			s.t.Fatalf("%s (-) and %s (+) differ:\n%s", m.name, s.members[0].name, cmp.Diff(got, want, cmp.AllowUnexported(state{})))
		case !bytes.Equal(x, secret):
			s.t.Fatalf("%s exports %x, %s %x", m.name, x, s.members[0].name, secret)
		}
	}
	if s.o.private {
		return
	}
	for _, o := range s.observers {
		s.must(o.check(want))
	}
}

// talk sends a message from each to each. The oldest member sends two, and the second arrives first.
func (s *scenario) talk() {
	s.t.Helper()
	for i, from := range s.members {
		sent := make([][]byte, 1)
		if i == 0 {
			sent = make([][]byte, 2)
		}
		for i := range sent {
			var err error
			sent[i], err = from.encrypt([]byte{'h', 'i', byte('0' + i)}, []byte("aad"))
			s.must(err)
		}
		for _, to := range s.members {
			if to.name == from.name {
				continue
			}
			for i := len(sent) - 1; i >= 0; i-- {
				text, aad, err := to.decrypt(sent[i])
				s.must(err)
				if string(text) != fmt.Sprintf("hi%d", i) || string(aad) != "aad" {
					s.t.Fatalf("%s sent hi%d with aad, %s read %q with %q", from.name, i, to.name, text, aad)
				}
			}
		}
	}
}

// ---------------------------------------------------------------- observers

// An observer follows the group from its public handshakes.
type observer interface {
	process(message []byte) error
	check(want state) error
}

type foreignObserver struct {
	peer  *interop.Peer
	name  string
	epoch uint64
}

func (o *foreignObserver) process(message []byte) error {
	a, err := o.peer.Call("observer_process", interop.Args{"observer": o.name, "message": interop.Hex(message)})
	if err == nil {
		o.epoch = a.Epoch
	}
	return err
}

func (o *foreignObserver) check(want state) error {
	if o.epoch != want.epoch {
		return fmt.Errorf("observer %s is in epoch %d, the group in %d", o.name, o.epoch, want.epoch)
	}
	return nil
}

type ownObserver struct {
	cfg   *mls.Config
	group *mls.PublicGroup
}

func (o *ownObserver) process(message []byte) error {
	msg, err := mls.ParseMessage(message)
	if err != nil {
		return err
	}
	done, err := o.group.Process(msg)
	if err != nil {
		return fmt.Errorf("our observer: %w", err)
	}
	if staged, ok := done.(*mls.PublicStagedCommit); ok {
		raw, err := staged.Merge().MarshalBinary()
		if err != nil {
			return err
		}
		o.group, err = mls.UnmarshalPublicGroup(o.cfg, raw)
		return err
	}
	return nil
}

func (o *ownObserver) check(want state) error {
	got := state{epoch: o.group.Epoch(), authenticator: want.authenticator, treeHash: fmt.Sprintf("%x", o.group.TreeHash()),
		transcript: fmt.Sprintf("%x", o.group.ConfirmedTranscriptHash()), members: want.members}
	if got != want {
		return fmt.Errorf("our observer sees %+v, the members %+v", got, want)
	}
	return nil
}

// watch lets all that can observe do so from here on.
func (s *scenario) watch() {
	s.t.Helper()
	first := s.members[0]
	gi, err := first.groupInfo(true)
	s.must(err)
	msg, err := mls.ParseMessage(gi)
	s.must(err)
	cfg := &mls.Config{Limits: mls.Limits{MaxLifetime: int64(400 * 24 * time.Hour / time.Second)}}
	group, err := mls.NewPublicGroup(cfg, msg, nil)
	s.must(err)
	s.observers = append(s.observers, &ownObserver{cfg: cfg, group: group})
	st, err := first.state()
	s.must(err)
	for _, library := range s.libraries {
		if p := s.peers[library]; p != nil {
			name := s.tag + " observer"
			_, err := p.Call("observe", interop.Args{"observer": name, "group_info": interop.Hex(gi), "suite": uint16(s.o.suite)})
			s.must(err)
			s.observers = append(s.observers, &foreignObserver{peer: p, name: name, epoch: st.epoch})
		}
	}
}

// requiring is the list of extensions a group has when it holds the test extension: OpenMLS wants it required, too.
func requiring(value string) []mls.Extension {
	required := mls.RequiredCapabilities{Extensions: []mls.ExtensionType{testExtension}}
	return []mls.Extension{required.Extension(), {Type: testExtension, Data: []byte(value)}}
}

// pskID is a name for an external PSK that no other step uses.
func pskID(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte("psk "), n) }
