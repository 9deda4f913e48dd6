package server

import (
	"slices"
	"sync"
	"time"
)

const (
	registrationTime = 15 * time.Minute // from one request of it to the next
	maxRegistrations = 100
	maxRegistration  = 1 << 10 // of a session's name, and of a password
)

// registration is what the first requests of one said, which later ones need not
// say again: homeservers keep it with the session. So it is with a change of the
// password.
type registration struct {
	password string
	later    bool // the account is made without a login; or other sessions are to end
	until    time.Time
}

// registrations remembers, in memory alone and for a while, those that are under
// way, by the sessions of their authentication.
type registrations struct {
	mu    sync.Mutex
	begun map[string]registration
	order []string // oldest first
	timer bool     // one is set for the oldest
}

// keep remembers a registration that is under way.
func (r *registrations) keep(session, password string, later bool, now time.Time) {
	if session == "" || len(session) > maxRegistration || len(password) > maxRegistration || password == "" && !later {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(session)
	if r.begun == nil {
		r.begun = map[string]registration{}
	}
	r.begun[session] = registration{password, later, now.Add(registrationTime)}
	r.order = append(r.order, session)
	for len(r.order) > maxRegistrations {
		r.forget(r.order[0])
	}
	if !r.timer {
		r.timer = true
		time.AfterFunc(registrationTime, r.wake)
	}
}

// wake expires what is due though nobody asks.
func (r *registrations) wake() {
	now := time.Now()
	r.expire(now)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer = len(r.order) > 0; r.timer {
		time.AfterFunc(r.begun[r.order[0]].until.Sub(now), r.wake)
	}
}

// find finds what a registration said before, if it is known.
func (r *registrations) find(session string, now time.Time) (registration, bool) {
	r.expire(now)
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.begun[session]
	return known, ok
}

// done forgets a registration.
func (r *registrations) done(session string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(session)
}

// expire forgets the registrations that nobody went on with.
func (r *registrations) expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.order) > 0 && !now.Before(r.begun[r.order[0]].until) {
		r.forget(r.order[0])
	}
}

func (r *registrations) forget(session string) {
	if _, ok := r.begun[session]; ok {
		delete(r.begun, session)
		r.order = slices.DeleteFunc(r.order, func(s string) bool { return s == session })
	}
}
