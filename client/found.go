package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// CreateOptions describe a new room.
type CreateOptions struct {
	Name, Topic string
	Invite      []id.UserID
	Public      bool
	Direct      bool
	History     string // history visibility; "invited" if empty
	Version     string // room version; DefaultRoomVersion if empty
	// Power, if set, is laid over the room's power levels, as
	// power_level_content_override is; see rooms.CreateOptions.
	Power json.RawMessage
	// Announcement lets only moderators send messages.
	Announcement bool
	// Policy, if set, changes the policy the group is founded with.
	Policy func(p *rooms.Policy)
}

// DefaultRoomVersion is the version of new rooms. Dendrite 0.15 rejects events
// of version 12 rooms when it has to look up state it missed.
const DefaultRoomVersion = "11"

// CreateRoom creates an MLS room, founds its group with the module of the own
// server and invites users. Where the own server has no module, that of an
// invited user's server serves; without any it fails with [ErrNoModule]. It
// returns once the group exists; keys go to the invited devices as soon as the
// module accepted the commit that adds them (see Settle).
func (c *Client) CreateRoom(ctx context.Context, o CreateOptions) (id.RoomID, error) {
	nonce, err := c.newID()
	if err != nil {
		return "", err
	}
	if o.Version == "" {
		o.Version = DefaultRoomVersion
	}
	preset := "private_chat"
	if o.Public {
		preset = "public_chat"
	}
	req, err := rooms.CreateRequest(rooms.CreateOptions{
		Name: o.Name, Topic: o.Topic, Preset: preset, Direct: o.Direct, Version: o.Version, HistoryVisibility: o.History,
		Bots: []id.UserID{botOf(serverOf(c.UserID()))}, Announcement: o.Announcement, Nonce: nonce,
		Power: o.Power,
	})
	if err != nil {
		return "", err
	}
	// /sync may show the room before the homeserver's answer is here.
	c.mu.Lock()
	c.creating++
	c.mu.Unlock()
	created := sync.OnceFunc(func() { c.creating-- }) // with the lock held
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		created()
	}()
	var roomID id.RoomID
	if err := c.retry(ctx, func() (err error) {
		roomID, err = c.hs.CreateRoom(ctx, req)
		return err
	}); err != nil {
		return "", fmt.Errorf("client: create a room: %w", err)
	}
	if err := c.found(ctx, roomID, func(p *rooms.Policy) {
		// What was asked for counts, not the join rule that the server shows.
		if o.Public {
			p.Join = rooms.JoinOpen
		}
		if o.Policy != nil {
			o.Policy(p)
		}
	}, created, o.Invite); err != nil {
		return roomID, err
	}
	for _, user := range o.Invite {
		if err := c.Invite(ctx, roomID, user); err != nil {
			return roomID, err
		}
	}
	return roomID, nil
}

// EnableMLS turns an existing unencrypted room into an MLS room. The user
// needs the power to change the room's encryption and power levels. Where it was
// broken off, it goes on when it is called again, also after a restart; once the
// room is encrypted it lets in those who were in the room before, and are still. A
// client may have gone on by itself by then: that the room has MLS already is no
// failure of it.
func (c *Client) EnableMLS(ctx context.Context, roomID id.RoomID) error {
	var events []*Event
	if err := c.retry(ctx, func() (err error) {
		events, err = c.hs.State(ctx, roomID)
		return err
	}); err != nil {
		return fmt.Errorf("client: state of %s: %w", roomID, err)
	}
	state := rooms.NewRoomState(roomID)
	current := map[string]json.RawMessage{}
	for _, evt := range events {
		if evt.StateKey == nil {
			continue
		}
		// Content that cannot be read counts as absent.
		_ = state.Apply(evt.Type, *evt.StateKey, evt.Sender, evt.ID, evt.Content)
		if *evt.StateKey == "" && (evt.Type == rooms.TypePowerLevels || evt.Type == rooms.TypeFunctionalMembers) {
			current[evt.Type] = evt.Content
		}
	}
	nonce, err := c.newID()
	if err != nil {
		return err
	}
	bot := botOf(serverOf(c.UserID()))
	changes, err := rooms.SwitchState(state, current, []id.UserID{bot}, nonce)
	if err != nil {
		c.mu.Lock()
		r := c.rooms[roomID]
		resumes := r != nil && r.rec.Switch != nil && state.IsMLS() && (r.rec.Phase == phaseFounding || !r.anyGroup())
		c.mu.Unlock()
		if resumes {
			return c.switched(ctx, roomID)
		}
		return err
	}
	// The module comes in after it was given the power to show its keys as
	// state, and before the room is encrypted: without one it stays as it is.
	invite := func() error {
		if m := state.Members[bot].Membership; m == rooms.MembershipJoin || m == rooms.MembershipInvite {
			return nil
		}
		if err := c.retry(ctx, func() error { return c.hs.Invite(ctx, roomID, bot, "") }); err != nil {
			return fmt.Errorf("%w: %w", ErrNoModule, err)
		}
		return nil
	}
	// Everybody who is in the room already is admitted by whoever switches it.
	admit := []id.UserID{}
	for user, member := range state.Members {
		if member.Membership == rooms.MembershipJoin && !isBot(user) && user != c.UserID() {
			admit = append(admit, user)
		}
	}
	slices.Sort(admit)
	known := true
	for _, change := range changes {
		if change.Type == rooms.TypeEncryption {
			if err := invite(); err != nil {
				return err
			}
			c.mu.Lock()
			known = c.rooms[roomID] != nil
			r := c.room(roomID)
			r.rec.Switch = &roomSwitch{Admit: admit}
			err := c.commitBatch(ctx, r, &batch{})
			c.mu.Unlock()
			if err != nil {
				return err
			}
		}
		if err := c.retry(ctx, func() error {
			_, err := c.hs.SendState(ctx, roomID, change.Type, change.StateKey, change.Content)
			return err
		}); err != nil {
			if change.Type == rooms.TypeEncryption && isPermanent(err) {
				err = errors.Join(err, c.dropSwitch(ctx, roomID, known))
			}
			return fmt.Errorf("client: set %s in %s: %w", change.Type, roomID, err)
		}
	}
	return c.switched(ctx, roomID)
}

// switched founds the group of a room that is encrypted by now: that there is no
// module is not known any more, only that none has answered.
func (c *Client) switched(ctx context.Context, roomID id.RoomID) error {
	err := c.found(ctx, roomID, nil, func() {}, nil)
	if errors.Is(err, ErrNoModule) && ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", ErrModuleSilent, ctx.Err())
	}
	return err
}

// dropSwitch forgets that a room was to be switched: it stays as it is, and is not
// followed any more if it was not known before.
func (c *Client) dropSwitch(ctx context.Context, roomID id.RoomID, known bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	switch {
	case r == nil || r.rec.Switch == nil || r.rec.Phase != phaseNone || r.anyGroup():
		return nil
	case known:
		r.rec.Switch = nil
		return c.commitBatch(ctx, r, &batch{})
	}
	if err := c.st.Do(ctx, func(ctx context.Context) error { return c.forgetRoom(ctx, roomID) }); err != nil {
		return err
	}
	delete(c.rooms, roomID)
	r.notify()
	return nil
}

// room returns a room, and begins to follow it if it is new.
func (c *Client) room(roomID id.RoomID) *room {
	r := c.rooms[roomID]
	if r == nil {
		r = c.newRoom(roomID)
		c.rooms[roomID] = r
	}
	return r
}

// found marks the room as one whose group this device founds, and waits until
// it has. It calls begun, with the lock held, once the room is marked. If the
// own server's module does not come, those of the servers of others are invited.
func (c *Client) found(ctx context.Context, roomID id.RoomID, change func(p *rooms.Policy), begun func(), others []id.UserID) error {
	lists, err := c.readDevices(ctx, others)
	if err != nil {
		c.log.Debug().Err(err).Stringer("room_id", roomID).Msg("The devices of invited users are not known yet")
	}
	c.mu.Lock()
	r := c.room(roomID)
	begun()
	if r.rec.Phase == phaseNone {
		r.rec.Phase, r.rec.Membership, r.rec.InvitedAt = phaseFounding, "join", 0
		r.foundPolicy, r.foundWith = change, others
		if lists != nil {
			c.keepDevices(nil, lists)
		}
	}
	r.foundLate = c.mono() + botWait // until then the own module has the first word
	err = c.commitBatch(ctx, r, &batch{})
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.poke()
	founded := func(r *room) error {
		switch {
		case r.rec.Phase == phaseMember:
			return nil
		case r.foundError != nil:
			return r.foundError
		}
		return ErrNoModule
	}
	alone := false
	err = c.await(ctx, roomID, func(r *room) error {
		if alone = len(r.modules()) == 0; !alone || r.rec.Phase == phaseMember || r.foundLate == 0 {
			return nil
		}
		return ErrNoModule
	})
	if err != nil {
		return err
	}
	if alone {
		asked := map[string]bool{serverOf(c.UserID()): true}
		for _, user := range others {
			if server := serverOf(user); !asked[server] {
				asked[server] = true
				_ = c.callBot(ctx, roomID, botOf(server)) // the server need not have a module
			}
		}
	}
	return c.await(ctx, roomID, founded)
}

// foundWork returns the work of founding the group, once a module's bot has
// announced its keys: the own server's, or after a while another's.
func (c *Client) foundWork(r *room, now time.Duration) func(ctx context.Context) {
	if !r.state.Known {
		r.want("state", &need{state: true})
		return nil
	}
	if _, ok := r.founder(serverOf(c.UserID())); !ok || r.tried["found"] > now {
		return nil
	}
	roomID := r.id
	return func(ctx context.Context) {
		c.mu.Lock()
		defer c.mu.Unlock()
		r := c.rooms[roomID]
		if r == nil || r.rec.Phase != phaseFounding {
			return
		}
		if err := c.foundGroup(ctx, r); err != nil {
			c.log.Err(err).Stringer("room_id", roomID).Msg("Failed to found the group")
			r.foundError = err
			r.tried["found"] = c.mono() + 10*time.Second
			r.notify()
		}
	}
}

// founder returns the module that a group founded now begins with.
func (r *room) founder(server string) (federation.Sequencer, bool) {
	if m, ok := r.moduleOf(server); ok {
		return m, true
	}
	if have := r.modules(); len(have) > 0 && r.foundLate == 0 {
		return have[0], true
	}
	return federation.Sequencer{}, false
}

// foundGroup creates the group with this device as its only member and queues
// the founding event.
func (c *Client) foundGroup(ctx context.Context, r *room) error {
	module, ok := r.founder(serverOf(c.UserID()))
	if !ok {
		return ErrNoModule
	}
	bot := id.UserID(module.User)
	head := r.state.head(bot)
	policy := rooms.DefaultPolicy(r.id, c.UserID(), module)
	policy.SuiteOrder = c.suites
	if r.rec.Switch != nil { // the user switches a room that has its rule already
		switch r.state.view.JoinRule {
		case "public":
			policy.Join = rooms.JoinOpen
		case "restricted", "knock_restricted":
			policy.Join = rooms.JoinByRule
		}
	}
	if r.foundPolicy != nil {
		r.foundPolicy(policy)
	}
	cs, err := c.firstSuite(r, policy)
	if err != nil {
		return err
	}
	sender, err := rooms.ModuleSender(bot, head, cs)
	if err != nil {
		return err
	}
	extensions, err := rooms.GroupExtensions(policy, []mls.ExternalSender{sender})
	if err != nil {
		return err
	}
	groupID := make([]byte, rooms.GroupIDSize)
	if _, err := io.ReadFull(c.rand, groupID); err != nil {
		return fmt.Errorf("client: randomness: %w", err)
	}
	key, err := c.ident.SignatureKey(cs)
	if err != nil {
		return err
	}
	leaf, err := c.ident.LeafOptions(cs)
	if err != nil {
		return err
	}
	group, err := mls.CreateGroup(c.mlsCfg, cs, groupID, key, leaf, extensions)
	if err != nil {
		return fmt.Errorf("client: found the group of %s: %w", r.id, err)
	}
	info, err := group.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	if err != nil {
		return err
	}
	msg, err := mls.ParseMessage(info)
	if err != nil {
		return err
	}
	ref, err := rooms.RootRef(msg)
	if err != nil {
		return err
	}
	base, err := rooms.BaseFacts(group, ref, "", 0, federation.Ref{})
	if err != nil {
		return err
	}
	machine, err := federation.New(c.machineConfig(r.id), base)
	if err != nil {
		return err
	}
	raw, err := rooms.Encode(&rooms.CommitContent{GroupInfo: info})
	if err != nil {
		return err
	}
	b := &batch{}
	r.machine = machine
	b.machine = true
	e := &epoch{ref: ref, number: 0, group: group}
	c.putEpoch(b, r, e)
	if _, err := c.addRow(b, r, kindCommit, stateReady, ref, outData{Type: rooms.TypeCommit, Content: raw}); err != nil {
		return err
	}
	c.joined(r, e, b)
	r.rec.Refresh = false
	r.rec.Caused = map[id.UserID]bool{c.UserID(): true}
	if r.rec.Switch != nil {
		for _, user := range r.rec.Switch.Admit {
			if r.state.membership(user) != rooms.MembershipJoin {
				continue // gone since
			}
			r.rec.Switched++ // however many there are: nobody else lets them in
			if err := c.admitUser(r, e, user); err != nil {
				return err
			}
			r.rec.Caused[user] = true
		}
	}
	r.rec.Switch, r.foundError = nil, nil
	c.tellEpoch(r, e, false)
	c.log.Info().Stringer("room_id", r.id).Stringer("suite", cs).Msg("Founded a group")
	return c.commitBatch(ctx, r, b)
}

// maxServerErrors is how often a request that ended in an error of the
// homeserver is repeated.
const maxServerErrors = 3

// retry repeats a request that the homeserver's rate limit refused, and a few
// times one that failed inside the homeserver.
func (c *Client) retry(ctx context.Context, fn func() error) error {
	for attempt := 0; ; {
		err := fn()
		var limit *RateLimitError
		if err == nil {
			return nil
		}
		if isServerError(err) && attempt < maxServerErrors {
			wait := time.Second << attempt
			attempt++
			c.log.Debug().Err(err).Dur("retry_after", wait).Msg("The homeserver failed, trying again")
			if sleep(ctx, wait) != nil {
				return err
			}
			continue
		}
		if !errors.As(err, &limit) {
			return err
		}
		c.log.Debug().Dur("retry_after", limit.RetryAfter).Msg("The homeserver limits the rate")
		if serr := sleep(ctx, limit.RetryAfter); serr != nil {
			return fmt.Errorf("%w (%w)", err, serr)
		}
	}
}
