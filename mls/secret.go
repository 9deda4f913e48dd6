package mls

import (
	"fmt"
	"io"
)

// redacted is what every secret prints as.
const redacted = "[secret]"

// A secret holds key material. It never prints its bytes.
type secret []byte

func (secret) String() string               { return redacted }
func (secret) GoString() string             { return redacted }
func (secret) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, redacted) }
func (secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
func (secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// zero overwrites the secret. Go may hold copies: best effort.
func (s secret) zero() { clear(s) }

// clone returns a copy with its own memory.
func (s secret) clone() secret { return append(secret(nil), s...) }
