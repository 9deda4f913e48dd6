//go:build pictures

package server

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestPicturesOfTheStatusPage makes the pictures of the documentation, of people who were made up: with MLS_SCREENSHOTS set to a
// folder, Chromium paints the pages there.
func TestPicturesOfTheStatusPage(t *testing.T) {
	dir := os.Getenv("MLS_SCREENSHOTS")
	if dir == "" {
		t.Fatal("MLS_SCREENSHOTS names no folder")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	const me = "@bob:example.org"
	room := client.RoomInfo{
		ID: "!CxDPnqNVxk:example.org", Name: "Garden", MLS: true, Membership: "join", Phase: "member", Epoch: 7, Members: 4, Devices: 4, Status: federation.StatusFinal,
		Modules: []string{"example.org"}, Blocked: []client.Block{{Kind: client.BlockLeft, User: "@carol:example.net"}},
	}
	second := client.RoomInfo{ID: "!other:example.org", Name: "Family", MLS: true, Membership: "join", Phase: "member", Epoch: 31, Members: 5, Devices: 9, Status: federation.StatusAccepted, Modules: []string{"example.org", "example.net", "example.com"}}
	for _, picture := range []struct {
		file, page, size string
		l                rewrite.Language
		data             func(s *Server) any
	}{
		{"proxy-status.png", "overview", "940,700", rewrite.English, func(s *Server) any {
			return overview{Homeserver: "https://example.org", Reached: s.say(pageAnswers), Accounts: []accountView{{
				Status: &account.Status{
					User: me, Device: "QBUAZIFURK", Dir: "/home/bob/.local/share/mls-proxy/accounts/" + me, VerifiedKnown: true, Verified: true, Synced: true, Sessions: 2,
					Stock: []account.Stock{{Suite: 1, Have: 19, Want: 20, Known: true}},
				},
				Rooms: []roomView{{RoomInfo: second, Link: "x"}, {RoomInfo: room, Link: "x"}},
			}}}
		}},
		{"proxy-status-room-de.png", "room", "1000,1180", rewrite.German, func(s *Server) any {
			return roomPage{
				RoomInfo: room, Home: s.home(), Epochs: "x", User: me, Device: "QBUAZIFURK",
				Code: &client.ComparisonCode{Epoch: 7, Groups: []string{"40512", "98233", "07714", "55106", "23981", "66720", "19045", "83317", "40098", "71254", "36602", "90871"}},
				Members: []client.Member{
					{User: "@alice:example.org", Device: "GHTYAJCE", Membership: "join", Verification: client.VerifiedUser, Heard: true, Epoch: 7},
					{User: me, Device: "QBUAZIFURK", Membership: "join", Own: true, Heard: true, Epoch: 7},
					{User: "@carol:example.net", Device: "KCZFUCGSLZ", Membership: "leave", Verification: client.VerifiedDevice, Heard: true, Epoch: 5, Why: client.Why(rooms.RemoveLeft)},
					{User: "@dave:example.com", Membership: "join", Why: client.WhyNoMLS},
				},
				Sent: "2026-11-30 09:41:00", Delivery: []client.DeliveredTo{{User: "@alice:example.org", Device: "GHTYAJCE", Received: true}, {User: "@carol:example.net", Device: "KCZFUCGSLZ"}},
			}
		}},
	} {
		s := New(Options{Homeserver: &url.URL{Scheme: "https", Host: "example.org"}, Language: picture.l, Status: Status{Token: statusToken}})
		shown := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			s.page(w, http.StatusOK, picture.page, picture.page, picture.data(s))
		}))
		defer shown.Close()
		path := filepath.Join(dir, picture.file)
		cmd := exec.CommandContext(t.Context(), "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
			"--user-data-dir="+filepath.Join(t.TempDir(), "profile"), "--window-size="+picture.size, "--screenshot="+path, shown.URL)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		info, err := os.Stat(path)
		if err != nil || info.Size() > 150_000 {
			t.Errorf("%s: %+v, %v", path, info, err)
		}
	}
}
