// Package rooms joins Matrix and MLS: the event schema, the binding of MLS
// credentials to Matrix devices, the policy of a group, admissions, and the
// difference between who should be in a group and who is.
//
// The package is pure. It performs no I/O, reads no clock, starts no goroutine
// and logs nothing; randomness and time come in as parameters. The server
// module, the SDK and the proxy all use it, so that they cannot disagree.
//
// # Usage
//
// An event that arrives from a homeserver goes through three gates, in order:
//
//  1. A Decode function of this package ([DecodeCommit], [DecodeAccept], …)
//     turns the JSON content into a struct, or refuses it.
//  2. The MLS message inside is handed to package mls, which checks everything
//     RFC 9420 demands.
//  3. [CheckCommit] holds the staged result against the policy of the group,
//     the event's sender and the admissions, and returns the event that package
//     federation orders. Receipts and statements go there by [DecodeReceipt].
//
// Everything that is refused is refused with a [Refusal], whose Rule is a
// stable name that tests, metrics and reports use.
//
// # Trust
//
// Nothing a homeserver says gives anybody access. Room state can take a user's
// leaves away (a leave, kick, ban or logout is reason enough for a Remove); a
// new user enters a group only with an [Admission], a statement signed by the
// leaf of a member whom the group's own policy entitles.
package rooms
