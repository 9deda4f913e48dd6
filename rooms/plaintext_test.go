package rooms

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

func textMessage(body string) *Plaintext {
	return &Plaintext{Type: "m.room.message", Content: mustJSON(map[string]string{"msgtype": "m.text", "body": body}), Room: testRoom, MessageID: NewMessageID([16]byte{1})}
}

func TestPlaintextRoundTripAndPadding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := textMessage(rapid.String().Draw(t, "body"))
		raw, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if n := len(raw); n != 256 && n != 512 && n != 1024 && n != 2048 && n%4096 != 0 {
			t.Fatalf("%d bytes are no bucket", n)
		}
		got, err := DecodePlaintext(raw, testRoom)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, got); diff != "" {
			t.Fatalf("round trip (-want +got):\n%s", diff)
		}
	})
}

func TestPlaintextSize(t *testing.T) {
	overhead := len(mustJSON(textMessage("")))
	for _, test := range []struct{ n, want int }{
		{256 - overhead, 256}, {257 - overhead, 512}, {4096 - overhead, 4096}, {4097 - overhead, 8192}, {MaxPlaintext - overhead, MaxPlaintext},
	} {
		raw, err := textMessage(strings.Repeat("a", test.n)).Encode()
		must(t, err)
		if len(raw) != test.want {
			t.Errorf("body of %d: %d bytes, want %d", test.n, len(raw), test.want)
		}
		// What fits into a plaintext fits into an event.
		_, err = Encode(&EncryptedContent{Algorithm: Algorithm, Ciphertext: make(Bytes, len(raw)+300), CommitEvent: id.EventID("$" + strings.Repeat("x", 43)),
			RelatesTo: json.RawMessage(`{"rel_type":"m.thread","event_id":"$` + strings.Repeat("x", 43) + `"}`)})
		must(t, err)
	}
	_, err := textMessage(strings.Repeat("a", MaxPlaintext+1-overhead)).Encode()
	wantRule(t, err, RuleEventTooLarge)
}

func TestPlaintextRefusals(t *testing.T) {
	const mid = `"` + KeyMessageID + `":"AAAA"`
	for _, test := range []struct {
		name, in string
		rule     Rule
	}{
		{"another room", `{"type":"m.room.message","content":{},"room_id":"` + string(otherRoom) + `",` + mid + `}`, RuleRoomNotGroup},
		{"no room", `{"type":"m.room.message","content":{},` + mid + `}`, RuleContentMalformed},
		{"no type", `{"content":{},"room_id":"` + string(testRoom) + `",` + mid + `}`, RuleContentMalformed},
		{"no content", `{"type":"x","room_id":"` + string(testRoom) + `",` + mid + `}`, RuleContentMalformed},
		{"content is text", `{"type":"x","content":"{}","room_id":"` + string(testRoom) + `",` + mid + `}`, RuleContentMalformed},
		{"no message id", `{"type":"x","content":{},"room_id":"` + string(testRoom) + `"}`, RuleContentMalformed},
		{"message id with spaces", `{"type":"x","content":{},"room_id":"` + string(testRoom) + `","` + KeyMessageID + `":"a b"}`, RuleContentMalformed},
		{"ciphertext inside", `{"type":"m.room.encrypted","content":{},"room_id":"` + string(testRoom) + `",` + mid + `}`, RuleContentMalformed},
		{"duplicate type", `{"type":"x","type":"y","content":{},"room_id":"` + string(testRoom) + `",` + mid + `}`, RuleHostileJSON},
		{"number out of range", `{"type":"x","content":{"a":1e999},"room_id":"` + string(testRoom) + `",` + mid + `}`, RuleHostileJSON},
		{"text after it", `{"type":"x","content":{},"room_id":"` + string(testRoom) + `",` + mid + `}  x`, RuleHostileJSON},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := DecodePlaintext([]byte(test.in), testRoom)
			wantRule(t, err, test.rule)
		})
	}
	if _, err := DecodePlaintext([]byte(`{"type":"x","content":{"lat":52.5,"n":1e3},"room_id":"`+string(testRoom)+`",`+mid+`}`), testRoom); err != nil {
		t.Errorf("a float inside a ciphertext is refused: %v", err)
	}
}

func TestOuterRelation(t *testing.T) {
	one, two := "$"+strings.Repeat("A", 43), "$name:example.org"
	for _, test := range []struct{ version, in, want string }{
		{"11", `{"body":"x"}`, ""},
		{"11", `{"m.relates_to":{"rel_type":"m.annotation","event_id":"` + one + `","key":"👍"}}`, ""},
		{"11", `{"m.relates_to":{"rel_type":"m.thread","event_id":"` + one + `","is_falling_back":true,"m.in_reply_to":{"event_id":"` + one + `"}},"body":"x"}`,
			`{"event_id":"` + one + `","is_falling_back":true,"m.in_reply_to":{"event_id":"` + one + `"},"rel_type":"m.thread"}`},
		{"11", `{"m.relates_to":{"m.in_reply_to":{"event_id":"` + one + `"}}}`, `{"m.in_reply_to":{"event_id":"` + one + `"}}`},
		{"11", `{"m.relates_to":{"rel_type":"m.replace"}}`, ""},
		{"11", `{"m.relates_to":"x"}`, ""},
		// What a client calls a relation or an event may be a text of the user's.
		{"11", `{"m.relates_to":{"rel_type":"we meet at nine","event_id":"` + one + `"}}`, ""},
		{"11", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$we meet at nine"}}`, ""},
		{"11", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$we-meet-at-nine"}}`, ""},
		{"11", `{"m.relates_to":{"rel_type":"m.thread","event_id":"` + one + `","m.in_reply_to":{"event_id":"we meet at 9"}}}`, `{"event_id":"` + one + `","rel_type":"m.thread"}`},
		{"11", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$we-meet-at-nine:ok"}}`, ""},
		{"11", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$` + strings.Repeat("x", 43) + `"}}`, ""},                                   // no SHA-256 ends so
		{"11", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$` + strings.Repeat(".", 43) + `"}}`, ""},                                   // nor is that Base64
		{"11", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$` + strings.Repeat("A", 20) + "\\n" + strings.Repeat("A", 23) + `"}}`, ""}, // nor that
		{"", `{"m.relates_to":{"rel_type":"m.thread","event_id":"` + two + `"}}`, ""},
		{"3", `{"m.relates_to":{"rel_type":"m.thread","event_id":"` + two + `"}}`, ""},
		{"3", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$+/` + strings.Repeat("A", 41) + `"}}`, `{"event_id":"$+/` + strings.Repeat("A", 41) + `","rel_type":"m.thread"}`},
		{"1", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$mls-proxy-x","m.in_reply_to":{"event_id":"` + two + `"}}}`, `{"m.in_reply_to":{"event_id":"` + two + `"}}`},
		{"2", `{"m.relates_to":{"m.in_reply_to":{"event_id":"` + two + `"}}}`, `{"m.in_reply_to":{"event_id":"` + two + `"}}`},
		{"1", `{"m.relates_to":{"m.in_reply_to":{"event_id":"$` + strings.Repeat("x", 300) + `:x"}}}`, ""},
	} {
		if got := string(OuterRelation(json.RawMessage(test.in), test.version)); got != test.want {
			t.Errorf("in version %q OuterRelation(%s) = %s, want %s", test.version, test.in, got, test.want)
		}
	}
}

func TestUnencryptedEvents(t *testing.T) {
	for _, typ := range []string{"m.room.message", "m.reaction", "m.sticker", "org.example.custom"} {
		wantRule(t, CheckUnencrypted(typ, false), RulePlaintext)
		must(t, CheckUnencrypted(typ, true))
	}
	for _, typ := range []string{TypeEncrypted, "m.room.redaction", "org.matrix.dummy_event", TypeCommit, TypeAccept} {
		must(t, CheckUnencrypted(typ, false))
	}
	for _, typ := range []string{"m.room_key", "m.forwarded_room_key", "m.room.encrypted", TypeCommit} {
		wantRule(t, CheckToDevice(typ), RuleMegolmForMLS)
	}
	for _, typ := range []string{TypeWelcome, TypeAdmit, TypeRejoinRequest, TypeKeyPackage, TypeKeyPackageRequest, TypeHistoryRequest, TypeHistoryBundle} {
		must(t, CheckToDevice(typ))
	}
}

func FuzzPlaintext(f *testing.F) {
	raw, err := textMessage("hello").Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := DecodePlaintext(raw, testRoom)
		if err != nil {
			if RuleOf(err) == "" {
				t.Fatalf("error without rule: %v", err)
			}
			return
		}
		_ = OuterRelation(p.Content, "11")
		again, err := p.Encode()
		if err != nil {
			if RuleOf(err) != RuleEventTooLarge {
				t.Fatalf("decoded but not encodable: %v", err)
			}
			return
		}
		if _, err := DecodePlaintext(again, testRoom); err != nil {
			t.Fatalf("own encoding refused: %v", err)
		}
	})
}
