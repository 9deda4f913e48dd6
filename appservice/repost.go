package appservice

import (
	"context"
	"encoding/json"
	"errors"
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

// Homeservers do not all have the same events: each soft-fails others, purges
// what is old, and takes away the content of what was redacted. What no
// homeserver call finds is asked for in the room, by ref or hash, and whoever
// holds it posts it again. Who answers is settled without a word: the sequencers
// have turns, a few seconds apart, the one that signed a thing first, one that
// posted it already last; who sees it posted by another keeps quiet. So a thing
// is posted once, unless the asker's server refuses that event as well.

// Bounds of what is asked for and posted again.
const (
	askEvery     = time.Minute      // between two questions in a room
	askAtOnce    = 32               // commits, and as many receipts, in one
	askBack      = 32               // receipts asked for below a missing one
	repostTurn   = 5 * time.Second  // between the turns of two modules
	repostPause  = 45 * time.Second // the same thing is not posted again sooner, by anybody
	repostTimes  = 8                // nor more often by this process
	repostBurst  = 32               // at once in one room
	repostEvery  = 2 * time.Second  // after that
	repostItems  = 4096             // remembered
	headsPause   = time.Minute      // a head is posted on request no more often
	aboveAtOnce  = 16
	maxNonce     = 64
	repostCommit = "c"
	repostOf     = "r" // a receipt
	repostEvent  = "e" // anything else, by its event
)

// again is what a room's module asks for, and what it is asked for.
type again struct {
	refs     []federation.Ref
	receipts map[federation.Ref]*want
	missing  []federation.Ref // of these: not in the history either
	heads    string           // the other modules' heads are to be asked for, with this nonce
	answers  []string         // the newest nonces of such questions by others
	askNext  time.Duration

	items    map[string]*repostItem
	tokens   time.Duration // when the first free place of the burst was, or will be, free
	headNext time.Duration
}

// repostItem is what is remembered of a thing that was asked for or posted
// again.
type repostItem struct {
	due    time.Duration // just after the own turn begins; 0: none
	last   time.Duration // when it was posted last
	posted bool          // it was
	times  int           // by this module
	by     map[id.UserID]bool
}

// wantReceipt notes that a receipt is missing.
func (r *room) wantReceipt(f federation.Fetch) {
	if r.m != nil && r.m.Knows(f.ReceiptKey, f.Counter) || r.anew.receipts[f.Receipt] != nil || f.Receipt.IsZero() {
		return
	}
	r.gap.wanted = true
	if len(r.anew.receipts) >= maxWants {
		return
	}
	if r.anew.receipts == nil {
		r.anew.receipts = make(map[federation.Ref]*want)
	}
	w := &want{fetch: f}
	w.pause.until = 0
	r.anew.receipts[f.Receipt] = w
}

// compareMarks looks what receipts another module knows that are not here. Only
// keys of the lists in force count: the others sign nothing that matters, and any
// member can name some.
func (r *room) compareMarks(head *rooms.HeadContent) {
	list := r.inForce()
	for _, mark := range head.Receipts {
		if _, listed := list.Rank(mark.Key); listed && !r.m.Knows(mark.Key, mark.Counter) {
			r.wantReceipt(federation.Fetch{Receipt: federation.Ref(mark.Hash), ReceiptKey: mark.Key, Counter: mark.Counter})
		}
	}
}

// fillReceipts looks for missing receipts: first in the history, then in the
// room. It returns when there is more to do.
func (r *room) fillReceipts(now time.Duration) (next time.Duration) {
	for hash, w := range r.anew.receipts {
		switch {
		case r.m.Knows(w.fetch.ReceiptKey, w.fetch.Counter) || w.pause.tries >= wantTries:
			delete(r.anew.receipts, hash)
			continue
		case w.pause.ready(now):
			w.pause.fail(now, gapPause, gapPauseMax)
			r.gap.wanted = true
			if w.pause.tries >= 3 && !slices.Contains(r.anew.missing, hash) {
				r.anew.missing = append(r.anew.missing, hash)
			}
		}
		if next == 0 || w.pause.until < next {
			next = w.pause.until
		}
	}
	return next
}

// askRoom asks in the room for what no homeserver call could find, and returns
// when it may ask again.
func (e *Engine) askRoom(ctx context.Context, r *room, now time.Duration) (next time.Duration, err error) {
	a := &r.anew
	if len(a.refs) == 0 && len(a.missing) == 0 && a.heads == "" || r.m == nil || !r.gap.complete {
		return 0, nil
	}
	if now < a.askNext {
		return a.askNext, nil
	}
	req := &rooms.RequestContent{Nonce: e.nonce()}
	if a.heads != "" {
		req.Heads, req.Nonce = true, a.heads
	}
	for _, ref := range a.refs {
		if !r.m.Held(ref) && len(req.Refs) < askAtOnce && !slices.Contains(req.Refs, rooms.Hash(ref)) {
			req.Refs = append(req.Refs, rooms.Hash(ref))
		}
	}
	slices.SortFunc(a.missing, compareRefs)
	for _, hash := range a.missing {
		w := a.receipts[hash]
		if w == nil || r.m.Knows(w.fetch.ReceiptKey, w.fetch.Counter) || len(req.Receipts) >= askAtOnce {
			continue
		}
		req.Receipts = append(req.Receipts, rooms.Hash(hash))
		// With it what lies below it in its chain, if that is little.
		low := w.fetch.Counter
		for low > 1 && w.fetch.Counter-low < askBack && !r.m.Knows(w.fetch.ReceiptKey, low-1) {
			low--
		}
		if low < w.fetch.Counter && (low == 1 || r.m.Knows(w.fetch.ReceiptKey, low-1)) && len(req.Above) < rooms.MaxSequencers {
			req.Above = append(req.Above, rooms.ReceiptsAbove{Key: w.fetch.ReceiptKey, Counter: low - 1})
		}
	}
	a.refs, a.missing, a.heads = nil, nil, ""
	if len(req.Refs) == 0 && len(req.Receipts) == 0 && !req.Heads {
		return 0, nil
	}
	a.askNext = now + askEvery
	raw, err := rooms.Encode(req)
	if err != nil {
		return 0, err
	}
	e.d.Metrics.Inc(metrics.Gaps, "asked")
	return 0, e.update(ctx, r, func(ctx context.Context) error {
		return e.put(ctx, r, &store.OutboxRow{Type: rooms.TypeRequest, Content: raw, Priority: store.PriorityRest})
	})
}

// takeRequest hears what somebody lacks. What this module holds of it is posted
// again when its turn comes.
func (e *Engine) takeRequest(ctx context.Context, r *room, msg *message) (outcome, error) {
	if msg.sender == e.d.HS.UserID() || r.m == nil {
		return ignored, nil
	}
	req, err := rooms.DecodeRequest(msg.content)
	if err != nil {
		return done, err
	}
	if r.loaded && !r.state.InRoom(msg.sender) {
		return done, refusal(string(rooms.RuleMemberNotInRoom), "%s is not in the room", msg.sender)
	}
	now := e.d.Monotonic()
	policy, _ := r.m.PolicyAt(r.m.Head())
	if req.Heads && req.Nonce != "" && len(req.Nonce) <= maxNonce && r.m.Listed() {
		if r.heads[msg.sender] != nil { // a module, which waits for the answer
			if r.anew.answers = append(r.anew.answers, req.Nonce); len(r.anew.answers) > 4 {
				r.anew.answers = r.anew.answers[1:]
			}
		}
		r.postHead(now)
	}
	refs := make([]federation.Ref, 0, len(req.Refs))
	for _, h := range req.Refs {
		refs = append(refs, federation.Ref(h))
	}
	if req.Since != nil && r.m.Extends(r.m.Head(), federation.Ref(req.Since.Ref)) {
		refs = append(refs, r.m.Path(federation.Ref(req.Since.Ref), r.m.Head())...)
	}
	for _, ref := range refs[:min(len(refs), askAtOnce)] {
		row, err := e.d.Store.Commit(ctx, r.id, ref.String())
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return done, err
		default:
			r.turn(e.d.HS.UserID(), repostCommit+row.Ref, "", msg.sender, now)
		}
	}
	var found []*store.Receipt
	for _, h := range req.Receipts[:min(len(req.Receipts), askAtOnce)] {
		row, err := e.d.Store.Receipt(ctx, r.id, federation.Ref(h).String())
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return done, err
		default:
			found = append(found, row)
		}
	}
	for _, above := range req.Above {
		rank, listed := policy.Sequencers.Rank(above.Key)
		if !listed {
			continue
		}
		rows, err := e.d.Store.ReceiptsAbove(ctx, r.id, policy.Sequencers[rank].User, above.Counter, aboveAtOnce)
		if err != nil {
			return done, err
		}
		found = append(found, rows...)
	}
	for _, row := range found {
		r.turn(e.d.HS.UserID(), repostOf+row.Hash, id.UserID(row.Signer), msg.sender, now)
	}
	return done, nil
}

// postHead has the module's head posted anew, now and then.
func (r *room) postHead(now time.Duration) {
	if now >= r.anew.headNext {
		r.anew.headNext = now + headsPause
		r.dirty, r.data.Published = true, federation.Ref{}
	}
}

// item returns what is remembered of a thing.
func (r *room) item(key string) *repostItem {
	if r.anew.items == nil {
		r.anew.items = make(map[string]*repostItem)
	}
	it := r.anew.items[key]
	if it == nil {
		if len(r.anew.items) >= repostItems {
			for k, old := range r.anew.items {
				if old.due == 0 {
					delete(r.anew.items, k)
				}
			}
		}
		it = &repostItem{}
		if len(r.anew.items) < repostItems {
			r.anew.items[key] = it
		}
	}
	return it
}

// turn gives this module its turn to post something again: the module that
// signed it comes first, then the list in its order, those that posted it
// already last. Modules off the list come after all of them.
func (r *room) turn(self id.UserID, key string, signer, asker id.UserID, now time.Duration) {
	it := r.item(key)
	if it.due > 0 || it.times >= repostTimes || it.posted && now-it.last < repostPause {
		return
	}
	policy, _ := r.m.PolicyAt(r.m.Head())
	var first, fresh, last []id.UserID
	for _, s := range policy.Sequencers {
		switch user := id.UserID(s.User); {
		case user == asker:
		case it.by[user]:
			last = append(last, user)
		case user == signer:
			first = append(first, user)
		default:
			fresh = append(fresh, user)
		}
	}
	order := slices.Concat(first, fresh, last)
	place := slices.Index(order, self)
	if place < 0 {
		place = len(order)
	}
	it.due = now + time.Duration(place)*repostTurn + 1
}

// sawRepost notes what was posted again, and by whom.
func (e *Engine) sawRepost(r *room, msg *message, c *rooms.RepostContent) {
	if r.m == nil {
		return
	}
	key := ""
	switch c.Type {
	case rooms.TypeCommit:
		content, err := rooms.DecodeCommit(c.Content)
		if err != nil || len(content.Message) == 0 {
			return
		}
		m, err := mls.ParseMessage(content.Message)
		if err != nil {
			return
		}
		ref, err := rooms.CommitRef(m)
		if err != nil {
			return
		}
		key = repostCommit + ref.String()
	case rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady:
		ev, err := rooms.DecodeReceipt(c.Type, "", c.Content)
		if err != nil {
			return
		}
		receipt, ok := ev.(federation.Receipt)
		if !ok {
			return
		}
		key = repostOf + receipt.Hash(federation.Scope{Room: string(r.id)}).String()
	default:
		key = repostEvent + string(c.Event)
	}
	it := r.item(key)
	it.due, it.last, it.posted = 0, e.d.Monotonic(), true
	if it.by == nil {
		it.by = make(map[id.UserID]bool)
	}
	if len(it.by) < rooms.MaxSequencers {
		it.by[msg.sender] = true
	}
}

// postAgain posts what this module's turn has come for, and returns when the
// next turn comes.
func (e *Engine) postAgain(ctx context.Context, r *room, now time.Duration) (next time.Duration, err error) {
	var due []string
	for key, it := range r.anew.items {
		switch {
		case it.due == 0:
		case it.due-1 <= now:
			due = append(due, key)
		case next == 0 || it.due < next:
			next = it.due
		}
	}
	if len(due) == 0 || r.m == nil || r.status == store.RoomLeft {
		return next, nil
	}
	slices.SortFunc(due, func(a, b string) int {
		if x, y := r.anew.items[a].due, r.anew.items[b].due; x != y {
			return int(x - y)
		}
		return strings.Compare(a, b)
	})
	err = e.update(ctx, r, func(ctx context.Context) error {
		for _, key := range due {
			if r.anew.tokens > now+(repostBurst-1)*repostEvery {
				next = r.anew.tokens - (repostBurst-1)*repostEvery
				return nil
			}
			it := r.anew.items[key]
			it.due = 0
			posted, err := e.repostItem(ctx, r, key)
			if err != nil {
				return err
			}
			if !posted {
				continue
			}
			r.anew.tokens = max(r.anew.tokens, now) + repostEvery
			it.times++
			it.last, it.posted = now, true
			e.d.Metrics.Inc(metrics.Gaps, "reposted")
		}
		return nil
	})
	return next, err
}

// repostItem puts something into the outbox again, as it was.
func (e *Engine) repostItem(ctx context.Context, r *room, key string) (posted bool, err error) {
	what, name := key[:1], key[1:]
	c := &rooms.RepostContent{}
	switch what {
	case repostCommit:
		row, err := e.d.Store.Commit(ctx, r.id, name)
		if err != nil {
			return false, notFoundIsNil(err)
		}
		var sc storedCommit
		if err := json.Unmarshal(row.Content, &sc); err != nil {
			return false, err
		}
		c.Type, c.Sender, c.Event, c.Content = rooms.TypeCommit, row.Sender, row.EventID, sc.Event
	case repostOf:
		row, err := e.d.Store.Receipt(ctx, r.id, name)
		if err != nil {
			return false, notFoundIsNil(err)
		}
		c.Type, c.Sender, c.Event, c.Content = rooms.Prefix+row.Kind, id.UserID(row.Signer), row.EventID, row.Content
	default:
		row, err := e.d.Store.Inbox(ctx, id.EventID(name))
		if err != nil || len(row.Raw) == 0 {
			return false, notFoundIsNil(err)
		}
		var parsed struct {
			Content json.RawMessage `json:"content"`
		}
		if err := json.Unmarshal(row.Raw, &parsed); err != nil {
			return false, nil
		}
		c.Type, c.Sender, c.Event, c.Content = row.Type, row.Sender, row.EventID, parsed.Content
	}
	raw, err := rooms.Encode(c)
	if err != nil {
		if rooms.RuleOf(err) != "" {
			return false, nil // too large to be wrapped: who lacks it finds it by its event
		}
		return false, err
	}
	roomLog(ctx, r.id).Info().Str("of_type", c.Type).Stringer("of_event", c.Event).Msg("Posted an event again that others lack")
	return true, e.put(ctx, r, &store.OutboxRow{Type: rooms.TypeRepost, Content: raw, Priority: store.PriorityRest})
}

func notFoundIsNil(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// keepReceipt keeps another module's receipt, once it was checked, so that it
// can be posted again where it is lacking.
func (e *Engine) keepReceipt(ctx context.Context, r *room, msg *message, ev federation.Event) error {
	receipt, ok := ev.(federation.Receipt)
	if !ok {
		return nil
	}
	checked := r.m.Held(receipt.Commit())
	switch ev := ev.(type) {
	case *federation.Promise:
		base, _ := r.m.ConfigAt(r.m.Base())
		checked = r.m.Held(ev.Config) || ev.Config == base
	case *federation.Ready:
		checked = r.m.Held(ev.Config)
	}
	if !checked {
		return nil // it waits in the machine, unchecked
	}
	hash := receipt.Hash(federation.Scope{Room: string(r.id)}).String()
	if msg.sender == e.d.HS.UserID() {
		// The own ones are in the database since they were signed.
		if _, err := e.d.Store.Receipt(ctx, r.id, hash); err != nil {
			return notFoundIsNil(err)
		}
	}
	return e.d.Store.PutReceipt(ctx, r.id, &store.Receipt{
		Hash: hash, Kind: strings.TrimPrefix(msg.kind, rooms.Prefix), Signer: string(msg.sender), Ref: receipt.Commit().String(),
		Counter: receipt.Link().Counter, EventID: msg.event, Content: msg.content,
	})
}

// takeRedaction posts again what lost its content: who comes later needs it as
// much as who was there. It hides nothing from anyone: what events of ours hold
// is in the group's history, and messages are not among them.
func (e *Engine) takeRedaction(ctx context.Context, r *room, msg *message) error {
	if r.m == nil || !r.loaded || msg.redacts == "" {
		return nil
	}
	old, err := e.d.Store.Inbox(ctx, msg.redacts)
	if err != nil {
		return notFoundIsNil(err) // none of ours
	}
	if old.Room != r.id || !strings.HasPrefix(old.Type, rooms.Prefix) {
		return nil
	}
	_, from, _ := msg.sender.Parse()
	_, of, _ := old.Sender.Parse()
	if from != of && r.state.PowerOf(msg.sender) < r.state.Power.Redact {
		return nil // no homeserver follows it
	}
	now, self := e.d.Monotonic(), e.d.HS.UserID()
	if old.Type == rooms.TypeHead {
		if old.Sender == self {
			r.postHead(now)
		}
		return nil
	}
	kind, event := old.Type, msg.redacts
	if kind == rooms.TypeRepost { // what was posted again goes by its own name
		var parsed struct {
			Content json.RawMessage `json:"content"`
		}
		if json.Unmarshal(old.Raw, &parsed) != nil {
			return nil
		}
		c, err := rooms.DecodeRepost(parsed.Content)
		if err != nil {
			return nil
		}
		kind, event = c.Type, c.Event
	}
	switch kind {
	case rooms.TypeCommit:
		row, err := e.d.Store.CommitByEvent(ctx, r.id, event)
		if err != nil {
			return notFoundIsNil(err)
		}
		if ref, err := federation.ParseRef(row.Ref); err == nil && r.m.Held(ref) {
			r.turn(self, repostCommit+row.Ref, "", "", now)
		}
	case rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady:
		row, err := e.d.Store.ReceiptByEvent(ctx, r.id, event)
		if err != nil {
			return notFoundIsNil(err)
		}
		if ref, err := federation.ParseRef(row.Ref); err == nil && (ref.IsZero() || r.m.Held(ref)) {
			r.turn(self, repostOf+row.Hash, id.UserID(row.Signer), "", now)
		}
	case rooms.TypeApplied, rooms.TypeReject:
		r.turn(self, repostEvent+string(event), "", "", now)
	}
	return nil
}
