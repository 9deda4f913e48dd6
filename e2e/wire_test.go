package e2e

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestTheWireIsRecorded: what goes both ways over a connection to a watched port is found, wherever packets and pieces of
// the recording end; what goes elsewhere is not recorded.
func TestTheWireIsRecorded(t *testing.T) {
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		t.Fatal("the wire can be looked at by root on Linux alone; that the stories say nothing in clear is not shown without")
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() { // says everything back
					_, _ = io.Copy(conn, conn)
					conn.Close()
				}()
			}
		}()
		return l
	}
	watched, other := listen(), listen()
	w, err := record(filepath.Join(t.TempDir(), "wire"), []uint16{uint16(watched.Addr().(*net.TCPAddr).Port)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	word := func() string { return "word-" + rand.Text() }
	say := func(to net.Listener, text []byte) {
		t.Helper()
		conn, err := net.Dial("tcp", to.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() { _, _ = conn.Write(text) }()
		if _, err := io.ReadFull(conn, make([]byte, len(text))); err != nil {
			t.Fatal(err)
		}
	}
	find := func(texts ...string) string {
		t.Helper()
		hits, err := w.Find(t.Context(), texts)
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, h := range hits {
			found = append(found, h.Text)
		}
		return strings.Join(found, " ")
	}
	before, elsewhere := word(), word()
	say(watched, []byte(before))
	say(other, []byte(elsewhere))
	if got := find(before, elsewhere, word()); got != before {
		t.Errorf("found %q, want %q", got, before)
	}
	if err := w.Begin(); err != nil {
		t.Fatal(err)
	}
	// Words at all places of many pieces.
	var said bytes.Buffer
	var words []string
	for said.Len() < 4*pieceSize {
		words = append(words, word())
		said.WriteString(words[len(words)-1])
		said.Write(make([]byte, len(words)%97))
	}
	say(watched, said.Bytes())
	if got := len(strings.Fields(find(append(words, before)...))); got != len(words) {
		t.Errorf("found %d of %d words", got, len(words))
	}
	if lost, gaps := w.Lost(); lost != 0 || gaps != 0 {
		t.Errorf("%d packets and %d segments are missing", lost, gaps)
	}
}

// TestWhatComesLateIsRecorded: a segment that comes after the one behind it is found, and one that is sent again does no harm.
func TestWhatComesLateIsRecorded(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "wire"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := &Wire{flows: map[flow]*talk{}, file: file}
	f := flow{1, 2}
	say := func(seq uint32, text string) { w.take(f, seq, false, false, []byte(text)) }
	w.take(f, 9, true, false, nil)
	say(10, "first ")
	say(23, "third.")
	say(16, "second ")
	say(23, "third.")
	say(25, "ird. fourth")
	w.take(f, 36, false, true, nil)
	raw, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first ", "second ", "third. fourth"} {
		if !bytes.Contains(raw, []byte(text)) {
			t.Errorf("%q is not in %q", text, raw)
		}
	}
	if w.gaps != 1 {
		t.Errorf("%d gaps, want 1", w.gaps)
	}
}
