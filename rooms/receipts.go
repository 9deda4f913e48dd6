package rooms

import (
	"encoding/json"
	"fmt"

	"maunium.net/go/mautrix/id"
)

// MarshalJSON writes [round, rank].
func (b Ballot) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "[%d,%d]", b.Round, b.Rank), nil
}

// UnmarshalJSON reads [round, rank]. Round 0 has rank 0 only.
func (b *Ballot) UnmarshalJSON(raw []byte) error {
	var pair []uint64
	if err := json.Unmarshal(raw, &pair); err != nil || len(pair) != 2 || pair[1] >= MaxSequencers || pair[0] > maxSafeInt {
		return refuse(RuleContentMalformed, "", "ballot is not [round, rank]")
	}
	if pair[0] == 0 && pair[1] != 0 {
		return refuse(RuleContentMalformed, "", "ballot of round 0 has rank %d", pair[1])
	}
	b.Round, b.Rank = pair[0], uint32(pair[1])
	return nil
}

// validate checks a ballot that did not come as JSON as well.
func (b Ballot) validate() error {
	if b.Rank >= MaxSequencers || b.Round > maxSafeInt || b.Round == 0 && b.Rank != 0 {
		return malformed("ballot", "%d.%d is none", b.Round, b.Rank)
	}
	return nil
}

// ReceiptBase is what every receipt of a module has: who signed it under which
// list, and its place in the chain of that module's receipts in the room.
type ReceiptBase struct {
	Cfg     Hash   `json:"cfg"`           // ref of the commit that set the list
	Rank    uint32 `json:"rank"`          // the signer's index in the list
	Counter uint64 `json:"counter"`       // 1, 2, 3 … per key and room
	Prev    Hash   `json:"prev,omitzero"` // hash of the signer's previous receipt, none in the first
	Sig     Bytes  `json:"sig"`           // Ed25519, by the receipt key
}

// Proof is an [AppliedContent] that a vote rests on, or the ref of a commit
// that vouches for the one below it.
type Proof struct {
	Applied *AppliedContent `json:"applied,omitempty"`
	Commit  Hash            `json:"commit,omitzero"`
}

// VoteContent is the content of a [TypeVote] event.
type VoteContent struct {
	ReceiptBase
	Ballot Ballot     `json:"ballot"`
	Ref    Hash       `json:"ref"`
	Event  id.EventID `json:"commit_event,omitempty"`
	Proofs []Proof    `json:"proofs,omitempty"`
}

// LastVote is the last vote a promise reports.
type LastVote struct {
	Ballot Ballot  `json:"ballot"`
	Ref    Hash    `json:"ref"`
	Epoch  uint64  `json:"epoch"` // of ref
	Proofs []Proof `json:"proofs,omitempty"`
}

// PromiseContent is the content of a [TypePromise] event. A module that
// promises a ballot of its own thereby asks the others for theirs.
type PromiseContent struct {
	ReceiptBase
	Ballot Ballot    `json:"ballot"`
	Last   *LastVote `json:"last,omitempty"`
}

// ReadyContent is the content of a [TypeReady] event. Its cfg is the list
// change the module is ready for.
type ReadyContent struct {
	ReceiptBase
}

// AcceptContent is the content of a [TypeAccept] event. Ballot is absent in a
// provisional accept; Promises are in every accept of a ballot from round 1 on.
type AcceptContent struct {
	ReceiptBase
	Ref         Hash             `json:"ref"`
	Parent      Hash             `json:"parent,omitzero"`
	Event       id.EventID       `json:"commit_event,omitempty"`
	Epoch       uint64           `json:"epoch"`
	Ballot      *Ballot          `json:"ballot,omitempty"`
	Provisional bool             `json:"provisional,omitempty"`
	Promises    []PromiseContent `json:"promises,omitempty"`
	Votes       []VoteContent    `json:"votes,omitempty"`
}
