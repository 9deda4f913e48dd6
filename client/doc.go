// Package client is the SDK: one device of one Matrix account, and the MLS
// groups of its rooms.
//
// A [Client] is made from a store (package client/store), an identity (package
// client/identity) and a homeserver. It keeps the groups, sends and receives,
// and does what a member owes the group: it removes who left, adds who was
// admitted, vouches for commits, and refuses what no member entitled to it
// made. [CryptoHelper] gives an existing mautrix bot MLS rooms.
//
// # How an event goes through
//
// One /sync response is written to the inbox together with the new sync token,
// in one transaction. The engine then takes each room's inbox in order:
//
//	inbox → rooms.Decode… → mls.Group.Process on the parent's epoch (staged)
//	      → federation.Machine.Step → epochs merged along the head's path
//	      → timeline, outbox
//
// The new state of the room, the outbox rows and the mark that the event was
// processed are written in one transaction, then things are sent: persist
// first, send afterwards. A commit, own or foreign, is used only after its
// accept. What the engine lacks (an event, a file, a device list) it fetches
// outside of any transaction and looks again. Files are fetched beside the engine,
// a bounded number at once: the server that has one may take its time.
//
// # What was said before
//
// A device that joins reads from its own epoch on. Options.AskHistory, or
// [Client.AskHistory], asks the user's other devices for earlier messages; they
// come as [HistoryReceived], and [Client.Messages] has them, with their giver in
// From. Secrets of a group are never handed over.
//
// # What is never repeated
//
// Every epoch has exactly one ratchet state, named by the ref of the commit
// that made it. A ratchet step is durable before its ciphertext leaves the
// process. The outbox keeps the plaintext of a message until the epoch it was
// encrypted for is final; if that epoch leaves the head, the message is
// encrypted again under the same message id, and receivers show it once.
//
// # Locks
//
// One mutex guards all rooms. It is never held while something is fetched or
// sent. Handlers run on a goroutine of their own and may call every method.
package client
