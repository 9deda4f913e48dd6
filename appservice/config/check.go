package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/rs/zerolog"
)

// Ungenerated is the value of tokens that `setup` and `-g` replace.
const Ungenerated = "This value is generated when generating the registration"

var (
	localpartPattern  = regexp.MustCompile(`^[a-z0-9._=/+-]{1,200}$`)
	serverNamePattern = regexp.MustCompile(`^(?:[A-Za-z0-9.-]{1,230}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?$`)
	deviceIDPattern   = regexp.MustCompile(`^[A-Za-z0-9._~-]{1,64}$`)
	postgresPattern   = regexp.MustCompile(`(?i)^\s*postgres(?:ql)?://|(?:^|\s)(?:host|hostaddr|dbname|user|password)\s*=`)
	schemePattern     = regexp.MustCompile(`^\s*[A-Za-z]+:/`)
	portPattern       = regexp.MustCompile(`(?:^|\])[^\]]*:[0-9]*$`) // after a name, or an address in brackets
)

// check refuses values that cannot work. where makes an error for a key.
func (c *Config) check(where func(key, text string) error) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, where(key, fmt.Sprintf(format, args...)))
	}
	if why := checkURL(c.Homeserver.Address, true); why != "" {
		bad("homeserver.address", "%s", why)
	}
	switch {
	case c.Homeserver.Domain == "example.org":
		bad("homeserver.domain", "is still the example's; set it to your homeserver's server name")
	case !serverNamePattern.MatchString(c.Homeserver.Domain):
		bad("homeserver.domain", "must be a server name such as example.org")
	}
	switch c.Homeserver.Software {
	case "auto", "synapse", "dendrite":
	default:
		bad("homeserver.software", "must be synapse, dendrite or auto")
	}
	if why := checkURL(c.AppService.Address, false); why != "" {
		bad("appservice.address", "%s", why)
	}
	if c.AppService.Hostname == "" {
		bad("appservice.hostname", "must not be empty; use 127.0.0.1 for this machine only")
	}
	if c.AppService.Port == 0 && !strings.HasPrefix(c.AppService.Hostname, "/") {
		bad("appservice.port", "must be a number from 1 to 65535")
	}
	if c.AppService.ID == "" || len(c.AppService.ID) > 255 {
		bad("appservice.id", "must be 1 to 255 bytes long")
	}
	if !localpartPattern.MatchString(c.AppService.Bot.Username) {
		bad("appservice.bot.username", "must be the part of a user id before the colon, without the @: lower-case letters, digits and ._=/+-")
	}
	if !deviceIDPattern.MatchString(c.AppService.Bot.DeviceID) {
		bad("appservice.bot.device_id", "must be 1 to 64 letters, digits or ._~-")
	}
	for _, who := range c.AppService.Admins {
		if _, server, err := id.UserID(who).Parse(); err != nil || server != c.Homeserver.Domain {
			bad("appservice.admins", "%q is no user id of this server", who)
		}
	}
	for key, token := range map[string]string{"appservice.as_token": c.AppService.ASToken, "appservice.hs_token": c.AppService.HSToken} {
		switch {
		case token == "" || token == Ungenerated:
			bad(key, "is not generated yet; run `matrix-mls setup` or `matrix-mls -g`")
		case len(token) < 16:
			bad(key, "is too short to be a secret")
		case strings.ContainsAny(token, " \t\r\n"):
			bad(key, "must not contain spaces")
		}
	}
	if c.AppService.ASToken != "" && c.AppService.ASToken != Ungenerated && c.AppService.ASToken == c.AppService.HSToken {
		bad("appservice.hs_token", "must differ from as_token")
	}
	switch c.Database.Type {
	case "sqlite3", "postgres":
	default:
		bad("database.type", "must be sqlite3 or postgres")
	}
	switch uri := c.Database.URI; {
	case uri == "":
		bad("database.uri", "must not be empty")
	case c.Database.Type == "sqlite3" && postgresPattern.MatchString(uri):
		bad("database.type", "is sqlite3, but database.uri is a PostgreSQL address: set it to postgres")
	case c.Database.Type == "postgres":
		if why := checkPostgres(uri); why != "" {
			bad("database.uri", "%s", why)
		}
	}
	if c.Database.MaxOpenConns < 0 {
		bad("database.max_open_conns", "must not be negative")
	}
	for _, who := range c.Rooms.InviteFrom {
		if who == "*" || serverNamePattern.MatchString(who) {
			continue
		}
		if _, _, err := id.UserID(who).Parse(); err != nil {
			bad("rooms.invite_from", "%q is neither *, a server name nor a user id", who)
		}
	}
	for key, v := range map[string][3]int64{
		"rooms.maximum":                      {int64(c.Rooms.Maximum), 1, 1 << 20},
		"rooms.snapshot_commits":             {int64(c.Rooms.SnapshotCommits), 1, 10_000},
		"rooms.snapshot_bytes":               {c.Rooms.SnapshotBytes, 1 << 10, 1 << 30},
		"limits.transaction_bytes":           {c.Limits.TransactionBytes, 1 << 20, 1 << 30},
		"limits.media_bytes":                 {c.Limits.MediaBytes, 1 << 16, 1 << 30},
		"limits.leaves":                      {int64(c.Limits.Leaves), 2, 1 << 20},
		"limits.commit_proposals":            {int64(c.Limits.CommitProposals), 1, 1 << 16},
		"limits.cached_proposals_per_sender": {int64(c.Limits.CachedProposalsPerSender), 1, 1 << 16},
		"limits.cached_proposals_per_epoch":  {int64(c.Limits.CachedProposalsPerEpoch), 1, 1 << 16},
		"limits.waiting_per_room":            {int64(c.Limits.WaitingPerRoom), 1, 1 << 16},
		"limits.waiting_total":               {int64(c.Limits.WaitingTotal), 1, 1 << 20},
		"outbox.parallel":                    {int64(c.Outbox.Parallel), 1, 64},
		"retention.refusals":                 {int64(c.Retention.Refusals), 0, 1 << 24},
	} {
		if v[0] < v[1] || v[0] > v[2] {
			bad(key, "must be from %d to %d", v[1], v[2])
		}
	}
	const year = 366 * 24 * time.Hour
	for key, v := range map[string][3]time.Duration{
		"homeserver.request_timeout": {c.Homeserver.RequestTimeout.D(), time.Second, time.Hour},
		"rooms.gap_check":            {c.Rooms.GapCheck.D(), time.Second, 24 * time.Hour},
		"rooms.inclusion_wait":       {c.Rooms.InclusionWait.D(), time.Second, time.Hour},
		"limits.waiting_time":        {c.Limits.WaitingTime.D(), time.Second, 24 * time.Hour},
		"outbox.backoff":             {c.Outbox.Backoff.D(), 10 * time.Millisecond, time.Minute},
		"outbox.backoff_maximum":     {c.Outbox.BackoffMaximum.D(), c.Outbox.Backoff.D(), time.Hour},
		"retention.raw_events":       {c.Retention.RawEvents.D(), time.Minute, year},
		"retention.event_ids":        {c.Retention.EventIDs.D(), c.Retention.RawEvents.D(), 10 * year},
		"retention.sent":             {c.Retention.Sent.D(), time.Minute, year},
	} {
		if v[0] < v[1] || v[0] > v[2] {
			bad(key, "must be from %v to %v", v[1], v[2])
		}
	}
	if c.Metrics.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Metrics.Listen); err != nil {
			bad("metrics.listen", "must be host:port or empty")
		}
	}
	switch token := c.Admin.Token; {
	case token == "": // no pages
	case len(token) < 16:
		bad("admin.token", "is too short to be a secret; `openssl rand -hex 24` makes one")
	case strings.ContainsAny(token, " \t\r\n"):
		bad("admin.token", "must not contain spaces")
	case token == c.AppService.ASToken || token == c.AppService.HSToken:
		bad("admin.token", "must differ from as_token and hs_token")
	}
	if len(c.Logging.Writers) == 0 {
		bad("logging.writers", "must name at least one writer")
	}
	sortErrors(errs)
	return errs
}

// Level is the lowest level that is logged.
func (c *Config) Level() zerolog.Level {
	if c.Logging.MinLevel == nil {
		return zerolog.InfoLevel
	}
	return *c.Logging.MinLevel
}

// AcceptsInviteFrom tells whether the bot accepts this user's invitation.
func (c *Config) AcceptsInviteFrom(user id.UserID) bool {
	_, server, err := user.Parse()
	if err != nil {
		return false
	}
	for _, who := range c.Rooms.InviteFrom {
		if who == "*" || who == string(user) || who == server {
			return true
		}
	}
	return false
}

// BotUserID is the bot's user id.
func (c *Config) BotUserID() id.UserID {
	return id.NewUserID(c.AppService.Bot.Username, c.Homeserver.Domain)
}

func checkURL(address string, unixAllowed bool) string {
	if unixAllowed && strings.HasPrefix(address, "unix:/") {
		return ""
	}
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return "is no URL"
	case u.Scheme != "http" && u.Scheme != "https":
		return "must begin with http:// or https://"
	case u.Host == "":
		return "names no host"
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "must be only scheme, host and port"
	}
	return ""
}

// checkPostgres refuses addresses that the driver would read otherwise than PostgreSQL's own programs. What
// it says does not repeat the address, which may hold a password.
func checkPostgres(uri string) string {
	rest, ok := strings.CutPrefix(uri, "postgres://")
	if !ok {
		rest, ok = strings.CutPrefix(uri, "postgresql://")
	}
	if !ok {
		if strings.Contains(uri, "=") && !schemePattern.MatchString(uri) {
			return "" // host=… dbname=…
		}
		return "is no PostgreSQL address such as postgres://user:password@host/database"
	}
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		rest = rest[:end]
	}
	hosts := strings.Split(rest[strings.LastIndex(rest, "@")+1:], ",")
	for _, host := range hosts[:len(hosts)-1] { // one port after the last is that of all
		if portPattern.MatchString(host) {
			return "names a port after each of several hosts; name host1,host2/db?port=5432,5433"
		}
	}
	return ""
}

func sortErrors(errs []error) {
	slices.SortStableFunc(errs, func(a, b error) int {
		var x, y *KeyError
		if errors.As(a, &x) && errors.As(b, &y) && x.Line != y.Line {
			return x.Line - y.Line
		}
		return strings.Compare(a.Error(), b.Error())
	})
}
