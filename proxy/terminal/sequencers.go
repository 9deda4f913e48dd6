package terminal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// runSequencers shows the modules that order a room's commits, or lets an admin
// change them.
func runSequencers(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 1, -1, func() error {
		if len(c.args) == 1 {
			return nil
		}
		switch verb, rest := c.args[1], c.args[2:]; verb {
		case "add", "drop", "set":
			if len(rest) == 0 {
				return usagef("sequencers ROOM %s needs the names of servers", verb)
			}
		case "auto":
			if len(rest) != 1 || rest[0] != "on" && rest[0] != "off" {
				return usagef("sequencers ROOM auto needs on or off")
			}
		default:
			return usagef("sequencers ROOM knows add, drop, set and auto, not %q", clean(verb))
		}
		return nil
	}); err != nil {
		return err
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		if len(c.args) > 1 {
			if err := c.changeSequencers(ctx, cli, r.ID, c.args[1], c.args[2:]); err != nil {
				return err
			}
		}
		return c.showSequencers(ctx, cli, r.ID)
	})
}

func (c *call) changeSequencers(ctx context.Context, cli *client.Client, room id.RoomID, verb string, args []string) error {
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if verb == "auto" {
		return cli.AutoSequencers(wait, room, args[0] == "on")
	}
	change := map[string]func(context.Context, id.RoomID, ...string) error{
		"add": cli.AddSequencers, "drop": cli.DropSequencers, "set": cli.SetSequencers,
	}[verb]
	if verb != "drop" {
		for _, server := range args {
			if err := cli.CallModule(wait, room, server); err != nil {
				return notCome(err)
			}
		}
	}
	return change(wait, room, args...)
}

// notCome has a next step for who called a module in vain: it is not to call it.
func notCome(err error) error {
	if errors.Is(err, client.ErrNoModuleOf) {
		return failf(ExitRefused, "check the name of the server; its administrator installs the module and sees what it lacks (matrix-mls doctor)", "%w", err)
	}
	return err
}

// runEra opens a new era.
func runEra(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 2, -1); err != nil {
		return err
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		wait, cancel := context.WithTimeout(ctx, settleTime)
		defer cancel()
		for _, server := range c.args[1:] {
			if err := cli.CallModule(wait, r.ID, server); err != nil {
				return notCome(err)
			}
		}
		if info, err := cli.Sequencers(ctx, r.ID); err == nil {
			for _, text := range quietModules(info, c.args[1:], c.heard(ctx, info), time.Now()) {
				c.notef("%s", text)
			}
		}
		if err := cli.OpenEra(wait, r.ID, c.args[1:]...); err != nil {
			return err
		}
		return c.showSequencers(ctx, cli, r.ID)
	})
}

func (c *call) showSequencers(ctx context.Context, cli *client.Client, room id.RoomID) error {
	info, err := cli.Sequencers(ctx, room)
	if errors.Is(err, client.ErrNoGroup) || err != nil {
		return err
	}
	heard := c.heard(ctx, info)
	if c.json {
		return c.printJSON(sequencersJSON(info, heard))
	}
	if info.Change != nil {
		c.printf("In force:\n")
	}
	table(c.env.Stdout, sequencerRows(info.List, heard, time.Now()))
	c.printf("%d of %d make a change final. Epoch %d, final up to %d, era %d. %s\n", info.Quorum, len(info.List), info.Epoch, info.Final, info.Era, choiceText(info))
	if ch := info.Change; ch != nil {
		state := "waits for its modules"
		if ch.Accepted {
			state = "is accepted, not yet final"
		}
		c.printf("\nBeing changed to a list by %s, which %s (%d have to be ready):\n", clean(ch.By.String()), state, ch.Needs)
		table(c.env.Stdout, sequencerRows(ch.List, heard, time.Now()))
	}
	for _, server := range unlisted(info) {
		c.printf("%s has a module in the room that is not listed.\n", clean(server))
	}
	if len(info.Without) > 0 {
		c.printf("No module in the room: %s.\n", clean(strings.Join(info.Without, ", ")))
	}
	if r, err := cli.Room(ctx, room); err == nil && r.Standstill != "" {
		c.printf("%s.\n", clean(strings.ToUpper(r.Standstill[:1])+r.Standstill[1:]))
	} else if info.Stalled > time.Minute {
		c.printf("Nothing became final for %s although something waits.\n", info.Stalled.Round(time.Second))
	}
	return nil
}

// unlisted are the servers of the modules that neither the list names nor one to come.
func unlisted(info *client.SequencersInfo) (servers []string) {
	for _, m := range info.Others {
		if info.Change == nil || !slices.ContainsFunc(info.Change.List, func(s client.SequencerInfo) bool { return s.Server == m.Server }) {
			servers = append(servers, m.Server)
		}
	}
	return servers
}

func choiceText(info *client.SequencersInfo) string {
	if info.Manual {
		return "Admins name the modules."
	}
	return "The admins' programs choose the modules."
}

// heard asks for when the modules of a room last put a head into its state. Who is
// missing has none, or the homeserver does not say. A room in which nothing changes
// gets no new heads: a module that said its last long ago may well run.
func (c *call) heard(ctx context.Context, info *client.SequencersInfo) map[id.UserID]time.Time {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var users []id.UserID
	for _, s := range info.List {
		users = append(users, s.User)
	}
	if info.Change != nil {
		for _, s := range info.Change.List {
			users = append(users, s.User)
		}
	}
	for _, m := range info.Others {
		users = append(users, m.User)
	}
	out := make(map[id.UserID]time.Time, len(users))
	for _, user := range users {
		if _, ok := out[user]; ok {
			continue
		}
		evt, err := c.s.ident.Client().FullStateEvent(ctx, info.Room, event.Type{Type: rooms.TypeHead, Class: event.StateEventType}, user.String())
		if err == nil && evt != nil && evt.Timestamp > 0 {
			out[user] = time.UnixMilli(evt.Timestamp)
		}
	}
	return out
}

// quietModules says of the modules that a new era begins with when they were last
// heard of, where that is a while ago.
func quietModules(info *client.SequencersInfo, servers []string, heard map[id.UserID]time.Time, now time.Time) (out []string) {
	const fresh = time.Minute
	say := func(server string, user id.UserID) {
		if !slices.Contains(servers, server) && !slices.Contains(servers, user.String()) || !heard[user].IsZero() && now.Sub(heard[user]) < fresh {
			return
		}
		out = append(out, "the module of "+clean(server)+" was last heard of "+heardText(heard[user], now)+"; if it does not run, nothing is accepted in the new era until it does, or until you open another with one that runs")
	}
	for _, s := range info.List {
		say(s.Server, s.User)
	}
	for _, m := range info.Others {
		say(m.Server, m.User)
	}
	return out
}

// heardText says how long ago a time was.
func heardText(at, now time.Time) string {
	if at.IsZero() {
		return "not known when"
	}
	return max(now.Sub(at), 0).Round(time.Second).String() + " ago"
}

func sequencerRows(list []client.SequencerInfo, heard map[id.UserID]time.Time, now time.Time) [][]string {
	rows := [][]string{{"RANK", "SERVER", "MODULE", "STATE", "LAST HEAD", "KEY"}}
	for i, s := range list {
		rows = append(rows, []string{strconv.Itoa(i), clean(s.Server), clean(s.User.String()), string(s.State), heardText(heard[s.User], now), keyText(s.Key)})
	}
	return rows
}

// keyText is the beginning of a key, as matrix-mls shows it.
func keyText(key []byte) string {
	text := rooms.EncodeBase64(key)
	if len(text) <= 8 {
		return text
	}
	return text[:8] + "…"
}

func sequencersJSON(info *client.SequencersInfo, heard map[id.UserID]time.Time) map[string]any {
	at := func(user id.UserID) *int64 { // nil: not known
		if heard[user].IsZero() {
			return nil
		}
		ms := heard[user].UnixMilli()
		return &ms
	}
	list := func(in []client.SequencerInfo) []map[string]any {
		out := []map[string]any{}
		for _, s := range in {
			out = append(out, map[string]any{"server": s.Server, "user_id": s.User, "receipt_key": rooms.EncodeBase64(s.Key), "state": s.State, "head_at": at(s.User)})
		}
		return out
	}
	others := []map[string]any{}
	for _, m := range info.Others {
		others = append(others, map[string]any{"server": m.Server, "user_id": m.User, "receipt_key": rooms.EncodeBase64(m.Key), "head_at": at(m.User)})
	}
	out := map[string]any{
		"room_id": info.Room, "modules": list(info.List), "quorum": info.Quorum, "manual": info.Manual, "era": info.Era, "epoch": info.Epoch, "final": info.Final,
		"stalled_seconds": int(info.Stalled.Seconds()), "heirs_due": info.HeirsDue, "admins": info.Admins, "heirs": info.Heirs, "others": others, "without_module": info.Without,
	}
	if ch := info.Change; ch != nil {
		out["change"] = map[string]any{"by": ch.By, "modules": list(ch.List), "needs": ch.Needs, "accepted": ch.Accepted}
	}
	return out
}

// eraChange says what a new era means.
func eraChange(u *client.EraOpened) string {
	text := " was opened by " + clean(u.By.String())
	if u.ByHeirs && len(u.Signers) > 1 {
		text = " was opened by the heirs " + userList(u.Signers)
	}
	text += "; the modules of " + clean(strings.Join(u.Servers, ", ")) + " order the changes now"
	if n := len(u.Overrides); n > 0 {
		var parts []string
		for _, o := range u.Overrides {
			parts = append(parts, fmt.Sprintf("epoch %d by %s", o.Epoch, clean(o.By.String())))
		}
		text += fmt.Sprintf("; %d final changes do not count any more: %s", n, strings.Join(parts, ", "))
	}
	return text
}
