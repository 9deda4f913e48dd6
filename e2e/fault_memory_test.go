package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/internal/patience"
)

// cgroup is a control group of the machine, of version 1 or 2, that bounds memory.
type cgroup struct {
	t       *testing.T
	dir     string
	version int
}

func newCgroup(t *testing.T, limit int) *cgroup {
	t.Helper()
	c := &cgroup{t: t, version: 2}
	name, file := fmt.Sprintf("matrix-mls-test-%d", os.Getpid()), "memory.max"
	root := "/sys/fs/cgroup"
	if raw, err := os.ReadFile(root + "/cgroup.controllers"); err != nil || !strings.Contains(string(raw), "memory") {
		root, file, c.version = root+"/memory", "memory.limit_in_bytes", 1
	}
	c.dir = filepath.Join(root, name)
	if c.version == 2 { // children get the controller from here on
		_ = os.WriteFile(root+"/cgroup.subtree_control", []byte("+memory"), 0o644)
	}
	err := os.Mkdir(c.dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.dir, file), []byte(strconv.Itoa(limit)), 0o644)
	}
	if err != nil {
		t.Fatalf("a control group of %d MiB: %v\nhint: this test needs root, and a machine that lets it make control groups", limit>>20, err)
	}
	t.Cleanup(func() {
		for deadline := time.Now().Add(patience.Hang); ; { // the last process is just gone
			if err := os.Remove(c.dir); err == nil {
				return
			} else if time.Now().After(deadline) {
				t.Errorf("removing the control group: %v", err)
				return
			}
			<-time.After(20 * time.Millisecond)
		}
	})
	return c
}

// peak is how much memory the group took at most, and killed how many of its
// processes were ended for want of it.
func (c *cgroup) peak() (peak, killed int) {
	c.t.Helper()
	read := func(name string) string {
		raw, err := os.ReadFile(filepath.Join(c.dir, name))
		if err != nil {
			c.t.Fatal(err)
		}
		return string(raw)
	}
	events, most := "memory.oom_control", "memory.max_usage_in_bytes"
	if c.version == 2 {
		events, most = "memory.events", "memory.peak"
	}
	peak, err := strconv.Atoi(strings.TrimSpace(read(most)))
	if err != nil {
		c.t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^oom_kill (\d+)$`).FindStringSubmatch(read(events))
	if m == nil {
		c.t.Fatalf("%s does not say who was killed: %s", events, read(events))
	}
	killed, _ = strconv.Atoi(m[1])
	return peak, killed
}

// faultLittleMemory: the program that is delivered runs in a control group of 128 MiB, as a container does, and gets
// the largest transactions there are, many at once, while people talk. It refuses work before it dies.
func faultLittleMemory(t *testing.T) {
	const limit = 128 << 20
	s := tell(t, "sqlite")
	alice, bob := s.person("syn1", "alice"), s.person("den1", "bob")
	room := s.room(client.CreateOptions{}, alice, bob)
	s.talk(room, "before", alice, bob)
	m := s.w.Module("syn1")
	registration, err := os.ReadFile(m.Registration)
	s.must(err)
	token := regexp.MustCompile(`(?m)^hs_token: *"?([^"\n]+)`).FindSubmatch(registration)
	if token == nil {
		t.Fatalf("%s names no hs_token", m.Registration)
	}
	s.must(s.w.Kill(s.ctx, m.Name))

	group := newCgroup(t, limit)
	var out bytes.Buffer
	module := exec.Command("sh", "-c", `echo $$ >"$1"/cgroup.procs && shift && exec "$@"`, "sh", group.dir, s.w.Program("matrix-mls"), "serve", "-c", m.Config)
	module.Dir, module.Stdout, module.Stderr = m.Dir, &out, &out
	s.must(module.Start())
	ended := make(chan error, 1)
	go func() { ended <- module.Wait() }()
	var once sync.Once
	stop := func() (err error) {
		once.Do(func() {
			_ = module.Process.Signal(syscall.SIGTERM)
			select {
			case err = <-ended:
			case <-time.After(patience.Hang):
				_ = module.Process.Kill()
				err = errors.New("it did not end when it was asked to")
			}
			if serr := s.w.StartModule(s.soon(), "syn1"); serr != nil {
				t.Errorf("the module does not start again: %v", serr)
			}
		})
		return err
	}
	defer func() { _ = stop() }()
	ready := func() bool {
		resp, err := http.Get(m.URL + "/_matrix/mau/ready")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	wait := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(patience.Hang); !ready(); <-time.After(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("never: %s\n%s", what, &out)
			}
		}
	}
	wait("ready in little memory")

	pad := `{"events":[],"x":"` + strings.Repeat("x", 31<<20) + `"}`
	var mu sync.Mutex
	codes := map[int]int{}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			code := 0
			req, err := http.NewRequestWithContext(s.ctx, http.MethodPut, fmt.Sprintf("%s/_matrix/app/v1/transactions/large%d", m.URL, i), strings.NewReader(pad))
			if err == nil {
				req.Header.Set("Authorization", "Bearer "+string(token[1]))
				var resp *http.Response
				if resp, err = http.DefaultClient.Do(req); err == nil {
					code = resp.StatusCode
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			}
			mu.Lock()
			defer mu.Unlock()
			codes[code]++
		})
	}
	s.talk(room, "while large transactions come", alice, bob)
	wg.Wait()
	wait("ready after large transactions")
	carol := s.person("syn1", "carol") // the module has to accept a commit
	s.must(alice.Invite(s.soon(), room, carol.UserID()))
	s.join(carol, room, alice)
	s.talk(room, "afterwards", alice, bob, carol)
	peak, killed := group.peak()
	t.Logf("figures: 12 transactions of 31 MiB at once in %d MiB, answers %v; peak %d MiB with what the disk's cache took, %d killed", limit>>20, codes, peak>>20, killed)
	for code := range codes {
		if code != http.StatusOK && code != http.StatusServiceUnavailable && code != 0 {
			t.Errorf("answer %d, want 200 or 503", code)
		}
	}
	if codes[http.StatusOK]+codes[http.StatusServiceUnavailable] == 0 {
		t.Error("no large transaction was answered")
	}
	if killed > 0 {
		t.Errorf("%d processes were killed for want of memory\n%s", killed, &out)
	}
	if err := stop(); err != nil {
		t.Errorf("the module ended with %v\n%s", err, &out)
	}
	s.agree(room, alice, bob, carol)
}
