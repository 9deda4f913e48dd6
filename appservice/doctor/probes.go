package doctor

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice"
	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/setup"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// probes in the order in which one rests on another.
var probes = []probe{
	{"config", "configuration", nil, probeConfig},
	{"registration", "registration file", []string{"config"}, probeRegistration},
	{"namespaces", "names that the registration claims", []string{"config"}, probeNamespaces},
	{"database", "database", []string{"config"}, probeDatabase},
	{"disk", "room on the database's disk", []string{"database"}, probeDisk},
	{"homeserver", "homeserver's client API", []string{"config"}, probeHomeserver},
	{"clock", "clock against the homeserver's", []string{"homeserver"}, probeClock},
	{"token", "homeserver accepts the module's token", []string{"homeserver"}, probeToken},
	{"module", "module is running", []string{"config"}, probeModule},
	{"link", "homeserver reaches the module", []string{"token"}, probeLink},
	{"receipt-key", "receipt key", []string{"database"}, probeReceiptKey},
	{"media", "media upload", []string{"token"}, probeMedia},
	{"sending", "event size and rate limit", []string{"token", "database"}, probeSending},
	{"queues", "inbox and outbox", []string{"database"}, probeQueues},
	{"owner", "process that works on the database", []string{"database"}, probeOwner},
	{"rooms", "rooms served", []string{"database"}, probeRooms},
	{"sequencers", "rooms' sequencers", []string{"database"}, probeSequencers},
	{"restored", "rooms compared since a restore", []string{"database"}, probeRestored},
	{"refusals", "what was refused in the last hour", []string{"database"}, probeRefusals},
	{"metrics", "metrics", []string{"config"}, probeMetrics},
}

func probeConfig(_ context.Context, d *doctor, r *Result) {
	loaded, err := config.Load(d.opts.Config, config.Options{NoUpdate: true, Environ: d.opts.Environ})
	switch {
	case errors.Is(err, os.ErrNotExist):
		r.fail("there is no "+d.opts.Config, "the module was not set up, or doctor looks in another folder",
			"run `matrix-mls setup --homeserver-config PATH`, or name the file with -c")
		return
	case err != nil:
		r.fail(strings.ReplaceAll(err.Error(), "\n", "; "), "a key is unknown or a value cannot work",
			"correct the line; config.example.yaml says what each key does")
		return
	}
	d.cfg = loaded.Config
	r.ok("%s, homeserver %s", d.opts.Config, d.cfg.Homeserver.Domain)
	if info, err := os.Stat(d.opts.Config); err == nil && info.Mode().Perm()&0o004 != 0 {
		r.warn(d.opts.Config+" can be read by everyone on this machine", "it holds the tokens shared with the homeserver",
			"chmod 640 "+d.opts.Config)
	}
}

func probeRegistration(_ context.Context, d *doctor, r *Result) {
	reg, err := setup.LoadRegistration(d.opts.Registration)
	switch {
	case err != nil:
		r.warn(err.Error(), "the module's account may not read the file; the homeserver's must", "run doctor as root, or name the file with -r")
		return
	case reg == nil:
		r.warn("there is no "+d.opts.Registration, "it lies elsewhere, or was not generated",
			"name it with -r, or run `matrix-mls -g -c "+d.opts.Config+" -r "+d.opts.Registration+"`")
		return
	}
	d.reg = reg
	if diffs := setup.Compare(reg, d.cfg); len(diffs) > 0 {
		var words []string
		for _, diff := range diffs {
			words = append(words, diff.String())
		}
		r.fail(strings.Join(words, "; "), "the configuration changed after the registration was written, or the other way round",
			"run `matrix-mls -g -c "+d.opts.Config+" -r "+d.opts.Registration+"` and restart the homeserver")
		return
	}
	r.ok("%s matches the configuration, rate_limited: false", d.opts.Registration)
}

func probeDatabase(ctx context.Context, d *doctor, r *Result) {
	db := d.cfg.Database
	if db.Type == "sqlite3" {
		// Opening would make the file; doctor changes nothing.
		path, _, _ := strings.Cut(strings.TrimPrefix(db.URI, "file:"), "?")
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			r.fail("there is no "+path, "the module was not set up here, its database was lost, or the path is relative to another folder",
				"run `matrix-mls setup`; read a backup back if there was a database (`matrix-mls restore FILE`); or write the full path into database.uri")
			return
		}
	}
	st, err := store.Open(ctx, store.Config{Type: db.Type, URI: db.URI, MaxOpenConns: db.MaxOpenConns}, d.now)
	if err != nil {
		next := "see that the database runs, that its user may log in, and that database.uri is right"
		if db.Type == "sqlite3" {
			next = "see that the module's account may read and write the file and its folder"
		}
		r.fail(err.Error(), "the database cannot be opened", next)
		return
	}
	d.st = st
	version, err := st.Version(ctx)
	switch {
	case err != nil:
		r.fail(err.Error(), "the database cannot be read", "see that it is this module's database and not damaged")
	case version == 0:
		r.fail("the database is empty", "the module never started with it", "run `matrix-mls setup` or start the module once")
	case version > store.SchemaVersion():
		r.fail(fmt.Sprintf("schema version %d, this program knows %d", version, store.SchemaVersion()),
			"a newer matrix-mls used this database", "install that version again")
	case version < store.SchemaVersion():
		r.warn(fmt.Sprintf("schema version %d, this program writes %d", version, store.SchemaVersion()),
			"the module was not started since it was upgraded", "start the module; it upgrades the schema by itself")
	}
	if r.Status != OK {
		if r.Status == Fail {
			_ = st.Close()
			d.st = nil
		}
		return
	}
	if st.Dialect() == "postgres" {
		server, err := st.Setting(ctx, "server_version")
		sync, syncErr := st.Setting(ctx, "synchronous_commit")
		if err := errors.Join(err, syncErr); err != nil {
			r.fail(err.Error(), "the database cannot be asked for its settings", "see its log")
			return
		}
		if sync == "off" {
			r.warn("PostgreSQL "+server+" with synchronous_commit off", "a crash of the database can take back a vote that was already sent",
				"set synchronous_commit to on for this database")
			return
		}
		r.ok("PostgreSQL %s, schema version %d", server, version)
		return
	}
	mode, err := st.Setting(ctx, "journal_mode")
	if err != nil {
		r.fail(err.Error(), "the database cannot be asked for its settings", "see that the file is not damaged")
		return
	}
	info, err := os.Stat(st.Path())
	switch {
	case mode != "wal":
		r.warn("journal_mode is "+mode+", not wal", "the file lies on a file system without shared memory, such as a network share",
			"move the database to a local disk")
	case err == nil && info.Mode().Perm()&0o077 != 0:
		r.warn(st.Path()+" can be read by others", "it holds the module's keys", "chmod 600 "+st.Path())
	default:
		r.ok("SQLite %s, write-ahead log, schema version %d", st.Path(), version)
	}
}

func probeHomeserver(ctx context.Context, d *doctor, r *Result) {
	reg := setup.Registration(d.cfg)
	hs, err := homeserver.New(homeserver.Options{
		Address: d.cfg.Homeserver.Address, Domain: d.cfg.Homeserver.Domain, Registration: reg,
		Software: homeserver.Software(d.cfg.Homeserver.Software), Timeout: 15 * time.Second,
	})
	if err != nil {
		r.fail(err.Error(), "homeserver.address cannot be used", "correct it")
		return
	}
	start := d.now()
	d.versions, err = hs.Versions(ctx)
	d.versionsAt = d.now()
	d.roundTrip = d.versionsAt.Sub(start)
	var untrusted *homeserver.CertificateError
	if errors.As(err, &untrusted) {
		r.fail(untrusted.Err.Error(), untrusted.What, untrusted.Next)
		return
	}
	if err != nil {
		r.fail(err.Error(), "the homeserver does not run, or homeserver.address is not its client API",
			"try `curl "+d.cfg.Homeserver.Address+"/_matrix/client/versions`")
		return
	}
	d.hs = hs
	name := d.versions.Server
	if name == "" {
		name = d.cfg.Homeserver.Software
	}
	newest := "no version"
	if n := len(d.versions.Spec); n > 0 {
		newest = d.versions.Spec[n-1]
	}
	r.ok("%s at %s speaks Matrix up to %s", name, d.cfg.Homeserver.Address, newest)
	if !slices.ContainsFunc(d.versions.Spec, func(v string) bool { return strings.HasPrefix(v, "v1.") }) {
		r.fail("the homeserver names no Matrix version 1.x", "it is too old", "upgrade the homeserver")
	}
}

// maxSkew is the difference between two clocks that is worth a word. No rule
// rests on clocks; certificates, tokens and people do.
const maxSkew = 30 * time.Second

func probeClock(_ context.Context, d *doctor, r *Result) {
	if d.versions.Date.IsZero() {
		r.Status, r.Detail = Skip, "the homeserver sends no Date"
		return
	}
	// The Date header has whole seconds and was written during the round trip.
	skew := d.versionsAt.Sub(d.versions.Date) - d.roundTrip/2 - 500*time.Millisecond
	if skew.Abs() > maxSkew {
		word := "ahead of"
		if skew < 0 {
			word = "behind"
		}
		r.warn(fmt.Sprintf("this machine is %v %s the homeserver", skew.Abs().Round(time.Second), word), "one of the two clocks is wrong",
			"let both machines keep time by NTP")
		return
	}
	r.ok("differs by less than %v", max(skew.Abs().Round(time.Second), time.Second))
}

func probeToken(ctx context.Context, d *doctor, r *Result) {
	user, _, err := d.hs.Whoami(ctx)
	var he *homeserver.Error
	switch {
	case errors.As(err, &he) && errors.Is(err, homeserver.ErrForbidden) && strings.Contains(he.Text, "cannot masquerade"):
		r.fail(err.Error(), "the homeserver has loaded an older registration, which does not name this bot",
			"restart the homeserver; if the probe `registration` failed, run `matrix-mls -g` before")
	case errors.Is(err, homeserver.ErrUnauthorized):
		r.fail(err.Error(), "the homeserver has not loaded the registration, or one with another as_token",
			"see that the homeserver's configuration names the registration and that the homeserver was restarted since")
	case err != nil && !homeserver.IsTemporary(err):
		r.fail(err.Error(), "the bot's account does not exist yet or is deactivated", "start the module once; it makes the account")
	case err != nil:
		r.fail(err.Error(), "the homeserver failed", "see its log")
	case user != d.cfg.BotUserID():
		r.fail(fmt.Sprintf("the token belongs to %s, not to %s", user, d.cfg.BotUserID()), "the configuration and the registration are of two installations",
			"run `matrix-mls -g` and restart the homeserver")
	default:
		r.ok("as %s", user)
	}
}

func probeModule(ctx context.Context, d *doctor, r *Result) {
	address := d.cfg.AppService.Address
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/_matrix/mau/ready", nil)
	if err != nil {
		r.fail(err.Error(), "appservice.address is no URL", "correct it")
		return
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.warn("nothing answers on "+address, "the module does not run, or listens elsewhere",
			"start it (`systemctl start matrix-mls`), or compare appservice.address with appservice.hostname and port")
		return
	}
	defer resp.Body.Close()
	d.moduleLives = true
	var body appservice.Readiness
	decodeErr := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 64<<10)).Decode(&body)
	d.standsBy = decodeErr == nil && resp.StatusCode == http.StatusServiceUnavailable && body.Reason == appservice.ReasonStandby
	switch {
	case resp.StatusCode == http.StatusOK:
		r.ok("and ready")
	case decodeErr != nil || body.Reason == "":
		r.fail(fmt.Sprintf("%s answers %s", address, resp.Status), "another program listens there", "give the module a port of its own (appservice.port), then `matrix-mls -g`")
	case body.Away != 0:
		r.warn("running but not ready: "+body.Reason, "the homeserver is down, or homeserver.address does not lead to it from where the module runs",
			"start the homeserver; the module goes on by itself when it answers, and need not be restarted")
	default:
		r.warn("running but not ready: "+body.Reason, "", "see the other probes and the module's log")
	}
}

// What is wrong where appservice.address leads to a process that stands by, and what to do.
const (
	causeStandsBy = "the process at appservice.address stands by"
	nextStandsBy  = "what stands in front of the two has to ask /_matrix/mau/active which of them works; set appservice.address to it"
)

func probeLink(ctx context.Context, d *doctor, r *Result) {
	took, err := d.hs.Ping(ctx, nonce("doctor"))
	var he *homeserver.Error
	switch {
	case err == nil:
		r.ok("in %v", took.Round(time.Millisecond))
	case d.standsBy && (errors.Is(err, homeserver.ErrNotFound) || errors.As(err, &he) && he.Code == "M_BAD_STATUS"):
		r.fail(err.Error(), causeStandsBy, nextStandsBy)
	case errors.Is(err, homeserver.ErrNotFound):
		probeCallBack(ctx, d, r)
	case !d.moduleLives:
		r.fail("the homeserver cannot reach "+d.cfg.AppService.Address, "the module does not run", "start it and run doctor again")
	case errors.As(err, &he) && he.Code == "M_BAD_STATUS" && strings.Contains(he.Text, "503"):
		r.fail(err.Error(), causeStandsBy+", or what stands in front of it finds none that works", nextStandsBy)
	case errors.As(err, &he) && he.Code == "M_BAD_STATUS":
		r.fail(err.Error(), "the module refuses the homeserver's hs_token: the homeserver loaded an older registration",
			"restart the homeserver")
	case errors.Is(err, homeserver.ErrForbidden):
		r.fail(err.Error(), "the homeserver knows the token under another registration id",
			"run `matrix-mls -g` and restart the homeserver")
	default:
		r.fail(err.Error(), "the registration's url is not reachable from the homeserver: another machine, a container, a firewall",
			"set appservice.address to what the homeserver can reach, `matrix-mls -g`, restart the homeserver")
	}
}

// callBackTime is how long a homeserver has to push an event to the module: one
// that could not do so just before waits for seconds until it tries again.
const callBackTime = 30 * time.Second

// probeCallBack tests the link where the homeserver has no ping: what the bot
// sends into its own room must come back to the module.
func probeCallBack(ctx context.Context, d *doctor, r *Result) {
	if !d.moduleLives || d.st == nil {
		r.warn("the homeserver has no ping, and the module or its database does not answer", "", "start the module and run doctor again")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callBackTime)
	defer cancel()
	before, err := lastCall(ctx, d)
	if err == nil {
		_, err = appservice.SendProbe(ctx, d.hs, d.st, nonce("doctor"), 1)
	}
	start := d.now()
	for err == nil && ctx.Err() == nil {
		var last int64
		if last, err = lastCall(ctx, d); err == nil && last > before {
			r.ok("in less than %v", max(d.now().Sub(start).Round(100*time.Millisecond), 100*time.Millisecond))
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	if err != nil && ctx.Err() == nil {
		r.fail(err.Error(), "the bot cannot send, or the module stopped", "see the probes `sending` and `module`")
		return
	}
	r.fail("the homeserver took an event and did not push it to the module",
		"the registration's url is not reachable from the homeserver, or it waits after earlier failures (up to a minute)",
		"see that the homeserver reaches "+d.cfg.AppService.Address+", then restart the homeserver")
}

func lastCall(ctx context.Context, d *doctor) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.cfg.AppService.Address+"/_matrix/mau/ready", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var body appservice.Readiness
	err = json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 64<<10)).Decode(&body)
	return body.LastCall, err
}

func probeReceiptKey(ctx context.Context, d *doctor, r *Result) {
	seed, err := d.st.Key(ctx, appservice.KeyReceipt)
	switch {
	case errors.Is(err, store.ErrNotFound):
		r.fail("the database holds no receipt key", "the module was not set up with this database, or the database was lost",
			"run `matrix-mls setup` again; an admin of each room that knew another key then runs `mls-proxy repair ROOM`")
		return
	case err != nil:
		r.fail(err.Error(), "the database cannot be read", "see its log")
		return
	case len(seed) != ed25519.SeedSize:
		r.fail(fmt.Sprintf("the receipt key has %d bytes", len(seed)), "the database is damaged", "restore a backup")
		return
	}
	own := [][]byte{ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)}
	for n := 2; ; n++ { // for rooms in which those before are retired
		seed, err := d.st.Key(ctx, fmt.Sprintf("%s/%d", appservice.KeyReceipt, n))
		if err != nil || len(seed) != ed25519.SeedSize {
			break
		}
		own = append(own, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
	}
	isOwn := func(key []byte) bool {
		return slices.ContainsFunc(own, func(o []byte) bool { return bytes.Equal(o, key) })
	}
	known, err := d.st.KnownRooms(ctx)
	if err != nil {
		r.fail(err.Error(), "the database cannot be read", "see its log")
		return
	}
	if d.hs == nil {
		r.ok("present; rooms not compared, the homeserver does not answer")
		return
	}
	same, other := 0, 0
	for room, status := range known {
		if status != store.RoomServing && status != store.RoomJoined || ctx.Err() != nil {
			continue
		}
		content, err := d.hs.StateContent(ctx, room, rooms.TypeHead, string(d.hs.UserID()))
		if err != nil {
			continue // no head in this room yet
		}
		var head struct {
			ReceiptKey string `json:"receipt_key"`
			GroupInfo  string `json:"group_info"`
		}
		if json.Unmarshal(content, &head) != nil || head.ReceiptKey == "" {
			continue
		}
		raw, err := base64.RawStdEncoding.DecodeString(head.ReceiptKey)
		listed := listedKey(head.GroupInfo, string(d.hs.UserID()))
		if err == nil && isOwn(raw) && (listed == nil || bytes.Equal(listed, raw)) {
			same++
		} else {
			other++
		}
	}
	if other > 0 {
		r.fail(fmt.Sprintf("%s another receipt key than the database holds, %d this one", counted(other, "room names", "rooms name"), same),
			"the database is not the one these rooms knew: it was lost, replaced, or two modules run for one homeserver",
			"if two run, stop one; else an admin of each room runs `mls-proxy repair ROOM`, which moves it to the new key")
		return
	}
	r.ok("present, named by %s", counted(same, "room", "rooms"))
}

// listedKey returns the receipt key under which the group of a GroupInfo lists
// a module's bot, nil if it does not.
func listedKey(groupInfo, bot string) []byte {
	raw, err := base64.RawStdEncoding.DecodeString(groupInfo)
	if err != nil {
		return nil
	}
	m, err := mls.ParseMessage(raw)
	if err != nil || m.GroupInfo() == nil {
		return nil
	}
	for _, ext := range m.GroupInfo().GroupExtensions() {
		if ext.Type != rooms.ExtensionPolicy {
			continue
		}
		policy, err := rooms.DecodePolicy(ext.Data)
		if err != nil {
			return nil
		}
		for _, seq := range policy.Sequencers {
			if seq.User == bot {
				return seq.ReceiptKey
			}
		}
	}
	return nil
}

func probeMedia(ctx context.Context, d *doctor, r *Result) {
	want := d.cfg.Limits.MediaBytes
	limit, limitErr := d.hs.UploadLimit(ctx)
	// Random bytes, so that no earlier upload answers for this one.
	data := make([]byte, 32<<10)
	if _, err := rand.Read(data); err != nil {
		r.fail(err.Error(), "this machine gives no random numbers", "see that /dev/urandom works")
		return
	}
	uri, err := d.hs.Upload(ctx, data, "application/octet-stream")
	if err != nil {
		r.fail(err.Error(), "the homeserver refuses uploads of the module, or its media store is full or off",
			"see the homeserver's media settings and disk")
		return
	}
	got, err := d.hs.Download(ctx, uri, int64(len(data)))
	switch {
	case err != nil:
		r.fail(err.Error(), "what was uploaded does not come back", "see the homeserver's media store")
	case !bytes.Equal(got, data):
		r.fail("what was uploaded comes back changed", "a proxy or filter rewrites media", "take the module's address past it")
	case limitErr != nil || limit == 0:
		r.ok("works; the homeserver names no size limit")
	case limit < 1<<20:
		r.fail(fmt.Sprintf("works up to %d bytes", limit), "the homeserver's upload limit is below 1 MiB: trees of large groups do not fit",
			"raise max_upload_size (Synapse) or max_file_size_bytes (Dendrite) to 16 MiB or more")
	case limit < want:
		r.ok("works up to %d MiB; the largest groups may need %d", limit>>20, want>>20)
	default:
		r.ok("works up to %d MiB", limit>>20)
	}
}

// burst is more events than a rate limited sender may send at once by the
// defaults of both homeservers (Synapse 10, Dendrite 5).
const burst = 12

func probeSending(ctx context.Context, d *doctor, r *Result) {
	var err error
	for range burst {
		if _, err = appservice.SendProbe(ctx, d.hs, d.st, nonce("doctor"), 1); err != nil {
			break
		}
	}
	if err == nil {
		_, err = appservice.SendProbe(ctx, d.hs, d.st, nonce("doctor"), rooms.MaxEventSize-1000)
	}
	switch {
	case err == nil:
		r.ok("%d events at once and one of %d bytes", burst, rooms.MaxEventSize)
	case errors.Is(err, homeserver.ErrRateLimited):
		r.fail("the homeserver limits how much the module sends", "the registration that the homeserver loaded lacks `rate_limited: false`",
			"run `matrix-mls -g` and restart the homeserver")
	case errors.Is(err, homeserver.ErrTooLarge):
		r.fail("the homeserver refuses an event of "+fmt.Sprint(rooms.MaxEventSize)+" bytes", "a proxy before the client API bounds requests more than Matrix does",
			"let homeserver.address go past the proxy, or raise its limit to 1 MiB or more")
	default:
		r.fail(err.Error(), "the bot cannot send", "see the homeserver's log")
	}
}

// stuck is how long something may wait before it counts as stuck.
const stuck = 5 * time.Minute

func probeQueues(ctx context.Context, d *doctor, r *Result) {
	in, inOldest, err := d.st.CountInbox(ctx, store.InboxNew)
	waiting, _, err2 := d.st.CountInbox(ctx, store.InboxWaiting)
	out, outOldest, attempts, err3 := d.st.CountOutbox(ctx, store.OutboxWaiting)
	failed, _, _, err4 := d.st.CountOutbox(ctx, store.OutboxRefused)
	if err := errors.Join(err, err2, err3, err4); err != nil {
		r.fail(err.Error(), "the database cannot be read", "see its log")
		return
	}
	now := d.now()
	switch {
	case in > 0 && now.Sub(inOldest) > stuck:
		r.fail(fmt.Sprintf("%s not dealt with, the oldest %v ago", counted(in, "event came in and was", "events came in and were"), now.Sub(inOldest).Round(time.Second)),
			"the module does not run or cannot work", "see the probe `module` and the module's log")
	case out > 0 && now.Sub(outOldest) > stuck:
		r.fail(fmt.Sprintf("%s to be sent, the oldest for %v, tried up to %s", counted(out, "event waits", "events wait"), now.Sub(outOldest).Round(time.Second), counted(attempts, "time", "times")),
			"the homeserver does not take them", "see the probes `token` and `sending` and the module's log")
	case failed > 0:
		r.warn("the homeserver refused "+counted(failed, "event", "events")+" for good", "the bot was kicked or lacks the power in some room",
			"see the module's log; give the bot the power of its room's P.* events")
	default:
		r.ok("%d new, %d waiting for something, %d to send", in, waiting, out)
	}
}

func nonce(prefix string) string {
	var b [9]byte
	if _, err := rand.Read(b[:]); err != nil {
		return prefix
	}
	return prefix + "-" + hex.EncodeToString(b[:])
}
