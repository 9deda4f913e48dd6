package store

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// newAEAD derives the sealing key, so that the bytes of the key file are never
// a cipher key themselves.
func newAEAD(k Key) (cipher.AEAD, error) {
	if len(k) != KeySize {
		return nil, fmt.Errorf("store: the store key has %d bytes, want %d", len(k), KeySize)
	}
	sub, err := hkdf.Key(sha256.New, k, nil, "matrix-mls store v1", chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("store: derive the sealing key: %w", err)
	}
	aead, err := chacha20poly1305.NewX(sub)
	clear(sub)
	if err != nil {
		return nil, fmt.Errorf("store: derive the sealing key: %w", err)
	}
	return aead, nil
}

// place is the additional data of a sealed value: the table and the key columns
// of its row, each with its length, so that a value cannot be moved to another
// row.
func place(table string, key ...string) []byte {
	b := make([]byte, 0, 64)
	for _, part := range append([]string{table}, key...) {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	return b
}

// seal encrypts a value for its place with a fresh random nonce.
func (s *Store) seal(plain, at []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	out := make([]byte, n, n+len(plain)+s.aead.Overhead())
	if _, err := io.ReadFull(s.rand, out); err != nil {
		return nil, fmt.Errorf("store: draw a nonce: %w", err)
	}
	return s.aead.Seal(out, out[:n], plain, at), nil
}

// open decrypts a sealed value that was found at its place.
func (s *Store) open(sealed, at []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < n+s.aead.Overhead() {
		return nil, ErrWrongKey
	}
	plain, err := s.aead.Open(nil, sealed[:n], sealed[n:], at)
	if err != nil {
		return nil, ErrWrongKey
	}
	return plain, nil
}
