package client

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// ruleStandstill is the rule of a room in which nothing becomes final any more.
const ruleStandstill = "client/nothing-final"

// standing says what a person can do about a room in which nothing became final
// for the policy's heirs_wait, on this device's monotonic clock, although something
// waits; "" while that is not so. No device can tell modules that are lost from
// modules that are cut off, so that no program opens an era by itself (decision 0025).
// What the text says comes with it.
func (c *Client) standing(r *room) (string, *Standstill) {
	if r.machine == nil || r.rec.Phase != phaseMember || !r.machine.HeirsDue() {
		return "", nil
	}
	e := r.sendEpoch()
	if e == nil {
		e = r.head()
	}
	if e == nil {
		return "", nil
	}
	if _, ok := r.machine.Unvouched(); ok {
		return "", nil // an admin is told of that
	}
	policy, err := e.policy()
	if err != nil {
		return "", nil
	}
	stalled := r.machine.Stalled()
	out := &Standstill{For: stalled.Truncate(time.Minute), Admin: policy.IsAdmin(c.UserID()), Heir: policy.IsHeir(c.UserID())}
	var spoke, silent []string
	for _, s := range policy.Sequencers {
		if at, ok := r.heard[id.UserID(s.User)]; ok && at >= c.mono()-stalled {
			spoke = append(spoke, s.Server)
		} else {
			silent = append(silent, s.Server)
		}
	}
	text := fmt.Sprintf("nothing became final for %v although a change of the group waits: ", out.For)
	if len(spoke) >= federation.List(policy.Sequencers).Quorum() {
		return text + "most of its modules are there; what it waits for is in " + command("epochs", r.id), out
	}
	out.Silent, out.Servers = silent, r.goOnWith(spoke, policy, serverOf(c.UserID()))
	text += fmt.Sprintf("nothing was heard meanwhile from the modules of %s. It goes on by itself once most of the room's modules are there again", serverNames(silent))
	servers, hint := out.Servers, ""
	if len(servers) == 0 {
		servers, hint = []string{"SERVER"}, ", with the name of a server that has a module"
	}
	goOn := command("era", r.id, servers...) + hint
	switch {
	case out.Admin:
		return text + ". If they are lost for good, you, an admin, go on without them: " + goOn, out
	case out.Heir:
		return text + ". If they are lost for good, and no admin is there, you, an heir, go on without them: " + goOn, out
	}
	who := slices.Clone(policy.Admins)
	for _, h := range policy.Heirs {
		who = append(who, id.UserID(h.User))
	}
	return text + fmt.Sprintf(". If they are lost for good, one of %s can open a new era", userNames(who)), out
}

// goOnWith proposes modules for a new era: of those on the list that spoke the first,
// or three where there are as many, for two make nothing final when one is lost. If none
// did, that of our own server, or another one that is in the room.
func (r *room) goOnWith(spoke []string, policy *rooms.Policy, own string) []string {
	spoke = slices.DeleteFunc(slices.Clone(spoke), func(s string) bool { return !plainServer(s) })
	switch {
	case len(spoke) >= 3:
		return spoke[:3]
	case len(spoke) > 0:
		return spoke[:1]
	}
	var out []string
	for _, m := range r.modules() {
		if slices.ContainsFunc(policy.Sequencers, func(s federation.Sequencer) bool { return s.Server == m.Server }) {
			continue // silent
		}
		if m.Server == own {
			return []string{own}
		}
		if plainServer(m.Server) {
			out = append(out, m.Server)
		}
	}
	return out[:min(1, len(out))]
}

// command names a verb of mls-proxy for a room. It is made to be pasted into a shell, and
// the room's id is what the one who made the room made up.
func command(verb string, room id.RoomID, servers ...string) string {
	if !plainRoom(room) {
		return fmt.Sprintf("the verb %s of mls-proxy (the room's id holds characters that a shell may run, so the command is not shown)", verb)
	}
	return strings.Join(append([]string{fmt.Sprintf("mls-proxy %s '%s'", verb, room)}, servers...), " ")
}

// plainServer tells whether a text is of the form of a server name and means nothing to a
// shell. A policy may hold any.
func plainServer(s string) bool {
	return s != "" && s[0] != '-' && onlyOf(s, "-.:[]")
}

// plainRoom tells whether a room id means nothing to a shell within quotation marks.
func plainRoom(room id.RoomID) bool {
	s, ok := strings.CutPrefix(string(room), "!")
	return ok && s != "" && onlyOf(s, "-.:[]_~=+/")
}

// onlyOf tells whether a text holds ASCII letters, digits and some other characters alone.
func onlyOf(s, more string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(more, c)
	})
}

// serverNames quotes what is no name of a server.
func serverNames(servers []string) string {
	var out []string
	for _, s := range servers {
		if !plainServer(s) {
			s = strconv.QuoteToASCII(s)
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

// maxNamed bounds the users that a text names.
const maxNamed = 5

func userNames(users []id.UserID) string {
	var out []string
	for _, u := range users[:min(len(users), maxNamed)] {
		out = append(out, u.String())
	}
	return strings.Join(out, ", ")
}

// maxAge bounds how long ago something counts as sent.
const maxAge = 100 * 24 * time.Hour

// hear notes that the bot of a module sent something, so long ago: what comes late, as to a
// device that was away, may be from before the module was lost. Only bots that are in the
// room count, so that the room bounds what is kept.
func (r *room) hear(sender id.UserID, now, age time.Duration) {
	if !r.isModule(sender) || r.state.membership(sender) != rooms.MembershipJoin {
		return
	}
	if r.heard == nil {
		r.heard = map[id.UserID]time.Duration{}
	}
	if at, ok := r.heard[sender]; !ok || at < now-age {
		r.heard[sender] = now - age
	}
}

// watchStandstill tells who may open an era, once for each final commit, that the
// room stands still, with the command that helps.
func (c *Client) watchStandstill(r *room) {
	if text, what := c.standing(r); text != "" && r.mayOpenEra(c.UserID()) && !r.rec.NewEra && r.rec.HeirsEra == nil {
		c.warn(r, "standstill/"+r.machine.NewestFinal().String(), &Warning{Rule: ruleStandstill, Kind: StandstillWarning, Text: text, Standstill: what})
	}
}

// mayOpenEra tells whether a user is an admin, or an heir.
func (r *room) mayOpenEra(user id.UserID) bool {
	e := r.head()
	if e == nil {
		return false
	}
	policy, err := e.policy()
	return err == nil && (policy.IsAdmin(user) || policy.IsHeir(user))
}

// standstillAt is when watchStandstill has to look; 0: nothing waits, or it has.
func (c *Client) standstillAt(r *room) time.Duration {
	if r.machine == nil || r.machine.Stalled() == 0 || r.machine.HeirsDue() {
		return 0
	}
	policy, _ := r.machine.PolicyAt(r.machine.NewestFinal())
	wait := policy.HeirsWait
	if wait <= 0 {
		wait = federation.DefaultHeirsWait
	}
	return c.mono() - r.machine.Stalled() + wait
}
