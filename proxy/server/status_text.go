package server

import (
	"fmt"

	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// pageText names a text of the pages that is not in their templates.
type pageText int

// The texts of the pages.
const (
	pageNotFromHere     pageText = iota // a title
	pageOpenByItself                    // no argument
	pageOnlyRead                        // a title
	pageOnlyToBeRead                    // no argument
	pageWhichAddress                    // a title
	pageSecret                          // the file that has the address
	pageNoSuch                          // a title
	pageNoSuchHere                      // no argument
	pageBroken                          // a title
	pageNoRoom                          // a title
	pageNoRoomHere                      // no argument
	pageNoPicture                       // no argument
	pageBack                            // no argument
	pageOnlyBrowsers                    // a title
	pageEndOfLogin                      // no argument
	pageNoLogin                         // a title
	pageNoToken                         // no argument
	pageNoneUnderWay                    // a title
	pageGoodOnce                        // no argument
	pageLoginFailed                     // a title
	pageDeviceNotMade                   // no argument
	pageDeviceNotUsable                 // no argument
	pageAnswers                         // no argument
	pageNoAnswer                        // no argument
	pageAnswersError                    // the status and code
	pageInvited                         // no argument
	pageModulesTo                       // servers
	pageRemoved                         // no argument
	pageSuperseded                      // no argument
	pageWaitsToBeLetIn                  // no argument
	pageEpoch                           // its number
	pageEpochNewest                     // its number
	pageEpochHeard                      // its number
	pageEpochNotKnown                   // no argument
	pageFinal                           // no argument
	pageAccepted                        // no argument
	pageProvisional                     // no argument
	pageDisplaced                       // no argument
	pageUndecided                       // no argument
	pageSendingWaits                    // no argument
	pageNothingFinal                    // no argument
	pageThisDevice                      // no argument
	pageNoDevice                        // no argument
	pageVerifiedPerson                  // no argument
	pageSignedDevice                    // no argument
	pageChangedKeys                     // no argument
	pageNotVerified                     // no argument
	pageJoined                          // no argument
	pageAsked                           // no argument
	pageLeft                            // no argument
	pageBanned                          // no argument
	pageKnocks                          // no argument
	pageNoteLeft                        // no argument
	pageNoteBanned                      // no argument
	pageNoteDevice                      // no argument
	pageNoteDuplicate                   // no argument
	pageNoteSuite                       // no argument
	pageNoteSilent                      // no argument
	pageNoteMalformed                   // no argument
	pageNoteUnadmitted                  // no argument
	pageNoteNoSuite                     // no argument
	pageNoteCheck                       // no argument
	pageNoteNoDevice                    // no argument
	pageNoteNoMLS                       // no argument
	pageNoteNotYet                      // no argument

	pageTexts // how many there are
)

var pageCatalogue = [...]map[pageText]string{
	rewrite.English: {
		pageNotFromHere:     "Not from here",
		pageOpenByItself:    "Other pages may not open this one. Open its address by itself.",
		pageOnlyRead:        "Only to be read",
		pageOnlyToBeRead:    "This page is only to be read.",
		pageWhichAddress:    "Which address?",
		pageSecret:          "The address of this page ends in a secret that is made anew at each start; it is in the file %s",
		pageNoSuch:          "No such page",
		pageNoSuchHere:      "There is no such page here.",
		pageBroken:          "The page could not be written",
		pageNoRoom:          "No such room",
		pageNoRoomHere:      "There is no such account or room here.",
		pageNoPicture:       "There is no picture of this room.",
		pageBack:            "Back to the room",
		pageOnlyBrowsers:    "Only for browsers",
		pageEndOfLogin:      "A browser comes here at the end of a login.",
		pageNoLogin:         "No login",
		pageNoToken:         "The homeserver sent no login token. Begin the login in your client again.",
		pageNoneUnderWay:    "No login under way",
		pageGoodOnce:        "This address was good once, for a quarter of an hour. Begin the login in your client again.",
		pageLoginFailed:     "The login did not work",
		pageDeviceNotMade:   "The device that encrypts for you could not be made. Begin the login in your client again, and see what mls-proxy run printed.",
		pageDeviceNotUsable: "The device that encrypts for you cannot be used now. What mls-proxy run printed says why.",
		pageAnswers:         "answers",
		pageNoAnswer:        "does not answer",
		pageAnswersError:    "answers with the error %s",
		pageInvited:         "invited; join with a client",
		pageModulesTo:       "(being changed to %s)",
		pageRemoved:         "this device was removed",
		pageSuperseded:      "another copy of this device, perhaps one restored from a backup, is in use, and this one is out",
		pageWaitsToBeLetIn:  "waits to be let in",
		pageEpoch:           "epoch %s",
		pageEpochNewest:     "%s, the newest",
		pageEpochHeard:      "%s, as last heard",
		pageEpochNotKnown:   "not known",
		pageFinal:           "final",
		pageAccepted:        "accepted",
		pageProvisional:     "provisional",
		pageDisplaced:       "displaced",
		pageUndecided:       "undecided",
		pageSendingWaits:    "sending waits",
		pageNothingFinal:    "nothing becomes final",
		pageThisDevice:      "this device",
		pageNoDevice:        "no device in the group",
		pageVerifiedPerson:  "verified: you compared keys with this person",
		pageSignedDevice:    "signed by its user, whose keys nobody compared yet",
		pageChangedKeys:     "WARNING: the user's keys are not those known before",
		pageNotVerified:     "NOT verified by its user",
		pageJoined:          "in the room",
		pageAsked:           "invited",
		pageLeft:            "not in the room any more",
		pageBanned:          "banned",
		pageKnocks:          "asks to be let in",
		pageNoteLeft:        "has left; is being removed",
		pageNoteBanned:      "is banned; is being removed",
		pageNoteDevice:      "fails its check, or is logged out; is being removed",
		pageNoteDuplicate:   "the device has come in again; its old place is being removed",
		pageNoteSuite:       "does not support the cipher suite that the room moves to",
		pageNoteSilent:      "was silent for too long; is being removed",
		pageNoteMalformed:   "its name in the group cannot be read; is being removed",
		pageNoteUnadmitted:  "no member has admitted them: one who may invite has to invite them",
		pageNoteNoSuite:     "their device does not support the room's cipher suite: its client has to be updated, or an admin moves the room to another",
		pageNoteCheck:       "their device fails its check: they have to verify it",
		pageNoteNoDevice:    "no device that can be added: they have to log in with an MLS client and verify it",
		pageNoteNoMLS:       "no device with MLS",
		pageNoteNotYet:      "not added yet",
	},
	rewrite.German: {
		pageNotFromHere:     "Nicht von hier",
		pageOpenByItself:    "Andere Seiten dürfen diese nicht öffnen. Öffnen Sie ihre Adresse für sich.",
		pageOnlyRead:        "Nur zum Lesen",
		pageOnlyToBeRead:    "Diese Seite ist nur zum Lesen da.",
		pageWhichAddress:    "Welche Adresse?",
		pageSecret:          "Die Adresse dieser Seite endet mit einem Geheimnis, das bei jedem Start neu gemacht wird; sie steht in der Datei %s",
		pageNoSuch:          "Keine solche Seite",
		pageNoSuchHere:      "Hier gibt es keine solche Seite.",
		pageBroken:          "Die Seite konnte nicht geschrieben werden",
		pageNoRoom:          "Kein solcher Raum",
		pageNoRoomHere:      "Hier gibt es kein solches Konto oder keinen solchen Raum.",
		pageNoPicture:       "Von diesem Raum gibt es kein Bild.",
		pageBack:            "Zurück zum Raum",
		pageOnlyBrowsers:    "Nur für Browser",
		pageEndOfLogin:      "Hierher kommt ein Browser am Ende einer Anmeldung.",
		pageNoLogin:         "Keine Anmeldung",
		pageNoToken:         "Der Homeserver hat kein Anmelde-Token geschickt. Beginnen Sie die Anmeldung in Ihrem Client noch einmal.",
		pageNoneUnderWay:    "Keine Anmeldung im Gang",
		pageGoodOnce:        "Diese Adresse galt einmal, eine Viertelstunde lang. Beginnen Sie die Anmeldung in Ihrem Client noch einmal.",
		pageLoginFailed:     "Die Anmeldung ist misslungen",
		pageDeviceNotMade:   "Das Gerät, das für Sie verschlüsselt, konnte nicht angelegt werden. Beginnen Sie die Anmeldung in Ihrem Client noch einmal, und sehen Sie nach, was mls-proxy run ausgegeben hat.",
		pageDeviceNotUsable: "Das Gerät, das für Sie verschlüsselt, kann gerade nicht benutzt werden. Warum, steht in dem, was mls-proxy run ausgegeben hat.",
		pageAnswers:         "antwortet",
		pageNoAnswer:        "antwortet nicht",
		pageAnswersError:    "antwortet mit dem Fehler %s",
		pageInvited:         "eingeladen; treten Sie mit einem Client bei",
		pageModulesTo:       "(wird geändert zu %s)",
		pageRemoved:         "dieses Gerät wurde entfernt",
		pageSuperseded:      "eine andere Kopie dieses Geräts, etwa aus einer Sicherung, ist in Gebrauch; dieses bleibt draußen",
		pageWaitsToBeLetIn:  "wartet darauf, eingelassen zu werden",
		pageEpoch:           "Epoche %s",
		pageEpochNewest:     "%s, die neueste",
		pageEpochHeard:      "%s, soweit zuletzt gehört",
		pageEpochNotKnown:   "nicht bekannt",
		pageFinal:           "endgültig",
		pageAccepted:        "angenommen",
		pageProvisional:     "vorläufig",
		pageDisplaced:       "verdrängt",
		pageUndecided:       "unentschieden",
		pageSendingWaits:    "Senden wartet",
		pageNothingFinal:    "nichts wird endgültig",
		pageThisDevice:      "dieses Gerät",
		pageNoDevice:        "kein Gerät in der Gruppe",
		pageVerifiedPerson:  "verifiziert: Sie haben Schlüssel mit dieser Person verglichen",
		pageSignedDevice:    "von der Person signiert, deren Schlüssel noch niemand verglichen hat",
		pageChangedKeys:     "WARNUNG: Die Schlüssel der Person sind nicht die bisher bekannten",
		pageNotVerified:     "NICHT von der Person verifiziert",
		pageJoined:          "im Raum",
		pageAsked:           "eingeladen",
		pageLeft:            "nicht mehr im Raum",
		pageBanned:          "verbannt",
		pageKnocks:          "bittet um Einlass",
		pageNoteLeft:        "hat den Raum verlassen; wird entfernt",
		pageNoteBanned:      "verbannt; wird entfernt",
		pageNoteDevice:      "besteht seine Prüfung nicht oder ist abgemeldet; wird entfernt",
		pageNoteDuplicate:   "das Gerät ist noch einmal eingetreten; der alte Platz wird entfernt",
		pageNoteSuite:       "unterstützt die Cipher-Suite nicht, zu der der Raum wechselt",
		pageNoteSilent:      "war zu lange still; wird entfernt",
		pageNoteMalformed:   "sein Name in der Gruppe ist nicht lesbar; wird entfernt",
		pageNoteUnadmitted:  "kein Mitglied hat sie eingelassen: Wer einladen darf, muss sie einladen",
		pageNoteNoSuite:     "ihr Gerät unterstützt die Cipher-Suite des Raums nicht: Sein Client muss erneuert werden, oder ein Admin stellt den Raum um",
		pageNoteCheck:       "ihr Gerät besteht seine Prüfung nicht: Sie müssen es verifizieren",
		pageNoteNoDevice:    "kein Gerät, das aufgenommen werden kann: Sie müssen sich mit einem MLS-Client anmelden und ihn verifizieren",
		pageNoteNoMLS:       "kein Gerät mit MLS",
		pageNoteNotYet:      "noch nicht aufgenommen",
	},
}

// say is a text of the pages in the person's language.
func (s *Server) say(text pageText, args ...any) string { return sayIn(s.o.Language, text, args...) }

func sayIn(l rewrite.Language, text pageText, args ...any) string {
	return fmt.Sprintf(pageCatalogue[l][text], args...)
}
