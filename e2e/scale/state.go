package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/e2e/machine"
	"github.com/matrix-mls/matrix-mls/lab"
)

// servers are the homeservers' names, in the order in which they get users.
var servers = []string{"syn1", "syn2", "den1"}

// state is what a program that goes on with the run needs to know.
type state struct {
	Leaves  int       `json:"leaves"`
	PerUser int       `json:"per_user"`
	Driven  []*driven `json:"driven"`
	Late    *driven   `json:"late"` // comes in when the room has its size
	Crowd   []*member `json:"crowd"`
	Early   int       `json:"early"` // of the crowd, who are in the room before it is switched

	Room   id.RoomID `json:"room,omitempty"`
	Closed bool      `json:"closed,omitempty"` // nobody joins uninvited any more
	Grown  bool      `json:"grown,omitempty"`
	Banned int       `json:"banned,omitempty"` // of the crowd, who were banned, or are to be
	Links  bool      `json:"links,omitempty"`  // those between the servers can be cut
	// Starts counts the programs that worked at this run.
	Starts int       `json:"starts"`
	Costs  []*cost   `json:"costs,omitempty"` // of the way to here, and of acts
	Plain  id.RoomID `json:"plain,omitempty"` // the room for Megolm
	// Peaks is the most memory that each process was seen to have, those before it of its name among them.
	Peaks map[string]int64 `json:"peaks,omitempty"`
}

// driven is a user with one device, a whole client in this process.
type driven struct {
	Server   string   `json:"server"`
	Name     string   `json:"name"`
	User     lab.User `json:"user"`
	Recovery string   `json:"recovery,omitempty"`
	Made     bool     `json:"made,omitempty"`
}

// member is a user whose devices nobody runs.
type member struct {
	Server  string        `json:"server"`
	User    lab.User      `json:"user"`
	Devices []id.DeviceID `json:"devices,omitempty"` // all of them, once they are made
	Invited bool          `json:"invited,omitempty"`
	Joined  bool          `json:"joined,omitempty"`
	Beside  bool          `json:"beside,omitempty"` // joined the room for Megolm
}

// scale is a run.
type scale struct {
	options
	w    *e2e.World
	say  *progress
	http *counter

	mu      sync.Mutex
	st      state
	saved   time.Time
	online  []*e2e.Device // driven clients that run and are in the group
	said    []saying      // around a partition
	late    *e2e.Device
	want    int           // leaves that the tree should have
	texts   int           // that were sent
	entered time.Duration // that the newcomer took from its join until it had read a message
	costs   []*cost
	megolm  []*cost
	proxied *proxied
	load    string
	began   time.Time
	more    []*e2e.Device // to stop in the end
}

func (s *scale) path() string { return filepath.Join(s.dir, "scale-state.json") }

// open goes on with the run in the directory, or begins one.
func open(ctx context.Context, o options) (*scale, error) {
	s := &scale{options: o, say: newProgress(), http: newCounter(), load: machine.LoadAverage(), began: time.Now()}
	raw, err := os.ReadFile(s.path())
	switch {
	case err == nil:
		if err := json.Unmarshal(raw, &s.st); err != nil {
			return nil, fmt.Errorf("%s cannot be read: %w", s.path(), err)
		}
		if s.st.Leaves != o.leaves || s.st.PerUser != o.perUser || len(s.st.Driven) != o.driven {
			return nil, fmt.Errorf("%s holds a run with -n %d -per-user %d -driven %d: give the same numbers, or another -dir", o.dir, s.st.Leaves, s.st.PerUser, len(s.st.Driven))
		}
		if s.w, err = e2e.Attach(o.dir); err != nil {
			return nil, err
		}
		s.say.note("going on with the run in %s", o.dir)
		if err := s.revive(ctx); err != nil {
			return nil, err
		}
	case errors.Is(err, os.ErrNotExist):
		if err := s.begin(ctx); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	s.st.Starts++
	s.costs = s.st.Costs
	return s, s.save(true)
}

// begin starts the servers and plans who is there.
func (s *scale) begin(ctx context.Context) error {
	if old, err := lab.Attach(s.dir); err == nil { // it ended before anything was written down
		if err := old.Down(ctx, true); err != nil {
			return err
		}
	}
	w, err := e2e.Start(ctx, e2e.Options{Options: lab.Options{Synapse: 2, Dendrite: 1, Proxy: true, Dir: s.dir, Detach: !s.hold}, Bin: s.bin, Progress: s.say.note})
	if err != nil {
		return err
	}
	s.w = w
	s.st = state{Leaves: s.options.leaves, PerUser: s.perUser, Links: true}
	for i := range s.options.driven {
		s.st.Driven = append(s.st.Driven, &driven{Server: servers[i%len(servers)], Name: fmt.Sprintf("driven%d", i)})
	}
	s.st.Late = &driven{Server: servers[1], Name: "late"}
	for have := s.options.driven; have < s.options.leaves; have += s.perUser {
		s.st.Crowd = append(s.st.Crowd, &member{Server: servers[len(s.st.Crowd)%len(servers)]})
	}
	s.st.Early = max(len(s.st.Crowd)*s.early/100, 1)
	return nil
}

// revive starts what does not run, and joins what was cut: the program before this one may have been ended while a module
// was down, or a link.
func (s *scale) revive(ctx context.Context) error {
	var names []string
	if s.st.Links {
		names = append(names, "proxy")
	}
	for _, server := range s.w.All() {
		names = append(names, server.Name)
	}
	if err := s.w.Servers.Start(ctx, names...); err != nil {
		return err
	}
	for _, server := range s.w.All() {
		if err := s.w.StartModule(ctx, server.Name); err != nil {
			return err
		}
	}
	if !s.st.Links {
		return nil
	}
	return s.w.Unblock(ctx, "*", "*")
}

// devicesOf is how many devices a user of the crowd has: the last one's fill the tree.
func (s *scale) devicesOf(n int) int {
	return min(s.perUser, s.options.leaves-s.options.driven-n*s.perUser)
}

// save writes the state down; unless it has to, at most twice in a second.
func (s *scale) save(now bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !now && time.Since(s.saved) < 500*time.Millisecond {
		return nil
	}
	s.saved = time.Now()
	s.st.Costs = s.costs
	raw, err := json.Marshal(&s.st)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.path()+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(s.path()+".new", s.path())
}

// peak notes the most memory that a process had so far, which goes with it, and returns the most of all of that name.
func (s *scale) peak(name string, p machine.Process) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.st.Peaks == nil {
		s.st.Peaks = map[string]int64{}
	}
	s.st.Peaks[name] = max(s.st.Peaks[name], p.Peak)
	return s.st.Peaks[name]
}

// ending notes what goes with a process that is about to end.
func (s *scale) ending(name string) error {
	p, err := s.process(name)
	if err == nil {
		s.peak(name, p)
	}
	return err
}

// update changes the state with nobody else looking, and saves it.
func (s *scale) update(change func()) error {
	s.mu.Lock()
	change()
	s.mu.Unlock()
	return s.save(false)
}

// close stops the clients, and ends and deletes the servers if the run is over.
func (s *scale) close(over bool) error {
	s.say.end()
	var err error
	for _, d := range s.more {
		err = errors.Join(err, d.Stop())
	}
	if s.hold {
		return errors.Join(err, s.w.Close())
	}
	if !over {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(err, s.w.Down(ctx, true))
}
