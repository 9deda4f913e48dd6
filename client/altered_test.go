package client

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestCommitThatTheHomeserverChanges: a commit that the own homeserver changed on its
// way is nobody's. Its author makes it again, names the homeserver, and does not take
// it for the commit of another copy of its store.
func TestCommitThatTheHomeserverChanges(t *testing.T) {
	for name, test := range map[string]struct {
		change  func(c *rooms.CommitContent)
		times   int
		restart bool
	}{
		"its confirmation tag": {change: func(c *rooms.CommitContent) { c.Message[len(c.Message)-1-33] ^= 1 }, times: 1}, // before the membership tag
		"its GroupInfo":        {change: func(c *rooms.CommitContent) { c.GroupInfo[len(c.GroupInfo)-1] ^= 1 }, times: 1},
		"three times":          {change: func(c *rooms.CommitContent) { c.Message[len(c.Message)-1-33] ^= 1 }, times: 3},
		"before a restart":     {change: func(c *rooms.CommitContent) { c.Message[len(c.Message)-1-33] ^= 1 }, times: 1, restart: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, _ := w.three("shared")
			w.settle()
			before, changed := bob.epoch(room), 0
			alice.hs.change = func(kind string, content json.RawMessage) json.RawMessage {
				if kind != rooms.TypeCommit || changed == test.times {
					return content
				}
				c, err := rooms.DecodeCommit(content)
				if err != nil {
					t.Fatal(err)
				}
				changed++
				test.change(c)
				raw, err := json.Marshal(c)
				if err != nil {
					t.Fatal(err)
				}
				return raw
			}
			change := func(p *rooms.Policy) { p.Window = 7 }
			if test.restart {
				ctx, cancel := context.WithCancel(w.ctx)
				cancel()
				_ = alice.ChangePolicy(ctx, room, change) // its client ends before the commit comes back
				alice.Step(w.ctx)
				alice.Flush(w.ctx)
				alice.restart()
				for range 3 {
					w.settle()
				}
			} else {
				w.must(func() error { return alice.ChangePolicy(w.ctx, room, change) })
			}
			w.settle()
			if changed != test.times {
				t.Fatalf("%d commits were changed", changed)
			}
			if got := bob.epoch(room); got != before+1 {
				t.Fatalf("epoch %d, want %d", got, before+1)
			}
			w.sameEpoch(room, alice, bob)
			w.send(alice, room, "after it")
			w.settle()
			bob.wantTexts("after it")
			rules := map[string]int{}
			for _, u := range alice.got {
				if warning, ok := u.(*Warning); ok {
					rules[warning.Rule]++
				}
			}
			if rules[ruleAltered] != test.times || rules[ruleCopied] != 0 {
				t.Errorf("alice was told %v", rules)
			}
		})
	}
}
