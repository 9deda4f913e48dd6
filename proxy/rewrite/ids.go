package rewrite

import (
	"encoding/json"
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"
)

// ownPrefix begins the ids of events that the proxy makes: the rest is the id of
// the event that they stand for.
const ownPrefix = "$mls-proxy-"

// Original is the id of the event that an event stands for, as the homeserver
// knows it. A notice about a room stands for none.
func Original(event string) string {
	rest, ok := strings.CutPrefix(event, ownPrefix)
	if _, notice := Noticed(event); !ok || notice {
		return event
	}
	return "$" + rest
}

// Noticed tells whether an event is a notice about a room, and which event of the
// homeserver's it follows ("" if none): it counts as that for how far the room is
// read, and where the homeserver is asked what stands around it; never for what a
// client does to it.
func Noticed(event string) (before string, notice bool) {
	rest, ok := strings.CutPrefix(event, ownPrefix+noticePrefix)
	if !ok {
		return "", false
	}
	if _, before, notice = strings.Cut(rest, noticeEnd); before != "" {
		before = "$" + before
	}
	return before, notice
}

// noticePrefix begins, after ownPrefix, the ids of notices about a room, and
// noticeEnd stands before the id of the event that such a notice follows.
const (
	noticePrefix = "notice-"
	noticeEnd    = "~"
)

// RoomNotice is an event of the proxy's own that tells a user something about a
// room. It comes from themselves, since nobody else said it. number tells notices
// of an account apart; the newest event of the room is before.
func RoomNotice(user id.UserID, number int64, at int64, before id.EventID, text string) Event {
	name := id.EventID(fmt.Sprintf("%s%s%d%s%s", ownPrefix, noticePrefix, number, noticeEnd, strings.TrimPrefix(string(before), "$")))
	time, _ := json.Marshal(at)
	return Event{ID: name, Sender: user, Time: at, Raw: fields{
		"type": quote("m.room.message"), "sender": quote(string(user)), "origin_server_ts": time, "event_id": quote(string(name)),
		"content": fields{"msgtype": quote("m.notice"), "body": quote(text), KeyNotice: json.RawMessage("true")}.raw(),
	}.raw()}
}

// namesEvents are the keys of contents, receipts and read markers whose values
// are ids of events.
var namesEvents = map[string]bool{
	"event_id": true, "redacts": true, "pinned": true, "thread_id": true,
	"m.fully_read": true, "m.read": true, "m.read.private": true,
}

// Originals puts the ids that the homeserver knows in the place of the proxy's
// own in what a client sends. The homeserver knows nothing of notices about rooms:
// notice tells whether one is named.
func Originals(raw json.RawMessage) (out json.RawMessage, notice bool) {
	out, _ = originals(raw, false, maxDepth, func(event string) string {
		if _, is := Noticed(event); is {
			notice = true
		}
		return Original(event)
	})
	return out, notice
}

// Marks does the same in receipts and read markers, for which a notice about a
// room counts as the event that it follows. A mark at one that follows none is
// left out; some tells whether any is left.
func Marks(raw json.RawMessage) (out json.RawMessage, some bool) {
	out, _ = originals(raw, false, maxDepth, func(event string) string {
		if before, is := Noticed(event); is {
			return before
		}
		return Original(event)
	})
	f, ok := parse(out)
	if !ok {
		return out, true // the homeserver says what is wrong with it
	}
	left, gone := 0, false
	for _, key := range []string{"m.fully_read", "m.read", "m.read.private"} {
		switch {
		case !f.has(key):
		case f.text(key) == "":
			delete(f, key)
			gone = true
		default:
			left++
		}
	}
	if gone {
		return f.raw(), left > 0
	}
	return out, true
}

func originals(raw json.RawMessage, names bool, depth int, original func(string) string) (out json.RawMessage, changed bool) {
	if depth == 0 {
		return raw, false
	}
	if f, ok := parse(raw); ok {
		for key, value := range f {
			if to, other := originals(value, namesEvents[key], depth-1, original); other {
				f[key], changed = to, true
			}
		}
		if changed {
			return f.raw(), true
		}
		return raw, false
	}
	var s string
	if names && json.Unmarshal(raw, &s) == nil {
		if to := original(s); to != s {
			return quote(to), true
		}
		return raw, false
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return raw, false
	}
	for i, value := range list {
		if to, other := originals(value, names, depth-1, original); other {
			list[i], changed = to, true
		}
	}
	if !changed {
		return raw, false
	}
	out, err := json.Marshal(list)
	if err != nil {
		return raw, false
	}
	return out, true
}
