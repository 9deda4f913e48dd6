package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/mls"
)

// A Device is one device of a user: a state directory, an identity, and a running client.
type Device struct {
	*client.Client
	Identity *identity.Identity
	Name     string // such as alice-laptop
	User     lab.User
	Server   *lab.Server
	Recovery string // the user's recovery key, where this device made it

	dir     string
	st      *store.Store
	log     *os.File
	suites  []mls.CipherSuite
	through func(client.Transport) client.Transport
	http    *http.Client
	tells   bool
	journal *journal
	skipped atomic.Int64 // of the client's monotonic clock

	mu      sync.Mutex
	updates []client.Update
	came    chan struct{} // closed and replaced when an update comes
}

// DeviceOptions says how a device comes to be.
type DeviceOptions struct {
	// RecoveryKey cross-signs a further device of a user. Without one, the device sets cross-signing up.
	RecoveryKey string
	// Unsigned leaves the device without a cross-signature.
	Unsigned bool
	// Suites it offers; nil: all.
	Suites []mls.CipherSuite
	// Through puts something between the client and its homeserver; nil: nothing.
	Through func(client.Transport) client.Transport
	// Receipts has it send delivery receipts, and ask for what does not come.
	Receipts bool
	// HTTP makes the requests; nil: a client of the device's own.
	HTTP *http.Client
}

// NewDevice logs a user in on a new device, makes it cross-signed, and starts its client. The account is made if it is
// not there.
func (w *World) NewDevice(ctx context.Context, server, localpart, name string, o DeviceOptions) (*Device, error) {
	s := w.Server(server)
	user, ok := s.Users[localpart]
	if !ok {
		var err error
		if user, err = w.AddUser(ctx, server, localpart); err != nil {
			return nil, err
		}
	}
	return w.NewDeviceOf(ctx, server, user, name, o)
}

// NewDeviceOf does the same for an account that the caller has made. Several may be made at the same time.
func (w *World) NewDeviceOf(ctx context.Context, server string, user lab.User, name string, o DeviceOptions) (*Device, error) {
	s := w.Server(server)
	d := w.newDevice(s, user, name, o)
	if err := d.open(ctx); err != nil {
		return nil, err
	}
	err := d.Identity.LoginPassword(ctx, identity.Login{Homeserver: s.BaseURL, User: user.UserID, DeviceName: name}, user.Password)
	switch {
	case err != nil || o.Unsigned:
	case o.RecoveryKey != "":
		err = d.Identity.Recover(ctx, o.RecoveryKey)
	default:
		d.Recovery, err = d.Identity.Bootstrap(ctx, identity.UIA{Password: user.Password}, "")
	}
	if err == nil {
		err = d.run(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("e2e: device %s of %s: %w", name, user.UserID, err), d.Stop())
	}
	return d, nil
}

func (w *World) newDevice(s *lab.Server, user lab.User, name string, o DeviceOptions) *Device {
	return &Device{
		Name: name, User: user, Server: s, dir: filepath.Join(w.Dir(), "clients", name), suites: o.Suites, through: o.Through, http: o.HTTP, tells: o.Receipts,
		journal: &journal{since: w.Since},
	}
}

// ReopenDevice starts the client of a device that a program before this one made with NewDevice in the same work
// directory. It keeps the user's password and recovery key to itself: the caller who needs them has written them down.
func (w *World) ReopenDevice(ctx context.Context, server string, user lab.User, name string, o DeviceOptions) (*Device, error) {
	d := w.newDevice(w.Server(server), user, name, o)
	err := d.open(ctx)
	if err == nil {
		err = d.run(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("e2e: reopen device %s of %s: %w", name, user.UserID, err), d.Stop())
	}
	return d, nil
}

// open opens the device's store and identity; the account may be there already or not.
func (d *Device) open(ctx context.Context) error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("e2e: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(d.dir, "client.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("e2e: %w", err)
	}
	d.log = log
	if err := d.journal.open(d.dir); err != nil {
		return errors.Join(err, d.Stop())
	}
	// Laid out as mls-proxy does, which can go on with the state.
	path := filepath.Join(d.dir, "client.db")
	key, err := store.LoadKey(store.KeyOptions{Path: filepath.Join(d.dir, "store.key"), Store: path})
	if err == nil {
		d.st, err = store.Open(ctx, store.Options{Path: path, Key: key})
	}
	if err == nil {
		logger := d.logger()
		d.Identity, err = identity.Open(ctx, identity.Options{Store: d.st, Log: &logger, Suites: d.suites, HTTP: d.http})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("e2e: open the device %s: %w", d.Name, err), d.Stop())
	}
	return nil
}

func (d *Device) logger() zerolog.Logger {
	return zerolog.New(d.log).Level(zerolog.TraceLevel).With().Timestamp().Logger()
}

func (d *Device) run(ctx context.Context) error {
	if d.came == nil {
		d.came = make(chan struct{})
	}
	began := time.Now()
	o := client.Options{
		Store: d.st, Identity: d.Identity, Log: d.logger(), Handler: d.handle, Receipts: d.tells,
		Monotonic: func() time.Duration { return time.Since(began) + time.Duration(d.skipped.Load()) },
	}
	if d.through != nil {
		o.Transport = d.through(client.NewTransport(d.Identity.Client()))
	}
	c, err := client.Open(ctx, o)
	if err != nil {
		return err
	}
	d.Client = c
	d.journal.note(Entry{Kind: Opened, Sender: d.UserID(), Device: d.DeviceID()})
	if err := c.Start(context.WithoutCancel(ctx)); err != nil { // until Stop
		return err
	}
	return c.Synced(ctx)
}

func (d *Device) handle(_ context.Context, u client.Update) {
	d.journal.noteUpdate(u)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.updates = append(d.updates, u)
	close(d.came)
	d.came = make(chan struct{})
}

// Stop ends the device's client and closes its state. Restart brings it back.
func (d *Device) Stop() error {
	var err error
	if d.Client != nil {
		err = d.Client.Close()
		d.Client = nil
		d.journal.note(Entry{Kind: Closed})
	}
	if d.st != nil {
		err = errors.Join(err, d.st.Close())
		d.st = nil
	}
	if d.log != nil {
		err = errors.Join(err, d.log.Close())
		d.log = nil
	}
	return errors.Join(err, d.journal.close())
}

// Restart runs the device again from what it has on disk.
func (d *Device) Restart(ctx context.Context) error {
	if d.Client != nil {
		if err := d.Stop(); err != nil {
			return err
		}
	}
	if err := d.open(ctx); err != nil {
		return err
	}
	return d.run(ctx)
}

// Skip sets the client's monotonic clock forward, for what a person would wait for; it looks at its clock when something
// comes next.
func (d *Device) Skip(t time.Duration) { d.skipped.Add(int64(t)) }

// StateDir is where the device keeps its state, in the form that mls-proxy reads, too.
func (d *Device) StateDir() string { return d.dir }

// Updates returns everything the device was told so far.
func (d *Device) Updates() []client.Update {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]client.Update(nil), d.updates...)
}

// Wait blocks until an update, old or new, fits, and returns it.
func (d *Device) Wait(ctx context.Context, what string, fits func(client.Update) bool) (client.Update, error) {
	for seen := 0; ; {
		d.mu.Lock()
		list, came := d.updates, d.came
		d.mu.Unlock()
		for ; seen < len(list); seen++ {
			if fits(list[seen]) {
				return list[seen], nil
			}
		}
		select {
		case <-came:
		case <-ctx.Done():
			return nil, fmt.Errorf("e2e: %s waited for %s: %w; what came: %s", d.Name, what, ctx.Err(), d.summary())
		}
	}
}

// WaitText waits for a message with that body in the room.
func (d *Device) WaitText(ctx context.Context, room id.RoomID, text string) (*client.Message, error) {
	u, err := d.Wait(ctx, fmt.Sprintf("the message %q", text), func(u client.Update) bool {
		m, ok := u.(*client.Message)
		return ok && m.Room == room && m.Body() == text
	})
	if err != nil {
		return nil, err
	}
	return u.(*client.Message), nil
}

// WaitEpoch waits until the device holds an epoch of the room for which the condition is true.
func (d *Device) WaitEpoch(ctx context.Context, room id.RoomID, what string, fits func(*client.EpochChanged) bool) (*client.EpochChanged, error) {
	u, err := d.Wait(ctx, what, func(u client.Update) bool {
		e, ok := u.(*client.EpochChanged)
		return ok && e.Room == room && fits(e)
	})
	if err != nil {
		return nil, err
	}
	return u.(*client.EpochChanged), nil
}

// Has reports whether the device was told a message with that body.
func (d *Device) Has(room id.RoomID, text string) bool {
	for _, u := range d.Updates() {
		if m, ok := u.(*client.Message); ok && m.Room == room && m.Body() == text {
			return true
		}
	}
	return false
}

// summary names the last updates, for a message about one that did not come.
func (d *Device) summary() string {
	var out string
	list := d.Updates()
	for _, u := range list[max(0, len(list)-12):] {
		switch u := u.(type) {
		case *client.Message:
			out += fmt.Sprintf("message %q of %s in epoch %d; ", u.Body(), u.Sender, u.Epoch)
		case *client.EpochChanged:
			out += fmt.Sprintf("epoch %d by %s (+%d -%d); ", u.Epoch, u.Author, len(u.Added), len(u.Removed))
		default:
			out += fmt.Sprintf("%T %+v; ", u, u)
		}
	}
	return out + fmt.Sprintf("%d in all", len(list))
}

// Soon is how long a story waits for something that should happen at once, on a machine with other work.
const Soon = 3 * time.Minute

// Kept is a copy of a device's group states, as a dishonest owner would have made: it outlives what the client forgets.
type Kept []*mls.Group

// Keep copies what the device holds of a room's group on disk.
func (d *Device) Keep(ctx context.Context, room id.RoomID) (Kept, error) {
	epochs, err := d.st.Epochs(ctx, room)
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	var kept Kept
	for _, e := range epochs {
		g, err := d.loadGroup(ctx, room, e.Ref)
		if err != nil {
			return nil, err
		}
		kept = append(kept, g)
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("e2e: %s keeps no state of %s: a test of what it opens would show nothing", d.Name, room)
	}
	return kept, nil
}

// loadGroup reads one of the group states that the device holds.
func (d *Device) loadGroup(ctx context.Context, room id.RoomID, ref []byte) (*mls.Group, error) {
	full, err := d.st.Epoch(ctx, room, ref)
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	stored := mls.StoredGroup{Head: full.State}
	if stored.Tree, stored.Deltas, _, _, err = d.st.Tree(ctx, room, ref); err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	pages, err := d.st.RatchetPages(ctx, room, ref)
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	for _, p := range pages {
		stored.Pages = append(stored.Pages, mls.RatchetPage{ID: p.ID, Data: p.Data})
	}
	g, err := stored.Load(nil)
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	return g, nil
}

// Opens reports whether any of the states opens an MLS message.
func (k Kept) Opens(message []byte) (bool, error) {
	msg, err := mls.ParseMessage(message)
	if err != nil {
		return false, fmt.Errorf("e2e: %w", err)
	}
	for _, g := range k {
		if _, err := g.Process(msg); err == nil {
			return true, nil
		}
	}
	return false, nil
}
