package account

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

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
	for n := range 3 * maxNotices {
		tell(&client.Warning{Room: "!r:x", Text: fmt.Sprint(n)})
	}
	a.Close()
	a = stored(t, path, key)
	for _, session := range []string{"ONE", "TWO"} {
		if got := strings.Split(told(session), ", "); len(got) != maxNotices || got[0] != fmt.Sprintf("other !r:x %d", 2*maxNotices) {
			t.Errorf("%s is told %d notices from %q on, want the newest %d", session, len(got), got[0], maxNotices)
		}
	}
	for n := range 3 * maxSessions {
		told(fmt.Sprint(n))
	}
	if n := len(a.notices.Told); n != maxSessions {
		t.Errorf("%d clients are remembered, want %d", n, maxSessions)
	}
}
