package client

import (
	"encoding/json"
	"testing"

	"maunium.net/go/mautrix/id"
)

// Dendrite 0.15 does this after another server joined the room.
func TestFullStateDoesNotEmptyKnownEvents(t *testing.T) {
	key := ""
	event := func(name, content string) *Event {
		return &Event{ID: id.EventID("$" + name), Type: typeRoomName, Sender: "@a:one", StateKey: &key, Content: json.RawMessage(content)}
	}
	s := newRoomState("!r:one")
	s.set(event("name", `{"name":"Lunch"}`))
	s.replace([]*Event{event("name", `{}`)})
	if got := s.name(); got != "Lunch" {
		t.Errorf("the same event with an empty content: name %q, want Lunch", got)
	}
	s.replace([]*Event{event("other", `{}`)})
	if got := s.name(); got != "" {
		t.Errorf("another event: name %q, want none", got)
	}
	s.replace(nil)
	if got := s.content(typeRoomName, ""); got != nil {
		t.Errorf("state that is gone: %s", got)
	}
}
