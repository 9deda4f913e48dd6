package appservice

import (
	"context"
	"fmt"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

// Bounds of what the engine asks of the homeserver at a time.
const (
	jobsParallel = 8
	jobsPerRoom  = 2
	jobsMedia    = 4 // of all; joins and readings of state need the rest
	jobsQueued   = 4096
	jobsHeld     = 4 << 20 // bytes of uploads that wait or run; beyond it none is made
	jobTimeout   = 90 * time.Second
)

// job is something the engine waits for: run asks the homeserver, in a
// goroutine of its own and without touching the engine; what it returns is
// called by the engine.
type job struct {
	room  id.RoomID
	key   string
	media bool // a download, which a silent server can make last
	bytes int  // what it holds in memory
	run   func(ctx context.Context) func(ctx context.Context) error
}

// jobs runs jobs, at most one for each room and key at a time. One room has
// at most jobsPerRoom of the places, so that it cannot keep the others waiting.
type jobs struct {
	wake   func()
	inline bool // for tests: nothing runs in a goroutine of its own

	queue   []*job
	pending map[string]bool // queued or running, by room and key
	held    int             // bytes of these

	mu      sync.Mutex
	running int
	rooms   map[id.RoomID]int // of these
	media   int               // of these
	results []result
	wg      sync.WaitGroup
}

type result struct {
	job  *job
	then func(ctx context.Context) error
}

func (j *job) name() string { return string(j.room) + " " + j.key }

// add queues a job, unless the same is under way or too many wait.
func (js *jobs) add(j *job) bool {
	if js.pending == nil {
		js.pending = make(map[string]bool)
	}
	if js.pending[j.name()] || len(js.queue) >= jobsQueued {
		return false
	}
	js.pending[j.name()] = true
	js.held += j.bytes
	js.queue = append(js.queue, j)
	return true
}

// under reports whether a job is queued or running.
func (js *jobs) under(room id.RoomID, key string) bool {
	return js.pending[(&job{room: room, key: key}).name()]
}

// full reports whether so much waits to be uploaded that no more is to be made:
// it is cheaper to make again than to hold, of hundreds of rooms.
func (js *jobs) full() bool { return js.held >= jobsHeld }

// start runs what may run.
func (js *jobs) start(ctx context.Context) {
	for _, j := range js.ready() {
		if js.inline {
			js.work(ctx, j)
		} else {
			js.wg.Go(func() { js.work(ctx, j) })
		}
	}
}

// ready takes those that may run out of the queue.
func (js *jobs) ready() (out []*job) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.rooms == nil {
		js.rooms = make(map[id.RoomID]int)
	}
	left := js.queue[:0]
	for _, j := range js.queue {
		if js.running >= jobsParallel || js.rooms[j.room] >= jobsPerRoom || j.media && js.media >= jobsMedia {
			left = append(left, j)
			continue
		}
		js.running++
		js.rooms[j.room]++
		if j.media {
			js.media++
		}
		out = append(out, j)
	}
	clear(js.queue[len(left):])
	js.queue = left
	return out
}

func (js *jobs) work(ctx context.Context, j *job) {
	then := func(context.Context) error { return nil }
	func() {
		defer func() {
			if cause := recover(); cause != nil {
				roomLog(ctx, j.room).Error().Str("job", j.key).Str("panic", fmt.Sprint(cause)).Msg("Broken invariant in a request to the homeserver")
			}
		}()
		ctx, cancel := context.WithTimeout(ctx, jobTimeout)
		defer cancel()
		then = j.run(ctx)
	}()
	js.mu.Lock()
	js.running--
	if js.rooms[j.room]--; js.rooms[j.room] == 0 {
		delete(js.rooms, j.room)
	}
	if j.media {
		js.media--
	}
	js.results = append(js.results, result{j, then})
	js.mu.Unlock()
	js.wake()
}

// finish calls what came back.
func (js *jobs) finish(ctx context.Context) error {
	for {
		js.mu.Lock()
		if len(js.results) == 0 {
			js.mu.Unlock()
			return nil
		}
		res := js.results[0]
		js.results = js.results[1:]
		js.mu.Unlock()
		delete(js.pending, res.job.name())
		js.held -= res.job.bytes
		if err := res.then(ctx); err != nil {
			return err
		}
	}
}

// busy reports whether anything is queued, running or has come back.
func (js *jobs) busy() bool {
	js.mu.Lock()
	defer js.mu.Unlock()
	return js.running > 0 || len(js.queue) > 0 || len(js.results) > 0
}

// pause grows from one attempt to the next.
type pause struct {
	until time.Duration
	tries int
}

func (p *pause) ready(now time.Duration) bool { return now >= p.until }

func (p *pause) fail(now, first, longest time.Duration) {
	wait := first << min(p.tries, 20)
	if wait > longest || wait <= 0 {
		wait = longest
	}
	p.tries++
	p.until = now + wait
}

func (p *pause) reset() { *p = pause{} }

// mediaCache keeps downloads until the event that needs them is handled. It is
// used by the engine's goroutine only.
type mediaCache struct {
	limit int
	size  int
	data  map[[32]byte][]byte
	bad   map[[32]byte]error
	order [][32]byte
}

func (c *mediaCache) put(hash [32]byte, data []byte, err error) {
	if c.data == nil {
		c.data, c.bad = make(map[[32]byte][]byte), make(map[[32]byte]error)
	}
	if _, ok := c.data[hash]; ok {
		return
	}
	c.data[hash] = data
	if err != nil {
		c.bad[hash] = err
	}
	c.order = append(c.order, hash)
	c.size += len(data)
	for len(c.order) > 0 && (c.size > c.limit || len(c.order) > 1024) {
		old := c.order[0]
		c.order = c.order[1:]
		c.size -= len(c.data[old])
		delete(c.data, old)
		delete(c.bad, old)
	}
}

func (c *mediaCache) get(hash [32]byte) (data []byte, err error, ok bool) {
	data, ok = c.data[hash]
	return data, c.bad[hash], ok
}
