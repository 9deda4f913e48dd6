package simulation

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
)

// secrets are bytes that no server may ever see: 5, server blindness.
type secrets struct {
	known map[string][]byte
}

func (s *secrets) add(name string, secret []byte) {
	if len(secret) >= 16 {
		s.known[name] = bytes.Clone(secret)
	}
}

// learn takes down the secrets that a device holds.
func (s *secrets) learn(*device) {}

// forms are the ways in which a secret may be written.
func forms(secret []byte) [][]byte {
	return [][]byte{
		secret, []byte(hex.EncodeToString(secret)), []byte(base64.RawStdEncoding.EncodeToString(secret)), []byte(base64.RawURLEncoding.EncodeToString(secret)),
	}
}
