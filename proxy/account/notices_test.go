package account

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
)

func TestNoticesReachEachClientOnceAndLiveOverRestarts(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), storeName), newKey(t)
	a := stored(t, path, key)
	told := func(session string) string {
		t.Helper()
		list, err := a.Notices(t.Context(), id.DeviceID(session))
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, n := range list {
			if err := a.Told(t.Context(), id.DeviceID(session), []int64{n.Number}); err != nil {
				t.Fatal(err)
			}
			out = append(out, string(n.Kind)+" "+string(n.Room)+" "+string(n.User)+n.Text)
		}
		return strings.Join(out, ", ")
	}
	tell := func(u client.Update) {
		a.tell(t.Context(), u)
	}
	tell(&client.EpochChanged{Room: "!before:x", Lost: true})
	if got := told("ONE"); got != "" {
		t.Errorf("a client that is new is told %q", got)
	}
	tell(&client.EpochChanged{Room: "!usual:x", Epoch: 2})
	tell(&client.EpochChanged{Room: "!r:x", Epoch: 3, Lost: true})
	tell(&client.Warning{Room: "!r:x", Sender: "@b:x", Kind: client.IdentityWarning, Text: "in English"})
	tell(&client.Warning{Room: "!r:x", Sender: "@b:x", Kind: client.PlaintextWarning, Text: "is marked where it stands"})
	tell(&client.Warning{Room: "!r:x", Kind: client.BehindWarning, Text: "in English"})
	tell(&client.Warning{Room: "!r:x", Sender: "@c:x", Kind: client.MemberBehindWarning, Text: "in English"})
	tell(&client.Warning{Sender: "@c:x", Text: "of no room"})
	tell(&client.Message{Room: "!r:x"})
	a.Close()
	a = stored(t, path, key)
	tell(&client.Warning{Room: "!r:x", Text: strings.Repeat("ü", maxText)})
	got := told("ONE")
	if want := "healed !r:x , identity !r:x @b:x, behind !r:x , member-behind !r:x @c:x, other !r:x " + strings.Repeat("ü", maxText/2) + "…"; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	if got := told("ONE"); got != "" {
		t.Errorf("told again: %q", got)
	}
	if got := told("TWO"); got != "" {
		t.Errorf("a second client that is new is told %q", got)
	}
	for n := range 3 * maxSessions {
		told(fmt.Sprint(n))
	}
	if n := len(a.notices.Told); n != maxSessions {
		t.Errorf("%d clients are remembered, want %d", n, maxSessions)
	}
}

// TestAMemberCannotPushOutWhatMatters: whoever causes warnings without end fills
// neither a room's timeline nor the place of other notices.
func TestAMemberCannotPushOutWhatMatters(t *testing.T) {
	all := new(notices)
	for n := range int64(1000) { // a member can make commits without an end that nobody can apply
		all.add(Notice{Room: "!c:x", Kind: NoticeKind(client.NotAppliedWarning), At: n})
	}
	if len(all.All) != maxOthers {
		t.Errorf("%d notices of commits, want %d", len(all.All), maxOthers)
	}
	// What else is to be told of that room finds its place beside them, and stays.
	others := []client.WarningKind{client.LiarWarning, client.NotSentWarning, client.EncryptionWarning}
	for _, kind := range others {
		if !all.add(Notice{Room: "!c:x", Kind: NoticeKind(kind), At: 1000}) {
			t.Errorf("%s is not told", kind)
		}
	}
	for hour := range int64(10) {
		for range 20 {
			all.add(Notice{Room: "!c:x", Kind: NoticeKind(client.NotAppliedWarning), At: (hour + 1) * 2 * time.Hour.Milliseconds()})
		}
	}
	for _, kind := range others[1:] {
		if !slices.ContainsFunc(all.All, func(n Notice) bool { return n.Kind == NoticeKind(kind) }) {
			t.Errorf("%s was pushed out", kind)
		}
	}
	// That messages are missing is not pushed out by what goes first, and pushes out nothing that matters more.
	all = new(notices)
	all.add(Notice{Room: "!c:x", Kind: NoticeKind(client.NotSentWarning)})
	for hour := range int64(10) {
		at := (hour + 1) * 2 * time.Hour.Milliseconds()
		for range 20 {
			all.add(Notice{Room: "!c:x", Kind: NoticeKind(client.MissingWarning), At: at})
			all.add(Notice{Room: "!c:x", Kind: NoticeKind(client.NotAppliedWarning), At: at})
			all.add(Notice{Room: "!c:x", Kind: OtherNotice, At: at})
		}
	}
	byKind := map[NoticeKind]int{}
	for _, n := range all.All {
		byKind[n.Kind]++
	}
	if byKind[NoticeKind(client.NotSentWarning)] != 1 || byKind[NoticeKind(client.MissingWarning)] < maxOthers {
		t.Errorf("%v are kept", byKind)
	}
	all = new(notices)
	for n := range int64(1000) {
		all.add(Notice{Room: "!c:x", Kind: NoticeKind(client.MissingWarning), At: n})
	}
	if len(all.All) != maxOthers {
		t.Errorf("%d notices of missing messages in an hour, want %d", len(all.All), maxOthers)
	}
	all = new(notices)
	for n := range int64(1000) {
		all.add(Notice{Room: "!r:x", Kind: OtherNotice, At: n})
		if n == 500 {
			all.add(Notice{Room: "!r:x", Kind: IdentityNotice, User: "@here:x", At: n})
			all.add(Notice{Room: "!other:x", Kind: IdentityNotice, User: "@there:x", At: n})
		}
	}
	if len(all.All) != maxOthers+2 || all.Next != maxOthers+2 {
		t.Errorf("%d notices of %d", len(all.All), all.Next)
	}
	for n := range int64(1000) {
		room := id.RoomID(fmt.Sprintf("!%d:x", n%50))
		all.add(Notice{Room: room, Kind: OtherNotice, At: n})
		all.add(Notice{Room: room, Kind: MemberBehindNotice, At: n})
		all.add(Notice{Room: "!r:x", Kind: MemberBehindNotice, At: n})
	}
	kept, rooms := map[id.UserID]int{}, map[id.RoomID]int{}
	for _, n := range all.All {
		kept[n.User]++
		rooms[n.Room]++
	}
	if len(all.All) != maxNotices || rooms["!r:x"] > maxOfRoom || kept["@here:x"] != 1 || kept["@there:x"] != 1 {
		t.Errorf("%d notices, %d of one room, of identities %v", len(all.All), rooms["!r:x"], kept)
	}
}

// TestANoticeThatWasNotShownIsShownLater: a client may leave some out, or go away
// before it has them.
func TestANoticeThatWasNotShownIsShownLater(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), storeName), newKey(t)
	a := stored(t, path, key)
	left := func() (out []int64) {
		t.Helper()
		list, err := a.Notices(t.Context(), "ONE")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range list {
			out = append(out, n.Number)
		}
		return out
	}
	left()
	for _, room := range []id.RoomID{"!a:x", "!b:x", "!a:x", "!b:x"} {
		a.tell(t.Context(), &client.Warning{Room: room, Text: "text"})
	}
	for _, step := range []struct{ told, want []int64 }{
		{nil, []int64{0, 1, 2, 3}}, {nil, []int64{0, 1, 2, 3}}, {[]int64{1}, []int64{0, 2, 3}}, {[]int64{3, 1, 99}, []int64{0, 2}}, {[]int64{0}, []int64{2}}, {[]int64{2}, nil},
	} {
		if err := a.Told(t.Context(), "ONE", step.told); err != nil {
			t.Fatal(err)
		}
		a.Close()
		a = stored(t, path, key)
		if got := left(); !slices.Equal(got, step.want) {
			t.Errorf("after %v there are %v, want %v", step.told, got, step.want)
		}
	}
	if len(a.notices.Ahead) != 0 || a.notices.Told["ONE"] != 4 {
		t.Errorf("told up to %d and %v", a.notices.Told["ONE"], a.notices.Ahead)
	}
}

// TestANoticeKeepsWhatItsWarningTells: it is put into words when a client is told.
func TestANoticeKeepsWhatItsWarningTells(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), storeName), newKey(t)
	a := stored(t, path, key)
	if _, err := a.Notices(t.Context(), "ONE"); err != nil {
		t.Fatal(err)
	}
	a.tell(t.Context(), &client.Warning{Room: "!r:x", Kind: client.StandstillWarning, Text: "in English", Standstill: &client.Standstill{For: time.Hour, Silent: []string{"one.example"}, Admin: true}})
	a.tell(t.Context(), &client.Warning{Room: "!r:x", Kind: client.HeirsWarning, Sender: "@b:x", Servers: slices.Repeat([]string{strings.Repeat("s", 2*maxText)}, 2*maxServers), Absent: []string{"absent.example"}, Rekeyed: []string{"rekeyed.example"}, Detail: strings.Repeat("d", 2*maxText), Reason: strings.Repeat("r", 2*maxText), Rule: "a/rule"})
	a.Close()
	a = stored(t, path, key)
	list, err := a.Notices(t.Context(), "ONE")
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if s := list[0].Standstill; list[0].Kind != NoticeKind(client.StandstillWarning) || s == nil || s.For != time.Hour || !s.Admin || s.Silent[0] != "one.example" {
		t.Errorf("the standstill is kept as %+v, %+v", list[0], s)
	}
	if n := list[1]; n.User != "@b:x" || len(n.Servers) != maxServers || len(n.Servers[0]) > maxText+3 || len(n.Detail) > maxText+3 || len(n.Reason) > maxText+3 || n.Reason == "" || n.Rule != "a/rule" || !slices.Equal(n.Absent, []string{"absent.example"}) || !slices.Equal(n.Rekeyed, []string{"rekeyed.example"}) {
		t.Errorf("%d servers of %d bytes, and %d bytes, are kept", len(n.Servers), len(n.Servers[0]), len(n.Detail))
	}
}

// TestWhatWaitsIsToldOnceAnHour: however often a client tries again, and once for each reason.
func TestWhatWaitsIsToldOnceAnHour(t *testing.T) {
	a := stored(t, filepath.Join(t.TempDir(), storeName), newKey(t))
	if _, err := a.Notices(t.Context(), "ONE"); err != nil {
		t.Fatal(err)
	}
	woken := a.Changed()
	tells := func(room id.RoomID, reason string) { a.TellWaits(t.Context(), Notice{Room: room, Reason: reason}) }
	left := func() (out []string) {
		t.Helper()
		list, err := a.Notices(t.Context(), "ONE")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range list {
			out = append(out, string(n.Room)+" "+n.Reason)
		}
		return out
	}
	for range 3 {
		tells("!a:x", WaitsForEntry)
		tells("!a:x", WaitsForOther)
		tells("!b:x", WaitsForEntry)
	}
	select {
	case <-woken:
	default:
		t.Error("who waits for news is not told")
	}
	want := []string{"!a:x entry", "!a:x other", "!b:x entry"}
	if got := left(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	woken = a.Changed()
	tells("!a:x", WaitsForEntry)
	select {
	case <-woken:
		t.Error("what is known is told as news")
	default:
	}
	for i := range a.notices.All {
		a.notices.All[i].At -= time.Hour.Milliseconds()
	}
	tells("!a:x", WaitsForEntry)
	if got := left(); !slices.Equal(got, append(want, "!a:x entry")) {
		t.Errorf("after an hour told %q", got)
	}
}
