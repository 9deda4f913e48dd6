package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// A Wire records what goes over the loopback interface to and from the homeservers and modules: between clients and their
// homeserver, between a homeserver and its module, and between homeservers, whose federation passes lab's proxy and is
// open from there on (Options.Proxy). What a client says to its local proxy is not looked at. It needs root.
//
// What was said on a connection is put together again and lies in a file, in pieces of several connections in turn; each
// piece begins with the end of the one before it, so that a text that is not longer than that lies in one.
type Wire struct {
	path   string
	device *os.File
	marks  net.Listener
	ports  map[uint16]bool
	done   chan struct{}

	mu    sync.Mutex
	file  *os.File
	size  int64
	flows map[flow]*talk
	gaps  int // where a segment came late, or not at all
	lost  int // packets that the kernel had no place for
	mark  []byte
	seen  chan struct{} // closed when the mark has come
	err   error
}

// flow is one direction of a connection. All addresses are this machine's.
type flow struct{ from, to uint16 }

type talk struct {
	next uint32 // the sequence number of what comes next
	text []byte
	tail int // bytes of text that are written already
}

const (
	overlap     = 512
	pieceSize   = 1 << 20
	maxRecorded = 2 << 30
)

// record begins to record what goes to and from ports, into a file.
func record(path string, ports []uint16) (*Wire, error) {
	w := &Wire{path: path, ports: map[uint16]bool{}, done: make(chan struct{}), flows: map[flow]*talk{}}
	var err error
	if w.marks, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("e2e: record the wire: %w", err)
	}
	go w.answerMarks()
	marks := uint16(w.marks.Addr().(*net.TCPAddr).Port)
	for _, p := range append(ports, marks) {
		w.ports[p] = true
	}
	if w.file, err = os.Create(path); err == nil {
		w.device, err = loopback(slices.Min(ports), slices.Max(ports), marks)
	}
	if err != nil {
		w.marks.Close()
		return nil, fmt.Errorf("e2e: record the wire: %w", err)
	}
	go w.read()
	return w, nil
}

func (w *Wire) answerMarks() {
	for {
		conn, err := w.marks.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
	}
}

// read takes in packets until the device is closed.
func (w *Wire) read() {
	defer close(w.done)
	frame := make([]byte, 1<<17)
	for {
		n, err := w.device.Read(frame)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				w.fail(err)
			}
			return
		}
		from, to, seq, syn, end, payload := packet(frame[:n])
		if w.ports[from] || w.ports[to] {
			w.take(flow{from, to}, seq, syn, end, payload)
		}
	}
}

func (w *Wire) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// packet takes a frame of the loopback interface apart: an Ethernet header, IPv4, TCP. Of anything else the ports are 0.
func packet(frame []byte) (from, to uint16, seq uint32, syn, end bool, payload []byte) {
	const ethernet = 14
	if len(frame) < ethernet+20 || frame[ethernet]>>4 != 4 || frame[ethernet+9] != syscall.IPPROTO_TCP {
		return
	}
	ip := frame[ethernet:]
	if total := int(binary.BigEndian.Uint16(ip[2:])); total > 0 && total < len(ip) {
		ip = ip[:total]
	}
	header := int(ip[0]&15) * 4
	if header < 20 || len(ip) < header+20 {
		return
	}
	tcp := ip[header:]
	offset := int(tcp[12]>>4) * 4
	if offset < 20 || len(tcp) < offset {
		return
	}
	const fin, synFlag, rst = 1, 2, 4
	return binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:]), binary.BigEndian.Uint32(tcp[4:]), tcp[13]&synFlag != 0, tcp[13]&(fin|rst) != 0, tcp[offset:]
}

// take adds what a packet carries to what was said on its connection.
func (w *Wire) take(f flow, seq uint32, syn, end bool, payload []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.flows[f]
	if t == nil || syn {
		if t != nil {
			w.write(t)
		}
		if syn {
			seq++
		}
		t = &talk{next: seq}
		w.flows[f] = t
	}
	if len(payload) > 0 {
		switch ahead := int32(seq - t.next); {
		case ahead > 0: // something is missing: what comes is no continuation
			w.gaps++
			w.write(t)
			t.text, t.tail, t.next = nil, 0, seq
		case int(-ahead) >= len(payload): // sent again, or late
			w.write(&talk{text: bytes.Clone(payload)})
			payload = nil
		case ahead < 0: // sent again in part
			payload = payload[-ahead:]
		}
		t.text = append(t.text, payload...)
		t.next += uint32(len(payload))
		if w.mark != nil && bytes.Contains(payload, w.mark) {
			close(w.seen)
			w.mark = nil
		}
		if len(t.text) >= pieceSize {
			w.write(t)
		}
	}
	if end {
		w.write(t)
		delete(w.flows, f)
	}
}

// write puts what was said on a connection into the file. The caller holds w.mu.
func (w *Wire) write(t *talk) {
	if len(t.text) == t.tail {
		return
	}
	if w.size > maxRecorded && w.err == nil {
		w.err = errors.New("more was said than is recorded")
	}
	if w.err != nil {
		return
	}
	n, err := w.file.Write(append(t.text, 0))
	w.size += int64(n)
	if err != nil {
		w.err = err
	}
	t.text = append([]byte(nil), t.text[max(0, len(t.text)-overlap):]...)
	t.tail = len(t.text)
}

// Settle returns when all that was said before is in the file.
func (w *Wire) Settle(ctx context.Context) error {
	mark := []byte("wire mark " + strconv.FormatInt(time.Now().UnixNano(), 36))
	w.mu.Lock()
	seen := make(chan struct{})
	w.mark, w.seen = mark, seen
	w.mu.Unlock()
	again := time.NewTicker(5 * time.Second)
	defer again.Stop()
	for waits := true; waits; {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", w.marks.Addr().String())
		if err == nil {
			_, err = conn.Write(mark)
			err = errors.Join(err, conn.Close())
		}
		if err != nil {
			return fmt.Errorf("e2e: the wire: %w", err)
		}
		select {
		case <-seen:
			waits = false
		case <-w.done:
			waits = false
		case <-again.C: // there may have been no place for it
		case <-ctx.Done():
			return fmt.Errorf("e2e: the wire brings nothing: %w", ctx.Err())
		}
	}
	lost, err := dropped(w.device)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.flows {
		w.write(t)
	}
	if w.lost += lost; w.err == nil {
		w.err = err
	}
	if w.err != nil {
		return fmt.Errorf("e2e: the wire: %w", w.err)
	}
	return nil
}

// Begin forgets what was recorded: nobody looks for what was said before.
func (w *Wire) Begin() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.flows {
		t.text, t.tail = nil, 0
	}
	_, err := dropped(w.device) // those of before do not count
	w.size, w.gaps, w.lost, w.err = 0, 0, 0, nil
	err = errors.Join(err, w.file.Truncate(0))
	if err == nil {
		_, err = w.file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("e2e: the wire: %w", err)
	}
	return nil
}

// Lost tells what the recording lacks since Begin, as of the last Settle: packets that came faster than they were taken in,
// and how often a segment came late, so that a text that begins before it and ends in it is not found.
func (w *Wire) Lost() (packets, gaps int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost, w.gaps
}

// Path is the file that the recording lies in.
func (w *Wire) Path() string { return w.path }

// Find looks for texts in the recording, as they are and in their hex and base64 forms. It goes through it once.
func (w *Wire) Find(ctx context.Context, texts []string) ([]Hit, error) {
	forms, err := newNeedles(texts)
	if err != nil {
		return nil, err
	}
	if err := w.Settle(ctx); err != nil {
		return nil, err
	}
	found := &Search{}
	if err := found.lookInBlocks(forms, w.path); err != nil {
		return nil, fmt.Errorf("e2e: the wire: %w", err)
	}
	return found.Hits, nil
}

// Close ends the recording.
func (w *Wire) Close() error {
	err := errors.Join(w.marks.Close(), w.device.Close())
	<-w.done
	return errors.Join(err, w.file.Close())
}

// recordWire records what the servers of a world say and are told.
func (w *World) recordWire() error {
	var ports []uint16
	for _, s := range w.All() {
		u, err := url.Parse(s.BaseURL)
		if err != nil {
			return fmt.Errorf("e2e: %w", err)
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			return fmt.Errorf("e2e: the address of %s: %w", s.Name, err)
		}
		ports = append(ports, uint16(port))
		for _, p := range s.SparePorts {
			ports = append(ports, uint16(p))
		}
	}
	var err error
	w.wire, err = record(filepath.Join(w.Dir(), "wire"), ports)
	return err
}

// Wire is the recording of what is said at the servers' side, nil if there is none: it needs root.
func (w *World) Wire() *Wire { return w.wire }
