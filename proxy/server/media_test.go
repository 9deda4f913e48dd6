package server

import "testing"

func TestFilesThatCouldRunInTheProxysNameAreOnlySaved(t *testing.T) {
	for _, tt := range []struct{ claimed, kind, disposition string }{
		{"image/png", "image/png", "inline"},
		{"video/mp4; codecs=x", "video/mp4", "inline"},
		{"text/html", "application/octet-stream", "attachment"},
		{"image/svg+xml", "application/octet-stream", "attachment"},
		{"application/xhtml+xml", "application/octet-stream", "attachment"},
		{"application/pdf", "application/pdf", "attachment"},
		{"", "application/octet-stream", "attachment"},
		{"text/html\r\nX: y", "application/octet-stream", "attachment"},
	} {
		if kind, disposition := shownAs(tt.claimed); kind != tt.kind || disposition != tt.disposition {
			t.Errorf("%q is shown as %s, %s; want %s, %s", tt.claimed, kind, disposition, tt.kind, tt.disposition)
		}
	}
}
