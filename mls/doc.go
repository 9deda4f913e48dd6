// Package mls implements the Messaging Layer Security protocol of RFC 9420:
// group key agreement and message protection for a changing set of members.
//
// A [Group] is the state of one member in one epoch. Nothing but the message
// keys of that epoch ever changes in it: a Commit, own or received, becomes a
// StagedCommit, and Merge of that makes a new Group for the next epoch, while
// the old one stays usable until it is dropped. Callers owe the package these
// things, in this order:
//
//  1. Keep the state. What EpochState and RatchetState return must be durable
//     before a ciphertext made by Encrypt leaves, and before a decrypted
//     message is handed on; else a key and nonce may be used twice.
//  2. Let one Commit for each epoch win. The package takes any valid Commit;
//     which of two is the right one is for the delivery service to say.
//  3. Send a Welcome only after its Commit was accepted.
//  4. Say who is who. [Config.Authenticator] decides whether a credential
//     belongs to its owner (RFC 9420, Section 5.3.1).
//
// A Group or PublicGroup and the StagedCommits and later epochs that came from it
// share caches, a KeyPackageBundle is used up: one goroutine at a time may use
// them. Those of different groups, Messages and Configs may be used by any number;
// the functions of a Config are called by the goroutine that calls the package.
//
// The package does no input or output, reads no clock but [Config.Now] and
// writes no log; no goroutine outlives the call that started it. Every byte from outside is treated as
// hostile: sizes are bounded by [Limits], and a refusal is a
// [ValidationError] that names the broken rule and leaves the state unchanged.
//
// Message keys, ratchet steps and the secrets of an epoch are overwritten when
// they are used up, or by Zero; private keys of leaves and paths that others
// replace are dropped, and live in memory until the collector takes them. Go may
// have copied any of them before, so all of this is best effort.
package mls
