package homeserver

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// CertificateError is a homeserver whose certificate is not taken.
type CertificateError struct {
	What string // what is wrong, for a person
	Next string // what to do about it
	Err  error  // what TLS says
}

// Error implements error.
func (e *CertificateError) Error() string { return fmt.Sprintf("%s (%v)", e.What, e.Err) }

// Unwrap gives what TLS says.
func (e *CertificateError) Unwrap() error { return e.Err }

// certificate puts a [CertificateError] in the place of what TLS says, which names no
// next step, and leaves other errors as they are.
func certificate(err error) error {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	e := &CertificateError{Err: err}
	switch {
	case errors.As(err, &authority):
		e.What = "this machine does not trust who signed the homeserver's certificate"
		e.Next = "add the authority's certificate to this machine's store (Debian: as NAME.crt into /usr/local/share/ca-certificates, then `update-ca-certificates`) and restart the module; " +
			"a public authority's server has to send the certificates in between, too"
	case errors.As(err, &name):
		e.What = "the homeserver's certificate is not for " + name.Host
		e.Next = "let homeserver.address be a name that the certificate is for"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		e.What = fmt.Sprintf("the homeserver's certificate is valid from %s to %s", invalid.Cert.NotBefore.UTC().Format(time.DateOnly), invalid.Cert.NotAfter.UTC().Format(time.DateOnly))
		e.Next = "renew it, or correct this machine's clock"
	case errors.Is(err, http.ErrSchemeMismatch):
		e.What = "the homeserver speaks no TLS there"
		e.Next = "let homeserver.address begin with http://, if the way there is this machine's alone, or name the port of TLS"
	default:
		return err
	}
	return e
}
