package terminal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/proxy/connect"
)

func runTail(ctx context.Context, c *call) error {
	lines := c.flags.Int("lines", 20, "show `N` earlier messages of each room first")
	follow := c.flags.Bool("follow", true, "go on until interrupted")
	until := c.flags.Duration("for", 0, "end after `TIME`, such as 30s")
	err := c.parse(ctx, 0, 1, func() error {
		if *lines < 0 || *lines > 1000 {
			return usagef("--lines is 0 to 1000")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if *until > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *until)
		defer cancel()
	}
	updates := c.s.subscribe(ctx)
	cli, err := c.s.client(ctx)
	if err != nil {
		return c.ended(ctx, err)
	}
	var only id.RoomID
	if len(c.args) == 1 {
		r, err := c.s.room(ctx, cli, c.args[0])
		if err != nil {
			return err
		}
		only = r.ID
	}
	stop, err := c.s.listen(ctx, c)
	if err != nil {
		c.notef("verbs in other terminals will not work while this runs: %v", err)
	} else {
		defer stop()
	}
	t := &tail{c: c, cli: cli, only: only, shown: make(map[id.EventID]bool)}
	if err := t.backlog(ctx, *lines); err != nil {
		return c.ended(ctx, err)
	}
	if !*follow {
		return nil
	}
	watched, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	base, states := c.s.watch(watched)
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-states:
			if err := t.presence(ctx, base, s); err != nil {
				return err
			}
		case u := <-updates:
			if err := t.show(ctx, u); err != nil {
				return c.ended(ctx, err)
			}
		}
	}
}

// ended keeps an interrupt from looking like a failure.
func (c *call) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return nil
	}
	return err
}

// tail prints updates.
type tail struct {
	c     *call
	cli   *client.Client
	only  id.RoomID
	shown map[id.EventID]bool // of the backlog
}

// supersededText is for who would else be told that this device was removed.
const supersededText = "another copy of this device, perhaps one restored from a backup, is in use, and this one is out: use that one, and run mls-proxy logout --keep-session here"

// backlog prints the last messages of the rooms.
func (t *tail) backlog(ctx context.Context, lines int) error {
	if lines == 0 {
		return nil
	}
	all, err := t.cli.Rooms(ctx)
	if err != nil {
		return err
	}
	for _, r := range all {
		if t.only != "" && r.ID != t.only {
			continue
		}
		messages, err := t.cli.Messages(ctx, r.ID, "", lines)
		if err != nil {
			return err
		}
		for _, m := range messages {
			if err := t.show(ctx, m); err != nil {
				return err
			}
			t.shown[m.EventID] = true
		}
		if r.Phase == "removed" && !t.c.json && r.Superseded {
			t.line(ctx, r.ID, 0, "!! "+supersededText)
		} else if r.Phase == "removed" && !t.c.json {
			t.line(ctx, r.ID, 0, "-- this device is no longer in the room's group; what is said now cannot be read here")
		}
	}
	return nil
}

func (t *tail) show(ctx context.Context, u client.Update) error {
	switch u := u.(type) {
	case *client.Message:
		if t.shown[u.EventID] || t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(struct {
				Kind string `json:"kind"`
				*client.Message
			}{"message", u})
		}
		t.line(ctx, u.Room, u.Timestamp, "%s", messageLine(u))
	case *client.MessageMarked:
		if t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(struct {
				Kind string `json:"kind"`
				*client.Message
			}{"marked", u.Message})
		}
		text := "was sent in an earlier epoch"
		if u.Removed {
			text += ", and its device is not in the group any more"
		}
		t.line(ctx, u.Room, 0, "-- %s of %s %s", clean(u.EventID.String()), clean(u.Sender.String()), text)
	case *client.EpochChanged:
		if t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(map[string]any{
				"kind": "epoch", "room_id": u.Room, "epoch": u.Epoch, "status": u.Status.String(), "author": u.Author,
				"added": u.Added, "removed": u.Removed, "joined": u.Joined, "lost": u.Lost,
			})
		}
		t.line(ctx, u.Room, 0, "-- epoch %d%s", u.Epoch, epochChange(u))
	case *client.EraOpened:
		if t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			var overrides []map[string]any
			for _, o := range u.Overrides {
				overrides = append(overrides, map[string]any{"epoch": o.Epoch, "ref": o.Ref.String(), "author": o.By})
			}
			return t.c.printJSON(map[string]any{
				"kind": "era", "room_id": u.Room, "era": u.Era, "author": u.By, "by_heirs": u.ByHeirs, "signers": u.Signers, "modules": u.Servers, "overrides": overrides,
			})
		}
		t.line(ctx, u.Room, 0, "!! era %d%s", u.Era, eraChange(u))
	case *client.SuiteChanged:
		if t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(map[string]any{"kind": "suite", "room_id": u.Room, "from": suiteName(u.From), "to": suiteName(u.To), "author": u.By})
		}
		t.line(ctx, u.Room, 0, "-- the room uses another cipher suite now%s", suiteChange(u))
	case *client.Undecryptable:
		if t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(map[string]any{
				"kind": "undecryptable", "room_id": u.Room, "event_id": u.EventID, "sender": u.Sender, "epoch": u.Epoch, "reason": u.Reason, "final": u.Final,
			})
		}
		again := "; it is tried again"
		if u.Final {
			again = ""
		}
		t.line(ctx, u.Room, 0, "!! a message of %s cannot be read: %s%s", clean(u.Sender.String()), clean(u.Reason), again)
	case *client.Invited:
		if t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(map[string]any{"kind": "invite", "room_id": u.Room, "by": u.By, "mls": u.MLS, "admits": u.Admits})
		}
		t.line(ctx, u.Room, 0, "-- %s invites you; mls-proxy join %s", clean(u.By.String()), shellWord(u.Room.String()))
	case *client.Removed:
		if t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(map[string]any{"kind": "removed", "room_id": u.Room, "by": u.By, "superseded": u.Superseded})
		}
		if u.Superseded {
			t.line(ctx, u.Room, 0, "!! "+supersededText)
			return nil
		}
		t.line(ctx, u.Room, 0, "-- this device was removed by %s; what is said from now on cannot be read here", clean(u.By.String()))
	case *client.Warning:
		if t.only != "" && u.Room != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(map[string]any{
				"kind": "warning", "room_id": u.Room, "event_id": u.EventID, "sender": u.Sender, "rule": u.Rule, "text": u.Text,
			})
		}
		t.line(ctx, u.Room, 0, "!! %s (%s)", warningText(u), clean(u.Rule))
	case *client.Redaction:
		if t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(map[string]any{
				"kind": "redaction", "room_id": u.Room, "event_id": u.EventID, "sender": u.Sender, "target": u.Target,
			})
		}
		t.line(ctx, u.Room, 0, "-- %s takes %s back; who has it keeps it", clean(u.Sender.String()), clean(u.Target.String()))
	case *client.HistoryReceived:
		if t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(historyJSON(u))
		}
		t.line(ctx, u.Room, 0, "-- %s; mls-proxy history %s", historyText(u), shellWord(u.Room.String()))
	case *client.Delivered:
		if t.only != "" && u.Room != t.only {
			return nil
		}
		if t.c.json {
			return t.c.printJSON(map[string]any{"kind": "delivered", "room_id": u.Room, "user_id": u.User, "device_id": u.Device})
		} // mls-proxy receipts says of what; in the talk it would be one line for each message and device
	default:
		return fmt.Errorf("unknown update %T", u)
	}
	return nil
}

// presence tells that the homeserver went, or that it is back.
func (t *tail) presence(ctx context.Context, base *url.URL, s connect.State) error {
	if s.Again && s.Away {
		return nil // one line is enough between messages
	}
	text, hint := presenceText(base, s, time.Now())
	if t.c.json {
		return t.c.printJSON(map[string]any{"kind": "homeserver", "answers": !s.Away, "since": s.Since.UnixMilli(), "text": text})
	}
	mark := "--"
	if s.Away {
		mark = "!!"
	}
	if hint != "" {
		text += " (" + hint + ")"
	}
	t.line(ctx, "", 0, "%s %s", mark, text)
	return nil
}

// line prints one line with time and room.
func (t *tail) line(ctx context.Context, room id.RoomID, ms int64, format string, args ...any) {
	at := time.Now()
	if ms > 0 {
		at = time.UnixMilli(ms)
	}
	where := ""
	if t.only == "" && room != "" {
		where = room.String()
		if r, err := t.cli.Room(ctx, room); err == nil {
			where = title(r)
		}
		where = "[" + where + "] "
	}
	t.c.printf("%s %s%s\n", at.Format(time.TimeOnly), where, fmt.Sprintf(format, args...))
}

func epochChange(u *client.EpochChanged) string {
	var parts []string
	if u.Joined {
		parts = append(parts, "this device is in the group")
	}
	if len(u.Added) > 0 {
		parts = append(parts, "added "+userList(u.Added))
	}
	if len(u.Removed) > 0 {
		parts = append(parts, "removed "+userList(u.Removed))
	}
	if u.Author != "" {
		parts = append(parts, "by "+clean(u.Author.String()))
	}
	if u.Lost {
		parts = append(parts, "another history was followed before; what was sent there is sent again")
	}
	parts = append(parts, statusText(u.Status))
	return " (" + strings.Join(parts, "; ") + ")"
}

// warningText names whom a warning is about, where its text does not.
func warningText(w *client.Warning) string {
	text := w.Text
	if w.Sender != "" && !strings.Contains(text, w.Sender.String()) {
		text += ", from " + w.Sender.String()
	}
	if w.EventID != "" && !strings.Contains(text, w.EventID.String()) {
		text += ", event " + w.EventID.String()
	}
	return clean(text)
}

// userList names users, with the number of devices where it is not one.
func userList(users []id.UserID) string {
	count := make(map[id.UserID]int)
	var order []id.UserID
	for _, u := range users {
		if count[u] == 0 {
			order = append(order, u)
		}
		count[u]++
	}
	var out []string
	for _, u := range order {
		text := clean(u.String())
		if count[u] > 1 {
			text += fmt.Sprintf(" (%d devices)", count[u])
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// messageText shows a message in a line.
func messageText(m *client.Message) string {
	late := ""
	if m.Late {
		late = " [sent in an earlier epoch]"
	}
	switch m.Type {
	case event.EventMessage.Type, event.EventSticker.Type:
		var content event.MessageEventContent
		if json.Unmarshal(m.Content, &content) != nil {
			return "[a message this program cannot read]" + late
		}
		text := content.Body
		if content.NewContent != nil {
			text = content.NewContent.Body
			late += " [edited]"
		}
		switch content.MsgType {
		case event.MsgImage, event.MsgFile, event.MsgAudio, event.MsgVideo:
			size := ""
			if content.Info != nil {
				size = fmt.Sprintf(", %d bytes", content.Info.Size)
			}
			return fmt.Sprintf("[file %s%s: mls-proxy get %s %s]%s", clean(content.GetFileName()), size, shellWord(m.Room.String()), shellWord(m.EventID.String()), late)
		case event.MsgEmote:
			return "* " + body(text) + late
		}
		return body(text) + late
	case event.EventReaction.Type:
		var content event.ReactionEventContent
		if json.Unmarshal(m.Content, &content) != nil {
			return "[a reaction this program cannot read]" + late
		}
		return fmt.Sprintf("[reacts %s to %s]%s", clean(content.RelatesTo.Key), clean(content.RelatesTo.EventID.String()), late)
	}
	return fmt.Sprintf("[%s]%s", clean(m.Type), late)
}
