package appservice

import (
	"context"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// loggedRoom is the context's key for the room that its logger names.
type loggedRoom struct{}

// roomLog returns a logger that names a room, once: programs that read a line do not
// agree on which of two fields of one name counts.
func roomLog(ctx context.Context, room id.RoomID) *zerolog.Logger {
	log := zerolog.Ctx(ctx)
	if about, _ := ctx.Value(loggedRoom{}).(id.RoomID); about == room {
		return log
	}
	named := log.With().Stringer("room_id", room).Logger()
	return &named
}

// eventLog lets everything that is logged while an event is handled name it.
func eventLog(ctx context.Context, ev *store.InboxEvent) (context.Context, *zerolog.Logger) {
	log := zerolog.Ctx(ctx).With().Stringer("room_id", ev.Room).Stringer("event_id", ev.EventID).Str("event_type", ev.Type).Logger()
	return context.WithValue(log.WithContext(ctx), loggedRoom{}, ev.Room), &log
}
