package terminal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
)

// TestAQuestionEndsWithItsVerb: the running program asks the person at another terminal, and the verb ends before there is
// an answer, as where the other side of a verification says that the emoji differ. Nobody has to answer any more.
func TestAQuestionEndsWithItsVerb(t *testing.T) {
	env, stdout, stderr := testEnv(t)
	c := &call{env: env, state: t.TempDir(), raw: []string{"verify"}}
	var listener net.Listener
	err := withSocket(c.state, func(address string) (err error) {
		listener, err = net.Listen("unix", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	asked := make(chan string, 2)
	env.ReadLine = func(ctx context.Context, prompt string) (string, error) {
		asked <- prompt
		if prompt == "first? " {
			return "yes", nil
		}
		<-ctx.Done()
		return "", ctx.Err()
	}
	got := make(chan reply, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		enc, in := json.NewEncoder(conn), bufio.NewReader(conn)
		var req request
		if readFrame(in, &req) != nil || enc.Encode(frame{Ask: "first? "}) != nil {
			return
		}
		var r reply
		_ = readFrame(in, &r)
		got <- r
		_ = enc.Encode(frame{Ask: "second? "})
		<-asked
		<-asked // the person thinks about it
		code := ExitNotVerified
		_ = enc.Encode(frame{Err: "it ended\n"})
		_ = enc.Encode(frame{Exit: &code})
	}()
	code, ok := c.forward(t.Context(), c.raw, store.ErrLocked)
	if !ok || code != ExitNotVerified || !strings.Contains(stderr.String(), "it ended") || stdout.String() != "" {
		t.Errorf("exit code %d, %t; printed %q and %q", code, ok, stdout, stderr)
	}
	if r := <-got; !r.OK || r.Text != "yes" {
		t.Errorf("the first answer came as %+v", r)
	}
}

// TestASecretThatIsNotSaidGivesTheTerminalBack: the running program ends while the person at another terminal is asked for a
// secret. The terminal is as it was before the verb ends, and with it the process.
func TestASecretThatIsNotSaidGivesTheTerminalBack(t *testing.T) {
	env, _, _ := testEnv(t)
	c := &call{env: env, state: t.TempDir(), raw: []string{"verify"}}
	var listener net.Listener
	err := withSocket(c.state, func(address string) (err error) {
		listener, err = net.Listen("unix", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	asked := make(chan struct{})
	var echo atomic.Bool
	env.ReadPassword = func(ctx context.Context, _ string) (string, error) {
		close(asked)
		<-ctx.Done()
		for range 1000 { // a program that does it has to be started
			runtime.Gosched()
		}
		echo.Store(true)
		return "", ctx.Err()
	}
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var req request
		if readFrame(bufio.NewReader(conn), &req) == nil && json.NewEncoder(conn).Encode(frame{Secret: "key? "}) == nil {
			<-asked
		}
	}()
	if code, ok := c.forward(t.Context(), c.raw, store.ErrLocked); !ok || code == ExitOK {
		t.Errorf("exit code %d, %t", code, ok)
	}
	if !echo.Load() {
		t.Error("the verb ends, and the terminal still shows nothing")
	}
}

// TestNobodySendsTwiceForAProgramThatEnded: the program that runs the verb ends, or the caller is interrupted, before it says how it went.
func TestNobodySendsTwiceForAProgramThatEnded(t *testing.T) {
	for _, row := range []struct {
		verb      string
		interrupt bool
		code      int
		says      []string
	}{
		{"send", false, ExitPending, []string{"the running mls-proxy ended before it was done: it is not known whether the message was taken\n", "hint: " + waitsHint}},
		{"send", true, ExitPending, []string{"interrupted: it is not known whether the message was taken\n", "hint: " + waitsHint}},
		{"verify", true, ExitNotVerified, []string{"mls-proxy: stopped\n", "hint: start again: mls-proxy verify"}},
		{"rooms", false, ExitFailure, []string{"the running mls-proxy ended before it was done: EOF\n"}},
		{"rooms", true, ExitFailure, nil},
	} {
		t.Run(fmt.Sprint(row.verb, row.interrupt), func(t *testing.T) {
			env, _, stderr := testEnv(t)
			c := &call{env: env, state: t.TempDir(), raw: []string{row.verb}}
			var listener net.Listener
			err := withSocket(c.state, func(address string) (err error) {
				listener, err = net.Listen("unix", address)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				in := bufio.NewReader(conn)
				var req request
				if readFrame(in, &req) == nil && row.interrupt {
					cancel()
					_, _ = in.ReadByte() // until the caller is gone
				}
			}()
			code, ok := c.forward(ctx, c.raw, store.ErrLocked)
			if !ok || code != row.code || len(row.says) == 0 && stderr.Len() > 0 {
				t.Errorf("exit code %d, %t; printed %q", code, ok, stderr)
			}
			for _, text := range row.says {
				if !strings.Contains(stderr.String(), text) {
					t.Errorf("%q is not in %q", text, stderr)
				}
			}
		})
	}
}

// TestOnlyANoSaysThatTheEmojiDiffer: the end of the input and an interrupt are no answers, nor is what is neither yes nor no.
func TestOnlyANoSaysThatTheEmojiDiffer(t *testing.T) {
	for _, row := range []struct {
		answers []string
		end     error
		same    bool
	}{
		{answers: []string{"", "maybe", " YES"}, same: true},
		{answers: []string{"n"}},
		{answers: []string{"x"}, end: io.EOF},
	} {
		env, _, _ := testEnv(t)
		left := row.answers
		env.ReadLine = func(context.Context, string) (string, error) {
			if len(left) == 0 {
				return "", io.EOF
			}
			answer := left[0]
			left = left[1:]
			return answer, nil
		}
		ui := &verifyUI{c: &call{env: env}, done: t.Context(), ended: make(chan error, 1), asked: true}
		if same, err := ui.Compare(t.Context(), "@a:one", nil, nil); same != row.same || !errors.Is(err, row.end) {
			t.Errorf("%q: %t, %v", row.answers, same, err)
		}
	}

	env, _, _ := testEnv(t)
	done, cancel := context.WithCancel(t.Context())
	env.ReadLine = func(ctx context.Context, _ string) (string, error) {
		cancel()
		<-ctx.Done()
		return "", ctx.Err()
	}
	ui := &verifyUI{c: &call{env: env}, done: done, ended: make(chan error, 1), asked: true}
	if _, err := ui.Compare(t.Context(), "@a:one", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupt: %v", err)
	}
	if yes := ui.Asked(t.Context(), "@a:one", "D"); yes || !errors.Is(<-ui.ended, identity.ErrVerificationStopped) {
		t.Error("an interrupt at the request is an answer")
	}
}
