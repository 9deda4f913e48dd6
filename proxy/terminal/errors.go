package terminal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"

	"maunium.net/go/mautrix"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/archive"
	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/sealed"
	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/proxy/trust"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// failure is an error with an exit code and a next step.
type failure struct {
	code int
	err  error
	hint string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usagef(format string, args ...any) error {
	return &failure{code: ExitUsage, err: fmt.Errorf(format, args...), hint: "mls-proxy help shows the verbs, mls-proxy VERB -h a verb's flags"}
}

func failf(code int, hint, format string, args ...any) error {
	return &failure{code: code, err: fmt.Errorf(format, args...), hint: hint}
}

// knownErrors maps what the packages below report to exit codes and hints, in
// the order in which they are tried.
var knownErrors = []struct {
	is   error
	code int
	hint string
}{
	{identity.ErrNotLoggedIn, ExitNotLoggedIn, "mls-proxy login @you:example.org"},
	{identity.ErrSoftLogout, ExitNotLoggedIn, "mls-proxy login, as the first time: it stays the same device"},
	{identity.ErrTokenRejected, ExitNotLoggedIn, "mls-proxy logout --force, then mls-proxy login; rooms let the new device in again"},
	{identity.ErrLoggedIn, ExitFailure, "mls-proxy logout ends this device; --state DIR keeps another one beside it"},
	{identity.ErrPasswordRefused, ExitRefused, "check the user name and password; accounts without a password use --sso"},
	{identity.ErrCrossSigningExists, ExitFailure, "mls-proxy verify --recovery-key, or mls-proxy verify to compare emoji with another device"},
	{identity.ErrNoCrossSigning, ExitNotVerified, "mls-proxy verify --bootstrap sets it up"},
	{identity.ErrNoRecovery, ExitNotVerified, "mls-proxy verify compares emoji with another device"},
	{identity.ErrWrongRecoveryKey, ExitRefused, "it has 12 groups of four characters and was shown when cross-signing was set up"},
	{identity.ErrSecretStorageExists, ExitFailure, "mls-proxy verify --bootstrap --recovery-key"},
	{identity.ErrVerificationEnded, ExitNotVerified, "start again: mls-proxy verify"},
	{identity.ErrVerificationStopped, ExitNotVerified, "start again: mls-proxy verify"},
	{identity.ErrNoKeyPackage, ExitPending, "the device is added when it is online again"},
	{store.ErrLocked, ExitLocked, "end the other mls-proxy, or use another --state"},
	{sealed.ErrFormat, ExitFailure, "mls-proxy export FILE makes one"},
	{sealed.ErrTooLarge, ExitRefused, "export single rooms: mls-proxy export FILE ROOM"},
	{archive.ErrContent, ExitRefused, "it was not made by mls-proxy export, or by a newer one"},
	{store.ErrBackupSecret, ExitRefused, "give the passphrase, or the --key-file, that the backup was made with"},
	{sealed.ErrDamaged, ExitRefused, "give the passphrase, or the --key-file, that the file was made with"},
	{store.ErrNoBackup, ExitFailure, "mls-proxy backup FILE makes one"},
	{store.ErrExists, ExitFailure, "move it away, or restore beside it with --state DIR"},
	{store.ErrDamaged, ExitFailure, "move the state directory away and read a backup back: mls-proxy restore FILE; without one log in as a new device"},
	{store.ErrWrongKey, ExitFailure, "MLS_STORE_KEY_FILE or store.key must be the key this state was made with"},
	{client.ErrModuleSilent, ExitPending, "run mls-proxy tail, which goes on; if the module does not come, the administrator of your homeserver has to look (matrix-mls doctor)"},
	{client.ErrNotListed, ExitUsage, "mls-proxy sequencers ROOM shows the list"},
	{sealed.ErrPassphrase, ExitUsage, "take a longer passphrase, such as five words, or --key-file FILE"},
	{client.ErrNoModule, ExitRefused, "ask the administrator of your homeserver to install matrix-mls"},
	{client.ErrNotMLS, ExitRefused, "mls-proxy enable ROOM turns an unencrypted room into an MLS room"},
	{client.ErrNoRoom, ExitFailure, "mls-proxy rooms lists the rooms; an invite may come without a name: then its id is the ROOM to join"},
	{client.ErrNoGroup, ExitPending, "a member's device lets this one in when it is online; run mls-proxy tail and wait"},
	{client.ErrSuperseded, ExitRefused, "use the other copy, and run mls-proxy logout --keep-session here; then mls-proxy login makes this a device of its own"},
	{client.ErrRemoved, ExitRefused, "ask a member to invite you again"},
	{client.ErrNoReceipts, ExitFailure, "receipts are for what this device has sent, in groups of up to 10 devices"},
	{client.ErrNobodyToAsk, ExitRefused, "another device of yours in the room's group can give it or, in a room with --share-history, one of who invited you or of an admin: mls-proxy members ROOM"},
	{client.ErrBarrier, ExitPending, "the message stays in the outbox; run mls-proxy tail and wait"},
	{client.ErrTooLarge, ExitRefused, "send it with --file"},
	{client.ErrNothingToRepair, ExitFailure, "if a module lost its key just now, wait until it has started and said its new key in the room; mls-proxy tail ROOM tells an admin"},
	{client.ErrNoModuleOf, ExitRefused, "mls-proxy sequencers ROOM shows the modules in the room; mls-proxy sequencers ROOM add SERVER invites one"},
	{client.ErrHeirsWait, ExitPending, "messages go on meanwhile; ask an admin, or try again later"},
	{client.ErrNotReady, ExitPending, "it goes on while mls-proxy tail runs; mls-proxy sequencers ROOM shows who is missing, set ROOM with the present servers takes it back"},
	{client.ErrSuiteChange, ExitPending, "run mls-proxy tail, which goes on; a member of another user has to be online"},
	{client.ErrSuiteNotReady, ExitRefused, "mls-proxy suite ROOM SUITE --check looks again; with --drop instead, devices that cannot follow stay behind until they can"},
	{client.ErrSuite, ExitRefused, "mls-proxy suite ROOM shows which suites the devices can use; an admin moves the room with mls-proxy suite ROOM SUITE"},
	{client.ErrNotAllowed, ExitRefused, "an admin of the room can change that"},
}

// explain returns the exit code and hint of an error.
func explain(err error) (code int, hint string) {
	var f *failure
	if errors.As(err, &f) {
		return f.code, f.hint
	}
	waited := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
	for _, k := range knownErrors {
		if errors.Is(err, k.is) {
			if k.is == client.ErrNotAllowed && waited {
				// What is not allowed yet: the wait for it ended, not the hope.
				return ExitPending, "a member's device or a module of the room was still waited for; run mls-proxy tail, which goes on"
			}
			return k.code, k.hint
		}
	}
	var refusal *rooms.Refusal
	if errors.As(err, &refusal) {
		switch refusal.Rule {
		case rooms.RuleDeviceKeyNotCrossSigned, rooms.RuleDeviceNotCredential, rooms.RuleIdentityChanged:
			return ExitNotVerified, refusal.Remedy
		}
		return ExitRefused, refusal.Remedy
	}
	var limited *client.RateLimitError
	if errors.As(err, &limited) {
		return ExitPending, "the homeserver limits how much is sent; wait a little"
	}
	// Before the network: an errno of the file system looks like a net.Error.
	var pathErr *fs.PathError
	var linkErr *os.LinkError
	if errors.As(err, &pathErr) || errors.As(err, &linkErr) {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return ExitFailure, "check the path of the file"
		case errors.Is(err, fs.ErrExist):
			return ExitFailure, "the file exists: name another, or move it away"
		case errors.Is(err, fs.ErrPermission):
			return ExitFailure, "this account may not use the file; ls -l shows who may"
		case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
			return ExitFailure, "the disk is full"
		}
		return ExitFailure, ""
	}
	var httpErr mautrix.HTTPError
	if errors.As(err, &httpErr) && httpErr.Response != nil {
		switch httpErr.Response.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return ExitRefused, ""
		case http.StatusNotFound:
			return ExitFailure, "check the name and that this is the right homeserver"
		}
		if httpErr.Response.StatusCode >= 500 {
			return ExitUnreachable, "the homeserver has a problem; try again later"
		}
		return ExitFailure, ""
	}
	var untrusted *trust.Error
	var opErr *net.OpError
	var dnsErr *net.DNSError
	var urlErr *url.Error
	switch {
	case errors.As(err, &untrusted):
		return ExitUnreachable, untrusted.Next
	case errors.Is(err, context.DeadlineExceeded):
		return ExitPending, "what is under way goes on the next time the program runs; mls-proxy tail shows it"
	case errors.Is(err, context.Canceled):
		return ExitFailure, ""
	case errors.As(err, &opErr), errors.As(err, &dnsErr), errors.As(err, &urlErr):
		return ExitUnreachable, "check the network and the address of the homeserver"
	}
	return ExitFailure, ""
}

// beyond explains an error of the homeserver's that may be another server's: it asks
// that one, the server of who is invited or of a room's alias, and answers in its place.
func (s *session) beyond(err error, name string) error {
	return beyond(err, name, s.ident.UserID().Homeserver())
}

func beyond(err error, name, own string) error {
	_, server, _ := strings.Cut(name, ":")
	var httpErr mautrix.HTTPError
	if server == "" || server == own || !errors.As(err, &httpErr) || httpErr.Response == nil || httpErr.Response.StatusCode < 500 {
		return err
	}
	return failf(ExitUnreachable, "your homeserver may not reach "+clean(server)+": check that name, or try again later", "%w", err)
}

var packageName = regexp.MustCompile(`(^|: |; |\()(?:(?:identity|client|store|rooms|sealed|archive|federation): )+`)

// plainWords takes the names of packages out of an error: they tell a person
// nothing.
func plainWords(text string) string { return packageName.ReplaceAllString(text, "$1") }

// fail tells the person about an error and returns the exit code.
func (c *call) fail(err error) int {
	code, hint := explain(err)
	text := err.Error()
	var refusal *rooms.Refusal
	if errors.Is(err, client.ErrTooLarge) && errors.As(err, &refusal) && refusal.Err != nil {
		text = "the message is too large: " + refusal.Err.Error() // the whole error says it three times
	}
	text = plainWords(clean(text))
	if c.json {
		_ = c.printJSON(map[string]any{"error": text, "hint": hint, "exit": code})
		return code
	}
	c.notef("%s", text)
	if hint != "" {
		fmt.Fprintf(c.env.Stderr, "hint: %s\n", clean(hint))
	}
	return code
}
