package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/matrix-mls/matrix-mls/lab"
)

// The libraries that a Peer can be.
const (
	OpenMLS = "openmls"
	MLSRs   = "mls-rs"
)

// callTimeout is far above what the slowest command takes, even where it gets only what other work leaves of the processors.
const callTimeout = 10 * time.Minute

// Program builds the peer program if that has not been done since its sources changed, and returns its path. A first
// build takes minutes and needs Rust 1.91.
func Program(ctx context.Context) (string, error) {
	root, err := lab.Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "interop", "build-peer.sh"))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("interop: build the peer program: %w: %s", err, said.Bytes()[max(0, said.Len()-2000):])
	}
	return strings.TrimSpace(string(out)), nil
}

// Hex is a byte string, which the peer writes in hex.
type Hex []byte

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	*h = b
	return err
}

// Args are the fields of a command besides its name.
type Args map[string]any

// Answer is what a command answers: each command fills some of the fields.
type Answer struct {
	Error string `json:"error"`

	Suites  []uint16 `json:"suites"`
	Version string   `json:"version"`

	SignatureKey            Hex      `json:"signature_key"`
	KeyPackage              Hex      `json:"key_package"`
	Commit                  Hex      `json:"commit"`
	Welcome                 Hex      `json:"welcome"`
	Proposal                Hex      `json:"proposal"`
	Message                 Hex      `json:"message"`
	GroupInfo               Hex      `json:"group_info"`
	RatchetTree             Hex      `json:"ratchet_tree"`
	Secret                  Hex      `json:"secret"`
	Group                   Hex      `json:"group"`
	Epoch                   uint64   `json:"epoch"`
	OwnIndex                uint32   `json:"own_index"`
	Active                  bool     `json:"active"`
	EpochAuthenticator      Hex      `json:"epoch_authenticator"`
	TreeHash                Hex      `json:"tree_hash"`
	ConfirmedTranscriptHash Hex      `json:"confirmed_transcript_hash"`
	Members                 []Member `json:"members"`

	Kind      string `json:"kind"` // of a processed message: application, proposal, commit or own_private
	Plaintext Hex    `json:"plaintext"`
	AAD       Hex    `json:"aad"`
}

// Member is a leaf as the peer sees it.
type Member struct {
	Index        uint32 `json:"index"`
	Identity     Hex    `json:"identity"`
	SignatureKey Hex    `json:"signature_key"`
}

// A Peer is a running peer program. It serves one call at a time.
type Peer struct {
	library string
	cmd     *exec.Cmd
	in, out *os.File
	lines   *bufio.Reader
}

// Start runs the peer program with one of the libraries. What it writes to standard error goes to log, which may be
// nil. The caller must Close the Peer.
func Start(ctx context.Context, library string, log *os.File) (*Peer, error) {
	program, err := Program(ctx)
	if err != nil {
		return nil, err
	}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("interop: %w", err)
	}
	defer childIn.Close()
	out, childOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("interop: %w", err)
	}
	defer childOut.Close()
	p := &Peer{library: library, in: in, out: out, lines: bufio.NewReader(out)}
	p.cmd = exec.Command(program, "--lib", library)
	p.cmd.Stdin, p.cmd.Stdout = childIn, childOut
	if log != nil {
		p.cmd.Stderr = log
	}
	if err := p.cmd.Start(); err != nil {
		in.Close()
		out.Close()
		return nil, fmt.Errorf("interop: start %s: %w", program, err)
	}
	return p, nil
}

// Library says which library the peer is.
func (p *Peer) Library() string { return p.library }

// ErrRefused is wrapped by the errors of commands that the foreign library refused.
var ErrRefused = errors.New("refused")

// Call runs one command. An error that wraps ErrRefused is the library's answer; any other means that the program
// is gone or hangs.
func (p *Peer) Call(command string, args Args) (*Answer, error) {
	line := map[string]any{"cmd": command}
	for k, v := range args {
		line[k] = v
	}
	raw, err := json.Marshal(line)
	if err != nil {
		return nil, fmt.Errorf("interop: %s %s: %w", p.library, command, err)
	}
	deadline := time.Now().Add(callTimeout)
	err = errors.Join(p.in.SetWriteDeadline(deadline), p.out.SetReadDeadline(deadline))
	if err == nil {
		_, err = p.in.Write(append(raw, '\n'))
	}
	if err == nil {
		raw, err = p.lines.ReadBytes('\n')
	}
	if err != nil {
		return nil, fmt.Errorf("interop: %s %s: the peer program does not answer: %w", p.library, command, err)
	}
	var a Answer
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, fmt.Errorf("interop: %s %s: answer %.200q: %w", p.library, command, raw, err)
	}
	if a.Error != "" {
		return nil, fmt.Errorf("interop: %s %s: %w: %s", p.library, command, ErrRefused, a.Error)
	}
	return &a, nil
}

// Close ends the program: it stops at the end of its input, and is killed if it does not within callTimeout.
func (p *Peer) Close() error {
	p.in.Close()
	kill := time.AfterFunc(callTimeout, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	err := errors.Join(p.cmd.Wait(), p.out.Close())
	if err != nil {
		return fmt.Errorf("interop: end %s: %w", p.library, err)
	}
	return nil
}
