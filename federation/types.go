package federation

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"time"
)

// Ref names a commit: SHA-256 over its content, signature and confirmation tag.
// The caller computes it.
type Ref [32]byte

// String returns the ref in hex.
func (r Ref) String() string { return hex.EncodeToString(r[:]) }

// Short returns the first eight hex digits, for logs and people.
func (r Ref) Short() string { return hex.EncodeToString(r[:4]) }

// IsZero reports whether the ref names nothing.
func (r Ref) IsZero() bool { return r == Ref{} }

// ParseRef reads the form that String writes.
func ParseRef(s string) (Ref, error) {
	var r Ref
	if len(s) != 2*len(r) {
		return r, fmt.Errorf("federation: ref of %d characters, want %d", len(s), 2*len(r))
	}
	if _, err := hex.Decode(r[:], []byte(s)); err != nil {
		return Ref{}, fmt.Errorf("federation: ref is not hexadecimal: %w", err)
	}
	return r, nil
}

// Sequencer is one entry of the ordered list that a room's policy carries.
type Sequencer struct {
	Server     string
	User       string
	ReceiptKey []byte // Ed25519 public key, 32 bytes
}

// List is the ordered list of sequencers; a sequencer's rank is its index.
type List []Sequencer

// Quorum returns ⌊n/2⌋+1.
func (l List) Quorum() int { return len(l)/2 + 1 }

// Equal reports whether two lists hold the same sequencers in the same order.
func (l List) Equal(o List) bool {
	if len(l) != len(o) {
		return false
	}
	for i := range l {
		if l[i].Server != o[i].Server || l[i].User != o[i].User || string(l[i].ReceiptKey) != string(o[i].ReceiptKey) {
			return false
		}
	}
	return true
}

// Rank returns the index of the sequencer with the given receipt key.
func (l List) Rank(receiptKey []byte) (uint32, bool) {
	for i := range l {
		if string(l[i].ReceiptKey) == string(receiptKey) {
			return uint32(i), true
		}
	}
	return 0, false
}

// Ballot is (round, rank), compared as numbers. Its owner is list[Rank].
// Round 0 has rank 0 only and counts as promised by all from the start.
type Ballot struct {
	Round uint64
	Rank  uint32
}

// Less reports whether b is below o.
func (b Ballot) Less(o Ballot) bool {
	return b.Round < o.Round || b.Round == o.Round && b.Rank < o.Rank
}

func (b Ballot) compare(o Ballot) int {
	switch {
	case b.Less(o):
		return -1
	case o.Less(b):
		return 1
	}
	return 0
}

// String returns "round.rank".
func (b Ballot) String() string { return fmt.Sprintf("%d.%d", b.Round, b.Rank) }

// Heir is a user whom an admin's commit entered as an heir, with the server
// the user belongs to.
type Heir struct {
	User   string
	Server string
}

// OnPartition says what a side without a quorum does.
type OnPartition uint8

// The values of OnPartition.
const (
	OnPartitionFork   OnPartition = 0 // go on for at most Window votable commits
	OnPartitionFreeze OnPartition = 1 // use a commit only once it is final
)

// Policy is the part of the group policy that coordination depends on. Zero
// durations and a zero window mean the defaults.
type Policy struct {
	Sequencers  List
	Admins      []string
	Heirs       []Heir
	Takeover    time.Duration // default 30 s
	HeirsWait   time.Duration // default 10 minutes
	Window      int           // default 16
	OnPartition OnPartition
}

// Defaults of Policy.
const (
	DefaultTakeover  = 30 * time.Second
	DefaultHeirsWait = 10 * time.Minute
	DefaultWindow    = 16
)

// Leaf is one occupied leaf of the ratchet tree.
type Leaf struct {
	Index uint32
	User  string
	Key   []byte // signature public key
}

// Base is where a machine starts: the founding epoch, or the commit at which
// a newcomer joined. It counts as accepted, votable and, within its era, as
// final.
type Base struct {
	Ref     Ref
	EventID string
	Epoch   uint64
	Era     uint64 // number of the era it lies in; 0 at the root
	// Config names the commit that set the list governing the base's children:
	// the zero value means the base itself, as at the root.
	Config  Ref
	GroupID []byte
	Suite   uint16
	Policy  Policy
	Leaves  []Leaf
	// Proof is the chain that showed the base, which the caller verified; the
	// machine continues it. Nil at the root, or if none was shown.
	Proof *ProofChain
}

// Era marks a commit that opens a new era. Its policy carries the new list.
type Era struct {
	Number uint64 // parent's era + 1
	// ByHeirs is set for an era opened by heirs. Signers are then the users whose
	// signature over the era the caller verified with leaf keys of the parent's
	// tree, the author included.
	ByHeirs bool
	Signers []string
}

// Founding marks a commit that founds the group's successor (RFC 9420,
// Section 11.2): it replaces group id, suite and the whole leaf table.
type Founding struct {
	GroupID []byte
	Suite   uint16
	Leaves  []Leaf
}

// Event is an input of Step: *Commit, *Accept, *Vote, *Promise, *Ready,
// *Applied, *Rejected, Outside, Shown or Resume.
type Event interface{ event() }

// Commit is a commit that the caller validated against its parent's tree.
type Commit struct {
	Ref     Ref
	Parent  Ref
	EventID string
	// ParentEvent is the sender's hint where the parent is; it is used in Fetch.
	ParentEvent string
	Epoch       uint64 // the epoch it makes

	// Author is the leaf that made the commit: a leaf of the parent's tree, or
	// the leaf that an external commit added.
	Author     uint32
	AuthorUser string
	External   bool

	// The commit's changes of the leaf table, applied in this order: Removed
	// (of the parent's tree), Updated (same member, maybe a new key), Added.
	Removed []uint32
	Updated []Leaf
	Added   []Leaf

	// Policy is the policy from this commit on; nil: the parent's.
	Policy *Policy
	// Era is set if the commit opens an era.
	Era *Era
	// Founding is set if the commit founds the successor of a closed group.
	Founding *Founding

	// OnlyRemoves is set if the commit has only Removes of users who left or were
	// banned, and a path. Such a commit is free of the window.
	OnlyRemoves bool
	// Barred says why this module does not accept the commit (it breaks the
	// room's policy, skips proposals …). It is a local verdict: an accept by
	// another sequencer counts all the same, and clients leave it empty.
	Barred string
}

// Resume tells a module's machine that it was compared with the room after a
// start, and may sign again.
type Resume struct{}

// Shown shows a module's machine a receipt of its own key as it was signed, which a
// P.head of another module does for the newest of each. If this machine did not make
// it the key is retired, whether what it is about is held or not: this machine then
// runs on an old disk. What the own key did not sign is refused: nobody's word that
// there is such a receipt counts.
type Shown struct{ Signed, Signature []byte }

// Outside tells the machine of a commit that could not be checked because its
// parent is not held, and will not be: it is of the base's group, and Beside says
// so, or of a group that came before it (Past). Ref, parent and epoch are what the
// commit's author signed. Votes for it, which promises report, are then not waited
// for any more.
type Outside struct {
	Ref, Parent Ref
	Epoch       uint64
	Past        bool
}

func (Outside) event()   {}
func (Shown) event()     {}
func (*Commit) event()   {}
func (*Accept) event()   {}
func (*Vote) event()     {}
func (*Promise) event()  {}
func (*Ready) event()    {}
func (*Applied) event()  {}
func (*Rejected) event() {}
func (Resume) event()    {}

// Action is what the caller must do after Step or Tick: Save, Send,
// HeadChanged, Finalized, Doubt, Fetch, Evidence, Forget or KeyRetired.
type Action interface{ action() }

// Save asks to persist the machine (MarshalBinary) before anything is sent.
type Save struct{}

// Send asks to post a receipt of this module: *Accept, *Vote, *Promise or
// *Ready.
type Send struct{ Receipt Receipt }

// HeadChanged reports that the fork choice moved from From to To. Fork is
// their last common commit; if it is not From, commits above it left the head.
type HeadChanged struct{ From, To, Fork Ref }

// Finalized reports that a commit on the head became final.
type Finalized struct{ Ref Ref }

// Doubt reports that a member rejected a commit nobody vouched for yet.
type Doubt struct {
	Ref  Ref
	Rule string
}

// Fetch asks for something that is named and not held: the commit Commit
// (perhaps found at EventID), or the receipt with hash Receipt of the key
// ReceiptKey and counter Counter.
type Fetch struct {
	Commit     Ref
	EventID    string
	Receipt    Ref
	ReceiptKey []byte
	Counter    uint64
}

// Evidence proves that the sequencer Signer of list Config lied, by two
// receipts that an honest one never signs both.
type Evidence struct {
	Kind   EvidenceKind
	Config Ref
	Signer Sequencer
	A, B   Receipt
}

// EvidenceKind says what a pair of receipts proves.
type EvidenceKind string

// The kinds of evidence.
const (
	EvidenceAccepts  EvidenceKind = "accepts-off-one-chain"
	EvidenceVotes    EvidenceKind = "votes-off-one-chain"
	EvidencePromises EvidenceKind = "two-promises-for-one-ballot"
	EvidenceHidden   EvidenceKind = "vote-understated-in-promise"
	EvidenceOwner    EvidenceKind = "vote-off-own-accepts"
)

// Forget names commits that were dropped because they lie far below the newest
// final or on branches that left it there.
type Forget struct{ Refs []Ref }

// KeyRetired reports that the room holds a receipt of the own key that this
// machine did not make: the key must not sign in this room again.
type KeyRetired struct{ Counter uint64 }

func (Save) action()        {}
func (Send) action()        {}
func (HeadChanged) action() {}
func (Finalized) action()   {}
func (Doubt) action()       {}
func (Fetch) action()       {}
func (Evidence) action()    {}
func (Forget) action()      {}
func (KeyRetired) action()  {}

// Identity is what a module signs with.
type Identity struct {
	Server string
	User   string
	Key    ed25519.PrivateKey
}

// Config configures a machine. It is not persisted.
type Config struct {
	Room string
	// Self is nil in clients, which never sign receipts.
	Self *Identity
	// Verify checks a member's signature over the content of a statement
	// (Applied.Content, Rejected.Content) with the leaf's key. It must be a pure
	// function. Without it all statements are refused.
	Verify func(suite uint16, key, content, signature []byte) error
	// VoteDelay is how long a votable commit waits for the vote to be batched or
	// to ride on the next accept; default and maximum 5 s, negative: none.
	VoteDelay time.Duration
	// Limits bound what a machine holds; zero values mean the defaults.
	Limits Limits

	without  rule           // rules left out, in tests
	verified map[Ref]string // by hash, the key for which a receipt's signature is known to be good, in tests
}

// Limits bound what a machine holds.
type Limits struct {
	Waiting  int // commits with unknown ancestors, waiting receipts of listed sequencers, and others: of each so many; default 256
	Children int // children of one commit that no receipt names; default 64
	ByAuthor int // of these, by one user; default 8
	Unnamed  int // commits that no receipt names, in all; default 1024
	Keep     int // commits kept below the newest final; default 64
	Receipts int // receipts kept for one list; default 8192
	List     int // sequencers in a list; default 16
	Leaves   int // leaves of a tree; default 20,000
	Proofs   int // steps of the proof chain kept of dropped commits; default 128
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Waiting, 256)
	def(&l.Children, 64)
	def(&l.ByAuthor, 8)
	def(&l.Unnamed, 1024)
	def(&l.Keep, 64)
	def(&l.Receipts, 8192)
	def(&l.List, 16)
	def(&l.Proofs, 128)
	def(&l.Leaves, 20000)
	return l
}

// Status says where a commit stands, in the words clients show.
type Status uint8

// The states of a commit.
const (
	StatusUnknown    Status = iota // not held
	StatusWaiting                  // held, not accepted
	StatusDoubt                    // rejected by a member, nobody vouched
	StatusAccepted                 // accepted on the head, not votable: waiting for others
	StatusVotable                  // accepted on the head and vouched for
	StatusSideBranch               // accepted provisionally only
	StatusDisplaced                // accepted, but not on the head
	StatusFinal                    // final
)

// String returns a word for the status.
func (s Status) String() string {
	switch s {
	case StatusUnknown:
		return "unknown"
	case StatusWaiting:
		return "waiting"
	case StatusDoubt:
		return "in doubt"
	case StatusAccepted:
		return "accepted"
	case StatusVotable:
		return "votable"
	case StatusSideBranch:
		return "side branch"
	case StatusDisplaced:
		return "displaced"
	case StatusFinal:
		return "final"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Rule names why an event was refused; stable, for tests, metrics and reports.
type Rule string

// The rules of Error.
const (
	RuleMalformed  Rule = "matrix/event-malformed"      // a field is missing or out of bounds
	RuleForged     Rule = "matrix/receipt-forged"       // signature, key, group, parent, list or ballot is wrong
	RuleDuplicate  Rule = "federation/ref-reused"       // one ref, two contents
	RuleEra        Rule = "federation/era-invalid"      // an era commit breaks the rules of eras
	RuleLeaf       Rule = "federation/leaf-unknown"     // a leaf that the tree does not have
	RuleTooOld     Rule = "federation/below-base"       // below everything that is kept
	RuleTooMany    Rule = "federation/too-many"         // a limit is reached
	RuleUnentitled Rule = "federation/not-by-leaf-user" // author and leaf do not match
)

// Error says why Step refused an event. Nothing changed.
type Error struct {
	Rule Rule
	Ref  Ref
	Err  error
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("federation: %s (commit %s): %v", e.Rule, e.Ref.Short(), e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func refuse(rule Rule, ref Ref, format string, args ...any) error {
	return &Error{Rule: rule, Ref: ref, Err: fmt.Errorf(format, args...)}
}
