// Package route says of every path of the Matrix client-server API what a
// request or answer there can carry, and so what the proxy has to do with it.
// The table is the whole rule: a path goes through untouched only if it is
// listed and can carry no event; one that is not listed is refused.
package route

import (
	"net/url"
	"strings"
)

// Kind is what has to be done with a request.
type Kind int

// The kinds of requests.
const (
	Unknown       Kind = iota // not listed: refused
	Refused                   // listed, and refused: it carries events, or what is meant to be secret, and is not rewritten
	Stream                    // can carry no event: goes through untouched
	WellKnown                 // answered by the proxy: it names the proxy as the homeserver
	Versions                  // goes through without the features that the proxy refuses
	LoginFlows                // goes through with the flows that give the proxy a device
	Login                     // makes the account's MLS device
	SSO                       // sends a browser to the homeserver, once for the MLS device and once for the client
	Register                  // makes an account, and its MLS device
	Page                      // a page of the homeserver's, for a browser: it is sent there
	Logout                    // ends one session
	LogoutAll                 // ends all sessions, the MLS device's too
	Sync                      // events come back
	SlidingSync               // events come back
	Filter                    // says which events come back
	FilterOf                  // says which filter was stored
	Messages                  // events come back
	Context                   // events come back
	Event                     // an event comes back
	Relations                 // events come back
	AtTime                    // names an event: one that clients are shown
	Threads                   // events come back
	Notifications             // events of several rooms come back
	Search                    // events of several rooms come back
	Members                   // state events come back
	State                     // state events come back
	StateEvent                // the content of a state event comes back
	Hierarchy                 // tells of rooms how they are encrypted, and state events of theirs
	Send                      // an event goes out
	SetState                  // a state event goes out
	SetProfile                // may name a file that the client uploaded
	Marker                    // names events
	Redact                    // a redaction goes out; it is not encrypted anywhere
	Invite                    // changes who may be in a group
	Join                      // …
	Leave                     // …
	Kick                      // …
	Ban                       // …
	Forget                    // ends what is kept of a room
	CreateRoom                // makes a room, perhaps with encryption
	Upgrade                   // moves a room, with its encryption
	UploadMedia               // may be an attachment of an encrypted room
	DownloadMedia             // may be an encrypted attachment
	UploadKeys                // goes through untouched; it tells that the client encrypts by itself
	Password                  // changes the password, and may end sessions, the MLS device's too
	EndDevice                 // ends a session, that of the MLS device too
	EndDevices                // ends sessions, that of the MLS device too
)

// Match is a recognised request. Params holds the unescaped values of the
// placeholders of its pattern.
type Match struct {
	Kind   Kind
	Params map[string]string
	// Path is the request's path, escaped in one canonical way: what was looked
	// at is what the homeserver gets, however the client had escaped it.
	Path string
	// Why is the reason for a refusal, for people.
	Why string
}

// Events tells whether requests of a kind can carry events, or the files of events:
// what has to be rewritten.
func (k Kind) Events() bool {
	switch k {
	case Sync, SlidingSync, Messages, Context, Event, Relations, AtTime, Threads, Notifications, Search, Members, State, StateEvent, Hierarchy,
		Send, SetState, Redact, Marker, Invite, Join, Leave, Kick, Ban, Forget, CreateRoom, Upgrade, UploadMedia, DownloadMedia:
		return true
	}
	return false
}

// Path is a method and a path of the table, written as there, in one of its
// versions: such as GET and "_matrix/client/r0/rooms/{room}/messages".
type Path struct {
	Method, Path string
	Kind         Kind
}

// Paths are all of the table, in order. What is listed to be refused is among them.
func Paths() []Path {
	var out []Path
	for _, e := range table {
		for method := range strings.FieldsSeq(e.methods) {
			out = append(out, Path{method, strings.Join(e.path, "/"), e.kind})
		}
	}
	return out
}

type entry struct {
	methods string // separated by spaces
	path    []string
	kind    Kind
	why     string
}

var table = build()

// Classify finds out what a request is. The path is the escaped one, such as
// url.URL.EscapedPath.
func Classify(method, escapedPath string) Match {
	segments, ok := split(escapedPath)
	if !ok {
		return Match{Kind: Unknown}
	}
	for i := range table {
		e := &table[i]
		params, ok := e.match(segments)
		if !ok || !hasWord(e.methods, method) {
			continue
		}
		return Match{Kind: e.kind, Params: params, Path: join(segments), Why: e.why}
	}
	return Match{Kind: Unknown}
}

func hasWord(words, word string) bool {
	for w := range strings.FieldsSeq(words) {
		if w == word {
			return true
		}
	}
	return false
}

// split unescapes the segments of a path. Dots and empty segments, which
// servers resolve in different ways, are refused; one empty segment may end the
// path (the empty state key).
func split(escaped string) ([]string, bool) {
	rest, ok := strings.CutPrefix(escaped, "/")
	if !ok {
		return nil, false
	}
	parts := strings.Split(rest, "/")
	for i, part := range parts {
		plain, err := url.PathUnescape(part)
		if err != nil || plain == "." || plain == ".." || plain == "" && i != len(parts)-1 || strings.ContainsRune(plain, 0) {
			return nil, false
		}
		parts[i] = plain
	}
	return parts, true
}

func join(segments []string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

func (e *entry) match(segments []string) (map[string]string, bool) {
	if len(segments) != len(e.path) {
		return nil, false
	}
	params := map[string]string{}
	for i, want := range e.path {
		name, isParam := strings.CutPrefix(want, "{")
		if !isParam {
			if segments[i] != want {
				return nil, false
			}
			continue
		}
		name = strings.TrimSuffix(name, "}")
		// Only a state key may be empty.
		if segments[i] == "" && name != "key" {
			return nil, false
		}
		params[name] = segments[i]
	}
	return params, true
}

// Why a listed path is refused.
const (
	whyNotYet  = "this proxy does not rewrite that path yet, and events of encrypted rooms would come through unreadable"
	whyAsync   = "this proxy encrypts files before it knows their address: upload them by POST /_matrix/media/v3/upload"
	whyPreview = "a preview would tell the homeserver which links are in encrypted messages"
)

// rows is the table: methods, path below its root, kind. A path begins with
// the API's versions: c stands for client/r0 and client/v3, m for media/r0,
// media/v1 and media/v3; others are written out.
var rows = []struct {
	methods, path string
	kind          Kind
	why           string
}{
	{"GET", ".well-known/matrix/client", WellKnown, ""},
	{"GET", "_matrix/client/versions", Versions, ""},

	// Sessions.
	{"GET", "c/login", LoginFlows, ""},
	{"POST", "c/login", Login, ""},
	{"GET", "c/login/sso/redirect", SSO, ""},
	{"GET", "c/login/sso/redirect/{idp}", SSO, ""},
	{"POST", "c/logout", Logout, ""},
	{"POST", "c/logout/all", LogoutAll, ""},
	{"POST", "c/refresh", Stream, ""},
	{"POST", "c/register", Register, ""},
	{"GET", "c/register/available", Stream, ""},
	{"GET", "_matrix/client/v1/register/m.login.registration_token/validity", Stream, ""},
	{"POST", "c/register/email/requestToken", Stream, ""},
	{"POST", "c/register/msisdn/requestToken", Stream, ""},
	{"GET", "c/auth/{stage}/fallback/web", Page, ""},

	// The account.
	{"GET", "c/account/whoami", Stream, ""},
	{"POST", "c/account/password", Password, ""},
	{"POST", "c/account/deactivate", Stream, ""},
	{"GET POST", "c/account/3pid", Stream, ""},
	{"POST", "c/account/3pid/add", Stream, ""},
	{"POST", "c/account/3pid/bind", Stream, ""},
	{"POST", "c/account/3pid/delete", Stream, ""},
	{"POST", "c/account/3pid/unbind", Stream, ""},
	{"POST", "c/account/3pid/email/requestToken", Stream, ""},
	{"POST", "c/account/3pid/msisdn/requestToken", Stream, ""},
	{"GET", "c/capabilities", Stream, ""},
	{"GET", "c/devices", Stream, ""},
	{"GET PUT", "c/devices/{device}", Stream, ""},
	{"DELETE", "c/devices/{device}", EndDevice, ""},
	{"POST", "c/delete_devices", EndDevices, ""},
	{"GET", "c/profile/{user}", Stream, ""},
	{"GET DELETE", "c/profile/{user}/{field}", Stream, ""},
	{"PUT", "c/profile/{user}/{field}", SetProfile, ""},
	{"GET PUT", "c/presence/{user}/status", Stream, ""},
	{"POST", "c/user_directory/search", Stream, ""},
	{"POST", "c/user/{user}/filter", Filter, ""},
	{"GET", "c/user/{user}/filter/{filter}", FilterOf, ""},
	{"POST", "c/user/{user}/openid/request_token", Stream, ""},
	{"GET PUT", "c/user/{user}/account_data/{type}", Stream, ""},
	{"GET PUT", "c/user/{user}/rooms/{room}/account_data/{type}", Stream, ""},
	{"GET", "c/user/{user}/rooms/{room}/tags", Stream, ""},
	{"PUT DELETE", "c/user/{user}/rooms/{room}/tags/{tag}", Stream, ""},
	{"GET", "c/voip/turnServer", Stream, ""},

	// The client's own end-to-end encryption, for rooms that are none of ours.
	{"POST", "c/keys/upload", UploadKeys, ""},
	{"POST", "c/keys/query", Stream, ""},
	{"POST", "c/keys/claim", Stream, ""},
	{"GET", "c/keys/changes", Stream, ""},
	{"POST", "c/keys/device_signing/upload", Stream, ""},
	{"POST", "c/keys/signatures/upload", Stream, ""},
	{"PUT", "c/sendToDevice/{type}/{txn}", Stream, ""},
	{"GET POST", "c/room_keys/version", Stream, ""},
	{"GET PUT DELETE", "c/room_keys/version/{version}", Stream, ""},
	{"GET PUT DELETE", "c/room_keys/keys", Stream, ""},
	{"GET PUT DELETE", "c/room_keys/keys/{room}", Stream, ""},
	{"GET PUT DELETE", "c/room_keys/keys/{room}/{session}", Stream, ""},

	// Push: a pusher's events go from the homeserver to the push gateway.
	{"GET", "c/pushers", Stream, ""},
	{"POST", "c/pushers/set", Stream, ""},
	{"GET", "c/pushrules/{key}", Stream, ""},
	{"GET", "c/pushrules/{scope}/{key}", Stream, ""},
	{"GET", "c/pushrules", Stream, ""},
	{"GET PUT DELETE", "c/pushrules/{scope}/{kind}/{rule}", Stream, ""},
	{"GET PUT", "c/pushrules/{scope}/{kind}/{rule}/actions", Stream, ""},
	{"GET PUT", "c/pushrules/{scope}/{kind}/{rule}/enabled", Stream, ""},

	// Events that come.
	{"GET", "c/sync", Sync, ""},
	{"GET", "c/rooms/{room}/messages", Messages, ""},
	{"GET", "c/rooms/{room}/context/{event}", Context, ""},
	{"GET", "c/rooms/{room}/event/{event}", Event, ""},
	{"GET", "_matrix/client/v1/rooms/{room}/relations/{event}", Relations, ""},
	{"GET", "_matrix/client/v1/rooms/{room}/relations/{event}/{rel}", Relations, ""},
	{"GET", "_matrix/client/v1/rooms/{room}/relations/{event}/{rel}/{type}", Relations, ""},
	{"GET", "c/rooms/{room}/state", State, ""},
	{"GET", "c/rooms/{room}/state/{type}", StateEvent, ""},
	{"GET", "c/rooms/{room}/state/{type}/{key}", StateEvent, ""},
	{"GET", "_matrix/client/v1/rooms/{room}/threads", Threads, ""},
	{"POST", "c/search", Search, ""},
	{"GET", "c/notifications", Notifications, ""},
	{"GET", "c/events", Refused, whyNotYet},
	{"GET", "c/initialSync", Refused, whyNotYet},
	{"GET", "c/rooms/{room}/initialSync", Refused, whyNotYet},
	{"POST", "_matrix/client/unstable/org.matrix.simplified_msc3575/sync", SlidingSync, ""},

	// Events that go.
	{"PUT", "c/rooms/{room}/send/{type}/{txn}", Send, ""},
	{"PUT", "c/rooms/{room}/state/{type}", SetState, ""},
	{"PUT", "c/rooms/{room}/state/{type}/{key}", SetState, ""},
	{"PUT", "c/rooms/{room}/redact/{event}/{txn}", Redact, ""},

	// Rooms.
	{"POST", "c/createRoom", CreateRoom, ""},
	{"POST", "c/join/{room}", Join, ""},
	{"POST", "c/rooms/{room}/join", Join, ""},
	{"POST", "c/knock/{room}", Stream, ""},
	{"POST", "c/rooms/{room}/invite", Invite, ""},
	{"POST", "c/rooms/{room}/leave", Leave, ""},
	{"POST", "c/rooms/{room}/forget", Forget, ""},
	{"POST", "c/rooms/{room}/kick", Kick, ""},
	{"POST", "c/rooms/{room}/ban", Ban, ""},
	{"POST", "c/rooms/{room}/unban", Stream, ""},
	{"POST", "c/rooms/{room}/upgrade", Upgrade, ""},
	{"GET", "c/joined_rooms", Stream, ""},
	{"GET", "c/rooms/{room}/members", Members, ""},
	{"GET", "c/rooms/{room}/joined_members", Stream, ""},
	{"GET", "c/rooms/{room}/aliases", Stream, ""},
	{"GET", "_matrix/client/v1/rooms/{room}/hierarchy", Hierarchy, ""},
	{"GET", "_matrix/client/v1/rooms/{room}/timestamp_to_event", AtTime, ""},
	{"PUT", "c/rooms/{room}/typing/{user}", Stream, ""},
	{"POST", "c/rooms/{room}/receipt/{type}/{event}", Marker, ""},
	{"POST", "c/rooms/{room}/read_markers", Marker, ""},
	{"POST", "c/rooms/{room}/report", Stream, ""},
	{"POST", "c/rooms/{room}/report/{event}", Stream, ""},
	{"GET PUT DELETE", "c/directory/room/{alias}", Stream, ""},
	{"GET PUT", "c/directory/list/room/{room}", Stream, ""},
	{"GET POST", "c/publicRooms", Stream, ""},
	{"GET", "c/thirdparty/protocols", Stream, ""},
	{"GET", "c/thirdparty/protocol/{protocol}", Stream, ""},
	{"GET", "c/thirdparty/location", Stream, ""},
	{"GET", "c/thirdparty/location/{protocol}", Stream, ""},
	{"GET", "c/thirdparty/user", Stream, ""},
	{"GET", "c/thirdparty/user/{protocol}", Stream, ""},

	// Media.
	{"GET", "m/config", Stream, ""},
	{"GET", "_matrix/client/v1/media/config", Stream, ""},
	{"GET", "m/preview_url", Refused, whyPreview},
	{"GET", "_matrix/client/v1/media/preview_url", Refused, whyPreview},
	{"POST", "m/upload", UploadMedia, ""},
	{"PUT", "m/upload/{server}/{media}", Refused, whyAsync},
	{"POST", "m/create", Refused, whyAsync},
	{"GET", "m/download/{server}/{media}", DownloadMedia, ""},
	{"GET", "m/download/{server}/{media}/{name}", DownloadMedia, ""},
	{"GET", "m/thumbnail/{server}/{media}", DownloadMedia, ""},
	{"GET", "_matrix/client/v1/media/download/{server}/{media}", DownloadMedia, ""},
	{"GET", "_matrix/client/v1/media/download/{server}/{media}/{name}", DownloadMedia, ""},
	{"GET", "_matrix/client/v1/media/thumbnail/{server}/{media}", DownloadMedia, ""},
}

func build() []entry {
	roots := map[string][]string{
		"c/": {"_matrix/client/r0/", "_matrix/client/v3/"},
		"m/": {"_matrix/media/r0/", "_matrix/media/v1/", "_matrix/media/v3/"},
	}
	var out []entry
	for _, row := range rows {
		paths := []string{row.path}
		for short, long := range roots {
			if rest, ok := strings.CutPrefix(row.path, short); ok {
				paths = nil
				for _, root := range long {
					paths = append(paths, root+rest)
				}
			}
		}
		for _, path := range paths {
			out = append(out, entry{methods: row.methods, path: strings.Split(path, "/"), kind: row.kind, why: row.why})
		}
	}
	return out
}
