package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/matrix-mls/matrix-mls/proxy/trust"
)

// answer writes JSON.
func answer(w http.ResponseWriter, status int, body any) {
	raw, err := json.Marshal(body)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the proxy could not write its answer")
		return
	}
	answerRaw(w, status, raw)
}

func answerRaw(w http.ResponseWriter, status int, raw []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(raw)
}

// refuse writes a Matrix error. The text says what to do next.
func refuse(w http.ResponseWriter, status int, code, text string) {
	answer(w, status, map[string]string{"errcode": code, "error": "mls-proxy: " + text})
}

// wait asks the client to send the same request again in a moment.
func wait(w http.ResponseWriter, text string) {
	answer(w, http.StatusTooManyRequests, map[string]any{"errcode": "M_LIMIT_EXCEEDED", "error": "mls-proxy: " + text, "retry_after_ms": 2000})
}

// failed answers a request that did not reach the homeserver.
func (s *Server) failed(w http.ResponseWriter, r *http.Request, err error) {
	var tooLarge *http.MaxBytesError
	var untrusted *trust.Error
	switch {
	case r.Context().Err() != nil:
		s.stopped(w)
	case errors.As(err, &tooLarge):
		refuse(w, http.StatusRequestEntityTooLarge, "M_TOO_LARGE", fmt.Sprintf("the request has more than %d bytes", tooLarge.Limit))
	case errors.Is(err, errTooLarge):
		refuse(w, http.StatusBadGateway, "M_TOO_LARGE", fmt.Sprintf("the homeserver's answer has more than %d MiB, which is more than the proxy holds; a client that loads members lazily, or asks for less at once, gets a smaller one", maxResponse>>20))
	case errors.As(err, &untrusted):
		s.o.Log.Warn().Str("error", redact(err)).Msg("The homeserver's certificate was not taken")
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", untrusted.What+": "+untrusted.Next)
	default:
		s.o.Log.Warn().Str("error", redact(err)).Msg("The homeserver did not answer")
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the homeserver "+s.o.Homeserver.Host+" does not answer; check the network, the client tries again")
	}
}

// stopped answers a request that was broken off: the client went away and does
// not see it, or the proxy stops.
func (s *Server) stopped(w http.ResponseWriter) {
	refuse(w, http.StatusServiceUnavailable, "M_UNKNOWN", "it is being stopped; try again")
}

// upstream marks the errors of the way to the homeserver.
type upstream struct{ http.RoundTripper }

type upstreamError struct{ error }

func (e *upstreamError) Unwrap() error { return e.error }

// RoundTrip implements http.RoundTripper.
func (u upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := u.RoundTripper.RoundTrip(r)
	if err != nil {
		err = &upstreamError{err}
	}
	return resp, err
}

// isNetwork tells whether an error is of the way to the homeserver.
func isNetwork(err error) bool {
	var u *url.Error
	var op *net.OpError
	var up *upstreamError
	return errors.As(err, &u) || errors.As(err, &op) || errors.As(err, &up)
}

// redact writes an error without the address that it happened at: a query may
// hold what is nobody's business.
func redact(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return err.Error()
}

// tokenOf is the access token of a request (Matrix client-server API, "Using
// access tokens").
func tokenOf(header http.Header, query url.Values) string {
	if value := header.Get("Authorization"); value != "" {
		scheme, token, _ := strings.Cut(value, " ")
		if strings.EqualFold(scheme, "Bearer") {
			return strings.TrimSpace(token)
		}
		return ""
	}
	return query.Get("access_token")
}

// reply is what the homeserver said.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// code is the Matrix error code of a refusal.
func (r *reply) code() string {
	var e struct {
		Code string `json:"errcode"`
	}
	_ = json.Unmarshal(r.body, &e)
	return e.Code
}

// pass hands an answer on, as JSON.
func (r *reply) pass(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	if after := r.header.Get("Retry-After"); after != "" {
		w.Header().Set("Retry-After", after)
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body)
}

var errTooLarge = errors.New("server: the homeserver's answer is too large")

// ask makes a request of the proxy's own to the homeserver.
func (s *Server) ask(ctx context.Context, method, path string, query url.Values, token string, body []byte) (*reply, error) {
	resp, err := s.begin(ctx, method, path, query, token, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return readReply(resp, maxResponse)
}

// readReply reads an answer of at most limit bytes.
func readReply(resp *http.Response, limit int64) (*reply, error) {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, errTooLarge
	}
	return &reply{status: resp.StatusCode, header: resp.Header, body: raw}, nil
}

// begin makes a request of the proxy's own to the homeserver. The caller closes the
// body of the answer.
func (s *Server) begin(ctx context.Context, method, path string, query url.Values, token string, body []byte) (*http.Response, error) {
	var in io.Reader
	if body != nil {
		in = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.o.Homeserver.String(), in)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	req.URL.RawQuery = query.Encode()
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	s.direct(req, path)
	return s.o.Transport.RoundTrip(req)
}

// again makes the client's own request, and reads the answer.
func (s *Server) again(r *http.Request, body []byte) (*reply, error) {
	query := r.URL.Query()
	return s.ask(r.Context(), r.Method, pathOf(r.Context()), query, tokenOf(r.Header, query), body)
}

// read reads a request's body.
func read(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, bool) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			refuse(w, http.StatusRequestEntityTooLarge, "M_TOO_LARGE", fmt.Sprintf("the request has more than %d bytes", limit))
		} else {
			refuse(w, http.StatusBadRequest, "M_NOT_JSON", "the request broke off")
		}
		return nil, false
	}
	return raw, true
}
