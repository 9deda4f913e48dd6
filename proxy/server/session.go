package server

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/proxy/route"
)

// whoPath is where a homeserver says whose a token is.
const whoPath = "/_matrix/client/v3/account/whoami"

// session is one client's login, made through this proxy.
type session struct {
	user    id.UserID
	device  id.DeviceID
	token   string
	tag     [32]byte // SHA-256 of the token
	account *account.Account
}

// owner is whose a token is.
type owner struct {
	user   id.UserID
	device id.DeviceID
	asked  time.Time // when the homeserver was asked
	asking bool      // it is asked again
}

// sessions remembers whose tokens are, by their hashes: the homeserver is asked
// again after a while.
type sessions struct {
	mu     sync.Mutex
	owners map[[32]byte]owner
	order  [][32]byte
}

const (
	ownerTime  = 30 * time.Second
	ownerFresh = 15 * time.Second // from then on it is asked beside what goes on
	maxOwners  = 1000
)

func newSessions() *sessions { return &sessions{owners: map[[32]byte]owner{}} }

// get returns whose a token is, if that is known, and whether the caller is to ask again.
func (s *sessions) get(tag [32]byte) (o owner, ok, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok = s.owners[tag]
	age := time.Since(o.asked)
	if again = ok && !o.asking && age > ownerFresh && age < ownerTime; again {
		next := o
		next.asking = true
		s.owners[tag] = next
	}
	return o, ok && age < ownerTime, again
}

func (s *sessions) put(tag [32]byte, o owner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.owners[tag]; !known {
		s.order = append(s.order, tag)
	}
	s.owners[tag] = o
	for len(s.order) > maxOwners {
		delete(s.owners, s.order[0])
		s.order = s.order[1:]
	}
}

// renew notes what was asked again of a token, unless it was dropped meanwhile.
func (s *sessions) renew(tag [32]byte, o owner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.owners[tag]; known {
		s.owners[tag] = o
	}
}

func (s *sessions) drop(tag [32]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.owners, tag)
	s.order = slices.DeleteFunc(s.order, func(t [32]byte) bool { return t == tag })
}

func sessionTag(token string) [32]byte { return sha256.Sum256([]byte(token)) }

// errAnswered says that the client has its answer already.
var errAnswered = errors.New("server: answered")

// owner asks the homeserver whose a token is. A refusal of the homeserver's is
// handed on to the client.
func (s *Server) owner(ctx context.Context, w http.ResponseWriter, token string) (owner, error) {
	tag := sessionTag(token)
	o, ok, again := s.sessions.get(tag)
	if again { // nobody waits for it
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ownerTime-ownerFresh)
			defer cancel()
			switch resp, o, err := s.whose(ctx, token); {
			case err != nil: // whoever comes when it is too old asks
			case resp.status == http.StatusOK:
				s.sessions.renew(tag, o)
			case resp.status == http.StatusUnauthorized:
				s.sessions.drop(tag)
			}
		}()
	}
	if ok {
		return o, nil
	}
	resp, o, err := s.whose(ctx, token)
	if err != nil {
		return owner{}, err
	}
	if resp.status != http.StatusOK {
		resp.pass(w)
		return owner{}, errAnswered
	}
	s.sessions.put(tag, o)
	return o, nil
}

// whose asks the homeserver whose a token is.
func (s *Server) whose(ctx context.Context, token string) (*reply, owner, error) {
	resp, err := s.ask(ctx, http.MethodGet, whoPath, nil, token, nil)
	if err != nil || resp.status != http.StatusOK {
		return resp, owner{}, err
	}
	var who struct {
		User   id.UserID   `json:"user_id"`
		Device id.DeviceID `json:"device_id"`
	}
	if err := json.Unmarshal(resp.body, &who); err != nil || who.User == "" || who.Device == "" {
		return nil, owner{}, errors.New("server: the homeserver does not say whose a token is")
	}
	return resp, owner{user: who.User, device: who.Device, asked: time.Now()}, nil
}

// withSession serves what needs the account's MLS device.
func (s *Server) withSession(w http.ResponseWriter, r *http.Request, m route.Match) {
	token := tokenOf(r.Header, r.URL.Query())
	if token == "" && m.Kind == route.DownloadMedia {
		s.ciphertext(w, r, m) // what is encrypted stays so
		return
	}
	if token == "" {
		refuse(w, http.StatusUnauthorized, "M_MISSING_TOKEN", "log in first")
		return
	}
	o, err := s.owner(r.Context(), w, token)
	if errors.Is(err, errAnswered) {
		return
	}
	if err != nil {
		s.failed(w, r, err)
		return
	}
	a, err := s.o.Accounts.Get(o.user)
	if err == nil {
		var has bool
		if has, err = a.Has(r.Context(), o.device); err == nil && !has {
			err = account.ErrNoDevice
		}
	}
	if errors.Is(err, account.ErrNoDevice) {
		refuse(w, http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "this session was not made through the proxy, which has no MLS device for it: log out and in again through the proxy")
		return
	}
	if errors.Is(err, account.ErrUnavailable) {
		refuse(w, http.StatusServiceUnavailable, "M_UNKNOWN", "the MLS device of this account cannot be used now; what the proxy printed when it started says why")
		return
	}
	if err != nil {
		s.o.Log.Err(err).Msg("The state of an account cannot be read")
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the state of this account cannot be read")
		return
	}
	s.serve(w, r, m, &session{user: o.user, device: o.device, token: token, tag: sessionTag(token), account: a})
}

// serve does what a path asks for.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, m route.Match, sess *session) {
	if _, notice := rewrite.Noticed(m.Params["event"]); notice {
		s.onNotice(w, m)
		return
	}
	room := id.RoomID(m.Params["room"])
	switch m.Kind {
	case route.Sync:
		s.sync(w, r, sess)
	case route.SlidingSync:
		s.slidingSync(w, r, sess)
	case route.Filter:
		s.filter(w, r, sess)
	case route.FilterOf:
		s.filterOf(w, r, sess, m)
	case route.Marker:
		s.marker(w, r, sess, m)
	case route.Messages:
		s.messages(w, r, sess, room)
	case route.Context:
		s.context(w, r, sess, room)
	case route.Event:
		s.event(w, r, sess, room)
	case route.Relations:
		s.relations(w, r, sess, m)
	case route.AtTime:
		s.atTime(w, r, sess, room)
	case route.Threads:
		s.threads(w, r, sess, room)
	case route.Members:
		s.list(w, r, sess, room, "chunk")
	case route.Notifications:
		s.notifications(w, r, sess)
	case route.Search:
		s.search(w, r, sess)
	case route.State:
		s.list(w, r, sess, room, "")
	case route.StateEvent:
		s.stateEvent(w, r, sess, m)
	case route.Hierarchy:
		s.hierarchy(w, r, sess)
	case route.Send:
		s.send(w, r, sess, m)
	case route.SetState:
		s.setState(w, r, sess, m)
	case route.SetProfile:
		s.setProfile(w, r, sess)
	case route.Redact:
		s.stream.ServeHTTP(w, r)
	case route.Invite, route.Join, route.Leave, route.Kick, route.Ban:
		s.member(w, r, sess, m)
	case route.Forget:
		s.forget(w, r, sess, room)
	case route.CreateRoom:
		s.createRoom(w, r, sess)
	case route.Upgrade:
		s.upgrade(w, r, sess, room)
	case route.UploadMedia:
		s.upload(w, r, sess)
	case route.DownloadMedia:
		s.download(w, r, sess, m)
	case route.UploadKeys:
		s.uploadKeys(w, r, sess, sess.account)
	default:
		refuse(w, http.StatusNotFound, "M_UNRECOGNIZED", fmt.Sprintf("%s %s is not served", r.Method, m.Path))
	}
}
