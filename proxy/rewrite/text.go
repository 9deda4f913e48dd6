package rewrite

import "fmt"

// Message names a text of the catalogue.
type Message int

// The messages to people.
const (
	Waiting      Message = iota // no argument
	NotVerified                 // the folder of the account
	BeforeUs                    // no argument
	Asked                       // no argument
	RefusedFor                  // the rule
	WrongSender                 // the user whose key it was
	NotEncrypted                // the text
	CameLate                    // the event's type
	SharedBy                    // the user, the text
)

var catalogue = map[Message]string{
	Waiting:      "This message cannot be read yet: its keys have not come. It is shown here as soon as they have; a device of a member has to be online.",
	NotVerified:  "This message cannot be read yet: rooms do not let the proxy's device in until you have verified it. Run on its machine: mls-proxy --state '%s' verify --recovery-key",
	BeforeUs:     "This message cannot be read here: it was sent before this device was in the room's group. Read it on a device that was.",
	Asked:        "This message is from before the proxy's device was in the room's group. Your other devices were asked for it: it is shown here once one of them is online and has given it.",
	RefusedFor:   "This message cannot be read: it was refused (%s). Ask the sender to send it again.",
	WrongSender:  "This message is not shown: the homeserver says it is from somebody else than %s, whose key it was encrypted with. Tell your homeserver's administrator.",
	NotEncrypted: "[not encrypted] %s",
	CameLate:     "[came late: %s]",
	SharedBy:     "[shared by %s] %s",
}

// Text is a message for people.
func Text(m Message, args ...any) string {
	return fmt.Sprintf(catalogue[m], args...)
}
