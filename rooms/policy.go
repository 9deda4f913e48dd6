package rooms

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
)

// policyVersion is the first octet of an encoded policy.
const policyVersion = 1

// Bounds of a policy.
const (
	maxAdmins     = 64
	maxHeirs      = 48
	maxAdmitters  = 64
	maxSuiteOrder = 32
	maxHeirsSrv   = 3 // heirs of one server
	maxWindow     = 256
	maxName       = 255
)

// A Verification says what a device must show before it may be a leaf (MSC4256,
// required_verification).
type Verification uint8

// The levels of Verification.
const (
	VerifyCross Verification = 0 // m.cross: cross-signed by its user
	VerifyTOFU  Verification = 1 // m.tofu: the key seen first stays
	VerifyNone  Verification = 2 // m.none: the homeserver's word
)

// String returns the name MSC4256 uses.
func (v Verification) String() string {
	switch v {
	case VerifyCross:
		return "m.cross"
	case VerifyTOFU:
		return "m.tofu"
	case VerifyNone:
		return "m.none"
	}
	return "unknown"
}

// An AdmitPolicy says who may admit new users.
type AdmitPolicy uint8

// The values of AdmitPolicy.
const (
	AdmitMembers AdmitPolicy = 0 // every member
	AdmitAdmins  AdmitPolicy = 1 // admins only
	AdmitListed  AdmitPolicy = 2 // admins and the users of Admitters
)

// A JoinPolicy says whether a user needs an admission.
type JoinPolicy uint8

// The values of JoinPolicy. Everything but JoinAdmitted hands the choice to the
// homeservers, and is shown as "the servers decide who joins".
const (
	JoinAdmitted JoinPolicy = 0 // only with an admission
	JoinByRule   JoinPolicy = 1 // whoever meets the room's join rule
	JoinOpen     JoinPolicy = 2 // anyone
)

// A HistoryPolicy says whether newcomers may be given earlier messages.
type HistoryPolicy uint8

// The values of HistoryPolicy.
const (
	HistoryNone   HistoryPolicy = 0 // nothing from before the join
	HistoryShared HistoryPolicy = 1 // members may share what the room's history visibility allows
)

// Predecessor names the group and commit that a group continues. After a ReInit
// the commit is the one the ReInit was made on: the new group's extensions stand
// in the ReInit itself (RFC 9420, Section 11.2), so they cannot name its own
// commit. [FoundingExtension] does that.
type Predecessor struct {
	Group []byte    // group id
	Room  id.RoomID // its room: the same after a ReInit, another after a room upgrade
	Ref   Hash      // a commit of it
}

// Policy is the agreed policy of a group. It stands in the GroupContext
// (extension [ExtensionPolicy]), so that every member has signed and confirmed
// it; nothing is checked against a server's word instead.
type Policy struct {
	Algorithm   string    // pinned: [Algorithm]
	Room        id.RoomID // the room the group belongs to
	Creator     id.UserID
	Predecessor *Predecessor

	Sequencers  []federation.Sequencer
	Takeover    time.Duration // whole milliseconds
	HeirsWait   time.Duration
	Window      int
	OnPartition federation.OnPartition

	Admins    []id.UserID
	Heirs     []federation.Heir
	Admit     AdmitPolicy
	Admitters []id.UserID // of AdmitListed
	Join      JoinPolicy

	SuiteFloor   []Suite // suites a new group of the room may use; empty: all
	SuiteOrder   []Suite // preference, first is best
	History      HistoryPolicy
	Verification Verification
	RemoveSilent time.Duration // leaves silent for so long are removed; 0: never

	// Manual: admins name sequencers and heirs. Otherwise the admins' clients
	// choose them by [DefaultSequencers] and [DefaultHeirs].
	Manual bool
}

// DefaultPolicy returns the policy of a new room: its creator is the only
// admin, every member may admit users, one sequencer, all EdDSA suites before
// the ECDSA ones.
func DefaultPolicy(room id.RoomID, creator id.UserID, sequencers ...federation.Sequencer) *Policy {
	return &Policy{
		Algorithm:  Algorithm,
		Room:       room,
		Creator:    creator,
		Sequencers: sequencers,
		Takeover:   federation.DefaultTakeover,
		HeirsWait:  federation.DefaultHeirsWait,
		Window:     federation.DefaultWindow,
		Admins:     []id.UserID{creator},
		SuiteOrder: DefaultSuiteOrder(),
	}
}

// Encode returns the body of the policy extension.
func (p *Policy) Encode() ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	b := []byte{policyVersion}
	b = appendVec(b, p.Algorithm)
	b = appendVec(b, p.Room)
	b = appendVec(b, p.Creator)
	b = appendBool(b, p.Predecessor != nil)
	if p.Predecessor != nil {
		b = appendVec(b, p.Predecessor.Group)
		b = appendVec(b, p.Predecessor.Room)
		b = append(b, p.Predecessor.Ref[:]...)
	}
	b = appendList(b, p.Sequencers)
	b = appendUint32(b, uint32(p.Takeover/time.Millisecond))
	b = appendUint32(b, uint32(p.HeirsWait/time.Millisecond))
	b = appendUint16(b, uint16(p.Window))
	b = append(b, byte(p.OnPartition))
	b = appendUsers(b, p.Admins)
	b = appendUint16(b, uint16(len(p.Heirs)))
	for _, h := range p.Heirs {
		b = appendVec(b, h.Server)
		b = appendVec(b, h.User)
	}
	b = append(b, byte(p.Admit))
	b = appendUsers(b, p.Admitters)
	b = append(b, byte(p.Join))
	b = appendSuites(b, p.SuiteFloor)
	b = appendSuites(b, p.SuiteOrder)
	b = append(b, byte(p.History), byte(p.Verification))
	b = appendUint32(b, uint32(p.RemoveSilent/time.Second))
	if p.Manual { // absent otherwise
		b = appendBool(b, true)
	}
	return b, nil
}

// appendList appends an encoded list of sequencers; the co-signatures of an
// heirs' era cover the same bytes.
func appendList(b []byte, list []federation.Sequencer) []byte {
	b = appendUint16(b, uint16(len(list)))
	for _, s := range list {
		b = appendVec(b, s.Server)
		b = appendVec(b, s.User)
		b = appendVec(b, s.ReceiptKey)
	}
	return b
}

func appendUsers(b []byte, users []id.UserID) []byte {
	b = appendUint16(b, uint16(len(users)))
	for _, u := range users {
		b = appendVec(b, u)
	}
	return b
}

func appendSuites(b []byte, suites []Suite) []byte {
	b = appendUint16(b, uint16(len(suites)))
	for _, s := range suites {
		b = appendUint16(b, uint16(s))
	}
	return b
}

// DecodePolicy reads the body of the policy extension and validates it. Two
// encodings of one policy do not exist.
func DecodePolicy(data []byte) (*Policy, error) {
	p := new(Policy)
	if !p.unmarshal(cryptobyte.String(data)) {
		return nil, refuse(RulePolicyMalformed, "group policy", "does not decode as version %d", policyVersion)
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Policy) unmarshal(s cryptobyte.String) bool {
	var version, partition, admit, join, history, verification uint8
	var takeover, heirsWait, silent uint32
	var window uint16
	var pre bool
	users := func(out *[]id.UserID, atMost int) bool {
		return readList(&s, atMost, func() bool {
			var u id.UserID
			ok := readVec(&s, &u, maxName)
			*out = append(*out, u)
			return ok
		})
	}
	suites := func(out *[]Suite) bool {
		return readList(&s, maxSuiteOrder, func() bool {
			var v uint16
			ok := s.ReadUint16(&v)
			*out = append(*out, Suite(v))
			return ok
		})
	}
	if !s.ReadUint8(&version) || version != policyVersion ||
		!readVec(&s, &p.Algorithm, maxName) || !readVec(&s, &p.Room, maxName) || !readVec(&s, &p.Creator, maxName) || !readBool(&s, &pre) {
		return false
	}
	if pre {
		p.Predecessor = new(Predecessor)
		if !readVec(&s, &p.Predecessor.Group, maxName) || !readVec(&s, &p.Predecessor.Room, maxName) || !readHash(&s, &p.Predecessor.Ref) {
			return false
		}
	}
	if !readList(&s, MaxSequencers, func() bool {
		var q federation.Sequencer
		ok := readVec(&s, &q.Server, maxName) && readVec(&s, &q.User, maxName) && readVec(&s, &q.ReceiptKey, 32)
		p.Sequencers = append(p.Sequencers, q)
		return ok
	}) || !s.ReadUint32(&takeover) || !s.ReadUint32(&heirsWait) || !s.ReadUint16(&window) || !s.ReadUint8(&partition) ||
		!users(&p.Admins, maxAdmins) || !readList(&s, maxHeirs, func() bool {
		var h federation.Heir
		ok := readVec(&s, &h.Server, maxName) && readVec(&s, &h.User, maxName)
		p.Heirs = append(p.Heirs, h)
		return ok
	}) || !s.ReadUint8(&admit) || !users(&p.Admitters, maxAdmitters) || !s.ReadUint8(&join) ||
		!suites(&p.SuiteFloor) || !suites(&p.SuiteOrder) || !s.ReadUint8(&history) || !s.ReadUint8(&verification) ||
		!s.ReadUint32(&silent) {
		return false
	}
	if !s.Empty() && (!readBool(&s, &p.Manual) || !p.Manual || !s.Empty()) {
		return false
	}
	p.Takeover = time.Duration(takeover) * time.Millisecond
	p.HeirsWait = time.Duration(heirsWait) * time.Millisecond
	p.Window = int(window)
	p.OnPartition = federation.OnPartition(partition)
	p.Admit, p.Join = AdmitPolicy(admit), JoinPolicy(join)
	p.History, p.Verification = HistoryPolicy(history), Verification(verification)
	p.RemoveSilent = time.Duration(silent) * time.Second
	return true
}

// Validate checks that a policy is complete and does not contradict itself.
func (p *Policy) Validate() error {
	bad := func(format string, args ...any) *Refusal {
		return refuse(RulePolicyMalformed, "group policy", format, args...)
	}
	switch {
	case p.Algorithm != Algorithm:
		return refuse(RuleAlgorithmDowngrade, "group policy", "algorithm is %.80q, want %q", p.Algorithm, Algorithm)
	case optionalID("room", string(p.Room), '!') != nil || p.Room == "":
		return bad("room %.80q is not a room id", p.Room)
	case CheckUserID(p.Creator) != nil:
		return bad("creator %.80q is not a user id", p.Creator)
	case len(p.Sequencers) == 0:
		return bad("names no sequencer").with("install the server module on a homeserver of the room")
	case len(p.Sequencers) > MaxSequencers:
		return bad("%d sequencers, at most %d", len(p.Sequencers), MaxSequencers)
	case !between(p.Takeover, time.Second, time.Hour, time.Millisecond):
		return bad("takeover of %v, want 1 s to 1 h", p.Takeover)
	case !between(p.HeirsWait, time.Minute, 14*24*time.Hour, time.Millisecond):
		return bad("heirs_wait of %v, want 1 min to 14 days", p.HeirsWait)
	case p.Window < 1 || p.Window > maxWindow:
		return bad("window of %d commits, want 1 to %d", p.Window, maxWindow)
	case p.OnPartition > federation.OnPartitionFreeze:
		return bad("on_partition %d is unknown", p.OnPartition)
	case len(p.Admins) == 0:
		return bad("names no admin")
	case p.Admit > AdmitListed:
		return bad("admission rule %d is unknown", p.Admit)
	case (p.Admit == AdmitListed) != (len(p.Admitters) > 0):
		return bad("a list of admitters belongs to the rule that uses it, and only there")
	case p.Join > JoinOpen:
		return bad("join rule %d is unknown", p.Join)
	case p.History > HistoryShared:
		return bad("history rule %d is unknown", p.History)
	case p.Verification > VerifyNone:
		return bad("required verification %d is unknown", p.Verification)
	case p.RemoveSilent != 0 && !between(p.RemoveSilent, 24*time.Hour, 10*365*24*time.Hour, time.Second):
		return bad("remove_silent of %v, want a day to ten years", p.RemoveSilent)
	case len(p.SuiteOrder) == 0:
		return bad("names no cipher suite")
	}
	for i, s := range p.Sequencers {
		if s.Server == "" || len(s.Server) > maxName || CheckUserID(id.UserID(s.User)) != nil {
			return bad("sequencer %d has no server or user id", i)
		}
		if len(s.ReceiptKey) != 32 || weakEd25519Key(s.ReceiptKey) {
			return bad("receipt key of sequencer %d is not a usable Ed25519 key", i)
		}
		for _, o := range p.Sequencers[:i] {
			if o.Server == s.Server || o.User == s.User || bytes.Equal(o.ReceiptKey, s.ReceiptKey) {
				return bad("sequencers %s and %s share a server, user or key", o.User, s.User)
			}
		}
	}
	perServer := make(map[string]int)
	for i, h := range p.Heirs {
		if CheckUserID(id.UserID(h.User)) != nil || serverOf(id.UserID(h.User)) != h.Server {
			return bad("heir %d is not a user of its server", i)
		}
		if h.Server == serverOf(p.Creator) {
			return bad("heir %s is of the creator's server", h.User)
		}
		if perServer[h.Server]++; perServer[h.Server] > maxHeirsSrv {
			return bad("server %s has more than %d heirs", h.Server, maxHeirsSrv)
		}
		if slices.Contains(p.Heirs[:i], h) {
			return bad("heir %s appears twice", h.User)
		}
	}
	if len(p.Heirs) > maxHeirs {
		return bad("%d heirs, at most %d", len(p.Heirs), maxHeirs)
	}
	if p.Predecessor != nil {
		if len(p.Predecessor.Group) == 0 || len(p.Predecessor.Group) > maxName || p.Predecessor.Ref.IsZero() ||
			checkID("room", string(p.Predecessor.Room), '!') != nil {
			return bad("predecessor is incomplete")
		}
	}
	if err := uniqueUsers("admins", p.Admins, maxAdmins); err != nil {
		return err
	}
	if err := uniqueUsers("admitters", p.Admitters, maxAdmitters); err != nil {
		return err
	}
	if err := uniqueSuites("suite floor", p.SuiteFloor); err != nil {
		return err
	}
	return uniqueSuites("suite order", p.SuiteOrder)
}

func between(d, low, high, unit time.Duration) bool { return d >= low && d <= high && d%unit == 0 }

func uniqueUsers(name string, users []id.UserID, atMost int) error {
	if len(users) > atMost {
		return refuse(RulePolicyMalformed, "group policy", "%d %s, at most %d", len(users), name, atMost)
	}
	for i, u := range users {
		if CheckUserID(u) != nil || slices.Contains(users[:i], u) {
			return refuse(RulePolicyMalformed, "group policy", "entry %d of the %s is no user id or appears twice", i, name)
		}
	}
	return nil
}

func uniqueSuites(name string, suites []Suite) error {
	if len(suites) > maxSuiteOrder {
		return refuse(RulePolicyMalformed, "group policy", "%s has more than %d entries", name, maxSuiteOrder)
	}
	for i, s := range suites {
		if s == 0 || slices.Contains(suites[:i], s) {
			return refuse(RulePolicyMalformed, "group policy", "%s holds suite %d twice, or suite 0", name, uint16(s))
		}
	}
	return nil
}

// serverOf returns the server name of a user id.
func serverOf(user id.UserID) string {
	_, server, _ := strings.Cut(string(user), ":")
	return server
}

// Clone returns a copy that shares nothing with p.
func (p *Policy) Clone() *Policy {
	c := *p
	if p.Predecessor != nil {
		pre := *p.Predecessor
		pre.Group = bytes.Clone(pre.Group)
		c.Predecessor = &pre
	}
	c.Sequencers = slices.Clone(p.Sequencers)
	for i := range c.Sequencers {
		c.Sequencers[i].ReceiptKey = bytes.Clone(c.Sequencers[i].ReceiptKey)
	}
	c.Admins, c.Heirs, c.Admitters = slices.Clone(p.Admins), slices.Clone(p.Heirs), slices.Clone(p.Admitters)
	c.SuiteFloor, c.SuiteOrder = slices.Clone(p.SuiteFloor), slices.Clone(p.SuiteOrder)
	return &c
}

// Equal tells whether two policies are the same; one that is not valid equals
// none.
func (p *Policy) Equal(o *Policy) bool {
	a, err := p.Encode()
	if err != nil {
		return false
	}
	b, err := o.Encode()
	return err == nil && bytes.Equal(a, b)
}

// Rebase returns onto with what p changed of from: a change that was made on one
// policy, on top of another. Fields that p leaves as they were in from are
// onto's; users are added to and taken from lists one by one, so that neither
// change brings back whom the other took away.
func (p *Policy) Rebase(from, onto *Policy) *Policy {
	if from == nil {
		return p.Clone()
	}
	out, want, before := onto.Clone(), p.Clone(), from.Clone()
	o, w, b := reflect.ValueOf(out).Elem(), reflect.ValueOf(want).Elem(), reflect.ValueOf(before).Elem()
	for i := range o.NumField() {
		x, y := w.Field(i), b.Field(i)
		if x.Kind() == reflect.Slice && x.Len() == 0 && y.Len() == 0 {
			continue // nil and empty say the same
		}
		if !reflect.DeepEqual(x.Interface(), y.Interface()) {
			o.Field(i).Set(x)
		}
	}
	out.Admins = rebaseList(from.Admins, p.Admins, onto.Admins)
	out.Heirs = rebaseList(from.Heirs, p.Heirs, onto.Heirs)
	out.Admitters = rebaseList(from.Admitters, p.Admitters, onto.Admitters)
	return out
}

// rebaseList takes from onto what list lacks of from, and adds what it has
// beyond that.
func rebaseList[T comparable](from, list, onto []T) []T {
	out := slices.DeleteFunc(slices.Clone(onto), func(x T) bool { return slices.Contains(from, x) && !slices.Contains(list, x) })
	for _, x := range list {
		if !slices.Contains(from, x) && !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// IsAdmin tells whether a user is an admin of the group.
func (p *Policy) IsAdmin(user id.UserID) bool { return slices.Contains(p.Admins, user) }

// IsHeir tells whether a user is an heir of the group.
func (p *Policy) IsHeir(user id.UserID) bool {
	return slices.ContainsFunc(p.Heirs, func(h federation.Heir) bool { return h.User == string(user) })
}

// MayAdmit tells whether a member may admit new users.
func (p *Policy) MayAdmit(user id.UserID) bool {
	switch p.Admit {
	case AdmitMembers:
		return true
	case AdmitListed:
		return p.IsAdmin(user) || slices.Contains(p.Admitters, user)
	default:
		return p.IsAdmin(user)
	}
}

// Federation returns the part of the policy that epoch coordination depends on.
func (p *Policy) Federation() federation.Policy {
	f := federation.Policy{
		Sequencers:  slices.Clone(p.Sequencers),
		Heirs:       slices.Clone(p.Heirs),
		Takeover:    p.Takeover,
		HeirsWait:   p.HeirsWait,
		Window:      p.Window,
		OnPartition: p.OnPartition,
	}
	for _, a := range p.Admins {
		f.Admins = append(f.Admins, string(a))
	}
	return f
}

// CheckChange tells whether author may replace the policy from by to. The room,
// the algorithm, the creator and the predecessor never change inside a group;
// everything else is the admins' to change.
func CheckChange(from, to *Policy, author id.UserID) error {
	a, err := from.Encode()
	if err != nil {
		return err
	}
	b, err := to.Encode()
	if err != nil {
		return err
	}
	if bytes.Equal(a, b) {
		return nil
	}
	switch {
	case to.Room != from.Room:
		return refuse(RuleRoomNotGroup, "group policy", "room changed from %s to %s", from.Room, to.Room)
	case to.Creator != from.Creator:
		return refuse(RulePolicyNotEntitled, "group policy", "creator changed from %s to %s", from.Creator, to.Creator)
	case !from.Predecessor.equal(to.Predecessor):
		return refuse(RulePolicyNotEntitled, "group policy", "predecessor changed")
	case !from.IsAdmin(author):
		return refuse(RulePolicyNotEntitled, "group policy", "%s is no admin of the group", author).with("ask an admin: %s", userList(from.Admins))
	}
	return nil
}

// CheckHeirsChange tells whether the change is one that heirs may make: nothing
// but the list of sequencers.
func CheckHeirsChange(from, to *Policy) error {
	same := *to
	same.Sequencers = from.Sequencers
	a, err := from.Encode()
	if err != nil {
		return err
	}
	b, err := same.Encode()
	if err != nil {
		return err
	}
	if err := to.Validate(); err != nil {
		return err
	}
	if !bytes.Equal(a, b) {
		return refuse(RulePolicyNotEntitled, "group policy", "an heirs' era changes nothing but the sequencers")
	}
	return nil
}

func (p *Predecessor) equal(o *Predecessor) bool {
	if p == nil || o == nil {
		return p == o
	}
	return bytes.Equal(p.Group, o.Group) && p.Room == o.Room && p.Ref == o.Ref
}

// userList writes a few users for people to read.
func userList(users []id.UserID) string {
	const shown = 3
	names := make([]string, 0, shown+1)
	for i, u := range users {
		if i == shown {
			names = append(names, "…")
			break
		}
		names = append(names, string(u))
	}
	return strings.Join(names, ", ")
}
