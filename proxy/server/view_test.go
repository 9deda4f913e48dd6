package server

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// readings is a View whose events become readable as a test goes on.
type readings map[id.EventID]rewrite.Reading

func (readings) MLS(id.RoomID) bool { return true }
func (r readings) Read(_ id.RoomID, event id.EventID, _ int64) rewrite.Reading {
	if got, ok := r[event]; ok {
		return got
	}
	return rewrite.Reading{Later: true}
}

func TestANoticeIsReplacedOnceWhenItsMessageCanBeRead(t *testing.T) {
	s, view, tag, other := newShown(), readings{}, [32]byte{1}, [32]byte{2}
	later := func(event string) rewrite.Event {
		return rewrite.Event{ID: id.EventID(event), Sender: "@a:x", Notice: true, Later: true}
	}
	s.note(tag, "!r:x", []rewrite.Event{later("$1"), later("$2"), {ID: "$read", Sender: "@a:x"}, {ID: "$never", Sender: "@a:x", Notice: true}})
	s.note(tag, "!r:x", []rewrite.Event{later("$1")}) // shown again
	s.note(other, "!r:x", []rewrite.Event{later("$1")})
	if out, _ := s.readable(tag, view); len(out) != 0 {
		t.Errorf("nothing can be read, and %d are replaced", len(out))
	}
	text := rewrite.Reading{State: rewrite.Opened, Sender: "@a:x", Type: "m.room.message", Content: json.RawMessage(`{"body":"x"}`)}
	view["$1"], view["$read"], view["$never"] = text, text, text
	forged := text
	forged.Sender = "@evil:x"
	view["$2"] = forged
	out, with := s.readable(tag, view)
	if len(out) != 1 || out[0].event.ID != "$1" || string(with[0].Content) != `{"body":"x"}` {
		t.Errorf("replaced: %+v with %+v", out, with)
	}
	if out, _ := s.readable(tag, view); len(out) != 0 {
		t.Errorf("replaced twice: %+v", out)
	}
	if out, _ := s.readable(other, view); len(out) != 1 {
		t.Errorf("the other session got %d", len(out))
	}
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	shown, sent, sessions := newShown(), newSent(), newSessions()
	for i := range 3 * maxSent {
		event := id.EventID(fmt.Sprintf("$%d", i))
		tag := [32]byte{byte(i), byte(i >> 8), byte(i >> 16)}
		shown.note([32]byte{}, "!r:x", []rewrite.Event{{ID: event, Notice: true, Later: true}})
		sent.note([32]byte{}, "!r:x", event, "t")
		sessions.put(tag, owner{user: "@a:x"})
	}
	if n := len(shown.all[[32]byte{}]); n != maxShown {
		t.Errorf("%d notices, want %d", n, maxShown)
	}
	if len(sent.txns) != maxSent || len(sent.order) != maxSent {
		t.Errorf("%d transactions", len(sent.txns))
	}
	if len(sessions.owners) != maxOwners || len(sessions.order) != maxOwners {
		t.Errorf("%d owners", len(sessions.owners))
	}
}

func standstill(s client.Standstill) account.Notice {
	return account.Notice{Kind: account.NoticeKind(client.StandstillWarning), Room: "!r:x", Standstill: &s}
}

// TestEachKindOfWarningIsToldInEachLanguage: what the SDK can name is in the catalogue, and nothing that it says in words of
// its own is among it.
func TestEachKindOfWarningIsToldInEachLanguage(t *testing.T) {
	source, err := os.ReadFile("../../client/updates.go")
	if err != nil {
		t.Fatal(err)
	}
	kinds := regexp.MustCompile(`WarningKind = "([a-z-]+)"`).FindAllSubmatch(source, -1)
	if len(kinds) < 15 {
		t.Fatalf("%d kinds of warnings were found", len(kinds))
	}
	for _, kind := range kinds {
		n := standstill(client.Standstill{Silent: []string{"one.example"}})
		n.Kind, n.User, n.Servers, n.Detail, n.Text = account.NoticeKind(kind[1]), "@b:x", []string{"one.example"}, "a reason in English", "only in English"
		n.Rule = "matrix/some-rule"
		if client.WarningKind(n.Kind) == client.PlaintextWarning {
			continue // the event itself is marked
		}
		switch client.WarningKind(n.Kind) {
		case client.OtherKeysWarning, client.MissingWarning:
			n.Detail = "7" // the epoch; how many
		}
		reasons := map[client.WarningKind][]string{
			client.NotReadyWarning: {"", "another", client.WaitsForReady, client.WaitsForAccept, client.WaitsForFinal},
			client.NotSentWarning:  {"M_FORBIDDEN", "M_TOO_LARGE"},
		}[client.WarningKind(n.Kind)]
		if reasons == nil {
			reasons = []string{""}
		}
		told := map[string]string{}
		for _, n.Reason = range reasons {
			english, german := noticeText(rewrite.English, n, "/dir"), noticeText(rewrite.German, n, "/dir")
			if strings.Contains(english+german, "English") || english == german {
				t.Errorf("%s for %q is told as %q and %q", n.Kind, n.Reason, english, german)
			}
			if before, is := told[german]; is && before != "" {
				t.Errorf("%s is told for %q as for %q", n.Kind, n.Reason, before)
			}
			told[german] = n.Reason
		}
	}
}

func TestNoticesAboutRoomsSayWhatToDo(t *testing.T) {
	for _, row := range []struct {
		l    rewrite.Language
		n    account.Notice
		want []string
	}{
		{rewrite.English, account.Notice{Kind: account.IdentityNotice, User: "@b:x"}, []string{"The keys of @b:x are not", "--state '/dir' verify accept @b:x"}},
		{rewrite.German, account.Notice{Kind: account.IdentityNotice, User: "@b:x"}, []string{"Die Schlüssel von @b:x", "--state '/dir' verify accept @b:x"}},
		{rewrite.English, account.Notice{Kind: account.IdentityNotice, User: "@b;reboot:x"}, []string{`The keys of "@b;reboot:x" are not`, "verify accept @USER"}},
		{rewrite.English, account.Notice{Kind: account.MemberBehindNotice, User: "@b\u202e\u2028run\u00a0this:x"}, []string{`that "@b\u202e\u2028run\u00a0this:x" made`}},
		{rewrite.English, account.Notice{Kind: account.OtherNotice, Text: "a\u2028run\n\u202ethis"}, []string{"encryption: a run  this"}},
		{rewrite.English, account.Notice{Kind: account.HealedNotice}, []string{"It is one again"}},
		{rewrite.German, account.Notice{Kind: account.HealedNotice}, []string{"Es ist wieder einer"}},
		{rewrite.English, account.Notice{Kind: account.BehindNotice}, []string{"joins again by itself"}},
		{rewrite.German, account.Notice{Kind: account.MemberBehindNotice, User: "@b:x"}, []string{"dieses Raums durch @b:x nicht folgen"}},
		{rewrite.English, account.Notice{Kind: account.OtherNotice, Text: "the text"}, []string{"About this room's encryption: the text"}},
		{rewrite.English, standstill(client.Standstill{For: 12 * time.Minute, Silent: []string{"one.example", "t\u202ewo"}, Servers: []string{"three.example"}, Admin: true}), []string{
			"for 12 minutes", `modules of one.example, "t\u202ewo".`, "you, an admin", "mls-proxy --state '/dir' era '!r:x' three.example"}},
		{rewrite.German, standstill(client.Standstill{For: 75 * time.Minute, Silent: []string{"one.example"}, Servers: []string{"three.example"}, Heir: true}), []string{
			"seit 75 Minuten", "Modulen von one.example", "als Erbe", "mls-proxy --state '/dir' era '!r:x' three.example"}},
		{rewrite.German, standstill(client.Standstill{Silent: []string{"one.example"}, Admin: true}), []string{"als Admin", "era '!r:x' SERVER, mit dem Namen"}},
		{rewrite.English, account.Notice{Kind: account.WaitsNotice, Reason: string(client.BlockDevice), User: "@b\u202erun:x", Detail: "B\nB"}, []string{"waits, and goes out by itself", `The device "B\nB" of "@b\u202erun:x" fails`}},
		{rewrite.German, account.Notice{Kind: account.WaitsNotice, Reason: account.WaitsForVerification}, []string{"wartet und geht von selbst hinaus", "--state '/dir' verify --recovery-key"}},
		{rewrite.German, account.Notice{Kind: account.WaitsNotice, Reason: account.WaitsForLogin}, []string{"--state '/dir' login"}},
		{rewrite.German, account.Notice{Kind: account.WaitsNotice, Reason: account.WaitsForEntry}, []string{"Gerät eines Mitglieds"}},
		{rewrite.German, account.Notice{Kind: account.WaitsNotice, Reason: account.WaitsForSuite}, []string{"Cipher-Suite"}},
		{rewrite.German, account.Notice{Kind: account.WaitsNotice, Reason: "of a later version"}, []string{"noch nicht geantwortet"}},
		{rewrite.German, standstill(client.Standstill{For: 10 * time.Minute, Silent: []string{"one.example"}}), []string{"seit 10 Minuten", "kann ein Admin oder ein Erbe"}},
		{rewrite.German, standstill(client.Standstill{Admin: true}), []string{"Die meisten Module", "mls-proxy --state '/dir' epochs '!r:x'"}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.KeyLostWarning), Room: "!r'$(reboot):x"}, []string{"das Verb repair von mls-proxy"}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.UnvouchedWarning), Room: "!r:x", User: "@b:x", Servers: []string{"one.example", "two.example"}}, []string{"durch @b:x bestätigen", "era '!r:x' one.example two.example"}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.NoAcceptWarning)}, []string{"wartet, bis das Modul antwortet"}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.NoAcceptWarning), Servers: []string{"one.example", "t\u202ewo"}}, []string{`der Module von one.example, "t\u202ewo".`}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.NotReadyWarning), Reason: client.WaitsForReady, Servers: []string{"one.example"}}, []string{"Die von one.example haben nicht gesagt"}},
		{rewrite.English, account.Notice{Kind: account.NoticeKind(client.NotReadyWarning), Room: "!r:x", Reason: client.WaitsForReady, Servers: []string{"one.example", "two.example", "t\u202ehree"}, Absent: []string{"two.example"}, Rekeyed: []string{"t\u202ehree"}}, []string{
			"Those of one.example have not said", "Those of two.example are not in the room: invite @_mls_bot:two.example.", `Those of "t\u202ehree" announce other keys`, "mls-proxy --state '/dir' repair '!r:x'; and", "shown, on the proxy's machine, by: mls-proxy --state '/dir' sequencers '!r:x'"}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.NotReadyWarning), Room: "!r:x", Reason: client.WaitsForAccept, Servers: []string{"one.example", "two.example"}, Absent: []string{"two.example"}, Rekeyed: []string{"one.example"}}, []string{
			"die jetzigen haben sie nicht angenommen. Die von two.example sind nicht im Raum: Laden Sie @_mls_bot:two.example ein.", "Die von one.example nennen andere Schlüssel", "mls-proxy --state '/dir' sequencers '!r:x'"}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.PolicyWarning), Rule: "matrix/policy-not-entitled"}, []string{"kein Admin"}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.PolicyWarning), Rule: "matrix/a\nrule"}, []string{"nach der Regel matrix/a rule."}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.ProofWarning), User: "@b:x"}, []string{"Was das Modul @b:x von", "(unknown)"}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.NotSentWarning), Reason: "M_UNKNOWN", Detail: "it\nsaid this"}, []string{"Seine Antwort: M_UNKNOWN it said this"}},
		{rewrite.English, account.Notice{Kind: account.NoticeKind(client.NotSentWarning), Detail: "of our own"}, []string{"could not be sent, and is not tried again. The reason: of our own"}},
		{rewrite.English, account.Notice{Kind: account.NoticeKind(client.MissingWarning), User: "@b:x", Reason: "PHO\u202eNE", Detail: "2"}, []string{`that @b:x sent here from the device "PHO\u202eNE" has not come`, "missing: 2)"}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.MissingWarning), User: "@b:x", Reason: "PHONE", Detail: "1"}, []string{"das @b:x hier vom Gerät PHONE gesendet hat", "Nachrichten: 1)"}},
		{rewrite.English, account.Notice{Kind: account.NoticeKind(client.SetBackWarning), User: "@b:x"}, []string{"A membership of @b:x in this room was forgotten"}},
		{rewrite.English, account.Notice{Kind: account.NoticeKind(client.SetBackWarning), Detail: "12: @b:x, @c\u202e:x, …"}, []string{"forgotten (how many, and whose first: 12: @b:x, @c :x, …)"}},
		{rewrite.German, account.Notice{Kind: account.NoticeKind(client.SetBackWarning), Detail: "12: @b:x, …"}, []string{"vergessen worden (wie viele, und wessen zuerst: 12: @b:x, …)"}},
		{rewrite.English, account.Notice{Kind: account.NoticeKind(client.StandstillWarning), Text: "from a file of before"}, []string{"encryption: from a file of before"}},
	} {
		got := noticeText(row.l, row.n, "/dir")
		for _, want := range row.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q lacks %q", row.n.Kind, got, want)
			}
		}
	}
}

// Whose a token is is asked again beside what goes on, once, before what is known of it is too old.
func TestWhoseATokenIsIsAskedAgainInTime(t *testing.T) {
	s, tag, now := newSessions(), [32]byte{1}, time.Now()
	if _, known, again := s.get(tag); known || again {
		t.Error("an unknown token is known")
	}
	for _, row := range []struct {
		age          time.Duration
		known, again bool
	}{{0, true, false}, {ownerFresh + time.Second, true, true}, {ownerTime + time.Second, false, false}} {
		s.put(tag, owner{user: "@a:x", asked: now.Add(-row.age)})
		if _, known, again := s.get(tag); known != row.known || again != row.again {
			t.Errorf("after %s: known %v, asked again %v", row.age, known, again)
		}
		if _, known, again := s.get(tag); known != row.known || again {
			t.Errorf("once more after %s: known %v, asked again %v", row.age, known, again)
		}
	}
	s.put(tag, owner{user: "@a:x", asked: now.Add(-ownerTime)})
	s.renew(tag, owner{user: "@a:x", asked: now})
	if _, known, _ := s.get(tag); !known {
		t.Error("what was asked again is not kept")
	}
	s.drop(tag)
	s.renew(tag, owner{user: "@a:x", asked: now})
	if _, known, _ := s.get(tag); known {
		t.Error("a token that was dropped meanwhile is known again")
	}
}
