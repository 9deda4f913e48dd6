package appservice

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// keyProbeRoom names, in the store, the bot's own room for tests of the link.
const keyProbeRoom = "probe_room"

// typeProbe is an event without meaning.
const typeProbe = rooms.Prefix + "probe"

// SendProbe sends an event of about size bytes into the bot's own room, making
// that room if there is none. It shows whether the bot can send, how much, and
// whether the homeserver pushes what it got.
func SendProbe(ctx context.Context, hs homeserver.Homeserver, st *store.Store, txnID string, size int) (id.EventID, error) {
	room, err := st.Get(ctx, keyProbeRoom)
	if err != nil {
		return "", err
	}
	content, err := json.Marshal(map[string]string{"pad": strings.Repeat("x", max(size, 0))})
	if err != nil {
		return "", err
	}
	if room != "" {
		event, err := hs.SendEvent(ctx, id.RoomID(room), typeProbe, txnID, content)
		if !errors.Is(err, homeserver.ErrForbidden) && !errors.Is(err, homeserver.ErrNotFound) {
			return event, err
		}
	}
	created, err := hs.CreateRoom(ctx, "matrix-mls link test")
	if err != nil {
		return "", err
	}
	if err := st.Set(ctx, keyProbeRoom, string(created)); err != nil {
		return "", err
	}
	return hs.SendEvent(ctx, created, typeProbe, txnID, content)
}
