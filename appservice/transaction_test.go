package appservice

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func request(h http.Handler, method, path, token, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func (b *bench) txn(id string, events ...string) *httptest.ResponseRecorder {
	return request(b.Handler(), http.MethodPut, "/_matrix/app/v1/transactions/"+id, "Bearer "+hsToken,
		`{"events":[`+strings.Join(events, ",")+`]}`)
}

func (b *bench) rejected(rule string) float64 {
	var out bytes.Buffer
	families, err := b.m.Registry().Gather()
	if err != nil {
		return -1
	}
	for _, f := range families {
		if f.GetName() != "mls_rejected_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			fmt.Fprintf(&out, "%s=%v\n", m.GetLabel()[0].GetValue(), m.GetCounter().GetValue())
			if m.GetLabel()[0].GetValue() == rule {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func ev(eventID, room, eventType, stateKey, content string) string {
	state := ""
	if stateKey != "-" {
		key, _ := json.Marshal(stateKey)
		state = `"state_key":` + string(key) + `,`
	}
	return fmt.Sprintf(`{"event_id":%q,"room_id":%q,"sender":"@alice:mls.test","type":%q,%s"origin_server_ts":1,"content":%s}`,
		eventID, room, eventType, state, content)
}

func invitation(eventID, room string) string {
	return ev(eventID, room, "m.room.member", "@_mls_bot:mls.test", `{"membership":"invite"}`)
}

func (b *bench) inbox(t *testing.T) (out []id.EventID) {
	t.Helper()
	rows, err := b.store.NextInbox(context.Background(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		out = append(out, r.EventID)
	}
	return out
}

func wantIDs(t *testing.T, got []id.EventID, want ...id.EventID) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("inbox (-want +got):\n%s", diff)
	}
}

func TestTransactionKeepsWhatIsOurs(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		b := newBench(t, cfg, nil, nil)
		w := b.txn("1",
			ev("$before", "!a", rooms.TypeCommit, "-", `{}`), // the room is not known yet
			invitation("$invite", "!a"),
			ev("$commit", "!a", rooms.TypeCommit, "-", `{"epoch":1}`),
			ev("$member", "!a", "m.room.member", "@bob:b.test", `{"membership":"leave"}`),
			ev("$power", "!a", "m.room.power_levels", "", `{}`),
			ev("$redaction", "!a", "m.room.redaction", "-", `{}`),
			ev("$message", "!a", "m.room.message", "-", `{"body":"x"}`),
			ev("$encrypted", "!a", "m.room.encrypted", "-", `{}`),
			ev("$topic", "!a", "m.room.topic", "", `{}`),
			ev("$elsewhere", "!b", "m.room.member", "@bob:b.test", `{"membership":"join"}`),
			ev("$otherinvite", "!b", "m.room.member", "@carol:b.test", `{"membership":"invite"}`),
		)
		if w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != "{}" {
			t.Fatalf("answer %d %s", w.Code, w.Body)
		}
		wantIDs(t, b.inbox(t), "$invite", "$commit", "$member", "$power", "$redaction")
		known, err := b.store.KnownRooms(context.Background())
		if err != nil || len(known) != 1 || known["!a"] != store.RoomInvited {
			t.Errorf("rooms = %v, %v", known, err)
		}
	})
}

func poisonNeverStopsTheQueue(t *testing.T) {
	deep := strings.Repeat("[", 20000) + strings.Repeat("]", 20000)
	for name, poison := range map[string]string{
		"not an object":          `17`,
		"null":                   `null`,
		"list":                   `[]`,
		"no event id":            `{"room_id":"!a","sender":"@a:b","type":"` + rooms.TypeCommit + `","content":{}}`,
		"event id is a number":   `{"event_id":5,"room_id":"!a","sender":"@a:b","type":"` + rooms.TypeCommit + `","content":{}}`,
		"event id too long":      ev("$"+strings.Repeat("x", 300), "!a", rooms.TypeCommit, "-", `{}`),
		"NUL in the event id":    `{"event_id":"$\u0000","room_id":"!a","sender":"@a:b","type":"` + rooms.TypeCommit + `","content":{}}`,
		"NUL in the state key":   ev("$p", "!a", "m.room.member", "\x00", `{}`),
		"content is a text":      ev("$p", "!a", rooms.TypeCommit, "-", `"x"`),
		"no content":             `{"event_id":"$p","room_id":"!a","sender":"@a:b","type":"` + rooms.TypeCommit + `"}`,
		"nested too deeply":      ev("$p", "!a", rooms.TypeCommit, "-", `{"x":`+deep+`}`),
		"event far too large":    ev("$p", "!a", rooms.TypeCommit, "-", `{"x":"`+strings.Repeat("x", 300<<10)+`"}`),
		"timestamp is absurd":    `{"event_id":"$p","room_id":"!b","sender":"@a:b","type":"x","content":{},"origin_server_ts":1e300}`,
		"invalid UTF-8":          ev("$p", "!a", rooms.TypeCommit, "-", "{\"x\":\"\xff\xfe\"}"),
		"lone surrogate":         ev("$p", "!c", rooms.TypeCommit, "-", `{"x":"\ud800"}`),
		"state key is an object": `{"event_id":"$p","room_id":"!a","sender":"@a:b","type":"m.room.member","state_key":{},"content":{}}`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, storetest.SQLite(t), nil, nil)
			w := b.txn("1", invitation("$i", "!a"), poison, ev("$good", "!a", rooms.TypeCommit, "-", `{}`))
			if w.Code != http.StatusOK {
				t.Fatalf("answer %d %s: the homeserver would repeat it for ever", w.Code, w.Body)
			}
			wantIDs(t, b.inbox(t), "$i", "$good")
		})
	}
}

func TestUnreadableTransactionsAreSkippedAndCounted(t *testing.T) {
	cfg := testConfig()
	cfg.Limits.TransactionBytes = 2000
	b := newBench(t, storetest.SQLite(t), cfg, nil)
	for rule, body := range map[string]string{
		ruleBodyMalformed: `{"events":[`,
		ruleBodyTooLarge:  `{"events":[],"x":"` + strings.Repeat("x", 3000) + `"}`,
	} {
		w := request(b.Handler(), http.MethodPut, "/_matrix/app/v1/transactions/1", "Bearer "+hsToken, body)
		if w.Code != http.StatusOK {
			t.Errorf("%s: answer %d", rule, w.Code)
		}
		if got := b.rejected(rule); got != 1 {
			t.Errorf("%s counted %v times, want 1", rule, got)
		}
		if !b.skipped.Swap(false) {
			t.Errorf("%s: rooms are not compared with their history after a skipped transaction", rule)
		}
	}
	refusals, err := b.store.Refusals(context.Background(), 10)
	if err != nil || len(refusals) != 2 {
		t.Errorf("%d refusals noted, %v", len(refusals), err)
	}
}

func TestTransactionFailsOnlyWithStorage(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	if w := b.txn("1", invitation("$i", "!a")); w.Code != http.StatusServiceUnavailable {
		t.Errorf("answer %d with the database gone, want 503 so that the homeserver repeats it", w.Code)
	}
	if w := b.txn("2", ev("$m", "!a", "m.room.message", "-", `{}`)); w.Code != http.StatusOK {
		t.Errorf("answer %d for events that need no database", w.Code)
	}
}

func TestOtherEndpoints(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	for _, row := range []struct {
		method, path, body string
		want               int
		code               string
	}{
		{"POST", "/_matrix/app/v1/ping", `{"transaction_id":"x"}`, 200, ""},
		{"POST", "/_matrix/app/v1/ping", `nonsense`, 400, "M_NOT_JSON"},
		{"GET", "/_matrix/app/v1/users/@_mls_x:mls.test", "", 404, "M_NOT_FOUND"},
		{"GET", "/_matrix/app/v1/rooms/%23_mls_x:mls.test", "", 404, "M_NOT_FOUND"},
		{"GET", "/_matrix/mau/live", "", 200, ""},
		{"GET", "/_matrix/mau/ready", "", 503, ""},
		{"GET", "/metrics", "", 200, ""},
		{"GET", "/_matrix/app/v1/transactions/1", "", 404, "M_UNRECOGNIZED"},
		{"GET", "/", "", 404, "M_UNRECOGNIZED"},
		{"POST", "/_matrix/client/v3/login", "{}", 404, "M_UNRECOGNIZED"},
	} {
		w := request(b.Handler(), row.method, row.path, "Bearer "+hsToken, row.body)
		if w.Code != row.want || !strings.Contains(w.Body.String(), row.code) {
			t.Errorf("%s %s: %d %s, want %d %s", row.method, row.path, w.Code, w.Body, row.want, row.code)
		}
	}
}

func TestInvitationsOfStrangersAreDeclined(t *testing.T) {
	cfg := testConfig()
	cfg.Rooms.InviteFrom = []string{"other.test"}
	b := newBench(t, storetest.SQLite(t), cfg, nil)
	if w := b.txn("1", invitation("$i", "!a"), ev("$c", "!a", rooms.TypeCommit, "-", `{}`)); w.Code != http.StatusOK {
		t.Fatal(w.Code)
	}
	wantIDs(t, b.inbox(t))
	if got := <-b.declines; got != "!a" {
		t.Errorf("declined %s", got)
	}
	if got := b.rejected(ruleInviteNotAccepted); got != 1 {
		t.Errorf("counted %v refusals", got)
	}
}

func TestRoomsAreBounded(t *testing.T) {
	cfg := testConfig()
	cfg.Rooms.Maximum = 2
	b := newBench(t, storetest.SQLite(t), cfg, nil)
	b.txn("1", invitation("$1", "!a"), invitation("$2", "!b"), invitation("$3", "!c"), invitation("$4", "!a"))
	wantIDs(t, b.inbox(t), "$1", "$2", "$4")
}

func TestEventsOfAnUnknownRoomStartAComparison(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	b.txn("1", ev("$c", "!lost", rooms.TypeCommit, "-", `{}`))
	select {
	case <-b.reconcile:
	default:
		t.Fatal("nothing asked for a comparison with the homeserver's rooms")
	}
	b.hs.joined = []id.RoomID{"!lost"}
	if err := b.reconcileRooms(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.txn("2", ev("$d", "!lost", rooms.TypeCommit, "-", `{}`))
	wantIDs(t, b.inbox(t), "$d")
}

func TestPanicInARequestIsCaught(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	h := b.recovered(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("planted") }))
	if w := request(h, http.MethodGet, "/", "", ""); w.Code != http.StatusInternalServerError {
		t.Errorf("answer %d", w.Code)
	}
	if n, err := testutil.GatherAndCount(b.m.Registry(), "mls_panics_total"); err != nil || n != 1 {
		t.Errorf("panics are not counted: %d, %v", n, err)
	}
}

func TestScanEventsAgreesWithTheDecoder(t *testing.T) {
	for _, body := range []string{
		`{}`, `{"events":[]}`, `{"events":[{"a":1}]}`, ` { "events" : [ {"a":[1,2]} , {"b":"],}"} ] , "x":[1] } `,
		`{"x":{"events":[1,2]},"events":[{"c":"\"events\":[\\"}]}`, `{"events":[{"a":"\\"},{"b":1}]}`,
		`{"ephemeral":[{"events":[9]}],"events":[1,"two",null,[3]]}`,
	} {
		var want struct {
			Events []json.RawMessage `json:"events"`
		}
		if err := json.Unmarshal([]byte(body), &want); err != nil {
			t.Fatal(err)
		}
		got, err := scanEvents([]byte(body))
		if err != nil || len(got) != len(want.Events) {
			t.Errorf("%s: %d elements, %v, want %d", body, len(got), err, len(want.Events))
			continue
		}
		for i := range got {
			if strings.TrimSpace(string(got[i])) != string(want.Events[i]) {
				t.Errorf("%s: element %d is %s, want %s", body, i, got[i], want.Events[i])
			}
		}
	}
	for _, body := range []string{``, `[]`, `x`, `{"events":[`, `{"events":["`, `"{"`, `{"events":[{"a":1}`} {
		if _, err := scanEvents([]byte(body)); err == nil {
			t.Errorf("%q was taken for a transaction", body)
		}
	}
}

func FuzzTransactionEvents(f *testing.F) {
	f.Add([]byte(`{"events":[{"a":1},{"b":"\""}]}`))
	f.Add([]byte(`{"events":[` + strings.Repeat("[", 50)))
	f.Fuzz(func(t *testing.T, body []byte) {
		events, err := transactionEvents(body)
		if err != nil {
			return
		}
		total := 0
		for _, e := range events {
			total += len(e)
		}
		if total > len(body) {
			t.Errorf("%d bytes out of %d", total, len(body))
		}
	})
}

func TestTransactionNoticesAServerThatSpeaksAgain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		b := newBench(t, cfg, nil, nil)
		b.filter.add("!a")
		var at time.Duration
		b.clock = func() time.Duration { return at }
		say := func(id, room, sender string) []id.RoomID {
			b.txn(id, strings.Replace(ev("$"+id, room, "m.room.encrypted", "-", `{}`), "@alice:mls.test", sender, 1))
			b.engine.stirred = nil
			l := &loop{Service: b.Service}
			if _, err := l.tick(context.Background()); err != nil {
				t.Fatal(err)
			}
			return b.engine.stirred
		}
		if got := say("1", "!a", "@bob:far.test"); len(got) > 0 {
			t.Errorf("a server heard for the first time stirs %v", got)
		}
		at += stirSilence - 1
		if got := say("2", "!a", "@bob:far.test"); len(got) > 0 {
			t.Errorf("a server heard all the time stirs %v", got)
		}
		at += stirSilence
		if got := say("3", "!a", "@alice:mls.test"); len(got) > 0 {
			t.Errorf("the own server stirs %v", got)
		}
		if got := say("4", "!unknown", "@bob:far.test"); len(got) > 0 {
			t.Errorf("an unknown room is compared: %v", got)
		}
		if got := say("5", "!a", "@carol:far.test"); len(got) != 1 || got[0] != "!a" {
			t.Errorf("a server that speaks after %v stirs %v, want the room", stirSilence, got)
		}
		if got := say("6", "!a", "@carol:far.test"); len(got) > 0 {
			t.Errorf("it stirs again: %v", got)
		}
	})
}
