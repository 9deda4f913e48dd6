package server

import (
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/matrix-mls/matrix-mls/proxy/account"
)

// A login token is good once, and two devices have to log in. So a browser that
// a client sends to single sign-on goes there twice: first it comes back to the
// proxy, whose device logs in, then to the client.

// ssoPath is where the browser comes back to; what follows is good once.
const ssoPath = StatusPath + "login/"

const (
	ssoTime  = 15 * time.Minute // for a login at the homeserver's pages
	maxLogon = 100              // logins under way
)

// browsers remembers where those go on that are at the homeserver's pages.
type browsers struct {
	mu    sync.Mutex
	to    map[string]browser
	order []string
}

type browser struct {
	to    string
	until time.Time
}

// send notes where a browser goes on and returns a name for it.
func (b *browsers) send(to string, now time.Time) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.to == nil {
		b.to = map[string]browser{}
	}
	name := rand.Text()
	b.to[name] = browser{to, now.Add(ssoTime)}
	b.order = append(b.order, name)
	for len(b.order) > maxLogon {
		delete(b.to, b.order[0])
		b.order = b.order[1:]
	}
	return name
}

// back finds out where a browser goes on, once.
func (b *browsers) back(name string, now time.Time) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	found, ok := b.to[name]
	delete(b.to, name)
	return found.to, ok && now.Before(found.until)
}

// sso sends a browser to the homeserver's single sign-on, for the MLS device.
func (s *Server) sso(w http.ResponseWriter, r *http.Request) {
	// Any page can have a browser ask for pictures, which would push out the logins under way.
	for name, want := range map[string]string{"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"} {
		if got := r.Header.Get(name); got != "" && got != want {
			refuse(w, http.StatusForbidden, "M_FORBIDDEN", "a login is a page of its own in the browser, and no part of another")
			return
		}
	}
	query := r.URL.Query()
	if query.Get("redirectUrl") == "" {
		refuse(w, http.StatusBadRequest, "M_MISSING_PARAM", "the address to come back to (redirectUrl) is missing")
		return
	}
	page := *s.o.Homeserver
	page.RawPath = strings.TrimRight(page.EscapedPath(), "/") + pathOf(r.Context())
	page.Path, _ = url.PathUnescape(page.RawPath)
	page.RawQuery = query.Encode()
	name := s.browsers.send(page.String(), time.Now())
	query.Set("redirectUrl", base(r)+ssoPath+name)
	page.RawQuery = query.Encode()
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, page.String(), http.StatusFound)
}

// ssoBack takes the login token for the MLS device, and sends the browser on for
// the client's. Who does not know the name of a login that began here cannot
// hand the proxy a token of another account.
func (s *Server) ssoBack(w http.ResponseWriter, r *http.Request) {
	ownPage(w.Header())
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", "GET")
		s.refusedPage(w, http.StatusMethodNotAllowed, s.say(pageOnlyBrowsers), s.say(pageEndOfLogin), "")
		return
	}
	token := r.URL.Query().Get("loginToken")
	if token == "" {
		s.refusedPage(w, http.StatusBadRequest, s.say(pageNoLogin), s.say(pageNoToken), "")
		return
	}
	to, ok := s.browsers.back(strings.TrimPrefix(r.URL.Path, ssoPath), time.Now())
	if !ok {
		s.refusedPage(w, http.StatusForbidden, s.say(pageNoneUnderWay), s.say(pageGoodOnce), "")
		return
	}
	if _, err := s.o.Accounts.LoginToken(r.Context(), token); err != nil {
		s.o.Log.Warn().Str("error", redact(err)).Msg("The MLS device could not be made")
		text := pageDeviceNotMade
		if errors.Is(err, account.ErrUnavailable) {
			text = pageDeviceNotUsable
		}
		s.refusedPage(w, http.StatusBadGateway, s.say(pageLoginFailed), s.say(text), "")
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}
