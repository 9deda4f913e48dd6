package rooms

import (
	"crypto/sha256"
	"crypto/subtle"

	"golang.org/x/crypto/cryptobyte"
	"maunium.net/go/mautrix/id"
)

// NewFile names data that was uploaded to a homeserver's media.
func NewFile(mxc id.ContentURIString, data []byte) *File {
	return &File{MXC: mxc, SHA256: sha256.Sum256(data), Size: int64(len(data))}
}

// Check compares what was downloaded with what the event named. Anything else
// is refused with [RuleMediaHash].
func (f *File) Check(data []byte) error {
	if int64(len(data)) != f.Size {
		return refuse(RuleMediaHash, string(f.MXC), "%d bytes, the event names %d", len(data), f.Size).with("ask the room's members to upload it again")
	}
	if h := sha256.Sum256(data); subtle.ConstantTimeCompare(h[:], f.SHA256[:]) != 1 {
		return refuse(RuleMediaHash, string(f.MXC), "its hash is not the one the event names").with("ask the room's members to upload it again")
	}
	return nil
}

// CommitBundle is the MLS part of a commit, as it is uploaded when it is too
// large for an event.
type CommitBundle struct {
	Message   []byte   // empty in a founding commit
	Proposals [][]byte // of the proposals it names by reference
	GroupInfo []byte
	// KeyPackages are those that ride with a ReInit.
	KeyPackages [][]byte
}

// Bundle returns the MLS part of a commit event that carries it itself.
func (c *CommitContent) Bundle() *CommitBundle {
	b := &CommitBundle{Message: c.Message, GroupInfo: c.GroupInfo}
	for _, p := range c.Proposals {
		b.Proposals = append(b.Proposals, p)
	}
	for _, kp := range c.KeyPackages {
		b.KeyPackages = append(b.KeyPackages, kp)
	}
	return b
}

// Inline tells whether the bundle fits into an event.
func (b *CommitBundle) Inline() bool {
	n := len(b.Message) + len(b.GroupInfo)
	for _, p := range b.Proposals {
		n += len(p)
	}
	for _, kp := range b.KeyPackages {
		n += len(kp)
	}
	return n <= MaxInline
}

// SetInline puts the bundle into an event's content.
func (c *CommitContent) SetInline(b *CommitBundle) {
	c.Message, c.GroupInfo, c.Proposals, c.KeyPackages, c.File = b.Message, b.GroupInfo, nil, nil, nil
	for _, p := range b.Proposals {
		c.Proposals = append(c.Proposals, p)
	}
	for _, kp := range b.KeyPackages {
		c.KeyPackages = append(c.KeyPackages, kp)
	}
}

// Encode returns the bytes to upload.
func (b *CommitBundle) Encode() ([]byte, error) {
	out := []byte{aadVersion}
	out = appendLongVec(out, b.Message)
	out = appendUint16(out, uint16(len(b.Proposals)))
	for _, p := range b.Proposals {
		out = appendLongVec(out, p)
	}
	out = appendLongVec(out, b.GroupInfo)
	if len(b.KeyPackages) > 0 { // absent otherwise
		out = appendUint16(out, uint16(len(b.KeyPackages)))
		for _, kp := range b.KeyPackages {
			out = appendLongVec(out, kp)
		}
	}
	if len(b.KeyPackages) > maxKeyPackages {
		return nil, refuse(RuleEventTooLarge, "commit", "%d key packages, at most %d", len(b.KeyPackages), maxKeyPackages)
	}
	if len(out) > MaxFileSize || len(b.Proposals) > MaxProposals {
		return nil, refuse(RuleEventTooLarge, "commit", "%d bytes and %d proposals, at most %d and %d", len(out), len(b.Proposals), MaxFileSize, MaxProposals)
	}
	return out, nil
}

// DecodeCommitBundle reads what was downloaded for a commit, after
// [File.Check].
func DecodeCommitBundle(raw []byte) (*CommitBundle, error) {
	b := new(CommitBundle)
	s := cryptobyte.String(raw)
	var version uint8
	if len(raw) > MaxFileSize || !s.ReadUint8(&version) || version != aadVersion || !readLongVec(&s, &b.Message) ||
		!readList(&s, MaxProposals, func() bool {
			var p []byte
			ok := readLongVec(&s, &p) && len(p) > 0
			b.Proposals = append(b.Proposals, p)
			return ok
		}) || !readLongVec(&s, &b.GroupInfo) {
		return nil, refuse(RuleContentMalformed, "commit file", "does not decode")
	}
	if s.Empty() {
		return b, nil
	}
	if !readList(&s, maxKeyPackages, func() bool {
		var kp []byte
		ok := readLongVec(&s, &kp) && len(kp) > 0
		b.KeyPackages = append(b.KeyPackages, kp)
		return ok
	}) || len(b.KeyPackages) == 0 || !s.Empty() {
		return nil, refuse(RuleContentMalformed, "commit file", "does not decode")
	}
	return b, nil
}

func appendLongVec(b, v []byte) []byte {
	b = appendUint32(b, uint32(len(v)))
	return append(b, v...)
}

// readLongVec reads a vector with a 32-bit length. It aliases the input, which
// is bounded.
func readLongVec(s *cryptobyte.String, out *[]byte) bool {
	var n uint32
	var v []byte
	if !s.ReadUint32(&n) || uint64(n) > uint64(len(*s)) || !s.ReadBytes(&v, int(n)) {
		return false
	}
	*out = v
	return true
}
