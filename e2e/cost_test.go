package e2e_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	_ "modernc.org/sqlite" // the driver "sqlite", for what a homeserver has stored

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	costJoining = 2*time.Minute + 20*time.Second // so long modules give newcomers fresh heads
	costSeries  = 30                             // commits one after the other, in turns by the three users
	costAlone   = 2                              // commits after each of which everything comes to rest
	costIdle    = 60 * time.Second               // an idle room is watched so long
	costRest    = 24 * time.Second               // after a commit: the heads that it makes modules publish are out
	costAfter   = 70 * time.Second               // the same, where the tree of the last one is in media
)

// BenchmarkFederation reports what a commit costs across three real homeservers,
// two Synapse and one Dendrite with a module each, which are the room's three
// sequencers: time beside that of an ordinary event in the same run, events and
// bytes as the homeservers have them. Once is enough (-benchtime 1x).
func BenchmarkFederation(b *testing.B) {
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Minute) // a first run builds Dendrite
	defer cancel()
	w, err := e2e.Start(ctx, e2e.Options{Options: lab.Options{Synapse: 2, Dendrite: 1}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := w.Close(); err != nil {
			b.Error(err)
		}
	})
	c := &costs{story: &story{TB: b, w: w, ctx: ctx, began: time.Now()}}
	c.prepare()
	for _, part := range []struct {
		name    string
		measure func() map[string]float64
	}{{"series", c.series}, {"alone", c.alone}, {"idle", c.idle}} {
		b.Run(part.name, func(b *testing.B) {
			var figures map[string]float64
			for b.Loop() {
				figures = part.measure()
			}
			b.ReportMetric(0, "ns/op")
			for unit, v := range figures {
				b.ReportMetric(v, unit)
			}
		})
	}
}

// costs is what is measured: a room with MLS and one without, both with a user on
// each of the three servers.
type costs struct {
	*story
	devices []*e2e.Device
	room    id.RoomID

	plain []lab.User // of the room without MLS
	hops  id.RoomID
	since []string // where their /sync stands
	sent  int
}

func (c *costs) server(i int) *lab.Server { return c.devices[i].Server }

func (c *costs) prepare() {
	names := make([]string, 3)
	for i, server := range []string{"syn1", "syn2", "den1"} {
		c.devices = append(c.devices, c.person(server, []string{"alice", "bob", "carol"}[i]))
		user, err := c.w.AddUser(c.ctx, server, "plain")
		c.must(err)
		c.plain, names[i] = append(c.plain, user), c.server(i).ServerName
	}
	c.room = c.story.room(client.CreateOptions{}, c.devices[0], c.devices[1:]...)
	joined := time.Now()
	c.listed(c.room, names, c.devices...)
	c.step("three modules order the room")

	var err error
	c.hops, err = e2e.CreatePlainRoom(c.ctx, c.server(0), c.plain[0], id.UserID(c.plain[1].UserID), id.UserID(c.plain[2].UserID))
	c.must(err)
	for i := 1; i < len(c.plain); i++ {
		path := "/join/" + url.PathEscape(string(c.hops)) + "?server_name=" + url.QueryEscape(c.server(0).ServerName)
		for deadline := time.Now().Add(e2e.Soon); ; c.pause() { // the invite may still be under way
			if _, err = e2e.API(c.ctx, c.server(i), c.plain[i], http.MethodPost, path, map[string]any{}); err == nil {
				break
			}
			if time.Now().After(deadline) {
				c.Fatal(err)
			}
		}
	}
	c.since = make([]string, len(c.plain))
	for i := range c.plain { // the first event of a server goes to the others more slowly
		c.hop(i)
	}
	c.step("the three talk in a room without MLS, too")
	c.pass(costJoining, joined) // modules publish a head each second while somebody has just joined
	c.step("nobody is new in the room any more")
}

// timelineEvent is an event of a room as /sync and /messages show it.
type timelineEvent struct {
	ID      id.EventID      `json:"event_id"`
	Type    string          `json:"type"`
	Sender  id.UserID       `json:"sender"`
	At      int64           `json:"origin_server_ts"`
	Content json.RawMessage `json:"content"`
}

// sync makes one /sync of a plain user and returns the bodies of what came.
func (c *costs) sync(i int, wait time.Duration) ([]string, error) {
	filter := fmt.Sprintf(`{"presence":{"types":[]},"account_data":{"types":[]},"room":{"rooms":[%q],"ephemeral":{"types":[]},"timeline":{"limit":100}}}`, c.hops)
	query := url.Values{"filter": {filter}, "timeout": {fmt.Sprint(wait.Milliseconds())}}
	if c.since[i] != "" {
		query.Set("since", c.since[i])
	}
	raw, err := e2e.API(c.ctx, c.server(i), c.plain[i], http.MethodGet, "/sync?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Next  string `json:"next_batch"`
		Rooms struct {
			Join map[id.RoomID]struct {
				Timeline struct {
					Events []timelineEvent `json:"events"`
				} `json:"timeline"`
			} `json:"join"`
		} `json:"rooms"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, err
	}
	c.since[i] = answer.Next
	var bodies []string
	for _, ev := range answer.Rooms.Join[c.hops].Timeline.Events {
		var content struct {
			Body string `json:"body"`
		}
		if json.Unmarshal(ev.Content, &content) == nil {
			bodies = append(bodies, content.Body)
		}
	}
	return bodies, nil
}

// hop sends an ordinary event from one server and returns after how long /sync of
// the users on both others had shown it.
func (c *costs) hop(from int) time.Duration {
	c.sent++
	body := fmt.Sprintf("hop %d", c.sent)
	came, errs := make([]time.Time, len(c.plain)), make([]error, len(c.plain))
	var wg sync.WaitGroup
	for i := range c.plain {
		if i == from {
			continue
		}
		_, err := c.sync(i, 0)
		c.must(err)
		wg.Go(func() {
			for deadline := time.Now().Add(e2e.Soon); ; {
				bodies, err := c.sync(i, 10*time.Second)
				came[i] = time.Now()
				if slices.Contains(bodies, body) {
					return
				}
				if err == nil && came[i].After(deadline) {
					err = fmt.Errorf("%q did not come to %s", body, c.server(i).Name)
				}
				if errs[i] = err; err != nil {
					return
				}
			}
		})
	}
	c.pass(100*time.Millisecond, time.Now()) // until the two wait for news
	start := time.Now()
	_, sendErr := e2e.SendPlain(c.ctx, c.server(from), c.plain[from], c.hops, "m.room.message", fmt.Sprintf("hop%d", c.sent), map[string]any{"msgtype": "m.text", "body": body})
	wg.Wait()
	c.must(sendErr)
	var last time.Duration
	for i := range c.plain {
		c.must(errs[i])
		if i != from {
			last = max(last, came[i].Sub(start))
		}
	}
	return last
}

// commit lets a device commit a fresh path, and returns after how long every
// device held the epoch.
func (c *costs) commit(by int) time.Duration {
	info, err := c.devices[by].Room(c.ctx, c.room)
	c.must(err)
	next := info.Epoch + 1
	came, errs := make([]time.Time, len(c.devices)), make([]error, len(c.devices))
	ctx, cancel := context.WithTimeout(c.ctx, e2e.Soon)
	defer cancel()
	var wg sync.WaitGroup
	for i, d := range c.devices {
		wg.Go(func() {
			_, errs[i] = d.WaitEpoch(ctx, c.room, fmt.Sprintf("epoch %d", next), func(e *client.EpochChanged) bool { return e.Epoch >= next })
			came[i] = time.Now()
		})
	}
	start := time.Now()
	err = c.devices[by].Refresh(ctx, c.room)
	wg.Wait()
	c.must(err)
	var last time.Duration
	for i := range c.devices {
		c.must(errs[i])
		last = max(last, came[i].Sub(start))
	}
	return last
}

// final waits until every device knows the head to be final.
func (c *costs) final() {
	for deadline := time.Now().Add(e2e.Soon); ; {
		open := 0
		for _, d := range c.devices {
			info, err := d.Sequencers(c.ctx, c.room)
			c.must(err)
			if info.Final != info.Epoch {
				open++
			}
		}
		if open == 0 {
			return
		}
		if time.Now().After(deadline) {
			c.Fatalf("the head is not final for %d devices", open)
		}
		c.pass(20*time.Millisecond, time.Now())
	}
}

// pass lets time pass until something has been so long ago.
func (c *costs) pass(d time.Duration, since time.Time) {
	select {
	case <-time.After(time.Until(since.Add(d))):
	case <-c.ctx.Done():
		c.Fatal(c.ctx.Err())
	}
}

// timeline returns what a server shows of the room since a time, newest first.
func (c *costs) timeline(server int, since time.Time) []timelineEvent {
	var out []timelineEvent
	path := "/rooms/" + url.PathEscape(string(c.room)) + "/messages?dir=b&limit=100"
	for from := ""; ; {
		raw, err := e2e.API(c.ctx, c.server(server), c.devices[server].User, http.MethodGet, path+from, nil)
		c.must(err)
		var page struct {
			Chunk []timelineEvent `json:"chunk"`
			End   string          `json:"end"`
		}
		c.must(json.Unmarshal(raw, &page))
		for _, ev := range page.Chunk {
			if ev.At < since.UnixMilli() {
				return out
			}
			out = append(out, ev)
		}
		if page.End == "" || len(page.Chunk) == 0 {
			return out
		}
		from = "&from=" + url.QueryEscape(page.End)
	}
}

// agreed returns what all servers show of the room since a time: what one of them
// has is on its way to the others.
func (c *costs) agreed(since time.Time) []timelineEvent {
	for deadline := time.Now().Add(e2e.Soon); ; c.pause() {
		events := c.timeline(0, since)
		same, all := true, []int{len(events)}
		for i := 1; i < len(c.devices); i++ {
			all = append(all, len(c.timeline(i, since)))
			same = same && all[i] == all[0]
		}
		if same {
			return events
		}
		if time.Now().After(deadline) {
			c.Fatalf("the servers show %v events", all)
		}
	}
}

// media returns the bytes of files in the media stores of the homeservers.
func (c *costs) media() (sum int64) {
	for i := range c.devices {
		c.must(filepath.WalkDir(filepath.Join(c.server(i).Dir, "media"), func(_ string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return nil // not there yet
			}
			if info, err := e.Info(); err == nil { // gone meanwhile: none of ours
				sum += info.Size()
			}
			return nil
		}))
	}
	return sum
}

// traffic counts what a number of commits brought into the room since a time: the
// events that each of the homeservers shows, and their size as federated, which
// the first, a Synapse, has stored.
func (c *costs) traffic(since time.Time, commits int, media int64) map[string]float64 {
	counts := map[string]int{}
	lastVote, gap := map[id.UserID]int64{}, int64(0)
	for _, ev := range c.agreed(since) {
		counts[ev.Type]++
		if ev.Type == rooms.TypeVote {
			if last, ok := lastVote[ev.Sender]; ok && (gap == 0 || last-ev.At < gap) {
				gap = last - ev.At
			}
			lastVote[ev.Sender] = ev.At
		}
	}
	if counts[rooms.TypeCommit] != commits {
		c.Fatalf("%d commits are in the room, %d were made: %v", counts[rooms.TypeCommit], commits, counts)
	}
	all := 0
	for _, n := range counts {
		all += n
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(c.server(0).Dir, "homeserver.db")+"?mode=ro")
	c.must(err)
	defer db.Close()
	rows, err := db.QueryContext(c.ctx, `SELECT events.type, count(*), sum(length(event_json.json)) FROM events JOIN event_json ON event_json.event_id = events.event_id
		WHERE events.room_id = ? AND events.origin_server_ts >= ? GROUP BY events.type`, string(c.room), since.UnixMilli())
	c.must(err)
	defer rows.Close()
	stored, bytes, ofCommits := 0, 0, 0
	for rows.Next() {
		var kind string
		var n, size int
		c.must(rows.Scan(&kind, &n, &size))
		stored, bytes = stored+n, bytes+size
		if kind == rooms.TypeCommit {
			ofCommits = size
		}
	}
	c.must(rows.Err())
	if stored < all { // one more may have come since
		c.Errorf("%d events are stored, %d shown", stored, all)
	}
	c.step("%d commits: %v", commits, counts)
	per := func(n int) float64 { return float64(n) / float64(commits) }
	known := counts[rooms.TypeCommit] + counts[rooms.TypeAccept] + counts[rooms.TypeApplied] + counts[rooms.TypeVote] + counts[rooms.TypeHead]
	return map[string]float64{
		"events/commit": per(all), "accepts/commit": per(counts[rooms.TypeAccept]), "applied/commit": per(counts[rooms.TypeApplied]),
		"votes/commit": per(counts[rooms.TypeVote]), "heads/commit": per(counts[rooms.TypeHead]), "others/commit": per(all - known),
		"B/commit": per(bytes), "B-itself/commit": per(ofCommits), "B-media/commit": float64(c.media()-media) / float64(commits),
		"s-vote-gap": float64(gap) / 1000,
	}
}

// series measures commits one after the other, each beside an ordinary event from
// the same server.
func (c *costs) series() map[string]float64 {
	since, media := time.Now(), c.media()
	var bare, epochs, own, others []float64
	for n := range costSeries {
		by := n % len(c.devices)
		bare = append(bare, c.hop(by).Seconds()*1000)
		took := c.commit(by).Seconds() * 1000
		epochs = append(epochs, took)
		if by == 0 {
			own = append(own, took)
		} else {
			others = append(others, took)
		}
	}
	took, last := time.Since(since), time.Now()
	c.final()
	c.pass(costRest, last)
	out := c.traffic(since, costSeries, media)
	out["s-between"] = took.Seconds() / costSeries
	out["ms-bare"], out["ms-epoch"], out["ms-epoch-own"], out["ms-epoch-others"] = middle(bare), middle(epochs), middle(own), middle(others)
	out["hops"] = out["ms-epoch"] / out["ms-bare"]
	c.step("%d commits, one after the other", costSeries)
	return out
}

// alone measures commits that are final, and forgotten, before the next.
func (c *costs) alone() map[string]float64 {
	since, media := time.Now(), c.media()
	var finals []float64
	for n := range costAlone {
		start := time.Now()
		c.commit(n % len(c.devices))
		c.final()
		finals = append(finals, time.Since(start).Seconds())
		c.pass(costRest, start)
	}
	out := c.traffic(since, costAlone, media)
	out["s-to-final"] = middle(finals)
	c.step("%d commits, each by itself", costAlone)
	return out
}

// idle counts what comes into the room while nobody does anything, and nobody is about to.
func (c *costs) idle() map[string]float64 {
	c.pass(costAfter, time.Now())
	since, media := time.Now(), c.media()
	c.pass(costIdle, since)
	events := 0
	for i := range c.devices {
		came := c.timeline(i, since)
		for _, ev := range came {
			c.Logf("%s shows %s by %s: %.300s", c.server(i).Name, ev.Type, ev.Sender, ev.Content)
		}
		events = max(events, len(came))
	}
	c.step("nobody did anything for %v", costIdle)
	return map[string]float64{"events-idle": float64(events), "B-media-idle": float64(c.media() - media), "s-idle": costIdle.Seconds()}
}

func middle(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}
