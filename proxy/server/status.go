package server

import (
	"bytes"
	"context"
	"crypto/subtle"
	_ "embed"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/federation/picture"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Status is the page about the proxy, for the person who runs it.
type Status struct {
	// Token is part of the page's address, so that neither web pages nor other
	// users of the machine find it. Empty: there is no page.
	Token string
	// Where is the file that has the address.
	Where string
	// Clients is the address for clients, such as http://127.0.0.1:8009.
	Clients string
}

// StatusPath is where the status page is, without its token. It is on a listener of
// its own, [Server.ServeStatus]: what stands beside it in a browser is the proxy's.
const StatusPath = "/_mls/"

// Bounds of the status page.
const (
	statusWait     = 10 * time.Second // for what is asked of the homeserver
	maxRoomsShown  = 500
	maxMemberShown = 2000
)

// The pages are there once in each language, and differ in nothing but their words.
var (
	//go:embed status.html
	statusHTML string
	//go:embed status.de.html
	statusGerman string

	statusSources = [...]string{rewrite.English: statusHTML, rewrite.German: statusGerman}
	statusPages   = [...]*template.Template{rewrite.English: statusPage(rewrite.English), rewrite.German: statusPage(rewrite.German)}
)

func statusPage(l rewrite.Language) *template.Template {
	return template.Must(template.New("status").Funcs(template.FuncMap{
		"qr":      func(c *client.ComparisonCode) template.HTML { return qrCode(codeText(c)) },
		"state":   func(r client.RoomInfo) string { return roomState(l, r) },
		"trust":   func(m client.Member) string { return trustText(l, m) },
		"reached": func(m client.Member, head uint64) string { return reachedText(l, m, head) },
		"note":    func(m client.Member) string { return noteText(l, m) },
		"blocked": func(b client.Block) string { return blockText(l, b) },
		"where":   func(m client.Member) string { return membershipText(l, m) },
		"ordered": func(r client.RoomInfo) string { return orderedText(l, r) },
	}).Parse(statusSources[l]))
}

// isStatus tells whether a path is of the status page.
func isStatus(path string) bool {
	return path == strings.TrimSuffix(StatusPath, "/") || strings.HasPrefix(path, StatusPath)
}

// ownPage are the headers of a page of the proxy's own.
func ownPage(h http.Header) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", picture.ContentSecurityPolicy())
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// statusElsewhere says where the address of the status page is to whoever looks for
// it at the clients'.
func (s *Server) statusElsewhere(w http.ResponseWriter) {
	ownPage(w.Header())
	s.refusedPage(w, http.StatusForbidden, s.say(pageWhichAddress), s.say(pageSecret, s.o.Status.Where), "")
}

// status answers at the status page's address. Pages from elsewhere, and other
// users of this machine, lack the token; what a browser says of the page behind a
// request must not be another one.
func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	if !here(w, r) {
		return
	}
	if r.Header.Get("Service-Worker") != "" || !isStatus(r.URL.Path) {
		refuse(w, http.StatusNotFound, "M_UNRECOGNIZED", "the status page alone is here; clients have another address")
		return
	}
	ownPage(w.Header())
	w.Header().Set("Cross-Origin-Opener-Policy", "same-origin")
	site := r.Header.Get("Sec-Fetch-Site")
	rest := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, strings.TrimSuffix(StatusPath, "/")), "/")
	token, page, _ := strings.Cut(rest, "/")
	switch {
	case r.Header.Get("Origin") != "" || site != "" && site != "none" && site != "same-origin":
		s.refusedPage(w, http.StatusForbidden, s.say(pageNotFromHere), s.say(pageOpenByItself), "")
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		s.refusedPage(w, http.StatusMethodNotAllowed, s.say(pageOnlyRead), s.say(pageOnlyToBeRead), "")
	case s.o.Status.Token == "" || subtle.ConstantTimeCompare([]byte(token), []byte(s.o.Status.Token)) != 1:
		s.statusElsewhere(w)
	case page == "":
		s.overview(w, r)
	case page == "room":
		s.roomPage(w, r)
	case page == "epochs":
		s.epochsPage(w, r)
	default:
		s.refusedPage(w, http.StatusNotFound, s.say(pageNoSuch), s.say(pageNoSuchHere), "")
	}
}

// inLanguage names the language of a document.
func inLanguage(l rewrite.Language, document []byte) []byte {
	if l == rewrite.German {
		return bytes.Replace(document, []byte(`<html lang="en">`), []byte(`<html lang="de">`), 1)
	}
	return document
}

// page writes one of the pages.
func (s *Server) page(w http.ResponseWriter, status int, title, name string, data any) {
	var b bytes.Buffer
	if err := statusPages[s.o.Language].ExecuteTemplate(&b, name, data); err != nil {
		s.o.Log.Err(err).Msg("The status page cannot be written")
		status, b = http.StatusInternalServerError, *bytes.NewBufferString("<h1>" + s.say(pageBroken) + "</h1>\n")
	}
	w.WriteHeader(status)
	_, _ = w.Write(inLanguage(s.o.Language, picture.Document(title, b.String())))
}

// refusedPage writes a page that says why there is no other. Why says what the SDK
// or the system says, in English.
func (s *Server) refusedPage(w http.ResponseWriter, status int, title, text, why string) {
	s.page(w, status, title, "refused", struct{ Text, Why string }{text, why})
}

// home is the address of the overview.
func (s *Server) home() string { return StatusPath + s.o.Status.Token + "/" }

type overview struct {
	Homeserver, Reached string
	Clients             string
	Why                 string // it is not reached, as the system says it
	Accounts            []accountView
	Broken              []string
}

type accountView struct {
	*account.Status
	Trouble string
	Refused []count
	Rooms   []roomView
	More    int // rooms that are not shown
}

type count struct {
	Rule string
	N    uint64
}

type roomView struct {
	client.RoomInfo
	Link string
}

func (s *Server) overview(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), statusWait)
	defer cancel()
	o := overview{Homeserver: s.o.Homeserver.String(), Clients: s.o.Status.Clients, Broken: s.o.Accounts.Broken()}
	o.Reached, o.Why = s.reached(ctx)
	for _, a := range s.o.Accounts.All() {
		o.Accounts = append(o.Accounts, s.accountView(ctx, a))
	}
	s.page(w, http.StatusOK, "mls-proxy", "overview", o)
}

// reached says in words whether the homeserver answers, and what the system says if
// it does not.
func (s *Server) reached(ctx context.Context) (text, why string) {
	resp, err := s.ask(ctx, http.MethodGet, "/_matrix/client/versions", nil, "", nil)
	switch {
	case err != nil:
		return s.say(pageNoAnswer), redact(err)
	case resp.status != http.StatusOK:
		return s.say(pageAnswersError, strconv.Itoa(resp.status)+" "+resp.code()), ""
	}
	return s.say(pageAnswers), ""
}

func (s *Server) accountView(ctx context.Context, a *account.Account) accountView {
	v := accountView{Status: &account.Status{User: a.UserID(), Dir: a.Dir()}}
	status, err := a.Status(ctx)
	if err != nil {
		v.Trouble = plain(err)
		return v
	}
	v.Status = status
	for _, rule := range slices.Sorted(maps.Keys(status.Refused)) {
		v.Refused = append(v.Refused, count{rule, status.Refused[rule]})
	}
	all, err := a.Client().Rooms(ctx)
	if err != nil {
		v.Trouble = plain(err)
	}
	all = slices.DeleteFunc(all, func(info client.RoomInfo) bool {
		return !info.MLS || info.Membership != "join" && info.Membership != "invite"
	})
	if v.More = len(all) - maxRoomsShown; v.More > 0 {
		all = all[:maxRoomsShown]
	}
	for _, info := range all {
		v.Rooms = append(v.Rooms, roomView{RoomInfo: info, Link: s.roomLink("room", a.UserID(), info.ID)})
	}
	return v
}

func (s *Server) roomLink(page string, user id.UserID, room id.RoomID) string {
	return s.home() + page + "?" + url.Values{"user": {user.String()}, "room": {string(room)}}.Encode()
}

type roomPage struct {
	client.RoomInfo
	Home, Epochs string
	User         id.UserID
	Device       id.DeviceID
	Code         *client.ComparisonCode
	NoCode       *said
	Stands       string // that nothing becomes final any more
	Members      []client.Member
	More         int
	NoMembers    *said
	Sent         string // when the last message of this device was sent
	Delivery     []client.DeliveredTo
	MoreSent     int // devices that are not shown
}

// asked finds the account and the room that a page is about. Without, the
// person has an answer already.
func (s *Server) asked(w http.ResponseWriter, r *http.Request) (a *account.Account, info client.RoomInfo, ok bool) {
	a, err := s.o.Accounts.Get(id.UserID(r.URL.Query().Get("user")))
	if err == nil {
		info, err = a.Client().Room(r.Context(), id.RoomID(r.URL.Query().Get("room")))
	}
	if err != nil {
		s.refusedPage(w, http.StatusNotFound, s.say(pageNoRoom), s.say(pageNoRoomHere), plain(err))
		return nil, info, false
	}
	return a, info, true
}

func (s *Server) roomPage(w http.ResponseWriter, r *http.Request) {
	a, info, ok := s.asked(w, r)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), statusWait)
	defer cancel()
	p := roomPage{RoomInfo: info, Home: s.home(), Epochs: s.roomLink("epochs", a.UserID(), info.ID), User: a.UserID(), Device: a.Client().DeviceID()}
	p.Stands = s.standing(info, info.ID, a.Dir())
	var err error
	if p.Code, err = a.Client().ComparisonCode(ctx, info.ID); err != nil {
		p.NoCode = s.why(err)
	}
	if p.Members, err = a.Client().Members(ctx, info.ID); err != nil {
		p.NoMembers = s.why(err)
	}
	if p.More = len(p.Members) - maxMemberShown; p.More > 0 {
		p.Members = p.Members[:maxMemberShown]
	}
	if evt, list, err := a.Client().LastDelivery(ctx, info.ID); err == nil {
		p.Sent, p.Delivery = time.UnixMilli(evt.Timestamp).Format(time.DateTime), list
	}
	if p.MoreSent = len(p.Delivery) - maxMemberShown; p.MoreSent > 0 {
		p.Delivery = p.Delivery[:maxMemberShown]
	}
	s.page(w, http.StatusOK, roomName(info), "room", p)
}

func roomName(info client.RoomInfo) string {
	if info.Name != "" {
		return info.Name
	}
	return string(info.ID)
}

func (s *Server) epochsPage(w http.ResponseWriter, r *http.Request) {
	a, info, ok := s.asked(w, r)
	if !ok {
		return
	}
	p, err := a.Client().EpochPicture(r.Context(), info.ID)
	if err != nil {
		why := s.why(err)
		s.page(w, http.StatusConflict, roomName(info), "refused", struct {
			Text, Why string
		}{strings.TrimSuffix(s.say(pageNoPicture)+" "+why.Text, " "), why.English})
		return
	}
	before := `<p><a href="` + template.HTMLEscapeString(s.roomLink("room", a.UserID(), info.ID)) + `">` + s.say(pageBack) + `</a></p>` + "\n"
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(p.Page(before))
}

// orderedText names the servers whose modules order a room's changes, and those of the
// list that theirs is being changed to.
func orderedText(l rewrite.Language, r client.RoomInfo) string {
	text := strings.Join(r.Modules, ", ")
	if len(r.ModulesTo) > 0 {
		text += " " + sayIn(l, pageModulesTo, strings.Join(r.ModulesTo, ", "))
	}
	return text
}

// roomState says in words where the device stands in a room.
func roomState(l rewrite.Language, r client.RoomInfo) string {
	switch {
	case r.Membership == "invite":
		return sayIn(l, pageInvited)
	case r.Phase == "removed" && r.Superseded:
		return sayIn(l, pageSuperseded)
	case r.Phase == "removed":
		return sayIn(l, pageRemoved)
	case r.Phase != "member":
		return sayIn(l, pageWaitsToBeLetIn)
	}
	text := sayIn(l, pageEpoch, strconv.FormatUint(r.Epoch, 10)) + ", "
	switch r.Status {
	case federation.StatusFinal:
		text += sayIn(l, pageFinal)
	case federation.StatusAccepted, federation.StatusVotable:
		text += sayIn(l, pageAccepted)
	case federation.StatusSideBranch:
		text += sayIn(l, pageProvisional)
	case federation.StatusDisplaced:
		text += sayIn(l, pageDisplaced)
	default:
		text += sayIn(l, pageUndecided)
	}
	if len(r.Blocked) > 0 {
		text += "; " + sayIn(l, pageSendingWaits)
	}
	if r.Standstill != "" {
		text += "; " + sayIn(l, pageNothingFinal)
	}
	return text
}

// trustText says in words how sure the device is of another.
func trustText(l rewrite.Language, m client.Member) string {
	switch {
	case m.Own:
		return sayIn(l, pageThisDevice)
	case m.Device == "":
		return sayIn(l, pageNoDevice)
	}
	switch m.Verification {
	case client.VerifiedUser:
		return sayIn(l, pageVerifiedPerson)
	case client.VerifiedDevice:
		return sayIn(l, pageSignedDevice)
	case client.ChangedUser:
		return sayIn(l, pageChangedKeys)
	}
	return sayIn(l, pageNotVerified)
}

// reachedText says in words which epoch a device is known to have reached.
func reachedText(l rewrite.Language, m client.Member, head uint64) string {
	switch epoch := strconv.FormatUint(m.Epoch, 10); {
	case m.Device == "":
		return ""
	case !m.Heard:
		return sayIn(l, pageEpochNotKnown)
	case m.Epoch < head:
		return sayIn(l, pageEpochHeard, epoch)
	default:
		return sayIn(l, pageEpochNewest, epoch)
	}
}

// membershipText says in words how a member stands to the room.
func membershipText(l rewrite.Language, m client.Member) string {
	switch rooms.Membership(m.Membership) {
	case rooms.MembershipJoin:
		return sayIn(l, pageJoined)
	case rooms.MembershipInvite:
		return sayIn(l, pageAsked)
	case rooms.MembershipLeave:
		return sayIn(l, pageLeft)
	case rooms.MembershipBan:
		return sayIn(l, pageBanned)
	case rooms.MembershipKnock:
		return sayIn(l, pageKnocks)
	}
	return ""
}
