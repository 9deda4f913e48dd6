package appservice

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
)

// say pushes a message into a room and returns what the module answers there.
func (b *bench) say(t *testing.T, event, room string, sender id.UserID, body string) string {
	t.Helper()
	content, err := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	if err != nil {
		t.Fatal(err)
	}
	before := len(b.hs.all())
	b.txn(event, strings.Replace(ev("$"+event, room, typeMessage, "-", string(content)), "@alice:mls.test", string(sender), 1))
	for len(b.orders) > 0 {
		b.answer(context.Background(), <-b.orders)
	}
	var out []string
	for _, s := range b.hs.all()[before:] {
		if s.Room != room || s.Type != typeMessage || !strings.Contains(s.Content, `"m.notice"`) {
			t.Errorf("sent %+v", s)
		}
		var c struct{ Body string }
		if err := json.Unmarshal([]byte(s.Content), &c); err != nil {
			t.Fatal(err)
		}
		out = append(out, c.Body)
	}
	return strings.Join(out, "\n")
}

func commandBench(t *testing.T, dbCfg store.Config) *bench {
	t.Helper()
	cfg := testConfig()
	cfg.AppService.Admins = []string{"@admin:mls.test"}
	b := newBench(t, dbCfg, cfg, nil)
	b.version = "1.2.3"
	m, _, _, _ := pair(t, dbCfg) // a room with a group, in the same database
	_ = m
	for _, room := range []id.RoomID{"!room:mls.test", "!office:mls.test"} {
		if err := b.store.NoteRoom(context.Background(), room, store.RoomJoined); err != nil {
			t.Fatal(err)
		}
		b.filter.add(room)
	}
	return b
}

func TestCommandsInRooms(t *testing.T) {
	storetest.Each(t, func(t *testing.T, dbCfg store.Config) {
		b := commandBench(t, dbCfg)
		const office, group, admin, user = "!office:mls.test", "!room:mls.test", "@admin:mls.test", "@alice:mls.test"
		for i, c := range []struct {
			room   string
			sender id.UserID
			body   string
			want   []string // all of these; none: no answer
			not    string
		}{
			{office, admin, "!mls", []string{"!mls help", "!mls status", "!mls rooms"}, ""},
			{office, user, "!mls help", []string{"!mls help", "!mls room:"}, "status"},
			{group, admin, "!mls help", []string{"!mls room:"}, "status"},
			{office, user, "!mls version", []string{"matrix-mls 1.2.3"}, ""},
			{office, admin, "!mls status", []string{"rooms: 1 served, 1 joined", "inbox: 0 events", "key receipt: "}, ""},
			{office, admin, "!mls rooms", []string{"!room:mls.test serving, epoch 1", "!office:mls.test joined"}, ""},
			{office, admin, "!mls rooms 2", []string{"no rooms"}, ""},
			{office, admin, "!mls rooms x", []string{"A page is a number"}, ""},
			{group, user, "!mls room", []string{"serving", "epoch 1", "sequencers: 1, a majority is 1", "@_mls_bot:mls.test"}, ""},
			{office, admin, "!mls room !room:mls.test", []string{"final: "}, ""},
			{office, admin, "!mls room !none:mls.test", []string{"does not know"}, ""},
			{office, user, "!mls room", []string{"no group yet"}, ""},
			{office, user, "!mls room !room:mls.test", []string{"Only admins"}, "epoch"},
			{office, user, "!mls status", []string{"Only admins"}, "inbox"},
			{group, admin, "!mls status", []string{"in a room without a group"}, "inbox"},
			{group, user, "!mls epochs", []string{"HEAD, accepted", "as the module of mls.test sees it", "the head: @"}, ""},
			{office, admin, "!mls epochs !room:mls.test", []string{"HEAD, accepted"}, ""},
			{office, user, "!mls epochs !room:mls.test", []string{"Only admins"}, "HEAD"},
			{office, admin, "!mls epochs !none:mls.test", []string{"does not know"}, ""},
			{office, user, "!mls epochs", []string{"no group yet"}, ""},
			{group, user, "!mls repair", []string{"Comparing"}, ""},
			{office, admin, "!mls repair !none:mls.test", []string{"does not know"}, ""},
			{office, user, "!mls nonsense", []string{`no command "nonsense"`, "!mls help"}, ""},
			{office, user, "hello !mls", nil, ""},
			{office, "@bob:far.test", "!mls help", nil, ""},
			{office, "@_mls_bot:mls.test", "!mls help", nil, ""},
			{"!unknown:mls.test", admin, "!mls status", nil, ""},
		} {
			got := b.say(t, fmt.Sprintf("e%d", i), c.room, c.sender, c.body)
			if len(c.want) == 0 && got != "" {
				t.Errorf("%s in %s by %s: %q, want no answer", c.body, c.room, c.sender, got)
			}
			for _, want := range c.want {
				if !strings.Contains(got, want) {
					t.Errorf("%s in %s by %s: %q lacks %q", c.body, c.room, c.sender, got, want)
				}
			}
			if c.not != "" && strings.Contains(got, c.not) {
				t.Errorf("%s in %s by %s: %q tells %q", c.body, c.room, c.sender, got, c.not)
			}
		}
		b.say(t, "drawn", group, user, "!mls epochs")
		sent := b.hs.all()
		if last := sent[len(sent)-1].Content; !strings.Contains(last, `"formatted_body":"\u003cpre\u003e\u003ccode\u003e`) {
			t.Errorf("a picture is not drawn in one width: %s", last)
		}
		if got := b.stir.take(); len(got) != 1 || got[0] != group {
			t.Errorf("repair compares %v", got)
		}
		if got := b.say(t, "e3", office, user, "!mls version"); got != "" {
			t.Errorf("an event that is pushed twice is answered twice: %q", got)
		}
	})
}

func TestCommandsAreLimited(t *testing.T) {
	b := commandBench(t, storetest.SQLite(t))
	var now time.Duration
	b.clock = func() time.Duration { return now }
	ask := func(n int, who id.UserID) (answers int) {
		for i := range n {
			if b.say(t, fmt.Sprintf("%s-%v-%d", who[1:4], now, i), "!office:mls.test", who, "!mls version") != "" {
				answers++
			}
		}
		return answers
	}
	if got := ask(40, "@alice:mls.test"); got != commandsAMinute {
		t.Errorf("%d answers within a minute, want %d", got, commandsAMinute)
	}
	if got := ask(1, "@admin:mls.test"); got != 1 {
		t.Error("one user's commands use up another's")
	}
	now += time.Minute
	if got := ask(1, "@alice:mls.test"); got != 1 {
		t.Error("no answer a minute later")
	}
	if got := b.rejected(ruleCommand); got != 10 {
		t.Errorf("%v refusals were counted, want 10", got)
	}
}
