package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// idleTimes is how much longer a stage may take that runs beside others: it gets only what they leave.
const idleTimes = 4

// runAll runs the stages in turn. If some of them wait for servers, those that are idle run beside these, in turn as well,
// from when the first of these begins; one that begins when they are done runs as usual. It returns one result for each
// stage, in the order of the stages.
func runAll(out io.Writer, stages []stage, all []string) []result {
	var front, back []int
	for i := range stages {
		if stages[i].idle {
			back = append(back, i)
		} else {
			front = append(front, i)
		}
	}
	results := make([]result, len(stages))
	var now atomic.Pointer[string] // what runs beside
	var alone atomic.Bool          // nothing waits for servers any more
	done := make(chan struct{})
	begun := false
	begin := func() {
		begun = true
		go func() {
			defer close(done)
			for _, i := range back {
				now.Store(&stages[i].name)
				var b bytes.Buffer
				results[i] = stages[i].run(&locked{to: &b}, all, !alone.Load())
				_, _ = out.Write(b.Bytes())
			}
		}()
	}
	for _, i := range front {
		if stages[i].waits && !begun {
			begin()
		}
		results[i] = stages[i].run(out, all, false)
	}
	if !begun {
		for _, i := range back {
			results[i] = stages[i].run(out, all, false)
		}
		return results
	}
	alone.Store(true)
	sign := time.NewTicker(time.Minute)
	defer sign.Stop()
	for {
		select {
		case <-done:
			return results
		case <-sign.C:
			if name := now.Load(); name != nil {
				fmt.Fprintf(out, "   … still %s\n", *name)
			}
		}
	}
}

// locked keeps together what is written at once.
type locked struct {
	mu sync.Mutex
	to io.Writer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(p)
}

// lowest returns what runs a command on the time that nobody else wants, as far as this machine knows such.
func lowest() []string {
	for _, prefix := range [][]string{{"chrt", "-i", "0"}, {"nice", "-n", "19"}} {
		if exec.Command(prefix[0], append(prefix[1:], "true")...).Run() == nil {
			return prefix
		}
	}
	return nil
}

// follow runs a command, for at most the timeout if that is not 0, and reads what it reports. It returns what went wrong
// in reading, and with the command.
func (r *report) follow(args, env []string, timeout time.Duration) (read, err error) {
	ctx := context.Background()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = r.out
	// make ends what it runs when it is told to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	pipe, to := io.Pipe()
	cmd.Stdout = to
	ended := make(chan error, 1)
	go func() {
		err := cmd.Run()
		to.Close()
		ended <- err
	}()
	read = r.read(pipe)
	_, _ = io.Copy(io.Discard, pipe) // if reading failed, so that the command does not wait
	err = <-ended
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("did not end in %v", timeout)
	}
	return read, err
}

// status adds a command's exit status as a test's result, whose words are the last line that the command said.
func (r *report) status(name string, ok bool) {
	r.results[name] = "pass"
	if !ok {
		r.results[name], r.words[name] = "fail", r.said[:min(len(r.said), 200)]
	}
}
