package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The figures that docs/mls-profile.md gives for this package are the ones that
// it uses.
func TestLimitsAreTheDocumentedOnes(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "docs", "mls-profile.md"))
	if err != nil {
		t.Fatal(err)
	}
	l := Limits{}.withDefaults()
	for _, c := range []struct {
		ok   bool
		text string
	}{
		{l.PastEpochs == 3, "until 3 epochs (`client.Limits.PastEpochs`)"},
		{l.Waiting == 500 && l.WaitingAge == 10*time.Minute, "500 of a room, reported after 10 minutes"},
		{refreshAfter == 7*24*time.Hour && refreshMessages == 10_000, "after 7 days or 10,000 messages"},
		{refreshSpread == 24*time.Hour && refreshPause == 10*time.Second, "within an eighth day, at a time of its own"},
		{refreshPause == 10*time.Second, "until 10 s after the last one there"},
	} {
		if !c.ok {
			t.Errorf("the code has another value than %q", c.text)
		}
		if !strings.Contains(string(raw), c.text) {
			t.Errorf("the page does not say %q", c.text)
		}
	}
	if src, err := os.ReadFile("client.go"); err != nil || !strings.Contains(string(src), "PaddingSize: 64}") || !strings.Contains(string(raw), "multiple of 64 bytes") {
		t.Errorf("the padding is not to a multiple of 64 bytes: %v", err)
	}
}
