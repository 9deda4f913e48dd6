package terminal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// runSuite shows who can use which cipher suite, or moves a room to another.
func runSuite(ctx context.Context, c *call) error {
	check := c.flags.Bool("check", false, "only look whether all can follow; the room stays as it is")
	drop := c.flags.Bool("drop", false, "leave devices behind that cannot follow; they come back once they can")
	weaker := c.flags.Bool("weaker", false, "allow a suite that is weaker than the present one")
	var suite mls.CipherSuite
	if err := c.parse(ctx, 1, 2, func() error {
		if len(c.args) < 2 {
			if *check || *drop || *weaker {
				return usagef("suite ROOM without a suite only shows; --check, --drop and --weaker need one")
			}
			return nil
		}
		if *check && (*drop || *weaker) {
			return usagef("--check changes nothing, so --drop and --weaker do not go with it")
		}
		var err error
		if suite, err = rooms.ParseSuite(c.args[1]); err != nil {
			return unknownSuite(err)
		}
		return nil
	}); err != nil {
		return err
	}
	return c.inRoom(ctx, func(cli *client.Client, r client.RoomInfo) error {
		switch {
		case len(c.args) < 2:
			return c.showSuites(ctx, cli, r)
		case *check:
			return c.checkSuite(ctx, cli, r, suite)
		}
		return c.changeSuite(ctx, cli, r, suite, client.SuiteOptions{Drop: *drop, Weaker: *weaker})
	})
}

// unknownSuite refuses a name that is no suite's.
func unknownSuite(err error) error {
	var refusal *rooms.Refusal
	if errors.As(err, &refusal) {
		var names []string
		for _, s := range mls.SupportedCipherSuites() { // those that this program offers
			names = append(names, fmt.Sprintf("%s (%s)", s, suiteNumber(s)))
		}
		return failf(ExitUsage, "name one of "+strings.Join(names, ", "), "%s %w", clean(refusal.What), refusal.Err)
	}
	return &failure{code: ExitUsage, err: err}
}

// suiteUse says how many of a group's devices publish a key for a suite.
type suiteUse struct {
	suite   mls.CipherSuite
	able    int
	lacking []string
	now     bool // in use
	weaker  bool
}

// showSuites lists the suites with the devices that can use them, by the keys that they publish.
func (c *call) showSuites(ctx context.Context, cli *client.Client, r client.RoomInfo) error {
	members, err := cli.Members(ctx, r.ID)
	if err != nil {
		return err
	}
	var users []id.UserID
	devices := 0
	for _, m := range members {
		if m.Device == "" {
			continue
		}
		devices++
		if !slices.Contains(users, m.User) {
			users = append(users, m.User)
		}
	}
	if devices == 0 {
		return fmt.Errorf("%w (%s)", client.ErrNoGroup, title(r))
	}
	lists, err := c.s.ident.DevicesOf(ctx, users)
	if err != nil {
		return err
	}
	var uses []*suiteUse
	for _, suite := range c.s.ident.Suites() {
		uses = append(uses, &suiteUse{suite: suite, now: suite == r.Suite, weaker: rooms.Weaker(r.Suite, suite)})
	}
	if !slices.ContainsFunc(uses, func(u *suiteUse) bool { return u.now }) {
		uses = append(uses, &suiteUse{suite: r.Suite, now: true})
	}
	for _, m := range members {
		if m.Device == "" {
			continue
		}
		var keys map[mls.CipherSuite]mls.SignaturePublicKey
		if list := lists[m.User]; list != nil && list.Devices[m.Device] != nil {
			keys = list.Devices[m.Device].MLSKeys
		}
		for _, u := range uses {
			if _, ok := keys[u.suite]; ok {
				u.able++
			} else {
				u.lacking = append(u.lacking, m.User.String()+" "+m.Device.String())
			}
		}
	}
	if c.json {
		list := []map[string]any{}
		for _, u := range uses {
			list = append(list, map[string]any{
				"suite": u.suite.String(), "number": uint16(u.suite), "in_use": u.now, "weaker": u.weaker, "devices": u.able, "lacking": append([]string{}, u.lacking...),
			})
		}
		return c.printJSON(map[string]any{"room_id": r.ID, "suite": r.Suite.String(), "devices": devices, "suites": list})
	}
	rows := [][]string{{"SUITE", "NAME", "DEVICES", "NOTE"}}
	for _, u := range uses {
		rows = append(rows, []string{suiteNumber(u.suite), u.suite.String(), fmt.Sprintf("%d of %d", u.able, devices), u.note()})
	}
	table(c.env.Stdout, rows)
	return nil
}

func (u *suiteUse) note() string {
	const shown = 3
	var parts []string
	if u.now {
		parts = append(parts, "in use")
	}
	if u.weaker {
		parts = append(parts, "weaker than the one in use")
	}
	if n := len(u.lacking); n > 0 {
		text := "not " + clean(strings.Join(u.lacking[:min(shown, n)], ", "))
		if n > shown {
			text += fmt.Sprintf(" and %d more", n-shown)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

// suiteNumber is how a suite is named in few letters: as the RFC or the draft numbers it.
func suiteNumber(s mls.CipherSuite) string {
	if s.Experimental() {
		return fmt.Sprintf("%#x", uint16(s))
	}
	return fmt.Sprintf("%d", uint16(s))
}

// checkSuite asks who can follow to a suite.
func (c *call) checkSuite(ctx context.Context, cli *client.Client, r client.RoomInfo, suite mls.CipherSuite) error {
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	report, err := cli.CheckSuite(wait, r.ID, suite)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(suiteJSON(report, false))
	}
	c.printReport(report)
	switch err := report.Err(); {
	case err != nil:
		return err
	case report.Weaker:
		c.printf("All can follow. It is weaker than the present one: mls-proxy suite %s %s --weaker moves the room.\n", shellWord(c.args[0]), suiteNumber(suite))
	default:
		c.printf("All can follow: mls-proxy suite %s %s moves the room.\n", shellWord(c.args[0]), suiteNumber(suite))
	}
	return nil
}

// changeSuite moves a room to a suite.
func (c *call) changeSuite(ctx context.Context, cli *client.Client, r client.RoomInfo, suite mls.CipherSuite, o client.SuiteOptions) error {
	wait, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	report, err := cli.ChangeSuite(wait, r.ID, suite, o)
	if report != nil && !c.json {
		c.printReport(report)
	}
	if err != nil {
		if report != nil && report.Weaker && !o.Weaker {
			return &failure{code: ExitRefused, err: err, hint: "if that is meant: the same with --weaker"}
		}
		return err
	}
	if err := c.s.settle(ctx, cli, r.ID); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(suiteJSON(report, true))
	}
	c.printf("%s uses %s now; its epochs count from 1 again.\n", title(r), suite)
	return nil
}

func (c *call) printReport(report *client.SuiteReport) {
	c.printf("from  %s (%s)\nto    %s (%s)\n", report.From, suiteNumber(report.From), report.To, suiteNumber(report.To))
	c.printf("%d of %d devices have a key package of the new suite\n", report.Ready, report.Ready+len(report.Missing))
	if len(report.Missing) > 0 {
		rows := [][]string{{"USER", "DEVICE", "CANNOT FOLLOW BECAUSE"}}
		for _, gap := range report.Missing {
			rows = append(rows, []string{clean(gap.User.String()), clean(gap.Device.String()), clean(gap.Reason)})
		}
		table(c.env.Stdout, rows)
	}
}

func suiteJSON(report *client.SuiteReport, moved bool) map[string]any {
	missing := []map[string]any{}
	for _, gap := range report.Missing {
		missing = append(missing, map[string]any{"user_id": gap.User, "device_id": gap.Device, "reason": gap.Reason})
	}
	return map[string]any{
		"room_id": report.Room, "from": report.From.String(), "to": report.To.String(), "weaker": report.Weaker, "ready": report.Ready,
		"missing": missing, "modules": append([]string{}, report.Modules...), "moved": moved,
	}
}

// suiteName names a suite; none where the one before is not known.
func suiteName(s mls.CipherSuite) string {
	if s == 0 {
		return ""
	}
	return s.String()
}

// suiteChange says what a change of suite was.
func suiteChange(u *client.SuiteChanged) string {
	text := ": " + u.To.String()
	if u.From != 0 {
		text += " after " + u.From.String()
	}
	if u.By != "" {
		text += "; the new group was founded by " + clean(u.By.String())
	}
	return text + "; its epochs count from 1 again"
}
