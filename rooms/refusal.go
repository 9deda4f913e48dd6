package rooms

import (
	"errors"
	"fmt"
)

// Rule is the stable name of a reason for a refusal, in the form "matrix/name".
// Tests, metrics and reports use it; it never changes its meaning.
type Rule string

// The rules this package decides.
const (
	RuleSenderNotCredential         Rule = "matrix/sender-not-credential"          // event sender is not the user in the leaf's credential
	RuleDeviceNotCredential         Rule = "matrix/device-not-credential"          // device id or key in the credential is another device's, or a cross-signing key
	RuleDeviceKeyNotCrossSigned     Rule = "matrix/device-key-not-cross-signed"    // the leaf's key is not attested as the room demands
	RuleRoomNotGroup                Rule = "matrix/room-not-group"                 // event of another room than the group's
	RulePlaintext                   Rule = "matrix/plaintext-in-encrypted-room"    // unencrypted event where ciphertext is due
	RuleAlgorithmDowngrade          Rule = "matrix/algorithm-downgrade"            // m.room.encryption changed or removed
	RuleMegolmForMLS                Rule = "matrix/megolm-for-mls"                 // another algorithm or channel where MLS is due
	RuleMemberNotInRoom             Rule = "matrix/member-not-in-room"             // leaf whose user has left or is banned
	RuleRoomMemberNotInGroup        Rule = "matrix/room-member-not-in-group"       // a room member without a leaf gets no key
	RuleUnsolicitedKey              Rule = "matrix/unsolicited-key"                // Welcome, GroupInfo or key nobody asked for
	RuleRedactedCommit              Rule = "matrix/redacted-commit"                // the content of a commit was taken away
	RuleEventTooLarge               Rule = "matrix/event-too-large"                // event over the size that every server carries
	RuleMediaHash                   Rule = "matrix/media-hash"                     // media differs from the hash that names it
	RuleBase64Malformed             Rule = "matrix/base64-malformed"               // padding, URL-safe alphabet, whitespace, loose trailing bits
	RuleHostileJSON                 Rule = "matrix/hostile-json"                   // deep nesting, duplicate keys, huge numbers, bad UTF-8
	RuleContentMalformed            Rule = "matrix/content-malformed"              // JSON of the wrong shape for its event type
	RuleIdentityChanged             Rule = "matrix/identity-changed"               // a known user's master key is another now
	RuleAddWithoutAdmission         Rule = "matrix/add-without-admission"          // new user without a statement of an entitled member
	RuleExternalProposalNotEntitled Rule = "matrix/external-proposal-not-entitled" // module proposes anything but a justified Remove
	RuleReceiptForged               Rule = "matrix/receipt-forged"                 // statement with a wrong signature, key, group or parent
	RuleCredentialMalformed         Rule = "matrix/credential-malformed"           // credential not in the MSC4256 layout
	RulePolicyMalformed             Rule = "matrix/policy-malformed"               // policy extension that does not decode or contradicts itself
	RulePolicyNotEntitled           Rule = "matrix/policy-not-entitled"            // policy change by a member who may not make it
	RuleParentMismatch              Rule = "matrix/parent-mismatch"                // event and signed data name different parents
	RuleNoCommonSuite               Rule = "matrix/no-common-suite"                // devices share no cipher suite above the floor
	RuleAADMalformed                Rule = "matrix/aad-malformed"                  // authenticated data that does not decode
	RuleRemoveNotEntitled           Rule = "matrix/remove-not-entitled"            // Remove of a member the committer may not remove
	RuleEraNotEntitled              Rule = "matrix/era-not-entitled"               // era by someone who is neither admin nor supported by the heirs
	RuleRejoinUnproven              Rule = "matrix/rejoin-unproven"                // external commit in a member's place that does not show it was one
	RuleFounderUnproven             Rule = "matrix/founder-unproven"               // a founding commit that no device of the old group signed
	RuleFoundingIncomplete          Rule = "matrix/founding-incomplete"            // a ReInit, or the group after it, that leaves out a device
	RuleFinalNotProven              Rule = "matrix/final-not-proven"               // a head without the votes that make its final commit final
	RuleWelcomeNotForUs             Rule = "matrix/welcome-not-for-us"             // Welcome that names another room or commit than it opens
)

// Refusal reports which rule something from outside broke. It never holds a
// secret, so its text may be logged and shown.
type Refusal struct {
	Rule   Rule   // stable name
	What   string // the thing refused, such as `leaf 4 (@bob:example.org PHONE)`
	Remedy string // the next step for a person, empty if there is none
	Err    error  // cause, may be nil

	// Opinion marks a refusal that rests on the own view of the room, which
	// others need not share: the thing stays what it is for the ordering of
	// commits.
	Opinion bool
}

// Error says what was refused, why, and what to do next.
func (r *Refusal) Error() string {
	s := "rooms: " + string(r.Rule)
	if r.What != "" {
		s += ": " + r.What
	}
	if r.Err != nil {
		s += ": " + r.Err.Error()
	}
	if r.Remedy != "" {
		s += "; " + r.Remedy
	}
	return s
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// RuleOf returns the rule of the first [Refusal] in err's chain, or "" if there
// is none.
func RuleOf(err error) Rule {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Rule
	}
	return ""
}

// IsOpinion tells whether err is a refusal that others need not share.
func IsOpinion(err error) bool {
	var r *Refusal
	return errors.As(err, &r) && r.Opinion
}

// opinion returns a copy of r that is marked as such.
func (r *Refusal) opinion() *Refusal {
	c := *r
	c.Opinion = true
	return &c
}

// refuse builds a Refusal whose cause is a formatted text.
func refuse(rule Rule, what, format string, args ...any) *Refusal {
	return &Refusal{Rule: rule, What: what, Err: fmt.Errorf(format, args...)}
}

// with returns a copy of r that names a remedy.
func (r *Refusal) with(format string, args ...any) *Refusal {
	c := *r
	c.Remedy = fmt.Sprintf(format, args...)
	return &c
}
