package mls

import "encoding/binary"

// A PSKType says where a pre-shared key comes from (RFC 9420, Section 8.4).
type PSKType uint8

// Kinds of pre-shared keys.
const (
	PSKTypeExternal   PSKType = 1
	PSKTypeResumption PSKType = 2
)

// A ResumptionPSKUsage says what a resumption PSK is used for (RFC 9420,
// Section 8.4).
type ResumptionPSKUsage uint8

// Uses of resumption PSKs.
const (
	ResumptionPSKUsageApplication ResumptionPSKUsage = 1
	ResumptionPSKUsageReInit      ResumptionPSKUsage = 2
	ResumptionPSKUsageBranch      ResumptionPSKUsage = 3
)

// A PreSharedKeyID names a pre-shared key (RFC 9420, Section 8.4).
type PreSharedKeyID struct {
	Type PSKType

	ID []byte // the name of an external PSK

	Usage   ResumptionPSKUsage // of a resumption PSK, as the two below
	GroupID []byte             // the group it comes from
	Epoch   uint64             // the epoch it comes from

	Nonce []byte // fresh and random, as long as the suite's hash, for each use
}

func (id *PreSharedKeyID) unmarshal(s *reader) bool {
	*id = PreSharedKeyID{}
	if !s.ReadUint8((*uint8)(&id.Type)) {
		return false
	}
	switch id.Type {
	case PSKTypeExternal:
		if !readOpaqueVec(s, &id.ID) {
			return false
		}
	case PSKTypeResumption:
		if !s.ReadUint8((*uint8)(&id.Usage)) {
			return false
		}
		if id.Usage < ResumptionPSKUsageApplication || id.Usage > ResumptionPSKUsageBranch {
			return s.fail("codec/unknown-resumption-usage", "8.4", "resumption PSK usage %d", id.Usage)
		}
		if !readOpaqueVec(s, &id.GroupID) || !s.ReadUint64(&id.Epoch) {
			return false
		}
	default:
		return s.fail("codec/unknown-psk-type", "8.4", "PSK type %d", id.Type)
	}
	return readOpaqueVec(s, &id.Nonce)
}

func (id *PreSharedKeyID) appendTo(b []byte) []byte {
	b = append(b, byte(id.Type))
	if id.Type == PSKTypeExternal {
		b = appendOpaqueVec(b, id.ID)
	} else {
		b = append(b, byte(id.Usage))
		b = appendOpaqueVec(b, id.GroupID)
		b = binary.BigEndian.AppendUint64(b, id.Epoch)
	}
	return appendOpaqueVec(b, id.Nonce)
}

// pskSecret folds the PSKs into one secret (RFC 9420, Section 8.4). Without
// PSKs it is all zero.
func (cs CipherSuite) pskSecret(ids []PreSharedKeyID, psks []secret) (secret, error) {
	if len(ids) != len(psks) || len(ids) > 1<<16-1 {
		return nil, invalid("commit/psk-unavailable", "8.4", "%d PSKs for %d PSK ids", len(psks), len(ids))
	}
	zero := make(secret, cs.HashLen())
	out := make(secret, cs.HashLen())
	var label []byte
	for i := range ids {
		extracted := cs.extract(zero, psks[i])
		label = ids[i].appendTo(label[:0])
		label = binary.BigEndian.AppendUint16(label, uint16(i))
		label = binary.BigEndian.AppendUint16(label, uint16(len(ids)))
		input := cs.expandWithLabel(extracted, "derived psk", label, cs.HashLen())
		next := cs.extract(input, out)
		extracted.zero()
		input.zero()
		out.zero()
		out = next
	}
	return out, nil
}
