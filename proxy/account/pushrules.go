package account

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
	"maunium.net/go/mautrix/pushrules"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// rules are the account's push rules. Clients' answers bring them along; if none
// did for a while, the homeserver is asked.
type rules struct {
	own   id.UserID
	fetch func(ctx context.Context) (*pushrules.PushRuleset, error)

	mu  sync.Mutex
	set *ruleset
	at  time.Time // when they came, or were asked for in vain
}

// ruleset are push rules.
type ruleset struct {
	all   *pushrules.PushRuleset // by which messages are judged
	there *pushrules.PushRuleset // by which the homeserver counts ciphertexts
}

func newRuleset(set *pushrules.PushRuleset, own id.UserID) *ruleset {
	return &ruleset{all: complete(set, own), there: set}
}

// How old push rules may get, how soon is asked again after a failure, and for how
// long an answer waits for them.
const (
	rulesAge   = 10 * time.Minute
	rulesRetry = 15 * time.Second
	rulesWait  = 3 * time.Second
)

// get returns the push rules, nil if they are not known.
func (r *rules) get(ctx context.Context) *ruleset {
	r.mu.Lock()
	age := rulesAge
	if r.set == nil {
		age = rulesRetry
	}
	known := r.set
	fresh := !r.at.IsZero() && time.Since(r.at) < age
	if !fresh {
		r.at = time.Now() // the others go on with what there is
	}
	r.mu.Unlock()
	if fresh {
		return known
	}
	// Whoever asks first asks for all: that one's going away ends nothing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rulesWait)
	defer cancel()
	set, err := r.fetch(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && set != nil && r.set == known { // none came meanwhile
		r.set = newRuleset(set, r.own)
	}
	return r.set
}

// take takes in the content of m.push_rules as a client is told it.
func (r *rules) take(content json.RawMessage) {
	var c struct {
		Global *pushrules.PushRuleset `json:"global"`
	}
	if !sound(func() error { return json.Unmarshal(content, &c) }) || c.Global == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set, r.at = newRuleset(c.Global, r.own), time.Now()
}

// complete adds the predefined rules (Matrix client-server API, "Predefined
// Rules") that matter to counts and that some homeservers do not have yet, as
// clients do: without them nobody could be mentioned there.
func complete(there *pushrules.PushRuleset, own id.UserID) *pushrules.PushRuleset {
	set := new(pushrules.PushRuleset)
	*set = *there
	set.Override = slices.Clone(there.Override)
	highlight := pushrules.PushActionArray{{Action: pushrules.ActionNotify}, {Action: pushrules.ActionSetTweak, Tweak: pushrules.TweakHighlight, Value: true}}
	for _, rule := range []*pushrules.PushRule{
		{RuleID: ".m.rule.is_user_mention", Actions: highlight, Conditions: []*pushrules.PushCondition{
			{Kind: pushrules.KindEventPropertyContains, Key: `content.m\.mentions.user_ids`, Value: string(own)}}},
		{RuleID: ".m.rule.is_room_mention", Actions: highlight, Conditions: []*pushrules.PushCondition{
			{Kind: pushrules.KindEventPropertyIs, Key: `content.m\.mentions.room`, Value: true}, {Kind: pushrules.KindSenderNotificationPermission, Key: "room"}}},
		{RuleID: ".m.rule.reaction", Conditions: []*pushrules.PushCondition{{Kind: pushrules.KindEventMatch, Key: "type", Pattern: "m.reaction"}}},
		{RuleID: ".m.rule.suppress_edits", Conditions: []*pushrules.PushCondition{
			{Kind: pushrules.KindEventPropertyIs, Key: `content.m\.relates_to.rel_type`, Value: "m.replace"}}},
	} {
		if !slices.ContainsFunc(set.Override, func(r *pushrules.PushRule) bool { return r.RuleID == rule.RuleID }) {
			rule.Type, rule.Default, rule.Enabled = pushrules.OverrideRule, true, true
			set.Override = append(set.Override, rule)
		}
	}
	return set
}

// sound runs what a rule of an odd shape may make panic.
func sound(fn func() error) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	return fn() == nil
}

// verdict is what push rules say of an event.
type verdict struct{ notify, highlight bool }

// judge applies push rules to a message. One that they cannot be applied to
// counts as an encrypted one does.
func judge(set *pushrules.PushRuleset, room pushrules.Room, roomID id.RoomID, sender id.UserID, eventType string, content json.RawMessage) verdict {
	v, _ := judgeActions(set, room, roomID, sender, eventType, content)
	return v
}

func judgeActions(set *pushrules.PushRuleset, room pushrules.Room, roomID id.RoomID, sender id.UserID, eventType string, content json.RawMessage) (v verdict, actions pushrules.PushActionArray) {
	evt := &event.Event{Type: event.Type{Type: eventType, Class: event.MessageEventType}, Sender: sender, RoomID: roomID}
	evt.Content.VeryRaw = content
	if !sound(func() error {
		if err := json.Unmarshal(content, &evt.Content.Raw); err != nil {
			return err
		}
		actions = set.GetActions(room, evt)
		should := actions.Should()
		v = verdict{notify: should.Notify, highlight: should.Notify && should.Highlight}
		return nil
	}) {
		return verdict{notify: true}, nil
	}
	return v, actions
}

// judged is a room as push rules ask for it.
type judged struct {
	facts client.RoomFacts
	power *event.PowerLevelsEventContent
}

func newJudged(facts client.RoomFacts) *judged {
	j := &judged{facts: facts}
	if json.Unmarshal(facts.Power, &j.power) == nil && j.power != nil && len(facts.Creators) > 0 {
		j.power.CreateEvent = &event.Event{Type: event.StateCreate, Sender: facts.Creators[0], Content: event.Content{Parsed: &event.CreateEventContent{
			RoomVersion: id.RoomVersion(facts.Version), AdditionalCreators: facts.Creators[1:],
		}}}
	}
	return j
}

// GetOwnDisplayname implements pushrules.Room.
func (j *judged) GetOwnDisplayname() string { return j.facts.DisplayName }

// GetMemberCount implements pushrules.Room.
func (j *judged) GetMemberCount() int { return j.facts.Joined }

// GetPowerLevels implements pushrules.PowerLevelfulRoom.
func (j *judged) GetPowerLevels() *event.PowerLevelsEventContent { return j.power }

// blind tells what a homeserver's own counts of a room rest on, which sees
// ciphertexts only: whether every ciphertext notifies, and whether the protocol's
// events do, too.
func (s *ruleset) blind(room *judged, roomID id.RoomID) (ciphertexts, protocol bool) {
	nothing := json.RawMessage("{}")
	return judge(s.there, room, roomID, "", rooms.TypeEncrypted, nothing).notify, judge(s.there, room, roomID, "", rooms.TypeCommit, nothing).notify
}

// counts tells whether the homeserver counts the ciphertext of a message: it sees
// who sent it, and what stands outside of it.
func (s *ruleset) counts(room *judged, roomID id.RoomID, sender id.UserID, content json.RawMessage) bool {
	outside := map[string]json.RawMessage{}
	if relation := rooms.OuterRelation(content, room.facts.Version); relation != nil {
		outside["m.relates_to"] = relation
	}
	raw, err := json.Marshal(outside)
	return err != nil || judge(s.there, room, roomID, sender, rooms.TypeEncrypted, raw).notify
}
