package mls

import (
	"encoding/binary"

	"golang.org/x/crypto/cryptobyte"
)

// maxVarint is the greatest length a vector can have (RFC 9420, Section 2.1.2).
const maxVarint = 1<<30 - 1

// A reader reads the TLS presentation language of RFC 9420, Section 2.1. The
// methods of [cryptobyte.String] read fixed-size values. The first failure is
// kept, so that reading functions return a bool and chain with ||.
type reader struct {
	cryptobyte.String
	depth   int // vectors around us
	entries int // of vectors that may still be read
	err     *ValidationError
}

// newReader returns a reader of raw. How many entries of vectors it reads, all
// together, is in proportion to the size of raw: entries of a byte or two would
// take a hundred times their size in memory. All that RFC 9420 defines are
// larger on average, or few.
func newReader(raw []byte) *reader {
	return &reader{String: raw, entries: 2048 + len(raw)/32}
}

// fail keeps the first failure and returns false.
func (s *reader) fail(rule Rule, section, format string, args ...any) bool {
	if s.err == nil {
		s.err = newInvalid(rule, section, format, args...)
	}
	return false
}

// error returns the failure that made reading stop. A read that failed without
// naming a rule ran out of input.
func (s *reader) error() error {
	if s.err != nil {
		return s.err
	}
	return invalid("codec/truncated-anywhere", "2.1", "input ends inside a value")
}

// since returns the bytes read since start, a copy of s.String made before.
func (s *reader) since(start cryptobyte.String) []byte {
	n := len(start) - len(s.String)
	return start[:n:n]
}

// unmarshal reads v from the whole of raw and refuses trailing bytes.
func unmarshal(raw []byte, v interface{ unmarshal(*reader) bool }) error {
	s := newReader(raw)
	if !v.unmarshal(s) {
		return s.error()
	}
	if !s.Empty() {
		return invalid("codec/trailing-bytes-message", "6", "%d bytes follow the value", len(s.String))
	}
	return nil
}

// readVarint reads a variable-size length (RFC 9420, Section 2.1.2).
func readVarint(s *reader, out *uint32) bool {
	if len(s.String) == 0 {
		return false
	}
	b := s.String
	switch b[0] >> 6 {
	case 0:
		*out = uint32(b[0])
		s.String = b[1:]
		return true
	case 1:
		if len(b) < 2 {
			return false
		}
		*out = uint32(binary.BigEndian.Uint16(b) & 0x3fff)
		s.String = b[2:]
		if *out < 1<<6 {
			return s.fail("codec/varint-nonminimal-2", "2.1.2", "length %d is sent in 2 bytes", *out)
		}
		return true
	case 2:
		if len(b) < 4 {
			return false
		}
		*out = binary.BigEndian.Uint32(b) & 0x3fffffff
		s.String = b[4:]
		if *out < 1<<14 {
			return s.fail("codec/varint-nonminimal-4", "2.1.2", "length %d is sent in 4 bytes", *out)
		}
		return true
	default:
		return s.fail("codec/varint-prefix-11", "2.1.2", "a length begins with the bits 11")
	}
}

// readOpaqueVec reads opaque<V>. The result aliases the input: who keeps it
// beyond the life of the message copies it.
func readOpaqueVec(s *reader, out *[]byte) bool {
	return readOpaqueVecMax(s, out, maxVarint)
}

// readOpaqueVecMax is readOpaqueVec with a limit of our own on the length.
func readOpaqueVecMax(s *reader, out *[]byte, limit uint32) bool {
	var n uint32
	if !readVarint(s, &n) {
		return false
	}
	if n > limit {
		return s.fail("codec/vector-over-limit", "2.1.2", "a vector of %d bytes is over the limit of %d", n, limit)
	}
	if uint64(n) > uint64(len(s.String)) {
		if s.depth > 0 {
			return s.fail("codec/inner-vector-overruns-outer", "2.1.2", "a vector of %d bytes in a vector with %d bytes left", n, len(s.String))
		}
		return s.fail("codec/vector-longer-than-input", "2.1.2", "a vector of %d bytes with %d bytes of input left", n, len(s.String))
	}
	*out = s.String[:n:n]
	s.String = s.String[n:]
	return true
}

// readVector reads T<V>: it calls f until the vector is used up.
func readVector(s *reader, f func(s *reader) bool) bool {
	var body []byte
	if !readOpaqueVec(s, &body) {
		return false
	}
	if len(body) == 0 {
		return true
	}
	in := reader{String: body, depth: s.depth + 1, entries: s.entries}
	for !in.Empty() {
		if in.entries--; in.entries < 0 {
			return s.fail("codec/vector-over-limit", "", "a vector has too many entries for its size")
		}
		if !f(&in) {
			if in.err == nil {
				in.fail("codec/vector-element-truncated", "2.1.2", "the last element of a vector is cut short")
			}
			if s.err == nil {
				s.err = in.err
			}
			return false
		}
	}
	s.entries = in.entries
	return true
}

// readOptional reads the presence byte of optional<T> (RFC 9420, Section 2.1.1).
func readOptional(s *reader, present *bool) bool {
	var b uint8
	if !s.ReadUint8(&b) {
		return false
	}
	if b > 1 {
		return s.fail("codec/optional-flag-2", "2.1.1", "the presence byte of an optional value is %d", b)
	}
	*present = b == 1
	return true
}

// varintSize returns how many bytes appendVarint writes.
func varintSize(n int) int {
	switch {
	case n < 1<<6:
		return 1
	case n < 1<<14:
		return 2
	default:
		return 4
	}
}

// appendVarint appends a length in its shortest form. Lengths come from our
// own values; those above the format's greatest are a broken invariant.
func appendVarint(b []byte, n int) []byte {
	switch {
	case n < 1<<6:
		return append(b, byte(n))
	case n < 1<<14:
		return binary.BigEndian.AppendUint16(b, uint16(n)|0x4000)
	case n <= maxVarint:
		return binary.BigEndian.AppendUint32(b, uint32(n)|0x80000000)
	default:
		panic("mls: internal: vector longer than 2^30-1 bytes")
	}
}

func appendOpaqueVec[T ~[]byte | ~string](b []byte, v T) []byte {
	b = appendVarint(b, len(v))
	return append(b, v...)
}

// appendVector appends what f appends, with its length before it.
func appendVector(b []byte, f func(b []byte) []byte) []byte {
	// Most vectors are shorter than 64 bytes or short enough that moving
	// them by one to three bytes costs less than counting first.
	at := len(b)
	b = f(append(b, 0))
	n := len(b) - at - 1
	size := varintSize(n)
	if size > 1 {
		b = append(b, 0, 0, 0)[:len(b)+size-1]
		copy(b[at+size:], b[at+1:at+1+n])
	}
	appendVarint(b[:at], n)
	return b
}

func appendOptional(b []byte, present bool) []byte {
	if present {
		return append(b, 1)
	}
	return append(b, 0)
}
