package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// What is stored of an epoch is what changes with it: its head (secrets and
// context), how its tree differs from that of the epoch before, and the pages of
// its ratchets that a message touched. Every so often the tree is written whole.
const (
	maxTreeDepth = 32       // differences up to the next whole tree
	maxTreeBytes = 64 << 10 // of differences, together, up to the next whole tree
)

// putEpoch keeps an epoch that was entered.
func (c *Client) putEpoch(b *batch, r *room, e *epoch) {
	r.epochs[e.ref] = e
	c.keepRejoinSecret(b, r, e)
	tree := &store.Tree{Room: r.id, Ref: e.ref[:], Whole: true}
	if up := r.epochs[e.parent]; up != nil && up != e && up.depth+1 < maxTreeDepth && bytes.Equal(up.group.GroupID(), e.group.GroupID()) {
		delta := e.group.TreeDelta(up.group)
		if n := up.deltas + len(delta); n <= maxTreeBytes {
			tree = &store.Tree{Room: r.id, Ref: e.ref[:], Parent: e.parent[:], Depth: up.depth + 1, Bytes: n, Data: delta}
		}
	}
	if tree.Whole {
		tree.Data = e.group.RatchetTree()
	}
	e.depth, e.deltas = tree.Depth, tree.Bytes
	head := e.group.EpochHead()
	b.do(func(ctx context.Context) error {
		if err := c.st.PutEpoch(ctx, &store.Epoch{Room: r.id, Ref: e.ref[:], Parent: e.parent[:], Number: e.number, State: head}); err != nil {
			return err
		}
		return c.st.PutTree(ctx, tree)
	})
	c.putRatchet(b, r, e)
}

// putRatchet writes the ratchets of an epoch after a step: the pages that have
// changed since they were written last, when the batch is.
func (c *Client) putRatchet(b *batch, r *room, e *epoch) {
	if b.ratchets[e.ref] == e {
		return
	}
	if b.ratchets == nil {
		b.ratchets = map[federation.Ref]*epoch{}
	}
	b.ratchets[e.ref] = e
	b.then(e.group.RatchetStored)
}

// writeRatchets writes the pages of the batch's ratchets.
func (c *Client) writeRatchets(ctx context.Context, r *room, b *batch) error {
	for ref, e := range b.ratchets {
		if r.epochs[ref] != e && r.behind[ref] != e {
			continue // dropped in the same batch
		}
		var pages []store.RatchetPage
		for _, p := range e.group.RatchetChanges() {
			pages = append(pages, store.RatchetPage{ID: p.ID, Data: p.Data})
		}
		if err := c.st.PutRatchetPages(ctx, r.id, ref[:], pages); err != nil {
			return err
		}
	}
	return nil
}

// loadEpoch reads an epoch. It shares its tree with that of the epoch it was stored as
// a difference from, if it is among those that are loaded.
func (c *Client) loadEpoch(ctx context.Context, roomID id.RoomID, ref []byte, loaded map[federation.Ref]*epoch) (*epoch, error) {
	row, err := c.st.Epoch(ctx, roomID, ref)
	if err != nil {
		return nil, err
	}
	e := &epoch{number: row.Number}
	copy(e.ref[:], row.Ref)
	copy(e.parent[:], row.Parent)
	if row.Whole {
		return e, c.loadWhole(ctx, roomID, e, row)
	}
	var stored mls.StoredGroup
	tree, err := c.st.TreeOf(ctx, roomID, ref)
	if err == nil {
		var below federation.Ref
		copy(below[:], tree.Parent)
		if up := loaded[below]; up != nil && !tree.Whole {
			stored.From, stored.Deltas = up.group, [][]byte{tree.Data}
			e.depth, e.deltas = tree.Depth, tree.Bytes
		} else {
			stored.Tree, stored.Deltas, e.depth, e.deltas, err = c.st.Tree(ctx, roomID, ref)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("client: tree of epoch %d of %s: %w", row.Number, roomID, err)
	}
	pages, err := c.st.RatchetPages(ctx, roomID, ref)
	if err != nil {
		return nil, err
	}
	for _, p := range pages {
		stored.Pages = append(stored.Pages, mls.RatchetPage{ID: p.ID, Data: p.Data})
	}
	stored.Head = row.State
	if e.group, err = stored.Load(c.mlsCfg); err != nil {
		return nil, fmt.Errorf("client: epoch %d of %s: %w", row.Number, roomID, err)
	}
	return e, nil
}

// loadWhole reads an epoch that an older version stored in one piece, and stores
// it in parts.
func (c *Client) loadWhole(ctx context.Context, roomID id.RoomID, e *epoch, row *store.Epoch) error {
	ratchet, err := c.st.OldRatchet(ctx, roomID, row.Ref)
	if err != nil {
		return err
	}
	if e.group, err = mls.LoadGroup(c.mlsCfg, row.State, ratchet); err != nil {
		return fmt.Errorf("client: epoch %d of %s: %w", row.Number, roomID, err)
	}
	var pages []store.RatchetPage
	for _, p := range e.group.RatchetChanges() {
		pages = append(pages, store.RatchetPage{ID: p.ID, Data: p.Data})
	}
	err = c.st.Do(ctx, func(ctx context.Context) error {
		return errors.Join(
			c.st.PutEpoch(ctx, &store.Epoch{Room: roomID, Ref: row.Ref, Parent: row.Parent, Number: row.Number, State: e.group.EpochHead()}),
			c.st.PutTree(ctx, &store.Tree{Room: roomID, Ref: row.Ref, Whole: true, Data: e.group.RatchetTree()}),
			c.st.PutRatchetPages(ctx, roomID, row.Ref, pages),
			c.st.DeleteOldRatchet(ctx, roomID, row.Ref),
		)
	})
	if err != nil {
		return fmt.Errorf("client: store epoch %d of %s in parts: %w", row.Number, roomID, err)
	}
	e.group.RatchetStored()
	return nil
}

// changed tells whether a part of a room's record differs from what was written
// last, so that a message does not write what it leaves as it was. What a failed
// transaction did not write is read again with the room.
func (r *room) differs(part string, raw []byte) bool {
	sum := sha256.Sum256(raw)
	if r.written[part] == sum {
		return false
	}
	if r.written == nil {
		r.written = map[string][32]byte{}
	}
	r.written[part] = sum
	return true
}

// headKey is where a head is stored: each apart, for one changes with every few commits.
func headKey(roomID id.RoomID, user string) string {
	return "head/" + url.PathEscape(string(roomID)) + "/" + user
}

// writeHeads writes the heads that have changed.
func (c *Client) writeHeads(ctx context.Context, r *room) error {
	for user := range r.state.headsChanged {
		entry, ok := r.state.Entries[rooms.TypeHead][user]
		if !ok {
			if err := c.st.DeleteKV(ctx, headKey(r.id, user)); err != nil {
				return err
			}
			continue
		}
		raw, err := json.Marshal(entry)
		if err != nil {
			return fmt.Errorf("client: save the head of %s in %s: %w", user, r.id, err)
		}
		if err := c.st.PutKV(ctx, headKey(r.id, user), raw); err != nil {
			return err
		}
	}
	if r.state.oldHeads {
		if err := c.st.DeleteKV(ctx, partKey(headsPart, r.id)); err != nil {
			return err
		}
	}
	r.state.headsChanged, r.state.oldHeads = nil, false
	return nil
}

// readHeads reads a room's heads, which an older version, if it was the last to write them,
// left in the rest of the state, or beside it in one piece.
func (c *Client) readHeads(ctx context.Context, r *room) error {
	keys, err := c.st.KVKeys(ctx, headKey(r.id, ""), maxStateMembers)
	if err != nil {
		return err
	}
	heads := map[string]stateEntry{}
	for _, key := range keys {
		raw, err := c.st.GetKV(ctx, key)
		if err != nil {
			return err
		}
		var entry stateEntry
		if err := json.Unmarshal(raw, &entry); err != nil {
			return fmt.Errorf("client: %s: %w", key, err)
		}
		heads[strings.TrimPrefix(key, headKey(r.id, ""))] = entry
	}
	older, piece := r.state.Entries[rooms.TypeHead], map[string]stateEntry{}
	switch raw, err := c.st.GetKV(ctx, partKey(headsPart, r.id)); {
	case err == nil:
		if err := json.Unmarshal(raw, &piece); err != nil {
			return fmt.Errorf("client: heads of %s: %w", r.id, err)
		}
		r.state.oldHeads = true
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	if older == nil && len(piece) > 0 {
		older = piece
	}
	if older != nil {
		for user := range heads {
			r.state.changed(rooms.TypeHead, user)
		}
		heads = older
	}
	for user, entry := range heads {
		if user != string(entry.Sender) {
			delete(heads, user) // nobody reads it
		}
		if older != nil {
			r.state.changed(rooms.TypeHead, user)
		}
	}
	if len(heads) == 0 {
		delete(r.state.Entries, rooms.TypeHead)
		return nil
	}
	if len(heads) > maxHeads { // older versions kept any number
		for user := range heads {
			r.state.changed(rooms.TypeHead, user)
		}
		heads, r.state.Known = map[string]stateEntry{}, false
	}
	if r.state.Entries == nil {
		r.state.Entries = map[string]map[string]stateEntry{}
	}
	r.state.Entries[rooms.TypeHead] = heads
	return nil
}

// writeRecord writes what changed of a room's record, and of its state if asked.
func (c *Client) writeRecord(ctx context.Context, r *room, state bool) error {
	rec := r.rec
	rec.Admissions, rec.Sent = nil, 0
	type part struct {
		name  string
		v     any
		clean *cleanParts // of a part that says when it changes
	}
	parts := []part{
		{recordPart, &rec, nil}, {sentPart, r.rec.Sent, nil},
		{admissionsPart, r.rec.Admissions, &r.asWritten}, {othersPart, r.rec.Others, &r.asWritten},
	}
	if state {
		parts = append(parts, part{statePart, r.state, &r.state.asWritten})
		if err := c.writeHeads(ctx, r); err != nil {
			return err
		}
	}
	for _, part := range parts {
		if part.clean != nil && part.clean.has(part.name) {
			continue
		}
		if part.name == statePart {
			part.v = r.state.stored()
		}
		raw, err := json.Marshal(part.v)
		if err != nil {
			return fmt.Errorf("client: save %s of %s: %w", part.name, r.id, err)
		}
		if part.clean != nil {
			part.clean.keep(part.name)
		}
		if !r.differs(part.name, raw) {
			continue
		}
		if part.name == recordPart {
			err = c.st.PutRoom(ctx, r.id, raw)
		} else {
			err = c.st.PutKV(ctx, partKey(part.name, r.id), raw)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Parts of a room's record. What a large room makes long, and what every message
// changes, is kept apart.
const (
	recordPart     = "record"
	statePart      = "state"
	headsPart      = "heads" // of the state, as older versions wrote it; see headKey
	admissionsPart = "admissions"
	othersPart     = "others"
	sentPart       = "sent"

	machineBasePart = "machine-base" // of the coordination
)

// cleanParts are the parts of a record that nothing has changed since they were
// written, so that they need not be encoded to see that. Who changes one says so with
// lose. Where writing fails the room is read again, and none is clean.
type cleanParts map[string]bool

func (p *cleanParts) keep(part string) {
	if *p == nil {
		*p = cleanParts{}
	}
	(*p)[part] = true
}

func (p *cleanParts) lose(parts ...string) {
	for _, part := range parts {
		delete(*p, part)
	}
}

func (p *cleanParts) has(part string) bool { return (*p)[part] }

func partKey(part string, roomID id.RoomID) string { return part + "/" + string(roomID) }

// readRecord reads a room's record.
func (c *Client) readRecord(ctx context.Context, r *room) error {
	raw, err := c.st.Room(ctx, r.id)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(raw, &r.rec); err != nil {
			return fmt.Errorf("client: record of %s: %w", r.id, err)
		}
	}
	for part, v := range map[string]any{admissionsPart: &r.rec.Admissions, othersPart: &r.rec.Others, sentPart: &r.rec.Sent, statePart: r.state} {
		raw, err := c.st.GetKV(ctx, partKey(part, r.id))
		if errors.Is(err, store.ErrNotFound) {
			continue // or, of an older version, in the record
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(raw, v); err != nil {
			return fmt.Errorf("client: %s of %s: %w", part, r.id, err)
		}
	}
	r.state.room = r.id
	if err := c.readHeads(ctx, r); err != nil {
		return err
	}
	r.state.rebuild()
	return nil
}
