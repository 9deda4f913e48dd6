package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// phase says where this device stands in a room.
type phase string

const (
	phaseNone     phase = ""         // no group of ours
	phaseFounding phase = "founding" // we make the group
	phaseJoining  phase = "joining"  // we want to be in the group
	phaseMember   phase = "member"   // we hold an epoch
	phaseRemoved  phase = "removed"  // we were removed
)

// roomRecord is what the store keeps of a room beside machine and epochs.
type roomRecord struct {
	Phase      phase                         `json:"phase,omitempty"`
	Membership string                        `json:"membership,omitempty"` // own, as the server says
	Group      rooms.Bytes                   `json:"group,omitempty"`
	Bound      rooms.Bytes                   `json:"bound,omitempty"`      // the group this device is, or was last, a member of; see boundTo
	Admitter   id.UserID                     `json:"admitter,omitempty"`   // who posted the admission of our own user
	JoinRef    rooms.Hash                    `json:"join_ref,omitzero"`    // base of the machine
	JoinEvent  id.EventID                    `json:"join_event,omitempty"` // the commit that added us
	JoinedAt   int64                         `json:"joined_at,omitempty"`
	Inviter    id.UserID                     `json:"inviter,omitempty"`
	InvitedAt  int64                         `json:"invited_at,omitempty"` // when an invite came, in unix nanoseconds, if nothing else speaks of the room
	ToldBy     id.UserID                     `json:"told_by,omitempty"`    // who spoke of the room first, if that was in a to-device event
	ToldAt     int64                         `json:"told_at,omitempty"`    // and when, in unix nanoseconds
	Admissions map[id.UserID]rooms.Admission `json:"admissions,omitempty"`
	Switched   int                           `json:"switched,omitempty"` // of these, how many this device let in when it switched the room
	Others     map[id.UserID]rooms.Admission `json:"-"`                  // beside them, by another inviter; a part of its own
	JoinEpoch  uint64                        `json:"join_epoch,omitempty"`
	Behind     []leftBehind                  `json:"behind,omitempty"`      // epochs from before this device came in again, the newest first
	Removals   map[id.UserID]uint64          `json:"removals,omitempty"`    // epoch that removed a user's last leaf
	Proposals  map[string]keptProposal       `json:"proposals,omitempty"`   // ref → a module's proposal
	Contested  rooms.Hash                    `json:"contested,omitzero"`    // the epoch in which a module wants somebody out for no reason seen here
	Caused     map[id.UserID]bool            `json:"caused,omitempty"`      // changes our user asked for: committed at once
	Policy     *rooms.Policy                 `json:"policy,omitempty"`      // the policy our user asked for, until it is final
	PolicyOn   *rooms.Policy                 `json:"policy_on,omitempty"`   // the policy that was changed for it
	PolicyAt   rooms.Hash                    `json:"policy_at,omitzero"`    // the epoch in which it was asked for beside what was asked for before
	PolicyFrom *rooms.Policy                 `json:"policy_from,omitempty"` // the policy of that epoch
	PolicyRef  rooms.Hash                    `json:"policy_ref,omitzero"`   // the own commit that brought it
	PolicyPart rooms.Hash                    `json:"policy_part,omitzero"`  // the own commit that brought it but for a list that waits for its modules
	Liars      map[string]string             `json:"liars,omitempty"`       // receipt keys that signed contradictions, and which
	OldHeads   map[id.UserID]rooms.Hash      `json:"old_heads,omitempty"`   // what modules showed when this device joined
	// Unconfirmed: nobody has proven to this device yet that the epoch it
	// joined at is final.
	Unconfirmed bool         `json:"unconfirmed,omitempty"`
	Copied      bool         `json:"copied,omitempty"`     // this state was, or may be, used by another copy
	Superseded  bool         `json:"superseded,omitempty"` // another copy took this device's place in the group
	PutOut      int64        `json:"put_out,omitempty"`    // Unix time of when a commit that may still be displaced took this device out
	FreshFrom   rooms.Hash   `json:"fresh_from,omitzero"`  // the commit from which on it is this copy's alone
	Mine        []rooms.Hash `json:"mine,omitempty"`       // the last commits this copy made
	Refresh     bool         `json:"refresh,omitempty"`    // a commit with a fresh path is due at once
	Renew       bool         `json:"renew,omitempty"`      // one is due when its turn comes; see refreshDue
	Switch      *roomSwitch  `json:"switch,omitempty"`     // our user turns it into a room with MLS, until its group is founded
	NewEra      bool         `json:"new_era,omitempty"`
	HeirsEra    *heirsEra    `json:"heirs_era,omitempty"` // that our user, an heir, proposes
	// EraProposals are those of other heirs, until this device consents.
	EraProposals []json.RawMessage     `json:"era_proposals,omitempty"`
	Suite        *suiteChange          `json:"suite,omitempty"`     // that our user asked for
	Offsets      map[string]uint64     `json:"offsets,omitempty"`   // group → level of its epoch 0; see level
	Former       []rooms.Bytes         `json:"former,omitempty"`    // the room's groups before this one
	Top          uint64                `json:"top,omitempty"`       // the highest level this device was at
	Failed       map[string]string     `json:"failed,omitempty"`    // ref → rule: commits we could not apply
	Rejected     map[string]bool       `json:"rejected,omitempty"`  // of these, those we sent P.reject for
	Vouched      map[string]bool       `json:"vouched,omitempty"`   // refs we sent P.applied for
	Events       map[string]id.EventID `json:"events,omitempty"`    // ref → commit event
	LastPath     int64                 `json:"last_path,omitempty"` // unix time of our last own path
	Sent         uint64                `json:"sent,omitempty"`      // messages since then
	Meanwhile    []id.EventID          `json:"meanwhile,omitempty"` // what came while an own commit was to let this device in, the newest last
	Late         []lateCommit          `json:"late,omitempty"`      // commits that came late, the newest last
	Taken        []takenAhead          `json:"taken,omitempty"`     // messages that were taken ahead and that the own /sync has not come to, the newest last
	Warned       map[string]bool       `json:"warned,omitempty"`
	Look         *keptLook             `json:"look,omitempty"` // into the history, after the head changed branches
	History      *historyState         `json:"history,omitempty"`
	Acks         []rooms.Ack           `json:"acks,omitempty"`      // of delivery, that are not sent yet
	Askers       []asker               `json:"askers,omitempty"`    // who asked for such, in a large group
	Delivery     []rooms.Hash          `json:"delivery,omitempty"`  // epochs of which others' are kept, the newest last
	Missing      []missing             `json:"missing,omitempty"`   // messages that did not come, and of which nobody was told yet
	Accounted    []accounted           `json:"accounted,omitempty"` // ciphertexts that were seen, are never opened, and that no gap was laid to
}

// roomSwitch is what the founding of a group needs in a room that was not encrypted.
type roomSwitch struct {
	Admit []id.UserID `json:"admit"` // who was in the room
}

// epoch is an epoch this device can read.
type epoch struct {
	ref    federation.Ref
	parent federation.Ref
	number uint64
	group  *mls.Group
	depth  int // tree differences that are stored below it, down to a whole tree
	deltas int // their bytes

	read atomic.Pointer[rooms.Policy] // what policy has read
}

// policy returns the policy of an epoch's group, to be changed at will. It is read once: to check it takes some hundred
// microseconds, and each look at a room asks for it several times.
func (e *epoch) policy() (*rooms.Policy, error) {
	p := e.read.Load()
	if p == nil {
		var err error
		if p, err = rooms.PolicyOf(e.group); err != nil {
			return nil, err
		}
		e.read.Store(p)
	}
	return p.Clone(), nil
}

// pending is an own commit that was not accepted yet.
type pending struct {
	Ref      rooms.Hash      `json:"ref"`
	Parent   rooms.Hash      `json:"parent"`
	Staged   rooms.Bytes     `json:"staged"`
	Welcomes []welcomeTarget `json:"welcomes,omitempty"`
	External bool            `json:"external,omitempty"`
	Tree     rooms.Bytes     `json:"tree,omitempty"` // external: tree of the parent
	Info     rooms.Bytes     `json:"info,omitempty"` // external: GroupInfo of the parent
	EventID  id.EventID      `json:"event_id,omitempty"`
	// List: it sets another list of sequencers, whose modules have to be ready.
	List bool `json:"list,omitempty"`
	// Founding: it founds the group that follows one that a ReInit closed.
	Founding bool `json:"founding,omitempty"`
	// Policy: it brings the policy that our user asked for.
	Policy bool `json:"policy,omitempty"`
	// Part: it brings that policy but for its list of sequencers, which waits.
	Part bool `json:"part,omitempty"`
	// Era: it opens an era, which needs no accept by the old list.
	Era bool `json:"era,omitempty"`
	// Fresh: made, with a path, by a copy that knew itself to be one.
	Fresh bool `json:"fresh,omitempty"`
	// Settled: it is on the head, and what follows from that was done.
	Settled bool `json:"settled,omitempty"`
	// Lost: another commit was accepted in its place.
	Lost   bool `json:"lost,omitempty"`
	staged *mls.StagedCommit
}

// welcomeTarget is a device that our commit adds.
type welcomeTarget struct {
	User       id.UserID   `json:"user"`
	Device     id.DeviceID `json:"device"`
	KeyPackage rooms.Bytes `json:"key_package_ref"`
}

type room struct {
	id      id.RoomID
	rec     roomRecord
	state   *roomState
	machine *federation.Machine
	epochs  map[federation.Ref]*epoch
	own     map[federation.Ref]*pending          // own commits that are not final
	pending *pending                             // the one that waits for its accept
	staged  map[federation.Ref]*mls.StagedCommit // cache: validated commits, not merged
	keeping map[federation.Ref]*storedCommit     // what the step that is going on writes
	public  map[federation.Ref]*mls.PublicGroup  // cache: epochs whose secrets are not ours
	blind   bool                                 // set by tests: commits of others cannot be opened
	written map[string][32]byte                  // hashes of what was written last, by part
	// asWritten says of admissionsPart and othersPart that nothing changed since then.
	asWritten cleanParts
	unread    federation.Ref // a head that could not be entered

	needs    map[string]*need   // what has to be fetched
	media    map[string][]byte  // by fileKey
	claimed  map[string]*claim  // key packages at hand for the next commit
	devices  map[id.UserID]bool // users whose device lists were read since they changed
	commitAt time.Duration      // when to commit if nobody did; 0: no timer
	commitOn federation.Ref     // head the timer was set on
	// commitRests: it was set for a scheduled commit with a fresh path and nothing else.
	commitRests bool
	refreshedAt time.Duration  // when such a commit was last seen to be accepted; 0: not since the start
	racesLost   int            // own commits in sequence in whose place another was accepted
	rivalOn     federation.Ref // head on which another's commit waited
	rivalAt     time.Duration  // when that was seen first
	vouchAt     map[federation.Ref]time.Duration
	vouchDue    time.Duration            // when the next of these is due, as of the last look; 0: none
	tried       map[string]time.Duration // failed attempts: not before
	blocked     []Block                  // why sending waits
	changed     chan struct{}

	marked     int      // events that were processed since the start
	mediaOrder []string // keys of media, the oldest first
	wanted     int      // how much was asked for so far
	waiting    map[id.EventID]*waitingEvent
	letAhead   bool               // receipts go ahead of commits that are not to come
	opened     *openCommit        // the last one
	askedAhead bool               // for the devices of who is in the room, before this device was in its group
	crowded    map[id.UserID]bool // whose events wait until fewer files of theirs are asked for

	todo         *rooms.Plan       // desired minus actual
	planned      bool              // todo is up to date
	listed       bool              // the devices of all it is about are at hand
	sweepAt      int               // so many admissions are looked through for those that were used
	leaves       []rooms.GroupLeaf // of the epoch leavesOf
	leavesOf     federation.Ref
	plannedOn    federation.Ref                   // the epoch it was made on
	plannedFor   federation.Ref                   // the epoch the barrier was computed for
	behind       map[federation.Ref]*epoch        // rec.Behind
	behindSince  map[federation.Ref]time.Duration // since when this run keeps them
	keep         int                              // epochs kept below the newest final
	pruneAt      time.Duration                    // when the next one has been kept for long enough
	overSince    map[federation.Ref]time.Duration // since when an epoch is below, or beside, the newest final
	askTries     int                              // how often this request for history was sent
	askAgainAt   time.Duration                    // when it is sent once more
	receiptAt    time.Duration                    // when the next delivery receipt goes out
	joinTries    int                              // external commits of ours that were not accepted
	joinSince    time.Duration                    // when the last of them was made
	unwelcome    federation.Ref                   // a commit by which this device came in without a valid admission, as a member says
	objections   map[string]objection             // by an admission's signature
	unheard      federation.Ref                   // on which an own commit was given up, as no module accepted it
	stuckTimes   int                              // how often it came in again since what it came in with was final
	joinBy       id.UserID                        // the module whose head the last one was made on
	outSince     time.Duration                    // since when this run knows that this device was put out
	joinEra      uint64                           // the era which that head showed
	joinFails    map[id.UserID]joinFail           // where joining by a module's head failed
	joinAt       time.Duration                    // when to try to get into the group by ourselves
	resyncAt     time.Duration                    // when our leaf was found in the tree without a Welcome
	lagSince     time.Duration                    // since when a module knows more than we do
	pendingSince time.Duration                    // when our commit began to wait
	pendingRef   federation.Ref
	lagLooked    bool
	displaced    bool                        // what this device came in with is not on the branch that modules publish
	expelled     map[id.UserID]expulsion     // whom we removed, until /sync shows it
	moved        *move                       // our own join or leave, until /sync shows it
	quiet        map[id.UserID]time.Duration // users whose server joins: nothing is sent before that
	staleAt      time.Duration               // when servers that could not be asked for devices are asked again
	graceAt      time.Duration               // when a leaf that fails its check may be removed
	badSince     map[string]*badLeaf
	beside       bool                // not known to be on the way to what a module proves to be final
	headSeen     bool                // a module published something since Welcomes looked at the heads
	headLook     bool                // they look at them now
	headAt       time.Duration       // when they look again in any case
	headTries    int                 // how often they did so since something came
	lookedFor    map[id.EventID]bool // Welcomes for whose sake the state was read
	fetched      map[id.EventID]*Event
	requests     map[federation.Ref]*request // commits that the homeserver does not give
	requestNext  time.Duration               // when modules may be asked again
	requestWait  time.Duration               // for how long they were not, the last time
	headsAskAt   time.Duration               // when they may be asked for their heads again
	headsAsked   int                         // how often they were since this device was a member
	told         map[string]bool

	spoke         map[spokeKey]bool           // since the start
	looked        time.Duration               // when the newest look into the history began that succeeded, monotonic; 0: none since the start
	missAt        time.Duration               // when tellMissing has something to do; 0: nothing
	askAt         time.Duration               // the same of askMissing
	askedAt       map[id.UserID]time.Duration // when this device asked a user for messages last, monotonic
	resends       resends
	resendAt      time.Duration // when resendMissed has something to do; 0: nothing
	foundPolicy   func(p *rooms.Policy)
	foundError    error
	foundLate     time.Duration // from then on the module of another server will do
	lastJoinError error

	nextPacks   map[string]*claim // key packages at hand for the group that follows
	nextSuite   mls.CipherSuite   // of these
	suiteError  error             // why the suite our user asked for cannot be had
	foundAt     time.Duration     // when to found the group that follows a ReInit
	foundOn     federation.Ref    // the ReInit that is for
	unreadSince time.Duration     // since when a Welcome into a new group is waited for
	foundWith   []id.UserID       // who is invited into the room that is made

	proofs      map[id.UserID]*headProof // what the heads of modules prove
	showMore    []id.UserID              // listed modules whose heads show more than this device was told
	shownBy     map[id.UserID]id.EventID // their heads
	looks       rooms.Looks              // when to take over what makes it count
	policyError error                    // why the policy our user asked for cannot be had
	auto        *rooms.Policy            // what the defaults ask for; nil: nothing
	autoAt      time.Duration            // when a commit may bring it
	eraNo       uint64                   // era and newest final before the last input
	finalRef    federation.Ref
	listSeen    federation.Ref // the list change that is on the head and not final
	listAside   federation.Ref // the last one that was left aside
	listSince   time.Duration

	listFailures int                      // list changes that were given up one after the other
	listParent   federation.Ref           // on which commit the last was made
	listOnParent int                      // how many were made there
	altered      int                      // own commits in sequence that the homeserver changed sent
	unready      map[id.UserID]id.EventID // modules that were not ready, with their heads then

	unvouched      federation.Ref // what nobody in the group could vouch for
	unvouchedSince time.Duration  // 0: nothing

	heard map[id.UserID]time.Duration // when bots of modules sent something last
}

func (c *Client) newRoom(roomID id.RoomID) *room {
	r := &room{
		id: roomID, state: newRoomState(roomID), epochs: map[federation.Ref]*epoch{},
		staged: map[federation.Ref]*mls.StagedCommit{}, keeping: map[federation.Ref]*storedCommit{}, public: map[federation.Ref]*mls.PublicGroup{}, needs: map[string]*need{}, media: map[string][]byte{},
		claimed: map[string]*claim{}, devices: map[id.UserID]bool{}, vouchAt: map[federation.Ref]time.Duration{},
		tried: map[string]time.Duration{}, changed: make(chan struct{}), own: map[federation.Ref]*pending{},
		badSince: map[string]*badLeaf{}, fetched: map[id.EventID]*Event{}, told: map[string]bool{},
		spoke: map[spokeKey]bool{}, overSince: map[federation.Ref]time.Duration{}, keep: c.limits.PastEpochs,
		behind: map[federation.Ref]*epoch{}, behindSince: map[federation.Ref]time.Duration{},
	}
	r.state.first = func(user id.UserID) bool { return c.headFirst(roomID, user) }
	return r
}

// headFirst tells whether a user's head is kept whatever others post: that of a listed
// module, or one that is to be, and of the own server's. Who has no group yet goes by the
// lists that heads have proven.
func (c *Client) headFirst(roomID id.RoomID, user id.UserID) bool {
	r := c.rooms[roomID]
	return user == botOf(serverOf(c.UserID())) || r != nil && c.isListed(r, user)
}

func (c *Client) isListed(r *room, user id.UserID) bool {
	is := func(s federation.Sequencer) bool { return s.User == string(user) }
	if r.machine == nil {
		for _, p := range r.proofs {
			if p.err == nil && slices.ContainsFunc(p.proven.Policy.Sequencers, is) && c.isAttested(r, p.proven) {
				return true
			}
		}
		return false
	}
	config, _ := r.machine.ConfigAt(r.machine.Head())
	return slices.ContainsFunc(append(r.machine.ListChanges(), config), func(ref federation.Ref) bool {
		list, _ := r.machine.ListAt(ref)
		return slices.ContainsFunc(list, is)
	})
}

// notify wakes everybody who waits for the room to change.
func (r *room) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// head returns the epoch messages are sent in, or nil.
func (r *room) head() *epoch {
	if r.machine == nil {
		return nil
	}
	return r.epochs[r.machine.Head()]
}

// sendEpoch returns the newest epoch that messages may be sent in, or nil: not
// one whose list of sequencers is not in force yet, for it may be displaced.
func (r *room) sendEpoch() *epoch {
	if r.machine == nil {
		return nil
	}
	return r.openEpoch(r.machine.UsableHead())
}

// buildOn returns the epoch that a commit is made on now: the head, below what is
// in doubt. A list change on the head is waited for; one that does not become
// final is left aside.
func (c *Client) buildOn(r *room, now time.Duration) *epoch {
	ref := r.machine.SafeHead()
	list, waits := r.machine.PendingList()
	if !waits || !r.machine.Extends(ref, list) {
		r.listSeen, r.listSince = federation.Ref{}, 0
		e := r.epochs[ref]
		if e != nil && e.group.ReInit() != nil {
			if !r.rec.NewEra {
				return nil // nothing is committed to a closed group, but an era leaves it
			}
			return r.epochs[e.parent]
		}
		return e
	}
	if r.listSeen != list {
		r.listSeen, r.listSince = list, now
	}
	if now < r.listSince+listWait && !r.rec.NewEra {
		return nil
	}
	known, ok := r.machine.Known(list)
	if !ok {
		return nil
	}
	if r.listAside != list && !r.rec.NewEra {
		// Where nobody is left to vouch for it another one would come to the same: each costs two commits and a takeover.
		r.listAside = list
		r.tried["list"] = now + cmp.Or(r.listFailed(known.Parent), listNever)
	}
	return r.epochs[known.Parent]
}

// listCame clears the count of list changes that failed where the one that was left aside became final all the same: it
// was slow.
func (r *room) listCame(final federation.Ref) {
	if r.listAside.IsZero() || final != r.listAside && !r.machine.Extends(final, r.listAside) {
		return
	}
	r.listAside, r.listFailures, r.listOnParent = federation.Ref{}, 0, 0
	delete(r.tried, "list")
}

// dropUnready gives up an own list change that its modules are not ready for,
// so that other commits go on.
func (c *Client) dropUnready(r *room, now time.Duration) {
	p := r.pending
	if p == nil || !p.List || c.without[probe.Unready] || r.pendingRef != federation.Ref(p.Ref) || now-r.pendingSince < listWait {
		return
	}
	pause := r.listFailed(federation.Ref(p.Parent))
	again := "it is tried again in " + pause.String()
	if pause == 0 {
		pause, again = listNever, "it is tried again once the group or those modules have changed"
	}
	if change := r.listChange(); change != nil {
		for _, s := range change.List {
			if !s.present && (s.State == SequencerUnready || s.State == SequencerAbsent) {
				r.unready[s.User] = r.state.Entries[rooms.TypeHead][string(s.User)].Event
			}
		}
		servers, absent, rekeyed := change.waiting()
		c.warn(r, "list/"+federation.Ref(p.Ref).String(), &Warning{
			Rule: ruleNotReady, Kind: NotReadyWarning, Reason: change.reason(), Servers: servers, Absent: absent, Rekeyed: rekeyed, Detail: change.missing() + "; " + again,
			Text: "the change of the room's modules is not in force: " + change.missing() + "; " + again,
		})
	}
	r.tried["list"] = now + pause
	b := &batch{}
	c.loseCommit(r, b)
	if err := c.commitBatch(context.Background(), r, b); err != nil {
		c.log.Err(err).Stringer("room_id", r.id).Msg("Failed to give up a commit")
	}
}

// tryList lets a list change be tried at once: somebody asks for it.
func (r *room) tryList() {
	delete(r.tried, "list")
	r.listFailures, r.listOnParent = 0, 0
}

// listFailed counts a list change that its modules were not ready for, and returns
// for how long none is tried, 0 for not above this commit again: each of them is an
// event, and a commit that waits with the others of its author.
func (r *room) listFailed(parent federation.Ref) time.Duration {
	if r.listParent != parent {
		r.listParent, r.listOnParent = parent, 0
	}
	r.listFailures, r.listOnParent = r.listFailures+1, r.listOnParent+1
	if r.unready == nil {
		r.unready = map[id.UserID]id.EventID{}
	}
	if r.listOnParent >= listTries {
		return 0
	}
	return listPause << min(r.listFailures-1, 6)
}

// listAgain lets a list change be tried once something speaks for it: a module
// that was not ready has posted another head, or the group has gone on since it
// was given up for good. Heads of modules that do not get ready all the same earn
// one more try above a commit.
func (r *room) listAgain(head federation.Ref) {
	if head == r.listParent && r.listOnParent > listTries {
		return
	}
	for user, evt := range r.unready {
		if r.state.Entries[rooms.TypeHead][string(user)].Event != evt {
			r.listFailures, r.unready = 0, nil
			delete(r.tried, "list")
			return
		}
	}
	if r.listOnParent >= listTries && head != r.listParent {
		r.listOnParent = 0
		delete(r.tried, "list")
	}
}

// ruleNotReady is the rule of a list change that does not come into force.
const ruleNotReady = "client/list-not-ready"

// isMLS tells whether the room has, had, or by its state should have a group.
// That never goes back, whatever a server says of its encryption later.
func (r *room) isMLS() bool {
	return r.machine != nil || r.rec.Phase != phaseNone || len(r.rec.Group) > 0 || r.state.isMLS()
}

func sortRooms(list []*room) {
	slices.SortFunc(list, func(a, b *room) int { return strings.Compare(string(a.id), string(b.id)) })
}

// batch collects what one step writes. The writes happen in one transaction;
// after runs once they are durable.
type batch struct {
	ops     []func(ctx context.Context) error
	after   []func()
	machine bool // write the machine
	state   bool // write the room state
	entered []*epoch
	torn    bool             // memory may be half changed
	dropped bool             // secrets are deleted
	again   map[*outRow]bool // messages that are sent again
	soon    bool             // nothing is lost if a power cut undoes it: it comes again
	firm    bool             // something of it leaves the machine: not soon
	// ratchets are those that moved: what changed of them is written at the end.
	ratchets map[federation.Ref]*epoch
}

func (b *batch) do(op func(ctx context.Context) error) { b.ops = append(b.ops, op) }
func (b *batch) then(fn func())                        { b.after = append(b.after, fn) }

// noteAgain notes that a message is sent again.
func (b *batch) noteAgain(row *outRow) {
	if b.again == nil {
		b.again = map[*outRow]bool{}
	}
	b.again[row] = true
}

// commitBatch writes a step of a room. On an error the room in memory is
// thrown away and read again from the store, which knows what was written.
// The caller holds c.mu.
func (c *Client) commitBatch(ctx context.Context, r *room, b *batch) error {
	do := c.st.Do
	if b.soon && !b.firm && !b.dropped {
		do = c.st.DoSoon
	}
	err := do(context.WithoutCancel(ctx), func(ctx context.Context) error {
		for _, op := range b.ops {
			if err := op(ctx); err != nil {
				return err
			}
		}
		if b.machine && r.machine != nil {
			if err := c.writeMachine(ctx, r); err != nil {
				return err
			}
		}
		if err := c.writeRatchets(ctx, r, b); err != nil {
			return err
		}
		if b.dropped {
			if err := c.st.PruneTrees(ctx, r.id); err != nil {
				return err
			}
		}
		if err := c.writeRecord(ctx, r, b.state); err != nil {
			return err
		}
		if c.shareBundles {
			if err := c.ident.ShareBundles(ctx); err != nil {
				return err
			}
		}
		return c.crashpoint("room-commit")
	})
	if err != nil {
		if rerr := c.reload(context.WithoutCancel(ctx), r); rerr != nil {
			c.fatal = errors.Join(err, rerr)
		}
		return err
	}
	c.shareBundles = false
	for _, fn := range b.after {
		fn()
	}
	return nil
}

// load reads rooms and outbox from the store.
func (c *Client) load(ctx context.Context) error {
	list, err := c.st.Rooms(ctx)
	if err != nil {
		return err
	}
	for _, row := range list {
		r := c.newRoom(row.ID)
		c.rooms[row.ID] = r
		if err := c.reload(ctx, r); err != nil {
			return err
		}
	}
	if err := c.loadOutbox(ctx); err != nil {
		return err
	}
	if err := c.boundRefused(ctx); err != nil {
		return err
	}
	if err := c.indexRelations(ctx); err != nil {
		return err
	}
	if err := c.loadTasks(ctx); err != nil {
		return err
	}
	switch at, err := c.st.GetKV(ctx, syncTimeKey); {
	case err == nil:
		c.readSyncTime(at)
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	return c.markRestored(ctx)
}

// reload reads a room from the store in place of what is in memory.
func (c *Client) reload(ctx context.Context, r *room) error {
	fresh := c.newRoom(r.id)
	err := c.readRecord(ctx, fresh)
	if err != nil {
		return err
	}
	if fresh.machine, err = c.readMachine(ctx, r.id); err != nil {
		return err
	}
	epochs, err := c.st.Epochs(ctx, r.id)
	if err != nil {
		return err
	}
	for _, row := range epochs {
		e, err := c.loadEpoch(ctx, r.id, row.Ref, fresh.epochs)
		if err != nil {
			return err
		}
		fresh.epochs[e.ref] = e
	}
	for _, left := range fresh.rec.Behind {
		ref := federation.Ref(left.Ref)
		if e := fresh.epochs[ref]; e != nil {
			delete(fresh.epochs, ref)
			fresh.keepBehind(e, c.mono())
			fresh.pruneBy(c.mono()) // for its time, too
		}
		if since, known := r.behindSince[ref]; known {
			fresh.behindSince[ref] = since
		}
	}
	pendings, err := c.st.Pending(ctx, r.id)
	if err != nil {
		return err
	}
	for _, row := range pendings {
		p := new(pending)
		if err := json.Unmarshal(row.Data, p); err != nil {
			return fmt.Errorf("client: own commit in %s: %w", r.id, err)
		}
		p.EventID = row.EventID
		fresh.own[federation.Ref(p.Ref)] = p
		if !p.Settled && !p.Lost {
			fresh.pending = p
		}
	}
	if fresh.machine != nil {
		fresh.eraNo, _ = fresh.machine.EraOf()
		fresh.finalRef = fresh.machine.NewestFinal()
	}
	fresh.changed = r.changed
	fresh.resumeLooks(r.needs)
	fresh.foundLate = r.foundLate
	fresh.foundPolicy, fresh.foundWith = r.foundPolicy, r.foundWith
	fresh.nextPacks, fresh.nextSuite = r.nextPacks, r.nextSuite
	*r = *fresh
	return nil
}

// writeMachine writes a room's coordination. Where it begins, which names each leaf
// that the group had then, changes seldom, and is kept apart.
func (c *Client) writeMachine(ctx context.Context, r *room) error {
	base, rest, err := r.machine.MarshalParts()
	if err != nil {
		return fmt.Errorf("client: save coordination of %s: %w", r.id, err)
	}
	if r.differs(machineBasePart, base) {
		if err := c.st.PutKV(ctx, partKey(machineBasePart, r.id), base); err != nil {
			return err
		}
	}
	return c.st.PutMachine(ctx, r.id, rest)
}

// readMachine reads a room's coordination, nil if there is none.
func (c *Client) readMachine(ctx context.Context, roomID id.RoomID) (*federation.Machine, error) {
	snapshot, err := c.st.Machine(ctx, roomID)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	base, err := c.st.GetKV(ctx, partKey(machineBasePart, roomID))
	if err != nil && !errors.Is(err, store.ErrNotFound) { // an older version wrote it in one piece
		return nil, err
	}
	machine, err := federation.Unmarshal(c.machineConfig(roomID), slices.Concat(base, snapshot))
	if err != nil {
		return nil, fmt.Errorf("client: coordination of %s: %w", roomID, err)
	}
	return machine, nil
}

// deleteMachine removes a room's coordination: the device left the group.
func (c *Client) deleteMachine(ctx context.Context, r *room) error {
	delete(r.written, machineBasePart)
	if err := c.st.DeleteKV(ctx, partKey(machineBasePart, r.id)); err != nil {
		return err
	}
	return c.st.DeleteMachine(ctx, r.id)
}

func (c *Client) machineConfig(roomID id.RoomID) federation.Config {
	return federation.Config{Room: string(roomID), Verify: rooms.VerifyLeafSignature}
}

// expulsion is what the homeserver confirmed of a kick or ban of ours. A /sync
// that was under way may still bring the user's join from before it.
type expulsion struct {
	as    rooms.Membership
	until time.Duration
}
