package appservice

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"html"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// Users of the own server can give the module orders in a room, in plain text:
// it has no key to read anything else. What concerns more than the room at hand is
// for the admins that the configuration names, in a room without a group, which
// others are not in unless the admin let them.

const (
	commandPrefix   = "!mls"
	commandsAMinute = 30 // of one user
	commandsWaiting = 100
	commandUsers    = 10_000 // counted one by one

	rowsInAnswer = 6      // of a picture, one by one
	maxDrawn     = 12_000 // bytes of a picture; the answer holds them twice

	typeMessage = "m.room.message"
	ruleCommand = "room/too-many-commands"
)

// order is a command that waits for its answer.
type order struct {
	room   id.RoomID
	sender id.UserID
	event  id.EventID
	words  []string
}

// commandText returns the words of a message that is meant for the module.
func commandText(content json.RawMessage) ([]string, bool) {
	var c struct {
		Type string `json:"msgtype"`
		Body string `json:"body"`
	}
	if json.Unmarshal(content, &c) != nil || c.Type != "m.text" || len(c.Body) > 1000 {
		return nil, false
	}
	words := strings.Fields(c.Body)
	if len(words) == 0 || words[0] != commandPrefix {
		return nil, false
	}
	return words[1:], true
}

// commandRate counts what each user asks for.
type commandRate struct {
	mu     sync.Mutex
	minute time.Duration
	counts map[id.UserID]int
}

func (c *commandRate) allow(user id.UserID, now time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil || now-c.minute >= time.Minute {
		c.minute, c.counts = now, make(map[id.UserID]int)
	}
	if c.counts[user] == 0 && len(c.counts) >= commandUsers {
		return false
	}
	c.counts[user]++
	return c.counts[user] <= commandsAMinute
}

// takeCommand queues a command of a user of the own server.
func (s *Service) takeCommand(ev *homeserver.Event) {
	_, server, err := ev.Sender.Parse()
	if ev.Type != typeMessage || ev.StateKey != nil || err != nil || server != s.hs.ServerName() || ev.Sender == s.hs.UserID() || !s.filter.has(ev.Room) {
		return
	}
	words, ok := commandText(ev.Content)
	if !ok {
		return
	}
	if !s.rate.allow(ev.Sender, s.monotonic()) {
		s.metrics.Rejected(ruleCommand)
		return
	}
	select {
	case s.orders <- order{ev.Room, ev.Sender, ev.ID, words}:
	default:
		s.metrics.Rejected(ruleCommand)
	}
}

// runCommands answers commands.
func (s *Service) runCommands(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-s.orders:
			s.answer(ctx, o)
		}
	}
}

// answer answers a command by a notice. Its transaction id is that of the
// command's event, so that one that is pushed twice is answered once.
func (s *Service) answer(ctx context.Context, o order) {
	text, err := s.obey(ctx, o)
	if err != nil {
		s.log.Warn().Err(err).Stringer("room_id", o.room).Msg("Could not answer a command")
		text = "That failed; the module's log says why"
	}
	answer := map[string]string{"msgtype": "m.notice", "body": strings.TrimRight(text, "\n")}
	if len(o.words) > 0 && strings.EqualFold(o.words[0], "epochs") { // drawn in characters of one width
		answer["format"], answer["formatted_body"] = "org.matrix.custom.html", "<pre><code>"+html.EscapeString(text)+"</code></pre>"
	}
	content, err := json.Marshal(answer)
	if err != nil {
		s.log.Error().Err(err).Msg("Could not write an answer")
		return
	}
	hash := sha256.Sum256([]byte(o.event))
	if _, err := s.hs.SendEvent(ctx, o.room, typeMessage, "mls-answer-"+hex.EncodeToString(hash[:12]), content); err != nil && ctx.Err() == nil {
		s.log.Warn().Err(err).Stringer("room_id", o.room).Msg("Could not send an answer")
	}
}

// commandTable is what help lists.
var commandTable = []struct {
	verb, text string
	admin      bool // for admins, in a room without a group
}{
	{"help", "this list", false},
	{"version", "which program this is", false},
	{"room", "how this room's epochs stand, and who puts them in order", false},
	{"epochs", "draw this room's epochs: forks, who accepted what, what is final, who is behind", false},
	{"repair", "compare this room with its history", false},
	{"status", "how the module does", true},
	{"rooms [PAGE]", "the rooms it knows", true},
	{"room ROOM", "the same of any room", true},
	{"epochs ROOM", "the same of any room", true},
	{"repair ROOM", "the same for any room", true},
}

// obey does what a command asks for and returns the answer.
func (s *Service) obey(ctx context.Context, o order) (string, error) {
	row, err := s.store.Room(ctx, o.room)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return "", err
	}
	grouped := err == nil && len(row.Machine) > 0
	admin := slices.Contains(s.cfg.AppService.Admins, string(o.sender))
	verb, rest := "help", []string(nil)
	if len(o.words) > 0 {
		verb, rest = strings.ToLower(o.words[0]), o.words[1:]
	}
	target := o.room
	if (verb == "room" || verb == "epochs" || verb == "repair") && len(rest) > 0 {
		target = id.RoomID(rest[0])
	}
	if wide := verb == "status" || verb == "rooms" || target != o.room; wide {
		switch {
		case !admin:
			return "Only admins may ask for that; appservice.admins in the module's configuration names them", nil
		case grouped:
			return "Ask for that in a room without a group: here others would read the answer", nil
		}
	}
	switch verb {
	case "help":
		var b strings.Builder
		for _, c := range commandTable {
			if !c.admin || admin && !grouped {
				b.WriteString(commandPrefix + " " + c.verb + ": " + c.text + "\n")
			}
		}
		return b.String(), nil
	case "version":
		return "matrix-mls " + s.version, nil
	case "status":
		text, err := StatusText(ctx, s.store, s.now())
		if why := s.notReady(ctx); why != "" {
			text = "not ready: " + why + "\n" + text
		}
		return text, err
	case "rooms":
		page := 1
		if len(rest) > 0 {
			if page, err = strconv.Atoi(rest[0]); err != nil || page < 1 || page > 1_000_000 {
				return "A page is a number from 1 on", nil
			}
		}
		return RoomsText(ctx, s.store, page)
	case "room":
		text, err := RoomText(ctx, s.store, target)
		if errors.Is(err, ErrNoRoom) {
			return "The module does not know this room", nil
		}
		return text, err
	case "epochs":
		p, err := EpochPicture(ctx, s.store, target, s.hs.ServerName(), rowsInAnswer)
		switch {
		case errors.Is(err, ErrNoRoom):
			return "The module does not know this room", nil
		case errors.Is(err, ErrNoGroup):
			return "This room has no group yet", nil
		case err != nil:
			return "", err
		}
		text := p.Text()
		if len(text) > maxDrawn {
			text = text[:strings.LastIndex(text[:maxDrawn], "\n")+1] + "…\n"
		}
		return text, nil
	case "repair":
		if !s.filter.has(target) {
			return "The module does not know this room", nil
		}
		s.stir.add(target)
		s.Wake()
		return "Comparing the room with its history. Lost keys are repaired by members: `mls-proxy repair ROOM`", nil
	}
	return "There is no command " + strconv.Quote(cut(verb, 40)) + "; " + commandPrefix + " help lists what there is", nil
}
