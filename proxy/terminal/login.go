package terminal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/identity"
)

func runLogin(ctx context.Context, c *call) error {
	homeserver := c.flags.String("homeserver", "", "base `URL`, if the server name does not lead to it")
	passwordFile := c.flags.String("password-file", "", "read the password from `FILE` (- is standard input)")
	sso := c.flags.Bool("sso", false, "log in in a browser: single sign-on, or the issuer that the homeserver leaves logins to")
	name := c.flags.String("device-name", "", "`NAME` in the list of sessions")
	if err := c.parse(ctx, 0, 1); err != nil {
		return err
	}
	l := identity.Login{Homeserver: *homeserver, DeviceName: *name}
	if len(c.args) == 1 {
		if strings.HasPrefix(c.args[0], "@") || !*sso {
			l.User = c.args[0]
		} else if l.Homeserver == "" {
			l.Homeserver = c.args[0]
		}
	}
	if l.User == "" && l.Homeserver == "" || l.User == "" && !*sso {
		return usagef("login needs: %s", c.verb.args)
	}
	// Before a password is asked for. A bare name does where the homeserver is
	// named.
	if strings.HasPrefix(l.User, "@") || !*sso && l.Homeserver == "" {
		if _, err := parseUser(l.User); err != nil {
			return err
		}
	}
	if l.DeviceName == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "a terminal"
		}
		l.DeviceName = "mls-proxy on " + host
	}
	forget := c.newFiles()
	s, err := openStore(ctx, c)
	if err != nil {
		return err
	}
	defer func() {
		in := s.ident.LoggedIn()
		s.close()
		if !in {
			forget()
		}
	}()
	again := s.ident.LoggedIn()
	if again {
		// A device that the homeserver wants to log in again stays the same.
		switch err := s.ident.Check(ctx); {
		case errors.Is(err, identity.ErrSoftLogout):
			c.notef("the homeserver wants this device of %s to log in again", clean(s.ident.UserID().String()))
		case errors.Is(err, identity.ErrTokenRejected):
			return err
		default:
			return fmt.Errorf("%w (%s)", identity.ErrLoggedIn, s.ident.UserID())
		}
	}
	if *sso {
		err = s.loginBrowser(ctx, c, l)
	} else {
		var password string
		if password, err = c.secret(ctx, *passwordFile, fmt.Sprintf("Password of %s: ", clean(l.User)), "password"); err == nil {
			err = s.ident.LoginPassword(ctx, l, password)
		}
	}
	if err != nil {
		return err
	}
	status, err := s.ident.Status(ctx)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(map[string]any{
			"user_id": s.ident.UserID(), "device_id": s.ident.DeviceID(), "homeserver": s.ident.Homeserver(),
			"fingerprint": s.ident.Fingerprint(), "cross_signing": status.HasCrossSigning, "verified": status.DeviceSigned,
		})
	}
	c.printf("Logged in as %s, device %s.\n", clean(s.ident.UserID().String()), clean(s.ident.DeviceID().String()))
	if again && status.DeviceSigned {
		return nil
	}
	if status.HasCrossSigning {
		c.notef("this device is not verified yet: rooms do not let it in")
		fmt.Fprintln(c.env.Stderr, "hint: mls-proxy verify --recovery-key, or mls-proxy verify to compare emoji with another device")
	} else {
		c.notef("this account has no cross-signing yet: rooms do not let its devices in")
		fmt.Fprintln(c.env.Stderr, "hint: mls-proxy verify --bootstrap")
	}
	return nil
}

// newFiles notes which files of a device are missing, and returns what deletes
// those that were made since: a login that failed leaves nothing, so that a backup
// can be restored there.
func (c *call) newFiles() (forget func()) {
	var missing []string
	for _, name := range []string{storeName, storeName + "-wal", storeName + "-shm", storeKeyName} {
		path := filepath.Join(c.state, name)
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			missing = append(missing, path)
		}
	}
	if len(missing) == 0 || missing[0] != filepath.Join(c.state, storeName) {
		return func() {} // a store was there
	}
	return func() {
		for _, path := range missing {
			_ = os.Remove(path)
		}
	}
}

func (s *session) loginBrowser(ctx context.Context, c *call, l identity.Login) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	return s.ident.LoginBrowser(ctx, l, func(url string) error {
		c.notef("log in on this page, in a browser on this machine: %s", url)
		if c.env.OpenBrowser != nil {
			_ = c.env.OpenBrowser(url) // the address is printed
		}
		return nil
	})
}

// secret reads a secret from a file or, hidden, from the terminal.
func (c *call) secret(ctx context.Context, file, prompt, what string) (string, error) {
	if file != "" {
		text, err := readSecretFile(c.env, file)
		if err != nil {
			return "", fmt.Errorf("read the %s: %w", what, err)
		}
		if text == "" {
			return "", usagef("the file with the %s is empty", what)
		}
		return text, nil
	}
	if c.env.ReadPassword == nil {
		return "", c.noTerminal(what)
	}
	text, err := c.env.ReadPassword(ctx, prompt)
	if errors.Is(err, errNoTerminal) {
		return "", c.noTerminal(what)
	}
	if err != nil {
		return "", fmt.Errorf("read the %s: %w", what, err)
	}
	if text == "" {
		return "", failf(ExitUsage, "type it again; "+what+"s are not shown while they are typed", "no %s was typed", what)
	}
	return text, nil
}

// noTerminal is the error of a secret that nobody can be asked for.
func (c *call) noTerminal(what string) error {
	return failf(ExitUsage, fmt.Sprintf("--%s-file FILE, or - for standard input", strings.ReplaceAll(what, " ", "-")), "there is no terminal to ask for the %s on", what)
}

func runLogout(ctx context.Context, c *call) error {
	force := c.flags.Bool("force", false, "delete the keys even if the homeserver cannot be told")
	keep := c.flags.Bool("keep-session", false, "delete the keys here alone: another copy of this device, as of a backup, goes on")
	both := c.flags.Bool("end-copies", false, "end the session though another copy of this device uses it")
	if err := c.parse(ctx, 0, 0, func() error {
		if *keep && (*force || *both) {
			return usagef("--keep-session asks the homeserver for nothing: --force and --end-copies do not go with it")
		}
		return nil
	}); err != nil {
		return err
	}
	user, device := clean(c.s.ident.UserID().String()), clean(c.s.ident.DeviceID().String())
	end := c.s.ident.Forget
	if !*keep {
		end = func(ctx context.Context) error { return c.s.ident.Logout(ctx, *force) }
		if !*both {
			if err := c.s.alone(ctx); err != nil {
				return err
			}
		}
	}
	if err := end(ctx); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(map[string]any{"user_id": user, "device_id": device, "session_kept": *keep})
	}
	if *keep {
		c.printf("Deleted the keys and messages of %s, device %s, here; its session goes on where another copy uses it.\n", user, device)
		return nil
	}
	c.printf("Logged out %s, device %s; its keys and messages are deleted.\n", user, device)
	return nil
}

// alone returns an error if another copy of this device is known to be in use, whose
// session a logout here would end, too.
func (s *session) alone(ctx context.Context) error {
	cli, err := client.Open(ctx, client.Options{Store: s.st, Identity: s.ident, Log: s.log})
	if err != nil {
		return nil // who cannot open it wants to be rid of it
	}
	all, err := cli.Rooms(ctx)
	if err != nil {
		return nil
	}
	i := slices.IndexFunc(all, func(r client.RoomInfo) bool { return r.Superseded })
	if i < 0 {
		return nil
	}
	if err := s.ident.Check(ctx); errors.Is(err, identity.ErrTokenRejected) && !errors.Is(err, identity.ErrSoftLogout) {
		return nil // the session is over
	}
	return failf(ExitRefused, "mls-proxy logout --keep-session deletes this copy alone; --end-copies ends both, and rooms let in who then logs in anew",
		"another copy of this device is in use in %s, and a logout here ends its session, too", title(all[i]))
}

func runDevices(ctx context.Context, c *call) error {
	if err := c.parse(ctx, 0, 1); err != nil {
		return err
	}
	user := c.s.ident.UserID()
	if len(c.args) == 1 {
		var err error
		if user, err = parseUser(c.args[0]); err != nil {
			return err
		}
	} else if _, err := c.s.ident.Status(ctx); err != nil { // asks for our own devices anew
		return err
	}
	u, err := c.s.ident.Devices(ctx, user)
	if err != nil {
		return err
	}
	rows := [][]string{{"DEVICE", "VERIFIED", "MLS", "ED25519", "NAME"}}
	for _, d := range u.SortedDevices() {
		own := user == c.s.ident.UserID() && d.ID == c.s.ident.DeviceID()
		if c.json {
			suites := make([]string, 0, len(d.MLSKeys))
			for _, cs := range c.s.ident.Suites() {
				if d.MLSKeys[cs] != nil {
					suites = append(suites, cs.String())
				}
			}
			err := c.printJSON(map[string]any{
				"user_id": user, "device_id": d.ID, "name": d.Name, "ed25519": d.Ed25519, "cross_signed": d.CrossSigned,
				"verified": d.Verified, "user_state": u.MasterState, "suites": suites, "this_device": own,
			})
			if err != nil {
				return err
			}
			continue
		}
		name := clean(d.Name)
		if own {
			name += " (this device)"
		}
		rows = append(rows, []string{clean(d.ID.String()), deviceState(u, d), yesNo(len(d.MLSKeys) > 0), d.Ed25519, name})
	}
	if c.json {
		return nil
	}
	if len(rows) == 1 {
		c.printf("%s has no devices with keys.\n", clean(user.String()))
		return nil
	}
	table(c.env.Stdout, rows)
	switch u.MasterState {
	case identity.MasterChanged:
		c.notef("the keys of %s have changed since they were first seen", clean(user.String()))
		fmt.Fprintf(c.env.Stderr, "hint: ask whether that is right; then mls-proxy verify accept %s\n", shellWord(user.String()))
	case identity.MasterNone:
		c.notef("%s has no cross-signing keys", clean(user.String()))
	}
	return nil
}

// deviceState says in words how sure a device is its user's.
func deviceState(u *identity.UserDevices, d *identity.Device) string {
	switch {
	case d.Verified:
		return "verified"
	case u.MasterState == identity.MasterChanged:
		return "CHANGED"
	case d.CrossSigned:
		return "cross-signed"
	}
	return "NO"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
