package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e/machine"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestDevicesFillTheTree(t *testing.T) {
	for _, o := range []options{{leaves: 50, perUser: 4, driven: 12}, {leaves: 51, perUser: 4, driven: 12}, {leaves: 10, perUser: 1, driven: 3}, {leaves: 5000, perUser: 4, driven: 24}} {
		o.early, o.atOnce = 50, 3
		if err := o.check(); err != nil {
			t.Fatal(err)
		}
		s := &scale{options: o}
		users, devices := 0, o.driven
		for have := o.driven; have < o.leaves; have += o.perUser {
			n := s.devicesOf(users)
			if n < 1 || n > o.perUser {
				t.Errorf("%+v: user %d has %d devices", o, users, n)
			}
			users, devices = users+1, devices+n
		}
		if devices != o.leaves {
			t.Errorf("%+v: %d devices", o, devices)
		}
	}
	for _, leaves := range []int{10, 22, 50, 200, 1000, 5000, 10_000} { // what is left out is chosen so that it fits
		if o := (options{leaves: leaves, atOnce: 3}); o.check() != nil {
			t.Errorf("%d leaves: %v", leaves, o.check())
		}
	}
	for _, o := range []options{{leaves: 10, perUser: 4, atOnce: 3}, {leaves: 50, perUser: -1, atOnce: 3}, {leaves: 50, driven: 2, atOnce: 3}, {leaves: 50, early: 100, atOnce: 3}, {leaves: 50}} {
		if err := o.check(); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// TestCounterCountsToDeviceMessages: one for each device, and the request arrives as it was.
func TestCounterCountsToDeviceMessages(t *testing.T) {
	const body = `{"messages":{"@a:x":{"D1":{"k":1},"D2":{"k":22}},"@b:x":{"D3":{}}}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil || r.Method == http.MethodPut && string(got) != body {
			t.Errorf("%s came as %q (%v)", r.URL.Path, got, err)
		}
		_, _ = io.WriteString(w, "1234567")
	}))
	defer server.Close()
	c := newCounter()
	for _, r := range []struct{ method, path, body string }{
		{http.MethodPut, "/_matrix/client/v3/sendToDevice/m.x/1", body}, {http.MethodPut, "/_matrix/client/v3/sendToDevice/" + rooms.TypeKeyPackageRequest + "/2", body}, {http.MethodPut, "/_matrix/client/v3/sendToDevice/" + rooms.TypeWelcome + "/3", body}, {http.MethodGet, "/_matrix/client/v3/sync", ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, server.URL+r.path, strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	want := traffic{Requests: 3, Up: 3 * int64(len(body)), Down: 28, ToDevice: 9, ToDeviceBytes: 3 * int64(len(`{"k":1}{"k":22}{}`)), PackagesAsked: 3, Welcomes: 3}
	if got := c.now(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestClaimsAreSplit: every device is claimed once, in requests of no more than so many, and all keys come back in one answer.
func TestClaimsAreSplit(t *testing.T) {
	const users, devices = 150, 5
	requests, asked := 0, map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Keys    claims `json:"one_time_keys"`
			Timeout int    `json:"timeout"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.Timeout != 10000 || r.Header.Get("Authorization") != "Bearer x" {
			t.Errorf("a request with %v, timeout %d and %v", err, body.Timeout, r.Header)
		}
		requests++
		out, count := claimed{claims{}, map[string]json.RawMessage{"down": json.RawMessage(`{}`)}}, 0
		for user, list := range body.Keys {
			for device, algorithm := range list {
				count++
				asked[user+device]++
				out.Keys.put(user, device, json.RawMessage(`{"key":`+string(algorithm)+`}`))
			}
		}
		if count > claimAtOnce {
			t.Errorf("a request for %d devices", count)
		}
		_ = json.NewEncoder(w).Encode(out)
	}))
	defer server.Close()
	all := claims{}
	for u := range users {
		for d := range devices {
			all.put(fmt.Sprintf("@%d:x", u), fmt.Sprint("D", d), json.RawMessage(`"signed_curve25519"`))
		}
	}
	claim := func(what claims) (got claimed) {
		t.Helper()
		raw, err := json.Marshal(map[string]any{"one_time_keys": what, "timeout": 10000})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/_matrix/client/v3/keys/claim", bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer x")
		resp, err := (&http.Client{Transport: &claimer{http.DefaultTransport}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := claim(all)
	if requests != 4 || len(asked) != users*devices || len(got.Keys) != users || len(got.Failures) != 1 {
		t.Errorf("%d requests, %d devices claimed, keys of %d users, %d failures", requests, len(asked), len(got.Keys), len(got.Failures))
	}
	for device, times := range asked {
		if times != 1 {
			t.Errorf("a key of %s was claimed %d times", device, times)
		}
	}
	for user, list := range all {
		for device := range list {
			if string(got.Keys[user][device]) != `{"key":"signed_curve25519"}` {
				t.Errorf("%s %s: got %s", user, device, got.Keys[user][device])
			}
		}
	}
	if requests = 0; len(claim(nil).Keys) != 0 || requests != 1 {
		t.Errorf("a claim of nothing took %d requests", requests)
	}
}

// TestSpentAfterARestart: a process that was started anew counts from nothing.
func TestSpentAfterARestart(t *testing.T) {
	from := moment{cpu: map[string]float64{"module-syn1": 10, "module-syn2": 3, "module-den1": 1, "syn1": 50}, pid: map[string]int{"module-syn1": 1, "module-syn2": 2, "module-den1": 3, "syn1": 4}}
	to := moment{cpu: map[string]float64{"module-syn1": 2, "module-syn2": 4, "module-den1": 5, "syn1": 51}, pid: map[string]int{"module-syn1": 11, "module-syn2": 2, "module-den1": 13, "syn1": 4}}
	if got := spent("module-", from, to); got != 8 {
		t.Errorf("the modules used %g s, want 8", got)
	}
}

// TestPeaksOutliveTheirProcesses: what a module took before it was started anew is what the report says, also of a run
// that is gone on with.
func TestPeaksOutliveTheirProcesses(t *testing.T) {
	s := &scale{options: options{dir: t.TempDir()}}
	own, err := machine.Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "module-syn1.pid"), fmt.Appendf(nil, `{"pid":%d}`, os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.ending("module-syn1"); err != nil {
		t.Fatal(err)
	}
	if err := s.save(true); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(s.path())
	if err != nil {
		t.Fatal(err)
	}
	again := new(scale)
	if err := json.Unmarshal(raw, &again.st); err != nil {
		t.Fatal(err)
	}
	if got := again.peak("module-syn1", machine.Process{Peak: 1}); got < own.Peak {
		t.Errorf("the module had %d at the most, want %d", got, own.Peak)
	}
	if got := again.peak("module-syn1", machine.Process{Peak: 1 << 50}); got != 1<<50 {
		t.Errorf("the module had %d at the most, want more", got)
	}
}

// TestShownOnce: a message that came twice, not at all, or as of somebody else is told.
func TestShownOnce(t *testing.T) {
	const room, text = id.RoomID("!room:x"), "a text"
	said := func(room id.RoomID, text, sender, device string) client.Update {
		return &client.Message{Room: room, Sender: id.UserID(sender), Device: id.DeviceID(device), Type: "m.room.message", Content: json.RawMessage(`{"msgtype":"m.text","body":"` + text + `"}`)}
	}
	right := said(room, text, "@a:x", "A")
	others := []client.Update{&client.Removed{Room: room}, said("!other:x", text, "@a:x", "A"), said(room, "another", "@a:x", "A")}
	for _, c := range []struct {
		name string
		add  []client.Update
		want string
	}{
		{"once", []client.Update{right}, ""},
		{"never", nil, "0 times"},
		{"twice", []client.Update{right, right}, "2 times"},
		{"another sender", []client.Update{said(room, text, "@b:x", "A")}, "as of @b:x A"},
		{"another device", []client.Update{right, said(room, text, "@a:x", "B")}, "as of @a:x B"},
	} {
		got := countShown(slices.Concat(others, c.add), room, text, "@a:x", "A")
		if got == "" != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// TestShortRunIsOne: it has the acts that TestLargeRoom looks at, in their order, and those of one whole.
func TestShortRunIsOne(t *testing.T) {
	s := &scale{options: options{short: true}}
	var names []string
	for _, a := range s.acts() {
		names = append(names, a.name)
	}
	for _, a := range s.acts() {
		if a.with != "" && !slices.Contains(names, a.with) {
			t.Errorf("%q belongs to %q, which is not there", a.name, a.with)
		}
	}
	at := -1
	for _, want := range []string{spoken, added, removed, restarted, afterwards, alone, returned} {
		i := slices.Index(names, want)
		if i <= at {
			t.Errorf("%q is not where it should be in %q", want, names)
		}
		at = i
	}
	if all := (&scale{}).acts(); len(all) <= len(names) {
		t.Errorf("a whole run has %d acts, a short one %d", len(all), len(names))
	}
}

// TestReportHasARowForEachAct: and no figure is lost on the way into the table.
func TestReportHasARowForEachAct(t *testing.T) {
	r := &report{Leaves: 7, Costs: []*cost{{Name: "an act", Seconds: 1.5, Events: map[string]int{"a": 2, "b": 3}, Media: 2_000_000, Traffic: traffic{ToDevice: 9, ToDeviceBytes: 1234}}}, Megolm: []*cost{{Name: "another", Seconds: 12}}}
	for _, want := range []string{"| an act | 1.50 s | 0.00 s | 0.00 s | 0.00 s | 0 B | 5 | 0 B | 2.0 MB | 9 | 1.2 kB |\n", "| another | 12 s |"} {
		if text := r.text(); !bytes.Contains([]byte(text), []byte(want)) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if got := median([]*cost{{Seconds: 3}, {Seconds: 1}, {Seconds: 2}}).Seconds; got != 2 {
		t.Errorf("the median is %g", got)
	}
}

// TestGoingOnLeavesOutWhatWasMeasured: an act that was measured is not done again; one of several that belong together is,
// until the last of them was measured; and what is measured anew takes the place of what was.
func TestGoingOnLeavesOutWhatWasMeasured(t *testing.T) {
	s := &scale{options: options{dir: t.TempDir()}}
	add, remove, ban := act{name: "add", with: "remove"}, act{name: "remove"}, act{name: "ban"}
	want := func(a act, want bool) {
		t.Helper()
		if got := s.measured(a); got != want {
			t.Errorf("%s counts as measured: %t", a.name, got)
		}
	}
	keep := func(name string, seconds float64) {
		t.Helper()
		if err := s.keep(&cost{Name: name, Seconds: seconds}); err != nil {
			t.Fatal(err)
		}
	}
	keep("add", 1)
	want(add, false)
	keep("add", 2)
	keep("remove", 3)
	want(add, true)
	want(remove, true)
	want(ban, false)
	raw, err := os.ReadFile(s.path())
	if err != nil {
		t.Fatal(err)
	}
	var st state
	if err := json.Unmarshal(raw, &st); err != nil {
		t.Fatal(err)
	}
	if len(st.Costs) != 2 || st.Costs[0].Seconds != 2 || st.Costs[1].Name != "remove" {
		t.Errorf("written down: %+v", st.Costs)
	}
}

func TestSpread(t *testing.T) {
	var all []time.Duration
	for n := 200; n >= 1; n-- {
		all = append(all, time.Duration(n)*time.Millisecond)
	}
	if got := spreadOf(all); got != (spread{Median: 100, P99: 198}) {
		t.Errorf("got %+v", got)
	}
	if got := spreadOf(all[:1]); got != (spread{200, 200}) {
		t.Errorf("of one: %+v", got)
	}
}

// TestProxyTableComparesBothWays: the proxy's figures stand in front of the homeserver's.
func TestProxyTableComparesBothWays(t *testing.T) {
	p := &proxied{
		Rooms: 3, Send: [2]spread{{12, 30}, {10, 20}}, Arrive: [2]spread{{25, 40}, {20, 41}}, First: [2]spread{{Median: 300}, {Median: 200}},
		Bytes: [2]int{2000, 1000}, Idle: 50_000_000, Peak: 60_000_000, IdleCPU: 0.01,
	}
	text := p.text()
	for _, want := range []string{
		"| /send has answered, median | 12.0 ms | 10.0 ms | +2.0 ms |\n", "| … 99 of 100 | 40.0 ms | 41.0 ms | -1.0 ms |\n",
		"| first /sync with 3 more MLS rooms, median of 5 | 300 ms, 2.0 kB | 200 ms, 1.0 kB | 1.50 |\n", "| 50.0 MB (60.0 MB) |", "| 1.0 % of one |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}
