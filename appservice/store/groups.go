package store

import (
	"context"
	"encoding/json"
	"math"
	"time"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	putCommitQuery = `
		INSERT INTO commits (room_id, ref, parent, epoch, event_id, sender, status, content)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (room_id, ref) DO UPDATE SET status=excluded.status`
	commitColumns      = `SELECT ref, parent, epoch, event_id, sender, status, content FROM commits `
	getCommitQuery     = commitColumns + `WHERE room_id=$1 AND ref=$2`
	childCommitQuery   = commitColumns + `WHERE room_id=$1 AND parent=$2 ORDER BY ref`
	roomCommitQuery    = commitColumns + `WHERE room_id=$1 ORDER BY epoch, ref`
	commitByEventQuery = commitColumns + `WHERE room_id=$1 AND event_id=$2`
	commitStatusQuery  = `UPDATE commits SET status=$3 WHERE room_id=$1 AND ref=$2`

	putGroupQuery = `
		INSERT INTO public_groups (room_id, ref, state) VALUES ($1, $2, $3)
		ON CONFLICT (room_id, ref) DO UPDATE SET state=excluded.state`
	getGroupQuery    = `SELECT state FROM public_groups WHERE room_id=$1 AND ref=$2`
	groupRefsQuery   = `SELECT ref FROM public_groups WHERE room_id=$1 ORDER BY ref`
	deleteGroupQuery = `DELETE FROM public_groups WHERE room_id=$1 AND ref=$2`

	putReceiptQuery = `
		INSERT INTO receipts (room_id, hash, kind, signer, ref, counter, event_id, content)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (room_id, hash) DO UPDATE SET event_id=CASE WHEN receipts.event_id='' THEN excluded.event_id ELSE receipts.event_id END`
	receiptColumns      = `SELECT hash, kind, signer, ref, counter, event_id, content FROM receipts `
	roomReceiptQuery    = receiptColumns + `WHERE room_id=$1 ORDER BY signer, counter, hash`
	getReceiptQuery     = receiptColumns + `WHERE room_id=$1 AND hash=$2`
	newestReceiptQuery  = receiptColumns + `WHERE room_id=$1 AND signer=$2 ORDER BY counter DESC LIMIT 1`
	receiptsByRefQuery  = receiptColumns + `WHERE room_id=$1 AND ref=$2 ORDER BY signer, counter, hash`
	receiptEventQuery   = receiptColumns + `WHERE room_id=$1 AND event_id=$2 LIMIT 1`
	receiptsAboveQuery  = receiptColumns + `WHERE room_id=$1 AND signer=$2 AND counter>$3 ORDER BY counter, hash LIMIT $4`
	dropReceiptsQuery   = `DELETE FROM receipts WHERE room_id=$1 AND ref=$2 AND signer<>$3`
	putMediaQuery       = `INSERT INTO media (room_id, sha256, uri, size, purpose, ref, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (room_id, sha256) DO UPDATE SET uri=excluded.uri, ref=excluded.ref, created_at=excluded.created_at`
	mediaColumns        = `SELECT sha256, uri, size, purpose, ref, created_at FROM media `
	getMediaQuery       = mediaColumns + `WHERE room_id=$1 AND sha256=$2`
	roomMediaQuery      = mediaColumns + `WHERE room_id=$1 AND purpose=$2 ORDER BY created_at DESC, sha256 LIMIT $3`
	deleteCommitQuery   = `DELETE FROM commits WHERE room_id=$1 AND ref=$2`
	countCommitsQuery   = `SELECT COUNT(*) FROM commits WHERE room_id=$1`
	deleteReceiptsQuery = `DELETE FROM receipts WHERE room_id=$1 AND hash=$2`
)

// Commit is a commit event that the module holds. Refs are hex.
type Commit struct {
	Ref     string
	Parent  string // empty for the root
	Epoch   uint64
	EventID id.EventID
	Sender  id.UserID
	Status  string // the engine's word
	Content json.RawMessage
}

// PutCommit stores a commit; of a known ref only the status changes.
func (st *Store) PutCommit(ctx context.Context, room id.RoomID, c *Commit) error {
	_, err := st.exec(ctx, putCommitQuery, string(room), c.Ref, c.Parent, int64(c.Epoch), clean(string(c.EventID)),
		clean(string(c.Sender)), c.Status, clean(string(c.Content)))
	return wrap("storing a commit", err)
}

// Commit returns a commit by ref, or [ErrNotFound].
func (st *Store) Commit(ctx context.Context, room id.RoomID, ref string) (*Commit, error) {
	c, err := scanCommit(st.db.QueryRow(ctx, getCommitQuery, string(room), ref))
	return c, wrap("reading a commit", err)
}

// CommitByEvent returns the commit that an event carried, or [ErrNotFound].
func (st *Store) CommitByEvent(ctx context.Context, room id.RoomID, event id.EventID) (*Commit, error) {
	c, err := scanCommit(st.db.QueryRow(ctx, commitByEventQuery, string(room), string(event)))
	return c, wrap("reading a commit", err)
}

// Children returns the commits on a parent, in the order of their refs.
func (st *Store) Children(ctx context.Context, room id.RoomID, parent string) ([]*Commit, error) {
	rows, err := st.db.Query(ctx, childCommitQuery, string(room), parent)
	return collect(rows, err, "reading commits", scanCommit)
}

// Commits returns all commits of a room by epoch and ref.
func (st *Store) Commits(ctx context.Context, room id.RoomID) ([]*Commit, error) {
	rows, err := st.db.Query(ctx, roomCommitQuery, string(room))
	return collect(rows, err, "reading commits", scanCommit)
}

// SetCommitStatus changes the engine's word on a commit.
func (st *Store) SetCommitStatus(ctx context.Context, room id.RoomID, ref, status string) error {
	_, err := st.exec(ctx, commitStatusQuery, string(room), ref, status)
	return wrap("marking a commit", err)
}

// DeleteCommit forgets a commit.
func (st *Store) DeleteCommit(ctx context.Context, room id.RoomID, ref string) error {
	_, err := st.exec(ctx, deleteCommitQuery, string(room), ref)
	return wrap("forgetting a commit", err)
}

// CountCommits counts a room's commits.
func (st *Store) CountCommits(ctx context.Context, room id.RoomID) (n int, err error) {
	err = st.db.QueryRow(ctx, countCommitsQuery, string(room)).Scan(&n)
	return n, wrap("counting commits", err)
}

func scanCommit(row dbutil.Scannable) (*Commit, error) {
	var c Commit
	var epoch int64
	var content string
	if err := row.Scan(&c.Ref, &c.Parent, &epoch, &c.EventID, &c.Sender, &c.Status, &content); err != nil {
		return nil, err
	}
	c.Epoch, c.Content = uint64(epoch), json.RawMessage(content)
	return &c, nil
}

// PutGroup stores the public group state after a commit.
func (st *Store) PutGroup(ctx context.Context, room id.RoomID, ref string, state []byte) error {
	_, err := st.exec(ctx, putGroupQuery, string(room), ref, state)
	return wrap("storing a group's state", err)
}

// Group returns the public group state after a commit, or [ErrNotFound].
func (st *Store) Group(ctx context.Context, room id.RoomID, ref string) (state []byte, err error) {
	err = st.db.QueryRow(ctx, getGroupQuery, string(room), ref).Scan(&state)
	return state, wrap("reading a group's state", err)
}

// GroupRefs lists the refs whose group state is held.
func (st *Store) GroupRefs(ctx context.Context, room id.RoomID) ([]string, error) {
	rows, err := st.db.Query(ctx, groupRefsQuery, string(room))
	return collect(rows, err, "reading group states", func(row dbutil.Scannable) (ref string, err error) {
		err = row.Scan(&ref)
		return ref, err
	})
}

// DeleteGroup forgets the group state after a commit.
func (st *Store) DeleteGroup(ctx context.Context, room id.RoomID, ref string) error {
	_, err := st.exec(ctx, deleteGroupQuery, string(room), ref)
	return wrap("forgetting a group's state", err)
}

// Receipt is a signed statement in the form it had in its event. Hash and Ref
// are hex.
type Receipt struct {
	Hash    string
	Kind    string // accept, vote, promise, ready, applied, reject
	Signer  string // receipt key or leaf, as the engine names it
	Ref     string
	Counter uint64
	EventID id.EventID // empty: not seen in the room yet
	Content json.RawMessage
}

// PutReceipt stores a receipt; of a known one only a missing event id is
// filled in.
func (st *Store) PutReceipt(ctx context.Context, room id.RoomID, r *Receipt) error {
	_, err := st.exec(ctx, putReceiptQuery, string(room), r.Hash, r.Kind, clean(r.Signer), r.Ref, int64(r.Counter),
		clean(string(r.EventID)), clean(string(r.Content)))
	return wrap("storing a receipt", err)
}

// Receipt returns a receipt by hash, or [ErrNotFound].
func (st *Store) Receipt(ctx context.Context, room id.RoomID, hash string) (*Receipt, error) {
	r, err := scanReceipt(st.db.QueryRow(ctx, getReceiptQuery, string(room), hash))
	return r, wrap("reading a receipt", err)
}

// NewestReceipt returns a signer's receipt with the highest counter, or
// [ErrNotFound].
func (st *Store) NewestReceipt(ctx context.Context, room id.RoomID, signer string) (*Receipt, error) {
	r, err := scanReceipt(st.db.QueryRow(ctx, newestReceiptQuery, string(room), signer))
	return r, wrap("reading a receipt", err)
}

// Receipts returns all receipts of a room by signer and counter.
func (st *Store) Receipts(ctx context.Context, room id.RoomID) ([]*Receipt, error) {
	rows, err := st.db.Query(ctx, roomReceiptQuery, string(room))
	return collect(rows, err, "reading receipts", scanReceipt)
}

// ReceiptsFor returns the receipts that name a ref.
func (st *Store) ReceiptsFor(ctx context.Context, room id.RoomID, ref string) ([]*Receipt, error) {
	rows, err := st.db.Query(ctx, receiptsByRefQuery, string(room), ref)
	return collect(rows, err, "reading receipts", scanReceipt)
}

// ReceiptByEvent returns the receipt that an event carried, or [ErrNotFound].
func (st *Store) ReceiptByEvent(ctx context.Context, room id.RoomID, event id.EventID) (*Receipt, error) {
	r, err := scanReceipt(st.db.QueryRow(ctx, receiptEventQuery, string(room), string(event)))
	return r, wrap("reading a receipt", err)
}

// ReceiptsAbove returns a signer's receipts above a counter, the lowest first.
func (st *Store) ReceiptsAbove(ctx context.Context, room id.RoomID, signer string, counter uint64, limit int) ([]*Receipt, error) {
	rows, err := st.db.Query(ctx, receiptsAboveQuery, string(room), signer, int64(min(counter, math.MaxInt64)), limit)
	return collect(rows, err, "reading receipts", scanReceipt)
}

// DropReceipts forgets the receipts about a commit of all signers but one.
func (st *Store) DropReceipts(ctx context.Context, room id.RoomID, ref, except string) error {
	_, err := st.exec(ctx, dropReceiptsQuery, string(room), ref, except)
	return wrap("forgetting receipts", err)
}

// DeleteReceipt forgets a receipt.
func (st *Store) DeleteReceipt(ctx context.Context, room id.RoomID, hash string) error {
	_, err := st.exec(ctx, deleteReceiptsQuery, string(room), hash)
	return wrap("forgetting a receipt", err)
}

func scanReceipt(row dbutil.Scannable) (*Receipt, error) {
	var r Receipt
	var counter int64
	var content string
	if err := row.Scan(&r.Hash, &r.Kind, &r.Signer, &r.Ref, &counter, &r.EventID, &content); err != nil {
		return nil, err
	}
	r.Counter, r.Content = uint64(counter), json.RawMessage(content)
	return &r, nil
}

// Media is something the module uploaded for a room.
type Media struct {
	SHA256    string // hex
	URI       id.ContentURIString
	Size      int64
	Purpose   string // such as "tree" or "proofs"
	Ref       string
	CreatedAt time.Time
}

// PutMedia notes an upload; the same bytes uploaded again replace the address.
func (st *Store) PutMedia(ctx context.Context, room id.RoomID, m *Media) error {
	_, err := st.exec(ctx, putMediaQuery, string(room), m.SHA256, clean(string(m.URI)), m.Size, m.Purpose, m.Ref, st.millis())
	return wrap("noting an upload", err)
}

// Media returns an upload by the hash of its bytes, or [ErrNotFound].
func (st *Store) Media(ctx context.Context, room id.RoomID, sha256 string) (*Media, error) {
	m, err := scanMedia(st.db.QueryRow(ctx, getMediaQuery, string(room), sha256))
	return m, wrap("reading an upload", err)
}

// RoomMedia returns a room's uploads for a purpose, newest first.
func (st *Store) RoomMedia(ctx context.Context, room id.RoomID, purpose string, limit int) ([]*Media, error) {
	rows, err := st.db.Query(ctx, roomMediaQuery, string(room), purpose, limit)
	return collect(rows, err, "reading uploads", scanMedia)
}

func scanMedia(row dbutil.Scannable) (*Media, error) {
	var m Media
	var ms int64
	if err := row.Scan(&m.SHA256, &m.URI, &m.Size, &m.Purpose, &m.Ref, &ms); err != nil {
		return nil, err
	}
	m.CreatedAt = time.UnixMilli(ms)
	return &m, nil
}
