package client

import (
	"encoding/json"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
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

// takeAdmission keeps an admission that somebody posted. Anybody in the room
// can post one, so one that cannot be used never takes the place of one that
// can: checked against the group, or, before this device is in it, by whether
// the one who invited us sent it. Where there are many, only those are taken
// that can be used.
func (c *Client) takeAdmission(r *room, a *rooms.Admission, sender id.UserID) {
	known, ok := r.rec.Admissions[a.User]
	if ok && !c.betterAdmission(r, &known, a, sender) {
		return
	}
	own := a.User == c.UserID()
	if !ok && !own && len(r.rec.Admissions) >= c.fewAdmissions() && !c.usable(r, a) {
		return
	}
	if !c.admit(r, a, own) {
		return
	}
	if own {
		r.rec.Admitter = sender
	}
}

func (c *Client) betterAdmission(r *room, known, a *rooms.Admission, sender id.UserID) bool {
	e := r.head()
	if e == nil {
		return sender == r.rec.Inviter || r.rec.Inviter == ""
	}
	policy, err := rooms.PolicyOf(e.group)
	if err != nil {
		return false
	}
	since := func(user id.UserID, since federation.Ref) bool { return c.removedSince(r, user, since) }
	if _, err := rooms.VerifyAdmission(e.group, policy, a, since); err == nil {
		return true
	}
	_, err = rooms.VerifyAdmission(e.group, policy, known, since)
	return err != nil // neither is good now: the signer may come with the next epoch
}

// fewAdmissions is how many are kept of whatever kind: the signer may come with the next epoch, and who was added may have
// to be added again.
func (c *Client) fewAdmissions() int { return c.limits.Admissions / 16 }

// usable tells whether an admission can be used in the head's epoch.
func (c *Client) usable(r *room, a *rooms.Admission) bool {
	e := r.head()
	if e == nil {
		return false
	}
	policy, err := rooms.PolicyOf(e.group)
	if err != nil {
		return false
	}
	_, err = rooms.VerifyAdmission(e.group, policy, a, func(user id.UserID, since federation.Ref) bool { return c.removedSince(r, user, since) })
	return err == nil
}

// admit keeps an admission, and tells whether there was a place for it. What this device made itself, or what lets its own
// user in, takes the place of another's if there is none.
func (c *Client) admit(r *room, a *rooms.Admission, must bool) bool {
	if r.rec.Admissions == nil {
		r.rec.Admissions = map[id.UserID]rooms.Admission{}
	}
	if _, known := r.rec.Admissions[a.User]; !known && len(r.rec.Admissions) >= c.limits.Admissions {
		if !must {
			return false
		}
		delete(r.rec.Admissions, c.leastWanted(r))
	}
	r.rec.Admissions[a.User] = *a
	return true
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
			delete(r.rec.Admissions, user)
		}
	}
	r.sweepAt = len(r.rec.Admissions) + c.fewAdmissions() // the others are asked again after as many more
}
