// Package federation decides which commit of a room is its head. It is the
// pure core of epoch coordination: a deterministic state machine over commits,
// the signed receipts of the room's sequencers and the statements of its
// members. It knows neither Matrix nor MLS; it does no I/O, reads no clock,
// starts no goroutine and draws no randomness. Modules, the SDK and the proxy
// run the same machine, so that they cannot disagree: equal sets of events give
// equal heads, whatever their order, repetition or batching. docs/epochs.md is
// the protocol in full; vectors and reader hold its test vectors and a second
// implementation, written from that page.
//
// # Usage
//
// A machine is made from a base: the founding epoch of the room, or a commit
// that a newcomer joined at.
//
//	m, err := federation.New(federation.Config{
//		Room:   "!room:example.org",
//		Self:   &federation.Identity{Server: "example.org", User: "@_mls_bot:example.org", Key: key}, // nil in clients
//		Verify: verifyLeaf, // checks a signature by an MLS leaf key
//	}, federation.Base{Ref: root, GroupID: id, Suite: 1, Policy: policy, Leaves: leaves})
//
// Everything that arrives from the room goes through Step, time goes through
// Tick. Both return actions:
//
//	acts, err := m.Step(&federation.Commit{Ref: ref, Parent: parent, …})
//	acts, err = m.Step(accept)             // a *federation.Accept
//	acts = m.Tick(monotonicNow)            // after each batch of Steps, and at least once a second
//
// Step only records and evaluates. What a module does of its own accord, it
// does in Tick: accepting, voting and opening a round. A driver therefore
// steps through a whole batch of events and calls Tick once behind it; that is
// also what makes the choice among several waiting commits fair.
//
// # The caller's duties, in order
//
//  1. Check first. Every commit is given to Step only after it was validated
//     against its parent's tree: a Commit event is a checked fact. A commit whose
//     member-signed GroupInfo does not carry its confirmation tag and context is
//     no event. Receipts and statements are given unchecked; the machine checks
//     their signatures.
//  2. Persist. If the actions of a Step or Tick contain a Save, write
//     MarshalBinary and the outbox rows of every Send in one transaction, together
//     with the mark of the input that caused them.
//  3. Then send. What a Send carries is signed; it is posted unchanged, and
//     posted again unchanged after a crash. Nothing is sent before its Save is
//     durable.
//  4. Then act on HeadChanged, Finalized, Doubt, Fetch, Evidence, Forget and
//     KeyRetired. Fetch is a wish: the machine goes on without an answer and asks
//     again no more often than the input names the missing thing.
//  5. After Unmarshal a module's machine signs nothing until it is given a
//     Resume event: first compare with the room (the newest own receipt in it must
//     have been stepped). A receipt of the own key that the machine did not make
//     retires the key for ever.
//
// An error of Step means that the event was refused and nothing changed; its
// Rule names the reason. An event that was seen before changes nothing and is
// no error. An event that cannot be judged yet (its commit is unknown) waits in
// a bounded pool.
//
// # Events
//
//   - Commit: a validated commit, with its author, what it changes in the leaf
//     table and in the policy, and the era it opens, if any.
//   - Accept, Vote, Promise, Ready: receipts, signed by the Ed25519 receipt key
//     of a listed sequencer. Each carries a counter and the hash of the previous
//     receipt of that key in that room.
//   - Applied, Rejected: statements signed by an MLS leaf key of a member.
//   - Outside: a commit beside what is kept, which therefore cannot be checked.
//   - Shown: a receipt of the own key, by its signed bytes alone.
//   - Resume: see the fifth duty.
//
// # Actions
//
//   - Save: persist now. Always the first action.
//   - Send: post a receipt of this module.
//   - HeadChanged: the fork choice moved; names the old and the new head and
//     their last common commit.
//   - Finalized: a commit became final.
//   - Doubt: a member rejected a commit that nobody vouched for. Who applied it
//     sends its Applied at once.
//   - Fetch: a commit or a receipt that something else names is not held.
//   - Evidence: two signed receipts that prove a sequencer a liar.
//   - Forget: commits so far below the newest final that they were dropped.
//   - KeyRetired: this module's receipt key must not be used again in this room.
//
// # What is decided where
//
// machine.go takes inputs in and turns what changed into actions, tree.go keeps
// commits and the leaf tables, receipts.go checks receipts and statements,
// vouch.go says who vouches for what, evaluate.go decides acceptance, finality,
// eras and the fork choice (a pure function of the set of events, evaluated anew
// when the set grew), sequence.go what this module accepts and votes for,
// takeover.go when it asks for a ballot, answers, or goes on without a majority,
// proofchain.go what shows a newcomer the newest final commit,
// heal.go what a member does when the head left its branch, survey.go says all of
// it to people, with the fork choice's reasons, receipt.go holds the
// signed bytes, state.go persistence. rules.go names the rules that the simulator
// (sim_test.go) leaves out one by one to see a property break.
//
// What lies more than Limits.Keep commits below the newest final is dropped. An
// era that begins there, which overrides as many finals, is then not followed:
// its members start a new machine at the era.
package federation
