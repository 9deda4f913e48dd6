// Package simulation runs whole rooms: real clients (package client) on their
// stores, the real module (package appservice) on its database and real MLS
// groups, over a federation of homeservers that is simulated (internal/simnet).
// One virtual clock drives all; a run follows from its seed. Everything here is
// for tests.
//
//	go test ./simulation -run TestSimulate -sim.seeds=N -sim.steps=M -sim.first=S
//
// A failure prints the seed and a shrunk script; kept in testdata it is a test.
// SIM_LOG=1 tells what happens.
//
// # Faults
//
// A script names what its run may contain: crash (a process dies at any request
// or write, and starts from what its disk held), split, loss (events are held up,
// come to the history alone, or to no application service), away (devices are
// off), members (users are invited, leave, are put out), devices (log in and out),
// skew (wall clocks up to an hour wrong), parted (one room in four: three modules are
// listed at the start, and two cuts, into two sides or three, outlast the waits of a
// takeover while a member on each side commits and says something). From seed 100,000 on there may also be
// soft (servers soft-fail receipts, commits and statements of others, each server
// different ones), forge (a server invites a stranger in the name of one of its
// users, and the stranger comes) and bad (half of a member's commits are such that
// nobody can apply them, and only members can tell). From seed 200,000 on there may
// also be half (commits of a member that half of the others cannot apply), swap
// (servers swap the confirmation tags of their users' commits), propose (members
// propose what is not theirs to propose), lists (an admin names the modules by
// hand), hang (modules do nothing for minutes, and one is lost for good, so that
// others take over), reset (state resolution forgets memberships), backup (the disk
// of a module or a device is put back to what it was, without a word to the
// program) and liar (a listed module accepts and votes beside what it signed,
// withholds receipts, shows old and forged heads and proposes to remove members). No
// seed draws stale (servers keep the heads of other servers' modules to themselves until
// the first heal), fake (a server adds a device to a user's list) and keep (a member's
// commits leave in who is out), which scripts use.
// Links always delay and reorder.
//
// # Properties
//
// The numbers are the design's. What is claimed under fewer faults than those of
// a run says so.
//
//	 1 convergence          equal trees and keys of an epoch at all who hold it, after every turn; one head, newest final and era, at the end
//	 2 finality             one chain of finals in an era, a final stays on the head, after every turn; no bad commit is final; progress
//	                        at the end, claimed for two users whose leaves lasted since the newest final, else after an admin's era;
//	                        with a liar, and where a majority of the list is lost or was put back, after an admin's era, too. With a
//	                        liar two commits of an era may be final, and then a device was told who lied
//	 3 epoch monotonicity   after every turn of a device
//	 4 no lost message      at the end: once at every device that was in by the epoch it was sent in last; with soft and half: at every
//	                        device that entered that epoch. A device that was put back is asked for what was sent since, in epochs that
//	                        it entered. Nobody shows one twice: whenever a device tells of one, and at the end
//	 5 server blindness     each event, file and message to a device, when a server gets it: planted texts. At the end all of these: planted texts, the private keys of key packages, and of each epoch that a device held the secrets of
//	                        the key schedule, its private keys of leaf, path and signature and what is left of the secret tree, or half of
//	                        one of these, raw, in hexadecimal or in base64: in events, to-device messages, media, modules' databases and logs
//	 6 removal              each ciphertext, where it is sent: no leaf of whom its sender has seen leave; no device holds an epoch without its leaf;
//	                        each commit, when somebody enters its epoch: who was out for its author before it was made has no leaf there
//	 7 bounded forks        the epochs that a device keeps, after every turn; the room comes to rest, and who was let in is in, at the
//	                        end, but devices that were put back and saw that they had gone on without: they say so, and stay out
//	 8 membership           each leaf of each epoch is a device of its user
//	 9 no forgery           each commit removes only leaves of who has left; without devices
//	10 bounded censorship   no commit and no message waits for ever, at the end
//	11 live proposals       who is out has no leaf, at the end; each commit that a module accepts takes out whose Remove that module had
//	                        proposed long before
//	12 Welcome after accept each Welcome, where it is sent; of an era, which needs no accept, after the word of somebody who applied it
//	13 one Welcome          each Welcome, where it is sent
//	14 newcomers            who is told that it is confirmed came in on what is final, after every turn; each commit, where it is sent, joining
//	                        again among them: on nothing that lies below what has been final for that device, or beside it
//	15 crash safety         each receipt against all of its module before; each durable key and nonce against all before
//	16 portability          one head at the end, whatever servers kept to themselves; soft
//	17 no server's act      each leaf is of a user whom a member let in, whom servers invite beside; forge
package simulation
