package appservice

import (
	"context"
	"errors"
	"fmt"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
)

// underProbe lets the simulator drive the module by hand: the same calls as Run's
// goroutines make, one after another.
func (s *Service) underProbe(p *probe.Module) {
	s.clock = p.Clock
	l := &loop{Service: s}
	p.Start = func(ctx context.Context) error {
		s.connected.Store(true)
		return errors.Join(s.store.Own(ctx), s.reconcileRooms(ctx), s.engine.Start(ctx))
	}
	p.Deliver = s.takeIn
	p.Round = l.round
	p.Send = s.outbox.round
	p.Woken = func() bool {
		select {
		case <-s.wake:
			return true
		default:
			return false
		}
	}
	e, _ := s.engine.(*Engine)
	e.without = p.Without
	p.Machine = func(room id.RoomID) *federation.Machine {
		if r := e.rooms[room]; r != nil {
			return r.m
		}
		return nil
	}
	p.Group = func(room id.RoomID, ref federation.Ref) (*mls.PublicGroup, error) {
		r := e.rooms[room]
		if r == nil || r.m == nil {
			return nil, fmt.Errorf("appservice: no group in %s", room)
		}
		return e.group(context.Background(), r, ref)
	}
}
