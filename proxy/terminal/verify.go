package terminal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/identity"
)

// verifyTime is how long an interactive verification may take.
const verifyTime = 10 * time.Minute

// signTime is how long the other device may take to sign this one when both have confirmed.
const signTime = 20 * time.Second

func runVerify(ctx context.Context, c *call) error {
	bootstrap := c.flags.Bool("bootstrap", false, "set cross-signing up for an account that has none")
	recovery := c.flags.Bool("recovery-key", false, "verify with the account's recovery key, which is asked for")
	recoveryFile := c.flags.String("recovery-key-file", "", "read the recovery key from `FILE` (- is standard input)")
	passwordFile := c.flags.String("password-file", "", "read the account's password from `FILE` (with --bootstrap)")
	wait := c.flags.Bool("wait", false, "wait until another device asks to be verified")
	if err := c.parse(ctx, 0, 2, func() error {
		if *wait && len(c.args) > 0 {
			return usagef("verify --wait waits for whoever asks; to ask %s: mls-proxy verify @USER, without --wait", clean(c.args[0]))
		}
		return nil
	}); err != nil {
		return err
	}
	if len(c.args) == 2 {
		if c.args[0] != "accept" {
			return usagef("verify needs: %s", c.verb.args)
		}
		return c.acceptIdentity(ctx, c.args[1])
	}
	switch {
	case *bootstrap:
		return c.bootstrap(ctx, *passwordFile, *recovery, *recoveryFile)
	case *recovery || *recoveryFile != "":
		key, err := c.secret(ctx, *recoveryFile, "Recovery key: ", "recovery key")
		if err != nil {
			return err
		}
		if err := c.s.ident.Recover(ctx, key); err != nil {
			return err
		}
		return c.printVerified(ctx)
	}
	user := c.s.ident.UserID()
	if len(c.args) == 1 {
		var err error
		if user, err = parseUser(c.args[0]); err != nil {
			return err
		}
	}
	status, err := c.s.ident.Status(ctx)
	if err != nil {
		return err
	}
	if !status.HasCrossSigning {
		return identity.ErrNoCrossSigning
	}
	if user == c.s.ident.UserID() && status.DeviceSigned && status.MasterTrusted && !*wait {
		if !c.json {
			c.notef("to verify another device with this one: mls-proxy verify --wait")
		}
		return c.printVerified(ctx)
	}
	return c.compare(ctx, user, *wait)
}

func (c *call) acceptIdentity(ctx context.Context, name string) error {
	user, err := parseUser(name)
	if err != nil {
		return err
	}
	if err := c.s.ident.AcceptIdentity(ctx, user); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(map[string]any{"user_id": user, "accepted": true})
	}
	c.printf("The present keys of %s are accepted.\n", clean(user.String()))
	return nil
}

func (c *call) bootstrap(ctx context.Context, passwordFile string, askKey bool, keyFile string) error {
	status, err := c.s.ident.Status(ctx)
	if err != nil {
		return err
	}
	if status.HasCrossSigning {
		return identity.ErrCrossSigningExists
	}
	var key string
	if askKey || keyFile != "" {
		if key, err = c.secret(ctx, keyFile, "Recovery key: ", "recovery key"); err != nil {
			return err
		}
	}
	auth := identity.UIA{}
	if passwordFile != "" {
		if auth.Password, err = c.secret(ctx, passwordFile, "", "password"); err != nil {
			return err
		}
	}
	auth.Browser = func(url string) error {
		c.notef("confirm on this page in a browser: %s", url)
		if c.env.OpenBrowser != nil {
			_ = c.env.OpenBrowser(url) // the address is printed
		}
		_, err := c.ask(ctx, "Press Enter when this is done: ")
		return err
	}
	recovery, err := c.s.ident.Bootstrap(ctx, auth, key)
	if errors.Is(err, identity.ErrPasswordRefused) && passwordFile == "" && c.env.ReadPassword != nil {
		// Most homeservers ask nobody the first time.
		if auth.Password, err = c.secret(ctx, "", "Password of the account: ", "password"); err != nil {
			return err
		}
		recovery, err = c.s.ident.Bootstrap(ctx, auth, key)
	}
	if errors.Is(err, identity.ErrNoRecovery) {
		return failf(ExitUsage, "mls-proxy verify --bootstrap, without a recovery key, makes one", "the account has no recovery key yet that could be given")
	}
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(map[string]any{"recovery_key": recovery, "verified": true})
	}
	c.printf("%s\n", recovery)
	c.notef("this device is verified; the line above is the account's recovery key")
	fmt.Fprintln(c.env.Stderr, "hint: keep it in a safe place: it verifies your next devices, and nobody can tell it to you again")
	return nil
}

func (c *call) printVerified(ctx context.Context) error {
	s, err := c.s.ident.Status(ctx)
	if err != nil {
		return err
	}
	if c.json {
		if err := c.printJSON(map[string]any{
			"user_id": c.s.ident.UserID(), "device_id": c.s.ident.DeviceID(), "fingerprint": c.s.ident.Fingerprint(),
			"cross_signing": s.HasCrossSigning, "verified": s.DeviceSigned, "master_key_trusted": s.MasterTrusted, "can_sign": s.CanSign,
		}); err != nil {
			return err
		}
	}
	if !s.DeviceSigned {
		return failf(ExitNotVerified, "mls-proxy verify --recovery-key", "the other device has not signed this one yet")
	}
	if c.json {
		return nil
	}
	c.printf("Device %s of %s is verified.\n", clean(c.s.ident.DeviceID().String()), clean(c.s.ident.UserID().String()))
	return nil
}

// compare runs an interactive verification.
func (c *call) compare(ctx context.Context, user id.UserID, wait bool) error {
	ctx, cancel := context.WithTimeout(ctx, verifyTime)
	defer cancel()
	if _, err := c.s.client(ctx); err != nil { // verification needs a running sync
		return err
	}
	ui := &verifyUI{c: c, done: ctx, ended: make(chan error, 1), asked: wait}
	c.s.ident.SetVerifyUI(ui)
	defer c.s.ident.SetVerifyUI(nil)
	if wait {
		c.notef("waiting for another device (this one is %s); start the verification there", clean(c.s.ident.DeviceID().String()))
	} else {
		if err := c.s.ident.StartVerification(ctx, user); err != nil {
			return err
		}
		c.notef("accept the verification on the other device")
	}
	select {
	case err := <-ui.ended:
		if errors.Is(err, identity.ErrVerificationStopped) {
			return c.stopped(ctx)
		}
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return c.stopped(ctx)
	}
	if user == c.s.ident.UserID() {
		soon, cancel := context.WithTimeout(ctx, signTime)
		defer cancel()
		// Whether it came is asked below.
		if err := c.s.ident.AwaitSignature(soon); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			if ctx.Err() != nil {
				return verifyStopped("")
			}
			return err
		}
		return c.printVerified(ctx)
	}
	if c.json {
		return c.printJSON(map[string]any{"user_id": user, "verified": true})
	}
	c.printf("%s is verified.\n", clean(user.String()))
	return nil
}

// stopped ends what is under way, as the user's wish, and says so: an interrupt, the
// end of the input or of the time is no difference of the emoji.
func (c *call) stopped(ctx context.Context) error {
	tell, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	c.s.ident.StopVerifications(tell)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return verifyStopped(fmt.Sprintf(": it was not done within %.0f minutes", verifyTime.Minutes()))
	case ctx.Err() != nil:
		return verifyStopped("")
	}
	return verifyStopped(": the question was not answered")
}

// verifyStopped is the error of a verification that this side stopped.
func verifyStopped(why string) error {
	return failf(ExitNotVerified, "start again: mls-proxy verify", "stopped%s", why)
}

// verifyUI asks the person at the terminal.
type verifyUI struct {
	c     *call
	done  context.Context // of the verb
	ended chan error
	asked bool // answer requests of others
}

func (ui *verifyUI) Asked(ctx context.Context, user id.UserID, device id.DeviceID) bool {
	if !ui.asked {
		return false
	}
	yes, err := ui.decide(ctx, fmt.Sprintf("Device %s of %s asks to be verified. Go on? [yes/no] ", clean(device.String()), clean(user.String())))
	if err != nil {
		ui.Ended(ctx, user, fmt.Errorf("%w: %w", identity.ErrVerificationStopped, err))
	}
	return err == nil && yes
}

func (ui *verifyUI) Compare(ctx context.Context, user id.UserID, emoji []identity.Emoji, decimals []int) (bool, error) {
	var names, symbols []string
	for _, e := range emoji {
		symbols = append(symbols, string(e.Symbol))
		names = append(names, e.Name)
	}
	if ui.c.json {
		_ = ui.c.printJSON(map[string]any{"emoji": names, "symbols": symbols, "decimals": decimals})
	} else {
		fmt.Fprintf(ui.c.env.Stderr, "\n  %s\n  %s\n  or the numbers %s\n\n", strings.Join(symbols, "  "), strings.Join(names, ", "), strings.Trim(fmt.Sprint(decimals), "[]"))
	}
	return ui.decide(ctx, "Does the other device show the same? [yes/no] ")
}

// decide asks until there is a yes or a no, or nobody to answer.
func (ui *verifyUI) decide(ctx context.Context, prompt string) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ui.done, cancel)()
	for {
		answer, err := ui.c.ask(ctx, prompt)
		if err != nil {
			return false, err
		}
		switch strings.ToLower(strings.TrimSpace(answer)) {
		case "y", "yes":
			return true, nil
		case "n", "no":
			return false, nil
		}
		ui.c.notef("answer yes or no")
	}
}

func (ui *verifyUI) Ended(_ context.Context, _ id.UserID, err error) {
	select {
	case ui.ended <- err:
	default: // one is enough
	}
}

// ask asks a question.
func (c *call) ask(ctx context.Context, prompt string) (string, error) {
	if c.env.ReadLine == nil {
		return "", failf(ExitUsage, "run this verb on a terminal", "there is nobody to ask")
	}
	return c.env.ReadLine(ctx, prompt)
}

// parseUser reads a user id.
func parseUser(s string) (id.UserID, error) {
	user := id.UserID(s)
	if _, _, err := user.ParseAndValidateRelaxed(); err != nil {
		return "", usagef("%q is no user id (@name:server)", clean(s))
	}
	return user, nil
}
