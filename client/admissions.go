package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// noteAdmission keeps an admission that rides beside an invite. It is checked
// when it is used.
func (c *Client) noteAdmission(r *room, evt *Event) {
	var content map[string]json.RawMessage
	if json.Unmarshal(evt.Content, &content) != nil || content[rooms.KeyAdmission] == nil {
		return
	}
	admission, err := rooms.DecodeAdmission(content[rooms.KeyAdmission])
	if err != nil || admission.Room != r.id || string(admission.User) != *evt.StateKey {
		return
	}
	c.takeAdmission(r, admission, evt.Sender)
}

// takeAdmission keeps an admission that somebody posted, and beside it one of
// another inviter: who admits a user may leave before they come in, and with
// them goes their word. Anybody in the room can post one, so one that cannot be
// used never takes the place of one that can: checked against the group, or,
// before this device is in it, by whether the one who invited us sent it. Where
// there are many, only those are taken that can be used.
func (c *Client) takeAdmission(r *room, a *rooms.Admission, sender id.UserID) {
	known := r.admissionsOf(a.User)
	own := a.User == c.UserID()
	if i := slices.IndexFunc(known, func(k rooms.Admission) bool { return bytes.Equal(k.Sig, a.Sig) }); i >= 0 {
		if !own || r.head() != nil || sender != r.rec.Inviter {
			return
		}
		known = slices.Delete(known, i, i+1) // others have posted what is our inviter's
	}
	if !own && len(r.rec.Admissions)+len(r.rec.Others) >= c.fewAdmissions() && !c.usable(r, a) {
		if len(known) == 0 || slices.ContainsFunc(known, func(k rooms.Admission) bool { return c.usable(r, &k) }) {
			return
		} // else it is not worse than what is kept
	}
	all := append([]rooms.Admission{*a}, known...)
	if r.head() == nil && len(known) > 0 && r.rec.Inviter != "" && sender != r.rec.Inviter {
		all[0], all[1] = all[1], all[0]
	}
	first := c.admit(r, all, own)
	if own && first != nil && bytes.Equal(first.Sig, a.Sig) {
		r.rec.Admitter = sender
	}
}

// admissionsOf returns what is kept of a user's admissions: none, one, or two of
// different inviters, the one to be used first.
func (r *room) admissionsOf(user id.UserID) []rooms.Admission {
	a, ok := r.rec.Admissions[user]
	if !ok {
		return nil
	}
	if other, ok := r.rec.Others[user]; ok {
		return []rooms.Admission{a, other}
	}
	return []rooms.Admission{a}
}

// keepAdmissions sets what is kept of a user's admissions: two at the most.
// Nothing else changes them, so that what is as it was written is not looked
// through for every message.
func (r *room) keepAdmissions(user id.UserID, kept []rooms.Admission) {
	r.asWritten.lose(admissionsPart, othersPart)
	delete(r.rec.Admissions, user)
	delete(r.rec.Others, user)
	for i, m := range []*map[id.UserID]rooms.Admission{&r.rec.Admissions, &r.rec.Others} {
		if i >= len(kept) {
			return
		}
		if *m == nil {
			*m = map[id.UserID]rooms.Admission{}
		}
		(*m)[user] = kept[i]
	}
}

// rank picks, of a user's admissions, the newest first, the two to keep: those
// that are good on the head go before those that are not, of which the signer may
// come with the next epoch, and no inviter has both.
func (c *Client) rank(r *room, all []rooms.Admission) []rooms.Admission {
	by := make([]id.UserID, len(all)) // whose word it is, if it is good
	for i := range all {
		by[i], _ = c.admitter(r, &all[i])
	}
	var kept []int
	for _, good := range []bool{true, false} {
		for i := range all {
			if len(kept) == 2 || (by[i] != "") != good || slices.ContainsFunc(kept, func(k int) bool {
				return all[k].Leaf == all[i].Leaf || by[i] != "" && by[k] == by[i]
			}) {
				continue
			}
			kept = append(kept, i)
		}
	}
	out := make([]rooms.Admission, 0, len(kept))
	for _, i := range kept {
		out = append(out, all[i])
	}
	return out
}

// admitter returns whose word an admission is, if it can be used in the head's
// epoch.
func (c *Client) admitter(r *room, a *rooms.Admission) (id.UserID, error) {
	e := r.head()
	if e == nil {
		return "", ErrNoGroup
	}
	policy, err := e.policy()
	if err != nil {
		return "", err
	}
	return c.verifyAdmission(r, e, policy, a)
}

// verifyAdmission checks an admission against an epoch and what is known of
// Removes. It returns whose word it is.
func (c *Client) verifyAdmission(r *room, e *epoch, policy *rooms.Policy, a *rooms.Admission) (id.UserID, error) {
	return rooms.VerifyAdmission(e.group, policy, a, func(user id.UserID, since federation.Ref) bool { return c.removedSince(r, user, since) })
}

// fewAdmissions is how many are kept of whatever kind: the signer may come with the next epoch, and who was added may have
// to be added again.
func (c *Client) fewAdmissions() int { return c.limits.Admissions / 16 }

// usable tells whether an admission can be used in the head's epoch.
func (c *Client) usable(r *room, a *rooms.Admission) bool {
	_, err := c.admitter(r, a)
	return err == nil
}

// admit keeps the best of a user's admissions, the newest first, and returns the one to be used first, nil if there was no
// place. What this device made itself, or what lets its own user in, takes the place of another's if there is none.
func (c *Client) admit(r *room, all []rooms.Admission, must bool) *rooms.Admission {
	user := all[0].User
	if _, known := r.rec.Admissions[user]; !known && len(r.rec.Admissions) >= c.limits.Admissions+r.rec.Switched {
		if !must {
			return nil
		}
		r.keepAdmissions(c.leastWanted(r), nil)
	}
	kept := c.rank(r, all)
	r.keepAdmissions(user, kept)
	return &kept[0]
}

// letsIn returns the admission with which a user comes into an epoch, nil if there is none: the first one kept that is good
// there and does not name another key than the homeserver shows, if that was asked. The error says that one of them does.
// Whoever else lets them in then has to have known the key that is shown.
func (c *Client) letsIn(r *room, e *epoch, policy *rooms.Policy, user id.UserID) (*rooms.Admission, error) {
	list := c.devs[user]
	known := list != nil && r.devices[user]
	var good []rooms.Admission
	var other error // whom a member admitted is who holds this key, not whom a homeserver shows under that name later
	doubt := false
	for _, a := range r.admissionsOf(user) {
		if _, err := c.verifyAdmission(r, e, policy, &a); err != nil || r.objected(&a) {
			continue
		}
		if known {
			if err := list.CheckAdmission(&a); err != nil {
				doubt = true
				if list.MasterKey != "" { // else the homeserver has not got the keys yet: that is no other identity
					other = err
				}
				continue
			}
		}
		good = append(good, a)
	}
	for i := range good {
		if !doubt || good[i].MasterKey != "" {
			return &good[i], other
		}
	}
	return nil, other
}

// objection is what a member said against an admission that an own commit used.
type objection struct {
	ref     federation.Ref // the commit
	user    id.UserID
	several bool // it used others, too: the member does not say which of them is void
	counts  bool // the commit was accepted, and nobody vouches for it; or it is not the first such commit
	told    bool
}

// noteObjection is for a member's word that an own commit lets somebody in without a valid admission: who came later
// cannot have seen all that makes one void. Of a commit with several it does not say which, so they go one by one then.
// Of a commit that somebody vouched for it is not true.
func (c *Client) noteObjection(ctx context.Context, r *room, ref federation.Ref) error {
	if !r.machine.InDoubt(ref) {
		return nil
	}
	kept, err := c.storedCommit(ctx, r, ref)
	if err != nil {
		return err
	}
	msg, err := mls.ParseMessage(kept.Message)
	if err != nil {
		return nil
	}
	aad, err := rooms.DecodeCommitAAD(msg.AuthenticatedData())
	if err != nil {
		return nil
	}
	r.planned = false
	if r.objections == nil || len(r.objections)+len(aad.Admissions) > maxObjections {
		r.objections = map[string]objection{}
	}
	for _, a := range aad.Admissions {
		before, again := r.objections[string(a.Sig)]
		if again && before.ref == ref {
			continue
		}
		several := len(aad.Admissions) > 1 && (!again || before.several)
		r.objections[string(a.Sig)] = objection{ref: ref, user: a.User, several: several, counts: again && before.several == several}
	}
	return nil
}

// maxObjections bounds what is remembered of admissions that members call void, but for those of one commit.
const maxObjections = 256

// settleObjections forgets those to commits that were accepted, and vouched for or made final: they were not true. Of
// the others it tells a person once the room has gone on without the commit.
func (c *Client) settleObjections(r *room) {
	if r.machine == nil || len(r.objections) == 0 {
		return
	}
	for _, sig := range slices.Sorted(maps.Keys(r.objections)) {
		o := r.objections[sig]
		accepted := r.machine.Accepted(o.ref)
		if accepted && !r.machine.InDoubt(o.ref) || r.machine.Final(o.ref) {
			delete(r.objections, sig)
			r.planned = false
			continue
		}
		o.counts = o.counts || accepted
		if o.counts && !o.several && !o.told && !r.machine.Extends(r.machine.Head(), o.ref) {
			o.told = true
			c.warn(r, "void/"+o.ref.String(), &Warning{
				Sender: o.user, Rule: string(rooms.RuleAddWithoutAdmission), Kind: AdmissionWarning,
				Text: fmt.Sprintf("members say that %s was admitted no longer validly, as where they were removed since; this device does not let them in by that any more: invite or admit them again", o.user),
			})
		}
		r.objections[sig] = o
	}
}

// objected tells whether a member called an admission void, and that counts.
func (r *room) objected(a *rooms.Admission) bool {
	o, ok := r.objections[string(a.Sig)]
	return ok && o.counts && !o.several
}

// apart tells whether an admission rides alone, as it is one of several in a commit to which a member objected.
func (r *room) apart(a *rooms.Admission) bool {
	o, ok := r.objections[string(a.Sig)]
	return ok && o.counts && o.several
}

// leastWanted returns who loses their admission where there are too many: somebody who is neither in the room nor invited,
// if there is one. Their own device keeps it, and can come in by itself.
func (c *Client) leastWanted(r *room) id.UserID {
	users := make([]id.UserID, 0, len(r.rec.Admissions))
	for user := range r.rec.Admissions {
		if user != c.UserID() {
			users = append(users, user)
		}
	}
	slices.Sort(users)
	for _, user := range users {
		if !r.state.view.InRoom(user) {
			return user
		}
	}
	if len(users) == 0 {
		return ""
	}
	return users[0]
}

// sweepAdmissions forgets, once there are many, the admissions of users who are in the group for good: on the head, at the
// newest final, and in the oldest epoch of its chain that is held, so that a branch that parts later, or an era that
// overrides some finals, finds whom it has to add again. A device keeps its own user's, with which it may have to come in
// again.
func (c *Client) sweepAdmissions(r *room) {
	if len(r.rec.Admissions) < max(c.fewAdmissions(), r.sweepAt) {
		return
	}
	head, final := r.head(), r.epochs[r.machine.NewestFinal()]
	if head == nil || final == nil {
		return
	}
	oldest := final
	for ref, e := range r.epochs {
		if e.number < oldest.number && r.machine.Extends(final.ref, ref) {
			oldest = e
		}
	}
	in := map[id.UserID]int{}
	for i, e := range []*epoch{head, final, oldest} {
		for _, leaf := range rooms.GroupLeaves(e.group) {
			if in[leaf.Cred.User] == i {
				in[leaf.Cred.User] = i + 1
			}
		}
	}
	for user := range r.rec.Admissions {
		if in[user] == 3 && user != c.UserID() {
			r.keepAdmissions(user, nil)
		}
	}
	r.rec.Switched = min(r.rec.Switched, len(r.rec.Admissions))
	r.sweepAt = len(r.rec.Admissions) + c.fewAdmissions() // the others are asked again after as many more
}
