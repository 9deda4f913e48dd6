package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Bounds of what is read from the homeserver to fill one answer.
const (
	maxPages = 20
	maxFill  = 200 // events put into one window of a /sync
	maxLimit = 1000

	usualLimit = 10 // what homeservers put into a window where the client does not say
	fillAtOnce = 4
)

// sync answers GET /sync. While the homeserver has no news, a message that could
// not be read before and can be now is an answer of its own.
func (s *Server) sync(w http.ResponseWriter, r *http.Request, sess *session) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if err := sess.account.Ready(ctx); err != nil {
		wait(w, "the MLS device has not heard from the homeserver since the proxy began")
		return
	}
	v := s.view(ctx, sess)
	query, asked, err := s.filtered(r, sess)
	if err != nil {
		s.o.Log.Err(err).Msg("A client's filter cannot be read")
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the stored filter cannot be read")
		return
	}
	since := query.Get("since")
	from := func(token string) string { return token + " " + query.Get("filter") } // another filter may have left out what came before
	takes := func(room id.RoomID) bool { return asked.TakesNotice(room, sess.user) }
	resp, err := s.news(ctx, sess, func() (*reply, error) {
		return s.ask(ctx, http.MethodGet, pathOf(ctx), query, sess.token, nil)
	}, func() bool {
		// What the homeserver may have said meanwhile it says again: the
		// position stays the same.
		quiet := rewrite.Quiet(since)
		if since == "" || !s.replace(quiet, v, takes) {
			return false
		}
		s.hand(w, quiet, v)
		return true
	})
	if errors.Is(err, errAnswered) {
		return
	}
	if err != nil {
		s.failed(w, r, err)
		return
	}
	if resp.status != http.StatusOK {
		s.passed(w, resp, sess)
		return
	}
	answer, err := rewrite.ParseSync(resp.body)
	if err != nil {
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
		return
	}
	rooms := s.abreast.take(sess.tag, from(since))
	v.open(ctx, answer.Windows(), rooms)
	if asked.TakesAllSenders() { // else something may be missing before what comes next
		s.abreast.put(sess.tag, from(answer.NextBatch()), rooms)
	}
	answer.Rewrite(v, asked)
	s.fillAll(v, answer.Windows(), since, asked, lacking)
	for _, window := range answer.Windows() {
		s.shown.note(sess.tag, window.Room, window.Events)
	}
	s.counts(v, answer, asked)
	s.replace(answer, v, takes)
	s.hand(w, answer, v)
}

// news waits until the homeserver has news for a client. Meanwhile, whenever the MLS
// device has some, meanwhile may answer the client by itself: then the error is
// errAnswered.
func (s *Server) news(ctx context.Context, sess *session, ask func() (*reply, error), meanwhile func() bool) (*reply, error) {
	type result struct {
		resp *reply
		err  error
	}
	news := make(chan result, 1)
	go func() {
		resp, err := ask()
		news <- result{resp, err}
	}()
	for {
		changed := sess.account.Changed()
		if meanwhile() {
			return nil, errAnswered
		}
		select {
		case got := <-news:
			return got.resp, got.err
		case <-changed:
		}
	}
}

// replace adds to an answer what puts readable messages in the place of
// notices, and the notices about rooms that the client takes.
func (s *Server) replace(answer interface {
	Add(id.RoomID, rewrite.Event)
}, v *view, takes func(id.RoomID) bool) bool {
	notices, readings := s.shown.readable(v.sess.tag, v)
	for i, n := range notices {
		answer.Add(n.room, rewrite.Event{Raw: rewrite.Replacement(n.event, readings[i])})
	}
	return s.tell(answer, v, takes) || len(notices) > 0
}

// tell adds the notices about rooms that the client has not been told of.
func (s *Server) tell(answer interface {
	Add(id.RoomID, rewrite.Event)
}, v *view, takes func(id.RoomID) bool) bool {
	notices, err := v.sess.account.Notices(v.ctx, v.sess.device)
	if err != nil {
		s.o.Log.Err(err).Msg("The notices about rooms cannot be read")
	}
	told := false
	for _, n := range notices {
		if !takes(n.Room) {
			continue
		}
		info, err := v.sess.account.Client().Room(v.ctx, n.Room)
		if err != nil {
			continue
		}
		v.told = append(v.told, n.Number)
		if info.Membership != "join" { // it is not theirs any more
			continue
		}
		var newest id.EventID
		if last, err := v.sess.account.Client().Messages(v.ctx, n.Room, "", 1); err == nil && len(last) > 0 {
			newest = last[0].EventID
		}
		answer.Add(n.Room, rewrite.RoomNotice(v.sess.user, n.Number, n.At, newest, noticeText(v.Language(), n, v.sess.account.Dir())))
		told = true
	}
	return told
}

// hand gives a client an answer with notices about rooms. One that has gone away
// meanwhile is told of them again.
func (s *Server) hand(w http.ResponseWriter, answer interface{ Encode() ([]byte, error) }, v *view) {
	if !s.encode(w, answer) || v.ctx.Err() != nil {
		return
	}
	if err := v.sess.account.Told(v.ctx, v.sess.device, v.told); err != nil {
		s.o.Log.Err(err).Msg("It cannot be kept which notices about rooms a client has")
	}
}

// plainName is what the names of users are made of today.
const plainName = "@:abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._=-/+[]"

// noticeText says a notice in a language. Names and texts may be what a member chose.
func noticeText(l rewrite.Language, n account.Notice, dir string) string {
	shown, typed := string(n.User), string(n.User)
	if strings.ContainsFunc(shown, func(c rune) bool { return !strings.ContainsRune(plainName, c) }) {
		shown = strconv.QuoteToASCII(shown)
		typed = "@USER" // it is for a shell
	}
	switch n.Kind {
	case account.IdentityNotice:
		return l.Text(rewrite.IdentityChanged, shown, dir, typed)
	case account.HealedNotice:
		return l.Text(rewrite.Healed)
	case account.BehindNotice:
		return l.Text(rewrite.Behind)
	case account.MemberBehindNotice:
		return l.Text(rewrite.MemberBehind, shown)
	case account.WaitsNotice:
		return l.Text(rewrite.Waits, waitsText(l, n, dir))
	}
	servers := serverNames(n.Servers)
	switch client.WarningKind(n.Kind) {
	case client.NotAppliedWarning:
		return l.Text(rewrite.NotApplied, shown)
	case client.EncryptionWarning:
		return l.Text(rewrite.EncryptionChanged)
	case client.StandstillWarning:
		if n.Standstill != nil {
			return standstillText(l, n.Standstill, n.Room, dir)
		}
	case client.UnvouchedWarning:
		return l.Text(rewrite.Unvouched, shown, command(l, dir, "era", n.Room, n.Servers...))
	case client.KeyLostWarning:
		return l.Text(rewrite.KeyLost, command(l, dir, "repair", n.Room))
	case client.HeirsWarning:
		return l.Text(rewrite.HeirsEra, servers)
	case client.LiarWarning:
		return l.Text(rewrite.Liar, servers)
	case client.OtherKeysWarning:
		return l.Text(rewrite.OtherKeys, shown, printable(n.Detail))
	case client.NoAcceptWarning:
		if len(n.Servers) == 0 {
			return l.Text(rewrite.NoAccept)
		}
		return l.Text(rewrite.NoMajority, servers)
	case client.AlteredWarning:
		return l.Text(rewrite.Altered, servers)
	case client.NotReadyWarning:
		return notReadyText(l, n, dir)
	case client.PolicyWarning:
		if n.Rule == string(rooms.RulePolicyNotEntitled) {
			return l.Text(rewrite.PolicyNotYours)
		}
		return l.Text(rewrite.PolicyGivenUp, rule(n))
	case client.ProofWarning:
		return l.Text(rewrite.NotProven, shown, rule(n))
	case client.CopyWarning:
		return l.Text(rewrite.CopiedStore)
	case client.SupersededWarning:
		return l.Text(rewrite.Superseded)
	case client.MissingWarning:
		return l.Text(rewrite.MessagesMissing, shown, serverNames([]string{n.Reason}), printable(n.Detail))
	case client.AdmissionWarning:
		return l.Text(rewrite.AdmissionVoid, shown)
	case client.SetBackWarning:
		if n.User == "" {
			return l.Text(rewrite.MembershipsSetBack, printable(n.Detail))
		}
		return l.Text(rewrite.MembershipSetBack, shown)
	case client.NotSentWarning:
		switch n.Reason {
		case "M_FORBIDDEN":
			return l.Text(rewrite.NotSentForbidden)
		case "M_TOO_LARGE":
			return l.Text(rewrite.NotSentTooLarge)
		case "": // it is no answer of the homeserver's
			return l.Text(rewrite.NotSentBroken, printable(n.Detail))
		}
		return l.Text(rewrite.NotSent, printable(strings.TrimSpace(n.Reason+" "+n.Detail)))
	}
	return l.Text(rewrite.OtherWarning, printable(n.Text))
}

// rule names the rule that a warning is about: it is the same in all languages, and
// in the documentation.
func rule(n account.Notice) string {
	if n.Rule == "" { // it was kept by an earlier version
		return "unknown"
	}
	return printable(n.Rule)
}

// printable takes out of a text what turns the writing round, or begins a line.
func printable(text string) string {
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, text)
}

// serverNames quotes what is no name of a server, or of a device.
func serverNames(servers []string) string {
	out := make([]string, 0, len(servers))
	for _, s := range servers {
		if strings.ContainsFunc(s, func(c rune) bool { return !strings.ContainsRune(plainName, c) }) {
			s = strconv.QuoteToASCII(s)
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

// standstillText says that nothing in a room becomes final any more, and what its
// reader can do.
func standstillText(l rewrite.Language, s *client.Standstill, room id.RoomID, dir string) string {
	minutes := strconv.Itoa(int(s.For.Minutes()))
	if len(s.Silent) == 0 {
		return l.Text(rewrite.StandstillThere, minutes, command(l, dir, "epochs", room))
	}
	servers := s.Servers
	if len(servers) == 0 {
		servers = []string{l.Text(rewrite.ServerToName)}
	}
	text := rewrite.StandstillHeir
	switch {
	case s.Admin:
		text = rewrite.StandstillAdmin
	case !s.Heir:
		return l.Text(rewrite.StandstillMember, minutes, serverNames(s.Silent))
	}
	return l.Text(text, minutes, serverNames(s.Silent), command(l, dir, "era", room, servers...))
}

// notReadyText says whose word a change of the modules waits for, and what its reader,
// who asked for it, can do.
func notReadyText(l rewrite.Language, n account.Notice, dir string) string {
	why := ""
	say := func(text string) { why += " " + text }
	switch n.Reason {
	case client.WaitsForAccept:
		say(l.Text(rewrite.NotReadyAccept))
	case client.WaitsForFinal:
		say(l.Text(rewrite.NotReadyFinal))
	}
	silent := slices.DeleteFunc(slices.Clone(n.Servers), func(s string) bool { return slices.Contains(n.Absent, s) || slices.Contains(n.Rekeyed, s) })
	if len(silent) > 0 && n.Reason == client.WaitsForReady {
		say(l.Text(rewrite.NotReadyModules, serverNames(silent)))
	}
	if len(n.Absent) > 0 {
		var bots []string
		for _, server := range n.Absent {
			bots = append(bots, "@"+rooms.BotLocalpart+":"+server)
		}
		say(l.Text(rewrite.NotReadyAbsent, serverNames(n.Absent), serverNames(bots)))
	}
	if len(n.Rekeyed) > 0 {
		say(l.Text(rewrite.NotReadyRekeyed, serverNames(n.Rekeyed), command(l, dir, "repair", n.Room)))
	}
	return l.Text(rewrite.NotReady, why, command(l, dir, "sequencers", n.Room))
}

// command is a verb of mls-proxy for a room, to be pasted into a shell on the proxy's
// machine. The id of a room is what the one who made it made up; servers are checked
// by the SDK.
func command(l rewrite.Language, dir, verb string, room id.RoomID, servers ...string) string {
	name, ok := strings.CutPrefix(string(room), "!")
	if !ok || strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-.:[]_~=+/", c)
	}) {
		return l.Text(rewrite.NoCommand, verb)
	}
	return strings.Join(append([]string{"mls-proxy --state '" + dir + "' " + verb + " '" + string(room) + "'"}, servers...), " ")
}

func (s *Server) encode(w http.ResponseWriter, answer interface{ Encode() ([]byte, error) }) bool {
	raw, err := answer.Encode()
	if err != nil {
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be rewritten")
		return false
	}
	answerRaw(w, http.StatusOK, raw)
	return true
}

// fillAll fills what windows need it, a few at a time.
func (s *Server) fillAll(v *view, windows []*rewrite.Window, since string, asked rewrite.Selection, lacks func(*rewrite.Window, rewrite.Selection) int) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, fillAtOnce)
	for _, window := range windows {
		// Only in rooms with MLS does the homeserver count other events than the client wants.
		need := lacks(window, asked)
		if need == 0 || !v.MLS(window.Room) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() {
				<-slots
				if cause := recover(); cause != nil { // of one window, not of the program
					s.o.Log.Error().Any("panic", cause).Bytes("stack", debug.Stack()).Stringer("room_id", window.Room).Msg("Panic while a room's messages were read back")
				}
			}()
			s.fill(v, window, need, since, asked)
		})
	}
	wg.Wait()
}

// lacking is how many events a window needs: it has earlier ones, and less than half as many as the client wants, so
// that it would look as if hardly anything had been said.
func lacking(window *rewrite.Window, asked rewrite.Selection) int {
	want := asked.Limit
	if want <= 0 {
		want = usualLimit
	}
	want = min(want, maxFill)
	if !window.Limited || !window.Joined || 2*len(window.Events) >= want {
		return 0
	}
	return want - len(window.Events)
}

// fill reads earlier events into a window.
func (s *Server) fill(v *view, window *rewrite.Window, need int, since string, asked rewrite.Selection) {
	for range maxPages {
		if need <= 0 || window.PrevBatch == "" {
			return
		}
		query := url.Values{"dir": {"b"}, "from": {window.PrevBatch}, "limit": {strconv.Itoa(need)}}
		if since != "" {
			query.Set("to", since)
		}
		if asked.More != nil {
			query.Set("filter", string(asked.More))
		}
		path := "/_matrix/client/v3/rooms/" + url.PathEscape(string(window.Room)) + "/messages"
		resp, err := s.ask(v.ctx, http.MethodGet, path, query, v.sess.token, nil)
		if err != nil || resp.status != http.StatusOK {
			return // the window is shorter, and the client asks for more by itself
		}
		page, err := rewrite.ParsePage(window.Room, resp.body)
		if err != nil {
			return
		}
		came := page.Came("chunk")
		slices.Reverse(came)
		earlier, _ := rewrite.List(window.Room, came, v)
		earlier = asked.Keep(earlier)
		members, _ := rewrite.List(window.Room, page.Came("state"), v)
		window.AddState(members)
		end := page.Text("end")
		if end == "" || len(came) == 0 {
			end = window.PrevBatch
		}
		stuck := end == window.PrevBatch
		window.Prepend(earlier, end)
		need -= len(earlier)
		if stuck {
			return
		}
	}
}

// passed hands on a refusal of the homeserver's.
func (s *Server) passed(w http.ResponseWriter, resp *reply, sess *session) {
	if resp.status == http.StatusUnauthorized {
		s.sessions.drop(sess.tag)
	}
	resp.pass(w)
}

// messages answers GET /rooms/{room}/messages. It reads on until the page has
// as many events as the client asked for, or there are no more.
func (s *Server) messages(w http.ResponseWriter, r *http.Request, sess *session, room id.RoomID) {
	v := s.view(r.Context(), sess)
	query, asked := inline(r.URL.Query())
	limit, err := strconv.Atoi(query.Get("limit"))
	if err != nil || limit < 1 {
		limit = 10
	}
	limit = min(limit, maxLimit)
	var first *rewrite.Page
	var all []rewrite.Event
	var members []json.RawMessage // lazily loaded, of all pages
	for range maxPages {
		query.Set("limit", strconv.Itoa(limit-len(all)))
		resp, err := s.ask(r.Context(), http.MethodGet, pathOf(r.Context()), query, sess.token, nil)
		if err != nil || resp.status != http.StatusOK {
			if first != nil {
				break // the client asks for the rest
			}
			if err != nil {
				s.failed(w, r, err)
				return
			}
			s.passed(w, resp, sess)
			return
		}
		page, err := rewrite.ParsePage(room, resp.body)
		if err != nil {
			refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver's answer cannot be read")
			return
		}
		if first == nil {
			first = page
		}
		members = rewrite.MergeState(members, page.Came("state"))
		came := page.Came("chunk")
		v.await(r.Context(), room, came)
		events, _ := rewrite.List(room, came, v)
		events = asked.Keep(events)
		all = append(all, events...)
		end := page.Text("end")
		first.SetText("end", end)
		if len(all) >= limit || len(came) == 0 || end == "" || end == query.Get("from") {
			break
		}
		query.Set("from", end)
	}
	s.shown.note(sess.tag, room, all)
	first.Set("chunk", all)
	first.SetState(members)
	first.Rewrite(v, "state")
	s.encode(w, first)
}
