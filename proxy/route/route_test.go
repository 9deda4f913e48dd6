package route

import (
	"net/url"
	"strings"
	"testing"
)

func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		want         Kind
	}{
		{"GET", "/.well-known/matrix/client", WellKnown},
		{"GET", "/_matrix/client/versions", Versions},
		{"POST", "/_matrix/client/v3/login", Login},
		{"POST", "/_matrix/client/r0/login", Login},
		{"GET", "/_matrix/client/r0/sync", Sync},
		{"GET", "/_matrix/client/v3/rooms/!r:x/messages", Messages},
		{"PUT", "/_matrix/client/v3/rooms/%21r%3Ax/send/m.room.message/1", Send},
		{"PUT", "/_matrix/client/v3/rooms/!r:x/%73end/m.room.message/1", Send}, // however it is escaped
		{"PUT", "/_matrix/client/v3/rooms/!r:x/state/m.room.encryption", SetState},
		{"PUT", "/_matrix/client/v3/rooms/!r:x/state/m.room.encryption/", SetState},
		{"GET", "/_matrix/client/v3/pushrules/", Stream},
		{"GET", "/_matrix/client/v3/pushrules/global/", Stream},
		{"GET", "/_matrix/client/v3/account/whoami", Stream},
		{"GET", "/_matrix/media/r0/download/x/y", DownloadMedia},
		{"GET", "/_matrix/client/v1/media/preview_url", Refused},
		{"POST", "/_matrix/client/v3/search", Search},
		{"POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", SlidingSync},

		{"POST", "/_matrix/client/v3/rooms/!r:x/send/m.room.message", Unknown}, // no transaction id
		{"POST", "/_matrix/client/v3/rooms/!r:x/send/m.room.message/1", Unknown},
		{"PUT", "/_matrix/client/v4/rooms/!r:x/send/m.room.message/1", Unknown},
		{"PUT", "/_matrix/client/v3/rooms/!r:x/send/m.room.message/", Unknown},
		{"PUT", "/_matrix/client/v3/rooms//send/m.room.message/1", Unknown},
		{"PUT", "/_matrix/client/v3/x/../rooms/!r:x/send/m.room.message/1", Unknown},
		{"PUT", "/_matrix/client/v3/x/%2e%2e/rooms/!r:x/send/m.room.message/1", Unknown},
		{"GET", "/_matrix/client/v3/account/whoami/", Unknown},
		{"GET", "/_matrix/client/v3/%zz", Unknown},
		{"GET", "/_synapse/admin/v1/users", Unknown},
		{"GET", "/", Unknown},
		{"GET", "", Unknown},
	} {
		if got := Classify(tt.method, tt.path); got.Kind != tt.want {
			t.Errorf("Classify(%s %s) = %d, want %d", tt.method, tt.path, got.Kind, tt.want)
		}
	}
}

func TestParamsAndCanonicalPath(t *testing.T) {
	got := Classify("PUT", "/_matrix/client/v3/rooms/%21r:x/s%65nd/a%2Fb%25/t%3F1")
	if got.Params["room"] != "!r:x" || got.Params["type"] != "a/b%" || got.Params["txn"] != "t?1" {
		t.Errorf("params %q", got.Params)
	}
	if again := Classify("PUT", got.Path); again.Kind != Send || again.Path != got.Path || again.Params["type"] != "a/b%" {
		t.Errorf("the canonical path %s reads as %+v", got.Path, again)
	}
	if strings.Contains(got.Path, "%73") || !strings.Contains(got.Path, "/send/a%2Fb%25/t%3F1") {
		t.Errorf("path %s", got.Path)
	}
	if got := Classify("GET", "/_matrix/client/v3/rooms/!r:x/state/m.room.name/"); got.Kind != StateEvent || !strings.HasSuffix(got.Path, "/m.room.name/") {
		t.Errorf("empty state key: %+v", got)
	}
}

// TestEverySegmentThatNamesEventsIsRewrittenOrRefused holds the table against
// the words that lead to events: none of them goes through untouched.
func TestEverySegmentThatNamesEventsIsRewrittenOrRefused(t *testing.T) {
	events := map[string]bool{
		"sync": true, "messages": true, "context": true, "event": true, "relations": true, "threads": true, "search": true,
		"notifications": true, "events": true, "initialSync": true, "send": true, "state": true, "redact": true,
		"upload": true, "download": true, "thumbnail": true, "createRoom": true, "preview_url": true, "hierarchy": true,
	}
	// Not the word of rooms and media.
	other := map[string]bool{"user_directory/search": true, "device_signing/upload": true, "signatures/upload": true}
	seen := 0
	for _, e := range table {
		for i, s := range e.path {
			if !events[s] || i > 0 && other[e.path[i-1]+"/"+s] {
				continue
			}
			seen++
			if e.kind == Stream || e.kind == Unknown {
				t.Errorf("%s %s goes through untouched", e.methods, strings.Join(e.path, "/"))
			}
		}
	}
	if seen < 40 {
		t.Errorf("only %d paths looked at", seen)
	}
	for _, e := range table {
		if (e.kind == Refused) != (e.why != "") {
			t.Errorf("%v: a refusal needs a reason, and nothing else has one", e.path)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add("/_matrix/client/v3/rooms/!r:x/send/m.room.message/1")
	f.Add("/_matrix/client/v3/rooms/%21r/st%61te/m.room.encryption/")
	f.Fuzz(func(t *testing.T, path string) {
		for _, method := range []string{"GET", "PUT", "POST"} {
			m := Classify(method, path)
			if m.Kind == Unknown {
				continue
			}
			again := Classify(method, m.Path)
			if again.Kind != m.Kind || again.Path != m.Path {
				t.Fatalf("%q is %+v, its canonical path %+v", path, m, again)
			}
			if u, err := url.Parse("http://h" + m.Path); err != nil || u.EscapedPath() != m.Path && u.Path == "" {
				t.Fatalf("canonical path %q: %v", m.Path, err)
			}
		}
	})
}

// TestEveryPathOfTheTableIsFound: each is classified as its own row says, and no other before it takes it.
func TestEveryPathOfTheTableIsFound(t *testing.T) {
	seen := map[Path]bool{}
	for _, p := range Paths() {
		if seen[p] {
			t.Errorf("%s %s is there twice", p.Method, p.Path)
		}
		seen[p] = true
		if m := Classify(p.Method, "/"+url.PathEscape(p.Path)); m.Kind != Unknown {
			t.Errorf("%s as one segment is a %d", p.Path, m.Kind)
		}
		var path strings.Builder
		for segment := range strings.SplitSeq(p.Path, "/") {
			path.WriteString("/" + url.PathEscape(segment))
		}
		if m := Classify(p.Method, path.String()); m.Kind != p.Kind {
			t.Errorf("%s %s is a %d, want %d", p.Method, p.Path, m.Kind, p.Kind)
		}
	}
	// What a list of what users asked of such proxies names.
	for _, want := range []string{
		"GET sync", "GET rooms/{room}/messages", "GET rooms/{room}/context/{event}", "GET rooms/{room}/event/{event}", "POST search", "GET notifications",
		"PUT rooms/{room}/send/{type}/{txn}", "PUT rooms/{room}/redact/{event}/{txn}", "GET rooms/{room}/state", "GET rooms/{room}/state/{type}",
		"PUT rooms/{room}/state/{type}", "POST createRoom", "POST rooms/{room}/invite", "POST join/{room}", "POST rooms/{room}/join", "POST rooms/{room}/kick",
		"POST rooms/{room}/ban", "POST rooms/{room}/leave",
	} {
		method, path, _ := strings.Cut(want, " ")
		for _, version := range []string{"r0", "v3"} {
			if !carries(seen, method, "_matrix/client/"+version+"/"+path) {
				t.Errorf("%s of %s does not carry events", want, version)
			}
		}
	}
	for _, want := range []string{
		"GET _matrix/client/v1/rooms/{room}/relations/{event}", "GET _matrix/client/v1/rooms/{room}/threads", "POST _matrix/client/unstable/org.matrix.simplified_msc3575/sync",
		"POST _matrix/media/r0/upload", "POST _matrix/media/v3/upload", "GET _matrix/media/v3/download/{server}/{media}", "GET _matrix/media/v3/thumbnail/{server}/{media}",
		"GET _matrix/client/v1/media/download/{server}/{media}", "GET _matrix/client/v1/media/thumbnail/{server}/{media}",
	} {
		if method, path, _ := strings.Cut(want, " "); !carries(seen, method, path) {
			t.Errorf("%s does not carry events", want)
		}
	}
}

func carries(all map[Path]bool, method, path string) bool {
	for p := range all {
		if p.Method == method && p.Path == path {
			return p.Kind.Events()
		}
	}
	return false
}
