package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/mls"
)

const (
	limit = 5 * time.Minute // of one act
	texts = 5               // messages whose median is taken

	alone = "a device comes while nobody else is there (external commit)"
)

// measure measures single acts in the room of the full size. It can be begun again at its start only.
func (s *scale) measure(ctx context.Context) error {
	if err := s.listed(ctx); err != nil {
		return err
	}
	for _, act := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"a commit in a cold tree", func(ctx context.Context) error { return s.refresh(ctx, s.online[1]) }},
		{"a commit by the same client", func(ctx context.Context) error { return s.refresh(ctx, s.online[1]) }},
		{"add a user with one device", s.add},
		{"the newcomer reads a message", func(ctx context.Context) error { return s.text(ctx, s.online[2%len(s.online)]) }},
		{"remove that user", s.remove},
		{"ban a user of the crowd", s.ban},
		{"a further device of a member", s.further},
		{"restart a module", s.restart},
		{"a commit after that", func(ctx context.Context) error { return s.refresh(ctx, s.online[0]) }},
		{fmt.Sprintf("all %d whole clients commit at once", len(s.online)+1), s.together}, // one more by then
		{alone, s.alone},
		{"everybody comes back", s.back},
	} {
		rest := s.settled
		if act.name == alone {
			rest = nil // nobody is there who could vouch for it
		}
		c, err := s.meter(ctx, s.st.Room, act.name, act.do, rest)
		if err != nil {
			return err
		}
		s.costs = append(s.costs, c)
		if act.name == "a commit by the same client" {
			if err := s.messages(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// listed lets the modules of all three servers order the room, as the clients of its admins would after a while.
func (s *scale) listed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	founder, room := s.online[0], s.st.Room
	var names []string
	for _, name := range servers {
		names = append(names, s.w.Server(name).ServerName)
	}
	info, err := founder.Sequencers(ctx, room)
	if err != nil {
		return err
	}
	// Who switches a room invites the own server's module; others came with the users who were invited later.
	for _, name := range names {
		if slices.Contains(info.Without, name) {
			if err := founder.CallModule(ctx, room, name); err != nil {
				return err
			}
		}
	}
	if len(info.List) < len(names) {
		if err := founder.SetSequencers(ctx, room, names...); err != nil {
			return err
		}
	}
	for {
		if info, err = founder.Sequencers(ctx, room); err != nil {
			return err
		}
		if len(info.List) == len(names) && info.Change == nil && info.Final == info.Epoch {
			return s.agreed(ctx, limit)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("%d modules order the room, not %d (%w)", len(info.List), len(names), err)
		}
	}
}

// refresh lets a client commit with a fresh path.
func (s *scale) refresh(ctx context.Context, d *e2e.Device) error {
	if err := d.Refresh(ctx, s.st.Room); err != nil {
		return err
	}
	return s.agreed(ctx, limit)
}

// together lets all clients commit a fresh path at once: an epoch takes one commit, so each must win once, and no more
// epochs than a few may pass beside those.
func (s *scale) together(ctx context.Context) error {
	epoch := func() (uint64, error) {
		info, err := s.online[0].Room(ctx, s.st.Room)
		return info.Epoch, err
	}
	before, err := epoch()
	if err != nil {
		return err
	}
	if err := s.all(func(d *e2e.Device) error { return d.Refresh(ctx, s.st.Room) }); err != nil {
		return err
	}
	if err := s.agreed(ctx, limit); err != nil {
		return err
	}
	after, err := epoch()
	if err != nil {
		return err
	}
	s.say.note("the fresh paths of %d clients at once are in after %d accepted commits", len(s.online), after-before)
	if most := uint64(len(s.online) + 4); after-before > most {
		return fmt.Errorf("%d clients committed at once, and %d commits were accepted until all were in, more than %d", len(s.online), after-before, most)
	}
	return nil
}

// text lets a client send, and waits until all have read it.
func (s *scale) text(ctx context.Context, from *e2e.Device) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	body := fmt.Sprintf("%s says: %d", from.Name, time.Now().UnixNano())
	errs := make(chan error, 1)
	go func() {
		_, err := from.SendText(ctx, s.st.Room, body)
		errs <- err
	}()
	err := s.all(func(d *e2e.Device) error {
		_, err := d.WaitText(ctx, s.st.Room, body)
		return err
	})
	return errors.Join(<-errs, err)
}

// messages takes the median of several.
func (s *scale) messages(ctx context.Context) error {
	var all []*cost
	for n := range texts {
		c, err := s.meter(ctx, s.st.Room, "a message", func(ctx context.Context) error { return s.text(ctx, s.online[n%len(s.online)]) }, nil)
		if err != nil {
			return err
		}
		all = append(all, c)
	}
	s.costs = append(s.costs, median(all))
	return nil
}

func median(all []*cost) *cost {
	slices.SortFunc(all, func(a, b *cost) int { return int((a.Seconds - b.Seconds) * 1e6) })
	return all[len(all)/2]
}

// add invites a user with one whole client, who joins at once.
func (s *scale) add(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	founder, room := s.online[0], s.st.Room
	if err := founder.Invite(ctx, room, s.late.UserID()); err != nil {
		return err
	}
	if _, err := s.late.Wait(ctx, "the invite", func(u client.Update) bool {
		i, ok := u.(*client.Invited)
		return ok && i.Room == room
	}); err != nil {
		return err
	}
	if _, err := s.late.Join(ctx, string(room), []string{founder.Server.ServerName}); err != nil {
		return err
	}
	s.online, s.want = append(s.online, s.late), s.want+1
	return s.agreed(ctx, limit)
}

// remove takes out the user whom add added.
func (s *scale) remove(ctx context.Context) error {
	if err := s.online[0].Kick(ctx, s.st.Room, s.late.UserID(), "measured"); err != nil {
		return err
	}
	s.online, s.want = s.online[:len(s.online)-1], s.want-1
	return s.agreed(ctx, limit)
}

// ban bans the first user of the crowd, with all devices.
func (s *scale) ban(ctx context.Context) error {
	if err := s.online[0].Ban(ctx, s.st.Room, id.UserID(s.st.Crowd[0].User.UserID), "measured"); err != nil {
		return err
	}
	s.want -= s.devicesOf(0)
	return s.agreed(ctx, limit)
}

// oneMore makes a further whole client of a driven user.
func (s *scale) oneMore(ctx context.Context, n int, name string) (*e2e.Device, error) {
	of := s.st.Driven[n]
	d, err := s.newDevice(ctx, s.w.Server(of.Server), of.User, fmt.Sprintf("%s-%s-%d", of.User.Localpart, name, s.st.Starts),
		e2e.DeviceOptions{RecoveryKey: of.Recovery, HTTP: s.http.client(), Suites: []mls.CipherSuite{suite}})
	if err != nil {
		return nil, err
	}
	s.more = append(s.more, d)
	s.want++
	return d, nil
}

// further logs a member in on one more device, which is cross-signed and added.
func (s *scale) further(ctx context.Context) error {
	d, err := s.oneMore(ctx, 1, "further")
	if err != nil {
		return err
	}
	s.online = append(s.online, d)
	return s.agreed(ctx, limit)
}

// restart ends a module in the orderly way and starts it.
func (s *scale) restart(ctx context.Context) error {
	return s.w.RestartModule(ctx, servers[0], false)
}

// alone stops all clients; then a member logs in on one more device, which finds nobody who could add it.
func (s *scale) alone(ctx context.Context) error {
	if err := s.all((*e2e.Device).Stop); err != nil {
		return err
	}
	away := s.online
	began := time.Now()
	d, err := s.oneMore(ctx, 2, "alone")
	if err != nil {
		return err
	}
	s.online = []*e2e.Device{d}
	err = s.agreed(ctx, limit)
	s.say.note("the device was in the group %.2f s after its login began", time.Since(began).Seconds())
	s.online = append(s.online, away...)
	return err
}

// back starts the clients that alone stopped.
func (s *scale) back(ctx context.Context) error {
	if err := s.all(func(d *e2e.Device) error {
		if d.Client != nil {
			return nil
		}
		return d.Restart(ctx)
	}); err != nil {
		return err
	}
	return s.agreed(ctx, limit)
}
