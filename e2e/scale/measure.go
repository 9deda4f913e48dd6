package main

import (
	"cmp"
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
	limit      = 5 * time.Minute  // of one act
	texts      = 5                // messages whose median is taken
	comeToRest = 10 * time.Second // without a change, after a start

	spoken     = "a message"
	added      = "add a user with one device"
	entered    = "from the newcomer's join until it has read a message"
	removed    = "remove that user"
	banned     = "ban a user of the crowd"
	restarted  = "restart a module"
	afterwards = "a commit after that"
	alone      = "a device comes while nobody else is there (external commit)"
	returned   = "everybody comes back"
)

// act is one that is measured.
type act struct {
	name string
	do   func(context.Context) error
	// with names the last of several acts that belong together: until that one was measured, all of them are measured anew.
	with string
	// before makes ready what the act needs, and is not measured; nil: nothing.
	before func(context.Context) error
	rest   func(context.Context) error // what is awaited after it; nil: nothing
	many   int                         // the median of so many; 0: it is done once
	links  bool                        // it cuts links between the servers
	short  bool                        // it is one of the few of a short run
}

// acts are what is measured, in this order.
func (s *scale) acts() []act {
	all := []act{
		{name: "a commit in a cold tree", do: func(ctx context.Context) error { return s.refresh(ctx, s.online[1]) }, rest: s.settled},
		{name: "a commit by the same client", do: func(ctx context.Context) error { return s.refresh(ctx, s.online[1]) }, rest: s.settled},
		{name: spoken, do: s.nextText, many: texts, short: true},
		{name: added, do: s.add, with: removed, rest: s.settled, short: true},
		{name: "the newcomer reads a message", do: func(ctx context.Context) error { return s.text(ctx, s.online[2%len(s.online)]) }, with: removed, rest: s.settled, short: true},
		{name: removed, do: s.remove, rest: s.settled, short: true},
		{name: banned, do: s.ban, rest: s.settled, short: true},
		{name: "a further device of a member", do: s.further, rest: s.settled},
		{name: restarted, do: s.restart, rest: s.settled, short: true},
		{name: afterwards, do: func(ctx context.Context) error { return s.refresh(ctx, s.online[0]) }, rest: s.settled, short: true},
		{name: "all whole clients commit at once", do: s.together, rest: s.settled},
		{name: alone, do: s.alone, with: returned, short: true}, // nobody is there who could vouch for it
		{name: returned, do: s.back, rest: s.settled, short: true},
		{name: rebuilt, do: s.rebuild, with: ordering, short: true},
		{name: ordering, do: s.ordersAgain, rest: s.settled, short: true},
		{name: healed, before: s.part, do: s.heal, rest: s.once, links: true},
	}
	if s.short {
		all = slices.DeleteFunc(all, func(a act) bool { return !a.short })
	}
	return all
}

// measure measures single acts in the room of the full size. A program that goes on leaves out what was measured.
func (s *scale) measure(ctx context.Context) error {
	if err := s.listed(ctx); err != nil {
		return err
	}
	for _, a := range s.acts() {
		if s.measured(a) {
			continue
		}
		if a.links && !s.st.Links {
			s.say.note("%s: left out, as the program that began this run could not cut links", a.name)
			continue
		}
		var all []*cost
		for range max(a.many, 1) {
			if a.before != nil {
				if err := a.before(ctx); err != nil {
					return fmt.Errorf("before %s: %w", a.name, err)
				}
			}
			c, err := s.meter(ctx, s.st.Room, a.name, a.do, a.rest)
			if err != nil {
				return err
			}
			all = append(all, c)
		}
		if err := s.keep(median(all)); err != nil {
			return err
		}
		if a.name == added {
			if err := s.keep(&cost{Name: entered, Seconds: s.entered.Seconds()}); err != nil {
				return err
			}
		}
	}
	return nil
}

// measured tells whether an act, and those that belong to it, were measured.
func (s *scale) measured(a act) bool {
	return slices.ContainsFunc(s.costs, func(c *cost) bool { return c.Name == cmp.Or(a.with, a.name) })
}

// keep writes down what an act took, in the place of what was measured of it before.
func (s *scale) keep(c *cost) error {
	s.mu.Lock()
	if at := slices.IndexFunc(s.costs, func(old *cost) bool { return old.Name == c.Name }); at >= 0 {
		s.costs[at] = c
	} else {
		s.costs = append(s.costs, c)
	}
	s.mu.Unlock()
	return s.save(true)
}

// asLeft takes over a room of the full size as a program left it that was ended at its acts: the user whom an act lets in
// and out is out, and who is not in the room has no leaf.
func (s *scale) asLeft(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	founder, kicked := s.online[0], false
	for steady := time.Now(); time.Since(steady) < comeToRest; {
		members, err := founder.Members(ctx, s.st.Room)
		if err != nil {
			return err
		}
		leaves, open := 0, ""
		for _, m := range members {
			if m.User == s.late.UserID() && m.Membership == "join" && !kicked {
				kicked = true
				if err := founder.Kick(ctx, s.st.Room, m.User, "measured anew"); err != nil {
					return err
				}
			}
			if m.Device == "" {
				continue
			}
			if leaves++; m.Membership != "join" || m.User == s.late.UserID() {
				open = fmt.Sprintf("%s is %s and has a leaf still", m.User, m.Membership)
			}
		}
		if leaves != s.want || open != "" {
			s.want, steady = leaves, time.Now()
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return fmt.Errorf("the room does not come to rest: %s (%w)", open, err)
		}
	}
	return s.agreed(ctx, limit)
}

// listed lets the modules of all three servers order the room, as the clients of its admins would after a while.
func (s *scale) listed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	founder, room := s.founder(), s.st.Room
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
	if err := s.repaired(ctx); err != nil { // a program was ended after a module had lost its database
		return err
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
	if err := s.agreed(ctx, limit*4); err != nil { // an epoch for each of them
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

// nextText lets one client after the other send.
func (s *scale) nextText(ctx context.Context) error {
	s.texts++
	return s.text(ctx, s.online[s.texts%len(s.online)])
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
	began := time.Now()
	if _, err := s.late.Join(ctx, string(room), []string{founder.Server.ServerName}); err != nil {
		return err
	}
	s.online, s.want = append(s.online, s.late), s.want+1
	first := make(chan error, 1)
	go func() {
		err := s.greet(ctx, s.online[2%len(s.online)], s.late)
		s.entered = time.Since(began)
		first <- err
	}()
	err := s.agreed(ctx, limit)
	if err != nil {
		cancel()
	}
	return errors.Join(err, <-first)
}

// greet lets a member send as soon as it has the newcomer in its tree, and waits until the newcomer has read that.
func (s *scale) greet(ctx context.Context, from, to *e2e.Device) error {
	for {
		info, err := from.Room(ctx, s.st.Room)
		if err != nil {
			return err
		}
		if info.Devices == s.want {
			break
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("%s is not in the tree that %s has (%w)", to.Name, from.Name, err)
		}
	}
	body := fmt.Sprintf("%s welcomes: %d", from.Name, time.Now().UnixNano())
	if _, err := from.SendText(ctx, s.st.Room, body); err != nil {
		return err
	}
	_, err := to.WaitText(ctx, s.st.Room, body)
	return err
}

// remove takes out the user whom add added.
func (s *scale) remove(ctx context.Context) error {
	if err := s.online[0].Kick(ctx, s.st.Room, s.late.UserID(), "measured"); err != nil {
		return err
	}
	s.online, s.want = s.online[:len(s.online)-1], s.want-1
	return s.agreed(ctx, limit)
}

// ban bans the first user of the crowd, with all devices, or the next, if a program was ended at that.
func (s *scale) ban(ctx context.Context) error {
	n := s.st.Banned
	if err := s.update(func() { s.st.Banned++ }); err != nil {
		return err
	}
	if err := s.save(true); err != nil {
		return err
	}
	if err := s.online[0].Ban(ctx, s.st.Room, id.UserID(s.st.Crowd[n].User.UserID), "measured"); err != nil {
		return err
	}
	s.want -= s.devicesOf(n)
	return s.agreed(ctx, limit)
}

// oneMore makes a further whole client of a driven user.
func (s *scale) oneMore(ctx context.Context, n int, name string) (*e2e.Device, error) {
	of := s.st.Driven[n]
	d, err := s.w.NewDeviceOf(ctx, of.Server, of.User, fmt.Sprintf("%s-%s-%d", of.User.Localpart, name, s.st.Starts),
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
	if err := s.ending("module-" + servers[0]); err != nil {
		return err
	}
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
