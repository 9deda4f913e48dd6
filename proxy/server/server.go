// Package server is the local proxy: it speaks the Matrix client-server API on
// the loopback interface to clients that know nothing of MLS, and passes what
// they say on to their homeserver. Package route says what is done with each
// path, package account has the MLS devices.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/proxy/route"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Options configures a Server. Homeserver and Accounts are required.
type Options struct {
	Homeserver *url.URL
	Accounts   *account.Set
	// Origins are those of web pages that may use the proxy besides pages from
	// this machine, such as https://app.element.io.
	Origins []string
	// Transport goes to the homeserver; nil means http.DefaultTransport.
	Transport http.RoundTripper
	// Language is that of what stands in rooms in the place of messages.
	Language rewrite.Language
	// Status is the page about the proxy.
	Status Status
	// Log never gets a token, a body or a query.
	Log zerolog.Logger
}

// Bounds of what is held in memory of one request.
const (
	maxRequest  = 1 << 20  // of a body that the proxy reads
	maxStreamed = maxMedia // of one that goes through
	maxResponse = 64 << 20 // of an answer that the proxy rewrites
)

// Server is an http.Handler.
type Server struct {
	o        Options
	stream   *httputil.ReverseProxy // answers are JSON
	files    *httputil.ReverseProxy // answers are files
	sessions *sessions
	sent     *sent
	shown    *shown
	abreast  *abreast
	browsers browsers
	singles  singles
	begun    registrations
	changing registrations // changes of passwords
	sendWait time.Duration // how long a message is waited for
}

// New makes a Server.
func New(o Options) *Server {
	if o.Transport == nil {
		o.Transport = http.DefaultTransport
	}
	s := &Server{o: o, sessions: newSessions(), sent: newSent(), shown: newShown(), abreast: newAbreast(), sendWait: sendWait}
	s.stream, s.files = s.reverse(o.Transport, onlyJSON), s.reverse(o.Transport, onlyFile)
	return s
}

// reverse passes requests on to the homeserver, and answers on as only makes them.
func (s *Server) reverse(through http.RoundTripper, only func(*http.Response)) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport: untraced{through},
		Rewrite: func(r *httputil.ProxyRequest) {
			s.direct(r.Out, pathOf(r.In.Context()))
			r.Out = r.Out.WithContext(context.WithValue(r.Out.Context(), untracedKey{}, r.Out.Context()))
		},
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // it would name addresses; ErrorHandler says what happened
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			s.failed(w, r, err)
		},
		ModifyResponse: func(resp *http.Response) error {
			if resp.StatusCode == http.StatusSwitchingProtocols {
				return errSwitches
			}
			only(resp)
			return nil
		},
	}
}

// errSwitches reports a homeserver that leaves HTTP.
var errSwitches = errors.New("server: the homeserver wants another protocol")

// direct points a request at the homeserver. The token goes into the header,
// whichever way it came.
func (s *Server) direct(out *http.Request, path string) {
	query := out.URL.Query()
	token := tokenOf(out.Header, query)
	query.Del("access_token")
	u := *s.o.Homeserver
	u.RawPath = strings.TrimRight(u.EscapedPath(), "/") + path
	u.Path, _ = url.PathUnescape(u.RawPath)
	u.RawQuery = query.Encode()
	out.URL, out.Host = &u, ""
	out.Header.Del("Authorization")
	if token != "" {
		out.Header.Set("Authorization", "Bearer "+token)
	}
	for _, name := range []string{"Origin", "Referer", "Cookie", "Accept-Encoding", "Connection", "Upgrade"} {
		out.Header.Del(name)
	}
}

type pathKey struct{}

func pathOf(ctx context.Context) string {
	path, _ := ctx.Value(pathKey{}).(string)
	return path
}

// here begins an answer. It refuses requests for another name than this machine's,
// which a page has whose name leads here (DNS rebinding).
func here(w http.ResponseWriter, r *http.Request) bool {
	w.Header().Set("Content-Security-Policy", sandbox)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !local(r.Host) {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "the proxy is reached as 127.0.0.1, [::1] or localhost only")
		return false
	}
	return true
}

// ServeHTTP implements http.Handler, for clients.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !here(w, r) {
		return
	}
	if strings.HasPrefix(r.URL.Path, ssoPath) {
		s.ssoBack(w, r)
		return
	}
	if isStatus(r.URL.Path) {
		s.statusElsewhere(w)
		return
	}
	if !s.allowOrigin(w, r) {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "web pages of this origin may not use the proxy; mls-proxy run --origin allows one")
		return
	}
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	m := route.Classify(r.Method, r.URL.EscapedPath())
	if !mayBe(r, m.Kind) {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "this is for Matrix clients, and no page, script or part of a page")
		return
	}
	if event := m.Params["event"]; eventOf(m) != event {
		m = route.Classify(r.Method, strings.Replace(m.Path, "/"+url.PathEscape(event), "/"+url.PathEscape(eventOf(m)), 1))
	}
	r = r.WithContext(context.WithValue(r.Context(), pathKey{}, m.Path))
	r.Body = http.MaxBytesReader(w, r.Body, maxStreamed)
	s.handle(w, r, m)
}

// eventOf is the event of a path as the homeserver knows it. A notice about a room
// stays what it is, except where only its place in the room counts.
func eventOf(m route.Match) string {
	event := m.Params["event"]
	before, notice := rewrite.Noticed(event)
	if notice && before != "" && (m.Kind == route.Marker || m.Kind == route.Context || m.Kind == route.Event) {
		return before
	}
	return rewrite.Original(event)
}

func (s *Server) handle(w http.ResponseWriter, r *http.Request, m route.Match) {
	if _, notice := rewrite.Noticed(m.Params["event"]); notice {
		s.withSession(w, r, m) // the homeserver does not know it
		return
	}
	// What is before the mark of a key becomes a part of the path.
	if m.Kind == route.DownloadMedia && !rooms.IsMediaAddress("mxc://"+m.Params["server"]+"/"+rewrite.Unkeyed(m.Params["media"])) {
		refuse(w, http.StatusNotFound, "M_NOT_FOUND", "no file has such an address")
		return
	}
	switch m.Kind {
	case route.Stream:
		s.stream.ServeHTTP(w, r)
	case route.WellKnown:
		answer(w, http.StatusOK, map[string]any{"m.homeserver": map[string]string{"base_url": base(r)}})
	case route.Versions:
		s.versions(w, r)
	case route.LoginFlows:
		s.loginFlows(w, r)
	case route.Login:
		s.login(w, r)
	case route.SSO:
		s.sso(w, r)
	case route.Register:
		s.register(w, r)
	case route.Page:
		s.visit(w, r)
	case route.Logout:
		s.logout(w, r, false)
	case route.LogoutAll:
		s.logout(w, r, true)
	case route.Password:
		s.password(w, r)
	case route.EndDevice, route.EndDevices:
		s.endDevices(w, r, m)
	case route.Refused:
		refuse(w, http.StatusNotFound, "M_UNRECOGNIZED", m.Why)
	case route.Unknown:
		refuse(w, http.StatusNotFound, "M_UNRECOGNIZED", "this proxy does not know that path, so it cannot tell whether events would go through it unencrypted")
	default:
		s.withSession(w, r, m)
	}
}

// base is the proxy's own base URL, as the client wrote it.
func base(r *http.Request) string { return "http://" + r.Host }

// local tells whether a Host header names this machine.
func local(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}

// allowOrigin lets pages from this machine and named ones use the API, and
// tells browsers so. A request without an origin is no page's.
func (s *Server) allowOrigin(w http.ResponseWriter, r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil || !slices.Contains(s.o.Origins, origin) && (u.Scheme != "http" || !local(u.Host)) {
		return false
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", origin)
	h.Add("Vary", "Origin")
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "X-Requested-With, Content-Type, Authorization")
	if r.Header.Get("Access-Control-Request-Private-Network") != "" {
		h.Set("Access-Control-Allow-Private-Network", "true")
	}
	return true
}

// problems is where net/http says what it met: a panic of ours, above all.
type problems struct{ log zerolog.Logger }

// Write implements io.Writer.
func (p problems) Write(text []byte) (int, error) {
	what, stack, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	p.log.Error().Str("error", what).Str("stack", stack).Msg("A request could not be handled")
	return len(text), nil
}

// Serve answers clients on a listener of the loopback interface until ctx ends.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	return s.serveOn(ctx, listener, s)
}

// ServeStatus answers who looks at the status page on another listener of the
// loopback interface until ctx ends.
func (s *Server) ServeStatus(ctx context.Context, listener net.Listener) error {
	return s.serveOn(ctx, listener, http.HandlerFunc(s.status))
}

func (s *Server) serveOn(ctx context.Context, listener net.Listener, handler http.Handler) error {
	addr, ok := listener.Addr().(*net.TCPAddr)
	if !ok || !addr.IP.IsLoopback() {
		return fmt.Errorf("server: %s is not an address of this machine alone", listener.Addr())
	}
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Minute, WriteTimeout: 15 * time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: log.New(problems{s.o.Log}, "", 0),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	defer stop()
	err := srv.Serve(listener)
	if errors.Is(err, http.ErrServerClosed) {
		<-done // what is being answered still needs the accounts
		return nil
	}
	return err
}
