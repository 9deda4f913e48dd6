package mls

// The cipher suites of draft-ietf-mls-pq-ciphersuites-06, Section 3, under the
// names given there. The draft has no numbers for them yet: these are for
// private use and will change. They are used only where Config.ExperimentalSuites
// is set.
const (
	MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519        CipherSuite = 0xf0d1
	MLS_128_MLKEM768X25519_AES256GCM_SHA384_Ed25519        CipherSuite = 0xf0d2
	MLS_128_MLKEM768P256_AES128GCM_SHA256_P256             CipherSuite = 0xf0d3
	MLS_128_MLKEM768P256_AES256GCM_SHA384_P256             CipherSuite = 0xf0d4
	MLS_192_MLKEM1024P384_AES256GCM_SHA384_P384            CipherSuite = 0xf0d5
	MLS_128_MLKEM768_AES256GCM_SHA384_Ed25519              CipherSuite = 0xf0d6
	MLS_128_MLKEM768_AES256GCM_SHA384_P256                 CipherSuite = 0xf0d7
	MLS_192_MLKEM1024_AES256GCM_SHA384_P384                CipherSuite = 0xf0d8
	MLS_128_MLKEM768X25519_CHACHA20POLY1305_SHA384_MLDSA44 CipherSuite = 0xf0d9
	MLS_192_MLKEM768_AES256GCM_SHA384_MLDSA65              CipherSuite = 0xf0da
	MLS_256_MLKEM1024_AES256GCM_SHA384_MLDSA87             CipherSuite = 0xf0db
)

// experimentalBase is the number before that of the first experimental suite.
const experimentalBase = 0xf0d0

// experimentalSuites is the table of the experimental suites
// (draft-ietf-mls-pq-ciphersuites-06, Section 3).
var experimentalSuites = [...]suite{
	1:  newSuite("MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519", &kemMLKEM768X25519, 1, hashSHA256, 32, aeadAES128GCM, 16, Ed25519),
	2:  newSuite("MLS_128_MLKEM768X25519_AES256GCM_SHA384_Ed25519", &kemMLKEM768X25519, 2, hashSHA384, 48, aeadAES256GCM, 32, Ed25519),
	3:  newSuite("MLS_128_MLKEM768P256_AES128GCM_SHA256_P256", &kemMLKEM768P256, 1, hashSHA256, 32, aeadAES128GCM, 16, ECDSAWithP256AndSHA256),
	4:  newSuite("MLS_128_MLKEM768P256_AES256GCM_SHA384_P256", &kemMLKEM768P256, 2, hashSHA384, 48, aeadAES256GCM, 32, ECDSAWithP256AndSHA256),
	5:  newSuite("MLS_192_MLKEM1024P384_AES256GCM_SHA384_P384", &kemMLKEM1024P384, 2, hashSHA384, 48, aeadAES256GCM, 32, ECDSAWithP384AndSHA384),
	6:  newSuite("MLS_128_MLKEM768_AES256GCM_SHA384_Ed25519", &kemMLKEM768, 2, hashSHA384, 48, aeadAES256GCM, 32, Ed25519),
	7:  newSuite("MLS_128_MLKEM768_AES256GCM_SHA384_P256", &kemMLKEM768, 2, hashSHA384, 48, aeadAES256GCM, 32, ECDSAWithP256AndSHA256),
	8:  newSuite("MLS_192_MLKEM1024_AES256GCM_SHA384_P384", &kemMLKEM1024, 2, hashSHA384, 48, aeadAES256GCM, 32, ECDSAWithP384AndSHA384),
	9:  newSuite("MLS_128_MLKEM768X25519_CHACHA20POLY1305_SHA384_MLDSA44", &kemMLKEM768X25519, 2, hashSHA384, 48, aeadChaCha20Poly1305, 32, MLDSA44),
	10: newSuite("MLS_192_MLKEM768_AES256GCM_SHA384_MLDSA65", &kemMLKEM768, 2, hashSHA384, 48, aeadAES256GCM, 32, MLDSA65),
	11: newSuite("MLS_256_MLKEM1024_AES256GCM_SHA384_MLDSA87", &kemMLKEM1024, 2, hashSHA384, 48, aeadAES256GCM, 32, MLDSA87),
}

// ExperimentalCipherSuites returns the post-quantum suites of this build by
// their numbers. A group needs Config.ExperimentalSuites for them.
func ExperimentalCipherSuites() []CipherSuite {
	out := make([]CipherSuite, 0, len(experimentalSuites)-1)
	for i := 1; i < len(experimentalSuites); i++ {
		out = append(out, experimentalBase+CipherSuite(i))
	}
	return out
}

// Experimental reports whether this build can use the suite, but only where
// Config.ExperimentalSuites is set.
func (cs CipherSuite) Experimental() bool {
	return cs > experimentalBase && int(cs)-experimentalBase < len(experimentalSuites)
}

// checkSuite refuses suites that are unknown, or experimental and not asked for.
func (c *Config) checkSuite(cs CipherSuite) error {
	if cs.Experimental() && (c == nil || !c.ExperimentalSuites) {
		return invalid("crypto/cipher-suite-unsupported", "5.1", "cipher suite %v is experimental; set Config.ExperimentalSuites to use it, or use one of %v", cs, SupportedCipherSuites())
	}
	return cs.check()
}

// capabilities are DefaultCapabilities and the experimental suites that the
// Config allows.
func (c *Config) capabilities() Capabilities {
	d := DefaultCapabilities()
	if c != nil && c.ExperimentalSuites {
		d.CipherSuites = append(d.CipherSuites, ExperimentalCipherSuites()...)
	}
	return d
}
