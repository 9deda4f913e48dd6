package rooms

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestBase64AgreesWithStandardLibrary(t *testing.T) {
	strict := base64.RawStdEncoding.Strict()
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")
		s := EncodeBase64(b)
		if want := strict.EncodeToString(b); s != want {
			t.Fatalf("EncodeBase64(%x) = %q, want %q", b, s, want)
		}
		got, err := DecodeBase64(s)
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("DecodeBase64(%q) = %x, %v, want %x", s, got, err, b)
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringOf(rapid.RuneFrom([]rune("AZaz09+/=-_ \n\x00é"))).Draw(t, "text")
		got, err := DecodeBase64(s)
		want, wantErr := strict.DecodeString(s)
		if strings.ContainsAny(s, "\r\n") { // the standard library skips these
			wantErr = errBase64
		}
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("DecodeBase64(%q) = %x, %v; standard library: %x, %v", s, got, err, want, wantErr)
		}
	})
}

func TestBase64EveryByte(t *testing.T) {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for c := range 256 {
		if got, want := decodeSextet(byte(c)), strings.IndexByte(digits, byte(c)); got != want {
			t.Errorf("decodeSextet(%q) = %d, want %d", byte(c), got, want)
		}
	}
	for v := range uint(64) {
		if got := encodeSextet(v); got != digits[v] {
			t.Errorf("encodeSextet(%d) = %q, want %q", v, got, digits[v])
		}
	}
}
