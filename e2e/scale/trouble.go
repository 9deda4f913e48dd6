package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	rebuilt  = "a module that lost its database has rebuilt the room"
	ordering = "its new key is listed, and a commit that it orders"
	healed   = "heal after a partition"

	apart = "syn2" // whose links a partition cuts
)

// founder is the client whose user is the room's admin.
func (s *scale) founder() *e2e.Device {
	admin := id.UserID(s.st.Driven[0].User.UserID)
	if i := slices.IndexFunc(s.online, func(d *e2e.Device) bool { return d.UserID() == admin }); i >= 0 {
		return s.online[i]
	}
	return s.online[0]
}

// standing says how the first server's module, which leads, stands in the room's list.
func (s *scale) standing(ctx context.Context) (client.SequencerState, error) {
	info, err := s.founder().Sequencers(ctx, s.st.Room)
	if err != nil {
		return "", err
	}
	server := s.w.Server(servers[0]).ServerName
	for _, m := range info.List {
		if m.Server == server {
			return m.State, nil
		}
	}
	return "", fmt.Errorf("the module of %s is not on the room's list", servers[0])
}

// rebuild takes its database away from the module that leads. It is done when the module has read the room again: it
// announces its new key then.
func (s *scale) rebuild(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	state, err := s.standing(ctx)
	if err != nil {
		return err
	}
	if state != client.SequencerServes {
		return fmt.Errorf("the module of %s does not serve the room before it is lost: it %s", servers[0], state)
	}
	if err := s.ending("module-" + servers[0]); err != nil {
		return err
	}
	if err := s.w.LoseModuleDatabase(ctx, servers[0]); err != nil {
		return err
	}
	if err := s.w.StartModule(ctx, servers[0]); err != nil {
		return err
	}
	for {
		if state, err = s.standing(ctx); err != nil || state == client.SequencerNewKey {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("the module of %s has not announced a new key in the room (%w)", servers[0], err)
		}
	}
}

// ordersAgain lets the admin's client move the room to the module's new key, and another client commit: the module that
// was rebuilt has to accept that.
func (s *scale) ordersAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := s.repaired(ctx); err != nil {
		return err
	}
	author := s.online[len(s.online)-1]
	if err := s.refresh(ctx, author); err != nil {
		return err
	}
	info, err := author.Room(ctx, s.st.Room)
	if err != nil {
		return err
	}
	want := "@_mls_bot:" + s.w.Server(servers[0]).ServerName
	by, err := s.acceptedBy(ctx, info.Head)
	if err != nil {
		return err
	}
	if !slices.Equal(by, []string{want}) {
		return fmt.Errorf("the commit was accepted by %q, want %s, which was rebuilt", by, want)
	}
	return nil
}

// repaired moves the room to the keys that its modules announce, if those are not the listed ones, and waits until that is
// in force.
func (s *scale) repaired(ctx context.Context) error {
	for {
		founder := s.founder()
		info, err := founder.Sequencers(ctx, s.st.Room)
		if err != nil {
			return err
		}
		lost := slices.ContainsFunc(info.List, func(m client.SequencerInfo) bool { return m.State == client.SequencerNewKey })
		if !lost && info.Change == nil {
			return nil
		}
		if lost && info.Change == nil {
			if err := founder.RepairSequencer(ctx, s.st.Room); err != nil && !errors.Is(err, client.ErrNothingToRepair) {
				return err
			}
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("the room's list of modules is not whole again (%w)", err)
		}
	}
}

// acceptedBy lists who accepted a commit, as syn1 has it.
func (s *scale) acceptedBy(ctx context.Context, ref federation.Ref) (by []string, err error) {
	return by, s.database(ctx, func(db *sql.DB) error {
		rows, err := db.QueryContext(ctx, `SELECT events.sender, event_json.json FROM events JOIN event_json ON event_json.event_id = events.event_id
			WHERE events.room_id = ? AND events.type = ? ORDER BY events.stream_ordering`, string(s.st.Room), rooms.TypeAccept)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var sender, raw string
			if err := rows.Scan(&sender, &raw); err != nil {
				return err
			}
			var event struct {
				Content struct {
					Ref rooms.Hash `json:"ref"`
				} `json:"content"`
			}
			if err := json.Unmarshal([]byte(raw), &event); err != nil {
				return fmt.Errorf("an accept in the homeserver's database: %w", err)
			}
			if federation.Ref(event.Content.Ref) == ref && !slices.Contains(by, sender) {
				by = append(by, sender)
			}
		}
		return rows.Err()
	})
}

// saying is a message that everybody has to be shown once.
type saying struct {
	text string
	from *e2e.Device
}

// tell lets a client send, and these read.
func (s *scale) tell(ctx context.Context, what string, from *e2e.Device, to []*e2e.Device) error {
	m := saying{fmt.Sprintf("%s, %s: %d", from.Name, what, time.Now().UnixNano()), from}
	s.said = append(s.said, m)
	if _, err := from.SendText(ctx, s.st.Room, m.text); err != nil {
		return err
	}
	return s.shown(ctx, []saying{m}, to)
}

// shown waits until clients were shown messages.
func (s *scale) shown(ctx context.Context, messages []saying, to []*e2e.Device) error {
	return s.all(func(d *e2e.Device) error {
		if !slices.Contains(to, d) {
			return nil
		}
		for _, m := range messages {
			if _, err := d.WaitText(ctx, s.st.Room, m.text); err != nil {
				return err
			}
		}
		return nil
	})
}

// part cuts the links of one homeserver. On both sides somebody commits and speaks: on the side of the majority the commit
// becomes final, on the other it waits until that server's module has asked the others twice in vain.
func (s *scale) part(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*limit)
	defer cancel()
	s.said = nil
	var there, here []*e2e.Device
	for _, d := range s.online {
		if d.Server.Name == apart {
			there = append(there, d)
		} else {
			here = append(here, d)
		}
	}
	if len(there) == 0 || len(here) == 0 {
		return fmt.Errorf("no whole client lives on one side of the links of %s", apart)
	}
	others := slices.DeleteFunc(slices.Clone(servers), func(name string) bool { return name == apart })
	if err := s.w.Split(ctx, []string{apart}, others); err != nil {
		return err
	}
	began := time.Now()
	var heads []federation.Ref
	for _, side := range [][]*e2e.Device{here, there} {
		author := side[0]
		if err := author.Refresh(ctx, s.st.Room); err != nil {
			return err
		}
		if err := s.agree(ctx, limit, side); err != nil {
			return err
		}
		if err := s.tell(ctx, "apart", author, side); err != nil {
			return err
		}
		info, err := author.Room(ctx, s.st.Room)
		if err != nil {
			return err
		}
		heads = append(heads, info.Head)
	}
	if heads[0] == heads[1] || here[0].Has(s.st.Room, s.said[1].text) || there[0].Has(s.st.Room, s.said[0].text) {
		return errors.New("the sides did not part")
	}
	s.say.note("%s is cut off; the commits and messages of both sides took %.2f s", apart, time.Since(began).Seconds())
	return nil
}

// heal joins the links again. A homeserver tries again at once only if it has something new for another: a client of each
// says something. It is done when all are on one head and have every message of both sides, and those.
func (s *scale) heal(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*limit)
	defer cancel()
	if err := s.w.Unblock(ctx, "*", "*"); err != nil {
		return err
	}
	for _, server := range servers {
		i := slices.IndexFunc(s.online, func(d *e2e.Device) bool { return d.Server.Name == server })
		if i < 0 {
			return fmt.Errorf("no whole client lives on %s", server)
		}
		if err := s.tell(ctx, "together", s.online[i], nil); err != nil {
			return err
		}
	}
	if err := s.shown(ctx, s.said, s.online); err != nil {
		return err
	}
	return s.agreed(ctx, 2*limit)
}

// once checks, when everything has come to rest, that every client was shown each message of the partition exactly once,
// as of who sent it.
func (s *scale) once(ctx context.Context) error {
	if err := s.settled(ctx); err != nil {
		return err
	}
	var wrong []string
	for _, d := range s.online {
		for _, m := range s.said {
			if bad := countShown(d.Updates(), s.st.Room, m.text, m.from.UserID(), m.from.DeviceID()); bad != "" {
				wrong = append(wrong, d.Name+" "+bad)
			}
		}
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return s.agreed(ctx, limit)
}

// countShown says what is wrong with how a client was shown a message.
func countShown(updates []client.Update, room id.RoomID, text string, sender id.UserID, device id.DeviceID) string {
	count := 0
	for _, u := range updates {
		m, ok := u.(*client.Message)
		if !ok || m.Room != room || m.Body() != text {
			continue
		}
		if count++; m.Sender != sender || m.Device != device {
			return fmt.Sprintf("was shown %q as of %s %s, not %s %s", text, m.Sender, m.Device, sender, device)
		}
	}
	if count != 1 {
		return fmt.Sprintf("was shown %q %d times", text, count)
	}
	return ""
}
