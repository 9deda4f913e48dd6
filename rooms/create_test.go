package rooms

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"
)

func TestCreateRequest(t *testing.T) {
	raw, err := CreateRequest(CreateOptions{Name: "Plans", Invite: []id.UserID{bob}, Bots: []id.UserID{testBot}, Nonce: "n1", Announcement: true})
	must(t, err)
	var got struct {
		Preset   string            `json:"preset"`
		Invite   []id.UserID       `json:"invite"`
		Creation map[string]string `json:"creation_content"`
		State    []StateEvent      `json:"initial_state"`
		Power    struct {
			Events  map[string]int `json:"events"`
			Default int            `json:"events_default"`
		} `json:"power_level_content_override"`
	}
	must(t, json.Unmarshal(raw, &got))
	if got.Creation[KeyCreateAlgorithm] != Algorithm || got.Preset != "private_chat" || !cmp.Equal(got.Invite, []id.UserID{bob, testBot}) || got.Power.Default != 50 {
		t.Errorf("request %s", raw)
	}
	for _, typ := range PowerLevelTypes() {
		if l, ok := got.Power.Events[typ]; !ok || l != 0 {
			t.Errorf("%s needs %d (set: %v), want 0: handshakes of announcement rooms stay open to all", typ, l, ok)
		}
	}
	if got.Power.Events[TypeEncryption] != 100 || got.Power.Events[TypePowerLevels] != 100 || got.Power.Events["m.room.name"] != 50 {
		t.Errorf("the homeserver's own levels are lost: %v", got.Power.Events)
	}
	s := NewRoomState(testRoom)
	for _, e := range got.State {
		must(t, s.Apply(e.Type, e.StateKey, alice, "$e", e.Content))
	}
	must(t, s.CheckAlgorithm())
	if !s.IsMLS() || !cmp.Equal(s.Functional, []id.UserID{testBot}) || s.HistoryVisibility != "invited" {
		t.Errorf("state %+v", s)
	}
	_, err = CreateRequest(CreateOptions{Nonce: "n", HistoryVisibility: "nonsense"})
	wantRule(t, err, RuleContentMalformed)
	_, err = CreateRequest(CreateOptions{})
	wantRule(t, err, RuleContentMalformed)
	_, err = CreateRequest(CreateOptions{Nonce: "n", InitialState: []StateEvent{{Type: TypeEncryption, Content: json.RawMessage(`{"algorithm":"x"}`)}}})
	wantRule(t, err, RuleContentMalformed)
}

func TestCreateRequestWithPowerLevelsOfTheClients(t *testing.T) {
	want := json.RawMessage(`{"users":{"@alice:example.org":100,"` + string(bob) + `":50},"invite":50,"events":{"m.room.name":0,"` + TypeCommit + `":100,"` + TypeEncryption + `":0}}`)
	raw, err := CreateRequest(CreateOptions{Nonce: "n", Power: want})
	must(t, err)
	var got struct {
		Power struct {
			Users  map[id.UserID]int `json:"users"`
			Events map[string]int    `json:"events"`
			Invite int               `json:"invite"`
		} `json:"power_level_content_override"`
	}
	must(t, json.Unmarshal(raw, &got))
	p := got.Power
	if p.Users[bob] != 50 || p.Invite != 50 || p.Events["m.room.name"] != 0 || p.Events["m.room.avatar"] != 50 {
		t.Errorf("what was asked for is lost: %s", raw)
	}
	if p.Events[TypeCommit] != 0 || p.Events[TypeEncryption] != 100 {
		t.Errorf("handshakes need %d, the encryption %d", p.Events[TypeCommit], p.Events[TypeEncryption])
	}
	for _, bad := range []string{`[]`, `{"users_default":-1}`, `{"users_default":"x"}`, `{"events":{"a":"b"}}`} {
		_, err := CreateRequest(CreateOptions{Nonce: "n", Power: json.RawMessage(bad)})
		wantRule(t, err, RuleContentMalformed)
	}
	_, err = CreateRequest(CreateOptions{Nonce: "n", Power: json.RawMessage(`{"events":{},"events":{}}`)})
	wantRule(t, err, RuleHostileJSON)
}

func TestSwitchState(t *testing.T) {
	power := json.RawMessage(`{"users":{"@alice:example.org":100},"events":{"m.room.name":30,"` + TypeCommit + `":0},"org.example.more":{"x":1},"state_default":50}`)
	s := NewRoomState(testRoom)
	must(t, s.Apply(TypePowerLevels, "", alice, "$p", power))
	events, err := SwitchState(s, map[string]json.RawMessage{TypePowerLevels: power}, []id.UserID{testBot}, "n")
	must(t, err)
	var types []string
	for _, e := range events {
		types = append(types, e.Type)
		must(t, s.Apply(e.Type, e.StateKey, alice, "$e", e.Content))
	}
	if diff := cmp.Diff([]string{TypePowerLevels, TypeFunctionalMembers, TypeEncryption}, types); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if len(s.MissingPower(bob)) > 0 || s.Power.Events["m.room.name"] != 30 || s.Power.Needed(TypeEncryption, true) != 100 || !s.IsMLS() {
		t.Errorf("state %+v", s)
	}
	var kept map[string]json.RawMessage
	must(t, json.Unmarshal(events[0].Content, &kept))
	if string(kept["org.example.more"]) != `{"x":1}` {
		t.Errorf("what other software wrote is lost: %s", events[0].Content)
	}
	_, err = SwitchState(s, nil, nil, "n")
	wantRule(t, err, RuleAlgorithmDowngrade)

	megolm := NewRoomState(testRoom)
	must(t, megolm.Apply(TypeEncryption, "", alice, "$e", json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2"}`)))
	_, err = SwitchState(megolm, nil, nil, "n")
	wantRule(t, err, RuleMegolmForMLS)
	if err == nil || !contains(err.Error(), "upgrade the room") {
		t.Errorf("error %v names no remedy", err)
	}
	odd := NewRoomState(testRoom)
	_, err = SwitchState(odd, map[string]json.RawMessage{TypePowerLevels: json.RawMessage(`{"events":[]}`)}, nil, "n")
	wantRule(t, err, RuleContentMalformed)
}
