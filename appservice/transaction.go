package appservice

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice/homeserver"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// Rules of refusals that this file decides.
const (
	ruleToken             = "matrix/as-token"
	ruleBodyTooLarge      = "transaction/body-too-large"
	ruleBodyMalformed     = "transaction/body-malformed"
	ruleTooManyEvents     = "transaction/too-many-events"
	ruleEventMalformed    = "transaction/event-malformed"
	ruleInviteNotAccepted = "room/invite-not-accepted"
)

// authorized checks the homeserver's token: in the header alone, since a token
// in a query ends up in logs, and in constant time.
func (s *Service) authorized(w http.ResponseWriter, r *http.Request) bool {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 || !strings.HasPrefix(headers[0], "Bearer ") {
		s.metrics.Rejected(ruleToken)
		mautrix.MMissingToken.WithMessage("The homeserver's token is missing").Write(w)
		return false
	}
	got := sha256.Sum256([]byte(strings.TrimPrefix(headers[0], "Bearer ")))
	want := sha256.Sum256([]byte(s.cfg.AppService.HSToken))
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		s.metrics.Rejected(ruleToken)
		mautrix.MForbidden.WithMessage("The homeserver's token is wrong").Write(w)
		return false
	}
	return true
}

// putTransaction takes in what the homeserver pushes (Application Service API,
// PUT /_matrix/app/v1/transactions/{txnId}).
//
// The transaction id says nothing: homeservers use one again for other events
// after a restart, or repeat one with more events in it. Every event is looked
// at every time, and the database knows the ones it has.
func (s *Service) putTransaction(w http.ResponseWriter, r *http.Request) {
	if !s.authorized(w, r) {
		s.metrics.Inc(metrics.Transactions, "refused")
		return
	}
	start := time.Now()
	log := s.log.With().Str("txn_id", short(r.PathValue("txnID"))).Logger()
	// The homeserver may hang up; what it sent is taken in all the same.
	ctx := log.WithContext(context.WithoutCancel(r.Context()))

	if !s.takeTurn(r.Context()) {
		s.metrics.Inc(metrics.Transactions, "refused")
		mautrix.RespError{ErrCode: "M_LIMIT_EXCEEDED", Err: "The module is busy with other transactions", StatusCode: http.StatusServiceUnavailable}.Write(w)
		return
	}
	defer func() { <-s.bodies }()
	body, err := s.readBody(w, r)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		// It would be the same next time, and everything behind it would
		// wait for ever. What it held is found by the comparison with the
		// rooms' history.
		s.skipTransaction(ctx, w, ruleBodyTooLarge, err)
		s.wakeGapCheck()
		return
	case err != nil:
		s.metrics.Inc(metrics.Transactions, "refused")
		mautrix.MNotJSON.WithMessage("The body could not be read").Write(w)
		return
	}
	raws, err := transactionEvents(body)
	if err != nil && !errors.Is(err, errTooManyEvents) {
		s.skipTransaction(ctx, w, ruleBodyMalformed, err)
		s.wakeGapCheck()
		return
	}
	if err != nil {
		log.Error().Err(err).Msg("The homeserver sent more events at once than any homeserver should")
		s.metrics.Rejected(ruleTooManyEvents)
		s.wakeGapCheck()
	}
	if err := s.takeIn(ctx, raws); err != nil {
		s.metrics.Inc(metrics.Transactions, "failed")
		log.Error().Err(err).Msg("Could not store a transaction, the homeserver will repeat it")
		mautrix.RespError{ErrCode: "M_UNKNOWN", Err: "The module's database failed", StatusCode: http.StatusServiceUnavailable}.Write(w)
		return
	}
	s.metrics.Inc(metrics.Transactions, "ok")
	s.metrics.Observe(metrics.TransactionSeconds, time.Since(start).Seconds())
	s.heard.Store(max(s.now().UnixMilli(), 1))
	writeJSON(w, http.StatusOK, struct{}{})
}

// Homeservers send one transaction at a time. A few more may be read at once, so
// that what waits holds no memory; the others wait so long for their turn.
const (
	bodiesAtOnce = 2
	bodyWait     = 20 * time.Second
)

// takeTurn waits until a transaction may be read. Who gets its turn gives it
// back by taking one out of s.bodies.
func (s *Service) takeTurn(ctx context.Context) bool {
	timer := time.NewTimer(bodyWait)
	defer timer.Stop()
	select {
	case s.bodies <- struct{}{}:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// readBody reads a transaction into memory of its size.
func (s *Service) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	var body bytes.Buffer
	if n := r.ContentLength; n > 0 && n <= s.cfg.Limits.TransactionBytes {
		body.Grow(int(n) + bytes.MinRead)
	}
	_, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, s.cfg.Limits.TransactionBytes))
	return body.Bytes(), err
}

// skipTransaction answers a body that no repetition makes better.
func (s *Service) skipTransaction(ctx context.Context, w http.ResponseWriter, rule string, cause error) {
	s.metrics.Inc(metrics.Transactions, "skipped")
	s.metrics.Rejected(rule)
	zerolog.Ctx(ctx).Error().Err(cause).Str("rule", rule).Msg("Skipped a transaction that cannot be read")
	if err := s.store.PutRefusal(ctx, &store.Refusal{Rule: rule, Detail: cause.Error()}); err != nil {
		zerolog.Ctx(ctx).Error().Err(err).Msg("Could not note a refusal")
	}
	writeJSON(w, http.StatusOK, struct{}{})
}

// takeIn stores what concerns the module. It fails only if storage does.
func (s *Service) takeIn(ctx context.Context, raws []json.RawMessage) error {
	var (
		rows      []*store.InboxEvent
		invited   []id.RoomID
		declined  []*homeserver.Event
		strangers bool
		malformed int
		filtered  int
		firstBad  error
	)
	for _, raw := range raws {
		ev, err := homeserver.ParseEvent(raw, "")
		if err != nil {
			malformed++
			if firstBad == nil {
				firstBad = err
			}
			s.metrics.Rejected(ruleEventMalformed)
			continue
		}
		if s.filter.has(ev.Room) && s.stir.note(ev.Room, ev.Sender, s.hs.ServerName(), s.monotonic()) {
			defer s.Wake()
		}
		s.takeCommand(ev)
		switch s.filter.judge(ev) {
		case drop:
			filtered++
			continue
		case stranger:
			// The homeserver says that the bot is in a room the database
			// does not know: it lost something. The room's history comes
			// with the room.
			strangers = true
			filtered++
			continue
		case decline:
			declined = append(declined, ev)
		case invite:
			invited = append(invited, ev.Room)
			rows = append(rows, inboxRow(ev, store.SourceTransaction))
			s.filter.add(ev.Room) // so that the events behind it are kept
		case keep:
			rows = append(rows, inboxRow(ev, store.SourceTransaction))
		}
	}
	s.count("filtered", filtered)
	s.count("malformed", malformed)
	if firstBad != nil {
		zerolog.Ctx(ctx).Warn().Err(firstBad).Int("events", malformed).Msg("Skipped malformed events")
	}
	if len(rows) > 0 || len(declined) > 0 || firstBad != nil {
		var fresh []*store.InboxEvent
		err := s.store.Tx(ctx, func(ctx context.Context) (err error) {
			for _, room := range invited {
				if err = s.store.NoteRoom(ctx, room, store.RoomInvited); err != nil {
					return err
				}
			}
			if firstBad != nil {
				if err = s.store.PutRefusal(ctx, &store.Refusal{Rule: ruleEventMalformed, Detail: firstBad.Error()}); err != nil {
					return err
				}
			}
			for _, ev := range declined {
				refusal := &store.Refusal{Room: ev.Room, Event: ev.ID, Rule: ruleInviteNotAccepted, Detail: "invited by " + string(ev.Sender)}
				if err = s.store.PutRefusal(ctx, refusal); err != nil {
					return err
				}
			}
			if fresh, err = s.store.PutInbox(ctx, rows...); err == nil {
				s.crash(crashInboxStoring)
			}
			return err
		})
		if err != nil {
			return err
		}
		s.crash(crashInboxStored)
		s.count("stored", len(fresh))
		s.count("repeated", len(rows)-len(fresh))
		if len(fresh) > 0 {
			s.Wake()
		}
	}
	for _, ev := range declined {
		s.metrics.Rejected(ruleInviteNotAccepted)
		s.decline(ev.Room)
	}
	if strangers {
		s.wakeReconcile()
	}
	return nil
}

func inboxRow(ev *homeserver.Event, source store.Source) *store.InboxEvent {
	return &store.InboxEvent{
		EventID: ev.ID, Room: ev.Room, Sender: ev.Sender, Type: ev.Type, StateKey: ev.StateKey, Raw: ev.Raw, Source: source,
	}
}

func (s *Service) count(result string, n int) {
	if n > 0 {
		s.metrics.Add(metrics.Events, float64(n), result)
	}
}

// postPing answers the homeserver's ping (Application Service API,
// POST /_matrix/app/v1/ping).
func (s *Service) postPing(w http.ResponseWriter, r *http.Request) {
	if !s.authorized(w, r) {
		return
	}
	var ping mautrix.ReqAppservicePing
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err != nil || json.Unmarshal(body, &ping) != nil {
		mautrix.MNotJSON.WithMessage("The body is no JSON").Write(w)
		return
	}
	s.heard.Store(max(s.now().UnixMilli(), 1))
	s.log.Debug().Str("txn_id", short(ping.TxnID)).Msg("The homeserver pinged")
	writeJSON(w, http.StatusOK, struct{}{})
}

// noSuchThing answers the homeserver's questions for users and aliases of the
// module's namespace: the module makes none on request.
func (s *Service) noSuchThing(w http.ResponseWriter, r *http.Request) {
	if s.authorized(w, r) {
		mautrix.MNotFound.WithMessage("The module has no such user or room").Write(w)
	}
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here means that the other side hung up.
	_ = json.NewEncoder(w).Encode(body)
}

// short bounds an identifier of someone else's for the log.
func short(s string) string {
	if len(s) > 80 {
		return s[:80]
	}
	return s
}
