package client

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// admitUser signs an admission of a user with this device's leaf.
func (c *Client) admitUser(r *room, e *epoch, user id.UserID) error {
	key, err := c.ident.SignatureKey(e.group.CipherSuite())
	if err != nil {
		return err
	}
	var master []byte
	if list := c.devs[user]; list != nil && list.MasterKey != "" {
		if master, err = rooms.DecodeBase64(list.MasterKey); err != nil {
			return err
		}
	}
	admission, err := rooms.SignAdmission(e.group, r.id, e.ref, e.group.OwnLeafIndex(), key, user, master)
	if err != nil {
		return err
	}
	c.admit(r, append([]rooms.Admission{*admission}, r.admissionsOf(user)...), true)
	return nil
}

// postAdmission queues this user's admission of another for the room and, where a
// user who has not joined is not added, for that user's devices: what was said
// before they join the homeserver does not show them, and they may have to come in
// by themselves.
func (c *Client) postAdmission(b *batch, r *room, e *epoch, user id.UserID) ([]*outRow, error) {
	admission := r.rec.Admissions[user]
	raw, err := rooms.Encode(&admission)
	if err != nil {
		return nil, err
	}
	row, err := c.addRow(b, r, kindProof, stateReady, e.ref, outData{Type: rooms.TypeAdmit, Content: raw})
	if err != nil {
		return nil, err
	}
	list := c.devs[user]
	if list == nil || r.state.view.AddsOnInvite() || r.state.membership(user) == rooms.MembershipJoin {
		return []*outRow{row}, nil
	}
	to := &admitOut{User: user}
	for name, device := range list.Devices {
		if len(device.MLSKeys) > 0 {
			to.Devices = append(to.Devices, name)
		}
	}
	if len(to.Devices) == 0 {
		return []*outRow{row}, nil
	}
	slices.Sort(to.Devices)
	direct, err := c.addRow(b, r, kindAdmit, stateReady, e.ref, outData{Type: rooms.TypeAdmit, Content: raw, To: to})
	if err != nil {
		return nil, err
	}
	return []*outRow{row, direct}, nil
}

// Invite admits a user to the group and invites them to the room, together
// with the module of their server. If the room's history visibility lets
// invited users read, their devices are added at once, else when they join.
func (c *Client) Invite(ctx context.Context, roomID id.RoomID, user id.UserID) error {
	if err := rooms.CheckUserID(user); err != nil {
		return fmt.Errorf("client: invite: %w", err)
	}
	// Who they are should be known before they are let in.
	lists, err := c.readDevices(ctx, []id.UserID{user})
	if err != nil {
		return fmt.Errorf("client: devices of %s: %w", user, err)
	}
	var bot id.UserID
	r, _, err := c.lockMember(ctx, roomID)
	if err == nil {
		bot = c.missingBot(r, serverOf(user))
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if bot != "" {
		// The module goes first: once its server is in the room, the user's own
		// join is a local one.
		_ = c.inviteBot(ctx, roomID, bot) // the server need not have a module
	}
	if err := c.awaitRemoval(ctx, roomID, user); err != nil {
		return err
	}
	var rows []*outRow
	r, e, err := c.lockMember(ctx, roomID)
	if err == nil {
		c.keepDevices(r, lists)
		var policy *rooms.Policy
		if policy, err = e.policy(); err == nil && !policy.MayAdmit(c.UserID()) {
			err = fmt.Errorf("%w: the group's policy does not let %s admit users", ErrNotAllowed, c.UserID())
		}
	}
	if err == nil {
		err = suiteRefusal(e.group.CipherSuite(), c.devs[user])
	}
	if err == nil {
		err = c.admitUser(r, e, user)
	}
	if err == nil {
		if r.rec.Caused == nil {
			r.rec.Caused = map[id.UserID]bool{}
		}
		r.rec.Caused[user] = true
		r.planned = false
		b := &batch{}
		if rows, err = c.postAdmission(b, r, e, user); err == nil {
			// It is durable before anybody is invited, and sent after the invite: a
			// user is not shown what came before theirs.
			for _, row := range rows {
				row.after = r.state.membership(user) != rooms.MembershipJoin
			}
			err = c.commitBatch(ctx, r, b)
		}
	}
	member := err == nil && r.state.membership(user) == rooms.MembershipJoin
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if !member {
		err := c.retry(ctx, func() error { return c.hs.Invite(ctx, roomID, user, "") })
		c.mu.Lock()
		for _, row := range rows {
			row.after = false // an invite that failed may have had its effect
		}
		c.mu.Unlock()
		notifyChan(c.outWake)
		if err != nil {
			return fmt.Errorf("client: invite %s to %s: %w", user, roomID, err)
		}
		c.noteMembership(roomID, user, rooms.MembershipInvite)
	}
	c.poke()
	return nil
}

// awaitRemoval waits until who left is out of the group: an admission from
// before does not outlive that.
func (c *Client) awaitRemoval(ctx context.Context, roomID id.RoomID, user id.UserID) error {
	err := c.await(ctx, roomID, func(r *room) error {
		e := r.head()
		if e == nil || r.state.view.InRoom(user) || len(rooms.LeavesOf(e.group, user)) == 0 {
			return nil
		}
		if r.rec.Caused == nil {
			r.rec.Caused = map[id.UserID]bool{}
		}
		r.rec.Caused[user] = true // committed at once
		return fmt.Errorf("client: %s left %s, and the group has not removed them yet", user, r.id)
	})
	if err != nil {
		return fmt.Errorf("client: invite %s: %w", user, err)
	}
	return nil
}

// missingBot returns the module's bot of a server that is not in the room yet.
func (c *Client) missingBot(r *room, server string) id.UserID {
	for user, member := range r.state.view.Members {
		if serverOf(user) == server && r.isModule(user) && (member.Membership == rooms.MembershipJoin || member.Membership == rooms.MembershipInvite) {
			return ""
		}
	}
	return botOf(server)
}

// inviteBot invites the module of a server, which need not have one, and
// lists it among the functional members, so that it does not count for the
// room's name.
func (c *Client) inviteBot(ctx context.Context, roomID id.RoomID, bot id.UserID) error {
	c.makeQuiet(ctx, roomID, bot)
	return c.callBot(ctx, roomID, bot)
}

// callBot invites a module's bot and waits a few seconds for it. Its error is that of
// the invite.
func (c *Client) callBot(ctx context.Context, roomID id.RoomID, bot id.UserID) error {
	log := c.log.With().Stringer("room_id", roomID).Stringer("bot", bot).Logger()
	if err := c.retry(ctx, func() error { return c.hs.Invite(ctx, roomID, bot, "") }); err != nil {
		log.Debug().Err(err).Msg("The server has no module, or it cannot be invited")
		return err
	}
	c.noteMembership(roomID, bot, rooms.MembershipInvite)
	c.awaitBot(ctx, roomID, bot)
	c.mu.Lock()
	var content map[string]json.RawMessage
	var members []id.UserID
	r := c.rooms[roomID]
	if r == nil || slices.Contains(r.state.view.Functional, bot) || !r.state.view.CanSend(c.UserID(), rooms.TypeFunctionalMembers, true) {
		c.mu.Unlock()
		return nil
	}
	if json.Unmarshal(r.state.content(rooms.TypeFunctionalMembers, ""), &content) != nil || content == nil {
		content = map[string]json.RawMessage{}
	}
	members = append(slices.Clone(r.state.view.Functional), bot)
	c.mu.Unlock()
	raw, err := json.Marshal(members)
	if err != nil {
		return nil
	}
	content["service_members"] = raw
	state, err := json.Marshal(content)
	if err != nil {
		return nil
	}
	if err := c.retry(ctx, func() error {
		_, err := c.hs.SendState(ctx, roomID, rooms.TypeFunctionalMembers, "", state)
		return err
	}); err != nil {
		log.Debug().Err(err).Msg("The module could not be listed as a functional member")
	}
	return nil
}

// botWait is how long an invited module is waited for: it joins at once if its
// server has one.
const botWait = 5 * time.Second

// awaitBot waits a few seconds for a module to join, and for its server to be
// done with that.
func (c *Client) awaitBot(ctx context.Context, roomID id.RoomID, bot id.UserID) {
	joins, cancel := context.WithTimeout(ctx, botWait)
	defer cancel()
	if c.await(joins, roomID, func(r *room) error {
		if r.state.membership(bot) == rooms.MembershipJoin {
			return nil
		}
		return ErrNoModule
	}) != nil {
		return
	}
	for ctx.Err() == nil {
		c.mu.Lock()
		var wait time.Duration
		if r := c.rooms[roomID]; r != nil {
			wait = r.quietUntil() - c.mono()
		}
		c.mu.Unlock()
		if wait <= 0 {
			return
		}
		_ = sleep(ctx, min(wait, 200*time.Millisecond)) // it may end early
	}
}

// A server's first join of a room is a tender time: Dendrite loses its join, or
// the room, when events reach it meanwhile. This device then sends nothing into
// the room. A module speaks as soon as its server can send into the room, which
// on a busy machine takes long: the room is quiet until then.
const (
	quietTime       = 3 * time.Second         // from a user's join on
	inviteQuietTime = botWait + time.Second   // from a module's invite on
	moduleQuietTime = 20 * time.Second        // from a module's join on, at the most
	beforeInvite    = 1500 * time.Millisecond // what was sent just before reaches the server's join, too
)

// noteQuiet keeps a room quiet while a server joins.
func (c *Client) noteQuiet(r *room, evt *Event, before rooms.Membership) {
	if evt.Type != rooms.TypeMember || evt.StateKey == nil {
		if _, waits := r.quiet[evt.Sender]; waits && isBot(evt.Sender) {
			delete(r.quiet, evt.Sender)
			c.poke()
			notifyChan(c.outWake)
		}
		return
	}
	user := id.UserID(*evt.StateKey)
	if r.rec.Phase != phaseMember || serverOf(user) == serverOf(c.UserID()) {
		return
	}
	switch is := r.state.membership(user); {
	case is == rooms.MembershipInvite && isBot(user) && before != is && !r.hasServer(user):
		r.hush(user, c.mono()+inviteQuietTime)
	case is == rooms.MembershipJoin && isBot(user) && c.newServer(r, user, before):
		r.hush(user, c.mono()+moduleQuietTime)
	case is == rooms.MembershipJoin && c.newServer(r, user, before):
		r.hush(user, c.mono()+quietTime)
	case is != rooms.MembershipJoin && is != rooms.MembershipInvite:
		delete(r.quiet, user)
	}
}

// hush keeps the room quiet for a user's server.
func (r *room) hush(user id.UserID, until time.Duration) {
	if r.quiet == nil {
		r.quiet = map[id.UserID]time.Duration{}
	}
	r.quiet[user] = until
}

// quietUntil returns when something may be sent into the room again.
func (r *room) quietUntil() (until time.Duration) {
	for _, at := range r.quiet {
		until = max(until, at)
	}
	return until
}

// hasServer tells whether another user of a user's server is in the room.
func (r *room) hasServer(user id.UserID) bool {
	for other, member := range r.state.view.Members {
		if other != user && member.Membership == rooms.MembershipJoin && serverOf(other) == serverOf(user) {
			return true
		}
	}
	return false
}

// makeQuiet lets what is under way in the room go out, and keeps the room quiet
// for a module that is about to be invited.
func (c *Client) makeQuiet(ctx context.Context, roomID id.RoomID, bot id.UserID) {
	settled, cancel := context.WithTimeout(ctx, 2*botWait)
	defer cancel()
	_ = c.Settle(settled, roomID)
	c.mu.Lock()
	if r := c.rooms[roomID]; r != nil {
		r.hush(bot, c.mono()+beforeInvite+inviteQuietTime)
	}
	c.mu.Unlock()
	_ = c.pass(ctx, beforeInvite)
}

// newServer tells whether a member event is the first join of a server.
func (c *Client) newServer(r *room, user id.UserID, before rooms.Membership) bool {
	if before == rooms.MembershipJoin || r.state.membership(user) != rooms.MembershipJoin || serverOf(user) == serverOf(c.UserID()) {
		return false
	}
	return !r.hasServer(user)
}

// noteMembership takes in what the homeserver just confirmed, before /sync
// shows it.
func (c *Client) noteMembership(roomID id.RoomID, user id.UserID, membership rooms.Membership) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil || membership == rooms.MembershipInvite && r.state.membership(user) == rooms.MembershipJoin {
		return // the invite was answered, and /sync showed that first
	}
	key := string(user)
	content, _ := json.Marshal(map[string]string{"membership": string(membership)})
	r.state.set(&Event{Type: rooms.TypeMember, StateKey: &key, Sender: c.UserID(), Content: content})
	r.planned = false
	r.notify()
}

// Join joins a room. The device enters the group when a member adds it or,
// after a few seconds, by itself if it was admitted (see Settle).
func (c *Client) Join(ctx context.Context, roomIDOrAlias string, via []string) (id.RoomID, error) {
	if len(via) == 0 && strings.HasPrefix(roomIDOrAlias, "!") {
		c.mu.Lock()
		if r := c.rooms[id.RoomID(roomIDOrAlias)]; r != nil && r.rec.Inviter != "" {
			via = []string{serverOf(r.rec.Inviter)}
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	known := c.rooms[id.RoomID(roomIDOrAlias)]
	invited := known != nil && known.rec.Membership == "invite"
	c.mu.Unlock()
	var roomID id.RoomID
	for attempt := 0; ; attempt++ {
		err := c.retry(ctx, func() (err error) {
			roomID, err = c.hs.Join(ctx, roomIDOrAlias, via)
			return err
		})
		if err == nil {
			break
		}
		// Who holds an invite may join: Dendrite refuses the first join of its
		// server when events of the room reach it meanwhile, and takes the next.
		if !invited || !isPermanent(err) || attempt >= maxServerErrors || sleep(ctx, time.Second<<attempt) != nil {
			return "", fmt.Errorf("client: join %s: %w", roomIDOrAlias, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.room(roomID)
	if r.rec.Membership != "join" {
		r.rec.Membership, r.rec.InvitedAt = "join", 0
		r.moved = &move{to: "join", at: c.mono()}
		r.state.lose()
		r.comeBack()
		r.want("state", &need{state: true})
		if err := c.commitBatch(ctx, r, &batch{}); err != nil {
			return roomID, err
		}
	}
	c.poke()
	return roomID, nil
}

// Leave leaves a room and forgets the keys of its group. The others remove
// this user's devices from the group.
func (c *Client) Leave(ctx context.Context, roomID id.RoomID) error {
	if err := c.retry(ctx, func() error { return c.hs.Leave(ctx, roomID) }); err != nil {
		return fmt.Errorf("client: leave %s: %w", roomID, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil {
		return nil
	}
	b := &batch{}
	r.rec.Phase, r.rec.Membership = phaseRemoved, "leave"
	r.moved = &move{to: "leave", at: c.mono()}
	r.keepAdmissions(c.UserID(), nil)
	c.dropGroup(r, b)
	c.dropMessages(r, b)
	b.then(r.notify)
	return c.commitBatch(ctx, r, b)
}

// Kick removes a user from the room and their devices from the group. Nothing
// is sent to the room until the Remove is accepted.
func (c *Client) Kick(ctx context.Context, roomID id.RoomID, user id.UserID, reason string) error {
	return c.expel(ctx, roomID, user, rooms.MembershipLeave, func() error { return c.hs.Kick(ctx, roomID, user, reason) })
}

// Ban does what Kick does, for good.
func (c *Client) Ban(ctx context.Context, roomID id.RoomID, user id.UserID, reason string) error {
	return c.expel(ctx, roomID, user, rooms.MembershipBan, func() error { return c.hs.Ban(ctx, roomID, user, reason) })
}

func (c *Client) expel(ctx context.Context, roomID id.RoomID, user id.UserID, membership rooms.Membership, do func() error) error {
	if err := c.retry(ctx, do); err != nil {
		return fmt.Errorf("client: remove %s from %s: %w", user, roomID, err)
	}
	c.mu.Lock()
	if r := c.rooms[roomID]; r != nil {
		if r.rec.Caused == nil {
			r.rec.Caused = map[id.UserID]bool{}
		}
		r.rec.Caused[user] = true
		r.keepAdmissions(user, nil)
		if r.expelled == nil {
			r.expelled = map[id.UserID]expulsion{}
		}
		r.expelled[user] = expulsion{as: membership, until: c.mono() + time.Minute}
	}
	c.mu.Unlock()
	c.noteMembership(roomID, user, membership)
	c.poke()
	return nil
}

// RoomInfo is what this device knows of a room.
type RoomInfo struct {
	ID         id.RoomID
	Name       string
	Membership string // own: join, invite, leave …
	MLS        bool
	Phase      string // where this device stands: "", founding, joining, member, removed
	Superseded bool   // another copy of this device, as of a backup, took its place: see SupersededWarning
	Epoch      uint64
	Head       federation.Ref    // the commit that made the epoch
	Suite      mls.CipherSuite   // of the head
	Status     federation.Status // of the head
	Final      uint64            // epoch of the newest final commit
	Era        uint64
	Members    int // users joined or invited
	Devices    int // leaves of the group
	Inviter    id.UserID
	Modules    []string // servers whose modules order the commits: the list in force
	ModulesTo  []string // those of the list that it is being changed to, see ListChange; nil: none
	Blocked    []Block  // why messages wait
	// Unconfirmed: this device joined at an epoch whose finality nobody has
	// proven to it yet.
	Unconfirmed bool
	// Standstill says, if nothing became final for the policy's heirs_wait although
	// something waits, which modules are silent, and what helps. Standing is what it
	// says.
	Standstill string
	Standing   *Standstill
}

// Rooms lists the MLS rooms this device knows.
func (c *Client) Rooms(context.Context) ([]RoomInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*room, 0, len(c.rooms))
	for _, r := range c.rooms {
		if !r.strange() {
			list = append(list, r)
		}
	}
	sortRooms(list)
	out := make([]RoomInfo, 0, len(list))
	for _, r := range list {
		out = append(out, c.info(r))
	}
	return out, nil
}

// Room returns what this device knows of one room.
func (c *Client) Room(_ context.Context, roomID id.RoomID) (RoomInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil {
		return RoomInfo{}, fmt.Errorf("%w (%s)", ErrNoRoom, roomID)
	}
	return c.info(r), nil
}

func (c *Client) info(r *room) RoomInfo {
	info := RoomInfo{
		ID: r.id, Name: r.state.name(), Membership: r.rec.Membership, MLS: r.isMLS(),
		Phase: string(r.rec.Phase), Inviter: r.rec.Inviter, Blocked: c.blocks(r),
		Unconfirmed: r.rec.Unconfirmed, Superseded: r.rec.Superseded,
	}
	for user, member := range r.state.view.Members {
		if (member.Membership == rooms.MembershipJoin || member.Membership == rooms.MembershipInvite) && !isBot(user) {
			info.Members++
		}
	}
	if e := r.head(); e != nil {
		info.Epoch, info.Devices, info.Head, info.Suite = e.number, e.group.MemberCount(), e.ref, e.group.CipherSuite()
		info.Final = r.epochOf(r.machine.NewestFinal())
		info.Era, _ = r.machine.EraOf()
		info.Status = r.machine.Status(e.ref)
		info.Standstill, info.Standing = c.standing(r)
		info.Modules = serversOf(rooms.ListInForce(r.machine))
		if ref, ok := r.listToCome(); ok {
			list, _ := r.machine.ListAt(ref)
			info.ModulesTo = serversOf(list)
		}
	}
	return info
}

// Member is a device in a room's group, or a user of the room without one.
type Member struct {
	User         id.UserID
	Device       id.DeviceID // empty: the user has no device in the group
	Leaf         uint32
	Membership   string
	Verification Verification
	Own          bool
	// Epoch is the newest that the device is known to have reached, by what it made, signed
	// or sent there; it may be farther. Where Heard is false, nothing is known.
	Epoch uint64
	Heard bool
	Note  string // why a user or device is not in the group, or should not be
	Why   Why    // the reason that Note gives
}

// Members lists the devices of a room's group in the order of their leaves,
// then the users of the room who have none.
func (c *Client) Members(ctx context.Context, roomID id.RoomID) ([]Member, error) {
	c.mu.Lock()
	r := c.rooms[roomID]
	if r == nil {
		c.mu.Unlock()
		return nil, fmt.Errorf("%w (%s)", ErrNoRoom, roomID)
	}
	var users []id.UserID
	for user := range r.state.view.Members {
		if r.state.membership(user) == rooms.MembershipJoin && !isBot(user) {
			users = append(users, user)
		}
	}
	c.mu.Unlock()
	lists, err := c.readDevices(ctx, users)
	if err != nil {
		return nil, fmt.Errorf("client: devices of the members of %s: %w", roomID, err)
	}
	seen, err := c.sentIn(ctx, roomID)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keepDevices(nil, lists)
	var out []Member
	present := map[id.UserID]bool{}
	notes := map[string]rooms.RemoveReason{}
	if r.todo != nil {
		for _, rm := range r.todo.Removes {
			notes[claimKey(rm.Cred.User, rm.Cred.Device)] = rm.Reason
		}
	}
	if e := r.head(); e != nil {
		reached := map[uint32]federation.Ref{}
		for _, leaf := range r.machine.Survey(append(seen, r.seen()...)...).Devices {
			reached[leaf.Leaf] = leaf.Reached
		}
		for _, leaf := range rooms.GroupLeaves(e.group) {
			present[leaf.Cred.User] = true
			note := notes[claimKey(leaf.Cred.User, leaf.Cred.Device)]
			m := Member{
				User: leaf.Cred.User, Device: leaf.Cred.Device, Leaf: uint32(leaf.Index), Membership: string(r.state.membership(leaf.Cred.User)),
				Verification: c.verification(&leaf.Cred, e.group.CipherSuite()), Own: leaf.Cred.User == c.UserID() && leaf.Cred.Device == c.DeviceID(),
				Note: string(note), Why: Why(note),
			}
			m.Epoch, m.Heard = r.heldEpoch(reached[uint32(leaf.Index)])
			out = append(out, m)
		}
	}
	slices.Sort(users)
	for _, user := range users {
		if !present[user] {
			m := Member{User: user, Membership: string(r.state.membership(user)), Verification: Unverified}
			m.Why, m.Note = c.whyAbsent(r, user)
			out = append(out, m)
		}
	}
	return out, nil
}

// heldEpoch returns the number of an epoch that is held, also of the one that the
// room's record begins with, whose commit is not.
func (r *room) heldEpoch(ref federation.Ref) (number uint64, ok bool) {
	if known, ok := r.machine.Known(ref); ok {
		return known.Epoch, true
	}
	if e := r.epochs[ref]; e != nil {
		return e.number, true
	}
	return r.rec.JoinEpoch, !ref.IsZero() && ref == federation.Ref(r.rec.JoinRef)
}

// Why says why a device is not in a room's group, or should not be, or why a user has
// none there. Those of devices that should not be are a [rooms.RemoveReason], those of
// users whom the group waits for a [rooms.AbsentReason].
type Why string

// Other reasons for which a user has no device in the group.
const (
	WhyNoMLS  Why = "no-mls"  // no device with MLS
	WhyNotYet Why = "not-yet" // not added yet
)

// whyAbsent says why a user has no device in the group, also in English.
func (c *Client) whyAbsent(r *room, user id.UserID) (Why, string) {
	if r.todo != nil {
		for _, absent := range r.todo.Waiting {
			if absent.User == user {
				return Why(absent.Reason), absent.Error()
			}
		}
	}
	if list := c.devs[user]; list == nil || len(list.Devices) == 0 {
		return WhyNoMLS, "no device with MLS"
	}
	return WhyNotYet, "not added yet"
}

// Settle waits until nothing is under way in a room: no commit of ours waits
// for its accept, nothing is queued, and everybody whom this user let in, or
// put out, is in or out. When ctx ends it says what it waited for.
func (c *Client) Settle(ctx context.Context, roomID id.RoomID) error {
	return c.await(ctx, roomID, func(r *room) error {
		if r.rec.Membership != "join" {
			return nil
		}
		if r.rec.Phase == phaseNone && r.machine == nil && r.state.Known && !r.state.isMLS() {
			return nil
		}
		if r.rec.Phase == phaseRemoved {
			return r.outError()
		}
		if r.rec.Phase != phaseMember {
			if r.lastJoinError != nil {
				return fmt.Errorf("client: %s: %w", r.id, r.lastJoinError)
			}
			return fmt.Errorf("%w (%s)", ErrNoGroup, r.id)
		}
		if _, closed := r.closing(); closed {
			return r.suiteState()
		}
		if r.pending != nil {
			return fmt.Errorf("client: a commit in %s waits for the module to accept it", r.id)
		}
		for _, row := range c.roomRows(r.id) {
			if row.item.State != stateSent {
				return fmt.Errorf("client: something in %s waits to be sent", r.id)
			}
		}
		e := c.planEpoch(r)
		if e == nil || !r.planned || r.plannedOn != e.ref {
			return fmt.Errorf("client: the members of %s are being compared", r.id)
		}
		if d := c.dueNow(r, e, c.mono()); !d.empty() && d.urgent || d.asks {
			return fmt.Errorf("client: a commit in %s has to be made", r.id)
		}
		return nil
	})
}

// hasSynced tells whether a /sync was processed since Open: only then is it known
// what other copies of this device did meanwhile.
func (c *Client) hasSynced() bool {
	select {
	case <-c.synced:
		return true
	default:
		return false
	}
}

// Synced waits until the first /sync after Start is processed.
func (c *Client) Synced(ctx context.Context) error {
	select {
	case <-c.synced:
	case <-ctx.Done():
		return fmt.Errorf("client: the first sync is not done: %w", ctx.Err())
	}
	// What it brought is in the inbox: let the engine go through it.
	for {
		c.mu.Lock()
		steps := c.steps
		c.mu.Unlock()
		c.poke()
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("client: the first sync is not done: %w", err)
		}
		c.mu.Lock()
		done, closed := c.steps > steps, c.closed
		c.mu.Unlock()
		if closed {
			return ErrClosed
		}
		if done {
			return nil
		}
	}
}
