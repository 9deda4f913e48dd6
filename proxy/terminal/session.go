package terminal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/proxy/connect"
	"github.com/matrix-mls/matrix-mls/proxy/trust"
)

// storeName is the file of keys and messages in a state directory.
const storeName = "client.db"

// storeKeyName is the file of the key that seals it.
const storeKeyName = "store.key"

// settleTime is how long a verb waits for what it began.
const settleTime = 90 * time.Second

// session is the open state of a device. Several verbs may share it.
type session struct {
	dir   string
	log   zerolog.Logger
	st    *store.Store
	ident *identity.Identity
	// through is the way to the homeserver, nil where it is another's.
	through *connect.Presence

	mu      sync.Mutex
	cli     *client.Client
	subs    map[chan client.Update]context.Context
	stopped bool
}

// openStore opens the device's files; nobody need be logged in.
func openStore(ctx context.Context, c *call) (*session, error) {
	path := filepath.Join(c.state, storeName)
	key, err := store.LoadKey(store.KeyOptions{Path: filepath.Join(c.state, storeKeyName), Store: path, Getenv: c.env.Getenv})
	if err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, store.Options{Path: path, Key: key, Log: &c.log})
	clear(key)
	if err != nil {
		return nil, err
	}
	through := connect.NewPresence(connect.New())
	ident, err := identity.Open(ctx, identity.Options{Store: st, Log: &c.log, HTTP: &http.Client{Transport: through, Timeout: requestTimeout}})
	if err != nil {
		st.Close()
		return nil, err
	}
	return &session{dir: c.state, log: c.log, st: st, ident: ident, through: through, subs: make(map[chan client.Update]context.Context)}, nil
}

// openSession opens the files of a logged-in device.
func openSession(ctx context.Context, c *call) (*session, error) {
	if _, err := os.Stat(filepath.Join(c.state, storeName)); errors.Is(err, fs.ErrNotExist) {
		return nil, identity.ErrNotLoggedIn // and nothing is made
	}
	s, err := openStore(ctx, c)
	if err != nil {
		return nil, err
	}
	if !s.ident.LoggedIn() {
		s.close()
		return nil, identity.ErrNotLoggedIn
	}
	return s, nil
}

func (s *session) close() {
	s.mu.Lock()
	cli := s.cli
	s.stopped = true
	s.mu.Unlock()
	if cli != nil {
		_ = cli.Close()
	}
	if s.through != nil {
		s.through.CloseIdleConnections()
	}
	_ = s.st.Close()
}

// client starts the engine, once, and waits until it has caught up.
func (s *session) client(ctx context.Context) (*client.Client, error) {
	s.mu.Lock()
	cli := s.cli
	if cli == nil {
		var err error
		cli, err = client.Open(ctx, client.Options{Store: s.st, Identity: s.ident, Log: s.log, Handler: s.handle, AskHistory: true, Receipts: true})
		if err == nil {
			// The engine ends with the session, not with the verb that began it.
			err = cli.Start(context.WithoutCancel(ctx))
		}
		if err != nil {
			s.mu.Unlock()
			return nil, err
		}
		s.cli = cli
	}
	s.mu.Unlock()
	if err := s.reach(ctx, cli); err != nil {
		return nil, err
	}
	return cli, nil
}

// quietTime is how long nothing comes before it is asked why.
const quietTime = 5 * time.Second

// reach waits for the first /sync. Where the homeserver cannot be connected to, the
// network says so at once, and twice is enough.
func (s *session) reach(ctx context.Context, cli *client.Client) error {
	within := func(limit time.Duration, do func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return do(ctx)
	}
	var away error
	for range 2 {
		err := within(quietTime, cli.Synced)
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if away = within(quietTime, func(ctx context.Context) error { return s.why(ctx, err) }); !unconnected(away) {
			away = nil
			break
		}
	}
	if away != nil {
		return away
	}
	if err := within(settleTime, cli.Synced); err != nil {
		return s.why(ctx, err)
	}
	return nil
}

// unconnected tells whether an error is that no connection was made at all.
func unconnected(err error) bool {
	var untrusted *trust.Error
	var opErr *net.OpError
	var dnsErr *net.DNSError
	return errors.As(err, &untrusted) || errors.As(err, &dnsErr) || errors.As(err, &opErr) && opErr.Op == "dial"
}

// why replaces the end of a wait by the reason why nothing came.
func (s *session) why(ctx context.Context, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return err
	}
	if _, syncErr := s.ident.Sync(ctx, identity.SyncRequest{Filter: `{"room":{"rooms":[]}}`}); syncErr != nil {
		return syncErr
	}
	return err
}

// handle hands an update to every subscriber. It waits for slow ones.
func (s *session) handle(ctx context.Context, u client.Update) {
	s.mu.Lock()
	subs := make(map[chan client.Update]context.Context, len(s.subs))
	for ch, done := range s.subs {
		subs[ch] = done
	}
	s.mu.Unlock()
	for ch, done := range subs {
		select {
		case ch <- u:
		case <-done.Done():
		case <-ctx.Done():
		}
	}
}

// subscribe returns the updates from now on, until ctx ends.
func (s *session) subscribe(ctx context.Context) <-chan client.Update {
	ch := make(chan client.Update, 256)
	s.mu.Lock()
	s.subs[ch] = ctx
	s.mu.Unlock()
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subs, ch)
	})
	return ch
}

// watch tells until ctx ends when the homeserver, which has just answered, goes and
// comes back. In a session that is another's it tells nothing.
func (s *session) watch(ctx context.Context) (*url.URL, <-chan connect.State) {
	base, err := url.Parse(s.ident.Homeserver())
	if s.through == nil || err != nil {
		return base, nil
	}
	states := make(chan connect.State)
	go s.through.Run(ctx, base, true, func(st connect.State) {
		select {
		case states <- st:
		case <-ctx.Done():
		}
	})
	return base, states
}

// room finds the room that a person means: an id, an alias, or a name.
func (s *session) room(ctx context.Context, cli *client.Client, name string) (client.RoomInfo, error) {
	all, err := cli.Rooms(ctx)
	if err != nil {
		return client.RoomInfo{}, err
	}
	if name == "" {
		return client.RoomInfo{}, usagef("the name of the room is empty")
	}
	target := name
	if strings.HasPrefix(name, "#") {
		resolved, err := s.ident.Client().ResolveAlias(ctx, id.RoomAlias(name))
		if err != nil {
			return client.RoomInfo{}, s.beyond(fmt.Errorf("look up %s: %w", clean(name), err), name)
		}
		target = resolved.RoomID.String()
	}
	r, err := pick(all, target, name)
	if errors.Is(err, client.ErrNoRoom) {
		if plain := plainRoom(ctx, s.ident.Client(), target, name); plain != nil {
			return r, plain
		}
	}
	return r, err
}

// plainRoomError is [client.ErrNotMLS] of a room that the user is in and that the
// engine does not follow.
type plainRoomError struct{ room id.RoomID }

func (e *plainRoomError) Error() string { return e.room.String() + " is not an MLS room" }
func (e *plainRoomError) Unwrap() error { return client.ErrNotMLS }

// plainLooks is how many rooms' names are asked for at most.
const plainLooks = 500

// plainRoom finds, by id or name, a room that the user is in and that is no MLS
// room. One whose name another has too is not found. It returns nil where there is
// none, or the homeserver does not say.
func plainRoom(ctx context.Context, hs *mautrix.Client, target, name string) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	joined, err := hs.JoinedRooms(ctx)
	if err != nil {
		return nil
	}
	var found []id.RoomID
	for i, room := range joined.JoinedRooms {
		if room.String() == target {
			return &plainRoomError{room}
		}
		if strings.HasPrefix(target, "!") || i >= plainLooks {
			continue
		}
		var content event.RoomNameEventContent
		if hs.StateEvent(ctx, room, event.StateRoomName, "", &content) == nil && strings.EqualFold(content.Name, name) {
			found = append(found, room)
		}
	}
	if len(found) != 1 {
		return nil
	}
	return &plainRoomError{found[0]}
}

// pick finds a room by id or name. A room that the user is out of goes by its
// name where no other has it: what is asked of it is refused for that reason.
func pick(all []client.RoomInfo, target, name string) (client.RoomInfo, error) {
	var found, left []client.RoomInfo
	for _, r := range all {
		switch {
		case r.ID.String() == target:
			return r, nil
		case !strings.EqualFold(r.Name, name):
		case out(r):
			left = append(left, r)
		default:
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		found = left
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return client.RoomInfo{}, fmt.Errorf("%w: %s", client.ErrNoRoom, clean(name))
	}
	return client.RoomInfo{}, failf(ExitUsage, "name it by its id: mls-proxy rooms", "%d rooms are called %q", len(found), clean(name))
}

// out tells whether the user left a room or was removed from it.
func out(r client.RoomInfo) bool { return r.Membership == "leave" || r.Membership == "ban" }

// settle waits until what a verb began in a room is done.
func (s *session) settle(ctx context.Context, cli *client.Client, room id.RoomID) error {
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	return cli.Settle(wait, room)
}

// title is what a room is called.
func title(r client.RoomInfo) string {
	if r.Name != "" {
		return clean(r.Name)
	}
	return r.ID.String()
}

// path makes a path of the caller's absolute.
func (env *Env) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(env.Cwd, p)
}
