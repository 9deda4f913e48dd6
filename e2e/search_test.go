package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

// TestManyTextsAreFoundAtOnce: each in all its forms, wherever what it stands in begins.
func TestManyTextsAreFoundAtOnce(t *testing.T) {
	const text, other = "beginning of it?", "somewhere else~"
	long := strings.Repeat("a long text, ", 100)
	n, err := newNeedles([]string{text, text + " and more", other, long, "nowhere at all"})
	if err != nil {
		t.Fatal(err)
	}
	found := func(data string) map[string]string {
		out := map[string]string{}
		for _, hit := range n.look([]byte(data)) {
			if !strings.Contains(out[hit.text], hit.form+" ") { // once, however often it repeats itself
				out[hit.text] += hit.form + " "
			}
		}
		return out
	}
	got := found("the " + text + " is " + other + text)
	if len(got) != 2 || got[text] != "as it is " || got[other] != "as it is " {
		t.Errorf("found %q", got)
	}
	for _, before := range []string{"", "b", "be", "bef", "before"} {
		for form, data := range map[string]string{
			"as it is ":  before + long,
			"hex ":       before + hex.EncodeToString([]byte(before+long+before)),
			"base64 ":    base64.StdEncoding.EncodeToString([]byte(before + long + before)),
			"base64url ": base64.RawURLEncoding.EncodeToString([]byte(before + "?>" + text + "~~")),
		} {
			want := long
			if form == "base64url " {
				want = text
			}
			got := found(data)
			if form == "base64url " && got[want] == "base64 " { // it has nothing in which they differ
				continue
			}
			if len(got) != 1 || got[want] != form {
				t.Errorf("after %q: found %q, want it as %s", before, got, form)
			}
		}
	}
	if got := found(strings.ToUpper(hex.EncodeToString([]byte(text)))); got[text] != "hex " {
		t.Errorf("found %q", got)
	}
	if got := found(text[:len(text)-1]); len(got) != 0 {
		t.Errorf("found %q in a part of it", got)
	}
	if _, err := newNeedles([]string{"too short"}); err == nil {
		t.Error("what is too short is looked for")
	}
}
