package rooms

import (
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"
)

// TestRebaseKeepsBothListChanges: two admins change the list of admins at once;
// who was taken away by either stays away.
func TestRebaseKeepsBothListChanges(t *testing.T) {
	from := DefaultPolicy("!r:a.example", "@a:a.example")
	from.Admins = []id.UserID{"@a:a.example", "@b:a.example", "@c:a.example"}
	mine, onto := from.Clone(), from.Clone()
	mine.Admins = []id.UserID{"@a:a.example", "@c:a.example", "@mine:a.example"}
	onto.Admins = []id.UserID{"@a:a.example", "@b:a.example", "@theirs:a.example"}
	want := []id.UserID{"@a:a.example", "@theirs:a.example", "@mine:a.example"}
	if got := mine.Rebase(from, onto).Admins; !slices.Equal(got, want) {
		t.Errorf("admins %v, want %v", got, want)
	}
	if got := from.Rebase(from, onto).Admins; !slices.Equal(got, onto.Admins) {
		t.Errorf("no change gives %v, want %v", got, onto.Admins)
	}
}
