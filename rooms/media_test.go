package rooms

import (
	"strings"
	"testing"
)

// TestAddressesOfFiles: what becomes a part of a path is no other part of it.
func TestAddressesOfFiles(t *testing.T) {
	for _, address := range []string{
		"mxc://example.org/abcXYZ019_-", "mxc://example.org:8448/a=", "mxc://1.2.3.4/a", "mxc://[::1]:8448/a", "mxc://hs/a",
	} {
		if !IsMediaAddress(address) {
			t.Errorf("%s is none", address)
		}
	}
	for _, address := range []string{
		"", "mxc://", "mxc://hs", "mxc://hs/", "mxc:///a", "https://hs/a", "mxc://hs/..", "mxc://hs/.", "mxc://../a", "mxc://./a", "mxc://../..", "mxc://hs/a/b",
		"mxc://hs/a?b", "mxc://hs/a#b", "mxc://hs/%2e%2e", "mxc://h%2fs/a", "mxc://u@hs/a", "mxc://hs/a\\b", "mxc://hs/a\x00", "mxc://hs/\u00e4", "mxc://hs/a.b", "mxc://h s/a",
		"mxc://hs/" + strings.Repeat("a", 512),
	} {
		if IsMediaAddress(address) {
			t.Errorf("%q is one", address)
		}
	}
}
