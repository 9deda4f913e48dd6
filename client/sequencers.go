package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Errors of the methods that choose a room's sequencers.
var (
	ErrNoModuleOf = errors.New("client: the server has no module in the room")
	ErrNotListed  = errors.New("client: the module is not in the room's list")
	ErrNotReady   = errors.New("client: the new list of modules is not in force yet")
)

// SequencerState says what this device sees of a listed module.
type SequencerState string

// The values of SequencerState.
const (
	SequencerServes  SequencerState = "serves"           // in the room, with the key that the group lists
	SequencerAbsent  SequencerState = "absent"           // its bot is not in the room, or has not spoken
	SequencerNewKey  SequencerState = "another key"      // it announces another receipt key: its database was lost
	SequencerUnready SequencerState = "not ready"        // of a list to come: it has not said that it is ready
	SequencerReady   SequencerState = "ready"            // of a list to come: it has
	SequencerLied    SequencerState = "contradicts self" // it signed two receipts that contradict each other
)

// SequencerInfo is a module in a room's list.
type SequencerInfo struct {
	Server string
	User   id.UserID
	Key    []byte // receipt key, as the group lists it
	State  SequencerState

	present bool // of a list to come: it is in the present one, too
}

// ModuleInfo is a module that is in the room, listed or not.
type ModuleInfo struct {
	Server string
	User   id.UserID
	Key    []byte // receipt key, as the module announces it
}

// ListChange is a change of the list that is not in force yet.
type ListChange struct {
	By       id.UserID
	List     []SequencerInfo // State is SequencerReady, SequencerUnready or SequencerAbsent
	Needs    int             // modules that have to be ready
	Accepted bool            // by the present list; it is in force once it is final

	gone []SequencerInfo // of the present list: those that do not serve
}

// SequencersInfo is what this device knows of who orders a room's commits.
type SequencersInfo struct {
	Room     id.RoomID
	List     []SequencerInfo
	Quorum   int // modules whose votes make a commit final
	Manual   bool
	Era      uint64
	EraBy    id.UserID // who opened it; empty in the first era
	Epoch    uint64    // of the head
	Final    uint64    // newest final epoch
	Stalled  time.Duration
	HeirsDue bool // heirs may open an era
	Admins   []id.UserID
	Heirs    []id.UserID
	// Others are modules in the room that are not listed, Without the servers
	// whose users are in the group and that have no module in the room.
	Others  []ModuleInfo
	Without []string
	Change  *ListChange // nil: none under way
}

// modules returns the modules of a room, one for each server, in order of the
// servers: bots that are in the room and have announced a receipt key there. A
// bot that has not the usual name counts if it is listed among the room's
// functional members: that takes power, and any user can post a head.
func (r *room) modules() []federation.Sequencer {
	var out []federation.Sequencer
	for _, bot := range r.state.bots() {
		head := r.state.head(bot)
		server := serverOf(bot)
		if head == nil || r.state.membership(bot) != rooms.MembershipJoin || head.Server != "" && head.Server != server || !r.isModule(bot) {
			continue
		}
		s := federation.Sequencer{Server: server, User: string(bot), ReceiptKey: head.ReceiptKey}
		if i := slices.IndexFunc(out, func(o federation.Sequencer) bool { return o.Server == server }); i >= 0 {
			if isBot(bot) {
				out[i] = s
			}
			continue
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b federation.Sequencer) int { return strings.Compare(a.Server, b.Server) })
	return out
}

// isModule tells whether a user counts as a module's bot in this room.
func (r *room) isModule(user id.UserID) bool {
	return isBot(user) || slices.Contains(r.state.view.Functional, user)
}

// moduleOf returns the module of a server, if it has one in the room.
func (r *room) moduleOf(server string) (federation.Sequencer, bool) {
	for _, m := range r.modules() {
		if m.Server == server {
			return m, true
		}
	}
	return federation.Sequencer{}, false
}

// stateOf says how a listed module stands.
func (r *room) stateOf(s federation.Sequencer, present []federation.Sequencer) SequencerState {
	if r.rec.Liars[rooms.EncodeBase64(s.ReceiptKey)] != "" {
		return SequencerLied
	}
	for _, m := range present {
		switch {
		case m.Server != s.Server:
		case string(m.ReceiptKey) == string(s.ReceiptKey):
			return SequencerServes
		default:
			return SequencerNewKey
		}
	}
	return SequencerAbsent
}

// Sequencers returns who orders the commits of a room, and what is under way to
// change that.
func (c *Client) Sequencers(_ context.Context, roomID id.RoomID) (*SequencersInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, e, err := c.memberOf(roomID)
	if err != nil {
		return nil, err
	}
	if usable := r.sendEpoch(); usable != nil {
		e = usable
	}
	policy, err := e.policy()
	if err != nil {
		return nil, err
	}
	present := r.modules()
	info := &SequencersInfo{
		Room: roomID, Quorum: federation.List(policy.Sequencers).Quorum(), Manual: policy.Manual, Epoch: r.head().number,
		Stalled: r.machine.Stalled(), HeirsDue: r.machine.HeirsDue(), Admins: slices.Clone(policy.Admins),
	}
	var base federation.Ref
	info.Era, base = r.machine.EraOf()
	if known, ok := r.machine.Known(base); ok && info.Era > 0 {
		info.EraBy = id.UserID(known.AuthorUser)
	}
	info.Final = r.epochOf(r.machine.NewestFinal())
	for _, s := range policy.Sequencers {
		info.List = append(info.List, SequencerInfo{Server: s.Server, User: id.UserID(s.User), Key: s.ReceiptKey, State: r.stateOf(s, present)})
	}
	for _, h := range policy.Heirs {
		info.Heirs = append(info.Heirs, id.UserID(h.User))
	}
	for _, m := range present {
		if !slices.ContainsFunc(policy.Sequencers, func(s federation.Sequencer) bool { return s.Server == m.Server }) {
			info.Others = append(info.Others, ModuleInfo{Server: m.Server, User: id.UserID(m.User), Key: m.ReceiptKey})
		}
	}
	for _, leaf := range rooms.GroupLeaves(e.group) {
		server := serverOf(leaf.Cred.User)
		if _, ok := r.moduleOf(server); !ok && server != "" && !slices.Contains(info.Without, server) {
			info.Without = append(info.Without, server)
		}
	}
	slices.Sort(info.Without)
	info.Change = r.listChange()
	return info, nil
}

// epochOf returns the number of the epoch that a held commit makes.
func (r *room) epochOf(ref federation.Ref) uint64 {
	if known, ok := r.machine.Known(ref); ok {
		return known.Epoch
	}
	if e := r.epochs[ref]; e != nil {
		return e.number
	}
	return r.rec.JoinEpoch
}

func (r *room) listToCome() (federation.Ref, bool) {
	var own federation.Ref
	if r.pending != nil {
		own = federation.Ref(r.pending.Ref)
	}
	return rooms.ListToCome(r.machine, own)
}

// serversOf are those of a list, in its order.
func serversOf(list federation.List) (servers []string) {
	for _, s := range list {
		servers = append(servers, s.Server)
	}
	return servers
}

// listChange describes the change of the list that is to come, see [rooms.ListToCome].
func (r *room) listChange() *ListChange {
	best, ok := r.listToCome()
	if !ok {
		return nil
	}
	known, _ := r.machine.Known(best)
	list, _ := r.machine.ListAt(best)
	change := &ListChange{By: id.UserID(known.AuthorUser), Needs: list.Quorum(), Accepted: r.machine.Accepted(best)}
	ready, present := r.machine.Readies(best), r.modules()
	now, _ := r.machine.ListAt(r.machine.Governing(best))
	for _, s := range now {
		if state := r.stateOf(s, present); state != SequencerServes {
			change.gone = append(change.gone, SequencerInfo{Server: s.Server, User: id.UserID(s.User), Key: s.ReceiptKey, State: state, present: true})
		}
	}
	for rank, s := range list {
		state := SequencerUnready
		if slices.Contains(ready, uint32(rank)) {
			state = SequencerReady
		} else if seen := r.stateOf(s, present); seen != SequencerServes {
			state = seen
		}
		_, listed := now.Rank(s.ReceiptKey)
		change.List = append(change.List, SequencerInfo{Server: s.Server, User: id.UserID(s.User), Key: s.ReceiptKey, State: state, present: listed})
	}
	return change
}

// reason names what a list change waits for, as NotReadyWarning does.
func (l *ListChange) reason() string {
	switch {
	case l.ready() < l.Needs:
		return WaitsForReady
	case !l.Accepted:
		return WaitsForAccept
	}
	return WaitsForFinal
}

// ready counts the modules that have said that they are.
func (l *ListChange) ready() (n int) {
	for _, s := range l.List {
		if s.State == SequencerReady {
			n++
		}
	}
	return n
}

// awaited are the modules whose word is waited for. The present ones speak last, when
// theirs is the word that is missing: then it is those that do not serve, if there are
// any.
func (l *ListChange) awaited() (list []SequencerInfo) {
	if l.reason() != WaitsForReady {
		return l.gone
	}
	newcomers := slices.ContainsFunc(l.List, func(s SequencerInfo) bool { return !s.present && s.State != SequencerReady })
	for _, s := range l.List {
		if s.State != SequencerReady && !(newcomers && s.present && s.State == SequencerUnready) {
			list = append(list, s)
		}
	}
	return list
}

// waiting are the servers of the modules whose word is waited for; absent those of
// them whose module is not in the room, and rekeyed whose module announces another
// key.
func (l *ListChange) waiting() (servers, absent, rekeyed []string) {
	for _, s := range l.awaited() {
		servers = append(servers, s.Server)
		switch s.State {
		case SequencerAbsent:
			absent = append(absent, s.Server)
		case SequencerNewKey:
			rekeyed = append(rekeyed, s.Server)
		}
	}
	return servers, absent, rekeyed
}

// missing says what a list change waits for.
func (l *ListChange) missing() string {
	var waits []string
	for _, s := range l.awaited() {
		switch s.State {
		case SequencerAbsent:
			waits = append(waits, s.Server+" (its module is not in the room)")
		case SequencerNewKey:
			waits = append(waits, s.Server+" (its module announces another key)")
		default:
			waits = append(waits, s.Server)
		}
	}
	gone := ""
	if len(waits) > 0 {
		gone = "; not all of them serve: " + strings.Join(waits, ", ")
	}
	switch l.reason() {
	case WaitsForReady:
		return fmt.Sprintf("%d of its %d modules have said that they are ready, %d have to; waiting for %s", l.ready(), len(l.List), l.Needs, strings.Join(waits, ", "))
	case WaitsForAccept:
		return "its modules are ready, the present ones have not accepted the change" + gone
	}
	return "the present modules have accepted it and not yet made it final: a member of another user has to apply it, and a majority of them to vote" + gone
}

// SetSequencers lets an admin name the modules that order a room's commits, by
// their servers, in order. From then on no client changes the list by itself
// (see AutoSequencers). It returns once the new list is in force; if ctx ends
// before, the error wraps [ErrNotReady] and says what it waits for, and the
// change goes on.
func (c *Client) SetSequencers(ctx context.Context, roomID id.RoomID, servers ...string) error {
	return c.setSequencers(ctx, roomID, func(r *room, _ *rooms.Policy) ([]federation.Sequencer, error) {
		return r.listOf(servers)
	})
}

// AddSequencers lets an admin put modules at the end of the list.
func (c *Client) AddSequencers(ctx context.Context, roomID id.RoomID, servers ...string) error {
	return c.setSequencers(ctx, roomID, func(r *room, p *rooms.Policy) ([]federation.Sequencer, error) {
		more, err := r.listOf(servers)
		if err != nil {
			return nil, err
		}
		list := slices.Clone(p.Sequencers)
		for _, s := range more {
			if !slices.ContainsFunc(list, func(o federation.Sequencer) bool { return o.Server == s.Server }) {
				list = append(list, s)
			}
		}
		return list, nil
	})
}

// DropSequencers lets an admin take modules off the list: those that are lost,
// or were caught lying.
func (c *Client) DropSequencers(ctx context.Context, roomID id.RoomID, servers ...string) error {
	return c.setSequencers(ctx, roomID, func(_ *room, p *rooms.Policy) ([]federation.Sequencer, error) {
		list := slices.Clone(p.Sequencers)
		for _, server := range servers {
			i := slices.IndexFunc(list, func(s federation.Sequencer) bool { return s.Server == server || s.User == server })
			if i < 0 {
				return nil, fmt.Errorf("%w: %s", ErrNotListed, server)
			}
			list = slices.Delete(list, i, i+1)
		}
		if len(list) == 0 {
			return nil, fmt.Errorf("%w: a room needs one module at least; name another one first", ErrNotAllowed)
		}
		return list, nil
	})
}

// AutoSequencers lets an admin say whether the admins' clients choose modules
// and heirs by themselves. New rooms begin with true.
func (c *Client) AutoSequencers(ctx context.Context, roomID id.RoomID, auto bool) error {
	return c.ChangePolicy(ctx, roomID, func(p *rooms.Policy) { p.Manual = !auto })
}

// CallModule invites the module of a server into the room and waits a few
// seconds until it has said its key. module is a server name, or the user id of
// a bot that has not the usual name; listing that one among the functional
// members takes power in the room.
func (c *Client) CallModule(ctx context.Context, roomID id.RoomID, module string) error {
	bot := id.UserID(module)
	if module == "" || module[0] != '@' {
		bot = botOf(module)
	}
	if err := rooms.CheckUserID(bot); err != nil {
		return fmt.Errorf("client: module: %w", err)
	}
	c.mu.Lock()
	r, _, err := c.memberOf(roomID)
	known := false
	if err == nil {
		m, ok := r.moduleOf(serverOf(bot))
		known = ok && m.User == string(bot)
	}
	c.mu.Unlock()
	if err != nil || known {
		return err
	}
	const away = "the server cannot be reached, or has no module"
	if err := c.inviteBot(ctx, roomID, bot); err != nil && ctx.Err() == nil && !c.isInvited(roomID, bot) {
		if isServerError(err) {
			return fmt.Errorf("%w: %s could not be invited; "+away+": %w", ErrNoModuleOf, bot, err)
		}
		return fmt.Errorf("%w: %s could not be invited: %w", ErrNoModuleOf, bot, err)
	}
	spoken, cancel := context.WithTimeout(ctx, moduleQuietTime)
	defer cancel()
	silent := fmt.Errorf("%w: %s was invited and did not come, or said nothing; "+away, ErrNoModuleOf, bot)
	err = c.await(spoken, roomID, func(r *room) error {
		if m, ok := r.moduleOf(serverOf(bot)); ok && m.User == string(bot) {
			return nil
		}
		return silent
	})
	if errors.Is(err, silent) && errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return silent // the time that was given to it is no news
	}
	return err
}

// isInvited tells whether a user is invited to a room, or in it.
func (c *Client) isInvited(roomID id.RoomID, user id.UserID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil {
		return false
	}
	m := r.state.membership(user)
	return m == rooms.MembershipJoin || m == rooms.MembershipInvite
}

// listOf returns the list of the modules of servers (or, for one that has not
// the usual name, of its user id).
func (r *room) listOf(servers []string) ([]federation.Sequencer, error) {
	var list []federation.Sequencer
	for _, server := range servers {
		server = strings.TrimPrefix(server, "@"+rooms.BotLocalpart+":")
		if strings.HasPrefix(server, "@") {
			server = serverOf(id.UserID(server))
		}
		s, ok := r.moduleOf(server)
		if !ok {
			var have []string
			for _, m := range r.modules() {
				have = append(have, m.Server)
			}
			return nil, fmt.Errorf("%w: %s (modules of %s are)", ErrNoModuleOf, server, strings.Join(have, ", "))
		}
		list = append(list, s)
	}
	return list, nil
}

// setSequencers changes the list, by hand, and waits until that is in force.
func (c *Client) setSequencers(ctx context.Context, roomID id.RoomID, choose func(r *room, p *rooms.Policy) ([]federation.Sequencer, error)) error {
	return c.setList(ctx, roomID, choose, func() bool { return true })
}

func (c *Client) setList(ctx context.Context, roomID id.RoomID, choose func(r *room, p *rooms.Policy) ([]federation.Sequencer, error), manual func() bool) error {
	var want []federation.Sequencer
	if err := c.wantPolicy(ctx, roomID, false, func(r *room, p *rooms.Policy) (err error) {
		if want, err = choose(r, p); err != nil {
			return err
		}
		for _, s := range want {
			if r.rec.Liars[rooms.EncodeBase64(s.ReceiptKey)] != "" && !slices.ContainsFunc(p.Sequencers, func(o federation.Sequencer) bool { return string(o.ReceiptKey) == string(s.ReceiptKey) }) {
				return fmt.Errorf("%w: the module of %s was caught signing contradictions with this key", ErrNotAllowed, s.Server)
			}
		}
		p.Sequencers, p.Manual = want, manual()
		r.tryList()
		return nil
	}); err != nil {
		return err
	}
	return c.await(ctx, roomID, func(r *room) error {
		if r.policyError != nil {
			return r.policyError
		}
		e := r.sendEpoch()
		if e == nil {
			return ErrNoGroup
		}
		if policy, err := e.policy(); err == nil && federation.List(policy.Sequencers).Equal(want) {
			return nil
		}
		if change := r.listChange(); change != nil {
			return fmt.Errorf("%w: %s", ErrNotReady, change.missing())
		}
		return fmt.Errorf("%w: the change waits to be sent", ErrNotReady)
	})
}
