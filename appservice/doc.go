// Package appservice is the homeserver module: an application service that
// follows the MLS group of each room its bot is in, puts the group's commits
// in order and lets newcomers in, and holds no group secret.
//
// An event's way through it:
//
//  1. The homeserver pushes a transaction. The handler keeps what concerns the
//     module, stores it in the inbox by event id, and answers 200 once that is
//     committed. Nothing that an event holds can make it answer otherwise.
//  2. One goroutine hands the inbox to the engine, event by event. For each, the
//     engine writes the room's new state, the rows to send and the mark on the
//     event in one transaction.
//  3. The outbox worker sends what is in the outbox, the urgent first, with a
//     transaction id that stays the same over every attempt and every restart.
//
// Persist, then send: nothing leaves the module that its database does not hold
// already. A crash between any two steps repeats work and changes no effect.
package appservice
