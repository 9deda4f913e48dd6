package client

import (
	"fmt"
	"math"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

func TestClocks(t *testing.T) {
	const (
		own  = "s0.example"
		bob  = id.UserID("@bob:s1.example")
		wall = int64(1_700_000_000_000)
	)
	minute := time.Minute.Milliseconds()
	// seen are stamps that came, each at a time since the start on the monotonic clock,
	// and with the wall clock set forward by so much since then.
	type seen struct {
		at    time.Duration
		set   int64
		ahead int64
	}
	for _, tc := range []struct {
		name string
		seen []seen
		want int64
	}{
		{"on time", []seen{{0, 0, 0}, {time.Second, 0, -500}}, 0},
		{"under what counts", []seen{{0, 0, 999}}, 0},
		{"ahead", []seen{{0, 0, 40 * minute}}, 40 * minute},
		{"held up meanwhile", []seen{{0, 0, 40 * minute}, {time.Minute, 0, 39 * minute}, {2 * time.Minute, 0, -minute}}, 40 * minute},
		{"more ahead", []seen{{0, 0, minute}, {time.Second, 0, 2 * minute}}, 2 * minute},
		{"after a long cut", []seen{{0, 0, 40 * minute}, {time.Hour, 0, -20 * minute}}, 40 * minute},
		{"set right at the server", []seen{{0, 0, 40 * minute}, {aheadFor, 0, 0}, {2 * aheadFor, 0, 0}}, 0},
		{"set right here", []seen{{0, 0, 40 * minute}, {time.Second, 40 * minute, 0}}, 0},
		{"set forward by less", []seen{{0, 0, 40 * minute}, {time.Second, 30 * minute, -minute}}, 10 * minute},
		{"set back here", []seen{{0, 0, 0}, {time.Second, -40 * minute, 40 * minute}}, 40 * minute},
		{"a clock that drifts", []seen{{0, 0, 40 * minute}, {time.Minute, 3000, 39 * minute}}, 40 * minute},
		{"a day and more", []seen{{0, 0, maxAhead.Milliseconds() + 1}}, 0},
		{"no time at all", []seen{{0, 0, math.MaxInt64 - wall}, {0, 0, math.MinInt64}}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var k clocks
			for _, s := range tc.seen {
				now := wall + s.at.Milliseconds() + s.set
				k.read(now, time.Hour+s.at)
				k.note(&Event{Sender: bob, Timestamp: now + s.ahead}, own)
			}
			if got := k.of(bob); got != tc.want {
				t.Errorf("ahead by %d ms, want %d", got, tc.want)
			}
			if got := k.of("@carol:s2.example"); got != 0 {
				t.Errorf("another server is ahead by %d ms", got)
			}
		})
	}
	t.Run("many servers", func(t *testing.T) {
		var k clocks
		k.read(wall, 0)
		k.note(&Event{Sender: "@alice:" + own, Timestamp: wall + minute}, own)
		for i := range 3 * maxClocks {
			k.read(wall, time.Duration(i))
			k.note(&Event{Sender: id.UserID(fmt.Sprintf("@u:s%d.example", i+1)), Timestamp: wall + minute}, own)
		}
		if len(k.ahead) != maxClocks || k.of("@alice:"+own) != minute || k.of(bob) != 0 || k.of(id.UserID(fmt.Sprintf("@u:s%d.example", 3*maxClocks))) != minute {
			t.Errorf("%d servers are remembered, or the wrong ones", len(k.ahead))
		}
	})
	t.Run("what was noted before", func(t *testing.T) {
		var k clocks
		k.read(wall, 0)
		k.read(wall+40*minute+1000, time.Second)
		if before, after := k.noted(wall), k.noted(wall+40*minute+1000); before != wall+40*minute || after != wall+40*minute+1000 {
			t.Errorf("noted before: %d ms after it, and after: %d ms", before-wall, after-wall)
		}
	})
}

// What is known of servers' clocks outlasts a restart, and what an older version stored is read.
func TestClocksAreKept(t *testing.T) {
	var old, c Client
	old.mono = func() time.Duration { return 0 }
	c.mono = old.mono
	old.clocks.read(1_700_000_000_000, 0)
	old.clocks.note(&Event{Sender: "@bob:s1.example", Timestamp: 1_700_000_060_000}, "s0.example")
	raw, err := old.syncTime(1_700_000_000_000)
	if err != nil {
		t.Fatal(err)
	}
	for _, stored := range [][]byte{raw, raw[:8], append(raw[:8:8], 0, 0, 0, 0, 0, 0, 0, 9)} {
		c.syncAt, c.clocks = 0, clocks{}
		c.readSyncTime(stored)
		want := int64(0)
		if len(stored) == len(raw) {
			want = time.Minute.Milliseconds()
		}
		if got := c.clocks.of("@bob:s1.example"); c.syncAt != 1_700_000_000_000 || got != want {
			t.Errorf("of %q: the last answer came at %d, and the server is ahead by %d ms, want %d", stored, c.syncAt, got, want)
		}
	}
}
