package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
)

// build makes the room: an open and unencrypted one with the driven clients and half of the others in it, which is closed
// and switched to MLS; then the other half is invited in batches.
func (s *scale) build(ctx context.Context) error {
	founder := s.online[0]
	if s.st.Room == "" {
		room, err := s.openRoom(ctx)
		if err != nil {
			return err
		}
		if err := s.update(func() { s.st.Room = room }); err != nil {
			return err
		}
	}
	if s.st.Grown {
		return s.asLeft(ctx)
	}
	room := s.st.Room
	early := s.st.Crowd[:s.st.Early]
	if !s.st.Closed {
		err := s.account("join the open room", true, func() error {
			if err := s.driveIn(ctx); err != nil {
				return err
			}
			return s.joinAll(ctx, room, "users in the room", early, func(m *member) *bool { return &m.Joined })
		})
		if err != nil {
			return err
		}
		// A join that another server has not heard of when the room is closed would not count there.
		if err := s.heard(ctx, room, len(s.online)+len(early)); err != nil {
			return err
		}
		if _, err := e2e.API(ctx, founder.Server, s.st.Driven[0].User, http.MethodPut, "/rooms/"+url.PathEscape(string(room))+"/state/m.room.join_rules",
			map[string]string{"join_rule": "invite"}); err != nil {
			return err
		}
		if err := s.update(func() { s.st.Closed = true }); err != nil {
			return err
		}
	}
	s.want = s.options.driven
	for n := range early {
		s.want += s.devicesOf(n)
	}
	err := s.account(fmt.Sprintf("switch the room of %d devices to MLS", s.want), true, func() error { return s.enable(ctx, early) })
	if err != nil {
		return err
	}
	grown := s.want
	for n := range s.st.Crowd[s.st.Early:] {
		s.want += s.devicesOf(s.st.Early + n)
	}
	if err := s.account(fmt.Sprintf("add %d devices in batches", s.want-grown), true, func() error { return s.grow(ctx, grown) }); err != nil {
		return err
	}
	if err := s.agreed(ctx, 10*time.Minute); err != nil {
		return err
	}
	if err := s.update(func() { s.st.Grown = true }); err != nil {
		return err
	}
	s.say.note("%d leaves, %d of them driven, and everybody agrees", s.want, len(s.online))
	return s.save(true)
}

// openRoom makes a room that anybody may join.
func (s *scale) openRoom(ctx context.Context) (id.RoomID, error) {
	var made struct {
		RoomID id.RoomID `json:"room_id"`
	}
	first := s.st.Driven[0]
	err := s.http.call(ctx, http.MethodPost, s.w.Server(first.Server).BaseURL+"/_matrix/client/v3/createRoom", first.User.AccessToken, map[string]any{
		"preset": "public_chat", "name": "Scale", "room_version": client.DefaultRoomVersion,
	}, &made)
	return made.RoomID, err
}

// driveIn lets the driven clients join, one of each server before the others.
func (s *scale) driveIn(ctx context.Context) error {
	via := []string{s.w.Server(servers[0]).ServerName}
	join := func(ctx context.Context, d *e2e.Device) error {
		_, err := d.Join(ctx, string(s.st.Room), via)
		return err
	}
	first := map[string]bool{servers[0]: true}
	var others []*e2e.Device
	for _, d := range s.online[1:] {
		if first[d.Server.Name] {
			others = append(others, d)
			continue
		}
		first[d.Server.Name] = true
		if err := join(ctx, d); err != nil {
			return err
		}
	}
	return each(s, ctx, "whole clients in the room", others, func(d *e2e.Device) string { return d.Server.Name }, join)
}

// joinAll lets users of the crowd join a room; done is the note that one has.
func (s *scale) joinAll(ctx context.Context, room id.RoomID, what string, crowd []*member, done func(*member) *bool) error {
	var left []*member
	for _, m := range crowd {
		if !*done(m) {
			left = append(left, m)
		}
	}
	via := "?server_name=" + url.QueryEscape(s.w.Server(servers[0]).ServerName)
	return each(s, ctx, what, left, func(m *member) string { return m.Server }, func(ctx context.Context, m *member) error {
		if err := s.joinOne(ctx, m.Server, m.User, url.PathEscape(string(room))+via); err != nil {
			return err
		}
		return s.update(func() { *done(m) = true })
	})
}

// heard waits until every server shows so many members of a room.
func (s *scale) heard(ctx context.Context, room id.RoomID, want int) error {
	for deadline := time.Now().Add(limit); ; {
		low := want
		for n, server := range servers {
			var answer struct {
				Joined map[id.UserID]struct{} `json:"joined"`
			}
			err := s.http.call(ctx, http.MethodGet, s.w.Server(server).BaseURL+"/_matrix/client/v3/rooms/"+url.PathEscape(string(room))+"/joined_members", s.st.Driven[n].User.AccessToken, struct{}{}, &answer)
			if err != nil {
				return err
			}
			low = min(low, len(answer.Joined))
		}
		if low == want {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("a server knows of %d members of %d", low, want)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// joinOne lets a user join. An invite may still be under way, and a server's first join of a room may fail and work a
// second later.
func (s *scale) joinOne(ctx context.Context, server string, user lab.User, path string) error {
	for deadline := time.Now().Add(e2e.Soon); ; {
		err := s.http.call(ctx, http.MethodPost, s.w.Server(server).BaseURL+"/_matrix/client/v3/join/"+path, user.AccessToken, struct{}{}, nil)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enable switches the room, or goes on where that was interrupted, and waits until all who are in it are in the tree.
func (s *scale) enable(ctx context.Context, early []*member) error {
	founder, room := s.online[0], s.st.Room
	info, err := founder.Room(ctx, room)
	if err != nil && !errors.Is(err, client.ErrNoRoom) { // which is what it says of rooms without MLS
		return err
	}
	if info.Phase != "member" {
		if err := founder.EnableMLS(ctx, room); err != nil {
			return err
		}
	} else if err := s.admitLeft(ctx, early); err != nil {
		return err
	}
	return s.leaves(ctx, s.want)
}

// admitLeft lets in who is in the room and not in the tree: the client that switched the room was ended before it had
// written down whom it lets in.
func (s *scale) admitLeft(ctx context.Context, early []*member) error {
	founder := s.online[0]
	members, err := founder.Members(ctx, s.st.Room)
	if err != nil {
		return err
	}
	in := map[id.UserID]bool{}
	for _, m := range members {
		in[m.User] = in[m.User] || m.Device != ""
	}
	users := make([]id.UserID, 0, len(early)+len(s.online))
	for _, d := range s.online[1:] {
		users = append(users, d.UserID())
	}
	for _, m := range early {
		users = append(users, id.UserID(m.User.UserID))
	}
	for _, user := range users {
		if !in[user] {
			if err := founder.Invite(ctx, s.st.Room, user); err != nil {
				return err
			}
		}
	}
	return nil
}

// grow invites the rest of the crowd in batches and lets them join.
func (s *scale) grow(ctx context.Context, have int) error {
	founder, room := s.online[0], s.st.Room
	rest := s.st.Crowd[s.st.Early:]
	for first := 0; first < len(rest); first += s.batch {
		part := rest[first:min(first+s.batch, len(rest))]
		for n, m := range part {
			if !m.Invited {
				if err := founder.Invite(ctx, room, id.UserID(m.User.UserID)); err != nil {
					return err
				}
				if err := s.update(func() { m.Invited = true }); err != nil {
					return err
				}
			}
			have += s.devicesOf(s.st.Early + first + n)
			s.say.show("users invited", first+n+1, len(rest))
		}
		if err := s.joinAll(ctx, room, "invited users in the room", part, func(m *member) *bool { return &m.Joined }); err != nil {
			return err
		}
		if err := s.leaves(ctx, have); err != nil {
			return err
		}
	}
	return nil
}

// leaves waits until the founder's tree has so many leaves, and as long as it grows.
func (s *scale) leaves(ctx context.Context, want int) error {
	last, since, said := -1, time.Now(), time.Now()
	for {
		info, err := s.online[0].Room(ctx, s.st.Room)
		if err != nil {
			return err
		}
		s.say.show("leaves", info.Devices, want)
		if info.Devices >= want {
			return nil
		}
		if info.Devices != last {
			last, since = info.Devices, time.Now()
		}
		if time.Since(since) > 30*time.Second && time.Since(said) > 30*time.Second {
			s.say.note("waiting for leaves: %s", s.missing(ctx))
			said = time.Now()
		}
		if time.Since(since) > limit {
			return fmt.Errorf("the tree has had %d of %d leaves for 5 minutes: %s", info.Devices, want, s.missing(ctx))
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// missing says why the first users that have no leaf have none, as the founder sees it.
func (s *scale) missing(ctx context.Context) string {
	members, err := s.online[0].Members(ctx, s.st.Room)
	if err != nil {
		return err.Error()
	}
	out := ""
	for _, m := range members {
		if m.Device == "" && len(out) < 500 {
			out += fmt.Sprintf("%s (%s): %s; ", m.User, m.Membership, m.Note)
		}
	}
	return out
}

// agreed waits until all driven clients are on one head with all leaves.
func (s *scale) agreed(ctx context.Context, limit time.Duration) error {
	return s.agree(ctx, limit, s.online)
}

// agree waits until these clients are.
func (s *scale) agree(ctx context.Context, limit time.Duration, devices []*e2e.Device) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		head, why := "", ""
		for _, d := range devices {
			info, err := d.Room(ctx, s.st.Room)
			switch {
			case err != nil:
				why = d.Name + ": " + err.Error()
			case info.Devices != s.want:
				why = fmt.Sprintf("%s sees %d leaves of %d in epoch %d", d.Name, info.Devices, s.want, info.Epoch)
			case head != "" && info.Head.String() != head:
				why = fmt.Sprintf("%s has another head in epoch %d", d.Name, info.Epoch)
			}
			if why != "" {
				break
			}
			head = info.Head.String()
		}
		if why == "" {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("the clients do not agree: %s (%w)", why, err)
		}
	}
}

// settled waits until the head is final, for a while: what a commit brings about is over then.
func (s *scale) settled(ctx context.Context) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		info, err := s.online[0].Room(ctx, s.st.Room)
		if err != nil {
			return err
		}
		if info.Final == info.Epoch {
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// all does something with every driven client at once.
func (s *scale) all(do func(d *e2e.Device) error) error {
	errs := make([]error, len(s.online))
	var wg sync.WaitGroup
	for n, d := range s.online {
		wg.Go(func() { errs[n] = do(d) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
