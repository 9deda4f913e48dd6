package rooms

import (
	"crypto/ed25519"
	"encoding/json"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
)

// Sizes (Matrix limits an event to 65,536 bytes; Dendrite and Synapse count
// them differently near that limit, so ours stay well below).
const (
	MaxEventSize     = 60000    // bytes of a whole event of ours
	MaxInline        = 40000    // bytes of MLS messages inside an event; more goes to media
	MaxFileSize      = 16 << 20 // bytes of an MLSMessage, GroupInfo or tree in media
	MaxSequencers    = 16       // modules in one list
	MaxShownReceipts = 12000    // bytes of the receipts that a head shows
	MaxProofs        = 128      // vouching statements of one vote
	MaxProposals     = 1000     // proposals that one commit names
	maxKeyPackages   = 20000    // that ride with a ReInit
	maxSigSize       = 256      // bytes of a signature of any suite: ECDSA P-521 has 139, Ed448 114
	maxKeySize       = 256      // bytes of a public key
	maxRequestedRefs = 64
	// MaxMissing is of how many senders one delivery receipt asks for messages, and
	// MaxMissingOf for how many of one.
	MaxMissing   = 16
	MaxMissingOf = 64
	// MaxAcks is how many senders' messages one delivery receipt acknowledges.
	MaxAcks = 100
)

// content is what every content struct of a pointer type offers the decoder.
type content[T any] interface {
	*T
	validate() error
}

func decodeContent[T any, P content[T]](what string, raw json.RawMessage) (*T, error) {
	out := new(T)
	if err := decodeObject(raw, out, canonicalNumbers); err != nil {
		return nil, inContent(what, err)
	}
	if err := P(out).validate(); err != nil {
		return nil, inContent(what, err)
	}
	return out, nil
}

// inContent says in which content something was refused.
func inContent(what string, err error) error {
	err = locate(err, whatOf(err))
	r := err.(*Refusal)
	if r.What == "" {
		r.What = what
	} else {
		r.What = what + ": " + r.What
	}
	return r
}

func whatOf(err error) string {
	if r, ok := err.(*Refusal); ok {
		return r.What
	}
	return ""
}

// DecodeCommit reads the content of a [TypeCommit] event.
func DecodeCommit(raw json.RawMessage) (*CommitContent, error) {
	if len(raw) < 64 && redacted(raw) {
		return nil, refuse(RuleRedactedCommit, "commit", "the event has no content any more").with("ask the room's members for it by its ref")
	}
	return decodeContent[CommitContent]("commit", raw)
}

// DecodeProposal reads the content of a [TypeProposal] event.
func DecodeProposal(raw json.RawMessage) (*ProposalContent, error) {
	return decodeContent[ProposalContent]("proposal", raw)
}

// DecodeAccept reads the content of a [TypeAccept] event.
func DecodeAccept(raw json.RawMessage) (*AcceptContent, error) {
	return decodeContent[AcceptContent]("accept", raw)
}

// DecodeVote reads the content of a [TypeVote] event.
func DecodeVote(raw json.RawMessage) (*VoteContent, error) {
	return decodeContent[VoteContent]("vote", raw)
}

// DecodePromise reads the content of a [TypePromise] event.
func DecodePromise(raw json.RawMessage) (*PromiseContent, error) {
	return decodeContent[PromiseContent]("promise", raw)
}

// DecodeReady reads the content of a [TypeReady] event.
func DecodeReady(raw json.RawMessage) (*ReadyContent, error) {
	return decodeContent[ReadyContent]("ready", raw)
}

// DecodeApplied reads the content of a [TypeApplied] event.
func DecodeApplied(raw json.RawMessage) (*AppliedContent, error) {
	return decodeContent[AppliedContent]("applied", raw)
}

// DecodeReject reads the content of a [TypeReject] event.
func DecodeReject(raw json.RawMessage) (*RejectContent, error) {
	return decodeContent[RejectContent]("reject", raw)
}

// DecodeAdmission reads the content of a [TypeAdmit] event.
func DecodeAdmission(raw json.RawMessage) (*Admission, error) {
	return decodeContent[Admission]("admission", raw)
}

// DecodeEraSupport reads the content of a [TypeEra] event.
func DecodeEraSupport(raw json.RawMessage) (*EraSupport, error) {
	return decodeContent[EraSupport]("era", raw)
}

// DecodeHead reads the content of a [TypeHead] event.
func DecodeHead(raw json.RawMessage) (*HeadContent, error) {
	return decodeContent[HeadContent]("head", raw)
}

// DecodeModuleProfile reads the profile field [KeyModule].
func DecodeModuleProfile(raw json.RawMessage) (*ModuleProfile, error) {
	return decodeContent[ModuleProfile]("module profile", raw)
}

// DecodeEncrypted reads the content of an m.room.encrypted or [TypeReceipt]
// event. Another algorithm than ours is refused with [RuleMegolmForMLS].
func DecodeEncrypted(raw json.RawMessage) (*EncryptedContent, error) {
	var probe struct {
		Algorithm string `json:"algorithm"`
	}
	if err := decodeObject(raw, &probe, canonicalNumbers); err != nil {
		return nil, inContent("encrypted", err)
	}
	if probe.Algorithm != Algorithm {
		return nil, refuse(RuleMegolmForMLS, "encrypted", "algorithm is %.80q, the room's is %q", probe.Algorithm, Algorithm)
	}
	return decodeContent[EncryptedContent]("encrypted", raw)
}

// DecodeReceiptPayload reads the plaintext content of a delivery receipt.
func DecodeReceiptPayload(raw json.RawMessage) (*ReceiptPayload, error) {
	return decodeContent[ReceiptPayload]("receipt", raw)
}

// DecodeWelcome reads the content of a [TypeWelcome] to-device event.
func DecodeWelcome(raw json.RawMessage) (*WelcomeContent, error) {
	return decodeContent[WelcomeContent]("welcome", raw)
}

// DecodeRejoinRequest reads the content of a [TypeRejoinRequest] to-device event.
func DecodeRejoinRequest(raw json.RawMessage) (*RejoinRequestContent, error) {
	return decodeContent[RejoinRequestContent]("rejoin request", raw)
}

// DecodeKeyPackage reads the content of [TypeKeyPackageRequest] and
// [TypeKeyPackage] to-device events.
func DecodeKeyPackage(raw json.RawMessage) (*KeyPackageContent, error) {
	return decodeContent[KeyPackageContent]("key package", raw)
}

// DecodeRequest reads the content of a [TypeRequest] event.
func DecodeRequest(raw json.RawMessage) (*RequestContent, error) {
	return decodeContent[RequestContent]("request", raw)
}

// DecodeRepost reads the content of a [TypeRepost] event. The content inside
// goes through the decoder of its own type next.
func DecodeRepost(raw json.RawMessage) (*RepostContent, error) {
	return decodeContent[RepostContent]("repost", raw)
}

// Encode writes any content struct of this package as JSON. It refuses a
// content that the decoder of the other side would refuse, or that makes an
// event larger than [MaxEventSize].
func Encode(v interface{ validate() error }) (json.RawMessage, error) {
	if err := v.validate(); err != nil {
		return nil, err
	}
	raw, err := encodeJSON(v)
	if err != nil {
		return nil, err
	}
	if err := CheckEventSize(raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// eventOverhead is what an event has beside its content: ids of 255 bytes,
// hashes, prev_events and signatures, generously counted.
const eventOverhead = 4096

// CheckEventSize refuses a content that would not fit into an event of
// [MaxEventSize] bytes together with the fields a homeserver adds.
func CheckEventSize(content json.RawMessage) error {
	if n := len(content) + eventOverhead; n > MaxEventSize {
		return refuse(RuleEventTooLarge, "event content", "%d bytes make an event of about %d, at most %d pass every homeserver", len(content), n, MaxEventSize).
			with("send it as an attachment")
	}
	return nil
}

func redacted(raw json.RawMessage) bool {
	v, err := parseJSON(raw, canonicalNumbers)
	return err == nil && v.kind == jsonObject && len(v.keys) == 0
}

func malformed(path, format string, args ...any) error {
	return refuse(RuleContentMalformed, path, format, args...)
}

// firstError returns the first error that is not nil.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// fitsJSON refuses a number that canonical JSON does not hold.
func fitsJSON(name string, n uint64) error {
	if n > maxSafeInt {
		return malformed(name, "is %d, JSON of Matrix holds numbers below 2^53", n)
	}
	return nil
}

func needHash(name string, h Hash) error {
	if h.IsZero() {
		return malformed(name, "is missing")
	}
	return nil
}

func needBytes(name string, b Bytes, atMost int) error {
	if len(b) == 0 {
		return malformed(name, "is missing")
	}
	return maxBytes(name, b, atMost)
}

func maxBytes(name string, b Bytes, atMost int) error {
	if len(b) > atMost {
		return malformed(name, "%d bytes, at most %d", len(b), atMost)
	}
	return nil
}

func needCount(name string, n, atMost int) error {
	if n > atMost {
		return malformed(name, "%d entries, at most %d", n, atMost)
	}
	return nil
}

// checkID checks the form of a Matrix identifier: its sigil, its length, and no
// control characters or spaces.
func checkID(name, s string, sigil byte) error {
	if s == "" {
		return malformed(name, "is missing")
	}
	return optionalID(name, s, sigil)
}

func optionalID(name, s string, sigil byte) error {
	if s == "" {
		return nil
	}
	if len(s) > 255 || s[0] != sigil || len(s) < 2 {
		return malformed(name, "is not an identifier that begins with %q", sigil)
	}
	for _, c := range s {
		if c <= ' ' || c == 0x7f {
			return malformed(name, "holds control characters or spaces")
		}
	}
	return nil
}

// CheckUserID checks the form of a user id: @localpart:server, at most 255 bytes.
func CheckUserID(user id.UserID) error {
	if err := checkID("user id", string(user), '@'); err != nil {
		return err
	}
	if _, server, ok := strings.Cut(string(user), ":"); !ok || server == "" {
		return malformed("user id", "names no server")
	}
	return nil
}

// IsMediaAddress tells whether a text is the address of a file, mxc://server/media, of
// at most 512 bytes (Matrix client-server API, "Matrix Content (mxc://) URIs"; also
// "=", which homeservers give). Both parts become parts of a path, so neither is "."
// or "..", nor holds what means something there.
func IsMediaAddress(address string) bool {
	rest, ok := strings.CutPrefix(address, "mxc://")
	server, media, ok2 := strings.Cut(rest, "/")
	return ok && ok2 && len(address) <= 512 && server != "." && server != ".." && consistsOf(server, ".-:[]") && consistsOf(media, "-_=")
}

// consistsOf tells whether a text is made of letters and digits of ASCII, and of
// others that are named, and is not empty.
func consistsOf(text, others string) bool {
	for _, c := range []byte(text) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return text != ""
}

func (f *File) validate() error {
	if f == nil {
		return nil
	}
	if !IsMediaAddress(string(f.MXC)) {
		return malformed("mxc", "is not an mxc:// address")
	}
	if f.Size <= 0 || f.Size > MaxFileSize {
		return refuse(RuleEventTooLarge, "size", "file of %d bytes, at most %d are read", f.Size, MaxFileSize)
	}
	return needHash("sha256", f.SHA256)
}

func (s *Snapshot) validate() error {
	if s == nil {
		return nil
	}
	if (s.File == nil) == (len(s.Tree) == 0) {
		return malformed("snapshot", "has to carry either a tree or a file")
	}
	return firstError(s.File.validate(), maxBytes("tree", s.Tree, MaxInline), needBytes("tree_hash", s.TreeHash, 64), needHash("at_commit", s.AtCommit))
}

func (c *CommitContent) validate() error {
	inline := len(c.Message) + len(c.GroupInfo)
	for i, p := range c.Proposals {
		if len(p) == 0 {
			return malformed("proposals", "entry %d is empty", i)
		}
		inline += len(p)
	}
	for i, kp := range c.KeyPackages {
		if len(kp) == 0 {
			return malformed("key_packages", "entry %d is empty", i)
		}
		inline += len(kp)
	}
	switch {
	case inline > MaxInline:
		return refuse(RuleEventTooLarge, "message", "%d bytes of MLS inside an event, at most %d", inline, MaxInline).with("send it as media")
	case c.File != nil && inline > 0:
		return malformed("file", "stands beside message, proposals, group_info or key_packages")
	case c.File != nil:
	case len(c.GroupInfo) == 0:
		return malformed("group_info", "is missing")
	case c.Epoch > 0 && len(c.Message) == 0 && !c.Founding:
		return malformed("message", "is missing")
	}
	if c.Founding && (len(c.Message) > 0 || len(c.Proposals) > 0 || len(c.KeyPackages) > 0) {
		return malformed("founding", "a founding commit has no message, proposals or key packages")
	}
	if c.Epoch == 0 && (len(c.Message) > 0 || len(c.Proposals) > 0 || len(c.KeyPackages) > 0 || !c.Parent.IsZero() || c.ParentEvent != "") {
		return malformed("epoch", "the founding epoch has no message, proposals or parent")
	}
	if c.Epoch > 0 {
		if err := needHash("parent", c.Parent); err != nil {
			return err
		}
	}
	for i := range c.Admissions {
		if err := c.Admissions[i].validate(); err != nil {
			return err
		}
	}
	for _, s := range c.CoSignatures {
		if err := needBytes("cosignatures", s.Sig, maxSigSize); err != nil {
			return err
		}
	}
	return firstError(optionalID("parent_event", string(c.ParentEvent), '$'), c.File.validate(), c.Snapshot.validate(),
		needCount("proposals", len(c.Proposals), MaxProposals), needCount("key_packages", len(c.KeyPackages), maxKeyPackages), needCount("cosignatures", len(c.CoSignatures), 64), needCount("admissions", len(c.Admissions), 256))
}

func (p *ProposalContent) validate() error {
	return firstError(needHash("parent", p.Parent), needBytes("message", p.Message, MaxInline), optionalID("reason", string(p.Reason), '$'))
}

func (a *AppliedContent) validate() error {
	return firstError(needHash("ref", a.Ref), needHash("hash", a.Hash), needBytes("sig", a.Sig, maxSigSize))
}

func (r *RejectContent) validate() error {
	if len(r.Rule) > 100 || strings.IndexFunc(r.Rule, func(c rune) bool { return c <= ' ' || c > '~' }) >= 0 {
		return malformed("rule", "is not the name of a rule")
	}
	return firstError(needHash("ref", r.Ref), needBytes("sig", r.Sig, maxSigSize))
}

func (a *Admission) validate() error {
	if a.MasterKey != "" {
		if k, err := DecodeBase64(a.MasterKey); err != nil || len(k) != 32 {
			return malformed("master_key", "is not an Ed25519 key")
		}
	}
	return firstError(checkID("room_id", string(a.Room), '!'), needBytes("group_id", a.Group, 255), CheckUserID(a.User),
		needHash("ref", a.Ref), needBytes("sig", a.Sig, maxSigSize))
}

func (e *EraSupport) validate() error {
	if e.Era == 0 {
		return malformed("era", "is missing")
	}
	if len(e.Sequencers) == 0 {
		return malformed("sequencers", "is missing")
	}
	for i := range e.Sequencers {
		s := &e.Sequencers[i]
		if s.Server == "" || len(s.Server) > maxName {
			return malformed("sequencers", "entry %d names no server", i)
		}
		if len(s.Key) != 32 {
			return malformed("receipt_key", "%d bytes, want an Ed25519 key", len(s.Key))
		}
		if err := CheckUserID(s.User); err != nil {
			return err
		}
	}
	return firstError(needHash("parent", e.Parent), needBytes("sig", e.Sig, maxSigSize), needCount("sequencers", len(e.Sequencers), MaxSequencers))
}

func (e *EventRef) validate() error {
	if e == nil {
		return nil
	}
	return firstError(needHash("ref", e.Ref), checkID("event_id", string(e.Event), '$'), fitsJSON("epoch", e.Epoch))
}

func (b *ReceiptBase) validate() error {
	if b.Counter == 0 {
		return malformed("counter", "is missing")
	}
	if (b.Counter == 1) != b.Prev.IsZero() {
		return malformed("prev", "the first receipt has none, every other has one")
	}
	if len(b.Sig) != 64 {
		return malformed("sig", "%d bytes, want an Ed25519 signature", len(b.Sig))
	}
	if b.Rank >= MaxSequencers {
		return malformed("rank", "is %d, a list has at most %d entries", b.Rank, MaxSequencers)
	}
	return firstError(needHash("cfg", b.Cfg), fitsJSON("counter", b.Counter))
}

func validateProofs(proofs []Proof) error {
	for i := range proofs {
		p := &proofs[i]
		if (p.Applied == nil) == p.Commit.IsZero() {
			return malformed("proofs", "entry %d has to be either a statement or a commit", i)
		}
		if p.Applied != nil {
			if err := p.Applied.validate(); err != nil {
				return err
			}
		}
	}
	return needCount("proofs", len(proofs), MaxProofs)
}

func (v *VoteContent) validate() error {
	return firstError(v.ReceiptBase.validate(), v.Ballot.validate(), needHash("ref", v.Ref), optionalID("commit_event", string(v.Event), '$'), validateProofs(v.Proofs))
}

func (p *PromiseContent) validate() error {
	if p.Ballot.Round == 0 {
		return malformed("ballot", "round 0 needs no promise")
	}
	if l := p.Last; l != nil {
		if err := firstError(needHash("last.ref", l.Ref), l.Ballot.validate(), fitsJSON("last.epoch", l.Epoch), validateProofs(l.Proofs)); err != nil {
			return err
		}
	}
	return firstError(p.Ballot.validate(), p.ReceiptBase.validate())
}

func (r *ReadyContent) validate() error { return r.ReceiptBase.validate() }

func (a *AcceptContent) validate() error {
	if (a.Ballot == nil) != a.Provisional {
		return malformed("ballot", "an accept is either in a ballot or provisional")
	}
	if a.Ballot != nil {
		if a.Ballot.Rank != a.Rank {
			return malformed("ballot", "belongs to rank %d, the signer is rank %d", a.Ballot.Rank, a.Rank)
		}
		if err := a.Ballot.validate(); err != nil {
			return err
		}
	}
	if len(a.Promises) > 0 && (a.Ballot == nil || a.Ballot.Round == 0) {
		return malformed("promises", "stand only in ballots from round 1 on")
	}
	for i := range a.Promises {
		if err := a.Promises[i].validate(); err != nil {
			return err
		}
	}
	for i := range a.Votes {
		if err := a.Votes[i].validate(); err != nil {
			return err
		}
	}
	return firstError(a.ReceiptBase.validate(), needHash("ref", a.Ref), fitsJSON("epoch", a.Epoch), optionalID("commit_event", string(a.Event), '$'),
		needCount("promises", len(a.Promises), MaxSequencers), needCount("votes", len(a.Votes), 8))
}

func (h *HeadContent) validate() error {
	if len(h.ReceiptKey) != 32 {
		return malformed("receipt_key", "%d bytes, want an Ed25519 key", len(h.ReceiptKey))
	}
	for _, s := range h.ExternalSenders {
		if err := needBytes("external_senders", s.Key, maxKeySize); err != nil {
			return err
		}
	}
	if err := needCount("answers", len(h.Answers), MaxSequencers); err != nil {
		return err
	}
	for _, nonce := range h.Answers {
		if nonce == "" || len(nonce) > 64 {
			return malformed("answers", "a nonce of %d bytes, want 1 to 64", len(nonce))
		}
	}
	for _, r := range h.Receipts {
		if err := firstError(needBytes("receipts", r.Key, maxKeySize), needHash("receipts", r.Hash), fitsJSON("receipts", r.Counter), optionalID("receipts", string(r.Event), '$'),
			maxBytes("receipts", r.Signed, MaxShownReceipts), maxBytes("receipts", r.Sig, ed25519.SignatureSize)); err != nil {
			return err
		}
		if len(r.Signed)+len(r.Sig) > 0 && Hash(federation.HashOf(r.Signed, r.Sig)) != r.Hash {
			return malformed("receipts", "shows another receipt than it names")
		}
	}
	if len(h.Proof) > 0 && h.ProofFile != nil {
		return malformed("proof", "stands beside proof_file")
	}
	return firstError(h.ProofFile.validate(), fitsJSON("era", h.Era), maxBytes("proof", h.Proof, MaxInline), h.Accepted.validate(), h.Final.validate(), h.Root.validate(), h.Snapshot.validate(),
		maxBytes("group_id", h.Group, 255), maxBytes("group_info", h.GroupInfo, MaxInline),
		needCount("external_senders", len(h.ExternalSenders), 16), needCount("suites", len(h.Suites), 64), needCount("receipts", len(h.Receipts), 4*MaxSequencers))
}

func (m *ModuleProfile) validate() error {
	if len(m.ReceiptKey) != 32 {
		return malformed("receipt_key", "%d bytes, want an Ed25519 key", len(m.ReceiptKey))
	}
	return nil
}

func (e *EncryptedContent) validate() error {
	if e.Algorithm != Algorithm {
		return refuse(RuleMegolmForMLS, "algorithm", "is %.80q, want %q", e.Algorithm, Algorithm)
	}
	return firstError(needBytes("ciphertext", e.Ciphertext, MaxEventSize), optionalID("commit_event", string(e.CommitEvent), '$'))
}

func (p *ReceiptPayload) validate() error {
	if err := needCount("acks", len(p.Acks), MaxAcks); err != nil {
		return err
	}
	for i, a := range p.Acks {
		if err := needHash("acks", a.Ref); err != nil {
			return err
		}
		if slices.ContainsFunc(p.Acks[:i], func(o Ack) bool { return o.Ref == a.Ref && o.Leaf == a.Leaf }) {
			return malformed("acks", "names one sender of an epoch twice")
		}
	}
	if err := needCount("missing", len(p.Missing), MaxMissing); err != nil {
		return err
	}
	for i, m := range p.Missing {
		if err := firstError(needHash("missing", m.Ref), needCount("missing", len(m.Generations), MaxMissingOf)); err != nil {
			return err
		}
		if len(m.Generations) == 0 {
			return malformed("missing", "names no message of a sender")
		}
		if slices.ContainsFunc(p.Missing[:i], func(o MissingMessages) bool { return o.Ref == m.Ref && o.Leaf == m.Leaf }) {
			return malformed("missing", "names one sender of an epoch twice")
		}
	}
	return nil
}

func (e *EncryptionContent) validate() error {
	if e.Algorithm != Algorithm {
		return refuse(RuleAlgorithmDowngrade, "algorithm", "is %.80q, want %q", e.Algorithm, Algorithm)
	}
	return nil
}

func (w *WelcomeContent) validate() error {
	if w.Accept != nil {
		if err := w.Accept.validate(); err != nil {
			return inContent("accept", err)
		}
		if w.Accept.Ref != w.Ref {
			return malformed("accept", "is for another commit")
		}
	}
	return firstError(checkID("room_id", string(w.Room), '!'), checkID("commit_event", string(w.CommitEvent), '$'), needHash("ref", w.Ref),
		needHash("cfg", w.Cfg), needBytes("welcome", w.Welcome, MaxInline), w.Snapshot.validate())
}

func (r *RejoinRequestContent) validate() error {
	switch r.Need {
	case NeedWelcome, NeedGroupInfo:
	default:
		return malformed("need", "is %.40q, which this version does not know", r.Need)
	}
	return firstError(checkID("room_id", string(r.Room), '!'), maxBytes("key_package", r.KeyPackage, MaxInline), needCount("reason", len(r.Reason), 200))
}

func (k *KeyPackageContent) validate() error {
	if k.RequestID == "" || len(k.RequestID) > 64 {
		return malformed("request_id", "has to have 1 to 64 bytes")
	}
	return firstError(checkID("room_id", string(k.Room), '!'), maxBytes("key_package", k.KeyPackage, MaxInline))
}

func (r *RequestContent) validate() error {
	return firstError(r.Since.validate(), optionalID("event_id", string(r.Event), '$'),
		needCount("refs", len(r.Refs), maxRequestedRefs), needCount("receipts", len(r.Receipts), maxRequestedRefs),
		needCount("above", len(r.Above), MaxSequencers), r.validateAbove())
}

func (r *RequestContent) validateAbove() error {
	for _, a := range r.Above {
		if err := needBytes("above: key", a.Key, maxKeySize); err != nil {
			return err
		}
	}
	return nil
}

func (r *RepostContent) validate() error {
	if !strings.HasPrefix(r.Type, Prefix) || r.Type == TypeRepost || len(r.Type) > 255 {
		return malformed("type", "%.80q is not an event of ours", r.Type)
	}
	if len(r.Content) == 0 || r.Content[0] != '{' {
		return malformed("content", "is missing")
	}
	return firstError(CheckUserID(r.Sender), optionalID("event_id", string(r.Event), '$'))
}
