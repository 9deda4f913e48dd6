// Package machine reads what the kernel tells of processes, and what a measurement was made on.
package machine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// Process is what the kernel says of one.
type Process struct {
	CPU  float64 // seconds, in user and kernel
	RSS  int64   // bytes in memory
	Peak int64   // the most that RSS ever was
}

// Of returns what the kernel says of a process that runs (proc_pid_stat(5), proc_pid_status(5)).
func Of(pid int) (p Process, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, f := range fields[11:13] { // utime and stime
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return p, err
		}
		p.CPU += float64(ticks) / 100
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return p, err
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			p.RSS = n << 10
		case "VmHWM:":
			p.Peak = n << 10
		}
	}
	return p, nil
}

// LoadAverage is the load of the machine over 1, 5 and 15 minutes.
func LoadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(raw))
	if err != nil || len(fields) < 3 {
		return "unknown"
	}
	return strings.Join(fields[:3], " ")
}

// Commit names the commit of the working directory, with a plus if it has changes.
func Commit() string {
	raw, err := exec.Command("git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(raw))
}
