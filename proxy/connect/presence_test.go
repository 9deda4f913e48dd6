package connect

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeWay answers as it is told to.
type fakeWay struct {
	mu     sync.Mutex
	asked  int // for the versions
	answer func(*http.Request) (*http.Response, error)
}

func (f *fakeWay) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	if r.URL.Path == versionsPath {
		f.asked++
	}
	answer := f.answer
	f.mu.Unlock()
	return answer(r)
}

func (f *fakeWay) set(answer func(*http.Request) (*http.Response, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

func says(status int, body string) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body))}, nil
	}
}

func fails(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }

func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

var here = says(http.StatusOK, `{"versions":["v1.11"]}`)

// watched is a Presence that a test drives, in a bubble.
type watched struct {
	*Presence
	t    *testing.T
	way  *fakeWay
	mu   sync.Mutex
	told []State
}

func watch(t *testing.T, known bool, answer func(*http.Request) (*http.Response, error)) *watched {
	w := &watched{t: t, way: &fakeWay{answer: answer}}
	w.Presence = NewPresence(w.way)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.Run(ctx, &url.URL{Scheme: "https", Host: "one"}, known, func(s State) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = append(w.told, s)
		})
	}()
	t.Cleanup(func() { stop(); <-ended })
	return w
}

// since returns what was told since the last call.
func (w *watched) since() []State {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	told := w.told
	w.told = nil
	return told
}

func (w *watched) request(host string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), "GET", "https://"+host+"/x", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if resp, err := w.RoundTrip(req); err == nil {
		resp.Body.Close()
	}
}

func TestAWrongAddressIsSaidAtOnceAndNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, false, fails)
		told := w.since()
		if len(told) != 1 || !told[0].Away || told[0].Begun || told[0].Again || told[0].Err == nil {
			t.Fatalf("at once: %+v", told)
		}
		<-time.After(time.Hour)
		told = w.since()
		if len(told) == 0 || len(told) > int(time.Hour/reminder) {
			t.Errorf("told %d times in an hour", len(told))
		}
		for _, s := range told {
			if !s.Away || !s.Again {
				t.Errorf("in the hour: %+v", s)
			}
		}
		w.way.set(here)
		<-time.After(latest)
		if told = w.since(); len(told) != 1 || told[0].Away || told[0].Begun || time.Since(told[0].Since) < time.Hour {
			t.Errorf("once it answers: %+v", told)
		}
		<-time.After(time.Hour)
		if told = w.since(); len(told) != 0 {
			t.Errorf("later: %+v", told)
		}
	})
}

func TestWhatIsNoHomeserverIsSaid(t *testing.T) {
	for want, answer := range map[string]func(*http.Request) (*http.Response, error){
		"HTTP 404 for /_matrix/client/versions": says(http.StatusNotFound, "<html>"),
		"HTTP 502 for /_matrix/client/versions": says(http.StatusBadGateway, ""),
		"what answers there is no homeserver":   says(http.StatusOK, "<html>"),
		"no answer within 5s":                   hangs,
		"connection refused":                    fails,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := watch(t, false, answer)
			<-time.After(firstAnswer)
			if told := w.since(); len(told) != 1 || told[0].Err == nil || !strings.Contains(told[0].Err.Error(), want) {
				t.Errorf("told %+v, want %q", told, want)
			}
		})
	}
}

func TestAHomeserverThatGoesIsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, true, here)
		w.request("one")
		<-time.After(time.Hour)
		if told := w.since(); len(told) != 0 {
			t.Fatalf("while it answers: %+v", told)
		}
		// One request that fails is none, nor are those of another host.
		once := true
		w.way.set(func(r *http.Request) (*http.Response, error) {
			if once && r.URL.Path != versionsPath {
				once = false
				return fails(r)
			}
			return here(r)
		})
		w.request("one")
		if told := w.since(); len(told) != 0 {
			t.Fatalf("a request that failed: %+v", told)
		}
		w.way.set(fails)
		w.request("another")
		if told := w.since(); len(told) != 0 {
			t.Fatalf("another host's that failed: %+v", told)
		}
		w.request("one")
		w.request("one")
		told := w.since()
		if len(told) != 1 || !told[0].Away || !told[0].Begun || told[0].Again {
			t.Fatalf("gone: %+v", told)
		}
		w.way.set(here)
		w.request("one") // a device tries again
		if told = w.since(); len(told) != 1 || told[0].Away || !told[0].Begun {
			t.Errorf("back: %+v", told)
		}
		w.way.set(hangs) // and nobody asks it anything
		<-time.After(quiet + laterAnswer)
		if told = w.since(); len(told) != 1 || !told[0].Away {
			t.Errorf("silent: %+v", told)
		}
	})
}

func TestAHomeserverThatIsUsedIsNotAskedBesides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, true, here)
		for range 100 {
			<-time.After(30 * time.Second) // as /sync does
			w.request("one")
		}
		synctest.Wait()
		w.way.mu.Lock()
		defer w.way.mu.Unlock()
		if w.way.asked != 0 {
			t.Errorf("asked %d times", w.way.asked)
		}
	})
}
