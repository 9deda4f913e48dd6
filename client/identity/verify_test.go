package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mau.fi/util/jsontime"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/patience"
)

// person answers a verification.
type person struct {
	accept, match bool
	stop          error // in the place of an answer
	shown         chan string
	ended         chan error
}

func newPerson(i *Identity, accept, match bool) *person {
	p := &person{accept: accept, match: match, shown: make(chan string, 1), ended: make(chan error, 1)}
	i.SetVerifyUI(p)
	return p
}

func (p *person) Asked(context.Context, id.UserID, id.DeviceID) bool { return p.accept }
func (p *person) Compare(_ context.Context, _ id.UserID, emoji []Emoji, decimals []int) (bool, error) {
	p.shown <- fmt.Sprint(emoji, decimals)
	return p.match, p.stop
}
func (p *person) Ended(_ context.Context, _ id.UserID, err error) { p.ended <- err }

func wait[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience.Hang):
		t.Fatalf("timed out waiting for %s", what)
		panic("unreachable")
	}
}

func TestVerifyOwnDevice(t *testing.T) {
	h := newHomeserver(t, true)
	one, two := h.loginDevice("@a:one"), h.loginDevice("@a:one")
	bootstrap(t, one)
	a, b := newPerson(one, true, true), newPerson(two, true, true)
	keepSyncing(t, one, two)
	if err := two.StartVerification(t.Context(), two.UserID()); err != nil {
		t.Fatal(err)
	}
	if x, y := wait(t, "emoji", a.shown), wait(t, "emoji", b.shown); x != y || x == "" {
		t.Errorf("the devices show %s and %s", x, y)
	}
	for _, p := range []*person{a, b} {
		if err := wait(t, "the end", p.ended); err != nil {
			t.Fatal(err)
		}
	}
	s, err := two.Status(t.Context())
	if err != nil || !s.DeviceSigned || !s.MasterTrusted || s.CanSign {
		t.Errorf("the verified device: %+v, %v", s, err)
	}
}

// TestTheSignatureMayComeAfterTheEnd: other clients sign a device when both sides have said that they are done, not before.
func TestTheSignatureMayComeAfterTheEnd(t *testing.T) {
	h := newHomeserver(t, true)
	one, two := h.loginDevice("@a:one"), h.loginDevice("@a:one")
	bootstrap(t, one)
	asked, once := make(chan struct{}), sync.Once{}
	h.Mu.Lock()
	h.Answering = func() { once.Do(func() { close(asked) }) }
	h.Mu.Unlock()
	signed := make(chan error, 1)
	go func() { signed <- two.AwaitSignature(t.Context()) }()
	wait(t, "the first look", asked)
	if err := one.SignDevice(t.Context(), two.DeviceID()); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, "the signature", signed); err != nil {
		t.Fatal(err)
	}
	if s, err := two.Status(t.Context()); err != nil || !s.DeviceSigned {
		t.Errorf("the device whose signature was waited for: %+v, %v", s, err)
	}

	three := h.loginDevice("@a:one")
	ctx, cancel := context.WithCancel(t.Context())
	h.Mu.Lock()
	h.Answering = cancel
	h.Mu.Unlock()
	if err := three.AwaitSignature(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a signature that does not come: %v", err)
	}
}

func TestVerifyAnotherUser(t *testing.T) {
	h := newHomeserver(t, true)
	one, two := h.loginDevice("@a:one"), h.loginDevice("@b:one")
	bootstrap(t, one)
	bootstrap(t, two)
	a, b := newPerson(one, true, true), newPerson(two, true, true)
	keepSyncing(t, one, two)
	if err := one.StartVerification(t.Context(), two.UserID()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*person{a, b} {
		if err := wait(t, "the end", p.ended); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct{ viewer, seen *Identity }{{one, two}, {two, one}} {
		if err := row.viewer.listsChanged(t.Context(), []id.UserID{row.seen.UserID()}, nil, false); err != nil {
			t.Fatal(err)
		}
		u, err := row.viewer.Devices(t.Context(), row.seen.UserID())
		if err != nil || u.MasterState != MasterVerified {
			t.Errorf("%s sees %s as %s, %v", row.viewer.UserID(), row.seen.UserID(), u.MasterState, err)
		}
	}
}

func TestDifferentEmojiVerifyNothing(t *testing.T) {
	h := newHomeserver(t, true)
	one, two := h.loginDevice("@a:one"), h.loginDevice("@a:one")
	bootstrap(t, one)
	a, b := newPerson(one, true, false), newPerson(two, true, true)
	keepSyncing(t, one, two)
	if err := two.StartVerification(t.Context(), two.UserID()); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, "the end", a.ended); err == nil {
		t.Error("the side that refused ended well")
	}
	if err := wait(t, "the end", b.ended); !errors.Is(err, ErrVerificationEnded) {
		t.Errorf("the other side: got %v", err)
	}
	if s, err := two.Status(t.Context()); err != nil || s.DeviceSigned || s.MasterTrusted {
		t.Errorf("after a refusal: %+v, %v", s, err)
	}
}

// TestWhoDoesNotCompareTellsOfNoDifference: a terminal that closes at the question is no sign of somebody in between.
func TestWhoDoesNotCompareTellsOfNoDifference(t *testing.T) {
	h := newHomeserver(t, true)
	one, two := h.loginDevice("@a:one"), h.loginDevice("@a:one")
	bootstrap(t, one)
	a, b := newPerson(one, true, false), newPerson(two, true, true)
	a.stop = io.EOF
	keepSyncing(t, one, two)
	if err := two.StartVerification(t.Context(), two.UserID()); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, "the end", a.ended); !errors.Is(err, ErrVerificationStopped) || !errors.Is(err, io.EOF) {
		t.Errorf("the side that was not answered on: %v", err)
	}
	if err := wait(t, "the end", b.ended); !errors.Is(err, ErrVerificationEnded) || !strings.Contains(err.Error(), string(event.VerificationCancelCodeUser)) {
		t.Errorf("the other side: got %v", err)
	}
}

func TestDeclinedVerification(t *testing.T) {
	h := newHomeserver(t, true)
	one, two := h.loginDevice("@a:one"), h.loginDevice("@a:one")
	bootstrap(t, one)
	newPerson(one, false, true)
	b := newPerson(two, true, true)
	keepSyncing(t, one, two)
	if err := two.StartVerification(t.Context(), two.UserID()); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, "the end", b.ended); !errors.Is(err, ErrVerificationEnded) {
		t.Errorf("got %v, want ErrVerificationEnded", err)
	}
}

func TestNobodyToVerifyWith(t *testing.T) {
	h := newHomeserver(t, true)
	one := h.loginDevice("@a:one")
	newPerson(one, true, true)
	if err := one.StartVerification(t.Context(), one.UserID()); err == nil {
		t.Error("a verification was started with nobody")
	}
}

// TestNobodyAloneKeepsOthersFromAskingForAVerification: of one user five may be under way, and of a server's users half of what
// other servers' leave, so that it takes many servers to fill them. Own devices ask whatever others do.
func TestNobodyAloneKeepsOthersFromAskingForAVerification(t *testing.T) {
	i := &Identity{account: &account{userID: "@own:example.org"}, now: time.Now}
	i.verifier.txns = map[id.VerificationTransactionID]*verification{}
	ask := func(user id.UserID, n int) bool {
		txn := id.VerificationTransactionID(fmt.Sprint(user, n))
		content := &event.VerificationRequestEventContent{ToDeviceVerificationEvent: event.ToDeviceVerificationEvent{TransactionID: txn}}
		ok := i.noteVerificationEvent(&event.Event{Type: event.ToDeviceVerificationRequest, Sender: user, Content: event.Content{Parsed: content}})
		if ok {
			i.verifier.txns[txn] = &verification{user: user, at: i.now()}
		}
		return ok
	}
	for n := range 2 * maxVerifications {
		if got := ask("@mallory:evil.example", n); got != (n < maxOfUser) {
			t.Errorf("request %d of one user: %t", n, got)
		}
	}
	flood := func(server string) (taken int) {
		for n := range 2 * maxVerifications {
			if ask(id.UserID(fmt.Sprintf("@mallory%d:%s", n, server)), n) {
				taken++
			}
		}
		return taken
	}
	if taken := maxOfUser + flood("evil.example"); taken != maxVerifications/2 {
		t.Errorf("one server takes %d, want %d", taken, maxVerifications/2)
	}
	if !ask("@alice:example.org", 0) {
		t.Error("nobody else can ask any more")
	}
	flood("two.example")
	flood("three.example")
	if !ask("@bob:example.net", 0) || !ask("@carol:example.org", 0) {
		t.Error("three servers keep others from asking")
	}
	for n := range 2 * maxVerifications {
		ask(id.UserID(fmt.Sprintf("@u:x%d", n)), n)
	}
	if len(i.verifier.txns) != maxVerifications {
		t.Errorf("%d are under way, want %d", len(i.verifier.txns), maxVerifications)
	}
	for n := range 2 * maxOfUser {
		if got := ask("@own:example.org", n); got != (n < maxOfUser) {
			t.Errorf("request %d of an own device: %t", n, got)
		}
	}
}

// waiting is a person who has not answered yet whether to go on.
type waiting struct {
	asked   chan id.DeviceID
	release chan struct{}
	ended   chan error
}

func (p *waiting) Asked(_ context.Context, _ id.UserID, device id.DeviceID) bool {
	p.asked <- device
	<-p.release
	return true
}

func (p *waiting) Compare(context.Context, id.UserID, []Emoji, []int) (bool, error) {
	return false, errors.New("nobody compares")
}
func (p *waiting) Ended(_ context.Context, _ id.UserID, err error) { p.ended <- err }

// TestAStoppedVerificationIsForgotten: one user's verifications are bounded, and those that
// were stopped do not count.
func TestAStoppedVerificationIsForgotten(t *testing.T) {
	h := newHomeserver(t, true)
	one, two := h.loginDevice("@a:one"), h.loginDevice("@a:one")
	bootstrap(t, one)
	a, b := &waiting{asked: make(chan id.DeviceID, 1), release: make(chan struct{}), ended: make(chan error, 1)}, newPerson(two, true, true)
	one.SetVerifyUI(a)
	keepSyncing(t, one, two)
	for range maxOfUser + 1 {
		if err := two.StartVerification(t.Context(), two.UserID()); err != nil {
			t.Fatal(err)
		}
		if device := wait(t, "the question", a.asked); device != two.DeviceID() {
			t.Errorf("%s asks", device)
		}
		one.StopVerifications(t.Context())
		if err := wait(t, "the end here", a.ended); !errors.Is(err, ErrVerificationStopped) {
			t.Errorf("here it ended with %v", err)
		}
		if err := wait(t, "the end there", b.ended); !errors.Is(err, ErrVerificationEnded) {
			t.Errorf("there it ended with %v", err)
		}
		a.release <- struct{}{} // the person says yes, too late
	}
	select {
	case err := <-a.ended:
		t.Errorf("the person was told once more: %v", err)
	default:
	}
}

// TestWhatNobodyAnswersIsForgotten: without a person requests stay unanswered, but they do
// not keep their user from asking for ever.
func TestWhatNobodyAnswersIsForgotten(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	i := &Identity{account: &account{userID: "@own:example.org"}, now: func() time.Time { return now }}
	i.verifier.txns = map[id.VerificationTransactionID]*verification{}
	c := &verifyCallbacks{i: i}
	ask := func(txn id.VerificationTransactionID) bool {
		content := &event.VerificationRequestEventContent{ToDeviceVerificationEvent: event.ToDeviceVerificationEvent{TransactionID: txn}}
		ok := i.noteVerificationEvent(&event.Event{Type: event.ToDeviceVerificationRequest, Sender: "@a:one", Content: event.Content{Parsed: content}})
		if ok {
			c.VerificationRequested(t.Context(), txn, "@a:one", "PHONE")
		}
		return ok
	}
	for n := range maxOfUser {
		if !ask(id.VerificationTransactionID(fmt.Sprint(n))) {
			t.Fatalf("request %d is refused", n)
		}
	}
	if ask("more") {
		t.Error("one more than may be is taken")
	}
	c.VerificationCancelled(t.Context(), "0", event.VerificationCancelCodeUser, "")
	c.VerificationDone(t.Context(), "1", "")
	if !ask("after one was cancelled") || !ask("after one was done") || ask("more") {
		t.Error("those that ended count")
	}
	now = now.Add(verificationTime + time.Second)
	if !ask("later") {
		t.Error("those of long ago count")
	}
	if n := len(i.verifier.txns); n != 1 {
		t.Errorf("%d are kept", n)
	}
}

// TestARequestFromTheFutureIsNotTaken: the library holds a request until ten minutes after it was made, by its sender's
// clock; a device's clock may be five minutes ahead.
func TestARequestFromTheFutureIsNotTaken(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	i := &Identity{account: &account{userID: "@own:example.org"}, now: func() time.Time { return now }}
	i.verifier.txns = map[id.VerificationTransactionID]*verification{}
	for ahead, want := range map[time.Duration]bool{0: true, verificationAhead: true, verificationAhead + time.Second: false, 24 * time.Hour: false} {
		content := &event.VerificationRequestEventContent{
			ToDeviceVerificationEvent: event.ToDeviceVerificationEvent{TransactionID: "t"}, Timestamp: jsontime.UM(now.Add(ahead)),
		}
		if got := i.noteVerificationEvent(&event.Event{Type: event.ToDeviceVerificationRequest, Sender: "@a:one", Content: event.Content{Parsed: content}}); got != want {
			t.Errorf("a request that is %v ahead is taken: %v", ahead, got)
		}
	}
}
