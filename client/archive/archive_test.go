package archive

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/client/sealed"
)

func testSecret() sealed.Secret { return sealed.Secret{Key: make([]byte, sealed.KeySize)} }

func testMessage(i int) *Message {
	return &Message{
		Room: "!r:a.example", EventID: "$e", Sender: "@bob:a.example", Device: "BOB1", Type: "m.room.message",
		Content: json.RawMessage(fmt.Sprintf(`{"body":"<%d>","msgtype":"m.text"}`, i)), ID: fmt.Sprint("m", i), Timestamp: int64(i), Epoch: 7,
	}
}

// write seals lines as they are.
func write(t testing.TB, text string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := sealed.NewWriter(&out, magic, testSecret(), rand.Reader)
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestArchiveRoundTrip(t *testing.T) {
	var out bytes.Buffer
	w, err := NewWriter(&out, testSecret(), Header{User: "@a:a.example", Device: "A1"}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const n = 3000
	for i := range n {
		if _, err := w.Add(testMessage(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(&out, testSecret(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if r.Header != (Header{Version: 1, User: "@a:a.example", Device: "A1"}) {
		t.Errorf("header is %+v", r.Header)
	}
	for i := range n {
		got, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(testMessage(i))
		if !bytes.Equal(a, b) {
			t.Fatalf("got %s, want %s", a, b)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last: %v", err)
	}
}

func TestArchiveRefusesOtherContent(t *testing.T) {
	const head = `{"version":1}` + "\n"
	line := func(change func(m *Message)) string {
		m := testMessage(1)
		change(m)
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return head + string(raw) + "\n"
	}
	for name, text := range map[string]string{
		"nothing":                 "",
		"a version to come":       `{"version":2}` + "\n",
		"no JSON":                 head + "hello\n",
		"a line without an end":   head + `{"room_id":"!r:a.example"}`,
		"a line without bounds":   head + strings.Repeat("x", MaxLine+1) + "\n",
		"no room":                 line(func(m *Message) { m.Room = "" }),
		"no event":                line(func(m *Message) { m.EventID = "e" }),
		"no sender":               line(func(m *Message) { m.Sender = "bob" }),
		"no device":               line(func(m *Message) { m.Device = "" }),
		"no content":              line(func(m *Message) { m.Content = json.RawMessage(`[]`) }),
		"content above an event":  line(func(m *Message) { m.Content = json.RawMessage(`{"body":"` + strings.Repeat("x", 41_000) + `"}`) }),
		"no message id":           line(func(m *Message) { m.ID = "" }),
		"an event of the project": line(func(m *Message) { m.Type = "io.github.matrix-mls.commit" }),
		"a ciphertext":            line(func(m *Message) { m.Type = "m.room.encrypted" }),
		"shared by nobody":        line(func(m *Message) { m.SharedBy = "x" }),
	} {
		t.Run(name, func(t *testing.T) {
			r, err := NewReader(bytes.NewReader(write(t, text)), testSecret(), 1<<20)
			if err == nil {
				_, err = r.Next()
			}
			if !errors.Is(err, ErrContent) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := NewReader(strings.NewReader("SQLite format 3\x00"), testSecret(), 1<<20); !errors.Is(err, sealed.ErrFormat) {
		t.Errorf("another file: %v", err)
	}
}

// FuzzReader reads what somebody who knows the secret sealed: no panic, no more than
// the limit, and what is read can be written.
func FuzzReader(f *testing.F) {
	raw, _ := json.Marshal(testMessage(1))
	f.Add([]byte(`{"version":1}` + "\n" + string(raw) + "\n"))
	f.Add([]byte(`{"version":1}` + "\n{}\n"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := NewReader(bytes.NewReader(write(t, string(text))), testSecret(), 1<<20)
		if err != nil {
			return
		}
		w, err := NewWriter(io.Discard, testSecret(), r.Header, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := r.Next()
			if err != nil {
				return
			}
			if _, err := w.Add(m); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
		}
	})
}

// FuzzFile reads files of anybody.
func FuzzFile(f *testing.F) {
	f.Add(write(f, `{"version":1}`+"\n"))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := NewReader(bytes.NewReader(raw), testSecret(), 1<<20)
		for err == nil {
			_, err = r.Next()
		}
	})
}
