package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// maxProgram bounds the programs, in bytes.
const maxProgram = 30_000_000

// TestProgramsNeedNothingBesideThem: what make build makes is one file that no other is needed for, and not a large one.
func TestProgramsNeedNothingBesideThem(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the programs")
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "make", "-s", "-C", "../..", "build", "BIN="+dir+"/")
	build.Env = append(os.Environ(), "GOOS=linux", "MAKEFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"mls-proxy", "matrix-mls"} {
		program := filepath.Join(dir, name)
		info, err := os.Stat(program)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > maxProgram {
			t.Errorf("%s has %d bytes, at most %d are wanted", name, info.Size(), maxProgram)
		}
		f, err := elf.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s is linked against libraries (%s)", name, p.Type)
			}
		}
		f.Close()
		if runtime.GOOS != "linux" {
			t.Logf("%s is for Linux: it is not run here", name)
			continue
		}
		run := exec.CommandContext(t.Context(), program, "help")
		run.Env = []string{"HOME=" + dir}
		if out, err := run.CombinedOutput(); err != nil || !strings.Contains(string(out), name) {
			t.Errorf("%s help: %v: %s", name, err, out)
		}
	}
}

// unitKeys are what a systemd unit of ours may say, by section (systemd.unit, systemd.service and systemd.exec).
var unitKeys = map[string][]string{
	"Unit": {"Description", "Documentation", "Wants", "After"},
	"Service": {
		"Type", "NotifyAccess", "ExecStart", "User", "WorkingDirectory", "Restart", "RestartSec", "TimeoutStartSec", "TimeoutStopSec", "WatchdogSec", "RestartPreventExitStatus",
		"StateDirectory", "StateDirectoryMode", "UMask", "NoNewPrivileges", "CapabilityBoundingSet", "AmbientCapabilities", "ProtectSystem", "ProtectHome", "PrivateTmp",
		"PrivateDevices", "PrivateUsers", "ProtectClock", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups",
		"ProtectProc", "ProcSubset", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute",
		"SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber",
	},
	"Install": {"WantedBy"},
}

// TestUnitsAreUnderstood: systemd passes over a key that it does not know, so that a word spelled wrong protects nothing.
func TestUnitsAreUnderstood(t *testing.T) {
	units, err := filepath.Glob("../../contrib/*.service")
	if err != nil || len(units) != 2 {
		t.Fatalf("%q, %v", units, err)
	}
	assigned := regexp.MustCompile(`^([A-Za-z]+)=(.*)$`)
	for _, path := range units {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		section, seen := "", map[string]bool{}
		for n, line := range strings.Split(string(raw), "\n") {
			switch key := assigned.FindStringSubmatch(line); {
			case line == "" || line[0] == '#':
			case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
				section = strings.Trim(line, "[]")
			case key == nil || !slices.Contains(unitKeys[section], key[1]):
				t.Errorf("%s:%d: %q is not known in the section %q", path, n+1, line, section)
			default:
				seen[key[1]] = true
			}
		}
		for _, want := range []string{"Description", "ExecStart", "Restart", "RestartPreventExitStatus", "UMask", "NoNewPrivileges", "WantedBy"} {
			if !seen[want] {
				t.Errorf("%s does not say %s", path, want)
			}
		}
		verify(t, path, string(raw))
	}
}

// verify lets systemd read a unit, on a machine that has it.
func verify(t *testing.T, path, unit string) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Log("systemd-analyze is not there: only the keys were looked at")
		return
	}
	dir := t.TempDir()
	copied := filepath.Join(dir, filepath.Base(path))
	// The program is not where an installation has it.
	unit = regexp.MustCompile(`(?m)^ExecStart=\S+`).ReplaceAllString(unit, "ExecStart=/bin/sh")
	if err := os.WriteFile(copied, []byte(unit), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--man=no", "verify", copied}
	if strings.Contains(unit, "WantedBy=default.target") {
		args = append([]string{"--user"}, args...)
	}
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", args...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
	out, err := cmd.CombinedOutput()
	said, newer := complaints(string(out), filepath.Base(path))
	if len(newer) > 0 {
		t.Logf("this systemd does not know all keys: %s", strings.Join(newer, "\n"))
	}
	switch {
	case len(said) > 0:
		t.Errorf("%s: %v: %s", path, err, strings.Join(said, "\n"))
	case err != nil: // as in some containers
		t.Logf("systemd-analyze cannot work here, only the keys were looked at: %v: %s", err, out)
	}
}

// unknownKey is what versions of systemd say of a key that came after them. Each key of ours was looked for in unitKeys.
var unknownKey = regexp.MustCompile(`: Unknown (key|key name|lvalue) '[A-Za-z]+' in section ['[][A-Za-z]+['\]]`)

// complaints are the lines in which systemd-analyze speaks of a unit; newer are those that are about a key it does not know.
func complaints(out, unit string) (said, newer []string) {
	for line := range strings.Lines(out) {
		switch line = strings.TrimSpace(line); {
		case !strings.Contains(line, unit):
		case unknownKey.MatchString(line):
			newer = append(newer, line)
		default:
			said = append(said, line)
		}
	}
	return said, newer
}

func TestAnOlderSystemdFailsNoUnit(t *testing.T) {
	const older = `/tmp/x/a.service:31: Unknown key name 'ProtectProc' in section 'Service', ignoring.
/tmp/x/a.service:32: Unknown lvalue 'ProcSubset' in section 'Service', ignoring
/tmp/x/a.service:33: Unknown key 'ProcSubset' in section [Service], ignoring.
/tmp/x/a.service:34: Failed to parse boolean value, ignoring: maybe
a.service: Command /bin/none is not executable: No such file or directory
/usr/lib/systemd/system/other.service:1: Unit is bad
`
	said, newer := complaints(older, "a.service")
	if len(newer) != 3 || len(said) != 2 || !strings.Contains(said[0], "boolean") || !strings.Contains(said[1], "executable") {
		t.Errorf("complaints %q, of unknown keys %q", said, newer)
	}
}
