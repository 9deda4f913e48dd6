package mls

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path/filepath"
	"runtime"
	"testing"
)

// unhex reads hex with spaces in it.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// parseHex is ParseMessage of hex.
func parseHex(t *testing.T, s string) error {
	t.Helper()
	_, err := ParseMessage(unhex(t, s))
	return err
}

// goodPrivate is a well-formed PrivateMessage: group id 0a, epoch 1, a Commit.
const goodPrivate = "0001 0002  01 0a  0000000000000001  03  00  02 aabb  02 ccdd"

// goodPublic is a well-formed PublicMessage: a Remove by member 0.
const goodPublic = "0001 0001  01 0a  0000000000000001  01 00000000  00  02 0003 00000001  01 ff  01 ee"

// goodLeaf is a LeafNode of source commit, up to its extensions.
const goodLeaf = "01 aa  01 bb  0001 01 cc  02 0001 02 0001 00 00 02 0001  03 01 dd  00  01 ee"

var codecRejects = []rejectCase{
	{row: "codec/varint-prefix-11", run: func(t *testing.T) error {
		return parseHex(t, "0001 0002  c1 0a")
	}},
	{row: "codec/varint-nonminimal-2", run: func(t *testing.T) error {
		noError(t, parseHex(t, goodPrivate))
		return parseHex(t, "0001 0002  4001 0a  0000000000000001  03  00  02 aabb  02 ccdd")
	}},
	{row: "codec/varint-nonminimal-4", run: func(t *testing.T) error {
		for _, n := range []string{"80000001", "80003fff"} {
			wantRule(t, parseHex(t, "0001 0002  "+n+" 0a"), "codec/varint-nonminimal-4")
		}
		return parseHex(t, "0001 0002  80000001 0a  0000000000000001  03  00  02 aabb  02 ccdd")
	}},
	{row: "codec/vector-longer-than-input", run: func(t *testing.T) error {
		raw := unhex(t, "0001 0002 bfffffff 00000000000000")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := ParseMessage(raw)
		runtime.ReadMemStats(&after)
		// Others run beside us, but none of them takes a gigabyte.
		if n := after.TotalAlloc - before.TotalAlloc; n > 512<<20 {
			t.Errorf("%d bytes were allocated for a vector that is not there", n)
		}
		return err
	}},
	{row: "codec/vector-over-limit", run: func(t *testing.T) error {
		_, err := ParseMessage(make([]byte, defaultMaxMessageSize+1))
		wantRule(t, err, "codec/vector-over-limit")
		body := make([]byte, defaultMaxExtensionSize+1)
		raw := (&Extension{Type: 0xf000, Data: body[1:]}).appendTo(nil)
		noError(t, unmarshal(raw, new(Extension)))
		id := BasicCredential(make([]byte, defaultMaxCredential+1))
		wantRule(t, unmarshal(id.appendTo(nil), new(Credential)), "codec/vector-over-limit")
		var many []Extension
		for i := range maxExtensions + 1 {
			many = append(many, Extension{Type: ExtensionType(i)})
		}
		if s := newReader(appendExtensions(nil, many[1:])); !readExtensions(s, new([]Extension)) {
			t.Error(s.error())
		}
		s := newReader(appendExtensions(nil, many))
		if readExtensions(s, new([]Extension)) {
			t.Error("too many extensions were read")
		}
		wantRule(t, s.error(), "codec/vector-over-limit")
		// The header alone is enough to be refused.
		raw = (&Extension{Type: 0xf000, Data: body}).appendTo(nil)
		return unmarshal(raw[:8], new(Extension))
	}},
	{row: "codec/inner-vector-overruns-outer", run: func(t *testing.T) error {
		noError(t, unmarshal(unhex(t, "0002  04 03aabbcc"), new(Credential)))
		return unmarshal(unhex(t, "0002  04 04aabbcc dd"), new(Credential))
	}},
	{row: "codec/vector-element-truncated", run: func(t *testing.T) error {
		_, err := ParseRequiredCapabilities(unhex(t, "02 000a 00 00"))
		noError(t, err)
		_, err = ParseRequiredCapabilities(unhex(t, "03 000a 00 00 00"))
		wantRule(t, err, "codec/vector-element-truncated")
		_, err = ParseExternalSenders(unhex(t, "02 01aa"))
		return err
	}},
	{row: "codec/optional-flag-2", run: func(t *testing.T) error {
		noError(t, unmarshal(unhex(t, "00 00"), new(commit)))
		return unmarshal(unhex(t, "00 02"), new(commit))
	}},
	{row: "codec/truncated-anywhere", run: testTruncatedAnywhere},
	{row: "codec/trailing-bytes-message", run: func(t *testing.T) error {
		noError(t, parseHex(t, goodPublic))
		wantRule(t, parseHex(t, goodPrivate+"0102"), "codec/trailing-bytes-message")
		return parseHex(t, goodPublic+"ffff")
	}},
	{row: "codec/trailing-bytes-extension", run: func(t *testing.T) error {
		_, err := ParseRequiredCapabilities(unhex(t, "00 00 00 00"))
		wantRule(t, err, "codec/trailing-bytes-extension")
		_, err = ParseExternalSenders(unhex(t, "00 00"))
		wantRule(t, err, "codec/trailing-bytes-extension")
		noError(t, checkExtensions([]Extension{{Type: ExtensionTypeApplicationID, Data: unhex(t, "01 aa")}}, inLeafNode))
		return checkExtensions([]Extension{{Type: ExtensionTypeApplicationID, Data: unhex(t, "01 aa 00")}}, inLeafNode)
	}},
	{row: "codec/unknown-version", run: func(t *testing.T) error {
		return parseHex(t, "0002"+goodPrivate[4:])
	}},
	{row: "codec/unknown-wire-format", run: func(t *testing.T) error {
		for _, wf := range []string{"0000", "0006", "0a0a", "ffff"} {
			wantRule(t, parseHex(t, "0001"+wf+goodPrivate[9:]), "codec/unknown-wire-format")
		}
		return parseHex(t, "0001 0006"+goodPrivate[9:])
	}},
	{row: "codec/unknown-content-type", run: func(t *testing.T) error {
		wantRule(t, parseHex(t, "0001 0002  01 0a  0000000000000001  00  00  02 aabb  02 ccdd"), "codec/unknown-content-type")
		return parseHex(t, "0001 0002  01 0a  0000000000000001  04  00  02 aabb  02 ccdd")
	}},
	{row: "codec/unknown-sender-type", run: func(t *testing.T) error {
		wantRule(t, parseHex(t, "0001 0001  01 0a  0000000000000001  00 00000000"), "codec/unknown-sender-type")
		return parseHex(t, "0001 0001  01 0a  0000000000000001  05 00000000")
	}},
	{row: "codec/unknown-proposal-or-ref", run: func(t *testing.T) error {
		noError(t, unmarshal(unhex(t, "03 02 01 aa  00"), new(commit)))
		wantRule(t, unmarshal(unhex(t, "03 00 01 aa  00"), new(commit)), "codec/unknown-proposal-or-ref")
		return unmarshal(unhex(t, "03 03 01 aa  00"), new(commit))
	}},
	{row: "codec/unknown-leaf-node-source", run: func(t *testing.T) error {
		noError(t, unmarshal(unhex(t, goodLeaf), new(LeafNode)))
		bad := bytes.Replace(unhex(t, goodLeaf), unhex(t, "03 01dd"), unhex(t, "00 01dd"), 1)
		wantRule(t, unmarshal(bad, new(LeafNode)), "codec/unknown-leaf-node-source")
		bad = bytes.Replace(unhex(t, goodLeaf), unhex(t, "03 01dd"), unhex(t, "04 01dd"), 1)
		return unmarshal(bad, new(LeafNode))
	}},
	{row: "codec/unknown-node-type", run: func(t *testing.T) error {
		lim := (*Config)(nil).limits()
		_, err := parseTree(1, appendOpaqueVec(nil, append(unhex(t, "01 01"), unhex(t, goodLeaf)...)), lim)
		noError(t, err)
		_, err = parseTree(1, appendOpaqueVec(nil, append(unhex(t, "01 00"), unhex(t, goodLeaf)...)), lim)
		wantRule(t, err, "codec/unknown-node-type")
		_, err = parseTree(1, appendOpaqueVec(nil, append(unhex(t, "01 03"), unhex(t, goodLeaf)...)), lim)
		return err
	}},
	{row: "codec/unknown-psk-type", run: func(t *testing.T) error {
		noError(t, unmarshal(unhex(t, "01 01 aa 01 bb"), new(PreSharedKeyID)))
		wantRule(t, unmarshal(unhex(t, "00 01 aa 01 bb"), new(PreSharedKeyID)), "codec/unknown-psk-type")
		return unmarshal(unhex(t, "03 01 aa 01 bb"), new(PreSharedKeyID))
	}},
	{row: "codec/unknown-resumption-usage", run: func(t *testing.T) error {
		noError(t, unmarshal(unhex(t, "02 03 01 aa 0000000000000001 01 bb"), new(PreSharedKeyID)))
		wantRule(t, unmarshal(unhex(t, "02 00 01 aa 0000000000000001 01 bb"), new(PreSharedKeyID)), "codec/unknown-resumption-usage")
		return unmarshal(unhex(t, "02 04 01 aa 0000000000000001 01 bb"), new(PreSharedKeyID))
	}},
	{row: "codec/duplicate-extension-key-package", run: func(t *testing.T) error { return duplicateExtension(t, inKeyPackage) }},
	{row: "codec/duplicate-extension-leaf-node", run: func(t *testing.T) error { return duplicateExtension(t, inLeafNode) }},
	{row: "codec/duplicate-extension-group-context", run: func(t *testing.T) error { return duplicateExtension(t, inGroupContext) }},
	{row: "codec/duplicate-extension-group-info", run: func(t *testing.T) error { return duplicateExtension(t, inGroupInfo) }},
	{row: "codec/extension-wrong-place", run: func(t *testing.T) error {
		req := (&RequiredCapabilities{}).Extension()
		senders := ExternalSendersExtension(nil)
		appID := Extension{Type: ExtensionTypeApplicationID, Data: unhex(t, "01 aa")}
		tree := Extension{Type: ExtensionTypeRatchetTree, Data: unhex(t, "00")}
		pub := Extension{Type: ExtensionTypeExternalPub, Data: unhex(t, "01 aa")}
		allowed := map[extensionPlace][]Extension{
			inKeyPackage: nil, inLeafNode: {appID}, inGroupContext: {req, senders}, inGroupInfo: {tree, pub},
		}
		var err error
		for place, good := range allowed {
			for _, e := range []Extension{req, senders, appID, tree, pub} {
				got := checkExtensions([]Extension{e}, place)
				ok := false
				for _, g := range good {
					ok = ok || g.Type == e.Type
				}
				if ok {
					noError(t, got)
				} else {
					err = got
					wantRule(t, got, "codec/extension-wrong-place")
				}
			}
		}
		return err
	}},
}

func duplicateExtension(t *testing.T, place extensionPlace) error {
	t.Helper()
	noError(t, checkExtensions([]Extension{{Type: 0xf000}, {Type: 0xf001}}, place))
	return checkExtensions([]Extension{{Type: 0xf000}, {Type: 0xf001}, {Type: 0xf000, Data: []byte{1}}}, place)
}

// testTruncatedAnywhere feeds the proper prefixes of the vectors' messages: all
// of one case, and of the other cases some, at other places in each.
func testTruncatedAnywhere(t *testing.T) error {
	var last error
	cut := func(raw []byte, first, step int) {
		if _, err := ParseMessage(raw); err != nil {
			t.Fatalf("whole message: %v", err)
		}
		for n := first; n < len(raw); n += step {
			_, err := ParseMessage(raw[:n])
			var ve *ValidationError
			if !errors.As(err, &ve) {
				t.Fatalf("%d of %d bytes: got %v, want a ValidationError", n, len(raw), err)
			}
			switch ve.Rule {
			case "codec/truncated-anywhere":
				last = err
			case "codec/vector-longer-than-input", "framing/membership-tag-missing", "framing/confirmation-tag-missing":
			default:
				t.Errorf("%d of %d bytes: rule %s", n, len(raw), ve.Rule)
			}
		}
	}
	cut(unhex(t, goodPublic), 0, 1)
	cut(unhex(t, goodPrivate), 0, 1)
	for i, c := range loadVectors(t, filepath.Join("testdata", "vectors"), "messages") {
		var v messagesVector
		if err := json.Unmarshal(c, &v); err != nil {
			t.Fatal(err)
		}
		first, step := 0, 1
		if i > 0 {
			first, step = i%97, 97
		}
		for _, raw := range [][]byte{v.Welcome, v.GroupInfo, v.KeyPackage, v.PublicProposal, v.PublicCommit, v.PrivateMessage} {
			cut(raw, first, step)
		}
	}
	return last
}

// messagesVector is a case of messages.json, as far as needed here.
type messagesVector struct {
	Welcome        hexBytes `json:"mls_welcome"`
	GroupInfo      hexBytes `json:"mls_group_info"`
	KeyPackage     hexBytes `json:"mls_key_package"`
	PublicProposal hexBytes `json:"public_message_proposal"`
	PublicCommit   hexBytes `json:"public_message_commit"`
	PrivateMessage hexBytes `json:"private_message"`
}
