package interop_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/matrix-mls/matrix-mls/interop"
	"github.com/matrix-mls/matrix-mls/mls"
)

// ours is the name of package mls among the libraries.
const ours = "matrix-mls"

// testExtension is an extension type that all three libraries list in their capabilities.
const testExtension = 0xF042

// options are those of a scenario that its members must know.
type options struct {
	suite   mls.CipherSuite
	private bool // handshakes as PrivateMessage
	treeExt bool // the ratchet tree travels in the GroupInfo
}

// A request says what a commit holds.
type request struct {
	adds       [][]byte
	removes    []uint32
	path       bool
	pending    bool // proposals by reference
	psks       [][]byte
	resumption []uint64
	extensions []mls.Extension // nil: unchanged
	reinit     *mls.ReInit
}

// A proposal is one to be sent by itself.
type proposal struct {
	add        []byte
	update     bool
	remove     *uint32
	psk        []byte
	resumption *uint64
	extensions []mls.Extension
	reinit     *mls.ReInit
}

// state is what all members must agree on, and the own index.
type state struct {
	epoch         uint64
	authenticator string
	treeHash      string
	transcript    string
	members       string
	ownIndex      uint32
}

// A member is one client of one library, in at most one group.
type member interface {
	keyPackage() ([]byte, error)
	create(groupID []byte) error
	join(welcome, tree []byte) error
	externalJoin(groupInfo, tree []byte, resync *uint32, psks [][]byte) (commit []byte, err error)
	addPSK(id, secret []byte) error

	commit(r request) (commit, welcome []byte, err error) // pending until merge or clear
	merge() error
	clear() error
	propose(p proposal) ([]byte, error)
	process(message []byte) error // a handshake message of another member

	encrypt(data, aad []byte) ([]byte, error)
	decrypt(message []byte) (data, aad []byte, err error)

	state() (state, error)
	export(label string, context []byte, length int) ([]byte, error)
	groupInfo(tree bool) ([]byte, error)
	ratchetTree() ([]byte, error)

	// After a ReInit: each makes a KeyPackage, one founds the next group with those of the others, who join it.
	closed(suite mls.CipherSuite) (keyPackage []byte, err error)
	found(keyPackages [][]byte) (welcome, tree []byte, err error)
	follow(welcome, tree []byte) error
}

// ---------------------------------------------------------------- OpenMLS and mls-rs

type foreign struct {
	peer  *interop.Peer
	name  string
	group interop.Hex
}

func newForeign(p *interop.Peer, name string, o options) (*foreign, error) {
	_, err := p.Call("new_client", interop.Args{"client": name, "suite": uint16(o.suite), "private": o.private, "tree_ext": o.treeExt})
	return &foreign{peer: p, name: name}, err
}

func (f *foreign) call(command string, args interop.Args) (*interop.Answer, error) {
	all := interop.Args{"client": f.name, "group": f.group}
	for k, v := range args {
		all[k] = v
	}
	a, err := f.peer.Call(command, all)
	if err != nil {
		return &interop.Answer{}, fmt.Errorf("%s: %w", f.name, err)
	}
	return a, nil
}

func (f *foreign) keyPackage() ([]byte, error) {
	a, err := f.call("key_package", nil)
	return a.KeyPackage, err
}

func (f *foreign) create(groupID []byte) error {
	f.group = groupID
	_, err := f.call("create_group", nil)
	return err
}

func (f *foreign) join(welcome, tree []byte) error {
	args := interop.Args{"welcome": interop.Hex(welcome)}
	if tree != nil {
		args["ratchet_tree"] = interop.Hex(tree)
	}
	a, err := f.call("join", args)
	f.group = a.Group
	return err
}

func (f *foreign) externalJoin(groupInfo, tree []byte, resync *uint32, psks [][]byte) ([]byte, error) {
	args := interop.Args{"group_info": interop.Hex(groupInfo), "psks": hexes(psks)}
	if tree != nil {
		args["ratchet_tree"] = interop.Hex(tree)
	}
	if resync != nil {
		args["resync"] = *resync
		if _, err := f.call("forget", nil); err != nil {
			return nil, err
		}
	}
	a, err := f.call("external_commit", args)
	if err == nil {
		f.group = a.Group
	}
	return a.Commit, err
}

func (f *foreign) addPSK(id, secret []byte) error {
	_, err := f.call("add_psk", interop.Args{"psk_id": interop.Hex(id), "secret": interop.Hex(secret)})
	return err
}

func (f *foreign) commit(r request) ([]byte, []byte, error) {
	args := interop.Args{"path": r.path, "pending": r.pending, "key_packages": hexes(r.adds), "indexes": slices.Clip(append([]uint32{}, r.removes...)),
		"psks": hexes(r.psks), "resumption_psks": append([]uint64{}, r.resumption...)}
	if r.extensions != nil {
		args["extensions"] = extensionArgs(r.extensions)
	}
	if r.reinit != nil {
		args["reinit_group"], args["reinit_suite"] = interop.Hex(r.reinit.GroupID), uint16(r.reinit.CipherSuite)
	}
	a, err := f.call("commit", args)
	return a.Commit, a.Welcome, err
}

func (f *foreign) merge() error {
	_, err := f.call("merge_pending", nil)
	return err
}

func (f *foreign) clear() error {
	_, err := f.call("clear_pending", nil)
	return err
}

func (f *foreign) propose(p proposal) ([]byte, error) {
	var a *interop.Answer
	var err error
	switch {
	case p.add != nil:
		a, err = f.call("propose_add", interop.Args{"key_package": interop.Hex(p.add)})
	case p.update:
		a, err = f.call("propose_update", nil)
	case p.remove != nil:
		a, err = f.call("propose_remove", interop.Args{"index": *p.remove})
	case p.psk != nil:
		a, err = f.call("propose_psk", interop.Args{"psk_id": interop.Hex(p.psk)})
	case p.resumption != nil:
		a, err = f.call("propose_resumption_psk", interop.Args{"epoch": *p.resumption})
	case p.reinit != nil:
		a, err = f.call("propose_reinit", interop.Args{"reinit_group": interop.Hex(p.reinit.GroupID), "reinit_suite": uint16(p.reinit.CipherSuite)})
	default:
		a, err = f.call("propose_extensions", interop.Args{"extensions": extensionArgs(p.extensions)})
	}
	return a.Proposal, err
}

func (f *foreign) process(message []byte) error {
	_, err := f.call("process", interop.Args{"message": interop.Hex(message)})
	return err
}

func (f *foreign) encrypt(data, aad []byte) ([]byte, error) {
	a, err := f.call("encrypt", interop.Args{"data": interop.Hex(data), "aad": interop.Hex(aad)})
	return a.Message, err
}

func (f *foreign) decrypt(message []byte) ([]byte, []byte, error) {
	a, err := f.call("process", interop.Args{"message": interop.Hex(message)})
	if err == nil && a.Kind != "application" {
		err = fmt.Errorf("%s: a %s, not an application message", f.name, a.Kind)
	}
	return a.Plaintext, a.AAD, err
}

func (f *foreign) state() (state, error) {
	a, err := f.call("state", nil)
	if err != nil {
		return state{}, err
	}
	var members string
	for _, m := range a.Members {
		members += fmt.Sprintf("%d %s %x; ", m.Index, m.Identity, []byte(m.SignatureKey))
	}
	return state{epoch: a.Epoch, authenticator: fmt.Sprintf("%x", []byte(a.EpochAuthenticator)), treeHash: fmt.Sprintf("%x", []byte(a.TreeHash)),
		transcript: fmt.Sprintf("%x", []byte(a.ConfirmedTranscriptHash)), members: members, ownIndex: a.OwnIndex}, nil
}

func (f *foreign) export(label string, context []byte, length int) ([]byte, error) {
	a, err := f.call("export_secret", interop.Args{"label": label, "context": interop.Hex(context), "length": length})
	return a.Secret, err
}

func (f *foreign) groupInfo(tree bool) ([]byte, error) {
	a, err := f.call("group_info", interop.Args{"with_tree": tree})
	return a.GroupInfo, err
}

func (f *foreign) ratchetTree() ([]byte, error) {
	a, err := f.call("ratchet_tree", nil)
	return a.RatchetTree, err
}

func (f *foreign) closed(mls.CipherSuite) ([]byte, error) {
	a, err := f.call("reinit", nil)
	return a.KeyPackage, err
}

func (f *foreign) found(keyPackages [][]byte) ([]byte, []byte, error) {
	a, err := f.call("reinit_create", interop.Args{"key_packages": hexes(keyPackages)})
	if err == nil {
		f.group = a.Group
	}
	return a.Welcome, a.RatchetTree, err
}

func (f *foreign) follow(welcome, tree []byte) error {
	args := interop.Args{"welcome": interop.Hex(welcome)}
	if tree != nil {
		args["ratchet_tree"] = interop.Hex(tree)
	}
	a, err := f.call("reinit_join", args)
	if err == nil {
		f.group = a.Group
	}
	return err
}

func hexes(bs [][]byte) []interop.Hex {
	out := []interop.Hex{}
	for _, b := range bs {
		out = append(out, b)
	}
	return out
}

func extensionArgs(exts []mls.Extension) []map[string]any {
	out := []map[string]any{}
	for _, e := range exts {
		out = append(out, map[string]any{"type": uint16(e.Type), "data": interop.Hex(e.Data)})
	}
	return out
}

// ---------------------------------------------------------------- package mls

type own struct {
	name   string
	o      options
	cfg    *mls.Config
	key    mls.SignaturePrivateKey
	bundle *mls.KeyPackageBundle

	group   *mls.Group
	past    map[uint64]*mls.Group // for late messages
	pending *mls.StagedCommit
	psks    map[string][]byte
}

func newOwn(name string, o options) (*own, error) {
	key, err := mls.GenerateSignatureKey(o.suite, rand.Reader)
	m := &own{name: name, o: o, key: key, psks: map[string][]byte{}, past: map[uint64]*mls.Group{}}
	m.cfg = &mls.Config{
		PaddingSize: 32,
		// mls-rs gives its key packages a year.
		Limits: mls.Limits{MaxLifetime: int64(400 * 24 * time.Hour / time.Second)},
		PSK: func(id mls.PreSharedKeyID) ([]byte, bool) {
			secret, ok := m.psks[pskKey(id)]
			return secret, ok
		},
	}
	return m, err
}

func pskKey(id mls.PreSharedKeyID) string {
	if id.Type == mls.PSKTypeExternal {
		return "external " + string(id.ID)
	}
	return fmt.Sprintf("resumption %x %d", id.GroupID, id.Epoch)
}

func (m *own) fail(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %s: %w", m.name, what, err)
}

func (m *own) leaf() mls.LeafOptions {
	caps := mls.DefaultCapabilities()
	caps.Extensions = append(caps.Extensions, testExtension)
	caps.Proposals = append(caps.Proposals, mls.ProposalTypeSelfRemove)
	return mls.LeafOptions{Credential: mls.BasicCredential([]byte(m.name)), Capabilities: &caps}
}

func (m *own) keyPackage() ([]byte, error) {
	b, err := mls.NewKeyPackage(m.cfg, m.o.suite, m.key, m.leaf())
	if err != nil {
		return nil, m.fail("key package", err)
	}
	raw, err := b.MarshalBinary()
	if err == nil {
		m.bundle, err = mls.UnmarshalKeyPackageBundle(raw)
	}
	return b.Message(), m.fail("save the key package", err)
}

// enter makes g the current group, by way of what would be on disk.
func (m *own) enter(g *mls.Group) error {
	loaded, err := mls.LoadGroup(m.cfg, g.EpochState(), g.RatchetState())
	if err != nil {
		return m.fail("load the group", err)
	}
	m.group, m.pending = loaded, nil
	m.past[g.Epoch()] = loaded
	m.psks[fmt.Sprintf("resumption %x %d", g.GroupID(), g.Epoch())] = g.ResumptionPSK()
	return nil
}

func (m *own) create(groupID []byte) error {
	g, err := mls.CreateGroup(m.cfg, m.o.suite, groupID, m.key, m.leaf(), nil)
	if err != nil {
		return m.fail("create", err)
	}
	return m.enter(g)
}

func (m *own) join(welcome, tree []byte) error {
	msg, err := mls.ParseMessage(welcome)
	if err != nil {
		return m.fail("parse the Welcome", err)
	}
	g, err := mls.JoinWelcome(m.cfg, msg, m.bundle, mls.JoinOptions{RatchetTree: tree})
	if err != nil {
		return m.fail("join", err)
	}
	return m.enter(g)
}

func (m *own) externalJoin(groupInfo, tree []byte, resync *uint32, psks [][]byte) ([]byte, error) {
	msg, err := mls.ParseMessage(groupInfo)
	if err != nil {
		return nil, m.fail("parse the GroupInfo", err)
	}
	o := mls.ExternalJoinOptions{Leaf: m.leaf(), RatchetTree: tree}
	for _, id := range psks {
		o.PSKs = append(o.PSKs, mls.PreSharedKeyID{Type: mls.PSKTypeExternal, ID: id})
	}
	if resync != nil {
		i := mls.LeafIndex(*resync)
		o.Resync = &i
	}
	staged, err := mls.ExternalJoin(m.cfg, msg, m.key, o)
	if err != nil {
		return nil, m.fail("external join", err)
	}
	return staged.Message(), m.enter(staged.Merge())
}

func (m *own) addPSK(id, secret []byte) error {
	m.psks["external "+string(id)] = secret
	return nil
}

func (m *own) commit(r request) ([]byte, []byte, error) {
	o := mls.CommitOptions{Pending: r.pending, ForcePath: r.path, Private: m.o.private, WelcomeRatchetTree: m.o.treeExt}
	for _, raw := range r.adds {
		msg, err := mls.ParseMessage(raw)
		if err != nil {
			return nil, nil, m.fail("parse a key package", err)
		}
		o.Proposals = append(o.Proposals, mls.Add(msg.KeyPackage()))
	}
	for _, i := range r.removes {
		o.Proposals = append(o.Proposals, mls.Remove(mls.LeafIndex(i)))
	}
	for _, id := range r.psks {
		o.Proposals = append(o.Proposals, mls.PSK(mls.PreSharedKeyID{Type: mls.PSKTypeExternal, ID: id}))
	}
	for _, epoch := range r.resumption {
		o.Proposals = append(o.Proposals, mls.PSK(m.resumption(epoch)))
	}
	if r.extensions != nil {
		o.Proposals = append(o.Proposals, mls.GroupContextExtensions(r.extensions))
	}
	if r.reinit != nil {
		o.Proposals = append(o.Proposals, r.reinit.Proposal())
	}
	staged, err := m.group.Commit(o)
	if err != nil {
		return nil, nil, m.fail("commit", err)
	}
	raw, err := staged.MarshalBinary()
	if err != nil {
		return nil, nil, m.fail("save the pending commit", err)
	}
	if m.pending, err = mls.UnmarshalStagedCommit(m.cfg, m.group, raw); err != nil {
		return nil, nil, m.fail("load the pending commit", err)
	}
	return staged.Message(), staged.Welcome(), nil
}

func (m *own) resumption(epoch uint64) mls.PreSharedKeyID {
	return mls.PreSharedKeyID{Type: mls.PSKTypeResumption, Usage: mls.ResumptionPSKUsageApplication, GroupID: m.group.GroupID(), Epoch: epoch}
}

func (m *own) merge() error {
	if m.pending == nil {
		return m.fail("merge", errors.New("nothing is pending"))
	}
	return m.enter(m.pending.Merge())
}

func (m *own) clear() error {
	m.pending = nil
	return nil
}

func (m *own) propose(p proposal) ([]byte, error) {
	var out mls.Proposal
	switch {
	case p.add != nil:
		msg, err := mls.ParseMessage(p.add)
		if err != nil {
			return nil, m.fail("parse a key package", err)
		}
		out = mls.Add(msg.KeyPackage())
	case p.update:
		raw, _, err := m.group.ProposeUpdate(nil, m.framing())
		return raw, m.fail("propose an update", err)
	case p.remove != nil:
		out = mls.Remove(mls.LeafIndex(*p.remove))
	case p.psk != nil:
		out = mls.PSK(mls.PreSharedKeyID{Type: mls.PSKTypeExternal, ID: p.psk})
	case p.resumption != nil:
		out = mls.PSK(m.resumption(*p.resumption))
	case p.reinit != nil:
		out = p.reinit.Proposal()
	default:
		out = mls.GroupContextExtensions(p.extensions)
	}
	raw, _, err := m.group.Propose(out, m.framing())
	return raw, m.fail("propose", err)
}

func (m *own) framing() mls.FramingOptions { return mls.FramingOptions{Private: m.o.private} }

func (m *own) process(message []byte) error {
	msg, err := mls.ParseMessage(message)
	if err != nil {
		return m.fail("parse", err)
	}
	before := m.group.EpochState()
	done, err := m.group.Process(msg)
	if err != nil {
		return m.fail("process", err)
	}
	if !bytes.Equal(before, m.group.EpochState()) {
		return m.fail("process", errors.New("the state of the epoch changed"))
	}
	switch done := done.(type) {
	case *mls.ProposalMessage:
		return nil
	case *mls.StagedCommit:
		if done.SelfRemoved() {
			return errRemoved
		}
		return m.enter(done.Merge())
	default:
		return m.fail("process", fmt.Errorf("unexpected %T", done))
	}
}

var errRemoved = errors.New("this commit removes the member that processes it")

func (m *own) encrypt(data, aad []byte) ([]byte, error) {
	raw, err := m.group.Encrypt(data, aad)
	return raw, m.fail("encrypt", err)
}

func (m *own) decrypt(message []byte) ([]byte, []byte, error) {
	msg, err := mls.ParseMessage(message)
	if err != nil {
		return nil, nil, m.fail("parse", err)
	}
	g := m.past[msg.Epoch()]
	if g == nil {
		return nil, nil, m.fail("decrypt", fmt.Errorf("no state of epoch %d", msg.Epoch()))
	}
	done, err := g.Process(msg)
	if err != nil {
		return nil, nil, m.fail("decrypt", err)
	}
	app, ok := done.(*mls.ApplicationMessage)
	if !ok {
		return nil, nil, m.fail("decrypt", fmt.Errorf("unexpected %T", done))
	}
	return app.Plaintext, app.AuthenticatedData, nil
}

func (m *own) state() (state, error) {
	g := m.group
	var members string
	for i, l := range g.Members() {
		members += fmt.Sprintf("%d %s %x; ", i, l.Credential.Identity, []byte(l.SignatureKey))
	}
	return state{epoch: g.Epoch(), authenticator: fmt.Sprintf("%x", g.EpochAuthenticator()), treeHash: fmt.Sprintf("%x", g.TreeHash()),
		transcript: fmt.Sprintf("%x", g.ConfirmedTranscriptHash()), members: members, ownIndex: uint32(g.OwnLeafIndex())}, nil
}

func (m *own) export(label string, context []byte, length int) ([]byte, error) {
	out, err := m.group.Export(label, context, length)
	return out, m.fail("export", err)
}

func (m *own) groupInfo(tree bool) ([]byte, error) {
	out, err := m.group.GroupInfo(mls.GroupInfoOptions{RatchetTree: tree, ExternalPub: true})
	return out, m.fail("group info", err)
}

func (m *own) ratchetTree() ([]byte, error) { return m.group.RatchetTree(), nil }

func (m *own) closed(suite mls.CipherSuite) ([]byte, error) {
	m.o.suite = suite
	return m.keyPackage()
}

func (m *own) found(keyPackages [][]byte) ([]byte, []byte, error) {
	var members []*mls.KeyPackage
	for _, raw := range keyPackages {
		msg, err := mls.ParseMessage(raw)
		if err != nil {
			return nil, nil, m.fail("parse a key package", err)
		}
		members = append(members, msg.KeyPackage())
	}
	staged, err := m.group.ReInitGroup(m.key, m.leaf(), members, mls.CommitOptions{WelcomeRatchetTree: m.o.treeExt})
	if err != nil {
		return nil, nil, m.fail("found the next group", err)
	}
	m.past = map[uint64]*mls.Group{}
	if err := m.enter(staged.Merge()); err != nil {
		return nil, nil, err
	}
	return staged.Welcome(), m.group.RatchetTree(), nil
}

func (m *own) follow(welcome, tree []byte) error {
	msg, err := mls.ParseMessage(welcome)
	if err != nil {
		return m.fail("parse the Welcome", err)
	}
	g, err := mls.JoinWelcome(m.cfg, msg, m.bundle, mls.JoinOptions{RatchetTree: tree, Resumption: []*mls.Group{m.group}})
	if err != nil {
		return m.fail("join the next group", err)
	}
	m.past = map[uint64]*mls.Group{}
	return m.enter(g)
}
