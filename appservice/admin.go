package appservice

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/federation/picture"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// What an admin sees, in the terminal and in a room: read from the database
// alone, so that it is the same in both and works while the module is down.

// roomsAtOnce is how many rooms one page of a list has.
const roomsAtOnce = 50

// StatusText says how the module does.
func StatusText(ctx context.Context, st *store.Store, now time.Time) (string, error) {
	var b strings.Builder
	counts, err := st.CountRooms(ctx)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&b, "rooms: %d served, %d joined without a group yet, %d invitations open, %d left\n",
		counts[store.RoomServing], counts[store.RoomJoined], counts[store.RoomInvited], counts[store.RoomLeft])
	age := func(oldest time.Time) string {
		if oldest.IsZero() {
			return ""
		}
		return fmt.Sprintf(", the oldest for %v", max(now.Sub(oldest), 0).Round(time.Second))
	}
	fresh, oldest, err := st.CountInbox(ctx, store.InboxNew)
	if err != nil {
		return "", err
	}
	waits, _, err := st.CountInbox(ctx, store.InboxWaiting)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&b, "inbox: %d events to deal with%s; %d wait for something missing\n", fresh, age(oldest), waits)
	out, oldest, attempts, err := st.CountOutbox(ctx, store.OutboxWaiting)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&b, "outbox: %d events to send%s", out, age(oldest))
	if attempts > 0 {
		fmt.Fprintf(&b, ", tried up to %d times", attempts)
	}
	b.WriteString("\n")
	names, err := st.KeyNames(ctx)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if name != KeyReceipt && !strings.HasPrefix(name, keyReceiptNext) {
			continue
		}
		seed, err := st.Key(ctx, name)
		if err != nil {
			return "", err
		}
		if len(seed) == ed25519.SeedSize {
			public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
			fmt.Fprintf(&b, "key %s: %s\n", name, base64.RawStdEncoding.EncodeToString(public))
		}
	}
	if mark, err := st.Get(ctx, store.KeyRestored); err != nil {
		return "", err
	} else if _, at, ok := strings.Cut(mark, " "); ok {
		fmt.Fprintf(&b, "restored from a backup at %s\n", at)
	}
	list, err := st.Refusals(ctx, 3)
	if err != nil {
		return "", err
	}
	for _, r := range list {
		fmt.Fprintf(&b, "refused %s: %s %s\n", r.At.UTC().Format(time.RFC3339), r.Rule, cut(r.Detail, 120))
	}
	return b.String(), nil
}

// RoomsText lists the rooms, a page at a time, from 1 on.
func RoomsText(ctx context.Context, st *store.Store, page int) (string, error) {
	list, err := st.ListRooms(ctx, roomsAtOnce+1, (max(page, 1)-1)*roomsAtOnce)
	if err != nil {
		return "", err
	}
	if len(list) == 0 {
		return "no rooms\n", nil
	}
	var b strings.Builder
	for i, r := range list {
		if i == roomsAtOnce {
			fmt.Fprintf(&b, "more on page %d\n", max(page, 1)+1)
			break
		}
		fmt.Fprintf(&b, "%s %s", r.ID, r.Status)
		if r.Head != "" {
			fmt.Fprintf(&b, ", epoch %d, head %s", r.Epoch, cut(r.Head, 8))
		}
		b.WriteString("\n")
	}
	return b.String(), nil
}

// ErrNoRoom says that the module does not know a room.
var ErrNoRoom = errors.New("appservice: the module does not know this room")

// roomMachine reads a room; the machine is nil if it has no group yet.
func roomMachine(ctx context.Context, st *store.Store, room id.RoomID) (*store.Room, *federation.Machine, error) {
	row, err := st.Room(ctx, room)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, fmt.Errorf("%w: %s", ErrNoRoom, room)
	}
	if err != nil || len(row.Machine) == 0 {
		return row, nil, err
	}
	m, err := federation.Unmarshal(federation.Config{Room: string(room), Verify: rooms.VerifyLeafSignature}, row.Machine)
	if err != nil {
		return nil, nil, fmt.Errorf("appservice: room %s: %w", room, err)
	}
	return row, m, nil
}

// ErrNoGroup says that the module knows a room without a group.
var ErrNoGroup = errors.New("appservice: the room has no group yet")

// EpochPicture draws a room's epochs as the module of a server knows them. A
// module reads no messages: how far a device has come it knows by commits and
// statements alone.
func EpochPicture(ctx context.Context, st *store.Store, room id.RoomID, server string, rows int) (*picture.Picture, error) {
	_, m, err := roomMachine(ctx, st, room)
	switch {
	case err != nil:
		return nil, err
	case m == nil:
		return nil, fmt.Errorf("%w: %s", ErrNoGroup, room)
	}
	return picture.Of(m.Survey(), picture.Options{Source: "as the module of " + server + " sees it", Rows: rows}), nil
}

// RoomText says how a room's epochs stand, and who puts them in order.
func RoomText(ctx context.Context, st *store.Store, room id.RoomID) (string, error) {
	row, m, err := roomMachine(ctx, st, room)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", row.ID, row.Status)
	if m == nil {
		b.WriteString("no group yet\n")
		return b.String(), nil
	}
	head, final := m.Head(), m.NewestFinal()
	era, _ := m.EraOf()
	fmt.Fprintf(&b, "head: epoch %d, %s; era %d\n", row.Epoch, head.Short(), era)
	if head == final {
		b.WriteString("final: the head\n")
	} else {
		fmt.Fprintf(&b, "final: %s, %d commits below the head\n", final.Short(), len(m.Path(final, head)))
	}
	if usable := m.UsableHead(); usable != head {
		fmt.Fprintf(&b, "frozen: clients send in %s, %d commits below the head\n", usable.Short(), len(m.Path(usable, head)))
	}
	if ref, ok := m.Unvouched(); ok {
		fmt.Fprintf(&b, "unvouched: whoever could vouch for %s has left, so that nothing becomes final; an admin of the room opens a new era: mls-proxy era\n", ref.Short())
	}
	marks := make(map[string]uint64)
	for _, mark := range m.NewestReceipts() {
		marks[string(mark.Key)] = mark.Counter
	}
	show := func(what string, list federation.List) {
		fmt.Fprintf(&b, "%s: %d, a majority is %d\n", what, len(list), list.Quorum())
		for i, s := range list {
			fmt.Fprintf(&b, "  %d. %s, key %s, %d receipts seen\n", i, s.User, cut(base64.RawStdEncoding.EncodeToString(s.ReceiptKey), 8), marks[string(s.ReceiptKey)])
		}
	}
	ref, changing := rooms.ListToCome(m, federation.Ref{})
	if !changing {
		show("sequencers", rooms.ListInForce(m))
		return b.String(), nil
	}
	show("sequencers in force", rooms.ListInForce(m))
	list, _ := m.ListAt(ref)
	state := "waits for its modules"
	if m.Accepted(ref) {
		state = "accepted, not final"
	}
	show("being changed to ("+state+")", list)
	return b.String(), nil
}
