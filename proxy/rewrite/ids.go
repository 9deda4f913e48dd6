package rewrite

import (
	"encoding/json"
	"strings"
)

// ownPrefix begins the ids of events that the proxy makes: the rest is the id of
// the event that they stand for.
const ownPrefix = "$mls-proxy-"

// Original is the id of the event that an event stands for, as the homeserver
// knows it.
func Original(event string) string {
	if rest, ok := strings.CutPrefix(event, ownPrefix); ok {
		return "$" + rest
	}
	return event
}

// namesEvents are the keys of contents, receipts and read markers whose values
// are ids of events.
var namesEvents = map[string]bool{
	"event_id": true, "redacts": true, "pinned": true, "thread_id": true,
	"m.fully_read": true, "m.read": true, "m.read.private": true,
}

// Originals puts the ids that the homeserver knows in the place of the proxy's
// own in what a client sends.
func Originals(raw json.RawMessage) json.RawMessage {
	out, _ := originals(raw, false, maxDepth)
	return out
}

func originals(raw json.RawMessage, names bool, depth int) (out json.RawMessage, changed bool) {
	if depth == 0 {
		return raw, false
	}
	if f, ok := parse(raw); ok {
		for key, value := range f {
			if to, other := originals(value, namesEvents[key], depth-1); other {
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
		if to := Original(s); to != s {
			return quote(to), true
		}
		return raw, false
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return raw, false
	}
	for i, value := range list {
		if to, other := originals(value, names, depth-1); other {
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
