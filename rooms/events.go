package rooms

import (
	"encoding/json"

	"maunium.net/go/mautrix/id"
)

// Prefix begins every identifier of this project that is not MSC4256's.
const Prefix = "io.github.matrix-mls."

// Version is the version of the event schema.
const Version = 1

// Algorithm is the encryption algorithm of a room whose group is an MLS group,
// in m.room.create, m.room.encryption and m.room.encrypted. It names no cipher
// suite: suites change inside a room.
const Algorithm = Prefix + "v1"

// Types of room events.
const (
	TypeCommit   = Prefix + "commit"   // a commit, by a member's device
	TypeProposal = Prefix + "proposal" // a proposal, by a member or a module as external sender
	TypeAccept   = Prefix + "accept"   // a module's accept of a commit
	TypeVote     = Prefix + "vote"     // a module's vote for finality
	TypePromise  = Prefix + "promise"  // a module's promise for a higher ballot
	TypeReady    = Prefix + "ready"    // a module of a new list says that it is ready
	TypeApplied  = Prefix + "applied"  // a member vouches for a commit
	TypeReject   = Prefix + "reject"   // a member cannot apply a commit
	TypeAdmit    = Prefix + "admit"    // a member admits a new user
	TypeEra      = Prefix + "era"      // an heir supports an era of heirs
	TypeHead     = Prefix + "head"     // state, key = the bot: what a module knows as newest
	TypeReceipt  = Prefix + "receipt"  // a delivery receipt, encrypted to the group
	TypeRequest  = Prefix + "request"  // a module or member asks for events it lacks, by ref
	TypeRepost   = Prefix + "repost"   // answers a request with events of ours, verbatim
)

// Types of to-device events.
const (
	TypeWelcome           = Prefix + "welcome"             // a Welcome for one device
	TypeRejoinRequest     = Prefix + "rejoin_request"      // a device asks to be added again, or for a GroupInfo
	TypeKeyPackageRequest = Prefix + "key_package_request" // an adder asks a device for a fresh key package
	TypeKeyPackage        = Prefix + "key_package"         // the answer
	TypeHistoryRequest    = Prefix + "history_request"     // a new device or member asks for history
	TypeHistoryBundle     = Prefix + "history_bundle"      // a part of the answer
)

// Types and keys of the Matrix specification and of other proposals that this
// project reads or writes.
const (
	TypeCreate            = "m.room.create"
	TypeEncryption        = "m.room.encryption"
	TypeEncrypted         = "m.room.encrypted"
	TypeMember            = "m.room.member"
	TypePowerLevels       = "m.room.power_levels"
	TypeJoinRules         = "m.room.join_rules"
	TypeHistoryVisibility = "m.room.history_visibility"
	TypeGuestAccess       = "m.room.guest_access"
	TypeFunctionalMembers = "io.element.functional_members"           // hides bots from a room's name
	KeyCreateAlgorithm    = "org.matrix.msc4245.encryption_algorithm" // MSC4245, in m.room.create
	KeyRelatesTo          = "m.relates_to"                            // authoritative only inside the ciphertext
	KeyPackagePrefix      = "de.bwi.mls.v1."                          // MSC4256: one-time keys and device keys, then the suite's name
	KeyMessageID          = Prefix + "mid"                            // message id inside every plaintext
	KeyAskReceipts        = Prefix + "receipts"                       // beside it, where its sender asks for delivery receipts
	KeyAgain              = Prefix + "again"                          // beside it, where the message is sent again because somebody missed it
	KeyModule             = Prefix + "module"                         // profile field of a module's bot
	KeyGroup              = Prefix + "group"                          // group id as a hint in m.room.encryption
	KeyNonce              = Prefix + "nonce"                          // makes the content of a state event unique
	KeyAdmission          = Prefix + "admission"                      // admission beside an m.room.member invite
	BotLocalpart          = "_mls_bot"                                // a module's bot unless its profile or P.head says otherwise
	LabelStatement        = Prefix + "statement"                      // SignWithLabel of applied and reject statements
	LabelAdmission        = Prefix + "admission"                      // SignWithLabel of an admission
	LabelCoSignature      = Prefix + "era"                            // SignWithLabel of an heir's co-signature
	LabelHistory          = Prefix + "history"                        // SignWithLabel of requests for history and of bundles
	LabelFounding         = Prefix + "founding"                       // SignWithLabel of a founder whose key changes with the suite
	ExporterRejoin        = Prefix + "rejoin"                         // MLS exporter label of the rejoin proof
	ExtensionPolicy       = 0xF6D1                                    // GroupContext extension: the policy of the group
	ExtensionFounding     = 0xF6D2                                    // GroupInfo extension of a founding commit: the ReInit commit it follows
	CommitFileMIME        = "application/octet-stream"                // content type of our media
)

// PowerLevelTypes lists every event type that an ordinary member or a module
// must be able to send into a room with MLS.
func PowerLevelTypes() []string {
	return []string{
		TypeCommit, TypeProposal, TypeAccept, TypeVote, TypePromise, TypeReady, TypeApplied,
		TypeReject, TypeAdmit, TypeEra, TypeHead, TypeReceipt, TypeRequest, TypeRepost,
	}
}

// File names media on a homeserver together with what must come back. The
// media is not encrypted: it holds public handshake data.
type File struct {
	MXC    id.ContentURIString `json:"mxc"`
	SHA256 Hash                `json:"sha256"`
	Size   int64               `json:"size"`
}

// Snapshot names the ratchet tree of one epoch. Its authenticity is the
// TreeHash, which stands in GroupContexts that members signed.
type Snapshot struct {
	File     *File `json:"file,omitempty"`
	Tree     Bytes `json:"tree,omitempty"` // instead of File, if small
	TreeHash Bytes `json:"tree_hash"`
	AtCommit Hash  `json:"at_commit"` // ref of the commit that made the epoch
}

// CommitContent is the content of a [TypeCommit] event. The event that founds a
// group has epoch 0, no message and no parent, and a GroupInfo with the tree.
type CommitContent struct {
	Epoch        uint64        `json:"epoch"` // the epoch the commit makes
	Parent       Hash          `json:"parent,omitzero"`
	ParentEvent  id.EventID    `json:"parent_event,omitempty"`
	Message      Bytes         `json:"message,omitempty"`      // MLSMessage: a PublicMessage with the commit
	Proposals    []Bytes       `json:"proposals,omitempty"`    // MLSMessages of the proposals it names by reference
	GroupInfo    Bytes         `json:"group_info,omitempty"`   // MLSMessage: GroupInfo of the epoch made, without tree
	CoSignatures []CoSignature `json:"cosignatures,omitempty"` // of an heirs' era; of a founder with a new key
	Admissions   []Admission   `json:"admissions,omitempty"`   // of the users it adds
	File         *File         `json:"file,omitempty"`         // instead of Message, Proposals, GroupInfo and KeyPackages, if large: see [CommitBundle]
	Founding     bool          `json:"founding,omitempty"`     // founds the successor of a group that a ReInit closed: GroupInfo of its epoch 1, no Message
	Snapshot     *Snapshot     `json:"snapshot,omitempty"`     // tree of a founding commit
	KeyPackages  []Bytes       `json:"key_packages,omitempty"` // of a ReInit: MLSMessages, one for each leaf, so that any member can found the successor
}

// CoSignature is the consent of another heir to an era (leaf of the parent's
// tree).
type CoSignature struct {
	Leaf uint32 `json:"leaf"`
	Sig  Bytes  `json:"sig"`
}

// ProposalContent is the content of a [TypeProposal] event.
type ProposalContent struct {
	Epoch   uint64     `json:"epoch"`  // the epoch it is for
	Parent  Hash       `json:"parent"` // ref of the commit that made that epoch
	Message Bytes      `json:"message"`
	Reason  id.EventID `json:"reason,omitempty"` // the leave, ban or device change
}

// Ballot is [round, rank].
type Ballot struct {
	Round uint64
	Rank  uint32
}

// AppliedContent is the content of a [TypeApplied] event: a leaf vouches for a
// commit and everything below it.
type AppliedContent struct {
	Ref  Hash   `json:"ref"`
	Leaf uint32 `json:"leaf"` // in the tree the commit made
	Hash Hash   `json:"hash"` // SHA-256("applied" ‖ epoch authenticator)
	Sig  Bytes  `json:"sig"`
}

// RejectContent is the content of a [TypeReject] event: a leaf of the parent's
// tree could not apply a commit.
type RejectContent struct {
	Ref  Hash   `json:"ref"`
	Leaf uint32 `json:"leaf"` // in the tree of the commit's parent
	Rule string `json:"rule"`
	Sig  Bytes  `json:"sig"`
}

// Admission is the content of a [TypeAdmit] event, and rides in commits: a
// member lets a user into the group. Members check it, servers need not.
type Admission struct {
	Room      id.RoomID `json:"room_id"`
	Group     Bytes     `json:"group_id"`
	User      id.UserID `json:"user_id"`
	MasterKey string    `json:"master_key,omitempty"` // the user's Ed25519 master key, if known
	Ref       Hash      `json:"ref"`                  // commit whose tree holds Leaf
	Leaf      uint32    `json:"leaf"`
	Sig       Bytes     `json:"sig"`
}

// EraSupport is the content of a [TypeEra] event: an heir consents to an era of
// heirs. The first of them proposes it, the others repeat what they consent to.
type EraSupport struct {
	Era        uint64        `json:"era"`        // its number
	Parent     Hash          `json:"parent"`     // the commit it is opened on
	Sequencers []EraListItem `json:"sequencers"` // its list, in order
	Leaf       uint32        `json:"leaf"`       // of the heir, in the parent's tree
	Sig        Bytes         `json:"sig"`        // as in [CoSignature]
}

// EraListItem is a module in the list of an era that heirs propose.
type EraListItem struct {
	Server string    `json:"server"`
	User   id.UserID `json:"user_id"`
	Key    Bytes     `json:"receipt_key"`
}

// EventRef names a commit by ref and by the event that carries it.
type EventRef struct {
	Ref   Hash       `json:"ref"`
	Event id.EventID `json:"event_id"`
	Epoch uint64     `json:"epoch"`
}

// ReceiptRef names the newest receipt of a module, and shows it: Hash is that over the
// bytes that were signed and the signature. Whether the key made it is for who has use
// of it to check (federation.LinkOf); a name that shows nothing proves nothing.
type ReceiptRef struct {
	Key     Bytes      `json:"key"` // its receipt key
	Counter uint64     `json:"counter"`
	Hash    Hash       `json:"hash"`
	Event   id.EventID `json:"event_id,omitempty"`
	Signed  Bytes      `json:"signed,omitempty"`
	Sig     Bytes      `json:"sig,omitempty"`
}

// ExternalSender is a key with which a module signs proposals, one for each
// signature scheme.
type ExternalSender struct {
	Scheme uint16 `json:"scheme"` // RFC 9420 signature scheme (TLS registry)
	Key    Bytes  `json:"key"`
}

// HeadContent is the content of a [TypeHead] event: what a module serves, and
// what it knows as newest. A bot that serves no group yet sends only the keys.
type HeadContent struct {
	Version         int              `json:"version"`
	ReceiptKey      Bytes            `json:"receipt_key"`
	ExternalSenders []ExternalSender `json:"external_senders,omitempty"`
	Server          string           `json:"server,omitempty"`
	Group           Bytes            `json:"group_id,omitempty"`
	Accepted        *EventRef        `json:"accepted,omitempty"`
	Final           *EventRef        `json:"final,omitempty"`
	Root            *EventRef        `json:"root,omitempty"`
	Cfg             Hash             `json:"cfg,omitzero"`         // ref of the commit that set the list governing what follows Accepted
	Era             uint64           `json:"era,omitempty"`        // number of the era Accepted lies in
	Proof           Bytes            `json:"proof,omitempty"`      // what makes Final final and Cfg the list in force: a [ProofChain]
	ProofFile       *File            `json:"proof_file,omitempty"` // instead, if it is large
	Receipts        []ReceiptRef     `json:"receipts,omitempty"`
	GroupInfo       Bytes            `json:"group_info,omitempty"` // of the newest accepted commit, signed by its author
	Snapshot        *Snapshot        `json:"snapshot,omitempty"`
	Answers         []string         `json:"answers,omitempty"` // nonces of requests for heads that this one answers
	Suites          []uint16         `json:"suites,omitempty"`  // experimental cipher suites whose groups the module follows, too
	Nonce           string           `json:"io.github.matrix-mls.nonce,omitempty"`
}

// ModuleProfile is the value of the profile field [KeyModule] of a module's bot.
type ModuleProfile struct {
	Version    int   `json:"version"`
	ReceiptKey Bytes `json:"receipt_key"`
}

// EncryptedContent is the content of an m.room.encrypted event of ours, and of
// a [TypeReceipt] event.
type EncryptedContent struct {
	Algorithm   string          `json:"algorithm"`
	Ciphertext  Bytes           `json:"ciphertext"` // MLSMessage: a PrivateMessage
	CommitEvent id.EventID      `json:"commit_event,omitempty"`
	RelatesTo   json.RawMessage `json:"m.relates_to,omitempty"` // for the homeserver's aggregation only; never trusted
}

// ReceiptPayload is the plaintext content of a delivery receipt. It says what came, and
// asks for what did not.
type ReceiptPayload struct {
	Acks    []Ack             `json:"acks"`
	Missing []MissingMessages `json:"missing,omitempty"`
}

// Ack says that everything of a sender up to a generation arrived.
type Ack struct {
	Ref        Hash   `json:"ref"` // the epoch, by the commit that made it
	Leaf       uint32 `json:"leaf"`
	Generation uint32 `json:"generation"`
}

// MissingMessages are messages of a sender that did not come, though later ones of the
// same epoch did. The sender may send them again.
type MissingMessages struct {
	Ref         Hash     `json:"ref"`
	Leaf        uint32   `json:"leaf"`
	Generations []uint32 `json:"generations"`
}

// EncryptionContent is the content of m.room.encryption in a room with MLS.
type EncryptionContent struct {
	Algorithm string `json:"algorithm"`
	Group     Bytes  `json:"io.github.matrix-mls.group,omitempty"` // a hint: the group's policy binds
	Nonce     string `json:"io.github.matrix-mls.nonce,omitempty"`
}

// WelcomeContent is the content of a [TypeWelcome] to-device event. It is sent
// only after the commit was accepted.
type WelcomeContent struct {
	Room        id.RoomID  `json:"room_id"`
	CommitEvent id.EventID `json:"commit_event"`
	Ref         Hash       `json:"ref"`
	Cfg         Hash       `json:"cfg"`           // ref of the commit that set the list governing what follows Ref
	Era         uint64     `json:"era,omitempty"` // number of the era Ref lies in
	Welcome     Bytes      `json:"welcome"`       // MLSMessage with one recipient, without tree
	Snapshot    Snapshot   `json:"snapshot"`
	// Accept is a receipt that names Ref itself, where the sender has one that fits:
	// without it the newcomer waits until a module's head shows the commit.
	Accept *AcceptContent `json:"accept,omitempty"`
}

// RejoinNeed says what the sender of a [RejoinRequestContent] asks for.
type RejoinNeed string

// What a device can ask for.
const (
	NeedWelcome   RejoinNeed = "welcome"    // add me again
	NeedGroupInfo RejoinNeed = "group_info" // a GroupInfo and tree of the head, for an external commit
)

// RejoinRequestContent is the content of a [TypeRejoinRequest] to-device event.
type RejoinRequestContent struct {
	Room       id.RoomID  `json:"room_id"`
	Need       RejoinNeed `json:"need"`
	Ref        Hash       `json:"ref,omitzero"`          // the newest commit the sender holds
	Reason     string     `json:"reason,omitempty"`      // a rule
	KeyPackage Bytes      `json:"key_package,omitempty"` // MLSMessage
}

// KeyPackageContent is the content of [TypeKeyPackageRequest] (without
// KeyPackage) and [TypeKeyPackage] to-device events.
type KeyPackageContent struct {
	Room       id.RoomID `json:"room_id"`
	Suite      uint16    `json:"suite"`
	RequestID  string    `json:"request_id"`
	KeyPackage Bytes     `json:"key_package,omitempty"` // MLSMessage
}

// RequestContent is the content of a [TypeRequest] event: who lacks events of
// ours that its homeserver does not serve names them.
type RequestContent struct {
	Refs     []Hash    `json:"refs,omitempty"`     // commits
	Receipts []Hash    `json:"receipts,omitempty"` // receipts, by hash
	Since    *EventRef `json:"since,omitempty"`    // everything above this commit
	// Above asks for the receipts of a key above a counter.
	Above []ReceiptsAbove `json:"above,omitempty"`
	// Heads asks every module of the list for its head, as it is now.
	Heads bool       `json:"heads,omitempty"`
	Nonce string     `json:"io.github.matrix-mls.nonce,omitempty"`
	Event id.EventID `json:"event_id,omitempty"` // the event that names what is missing
}

// ReceiptsAbove names the receipts of a key above a counter.
type ReceiptsAbove struct {
	Key     Bytes  `json:"key"`
	Counter uint64 `json:"counter"`
}

// RepostContent is the content of a [TypeRepost] event. What it carries
// authenticates itself, so it does not matter who sends it again. Sender is the
// user that sent the original, and is a claim until the signatures are checked.
type RepostContent struct {
	Type    string          `json:"type"`
	Sender  id.UserID       `json:"sender"`
	Event   id.EventID      `json:"event_id,omitempty"`
	Content json.RawMessage `json:"content"`
}
