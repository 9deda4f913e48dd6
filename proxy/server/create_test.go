package server

import (
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

func TestRequestsForARoomThatCouldBeReadInTwoWaysAreRefused(t *testing.T) {
	const encryption = `{"type":"m.room.encryption","state_key":"","content":{}}`
	for _, tt := range []struct{ name, body, says string }{
		{"a key in another case", `{"Room_Version":"11"}`, "room_version"},
		{"the state in another case", `{"initial_state":[` + encryption + `],"Initial_State":[]}`, "initial_state"},
		{"a type in another case", `{"initial_state":[{"type":"m.room.encryption","Type":"m.room.name","content":{}}]}`, "type"},
		{"a letter that folds onto another", `{"initial_ſtate":[` + encryption + `]}`, "initial_state"},
		{"a key twice", `{"initial_state":[` + encryption + `],"initial_state":[]}`, "duplicate"},
		{"a key twice inside", `{"initial_state":[{"type":"m.room.encryption","type":"m.room.name","content":{}}]}`, "duplicate"},
		{"no object", `[]`, "object"},
		{"a text for a list", `{"invite":"@a:x"}`, "invite"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var req createRequest
			if err := decodeCreate([]byte(tt.body), &req); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want an error about %q", err, tt.says)
			}
		})
	}
	var req createRequest
	if err := decodeCreate([]byte(`{"name":null,"room_version":"10","X":1,"x":2,"initial_state":[`+encryption+`]}`), &req); err != nil || req.Version != "10" || len(req.State) != 1 {
		t.Errorf("%+v, %v", req, err)
	}
}

func TestEncryptedRoomsThatAreNotMade(t *testing.T) {
	for body, fit := range map[string]bool{
		`{}`: true,
		`{"creation_content":{"m.federate":true,"type":null}}`:  true,
		`{"creation_content":{"type":""}}`:                      true,
		`{"creation_content":{"m.federate":false}}`:             false,
		`{"creation_content":{"type":"m.space"}}`:               false,
		`{"creation_content":{"predecessor":{"room_id":"!a"}}}`: false,
		`{"room_alias_name":"a"}`:                               false,
		`{"invite_3pid":[{}]}`:                                  false,
	} {
		var req createRequest
		if err := decodeCreate([]byte(body), &req); err != nil {
			t.Fatal(err)
		}
		if why := req.unfit(); (why == "") != fit {
			t.Errorf("%s: %q", body, why)
		}
	}
}

func TestTheInvitedOfATrustedRoomMayDoAllThatItsCreatorMay(t *testing.T) {
	for version, want := range map[string]string{
		"":   `{"users":{"@a:x":100,"@b:x":100}}`,
		"11": `{"users":{"@a:x":100,"@b:x":100}}`,
		"12": `{"users":{"@b:x":100}}`,
	} {
		if got := string(trusting("@a:x", &createRequest{Version: version, Invite: []id.UserID{"@b:x"}}, nil)); got != want {
			t.Errorf("version %q: %s, want %s", version, got, want)
		}
	}
	for asked, want := range map[string]string{
		`{}`:                        `{"users":{"@a:x":100,"@b:x":100}}`,
		`{"state_default":60}`:      `{"state_default":60,"users":{"@a:x":100,"@b:x":100}}`,
		`{"users":{"@a:x":100}}`:    `{"users":{"@a:x":100}}`,
		`{"users":null,"invite":5}`: `{"users":null,"invite":5}`,
		`[]`:                        `[]`,
	} {
		if got := string(trusting("@a:x", &createRequest{Invite: []id.UserID{"@b:x"}}, []byte(asked))); got != want {
			t.Errorf("asked for %s: %s, want %s", asked, got, want)
		}
	}
}

func TestAlgorithmsThatCouldBeReadInTwoWaysAreRefused(t *testing.T) {
	const mls = `"algorithm":"io.github.matrix-mls.v1"`
	for content, want := range map[string]struct{ asks, fails bool }{
		`{` + mls + `}`:                                    {asks: true},
		`{"algorithm":"m.megolm.v1.aes-sha2"}`:             {},
		`{"algorithm":7}`:                                  {},
		`{"algorithm":"m.megolm.v1.aes-sha2",` + mls + `}`: {fails: true},
		`[]`: {fails: true},
	} {
		if asks, err := asksForMLS([]byte(content)); err == nil && asks != want.asks || (err != nil) != want.fails {
			t.Errorf("%s: %t, %v", content, asks, err)
		}
	}
}
