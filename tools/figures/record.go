// Package figures has what the tools that measure share: what was measured and where, the place in a page where the
// figures go, and drawings of them.
package figures

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// Commit names what was measured, and says if the work tree differs from it.
func Commit() string {
	head, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "Unknown commit"
	}
	name := "Commit `" + strings.TrimSpace(string(head)) + "`"
	if err := exec.Command("git", "diff", "--quiet", "HEAD", "--", "*.go").Run(); err != nil {
		name += " with changes"
	}
	return name
}

// Load returns the load averages over 1, 5 and 15 minutes.
func Load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(raw))
	return strings.Join(f[:min(3, len(f))], " ")
}

// Processors names the machine's processors.
func Processors() string {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return fmt.Sprintf("%s, %d processors", strings.TrimSpace(value), runtime.NumCPU())
		}
	}
	return runtime.GOARCH
}

// Replace puts text between the marks of that name in a file: <!-- mark: begin --> and <!-- mark: end -->, each on a
// line of its own.
func Replace(file, mark, text string) error {
	begin, end := "<!-- "+mark+": begin -->\n", "<!-- "+mark+": end -->"
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(raw), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s lacks the marks %q and %q", file, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(file, []byte(head+begin+text+end+tail), 0o644)
}
