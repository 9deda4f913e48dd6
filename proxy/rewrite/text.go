package rewrite

import (
	"fmt"
	"strings"
)

// Message names a text of the catalogue.
type Message int

// The messages to people.
const (
	Waiting         Message = iota // no argument
	NotVerified                    // the folder of the account
	BeforeUs                       // no argument
	Asked                          // no argument
	RefusedFor                     // the rule
	WrongSender                    // the user whose key it was
	NotEncrypted                   // the text
	CameLate                       // the event's type
	SharedBy                       // the user, the text
	IdentityChanged                // the user, the folder of the account, the user
	Healed                         // no argument
	Behind                         // no argument
	MemberBehind                   // who made the change
	OtherWarning                   // the warning, in English
)

// Language is one of those of the catalogue.
type Language int

// The languages of the catalogue.
const (
	English Language = iota
	German
)

var catalogue = [...]map[Message]string{
	English: {
		Waiting:         "This message cannot be read yet: its keys have not come. It is shown here as soon as they have; a device of a member has to be online.",
		NotVerified:     "This message cannot be read yet: rooms do not let the proxy's device in until you have verified it. Run on its machine: mls-proxy --state '%s' verify --recovery-key",
		BeforeUs:        "This message cannot be read here: it was sent before this device was in the room's group. Read it on a device that was.",
		Asked:           "This message is from before the proxy's device was in the room's group. Your other devices were asked for it: it is shown here once one of them is online and has given it.",
		RefusedFor:      "This message cannot be read: it was refused (%s). Ask the sender to send it again.",
		WrongSender:     "This message is not shown: the homeserver says it is from somebody else than %s, whose key it was encrypted with. Tell your homeserver's administrator.",
		NotEncrypted:    "[not encrypted] %s",
		CameLate:        "[came late: %s]",
		SharedBy:        "[shared by %s] %s",
		IdentityChanged: "The keys of %s are not the ones known before: they reset their account, or somebody else uses it. This room's encryption leaves them out until you accept the new keys. Ask them on another way; then, on the proxy's machine: mls-proxy --state '%s' verify accept %s",
		Healed:          "This room's encryption had gone on in two ways. It is one again: what was said on the way that was given up is sent again by those who said it.",
		Behind:          "The proxy's device could not follow a change of this room's encryption and joins again by itself. What you write meanwhile waits.",
		MemberBehind:    "A member's device could not follow a change of this room's encryption that %s made. Messages wait until it is settled; who cannot follow joins again by itself.",
		OtherWarning:    "About this room's encryption: %s",
	},
	German: {
		Waiting:         "Diese Nachricht kann noch nicht gelesen werden: Ihre Schlüssel sind noch nicht da. Sie erscheint hier, sobald sie gekommen sind; dazu muss ein Gerät eines Mitglieds online sein.",
		NotVerified:     "Diese Nachricht kann noch nicht gelesen werden: Räume lassen das Gerät des Proxys erst ein, wenn Sie es verifiziert haben. Auf dessen Rechner: mls-proxy --state '%s' verify --recovery-key",
		BeforeUs:        "Diese Nachricht kann hier nicht gelesen werden: Sie wurde gesendet, bevor dieses Gerät in der Gruppe des Raums war. Lesen Sie sie auf einem Gerät, das es war.",
		Asked:           "Diese Nachricht ist aus der Zeit, bevor das Gerät des Proxys in der Gruppe des Raums war. Ihre anderen Geräte wurden danach gefragt: Sie erscheint hier, sobald eines davon online ist und sie weitergegeben hat.",
		RefusedFor:      "Diese Nachricht kann nicht gelesen werden: Sie wurde abgelehnt (%s). Bitten Sie darum, sie noch einmal zu senden.",
		WrongSender:     "Diese Nachricht wird nicht gezeigt: Der Homeserver nennt einen anderen Absender als %s, mit dessen Schlüssel sie verschlüsselt ist. Melden Sie das der Verwaltung Ihres Homeservers.",
		NotEncrypted:    "[nicht verschlüsselt] %s",
		CameLate:        "[kam verspätet: %s]",
		SharedBy:        "[weitergegeben von %s] %s",
		IdentityChanged: "Die Schlüssel von %s sind nicht mehr die bisher bekannten: Entweder wurde das Konto zurückgesetzt, oder jemand anderes benutzt es. Die Verschlüsselung dieses Raums lässt es aus, bis Sie die neuen Schlüssel annehmen. Fragen Sie auf einem anderen Weg nach; dann auf dem Rechner des Proxys: mls-proxy --state '%s' verify accept %s",
		Healed:          "Die Verschlüsselung dieses Raums war auf zwei Wegen weitergegangen. Es ist wieder einer: Was auf dem aufgegebenen Weg gesagt wurde, senden die, die es gesagt haben, noch einmal.",
		Behind:          "Das Gerät des Proxys konnte einer Änderung der Verschlüsselung dieses Raums nicht folgen und tritt von selbst wieder bei. Was Sie inzwischen schreiben, wartet.",
		MemberBehind:    "Das Gerät eines Mitglieds konnte einer Änderung der Verschlüsselung dieses Raums durch %s nicht folgen. Nachrichten warten, bis das geklärt ist; wer nicht folgen kann, tritt von selbst wieder bei.",
		OtherWarning:    "Zur Verschlüsselung dieses Raums (auf Englisch): %s",
	},
}

// ParseLanguage finds the language of a name such as "de", "en-GB" or, as in LANG,
// "de_DE.UTF-8". C and POSIX are English.
func ParseLanguage(name string) (Language, bool) {
	name, _, _ = strings.Cut(name, ".")
	name, _, _ = strings.Cut(name, "@")
	name, _, _ = strings.Cut(strings.ReplaceAll(strings.ToLower(name), "_", "-"), "-")
	switch name {
	case "en", "c", "posix":
		return English, true
	case "de":
		return German, true
	}
	return English, false
}

// Text is a message for people.
func (l Language) Text(m Message, args ...any) string {
	return fmt.Sprintf(catalogue[l][m], args...)
}

// languageOf is the language in which a view's person is spoken to: a View may have
// a method Language.
func languageOf(v View) Language {
	if speaks, ok := v.(interface{ Language() Language }); ok {
		return speaks.Language()
	}
	return English
}
