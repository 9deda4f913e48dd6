// Package sealed writes and reads files that a passphrase or a key opens, as a
// stream: neither side holds more than one piece of it.
//
// A file is a magic line, the kind of secret (1 octet), scrypt's log2(N) (1
// octet) and 32 random octets; then pieces of at most 64 KiB, each sealed with
// ChaCha20-Poly1305. The sealing key is HKDF-SHA-256 of scrypt(passphrase) or of
// the key, with the random octets as salt and the magic line as info. The nonce
// counts the pieces; its last octet is 1 for the last one, so that nothing can be
// cut off. The header is the first piece's additional data.
package sealed

import (
	"bufio"
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/scrypt"
)

const (
	// PieceSize is the plaintext of one piece.
	PieceSize = 64 << 10
	// KeySize is the size of a key, in bytes.
	KeySize = 32
	// MinPassphrase is the least length of a passphrase, in bytes.
	MinPassphrase = 12

	kindPassphrase = 1
	kindKey        = 2
	logN           = 17
	maxLogN        = 20
	saltSize       = 32
)

// Errors of reading.
var (
	// ErrFormat reports that a file is of another kind.
	ErrFormat = errors.New("sealed: not a file of this kind")
	// ErrPassphrase reports a passphrase that is too short to seal with.
	ErrPassphrase = errors.New("sealed: the passphrase is too short")
	// ErrDamaged reports that the secret does not open the file, or that the file
	// was changed or cut off.
	ErrDamaged = errors.New("sealed: the passphrase or key does not open this file, or it is damaged")
	// ErrTooLarge reports a file above the reader's limit.
	ErrTooLarge = errors.New("sealed: the file is too large")
)

// Secret opens a file: a passphrase or a key. One of the two is set.
type Secret struct {
	Passphrase string
	Key        []byte
}

// String returns a placeholder.
func (Secret) String() string { return "[secret]" }

// Format writes a placeholder.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[secret]")) }

// Check tells whether the secret can seal a file.
func (s Secret) Check() error {
	_, err := s.kind()
	return err
}

func (s Secret) kind() (byte, error) {
	switch {
	case len(s.Key) == KeySize && s.Passphrase == "":
		return kindKey, nil
	case len(s.Key) == 0 && len(s.Passphrase) >= MinPassphrase:
		return kindPassphrase, nil
	case len(s.Key) == 0:
		return 0, fmt.Errorf("%w (%d characters at least)", ErrPassphrase, MinPassphrase)
	}
	return 0, fmt.Errorf("sealed: a passphrase or a key of %d bytes is needed", KeySize)
}

// aead derives the sealing key from the secret and what follows the magic line.
func (s Secret) aead(magic string, params []byte) (cipher.AEAD, error) {
	salt := params[2:]
	ikm := s.Key
	if params[0] == kindPassphrase {
		var err error
		if ikm, err = scrypt.Key([]byte(s.Passphrase), salt, 1<<params[1], 8, 1, 32); err != nil {
			return nil, fmt.Errorf("sealed: derive the key: %w", err)
		}
		defer clear(ikm)
	}
	key, err := hkdf.Key(sha256.New, ikm, salt, magic, chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("sealed: derive the key: %w", err)
	}
	defer clear(key)
	return chacha20poly1305.New(key)
}

func nonce(n uint64, last bool) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 3, chacha20poly1305.NonceSize), n)
	if last {
		return append(b, 1)
	}
	return append(b, 0)
}

// Writer seals what is written to it. Nothing of the file can be read before
// Close has written its last piece.
type Writer struct {
	w      io.Writer
	aead   cipher.AEAD
	header []byte
	piece  []byte
	sealed []byte
	n      uint64
	err    error
}

// NewWriter writes the header of a file and returns a writer for what it holds.
// The magic names the kind of file and ends in a newline.
func NewWriter(w io.Writer, magic string, s Secret, random io.Reader) (*Writer, error) {
	kind, err := s.kind()
	if err != nil {
		return nil, err
	}
	header := append([]byte(magic), kind, logN)
	salt := make([]byte, saltSize)
	if _, err := io.ReadFull(random, salt); err != nil {
		return nil, fmt.Errorf("sealed: randomness: %w", err)
	}
	header = append(header, salt...)
	aead, err := s.aead(magic, header[len(magic):])
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(header); err != nil {
		return nil, fmt.Errorf("sealed: write: %w", err)
	}
	return &Writer{w: w, aead: aead, header: header, piece: make([]byte, 0, PieceSize)}, nil
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 && w.err == nil {
		if len(w.piece) == PieceSize {
			w.flush(false) // there is more: it is not the last one
			continue
		}
		k := min(len(p), PieceSize-len(w.piece))
		w.piece = append(w.piece, p[:k]...)
		p, n = p[k:], n+k
	}
	return n, w.err
}

// Close writes the last piece. It does not close what is below.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.flush(true)
	err := w.err
	if err == nil {
		w.err = errors.New("sealed: the file is closed")
	}
	return err
}

func (w *Writer) flush(last bool) {
	var ad []byte
	if w.n == 0 {
		ad = w.header
	}
	w.sealed = w.aead.Seal(w.sealed[:0], nonce(w.n, last), w.piece, ad)
	clear(w.piece)
	w.piece = w.piece[:0]
	w.n++
	if _, err := w.w.Write(w.sealed); err != nil {
		w.err = fmt.Errorf("sealed: write: %w", err)
	}
}

// Reader gives what a file holds. What it gives is whole only once it has
// returned io.EOF: the end of a file may be missing.
type Reader struct {
	in     *bufio.Reader
	aead   cipher.AEAD
	header []byte
	sealed []byte
	plain  []byte
	n      uint64
	left   int64
	last   bool
	err    error
}

// NewReader reads the header of a file. More than limit bytes of plaintext are
// refused.
func NewReader(r io.Reader, magic string, s Secret, limit int64) (*Reader, error) {
	header := make([]byte, len(magic)+2+saltSize)
	if _, err := io.ReadFull(r, header); err != nil || !bytes.HasPrefix(header, []byte(magic)) {
		return nil, ErrFormat
	}
	kind, err := s.kind()
	switch {
	case errors.Is(err, ErrPassphrase): // no file was made with it
		return nil, ErrDamaged
	case err != nil:
		return nil, err
	}
	switch at := header[len(magic):]; {
	case at[0] != kind && at[0] == kindPassphrase:
		return nil, fmt.Errorf("%w: it was made with a passphrase", ErrDamaged)
	case at[0] != kind && at[0] == kindKey:
		return nil, fmt.Errorf("%w: it was made with a key", ErrDamaged)
	case at[0] != kind || at[1] > maxLogN || at[1] == 0:
		return nil, ErrFormat
	}
	aead, err := s.aead(magic, header[len(magic):])
	if err != nil {
		return nil, err
	}
	size := PieceSize + aead.Overhead()
	return &Reader{in: bufio.NewReaderSize(r, size+1), aead: aead, header: header, sealed: make([]byte, size), left: limit}, nil
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	for len(r.plain) == 0 && r.err == nil {
		r.next()
	}
	if len(r.plain) == 0 {
		return 0, r.err
	}
	n := copy(p, r.plain)
	clear(r.plain[:n])
	r.plain = r.plain[n:]
	return n, nil
}

func (r *Reader) next() {
	if r.last {
		r.err = io.EOF
		return
	}
	k, err := io.ReadFull(r.in, r.sealed)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		r.err = ErrDamaged // cut off between two pieces, too
		return
	}
	_, err = r.in.Peek(1)
	r.last = errors.Is(err, io.EOF)
	var ad []byte
	if r.n == 0 {
		ad = r.header
	}
	plain, err := r.aead.Open(r.sealed[:0], nonce(r.n, r.last), r.sealed[:k], ad)
	if err != nil {
		r.err = ErrDamaged
		return
	}
	if r.left -= int64(len(plain)); r.left < 0 {
		r.err = ErrTooLarge
		return
	}
	r.plain = plain
	r.n++
}
