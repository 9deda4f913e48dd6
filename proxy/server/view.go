package server

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

// view is what a session's MLS device knows, for package rewrite.
type view struct {
	s    *Server
	ctx  context.Context
	sess *session
	told []int64 // notices about rooms that the answer brings
}

func (s *Server) view(ctx context.Context, sess *session) *view {
	return &view{s: s, ctx: ctx, sess: sess}
}

// MLS implements rewrite.View.
func (v *view) MLS(room id.RoomID) bool { return v.sess.account.Client().IsMLS(room) }

// Language is what package rewrite speaks.
func (v *view) Language() rewrite.Language { return v.s.o.Language }

// Read implements rewrite.View.
func (v *view) Read(room id.RoomID, event id.EventID, at int64) rewrite.Reading {
	r := v.read(room, event, at)
	r.Language = v.Language()
	return r
}

func (v *view) read(room id.RoomID, event id.EventID, at int64) rewrite.Reading {
	r := v.sess.account.Read(v.ctx, room, event, time.UnixMilli(at))
	switch r.State {
	case account.Opened:
		out := rewrite.Reading{State: rewrite.Opened, Sender: r.Message.Sender, Type: r.Message.Type, Content: v.detach(r.Message)}
		if from := r.Message.From; from != nil && !from.Own {
			out.SharedBy = from.User
		}
		out.Transaction = v.s.sent.txn(v.sess.tag, room, event)
		return out
	case account.Repeated:
		return rewrite.Reading{State: rewrite.Again}
	case account.Refused:
		return rewrite.Reading{Text: v.Language().Text(rewrite.RefusedFor, r.Reason)}
	case account.Before:
		if v.sess.account.Client().HistoryAsked(room) {
			return rewrite.Reading{Text: v.Language().Text(rewrite.Asked), Later: true}
		}
		return rewrite.Reading{Text: v.Language().Text(rewrite.BeforeUs)}
	}
	switch v.sess.account.Session(v.ctx) {
	case account.SessionSoft:
		return rewrite.Reading{Text: v.Language().Text(rewrite.SoftLogout, v.sess.account.Dir()), Later: true}
	case account.SessionOver:
		return rewrite.Reading{Text: v.Language().Text(rewrite.SessionOver)}
	}
	if !v.sess.account.Verified(v.ctx) {
		return rewrite.Reading{Text: v.Language().Text(rewrite.NotVerified, v.sess.account.Dir()), Later: true}
	}
	return rewrite.Reading{Text: v.Language().Text(rewrite.Waiting), Later: true}
}

// message is the event of a message in the store, as the client is shown it.
func (v *view) message(m *client.Message) rewrite.Event {
	r := v.Read(m.Room, m.EventID, m.Timestamp)
	if r.State != rewrite.Opened { // it is gone meanwhile
		r = rewrite.Reading{Sender: m.Sender, Type: m.Type, Content: json.RawMessage("{}")}
	}
	return rewrite.MessageEvent(m.Room, m.EventID, m.Timestamp, r)
}

// Bundle is what package rewrite bundles with a message.
func (v *view) Bundle(room id.RoomID, event id.EventID, sender id.UserID, eventType string) (out rewrite.Bundle) {
	b, err := v.sess.account.Bundle(v.ctx, room, event, sender, eventType)
	if err != nil {
		v.s.o.Log.Err(err).Msg("What belongs to a message cannot be read from the store")
		return out
	}
	if b.Edit != nil {
		out.Edit = v.message(b.Edit)
	}
	if b.Thread != nil {
		out.Latest, out.Count, out.Participated = v.message(b.Thread.Latest), b.Thread.Count, b.Thread.Participated
	}
	return out
}

// detach keeps the keys of a message's files, so that the client can download
// them as if they were not encrypted.
func (v *view) detach(m *client.Message) json.RawMessage {
	out, found := rewrite.Detach(m.Content)
	var files []account.File
	var err error
	for _, f := range found {
		media := &account.Media{MIME: f.MIME}
		if bad := json.Unmarshal(f.File, &media.File); bad != nil {
			err = bad
			continue
		}
		files = append(files, account.File{MXC: f.MXC, Media: media})
	}
	if len(files) > 0 {
		err = errors.Join(err, v.sess.account.KeepFiles(v.ctx, m.Room, m.EventID, files))
	}
	if len(m.Content) <= len("{}") { // it was redacted, perhaps while the proxy did not run
		err = errors.Join(err, v.sess.account.DropFiles(v.ctx, m.Room, m.EventID))
	}
	if err != nil {
		v.s.o.Log.Warn().Err(err).Msg("The keys of a message's attachments cannot be kept or deleted")
	}
	return out
}

// openWait is for how long an answer waits for the MLS device to open what is
// new.
const openWait = 3 * time.Second

// await gives the MLS device a moment to open events that have just come: it
// has its own /sync, which may be behind the client's. It tells whether there are
// ciphertexts among them, and whether the device has come to the last event: that has to
// be one of these.
func (v *view) await(ctx context.Context, room id.RoomID, events []json.RawMessage) (some, came bool) {
	var fresh []id.EventID
	last := false
	for _, raw := range events {
		event, at, ok := rewrite.IsCiphertext(raw)
		if !ok {
			last = false
			continue
		}
		some, last = true, account.Recent(time.UnixMilli(at))
		if last {
			fresh = append(fresh, event)
		}
	}
	if len(fresh) == 0 {
		return some, false
	}
	ctx, cancel := context.WithTimeout(ctx, openWait)
	defer cancel()
	return some, v.sess.account.Await(ctx, room, fresh) && last
}

// sent remembers which of a client's transactions made an event: the client
// knows its own messages by that.
type sent struct {
	mu    sync.Mutex
	txns  map[sentKey]string
	order []sentKey
}

type sentKey struct {
	tag   [32]byte
	room  id.RoomID
	event id.EventID
}

const maxSent = 4096

func newSent() *sent { return &sent{txns: map[sentKey]string{}} }

func (s *sent) note(tag [32]byte, room id.RoomID, event id.EventID, txn string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sentKey{tag, room, event}
	if _, known := s.txns[key]; !known {
		s.order = append(s.order, key)
	}
	s.txns[key] = txn
	for len(s.order) > maxSent {
		delete(s.txns, s.order[0])
		s.order = s.order[1:]
	}
}

func (s *sent) txn(tag [32]byte, room id.RoomID, event id.EventID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.txns[sentKey{tag, room, event}]
}

// shown are the notices that a client has in the place of events that could not
// be read, and that may be readable later.
type shown struct {
	mu    sync.Mutex
	all   map[[32]byte][]notice
	order [][32]byte
}

type notice struct {
	room  id.RoomID
	event rewrite.Event
}

// maxShown bounds the notices of one session; of more, the newest count.
const maxShown = 500

func newShown() *shown { return &shown{all: map[[32]byte][]notice{}} }

func (s *shown) note(tag [32]byte, room id.RoomID, events []rewrite.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		if !e.Later || e.ID == "" {
			continue
		}
		list, known := s.all[tag]
		if !known {
			s.order = append(s.order, tag)
		}
		at := -1
		for i := range list {
			if list[i].event.ID == e.ID && list[i].room == room {
				at = i
			}
		}
		if at < 0 {
			list = append(list, notice{room: room, event: e})
		}
		if n := len(list) - maxShown; n > 0 {
			list = list[n:]
		}
		s.all[tag] = list
	}
	for len(s.order) > maxOwners {
		delete(s.all, s.order[0])
		s.order = s.order[1:]
	}
}

// readable takes out the notices that can be replaced now.
func (s *shown) readable(tag [32]byte, v rewrite.View) (out []notice, now []rewrite.Reading) {
	s.mu.Lock()
	list := s.all[tag]
	s.mu.Unlock()
	gone := map[id.EventID]bool{}
	for _, n := range list {
		if r := v.Read(n.room, n.event.ID, n.event.Time); r.State == rewrite.Opened && r.Sender == n.event.Sender {
			out, now = append(out, n), append(now, r)
			gone[n.event.ID] = true
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []notice
	for _, n := range s.all[tag] {
		if !gone[n.event.ID] {
			left = append(left, n)
		}
	}
	s.all[tag] = left
	return out, now
}
