package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// script is a stage that a shell command stands for.
func script(name, command string) stage {
	return stage{name: name, command: []string{"sh", "-c", command}, timeout: time.Minute}
}

func waits(s stage) stage {
	s.waits = true
	return s
}

func idle(s stage) stage {
	s.idle = true
	return s
}

// says is a command that reports a test's result.
func says(action, test string) string {
	return fmt.Sprintf(`echo '{"Action":"%s","Package":"%sp","Test":"%s"}'`, action, module, test)
}

// fifo returns the path of a pipe: who reads from it waits for who writes to it, and the other way round.
func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// watched does something once a text was written to it.
type watched struct {
	to   io.Writer
	text string
	then func()
}

func (w *watched) Write(p []byte) (int, error) {
	if w.then != nil && bytes.Contains(p, []byte(w.text)) {
		go w.then()
		w.then = nil
	}
	return w.to.Write(p)
}

// reportOf runs stages and returns all that is printed, and whether all is well.
func reportOf(stages ...stage) (string, bool) {
	var b bytes.Buffer
	out := &locked{to: &b}
	ok := tell(out, runAll(out, stages, nil))
	return b.String(), ok
}

func TestIdleStagesRunBesideThoseThatWait(t *testing.T) {
	first, second := fifo(t), fifo(t)
	got, ok := reportOf(
		script("before", says("pass", "TestBefore")),
		waits(script("server", "echo began > "+first+"; read line < "+second+"; "+says("pass", "TestServer"))),
		idle(script("one", "read line < "+first+"; echo one of two; echo done > "+second+"; echo two of two; "+says("pass", "TestOne"))),
		idle(script("two", says("pass", "TestTwo"))),
	)
	if !ok || !strings.HasSuffix(got, "\n4 passed, 0 failed\n") {
		t.Errorf("well %v, which is told as:\n%s", ok, got)
	}
	// What one stage of them says stays together.
	begin, end := strings.Index(got, "== one: sh"), strings.Index(got, "== one: ok")
	if begin < 0 || end < begin || strings.Contains(got[begin:end], "server") || !strings.Contains(got[begin:end], "one of two\ntwo of two\n") {
		t.Errorf("the lines of a stage that runs beside are not together:\n%s", got)
	}
	if strings.Index(got, "== before: ok") > begin || strings.Index(got, "== two: ok") < end {
		t.Errorf("not in turn:\n%s", got)
	}
}

// TestStageThatBeginsAloneRunsAsUsual: once nothing waits for servers any more, no priority is lowered.
func TestStageThatBeginsAloneRunsAsUsual(t *testing.T) {
	if lowest() == nil {
		t.Fatal("this machine knows no lower priority: neither chrt nor nice runs")
	}
	ended := fifo(t)
	var b bytes.Buffer
	out := &locked{to: &watched{to: &b, text: "== server: ok", then: func() { _ = os.WriteFile(ended, []byte("go\n"), 0) }}}
	tell(out, runAll(out, []stage{
		waits(script("server", says("pass", "TestServer"))),
		idle(script("beside", "read line < "+ended+"; exit 3")),
		idle(script("alone", says("pass", "TestAlone")+"; exit 3")),
	}, nil))
	got := b.String()
	if prefix := strings.Join(lowest(), " "); !strings.Contains(got, "\nbeside: "+prefix+" sh -c ") || !strings.Contains(got, "\nalone: sh -c ") {
		t.Errorf("want only what began beside others to be put last:\n%s", got)
	}
}

func TestEachLaneReportsThoughTheOtherFails(t *testing.T) {
	for _, row := range []struct {
		name           string
		server, beside string
		want           []string
	}{
		{"before", says("fail", "TestServer"), says("pass", "TestBeside"), []string{"server: p/TestServer", "1 passed, 1 failed"}},
		{"beside", says("pass", "TestServer"), says("fail", "TestBeside"), []string{"beside: p/TestBeside", "1 passed, 1 failed"}},
		{"both", says("fail", "TestServer"), says("fail", "TestBeside"), []string{"server: p/TestServer", "beside: p/TestBeside", "0 passed, 2 failed"}},
		{"no test", says("pass", "TestServer"), says("pass", "TestBeside") + "; exit 3", []string{"exit status 3, though no test failed", "2 passed, 1 failed"}},
		{"skipped", says("pass", "TestServer"), says("skip", "TestBeside"), []string{"beside: SKIPPED p/TestBeside", "1 passed, 1 failed"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, ok := reportOf(waits(script("server", row.server)), idle(script("beside", row.beside)))
			end := got[strings.LastIndex(got, "\n\n")+1:]
			for _, want := range row.want {
				if !strings.Contains(end, want) {
					t.Errorf("%q is not told at the end:\n%s", want, got)
				}
			}
			if ok || !strings.Contains(got, "== server: ") || !strings.Contains(got, "== beside: ") {
				t.Errorf("well %v, which is told as:\n%s", ok, got)
			}
		})
	}
}

func TestWhatMustRunIsMissedBesideOthers(t *testing.T) {
	beside := idle(script("beside", says("pass", "TestOther")))
	beside.require = []string{"TestPromised"}
	beside.lists = []list{{"/nowhere/list.txt", func(line []string) []string { return line }}}
	got, ok := reportOf(waits(script("server", says("pass", "TestServer"))), beside)
	if ok || !strings.Contains(got, "\nbeside: MISSING TestPromised\n") || !strings.Contains(got, "/nowhere/list.txt") {
		t.Errorf("well %v, which is told as:\n%s", ok, got)
	}
}

// TestStageThatHangsIsEnded: beside others it has longer.
func TestStageThatHangsIsEnded(t *testing.T) {
	hangs := idle(script("hangs", says("pass", "TestBegan")+"; exec sleep 600"))
	hangs.timeout = 50 * time.Millisecond
	for want, stages := range map[string][]stage{
		"hangs: sh":                {hangs},
		"did not end in 50ms":      {hangs},
		"did not end in 200ms":     {hangs, waits(script("server", says("pass", "TestServer")))},
		"== server: ok, 1 tests":   {hangs, waits(script("server", says("pass", "TestServer")))},
		"== after: ok, 1 tests, 0": {hangs, idle(script("after", says("pass", "TestAfter")))},
	} {
		if got, ok := reportOf(stages...); ok || !strings.Contains(got, want) {
			t.Errorf("well %v, and %q is not in:\n%s", ok, want, got)
		}
	}
}

func TestOneStageAloneRunsAsUsual(t *testing.T) {
	// Its priority is not lowered: nothing is put before its command.
	got, ok := reportOf(idle(script("alone", says("pass", "TestAlone")+"; exit 3")))
	if ok || !strings.Contains(got, "\nalone: sh -c ") {
		t.Errorf("well %v, which is told as:\n%s", ok, got)
	}
	if lowest() == nil {
		return
	}
	got, _ = reportOf(waits(script("server", says("pass", "TestServer"))), idle(script("beside", says("pass", "TestBeside")+"; exit 3")))
	if !strings.Contains(got, "\nbeside: "+strings.Join(lowest(), " ")+" sh -c ") {
		t.Errorf("what runs beside others is not put last:\n%s", got)
	}
}

func TestExitStatusIsATest(t *testing.T) {
	good, bad := script("good", "echo all is well"), script("bad", "echo mls.FuzzX found something; echo; exit 1")
	good.status, bad.status = true, true
	got, ok := reportOf(waits(good), idle(bad))
	if want := "\nbad: make/bad  mls.FuzzX found something\n1 passed, 1 failed\n"; ok || !strings.HasSuffix(got, want) {
		t.Errorf("well %v; want it to end in %q:\n%s", ok, want, got)
	}
}

func TestCommandThatCannotStart(t *testing.T) {
	none := stage{name: "none", command: []string{"/nowhere/program"}, timeout: time.Minute}
	if got, ok := reportOf(none); ok || !strings.Contains(got, "/nowhere/program") || !strings.HasSuffix(got, "\n0 passed, 1 failed\n") {
		t.Errorf("well %v, which is told as:\n%s", ok, got)
	}
}

// TestAllStagesArePlaced: what waits does not run beside itself, and each has a bound.
func TestAllStagesArePlaced(t *testing.T) {
	var names []string
	for _, s := range append(slices.Clone(stages), fast, soak) {
		if s.idle && s.waits || s.timeout <= 0 || slices.Contains(names, s.name) {
			t.Errorf("stage %s: idle %v, waits %v, timeout %v, its name once %v", s.name, s.idle, s.waits, s.timeout, !slices.Contains(names, s.name))
		}
		if s.packages == nil == (s.command == nil) || slices.ContainsFunc(s.flags, func(f string) bool { return strings.HasPrefix(f, "-timeout") }) {
			t.Errorf("stage %s: its packages or its command, and the timeout in one place only", s.name)
		}
		names = append(names, s.name)
	}
}
