package appservice

import (
	"context"
	"encoding/json"
	"time"
)

// inviteSource is a homeserver that may not push the bot's invites.
type inviteSource interface {
	PushesInvites() bool
	Invites(ctx context.Context, since string, wait time.Duration) (invites []json.RawMessage, next string, err error)
}

const invitePoll = 30 * time.Second

// runInvites takes the bot's invites from its own /sync where the homeserver
// does not push them, by the same door as what is pushed. What came while the
// module was away is in the first answer.
func (s *Service) runInvites(ctx context.Context) {
	source, ok := s.hs.(inviteSource)
	if !ok || source.PushesInvites() {
		return
	}
	for !s.connected.Load() {
		if !sleep(ctx, 200*time.Millisecond) {
			return
		}
	}
	since, wait := "", time.Second
	for ctx.Err() == nil {
		invites, next, err := source.Invites(ctx, since, invitePoll)
		if err == nil {
			err = s.takeIn(s.log.WithContext(ctx), invites)
		}
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn().Err(err).Dur("retry_in", wait).Msg("Could not look for invites")
			}
			if !sleep(ctx, wait) {
				return
			}
			wait = min(2*wait, time.Minute)
			continue
		}
		// A homeserver that answers at once for ever must not be asked in a tight loop.
		if wait = time.Second; next == since && !sleep(ctx, wait) {
			return
		}
		since = next
	}
}
