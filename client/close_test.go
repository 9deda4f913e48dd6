package client

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matrix-mls/matrix-mls/internal/patience"
)

func TestWhoWaitsLearnsOfClose(t *testing.T) {
	w := newWorld(t)
	roomID, alice, _, _ := w.three("shared")
	alice.mu.Lock()
	alice.rooms[roomID].state.Known = false // the engine waits for the state: nothing is compared or sent
	alice.rooms[roomID].planned = false
	alice.hs.noState = true // nor does it come, however long it takes until Close
	alice.mu.Unlock()
	if err := alice.StartFed(w.ctx); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.ctx, patience.Hang)
	defer cancel()
	calls := map[string]func() error{
		"Settle":       func() error { return alice.Settle(ctx, roomID) },
		"Send":         func() error { _, err := alice.SendText(ctx, roomID, "late"); return err },
		"EncryptEvent": func() error { _, err := alice.EncryptEvent(ctx, roomID, "m.room.message", struct{}{}); return err },
		"Invite":       func() error { return alice.await(ctx, roomID, func(*room) error { return ErrNoModule }) },
	}
	began := map[string]chan error{}
	for name, call := range calls {
		done := make(chan error, 1)
		go func() { done <- call() }()
		began[name] = done
	}
	if err := alice.Close(); err != nil {
		t.Fatal(err)
	}
	for name, done := range began {
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("%s that waits: %v, want ErrClosed", name, err)
		}
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
	// A client can be started again, and sends on.
	if err := alice.StartFed(w.ctx); err != nil {
		t.Fatal(err)
	}
	if err := alice.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestWhatWaitsAtTheEndIsOnDisk: who waits for a message when the client is closed was
// told that it goes out later, so that no power cut may lose it.
func TestWhatWaitsAtTheEndIsOnDisk(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	alice.cuts = true
	alice.restart()
	w.settle()
	select {
	case <-alice.wake:
	default:
	}
	told := make(chan error, 1)
	go func() { _, err := alice.SendText(w.ctx, room, "kept"); told <- err }()
	<-alice.wake // it is queued
	alice.mu.Lock()
	why := alice.blockedBy(room)
	alice.mu.Unlock()
	if why != nil {
		t.Fatalf("it was written at once, as it has to wait: the test proves nothing (%v)", why)
	}
	alice.tellClosed()
	if err := <-told; !errors.Is(err, ErrClosed) {
		t.Errorf("the one who waits is told %v, want ErrClosed", err)
	}
	alice.powerCut()
	w.settle()
	bob.wantTexts("kept")
}

// TestCloseWaitsForTheDisk: a closed client's store has all on disk.
func TestCloseWaitsForTheDisk(t *testing.T) {
	w := newWorld(t)
	_, alice, _, _ := w.three("shared")
	alice.cuts = true
	alice.restart()
	if err := alice.StartFed(w.ctx); err != nil {
		t.Fatal(err)
	}
	if err := alice.st.DoSoon(w.ctx, func(ctx context.Context) error { return alice.st.PutKV(ctx, "test", []byte{1}) }); err != nil {
		t.Fatal(err)
	}
	if err := alice.Close(); err != nil {
		t.Fatal(err)
	}
	alice.powerCut()
	if _, err := alice.st.GetKV(w.ctx, "test"); err != nil {
		t.Errorf("after Close and a power cut: %v", err)
	}
}

// TestWhatCameIsOnDiskSoon: a client that only listens waits for the disk once in a
// while, not for each write, and not where nothing was written.
func TestWhatCameIsOnDiskSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		alice := w.device("alice", "ALICE1")
		var waits atomic.Int32
		alice.durable = func() { waits.Add(1) }
		alice.cuts = true
		alice.restart()
		if err := alice.StartFed(w.ctx); err != nil {
			t.Fatal(err)
		}
		rest := func(d time.Duration) {
			<-time.After(d)
			synctest.Wait()
		}
		rest(2 * settleTime) // what the process before may have left
		waits.Store(0)
		for n := range 3 {
			if err := alice.st.DoSoon(w.ctx, func(ctx context.Context) error { return alice.st.PutKV(ctx, "test", []byte{byte(n)}) }); err != nil {
				t.Fatal(err)
			}
		}
		rest(settleTime / 2)
		if n := waits.Load(); n != 0 {
			t.Errorf("three writes waited %d times for the disk at once, want 0", n)
		}
		rest(settleTime)
		if n := waits.Load(); n != 1 {
			t.Errorf("after %s the disk was waited for %d times, want once", settleTime, n)
		}
		rest(time.Hour)
		if n := waits.Load(); n != 1 {
			t.Errorf("after an hour without a write the disk was waited for %d times, want once", n)
		}
		alice.cuts = false // what is on disk by now
		if err := alice.Close(); err != nil {
			t.Fatal(err)
		}
		alice.powerCut()
		if got, err := alice.st.GetKV(w.ctx, "test"); err != nil || string(got) != "\x02" {
			t.Errorf("after a power cut there is %q, want the third write (%v)", got, err)
		}
		if err := alice.st.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
