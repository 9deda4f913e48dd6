package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
)

// The kinds of an [Entry].
const (
	Opened      = "opened"      // the client was started
	Closed      = "closed"      // it was stopped
	Said        = "said"        // a message was sent, from Began to At
	Did         = "did"         // another call that changes the room
	Got         = "got"         // a message was shown, the own ones too
	Unreadable  = "unreadable"  // a message cannot be shown, for good
	Entered     = "entered"     // the room's head moved
	Out         = "out"         // this device is not in the group any more
	Warned      = "warned"      // a person was warned
	EraBegan    = "era"         // the room goes on in a new era
	AtRest      = "at rest"     // what the device holds of the room at the end
	journalName = "journal.log" // in the device's directory
)

// An Entry is a line of a device's journal: what its client did or was told, and nothing that a test expects.
type Entry struct {
	Kind  string        `json:"kind"`
	At    time.Duration `json:"at"` // on a clock that all devices of a world share
	Began time.Duration `json:"began,omitempty"`
	Room  id.RoomID     `json:"room,omitempty"`
	Error string        `json:"error,omitempty"`

	Call   string    `json:"call,omitempty"`   // of Did: ban, kick, invite, …
	Target id.UserID `json:"target,omitempty"` // whom it is about

	Event   id.EventID  `json:"event,omitempty"`
	Mid     string      `json:"mid,omitempty"`
	Digest  string      `json:"digest,omitempty"` // of type and content
	Sender  id.UserID   `json:"sender,omitempty"`
	Device  id.DeviceID `json:"device,omitempty"`
	Own     bool        `json:"own,omitempty"`
	Leaf    uint32      `json:"leaf,omitempty"`
	Gen     uint32      `json:"gen,omitempty"`
	Missing uint32      `json:"missing,omitempty"`

	Ref     string      `json:"ref,omitempty"`
	Parent  string      `json:"parent,omitempty"`
	Epoch   uint64      `json:"epoch,omitempty"`
	Final   uint64      `json:"final,omitempty"`
	Era     uint64      `json:"era,omitempty"`
	Added   []id.UserID `json:"added,omitempty"`
	Removed []id.UserID `json:"removed,omitempty"`
	Lost    bool        `json:"lost,omitempty"`
	Members []string    `json:"members,omitempty"` // user/device, sorted
	Rule    string      `json:"rule,omitempty"`
	Text    string      `json:"text,omitempty"`
}

// A Journal is what one device wrote down, in order.
type Journal struct {
	Name    string
	User    id.UserID
	Device  id.DeviceID
	Entries []Entry
}

// journal writes one.
type journal struct {
	since func() time.Duration

	mu  sync.Mutex
	out *os.File
}

func (j *journal) open(dir string) error {
	out, err := os.OpenFile(filepath.Join(dir, journalName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("e2e: %w", err)
	}
	j.out = out
	return nil
}

func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.out == nil {
		return nil
	}
	err := j.out.Close()
	j.out = nil
	return err
}

// note writes an entry down; what cannot be written is missed by the checker.
func (j *journal) note(e Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.out == nil {
		return
	}
	e.At = j.since()
	if raw, err := json.Marshal(e); err == nil {
		_, _ = j.out.Write(append(raw, '\n'))
	}
}

// digest of what a message says, however its JSON is written.
func digest(eventType string, content json.RawMessage) string {
	var parsed any
	if json.Unmarshal(content, &parsed) == nil {
		if plain, err := json.Marshal(parsed); err == nil {
			content = plain
		}
	}
	sum := sha256.Sum256(slices.Concat([]byte(eventType), []byte{0}, content))
	return hex.EncodeToString(sum[:8])
}

// noteUpdate writes down what the client told.
func (j *journal) noteUpdate(u client.Update) {
	switch u := u.(type) {
	case *client.Message:
		j.note(Entry{Kind: Got, Room: u.Room, Event: u.EventID, Mid: u.ID, Digest: digest(u.Type, u.Content), Sender: u.Sender, Device: u.Device,
			Own: u.Own, Leaf: u.Leaf, Gen: u.Generation, Missing: u.Missing, Ref: u.Ref.String(), Epoch: u.Epoch})
	case *client.Undecryptable:
		if u.Final {
			j.note(Entry{Kind: Unreadable, Room: u.Room, Event: u.EventID, Sender: u.Sender, Epoch: u.Epoch, Rule: u.Reason})
		}
	case *client.EpochChanged:
		j.note(Entry{Kind: Entered, Room: u.Room, Ref: u.Ref.String(), Parent: u.Parent.String(), Epoch: u.Epoch,
			Sender: u.Author, Added: u.Added, Removed: u.Removed, Lost: u.Lost})
	case *client.Removed:
		j.note(Entry{Kind: Out, Room: u.Room, Sender: u.By})
	case *client.Warning:
		j.note(Entry{Kind: Warned, Room: u.Room, Event: u.EventID, Sender: u.Sender, Rule: u.Rule, Text: u.Text})
	case *client.EraOpened:
		j.note(Entry{Kind: EraBegan, Room: u.Room, Era: u.Era, Sender: u.By})
	}
}

// did runs a call and writes it down.
func (d *Device) did(room id.RoomID, call string, target id.UserID, do func() error) error {
	began := d.journal.since()
	err := do()
	e := Entry{Kind: Did, Room: room, Call: call, Target: target, Began: began}
	if err != nil {
		e.Error = err.Error()
	}
	d.journal.note(e)
	return err
}

// SendText sends a text message, and writes it down.
func (d *Device) SendText(ctx context.Context, room id.RoomID, text string) (id.EventID, error) {
	began := d.journal.since()
	content, err := json.Marshal(&event.MessageEventContent{MsgType: event.MsgText, Body: text})
	if err != nil {
		return "", fmt.Errorf("e2e: %w", err)
	}
	sent, err := d.Client.SendText(ctx, room, text)
	e := Entry{Kind: Said, Room: room, Event: sent, Digest: digest(event.EventMessage.Type, content), Sender: d.UserID(), Device: d.DeviceID(), Began: began}
	if err != nil {
		e.Error = err.Error()
	}
	d.journal.note(e)
	return sent, err
}

// Invite, Kick, Ban and Leave do what the client's methods do, and write it down.
func (d *Device) Invite(ctx context.Context, room id.RoomID, user id.UserID) error {
	return d.did(room, "invite", user, func() error { return d.Client.Invite(ctx, room, user) })
}

// Kick removes a user.
func (d *Device) Kick(ctx context.Context, room id.RoomID, user id.UserID, reason string) error {
	return d.did(room, "kick", user, func() error { return d.Client.Kick(ctx, room, user, reason) })
}

// Ban removes a user for good.
func (d *Device) Ban(ctx context.Context, room id.RoomID, user id.UserID, reason string) error {
	return d.did(room, "ban", user, func() error { return d.Client.Ban(ctx, room, user, reason) })
}

// Leave leaves a room.
func (d *Device) Leave(ctx context.Context, room id.RoomID) error {
	return d.did(room, "leave", d.UserID(), func() error { return d.Client.Leave(ctx, room) })
}

// Rest writes down what the device holds of a room now: its head, and who is in the group.
func (d *Device) Rest(ctx context.Context, room id.RoomID) error {
	info, err := d.Room(ctx, room)
	if err != nil {
		return err
	}
	members, err := d.Members(ctx, room)
	if err != nil {
		return err
	}
	e := Entry{Kind: AtRest, Room: room, Ref: info.Head.String(), Epoch: info.Epoch, Final: info.Final, Era: info.Era}
	for _, m := range members {
		if m.Device != "" {
			e.Members = append(e.Members, string(m.User)+"/"+string(m.Device))
		}
	}
	slices.Sort(e.Members)
	if info.Phase != "member" {
		e.Members, e.Ref = nil, ""
	}
	d.journal.note(e)
	return nil
}

// KeepLogs copies the logs of servers, modules and clients to where they outlive the run, and says where that is.
func (w *World) KeepLogs(name string) (string, error) {
	dir, err := w.Servers.KeepLogs(name)
	if err != nil {
		return "", err
	}
	paths, err := filepath.Glob(filepath.Join(w.Dir(), "clients", "*", "*.log"))
	if err != nil {
		return "", fmt.Errorf("e2e: %w", err)
	}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(filepath.Dir(path))+"-"+filepath.Base(path)), raw, 0o600)
		}
		if err != nil {
			return "", fmt.Errorf("e2e: %w", err)
		}
	}
	return dir, nil
}

// Journals reads the journals of all devices of the world that have to do with a room.
func (w *World) Journals(room id.RoomID) ([]*Journal, error) {
	var out []*Journal
	paths, err := filepath.Glob(filepath.Join(w.Dir(), "clients", "*", journalName))
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	for _, path := range paths {
		j, err := readJournal(path, room)
		if err != nil {
			return nil, err
		}
		if j != nil {
			out = append(out, j)
		}
	}
	return out, nil
}

func readJournal(path string, room id.RoomID) (*Journal, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	defer f.Close()
	j := &Journal{Name: filepath.Base(filepath.Dir(path))}
	of := false
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("e2e: journal %s: %w", path, err)
		}
		switch {
		case e.Kind == Opened:
			j.User, j.Device = e.Sender, e.Device
		case e.Kind == Closed:
		case e.Room != room:
			continue
		default:
			of = true
		}
		j.Entries = append(j.Entries, e)
	}
	if err := lines.Err(); err != nil || !of {
		return nil, err
	}
	return j, nil
}

// name is how members are listed at rest.
func (j *Journal) name() string { return string(j.User) + "/" + string(j.Device) }

func short(s string) string { return s[:min(len(s), 8)] }
