package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/internal/hstest"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

func claimOne(t *testing.T, i *Identity, cs mls.CipherSuite, target Target) Claimed {
	t.Helper()
	got, err := i.ClaimKeyPackages(t.Context(), cs, []Target{target})
	if err != nil {
		t.Fatal(err)
	}
	return got[0]
}

func TestClaimedKeyPackageOpensForItsOwner(t *testing.T) {
	h := newHomeserver(t, false)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:one")
	bootstrap(t, b)
	got := claimOne(t, a, 1, Target{User: b.UserID(), Device: b.DeviceID()})
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	refs := []mls.KeyPackageRef{[]byte("not ours"), got.KeyPackage.Ref()}
	bundle, _, err := b.Bundle(t.Context(), refs)
	if err != nil || string(bundle.Ref()) != string(got.KeyPackage.Ref()) {
		t.Fatalf("bundle: %v", err)
	}
	if err := b.ConsumeBundle(t.Context(), got.KeyPackage.Ref()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Bundle(t.Context(), refs); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a consumed key package: got %v, want ErrNotFound", err)
	}
	if err := b.ConsumeBundle(t.Context(), got.KeyPackage.Ref()); err != nil {
		t.Errorf("consumed twice: %v", err)
	}
}

func TestClaimSparesDevicesThatMayNotBeAdded(t *testing.T) {
	h := newHomeserver(t, false)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:one")
	before := len(h.device(b).OTK)
	for _, row := range []struct {
		name   string
		suite  mls.CipherSuite
		target Target
		rule   rooms.Rule
	}{
		{"not cross-signed", 1, Target{User: b.UserID(), Device: b.DeviceID()}, rooms.RuleDeviceKeyNotCrossSigned},
		{"no such device", 1, Target{User: b.UserID(), Device: "NONE"}, ""},
		{"suite not offered", 2, Target{User: b.UserID(), Device: b.DeviceID()}, ""},
		{"no such user", 1, Target{User: "@x:one", Device: "NONE"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := claimOne(t, a, row.suite, row.target)
			if got.Err == nil || rooms.RuleOf(got.Err) != row.rule {
				t.Errorf("got %v, want rule %q", got.Err, row.rule)
			}
		})
	}
	if after := len(h.device(b).OTK); after != before {
		t.Errorf("%d key packages were wasted", before-after)
	}
}

func TestClaimRefusesForgedKeyPackages(t *testing.T) {
	h := newHomeserver(t, false)
	a, b, c := h.loginDevice("@a:one"), h.loginDevice("@b:one"), h.loginDevice("@c:one")
	bootstrap(t, b)
	bootstrap(t, c)
	pick := func(i *Identity, cs mls.CipherSuite) hstest.Key {
		for _, k := range h.device(i).OTK {
			if hstest.AlgorithmOf(k.ID) == string(rooms.SuiteKeyAlgorithm(cs)) {
				return k
			}
		}
		t.Fatal("no key package")
		return hstest.Key{}
	}
	good, foreign, otherSuite := pick(b, 1), pick(c, 1), pick(b, 3)
	quote := func(s string) json.RawMessage { return json.RawMessage(fmt.Sprintf("%q", s)) }
	var text string
	if err := json.Unmarshal(good.Value, &text); err != nil {
		t.Fatal(err)
	}
	raw, err := rooms.DecodeBase64(text)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), raw...)
	flipped[len(flipped)-1] ^= 1
	expired := openIdentity(t, func() time.Time { return time.Now().Add(-90 * 24 * time.Hour) })
	expired.account, expired.client = b.account, b.client
	old, err := expired.makePackage(t.Context(), 1, false, store.KeyPackageUploaded, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		key  hstest.Key
		want string
	}{
		{"another user's", foreign, "credential is of @c:one"},
		{"of another suite", hstest.Key{ID: good.ID, Value: otherSuite.Value}, "key-package/"},
		{"under another reference", hstest.Key{ID: pick(b, 1).ID[:len(good.ID)-4] + "AAAA", Value: good.Value}, "reference"},
		{"flipped signature", hstest.Key{ID: good.ID, Value: quote(rooms.EncodeBase64(flipped))}, "signature"},
		{"expired", hstest.Key{ID: string(rooms.KeyPackageID(1, old.Ref())), Value: quote(rooms.EncodeBase64(old.Message()))}, "lifetime"},
		{"an object", hstest.Key{ID: good.ID, Value: json.RawMessage(`{"key":"x"}`)}, "not a string"},
		{"a number", hstest.Key{ID: good.ID, Value: json.RawMessage(`7`)}, "not a string"},
		{"not base64", hstest.Key{ID: good.ID, Value: quote("***")}, "base64"},
		{"trailing bytes", hstest.Key{ID: good.ID, Value: quote(rooms.EncodeBase64(append(raw[:len(raw):len(raw)], 0)))}, "mls:"},
		{"empty", hstest.Key{ID: good.ID, Value: quote("")}, "mls:"},
		{"huge", hstest.Key{ID: good.ID, Value: quote(strings.Repeat("A", 100_000))}, "bytes"},
	} {
		t.Run(row.name, func(t *testing.T) {
			h.Mu.Lock()
			d := h.Devices[b.UserID()][b.DeviceID().String()]
			saved := d.OTK
			d.OTK = []hstest.Key{row.key}
			h.Mu.Unlock()
			got := claimOne(t, a, 1, Target{User: b.UserID(), Device: b.DeviceID()})
			h.Mu.Lock()
			d.OTK = saved
			h.Mu.Unlock()
			if got.KeyPackage != nil || got.Err == nil || !strings.Contains(got.Err.Error(), row.want) {
				t.Errorf("got %v, want an error with %q", got.Err, row.want)
			}
		})
	}
	t.Run("an unusable one is followed by the next", func(t *testing.T) {
		h.Mu.Lock()
		d := h.Devices[b.UserID()][b.DeviceID().String()]
		d.OTK = append([]hstest.Key{{ID: good.ID, Value: quote("***")}}, d.OTK...)
		h.Mu.Unlock()
		if got := claimOne(t, a, 1, Target{User: b.UserID(), Device: b.DeviceID()}); got.Err != nil {
			t.Error(got.Err)
		}
	})
}

func TestDeviceWithoutKeyPackagesIsAsked(t *testing.T) {
	h := newHomeserver(t, false)
	a, b := h.loginDevice("@a:one"), h.loginDevice("@b:one")
	bootstrap(t, b)
	h.Mu.Lock()
	h.Devices[b.UserID()][b.DeviceID().String()].OTK = nil
	h.Mu.Unlock()
	target := Target{User: b.UserID(), Device: b.DeviceID()}
	if got := claimOne(t, a, 1, target); !errors.Is(got.Err, ErrNoKeyPackage) {
		t.Errorf("without a room: got %v", got.Err)
	}
	keepSyncing(t, a, b)
	target.Room = "!r:one"
	got := claimOne(t, a, 1, target)
	if got.Err != nil {
		t.Fatal(got.Err)
	}
	if _, _, err := b.Bundle(t.Context(), []mls.KeyPackageRef{got.KeyPackage.Ref()}); err != nil {
		t.Errorf("the answer's private parts: %v", err)
	}
}

func TestAnswersOfStrangersAreNotTaken(t *testing.T) {
	h := newHomeserver(t, false)
	a := h.loginDevice("@a:one")
	answers := make(chan *answer, 1)
	a.packages.waiting["r1"] = answers
	content := func(request string, kp []byte) json.RawMessage {
		raw, err := rooms.Encode(&rooms.KeyPackageContent{Room: "!r:one", Suite: 1, RequestID: request, KeyPackage: kp})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	a.keyPackageAnswered("@b:one", content("unknown", []byte("x")))
	a.keyPackageAnswered("@b:one", json.RawMessage(`{`))
	a.keyPackageAnswered("@b:one", content("r1", []byte("first")))
	a.keyPackageAnswered("@c:one", content("r1", []byte("second"))) // must not block
	if got := <-answers; string(got.message) != "first" || got.sender != "@b:one" {
		t.Errorf("got %+v", got)
	}
}

func TestKeyPackageRequestsAreLimited(t *testing.T) {
	h := newHomeserver(t, false)
	i := h.loginDevice("@a:one")
	now := time.Unix(1_000_000, 0)
	ok := 0
	for range 20 {
		if i.packages.allow("@b:one", now) {
			ok++
		}
	}
	if ok != maxAsksPerUser {
		t.Errorf("one user got %d, want %d", ok, maxAsksPerUser)
	}
	for n := range 200 {
		if i.packages.allow(id.UserID(fmt.Sprintf("@u%d:one", n)), now) {
			ok++
		}
	}
	if ok != maxAsks {
		t.Errorf("all users got %d, want %d", ok, maxAsks)
	}
	if !i.packages.allow("@b:one", now.Add(time.Minute)) {
		t.Error("refused a minute later")
	}
}

func TestStockIsRefilledWhenHalfIsGone(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	algorithm := string(rooms.SuiteKeyAlgorithm(1))
	want := DefaultStock(suites)[1]
	take := func(n int) {
		h.Mu.Lock()
		defer h.Mu.Unlock()
		d := h.Devices[i.UserID()][i.DeviceID().String()]
		var kept []hstest.Key
		for _, k := range d.OTK {
			if hstest.AlgorithmOf(k.ID) == algorithm && n > 0 {
				n--
				continue
			}
			kept = append(kept, k)
		}
		d.OTK = kept
	}
	take(want/2 - 1)
	uploads := h.Uploads
	syncOnce(t, i)
	if h.Uploads != uploads {
		t.Error("refilled too early")
	}
	take(1)
	syncOnce(t, i)
	if got := h.device(i).Counts()[algorithm]; got != want {
		t.Errorf("%d key packages after the refill, want %d", got, want)
	}
	if total := len(h.device(i).OTK); total > MaxStock {
		t.Errorf("%d one-time keys, at most %d", total, MaxStock)
	}
}

func TestMadeButNotUploadedIsUploadedAgain(t *testing.T) {
	h := newHomeserver(t, true)
	i := h.loginDevice("@a:one")
	bundle, err := i.makePackage(t.Context(), 1, false, store.KeyPackageMade, i.now())
	if err != nil {
		t.Fatal(err)
	}
	h.Mu.Lock()
	h.Devices[i.UserID()][i.DeviceID().String()].OTK = nil
	h.Mu.Unlock()
	if err := i.EnsureKeyPackages(t.Context()); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, k := range h.device(i).OTK {
		found = found || k.ID == string(rooms.KeyPackageID(1, bundle.Ref()))
	}
	if !found {
		t.Error("a key package made before a crash was left behind")
	}
}

func TestLastResort(t *testing.T) {
	h := newHomeserver(t, true)
	now := time.Now()
	i := openIdentity(t, func() time.Time { return now })
	if err := i.LoginPassword(t.Context(), Login{Homeserver: h.URL, User: "@a:one"}, "secret"); err != nil {
		t.Fatal(err)
	}
	bootstrap(t, i)
	b := h.loginDevice("@b:one")
	target := Target{User: i.UserID(), Device: i.DeviceID()}
	h.Mu.Lock()
	h.Devices[i.UserID()][i.DeviceID().String()].OTK = nil
	h.Mu.Unlock()
	first, second := claimOne(t, b, 1, target), claimOne(t, b, 1, target)
	if first.Err != nil || second.Err != nil {
		t.Fatal(first.Err, second.Err)
	}
	ref := first.KeyPackage.Ref()
	if !first.KeyPackage.LastResort() || string(ref) != string(second.KeyPackage.Ref()) {
		t.Error("the last resort was not served twice")
	}
	if err := i.ConsumeBundle(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if _, shared, err := i.Bundle(t.Context(), []mls.KeyPackageRef{ref}); err != nil || shared {
		t.Errorf("a last resort does not survive its first use: %v", err)
	}
	if err := i.st.PruneRejoinSecrets(t.Context(), "!busy:one", 9); err != nil {
		t.Fatal(err)
	}
	if _, shared, err := i.Bundle(t.Context(), []mls.KeyPackageRef{ref}); err != nil || !shared {
		t.Errorf("what a last resort opened is forgotten, and it counts as unused (%v)", err)
	}
	algorithm := string(rooms.SuiteKeyAlgorithm(1))
	held := func() string { return h.device(i).Fallback[algorithm].ID }
	syncOnce(t, i)
	if held() != string(rooms.KeyPackageID(1, ref)) {
		t.Error("a used last resort was replaced at once")
	}
	now = now.Add(2 * time.Hour)
	syncOnce(t, i)
	if held() == string(rooms.KeyPackageID(1, ref)) {
		t.Error("a used last resort was not replaced")
	}
	if _, _, err := i.Bundle(t.Context(), []mls.KeyPackageRef{ref}); err != nil {
		t.Errorf("a replaced last resort is gone at once: %v", err)
	}
	now = now.Add(100 * 24 * time.Hour)
	syncOnce(t, i)
	if _, _, err := i.Bundle(t.Context(), []mls.KeyPackageRef{ref}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an expired last resort: got %v, want ErrNotFound", err)
	}
}

// TestKeyPackagesOfACopiedStore: another copy of the store has the same ones. They open Welcomes and say so, none
// is uploaded again, and the last resort is replaced.
func TestKeyPackagesOfACopiedStore(t *testing.T) {
	h := newHomeserver(t, true)
	now := time.Now()
	i := openIdentity(t, func() time.Time { return now })
	if err := i.LoginPassword(t.Context(), Login{Homeserver: h.URL, User: "@a:one"}, "secret"); err != nil {
		t.Fatal(err)
	}
	bootstrap(t, i)
	fallback := func() string { return h.device(i).Fallback[string(rooms.SuiteKeyAlgorithm(1))].ID }
	old := fallback()
	stored := func() mls.KeyPackageRef {
		bundle, err := i.makePackage(t.Context(), 1, false, store.KeyPackageMade, now)
		if err != nil {
			t.Fatal(err)
		}
		return bundle.Ref()
	}
	copied := stored()
	if err := i.ShareBundles(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.st.MarkKeyPackageUploaded(t.Context(), copied); err != nil { // that was under way
		t.Fatal(err)
	}
	for want, ref := range map[bool]mls.KeyPackageRef{true: copied, false: stored()} {
		if _, shared, err := i.Bundle(t.Context(), []mls.KeyPackageRef{ref}); err != nil || shared != want {
			t.Errorf("a key package is shared: %v, want %v (%v)", shared, want, err)
		}
	}
	now = now.Add(2 * time.Hour)
	syncOnce(t, i)
	if fallback() == old {
		t.Error("the last resort was not replaced")
	}
}

func TestAskingDoesNotPushOutTheStock(t *testing.T) {
	h := newHomeserver(t, true)
	a := h.loginDevice("@a:one")
	var stock []mls.KeyPackageRef
	all, err := a.st.KeyPackages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, kp := range all {
		stock = append(stock, kp.Ref)
	}
	for n := range maxKeyPackages + 50 {
		// Each a little later, so that nobody is told to wait.
		at := time.Now().Add(time.Duration(n) * time.Minute)
		a.now = func() time.Time { return at }
		raw, err := rooms.Encode(&rooms.KeyPackageContent{Room: "!r:two", Suite: 1, RequestID: fmt.Sprint("r", n)})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.keyPackageRequested(t.Context(), "@stranger:two", raw); err != nil {
			t.Fatal(err)
		}
	}
	if all, err = a.st.KeyPackages(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(all) < maxKeyPackages {
		t.Fatalf("%d key packages, the flood did not work", len(all))
	}
	kept, err := a.dropOldPackages(t.Context(), all, a.now())
	if err != nil {
		t.Fatal(err)
	}
	if want := len(stock) + maxDirect; len(kept) != want {
		t.Errorf("%d key packages are kept, want %d", len(kept), want)
	}
	for _, ref := range stock {
		if _, err := a.st.KeyPackage(t.Context(), ref); err != nil {
			t.Errorf("one that lies at the homeserver is gone: %v", err)
		}
	}
}

// TestNothingIsWrittenWhereNoPackageIsOld: the stock is looked through with each
// /sync, which a transaction would hold up.
func TestNothingIsWrittenWhereNoPackageIsOld(t *testing.T) {
	h := newHomeserver(t, true)
	a := h.loginDevice("@a:one")
	all, err := a.st.KeyPackages(t.Context())
	if err != nil || len(all) == 0 {
		t.Fatalf("%d key packages, %v", len(all), err)
	}
	busy := errors.New("the store was written to")
	err = a.st.Do(t.Context(), func(context.Context) error { // nobody else can write meanwhile
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, busy)
		defer cancel()
		kept, err := a.dropOldPackages(ctx, all, a.now())
		if err == nil && len(kept) != len(all) {
			t.Errorf("%d of %d key packages are kept", len(kept), len(all))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
