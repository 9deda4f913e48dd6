package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// A device that joins a group reads from its own epoch on. What was said before it
// can be told by another device: an archive of plaintexts in media, its key by
// to-device, encrypted to a key that the asking device made for that purpose and
// signed. No secret of a group leaves a device this way.

// Bounds of handing over history.
const (
	maxHistoryTasks   = 64
	maxHistoryTasksBy = 8 // of one other user
	maxHistoryPeers   = 8 // own devices that are asked at once
	maxHistoryGivers  = 2 // devices of another user that are asked at once
	historyAnswerTime = 7 * 24 * time.Hour
	historyPause      = time.Minute // between two answers to one device about one room; it doubles
	historyMaxPause   = time.Hour
	historyAgain      = 5 * time.Minute // before a request that is open is replaced by another
	historyPartSize   = 3 << 20         // plaintext of one part: the homeservers' limits of media are above
	maxHistoryFails   = 8
	maxHistoryRefused = 3 // times that the homeserver refuses something

	historyTasksKey = "history/tasks"
)

// ErrNobodyToAsk reports that no device is known that could have a room's history.
var ErrNobodyToAsk = errors.New("client: nobody in the room's group could be asked for its history")

// HistorySource is where a message came from that this device could not open
// itself.
type HistorySource struct {
	User   id.UserID   `json:"user_id"`
	Device id.DeviceID `json:"device_id,omitempty"` // empty: an own device got it from the user
	Own    bool        `json:"own,omitempty"`       // an own device gave it
	// File is set for what Import took in: User and Device are what the file says of
	// who made it, which nobody has signed.
	File bool `json:"file,omitempty"`
}

// HistoryReceived reports messages from before this device could read the room,
// given by an own device or, if User is another, by a member: whether they were
// written as they are shown rests on the giver's word. [Client.Messages] has them.
type HistoryReceived struct {
	Room     id.RoomID
	User     id.UserID
	Device   id.DeviceID
	Own      bool // of this user
	Messages int
	// Dropped are those of which the homeserver has no such event: another sender,
	// redacted, or none.
	Dropped int
	Last    bool // the giver has no more
}

func (*HistoryReceived) update() {}

// historyState is what a room's record keeps of asking for history.
type historyState struct {
	Request string        `json:"request,omitempty"`
	Key     rooms.Bytes   `json:"key,omitempty"` // private; deleted when all have answered
	At      int64         `json:"at,omitempty"`  // unix milliseconds
	Asked   []historyPeer `json:"asked,omitempty"`
	Sent    bool          `json:"sent,omitempty"`
	Held    bool          `json:"held,omitempty"` // messages were given, now or before
}

type historyPeer struct {
	User   id.UserID   `json:"user"`
	Device id.DeviceID `json:"device"`
	Done   bool        `json:"done,omitempty"`
	Taken  []uint32    `json:"taken,omitempty"` // parts
}

// open tells whether answers may come.
func (h *historyState) open(now time.Time) bool {
	return h != nil && len(h.Key) > 0 && now.Sub(time.UnixMilli(h.At)) < historyAnswerTime
}

// wasAsked tells whether somebody was asked, or nobody was found to ask.
func (h *historyState) wasAsked() bool { return h != nil && h.At != 0 }

// historyTask is a request to answer, or a bundle to take in.
type historyTask struct {
	Type   string          `json:"type"`
	Sender id.UserID       `json:"sender"`
	Room   id.RoomID       `json:"room"`
	Raw    json.RawMessage `json:"content"`
	ID     string          `json:"id"` // of the request, device and part

	// What was given so far.
	Before int64  `json:"before,omitempty"` // the Seq above which it is given
	Part   uint32 `json:"part,omitempty"`
	Given  int    `json:"given,omitempty"`

	fail  int
	begun bool                // it is this one's turn, however often it is tried
	held  time.Duration       // monotonic time before which it is not tried again
	grant map[id.EventID]bool // what another user may be given; nil: not looked at yet
}

// heldTask says that it is too early for a task.
type heldTask struct {
	until time.Duration // monotonic
}

func (h *heldTask) Error() string { return "client: history was given a moment ago" }

// errDropTask marks a request or bundle that is not answered or taken in.
var errDropTask = errors.New("client: history is refused")

func dropTask(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errDropTask, fmt.Errorf(format, args...))
}

// fileHistoryEvent keeps a request or a bundle, in the transaction of the sync
// response that brought it. The caller holds c.mu.
func (c *Client) fileHistoryEvent(evt *Event) func(ctx context.Context) error {
	t := &historyTask{Type: evt.Type, Sender: evt.Sender, Raw: evt.Content}
	var err error
	switch evt.Type {
	case rooms.TypeHistoryRequest:
		var req *rooms.HistoryRequestContent
		if req, err = rooms.DecodeHistoryRequest(evt.Content); err == nil {
			t.Room, t.ID = req.Room, fmt.Sprintf("%s/%s", req.Request, req.Device)
		}
	default:
		var bundle *rooms.HistoryBundleContent
		if bundle, err = rooms.DecodeHistoryBundle(evt.Content); err == nil {
			t.Room, t.ID = bundle.Room, fmt.Sprintf("%s/%s/%d", bundle.Request, bundle.Device, bundle.Part)
			r := c.rooms[bundle.Room]
			if r == nil || !r.rec.History.open(c.now()) || r.rec.History.Request != bundle.Request {
				err = errors.New("client: a history bundle that was not asked for")
			}
		}
	}
	r := c.rooms[t.Room]
	if err == nil && (r == nil || r.machine == nil || r.state.membership(evt.Sender) != rooms.MembershipJoin) {
		err = errors.New("client: not by a member of a room of ours")
	}
	if err != nil || c.noHistory && evt.Type == rooms.TypeHistoryRequest {
		c.count(string(rooms.RuleUnsolicitedKey))
		return nil
	}
	own := evt.Sender == c.UserID()
	of, all := 0, 0 // other users' tasks take no own one's place
	for _, have := range c.tasks {
		if have.Type == t.Type && have.Sender == t.Sender && have.ID == t.ID {
			return nil
		}
		if have.Sender == t.Sender {
			of++
		}
		if (have.Sender == c.UserID()) == own {
			all++
		}
	}
	if !own && of >= maxHistoryTasksBy || all >= maxHistoryTasks {
		c.count(ruleOverLimit)
		return nil
	}
	c.tasks = append(c.tasks, t)
	notifyChan(c.histWake)
	return c.saveTasks
}

func (c *Client) saveTasks(ctx context.Context) error {
	return c.putJSON(ctx, historyTasksKey, c.tasks)
}

func (c *Client) loadTasks(ctx context.Context) error {
	c.tasks = nil
	return c.getJSON(ctx, historyTasksKey, &c.tasks)
}

// historyLoop asks for history, gives and takes it.
func (c *Client) historyLoop(ctx context.Context) {
	select { // what waited while the client was off goes on then, not a minute later
	case <-c.synced:
	case <-ctx.Done():
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := time.Minute
		if at := c.Exchange(ctx); at > 0 {
			wait = max(at-c.mono(), 0)
		}
		timer.Reset(min(wait, time.Minute))
		select {
		case <-ctx.Done():
			return
		case <-c.histWake:
		case <-timer.C:
		}
	}
}

// Exchange asks for the history of rooms that this device has joined, gives it to
// devices that asked, and takes in what came. It returns when, on the monotonic
// clock, something that failed is to be tried again (0: nothing). Start calls it;
// tests call it by themselves.
func (c *Client) Exchange(ctx context.Context) (next time.Duration) {
	later := func(at time.Duration) {
		if next == 0 || at < next {
			next = at
		}
	}
	if !c.hasSynced() {
		return 0
	}
	for _, roomID := range c.toAsk(ctx) {
		if err := c.sendAsk(ctx, roomID); err != nil {
			if ctx.Err() != nil {
				return 0
			}
			c.log.Debug().Err(err).Stringer("room_id", roomID).Msg("Failed to ask for history, will try again")
			later(c.mono() + 10*time.Second)
		}
	}
	for ctx.Err() == nil {
		t := c.nextTask(later)
		if t == nil {
			break
		}
		var err error
		if t.Type == rooms.TypeHistoryRequest {
			err = c.give(ctx, t)
		} else {
			err = c.take(ctx, t)
		}
		if ctx.Err() != nil {
			break
		}
		c.settleTask(ctx, t, err)
	}
	return next
}

// nextTask returns a task whose time has come: one of the own user's first.
func (c *Client) nextTask(later func(at time.Duration)) (next *historyTask) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tasks {
		switch {
		case t.held > c.mono():
			later(t.held)
		case t.Sender == c.UserID():
			return t
		case next == nil:
			next = t
		}
	}
	return next
}

// settleTask drops what is done or cannot be done, and keeps the rest for later.
func (c *Client) settleTask(ctx context.Context, t *historyTask, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	log := c.log.With().Stringer("room_id", t.Room).Str("type", t.Type).Logger()
	var limit *RateLimitError
	var early *heldTask
	refused := isPermanent(err) // by the homeserver: it may have a file or a user's keys a moment later
	switch {
	case errors.As(err, &early):
		t.held = early.until
		return
	case errors.As(err, &limit):
		t.held = c.mono() + limit.RetryAfter
		return
	case err != nil && !errors.Is(err, errDropTask) && rooms.RuleOf(err) == "" && t.fail < maxHistoryFails && (!refused || t.fail+1 < maxHistoryRefused):
		wait := min(time.Second<<t.fail, time.Minute)
		if refused {
			wait *= 10
		}
		t.held = c.mono() + wait
		t.fail++
		log.Debug().Err(err).Msg("History could not be handed over, will try again")
		return
	case err != nil:
		log.Warn().Err(err).Msg("History is not handed over")
		if rule := ruleOf(err); rule != "unknown" {
			c.count(rule)
		} else {
			c.count(ruleHistoryRefused)
		}
	}
	c.tasks = slices.DeleteFunc(c.tasks, func(o *historyTask) bool { return o == t })
	if err := c.st.Do(context.WithoutCancel(ctx), c.saveTasks); err != nil {
		log.Err(err).Msg("Failed to store that history was handed over")
	}
}

// ruleHistoryRefused is the rule of requests for history that are not answered, and
// of bundles that are not taken in.
const ruleHistoryRefused = "client/history-refused"

// toAsk returns the rooms for whose history somebody is to be asked.
func (c *Client) toAsk(ctx context.Context) (list []id.RoomID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.rooms {
		h := r.rec.History
		if h != nil && len(h.Key) > 0 && !h.open(c.now()) {
			clear(h.Key)
			h.Key = nil
			if err := c.commitBatch(ctx, r, &batch{}); err != nil {
				c.log.Err(err).Stringer("room_id", r.id).Msg("Failed to drop the key of a request for history that nobody answered")
			}
		}
		if !h.wasAsked() && c.askHistory && r.rec.Phase == phaseMember && r.head() != nil || h.open(c.now()) && (!h.Sent || r.asksAgain(c.mono())) {
			list = append(list, r.id)
		}
	}
	slices.Sort(list)
	return list
}

// How long the devices that were asked may take before those that have not answered
// are asked once more, by the same request: a to-device message may be lost, or come
// before its receiver can know its sender. Twice as long each time.
const (
	askAgainAfter = 30 * time.Second
	askAgainMost  = time.Hour
)

// asksAgain tells whether a request that was sent is to be sent once more.
func (r *room) asksAgain(now time.Duration) bool {
	if r.askAgainAt == 0 { // it was sent before a restart
		r.askAgainAt = now + askAgainAfter
	}
	return now >= r.askAgainAt
}

// sendAsk asks the devices that may have a room's history.
func (c *Client) sendAsk(ctx context.Context, roomID id.RoomID) error {
	c.mu.Lock()
	r := c.rooms[roomID]
	if r == nil || r.rec.Phase != phaseMember || r.head() == nil {
		c.mu.Unlock()
		return nil
	}
	if !r.rec.History.wasAsked() {
		if err := c.newAsk(ctx, r); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	h := *r.rec.History
	if !h.open(c.now()) || h.Sent && !r.asksAgain(c.mono()) {
		c.mu.Unlock()
		return nil
	}
	tries := r.askTries
	cs := r.head().group.CipherSuite()
	c.mu.Unlock()

	public, err := rooms.HistoryPublicKey(h.Key)
	if err != nil {
		return err
	}
	key, err := c.ident.SignatureKey(cs)
	if err != nil {
		return err
	}
	req := &rooms.HistoryRequestContent{Room: roomID, Request: h.Request, Device: c.DeviceID(), Suite: uint16(cs), Key: public}
	if err := req.Sign(c.UserID(), key); err != nil {
		return err
	}
	raw, err := rooms.Encode(req)
	if err != nil {
		return err
	}
	messages := map[id.UserID]map[id.DeviceID]json.RawMessage{}
	for _, p := range h.Asked {
		if p.Done {
			continue
		}
		if messages[p.User] == nil {
			messages[p.User] = map[id.DeviceID]json.RawMessage{}
		}
		messages[p.User][p.Device] = raw
	}
	if err := c.hs.SendToDevice(ctx, rooms.TypeHistoryRequest, fmt.Sprintf("mlsh%s-%d-%d", h.Request, c.now().UnixMilli(), tries), messages); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.rooms[roomID]; r != nil && r.rec.History != nil && r.rec.History.Request == h.Request {
		r.rec.History.Sent = true
		r.askAgainAt = c.mono() + min(askAgainAfter<<min(tries, 7), askAgainMost)
		r.askTries++
		return c.commitBatch(ctx, r, &batch{})
	}
	return nil
}

// newAsk begins to ask for a room's history; if there is nobody to ask, that is
// noted. The caller holds c.mu.
func (c *Client) newAsk(ctx context.Context, r *room) error {
	h := &historyState{At: c.now().UnixMilli(), Asked: c.historyPeers(r), Held: r.rec.History != nil && r.rec.History.Held}
	if len(h.Asked) > 0 {
		var err error
		if h.Request, err = c.newID(); err != nil {
			return err
		}
		if h.Key, err = rooms.NewHistoryKey(c.rand); err != nil {
			return err
		}
	}
	r.rec.History, r.askTries, r.askAgainAt = h, 0, 0
	return c.commitBatch(ctx, r, &batch{})
}

// historyPeers are the devices that may have a room's history and may give it to
// this one: the user's own in the group and, where the group's policy lets members
// share history, those of who invited this user, or of an admin.
func (c *Client) historyPeers(r *room) (peers []historyPeer) {
	e := r.head()
	if e == nil {
		return nil
	}
	add := func(user id.UserID, most int) {
		for _, leaf := range rooms.LeavesOf(e.group, user) {
			if most > 0 && (user != c.UserID() || leaf.Cred.Device != c.DeviceID()) {
				peers = append(peers, historyPeer{User: user, Device: leaf.Cred.Device})
				most--
			}
		}
	}
	add(c.UserID(), maxHistoryPeers)
	policy, err := e.policy()
	if err != nil || policy.History != rooms.HistoryShared {
		return peers
	}
	own := len(peers)
	if r.rec.Inviter != "" && r.rec.Inviter != c.UserID() {
		add(r.rec.Inviter, maxHistoryGivers)
	}
	for _, admin := range policy.Admins {
		if len(peers) == 0 && own == 0 && admin != c.UserID() {
			add(admin, maxHistoryGivers)
		}
	}
	return peers
}

// historyPeerKey checks who asks for a room's history, or gives it, and returns the
// key of the device for a suite: an own verified device, or, where the group's
// policy lets members share history, a device of another user in the group.
func (c *Client) historyPeerKey(ctx context.Context, roomID id.RoomID, user id.UserID, device id.DeviceID, cs mls.CipherSuite) (mls.SignaturePublicKey, error) {
	key, err := c.historyDevice(ctx, user, device, cs)
	if err != nil || user == c.UserID() {
		return key, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil || r.rec.Phase != phaseMember || r.head() == nil {
		return nil, dropTask("this device is not in the group")
	}
	e := r.head()
	policy, err := e.policy()
	if err != nil {
		return nil, err
	}
	if policy.History != rooms.HistoryShared {
		return nil, dropTask("the group's policy lets nobody share history")
	}
	for _, leaf := range rooms.LeavesOf(e.group, user) {
		if leaf.Cred.Device == device && e.group.CipherSuite() == cs && bytes.Equal(leaf.Cred.Key, key) {
			return key, nil
		}
	}
	return nil, dropTask("device %s of %s is not in the group", device, user)
}

// AskHistory asks the user's other devices and, where the group's policy lets
// members share history, who invited this user, or an admin if no device of either is
// in the group, for a room's messages from before this device joined, also if they
// were asked before; a request of the last minutes that is not answered yet stays
// the one that counts. It returns how many devices were asked, or ErrNobodyToAsk. What
// comes is told as HistoryReceived, when the others are online. With Options.AskHistory this is done once for each room.
func (c *Client) AskHistory(ctx context.Context, roomID id.RoomID) (int, error) {
	r, _, err := c.lockMember(ctx, roomID)
	if err != nil {
		c.mu.Unlock()
		return 0, err
	}
	if h := r.rec.History; !h.open(c.now()) || c.now().Sub(time.UnixMilli(h.At)) >= historyAgain {
		err = c.newAsk(ctx, r)
	}
	n := len(r.rec.History.Asked)
	c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, fmt.Errorf("%w (%s)", ErrNobodyToAsk, roomID)
	}
	notifyChan(c.histWake)
	return n, nil
}

// HistoryAsked tells whether others were asked for a room's history and not all
// have answered.
func (c *Client) HistoryAsked(roomID id.RoomID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	return r != nil && r.rec.History.open(c.now())
}

// historyDevice reads the devices of a user and returns the one that signed
// something with its key for a suite. It has to be cross-signed, and of the own
// user's devices only those count whose master key this device knows to be its
// user's: a homeserver that makes keys up gets nothing.
func (c *Client) historyDevice(ctx context.Context, user id.UserID, device id.DeviceID, cs mls.CipherSuite) (mls.SignaturePublicKey, error) {
	lists, err := c.readDevices(ctx, []id.UserID{user})
	if err != nil {
		return nil, err
	}
	list := lists.of[user]
	if list == nil || list.Stale {
		return nil, fmt.Errorf("client: the devices of %s cannot be asked for", user)
	}
	d := list.Devices[device]
	switch {
	case d == nil:
		return nil, dropTask("%s has no device %s", user, device)
	case list.MasterState == identity.MasterChanged:
		return nil, dropTask("the identity of %s has changed", user)
	case !d.CrossSigned || user == c.UserID() && !d.Verified:
		return nil, dropTask("device %s of %s is not verified", device, user)
	case len(d.MLSKeys[cs]) == 0:
		return nil, dropTask("device %s of %s has no key for %s", device, user, cs)
	}
	return d.MLSKeys[cs], nil
}

// dropHistory removes what others gave of a message that this device has opened
// itself, in the transaction that stores it.
func (c *Client) dropHistory(ctx context.Context, msg *Message) error {
	if r := c.rooms[msg.Room]; r == nil || r.rec.History == nil || !r.rec.History.Held {
		return nil
	}
	return c.st.DropHistory(ctx, msg.Room, msg.EventID, msg.Sender, msg.ID)
}

// historyItem makes the row of a message that was given.
func historyItem(msg *Message) (*store.TimelineItem, error) {
	raw, err := encodeKept(msg)
	if err != nil {
		return nil, fmt.Errorf("client: message %s: %w", msg.EventID, err)
	}
	target, relation := relationOf(msg.Content)
	return &store.TimelineItem{
		Room: msg.Room, EventID: msg.EventID, Mid: msg.ID, Sender: msg.Sender, Type: msg.Type,
		Timestamp: msg.Timestamp, Epoch: msg.Epoch, Ref: refBytes(federation.Ref{}), Data: raw, Target: target, Relation: relation,
	}, nil
}
