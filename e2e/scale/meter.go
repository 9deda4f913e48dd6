package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"maunium.net/go/mautrix/id"
	_ "modernc.org/sqlite" // the driver "sqlite", for what a homeserver has stored

	"github.com/matrix-mls/matrix-mls/e2e/machine"
)

// cost is what one act took.
type cost struct {
	Name    string         `json:"name"`
	Seconds float64        `json:"seconds"`             // until it was done for every driven client
	Client  float64        `json:"client_cpu_seconds"`  // of all driven clients together, until all came to rest
	Modules float64        `json:"modules_cpu_seconds"` // of the three
	Homes   float64        `json:"homeservers_cpu_seconds"`
	RSS     int64          `json:"module_rss"` // of the largest, bytes
	Own     int64          `json:"client_rss"` // of all driven clients together, bytes
	Events  map[string]int `json:"events"`     // in the room, by type
	Bytes   int64          `json:"event_bytes"`
	Media   int64          `json:"media_bytes"`
	Traffic traffic        `json:"traffic"`
	Leaves  int            `json:"leaves,omitempty"` // afterwards

	Sizes map[string]int64 `json:"event_bytes_by_type,omitempty"`
}

func (c *cost) count() (n int) {
	for _, k := range c.Events {
		n += k
	}
	return n
}

// moment is what the meters show at a time.
type moment struct {
	at            time.Time
	client        float64
	cpu           map[string]float64 // by process
	pid           map[string]int
	traffic       traffic
	stream, media int64
}

// spent is what processes whose names begin so used between two moments. One that was started anew counts from 0; what the
// one before it used of the time is lost.
func spent(prefix string, from, to moment) (sum float64) {
	for name, now := range to.cpu {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		if from.pid[name] == to.pid[name] {
			now -= from.cpu[name]
		}
		sum += now
	}
	return sum
}

func (s *scale) moment(ctx context.Context) (m moment, err error) {
	m.traffic = s.http.now()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return m, err
	}
	m.client = time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
	m.cpu, m.pid = map[string]float64{}, map[string]int{}
	for _, server := range servers {
		for _, name := range []string{"module-" + server, server} {
			pid, err := s.pid(name)
			if err != nil {
				return m, err
			}
			p, err := s.process(name)
			if err != nil {
				return m, err
			}
			m.cpu[name], m.pid[name] = p.CPU, pid
			s.peak(name, p)
		}
	}
	if err := s.database(ctx, func(db *sql.DB) error {
		return db.QueryRowContext(ctx, `SELECT coalesce(max(stream_ordering), 0) FROM events`).Scan(&m.stream)
	}); err != nil {
		return m, err
	}
	m.media, err = s.mediaBytes()
	m.at = time.Now()
	return m, err
}

// pid is that of a homeserver or module, which lab has started.
func (s *scale) pid(name string) (int, error) {
	raw, err := os.ReadFile(filepath.Join(s.dir, name+".pid"))
	if err != nil {
		return 0, err
	}
	var rec struct {
		PID int `json:"pid"`
	}
	err = json.Unmarshal(raw, &rec)
	return rec.PID, err
}

// process reads of a homeserver or module.
func (s *scale) process(name string) (machine.Process, error) {
	pid, err := s.pid(name)
	if err != nil {
		return machine.Process{}, err
	}
	p, err := machine.Of(pid)
	if err != nil {
		return p, fmt.Errorf("%s does not run: %w", name, err)
	}
	return p, nil
}

// database looks into what syn1 has stored.
func (s *scale) database(ctx context.Context, look func(db *sql.DB) error) error {
	path := filepath.Join(s.w.Server(servers[0]).Dir, "homeserver.db")
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro&_pragma=busy_timeout(20000)")
	if err != nil {
		return err
	}
	defer db.Close()
	return look(db)
}

func (s *scale) mediaBytes() (sum int64, err error) {
	for _, server := range servers {
		err := filepath.WalkDir(filepath.Join(s.w.Server(server).Dir, "media"), func(_ string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return nil // not there yet, or gone meanwhile
			}
			if info, err := e.Info(); err == nil {
				sum += info.Size()
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return sum, nil
}

// between is what happened between two moments, in the room as syn1 has it.
func (s *scale) between(ctx context.Context, room id.RoomID, from, to moment) (*cost, error) {
	c := &cost{
		Client: to.client - from.client, Modules: spent("module-", from, to), Homes: spent("syn", from, to) + spent("den", from, to),
		Media: to.media - from.media, Traffic: to.traffic.minus(from.traffic), Events: map[string]int{}, Sizes: map[string]int64{},
	}
	for _, server := range servers {
		p, err := s.process("module-" + server)
		if err != nil {
			return nil, err
		}
		c.RSS = max(c.RSS, p.RSS)
	}
	own, err := machine.Of(os.Getpid())
	if err != nil {
		return nil, err
	}
	c.Own = own.RSS
	s.peak("clients", own)
	return c, s.database(ctx, func(db *sql.DB) error {
		rows, err := db.QueryContext(ctx, `SELECT events.type, count(*), sum(length(event_json.json)) FROM events JOIN event_json ON event_json.event_id = events.event_id
			WHERE events.room_id = ? AND events.stream_ordering > ? AND events.stream_ordering <= ? GROUP BY events.type`, string(room), from.stream, to.stream)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var kind string
			var n, size int
			if err := rows.Scan(&kind, &n, &size); err != nil {
				return err
			}
			c.Events[kind], c.Sizes[kind] = n, int64(size)
			c.Bytes += int64(size)
		}
		return rows.Err()
	})
}

// meter measures one act. act returns when it is done for everybody; rest, if not nil, waits until what follows is done, too.
func (s *scale) meter(ctx context.Context, room id.RoomID, name string, act, rest func(context.Context) error) (*cost, error) {
	from, err := s.moment(ctx)
	if err != nil {
		return nil, err
	}
	if err := act(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	took := time.Since(from.at)
	if rest != nil {
		if err := rest(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	to, err := s.moment(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.between(ctx, room, from, to)
	if err != nil {
		return nil, err
	}
	c.Name, c.Seconds, c.Leaves = name, took.Seconds(), s.want
	s.say.note("%s: %.2f s", name, c.Seconds)
	return c, nil
}

// account measures a part of the way to a room of the full size, unless it was done before.
func (s *scale) account(name string, todo bool, act func() error) error {
	if !todo {
		return act()
	}
	c, err := s.meter(context.Background(), s.st.Room, name, func(context.Context) error { return act() }, nil)
	if err != nil {
		return err
	}
	s.mu.Lock()
	// After a kill a part that was done may come once more, and has nothing left to do: its row stays.
	if !slices.ContainsFunc(s.costs, func(old *cost) bool { return old.Name == name }) {
		s.costs = append(s.costs, c)
	}
	s.mu.Unlock()
	return s.save(true)
}
