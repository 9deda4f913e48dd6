package rooms

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"

	"golang.org/x/crypto/cryptobyte"

	"github.com/matrix-mls/matrix-mls/federation"
)

const (
	aadVersion = 1
	maxAADSize = 64 << 10

	// MaxAdmissionsSize is how many bytes of admissions, by [Admission.Size], one
	// commit takes: its other authenticated data has room beside them.
	MaxAdmissionsSize = 48 << 10

	maxAdmissions = 256
)

// CommitAAD is the authenticated data of a commit: what its author has signed
// about its place in the room.
type CommitAAD struct {
	Parent     federation.Ref // the commit, or root, it was made on
	Era        uint64         // number of the era it opens; 0: none
	ByHeirs    bool           // the era is opened by heirs
	Admissions []Admission    // of the users it adds
	Rejoin     *RejoinProof   // of an external commit that comes back after a fork
}

// RejoinProof shows that the author of an external commit held an epoch that
// lies below the head: an HMAC over the head's ref under a secret that both
// sides export from that epoch.
type RejoinProof struct {
	Common federation.Ref // the commit that made the common epoch
	MAC    [32]byte
}

// RejoinSecretSize is the length to export with [ExporterRejoin].
const RejoinSecretSize = 32

// NewRejoinProof makes a proof for a rejoin on head with the secret exported
// from the common epoch.
func NewRejoinProof(common, head federation.Ref, secret []byte) *RejoinProof {
	return &RejoinProof{Common: common, MAC: rejoinMAC(common, head, secret)}
}

// Verify checks a proof with the secret exported from the common epoch.
func (p *RejoinProof) Verify(head federation.Ref, secret []byte) error {
	want := rejoinMAC(p.Common, head, secret)
	if len(secret) != RejoinSecretSize || !hmac.Equal(want[:], p.MAC[:]) {
		return refuse(RuleReceiptForged, "rejoin proof", "is not made with the secret of epoch %s", p.Common.Short())
	}
	return nil
}

func rejoinMAC(common, head federation.Ref, secret []byte) (out [32]byte) {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(ExporterRejoin))
	h.Write(common[:])
	h.Write(head[:])
	h.Sum(out[:0])
	return out
}

// Encode returns the bytes for the commit's authenticated data.
func (a *CommitAAD) Encode() ([]byte, error) {
	if a.Parent.IsZero() {
		return nil, malformed("aad", "names no parent")
	}
	if len(a.Admissions) > maxAdmissions {
		return nil, malformed("aad", "%d admissions, at most %d", len(a.Admissions), maxAdmissions)
	}
	b := []byte{aadVersion}
	b = append(b, a.Parent[:]...)
	b = appendUint64(b, a.Era)
	b = appendBool(b, a.ByHeirs)
	b = appendUint16(b, uint16(len(a.Admissions)))
	for i := range a.Admissions {
		if err := a.Admissions[i].validate(); err != nil {
			return nil, err
		}
		b = appendVec(b, a.Admissions[i].content())
		b = appendVec(b, a.Admissions[i].Sig)
	}
	b = appendBool(b, a.Rejoin != nil)
	if a.Rejoin != nil {
		b = append(b, a.Rejoin.Common[:]...)
		b = append(b, a.Rejoin.MAC[:]...)
	}
	if len(b) > maxAADSize {
		return nil, malformed("aad", "%d bytes, at most %d", len(b), maxAADSize)
	}
	return b, nil
}

// DecodeCommitAAD reads the authenticated data of a commit.
func DecodeCommitAAD(raw []byte) (*CommitAAD, error) {
	bad := func(why string) error { return refuse(RuleAADMalformed, "commit", "its authenticated data %s", why) }
	if len(raw) > maxAADSize {
		return nil, bad("is too long")
	}
	s := cryptobyte.String(raw)
	a := new(CommitAAD)
	var version uint8
	var rejoin bool
	if !s.ReadUint8(&version) || version != aadVersion {
		return nil, bad("has an unknown version")
	}
	var failed error
	ok := s.CopyBytes(a.Parent[:]) && s.ReadUint64(&a.Era) && readBool(&s, &a.ByHeirs) && readList(&s, maxAdmissions, func() bool {
		var content cryptobyte.String
		var m Admission
		if !s.ReadUint16LengthPrefixed(&content) || !m.readContent(content) || !readVec(&s, &m.Sig, maxSigSize) {
			return false
		}
		if failed = m.validate(); failed != nil {
			return false
		}
		a.Admissions = append(a.Admissions, m)
		return true
	}) && readBool(&s, &rejoin)
	if failed != nil {
		return nil, inContent("admission", failed)
	}
	if ok && rejoin {
		a.Rejoin = new(RejoinProof)
		ok = s.CopyBytes(a.Rejoin.Common[:]) && s.CopyBytes(a.Rejoin.MAC[:])
	}
	switch {
	case !ok || !s.Empty():
		return nil, bad("does not decode")
	case a.Parent.IsZero():
		return nil, bad("names no parent")
	case a.ByHeirs && a.Era == 0:
		return nil, bad("speaks of heirs but opens no era")
	}
	return a, nil
}

// MessageAAD is the authenticated data of an application message or proposal:
// the head its sender saw. A server that shows different histories to
// different members is noticed by it.
type MessageAAD struct {
	Head federation.Ref
}

// Encode returns the bytes for the message's authenticated data.
func (a MessageAAD) Encode() []byte { return append([]byte{aadVersion}, a.Head[:]...) }

// DecodeMessageAAD reads the authenticated data of a message or proposal.
func DecodeMessageAAD(raw []byte) (MessageAAD, error) {
	var a MessageAAD
	if len(raw) != 1+len(a.Head) || raw[0] != aadVersion || bytes.Equal(raw[1:], a.Head[:]) {
		return a, refuse(RuleAADMalformed, "message", "its authenticated data does not name a head")
	}
	copy(a.Head[:], raw[1:])
	return a, nil
}
