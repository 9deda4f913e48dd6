package sealed

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"testing"
)

const testMagic = "test v1\n"

func testKey() Secret { return Secret{Key: bytes.Repeat([]byte{7}, KeySize)} }

func seal(t testing.TB, s Secret, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, testMagic, s, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for len(plain) > 0 { // in pieces of any size
		n := min(len(plain), 10_001)
		if _, err := w.Write(plain[:n]); err != nil {
			t.Fatal(err)
		}
		plain = plain[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte{1}); err == nil {
		t.Error("written after Close")
	}
	return out.Bytes()
}

func open(raw []byte, s Secret, limit int64) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(raw), testMagic, s, limit)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestSealedFilesOpen(t *testing.T) {
	for _, size := range []int{0, 1, PieceSize - 1, PieceSize, PieceSize + 1, 2 * PieceSize, 3*PieceSize + 5} {
		plain := bytes.Repeat([]byte("planted"), size/7+1)[:size]
		raw := seal(t, testKey(), plain)
		if size > 7 && bytes.Contains(raw, []byte("planted")) {
			t.Errorf("%d bytes: the file shows what is in it", size)
		}
		if got, err := open(raw, testKey(), int64(size)); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: got %d (%v)", size, len(got), err)
		}
		if _, err := open(raw, testKey(), int64(size)-1); size > 0 && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes above the limit: %v", size, err)
		}
	}
	pass := Secret{Passphrase: "correct horse battery"}
	raw := seal(t, pass, []byte("hello"))
	if got, err := open(raw, pass, 5); err != nil || string(got) != "hello" {
		t.Errorf("with a passphrase: %q (%v)", got, err)
	}
	if _, err := open(raw, Secret{Passphrase: "another passphrase"}, 5); !errors.Is(err, ErrDamaged) {
		t.Errorf("with another passphrase: %v", err)
	}
	if _, err := open(raw, Secret{Passphrase: "short"}, 5); !errors.Is(err, ErrDamaged) {
		t.Errorf("with one that is too short for any file: %v", err)
	}
	if err := (Secret{Passphrase: "short"}).Check(); !errors.Is(err, ErrPassphrase) {
		t.Errorf("to seal with one that is too short: %v", err)
	}
	if _, err := open(raw, testKey(), 5); !errors.Is(err, ErrDamaged) {
		t.Errorf("with a key: %v", err)
	}
}

func TestChangedFilesDoNotOpen(t *testing.T) {
	raw := seal(t, testKey(), make([]byte, 2*PieceSize+9))
	head, piece := len(testMagic)+34, PieceSize+16
	try := func(name string, raw []byte, want error) {
		t.Helper()
		if _, err := open(raw, testKey(), 1<<20); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	for _, n := range []int{head, head + 1, head + piece, head + 2*piece, len(raw) - 1} {
		try(fmt.Sprintf("cut off at %d", n), raw[:n], ErrDamaged)
	}
	for _, at := range []int{len(testMagic) + 2, head, head + piece, len(raw) - 1} {
		changed := bytes.Clone(raw)
		changed[at] ^= 1
		try(fmt.Sprintf("changed at %d", at), changed, ErrDamaged)
	}
	swapped := bytes.Clone(raw)
	copy(swapped[head:], raw[head+piece:head+2*piece])
	copy(swapped[head+piece:], raw[head:head+piece])
	try("two pieces swapped", swapped, ErrDamaged)
	try("more behind it", append(bytes.Clone(raw), 0), ErrDamaged)
	try("another kind of file", append([]byte("other v1\n"), raw[len(testMagic):]...), ErrFormat)
	try("a cost that takes all memory", append(append([]byte(testMagic), kindKey, maxLogN+1), raw[len(testMagic)+2:]...), ErrFormat)
	for _, s := range []Secret{{}, {Passphrase: "short"}, {Key: make([]byte, 31)}, {Key: make([]byte, 32), Passphrase: "correct horse battery"}} {
		if s.Check() == nil {
			t.Errorf("a secret of %d and %d bytes is taken", len(s.Key), len(s.Passphrase))
		}
	}
	if got := fmt.Sprintf("%v %+v %s", testKey(), testKey(), testKey()); got != "[secret] [secret] [secret]" {
		t.Errorf("a secret prints as %q", got)
	}
}
