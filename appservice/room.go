package appservice

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	groupsBelowFinal = 16  // group states kept below the newest final
	smallGroup       = 256 // a group up to this size is stored at every commit
	groupEvery       = 16  // a larger one at every so many epochs
)

// room is what the engine holds of a room.
type room struct {
	id     id.RoomID
	status store.RoomStatus
	noted  store.RoomStatus // the status that others were told
	data   roomData

	state  *rooms.RoomState
	loaded bool // the state was read from the homeserver
	heads  map[id.UserID]*rooms.HeadContent

	m      *federation.Machine // nil until the group's root is known
	groups map[federation.Ref]*mls.PublicGroup

	quiet map[id.UserID]time.Duration // users whose servers join: nothing is sent before that

	// Questions to the homeserver.
	needJoin, needState bool
	needMember          bool // whether the bot is still in the room
	memberAgain         bool // and the answer that is under way does not count
	memberPause         pause
	joinVia             []string
	joinPause           pause
	statePause          pause
	stateLog            []*store.InboxEvent // state events that came while the state is being read
	gap                 gap
	wants               map[federation.Ref]*want

	waiting      int                          // events that wait for something
	waitSince    map[id.EventID]time.Duration // since when this process has seen them wait
	moved        int                          // the group moved on: of each sender so many of these are
	passed       bool                         // others waited in vain, and may be looked at again
	retryWaiting bool                         // something they may wait for came
	proposals    map[federation.Ref][]heldProposal
	leaving      map[id.UserID]time.Duration // who is gone: since when their Removes wait
	proposed     map[string]bool             // Remove proposals made, by commit and leaf
	retake       bool                        // the proposals of the present epoch are to be taken from the inbox
	planDirty    bool
	removePause  pause         // after a refused proposal
	planAt       time.Duration // not before
	mediaPause   map[[32]byte]*pause
	retryTime    time.Duration
	arrived      map[federation.Ref]time.Duration // commits that are not final
	trouble      map[string]time.Duration         // since when the room is in trouble
	anew         again                            // what is asked for in the room, and posted again
	looks        rooms.Looks                      // when heads are looked at for receipts which did not come, of those in heads
	shownMark    shownMark                        // what they were looked at with
	publication

	dirty   bool // to be stored
	sends   bool // rows were put into the outbox
	stepped bool // the machine took something in since it last acted
	resumed bool
	resume  comparison // before that
	// tryBootstrap: without a group, the heads of other modules are to be looked at.
	tryBootstrap bool
	lookBefore   bool // and those for the way to where the module began
	beforePause  pause
	nextAct      time.Duration
	lastTick     time.Duration
	touched      time.Duration
}

// roomData is what is stored of a room beside its machine.
type roomData struct {
	Root      *rooms.EventRef `json:"root,omitempty"`
	Late      bool            `json:"late,omitempty"`      // it began at a published head, and Root was not seen
	Announced bool            `json:"announced,omitempty"` // the module's keys are in the room
	Loose     bool            `json:"loose,omitempty"`     // they are in its timeline only: the bot could not set state
	Published federation.Ref  `json:"published"`           // head of the newest publication
	Final     federation.Ref  `json:"final"`               // newest final of that one
	WithTree  bool            `json:"with_tree,omitempty"` // that one held a tree of the head itself
	Snapshot  *rooms.Snapshot `json:"snapshot,omitempty"`  // the newest tree in media
	Proof     *rooms.File     `json:"proof,omitempty"`     // the newest proof chain in media
	Before    bool            `json:"before,omitempty"`    // another module proved the way to where this one began
	Commits   int             `json:"commits,omitempty"`   // on the head since the snapshot
	Bytes     int64           `json:"bytes,omitempty"`     // of these commits
	Compared  id.EventID      `json:"compared,omitempty"`  // newest event of ours when the history was compared
	Joined    int64           `json:"joined,omitempty"`    // when the bot came in, or was first seen in it, in Unix seconds; without a group only
	Key       int             `json:"key,omitempty"`       // index of the receipt key: those before it are retired in this room
	// InvitedAgain is an invite after which the homeserver is to be asked whether the bot is in the room.
	InvitedAgain *reinvite `json:"invited_again,omitempty"`
	Restored     string    `json:"restored,omitempty"` // the newest restore of the database after which the room was compared
}

// room returns a room, loaded from the database if need be.
func (e *Engine) room(ctx context.Context, roomID id.RoomID) (*room, error) {
	if r := e.rooms[roomID]; r != nil {
		r.touched = e.d.Monotonic()
		return r, nil
	}
	row, err := e.d.Store.Room(ctx, roomID)
	if errors.Is(err, store.ErrNotFound) {
		if err := e.d.Store.NoteRoom(ctx, roomID, store.RoomInvited); err != nil {
			return nil, err
		}
		row, err = e.d.Store.Room(ctx, roomID)
	}
	if err != nil {
		return nil, err
	}
	r := &room{
		id: roomID, status: row.Status, noted: row.Status, state: rooms.NewRoomState(roomID), heads: make(map[id.UserID]*rooms.HeadContent),
		groups: make(map[federation.Ref]*mls.PublicGroup), wants: make(map[federation.Ref]*want),
		proposals: make(map[federation.Ref][]heldProposal), proposed: make(map[string]bool),
		needState: row.Status != store.RoomInvited && row.Status != store.RoomLeft,
		waitSince: make(map[id.EventID]time.Duration), passed: true,
		retake: len(row.Machine) > 0, needJoin: row.Status == store.RoomInvited, retryWaiting: true, planDirty: true, stepped: true,
		touched: e.d.Monotonic(),
	}
	r.gap.wanted = r.needState
	if len(row.Data) > 0 {
		if err := json.Unmarshal(row.Data, &r.data); err != nil {
			return nil, fmt.Errorf("appservice: stored data of room %s does not parse: %w", roomID, err)
		}
	}
	r.needMember = r.data.InvitedAgain != nil
	if _, ok := e.d.Keys.receipt(r.data.Key); !ok {
		return nil, fmt.Errorf("appservice: room %s is signed for with receipt key %d, which the database does not hold; restore the database from a backup", roomID, r.data.Key+1)
	}
	if len(row.Machine) > 0 {
		if r.m, err = federation.Unmarshal(e.machineConfig(r), row.Machine); err != nil {
			return nil, fmt.Errorf("appservice: room %s: %w", roomID, err)
		}
	}
	e.rooms[roomID] = r
	return r, nil
}

func (e *Engine) machineConfig(r *room) federation.Config {
	return federation.Config{
		Room: string(r.id), Verify: rooms.VerifyLeafSignature,
		Self: &federation.Identity{Server: e.d.HS.ServerName(), User: string(e.d.HS.UserID()), Key: e.receiptKey(r)},
		Limits: federation.Limits{
			Leaves: e.d.Config.Limits.Leaves,
		},
	}
}

// live reports whether the room has a group and was compared with the
// homeserver since the module started: only then does the module sign.
func (r *room) live() bool { return r.m != nil && r.gap.complete && r.status != store.RoomLeft }

// idle reports whether nothing is under way in the room.
func (r *room) idle() bool {
	return r.status != store.RoomInvited && !r.needMember && r.loaded && r.gap.complete && !r.gap.wanted && len(r.wants) == 0 && r.waiting == 0 && r.nextAct == 0 && !r.stepped
}

// store writes the room if it changed.
func (r *room) store(ctx context.Context, st *store.Store) error {
	if !r.dirty {
		return nil
	}
	data, err := json.Marshal(&r.data)
	if err != nil {
		return fmt.Errorf("appservice: internal: %w", err)
	}
	row := &store.Room{ID: r.id, Status: r.status, Data: data}
	if r.m != nil {
		if row.Machine, err = r.m.MarshalBinary(); err != nil {
			return err
		}
		row.Head = r.m.Head().String()
		if scope, ok := r.m.ScopeAt(r.m.Head()); ok {
			row.GroupID = hex.EncodeToString(scope.Group)
		}
		if c, ok := r.m.Known(r.m.Head()); ok {
			row.Epoch = c.Epoch
		}
	}
	if err := st.PutRoom(ctx, row); err != nil {
		return err
	}
	r.dirty = false
	return nil
}

// put queues an event to be sent into the room.
func (e *Engine) put(ctx context.Context, r *room, row *store.OutboxRow) error {
	row.Room = r.id
	r.sends = true
	return e.d.Store.PutOutbox(ctx, row)
}

// step gives an input to the room's machine and carries out what it asks.
func (e *Engine) step(ctx context.Context, r *room, ev federation.Event) error {
	acts, err := r.m.Step(ev)
	if err != nil {
		return err
	}
	r.stepped = true
	return e.carryOut(ctx, r, acts)
}

// act lets the machine act, and answers for what it signs.
func (e *Engine) act(ctx context.Context, r *room, now time.Duration) error {
	return e.update(ctx, r, func(ctx context.Context) error {
		r.stepped, r.nextAct = false, 0
		if r.m.Retired() {
			if err := e.rekey(ctx, r); err != nil {
				return err
			}
		}
		if !r.resumed {
			ok, err := e.mayResume(ctx, r, now)
			if err != nil {
				return err
			}
			if ok {
				r.resumed, r.dirty, r.data.Restored = true, true, e.restored
				if _, err := r.m.Step(federation.Resume{}); err != nil {
					return err
				}
			}
		}
		if !r.resumed {
			return nil
		}
		if err := e.carryOut(ctx, r, r.m.Tick(now)); err != nil {
			return err
		}
		if at, ok := r.m.Next(); ok {
			r.nextAct = at
		}
		return nil
	})
}

// carryOut does what the machine asks. It runs in the transaction of the input;
// the room is stored at its end, before anything is sent.
func (e *Engine) carryOut(ctx context.Context, r *room, acts []federation.Action) error {
	for _, a := range acts {
		switch a := a.(type) {
		case federation.Save:
			r.dirty = true
		case federation.Send:
			if err := e.sendReceipt(ctx, r, a.Receipt); err != nil {
				return err
			}
		case federation.HeadChanged:
			r.dirty, r.planDirty = true, true
			if err := e.headChanged(ctx, r, a); err != nil {
				return err
			}
		case federation.Finalized:
			e.d.Metrics.Inc(metrics.Commits, "final")
			if since, ok := r.arrived[a.Ref]; ok {
				e.d.Metrics.Observe(metrics.FinalitySeconds, (e.d.Monotonic() - since).Seconds())
				delete(r.arrived, a.Ref)
			}
			r.dirty = true
			if err := e.dropGroups(ctx, r); err != nil {
				return err
			}
		case federation.Doubt:
			e.d.Metrics.Inc(metrics.Doubts)
			roomLog(ctx, r.id).Warn().Str("ref", a.Ref.Short()).Str("rule", a.Rule).Msg("A member could not apply a commit")
		case federation.Fetch:
			r.want(a)
		case federation.Evidence:
			roomLog(ctx, r.id).Error().Str("kind", string(a.Kind)).Str("sequencer", a.Signer.User).Msg("A sequencer signed two receipts that contradict each other")
			e.d.Metrics.Rejected("federation/" + string(a.Kind))
			e.d.Metrics.Inc(metrics.Evidence, string(a.Kind))
			detail := fmt.Sprintf("%s signed two receipts that contradict each other; an admin of the room should take it off the list", a.Signer.User)
			if err := e.d.Store.PutRefusal(ctx, &store.Refusal{Room: r.id, Rule: "federation/" + string(a.Kind), Detail: detail}); err != nil {
				return err
			}
		case federation.Forget:
			r.retryWaiting = true // what waits may lie beside what is kept now
			for _, ref := range a.Refs {
				delete(r.groups, ref)
				delete(r.proposals, ref)
				delete(r.arrived, ref)
				if err := e.d.Store.DeleteGroup(ctx, r.id, ref.String()); err != nil {
					return err
				}
				if err := e.d.Store.DropReceipts(ctx, r.id, ref.String(), string(e.d.HS.UserID())); err != nil {
					return err
				}
			}
		case federation.KeyRetired:
			r.dirty, r.stepped = true, true
			e.d.Metrics.Inc(metrics.KeysRetired)
			roomLog(ctx, r.id).Error().Uint64("counter", a.Counter).Msg("The room holds a receipt of this module's key that the database does not know: an old backup was restored. The key signs nothing more here; the module announces a new one, and an admin of the room has to put it into the list of sequencers")
		default:
			return fmt.Errorf("appservice: internal: unknown action %T", a)
		}
	}
	return nil
}

func (e *Engine) sendReceipt(ctx context.Context, r *room, receipt federation.Receipt) error {
	eventType, content := rooms.ReceiptOf(receipt)
	raw, err := rooms.Encode(content)
	if err != nil {
		return err
	}
	hash := receipt.Hash(federation.Scope{Room: string(r.id)}).String()
	kind := eventType[len(rooms.Prefix):]
	err = e.d.Store.PutReceipt(ctx, r.id, &store.Receipt{
		Hash: hash, Kind: kind, Signer: string(e.d.HS.UserID()), Ref: receipt.Commit().String(), Counter: receipt.Link().Counter, Content: raw,
	})
	if err != nil {
		return err
	}
	e.d.Metrics.Inc(metrics.Receipts, kind)
	switch receipt := receipt.(type) {
	case *federation.Accept:
		e.d.Metrics.Inc(metrics.Commits, "accepted")
		if receipt.Provisional {
			e.d.Metrics.Inc(metrics.Provisional)
		}
	case *federation.Promise:
		if receipt.Ballot.Rank == receipt.Promiser {
			e.d.Metrics.Inc(metrics.Takeovers, "own")
		} else {
			e.d.Metrics.Inc(metrics.Takeovers, "other")
		}
	}
	roomLog(ctx, r.id).Info().Str("kind", kind).Str("ref", receipt.Commit().Short()).Uint64("counter", receipt.Link().Counter).Msg("Signed a receipt")
	if err := e.put(ctx, r, &store.OutboxRow{Type: eventType, Content: raw, Priority: store.PriorityReceipt, Tag: tagReceipt + hash}); err != nil {
		return err
	}
	e.d.crash(crashSigned)
	return nil
}

const tagReceipt = "receipt:"

// Sent notes the event that a row became.
func (e *Engine) Sent(ctx context.Context, row *store.OutboxRow, event id.EventID) error {
	if r := e.rooms[row.Room]; r != nil && strings.HasPrefix(row.Tag, tagRemove) {
		r.removePause.reset()
	}
	if len(row.Tag) <= len(tagReceipt) || row.Tag[:len(tagReceipt)] != tagReceipt {
		return nil
	}
	rc, err := e.d.Store.Receipt(ctx, row.Room, row.Tag[len(tagReceipt):])
	if errors.Is(err, store.ErrNotFound) {
		return nil // the room was forgotten
	}
	if err != nil {
		return err
	}
	rc.EventID = event
	return e.d.Store.PutReceipt(ctx, row.Room, rc)
}

// Failed hears that the homeserver refused a row for good. A receipt that is in
// the database must be in the room: it is tried again unchanged.
func (e *Engine) Failed(ctx context.Context, row *store.OutboxRow) error {
	r, err := e.room(ctx, row.Room)
	if err != nil {
		return err
	}
	roomLog(ctx, row.Room).Warn().Str("event_type", row.Type).Str("cause", row.Error).Msg("The homeserver refused an event of the module")
	if r.status == store.RoomLeft {
		return nil
	}
	r.needState = true // perhaps the bot may not send, or is not in the room
	if len(row.Tag) <= len(tagReceipt) || row.Tag[:len(tagReceipt)] != tagReceipt {
		if row.Type == rooms.TypeHead {
			r.dirty, r.data.Announced, r.data.Published = true, false, federation.Ref{}
			r.publishPause.fail(e.d.Monotonic(), 10*time.Second, 10*time.Minute)
			return r.store(ctx, e.d.Store)
		}
		e.removeRefused(r, row)
		return nil
	}
	again := &store.OutboxRow{
		Room: row.Room, Kind: row.Kind, Type: row.Type, StateKey: row.StateKey, Content: row.Content, Tag: row.Tag, Priority: store.PriorityAgain,
		NotUntil: e.d.Now().Add(time.Minute),
	}
	return e.d.Store.PutOutbox(ctx, again)
}

// group returns the group's state after a commit: from memory, from the
// database, or by following its commits from an ancestor.
func (e *Engine) group(ctx context.Context, r *room, ref federation.Ref) (*mls.PublicGroup, error) {
	if pg := r.groups[ref]; pg != nil {
		return pg, nil
	}
	raw, err := e.d.Store.Group(ctx, r.id, ref.String())
	if err == nil {
		pg, err := mls.UnmarshalPublicGroup(e.mls, raw)
		if err != nil {
			return nil, fmt.Errorf("appservice: stored group of room %s at %s: %w", r.id, ref.Short(), err)
		}
		e.holdTree(r, ref, pg)
		return pg, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	c, ok := r.m.Known(ref)
	if !ok {
		return nil, refusal(ruleTooOld, "the group's state at commit %s was dropped, so far below the newest final commit it lies", ref.Short())
	}
	parent, err := e.group(ctx, r, c.Parent)
	if err != nil {
		return nil, err
	}
	row, err := e.d.Store.Commit(ctx, r.id, ref.String())
	if err != nil {
		return nil, err
	}
	var sc storedCommit
	if err := json.Unmarshal(row.Content, &sc); err != nil {
		return nil, fmt.Errorf("appservice: stored commit %s: %w", ref.Short(), err)
	}
	content, err := sc.content()
	if err != nil {
		return nil, fmt.Errorf("appservice: stored commit %s: %w", ref.Short(), err)
	}
	if content.Founding {
		return nil, fmt.Errorf("appservice: internal: the founding state of %s was not kept", ref.Short())
	}
	staged, err := stage(parent, content)
	if err != nil {
		return nil, fmt.Errorf("appservice: stored commit %s: %w", ref.Short(), err)
	}
	pg := staged.Merge()
	e.holdTree(r, ref, pg)
	return pg, nil
}

// keepGroup puts a group's state away, a large one not at every commit.
func (e *Engine) keepGroup(ctx context.Context, r *room, ref federation.Ref, pg *mls.PublicGroup, always bool) error {
	e.holdTree(r, ref, pg)
	if !always && pg.MemberCount() > smallGroup && pg.Epoch()%groupEvery != 0 {
		return nil
	}
	raw, err := pg.MarshalBinary()
	if err != nil {
		return err
	}
	return e.d.Store.PutGroup(ctx, r.id, ref.String(), raw)
}

// dropGroups forgets group states far below the newest final, now and then. The
// newest stored one at or below the limit stays, since those above it may
// follow from it.
func (e *Engine) dropGroups(ctx context.Context, r *room) error {
	path := r.m.Path(r.m.Base(), r.m.NewestFinal())
	if len(path) <= groupsBelowFinal || len(path)%8 != 0 {
		return nil
	}
	stored, err := e.d.Store.GroupRefs(ctx, r.id)
	if err != nil {
		return err
	}
	below := make(map[federation.Ref]bool)
	held := make(map[string]bool, len(stored))
	for _, ref := range stored {
		held[ref] = true
	}
	anchor := false
	for _, ref := range slices.Backward(append([]federation.Ref{r.m.Base()}, path[:len(path)-groupsBelowFinal]...)) {
		if anchor {
			below[ref] = true
		}
		anchor = anchor || held[ref.String()]
	}
	for ref := range r.groups {
		if below[ref] || !r.m.Held(ref) {
			delete(r.groups, ref)
		}
	}
	for ref := range below {
		if held[ref.String()] {
			if err := e.d.Store.DeleteGroup(ctx, r.id, ref.String()); err != nil {
				return err
			}
		}
	}
	return nil
}
