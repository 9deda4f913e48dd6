package terminal

import (
	"encoding/json"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/mls"
)

const (
	suite1 = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	suite2 = mls.MLS_128_DHKEMP256_AES128GCM_SHA256_P256
)

// TestTailGoesOnAfterAnyUpdate: one that tail cannot show would end it.
func TestTailGoesOnAfterAnyUpdate(t *testing.T) {
	for _, u := range []client.Update{
		&client.Message{Room: "!r:one", EventID: "$e", Type: "m.room.message", Content: json.RawMessage(`{"body":"hi"}`)},
		&client.MessageMarked{Message: &client.Message{Room: "!r:one", EventID: "$e", Late: true, Removed: true}},
		&client.EpochChanged{Room: "!r:one"}, &client.EraOpened{Room: "!r:one"}, &client.SuiteChanged{Room: "!r:one"},
		&client.Undecryptable{Room: "!r:one"}, &client.Invited{Room: "!r:one"}, &client.Removed{Room: "!r:one"},
		&client.Warning{Room: "!r:one"}, &client.Redaction{Room: "!r:one"}, &client.HistoryReceived{Room: "!r:one"},
	} {
		for _, asJSON := range []bool{false, true} {
			env, stdout, _ := testEnv(t)
			shows := &tail{c: &call{env: env, json: asJSON}, only: "!r:one", shown: map[id.EventID]bool{}}
			if err := shows.show(t.Context(), u); err != nil || stdout.Len() == 0 {
				t.Errorf("%T, JSON %t: printed %q, %v", u, asJSON, stdout, err)
			}
			shows.only = "!another:one"
			stdout.Reset()
			if err := shows.show(t.Context(), u); err != nil || stdout.Len() != 0 {
				t.Errorf("%T of another room: printed %q, %v", u, stdout, err)
			}
		}
	}
}

func TestAChangeOfSuiteIsShown(t *testing.T) {
	env, stdout, _ := testEnv(t)
	shows := &tail{c: &call{env: env}, only: "!r:one"}
	if err := shows.show(t.Context(), &client.SuiteChanged{Room: "!r:one", From: suite1, To: suite2, By: "@a\x1b[2J:one"}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{suite1.String(), suite2.String(), "@a�[2J:one", "from 1 again"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("%q lacks %q", stdout, want)
		}
	}
	stdout.Reset()
	shows.c.json = true
	if err := shows.show(t.Context(), &client.SuiteChanged{Room: "!r:one", To: suite2}); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil || got["kind"] != "suite" || got["from"] != "" || got["to"] != suite2.String() {
		t.Errorf("%s, %v", stdout, err)
	}
}

func TestTheReportNamesWhoCannotFollow(t *testing.T) {
	env, stdout, _ := testEnv(t)
	report := &client.SuiteReport{From: suite1, To: suite2, Ready: 2, Missing: []client.SuiteGap{{User: "@b\x1b[2J:one", Device: "PHONE", Reason: "it has none"}}}
	(&call{env: env}).printReport(report)
	for _, want := range []string{"2 of 3 devices", "@b�[2J:one", "PHONE", "it has none", suite2.String() + " (2)"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("lacks %q:\n%s", want, stdout)
		}
	}
}

func TestWhoLacksASuiteIsNamed(t *testing.T) {
	for _, row := range []struct {
		name, want string
		in         suiteUse
	}{
		{"in use", "in use", suiteUse{now: true}},
		{"weaker, and one lacks it", "weaker than the one in use; not @b:one PHONE", suiteUse{weaker: true, lacking: []string{"@b:one PHONE"}}},
		{"many", "not a, b, c and 2 more", suiteUse{lacking: []string{"a", "b", "c", "d", "e"}}},
		{"hostile", "not @�[2J:one X", suiteUse{lacking: []string{"@\x1b[2J:one X"}}},
		{"nothing", "", suiteUse{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := row.in.note(); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}
