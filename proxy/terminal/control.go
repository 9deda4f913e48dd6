package terminal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/matrix-mls/matrix-mls/client/store"
)

const (
	socketName     = "control.sock"
	maxSocketPath  = 100 // of sun_path's 108 bytes
	maxFrame       = 1 << 20
	maxConnections = 16
)

// request is what a second terminal asks the first to run.
type request struct {
	Args  []string `json:"args"`
	JSON  bool     `json:"json"`
	Cwd   string   `json:"cwd"`
	Stdin string   `json:"stdin,omitempty"`
	TTY   bool     `json:"tty,omitempty"` // somebody can be asked
}

// frame is a piece of the answer. Ask and Secret want a reply.
type frame struct {
	Out    string `json:"out,omitempty"`
	Err    string `json:"err,omitempty"`
	Ask    string `json:"ask,omitempty"`
	Secret string `json:"secret,omitempty"`
	Exit   *int   `json:"exit,omitempty"`
}

type reply struct {
	Text string `json:"text"`
	OK   bool   `json:"ok"`
	None bool   `json:"none,omitempty"` // a secret is asked for, and no terminal hides it
}

// withSocket calls fn with an address of the control socket. A path that is
// too long for a socket goes through a descriptor of its directory.
func withSocket(dir string, fn func(address string) error) error {
	path := filepath.Join(dir, socketName)
	if len(path) <= maxSocketPath {
		return fn(path)
	}
	if runtime.GOOS != "linux" {
		return fmt.Errorf("the path %s is too long for a socket", path)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return fn(filepath.Join("/proc/self/fd", strconv.FormatUint(uint64(d.Fd()), 10), socketName))
}

// listen runs the verbs of other terminals until stop is called. Only the
// owner of the state directory can reach the socket.
func (s *session) listen(ctx context.Context, base *call) (stop func(), err error) {
	path := filepath.Join(s.dir, socketName)
	// The store's lock says that no other process listens: what is there is
	// left from one that was killed.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var listener *net.UnixListener
	err = withSocket(s.dir, func(address string) error {
		var err error
		listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		slots := make(chan struct{}, maxConnections)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			select {
			case slots <- struct{}{}:
			default:
				conn.Close()
				continue
			}
			wg.Go(func() {
				defer func() { <-slots }()
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				s.serve(ctx, base, conn)
			})
		}
	})
	return func() {
		cancel()
		listener.Close()
		wg.Wait()
		_ = os.Remove(path)
	}, nil
}

// peer is the other terminal, as an environment.
type peer struct {
	mu      sync.Mutex
	enc     *json.Encoder
	gone    context.CancelFunc
	done    <-chan struct{} // closed once it is gone
	replies chan reply
}

func (p *peer) send(f frame) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.enc.Encode(f)
	if err != nil {
		p.gone()
	}
	return err
}

type peerWriter struct {
	p   *peer
	err bool
}

func (w peerWriter) Write(b []byte) (int, error) {
	f := frame{Out: string(b)}
	if w.err {
		f = frame{Err: string(b)}
	}
	if err := w.p.send(f); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (p *peer) ask(f frame) (string, error) {
	if err := p.send(f); err != nil {
		return "", err
	}
	select {
	case r := <-p.replies:
		switch {
		case r.None:
			return "", errNoTerminal
		case !r.OK:
			return "", errors.New("nobody answered")
		}
		return r.Text, nil
	case <-p.done:
		return "", errors.New("the other terminal is gone")
	}
}

// listen takes the answers until the other terminal is gone.
func (p *peer) listen(in *bufio.Reader) {
	defer p.gone()
	for {
		var r reply
		if readFrame(in, &r) != nil {
			return
		}
		select {
		case p.replies <- r:
		case <-p.done:
			return
		}
	}
}

// readFrame reads one line of JSON of bounded length.
func readFrame(r *bufio.Reader, v any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxFrame {
			return errors.New("a message of the other terminal is too long")
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
	return json.Unmarshal(line, v)
}

// serve runs one verb for another terminal.
func (s *session) serve(ctx context.Context, base *call, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, in := &peer{enc: json.NewEncoder(conn), gone: cancel, done: ctx.Done(), replies: make(chan reply)}, bufio.NewReader(conn)
	var req request
	if err := readFrame(in, &req); err != nil || len(req.Args) == 0 {
		return
	}
	// An interrupt there is one of the verb here.
	var listening sync.WaitGroup
	listening.Go(func() { p.listen(in) })
	defer listening.Wait()
	defer conn.Close()
	env := &Env{
		Stdin: strings.NewReader(req.Stdin), Stdout: peerWriter{p: p}, Stderr: peerWriter{p: p, err: true},
		Getenv: base.env.Getenv, Cwd: req.Cwd,
		ReadLine: func(_ context.Context, prompt string) (string, error) { return p.ask(frame{Ask: prompt}) },
	}
	if req.TTY {
		env.ReadPassword = func(_ context.Context, prompt string) (string, error) { return p.ask(frame{Secret: prompt}) }
	}
	c := &call{env: env, state: s.dir, json: req.JSON, log: base.log, s: s}
	code := ExitUsage
	if n := slices.IndexFunc(verbs(), func(v *verb) bool { return v.name == req.Args[0] && v.share }); n < 0 {
		code = c.fail(failf(ExitLocked, "end the mls-proxy tail or run that has this state first", "%s cannot run while another mls-proxy is running", clean(req.Args[0])))
	} else {
		code = c.exec(ctx, req.Args)
	}
	_ = p.send(frame{Exit: &code})
}

// forward lets the process that has the state open run the verb. It reports
// false when there is none.
func (c *call) forward(ctx context.Context, args []string, cause error) (int, bool) {
	if !errors.Is(cause, store.ErrLocked) {
		return 0, false
	}
	var conn net.Conn
	err := withSocket(c.state, func(address string) error {
		var err error
		conn, err = new(net.Dialer).DialContext(ctx, "unix", address)
		return err
	})
	if err != nil {
		return 0, false
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	req := request{Args: args, JSON: c.json, Cwd: c.env.Cwd, TTY: c.env.ReadPassword != nil}
	if slices.Contains(args, "-") {
		if req.Stdin, err = readAll(c.env.Stdin, maxText); err != nil {
			return c.fail(err), true
		}
	}
	enc, in := json.NewEncoder(conn), bufio.NewReader(conn)
	if err := enc.Encode(req); err != nil {
		return c.fail(fmt.Errorf("talk to the running mls-proxy: %w", err)), true
	}
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer func() { // who is asked for a secret has no echo, and the program exits next
		cancel()
		asking.Wait()
	}()
	frames, broken := make(chan frame), make(chan error, 1)
	go func() {
		for {
			var f frame
			if err := readFrame(in, &f); err != nil {
				broken <- err
				return
			}
			select {
			case frames <- f:
			case <-ctx.Done():
				return
			}
		}
	}()
	// One question at a time is asked, and the verb may go on, or end, without the answer.
	answers := make(chan reply, 1)
	for {
		select {
		case err := <-broken:
			why := "the running mls-proxy ended before it was done"
			if ctx.Err() != nil {
				why = "interrupted"
			}
			switch {
			case args[0] == "send":
				return c.fail(failf(ExitPending, waitsHint, "%s: it is not known whether the message was taken", why)), true
			case ctx.Err() == nil:
				return c.fail(failf(ExitFailure, "", "%s: %w", why, err)), true
			case args[0] == "verify":
				return c.fail(verifyStopped("")), true
			}
			return ExitFailure, true
		case r := <-answers:
			if err := enc.Encode(r); err != nil {
				return c.fail(fmt.Errorf("talk to the running mls-proxy: %w", err)), true
			}
		case f := <-frames:
			switch {
			case f.Exit != nil:
				return *f.Exit, true
			case f.Ask != "" || f.Secret != "":
				read := c.env.ReadLine
				if f.Secret != "" {
					read = c.env.ReadPassword
				}
				asking.Go(func() {
					var r reply
					if read != nil {
						text, err := read(ctx, f.Ask+f.Secret)
						r = reply{Text: text, OK: err == nil, None: errors.Is(err, errNoTerminal)}
					}
					select {
					case answers <- r:
					case <-ctx.Done():
					}
				})
			default:
				_, _ = io.WriteString(c.env.Stdout, f.Out)
				_, _ = io.WriteString(c.env.Stderr, f.Err)
			}
		}
	}
}
