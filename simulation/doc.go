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
// skew (wall clocks up to an hour wrong). Links always delay and reorder.
//
// # Properties
//
// The numbers are the design's. Not yet here: members, modules and servers that
// lie, soft-failed events, eras, list changes by hand, restores from backups,
// state resolution that drops a membership, and with them 9 and the adversarial
// part of 2, 8, 14, 16 and 17.
//
//	 1 convergence          equal trees and keys of an epoch at all who hold it, after every turn; one head, newest final and era, at the end
//	 2 finality             one chain of finals in an era, a final stays on the head, after every turn; progress at the end, claimed
//	                        for two users whose leaves lasted since the newest final
//	 3 epoch monotonicity   after every turn of a device
//	 4 no lost message      at the end: once at every device that was in by the epoch it was sent in last; nobody shows one twice
//	 5 server blindness     at the end: planted texts and private keys of key packages in events, media, databases and logs
//	 6 removal              each ciphertext, where it is sent: no leaf of whom its sender has seen leave; no device holds an epoch without its leaf
//	 7 bounded forks        the epochs that a device keeps, after every turn; the room comes to rest, and who was let in is in, at the end
//	 8 membership           each leaf of each epoch is a device of its user
//	10 bounded censorship   no commit and no message waits for ever, at the end
//	11 live proposals       who is out has no leaf, at the end
//	12 Welcome after accept each Welcome, where it is sent
//	13 one Welcome          each Welcome, where it is sent
//	14 newcomers            who was told that it is confirmed came in on what became final, at the end
//	15 crash safety         each receipt against all of its module before; each durable key and nonce against all before
//	17 no server's act      each leaf is of a user whom a member let in
package simulation
