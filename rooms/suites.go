package rooms

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
)

// Suite is a cipher suite of RFC 9420.
type Suite = mls.CipherSuite

// DefaultSuiteOrder returns the order of preference of a new room: the EdDSA
// suites first, as the proofs for groups in which members come by external
// commit hold with them; then the ECDSA suites.
func DefaultSuiteOrder() []Suite {
	return []Suite{
		mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
		mls.MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
		mls.MLS_256_DHKEMX448_AES256GCM_SHA512_Ed448,
		mls.MLS_256_DHKEMX448_CHACHA20POLY1305_SHA512_Ed448,
		mls.MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
		mls.MLS_256_DHKEMP521_AES256GCM_SHA512_P521,
		mls.MLS_256_DHKEMP384_AES256GCM_SHA384_P384,
	}
}

// Offer is what a device can use, by its key packages or device keys.
type Offer struct {
	User   id.UserID
	Device id.DeviceID
	Suites []Suite
}

// UsableSuite tells whether groups of rooms can use a suite: this build has it,
// experimental ones included, and its signature keys fit into a credential.
// Whether a device offers an experimental one is for its options to say.
func UsableSuite(s Suite) bool {
	if !s.Experimental() {
		return s.Supported()
	}
	switch s.SignatureScheme() {
	case mls.Ed25519, mls.Ed448, mls.ECDSAWithP256AndSHA256, mls.ECDSAWithP384AndSHA384, mls.ECDSAWithP521AndSHA512:
		return true
	}
	return false
}

// ParseSuite reads a suite as a person writes it: its name, or the number that
// RFC 9420 or the draft gives it.
func ParseSuite(text string) (Suite, error) {
	for _, s := range allSuites() {
		if strings.EqualFold(text, s.String()) {
			return s, nil
		}
	}
	if n, err := strconv.ParseUint(text, 0, 16); err == nil && UsableSuite(Suite(n)) {
		return Suite(n), nil
	}
	return 0, refuse(RuleNoCommonSuite, "cipher suite "+text, "is unknown to this build").
		with("name one of %s", suiteNames(usableSuites()))
}

func usableSuites() []Suite {
	return slices.DeleteFunc(allSuites(), func(s Suite) bool { return !UsableSuite(s) })
}

func suiteNames(suites []Suite) string {
	names := make([]string, len(suites))
	for i, s := range suites {
		names[i] = fmt.Sprintf("%s (%#x)", s, uint16(s))
		if !s.Experimental() {
			names[i] = fmt.Sprintf("%s (%d)", s, uint16(s))
		}
	}
	return strings.Join(names, ", ")
}

// MayUse tells whether the policy's floor allows a suite for a group of the room.
func (p *Policy) MayUse(s Suite) bool {
	return len(p.SuiteFloor) == 0 || slices.Contains(p.SuiteFloor, s)
}

// ChooseSuite returns the first suite in the policy's order, above its floor,
// that this build and all devices support. If there is none, the refusal names
// the devices that stand in the way of the best one, and the remedies.
func ChooseSuite(p *Policy, offers []Offer) (Suite, error) {
	var allowed []Suite
	for _, s := range p.SuiteOrder {
		if UsableSuite(s) && p.MayUse(s) {
			allowed = append(allowed, s)
		}
	}
	if len(allowed) == 0 {
		return 0, refuse(RuleNoCommonSuite, "group policy", "allows no cipher suite that this build supports")
	}
	best, blocking := allowed[0], len(offers)+1
	for _, s := range allowed {
		n := 0
		for _, o := range offers {
			if !slices.Contains(o.Suites, s) {
				n++
			}
		}
		if n == 0 {
			return s, nil
		}
		if n < blocking {
			best, blocking = s, n
		}
	}
	return 0, lacking(best, offers)
}

// CheckSuite tells whether all devices can join a group of a suite.
func CheckSuite(s Suite, offers []Offer) error {
	if slices.ContainsFunc(offers, func(o Offer) bool { return !slices.Contains(o.Suites, s) }) {
		return lacking(s, offers)
	}
	return nil
}

func lacking(s Suite, offers []Offer) error {
	const shown = 5
	var names []string
	for _, o := range offers {
		if !slices.Contains(o.Suites, s) {
			names = append(names, string(o.User)+" "+string(o.Device))
		}
	}
	slices.Sort(names)
	text := strings.Join(names[:min(shown, len(names))], ", ")
	if len(names) > shown {
		text += fmt.Sprintf(" and %d more", len(names)-shown)
	}
	return refuse(RuleNoCommonSuite, "cipher suite "+s.String(), "not supported by %s", text).
		with("update these devices, leave them out, or let an admin choose another suite")
}

// Weaker tells whether moving from one suite to another lowers the security
// level that the suite's name states, leaves EdDSA, or gives up a post-quantum
// KEM. An admin has to ask for such a change; it never happens by itself.
func Weaker(from, to Suite) bool {
	return strength(to) < strength(from) || eddsa(from) && !eddsa(to) || from.Experimental() && !to.Experimental()
}

func strength(s Suite) int {
	for _, bits := range []int{256, 192} {
		if strings.HasPrefix(s.String(), fmt.Sprintf("MLS_%d", bits)) {
			return bits
		}
	}
	return 128
}

func eddsa(s Suite) bool {
	scheme := s.SignatureScheme()
	return scheme == mls.Ed25519 || scheme == mls.Ed448
}
