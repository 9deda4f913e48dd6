package client

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

// TestComparisonCodesAreEqualInOneEpochOnly: devices of one epoch show the same
// digits, another epoch and another room have others.
func TestComparisonCodesAreEqualInOneEpochOnly(t *testing.T) {
	w := newWorld(t)
	room, u := w.apart(2, nil)
	alice, bob := u[0], u[1]
	code := func(d *testDevice, room id.RoomID) *ComparisonCode {
		t.Helper()
		got, err := d.ComparisonCode(w.ctx, room)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	before := code(alice, room)
	if !regexp.MustCompile(`^(\d{5} ){11}\d{5}$`).MatchString(strings.Join(before.Groups, " ")) || before.Epoch != alice.epoch(room) {
		t.Errorf("the code is %v at epoch %d", before.Groups, before.Epoch)
	}
	if other := code(bob, room); !slices.Equal(other.Groups, before.Groups) || other.Epoch != before.Epoch {
		t.Errorf("bob sees %v at %d, alice %v at %d", other.Groups, other.Epoch, before.Groups, before.Epoch)
	}
	w.must(func() error { return alice.Refresh(w.ctx, room) })
	w.settle()
	if after := code(alice, room); after.Epoch == before.Epoch || slices.Equal(after.Groups, before.Groups) {
		t.Errorf("epoch %d has the code of epoch %d", after.Epoch, before.Epoch)
	}
	if _, err := alice.ComparisonCode(w.ctx, "!nowhere:x"); !errors.Is(err, ErrNoRoom) {
		t.Errorf("a room that is not there: %v", err)
	}
}

// TestComparisonCodeOfAKnownAuthenticator keeps codes comparable over versions.
func TestComparisonCodeOfAKnownAuthenticator(t *testing.T) {
	got, err := comparisonDigits([]byte(strings.Repeat("a", 32)))
	if err != nil {
		t.Fatal(err)
	}
	if want := "83018 75667 94260 13428 96944 17193 72748 00399 91149 99766 78674 18379"; strings.Join(got, " ") != want {
		t.Errorf("the code is %s, want %s", strings.Join(got, " "), want)
	}
}
