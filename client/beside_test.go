package client

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/patience"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestFilesComeInTheOrderOfTheirEvents: of many commits with files the next one's comes next. One that came too early would give way to
// others before its commit can be made use of, and would be fetched again.
func TestFilesComeInTheOrderOfTheirEvents(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	w.all = []*testDevice{alice, carol}
	var want, got []string
	for i := range 6 * maxMediaCache {
		data := []byte{byte(i)}
		mxc := fmt.Sprintf("mxc://%s/file%02d", w.s.name, 99-i)
		w.s.media[mxc] = data
		want = append(want, mxc)
		raw, err := rooms.Encode(&rooms.CommitContent{
			Epoch: alice.epoch(room) + 1, Parent: rooms.Hash(alice.headRef(room)), File: rooms.NewFile(id.ContentURIString(mxc), data),
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := []*testDevice{alice, carol}[i%2].hs.Send(w.ctx, room, rooms.TypeCommit, fmt.Sprint("file", i), raw); err != nil {
			t.Fatal(err)
		}
	}
	bob.hs.stall = func(_ context.Context, mxc string) { got = append(got, mxc) }
	bob.turn()
	if !slices.Equal(got, want) {
		t.Errorf("the files were fetched in the order\n%q, want\n%q", got, want)
	}
	if n := len(bob.rooms[room].waiting); n > 0 {
		t.Errorf("of %d events that wait no more something is held", n)
	}
}

// TestFileFromAServerThatStalls: a server that takes its time with a file of one
// room holds up neither another room nor the client's end.
func TestFileFromAServerThatStalls(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	other := w.createRoom(alice, CreateOptions{})
	w.must(func() error { return alice.Invite(w.ctx, other, bob.UserID()) })
	w.join(bob, other)
	w.settle()
	w.all = slices.DeleteFunc(w.all, func(d *testDevice) bool { return d == bob })
	for i := range 2 * maxFetchesIn * maxFetchesBy {
		raw, err := rooms.Encode(&rooms.CommitContent{
			Epoch: alice.epoch(room) + 1, Parent: rooms.Hash(alice.headRef(room)),
			File: rooms.NewFile(id.ContentURIString(fmt.Sprintf("mxc://stalls%d.example/file%d", i/6, i)), []byte{byte(i)}),
		})
		if err != nil {
			t.Fatal(err)
		}
		by := alice
		if i >= 2*maxFetchesIn*maxFetchesBy-2 { // whose files sort last
			by = carol
		}
		if _, err := by.hs.Send(w.ctx, room, rooms.TypeCommit, fmt.Sprint("stalls", i), raw); err != nil {
			t.Fatal(err)
		}
	}
	asked := make(chan string, 64)
	bob.hs.stall = func(ctx context.Context, mxc string) {
		asked <- mxc
		<-ctx.Done()
	}
	got := make(chan string, 64)
	bob.told = func(u Update) {
		if m, ok := u.(*Message); ok {
			got <- m.Body()
		}
	}
	ctx, cancel := context.WithTimeout(w.ctx, patience.Hang)
	defer cancel()
	if err := bob.Start(ctx); err != nil {
		t.Fatal(err)
	}
	of := map[string]int{}
	for range maxFetchesIn {
		select {
		case mxc := <-asked:
			of[fileServer(&rooms.File{MXC: id.ContentURIString(mxc)})]++
		case <-ctx.Done():
			t.Fatal("the files are not asked for side by side")
		}
	}
	if of["stalls0.example"] != maxFetchesBy || of["stalls2.example"] != maxFetchesOf {
		t.Errorf("files asked for at once, by server: %v, want %d of each sender", of, maxFetchesBy)
	}
	w.module.down = true // it would wait for the files, too
	w.send(alice, other, "elsewhere")
	select {
	case text := <-got:
		if text != "elsewhere" {
			t.Errorf("bob got %q", text)
		}
	case <-ctx.Done():
		t.Error("bob got nothing of the other room while the server stalled")
	}
	select {
	case mxc := <-asked:
		t.Errorf("%s is asked for beyond the bound", mxc)
	default:
	}
	if err := bob.Close(); err != nil {
		t.Fatal(err)
	}
	bob.mu.Lock()
	defer bob.mu.Unlock()
	if f := bob.fetches; f.all != 0 || f.again != 0 || len(f.in) != 0 || len(f.of) != 0 {
		t.Errorf("after Close files are still being fetched: %+v", f)
	}
}

// TestNewcomerAsksForDevicesWhileItWaits: before anybody has added it, so that it need not then.
func TestNewcomerAsksForDevicesWhileItWaits(t *testing.T) {
	w := newWorld(t)
	room, alice, _, carol := w.three("joined")
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	asked := make(chan id.UserID, 2)
	w.s.mu.Lock()
	dave.ident.read = map[id.UserID]func(){}
	for _, user := range []id.UserID{alice.UserID(), carol.UserID()} {
		dave.ident.read[user] = func() { asked <- user }
	}
	w.s.mu.Unlock()
	ctx, cancel := context.WithTimeout(w.ctx, patience.Hang)
	defer cancel()
	if err := dave.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := dave.hs.Join(ctx, string(room), nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case <-asked:
		case <-ctx.Done():
			t.Fatal("dave asks for nobody's devices")
		}
	}
	if err := dave.Close(); err != nil {
		t.Fatal(err)
	}
	if dave.rooms[room].machine != nil {
		t.Error("dave is in the group: the test proves nothing")
	}
}

// TestFileThatIsFetchedBeside: what a client that was started fetches beside its
// engine comes into the room.
func TestFileThatIsFetchedBeside(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.three("shared")
	before := alice.epoch(room)
	bob.dead = true
	w.device("dave", "DAVE1").dead = true
	w.must(func() error { return alice.Invite(w.ctx, room, "@dave:"+testServer) })
	w.settle()
	mxc, data := w.toMedia(before + 1)
	w.s.mu.Lock()
	w.s.media[mxc] = data
	w.s.mu.Unlock()
	w.send(carol, room, "after it")
	got := make(chan string, 64)
	bob.told = func(u Update) {
		if m, ok := u.(*Message); ok {
			got <- m.Body()
		}
	}
	ctx, cancel := context.WithTimeout(w.ctx, patience.Hang)
	defer cancel()
	if err := bob.Start(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case text := <-got:
		if text != "after it" {
			t.Errorf("bob got %q", text)
		}
	case <-ctx.Done():
		t.Error("bob got nothing")
	}
	if err := bob.Close(); err != nil {
		t.Fatal(err)
	}
	if now := bob.epoch(room); now != before+1 {
		t.Errorf("bob is in epoch %d, want %d", now, before+1)
	}
}
