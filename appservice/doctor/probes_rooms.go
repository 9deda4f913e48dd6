package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// maxRooms bounds the rooms that doctor looks into one by one.
const maxRooms = 2000

// served calls f for the rooms with a group, as the database has them.
func (d *doctor) served(ctx context.Context, f func(row *store.Room, m *federation.Machine)) error {
	for page := 0; page < maxRooms; page += 100 {
		list, err := d.st.ListRooms(ctx, 100, page)
		if err != nil || len(list) == 0 {
			return err
		}
		for _, r := range list {
			if r.Status != store.RoomServing {
				continue
			}
			row, err := d.st.Room(ctx, r.ID)
			if err != nil {
				return err
			}
			if len(row.Machine) == 0 {
				continue
			}
			m, err := federation.Unmarshal(federation.Config{Room: string(r.ID), Verify: rooms.VerifyLeafSignature}, row.Machine)
			if err != nil {
				continue // the probe of the rooms says so
			}
			f(row, m)
		}
	}
	return nil
}

// some names the first few of a list.
func some(list []id.RoomID) string {
	var words []string
	for i, r := range list {
		if i == 3 {
			words = append(words, fmt.Sprintf("and %d more", len(list)-3))
			break
		}
		words = append(words, string(r))
	}
	return strings.Join(words, ", ")
}

func probeOwner(ctx context.Context, d *doctor, r *Result) {
	h, err := d.st.Holder(ctx)
	switch {
	case err != nil:
		r.fail(err.Error(), "the database cannot be read", "see its log")
	case !d.st.Shared():
		r.ok("one process at a time, on this file")
	case h.Process == "":
		r.ok("none at the moment; the next that starts works on it")
	case !h.Connected:
		r.warn("the process that worked last has no connection to the database", "it was killed, or its machine lost the network, and none stands by",
			"start the module; a second one elsewhere would have taken over")
	default:
		r.ok("one process works on it, others that start stand by")
	}
}

func probeRooms(ctx context.Context, d *doctor, r *Result) {
	counts, err := d.st.CountRooms(ctx)
	if err != nil {
		r.fail(err.Error(), "the database cannot be read", "see its log")
		return
	}
	in := counts[store.RoomServing] + counts[store.RoomJoined] + counts[store.RoomInvited]
	var damaged []id.RoomID
	list, err := d.st.ListRooms(ctx, maxRooms, 0)
	if err != nil {
		r.fail(err.Error(), "the database cannot be read", "see its log")
		return
	}
	for _, room := range list {
		if room.Status != store.RoomServing {
			continue
		}
		row, err := d.st.Room(ctx, room.ID)
		if err != nil {
			continue // left meanwhile
		}
		if _, err := federation.Unmarshal(federation.Config{Room: string(room.ID), Verify: rooms.VerifyLeafSignature}, row.Machine); len(row.Machine) > 0 && err != nil {
			damaged = append(damaged, room.ID)
		}
	}
	switch limit := d.cfg.Rooms.Maximum; {
	case len(damaged) > 0:
		r.fail("the state of "+counted(len(damaged), "room", "rooms")+" cannot be read: "+some(damaged), "the database is damaged, or a newer version wrote it",
			"restore a backup; the other rooms go on meanwhile")
	case in >= limit:
		r.fail(fmt.Sprintf("%d rooms, which is the limit: invitations are declined", in), "rooms.maximum is reached", "raise rooms.maximum")
	case in*10 >= limit*9:
		r.warn(fmt.Sprintf("%d of at most %d rooms", in, limit), "rooms.maximum is nearly reached", "raise rooms.maximum")
	default:
		r.ok("%d served, %d joined without a group, %d invitations open", counts[store.RoomServing], counts[store.RoomJoined], counts[store.RoomInvited])
	}
}

func probeSequencers(ctx context.Context, d *doctor, r *Result) {
	var pairs, frozen []id.RoomID
	n := 0
	err := d.served(ctx, func(row *store.Room, m *federation.Machine) {
		n++
		policy, _ := m.PolicyAt(m.Head())
		if len(policy.Sequencers) == 2 {
			pairs = append(pairs, row.ID)
		}
		if m.UsableHead() != m.Head() {
			frozen = append(frozen, row.ID)
		}
	})
	if err != nil {
		r.fail(err.Error(), "the database cannot be read", "see its log")
		return
	}
	r.sequencers(frozen, pairs, n)
}

// sequencers judges n rooms, of which some are frozen and some have two sequencers.
func (r *Result) sequencers(frozen, pairs []id.RoomID, n int) {
	switch {
	case len(frozen) > 0:
		r.warn(counted(len(frozen), "room is frozen: ", "rooms are frozen: ")+some(frozen), "a majority of their sequencers does not answer, or a change of their list is not final",
			"see that the other servers are reachable; if most are lost for good, an admin of the room runs `mls-proxy era ROOM SERVER…`; "+
				"or no other user's device has come yet: nothing to do; `matrix-mls epochs ROOM` says what each commit waits for")
	case len(pairs) > 0:
		r.warn(counted(len(pairs), "room has two sequencers: ", "rooms have two sequencers: ")+some(pairs), "if either is down, nothing becomes final: two are worse than one",
			"an admin of the room takes one or three (`mls-proxy sequencers ROOM`)")
	default:
		r.ok("%s looked into, none is frozen", counted(n, "room", "rooms"))
	}
}

func probeRestored(ctx context.Context, d *doctor, r *Result) {
	mark, err := d.st.Get(ctx, store.KeyRestored)
	if err != nil {
		r.fail(err.Error(), "the database cannot be read", "see its log")
		return
	}
	var behind, rekeyed []id.RoomID
	err = d.served(ctx, func(row *store.Room, _ *federation.Machine) {
		var data struct {
			Restored string `json:"restored"`
			Key      int    `json:"key"`
		}
		if json.Unmarshal(row.Data, &data) != nil {
			return
		}
		if data.Restored != mark {
			behind = append(behind, row.ID)
		}
		if data.Key > 0 {
			rekeyed = append(rekeyed, row.ID)
		}
	})
	switch {
	case err != nil:
		r.fail(err.Error(), "the database cannot be read", "see its log")
	case len(behind) > 0:
		r.warn(counted(len(behind), "room was not compared since the restore: ", "rooms were not compared since the restore: ")+some(behind),
			"the module has not run since, or a majority of their other sequencers does not answer", "start the module; it signs nothing in these rooms before")
	case len(rekeyed) > 0:
		r.ok("in %s an older key is used up: %s; the probe receipt-key says whether the new one is in the list", counted(len(rekeyed), "room", "rooms"), some(rekeyed))
	case mark == "":
		r.ok("the database was never restored from a backup")
	default:
		r.ok("all rooms were compared since the restore")
	}
}

func probeRefusals(ctx context.Context, d *doctor, r *Result) {
	list, err := d.st.Refusals(ctx, 500)
	if err != nil {
		r.fail(err.Error(), "the database cannot be read", "see its log")
		return
	}
	since := d.now().Add(-time.Hour)
	recent, bugs, lies := 0, "", ""
	for _, ref := range list {
		if ref.At.Before(since) {
			break
		}
		recent++
		if strings.HasPrefix(ref.Rule, "internal/") {
			bugs = ref.Rule + " in " + string(ref.Room)
		}
		if strings.HasPrefix(ref.Rule, "federation/") && strings.Contains(ref.Detail, "contradict each other") {
			lies = string(ref.Room) + ": " + ref.Detail
		}
	}
	switch {
	case bugs != "":
		r.fail(bugs, "a bug of the module, or a damaged database", "please report it with the log line; `matrix-mls backup` first, if it goes on")
	case lies != "":
		r.fail(lies, "a sequencer is broken or malicious, or two modules run with one key", "an admin of the room takes it off the list (`mls-proxy sequencers ROOM`)")
	default:
		r.ok("%d in the last hour, none of them alarming", recent)
	}
}

func probeMetrics(ctx context.Context, d *doctor, r *Result) {
	switch {
	case !d.cfg.Metrics.Enabled:
		r.ok("switched off")
		return
	case !d.moduleLives:
		r.Status, r.Detail = Skip, "needs module"
		return
	}
	address := d.cfg.AppService.Address
	if d.cfg.Metrics.Listen != "" {
		address = "http://" + d.cfg.Metrics.Listen
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/metrics", nil)
	if err != nil {
		r.warn(err.Error(), "metrics.listen is no address", "correct it")
		return
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.warn("nothing answers on "+address+"/metrics", "metrics.listen was changed and the module not restarted, or a firewall is between", "restart the module, or correct metrics.listen")
		return
	}
	defer resp.Body.Close()
	if d.standsBy && d.cfg.Metrics.Listen == "" && resp.StatusCode == http.StatusServiceUnavailable {
		r.warn(address+"/metrics answers "+resp.Status, causeStandsBy, nextStandsBy)
		return
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), metrics.Ready) {
		r.warn(fmt.Sprintf("%s/metrics answers %s without %s", address, resp.Status, metrics.Ready), "something else answers there, or a proxy in between", "correct metrics.listen")
		return
	}
	r.ok("on %s/metrics", address)
}

func probeNamespaces(_ context.Context, d *doctor, r *Result) {
	if d.reg == nil {
		r.Status, r.Detail = Skip, "needs registration"
		return
	}
	var wide []string
	for _, ns := range d.reg.Namespaces.RoomIDs {
		wide = append(wide, "rooms "+ns.Regex)
	}
	for _, ns := range d.reg.Namespaces.UserIDs {
		if !strings.Contains(ns.Regex, regexp.QuoteMeta(d.cfg.AppService.Bot.Username)) && !strings.Contains(ns.Regex, "_mls_") {
			wide = append(wide, "users "+ns.Regex)
		}
	}
	if len(wide) > 0 {
		r.warn("the registration asks for "+strings.Join(wide, ", "), "the homeserver then pushes what does not concern the module, and may keep others from these names",
			"write the registration again (`matrix-mls -g`) and restart the homeserver")
		return
	}
	r.ok("the bot's names, and no rooms: the homeserver pushes those that the bot is in")
}
