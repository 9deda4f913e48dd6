package appservice

import (
	"context"
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestJobsOfOneRoomDelayNoOther(t *testing.T) {
	woke := make(chan struct{}, 100)
	js := jobs{wake: func() { woke <- struct{}{} }}
	release := make(chan struct{})
	defer func() { close(release); js.wg.Wait() }()
	slow := func(context.Context) func(context.Context) error {
		<-release
		return func(context.Context) error { return nil }
	}
	for i := range 100 {
		js.add(&job{room: "!loud", key: fmt.Sprint(i), run: slow})
	}
	for i := range 20 { // downloads from a silent server, in many rooms
		js.add(&job{room: id.RoomID(fmt.Sprintf("!r%d", i)), key: "media", media: true, run: slow})
	}
	ran := false
	js.add(&job{room: "!quiet", key: "state", run: func(context.Context) func(context.Context) error {
		return func(context.Context) error { ran = true; return nil }
	}})
	js.start(context.Background())
	select {
	case <-woke:
	case <-time.After(patience.Hang):
		t.Fatal("the quiet room's request was not made")
	}
	if err := js.finish(context.Background()); err != nil || !ran {
		t.Fatalf("the quiet room's request did not come back: %v", err)
	}
	if js.running != jobsPerRoom+jobsMedia || len(js.queue) != 120-js.running {
		t.Errorf("%d requests run and %d wait", js.running, len(js.queue))
	}
}

func TestInboxTakesRoomsInTurn(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		st := storetest.Open(t, cfg, nil)
		put := func(room id.RoomID, i int) {
			_, err := st.PutInbox(ctx, &store.InboxEvent{EventID: id.EventID(fmt.Sprintf("$%s%d", room, i)), Room: room, Raw: []byte("{}")})
			must(t, err)
		}
		for i := range 50 {
			put("!loud", i)
		}
		put("!a", 0)
		put("!b", 0)
		put("!a", 1)
		rows, err := st.NextInbox(ctx, 10)
		must(t, err)
		got := ""
		for _, ev := range rows {
			got += string(ev.EventID) + " "
		}
		if want := "$!loud0 $!loud1 $!loud2 $!loud3 $!loud4 $!loud5 $!loud6 $!a0 $!b0 $!a1 "; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestLoopDoesWhatIsDueWhileTheInboxIsFull(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	ctx := context.Background()
	for i := range 30 {
		_, err := b.store.PutInbox(ctx, &store.InboxEvent{EventID: id.EventID(fmt.Sprintf("$%d", i)), Room: "!loud", Type: rooms.TypeReceipt, Raw: []byte("{}")})
		must(t, err)
	}
	ticks, early := 0, 0
	b.engine.handle = func(ctx context.Context, ev *store.InboxEvent) error {
		b.started = b.started.Add(-100 * time.Millisecond) // as if it took so long
		return b.store.FinishInbox(ctx, ev.EventID, store.InboxDone, "")
	}
	b.engine.tick = func(time.Duration) (time.Duration, error) {
		ticks++
		if n, _, err := b.store.CountInbox(ctx, store.InboxNew); err != nil || n > 0 {
			early++
		}
		return 0, nil
	}
	l := &loop{Service: b.Service}
	l.ticked = l.monotonic()
	must(t, b.store.Own(ctx))
	_, err := l.round(ctx)
	must(t, err)
	if early < 2 || ticks > 10 {
		t.Errorf("%d ticks, %d of them while events waited, want some", ticks, early)
	}
}
