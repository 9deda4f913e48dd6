package store

import (
	"context"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	getRoomQuery       = `SELECT data FROM rooms WHERE room_id = $1`
	putRoomQuery       = `INSERT INTO rooms (room_id, data) VALUES ($1, $2) ON CONFLICT (room_id) DO UPDATE SET data = excluded.data`
	listRoomsQuery     = `SELECT room_id, data FROM rooms ORDER BY room_id`
	getMachineQuery    = `SELECT data FROM machines WHERE room_id = $1`
	deleteMachineQuery = `DELETE FROM machines WHERE room_id = $1`
	putMachineQuery    = `INSERT INTO machines (room_id, data) VALUES ($1, $2) ON CONFLICT (room_id) DO UPDATE SET data = excluded.data`

	getEpochQuery = `SELECT parent, number, whole, state FROM epochs WHERE room_id = $1 AND ref = $2`
	putEpochQuery = `INSERT INTO epochs (room_id, ref, parent, number, whole, state) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (room_id, ref) DO UPDATE SET parent = excluded.parent, number = excluded.number, whole = excluded.whole, state = excluded.state`
	listEpochsQuery  = `SELECT ref, parent, number FROM epochs WHERE room_id = $1 ORDER BY number, ref`
	deleteEpochQuery = `DELETE FROM epochs WHERE room_id = $1 AND ref = $2`

	putRatchetQuery    = `INSERT INTO ratchets (room_id, ref, state) VALUES ($1, $2, $3)`
	getRatchetQuery    = `SELECT state FROM ratchets WHERE room_id = $1 AND ref = $2`
	deleteRatchetQuery = `DELETE FROM ratchets WHERE room_id = $1 AND ref = $2`

	putPendingQuery = `INSERT INTO pending_commits (room_id, ref, parent, event_id, data) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (room_id, ref) DO UPDATE SET parent = excluded.parent, event_id = excluded.event_id, data = excluded.data`
	listPendingQuery   = `SELECT ref, parent, event_id, data FROM pending_commits WHERE room_id = $1 ORDER BY ref`
	deletePendingQuery = `DELETE FROM pending_commits WHERE room_id = $1 AND ref = $2`
)

// roomTables are the tables with rows of one room.
var roomTables = []string{"rooms", "machines", "epochs", "trees", "ratchets", "ratchet_pages", "rejoin_secrets", "pending_commits", "outbox", "inbox", "seen", "timeline"}

// Room is one room's record of the client.
type Room struct {
	ID   id.RoomID
	Data []byte
}

// Room returns a room's record, or ErrNotFound.
func (s *Store) Room(ctx context.Context, room id.RoomID) ([]byte, error) {
	return s.sealedOne(ctx, "rooms", getRoomQuery, []any{room}, place("rooms", room.String()))
}

// PutRoom writes a room's record.
func (s *Store) PutRoom(ctx context.Context, room id.RoomID, data []byte) error {
	sealed, err := s.seal(data, place("rooms", room.String()))
	if err != nil {
		return err
	}
	return s.exec(ctx, "rooms", putRoomQuery, room, sealed)
}

// Rooms returns the records of all rooms.
func (s *Store) Rooms(ctx context.Context) (all []Room, err error) {
	err = s.sealedList(ctx, "rooms", listRoomsQuery, nil, func(row dbutil.Scannable, sealed *[]byte) ([]byte, func([]byte), error) {
		var r Room
		err := row.Scan(&r.ID, sealed)
		return place("rooms", r.ID.String()), func(plain []byte) { r.Data = plain; all = append(all, r) }, err
	})
	return all, err
}

// DeleteRoom removes everything the store holds about a room.
func (s *Store) DeleteRoom(ctx context.Context, room id.RoomID) error {
	return s.Do(ctx, func(ctx context.Context) error {
		for _, table := range roomTables {
			if err := s.exec(ctx, table, "DELETE FROM "+table+" WHERE room_id = $1", room); err != nil {
				return err
			}
		}
		return nil
	})
}

// Machine returns the snapshot of a room's epoch coordination, or ErrNotFound.
func (s *Store) Machine(ctx context.Context, room id.RoomID) ([]byte, error) {
	return s.sealedOne(ctx, "machines", getMachineQuery, []any{room}, place("machines", room.String()))
}

// PutMachine writes the snapshot of a room's epoch coordination.
func (s *Store) PutMachine(ctx context.Context, room id.RoomID, snapshot []byte) error {
	sealed, err := s.seal(snapshot, place("machines", room.String()))
	if err != nil {
		return err
	}
	return s.exec(ctx, "machines", putMachineQuery, room, sealed)
}

// DeleteMachine removes the snapshot of a room's epoch coordination: the device
// left the group.
func (s *Store) DeleteMachine(ctx context.Context, room id.RoomID) error {
	return s.exec(ctx, "machines", deleteMachineQuery, room)
}

// Epoch is the immutable state of one epoch, named by the ref of the commit
// that made it.
type Epoch struct {
	Room   id.RoomID
	Ref    []byte
	Parent []byte // empty for the first epoch
	Number uint64
	State  []byte // sealed at rest; empty in [Store.Epochs]
	// Whole: written before version 3 of the schema, with the tree in State and the
	// ratchets in one piece; see [Store.OldRatchet].
	Whole bool
}

// Epoch returns an epoch's state, or ErrNotFound.
func (s *Store) Epoch(ctx context.Context, room id.RoomID, ref []byte) (*Epoch, error) {
	e := &Epoch{Room: room, Ref: ref}
	var sealed []byte
	if err := s.one(ctx, "epochs", getEpochQuery, []any{room, ref}, &e.Parent, &e.Number, &e.Whole, &sealed); err != nil {
		return nil, err
	}
	var err error
	e.State, err = s.open(sealed, place("epochs", room.String(), string(ref)))
	return e, err
}

// PutEpoch writes an epoch's state.
func (s *Store) PutEpoch(ctx context.Context, e *Epoch) error {
	sealed, err := s.seal(e.State, place("epochs", e.Room.String(), string(e.Ref)))
	if err != nil {
		return err
	}
	return s.exec(ctx, "epochs", putEpochQuery, e.Room, e.Ref, blob(e.Parent), int64(e.Number), e.Whole, sealed)
}

// Epochs lists the epochs held of a room, lowest number first, without states.
func (s *Store) Epochs(ctx context.Context, room id.RoomID) (all []*Epoch, err error) {
	err = s.each(ctx, "epochs", listEpochsQuery, []any{room}, func(row dbutil.Scannable) error {
		e := &Epoch{Room: room}
		all = append(all, e)
		return row.Scan(&e.Ref, &e.Parent, &e.Number)
	})
	return all, err
}

// DeleteEpoch removes an epoch's state and its ratchets. Its tree stays until
// [Store.PruneTrees].
func (s *Store) DeleteEpoch(ctx context.Context, room id.RoomID, ref []byte) error {
	return s.Do(ctx, func(ctx context.Context) error {
		if err := s.exec(ctx, "ratchet_pages", deletePagesQuery, room, ref); err != nil {
			return err
		}
		if err := s.exec(ctx, "ratchets", deleteRatchetQuery, room, ref); err != nil {
			return err
		}
		return s.exec(ctx, "epochs", deleteEpochQuery, room, ref)
	})
}

// OldRatchet returns the ratchets of an epoch in one piece, as versions 1 and 2 of
// the schema had them, or ErrNotFound.
func (s *Store) OldRatchet(ctx context.Context, room id.RoomID, ref []byte) ([]byte, error) {
	return s.sealedOne(ctx, "ratchets", getRatchetQuery, []any{room, ref}, place("ratchets", room.String(), string(ref)))
}

// PutOldRatchet writes ratchets in one piece: for tests of the way from there.
func (s *Store) PutOldRatchet(ctx context.Context, room id.RoomID, ref, state []byte) error {
	sealed, err := s.seal(state, place("ratchets", room.String(), string(ref)))
	if err != nil {
		return err
	}
	return s.exec(ctx, "ratchets", putRatchetQuery, room, ref, sealed)
}

// DeleteOldRatchet removes them, once they are stored in pages.
func (s *Store) DeleteOldRatchet(ctx context.Context, room id.RoomID, ref []byte) error {
	return s.exec(ctx, "ratchets", deleteRatchetQuery, room, ref)
}

// Pending is a commit of our own that is not decided yet.
type Pending struct {
	Room    id.RoomID
	Ref     []byte
	Parent  []byte
	EventID id.EventID // empty until it is sent
	Data    []byte
}

// PutPending writes an own commit. That happens before it is sent.
func (s *Store) PutPending(ctx context.Context, p *Pending) error {
	sealed, err := s.seal(p.Data, place("pending_commits", p.Room.String(), string(p.Ref)))
	if err != nil {
		return err
	}
	return s.exec(ctx, "pending_commits", putPendingQuery, p.Room, p.Ref, blob(p.Parent), p.EventID, sealed)
}

// Pending returns the own commits of a room that are not decided yet.
func (s *Store) Pending(ctx context.Context, room id.RoomID) (all []*Pending, err error) {
	err = s.sealedList(ctx, "pending_commits", listPendingQuery, []any{room}, func(row dbutil.Scannable, sealed *[]byte) ([]byte, func([]byte), error) {
		p := &Pending{Room: room}
		err := row.Scan(&p.Ref, &p.Parent, &p.EventID, sealed)
		return place("pending_commits", room.String(), string(p.Ref)), func(plain []byte) { p.Data = plain; all = append(all, p) }, err
	})
	return all, err
}

// DeletePending removes an own commit that was accepted or lost.
func (s *Store) DeletePending(ctx context.Context, room id.RoomID, ref []byte) error {
	return s.exec(ctx, "pending_commits", deletePendingQuery, room, ref)
}

// sealedOne reads one sealed value.
func (s *Store) sealedOne(ctx context.Context, table, query string, args []any, at []byte) ([]byte, error) {
	var sealed []byte
	if err := s.one(ctx, table, query, args, &sealed); err != nil {
		return nil, err
	}
	return s.open(sealed, at)
}

// blob keeps a nil slice from becoming NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
