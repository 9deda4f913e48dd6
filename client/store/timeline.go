package store

import (
	"context"
	"encoding/binary"
	"errors"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	addTimelineQuery = `INSERT INTO timeline (room_id, event_id, mid, sender, ts, epoch, ref, data, target, relation)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		ON CONFLICT (room_id, event_id) DO UPDATE SET mid = excluded.mid, sender = excluded.sender, ts = excluded.ts,
			epoch = excluded.epoch, ref = excluded.ref, data = excluded.data, target = excluded.target, relation = excluded.relation
		RETURNING seq`
	updateTimelineQuery = `UPDATE timeline SET event_id = $2, mid = $3, sender = $4, ts = $5, epoch = $6, ref = $7, data = $8, target = $9, relation = $10
		WHERE seq = $1`
	dropEchoQuery       = `DELETE FROM timeline WHERE room_id = $1 AND event_id = $2 AND seq <> $3`
	timelineColumns     = `SELECT seq, room_id, event_id, mid, sender, ts, epoch, ref, target, relation, data FROM timeline `
	timelineBeforeQuery = timelineColumns + `WHERE room_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3`
	timelineSinceQuery  = timelineColumns + `WHERE ($1 = '' OR room_id = $1) AND seq > $2 ORDER BY seq LIMIT $3`
	timelineEventQuery  = timelineColumns + `WHERE room_id = $1 AND event_id = $2`
	timelineMidQuery    = timelineColumns + `WHERE room_id = $1 AND sender = $2 AND mid = $3 AND seq > 0 ORDER BY seq LIMIT 1`
	addHistoryQuery     = `INSERT INTO timeline (seq, room_id, event_id, mid, sender, ts, epoch, ref, data, target, relation)
		SELECT min(0, coalesce((SELECT min(seq) FROM timeline), 0)) - 1, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10
		WHERE NOT EXISTS (SELECT 1 FROM timeline WHERE room_id = $1 AND event_id = $2)
			AND NOT EXISTS (SELECT 1 FROM timeline WHERE room_id = $1 AND sender = $4 AND mid = $3)
		RETURNING seq`
	dropHistoryEventQuery = `DELETE FROM timeline WHERE room_id = $1 AND event_id = $2 AND seq < 0`
	dropHistoryMidQuery   = `DELETE FROM timeline WHERE room_id = $1 AND sender = $2 AND mid = $3 AND seq < 0`
	timelineAtQuery       = `SELECT coalesce(max(seq), 0) FROM timeline WHERE room_id = $1 AND seq > $2
		AND seq < coalesce((SELECT min(seq) FROM timeline WHERE room_id = $1 AND seq > $2 AND ts > $3), 9223372036854775807)`
	dropSeenQuery     = `DELETE FROM seen WHERE room_id = $1 AND event_id IN (SELECT event_id FROM timeline WHERE room_id = $1)`
	dropTimelineQuery = `DELETE FROM timeline WHERE room_id = $1`
	timelineBackQuery = timelineColumns + `WHERE seq < $1 ORDER BY seq DESC LIMIT $2`
	// An own message that has not gone out has no event id yet, and is related to nothing.
	relatedTo        = `room_id = $1 AND target = $2 AND target <> '' AND event_id LIKE '$%' `
	relationsQuery   = `SELECT DISTINCT relation FROM timeline WHERE ` + relatedTo
	editsQuery       = timelineColumns + `WHERE ` + relatedTo + `AND relation = $3 AND sender = $4 ORDER BY ts DESC, event_id DESC LIMIT $5`
	repliesQuery     = `SELECT count(*), coalesce(max(sender = $4), 0), coalesce(max(seq), 0) FROM timeline WHERE ` + relatedTo + `AND relation = $3`
	timelineSeqQuery = timelineColumns + `WHERE seq = $1`
	relateQuery      = `UPDATE timeline SET target = $2, relation = $3 WHERE seq = $1`
)

// MaxTimelinePage bounds one reading of the timeline.
const MaxTimelinePage = 1000

// TimelineItem is one decrypted event. Type and Data are sealed at rest. A
// message can be decrypted once only, so it is stored in the same Do as the
// ratchet step that opened it, before anything else sees it.
type TimelineItem struct {
	Seq       int64 // the order of the timeline; below 0: got from another device
	Room      id.RoomID
	EventID   id.EventID
	Mid       string // the message id inside the ciphertext
	Sender    id.UserID
	Type      string
	Timestamp int64 // the homeserver's, in ms; shown, never believed
	Epoch     uint64
	Ref       []byte
	Data      []byte
	// Target is the event that the event is an edit of, or that its thread begins with,
	// and Relation which of these. They are not sealed.
	Target   id.EventID
	Relation string
}

// AddTimeline stores a decrypted event and sets its Seq. An event that is
// already there keeps its place.
func (s *Store) AddTimeline(ctx context.Context, item *TimelineItem) error {
	sealed, err := s.sealTimeline(item)
	if err != nil {
		return err
	}
	return s.insert(ctx, "timeline", addTimelineQuery, []any{
		item.Room, item.EventID, item.Mid, item.Sender, item.Timestamp, int64(item.Epoch), blob(item.Ref), sealed, item.Target, item.Relation,
	}, &item.Seq)
}

// UpdateTimeline writes the event at item.Seq anew: an own message gets its
// event id that way. Another row with the same event id is removed.
func (s *Store) UpdateTimeline(ctx context.Context, item *TimelineItem) error {
	sealed, err := s.sealTimeline(item)
	if err != nil {
		return err
	}
	return s.Do(ctx, func(ctx context.Context) error {
		if err := s.exec(ctx, "timeline", dropEchoQuery, item.Room, item.EventID, item.Seq); err != nil {
			return err
		}
		return s.exec(ctx, "timeline", updateTimelineQuery,
			item.Seq, item.EventID, item.Mid, item.Sender, item.Timestamp, int64(item.Epoch), blob(item.Ref), sealed, item.Target, item.Relation)
	})
}

func (s *Store) sealTimeline(item *TimelineItem) ([]byte, error) {
	plain := binary.AppendUvarint(make([]byte, 0, len(item.Type)+len(item.Data)+4), uint64(len(item.Type)))
	plain = append(append(plain, item.Type...), item.Data...)
	return s.seal(plain, place("timeline", item.Room.String(), item.EventID.String()))
}

// AddHistory stores an event that another device opened, before everything that is
// there, and sets its Seq, which is below 0. It returns false if the event, or
// another with its message id, is there.
func (s *Store) AddHistory(ctx context.Context, item *TimelineItem) (added bool, err error) {
	sealed, err := s.sealTimeline(item)
	if err != nil {
		return false, err
	}
	err = s.insert(ctx, "timeline", addHistoryQuery, []any{
		item.Room, item.EventID, item.Mid, item.Sender, item.Timestamp, int64(item.Epoch), blob(item.Ref), sealed, item.Target, item.Relation,
	}, &item.Seq)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// DropHistory removes what AddHistory stored of an event that this device has
// opened itself: its own word is better.
func (s *Store) DropHistory(ctx context.Context, room id.RoomID, event id.EventID, sender id.UserID, mid string) error {
	if err := s.exec(ctx, "timeline", dropHistoryEventQuery, room, event); err != nil {
		return err
	}
	return s.exec(ctx, "timeline", dropHistoryMidQuery, room, sender, mid)
}

// Timeline returns up to limit events of a room before the given Seq (0 for
// the newest), oldest first.
func (s *Store) Timeline(ctx context.Context, room id.RoomID, beforeSeq int64, limit int) ([]*TimelineItem, error) {
	if beforeSeq == 0 {
		beforeSeq = 1<<63 - 1
	}
	all, err := s.timeline(ctx, timelineBeforeQuery, room, beforeSeq, page(limit))
	for i, j := 0, len(all)-1; i < j; i, j = i+1, j-1 {
		all[i], all[j] = all[j], all[i]
	}
	return all, err
}

// TimelineSince returns up to limit events after the given Seq, oldest first,
// of one room or of all when room is empty. With a Seq of 0 or more that is what
// this device opened itself.
func (s *Store) TimelineSince(ctx context.Context, room id.RoomID, afterSeq int64, limit int) ([]*TimelineItem, error) {
	return s.timeline(ctx, timelineSinceQuery, room, afterSeq, page(limit))
}

// TimelineEvent returns one decrypted event, or ErrNotFound.
func (s *Store) TimelineEvent(ctx context.Context, room id.RoomID, event id.EventID) (*TimelineItem, error) {
	return s.timelineOne(ctx, timelineEventQuery, room, event)
}

// TimelineByMid returns a sender's event by the message id inside the
// ciphertext, or ErrNotFound. What others gave this device does not count: who
// names the id of a message must not keep it from being shown.
func (s *Store) TimelineByMid(ctx context.Context, room id.RoomID, sender id.UserID, mid string) (*TimelineItem, error) {
	return s.timelineOne(ctx, timelineMidQuery, room, sender, mid)
}

func (s *Store) timelineOne(ctx context.Context, query string, args ...any) (*TimelineItem, error) {
	all, err := s.timeline(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, ErrNotFound
	}
	return all[0], nil
}

func (s *Store) timeline(ctx context.Context, query string, args ...any) (all []*TimelineItem, err error) {
	var broken bool
	err = s.sealedList(ctx, "timeline", query, args, func(row dbutil.Scannable, sealed *[]byte) ([]byte, func([]byte), error) {
		item := new(TimelineItem)
		err := row.Scan(&item.Seq, &item.Room, &item.EventID, &item.Mid, &item.Sender, &item.Timestamp, &item.Epoch, &item.Ref, &item.Target, &item.Relation, sealed)
		return place("timeline", item.Room.String(), item.EventID.String()), func(plain []byte) {
			n, used := binary.Uvarint(plain)
			if used <= 0 || n > uint64(len(plain)-used) {
				broken = true
				return
			}
			item.Type, item.Data = string(plain[used:used+int(n)]), plain[used+int(n):]
			all = append(all, item)
		}, err
	})
	if err == nil && broken {
		err = errors.New("store: read timeline: a value has no valid type")
	}
	return all, err
}

func page(limit int) int {
	if limit <= 0 || limit > MaxTimelinePage {
		return MaxTimelinePage
	}
	return limit
}

// RedactTimeline takes what a redacted event said out of the store: its row
// stays, so that a message that is sent again is known, with an empty content.
// blank makes the data of such a row from what it was. An event that is not there
// is no error.
func (s *Store) RedactTimeline(ctx context.Context, room id.RoomID, event id.EventID, blank func(data []byte) ([]byte, error)) error {
	return s.Do(ctx, func(ctx context.Context) error {
		item, err := s.TimelineEvent(ctx, room, event)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if item.Data, err = blank(item.Data); err != nil {
			return err
		}
		item.Target, item.Relation = "", ""
		return s.UpdateTimeline(ctx, item)
	})
}

// TimelineAt returns the Seq of the last event of a room, after the given Seq, before
// the first one that was sent later than the given time; 0 if there is none. One with
// an earlier time than those before it brings none of them along.
func (s *Store) TimelineAt(ctx context.Context, room id.RoomID, after, ts int64) (seq int64, err error) {
	err = s.one(ctx, "timeline", timelineAtQuery, []any{room, after, ts}, &seq)
	return seq, err
}

// TimelineBack returns up to limit events of all rooms before the given Seq (0 for
// the newest), newest first. What other devices gave, with a Seq below 0, comes last.
func (s *Store) TimelineBack(ctx context.Context, beforeSeq int64, limit int) ([]*TimelineItem, error) {
	if beforeSeq == 0 {
		beforeSeq = 1<<63 - 1
	}
	return s.timeline(ctx, timelineBackQuery, beforeSeq, page(limit))
}

// DropTimeline deletes what was said in a room: the user has left and forgotten it.
// Its messages count as never seen.
func (s *Store) DropTimeline(ctx context.Context, room id.RoomID) error {
	return s.Do(ctx, func(ctx context.Context) error {
		for _, query := range []string{dropSeenQuery, dropTimelineQuery} {
			if err := s.exec(ctx, "timeline", query, room); err != nil {
				return err
			}
		}
		return nil
	})
}

// Relations returns which relations to an event are stored.
func (s *Store) Relations(ctx context.Context, room id.RoomID, target id.EventID) (relations []string, err error) {
	err = s.each(ctx, "timeline", relationsQuery, []any{room, target}, func(row dbutil.Scannable) error {
		var relation string
		err := row.Scan(&relation)
		relations = append(relations, relation)
		return err
	})
	return relations, err
}

// NewestBy returns the newest events of a user's that have a relation to another, by
// the homeserver's time, the newest first.
func (s *Store) NewestBy(ctx context.Context, room id.RoomID, target id.EventID, relation string, sender id.UserID, limit int) ([]*TimelineItem, error) {
	return s.timeline(ctx, editsQuery, room, target, relation, sender, limit)
}

// Related counts the events that have a relation to another, tells whether one of
// them is of the given user, and returns the one that came last, nil if there is
// none.
func (s *Store) Related(ctx context.Context, room id.RoomID, target id.EventID, relation string, user id.UserID) (count int, by bool, last *TimelineItem, err error) {
	var seq int64
	if err = s.one(ctx, "timeline", repliesQuery, []any{room, target, relation, user}, &count, &by, &seq); err != nil || count == 0 {
		return 0, false, nil, err
	}
	last, err = s.timelineOne(ctx, timelineSeqQuery, seq)
	return count, by, last, err
}

// Relate notes what an event at a Seq is related to.
func (s *Store) Relate(ctx context.Context, seq int64, target id.EventID, relation string) error {
	return s.exec(ctx, "timeline", relateQuery, seq, target, relation)
}
