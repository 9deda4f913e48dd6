package e2e_test

import (
	"errors"
	"testing"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// TestKeyPackagesOverServers takes key packages of a device on each kind of server, from the own server and from
// another one, until there are none: then comes the last resort, or the device is asked.
func TestKeyPackagesOverServers(t *testing.T) {
	for _, servers := range [][2]string{{"syn1", "den1"}, {"den1", "syn1"}} {
		t.Run("of "+servers[0], func(t *testing.T) {
			s := tell(t, "sqlite")
			s.silent = true
			owner, near, far := s.person(servers[0], "owner"), s.person(servers[0], "near"), s.person(servers[1], "far")
			list, err := near.Identity.Devices(s.soon(), owner.UserID())
			s.must(err)
			device := list.Devices[owner.DeviceID()]
			if device == nil || !device.CrossSigned || len(device.MLSKeys) != len(owner.Identity.Suites()) {
				t.Fatalf("the device as its server shows it: %+v", device)
			}
			target := identity.Target{User: owner.UserID(), Device: owner.DeviceID(), Room: "!room:example.org"}
			seen := map[string]bool{}
			for n := range 6 { // two of this suite lie at the server
				from := []*identity.Identity{near.Identity, far.Identity}[n%2]
				got, err := from.ClaimKeyPackages(s.soon(), 3, []identity.Target{target})
				s.must(err)
				s.must(got[0].Err)
				kp := got[0].KeyPackage
				if ref := string(kp.Ref()); seen[ref] && !kp.LastResort() {
					t.Error("a key package was given out twice")
				} else {
					seen[ref] = true
				}
				s.step("claim %d, last resort %v", n+1, kp.LastResort())
			}
			stranger := s.device(servers[0], owner.User.Localpart, "unsigned", e2e.DeviceOptions{Unsigned: true})
			target.Device = stranger.DeviceID()
			got, err := near.Identity.ClaimKeyPackages(s.soon(), 1, []identity.Target{target})
			s.must(err)
			if got[0].Err == nil || got[0].KeyPackage != nil {
				t.Error("an unsigned device has a key package to add it by")
			}
			if rule := rooms.RuleOf(got[0].Err); rule != rooms.RuleDeviceKeyNotCrossSigned && rule != "" {
				t.Errorf("refused by %s", rule)
			}
		})
	}
}

// TestSecondBootstrapIsRefused keeps a user's identity from being replaced by accident, on both kinds of server.
func TestSecondBootstrapIsRefused(t *testing.T) {
	for _, server := range []string{"syn1", "den1"} {
		t.Run(server, func(t *testing.T) {
			s := tell(t, "sqlite")
			s.silent = true
			first := s.person(server, "first")
			second := s.second(first)
			_, err := second.Identity.Bootstrap(s.soon(), identity.UIA{Password: first.User.Password}, "")
			if !errors.Is(err, identity.ErrCrossSigningExists) {
				t.Errorf("got %v, want ErrCrossSigningExists", err)
			}
			status, err := second.Identity.Status(s.soon())
			s.must(err)
			if !status.DeviceSigned || !status.MasterTrusted || !status.CanSign {
				t.Errorf("a device with the recovery key: %+v", status)
			}
		})
	}
}
