package mls

// confirmedTranscriptHash takes a Commit, its confirmation tag left out, into
// the transcript (RFC 9420, Section 8.2).
func (cs CipherSuite) confirmedTranscriptHash(interim []byte, ac *authenticatedContent) []byte {
	wf := [2]byte{byte(ac.wireFormat >> 8), byte(ac.wireFormat)}
	var stack [4]byte
	n := appendVarint(stack[:0], len(ac.signature))
	return cs.hash(interim, wf[:], ac.content.raw, n, ac.signature)
}

// interimTranscriptHash adds the confirmation tag (RFC 9420, Section 8.2).
func (cs CipherSuite) interimTranscriptHash(confirmed, confirmationTag []byte) []byte {
	var stack [4]byte
	return cs.hash(confirmed, appendVarint(stack[:0], len(confirmationTag)), confirmationTag)
}
