// Demo tells one story on real homeservers and prints it: three federated servers with the module beside each, people
// on all of them in one encrypted room, a join, a second device, a removal and a file. Then it looks for what they
// wrote in everything that the servers keep, and leaves the servers running.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
)

func main() {
	dir := flag.String("dir", ".lab/demo", "work directory, where the servers go on running")
	bin := flag.String("bin", "bin", "directory with the built programs")
	port := flag.Int("port", 18400, "first port")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *dir, *bin, *port)
	interrupted := ctx.Err() != nil
	stop()
	if err != nil {
		if interrupted {
			fmt.Fprintf(os.Stderr, "demo: interrupted, before all was shown; make demo-stop ends what runs\n")
			os.Exit(1)
		}
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		switch {
		case errors.Is(err, errRuns):
			fmt.Fprintf(os.Stderr, "hint: end it with make demo-stop DEMO_DIR=%s, or run another beside it: make demo DEMO_DIR=OTHER DEMO_PORT=%d\n", *dir, *port+1000)
		case errors.Is(err, errPorts):
			fmt.Fprintf(os.Stderr, "hint: another demo may run: end it where it was started (make demo-stop), or take others: make demo DEMO_DIR=OTHER DEMO_PORT=%d\n", *port+1000)
		default:
			fmt.Fprintf(os.Stderr, "hint: logs are in %s; make demo-stop ends what runs\n", *dir)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, dir, bin string, port int) error {
	began := time.Now()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := clearOld(ctx, dir); err != nil {
		return err
	}
	if err := portsFree(port); err != nil {
		return err
	}
	t := &transcript{began: began}
	t.part("Servers")
	w, err := e2e.Start(ctx, e2e.Options{
		Options: lab.Options{Synapse: 2, Dendrite: 1, Dir: dir, BasePort: port, Detach: true, LogLevel: "INFO", Progress: os.Stderr},
		Bin:     bin, Progress: t.say,
	})
	if err != nil {
		return err
	}
	for _, s := range w.All() {
		t.say("%s: %s %s, module %s", letter(s.Name), s.Kind, s.ServerName, w.Module(s.Name).URL)
	}
	s := &story{ctx: ctx, w: w, t: t}
	defer s.end()
	if err := s.tell(); err != nil {
		return err
	}
	t.part("What is left running")
	return s.farewell(bin)
}

var errPorts = errors.New("ports are taken")

// portsFree looks before anything is started whether the servers can have their
// ports: ten for each, from port on.
func portsFree(port int) error {
	for p := port; p < port+30; p++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err != nil {
			return fmt.Errorf("%w: of %d to %d %d is", errPorts, port, port+29, p)
		}
		_ = l.Close()
	}
	return nil
}

var errRuns = errors.New("a demo runs")

// lockDir keeps a second demo off the directory while the first one is told.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%w in %s, and has not come to its end", errRuns, dir)
		}
		return nil, err
	}
	return f, nil
}

// clearOld deletes what is left of an earlier demo in the directory. One whose servers
// run is somebody's.
func clearOld(ctx context.Context, dir string) error {
	old, err := lab.Attach(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	running, err := old.Running(ctx)
	if err != nil {
		return err
	}
	if len(running) > 0 {
		return fmt.Errorf("%w in %s (%s)", errRuns, dir, strings.Join(running, ", "))
	}
	fmt.Println("deleting what is left of an earlier demo in", dir)
	return old.Down(ctx, true)
}

// letter is what the story calls a server.
func letter(server string) string {
	return map[string]string{"syn1": "A", "syn2": "B", "den1": "C"}[server]
}

// transcript is what a person reads.
type transcript struct{ began time.Time }

func (t *transcript) part(title string) { fmt.Printf("\n%s\n", title) }

func (t *transcript) say(format string, args ...any) {
	fmt.Printf("  %5.1fs  %s\n", time.Since(t.began).Seconds(), fmt.Sprintf(format, args...))
}
