package appservice

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/appservice/store/storetest"
)

func (b *bench) put(t *testing.T, room, tag string, priority int) *store.OutboxRow {
	t.Helper()
	row := &store.OutboxRow{Room: id.RoomID(room), Type: "t", Content: json.RawMessage(fmt.Sprintf(`{"tag":%q}`, tag)), Priority: priority, Tag: tag}
	if err := b.store.PutOutbox(context.Background(), row); err != nil {
		t.Fatal(err)
	}
	return row
}

func contents(list []sent) (out []string) {
	for _, s := range list {
		var c struct {
			Tag string `json:"tag"`
		}
		_ = json.Unmarshal([]byte(s.Content), &c)
		out = append(out, c.Tag)
	}
	return out
}

func TestOutboxSendsTheUrgentFirstAndInOrder(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		b := newBench(t, cfg, nil, nil)
		b.outbox.parallel = 1
		for i := range 3 {
			b.put(t, "!a", fmt.Sprintf("rest-%d", i), store.PriorityRest)
		}
		for i := range 3 {
			b.put(t, "!a", fmt.Sprintf("accept-%d", i), store.PriorityReceipt)
		}
		if _, err := b.outbox.round(context.Background()); err != nil {
			t.Fatal(err)
		}
		want := []string{"accept-0", "accept-1", "accept-2", "rest-0", "rest-1", "rest-2"}
		if diff := cmp.Diff(want, contents(b.hs.all())); diff != "" {
			t.Error(diff)
		}
	})
}

func rateLimit(after time.Duration) error {
	return &homeserver.Error{Op: "send event", Kind: homeserver.ErrRateLimited, Status: 429, After: after}
}

func TestOutboxObeysRateLimits(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	var mu sync.Mutex
	now, calls := time.Unix(1_800_000_000, 0), 0
	b.outbox.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	b.outbox.parallel = 1
	b.hs.answer = func(sent) error {
		if calls++; calls == 1 {
			return rateLimit(7 * time.Second)
		}
		return nil
	}
	first := b.put(t, "!a", "chat", store.PriorityRest)
	b.put(t, "!b", "other", store.PriorityRest)
	wait, err := b.outbox.round(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if calls != 1 || wait <= 6*time.Second || wait > 7*time.Second {
		t.Fatalf("%d requests, then a wait of %v; want 1 and 7s: a limit holds for every room", calls, wait)
	}
	b.put(t, "!a", "accept", store.PriorityReceipt)
	mu.Lock()
	now = now.Add(8 * time.Second)
	mu.Unlock()
	// The row's own wait is by the database's clock; the urgent row does not
	// stand behind it.
	if _, err := b.outbox.round(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := contents(b.hs.all()); len(got) < 2 || got[0] != "accept" {
		t.Errorf("after the wait came %v, want the accept before chat", got)
	}
	rows, err := b.store.RoomOutbox(context.Background(), "!a", store.OutboxWaiting, 10)
	if err != nil || len(rows) != 1 || rows[0].Attempts != 1 || rows[0].TxnID != first.TxnID {
		t.Errorf("the limited row is %+v, %v", rows, err)
	}
}

func outboxKeepsOneTransactionID(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	row := b.put(t, "!a", "x", store.PriorityReceipt)
	failures := map[string]error{
		"unreachable": &homeserver.Error{Op: "send event", Kind: homeserver.ErrUnreachable},
		"server":      &homeserver.Error{Op: "send event", Kind: homeserver.ErrServer, Status: 502},
		"token":       &homeserver.Error{Op: "send event", Kind: homeserver.ErrUnauthorized, Status: 401},
	}
	var seen []string
	for name, failure := range failures {
		b.hs.answer = func(s sent) error { seen = append(seen, s.Txn); return failure }
		for {
			rows, err := b.store.DueOutbox(context.Background(), 1)
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) == 1 {
				b.outbox.sendOne(context.Background(), rows[0])
				break
			}
			at, _, err := b.store.NextDue(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			waitUntil(t, at)
		}
		if n, _, _, _ := b.store.CountOutbox(context.Background(), store.OutboxWaiting); n != 1 {
			t.Fatalf("%s: the row does not wait any more", name)
		}
	}
	for _, txn := range seen {
		if txn != row.TxnID {
			t.Errorf("transaction id %s, want %s every time", txn, row.TxnID)
		}
	}
	if len(seen) != len(failures) {
		t.Errorf("%d attempts", len(seen))
	}
}

// waitUntil blocks until a moment that is milliseconds away.
func waitUntil(t *testing.T, at time.Time) {
	t.Helper()
	timer := time.NewTimer(time.Until(at) + time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

func outboxResendsUnderTheSameID(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		b := newBench(t, cfg, nil, nil)
		row := b.put(t, "!a", "x", store.PriorityReceipt)
		// The homeserver took it, and the process died before it could note so.
		event, err := b.hs.SendEvent(context.Background(), row.Room, row.Type, row.TxnID, row.Content)
		if err != nil {
			t.Fatal(err)
		}
		again := newBench(t, cfg, nil, nil)
		again.outbox.hs = b.hs
		if _, err := again.outbox.round(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n := len(b.hs.all()); n != 1 {
			t.Errorf("%d events in the room, want 1", n)
		}
		rows, err := again.store.SettledOutbox(context.Background(), 10)
		if err != nil || len(rows) != 1 || rows[0].EventID != event {
			t.Errorf("settled: %+v, %v", rows, err)
		}
	})
}

func TestOutboxGivesUpOnWhatIsRefused(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	b.hs.answer = func(s sent) error {
		if strings.Contains(s.Content, "bad") {
			return &homeserver.Error{Op: "send event", Kind: homeserver.ErrForbidden, Status: 403, Code: "M_FORBIDDEN"}
		}
		return nil
	}
	b.put(t, "!a", "bad", store.PriorityReceipt)
	b.put(t, "!a", "good", store.PriorityReceipt)
	if _, err := b.outbox.round(context.Background()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"good"}, contents(b.hs.all())); diff != "" {
		t.Error(diff)
	}
	l := &loop{Service: b.Service}
	if _, err := l.settle(context.Background()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"failed bad", "sent good as $sent-1"}, b.engine.settled); diff != "" {
		t.Error(diff)
	}
	if _, err := l.settle(context.Background()); err != nil || len(b.engine.settled) != 2 {
		t.Errorf("told again: %v, %v", b.engine.settled, err)
	}
}

// sentRows puts rows into the outbox that were sent, and of which the engine does not know.
func (b *bench) sentRows(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		row := b.put(t, "!a", fmt.Sprint("row", i), store.PriorityReceipt)
		if err := b.store.SentOutbox(t.Context(), row.ID, "$sent"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWhatWasSentKeepsNothingWaiting: what came in is handled between those of many rows of which the engine is told that
// they were sent.
func TestWhatWasSentKeepsNothingWaiting(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	const n = 3*inboxBatch + 10
	b.sentRows(t, n)
	b.txn("1", invitation("$i", "!a"))
	before := -1
	b.engine.handle = func(ctx context.Context, ev *store.InboxEvent) error {
		before = len(b.engine.settled)
		return b.store.FinishInbox(ctx, ev.EventID, store.InboxDone, "")
	}
	if _, err := (&loop{Service: b.Service}).round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if before < 0 || before > inboxBatch || len(b.engine.settled) != n {
		t.Errorf("the event was handled after %d of %d rows, of %d that there are; want %d at most", before, len(b.engine.settled), n, inboxBatch)
	}
}

// TestPanicAtOneOfManyRows: the engine is told of all the others all the same.
func TestPanicAtOneOfManyRows(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	b.sentRows(t, 5)
	b.engine.sent = func(row *store.OutboxRow) error {
		if strings.HasSuffix(row.Tag, "row2") {
			panic("planted")
		}
		return nil
	}
	l := &loop{Service: b.Service}
	if more, err := l.settle(t.Context()); more || err != nil {
		t.Fatalf("got %t, %v", more, err)
	}
	for _, i := range []int{0, 1, 3, 4} {
		if !slices.ContainsFunc(b.engine.settled, func(s string) bool { return strings.Contains(s, fmt.Sprint("row", i)) }) {
			t.Errorf("the engine was not told of row %d: %v", i, b.engine.settled)
		}
	}
	if rows, err := b.store.SettledOutbox(t.Context(), 10); err != nil || len(rows) != 0 {
		t.Errorf("%d rows wait on (%v)", len(rows), err)
	}
}

func TestOutboxSendsRoomsSideBySide(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	b.put(t, "!slow", "slow", store.PriorityReceipt)
	b.put(t, "!quick", "quick", store.PriorityReceipt)
	quick := make(chan struct{})
	hs := &blockingHS{fakeHS: b.hs, until: quick, room: "!slow"}
	b.outbox.hs = hs
	hs.done = func(room id.RoomID) {
		if room == "!quick" {
			close(quick)
		}
	}
	// Were rooms sent to in turn, the slow one would wait for ever.
	if _, err := b.outbox.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(b.hs.all()); n != 2 {
		t.Errorf("%d events sent", n)
	}
}

// blockingHS lets one room's send wait for another's.
type blockingHS struct {
	*fakeHS
	room  id.RoomID
	until chan struct{}
	done  func(id.RoomID)
}

func (h *blockingHS) SendEvent(ctx context.Context, room id.RoomID, eventType, txn string, content json.RawMessage) (id.EventID, error) {
	if room == h.room {
		select {
		case <-h.until:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	event, err := h.fakeHS.SendEvent(ctx, room, eventType, txn, content)
	h.done(room)
	return event, err
}

func TestOutboxHoldsARoomAndNoOther(t *testing.T) {
	b := newBench(t, storetest.SQLite(t), nil, nil)
	now := time.Now()
	b.outbox.now = func() time.Time { return now }
	for i := range 30 {
		for _, priority := range []int{store.PriorityReceipt, store.PriorityProposal, store.PriorityRest} {
			b.put(t, fmt.Sprintf("!held-%d", i), "held", priority)
		}
		b.outbox.HoldRoom(id.RoomID(fmt.Sprintf("!held-%d", i)), 3*time.Second)
	}
	b.put(t, "!free", "free", store.PriorityRest)
	wait, err := b.outbox.round(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"free"}, contents(b.hs.all())); diff != "" {
		t.Error(diff)
	}
	if wait <= 0 || wait > 3*time.Second {
		t.Errorf("waits %v", wait)
	}
	now = now.Add(4 * time.Second)
	if _, err := b.outbox.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(b.hs.all()); n != 91 {
		t.Errorf("%d events after the hold, want all 91", n)
	}
	if len(b.outbox.held) != 0 {
		t.Errorf("%d rooms are remembered for ever", len(b.outbox.held))
	}
	b.outbox.HoldRoom("!x", time.Hour)
	if _, first := b.outbox.holds(); first > maxHold {
		t.Errorf("a room is held for %v", first)
	}
}

func TestOutboxBackoffGrowsToItsMaximum(t *testing.T) {
	o := &outbox{backoff: time.Second, maximum: 10 * time.Second}
	for attempts, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		if got := o.delay(attempts); got != want*time.Second {
			t.Errorf("after %d attempts: %v, want %v", attempts, got, want*time.Second)
		}
	}
	if got := o.delay(1 << 30); got != 10*time.Second {
		t.Errorf("after very many attempts: %v", got)
	}
}
