package rooms

import "errors"

// errBase64 is the one error of the decoder: it tells nothing about the input.
var errBase64 = errors.New("not unpadded standard base64")

// EncodeBase64 returns b in unpadded standard base64, as the Matrix
// specification writes binary data (appendices, "Unpadded Base64"). It runs in
// time that depends on the length only, so secrets may pass through it.
func EncodeBase64(b []byte) string {
	out := make([]byte, 0, (len(b)*8+5)/6)
	for len(b) >= 3 {
		v := uint(b[0])<<16 | uint(b[1])<<8 | uint(b[2])
		out = append(out, encodeSextet(v>>18), encodeSextet(v>>12&63), encodeSextet(v>>6&63), encodeSextet(v&63))
		b = b[3:]
	}
	switch len(b) {
	case 1:
		v := uint(b[0]) << 4
		out = append(out, encodeSextet(v>>6), encodeSextet(v&63))
	case 2:
		v := uint(b[0])<<10 | uint(b[1])<<2
		out = append(out, encodeSextet(v>>12), encodeSextet(v>>6&63), encodeSextet(v&63))
	}
	return string(out)
}

// DecodeBase64 decodes unpadded standard base64. It refuses padding, the
// URL-safe alphabet, whitespace and set bits after the last byte, so that every
// value has exactly one form; the error is a [Refusal] with
// [RuleBase64Malformed]. It runs in time that depends on the length only.
func DecodeBase64(s string) ([]byte, error) {
	b, err := decodeBase64(s)
	if err != nil {
		return nil, &Refusal{Rule: RuleBase64Malformed, Err: err}
	}
	return b, nil
}

func decodeBase64(s string) ([]byte, error) {
	if len(s)%4 == 1 {
		return nil, errBase64
	}
	out := make([]byte, 0, len(s)*6/8)
	bad := 0
	i := 0
	for ; i+4 <= len(s); i += 4 {
		a, b, c, d := decodeSextet(s[i]), decodeSextet(s[i+1]), decodeSextet(s[i+2]), decodeSextet(s[i+3])
		bad |= a | b | c | d
		v := a<<18 | b<<12 | c<<6 | d
		out = append(out, byte(v>>16), byte(v>>8), byte(v))
	}
	switch len(s) - i {
	case 2:
		a, b := decodeSextet(s[i]), decodeSextet(s[i+1])
		bad |= a | b | -(b & 0xf)
		out = append(out, byte(a<<2|b>>4))
	case 3:
		a, b, c := decodeSextet(s[i]), decodeSextet(s[i+1]), decodeSextet(s[i+2])
		bad |= a | b | c | -(c & 0x3)
		out = append(out, byte(a<<2|b>>4), byte(b<<4|c>>2))
	}
	if bad < 0 { // a negative value anywhere sets the sign bit of the sum
		clear(out)
		return nil, errBase64
	}
	return out, nil
}

// decodeSextet maps a base64 digit to 0…63 and anything else to -1, without
// branches or table look-ups on c.
func decodeSextet(c byte) int {
	x := int(c)
	v := -1
	v += within(x, 'A', 'Z') & (x - 'A' + 1)
	v += within(x, 'a', 'z') & (x - 'a' + 27)
	v += within(x, '0', '9') & (x - '0' + 53)
	v += within(x, '+', '+') & 63
	v += within(x, '/', '/') & 64
	return v
}

// within returns all ones if lo ≤ x ≤ hi, else 0.
func within(x, lo, hi int) int { return ((lo - 1 - x) & (x - hi - 1)) >> 16 }

// encodeSextet maps 0…63 to its base64 digit, without branches or table
// look-ups on v.
func encodeSextet(v uint) byte {
	x := int(v)
	return byte(within(x, 0, 25)&(x+'A') | within(x, 26, 51)&(x-26+'a') |
		within(x, 52, 61)&(x-52+'0') | within(x, 62, 62)&'+' | within(x, 63, 63)&'/')
}

// Bytes is binary data that JSON carries as unpadded standard base64.
type Bytes []byte

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(EncodeBase64(b)), nil }

// UnmarshalText implements encoding.TextUnmarshaler; see [DecodeBase64].
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := DecodeBase64(string(text))
	if err != nil {
		return err
	}
	*b = v
	return nil
}

// Hash is a SHA-256 value: the ref of a commit, or the hash of a receipt or a
// file. JSON carries it as 43 digits of unpadded standard base64. It converts
// to federation.Ref and back.
type Hash [32]byte

// IsZero tells whether h is the zero value, which names nothing.
func (h Hash) IsZero() bool { return h == Hash{} }

// String returns the base64 form.
func (h Hash) String() string { return EncodeBase64(h[:]) }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it refuses any other
// length than 32 bytes.
func (h *Hash) UnmarshalText(text []byte) error {
	v, err := DecodeBase64(string(text))
	if err != nil {
		return err
	}
	if len(v) != len(h) {
		return refuse(RuleContentMalformed, "", "hash of %d bytes, want %d", len(v), len(h))
	}
	copy(h[:], v)
	return nil
}
