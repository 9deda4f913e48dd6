// Package rewrite turns what a homeserver says of rooms encrypted with MLS into
// what it would say if they were not encrypted: ciphertexts become messages, the
// protocol's own events are left out. It is pure: bodies in, bodies out; what
// was decrypted comes from a [View].
package rewrite

import (
	"cmp"
	"encoding/json"
	"maps"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// View is what the account's MLS device knows.
type View interface {
	// MLS tells whether a room has, or by its state should have, an MLS group.
	MLS(room id.RoomID) bool
	// Read tells what became of an encrypted event, which was sent at the given
	// time as the homeserver says (milliseconds).
	Read(room id.RoomID, event id.EventID, at int64) Reading
}

// State is what became of an encrypted event.
type State int

// The states of encrypted events.
const (
	Closed State = iota // it cannot be read; Text says why
	Opened              // it was decrypted
	Again               // it repeats a message that came under another event id
)

// Reading is what became of an encrypted event.
type Reading struct {
	State       State
	Sender      id.UserID // of the credential that opened it
	Type        string
	Content     json.RawMessage
	Transaction string // of the client that is answered, if it sent the event
	Text        string // for people: why it cannot be read, and what to do
	Later       bool   // it may be readable later
	// SharedBy is another user, on whose word the message is shown: they gave it to
	// a device that could not open it itself.
	SharedBy id.UserID
	Language Language // of the person who reads it
}

// Bundle is what a View knows of what belongs to a message (Matrix client-server API,
// "Aggregations of child events").
type Bundle struct {
	Edit         Event // the newest by the same sender; without Raw: there is none
	Latest       Event // of the thread that begins with it
	Count        int   // of that thread's messages; 0: there is none
	Participated bool  // the person has written one of them, or the first
}

// KeyUnreadable marks the notice in the place of an event that cannot be read.
const KeyUnreadable = rooms.Prefix + "unreadable"

// KeyNotice marks a notice of the proxy's own about a room.
const KeyNotice = rooms.Prefix + "notice"

// Event is what became of one event.
type Event struct {
	Raw    json.RawMessage // nil: it is left out
	ID     id.EventID
	Sender id.UserID
	Time   int64 // as the homeserver says, milliseconds
	Notice bool  // it stands for one that cannot be read
	Later  bool  // that may be readable later
}

// fields is a JSON object whose values are left as they came. Keys are told
// apart by case, unlike those of a struct.
type fields map[string]json.RawMessage

func parse(raw json.RawMessage) (fields, bool) {
	var f fields
	return f, json.Unmarshal(raw, &f) == nil && f != nil
}

func (f fields) text(key string) string {
	var s string
	if json.Unmarshal(f[key], &s) != nil {
		return ""
	}
	return s
}

func (f fields) has(key string) bool {
	raw, ok := f[key]
	return ok && string(raw) != "null"
}

func (f fields) object(key string) fields {
	out, _ := parse(f[key])
	return out
}

func (f fields) raw() json.RawMessage {
	out, err := json.Marshal(f)
	if err != nil {
		return json.RawMessage("{}") // not of what came in as JSON
	}
	return out
}

func quote(s string) json.RawMessage {
	out, _ := json.Marshal(s)
	return out
}

// One rewrites an event of a room. An event that is no JSON object is left out.
func One(room id.RoomID, raw json.RawMessage, v View) Event {
	f, ok := parse(raw)
	if !ok {
		return Event{}
	}
	out := Event{ID: id.EventID(f.text("event_id")), Sender: id.UserID(f.text("sender"))}
	_ = json.Unmarshal(f["origin_server_ts"], &out.Time)
	eventType := f.text("type")
	isState := f.has("state_key")
	switch {
	case strings.HasPrefix(eventType, rooms.Prefix):
		return out
	case isState && IsMessage(eventType) && v.MLS(room):
		return out // state is not encrypted, and messages are none
	case isState:
		if invited(room, f, v) {
			raw = f.raw()
		}
		out.Raw = stateEvent(room, eventType, raw, f, v)
		return out
	}
	content := f.object("content")
	mls := v.MLS(room)
	redacted := len(f.object("unsigned").object("redacted_because")) > 0 || len(content) == 0
	switch {
	case eventType == rooms.TypeEncrypted && (mls || content.text("algorithm") == rooms.Algorithm):
		if !encrypted(room, &out, f, redacted, v) {
			return out
		}
		bundles(room, f, v)
		if !out.Notice {
			bundleKnown(room, f, redacted, v)
		}
		out.Raw = f.raw()
		return out
	case mls && redacted:
		f["content"] = json.RawMessage("{}")
	case mls && eventType != "m.room.redaction":
		if !plaintext(eventType, f, content, languageOf(v)) {
			return out
		}
	case !mls:
		out.Raw = raw
		return out
	}
	bundles(room, f, v)
	out.Raw = f.raw()
	return out
}

// IsMessage tells whether events of a type are messages, which are encrypted in
// MLS rooms, and so are no state there.
func IsMessage(eventType string) bool {
	switch eventType {
	case "m.room.message", "m.sticker", "m.reaction", rooms.TypeEncrypted:
		return true
	}
	return false
}

// invited rewrites the stripped state that an invite or a knock carries with it
// (unsigned.invite_room_state): clients take how the room is encrypted from there,
// too. It tells whether it changed something.
func invited(room id.RoomID, f fields, v View) (changed bool) {
	unsigned := f.object("unsigned")
	for _, name := range []string{"invite_room_state", "knock_room_state"} {
		var stripped []json.RawMessage
		if json.Unmarshal(unsigned[name], &stripped) != nil {
			continue
		}
		for i, raw := range stripped {
			if inner, ok := parse(raw); ok && inner.has("unsigned") { // nothing that was stripped has it
				delete(inner, "unsigned")
				stripped[i], changed = inner.raw(), true
			}
		}
		if changed {
			unsigned[name], _ = json.Marshal(stripped)
		}
		if kept, all := strippedList(room, stripped, v); !all {
			unsigned[name], _ = json.Marshal(kept)
			changed = true
		}
	}
	if changed {
		f["unsigned"] = unsigned.raw()
	}
	return changed
}

// strippedList rewrites the state that who is invited may see. All tells whether
// it stays as it was. Some homeservers give it without its contents: encryption of
// which nothing is said is left out, too, since clients would take the room for
// one that they have to encrypt for. Who joins gets the whole state.
func strippedList(room id.RoomID, events []json.RawMessage, v View) (kept []json.RawMessage, all bool) {
	kept, all = make([]json.RawMessage, 0, len(events)), true
	for _, raw := range events {
		e := One(room, raw, v)
		if f, ok := parse(raw); !ok || f.text("type") == rooms.TypeEncryption && f.object("content").text("algorithm") == "" {
			e.Raw = nil
		}
		if e.Raw != nil {
			kept = append(kept, e.Raw)
		}
		all = all && string(e.Raw) == string(raw)
	}
	return kept, all
}

// stateEvent leaves out what would make a client encrypt by itself.
func stateEvent(room id.RoomID, eventType string, raw json.RawMessage, f fields, v View) json.RawMessage {
	content := f.object("content")
	switch eventType {
	case rooms.TypeEncryption:
		if content.text("algorithm") == rooms.Algorithm || v.MLS(room) {
			return nil
		}
	case rooms.TypeCreate:
		if content.text(rooms.KeyCreateAlgorithm) == rooms.Algorithm {
			delete(content, rooms.KeyCreateAlgorithm)
			f["content"] = content.raw()
			return f.raw()
		}
	}
	return raw
}

// encrypted puts what an event says in the place of its ciphertext. It returns
// false if the event is to be left out.
func encrypted(room id.RoomID, out *Event, f fields, redacted bool, v View) bool {
	r := v.Read(room, out.ID, out.Time)
	if redacted {
		f["type"], f["content"] = quote("m.room.message"), json.RawMessage("{}")
		if r.State == Opened && r.Sender == out.Sender {
			f["type"] = quote(r.Type)
		}
		return true
	}
	if r.State == Again {
		return false
	}
	if r.State == Opened && (strings.HasPrefix(r.Type, rooms.Prefix) || r.Type == "m.room.redaction" || r.Type == rooms.TypeEncrypted) {
		r = Reading{Text: languageOf(v).Text(RefusedFor, r.Type)} // not what a message can be
	}
	if r.State == Opened && r.Sender == out.Sender {
		f["type"], f["content"] = quote(r.Type), shared(r, languageOf(v))
		if r.Transaction != "" {
			unsigned := f.object("unsigned")
			if unsigned == nil {
				unsigned = fields{}
			}
			unsigned["transaction_id"] = quote(r.Transaction)
			f["unsigned"] = unsigned.raw()
		}
		return true
	}
	if r.State == Opened {
		r.Text = languageOf(v).Text(WrongSender, string(r.Sender))
	}
	out.Notice, out.Later = true, r.Later
	f["type"], f["content"] = quote("m.room.message"), noticeContent(r.Text)
	return true
}

// KeySharedBy names in a content who gave the message to the proxy's device.
const KeySharedBy = rooms.Prefix + "shared_by"

// shared marks a message that is shown on another user's word: what people read of
// it begins with who that is.
func shared(r Reading, l Language) json.RawMessage {
	if r.SharedBy == "" {
		return r.Content
	}
	content, ok := parse(r.Content)
	if !ok {
		return r.Content
	}
	mark := func(c fields) {
		if c.has("body") {
			c["body"] = quote(l.Text(SharedBy, string(r.SharedBy), c.text("body")))
		}
		delete(c, "formatted_body") // clients show it in place of the body
		delete(c, "format")
	}
	mark(content)
	if fresh := content.object("m.new_content"); fresh != nil {
		mark(fresh)
		content["m.new_content"] = fresh.raw()
	}
	content[KeySharedBy] = quote(string(r.SharedBy))
	return content.raw()
}

func noticeContent(text string) json.RawMessage {
	return fields{"msgtype": quote("m.notice"), "body": quote(text), KeyUnreadable: json.RawMessage("true")}.raw()
}

// plaintext marks a message that came unencrypted into an encrypted room. Anyone
// between the sender and this program can have written it, so it changes nothing
// else: it is no edit, reply or reaction. It returns false if the event is to be
// left out.
func plaintext(eventType string, f, content fields, l Language) bool {
	if eventType != "m.room.message" && eventType != "m.sticker" {
		return false
	}
	body := content.text("body")
	f["type"] = quote("m.room.message")
	f["content"] = fields{"msgtype": quote("m.text"), "body": quote(l.Text(NotEncrypted, body))}.raw()
	return true
}

// bundles rewrites the events that a homeserver bundles with an event
// ("m.relations" in unsigned).
func bundles(room id.RoomID, f fields, v View) {
	unsigned := f.object("unsigned")
	relations := unsigned.object("m.relations")
	if relations == nil {
		return
	}
	// The homeserver counts what it can see: annotations are inside ciphertexts.
	// What is not known here may hold events.
	maps.DeleteFunc(relations, func(kind string, _ json.RawMessage) bool {
		return kind != "m.replace" && kind != "m.thread" && kind != "m.reference"
	})
	if relations.has("m.replace") {
		edit := One(room, relations["m.replace"], v)
		if edit.Raw == nil || edit.Notice || edit.Sender != id.UserID(f.text("sender")) || !isEditOf(edit.Raw, f.text("event_id")) {
			delete(relations, "m.replace")
		} else {
			relations["m.replace"] = edit.Raw
		}
	}
	if thread := relations.object("m.thread"); thread.has("latest_event") {
		latest := One(room, thread["latest_event"], v)
		if latest.Raw == nil {
			delete(relations, "m.thread")
		} else {
			thread["latest_event"] = latest.Raw
			relations["m.thread"] = thread.raw()
		}
	}
	unsigned["m.relations"] = relations.raw()
	f["unsigned"] = unsigned.raw()
}

// bundleKnown bundles with a message what the homeserver does not, and the View knows: a
// View may have a method Bundle. An edit has none, and in a thread there begins no other.
func bundleKnown(room id.RoomID, f fields, redacted bool, v View) {
	knows, ok := v.(interface {
		Bundle(room id.RoomID, event id.EventID, sender id.UserID, eventType string) Bundle
	})
	rel := f.object("content").object("m.relates_to").text("rel_type")
	if !ok || rel == "m.replace" {
		return
	}
	b := knows.Bundle(room, id.EventID(f.text("event_id")), id.UserID(f.text("sender")), f.text("type"))
	unsigned := orNew(f.object("unsigned"))
	relations := orNew(unsigned.object("m.relations"))
	if b.Edit.Raw != nil && !redacted && isEditOf(b.Edit.Raw, f.text("event_id")) && after(b.Edit, relations.object("m.replace")) {
		relations["m.replace"] = b.Edit.Raw
	}
	if b.Count > 0 && b.Latest.Raw != nil && rel == "" && !relations.has("m.thread") {
		relations["m.thread"] = threadOf(b.Latest, b.Count, b.Participated)
	}
	if len(relations) == 0 {
		return
	}
	unsigned["m.relations"] = relations.raw()
	f["unsigned"] = unsigned.raw()
}

// after tells whether an edit is the one that counts of it and another, nil for none.
func after(edit Event, other fields) bool {
	if other == nil {
		return true
	}
	var at int64
	_ = json.Unmarshal(other["origin_server_ts"], &at)
	return cmp.Or(cmp.Compare(edit.Time, at), strings.Compare(string(edit.ID), other.text("event_id"))) > 0
}

func isEditOf(raw json.RawMessage, event string) bool {
	f, _ := parse(raw)
	relates := f.object("content").object("m.relates_to")
	return relates.text("rel_type") == "m.replace" && relates.text("event_id") == event
}

// List rewrites events in their order and leaves out what is to be left out.
// Removed counts those.
func List(room id.RoomID, events []json.RawMessage, v View) (out []Event, removed int) {
	out = make([]Event, 0, len(events))
	for _, raw := range events {
		e := One(room, raw, v)
		if e.Raw == nil {
			removed++
			continue
		}
		out = append(out, e)
	}
	return out, removed
}

// Raws are the events themselves.
func Raws(events []Event) []json.RawMessage {
	out := make([]json.RawMessage, 0, len(events))
	for _, e := range events {
		out = append(out, e.Raw)
	}
	return out
}

// Replacement is an event that puts what was read meanwhile in the place of a
// notice: an edit by the same sender, under an id of the proxy's own.
func Replacement(notice Event, r Reading) json.RawMessage {
	content, ok := parse(shared(r, r.Language))
	if !ok || r.Type != "m.room.message" {
		content = fields{"msgtype": quote("m.notice"), "body": quote(r.Language.Text(CameLate, r.Type))}
	}
	if fresh := content.object("m.new_content"); fresh != nil {
		content = fresh
	}
	delete(content, "m.relates_to")
	edit := fields{
		"msgtype": quote("m.text"), "body": quote("* " + content.text("body")), "m.new_content": content.raw(),
		"m.relates_to": fields{"rel_type": quote("m.replace"), "event_id": quote(string(notice.ID))}.raw(),
	}
	if content.has("msgtype") {
		edit["msgtype"] = content["msgtype"]
	}
	at, _ := json.Marshal(notice.Time)
	return fields{
		"type": quote("m.room.message"), "sender": quote(string(notice.Sender)), "origin_server_ts": at, "content": edit.raw(),
		"event_id": quote(ownPrefix + strings.TrimPrefix(string(notice.ID), "$")),
	}.raw()
}

// IsCiphertext tells whether an event is a ciphertext that may still have to be
// opened, and when it was sent.
func IsCiphertext(raw json.RawMessage) (event id.EventID, at int64, ok bool) {
	f, isObject := parse(raw)
	if !isObject || f.text("type") != rooms.TypeEncrypted || f.object("content").text("algorithm") != rooms.Algorithm {
		return "", 0, false
	}
	_ = json.Unmarshal(f["origin_server_ts"], &at)
	return id.EventID(f.text("event_id")), at, true
}

// StateContent rewrites what a homeserver gives for GET …/state/{type}: a
// content, or (format=event) a whole event. It returns nil if the client must not
// see that.
func StateContent(room id.RoomID, eventType string, body json.RawMessage, v View) json.RawMessage {
	if strings.HasPrefix(eventType, rooms.Prefix) {
		return nil
	}
	f, ok := parse(body)
	if !ok {
		return body
	}
	inner := f.object("content")
	switch eventType {
	case rooms.TypeEncryption:
		if v.MLS(room) || f.text("algorithm") == rooms.Algorithm || inner.text("algorithm") == rooms.Algorithm {
			return nil
		}
	case rooms.TypeCreate:
		if f.text(rooms.KeyCreateAlgorithm) == rooms.Algorithm {
			delete(f, rooms.KeyCreateAlgorithm)
			return f.raw()
		}
		if inner.text(rooms.KeyCreateAlgorithm) == rooms.Algorithm {
			delete(inner, rooms.KeyCreateAlgorithm)
			f["content"] = inner.raw()
			return f.raw()
		}
	}
	return body
}

// TypeOf is the type of an event.
func TypeOf(raw json.RawMessage) string {
	f, _ := parse(raw)
	return f.text("type")
}
