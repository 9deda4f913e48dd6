package client

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	syncTokenKey = "sync/next_batch"
	syncTimeKey  = "sync/at" // when the last response was filed, unix milliseconds
	syncTimeout  = 30 * time.Second
	syncFilter   = `{"presence":{"types":[]},"account_data":{"types":[]},"room":{"ephemeral":{"types":[]},"account_data":{"types":[]},"timeline":{"limit":100}}}`
)

// syncLoop polls /sync. The token moves on only together with the inbox rows,
// so a crash repeats a response instead of losing it.
func (c *Client) syncLoop(ctx context.Context) {
	var fail int
	var timeout time.Duration // the first answer comes at once: see Synced
	for ctx.Err() == nil {
		err := c.syncOnce(ctx, timeout)
		if err == nil {
			fail, timeout = 0, syncTimeout
			continue
		}
		if ctx.Err() != nil {
			return
		}
		wait := min(time.Second<<min(fail, 6), time.Minute)
		fail++
		var limit *RateLimitError
		if errors.As(wrapRateLimit(err), &limit) {
			wait = limit.RetryAfter
		}
		c.log.Warn().Err(err).Dur("retry_in", wait).Msg("Sync failed, will try again")
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// SyncOnce performs one /sync and files what it brought. Start does this in a
// loop; a program that only wants to do one thing may call it by itself.
func (c *Client) SyncOnce(ctx context.Context, timeout time.Duration) error {
	return c.syncOnce(ctx, timeout)
}

func (c *Client) syncOnce(ctx context.Context, timeout time.Duration) error {
	since, err := c.st.GetKV(ctx, syncTokenKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	select {
	case <-c.synced:
	default:
		timeout = 0 // the first one after Start: nobody should wait for news
	}
	began := c.mono()
	resp, err := c.ident.Sync(ctx, identity.SyncRequest{Since: string(since), Filter: syncFilter, Timeout: timeout})
	if err != nil {
		return err
	}
	if err := c.ident.ProcessSync(ctx, resp); err != nil {
		return fmt.Errorf("client: sync: %w", err)
	}
	if err := c.file(ctx, fromMautrixSync(&resp.RespSync), began, true); err != nil {
		return err
	}
	c.once.Do(func() { close(c.synced) })
	return nil
}

// Feed files a /sync response that the caller's own syncer received, for
// clients begun with StartFed. It returns once the response is durable here;
// the caller may then store its own token.
func (c *Client) Feed(ctx context.Context, resp *mautrix.RespSync) error {
	if err := c.ident.ProcessRespSync(ctx, resp); err != nil {
		return fmt.Errorf("client: sync: %w", err)
	}
	c.mu.Lock()
	began := c.fedAt // a syncer asks again when it has handed over the last answer
	c.mu.Unlock()
	if err := c.file(ctx, fromMautrixSync(resp), began, false); err != nil {
		return err
	}
	c.mu.Lock()
	c.fedAt = c.mono()
	c.mu.Unlock()
	c.once.Do(func() { close(c.synced) })
	return nil
}

// inboxData is the sealed part of an inbox row.
type inboxData struct {
	Event    *Event `json:"event"`
	ToDevice bool   `json:"to_device,omitempty"`
	At       int64  `json:"at"` // unix milliseconds when it came
	// Late is for how long it was under way, if that shows that servers did not
	// reach each other; of a short cut, for how long at least.
	Late time.Duration `json:"late,omitempty"`
	// Taken: the message was taken ahead, and is to be marked if it is late.
	Taken *takenAhead `json:"taken,omitempty"`
}

// file writes a response, whose request began at the given time, into inbox and
// room state.
func (c *Client) file(ctx context.Context, resp *syncBatch, began time.Duration, token bool) error {
	// Gaps are filled first, without the lock: what the homeserver left out
	// goes before what it sent. Where it does not answer, only that room waits; and
	// once much is held, each other room is read by itself.
	gaps := map[id.RoomID]time.Duration{}
	held := 0
	for _, roomID := range slices.Sorted(maps.Keys(resp.Join)) {
		joined := resp.Join[roomID]
		if held >= c.limits.GapBytes && c.leftOut(roomID, joined) {
			gaps[roomID] = 0 // in its turn
			continue
		}
		err := c.fillGap(ctx, roomID, joined)
		for _, evt := range joined.Timeline {
			held += len(evt.Content)
		}
		var failed *gapError
		if errors.As(err, &failed) && ctx.Err() == nil {
			c.log.Warn().Err(failed.err).Stringer("room_id", roomID).Msg("The homeserver does not give what it left out of a sync, will ask again")
			gaps[roomID] = failed.wait
		} else if err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clocks.read(c.now().UnixMilli(), c.mono())
	for _, joined := range resp.Join {
		for _, evt := range joined.Timeline {
			c.clocks.note(evt, serverOf(c.UserID()))
		}
	}
	var steps []func(ctx context.Context) error
	var touched, declined []*room
	for roomID, joined := range resp.Join {
		if c.rooms[roomID].lags("join", began) {
			continue
		}
		r := c.fileRoom(roomID, joined)
		if r == nil {
			continue
		}
		if r.rec.Membership != "join" {
			r.rec.Membership, r.rec.InvitedAt = "join", 0
			r.state.lose()
			r.comeBack()
		} else if r.state.membership(c.UserID()) != rooms.MembershipJoin && slices.ContainsFunc(slices.Concat(joined.State, joined.Timeline), c.own) {
			r.state.lose() // our join was left out
		}
		if wait, failed := gaps[roomID]; failed {
			var first id.EventID
			if len(joined.Timeline) > 0 {
				first = joined.Timeline[0].ID
			}
			c.lookGap(r, first, wait)
		}
		touched = append(touched, r)
		for _, evt := range joined.Timeline {
			if c.wanted(r, evt) {
				steps = append(steps, c.inboxStep(roomID, evt, false))
			}
		}
	}
	for roomID, left := range resp.Leave {
		r := c.rooms[roomID]
		if r == nil {
			continue
		}
		if !r.lags("leave", began) {
			c.checkSetBack(r, left)
			for _, evt := range slices.Concat(left.State, left.Timeline) {
				r.state.set(evt)
			}
			r.rec.Membership = string(r.state.membership(c.UserID()))
			if r.rec.Membership == "join" || r.rec.Membership == "" {
				r.rec.Membership = "leave"
			}
			if slices.ContainsFunc(left.Timeline, c.ownJoin) {
				r.rec.InvitedAt = 0
			}
			if c.declined(r) {
				delete(c.rooms, r.id)
				declined = append(declined, r)
				continue
			}
		}
		touched = append(touched, r)
		for _, evt := range left.Timeline { // what came before the end
			if c.wanted(r, evt) {
				steps = append(steps, c.inboxStep(roomID, evt, false))
			}
		}
	}
	for roomID, stripped := range resp.Invite {
		if c.rooms[roomID].lags("invite", began) {
			continue
		}
		touched = append(touched, c.fileInvite(roomID, stripped))
	}
	for _, evt := range resp.ToDevice {
		if evt.Type == rooms.TypeHistoryRequest || evt.Type == rooms.TypeHistoryBundle {
			if step := c.fileHistoryEvent(evt); step != nil {
				steps = append(steps, step)
			}
		} else if step, r := c.fileToDevice(evt); step != nil {
			steps, touched = append(steps, step), append(touched, r)
		}
	}
	strange, invited := c.excessStrange(), c.excessInvites()
	over := slices.Concat(strange, invited)
	touched = slices.DeleteFunc(touched, func(r *room) bool { return slices.Contains(over, r) })
	now := c.now().UnixMilli()
	do := c.st.Do
	if token && len(resp.ToDevice) == 0 {
		// Asked from the token before, the homeserver gives all of it again. What goes to
		// devices it forgets once it is asked from this one, and a caller's own token may
		// be written before ours.
		do = c.st.DoSoon
	}
	err := do(context.WithoutCancel(ctx), func(ctx context.Context) error {
		for _, r := range declined { // before what comes for it once more
			if err := c.forgetRoom(ctx, r.id); err != nil {
				return err
			}
		}
		for _, step := range steps {
			if err := step(ctx); err != nil {
				return err
			}
		}
		for _, r := range touched {
			if err := c.saveRoom(ctx, r); err != nil {
				return err
			}
		}
		for _, r := range over {
			if err := c.forgetRoom(ctx, r.id); err != nil {
				return err
			}
		}
		if token && resp.NextBatch != "" {
			if err := c.st.PutKV(ctx, syncTokenKey, []byte(resp.NextBatch)); err != nil {
				return err
			}
		}
		at, err := c.syncTime(now)
		if err != nil {
			return err
		}
		if err := c.st.PutKV(ctx, syncTimeKey, at); err != nil {
			return err
		}
		return c.crashpoint("sync-filed")
	})
	if err != nil {
		for _, r := range slices.Concat(declined, over) {
			c.rooms[r.id] = r
		}
		for _, r := range slices.Concat(touched, declined, over) {
			if rerr := c.reload(context.WithoutCancel(ctx), r); rerr != nil {
				return errors.Join(err, rerr)
			}
		}
		if terr := c.loadTasks(context.WithoutCancel(ctx)); terr != nil {
			return errors.Join(err, terr)
		}
		return err
	}
	c.syncAt = now
	for range strange {
		c.count(string(rooms.RuleUnsolicitedKey))
	}
	for range invited {
		c.count(ruleInvites)
	}
	for _, r := range slices.Concat(touched, declined, over) {
		r.notify()
	}
	c.poke()
	return nil
}

// A move is a join or leave of this user that the homeserver has confirmed and
// no /sync has shown.
type move struct {
	to string        // "join" or "leave"
	at time.Duration // when it was confirmed
}

// inviteLag is for how long after a join an invite in /sync is taken for the one
// that was followed: a homeserver may tell /sync of the join a moment later.
const inviteLag = 5 * time.Second

// lags tells whether a /sync whose request began at the given time shows the
// user's membership as it was before a move of our own: such an answer was under
// way meanwhile, and must not undo the move.
func (r *room) lags(membership string, began time.Duration) bool {
	if r == nil || r.moved == nil {
		return false
	}
	before := r.moved.at
	if membership == "invite" && r.moved.to == "join" {
		before += inviteLag
	}
	if membership != r.moved.to && began < before {
		return true
	}
	r.moved = nil
	return false
}

// own tells whether an event is a membership of this user.
func (c *Client) own(evt *Event) bool {
	return evt.Type == rooms.TypeMember && evt.StateKey != nil && *evt.StateKey == string(c.UserID())
}

// ownJoin tells whether it is the user's join.
func (c *Client) ownJoin(evt *Event) bool {
	var content struct {
		Membership rooms.Membership `json:"membership"`
	}
	return c.own(evt) && json.Unmarshal(evt.Content, &content) == nil && content.Membership == rooms.MembershipJoin
}

func (c *Client) saveRoom(ctx context.Context, r *room) error {
	return c.writeRecord(ctx, r, true)
}

// fileRoom takes in the state of a joined room. It returns nil for rooms that
// are none of ours.
func (c *Client) fileRoom(roomID id.RoomID, joined *syncRoom) *room {
	r := c.rooms[roomID]
	if r == nil {
		if !slices.ContainsFunc(slices.Concat(joined.State, joined.Timeline), isMLSEncryption) {
			return nil
		}
		r = c.newRoom(roomID)
		c.rooms[roomID] = r
	}
	wasMLS, before := r.state.isMLS(), r.state.view.Encryption
	for n, evt := range slices.Concat(joined.State, joined.Timeline) {
		var was rooms.Membership
		if evt.StateKey != nil {
			was = r.state.membership(id.UserID(*evt.StateKey))
		}
		if n >= len(joined.State) && (evt.Type != rooms.TypeMember || evt.StateKey == nil || *evt.StateKey != string(evt.Sender)) {
			r.state.view.Spoke(evt.Sender)
		}
		if c.outdated(r, evt) {
			continue
		}
		// In a timeline a membership may come after what it ended, where the state is that after it.
		if n < len(joined.State) && r.state.revives(evt) { // nothing is sent until the full state was read
			r.state.lose()
			r.planned = false
			continue
		}
		isNew := r.state.set(evt)
		if isNew || evt.Type != rooms.TypeMember { // that a module has spoken counts, even if what it said is known
			c.noteQuiet(r, evt, was)
		}
		if !isNew {
			continue
		}
		r.planned = false
		r.headSeen = r.headSeen || evt.Type == rooms.TypeHead
		if evt.Type == rooms.TypeMember {
			delete(r.devices, id.UserID(*evt.StateKey))
			c.noteAdmission(r, evt)
		}
	}
	c.checkAlgorithm(r, wasMLS, before)
	if joined.Limited {
		r.state.lose()
	}
	return r
}

// checkSetBack warns where this user is out of a room by a membership that had ended,
// and no newer one: nobody put them out.
func (c *Client) checkSetBack(r *room, left *syncRoom) {
	was := r.state.view.Members[c.UserID()]
	at := slices.IndexFunc(left.State, func(evt *Event) bool { return c.own(evt) && r.state.revives(evt) })
	if at < 0 || slices.ContainsFunc(slices.Concat(left.State, left.Timeline), func(evt *Event) bool {
		return c.own(evt) && evt.ID != was.Event && !r.state.revives(evt)
	}) {
		return
	}
	evt, now := left.State[at], rooms.NewRoomState(r.id)
	_ = now.Apply(evt.Type, *evt.StateKey, evt.Sender, evt.ID, evt.Content)
	c.warnSetBack(r, rooms.SetBack{User: c.UserID(), Was: was, Now: now.Members[c.UserID()]})
}

// ruleSetBack is the rule of memberships that state resolution forgot.
const ruleSetBack = "client/membership-set-back"

// warnSetBack tells of a membership that state resolution forgot. The group follows
// the room: who is not in it any more is taken out, as if they had left.
func (c *Client) warnSetBack(r *room, back rooms.SetBack) {
	c.count(ruleSetBack)
	now := string(back.Now.Membership)
	if now == "" {
		now = "none"
	}
	c.warn(r, "set-back/"+string(back.Was.Event), &Warning{
		EventID: back.Was.Event, Sender: back.User, Rule: ruleSetBack, Kind: SetBackWarning, Reason: now,
		Text: fmt.Sprintf("a membership of %s was forgotten when servers settled on one state of the room (it was %s, and is %s again): nobody left, and nobody was put out or let in; look who is in the room, and invite or ban them again", back.User, back.Was.Membership, now),
	})
}

// maxSetBacks is how many memberships that were forgotten at once are told of one by one.
const maxSetBacks = 5

// warnSetBacks tells of memberships that state resolution forgot at once: of many in one warning.
func (c *Client) warnSetBacks(r *room, all []rooms.SetBack) {
	if len(all) <= maxSetBacks {
		for _, back := range all {
			c.warnSetBack(r, back)
		}
		return
	}
	var first []string
	for i, back := range all {
		c.count(ruleSetBack)
		if i < maxSetBacks {
			first = append(first, string(back.User))
		}
	}
	detail := fmt.Sprintf("%d: %s, …", len(all), strings.Join(first, ", "))
	c.warn(r, fmt.Sprintf("set-backs/%d/%s", len(all), all[0].Was.Event), &Warning{
		Rule: ruleSetBack, Kind: SetBackWarning, Detail: detail,
		Text: fmt.Sprintf("many memberships were forgotten when servers settled on one state of the room (%s): nobody left, and nobody was put out or let in; look who is in the room, and invite or ban them again", detail),
	})
}

// outdated tells whether a member event is from before our own kick or ban of
// that user, which /sync has not shown yet.
func (c *Client) outdated(r *room, evt *Event) bool {
	if evt.Type != rooms.TypeMember || evt.StateKey == nil {
		return false
	}
	user := id.UserID(*evt.StateKey)
	x, ok := r.expelled[user]
	if !ok {
		return false
	}
	var content struct {
		Membership rooms.Membership `json:"membership"`
	}
	if json.Unmarshal(evt.Content, &content) == nil && content.Membership != x.as && c.mono() < x.until {
		return true
	}
	delete(r.expelled, user)
	return false
}

// checkAlgorithm warns when somebody changed the room's encryption setting. The
// group goes on as it is: what its members signed counts.
func (c *Client) checkAlgorithm(r *room, wasMLS bool, before string) {
	err := r.state.view.CheckAlgorithm()
	if err == nil {
		delete(r.rec.Warned, "downgrade")
		return
	}
	if wasMLS && (!r.state.isMLS() || before == rooms.Algorithm && r.state.view.Encryption != before) {
		c.warn(r, "downgrade", &Warning{
			Rule: ruleOf(err), Kind: EncryptionWarning, Detail: err.Error(), Text: "the room's encryption setting was changed; this group goes on and nothing is sent in clear: " + err.Error(),
		})
	}
}

func isMLSEncryption(evt *Event) bool {
	if evt.Type != rooms.TypeEncryption || evt.StateKey == nil || *evt.StateKey != "" {
		return false
	}
	var content struct {
		Algorithm string `json:"algorithm"`
	}
	return json.Unmarshal(evt.Content, &content) == nil && content.Algorithm == rooms.Algorithm
}

// wanted tells whether an event goes to the inbox.
func (c *Client) wanted(r *room, evt *Event) bool {
	if evt.ID == "" || len(evt.Content) > rooms.MaxEventSize+8192 {
		return false
	}
	switch evt.Type {
	case rooms.TypeCommit, rooms.TypeProposal, rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady,
		rooms.TypeApplied, rooms.TypeReject, rooms.TypeAdmit, rooms.TypeEra, rooms.TypeRepost, rooms.TypeEncrypted, rooms.TypeReceipt:
		return true
	}
	return evt.StateKey == nil // plaintext messages are reported
}

// named tells whether an event that others name is filed when it was fetched: only
// what proves itself, and has one effect however often it comes. A message is not
// anybody's to bring up again.
func named(evt *Event) bool {
	switch evt.Type {
	case rooms.TypeCommit, rooms.TypeProposal, rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady,
		rooms.TypeApplied, rooms.TypeReject, rooms.TypeAdmit, rooms.TypeEra, rooms.TypeRepost:
		return evt.StateKey == nil && evt.ID != "" && len(evt.Content) <= rooms.MaxEventSize+8192
	}
	return false
}

// seenEvery is after how many processed events of a room the oldest are forgotten.
const seenEvery = 256

// keptSeen returns how many processed events of a room are remembered: several
// times as many as are read again at once to find what is missing.
func (c *Client) keptSeen() int { return 4 * 100 * c.limits.GapPages }

// forgetSeen forgets, now and then, the names of events that were processed long
// ago. They keep what is read again from being shown again; that nothing has an
// effect twice rests on epochs, receipts and generations, for anybody can post an
// event again under a new name.
func (c *Client) forgetSeen(r *room, b *batch) {
	if r.marked++; r.marked%seenEvery == 0 {
		b.do(func(ctx context.Context) error { return c.st.PruneSeen(ctx, r.id, c.keptSeen(), 4*seenEvery) })
	}
}

// inboxStep files one event unless it was processed before.
func (c *Client) inboxStep(roomID id.RoomID, evt *Event, toDevice bool) func(ctx context.Context) error {
	at, late := c.now().UnixMilli(), c.lateness(evt)
	return func(ctx context.Context) error {
		if seen, err := c.st.Seen(ctx, roomID, evt.ID); err != nil {
			return err
		} else if seen {
			return c.cameTo(ctx, roomID, evt.ID)
		}
		raw, err := json.Marshal(inboxData{Event: evt, ToDevice: toDevice, At: at, Late: late})
		if err != nil {
			return fmt.Errorf("client: inbox: %w", err)
		}
		return c.st.AddInbox(ctx, &store.InboxItem{Room: roomID, EventID: evt.ID, Data: raw})
	}
}

// fileToDevice files a Welcome, or an admission of this user, under its room. Other
// to-device events are the identity's.
func (c *Client) fileToDevice(evt *Event) (func(ctx context.Context) error, *room) {
	if len(evt.Content) > rooms.MaxEventSize+8192 {
		return nil, nil
	}
	var roomID id.RoomID
	var err error
	switch evt.Type {
	case rooms.TypeWelcome:
		var welcome *rooms.WelcomeContent
		if welcome, err = rooms.DecodeWelcome(evt.Content); err == nil {
			roomID = welcome.Room
		}
	case rooms.TypeAdmit:
		var admission *rooms.Admission
		if admission, err = rooms.DecodeAdmission(evt.Content); err == nil && admission.User != c.UserID() {
			err = errRefusedUpdate(rooms.RuleUnsolicitedKey, "the admission is another user's")
		}
		if err == nil {
			roomID = admission.Room
		}
	default:
		return nil, nil
	}
	if err != nil {
		c.log.Debug().Str("type", evt.Type).Str("rule", ruleOf(err)).Msg("Refused a to-device event")
		return nil, nil
	}
	r := c.strangeRoom(roomID, evt.Sender)
	if r == nil {
		return nil, nil
	}
	named := []byte(evt.Content)
	if evt.Type == rooms.TypeAdmit { // others who were shown one must not pass for having sent it first
		named = slices.Concat([]byte(evt.Sender), []byte{0}, named)
	}
	sum := sha256.Sum256(named)
	filed := *evt
	filed.ID = id.EventID("to-device/" + hex.EncodeToString(sum[:16]))
	filed.RoomID = roomID
	return c.inboxStep(roomID, &filed, true), r
}

// strangeRoom returns the room that a to-device event of from is for, which may
// come before the invite. It returns nil if there are too many rooms.
func (c *Client) strangeRoom(roomID id.RoomID, from id.UserID) *room {
	if c.rooms[roomID] == nil && len(c.rooms) >= maxRooms {
		c.count(string(rooms.RuleUnsolicitedKey))
		return nil
	}
	r := c.room(roomID)
	if r.strange() && r.rec.ToldBy == "" {
		r.rec.ToldBy, r.rec.ToldAt = from, c.now().UnixNano()
	}
	return r
}

const (
	maxRooms = 10_000
	// maxStrangeRooms bounds the rooms that are known from a Welcome, or an admission,
	// alone: it may come before the invite, but anybody can send one.
	maxStrangeRooms = 64
)

// excessStrange takes out of memory the strange rooms above the bound: of whoever
// told of the most of them the oldest first, so that nobody alone can push out
// what others told, nor keep out what they will.
func (c *Client) excessStrange() (over []*room) {
	var strange []*room
	by := map[id.UserID]int{}
	for _, r := range c.rooms {
		if r.strange() && r.rec.ToldBy != "" && r.rec.Switch == nil {
			strange = append(strange, r)
			by[r.rec.ToldBy]++
		}
	}
	if len(strange) <= maxStrangeRooms {
		return nil
	}
	slices.SortFunc(strange, func(a, b *room) int {
		return cmp.Or(cmp.Compare(a.rec.ToldAt, b.rec.ToldAt), strings.Compare(string(a.id), string(b.id)))
	})
	for len(strange) > maxStrangeRooms {
		worst := 0
		for at, r := range strange {
			if by[r.rec.ToldBy] > by[strange[worst].rec.ToldBy] {
				worst = at
			}
		}
		r := strange[worst]
		by[r.rec.ToldBy]--
		delete(c.rooms, r.id)
		over, strange = append(over, r), slices.Delete(strange, worst, worst+1)
	}
	return over
}

// forgetRoom removes from the store what is written of a room of which only
// to-device events, or invites, speak.
func (c *Client) forgetRoom(ctx context.Context, roomID id.RoomID) error {
	if err := c.forgetRefused(ctx, roomID); err != nil {
		return err
	}
	for _, part := range []string{statePart, headsPart, admissionsPart, othersPart, sentPart} {
		if err := c.st.DeleteKV(ctx, partKey(part, roomID)); err != nil {
			return err
		}
	}
	if err := c.st.DeleteKVs(ctx, headKey(roomID, "")); err != nil {
		return err
	}
	return c.st.DeleteRoom(ctx, roomID)
}

// strange tells whether nothing but to-device events speak of the room.
func (r *room) strange() bool {
	return r.rec.Membership == "" && r.rec.Phase == phaseNone && len(r.state.Entries) == 0
}

// comeBack lets a user who had left, or was put out, be a newcomer again.
func (r *room) comeBack() {
	if r.rec.Phase == phaseRemoved {
		r.rec.Phase = phaseNone
	}
	r.rec.Bound, r.rec.Superseded = nil, false
	r.joinAt, r.resyncAt, r.lastJoinError = 0, 0, nil
}

// begins tells whether a room's history begins with an event for this user: it
// made the room, turned encryption on or invited the user.
func (c *Client) begins(evt *Event) bool {
	if evt.Type == rooms.TypeCreate || isMLSEncryption(evt) {
		return true
	}
	if evt.Type != rooms.TypeMember || evt.StateKey == nil || *evt.StateKey != string(c.UserID()) {
		return false
	}
	var content struct {
		Membership string `json:"membership"`
	}
	return json.Unmarshal(evt.Content, &content) == nil && content.Membership == "invite"
}

// gapQuiet is how many pages in sequence have to bring nothing new before a gap
// counts as filled.
const gapQuiet = 3

// gapError reports that the homeserver did not answer for what it left out of a
// room's timeline. Asking again after a while may help.
type gapError struct {
	err  error
	wait time.Duration
}

func (e *gapError) Error() string { return "client: fill a gap: " + e.err.Error() }
func (e *gapError) Unwrap() error { return e.err }

// pageTimeout is how long the homeserver may take for one page of a room's history.
// Other rooms wait meanwhile.
const pageTimeout = 15 * time.Second

// page reads one page of a room's history, backwards.
func (c *Client) page(ctx context.Context, roomID id.RoomID, from string) ([]*Event, string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.pageWait)
	defer cancel()
	return c.hs.Messages(ctx, roomID, from, 100)
}

// leftOut tells whether a timeline leaves events out that are to be read.
func (c *Client) leftOut(roomID id.RoomID, joined *syncRoom) bool {
	if !joined.Limited || joined.PrevBatch == "" {
		return false
	}
	c.mu.Lock()
	tracked := c.rooms[roomID] != nil
	c.mu.Unlock()
	return (tracked || slices.ContainsFunc(slices.Concat(joined.State, joined.Timeline), isMLSEncryption)) && !slices.ContainsFunc(joined.Timeline, c.begins)
}

// fillGap reads the events that a limited timeline left out and puts them in
// front of it: back to where all was processed before, or, in a room that is new
// here, to the event that invited us or turned encryption on. One event that was
// processed ends nothing: what a server sent while it was cut off has its place
// among the events of the other side. What a homeserver cannot give, the commit
// chain will miss and ask for by name.
func (c *Client) fillGap(ctx context.Context, roomID id.RoomID, joined *syncRoom) error {
	if !c.leftOut(roomID, joined) {
		return nil
	}
	c.mu.Lock()
	r := c.rooms[roomID]
	c.mu.Unlock()
	from := joined.PrevBatch
	heads := map[id.UserID]bool{} // a module publishes at every few commits, and all but the newest say nothing more
	replaced := func(evt *Event) bool {
		if evt.Type != rooms.TypeHead || evt.StateKey == nil || *evt.StateKey != string(evt.Sender) {
			return false
		}
		defer func() { heads[evt.Sender] = true }()
		return heads[evt.Sender]
	}
	for _, evt := range joined.Timeline {
		replaced(evt)
	}
	var older []*Event
	met, quiet := false, 0
pages:
	for range c.limits.GapPages {
		events, next, err := c.page(ctx, roomID, from)
		if err != nil {
			if isPermanent(err) {
				break
			}
			failed := &gapError{err: err, wait: time.Second}
			var limit *RateLimitError
			if errors.As(wrapRateLimit(err), &limit) {
				failed.wait = limit.RetryAfter
			}
			return failed
		}
		fresh := false
		for _, evt := range events {
			if !replaced(evt) {
				older = append(older, evt)
			}
			if c.begins(evt) {
				break pages
			}
			if !c.wanted(r, evt) {
				continue
			}
			seen, err := c.st.Seen(ctx, roomID, evt.ID)
			if err != nil {
				return err
			}
			met, fresh = met || seen, fresh || !seen
		}
		if quiet++; fresh || !met {
			quiet = 0
		}
		if quiet == gapQuiet {
			break
		}
		if next == "" || next == from || len(events) == 0 {
			break
		}
		from = next
	}
	slices.Reverse(older)
	joined.Timeline = append(older, joined.Timeline...)
	return nil
}

// devicesChanged is the identity's hook: the devices of a user are to be read
// again before the next decision about them.
func (c *Client) devicesChanged(user id.UserID) {
	// ProcessSync calls this from the sync goroutine, which holds no lock.
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noteDevices(user)
	for _, r := range c.rooms {
		if r.devices[user] {
			delete(r.devices, user)
			r.planned = false // nothing is sent until the new list was looked at
		}
	}
	c.poke()
}
