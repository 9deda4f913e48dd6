package rooms

import (
	"encoding/binary"

	"golang.org/x/crypto/cryptobyte"
)

// The binary encodings of this package are TLS presentation language with
// 16-bit lengths (32-bit where said): fixed order, no optional parts but those
// with a presence octet, one form for each value.

func appendUint16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func appendUint32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func appendUint64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

// appendVec appends v with a 16-bit length. The caller keeps v within 65,535
// bytes.
func appendVec[T ~string | ~[]byte](b []byte, v T) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
	return append(b, v...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// readVec reads a vector with a 16-bit length of at most atMost bytes and
// copies it.
func readVec[T ~string | ~[]byte](s *cryptobyte.String, out *T, atMost int) bool {
	var v cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&v) || len(v) > atMost {
		return false
	}
	*out = T(append([]byte(nil), v...))
	return true
}

// readList reads a 16-bit count and that many entries.
func readList(s *cryptobyte.String, atMost int, entry func() bool) bool {
	var n uint16
	if !s.ReadUint16(&n) || int(n) > atMost {
		return false
	}
	for range n {
		if !entry() {
			return false
		}
	}
	return true
}

func readBool(s *cryptobyte.String, out *bool) bool {
	var v uint8
	if !s.ReadUint8(&v) || v > 1 {
		return false
	}
	*out = v == 1
	return true
}

func readHash(s *cryptobyte.String, out *Hash) bool { return s.CopyBytes(out[:]) }
