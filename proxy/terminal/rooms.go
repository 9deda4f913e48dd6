package terminal

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func runRooms(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 0, 0); err != nil {
		return err
	}
	cli, err := c.s.client(ctx)
	if err != nil {
		return err
	}
	all, err := cli.Rooms(ctx)
	if err != nil {
		return err
	}
	var left []string
	rows := [][]string{{"ROOM", "NAME", "YOU", "EPOCH", "STATE", "MEMBERS", "DEVICES", "ORDERED BY"}}
	for _, r := range all {
		if c.json {
			if err := c.printJSON(roomJSON(r)); err != nil {
				return err
			}
			continue
		}
		if out(r) {
			left = append(left, title(r))
			continue
		}
		you := r.Membership
		if r.Inviter != "" && you == "invite" {
			you = "invited by " + clean(r.Inviter.String())
		}
		rows = append(rows, []string{
			r.ID.String(), title(r), you, epochText(r), stateText(r), strconv.Itoa(r.Members), strconv.Itoa(r.Devices), orderedBy(r),
		})
	}
	if c.json {
		return nil
	}
	if len(rows) > 1 {
		table(c.env.Stdout, rows)
	} else {
		c.printf("No encrypted rooms. mls-proxy create NAME makes one.\n")
	}
	if len(left) > 0 {
		c.notef("not shown, because you left or were removed: %s", strings.Join(left, ", "))
	}
	return nil
}

func roomJSON(r client.RoomInfo) map[string]any {
	var blocked []string
	for _, why := range r.Blocked {
		blocked = append(blocked, why.Text)
	}
	return map[string]any{
		"room_id": r.ID, "name": r.Name, "membership": r.Membership, "mls": r.MLS, "phase": r.Phase, "epoch": r.Epoch,
		"status": r.Status.String(), "members": r.Members, "devices": r.Devices, "inviter": r.Inviter, "superseded": r.Superseded, "modules": r.Modules, "modules_to": r.ModulesTo, "blocked": blocked,
	}
}

func epochText(r client.RoomInfo) string {
	if r.Phase != "member" {
		return "-"
	}
	return strconv.FormatUint(r.Epoch, 10)
}

// stateText says in words where the device stands in a room.
func stateText(r client.RoomInfo) string {
	switch {
	case r.Membership == "invite":
		return "mls-proxy join"
	case !r.MLS:
		return "NOT ENCRYPTED"
	case r.Phase == "removed" && r.Superseded:
		return "ANOTHER COPY of this device is in use"
	case r.Phase == "removed":
		return "removed"
	case r.Phase != "member":
		return "waits to be let in"
	case len(r.Blocked) > 0:
		return "sending waits"
	}
	return statusText(r.Status)
}

// statusText says how settled an epoch is.
func statusText(s federation.Status) string {
	switch s {
	case federation.StatusFinal:
		return "final"
	case federation.StatusAccepted, federation.StatusVotable:
		return "accepted"
	case federation.StatusSideBranch:
		return "provisional"
	case federation.StatusDisplaced:
		return "displaced"
	}
	return "undecided"
}

func runCreate(ctx context.Context, c *call) error {
	topic := c.flags.String("topic", "", "`TEXT` about the room")
	public := c.flags.Bool("public", false, "anyone may join")
	direct := c.flags.Bool("direct", false, "a conversation with one person")
	history := c.flags.String("history", "", "who sees earlier messages: invited (default), joined, shared or world_readable `WHO`")
	share := c.flags.Bool("share-history", false, "members' devices give whom they invite what was said before, as far as --history shows it")
	if err := c.parse(ctx, 1, -1, func() error {
		if *history != "" && !slices.Contains(rooms.HistoryVisibilities(), *history) {
			return usagef("--history is one of %s, not %s", strings.Join(rooms.HistoryVisibilities(), ", "), clean(*history))
		}
		return nil
	}); err != nil {
		return err
	}
	o := client.CreateOptions{Name: c.args[0], Topic: *topic, Public: *public, Direct: *direct, History: *history}
	if *share {
		o.Policy = func(p *rooms.Policy) { p.History = rooms.HistoryShared }
	}
	for _, arg := range c.args[1:] {
		user, err := parseUser(arg)
		if err != nil {
			return err
		}
		o.Invite = append(o.Invite, user)
	}
	if err := c.verified(ctx); err != nil {
		return err
	}
	cli, err := c.s.client(ctx)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	room, err := cli.CreateRoom(wait, o)
	if err != nil {
		return halfMade(o.Name, room, err)
	}
	return c.settled(ctx, cli, room, "Created %s (%s), epoch %s.\n")
}

// halfMade says of a create that failed what there is by now.
func halfMade(name string, room id.RoomID, err error) error {
	code, hint := explain(err)
	switch {
	case room == "" && code == ExitPending && errors.Is(err, context.DeadlineExceeded):
		return failf(ExitUnreachable, "the room may be made all the same: look with mls-proxy rooms before you try again", "the homeserver did not answer in time: %w", err)
	case room == "":
		return err
	case errors.Is(err, client.ErrNoModule):
		return failf(code, hint, "the room %s (%s) is made, but has no group yet: %w", clean(name), room, err)
	}
	return failf(code, "mls-proxy invite "+shellWord(room.String())+" @USER tries again; another create makes a second room",
		"the room %s (%s) is made, but not everybody is invited: %w", clean(name), room, err)
}

func runEnable(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 1, 1); err != nil {
		return err
	}
	if err := c.verified(ctx); err != nil {
		return err
	}
	cli, err := c.s.client(ctx)
	if err != nil {
		return err
	}
	room := id.RoomID(c.args[0])
	if !strings.HasPrefix(c.args[0], "!") {
		var plain *plainRoomError
		switch r, err := c.s.room(ctx, cli, c.args[0]); {
		case errors.As(err, &plain):
			room = plain.room
		case err != nil:
			return err
		default:
			room = r.ID
		}
	}
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if err := cli.EnableMLS(wait, room); err != nil {
		return err
	}
	return c.settled(ctx, cli, room, "%s (%s) is an MLS room now, epoch %s.\n")
}

func runInvite(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 2, -1); err != nil {
		return err
	}
	var users []id.UserID
	for _, arg := range c.args[1:] {
		user, err := parseUser(arg)
		if err != nil {
			return err
		}
		users = append(users, user)
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		for _, user := range users {
			if err := cli.Invite(ctx, r.ID, user); err != nil {
				return c.s.beyond(err, user.String())
			}
		}
		return c.settled(ctx, cli, r.ID, "Invited to %s (%s), epoch %s.\n")
	})
}

func runJoin(ctx context.Context, c *call) error {
	via := c.flags.String("via", "", "`SERVER` that is in the room")
	if err := c.parse(ctx, 1, 1); err != nil {
		return err
	}
	if err := c.verified(ctx); err != nil {
		return err
	}
	cli, err := c.s.client(ctx)
	if err != nil {
		return err
	}
	target := c.args[0]
	if !strings.HasPrefix(target, "!") && !strings.HasPrefix(target, "#") {
		r, err := c.s.room(ctx, cli, target)
		if err != nil {
			return err
		}
		target = r.ID.String()
	}
	var servers []string
	if *via != "" {
		servers = []string{*via}
	}
	room, err := cli.Join(ctx, target, servers)
	if err != nil && strings.HasPrefix(target, "#") {
		return c.s.beyond(err, target)
	}
	if err != nil {
		return err
	}
	return c.settled(ctx, cli, room, "Joined %s (%s), epoch %s.\n")
}

func runLeave(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 1, 1); err != nil {
		return err
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		if err := cli.Leave(ctx, r.ID); err != nil {
			return err
		}
		if c.json {
			return c.printJSON(map[string]any{"room_id": r.ID, "membership": "leave"})
		}
		c.printf("Left %s (%s).\n", title(r), r.ID)
		return nil
	})
}

func runKick(ctx context.Context, c *call) error {
	reason := c.flags.String("reason", "", "`TEXT` that everybody sees")
	ban := c.flags.Bool("ban", false, "keep the user from coming back")
	if err := c.parse(ctx, 2, 2); err != nil {
		return err
	}
	user, err := parseUser(c.args[1])
	if err != nil {
		return err
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		act := cli.Kick
		if *ban {
			act = cli.Ban
		}
		if err := act(ctx, r.ID, user, *reason); err != nil {
			if code, hint := explain(err); hint == "" {
				return failf(code, "mls-proxy members "+shellWord(r.ID.String())+" shows who is in the room; it takes more power there than the user has", "%w", err)
			}
			return err
		}
		return c.settled(ctx, cli, r.ID, "Removed "+strings.ReplaceAll(clean(user.String()), "%", "%%")+" from %s (%s), epoch %s.\n")
	})
}

// runRepair lets an admin of the group take a module back that lost its
// database, by an era commit that names the module's new receipt key.
func runRepair(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 1, 1); err != nil {
		return err
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		wait, cancel := context.WithTimeout(ctx, settleTime)
		defer cancel()
		if err := cli.RepairSequencer(wait, r.ID); err != nil {
			return err
		}
		return c.settled(ctx, cli, r.ID, "%s (%s) has its module's new receipt key, epoch %s.\n")
	})
}

func runMembers(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 1, 1); err != nil {
		return err
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		all, err := cli.Members(ctx, r.ID)
		if err != nil {
			return err
		}
		rows := [][]string{{"USER", "DEVICE", "EPOCH", "VERIFIED", "LEAF", "NOTE"}}
		for _, m := range all {
			if c.json {
				err := c.printJSON(map[string]any{
					"room_id": r.ID, "user_id": m.User, "device_id": m.Device, "epoch": reached(m), "leaf": m.Leaf, "membership": m.Membership,
					"verification": m.Verification, "this_device": m.Own, "note": m.Note, "in_group": m.Device != "",
				})
				if err != nil {
					return err
				}
				continue
			}
			row := []string{clean(m.User.String()), "-", "-", "-", "-", clean(m.Note)}
			if m.Device != "" {
				row[1], row[2], row[3], row[4] = clean(m.Device.String()), reachedText(m), verificationText(m.Verification), strconv.FormatUint(uint64(m.Leaf), 10)
			}
			if m.Own {
				row[5] = strings.TrimSpace("this device " + row[5])
			}
			rows = append(rows, row)
		}
		if c.json {
			return nil
		}
		c.printf("%s (%s), epoch %s, %s; commits are ordered by %s\n\n", title(r), r.ID, epochText(r), stateText(r), orNobody(orderedBy(r)))
		table(c.env.Stdout, rows)
		for _, why := range r.Blocked {
			c.notef("sending waits: %s", clean(why.Text))
		}
		return nil
	})
}

// reached is the epoch that a device is known to have reached, nil if none is.
func reached(m client.Member) *uint64 {
	if !m.Heard {
		return nil
	}
	return &m.Epoch
}

func reachedText(m client.Member) string {
	if !m.Heard {
		return "not known"
	}
	return strconv.FormatUint(m.Epoch, 10)
}

func orNobody(modules string) string {
	if modules == "" {
		return "nobody"
	}
	return modules
}

// orderedBy names the servers whose modules order a room's changes, and those of the
// list that theirs is being changed to.
func orderedBy(r client.RoomInfo) string {
	text := clean(strings.Join(r.Modules, ", "))
	if len(r.ModulesTo) > 0 {
		text += " (being changed to " + clean(strings.Join(r.ModulesTo, ", ")) + ")"
	}
	return text
}

// verificationText is a word; what needs attention is in capitals.
func verificationText(v client.Verification) string {
	switch v {
	case client.VerifiedUser, client.VerifiedDevice:
		return string(v)
	case client.ChangedUser:
		return "CHANGED"
	}
	return "NO"
}

// inRoom starts the engine and finds the room named by the first argument.
func (c *call) inRoom(ctx context.Context, fn func(cli *client.Client, r client.RoomInfo) error) error {
	cli, err := c.s.client(ctx)
	if err != nil {
		return err
	}
	r, err := c.s.room(ctx, cli, c.args[0])
	if err != nil {
		return err
	}
	return fn(cli, r)
}

// settled waits for the room, then prints where it stands. format has verbs
// for name, id and epoch.
func (c *call) settled(ctx context.Context, cli *client.Client, room id.RoomID, format string) error {
	settleErr := c.s.settle(ctx, cli, room)
	r, err := cli.Room(ctx, room)
	if err != nil {
		return errors.Join(settleErr, err)
	}
	if settleErr != nil {
		if !c.json {
			c.notef("%s (%s): not everything is done yet", title(r), r.ID)
		}
		if errors.Is(settleErr, client.ErrNoGroup) && roomLost(ctx, c.s.ident.Client(), r.ID) {
			return failf(ExitRefused, "mls-proxy leave "+shellWord(r.ID.String())+" and ask for a new room; its administrator finds the room's id in the homeserver's log",
				"your homeserver says that you joined %s, but it does not know the room's state: it lost the room while it joined", r.ID)
		}
		return settleErr
	}
	if c.json {
		return c.printJSON(roomJSON(r))
	}
	c.printf(format, title(r), r.ID, epochText(r))
	return nil
}

// roomLost tells whether a homeserver refuses its own member the state of a
// room that it has joined. A homeserver can lose a room in the middle of a join
// over federation; waiting to be let in would never end there.
func roomLost(ctx context.Context, hs *mautrix.Client, room id.RoomID) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var member event.MemberEventContent
	err := hs.StateEvent(ctx, room, event.StateMember, hs.UserID.String(), &member)
	var httpErr mautrix.HTTPError
	return errors.As(err, &httpErr) && httpErr.IsStatus(http.StatusForbidden)
}

// verified refuses what would only hang: rooms let cross-signed devices in.
func (c *call) verified(ctx context.Context) error {
	status, err := c.s.ident.Status(ctx)
	if err != nil {
		return err
	}
	if !status.HasCrossSigning {
		return failf(ExitNotVerified, "mls-proxy verify --bootstrap", "this account has no cross-signing yet, so rooms do not let its devices in")
	}
	if !status.DeviceSigned {
		return failf(ExitNotVerified, "mls-proxy verify --recovery-key, or mls-proxy verify to compare emoji with another device",
			"this device (%s) is not verified, so rooms do not let it in", clean(c.s.ident.DeviceID().String()))
	}
	return nil
}
