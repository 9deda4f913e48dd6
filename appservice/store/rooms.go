package store

import (
	"context"
	"encoding/json"
	"time"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	noteRoomQuery = `
		INSERT INTO rooms (room_id, status, updated_at) VALUES ($1, $2, $3)
		ON CONFLICT (room_id) DO NOTHING`
	roomColumns  = `SELECT room_id, status, group_id, head, epoch, token, last_event, machine, data, updated_at FROM rooms `
	getRoomQuery = roomColumns + `WHERE room_id=$1`
	allRoomQuery = roomColumns + `ORDER BY room_id`
	putRoomQuery = `
		INSERT INTO rooms (room_id, status, group_id, head, epoch, token, last_event, machine, data, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		ON CONFLICT (room_id) DO UPDATE SET status=excluded.status, group_id=excluded.group_id, head=excluded.head,
			epoch=excluded.epoch, token=excluded.token, last_event=excluded.last_event, machine=excluded.machine,
			data=excluded.data, updated_at=excluded.updated_at`
	listRoomQuery      = `SELECT room_id, status, head, epoch, updated_at FROM rooms ORDER BY status DESC, room_id LIMIT $1 OFFSET $2`
	setRoomStatusQuery = `UPDATE rooms SET status=$2, updated_at=$3 WHERE room_id=$1`
	setRoomTokenQuery  = `UPDATE rooms SET token=$2, last_event=$3, updated_at=$4 WHERE room_id=$1`
	deleteRoomQuery    = `DELETE FROM rooms WHERE room_id=$1`
	knownRoomsQuery    = `SELECT room_id, status FROM rooms`
	trimRoomsQuery     = `DELETE FROM rooms WHERE status='left' AND machine IS NULL AND updated_at<$1
		AND NOT EXISTS (SELECT 1 FROM receipts r WHERE r.room_id=rooms.room_id)
		AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.room_id=rooms.room_id) RETURNING room_id`
	countRoomsQuery = `SELECT status, COUNT(*) FROM rooms GROUP BY status`
)

// RoomStatus is the module's part in a room.
type RoomStatus string

// What the module is in a room.
const (
	RoomInvited RoomStatus = "invited" // the bot was invited and has to join
	RoomJoined  RoomStatus = "joined"  // the bot is in; no group is known yet
	RoomServing RoomStatus = "serving" // a group is followed
	RoomLeft    RoomStatus = "left"    // the bot left, was kicked or banned
)

// Room is what the module keeps of a room. Machine and Data belong to the
// engine.
type Room struct {
	ID        id.RoomID
	Status    RoomStatus
	GroupID   string // hex
	Head      string // hex ref
	Epoch     uint64
	Token     string     // /messages token up to which history is complete
	LastEvent id.EventID // the newest event known when Token was taken
	Machine   []byte
	Data      json.RawMessage
	UpdatedAt time.Time
}

// NoteRoom adds a room if it is not known; it changes nothing otherwise.
func (st *Store) NoteRoom(ctx context.Context, room id.RoomID, status RoomStatus) error {
	_, err := st.exec(ctx, noteRoomQuery, clean(string(room)), string(status), st.millis())
	return wrap("adding a room", err)
}

// Room returns a room, or [ErrNotFound].
func (st *Store) Room(ctx context.Context, room id.RoomID) (*Room, error) {
	r, err := scanRoom(st.db.QueryRow(ctx, getRoomQuery, string(room)))
	return r, wrap("reading a room", err)
}

// Rooms returns all rooms.
func (st *Store) Rooms(ctx context.Context) ([]*Room, error) {
	rows, err := st.db.Query(ctx, allRoomQuery)
	return collect(rows, err, "reading the rooms", scanRoom)
}

// ListRooms returns a page of the rooms, those served first, without what the
// engine keeps of them.
func (st *Store) ListRooms(ctx context.Context, limit, offset int) ([]*Room, error) {
	rows, err := st.db.Query(ctx, listRoomQuery, limit, offset)
	return collect(rows, err, "listing the rooms", func(row dbutil.Scannable) (*Room, error) {
		var r Room
		var epoch, ms int64
		err := row.Scan(&r.ID, &r.Status, &r.Head, &epoch, &ms)
		r.Epoch, r.UpdatedAt = uint64(epoch), time.UnixMilli(ms)
		return &r, err
	})
}

// PutRoom stores a room whole.
func (st *Store) PutRoom(ctx context.Context, r *Room) error {
	if len(r.Data) == 0 {
		r.Data = json.RawMessage("{}")
	}
	_, err := st.exec(ctx, putRoomQuery, clean(string(r.ID)), string(r.Status), r.GroupID, r.Head, int64(r.Epoch),
		clean(r.Token), clean(string(r.LastEvent)), r.Machine, clean(string(r.Data)), st.millis())
	return wrap("storing a room", err)
}

// SetRoomStatus changes the module's part in a room.
func (st *Store) SetRoomStatus(ctx context.Context, room id.RoomID, status RoomStatus) error {
	_, err := st.exec(ctx, setRoomStatusQuery, string(room), string(status), st.millis())
	return wrap("changing a room's status", err)
}

// SetRoomToken notes up to where a room's history is complete.
func (st *Store) SetRoomToken(ctx context.Context, room id.RoomID, token string, last id.EventID) error {
	_, err := st.exec(ctx, setRoomTokenQuery, string(room), clean(token), clean(string(last)), st.millis())
	return wrap("noting a room's position", err)
}

// DeleteRoom forgets a room with its commits, groups, receipts and media.
func (st *Store) DeleteRoom(ctx context.Context, room id.RoomID) error {
	_, err := st.exec(ctx, deleteRoomQuery, string(room))
	return wrap("forgetting a room", err)
}

// TrimRooms forgets rooms that were left longer than keep ago, in which there
// never was a group and of which no event is held, and returns them.
func (st *Store) TrimRooms(ctx context.Context, keep time.Duration) ([]id.RoomID, error) {
	if err := st.Owned(ctx); err != nil {
		return nil, err
	}
	rows, err := st.db.Query(ctx, trimRoomsQuery, st.now().Add(-keep).UnixMilli())
	return collect(rows, err, "forgetting rooms", func(row dbutil.Scannable) (room id.RoomID, err error) {
		err = row.Scan(&room)
		return room, err
	})
}

// KnownRooms returns the status of every room.
func (st *Store) KnownRooms(ctx context.Context) (map[id.RoomID]RoomStatus, error) {
	rows, err := st.db.Query(ctx, knownRoomsQuery)
	type pair struct {
		room   id.RoomID
		status RoomStatus
	}
	list, err := collect(rows, err, "reading the rooms", func(row dbutil.Scannable) (p pair, err error) {
		err = row.Scan(&p.room, &p.status)
		return p, err
	})
	out := make(map[id.RoomID]RoomStatus, len(list))
	for _, p := range list {
		out[p.room] = p.status
	}
	return out, err
}

// CountRooms counts rooms by status.
func (st *Store) CountRooms(ctx context.Context) (map[RoomStatus]int, error) {
	rows, err := st.db.Query(ctx, countRoomsQuery)
	type pair struct {
		status RoomStatus
		n      int
	}
	list, err := collect(rows, err, "counting the rooms", func(row dbutil.Scannable) (p pair, err error) {
		err = row.Scan(&p.status, &p.n)
		return p, err
	})
	out := make(map[RoomStatus]int, len(list))
	for _, p := range list {
		out[p.status] = p.n
	}
	return out, err
}

func scanRoom(row dbutil.Scannable) (*Room, error) {
	var r Room
	var epoch, ms int64
	var data string
	err := row.Scan(&r.ID, &r.Status, &r.GroupID, &r.Head, &epoch, &r.Token, &r.LastEvent, &r.Machine, &data, &ms)
	if err != nil {
		return nil, err
	}
	r.Epoch, r.Data, r.UpdatedAt = uint64(epoch), json.RawMessage(data), time.UnixMilli(ms)
	return &r, nil
}
