package client

import (
	"context"
	"crypto/hkdf"
	"crypto/sha512"
	"encoding/binary"
	"fmt"

	"maunium.net/go/mautrix/id"
)

// comparisonGroups is how many groups of five digits a code has: 60 digits, about
// 199 bits, so that nobody can search for two groups with the same code.
const comparisonGroups = 12

// ComparisonCode is for people to compare by another way than the homeserver: two
// devices that show the same digits for the same epoch are in the same group, with
// the same members and the same keys.
type ComparisonCode struct {
	Epoch  uint64
	Groups []string // of five digits
}

// ComparisonCode derives the code of a room's newest epoch from the group's epoch
// authenticator (RFC 9420, Section 8.7). With every commit it changes: both sides
// have to look at the same epoch. It fails with [ErrNoRoom], [ErrNotMLS],
// [ErrRemoved] or [ErrNoGroup].
func (c *Client) ComparisonCode(_ context.Context, roomID id.RoomID) (*ComparisonCode, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	switch {
	case r == nil:
		return nil, fmt.Errorf("%w (%s)", ErrNoRoom, roomID)
	case !r.isMLS():
		return nil, fmt.Errorf("%w (%s)", ErrNotMLS, roomID)
	case r.rec.Phase == phaseRemoved:
		return nil, r.outError()
	}
	e := r.head()
	if e == nil || r.rec.Phase != phaseMember {
		return nil, fmt.Errorf("%w (%s)", ErrNoGroup, roomID)
	}
	groups, err := comparisonDigits(e.group.EpochAuthenticator())
	if err != nil {
		return nil, fmt.Errorf("client: code of %s: %w", roomID, err)
	}
	return &ComparisonCode{Epoch: e.number, Groups: groups}, nil
}

// comparisonDigits turns an authenticator into digits, from which it cannot be
// found.
func comparisonDigits(authenticator []byte) ([]string, error) {
	raw, err := hkdf.Key(sha512.New, authenticator, nil, "io.github.matrix-mls comparison code 1", comparisonGroups*8)
	if err != nil {
		return nil, err
	}
	groups := make([]string, comparisonGroups)
	for i := range groups {
		groups[i] = fmt.Sprintf("%05d", binary.BigEndian.Uint64(raw[8*i:])%100_000)
	}
	return groups, nil
}
