package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const suite = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519

// addsPerCommit is how many members a commit adds here: so that it fits into an event.
const addsPerCommit = 24

// device is a user's only device. The same users are in all rooms.
type device struct {
	cfg    *mls.Config
	cred   rooms.Credential
	key    mls.SignaturePrivateKey
	bundle *mls.KeyPackageBundle
}

func newDevice(n int) (*device, error) {
	d := &device{cfg: &mls.Config{Rand: rand.Reader, Authenticator: rooms.Authenticator{}}}
	var err error
	if d.key, err = mls.GenerateSignatureKey(suite, d.cfg.Rand); err != nil {
		return nil, err
	}
	d.cred = rooms.Credential{User: id.UserID(fmt.Sprintf("@user%d:%s", n, serverName)), Device: "DEVICE", Key: d.key.Public()}
	return d, d.fresh()
}

// fresh makes a new key package. Devices that nobody runs have one for all rooms, which no real one would; the module
// cannot tell.
func (d *device) fresh() (err error) {
	d.bundle, err = mls.NewKeyPackage(d.cfg, suite, d.key, rooms.LeafOptions(d.cred))
	return err
}

// room is a room as its creator and one other member, who vouches for the creator's commits, see it.
type room struct {
	id             id.RoomID
	creator, other *mls.Group
	head           federation.Ref
	event          id.EventID
	staged         *mls.StagedCommit     // posted, and not accepted yet
	ref            federation.Ref        // of that
	bundle         *mls.KeyPackageBundle // with which the other member was added
}

// crowd is everybody in all rooms.
type crowd struct {
	h       *homeserver
	devices []*device
	rooms   []*room

	mu    sync.Mutex // guards what follows
	keys  map[id.RoomID]*rooms.HeadContent
	byRef map[federation.Ref]*waiting
}

// waiting is a commit that the module has to accept.
type waiting struct {
	posted time.Time
	took   time.Duration
	done   chan struct{}
}

func newCrowd(h *homeserver, count, members int) (*crowd, error) {
	c := &crowd{h: h, keys: map[id.RoomID]*rooms.HeadContent{}, byRef: map[federation.Ref]*waiting{}}
	for n := range members {
		d, err := newDevice(n)
		if err != nil {
			return nil, err
		}
		c.devices = append(c.devices, d)
	}
	for n := range count {
		c.rooms = append(c.rooms, &room{id: id.RoomID(fmt.Sprintf("!room%d:%s", n, serverName))})
	}
	h.heard = c.hear
	return c, nil
}

// hear takes in what the module says. The homeserver's lock is held.
func (c *crowd) hear(ev *event) {
	if ev.Sender != bot {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch ev.Type {
	case rooms.TypeHead:
		if head, err := rooms.DecodeHead(ev.Content); err == nil {
			c.keys[ev.Room] = head
		}
	case rooms.TypeAccept:
		accept, err := rooms.DecodeAccept(ev.Content)
		if err != nil {
			return
		}
		if w := c.byRef[federation.Ref(accept.Ref)]; w != nil && w.took == 0 {
			w.took = time.Since(w.posted)
			close(w.done)
		}
	}
}

// invite makes a room of all users, who have joined it, and invites the bot.
func (c *crowd) invite(r *room) error {
	creator := c.devices[0].cred.User
	events := map[string]int{}
	for _, kind := range rooms.PowerLevelTypes() {
		events[kind] = 0
	}
	put := func(kind, key string, content any) error {
		_, err := c.h.add(r.id, creator, kind, &key, content)
		return err
	}
	err := errors.Join(
		put(rooms.TypeCreate, "", map[string]any{"creator": creator, rooms.KeyCreateAlgorithm: rooms.Algorithm, "room_version": "10"}),
		put(rooms.TypeMember, string(creator), map[string]any{"membership": "join"}),
		put(rooms.TypePowerLevels, "", map[string]any{"users": map[id.UserID]int{creator: 100}, "events": events}),
		put(rooms.TypeEncryption, "", map[string]any{"algorithm": rooms.Algorithm}))
	for _, d := range c.devices[1:] {
		_, joinErr := c.h.add(r.id, d.cred.User, rooms.TypeMember, new(string(d.cred.User)), map[string]any{"membership": "join"})
		err = errors.Join(err, joinErr)
	}
	return errors.Join(err, put(rooms.TypeMember, string(bot), map[string]any{"membership": "invite"}))
}

// introduced reports of how many rooms' bots the keys are known.
func (c *crowd) introduced() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.keys)
}

// found founds a room's group of the creator's device.
func (c *crowd) found(r *room) error {
	c.mu.Lock()
	head := c.keys[r.id]
	c.mu.Unlock()
	d := c.devices[0]
	policy := rooms.DefaultPolicy(r.id, d.cred.User, federation.Sequencer{Server: serverName, User: string(bot), ReceiptKey: head.ReceiptKey})
	sender, err := rooms.ModuleSender(bot, head, suite)
	if err != nil {
		return err
	}
	exts, err := rooms.GroupExtensions(policy, []mls.ExternalSender{sender})
	if err != nil {
		return err
	}
	if r.creator, err = mls.CreateGroup(d.cfg, suite, fmt.Appendf(nil, "%-32s", r.id), d.key, rooms.LeafOptions(d.cred), exts); err != nil {
		return err
	}
	info, err := r.creator.GroupInfo(mls.GroupInfoOptions{RatchetTree: true, ExternalPub: true})
	if err != nil {
		return err
	}
	m, err := mls.ParseMessage(info)
	if err != nil {
		return err
	}
	if r.head, err = rooms.RootRef(m); err != nil {
		return err
	}
	raw, err := rooms.Encode(&rooms.CommitContent{GroupInfo: info})
	if err != nil {
		return err
	}
	r.event, err = c.h.add(r.id, d.cred.User, rooms.TypeCommit, nil, raw)
	return err
}

// commit posts a commit of a room's creator that adds the given devices, or fresh keys if there are none.
func (c *crowd) commit(r *room, adds []*device) error {
	d := c.devices[0]
	aad := rooms.CommitAAD{Parent: r.head}
	opts := mls.CommitOptions{ForcePath: len(adds) == 0, WelcomeRatchetTree: true}
	for _, a := range adds {
		if a == c.devices[1] { // who joins here, and can join with a key package once
			if err := a.fresh(); err != nil {
				return err
			}
			r.bundle = a.bundle
		}
		admission, err := rooms.SignAdmission(r.creator, r.id, r.head, r.creator.OwnLeafIndex(), d.key, a.cred.User, nil)
		if err != nil {
			return err
		}
		aad.Admissions = append(aad.Admissions, *admission)
		opts.Proposals = append(opts.Proposals, mls.Add(a.bundle.KeyPackage()))
	}
	var err error
	if opts.AuthenticatedData, err = aad.Encode(); err != nil {
		return err
	}
	if r.staged, err = r.creator.Commit(opts); err != nil {
		return err
	}
	info, err := r.staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	if err != nil {
		return err
	}
	content := &rooms.CommitContent{Epoch: r.staged.Epoch(), Parent: rooms.Hash(r.head), ParentEvent: r.event}
	bundle := &rooms.CommitBundle{Message: r.staged.Message(), GroupInfo: info}
	if !bundle.Inline() {
		return fmt.Errorf("a commit of %d Adds does not fit into an event", len(adds))
	}
	content.SetInline(bundle)
	raw, err := rooms.Encode(content)
	if err != nil {
		return err
	}
	m, err := mls.ParseMessage(r.staged.Message())
	if err != nil {
		return err
	}
	if r.ref, err = rooms.CommitRef(m); err != nil {
		return err
	}
	w := &waiting{done: make(chan struct{}), posted: time.Now()}
	c.mu.Lock()
	c.byRef[r.ref] = w
	c.mu.Unlock()
	r.event, err = c.h.add(r.id, d.cred.User, rooms.TypeCommit, nil, raw)
	return err
}

// accepted waits until the module has accepted a room's newest commit, and returns how long that took.
func (c *crowd) accepted(ctx context.Context, r *room) (time.Duration, error) {
	c.mu.Lock()
	w := c.byRef[r.ref]
	c.mu.Unlock()
	select {
	case <-w.done:
	case <-ctx.Done():
		return 0, fmt.Errorf("the commit %s in %s was not accepted: %w", r.ref.Short(), r.id, ctx.Err())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byRef, r.ref)
	return w.took, nil
}

// apply lets the creator and the other member take the accepted commit, and the other vouch for it.
func (c *crowd) apply(r *room) error {
	d := c.devices[1]
	if r.other == nil {
		raw, err := r.staged.WelcomeFor(r.bundle.KeyPackage().Ref())
		if err != nil {
			return err
		}
		m, err := mls.ParseMessage(raw)
		if err != nil {
			return err
		}
		if r.other, err = mls.JoinWelcome(d.cfg, m, r.bundle, mls.JoinOptions{}); err != nil {
			return err
		}
	} else {
		m, err := mls.ParseMessage(r.staged.Message())
		if err != nil {
			return err
		}
		p, err := r.other.Process(m)
		if err != nil {
			return err
		}
		r.other = p.(*mls.StagedCommit).Merge()
	}
	r.creator, r.head, r.staged = r.staged.Merge(), r.ref, nil
	a, err := rooms.SignApplied(suite, d.key, federation.Scope{Room: string(r.id), Group: r.other.GroupID()}, r.head, r.other.OwnLeafIndex(), r.other.EpochAuthenticator())
	if err != nil {
		return err
	}
	raw, err := rooms.Encode(rooms.AppliedOf(a))
	if err != nil {
		return err
	}
	_, err = c.h.add(r.id, d.cred.User, rooms.TypeApplied, nil, raw)
	return err
}

// round lets some rooms' creators commit at once, and everybody take it. It returns in order how long each
// accept took, also if not all were accepted.
func (c *crowd) round(ctx context.Context, list []*room, adds []*device) ([]time.Duration, error) {
	for _, r := range list {
		if err := c.commit(r, adds); err != nil {
			return nil, err
		}
	}
	var took []time.Duration
	for _, r := range list {
		t, err := c.accepted(ctx, r)
		if err == nil {
			took = append(took, t)
			err = c.apply(r)
		}
		if err != nil {
			slices.Sort(took)
			return took, fmt.Errorf("after %d of %d rooms: %w", len(took), len(list), err)
		}
	}
	slices.Sort(took)
	return took, nil
}
