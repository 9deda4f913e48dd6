package mls

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What travels encrypted is decoded as well, and who sealed it may be
// dishonest: it is fuzzed as plaintext, and sealed here.

// The content of a PrivateMessage by a member; well signed for half of them.
func FuzzPrivateContent(f *testing.F) {
	w := newFuzzGroups(f)
	epoch, ratchets := w.groups[0].EpochState(), w.groups[0].RatchetState()
	g := w.groups[0]
	sc, err := g.Commit(CommitOptions{Proposals: []Proposal{Remove(2)}})
	if err != nil {
		f.Fatal(err)
	}
	m := mustParse(f, sc.Message()).public.auth
	for _, c := range []framedContent{
		{contentType: ContentTypeApplication, applicationData: []byte("text")},
		{contentType: ContentTypeProposal, proposal: Remove(2)},
		{contentType: ContentTypeCommit, commit: m.content.commit},
	} {
		ac, err := g.sign(c, WireFormatPrivateMessage)
		if err != nil {
			f.Fatal(err)
		}
		ac.confirmationTag = m.confirmationTag
		body := append(ac.appendAuth(ac.content.appendBody(nil)), 0, 0, 0)
		f.Add(byte(c.contentType), body, true)
		f.Add(byte(c.contentType), body, false)
	}
	f.Fuzz(func(t *testing.T, ct byte, body []byte, resign bool) {
		from, err := LoadGroup(w.cfg, epoch, ratchets)
		if err != nil {
			t.Fatal(err)
		}
		sealed := &forgedMessage{g: from, ct: ContentType(1 + ct%3)}
		if resign {
			ac := &authenticatedContent{wireFormat: WireFormatPrivateMessage, content: framedContent{contentType: sealed.ct}}
			s := newReader(body)
			if !ac.content.unmarshalBody(s) || !ac.unmarshalAuth(s) {
				return
			}
			tag, padding := ac.confirmationTag, s.String
			if ac, err = from.sign(ac.content, WireFormatPrivateMessage); err != nil {
				t.Fatal(err)
			}
			ac.confirmationTag = tag
			body = append(ac.appendAuth(ac.content.appendBody(nil)), padding...)
		}
		key, nonce, generation, err := from.ratchets.next(from.own, sealed.ct, from.cfg.limits())
		if err != nil {
			t.Fatal(err)
		}
		pm := privateMessage{groupID: from.context.groupID, epoch: from.context.epoch, contentType: sealed.ct}
		pm.ciphertext = CipherSuite(1).aeadSeal(key, nonce, pm.appendContentAAD(nil), body)
		message := sealed.withSenderData(t, pm, from.own, generation)
		var to *Group
		var p Processed
		boundedMemory(t, len(message.Raw()), func() func() {
			if to, err = LoadGroup(w.cfg, w.epoch, w.ratchets); err != nil {
				t.Fatal(err)
			}
			return func() { p, err = to.Process(message) }
		})
		if _, ok := p.(*ApplicationMessage); ok && err == nil && !resign && !bytes.HasPrefix(body, p.(*ApplicationMessage).appended()) {
			t.Error("another text is read than was sent")
		}
		if err != nil && !bytes.Equal(groupState(to), append(bytes.Clone(w.epoch), w.ratchets...)) {
			t.Errorf("the group has changed: %v", err)
		}
	})
}

// appended is how the text begins in the content.
func (m *ApplicationMessage) appended() []byte { return appendOpaqueVec(nil, m.Plaintext) }

// The two parts of a Welcome by a member; for half of them signature and
// confirmation tag are made good, so that what comes after is reached.
func FuzzWelcomeContent(f *testing.F) {
	const cs CipherSuite = 1
	w := newFuzzGroups(f)
	bundle := newTestClient(f, w.cfg, cs, 9)
	stored, err := bundle.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range []bool{true, false} {
		sc, err := w.groups[0].Commit(CommitOptions{Proposals: []Proposal{Add(bundle.KeyPackage())}, ForcePath: path, WelcomeRatchetTree: true})
		if err != nil {
			f.Fatal(err)
		}
		next := sc.Merge()
		info, err := next.GroupInfo(GroupInfoOptions{RatchetTree: true})
		if err != nil {
			f.Fatal(err)
		}
		welcome := mustParse(f, sc.Welcome()).Welcome()
		secrets, err := welcome.open(bundle)
		if err != nil {
			f.Fatal(err)
		}
		raw := secrets.appendTo(nil)
		f.Add(raw, info[4:], true)
		f.Add(raw, info[4:], false)
	}
	f.Fuzz(func(t *testing.T, secrets, info []byte, repair bool) {
		var gs groupSecrets
		joiner := make(secret, cs.HashLen())
		if unmarshal(secrets, &gs) == nil {
			joiner = gs.joinerSecret
		}
		if repair {
			var gi GroupInfo
			if unmarshal(info, &gi) != nil || !gi.context.cipherSuite.Supported() || len(joiner) != cs.HashLen() {
				return
			}
			raw := gi.context.appendTo(nil)
			e := newEpochSecrets(cs, joiner.clone(), nil, raw)
			tag := cs.mac(e.confirmation, gi.context.confirmedTranscriptHash)
			if info, err = signGroupInfo(cs, w.groups[0].signature, raw, gi.extensions, tag, gi.signer); err != nil {
				t.Fatal(err)
			}
		}
		key, nonce := cs.welcomeKey(newEpochSecrets(cs, joiner.clone(), nil, nil).welcome)
		wel := &Welcome{cipherSuite: cs, encryptedGroupInfo: cs.aeadSeal(key, nonce, nil, info)}
		ct, err := newSealer(cs, "Welcome", wel.encryptedGroupInfo).seal(bundle.keyPackage.InitKey, secrets, testRand(t))
		if err != nil {
			t.Fatal(err)
		}
		wel.secrets = []encryptedGroupSecrets{{bundle.Ref(), ct}}
		m, err := ParseMessage(wel.appendTo(appendMessageHeader(nil, WireFormatWelcome)))
		if err != nil {
			return // larger than a message may be
		}
		var b *KeyPackageBundle
		boundedMemory(t, len(m.Raw()), func() func() {
			if b, err = UnmarshalKeyPackageBundle(stored); err != nil {
				t.Fatal(err)
			}
			return func() { _, err = JoinWelcome(w.cfg, m, b, JoinOptions{}) }
		})
		if err != nil {
			if after, merr := b.MarshalBinary(); merr != nil || !bytes.Equal(after, stored) {
				t.Errorf("a refused Welcome used up the KeyPackage: %v", err)
			}
		}
	})
}

// A public group in the parts that it was stored in.
func FuzzStoredPublicGroup(f *testing.F) {
	w := newFuzzGroups(f)
	g := w.groups[0]
	info, err := g.GroupInfo(GroupInfoOptions{RatchetTree: true})
	if err != nil {
		f.Fatal(err)
	}
	pub, err := NewPublicGroup(w.cfg, mustParse(f, info), nil)
	if err != nil {
		f.Fatal(err)
	}
	sc, err := g.Commit(CommitOptions{Proposals: []Proposal{Remove(2)}})
	if err != nil {
		f.Fatal(err)
	}
	p, err := pub.Process(mustParse(f, sc.Message()))
	if err != nil {
		f.Fatal(err)
	}
	next := p.(*PublicStagedCommit).Merge()
	tree, head, delta := pub.RatchetTree(), next.EpochHead(), next.TreeDelta(pub)
	small := w.smallTrees()
	f.Add(head, delta)
	f.Fuzz(func(t *testing.T, head, delta []byte) {
		st := StoredPublicGroup{Head: head, Tree: tree, Deltas: [][]byte{delta}}
		var loaded *PublicGroup
		var err error
		boundedMemory(t, len(head)+len(delta)+len(tree), func() func() { return func() { loaded, err = st.Load(small) } })
		if err == nil && !bytes.Equal(loaded.EpochHead(), head) {
			t.Error("another head is written than was read")
		}
	})
}

// A group in the parts that it was stored in, each of them damaged.
func FuzzStoredGroup(f *testing.F) {
	w := newFuzzGroups(f)
	g := w.groups[0]
	sc, err := g.Commit(CommitOptions{Proposals: []Proposal{Remove(2)}})
	if err != nil {
		f.Fatal(err)
	}
	next := sc.Merge()
	tree, head, delta := g.RatchetTree(), next.EpochHead(), next.TreeDelta(g)
	f.Add(head, delta, uint64(0), []byte(nil))
	for _, p := range next.RatchetChanges() {
		f.Add(head, delta, p.ID, p.Data)
	}
	pages := next.RatchetChanges()
	small := w.smallTrees()
	f.Fuzz(func(t *testing.T, head, delta []byte, id uint64, data []byte) {
		st := StoredGroup{Head: head, Tree: tree, Deltas: [][]byte{delta}}
		for _, p := range pages {
			if p.ID != id {
				st.Pages = append(st.Pages, p)
			}
		}
		if data != nil {
			st.Pages = append(st.Pages, RatchetPage{id, data})
		}
		var loaded *Group
		var err error
		boundedMemory(t, len(head)+len(tree)+len(delta)+len(data), func() func() {
			return func() { loaded, err = st.Load(small) }
		})
		if err != nil {
			return
		}
		if !bytes.Equal(loaded.EpochHead(), head) {
			t.Error("another head is written than was read")
		}
		for _, p := range loaded.RatchetChanges() {
			if p.ID == id && !bytes.Equal(p.Data, data) {
				t.Errorf("another page %#x is written than was read", id)
			}
		}
		_, _ = loaded.Encrypt([]byte("text"), nil)
	})
}

// A signature key from our own store.
func FuzzParseSignaturePrivateKey(f *testing.F) {
	for _, cs := range append(SupportedCipherSuites(), ExperimentalCipherSuites()...) {
		f.Add(uint16(cs), mustSignatureKey(f, cs).Bytes())
	}
	f.Fuzz(func(t *testing.T, cs uint16, raw []byte) {
		var key SignaturePrivateKey
		var err error
		boundedMemory(t, len(raw), func() func() {
			return func() { key, err = ParseSignaturePrivateKey(CipherSuite(cs), raw) }
		})
		if err == nil && !bytes.Equal(key.Bytes(), raw) {
			t.Error("another key is written than was read")
		}
	})
}

// fuzzedBy names the target of each decoder that has none of its own name, and
// of what processes messages.
var fuzzedBy = map[string]string{
	"hpkeCiphertext.unmarshal":    "HPKECiphertext",
	"AppDataDictionary.unmarshal": "AppDataDictionary", "ParseAppDataDictionary": "AppDataDictionary",
	"ParseRequiredCapabilities": "RequiredCapabilities", "ParseExternalSenders": "ExternalSenders", "externalSenders.unmarshal": "ExternalSenders",
	"framedContent.unmarshal": "AuthenticatedContent", "framedContent.unmarshalBody": "PrivateContent", "authenticatedContent.unmarshalAuth": "PrivateContent",
	"ContentType.unmarshal": "PrivateMessage", "Message.unmarshal": "ParseMessage", "opaqueBody.unmarshal": "LeafNode",
	"ratchet.unmarshal": "LoadRatchetState", "proposalCache.unmarshal": "LoadRatchetState", "proposalCache.unmarshalOne": "StoredGroup",
	"unmarshalSecretTree": "LoadRatchetState", "Group.readRatchets": "LoadRatchetState", "Group.readPages": "StoredGroup", "readSecret": "LoadRatchetState",
	"readEpoch": "LoadEpochState", "readHead": "StoredGroup", "readMember": "LoadEpochState", "readFormat": "LoadEpochState", "LoadGroup": "LoadEpochState",
	"StoredGroup.Load": "StoredGroup", "StoredPublicGroup.Load": "StoredPublicGroup", "StagedCommit.unmarshal": "UnmarshalStagedCommit",
	"readVarint": "Varint", "readOpaqueVec": "Extension", "readOpaqueVecMax": "Extension", "readVector": "Extensions", "readOptional": "Commit",
	"readExtensions": "Extensions", "readProposal": "Proposal", "readCapabilityList": "Capabilities", "readUint16s": "Capabilities", "pqKEM.parse": "Primitives",
	"unmarshal": "ParseMessage", "unmarshalExtension": "RequiredCapabilities",
	"Group.Process": "Process", "PublicGroup.Process": "PublicProcess", "JoinWelcome": "JoinWelcome", "ExternalJoin": "GroupInfoAndTree",
	"NewPublicGroup": "GroupInfoAndTree", "epoch.VerifyGroupInfo": "GroupInfoAndTree", "PublicStagedCommit.VerifyGroupInfo": "GroupInfoAndTree", "VerifyWithLabel": "Primitives",
}

// What decodes has a fuzz target, and so has what processes a message. A new
// one without is found here.
func TestEveryDecoderIsFuzzed(t *testing.T) {
	targets := make(map[string]bool)
	decoders := make(map[string]token.Position)
	fset := token.NewFileSet()
	files, err := filepath.Glob("*.go")
	noError(t, err)
	decodes := regexp.MustCompile(`^(?:unmarshal|read|parse|Parse|Unmarshal|Load)(?:[A-Z]\w*)?$`)
	processes := regexp.MustCompile(`^(?:Process|Join\w+|ExternalJoin|NewPublicGroup|VerifyGroupInfo|VerifyWithLabel)$`)
	for _, name := range files {
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		noError(t, err)
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if strings.HasSuffix(name, "_test.go") {
				if target, ok := strings.CutPrefix(fn.Name.Name, "Fuzz"); ok {
					targets[target] = true
				}
				continue
			}
			id := fn.Name.Name
			if fn.Recv != nil {
				recv := fn.Recv.List[0].Type
				if p, ok := recv.(*ast.StarExpr); ok {
					recv = p.X
				}
				id = recv.(*ast.Ident).Name + "." + id
			}
			if decodes.MatchString(fn.Name.Name) || processes.MatchString(fn.Name.Name) {
				decoders[id] = fset.Position(fn.Pos())
			}
		}
	}
	for id, at := range decoders {
		target, ok := fuzzedBy[id]
		if !ok {
			// The target has the decoder's name, or that of its type.
			typ, _, method := strings.Cut(id, ".")
			target = strings.ToUpper(typ[:1]) + typ[1:]
			if !method && id == "parseTree" {
				target = "ParseTree"
			}
		}
		if !targets[target] {
			t.Errorf("%s: %s has no fuzz target", at, id)
		}
	}
	for id := range fuzzedBy {
		if _, ok := decoders[id]; !ok {
			t.Errorf("%s is gone", id)
		}
	}
	if len(decoders) < 50 {
		t.Errorf("only %d decoders were found", len(decoders))
	}
}
