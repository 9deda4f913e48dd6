package appservice

import "slices"

// The points between two writes at which a test kills the module. Each lies
// after a write to the database or to the homeserver and before the next; those
// called "…ing" lie inside a transaction, which the crash undoes.
const (
	crashKeysMade     = "keys-made"     // the keys are in the database, nothing knows them
	crashInboxStoring = "inbox-storing" // a transaction of the homeserver is about to be kept
	crashInboxStored  = "inbox-stored"  // it is kept, and not answered
	crashRoomStoring  = "room-storing"  // an event's effect, its mark and what is to be sent are about to be kept
	crashRoomStored   = "room-stored"   // they are kept, and memory does not know
	crashSigned       = "signed"        // a receipt is signed and about to be kept
	crashSending      = "sending"       // an event is about to be sent
	crashSent         = "sent"          // the homeserver took it, the database does not know
	crashSentNoted    = "sent-noted"    // the database knows, the engine does not
	crashSettling     = "settling"      // the engine's answer to that is about to be kept
	crashGapStored    = "gap-stored"    // what the history showed is kept, and how far it was read is not
	crashJoined       = "joined"        // the bot joined a room, the database does not know
	crashUploaded     = "uploaded"      // a tree is in media, the database does not know
	crashRekeyed      = "rekeyed"       // a room has a new receipt key, which is about to be kept
)

// CrashPoints returns their names.
func CrashPoints() []string { return slices.Clone(crashPoints) }

var crashPoints = []string{
	crashKeysMade, crashInboxStoring, crashInboxStored, crashRoomStoring, crashRoomStored, crashSigned, crashSending, crashSent,
	crashSentNoted, crashSettling, crashGapStored, crashJoined, crashUploaded, crashRekeyed,
}
