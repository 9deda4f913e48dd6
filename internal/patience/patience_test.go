package patience

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatchMeasures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if got := Measure(func() { <-time.After(3*time.Second + tick/2) }); got != 3*time.Second {
			t.Errorf("3 s were measured as %v", got)
		}
	})
}

// TestWatchLeavesOutWhatItSleeps: a child stops this process for a second.
func TestWatchLeavesOutWhatItSleeps(t *testing.T) {
	start := time.Now() // before the watch, so that it measures no more than this
	elapsed, stop := Watch()
	defer stop()
	pid := strconv.Itoa(os.Getpid())
	child := exec.Command("sh", "-c", "kill -STOP "+pid+"; sleep 1; kill -CONT "+pid)
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := elapsed() // before the time is read that it is compared with
	if real := time.Since(start); real < time.Second || got > real-900*time.Millisecond {
		t.Errorf("of %v with a second's sleep %v were measured", real, got)
	}
}
