package terminal

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

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
