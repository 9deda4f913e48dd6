package terminal

import (
	"context"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/internal/patience"
)

// screen takes what a program prints, also after it has ended: questions are asked by a goroutine that nobody waits for. It
// closes waits when the program says that it waits for another device.
type screen struct {
	mu    sync.Mutex
	text  strings.Builder
	waits chan struct{}
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.Contains(string(p), "waiting for another device") {
		close(s.waits)
	}
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// TestAnUnansweredQuestionIsNoDifference: of two devices that compare emoji one's input ends, or its person interrupts it.
// Both say that the verification was stopped, and neither that somebody may be in between.
func TestAnUnansweredQuestionIsNoDifference(t *testing.T) {
	for _, row := range []struct {
		name      string
		interrupt bool
		says      string
	}{
		{"end of input", false, "mls-proxy: stopped: the question was not answered\n"},
		{"interrupt", true, "mls-proxy: stopped\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := hstest.New(t, true)
			one, two := login(t, h, "@a:one"), login(t, h, "@a:one")
			env, _, stderr := testEnv(t)
			env.Stdin = strings.NewReader("secret\n")
			if code := Main(t.Context(), []string{"--state", one, "verify", "--bootstrap", "--password-file", "-"}, env); code != 0 {
				t.Fatalf("bootstrap: %d %s", code, stderr)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience.Hang)
			defer cancel()
			type result struct {
				code int
				text string
			}
			run := func(ctx context.Context, dir string, shown *screen, read func(context.Context, string) (string, error), args ...string) <-chan result {
				env, _, _ := testEnv(t)
				env.ReadLine, env.Stderr = read, shown
				done := make(chan result, 1)
				go func() {
					code := Main(ctx, append([]string{"--state", dir, "verify"}, args...), env)
					done <- result{code, shown.String()}
				}()
				return done
			}
			shown := &screen{waits: make(chan struct{})}
			stopped, interrupt := context.WithCancel(ctx)
			defer interrupt()
			waiting := run(stopped, one, shown, func(ctx context.Context, prompt string) (string, error) {
				switch {
				case strings.Contains(prompt, "asks to be verified"):
					return "yes", nil
				case row.interrupt:
					interrupt()
					<-ctx.Done()
					return "", ctx.Err()
				}
				return "", io.EOF
			}, "--wait")
			select {
			case <-shown.waits: // before, nobody would hear the request
			case <-ctx.Done():
				t.Fatal("the device that waits does not say so")
			}
			asking := run(ctx, two, new(screen), func(ctx context.Context, _ string) (string, error) {
				<-ctx.Done()
				return "", ctx.Err()
			})
			if r := <-waiting; r.code != ExitNotVerified || !strings.Contains(r.text, row.says) || !strings.Contains(r.text, "hint: start again: mls-proxy verify\n") {
				t.Errorf("who did not answer: %d %s", r.code, r.text)
			}
			if r := <-asking; r.code != ExitNotVerified || !strings.Contains(r.text, "m.user") || strings.Contains(r.text, "differ") {
				t.Errorf("the other side: %d %s", r.code, r.text)
			}
		})
	}
}
