package rooms

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// Membership is the membership of a user in a room; empty if there is no
// member event.
type Membership string

// The memberships of the Matrix specification.
const (
	MembershipJoin   Membership = "join"
	MembershipInvite Membership = "invite"
	MembershipKnock  Membership = "knock"
	MembershipLeave  Membership = "leave"
	MembershipBan    Membership = "ban"
)

// Member is what room state says of one user.
type Member struct {
	Membership Membership
	Event      id.EventID // the member event, which gives the reason of a Remove
	Sender     id.UserID  // who sent it: not the user itself after a kick or ban
}

// RoomState is what the members of a room, and its module, read from its state.
// It reads hostile content as the absence of the event.
type RoomState struct {
	Room              id.RoomID
	Creator           id.UserID
	Members           map[id.UserID]Member
	JoinRule          string // "invite" unless a rule of the specification says otherwise
	HistoryVisibility string
	CreateAlgorithm   string // key of MSC4245 in m.room.create
	Encryption        string // algorithm of m.room.encryption
	Functional        []id.UserID
	Power             PowerLevels
	RoomVersion       string
	MoreCreators      []id.UserID // additional creators of rooms of version 12 and later

	encryptionEvents int
	ended            map[id.UserID][]Member // memberships that others took the place of, the last first
	unsure           map[id.UserID]bool     // whose membership is not known to count
	again            map[id.UserID]bool     // whose membership had ended, and was shown once more
}

// NewRoomState returns the state of a room of which nothing is known.
func NewRoomState(room id.RoomID) *RoomState {
	return &RoomState{Room: room, Members: make(map[id.UserID]Member), JoinRule: "invite", HistoryVisibility: "shared", Power: defaultPower()}
}

// maxRoomMembers bounds the member list of one room in memory.
const maxRoomMembers = 200000

// Apply takes the current state event of a type and state key. Events of other
// types change nothing. An error means that the content was not usable and the
// event counts as absent.
func (s *RoomState) Apply(eventType, stateKey string, sender id.UserID, event id.EventID, content json.RawMessage) error {
	switch eventType {
	case TypeMember:
		var c struct {
			Membership Membership `json:"membership"`
		}
		err := decodeObject(content, &c, anyNumbers)
		user := id.UserID(stateKey)
		switch c.Membership {
		case MembershipJoin, MembershipInvite, MembershipKnock, MembershipLeave, MembershipBan:
		default:
			c.Membership = ""
		}
		if _, known := s.Members[user]; !known && len(s.Members) >= maxRoomMembers {
			return refuse(RuleHostileJSON, "room state", "more than %d members", maxRoomMembers)
		}
		s.noteMember(user, event)
		s.Members[user] = Member{Membership: c.Membership, Event: event, Sender: sender}
		return err
	case TypeJoinRules:
		var c struct {
			Rule string `json:"join_rule"`
		}
		err := decodeObject(content, &c, anyNumbers)
		switch c.Rule {
		case "public", "knock", "restricted", "knock_restricted", "private":
			s.JoinRule = c.Rule
		default: // custom rules are nobody's permission
			s.JoinRule = "invite"
		}
		return err
	case TypeHistoryVisibility:
		var c struct {
			Visibility string `json:"history_visibility"`
		}
		err := decodeObject(content, &c, anyNumbers)
		switch c.Visibility {
		case "invited", "joined", "shared", "world_readable":
			s.HistoryVisibility = c.Visibility
		default: // what is not understood shows nothing early
			s.HistoryVisibility = "joined"
		}
		return err
	case TypePowerLevels:
		p, err := parsePower(content)
		s.Power = p
		return err
	case TypeEncryption:
		if stateKey != "" {
			return nil
		}
		var c struct {
			Algorithm string `json:"algorithm"`
		}
		err := decodeObject(content, &c, anyNumbers)
		s.Encryption = c.Algorithm
		s.encryptionEvents++
		return err
	case TypeCreate:
		var c struct {
			Algorithm string      `json:"org.matrix.msc4245.encryption_algorithm"`
			Version   string      `json:"room_version"`
			More      []id.UserID `json:"additional_creators"`
		}
		err := decodeObject(content, &c, anyNumbers)
		s.Creator, s.CreateAlgorithm, s.RoomVersion, s.MoreCreators = sender, c.Algorithm, c.Version, c.More
		return err
	case TypeFunctionalMembers:
		var c struct {
			Members []id.UserID `json:"service_members"`
		}
		err := decodeObject(content, &c, anyNumbers)
		s.Functional = c.Members
		return err
	}
	return nil
}

// CheckAlgorithm compares the room's state with the algorithm that the group's
// members have signed. A difference is shown and changes nothing else: messages
// stay encrypted for the group.
func (s *RoomState) CheckAlgorithm() error {
	what := "room " + string(s.Room)
	if s.encryptionEvents > 0 && s.Encryption != Algorithm {
		return refuse(RuleAlgorithmDowngrade, what, "m.room.encryption names %.80q, the group %q", s.Encryption, Algorithm).
			with("an admin of the room has to set it back; messages stay encrypted")
	}
	if s.CreateAlgorithm != Algorithm && s.encryptionEvents == 0 {
		return refuse(RuleAlgorithmDowngrade, what, "its state names no encryption").
			with("an admin of the room has to send m.room.encryption again; messages stay encrypted")
	}
	return nil
}

// IsMLS tells whether room state asks for encryption with MLS.
func (s *RoomState) IsMLS() bool { return s.CreateAlgorithm == Algorithm || s.Encryption == Algorithm }

// AddsOnInvite tells whether invited users get keys before they join: the
// history visibility lets them read from the invite on.
func (s *RoomState) AddsOnInvite() bool { return s.HistoryVisibility != "joined" }

// InRoom tells whether a user is joined, or is invited and may read already.
// Whoever is not is to have no leaf.
func (s *RoomState) InRoom(user id.UserID) bool {
	switch s.Members[user].Membership {
	case MembershipJoin:
		return true
	case MembershipInvite:
		return s.AddsOnInvite()
	}
	return false
}

// GroupLeaf is a leaf of the group's tree.
type GroupLeaf struct {
	Index mls.LeafIndex
	Cred  Credential
}

// Device is a device of a user as the keys of its homeserver show it. Problem
// is the error of [CheckBinding]; a device with a problem is no leaf.
type Device struct {
	Device  id.DeviceID
	Key     mls.SignaturePublicKey // for the group's suite; nil if it has none
	Problem error
	// OtherSuite: it speaks MLS, but not the group's suite.
	OtherSuite bool
}

// Inputs are what decides who should be in a group.
type Inputs struct {
	State  *RoomState
	Policy *Policy
	Leaves []GroupLeaf

	// Devices are the devices of users whose keys were fetched. Leaves of other
	// users are judged by room state alone.
	Devices map[id.UserID][]Device

	// Admitted are the users with a valid admission ([VerifyAdmission]).
	Admitted map[id.UserID]bool

	// LastSeen is for how long each leaf has been silent, by index; leaves
	// without entry count as active. It matters if the policy removes silent
	// leaves.
	Silent map[mls.LeafIndex]time.Duration
}

// RemoveReason says why a leaf has to go.
type RemoveReason string

// Reasons for a Remove.
const (
	RemoveLeft      RemoveReason = "left"       // the user left, was kicked, or is not in the room
	RemoveBanned    RemoveReason = "banned"     // the user is banned
	RemoveDevice    RemoveReason = "device"     // the device is gone or fails its check
	RemoveDuplicate RemoveReason = "duplicate"  // the device has a newer leaf
	RemoveSuite     RemoveReason = "suite"      // the room moves to a cipher suite that the device does not support yet
	RemoveSilent    RemoveReason = "silent"     // nothing came from the leaf for too long
	RemoveMalformed RemoveReason = "credential" // the credential does not parse
)

// PlannedRemove is a leaf that should not be in the group.
type PlannedRemove struct {
	Leaf   mls.LeafIndex
	Cred   Credential
	Reason RemoveReason
	Event  id.EventID // the member event, if there is one
	Err    error      // of RemoveDevice
}

// PlannedAdd is a device that should be in the group.
type PlannedAdd struct {
	User    id.UserID
	Device  id.DeviceID
	NewUser bool // no leaf of this user stays: the commit needs an admission
}

// Plan is desired minus actual: Removes come first, then Adds. Waiting names
// the room members that get no keys, each with the reason.
type Plan struct {
	Removes []PlannedRemove
	Adds    []PlannedAdd
	Waiting []*Absent
}

// AbsentReason says why a member of the room, or a device, gets no keys.
type AbsentReason string

const (
	AbsentUnadmitted AbsentReason = "unadmitted" // no member has admitted the user
	AbsentSuite      AbsentReason = "no-suite"   // the device does not support the group's cipher suite
	AbsentCheck      AbsentReason = "check"      // the device fails its check
	AbsentDevice     AbsentReason = "no-device"  // the user has no device that can be added
)

// Absent says of a member of the room why they, or their device, get no keys. It is
// an error as well.
type Absent struct {
	User   id.UserID
	Device id.DeviceID // "" if it is about the user
	Reason AbsentReason
	Err    error
}

// Error says why, and what to do.
func (a *Absent) Error() string { return a.Err.Error() }

// Unwrap returns the refusal.
func (a *Absent) Unwrap() error { return a.Err }

// Empty tells whether there is nothing to commit.
func (p *Plan) Empty() bool { return len(p.Removes) == 0 && len(p.Adds) == 0 }

// MakePlan compares who should be in a group with who is. State can take away,
// never give: whoever left or is banned goes, but a new user comes only with
// an admission, or where the policy has handed that choice to the room's join
// rule. The result is the same for everybody with the same inputs.
func MakePlan(in Inputs) *Plan {
	plan := new(Plan)
	kept := make(map[id.UserID]int)
	held := make(map[id.UserID]map[id.DeviceID]bool)
	leaves := slices.Clone(in.Leaves)
	// The newest leaf of a device stays: one made by a rejoin has the highest
	// index unless it took a blank one, so the key decides where it is known.
	slices.SortFunc(leaves, func(a, b GroupLeaf) int { return int(int64(b.Index) - int64(a.Index)) })
	slices.SortStableFunc(leaves, func(a, b GroupLeaf) int { return boolOrder(in.published(b), in.published(a)) })
	for _, l := range leaves {
		if r := in.remove(l, held[l.Cred.User][l.Cred.Device]); r != nil {
			plan.Removes = append(plan.Removes, *r)
			continue
		}
		kept[l.Cred.User]++
		if held[l.Cred.User] == nil {
			held[l.Cred.User] = make(map[id.DeviceID]bool)
		}
		held[l.Cred.User][l.Cred.Device] = true
	}
	slices.SortFunc(plan.Removes, func(a, b PlannedRemove) int { return int(int64(a.Leaf) - int64(b.Leaf)) })

	users := make([]id.UserID, 0, len(in.State.Members))
	for u := range in.State.Members {
		if in.State.InRoom(u) && !in.isBot(u) {
			users = append(users, u)
		}
	}
	slices.Sort(users)
	for _, u := range users {
		fresh := kept[u] == 0
		if fresh && !in.mayEnter(u) {
			plan.Waiting = append(plan.Waiting, &Absent{u, "", AbsentUnadmitted, refuse(RuleRoomMemberNotInGroup, string(u), "is in the room but was admitted by no member").
				with("a member who may invite has to admit them")})
			continue
		}
		devices := slices.Clone(in.Devices[u])
		slices.SortFunc(devices, func(a, b Device) int { return strings.Compare(string(a.Device), string(b.Device)) })
		n := 0
		for _, d := range devices {
			switch {
			case held[u][d.Device]:
				n++
			case d.OtherSuite:
				plan.Waiting = append(plan.Waiting, &Absent{u, d.Device, AbsentSuite, refuse(RuleNoCommonSuite, "device "+string(d.Device)+" of "+string(u), "does not support the group's cipher suite").
					with("update its client, or let an admin move the room to a suite that all have")})
			case d.Key == nil: // a device without MLS is no concern of the group
			case d.Problem != nil:
				plan.Waiting = append(plan.Waiting, &Absent{u, d.Device, AbsentCheck, d.Problem})
			default:
				plan.Adds = append(plan.Adds, PlannedAdd{User: u, Device: d.Device, NewUser: fresh})
				n++
			}
		}
		if _, fetched := in.Devices[u]; fetched && n == 0 && !slices.ContainsFunc(devices, func(d Device) bool { return d.OtherSuite }) {
			plan.Waiting = append(plan.Waiting, &Absent{u, "", AbsentDevice, refuse(RuleRoomMemberNotInGroup, string(u), "has no device that can be added").
				with("%s has to sign in with an MLS client and verify it", u)})
		}
	}
	return plan
}

func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// published tells whether a leaf's key is the one its device publishes.
func (in *Inputs) published(l GroupLeaf) bool {
	for _, d := range in.Devices[l.Cred.User] {
		if d.Device == l.Cred.Device {
			return bytes.Equal(d.Key, l.Cred.Key)
		}
	}
	return false
}

// remove returns why a leaf has to go, or nil.
func (in *Inputs) remove(l GroupLeaf, newer bool) *PlannedRemove {
	r := &PlannedRemove{Leaf: l.Index, Cred: l.Cred}
	if l.Cred.User == "" {
		r.Reason = RemoveMalformed
		return r
	}
	m := in.State.Members[l.Cred.User]
	r.Event = m.Event
	switch {
	case m.Membership == MembershipBan:
		r.Reason = RemoveBanned
		return r
	case !in.State.InRoom(l.Cred.User): // left, or left and may read again only once they join
		r.Reason = RemoveLeft
		return r
	}
	r.Event = ""
	if newer {
		r.Reason = RemoveDuplicate
		return r
	}
	if devices, fetched := in.Devices[l.Cred.User]; fetched {
		i := slices.IndexFunc(devices, func(d Device) bool { return d.Device == l.Cred.Device })
		switch {
		case i < 0:
			r.Err = refuse(RuleDeviceNotCredential, l.Cred.String(), "the device is logged out")
		case devices[i].Problem != nil:
			r.Err = devices[i].Problem
		case !bytes.Equal(devices[i].Key, l.Cred.Key):
			r.Err = refuse(RuleDeviceNotCredential, l.Cred.String(), "the device has another key now")
		}
		if r.Err != nil {
			r.Reason = RemoveDevice
			return r
		}
	}
	if limit := in.Policy.RemoveSilent; limit > 0 && in.Silent[l.Index] > limit {
		r.Reason = RemoveSilent
		return r
	}
	return nil
}

// mayEnter tells whether a user without a leaf may get one.
func (in *Inputs) mayEnter(u id.UserID) bool {
	switch in.Policy.Join {
	case JoinOpen:
		return true
	case JoinByRule:
		// The homeservers enforced the join rule when they let the user join. An
		// invite is a member's act and needs that member's admission.
		if in.State.Members[u].Membership == MembershipJoin && in.State.JoinRule != "invite" && in.State.JoinRule != "private" {
			return true
		}
	}
	return in.Admitted[u]
}

// isBot tells whether a user is a module, or a bot that asks for no keys.
func (in *Inputs) isBot(u id.UserID) bool {
	if len(in.Devices[u]) > 0 && slices.ContainsFunc(in.Devices[u], func(d Device) bool { return d.Key != nil }) {
		return false
	}
	return slices.Contains(in.State.Functional, u) ||
		slices.ContainsFunc(in.Policy.Sequencers, func(s federation.Sequencer) bool { return s.User == string(u) })
}

// Barrier returns an error if nobody may encrypt on a head whose plan is p: a
// leaf's user is not in the room any more, or a leaf fails its check. Silent
// leaves and duplicates of a device do not block. Until a Remove is accepted
// the caller sends nothing and shows the error.
func (p *Plan) Barrier() error {
	r := p.InTheWay()
	if r == nil {
		return nil
	}
	what := "leaf of " + r.Cred.String()
	if r.Reason == RemoveLeft || r.Reason == RemoveBanned {
		return refuse(RuleMemberNotInRoom, what, "the user has %s the room but can still read", map[RemoveReason]string{RemoveLeft: "left", RemoveBanned: "been banned from"}[r.Reason]).
			with("sending goes on once they are removed from the group, which happens by itself")
	}
	err := r.Err
	if err == nil {
		err = refuse(RuleCredentialMalformed, what, "its credential does not parse")
	}
	return &Refusal{Rule: RuleMemberNotInRoom, What: what, Err: err, Remedy: "sending goes on once the device is verified or removed"}
}

// InTheWay returns the Remove that [Plan.Barrier] waits for, nil if there is none.
func (p *Plan) InTheWay() *PlannedRemove {
	i := slices.IndexFunc(p.Removes, func(r PlannedRemove) bool {
		return r.Reason == RemoveLeft || r.Reason == RemoveBanned || r.Reason == RemoveDevice || r.Reason == RemoveMalformed
	})
	if i < 0 {
		return nil
	}
	return &p.Removes[i]
}

// CredentialGrace is how long a leaf that fails its check may stay before any
// member removes it.
const CredentialGrace = 60 * time.Second

// CommitterSpan is the T of [CommitterDelay].
const CommitterSpan = 6 * time.Second

// CommitterDelay returns how long a member waits before it commits what all
// see is due: t = T·max(0, 1 + ln(u)/ln(N)) with u in (0,1] from a hash of the
// parent's ref and the own leaf. Only a handful of members, whatever share is
// online, have a short delay; who sees another's commit cancels. Who caused
// the change, or wants to send, does not wait.
func CommitterDelay(parent federation.Ref, leaf mls.LeafIndex, leaves int) time.Duration {
	if leaves < 2 {
		return 0
	}
	h := sha256.Sum256(binary.BigEndian.AppendUint32(append([]byte("committer"), parent[:]...), uint32(leaf)))
	u := (float64(binary.BigEndian.Uint64(h[:])>>11) + 1) / (1 << 53)
	t := 1 + math.Log(u)/math.Log(float64(leaves))
	return time.Duration(max(0, t) * float64(CommitterSpan))
}

// VoucherGrace is how long the first of those who could vouch for a commit waits:
// its statement shall not compete with the accept that is still on its way to the
// rest, and a commit on top says the same. Votes wait ten times as long.
const VoucherGrace = 500 * time.Millisecond

// VoucherStep is how long the second of those who could vouch for a commit gives
// the first: a statement is everywhere by then.
const VoucherStep = time.Second

// VoucherDelay returns how long a member waits before it says that it applied a
// commit. Those who could say so, in vouchers, are ranked by a hash of the
// commit's ref and their leaf. The first waits [VoucherGrace], and r places behind
// it a member waits min(r steps, T·ln(1+r)/ln(N)) more, at most T in all, so that
// one statement is enough and it does not matter how many of the N are online.
func VoucherDelay(ref federation.Ref, leaf mls.LeafIndex, vouchers []uint32) time.Duration {
	place := func(leaf uint32) uint64 {
		h := sha256.Sum256(binary.BigEndian.AppendUint32(append([]byte("voucher"), ref[:]...), leaf))
		return binary.BigEndian.Uint64(h[:])
	}
	own, before := place(uint32(leaf)), 0
	for _, v := range vouchers {
		if p := place(v); p < own || p == own && v < uint32(leaf) {
			before++
		}
	}
	if before == 0 {
		return VoucherGrace
	}
	t := float64(CommitterSpan) * math.Log(1+float64(before)) / math.Log(float64(len(vouchers)))
	return min(VoucherGrace+min(time.Duration(before)*VoucherStep, time.Duration(t)), CommitterSpan)
}
