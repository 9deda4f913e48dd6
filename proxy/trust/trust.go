// Package trust says in words why a server's certificate was not taken, and what to
// do about it: the errors of TLS name neither the server nor a next step.
package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Error is a TLS connection to a host that was not made.
type Error struct {
	Host string
	What string // what is wrong, for a person
	Next string // what to do about it
	Err  error  // what TLS says
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("%s (%v)", e.What, e.Err) }

// Unwrap gives what TLS says.
func (e *Error) Unwrap() error { return e.Err }

// Of returns an [Error] in the place of what TLS says of a host, and any other
// error as it is.
func Of(host string, err error) error {
	var done *Error
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var roots x509.SystemRootsError
	var plain tls.RecordHeaderError
	e := &Error{Host: host, Err: err}
	switch {
	case err == nil || errors.As(err, &done):
		return err
	case errors.As(err, &authority):
		e.What = "this machine does not trust who signed the certificate of " + host
		e.Next = "if that is an authority of your own, add its certificate to this machine's store (Debian: copy it to /usr/local/share/ca-certificates/NAME.crt and run update-ca-certificates), " +
			"then start the program again; a public one's server has to send the certificates in between, too; else somebody may be between this machine and " + host
	case errors.As(err, &name):
		e.What = "the certificate of " + host + " is for " + names(name.Certificate)
		e.Next = "check the address: it has to be a name that the certificate is for"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		e.What = fmt.Sprintf("the certificate of %s is valid from %s to %s", host, day(invalid.Cert.NotBefore), day(invalid.Cert.NotAfter))
		e.Next = "check this machine's clock; if it is right, who runs " + host + " has to renew the certificate"
	case errors.As(err, &invalid):
		e.What = "the certificate of " + host + " cannot be used"
		e.Next = "who runs " + host + " has to replace it"
	case errors.As(err, &roots):
		e.What = "this machine has no list of authorities to check the certificate of " + host + " with"
		e.Next = "install one (Debian: the package ca-certificates)"
	case errors.As(err, &plain), errors.Is(err, http.ErrSchemeMismatch):
		e.What = host + " does not speak TLS"
		e.Next = "check the address and its port; if it begins with http://, nothing that is sent there is hidden on the way"
	default:
		return err
	}
	return e
}

// maxNames and maxName bound how many names of a certificate are said, and how much of each: whoever stands in between writes them.
const maxNames, maxName = 3, 64

// names says what a certificate is for.
func names(cert *x509.Certificate) string {
	if cert == nil {
		return "another name"
	}
	all := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		all = append(all, ip.String())
	}
	switch {
	case len(all) == 0:
		return "no name"
	case len(all) > maxNames:
		all = append(all[:maxNames], "others")
	}
	for i, name := range all {
		if len(name) > maxName {
			all[i] = name[:maxName] + "…"
		}
	}
	return strings.Join(all, ", ")
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
