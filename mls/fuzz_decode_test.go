package mls

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
)

// wireType is a structure that can be read and written.
type wireType interface {
	unmarshal(*reader) bool
	appendTo([]byte) []byte
}

// wireTypes are all structures of RFC 9420 that have an encoding of their own.
// Each has a fuzz target below.
var wireTypes = []func() wireType{
	func() wireType { return new(Credential) },
	func() wireType { return new(Extension) },
	func() wireType { return new(RequiredCapabilities) },
	func() wireType { return new(Capabilities) },
	func() wireType { return new(LeafNode) },
	func() wireType { return new(KeyPackage) },
	func() wireType { return new(PreSharedKeyID) },
	func() wireType { return new(hpkeCiphertext) },
	func() wireType { return new(ReInit) },
	func() wireType { return new(commit) },
	func() wireType { return new(updatePath) },
	func() wireType { return new(parentNode) },
	func() wireType { return new(groupContext) },
	func() wireType { return new(GroupInfo) },
	func() wireType { return new(Welcome) },
	func() wireType { return new(groupSecrets) },
	func() wireType { return new(Sender) },
	func() wireType { return new(publicMessage) },
	func() wireType { return new(privateMessage) },
	func() wireType { return new(authenticatedContent) },
	func() wireType { return new(epochSecrets) },
	func() wireType { return new(AppDataDictionary) },
	func() wireType { return new(AppDataUpdate) },
	func() wireType { return new(AppEphemeral) },
}

// proposalWire is a Proposal, which is read by a function of its own.
type proposalWire struct{ p Proposal }

func (w *proposalWire) unmarshal(s *reader) bool { return readProposal(s, &w.p) }
func (w *proposalWire) appendTo(b []byte) []byte { return appendProposal(b, &w.p) }
func (w *sendersWire) unmarshal(s *reader) bool  { return (*externalSenders)(w).unmarshal(s) }
func (w *sendersWire) appendTo(b []byte) []byte {
	return append(b, ExternalSendersExtension(*w).Data...)
}
func (w *extensionsWire) unmarshal(s *reader) bool { return readExtensions(s, (*[]Extension)(w)) }
func (w *extensionsWire) appendTo(b []byte) []byte { return appendExtensions(b, *w) }

// sendersWire is the body of an external_senders extension, extensionsWire a
// list of extensions.
type (
	sendersWire    externalSenders
	extensionsWire []Extension
)

func FuzzCredential(f *testing.F)           { fuzzWire[Credential](f) }
func FuzzExtension(f *testing.F)            { fuzzWire[Extension](f) }
func FuzzExtensions(f *testing.F)           { fuzzWire[extensionsWire](f) }
func FuzzRequiredCapabilities(f *testing.F) { fuzzWire[RequiredCapabilities](f) }
func FuzzExternalSenders(f *testing.F)      { fuzzWire[sendersWire](f) }
func FuzzCapabilities(f *testing.F)         { fuzzWire[Capabilities](f) }
func FuzzLeafNode(f *testing.F)             { fuzzWire[LeafNode](f) }
func FuzzKeyPackage(f *testing.F)           { fuzzWire[KeyPackage](f) }
func FuzzPreSharedKeyID(f *testing.F)       { fuzzWire[PreSharedKeyID](f) }
func FuzzHPKECiphertext(f *testing.F)       { fuzzWire[hpkeCiphertext](f) }
func FuzzReInit(f *testing.F)               { fuzzWire[ReInit](f) }
func FuzzProposal(f *testing.F)             { fuzzWire[proposalWire](f) }
func FuzzCommit(f *testing.F)               { fuzzWire[commit](f) }
func FuzzUpdatePath(f *testing.F)           { fuzzWire[updatePath](f) }
func FuzzParentNode(f *testing.F)           { fuzzWire[parentNode](f) }
func FuzzGroupContext(f *testing.F)         { fuzzWire[groupContext](f) }
func FuzzGroupInfo(f *testing.F)            { fuzzWire[GroupInfo](f) }
func FuzzWelcome(f *testing.F)              { fuzzWire[Welcome](f) }
func FuzzGroupSecrets(f *testing.F)         { fuzzWire[groupSecrets](f) }
func FuzzSender(f *testing.F)               { fuzzWire[Sender](f) }
func FuzzPublicMessage(f *testing.F)        { fuzzWire[publicMessage](f) }
func FuzzPrivateMessage(f *testing.F)       { fuzzWire[privateMessage](f) }
func FuzzAuthenticatedContent(f *testing.F) { fuzzWire[authenticatedContent](f) }
func FuzzEpochSecrets(f *testing.F)         { fuzzWire[epochSecrets](f) }
func FuzzAppDataDictionary(f *testing.F)    { fuzzWire[AppDataDictionary](f) }
func FuzzAppDataUpdate(f *testing.F)        { fuzzWire[AppDataUpdate](f) }
func FuzzAppEphemeral(f *testing.F)         { fuzzWire[AppEphemeral](f) }

// fuzzWire feeds the decoder of T: what decodes encodes to the same bytes, and
// whatever is fed takes memory in proportion.
func fuzzWire[T any, P interface {
	*T
	wireType
}](f *testing.F) {
	for _, v := range corpus(f) {
		f.Add(v.raw)
		if len(v.raw) > 4 { // without the header of an MLSMessage
			f.Add(v.raw[4:])
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var v P
		var err error
		boundedMemory(t, len(raw), func() func() {
			v = new(T)
			return func() { err = unmarshal(raw, v) }
		})
		if err != nil {
			return
		}
		if got := v.appendTo(nil); !bytes.Equal(got, raw) {
			t.Errorf("%T: got %x, want %x", v, got, raw)
		}
	})
}

// boundedMemory runs what prepare returns and checks that it allocates at most
// eight times the size of its input and a mebibyte. The cheap count is rough,
// so what it finds is measured again, by a second run.
func boundedMemory(t *testing.T, size int, prepare func() func()) {
	t.Helper()
	limit := uint64(8*size + 1<<20)
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	run := prepare()
	metrics.Read(sample)
	before := sample[0].Value.Uint64()
	run()
	metrics.Read(sample)
	if sample[0].Value.Uint64()-before <= limit {
		return
	}
	run = prepare()
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	run()
	runtime.ReadMemStats(&m1)
	if n := m1.TotalAlloc - m0.TotalAlloc; n > limit {
		t.Errorf("%d bytes allocated for %d", n, size)
	}
}

// A vector is a value of the working group's vectors.
type vector struct {
	name string
	raw  []byte
}

var (
	corpusOnce   sync.Once
	corpusValues []vector
)

// corpus returns the byte strings in the first case of the vectors that hold
// whole structures.
func corpus(f *testing.F) []vector {
	f.Helper()
	corpusOnce.Do(func() {
		for _, file := range []string{"messages", "welcome", "passive-client-welcome", "message-protection", "tree-validation"} {
			v := make(map[string]any)
			if err := json.Unmarshal(loadVectors(f, filepath.Join("testdata", "vectors"), file)[0], &v); err != nil {
				f.Fatal(err)
			}
			for name, value := range v {
				s, ok := value.(string)
				if !ok {
					continue
				}
				var h hexBytes
				if err := json.Unmarshal([]byte(`"`+strings.TrimSpace(s)+`"`), &h); err == nil {
					corpusValues = append(corpusValues, vector{name, h})
				}
			}
		}
	})
	if len(corpusValues) < 20 {
		f.Fatalf("the corpus has %d values", len(corpusValues))
	}
	return corpusValues
}
