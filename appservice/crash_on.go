//go:build crashpoints

package appservice

import (
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
)

var pointMu sync.Mutex

// atPoint ends the process with SIGKILL at the points that stand in the file
// which MLSTEST_CRASH_POINTS names, one in a line. A point is taken out of the
// file first: the process dies at each once.
func atPoint(point string) {
	pointMu.Lock()
	defer pointMu.Unlock()
	path := os.Getenv("MLSTEST_CRASH_POINTS")
	raw, err := os.ReadFile(path)
	if err != nil {
		return
	}
	points := strings.Fields(string(raw))
	i := slices.Index(points, point)
	if i < 0 {
		return
	}
	left := strings.Join(slices.Delete(points, i, i+1), "\n")
	if os.WriteFile(path+".new", []byte(left), 0o600) != nil || os.Rename(path+".new", path) != nil {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
