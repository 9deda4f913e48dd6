package main

import (
	"fmt"
	"os"
	"runtime/pprof"
	"sync"
	"time"
)

// progress shows how far a run is: on a terminal in one line that changes, elsewhere in a line every ten seconds.
type progress struct {
	mu       sync.Mutex
	terminal bool
	began    time.Time
	last     time.Time
	open     bool // the cursor stands behind a line that changes
}

func newProgress() *progress {
	p := &progress{began: time.Now()}
	if info, err := os.Stderr.Stat(); err == nil {
		p.terminal = info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progress) line(text string) string {
	return fmt.Sprintf("%7.1f s  %s", time.Since(p.began).Seconds(), text)
}

// note writes a line that stays.
func (p *progress) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish()
	fmt.Fprintln(os.Stderr, p.line(fmt.Sprintf(format, args...)))
	p.last = time.Now()
}

// show tells how much of a piece of work is done.
func (p *progress) show(what string, done, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.line(fmt.Sprintf("%s: %d of %d", what, done, all))
	switch {
	case p.terminal && (done >= all || time.Since(p.last) > 100*time.Millisecond):
		fmt.Fprintf(os.Stderr, "\r%s\x1b[K", text)
		p.open, p.last = true, time.Now()
	case !p.terminal && (done >= all || time.Since(p.last) > 10*time.Second):
		fmt.Fprintln(os.Stderr, text)
		p.last = time.Now()
	}
}

func (p *progress) finish() {
	if p.open {
		fmt.Fprintln(os.Stderr)
		p.open = false
	}
}

func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish()
}

// profile starts a CPU profile into a file, if one is named; the result ends it.
func profile(path string) (func(), error) {
	if path == "" {
		return func() {}, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}
