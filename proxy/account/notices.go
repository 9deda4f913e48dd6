package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
)

// Notice is something that a person is told about a room, where they read it.
type Notice struct {
	Number int64      `json:"number"`
	Room   id.RoomID  `json:"room_id"`
	Kind   NoticeKind `json:"kind"`
	User   id.UserID  `json:"user_id,omitempty"`
	Text   string     `json:"text,omitempty"`
	At     int64      `json:"at"` // Unix milliseconds
}

// notices are the newest of an account, and how far each client has been told.
type notices struct {
	Next int64                 `json:"next"`
	All  []Notice              `json:"all"`
	Told map[id.DeviceID]int64 `json:"told"` // the next number for a client
}

const (
	noticesKey = "proxy/notices"
	maxNotices = 100  // kept of an account
	maxText    = 1000 // bytes of a warning
)

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
		default:
			n.Kind, n.Text = OtherNotice, u.Text
			if len(n.Text) > maxText {
				n.Text = strings.ToValidUTF8(n.Text[:maxText], "") + "…"
			}
		}
	default:
		return
	}
	if n.Room == "" {
		return
	}
	err := a.withNotices(ctx, func(all *notices) bool {
		n.Number = all.Next
		all.Next++
		all.All = append(all.All, n)
		if more := len(all.All) - maxNotices; more > 0 {
			all.All = all.All[more:]
		}
		return true
	})
	if err != nil {
		a.log.Err(err).Msg("A notice about a room cannot be kept")
	}
}

// Notices hands on the notices that a client has not been told of. One that is
// new here is told of what comes from now on.
func (a *Account) Notices(ctx context.Context, session id.DeviceID) (out []Notice, err error) {
	err = a.withNotices(ctx, func(all *notices) bool {
		from, known := all.Told[session]
		if known && from == all.Next {
			return false
		}
		if !known && len(all.Told) >= maxSessions {
			for one := range all.Told { // any: it is told of less
				delete(all.Told, one)
				break
			}
		}
		if all.Told == nil {
			all.Told = map[id.DeviceID]int64{}
		}
		all.Told[session] = all.Next
		for _, n := range all.All {
			if known && n.Number >= from {
				out = append(out, n)
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	return out, nil
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
