package appservice

import (
	"context"
	"errors"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
)

// How the module learns that the homeserver is away: while nothing happens it asks
// it nothing else for hours.
const (
	awayEvery   = 10 * time.Second // between two looks while it answers
	awayAgain   = 2 * time.Second  // while it does not
	awayTimeout = 10 * time.Second // of one look
	awayLooks   = 2                // in vain, until it counts as away: one may be a connection that broke
)

// runAway keeps since when the homeserver does not answer. Only readiness rests on
// it: nobody should stop the module for that, which goes on by itself.
func (s *Service) runAway(ctx context.Context) { s.watchHomeserver(ctx, awayEvery, awayAgain) }

func (s *Service) watchHomeserver(ctx context.Context, every, again time.Duration) {
	var since time.Time
	for failed := 0; ; {
		began, wait := s.now(), every
		err := s.lookForHomeserver(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if failed++; failed == 1 {
				since = began
			}
			if failed == awayLooks {
				s.away.Store(since.UnixMilli())
				s.log.Warn().Err(err).Time("since", since).Msg("The homeserver does not answer")
			}
			wait = again
		default:
			if s.away.Swap(0) != 0 {
				s.log.Info().Time("since", since).Msg("The homeserver answers again")
			}
			failed = 0
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// lookForHomeserver asks the homeserver what costs it nothing. Whatever it answers
// is an answer, but for its failure, or that of what stands before it.
func (s *Service) lookForHomeserver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, awayTimeout)
	defer cancel()
	_, err := s.hs.Versions(ctx)
	if errors.Is(err, homeserver.ErrUnreachable) || errors.Is(err, homeserver.ErrServer) {
		return err
	}
	return nil
}
