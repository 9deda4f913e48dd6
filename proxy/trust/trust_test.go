package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// certificate makes one that signs itself, and a pool that trusts it.
func certificate(t *testing.T, from, to time.Time, names ...string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to, DNSNames: names, IsCA: true, BasicConstraintsValid: true}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: cert}, pool
}

func TestWhatIsWrongWithACertificateIsSaid(t *testing.T) {
	now := time.Now()
	day := func(after int) time.Time { return now.Add(time.Duration(after) * 24 * time.Hour) }
	for name, row := range map[string]struct {
		from, to       int
		names          []string
		trusted        bool
		plain          bool
		what, next, is string
	}{
		"unknown authority": {-1, 1, []string{"matrix.example"}, false, false, "does not trust who signed the certificate of matrix.example:", "update-ca-certificates", "x509: certificate signed by unknown authority"},
		"another name":      {-1, 1, []string{"a.example", "b.example", "c.example", "d.example"}, true, false, "is for a.example, b.example, c.example, others", "check the address", "x509: certificate is valid for"},
		"no name":           {-1, 1, nil, true, false, "is for no name", "check the address", "x509: "},
		"expired":           {-3, -2, []string{"matrix.example"}, true, false, "is valid from " + day(-3).UTC().Format(time.DateOnly) + " to " + day(-2).UTC().Format(time.DateOnly), "clock", "x509: certificate has expired"},
		"no TLS":            {-1, 1, nil, false, true, "does not speak TLS", "http://", "tls: first record does not look like a TLS handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cert, pool := certificate(t, day(row.from), day(row.to), row.names...)
			server := httptest.NewUnstartedServer(http.NotFoundHandler())
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			if row.plain {
				server.Start()
			} else {
				server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
				server.StartTLS()
			}
			defer server.Close()
			u, err := url.Parse(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			config := &tls.Config{ServerName: "matrix.example", RootCAs: x509.NewCertPool()}
			if row.trusted {
				config.RootCAs = pool
			}
			through := &http.Transport{TLSClientConfig: config, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, u.Host)
			}}
			defer through.CloseIdleConnections()
			req, err := http.NewRequestWithContext(t.Context(), "GET", "https://matrix.example:"+u.Port()+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = through.RoundTrip(req)
			err = fmt.Errorf("asked: %w", Of(req.URL.Host, err))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(e.What, row.what) || !strings.Contains(e.Next, row.next) || !strings.Contains(err.Error(), row.is) || e.Host != req.URL.Host {
				t.Errorf("got %q, %q, of %s", err, e.Next, e.Host)
			}
			if again := Of("elsewhere", err); again != err {
				t.Errorf("said twice: %v", again)
			}
		})
	}
	if err := Of("one", http.ErrSchemeMismatch); !strings.Contains(err.Error(), "one does not speak TLS") {
		t.Errorf("as http.Client says it: %v", err)
	}
	other := errors.New("boom")
	if Of("one", other) != other || Of("one", nil) != nil {
		t.Error("another error was changed")
	}
}
