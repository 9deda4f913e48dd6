package identity

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"maunium.net/go/mautrix"
)

const (
	maxResponse   = 64 << 20  // bytes of a response
	maxSync       = 256 << 20 // bytes of a sync response: the first one holds all rooms
	maxAttempts   = 6         // of one request that the homeserver rate-limits
	defaultRetry  = time.Second
	maxRetryAfter = time.Minute
)

// do sends one request to the client-server API. It obeys 429 answers, up to
// maxAttempts times; bodies never reach a log.
func (i *Identity) do(ctx context.Context, cli *mautrix.Client, method, url string, body, into any) error {
	return i.doLimit(ctx, cli, method, url, body, into, maxResponse)
}

func (i *Identity) doLimit(ctx context.Context, cli *mautrix.Client, method, url string, body, into any, limit int64) error {
	for attempt := 1; ; attempt++ {
		_, err := cli.MakeFullRequest(ctx, mautrix.FullRequest{
			Method: method, URL: url, RequestJSON: body, ResponseJSON: into,
			MaxAttempts: 1, SensitiveContent: true, ResponseSizeLimit: limit,
		})
		if err == nil {
			return nil
		}
		if errors.Is(err, mautrix.MUnknownToken) {
			return rejected(err)
		}
		wait, limited := retryAfter(err)
		if !limited || attempt == maxAttempts {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// rejected is the error of a token that the homeserver does not take (Matrix
// client-server API, "Soft logout").
func rejected(err error) error {
	var httpErr mautrix.HTTPError
	if errors.As(err, &httpErr) && httpErr.RespError != nil && httpErr.RespError.ExtraData["soft_logout"] == true {
		return ErrSoftLogout
	}
	return ErrTokenRejected
}

// retryAfter tells how long a 429 asks us to wait.
func retryAfter(err error) (time.Duration, bool) {
	var httpErr mautrix.HTTPError
	if !errors.As(err, &httpErr) || httpErr.Response == nil || httpErr.Response.StatusCode != http.StatusTooManyRequests {
		return 0, false
	}
	wait := defaultRetry
	if httpErr.RespError != nil {
		if ms, ok := httpErr.RespError.ExtraData["retry_after_ms"].(float64); ok && ms >= 0 && ms < float64(maxRetryAfter.Milliseconds()) {
			wait = time.Duration(ms) * time.Millisecond
		}
	}
	if s, err := strconv.Atoi(httpErr.Response.Header.Get("Retry-After")); err == nil && s > 0 {
		wait = max(wait, time.Duration(min(s, 60))*time.Second)
	}
	return min(max(wait, 50*time.Millisecond), maxRetryAfter), true
}

// status returns the HTTP status of an error answer, or 0.
func status(err error) int {
	var httpErr mautrix.HTTPError
	if errors.As(err, &httpErr) && httpErr.Response != nil {
		return httpErr.Response.StatusCode
	}
	return 0
}
