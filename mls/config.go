package mls

import (
	"crypto/rand"
	"errors"
	"io"
	"time"
)

// A Config holds what a group needs from its surroundings. Its zero value, and
// a nil *Config, use the documented defaults. It must not change while in use.
type Config struct {
	// Rand is the source of keys, nonces and other values that are sent or
	// kept. Nil means crypto/rand. ECDSA signatures, the verification of
	// signatures in batches and the seeds of hash tables draw from
	// crypto/rand all the same.
	Rand io.Reader

	// Now tells the time, against which lifetimes of KeyPackages are
	// checked. Nil means time.Now.
	Now func() time.Time

	// CheckReceivedLifetimes refuses Adds by others, too, of KeyPackages that
	// have expired or are not valid yet. RFC 9420, Section 7.3, recommends it
	// for what just arrived. It is off because whoever was away for a while,
	// or has another clock, would refuse Commits that all others have taken,
	// and be left behind; our own Adds are always checked.
	CheckReceivedLifetimes bool

	// Limits bounds what peers can make us hold or do.
	Limits Limits

	// Authenticator judges credentials (RFC 9420, Section 5.3.1). Nil
	// accepts every well-formed basic credential and takes leaves with the
	// same identity for the same client; fit for tests only.
	Authenticator Authenticator

	// PSK finds external PSKs, and resumption PSKs of groups or epochs that
	// are not at hand. Nil means there are none.
	PSK func(id PreSharedKeyID) (secret []byte, ok bool)

	// AppData decides on AppDataUpdate and AppEphemeral proposals. Nil
	// refuses them all.
	AppData AppData

	// AllowUnlistedCipherSuite accepts leaves whose capabilities do not list
	// the version and suite of their group, as some implementations make
	// them for suite 7.
	AllowUnlistedCipherSuite bool

	// ExperimentalSuites allows the suites of ExperimentalCipherSuites: new
	// leaves list them, and groups that use them can be made and joined.
	// Their numbers and their form may change with any release.
	ExperimentalSuites bool

	// PaddingSize is the multiple to which the content of PrivateMessages
	// is padded (RFC 9420, Section 6.3.1). Zero or less means no padding.
	PaddingSize int

	// OnSeal is for audits, such as tests that look for nonces used twice. It
	// costs two SHA-256 for each message when set, and is told of each use of a message key: use is SHA-256 over
	// the key and the nonce before the reuse guard, and stands for one place in a
	// secret tree; content is SHA-256 over what is encrypted. Nobody may see two
	// contents under one use, whatever branches, restarts and restores there were.
	OnSeal func(use, content [32]byte)
}

// An Authenticator is the application's end of the Authentication Service
// (RFC 9420, Section 5.3.1). Its methods must not change the leaves.
type Authenticator interface {
	// ValidateCredential returns an error unless the leaf's credential is
	// valid for its signature key.
	ValidateCredential(leaf *LeafNode) error

	// SameClient reports whether next may take the place of old: as the
	// successor in an Update or Commit, and as the same client that comes
	// back by an external Commit. It is not asked about Adds: a client that is
	// in the group already, or in two Adds, is known by its signature key, and
	// the application has to look for others (StagedCommit.Proposals).
	SameClient(old, next *LeafNode) bool
}

// An ExternalSenderAuthenticator is an Authenticator that judges the credentials of
// external senders, too. RFC 9420, Section 5.3.1, asks for that when a group is made
// or joined and when its external_senders extension is changed. An Authenticator that
// is none accepts them all: then the application has to look at the extension itself.
type ExternalSenderAuthenticator interface {
	Authenticator

	// ValidateExternalSender returns an error unless the credential is valid
	// for its signature key, and may propose to the group.
	ValidateExternalSender(*ExternalSender) error
}

// checkExternalSenders asks the Authenticator about the external senders of a group.
func (c *Config) checkExternalSenders(exts []Extension) error {
	if c == nil {
		return nil
	}
	a, ok := c.Authenticator.(ExternalSenderAuthenticator)
	if !ok {
		return nil
	}
	data, ok := findExtension(exts, ExtensionTypeExternalSenders)
	if !ok {
		return nil
	}
	senders, err := ParseExternalSenders(data)
	if err != nil {
		return err
	}
	for i := range senders {
		if err := a.ValidateExternalSender(&senders[i]); err != nil {
			return invalid("external-sender/credential-invalid", "5.3.1", "external sender %d: %w", i, err)
		}
	}
	return nil
}

func (c *Config) rand() io.Reader {
	if c == nil || c.Rand == nil {
		return rand.Reader
	}
	return c.Rand
}

func (c *Config) onSeal() func(use, content [32]byte) {
	if c == nil {
		return nil
	}
	return c.OnSeal
}

func (c *Config) checkReceivedLifetimes() bool { return c != nil && c.CheckReceivedLifetimes }

func (c *Config) now() time.Time {
	if c == nil || c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

func (c *Config) limits() *Limits {
	if c == nil {
		l := defaultLimits
		return &l
	}
	l := c.Limits.withDefaults()
	return &l
}

// validateCredential asks the Authenticator.
func (c *Config) validateCredential(l *LeafNode) error {
	if c != nil && c.Authenticator != nil {
		return c.Authenticator.ValidateCredential(l)
	}
	if l.Credential.Type == 0 {
		return errors.New("there is no credential; set LeafOptions.Credential")
	}
	if l.Credential.Type != CredentialTypeBasic {
		return errors.New("only basic credentials are accepted without an Authenticator")
	}
	return nil
}

// sameClient asks the Authenticator.
func (c *Config) sameClient(old, next *LeafNode) bool {
	if c != nil && c.Authenticator != nil {
		return c.Authenticator.SameClient(old, next)
	}
	return old.Credential.Equal(&next.Credential)
}
