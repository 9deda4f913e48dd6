package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/store"
)

// NoticeKind says what a notice is about.
type NoticeKind string

// The kinds of notices.
const (
	IdentityNotice     NoticeKind = "identity"      // the keys of User are not those known before
	HealedNotice       NoticeKind = "healed"        // the room had two branches and has one again
	BehindNotice       NoticeKind = "behind"        // the device cannot follow the group, and joins again
	MemberBehindNotice NoticeKind = "member-behind" // a member could not follow a change of User's
	OtherNotice        NoticeKind = "other"         // Text says what, in English
	WaitsNotice        NoticeKind = "waits"         // what the user wrote waits, for Reason
)

// Reasons of a WaitsNotice, beside those of client.BlockKind: of these User is one who is
// in the way, Detail their device, and Servers are those of modules.
const (
	WaitsForEntry        = "entry"        // no member has let the device in yet
	WaitsForVerification = "verification" // the device is not verified
	WaitsForLogin        = "login"        // the homeserver wants the device to log in again
	WaitsForSuite        = "suite"        // the room moves to another cipher suite
	WaitsForOther        = "other"
)

// The other kinds are named as the warnings that they tell of, client.WarningKind.

// Notice is something that a person is told about a room, where they read it.
type Notice struct {
	Number int64      `json:"number"`
	Room   id.RoomID  `json:"room_id"`
	Kind   NoticeKind `json:"kind"`
	User   id.UserID  `json:"user_id,omitempty"`
	Text   string     `json:"text,omitempty"`
	At     int64      `json:"at"` // Unix milliseconds
	// What the warning tells of; see client.Warning.
	Rule       string             `json:"rule,omitempty"`
	Servers    []string           `json:"servers,omitempty"`
	Absent     []string           `json:"absent,omitempty"`
	Rekeyed    []string           `json:"rekeyed,omitempty"`
	Detail     string             `json:"detail,omitempty"`
	Reason     string             `json:"reason,omitempty"`
	Standstill *client.Standstill `json:"standstill,omitempty"`
}

// notices are the newest of an account, and how far each client has been told.
type notices struct {
	Next int64    `json:"next"`
	All  []Notice `json:"all"`
	// Told is, for a client, the number that all notices it was told of are below,
	// except those of Ahead.
	Told  map[id.DeviceID]int64   `json:"told"`
	Ahead map[id.DeviceID][]int64 `json:"ahead,omitempty"`
}

// Bounds of what is kept of an account.
const (
	noticesKey = "proxy/notices"
	maxNotices = 100
	maxOfRoom  = 20
	maxOthers  = 10   // notices of a room and kind in an hour of those that go first, and of missing messages: a member may cause as many as they like
	maxText    = 1000 // bytes of a warning
	maxServers = 50   // that a warning names
)

// weight says which notices go first where there are too many.
func (k NoticeKind) weight() int {
	switch k {
	case IdentityNotice:
		return 3
	case HealedNotice, BehindNotice, MemberBehindNotice:
		return 2
	}
	switch client.WarningKind(k) {
	case client.StandstillWarning, client.UnvouchedWarning, client.KeyLostWarning, client.HeirsWarning, client.CopyWarning, client.SupersededWarning,
		client.NotSentWarning, client.EncryptionWarning:
		return 2
	case client.WarningKind(WaitsNotice), client.MissingWarning: // chatter pushes none out; it pushes out nothing above
		return 1
	}
	return 0
}

// add keeps a notice, within the bounds.
func (all *notices) add(n Notice) bool {
	ofRoom, others := 0, 0
	for _, o := range all.All {
		if o.Room == n.Room {
			ofRoom++
			if o.Kind == n.Kind && n.At-o.At < time.Hour.Milliseconds() {
				others++
			}
		}
	}
	if n.Kind.weight() <= 1 && others >= maxOthers {
		return false
	}
	n.Number = all.Next
	all.Next++
	all.All = append(all.All, n)
	if ofRoom >= maxOfRoom {
		all.drop(n.Room)
	}
	if len(all.All) > maxNotices {
		all.drop("")
	}
	return true
}

// drop forgets the oldest notice of those that go first, of a room or, if it is
// "", of all.
func (all *notices) drop(room id.RoomID) {
	least := -1
	for i, o := range all.All {
		if (room == "" || o.Room == room) && (least < 0 || o.Kind.weight() < all.All[least].Kind.weight()) {
			least = i
		}
	}
	all.All = slices.Delete(all.All, least, least+1)
}

// tell keeps what an update says about a room for the clients.
func (a *Account) tell(ctx context.Context, u client.Update) {
	n := Notice{At: time.Now().UnixMilli()}
	switch u := u.(type) {
	case *client.EpochChanged:
		if !u.Lost {
			return
		}
		n.Room, n.Kind = u.Room, HealedNotice
	case *client.Warning:
		n.Room, n.User = u.Room, u.Sender
		switch u.Kind {
		case client.PlaintextWarning:
			return // the event itself is marked
		case client.IdentityWarning:
			n.Kind = IdentityNotice
		case client.BehindWarning:
			n.Kind = BehindNotice
		case client.MemberBehindWarning:
			n.Kind = MemberBehindNotice
		case "":
			n.Kind, n.Text = OtherNotice, short(u.Text)
		default:
			n.Kind, n.Text, n.Detail, n.Standstill = NoticeKind(u.Kind), short(u.Text), short(u.Detail), u.Standstill
			n.Rule, n.Reason = short(u.Rule), short(u.Reason)
			n.Servers, n.Absent, n.Rekeyed = few(u.Servers), few(u.Absent), few(u.Rekeyed)
		}
	default:
		return
	}
	if n.Room == "" {
		return
	}
	err := a.withNotices(ctx, func(all *notices) bool { return all.add(n) })
	if err != nil {
		a.log.Err(err).Msg("A notice about a room cannot be kept")
	}
}

// TellWaits keeps a notice that what the user wrote in a room waits, unless there is one
// of the last hour for the same reason. Those who wait for news of the account get it.
func (a *Account) TellWaits(ctx context.Context, n Notice) {
	n.Kind, n.At = WaitsNotice, time.Now().UnixMilli()
	n.Detail, n.Servers = short(n.Detail), few(n.Servers)
	added := false
	err := a.withNotices(ctx, func(all *notices) bool {
		added = !slices.ContainsFunc(all.All, func(o Notice) bool {
			return o.Room == n.Room && o.Kind == n.Kind && o.Reason == n.Reason && n.At-o.At < time.Hour.Milliseconds()
		}) && all.add(n)
		return added
	})
	if err != nil {
		a.log.Err(err).Msg("A notice about a room cannot be kept")
	} else if added {
		a.news()
	}
}

// short cuts a text off where it is too long.
func short(text string) string {
	if len(text) > maxText {
		return strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// few are the first of the servers that a warning names.
func few(servers []string) (out []string) {
	for _, server := range servers[:min(len(servers), maxServers)] {
		out = append(out, short(server))
	}
	return out
}

// Notices are those that a client has not been told of (see Told). One that is
// new here is told of what comes from now on.
func (a *Account) Notices(ctx context.Context, session id.DeviceID) (out []Notice, err error) {
	err = a.withNotices(ctx, func(all *notices) bool {
		from, known := all.Told[session]
		if known {
			for _, n := range all.All {
				if n.Number >= from && !slices.Contains(all.Ahead[session], n.Number) {
					out = append(out, n)
				}
			}
			return false
		}
		if len(all.Told) >= maxSessions {
			for one := range all.Told { // any: it is told of less
				delete(all.Told, one)
				delete(all.Ahead, one)
				break
			}
		}
		if all.Told == nil {
			all.Told = map[id.DeviceID]int64{}
		}
		all.Told[session] = all.Next
		return true
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Told notes that a client was told of notices.
func (a *Account) Told(ctx context.Context, session id.DeviceID, numbers []int64) error {
	if len(numbers) == 0 {
		return nil
	}
	return a.withNotices(ctx, func(all *notices) bool {
		from, known := all.Told[session]
		if !known {
			return false
		}
		ahead := append(slices.Clone(all.Ahead[session]), numbers...)
		next := all.Next
		for _, n := range all.All {
			if n.Number >= from && !slices.Contains(ahead, n.Number) {
				next = n.Number
				break
			}
		}
		all.Told[session] = next
		// Bounded by the notices that are kept.
		ahead = slices.DeleteFunc(ahead, func(n int64) bool {
			return n < next || !slices.ContainsFunc(all.All, func(o Notice) bool { return o.Number == n })
		})
		slices.Sort(ahead)
		delete(all.Ahead, session)
		if ahead = slices.Compact(ahead); len(ahead) > 0 {
			if all.Ahead == nil {
				all.Ahead = map[id.DeviceID][]int64{}
			}
			all.Ahead[session] = ahead
		}
		return true
	})
}

// withNotices lets change look at the notices, and keeps them if it says that it
// changed something.
func (a *Account) withNotices(ctx context.Context, change func(*notices) bool) error {
	a.noticeMu.Lock()
	defer a.noticeMu.Unlock()
	if a.notices == nil {
		all := new(notices)
		raw, err := a.st.GetKV(ctx, noticesKey)
		if err == nil {
			err = json.Unmarshal(raw, all)
		} else if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("account: notices: %w", err)
		}
		a.notices = all
	}
	if !change(a.notices) {
		return nil
	}
	raw, err := json.Marshal(a.notices)
	if err == nil {
		err = a.st.PutKV(ctx, noticesKey, raw)
	}
	if err != nil {
		a.notices = nil // what is in the store counts
		return fmt.Errorf("account: notices: %w", err)
	}
	return nil
}
