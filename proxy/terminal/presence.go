package terminal

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"maunium.net/go/mautrix"

	"github.com/matrix-mls/matrix-mls/proxy/connect"
	"github.com/matrix-mls/matrix-mls/proxy/trust"
)

// presenceText says in a line whether the homeserver answers, and what to do where
// there is something.
func presenceText(base *url.URL, s connect.State, now time.Time) (text, hint string) {
	at := clean(base.String())
	switch {
	case !s.Away:
		again := ""
		if s.Begun {
			again = " again"
		}
		return fmt.Sprintf("the homeserver at %s answers%s, after %v", at, again, now.Sub(s.Since).Round(time.Second)), ""
	case s.Again:
		text = fmt.Sprintf("the homeserver at %s has not answered since %s: %s", at, s.Since.Format(time.TimeOnly), clean(s.Err.Error()))
	case s.Begun:
		text = fmt.Sprintf("the homeserver at %s does not answer any more: %s; it is asked until it does", at, clean(s.Err.Error()))
	default:
		text = fmt.Sprintf("no homeserver answers at %s: %s; it is asked until one does", at, clean(s.Err.Error()))
		hint = "check the address and the network: curl " + shellWord(base.String()+"/_matrix/client/versions")
	}
	var untrusted *trust.Error
	if errors.As(s.Err, &untrusted) {
		hint = untrusted.Next
	}
	return text, hint
}

// tellPresence prints what becomes of the homeserver.
func (c *call) tellPresence(base *url.URL, s connect.State) {
	now := time.Now()
	text, hint := presenceText(base, s, now)
	c.notef("%s %s", now.Format(time.TimeOnly), text)
	if hint != "" {
		fmt.Fprintf(c.env.Stderr, "hint: %s\n", hint)
	}
}

// lookUp finds the base URL that a server name stands for, "" where it names none.
func (c *call) lookUp(ctx context.Context, name string, patience, limit time.Duration) (string, error) {
	where := "https://" + clean(name) + "/.well-known/matrix/client"
	slow := time.AfterFunc(patience, func() { c.notef("waiting for %s to say where the homeserver is", where) })
	defer slow.Stop()
	asked, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	found, err := mautrix.DiscoverClientAPI(asked, name)
	switch {
	case err != nil && asked.Err() != nil && ctx.Err() == nil:
		return "", failf(ExitUnreachable, "check the name and the network, or name the homeserver's base URL, such as --homeserver https://matrix.example.org", "%s does not answer within %v", where, limit)
	case err != nil:
		return "", fmt.Errorf("find the homeserver %s: %w", clean(name), trust.Of(name, err))
	case found == nil:
		return "", nil
	}
	return found.Homeserver.BaseURL, nil
}
