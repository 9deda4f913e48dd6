package appservice

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"html"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation/picture"
)

// ruleAdminToken counts requests for an admin's page without the token.
const ruleAdminToken = "admin/token"

// adminPages serves what an admin looks at in a browser. All of it is read from the
// database; nothing can be changed there. Who knows the token sees the rooms, their
// members and their epochs, as the module does.
func (s *Service) adminPages(mux *http.ServeMux) {
	for path, page := range map[string]http.HandlerFunc{
		"GET /_mls/{$}": s.getRoomsPage, "GET /_mls/rooms/{room}/epochs": s.getEpochs, "GET /_mls/rooms/{room}/epochs.svg": s.getEpochs,
		"GET /_mls/rooms/{room}/epochs.txt": s.getEpochs,
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			header := w.Header()
			header.Set("Content-Security-Policy", picture.ContentSecurityPolicy())
			header.Set("X-Content-Type-Options", "nosniff")
			header.Set("Referrer-Policy", "no-referrer")
			header.Set("Cross-Origin-Resource-Policy", "same-origin")
			header.Set("Cache-Control", "no-store")
			if token := tokenIn(r); !s.isAdmin(token) {
				s.metrics.Rejected(ruleAdminToken)
				header.Set("WWW-Authenticate", `Basic realm="matrix-mls", charset="UTF-8"`)
				if token == "" {
					mautrix.MMissingToken.WithMessage("Give admin.token as the password, or as a bearer token").Write(w)
				} else {
					mautrix.MUnknownToken.WithMessage("This is not admin.token; give that as the password, or as a bearer token").Write(w)
				}
				return
			}
			page(w, r)
		})
	}
}

// tokenIn is the token of a request, from the header alone; empty if there is none.
// It comes as a bearer token, or as a password with any user name: a browser asks for that.
func tokenIn(r *http.Request) string {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return ""
	}
	token, bearer := strings.CutPrefix(headers[0], "Bearer ")
	if !bearer {
		_, token, _ = r.BasicAuth()
	}
	return token
}

// isAdmin checks a token in constant time.
func (s *Service) isAdmin(token string) bool {
	if s.cfg.Admin.Token == "" {
		return false
	}
	got, want := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(s.cfg.Admin.Token))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

// getRoomsPage lists the rooms, a page at a time.
func (s *Service) getRoomsPage(w http.ResponseWriter, r *http.Request) {
	page := 1
	if q := r.URL.Query().Get("page"); q != "" {
		n, err := strconv.Atoi(q)
		if err != nil || n < 1 || n > 1_000_000 {
			mautrix.MInvalidParam.WithMessage("A page is a number from 1 on").Write(w)
			return
		}
		page = n
	}
	list, err := s.store.ListRooms(r.Context(), roomsAtOnce+1, (page-1)*roomsAtOnce)
	if err != nil {
		s.failPage(w, err)
		return
	}
	var b strings.Builder
	b.WriteString("<h1>Rooms</h1>\n<table>\n<thead><tr><th scope=\"col\">Room</th><th scope=\"col\">Status</th><th scope=\"col\">Epoch</th></tr></thead>\n<tbody>\n")
	for i, row := range list {
		if i == roomsAtOnce {
			break
		}
		name, epoch := html.EscapeString(wholeName(row.ID)), "-"
		if row.Head != "" {
			epoch = strconv.FormatUint(row.Epoch, 10)
			name = `<a href="rooms/` + html.EscapeString(url.PathEscape(string(row.ID))) + `/epochs">` + name + "</a>"
		}
		b.WriteString("<tr><td>" + name + "</td><td>" + html.EscapeString(string(row.Status)) + "</td><td>" + epoch + "</td></tr>\n")
	}
	b.WriteString("</tbody>\n</table>\n")
	if len(list) == 0 {
		b.WriteString("<p>No rooms.</p>\n")
	}
	if page > 1 {
		b.WriteString(`<p><a href="?page=` + strconv.Itoa(page-1) + "\">Page before</a></p>\n")
	}
	if len(list) > roomsAtOnce {
		b.WriteString(`<p><a href="?page=` + strconv.Itoa(page+1) + "\">Next page</a></p>\n")
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(picture.Document("Rooms of "+s.hs.ServerName(), b.String()))
}

// wholeName is a room's id as it is, so that it can be copied to a terminal, if
// all of it can be seen.
func wholeName(room id.RoomID) string {
	if strings.ContainsFunc(string(room), func(r rune) bool { return r <= ' ' || r > '~' }) {
		return picture.Name(string(room))
	}
	return string(room)
}

// getEpochs shows a room's epochs: a page, an SVG or a text.
func (s *Service) getEpochs(w http.ResponseWriter, r *http.Request) {
	p, err := EpochPicture(r.Context(), s.store, id.RoomID(r.PathValue("room")), s.hs.ServerName(), 0)
	switch {
	case errors.Is(err, ErrNoRoom):
		mautrix.MNotFound.WithMessage("The module does not know this room").Write(w)
		return
	case errors.Is(err, ErrNoGroup):
		mautrix.MNotFound.WithMessage("This room has no group yet").Write(w)
		return
	case err != nil:
		s.failPage(w, err)
		return
	}
	kind, body := "text/html; charset=utf-8", []byte(nil)
	switch {
	case strings.HasSuffix(r.URL.Path, ".svg"):
		kind, body = "image/svg+xml", p.SVG()
	case strings.HasSuffix(r.URL.Path, ".txt"):
		kind, body = "text/plain; charset=utf-8", []byte(p.Text())
	default:
		body = p.Page("<p><a href=\"../../\">Rooms</a> · <a href=\"epochs.svg\">SVG</a> · <a href=\"epochs.txt\">Text</a></p>\n")
	}
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(body)
}

func (s *Service) failPage(w http.ResponseWriter, err error) {
	s.log.Warn().Err(err).Msg("Could not make a page for an admin")
	mautrix.MUnknown.WithMessage("The module could not read its database").Write(w)
}
