package rooms

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matrix-mls/matrix-mls/federation"
)

func TestHostileJSON(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)
	for _, test := range []struct{ name, in string }{
		{"empty", ""},
		{"nesting", deep},
		{"arrays", strings.Repeat("[", 40) + strings.Repeat("]", 40)},
		{"duplicate key", `{"ref":"a","ref":"b"}`},
		{"duplicate key by escape", `{"ref":"a","\u0072ef":"b"}`},
		{"duplicate key deep inside", `{"a":[{"b":1,"b":2}]}`},
		{"huge integer", `{"epoch":9007199254740993}`},
		{"negative huge integer", `{"epoch":-9007199254740993}`},
		{"float", `{"epoch":1.5}`},
		{"exponent", `{"epoch":1e3}`},
		{"number without end", `{"epoch":` + strings.Repeat("1", 100) + `}`},
		{"negative zero", `{"epoch":-0}`},
		{"leading zero", `{"epoch":01}`},
		{"invalid UTF-8", "{\"a\":\"\xff\"}"},
		{"half a surrogate", `{"a":"\ud800"}`},
		{"second half of a surrogate", `{"a":"\udc00"}`},
		{"surrogate and letter", `{"a":"\ud800A"}`},
		{"control character", "{\"a\":\"\x01\"}"},
		{"text after the value", `{} {}`},
		{"trailing comma", `{"a":1,}`},
		{"single quotes", `{'a':1}`},
		{"comment", `{/**/}`},
		{"unclosed string", `{"a":"b`},
		{"unclosed object", `{"a":1`},
		{"unclosed escape", `{"a":"\`},
		{"unknown escape", `{"a":"\x41"}`},
		{"NaN", `{"a":NaN}`},
		{"true with a tail", `{"a":truex}`},
		{"many values", `{"a":[` + strings.TrimSuffix(strings.Repeat("1,", 20000), ",") + `]}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseJSON([]byte(test.in), canonicalNumbers)
			wantRule(t, err, RuleHostileJSON)
		})
	}
	_, err := parseJSON(bytes.Repeat([]byte(" "), maxJSONSize+1), canonicalNumbers)
	wantRule(t, err, RuleEventTooLarge)
}

func TestJSONAgreesWithStandardLibrary(t *testing.T) {
	for _, in := range []string{
		`{}`, `[]`, ` { "a" : [ 1 , -2, true,false,null , "x" ] } `, `"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"`, `{"":""}`, `0`,
	} {
		v, err := parseJSON([]byte(in), canonicalNumbers)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		var want, got any
		must(t, json.Unmarshal([]byte(in), &want))
		must(t, json.Unmarshal(v.appendCanonical(nil), &got))
		if !cmp.Equal(want, got) {
			t.Errorf("%s: canonical form %s", in, v.appendCanonical(nil))
		}
	}
}

func TestCanonicalJSON(t *testing.T) {
	// Matrix specification, appendices, "Canonical JSON", examples.
	for in, want := range map[string]string{
		`{}`:                         `{}`,
		`{ "one": 1, "two": "Two" }`: `{"one":1,"two":"Two"}`,
		`{ "b": "2", "a": "1" }`:     `{"a":"1","b":"2"}`,
		`{"auth":{"success":true,"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"medium":"email","address":"john.doe@example.org"},{"medium":"msisdn","address":"123456789"}]}}}`: `{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}`,
		`{ "a": "日本語" }`:                        `{"a":"日本語"}`,
		`{ "本": 2, "日": 1 }`:                    `{"日":1,"本":2}`,
		`{ "a": "\u65E5" }`:                     `{"a":"日"}`,
		`{ "a": null }`:                         `{"a":null}`,
		"{\"a\":\"\\u0007\\n\\\"\\\\\\u007f\"}": "{\"a\":\"\\u0007\\n\\\"\\\\\x7f\"}",
	} {
		v, err := parseJSON([]byte(in), canonicalNumbers)
		must(t, err)
		if got := string(v.appendCanonical(nil)); got != want {
			t.Errorf("canonical form of %s:\n got %s\nwant %s", in, got, want)
		}
	}
}

func TestKeysMatchExactly(t *testing.T) {
	h := Hash{1}.String()
	sig := EncodeBase64(make([]byte, 64))
	_, err := DecodeApplied(json.RawMessage(`{"REF":"` + h + `","leaf":1,"hash":"` + h + `","sig":"` + sig + `"}`))
	wantRule(t, err, RuleContentMalformed)
	c, err := DecodeApplied(json.RawMessage(`{"ref":"` + h + `","Ref":"x","leaf":1,"hash":"` + h + `","sig":"` + sig + `","more":{"x":[1]}}`))
	must(t, err)
	if c.Ref != (Hash{1}) {
		t.Errorf("ref %v", c.Ref)
	}
}

// contents holds one valid content of every type with its decoder.
func contents() map[string]struct {
	value  interface{ validate() error }
	decode func(json.RawMessage) (any, error)
} {
	type row = struct {
		value  interface{ validate() error }
		decode func(json.RawMessage) (any, error)
	}
	h, sig := Hash{1, 2, 3}, Bytes(bytes.Repeat([]byte{5}, 64))
	base := ReceiptBase{Cfg: h, Rank: 1, Counter: 7, Prev: Hash{9}, Sig: sig}
	applied := AppliedContent{Ref: h, Leaf: 3, Hash: Hash{4}, Sig: sig}
	file := File{MXC: "mxc://example.org/abc", SHA256: h, Size: 1000}
	snapshot := Snapshot{File: &file, TreeHash: Bytes{1}, AtCommit: h}
	admission := Admission{Room: testRoom, Group: Bytes{1}, User: bob, MasterKey: EncodeBase64(make([]byte, 32)), Ref: h, Leaf: 1, Sig: sig}
	vote := VoteContent{ReceiptBase: base, Ballot: Ballot{2, 1}, Ref: h, Event: "$e", Proofs: []Proof{{Applied: &applied}, {Commit: h}}}
	promise := PromiseContent{ReceiptBase: base, Ballot: Ballot{2, 1}, Last: &LastVote{Ballot: Ballot{1, 0}, Ref: h, Epoch: 7, Proofs: []Proof{{Commit: h}}}}
	event := &EventRef{Ref: h, Event: "$e", Epoch: 4}
	any2 := func(v any, err error) (any, error) { return v, err }
	return map[string]row{
		"commit": {&CommitContent{Epoch: 2, Parent: h, ParentEvent: "$p", Message: Bytes{1}, Proposals: []Bytes{{2}}, GroupInfo: Bytes{3},
			CoSignatures: []CoSignature{{Leaf: 1, Sig: sig}}, Admissions: []Admission{admission}},
			func(r json.RawMessage) (any, error) { return any2(DecodeCommit(r)) }},
		"root":        {&CommitContent{GroupInfo: Bytes{3}}, func(r json.RawMessage) (any, error) { return any2(DecodeCommit(r)) }},
		"commit file": {&CommitContent{Epoch: 2, Parent: h, File: &file}, func(r json.RawMessage) (any, error) { return any2(DecodeCommit(r)) }},
		"founding":    {&CommitContent{Epoch: 1, Parent: h, Founding: true, GroupInfo: Bytes{1}, Snapshot: &snapshot}, func(r json.RawMessage) (any, error) { return any2(DecodeCommit(r)) }},
		"proposal":    {&ProposalContent{Epoch: 2, Parent: h, Message: Bytes{1}, Reason: "$r"}, func(r json.RawMessage) (any, error) { return any2(DecodeProposal(r)) }},
		"accept": {&AcceptContent{ReceiptBase: base, Ref: h, Parent: h, Event: "$e", Epoch: 2, Ballot: &Ballot{2, 1}, Promises: []PromiseContent{promise}, Votes: []VoteContent{vote}},
			func(r json.RawMessage) (any, error) { return any2(DecodeAccept(r)) }},
		"provisional": {&AcceptContent{ReceiptBase: base, Ref: h, Epoch: 2, Provisional: true}, func(r json.RawMessage) (any, error) { return any2(DecodeAccept(r)) }},
		"vote":        {&vote, func(r json.RawMessage) (any, error) { return any2(DecodeVote(r)) }},
		"promise":     {&promise, func(r json.RawMessage) (any, error) { return any2(DecodePromise(r)) }},
		"ready":       {&ReadyContent{base}, func(r json.RawMessage) (any, error) { return any2(DecodeReady(r)) }},
		"applied":     {&applied, func(r json.RawMessage) (any, error) { return any2(DecodeApplied(r)) }},
		"reject":      {&RejectContent{Ref: h, Leaf: 2, Rule: "commit/tag", Sig: sig}, func(r json.RawMessage) (any, error) { return any2(DecodeReject(r)) }},
		"admission":   {&admission, func(r json.RawMessage) (any, error) { return any2(DecodeAdmission(r)) }},
		"era": {&EraSupport{Era: 1, Parent: h, Leaf: 3, Sig: Bytes{1}, Sequencers: []EraListItem{{Server: "example.org", User: testBot, Key: make(Bytes, 32)}}},
			func(r json.RawMessage) (any, error) { return any2(DecodeEraSupport(r)) }},
		"module profile":  {&ModuleProfile{Version: 1, ReceiptKey: make(Bytes, 32)}, func(r json.RawMessage) (any, error) { return any2(DecodeModuleProfile(r)) }},
		"encrypted":       {&EncryptedContent{Algorithm: Algorithm, Ciphertext: Bytes{1}, CommitEvent: "$c", RelatesTo: json.RawMessage(`{"rel_type":"m.thread"}`)}, func(r json.RawMessage) (any, error) { return any2(DecodeEncrypted(r)) }},
		"receipt payload": {&ReceiptPayload{Acks: []Ack{{Ref: h, Leaf: 1, Generation: 5}}}, func(r json.RawMessage) (any, error) { return any2(DecodeReceiptPayload(r)) }},
		"welcome": {&WelcomeContent{Room: testRoom, CommitEvent: "$c", Ref: h, Cfg: h, Era: 1, Welcome: Bytes{1}, Snapshot: snapshot,
			Accept: &AcceptContent{ReceiptBase: base, Ref: h, Epoch: 2, Provisional: true}}, func(r json.RawMessage) (any, error) { return any2(DecodeWelcome(r)) }},
		"rejoin request":  {&RejoinRequestContent{Room: testRoom, Need: NeedWelcome, Ref: h, Reason: "x", KeyPackage: Bytes{1}}, func(r json.RawMessage) (any, error) { return any2(DecodeRejoinRequest(r)) }},
		"key package":     {&KeyPackageContent{Room: testRoom, Suite: 1, RequestID: "a", KeyPackage: Bytes{1}}, func(r json.RawMessage) (any, error) { return any2(DecodeKeyPackage(r)) }},
		"history request": {&HistoryRequestContent{Room: testRoom, Request: "r", Device: "D", Suite: 1, Key: make(Bytes, 32), Sig: sig}, func(r json.RawMessage) (any, error) { return any2(DecodeHistoryRequest(r)) }},
		"history bundle":  {&HistoryBundleContent{Room: testRoom, Request: "r", Device: "D", Suite: 1, Part: 2, Last: true, Key: make(Bytes, 80), File: file, Sig: sig}, func(r json.RawMessage) (any, error) { return any2(DecodeHistoryBundle(r)) }},
		"request":         {&RequestContent{Refs: []Hash{h}, Receipts: []Hash{h}, Since: event, Above: []ReceiptsAbove{{Key: make(Bytes, 32), Counter: 7}}, Heads: true, Nonce: "n", Event: "$e"}, func(r json.RawMessage) (any, error) { return any2(DecodeRequest(r)) }},
		"repost":          {&RepostContent{Type: TypeCommit, Sender: alice, Event: "$e", Content: json.RawMessage(`{"epoch":1}`)}, func(r json.RawMessage) (any, error) { return any2(DecodeRepost(r)) }},
		"head": {&HeadContent{Version: 1, ReceiptKey: make(Bytes, 32), ExternalSenders: []ExternalSender{{Scheme: 0x807, Key: Bytes{1}}}, Server: "example.org", Group: Bytes{1}, Answers: []string{"n"},
			Accepted: event, Final: event, Root: event, Receipts: []ReceiptRef{{Key: Bytes{1}, Counter: 1, Hash: h, Event: "$e"}, {Key: Bytes{1}, Counter: 1, Hash: Hash(federation.HashOf([]byte{1}, sig)), Signed: Bytes{1}, Sig: sig}}, GroupInfo: Bytes{1}, Snapshot: &snapshot,
			Cfg: h, Era: 2, Proof: Bytes{1}, Nonce: "n"}, func(r json.RawMessage) (any, error) { return any2(DecodeHead(r)) }},
	}
}

func TestContentsRoundTrip(t *testing.T) {
	for name, c := range contents() {
		t.Run(name, func(t *testing.T) {
			raw, err := Encode(c.value)
			must(t, err)
			got, err := c.decode(raw)
			must(t, err)
			if diff := cmp.Diff(any(c.value), got); diff != "" {
				t.Errorf("round trip (-want +got):\n%s", diff)
			}
		})
	}
}

// TestContentsRefused breaks each field of each valid content in turn: a value
// of another JSON type is never accepted.
func TestContentsRefused(t *testing.T) {
	for name, c := range contents() {
		raw, err := Encode(c.value)
		must(t, err)
		var fields map[string]json.RawMessage
		must(t, json.Unmarshal(raw, &fields))
		for key := range fields {
			if key == KeyRelatesTo { // carried as it is
				continue
			}
			t.Run(name+"/"+key, func(t *testing.T) {
				for _, wrong := range []string{`true`, `{"x":1}`, `["x"]`, `"\u0000=x"`} {
					if (key == "provisional" || key == "heads" || key == "last") && wrong == "true" || key == "answers" && wrong[0] == '[' || key == "founding" && wrong == "true" || key == "content" && wrong[0] == '{' {
						continue
					}
					if (key == "reason" || key == "server" || strings.HasSuffix(key, "nonce") || key == "request_id") && wrong[0] == '"' {
						continue
					}
					edited := map[string]json.RawMessage{}
					for k, v := range fields {
						edited[k] = v
					}
					edited[key] = json.RawMessage(wrong)
					raw, err := json.Marshal(edited)
					must(t, err)
					if got, err := c.decode(raw); err == nil {
						t.Errorf("%s = %s is accepted: %+v", key, wrong, got)
					} else if r := RuleOf(err); r == "" {
						t.Errorf("error without rule: %v", err)
					}
				}
			})
		}
	}
}

func TestContentRules(t *testing.T) {
	h, g, sig := Hash{1}.String(), EncodeBase64([]byte{1}), EncodeBase64(make([]byte, 64))
	big := EncodeBase64(make([]byte, MaxInline))
	base := `"cfg":"` + h + `","rank":0,"counter":1,"sig":"` + sig + `"`
	for _, test := range []struct {
		name, in string
		decode   func(json.RawMessage) (any, error)
		rule     Rule
	}{
		{"redacted commit", `{}`, dec(DecodeCommit), RuleRedactedCommit},
		{"commit without parent", `{"epoch":1,"message":"` + g + `","group_info":"` + g + `"}`, dec(DecodeCommit), RuleContentMalformed},
		{"commit without message", `{"epoch":1,"parent":"` + h + `","group_info":"` + g + `"}`, dec(DecodeCommit), RuleContentMalformed},
		{"commit without GroupInfo", `{"epoch":1,"parent":"` + h + `","message":"` + g + `"}`, dec(DecodeCommit), RuleContentMalformed},
		{"commit too large", `{"epoch":1,"parent":"` + h + `","message":"` + big + `","group_info":"` + g + `"}`, dec(DecodeCommit), RuleEventTooLarge},
		{"commit both ways", `{"epoch":1,"parent":"` + h + `","message":"` + g + `","group_info":"` + g + `","file":{"mxc":"mxc://a/b","sha256":"` + h + `","size":1}}`, dec(DecodeCommit), RuleContentMalformed},
		{"root with parent", `{"epoch":0,"parent":"` + h + `","group_info":"` + g + `"}`, dec(DecodeCommit), RuleContentMalformed},
		{"file too large", `{"epoch":1,"parent":"` + h + `","file":{"mxc":"mxc://a/b","sha256":"` + h + `","size":17000000}}`, dec(DecodeCommit), RuleEventTooLarge},
		{"file elsewhere", `{"epoch":1,"parent":"` + h + `","file":{"mxc":"https://a/b","sha256":"` + h + `","size":1}}`, dec(DecodeCommit), RuleContentMalformed},
		{"file above", `{"epoch":1,"parent":"` + h + `","file":{"mxc":"mxc://../..","sha256":"` + h + `","size":1}}`, dec(DecodeCommit), RuleContentMalformed},
		{"file with path", `{"epoch":1,"parent":"` + h + `","file":{"mxc":"mxc://a/../b","sha256":"` + h + `","size":1}}`, dec(DecodeCommit), RuleContentMalformed},
		{"padded base64", `{"epoch":0,"group_info":"QQ=="}`, dec(DecodeCommit), RuleBase64Malformed},
		{"short hash", `{"ref":"QQ","leaf":1,"hash":"` + h + `","sig":"` + sig + `"}`, dec(DecodeApplied), RuleContentMalformed},
		{"negative leaf", `{"ref":"` + h + `","leaf":-1,"hash":"` + h + `","sig":"` + sig + `"}`, dec(DecodeApplied), RuleContentMalformed},
		{"leaf of 33 bits", `{"ref":"` + h + `","leaf":4294967296,"hash":"` + h + `","sig":"` + sig + `"}`, dec(DecodeApplied), RuleContentMalformed},
		{"accept in a ballot and provisional", `{` + base + `,"ref":"` + h + `","epoch":1,"ballot":[0,0],"provisional":true}`, dec(DecodeAccept), RuleContentMalformed},
		{"accept without ballot", `{` + base + `,"ref":"` + h + `","epoch":1}`, dec(DecodeAccept), RuleContentMalformed},
		{"accept in another's ballot", `{` + base + `,"ref":"` + h + `","epoch":1,"ballot":[1,2]}`, dec(DecodeAccept), RuleContentMalformed},
		{"ballot of three", `{` + base + `,"ref":"` + h + `","epoch":1,"ballot":[1,0,0]}`, dec(DecodeAccept), RuleContentMalformed},
		{"round 0, rank 1", `{` + base + `,"ref":"` + h + `","ballot":[0,1]}`, dec(DecodeVote), RuleContentMalformed},
		{"promise of round 0", `{` + base + `,"ballot":[0,0]}`, dec(DecodePromise), RuleContentMalformed},
		{"receipt without counter", `{"cfg":"` + h + `","rank":0,"sig":"` + sig + `"}`, dec(DecodeReady), RuleContentMalformed},
		{"second receipt without previous", `{"cfg":"` + h + `","rank":0,"counter":2,"sig":"` + sig + `"}`, dec(DecodeReady), RuleContentMalformed},
		{"megolm", `{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"` + g + `"}`, dec(DecodeEncrypted), RuleMegolmForMLS},
		{"no algorithm", `{"ciphertext":"` + g + `"}`, dec(DecodeEncrypted), RuleMegolmForMLS},
		{"empty ciphertext", `{"algorithm":"` + Algorithm + `","ciphertext":""}`, dec(DecodeEncrypted), RuleContentMalformed},
		{"array for object", `[]`, dec(DecodeVote), RuleContentMalformed},
		{"rule with spaces", `{"ref":"` + h + `","leaf":1,"rule":"a b","sig":"` + sig + `"}`, dec(DecodeReject), RuleContentMalformed},
		{"repost of a message", `{"type":"m.room.message","sender":"@a:b","content":{}}`, dec(DecodeRepost), RuleContentMalformed},
		{"repost of a repost", `{"type":"` + TypeRepost + `","sender":"@a:b","content":{}}`, dec(DecodeRepost), RuleContentMalformed},
		{"unknown need", `{"room_id":"!a:b","need":"secrets"}`, dec(DecodeRejoinRequest), RuleContentMalformed},
		{"snapshot without tree", `{"room_id":"!a:b","commit_event":"$c","ref":"` + h + `","welcome":"` + g + `","snapshot":{"tree_hash":"` + g + `","at_commit":"` + h + `"}}`, dec(DecodeWelcome), RuleContentMalformed},
		{"head that shows another receipt than it names", `{"version":1,"receipt_key":"` + h + `","receipts":[{"key":"` + h + `","counter":1,"hash":"` + h + `","signed":"` + g + `","sig":"` + sig + `"}]}`, dec(DecodeHead), RuleContentMalformed},
		{"head that shows a large receipt", `{"version":1,"receipt_key":"` + h + `","receipts":[{"key":"` + h + `","counter":1,"hash":"` + Hash(federation.HashOf(make([]byte, MaxInline), make([]byte, 64))).String() + `","signed":"` + big + `","sig":"` + sig + `"}]}`, dec(DecodeHead), RuleContentMalformed},
		{"head with a short key", `{"version":1,"receipt_key":"` + g + `"}`, dec(DecodeHead), RuleContentMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := test.decode(json.RawMessage(test.in))
			wantRule(t, err, test.rule)
		})
	}
}

func dec[T any](f func(json.RawMessage) (*T, error)) func(json.RawMessage) (any, error) {
	return func(raw json.RawMessage) (any, error) { return f(raw) }
}

func TestReceiptsConvertBothWays(t *testing.T) {
	for name, c := range contents() {
		t.Run(name, func(t *testing.T) {
			var again any
			switch v := c.value.(type) {
			case *AcceptContent:
				again = AcceptOf(v.Receipt())
			case *VoteContent:
				again = VoteOf(v.Receipt())
			case *PromiseContent:
				again = PromiseOf(v.Receipt())
			case *ReadyContent:
				again = ReadyOf(v.Receipt())
			case *AppliedContent:
				again = AppliedOf(v.Statement(""))
			case *RejectContent:
				again = RejectOf(v.Statement(""))
			default:
				return
			}
			if diff := cmp.Diff(any(c.value), again); diff != "" {
				t.Errorf("conversion (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range contents() {
		raw, err := Encode(c.value)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(raw))
	}
	f.Add([]byte(`{"a":[{"b":1,"b":2}]}`))
	decoders := contents()
	f.Fuzz(func(t *testing.T, raw []byte) {
		for name, c := range decoders {
			v, err := c.decode(raw)
			if err != nil {
				if RuleOf(err) == "" {
					t.Fatalf("%s: error without rule: %v", name, err)
				}
				continue
			}
			// What decodes is encoded again, unless it is too large for an event of
			// ours, and then decodes to the same.
			again, err := Encode(v.(interface{ validate() error }))
			if err != nil {
				if RuleOf(err) != RuleEventTooLarge {
					t.Fatalf("%s: decoded but not encodable: %v", name, err)
				}
				continue
			}
			w, err := c.decode(again)
			if err != nil {
				t.Fatalf("%s: own encoding refused: %v\n%s", name, err, again)
			}
			if third, err := Encode(w.(interface{ validate() error })); err != nil || !bytes.Equal(again, third) {
				t.Fatalf("%s: encoding is not stable:\n%s\n%s", name, again, third)
			}
		}
	})
}

func FuzzJSON(f *testing.F) {
	f.Add([]byte(`{"a":[1,"\u00e9\ud83d\ude00",null,true,{"b":{}}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := parseJSON(raw, canonicalNumbers)
		if err != nil {
			return
		}
		if !json.Valid(raw) {
			t.Fatalf("accepted what is no JSON: %q", raw)
		}
		once := v.appendCanonical(nil)
		w, err := parseJSON(once, canonicalNumbers)
		if err != nil {
			t.Fatalf("canonical form refused: %v\n%q", err, once)
		}
		if twice := w.appendCanonical(nil); !bytes.Equal(once, twice) {
			t.Fatalf("canonical form changes: %q, %q", once, twice)
		}
	})
}

// TestReceiptPayloadIsBounded: a receipt names each sender of an epoch once, and no more than MaxAcks of them.
func TestReceiptPayloadIsBounded(t *testing.T) {
	acks := make([]Ack, MaxAcks)
	for i := range acks {
		acks[i] = Ack{Ref: Hash{1}, Leaf: uint32(i)}
	}
	if _, err := Encode(&ReceiptPayload{Acks: acks}); err != nil {
		t.Error(err)
	}
	for name, list := range map[string][]Ack{
		"one more": append(slices.Clone(acks), Ack{Ref: Hash{2}}),
		"twice":    {{Ref: Hash{1}, Leaf: 3}, {Ref: Hash{1}, Leaf: 4}, {Ref: Hash{1}, Leaf: 3, Generation: 9}},
	} {
		if _, err := Encode(&ReceiptPayload{Acks: list}); RuleOf(err) != RuleContentMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	missing := make([]MissingMessages, MaxMissing)
	for i := range missing {
		missing[i] = MissingMessages{Ref: Hash{1}, Leaf: uint32(i), Generations: make([]uint32, MaxMissingOf)}
	}
	if _, err := Encode(&ReceiptPayload{Missing: missing}); err != nil {
		t.Error(err)
	}
	for name, list := range map[string][]MissingMessages{
		"one more":            append(slices.Clone(missing), MissingMessages{Ref: Hash{2}, Generations: []uint32{1}}),
		"twice":               {{Ref: Hash{1}, Generations: []uint32{1}}, {Ref: Hash{1}, Generations: []uint32{2}}},
		"nothing of a sender": {{Ref: Hash{1}}},
		"too much of one":     {{Ref: Hash{1}, Generations: make([]uint32, MaxMissingOf+1)}},
		"of no epoch":         {{Generations: []uint32{1}}},
	} {
		if _, err := Encode(&ReceiptPayload{Missing: list}); RuleOf(err) != RuleContentMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}
