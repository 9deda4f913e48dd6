// Package simrecord writes what simulations ran into docs/robustness.md, and says
// on what. It is for tests of packages that lie right below the project's root.
package simrecord

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Add puts a row under the table with this head in a section of
// docs/robustness.md. A table that is not there yet is made, and so is a section,
// below which how says what wrote it.
func Add(t testing.TB, section, how, head, row string) {
	t.Helper()
	const file = "../docs/robustness.md"
	old, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if len(old) == 0 {
		old = []byte("# Robustness\n\nWhat was run to break this, written here by the commands themselves.\n")
	}
	if err := os.WriteFile(file, []byte(add(string(old), section, how, head, row)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func add(text, section, how, head, row string) string {
	title := "\n## " + section + "\n"
	if !strings.Contains(text, title) {
		text = strings.TrimRight(text, "\n") + "\n" + title + "\n" + how + "\n"
	}
	i := strings.Index(text, title) + len(title)
	end := len(text)
	if j := strings.Index(text[i:], "\n## "); j >= 0 {
		end = i + j + 1
	}
	body := text[i:end]
	if k := strings.Index(body, head); k >= 0 {
		at := k
		for at < len(body) && body[at] == '|' {
			n := strings.IndexByte(body[at:], '\n')
			if n < 0 {
				at = len(body)
				break
			}
			at += n + 1
		}
		body = body[:at] + row + "\n" + body[at:]
	} else {
		body = strings.TrimRight(body, "\n") + "\n\n" + head + "\n" + strings.Repeat("|---", strings.Count(head, "|")-1) + "|\n" + row + "\n"
	}
	if end < len(text) {
		body = strings.TrimRight(body, "\n") + "\n\n"
	}
	return text[:i] + body + text[end:]
}

// Revision names the commit that is tested, and whether anything was changed.
func Revision() string {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	rev := strings.TrimSpace(string(out))
	if exec.Command("git", "diff", "--quiet", "HEAD", "--", "..", ":!../docs").Run() != nil {
		rev += " and changes"
	}
	return rev
}

// Machine names what this runs on.
func Machine() string {
	model := runtime.GOARCH
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if k, v, ok := strings.Cut(sc.Text(), ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores, %s", model, runtime.NumCPU(), runtime.Version())
}

// CPUTime returns the time that this process has computed so far.
func CPUTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
