package rewrite

import (
	"fmt"
	"strings"
)

// Message names a text of the catalogue.
type Message int

// The messages to people.
const (
	Waiting              Message = iota // no argument
	NotVerified                         // the folder of the account
	BeforeUs                            // no argument
	Asked                               // no argument
	RefusedFor                          // the rule
	WrongSender                         // the user whose key it was
	NotEncrypted                        // the text
	CameLate                            // the event's type
	SharedBy                            // the user, the text
	IdentityChanged                     // the user, the folder of the account, the user
	Healed                              // no argument
	Behind                              // no argument
	MemberBehind                        // who made the change
	OtherWarning                        // the warning, in English
	SoftLogout                          // the folder of the account
	SessionOver                         // no argument
	NotApplied                          // who made the change
	EncryptionChanged                   // no argument
	StandstillThere                     // minutes, the command that shows what is waited for
	StandstillAdmin                     // minutes, the silent servers, the command that goes on without them
	StandstillHeir                      // the same
	StandstillMember                    // minutes, the silent servers
	Unvouched                           // who made the change, the command that goes on
	KeyLost                             // the command that helps
	HeirsEra                            // the servers of the new modules
	Liar                                // the server
	OtherKeys                           // who says so, the epoch
	NoAccept                            // no argument
	NoMajority                          // the servers of the modules
	Altered                             // the homeserver
	NotReady                            // why, the command that shows how it stands
	NotReadyModules                     // the servers of the modules
	NotReadyAbsent                      // the servers of the modules, the modules' users
	NotReadyRekeyed                     // the servers of the modules, the command that helps
	NotReadyAccept                      // no argument
	NotReadyFinal                       // no argument
	PolicyNotYours                      // no argument
	PolicyGivenUp                       // the rule
	NotProven                           // the module's user, the rule
	CopiedStore                         // no argument
	Superseded                          // no argument
	NotSent                             // the homeserver's answer
	NotSentForbidden                    // no argument
	NotSentTooLarge                     // no argument
	NotSentBroken                       // the error
	MessagesMissing                     // the sender, the device, how many
	AdmissionVoid                       // the user
	MembershipSetBack                   // the user
	MembershipsSetBack                  // how many, and the first users
	BlockedLeft                         // the user
	BlockedBanned                       // the user
	BlockedDevice                       // the device, the user
	BlockedServer                       // the user
	BlockedDoubt                        // no argument
	BlockedMajority                     // the servers of the modules
	BlockedOther                        // no argument
	Waits                               // why
	WaitsForEntry                       // no argument
	WaitsForVerification                // the folder of the account
	WaitsForLogin                       // the folder of the account
	WaitsForSuite                       // no argument
	ServerToName                        // no argument
	NoCommand                           // the verb

	messages // how many there are
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
		Waiting:              "This message cannot be read yet: its keys have not come. It is shown here as soon as they have; a device of a member has to be online.",
		NotVerified:          "This message cannot be read yet: rooms do not let the proxy's device in until you have verified it. Run on its machine: mls-proxy --state '%s' verify --recovery-key",
		BeforeUs:             "This message cannot be read here: it was sent before this device was in the room's group. Read it on a device that was.",
		Asked:                "This message is from before the proxy's device was in the room's group. Your other devices were asked for it: it is shown here once one of them is online and has given it.",
		RefusedFor:           "This message cannot be read: it was refused (%s). Ask the sender to send it again.",
		WrongSender:          "This message is not shown: the homeserver says it is from somebody else than %s, whose key it was encrypted with. Tell your homeserver's administrator.",
		NotEncrypted:         "[not encrypted] %s",
		CameLate:             "[came late: %s]",
		SharedBy:             "[shared by %s] %s",
		IdentityChanged:      "The keys of %s are not the ones known before: they reset their account, or somebody else uses it. This room's encryption leaves them out until you accept the new keys. Ask them on another way; then, on the proxy's machine: mls-proxy --state '%s' verify accept %s",
		Healed:               "This room's encryption had gone on in two ways. It is one again: what was said on the way that was given up is sent again by those who said it.",
		Behind:               "The proxy's device could not follow a change of this room's encryption and joins again by itself. What you write meanwhile waits.",
		MemberBehind:         "A member's device could not follow a change of this room's encryption that %s made. Messages wait until it is settled; who cannot follow joins again by itself.",
		OtherWarning:         "About this room's encryption: %s",
		SoftLogout:           "This message cannot be read yet: the homeserver wants the proxy's device to log in again. It stays the same device. End mls-proxy run, run on its machine: mls-proxy --state '%s' login, and start it again; or log in through it once more with another client, with the password.",
		SessionOver:          "This message cannot be read here: the homeserver has ended the session of the proxy's device. Log out here and in again through the proxy: rooms let the new device in, and it asks your other devices for what was said before.",
		NotApplied:           "A change of this room's encryption that %s made could not be applied by the proxy's device, which told the others so. Messages wait until it is settled.",
		EncryptionChanged:    "The room's encryption setting was changed. Its encryption goes on as it was, and nothing is sent in clear.",
		StandstillThere:      "Nothing about this room's encryption has become final for %s minutes although a change of it waits. Most of the modules that order its changes are there. What it waits for is shown, on the proxy's machine, by: %s",
		StandstillAdmin:      "Nothing about this room's encryption has become final for %s minutes although a change of it waits: nothing was heard meanwhile from the modules of %s. It goes on by itself once most of the room's modules are there again. If they are lost for good, you, an admin, go on without them; on the proxy's machine: %s",
		StandstillHeir:       "Nothing about this room's encryption has become final for %s minutes although a change of it waits: nothing was heard meanwhile from the modules of %s. It goes on by itself once most of the room's modules are there again. If they are lost for good, and no admin is there, you, an heir, go on without them; on the proxy's machine: %s",
		StandstillMember:     "Nothing about this room's encryption has become final for %s minutes although a change of it waits: nothing was heard meanwhile from the modules of %s. It goes on by itself once most of the room's modules are there again. If they are lost for good, an admin or an heir of the room can open a new era.",
		Unvouched:            "Everybody who could confirm a change of this room's encryption that %s made has left the room, so nothing becomes final any more. You, an admin, go on with the same modules; on the proxy's machine: %s",
		KeyLost:              "The module that orders this room's changes has lost its key and can accept nothing. You, an admin, move the room to its new key; on the proxy's machine: %s",
		HeirsEra:             "This room stands still, and one of its heirs wants to go on with the modules of %s. The proxy's device, an heir's too, consents.",
		Liar:                 "The module of %s signed two things that contradict each other. An admin should take it off the list.",
		OtherKeys:            "%s says that the keys of this room's epoch %s are not those that the proxy's device holds.",
		NoAccept:             "The module that orders this room's changes has not accepted one for a while. It waits until the module answers.",
		NoMajority:           "No module has accepted a change of this room's encryption for a while: this side of the room does not reach more than half of the modules of %s. It goes on when they are back, or when an admin opens a new era.",
		Altered:              "The homeserver %s does not show a change of this room's encryption as the proxy's device sent it, so that nobody can use it. It is made again.",
		NotReady:             "The change of the modules that order this room's changes is not in force.%s It is tried again by itself. How each module stands is shown, on the proxy's machine, by: %s",
		NotReadyModules:      "Those of %s have not said that they are ready: ask their servers' administrators whether they run.",
		NotReadyAbsent:       "Those of %s are not in the room: invite %s. Where they do not come, ask their servers' administrators whether they run.",
		NotReadyRekeyed:      "Those of %s announce other keys than the list has: ask their servers' administrators whether their databases were lost. If so, you, an admin, take over the new keys of those that order this room's changes already, on the proxy's machine: %s; and name the new list once more if others are among them.",
		NotReadyAccept:       "The new ones are ready, and the present ones have not accepted it.",
		NotReadyFinal:        "The present ones have accepted it and not yet made it final: a device of another member has to confirm it, and more than half of them to vote.",
		PolicyNotYours:       "A change of the rules of this room's encryption was given up: you are not an admin of its group any more.",
		PolicyGivenUp:        "A change of the rules of this room's encryption was given up, by the rule %s.",
		NotProven:            "What the module %s shows of this room does not follow from the room's beginning, and is not used (%s).",
		CopiedStore:          "What the proxy keeps on its disk for this account is an old copy, or another program uses a copy of it. Its device makes fresh keys before it sends. Never run two copies: on another machine, log in anew.",
		Superseded:           "Another copy of the proxy's device, perhaps one restored from a backup, is in use and has taken its place in this room's encryption; this one stays out. Use that one; log out here, which leaves it its session, and in again to use both.",
		NotSent:              "The homeserver refused a message of yours, and it is not sent. It answered: %s",
		NotSentForbidden:     "The homeserver refused a message of yours, and it is not sent: you may not write here, or not such messages.",
		NotSentTooLarge:      "The homeserver refused a message of yours, and it is not sent: it is too large.",
		NotSentBroken:        "A message of yours could not be sent, and is not tried again. The reason: %s",
		MessagesMissing:      "Something that %s sent here from the device %s has not come, as what came after it shows (messages missing: %s). It may never have gone out; or a homeserver is late with it, or keeps it to itself. If it comes it is shown; ask them on another way what they wrote.",
		AdmissionVoid:        "Members say that what let %s into this room's encryption is void, as where they were removed since. Your device does not let them in by it. If they are to be here, invite them again.",
		MembershipSetBack:    "A membership of %s in this room was forgotten: servers that could not reach each other have settled on an older state of the room. Nobody left, and nobody was put out or let in by that. Look who is in the room, and invite or ban them again.",
		MembershipsSetBack:   "Many memberships in this room were forgotten (how many, and whose first: %s): servers that could not reach each other have settled on an older state of the room. Nobody left, and nobody was put out or let in by that. Look who is in the room, and invite or ban them again.",
		BlockedLeft:          "%s has left the room, and could read what is sent now. It waits until their devices are out of the group, which happens by itself.",
		BlockedBanned:        "%s is banned from the room, and could read what is sent now. It waits until their devices are out of the group, which happens by itself.",
		BlockedDevice:        "The device %s of %s fails its check. It goes on once the person has verified it, or once it is removed, which happens by itself after a minute.",
		BlockedServer:        "The devices of %s cannot be checked, since their server does not answer. It is asked again every minute.",
		BlockedDoubt:         "It is in doubt whether the newest change of the room's encryption can be applied by all. That settles by itself.",
		BlockedMajority:      "This side of the room does not reach more than half of the modules of %s. It goes on when they are back, or when an admin opens a new era.",
		BlockedOther:         "The homeserver has not answered yet, or the proxy's device is not done yet with what changed in the room.",
		Waits:                "What you have written in this room waits, and goes out by itself. %s",
		WaitsForEntry:        "The proxy's device is not in the room's group yet: a device of a member lets it in once it is online.",
		WaitsForVerification: "Rooms do not let the proxy's device in until you have verified it. Run on its machine: mls-proxy --state '%s' verify --recovery-key",
		WaitsForLogin:        "The homeserver wants the proxy's device to log in again. End mls-proxy run, run on its machine: mls-proxy --state '%s' login, and start it again; or log in through it once more with another client, with the password.",
		WaitsForSuite:        "The room moves to another cipher suite; it goes on when that is done.",
		ServerToName:         "SERVER, with the name of a server that has a module",
		NoCommand:            "the verb %s of mls-proxy (the room's id holds characters that a shell may run, so the command is not shown)",
	},
	German: {
		Waiting:              "Diese Nachricht kann noch nicht gelesen werden: Ihre Schlüssel sind noch nicht da. Sie erscheint hier, sobald sie gekommen sind; dazu muss ein Gerät eines Mitglieds online sein.",
		NotVerified:          "Diese Nachricht kann noch nicht gelesen werden: Räume lassen das Gerät des Proxys erst ein, wenn Sie es verifiziert haben. Auf dessen Rechner: mls-proxy --state '%s' verify --recovery-key",
		BeforeUs:             "Diese Nachricht kann hier nicht gelesen werden: Sie wurde gesendet, bevor dieses Gerät in der Gruppe des Raums war. Lesen Sie sie auf einem Gerät, das es war.",
		Asked:                "Diese Nachricht ist aus der Zeit, bevor das Gerät des Proxys in der Gruppe des Raums war. Ihre anderen Geräte wurden danach gefragt: Sie erscheint hier, sobald eines davon online ist und sie weitergegeben hat.",
		RefusedFor:           "Diese Nachricht kann nicht gelesen werden: Sie wurde abgelehnt (%s). Bitten Sie darum, sie noch einmal zu senden.",
		WrongSender:          "Diese Nachricht wird nicht gezeigt: Der Homeserver nennt einen anderen Absender als %s, mit dessen Schlüssel sie verschlüsselt ist. Melden Sie das der Verwaltung Ihres Homeservers.",
		NotEncrypted:         "[nicht verschlüsselt] %s",
		CameLate:             "[kam verspätet: %s]",
		SharedBy:             "[weitergegeben von %s] %s",
		IdentityChanged:      "Die Schlüssel von %s sind nicht mehr die bisher bekannten: Entweder wurde das Konto zurückgesetzt, oder jemand anderes benutzt es. Die Verschlüsselung dieses Raums lässt es aus, bis Sie die neuen Schlüssel annehmen. Fragen Sie auf einem anderen Weg nach; dann auf dem Rechner des Proxys: mls-proxy --state '%s' verify accept %s",
		Healed:               "Die Verschlüsselung dieses Raums war auf zwei Wegen weitergegangen. Es ist wieder einer: Was auf dem aufgegebenen Weg gesagt wurde, senden die, die es gesagt haben, noch einmal.",
		Behind:               "Das Gerät des Proxys konnte einer Änderung der Verschlüsselung dieses Raums nicht folgen und tritt von selbst wieder bei. Was Sie inzwischen schreiben, wartet.",
		MemberBehind:         "Das Gerät eines Mitglieds konnte einer Änderung der Verschlüsselung dieses Raums durch %s nicht folgen. Nachrichten warten, bis das geklärt ist; wer nicht folgen kann, tritt von selbst wieder bei.",
		OtherWarning:         "Zur Verschlüsselung dieses Raums (auf Englisch): %s",
		SoftLogout:           "Diese Nachricht kann noch nicht gelesen werden: Der Homeserver verlangt, dass sich das Gerät des Proxys neu anmeldet. Es bleibt dasselbe Gerät. Beenden Sie mls-proxy run, rufen Sie auf dessen Rechner auf: mls-proxy --state '%s' login, und starten Sie es wieder; oder melden Sie sich mit einem weiteren Client und dem Passwort noch einmal durch den Proxy an.",
		SessionOver:          "Diese Nachricht kann hier nicht gelesen werden: Der Homeserver hat die Sitzung des Geräts des Proxys beendet. Melden Sie sich hier ab und durch den Proxy wieder an: Räume lassen das neue Gerät ein, und es fragt Ihre anderen Geräte nach dem, was vorher gesagt wurde.",
		NotApplied:           "Das Gerät des Proxys konnte eine Änderung der Verschlüsselung dieses Raums durch %s nicht anwenden und hat das den anderen gesagt. Nachrichten warten, bis das geklärt ist.",
		EncryptionChanged:    "Die Einstellung der Verschlüsselung dieses Raums wurde geändert. Die Verschlüsselung geht weiter wie bisher, und nichts wird unverschlüsselt gesendet.",
		StandstillThere:      "An der Verschlüsselung dieses Raums ist seit %s Minuten nichts mehr endgültig geworden, obwohl eine Änderung wartet. Die meisten Module, die seine Änderungen ordnen, sind da. Worauf gewartet wird, zeigt auf dem Rechner des Proxys: %s",
		StandstillAdmin:      "An der Verschlüsselung dieses Raums ist seit %s Minuten nichts mehr endgültig geworden, obwohl eine Änderung wartet: Von den Modulen von %s war in dieser Zeit nichts zu hören. Es geht von selbst weiter, sobald die meisten Module des Raums wieder da sind. Sind sie für immer verloren, machen Sie als Admin ohne sie weiter; auf dem Rechner des Proxys: %s",
		StandstillHeir:       "An der Verschlüsselung dieses Raums ist seit %s Minuten nichts mehr endgültig geworden, obwohl eine Änderung wartet: Von den Modulen von %s war in dieser Zeit nichts zu hören. Es geht von selbst weiter, sobald die meisten Module des Raums wieder da sind. Sind sie für immer verloren und ist kein Admin da, machen Sie als Erbe ohne sie weiter; auf dem Rechner des Proxys: %s",
		StandstillMember:     "An der Verschlüsselung dieses Raums ist seit %s Minuten nichts mehr endgültig geworden, obwohl eine Änderung wartet: Von den Modulen von %s war in dieser Zeit nichts zu hören. Es geht von selbst weiter, sobald die meisten Module des Raums wieder da sind. Sind sie für immer verloren, kann ein Admin oder ein Erbe des Raums eine neue Ära beginnen.",
		Unvouched:            "Alle, die eine Änderung der Verschlüsselung dieses Raums durch %s bestätigen könnten, haben den Raum verlassen; so wird nichts mehr endgültig. Sie machen als Admin mit denselben Modulen weiter; auf dem Rechner des Proxys: %s",
		KeyLost:              "Das Modul, das die Änderungen dieses Raums ordnet, hat seinen Schlüssel verloren und kann nichts annehmen. Sie stellen den Raum als Admin auf den neuen Schlüssel um; auf dem Rechner des Proxys: %s",
		HeirsEra:             "Dieser Raum steht still, und einer seiner Erben will mit den Modulen von %s weitermachen. Das Gerät des Proxys, auch das eines Erben, stimmt zu.",
		Liar:                 "Das Modul von %s hat zweierlei unterschrieben, das sich widerspricht. Ein Admin sollte es von der Liste nehmen.",
		OtherKeys:            "%s sagt, die Schlüssel der Epoche %s dieses Raums seien nicht die, die das Gerät des Proxys hat.",
		NoAccept:             "Das Modul, das die Änderungen dieses Raums ordnet, hat seit einer Weile keine angenommen. Sie wartet, bis das Modul antwortet.",
		NoMajority:           "Seit einer Weile hat kein Modul eine Änderung der Verschlüsselung dieses Raums angenommen: Diese Seite des Raums erreicht nicht mehr als die Hälfte der Module von %s. Es geht weiter, wenn sie wieder da sind oder ein Admin eine neue Ära beginnt.",
		Altered:              "Der Homeserver %s zeigt eine Änderung der Verschlüsselung dieses Raums nicht so, wie das Gerät des Proxys sie gesendet hat; so kann sie niemand benutzen. Sie wird neu gemacht.",
		NotReady:             "Die neue Liste der Module, die die Änderungen dieses Raums ordnen, ist nicht in Kraft.%s Es wird von selbst wieder versucht. Wie es um jedes Modul steht, zeigt auf dem Rechner des Proxys: %s",
		NotReadyModules:      "Die von %s haben nicht gesagt, dass sie bereit sind: Fragen Sie die Verwaltung ihrer Server, ob sie laufen.",
		NotReadyAbsent:       "Die von %s sind nicht im Raum: Laden Sie %s ein. Kommen sie nicht, fragen Sie die Verwaltung ihrer Server, ob sie laufen.",
		NotReadyRekeyed:      "Die von %s nennen andere Schlüssel als die Liste: Fragen Sie die Verwaltung ihrer Server, ob ihre Datenbank verloren ging. Wenn ja, übernehmen Sie als Admin die neuen Schlüssel derer, die die Änderungen dieses Raums schon ordnen, auf dem Rechner des Proxys: %s; und nennen Sie die neue Liste noch einmal, falls andere darunter sind.",
		NotReadyAccept:       "Die neuen sind bereit, und die jetzigen haben sie nicht angenommen.",
		NotReadyFinal:        "Die jetzigen haben sie angenommen und noch nicht endgültig gemacht: Ein Gerät eines anderen Mitglieds muss sie bestätigen, und mehr als die Hälfte der Module muss dafür stimmen.",
		PolicyNotYours:       "Eine Änderung der Regeln für die Verschlüsselung dieses Raums wurde aufgegeben: Sie sind kein Admin seiner Gruppe mehr.",
		PolicyGivenUp:        "Eine Änderung der Regeln für die Verschlüsselung dieses Raums wurde aufgegeben, nach der Regel %s.",
		NotProven:            "Was das Modul %s von diesem Raum zeigt, folgt nicht aus dessen Anfang und wird nicht benutzt (%s).",
		CopiedStore:          "Was der Proxy für dieses Konto auf der Platte hat, ist eine alte Kopie, oder ein anderes Programm benutzt eine. Sein Gerät macht neue Schlüssel, bevor es sendet. Betreiben Sie nie zwei Kopien: Auf einem anderen Rechner melden Sie sich neu an.",
		Superseded:           "Eine andere Kopie des Geräts des Proxys, etwa aus einer Sicherung, ist in Gebrauch und hat seinen Platz in der Verschlüsselung dieses Raums eingenommen; dieses bleibt draußen. Benutzen Sie jene; melden Sie sich hier ab, was ihr die Sitzung lässt, und wieder an, um beide zu benutzen.",
		NotSent:              "Der Homeserver hat eine Nachricht von Ihnen abgelehnt, und sie wird nicht gesendet. Seine Antwort: %s",
		NotSentForbidden:     "Der Homeserver hat eine Nachricht von Ihnen abgelehnt, und sie wird nicht gesendet: Sie dürfen hier nicht schreiben, oder keine solchen Nachrichten.",
		NotSentTooLarge:      "Der Homeserver hat eine Nachricht von Ihnen abgelehnt, und sie wird nicht gesendet: Sie ist zu groß.",
		NotSentBroken:        "Eine Nachricht von Ihnen konnte nicht gesendet werden, und es wird nicht noch einmal versucht. Der Grund, auf Englisch: %s",
		MessagesMissing:      "Etwas, das %s hier vom Gerät %s gesendet hat, ist nicht gekommen; das zeigt, was danach kam (fehlende Nachrichten: %s). Vielleicht ist es nie hinausgegangen; oder ein Homeserver ist damit im Verzug oder hält es zurück. Kommt es noch, wird es gezeigt; fragen Sie auf einem anderen Weg nach, was geschrieben wurde.",
		AdmissionVoid:        "Mitglieder sagen, dass ungültig ist, was %s in die Verschlüsselung dieses Raums lassen sollte, etwa weil die Person seither entfernt worden ist. Ihr Gerät lässt sie damit nicht ein. Soll sie hier sein, laden Sie sie wieder ein.",
		MembershipSetBack:    "Eine Mitgliedschaft von %s in diesem Raum ist vergessen worden: Server, die einander nicht erreichten, haben sich auf einen älteren Stand des Raums geeinigt. Dadurch ist niemand gegangen, hinausgeworfen oder hereingelassen worden. Sehen Sie nach, wer im Raum ist, und laden Sie wieder ein oder sperren Sie wieder.",
		MembershipsSetBack:   "Viele Mitgliedschaften in diesem Raum sind vergessen worden (wie viele, und wessen zuerst: %s): Server, die einander nicht erreichten, haben sich auf einen älteren Stand des Raums geeinigt. Dadurch ist niemand gegangen, hinausgeworfen oder hereingelassen worden. Sehen Sie nach, wer im Raum ist, und laden Sie wieder ein oder sperren Sie wieder.",
		BlockedLeft:          "%s hat den Raum verlassen und könnte noch lesen, was jetzt gesendet wird. Es wartet, bis die Geräte aus der Gruppe entfernt sind; das geschieht von selbst.",
		BlockedBanned:        "%s ist aus dem Raum verbannt und könnte noch lesen, was jetzt gesendet wird. Es wartet, bis die Geräte aus der Gruppe entfernt sind; das geschieht von selbst.",
		BlockedDevice:        "Das Gerät %s von %s besteht seine Prüfung nicht. Es geht weiter, sobald die Person es verifiziert hat oder es entfernt ist; das geschieht nach einer Minute von selbst.",
		BlockedServer:        "Die Geräte von %s können nicht geprüft werden, denn der Server der Person antwortet nicht. Er wird jede Minute wieder gefragt.",
		BlockedDoubt:         "Ob alle der neuesten Änderung der Verschlüsselung des Raums folgen können, ist noch offen. Das klärt sich von selbst.",
		BlockedMajority:      "Diese Seite des Raums erreicht nicht mehr als die Hälfte der Module von %s. Es geht weiter, wenn sie wieder da sind oder ein Admin eine neue Ära beginnt.",
		BlockedOther:         "Der Homeserver hat noch nicht geantwortet, oder das Gerät des Proxys ist mit dem, was sich im Raum geändert hat, noch nicht fertig.",
		Waits:                "Was Sie in diesem Raum geschrieben haben, wartet und geht von selbst hinaus. %s",
		WaitsForEntry:        "Das Gerät des Proxys ist noch nicht in der Gruppe des Raums: Ein Gerät eines Mitglieds lässt es ein, sobald es online ist.",
		WaitsForVerification: "Räume lassen das Gerät des Proxys erst ein, wenn Sie es verifiziert haben. Auf dessen Rechner: mls-proxy --state '%s' verify --recovery-key",
		WaitsForLogin:        "Der Homeserver verlangt, dass sich das Gerät des Proxys neu anmeldet. Beenden Sie mls-proxy run, rufen Sie auf dessen Rechner auf: mls-proxy --state '%s' login, und starten Sie es wieder; oder melden Sie sich mit einem weiteren Client und dem Passwort noch einmal durch den Proxy an.",
		WaitsForSuite:        "Der Raum wechselt zu einer anderen Cipher-Suite; danach geht es weiter.",
		ServerToName:         "SERVER, mit dem Namen eines Servers, der ein Modul hat",
		NoCommand:            "das Verb %s von mls-proxy (die Kennung des Raums enthält Zeichen, die eine Shell ausführen könnte; darum steht der Befehl nicht hier)",
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
