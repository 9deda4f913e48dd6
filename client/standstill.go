package client

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// ruleStandstill is the rule of a room in which nothing becomes final any more.
const ruleStandstill = "client/nothing-final"

// standstill says what a person can do about a room in which nothing became final
// for the policy's heirs_wait, on this device's monotonic clock, although something
// waits; "" while that is not so. No device can tell modules that are lost from
// modules that are cut off, so that no program opens an era by itself (decision 0025).
func (c *Client) standstill(r *room) string {
	if r.machine == nil || r.rec.Phase != phaseMember || !r.machine.HeirsDue() {
		return ""
	}
	e := r.sendEpoch()
	if e == nil {
		e = r.head()
	}
	if e == nil {
		return ""
	}
	if _, ok := r.machine.Unvouched(); ok {
		return "" // an admin is told of that
	}
	policy, err := rooms.PolicyOf(e.group)
	if err != nil {
		return ""
	}
	stalled := r.machine.Stalled()
	var spoke, silent []string
	for _, s := range policy.Sequencers {
		if at, ok := r.heard[id.UserID(s.User)]; ok && at >= c.mono()-stalled {
			spoke = append(spoke, s.Server)
		} else {
			silent = append(silent, s.Server)
		}
	}
	text := fmt.Sprintf("nothing became final for %v although a change of the group waits: ", stalled.Truncate(time.Minute))
	if len(spoke) >= federation.List(policy.Sequencers).Quorum() {
		return text + fmt.Sprintf("most of its modules are there; what it waits for is in mls-proxy epochs '%s'", r.id)
	}
	text += fmt.Sprintf("nothing was heard meanwhile from the modules of %s. It goes on by itself once most of the room's modules are there again", strings.Join(silent, ", "))
	servers := r.goOnWith(spoke, policy, serverOf(c.UserID()))
	command := fmt.Sprintf("mls-proxy era '%s' %s", r.id, strings.Join(servers, " "))
	if len(servers) == 0 {
		command = fmt.Sprintf("mls-proxy era '%s' SERVER, with the name of a server that has a module", r.id)
	}
	switch {
	case policy.IsAdmin(c.UserID()):
		return text + ". If they are lost for good, you, an admin, go on without them: " + command
	case policy.IsHeir(c.UserID()):
		return text + ". If they are lost for good, and no admin is there, you, an heir, go on without them: " + command
	}
	who := slices.Clone(policy.Admins)
	for _, h := range policy.Heirs {
		who = append(who, id.UserID(h.User))
	}
	return text + fmt.Sprintf(". If they are lost for good, one of %s can open a new era", userNames(who))
}

// goOnWith proposes modules for a new era: of those on the list that spoke the first,
// or three where there are as many, for two make nothing final when one is lost. If none
// did, that of our own server, or another one that is in the room.
func (r *room) goOnWith(spoke []string, policy *rooms.Policy, own string) []string {
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
		out = append(out, m.Server)
	}
	return out[:min(1, len(out))]
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

// hear notes that the bot of a module sent something just now. Only bots that are in
// the room count, so that the room bounds what is kept.
func (r *room) hear(sender id.UserID, now time.Duration) {
	if !r.isModule(sender) || r.state.membership(sender) != rooms.MembershipJoin {
		return
	}
	if r.heard == nil {
		r.heard = map[id.UserID]time.Duration{}
	}
	r.heard[sender] = now
}

// watchStandstill tells who may open an era, once for each final commit, that the
// room stands still, with the command that helps.
func (c *Client) watchStandstill(r *room) {
	if text := c.standstill(r); text != "" && r.mayOpenEra(c.UserID()) && !r.rec.NewEra && r.rec.HeirsEra == nil {
		c.warn(r, "standstill/"+r.machine.NewestFinal().String(), &Warning{Rule: ruleStandstill, Text: text})
	}
}

// mayOpenEra tells whether a user is an admin, or an heir.
func (r *room) mayOpenEra(user id.UserID) bool {
	e := r.head()
	if e == nil {
		return false
	}
	policy, err := rooms.PolicyOf(e.group)
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
