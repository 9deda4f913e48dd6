package store

import (
	"context"
	"fmt"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	putTreeQuery = `INSERT INTO trees (room_id, ref, parent, whole, depth, bytes, data) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (room_id, ref) DO UPDATE SET parent = excluded.parent, whole = excluded.whole, depth = excluded.depth,
			bytes = excluded.bytes, data = excluded.data`
	getTreeQuery    = `SELECT parent, whole, depth, bytes, data FROM trees WHERE room_id = $1 AND ref = $2`
	listTreesQuery  = `SELECT ref, parent, whole FROM trees WHERE room_id = $1`
	deleteTreeQuery = `DELETE FROM trees WHERE room_id = $1 AND ref = $2`

	putPageQuery = `INSERT INTO ratchet_pages (room_id, ref, page, data) VALUES ($1, $2, $3, $4)
		ON CONFLICT (room_id, ref, page) DO UPDATE SET data = excluded.data`
	listPagesQuery   = `SELECT page, data FROM ratchet_pages WHERE room_id = $1 AND ref = $2 ORDER BY page`
	deletePageQuery  = `DELETE FROM ratchet_pages WHERE room_id = $1 AND ref = $2 AND page = $3`
	deletePagesQuery = `DELETE FROM ratchet_pages WHERE room_id = $1 AND ref = $2`
)

// Tree is the ratchet tree of an epoch: whole, or as a difference from that of
// the epoch Parent. It is public, and outlives its epoch for as long as a later
// one builds on it.
type Tree struct {
	Room   id.RoomID
	Ref    []byte
	Parent []byte // of a difference
	Whole  bool
	Depth  int // differences down to a whole tree
	Bytes  int // of these differences, together
	Data   []byte
}

// MaxTreeDepth bounds the differences that lead to a tree.
const MaxTreeDepth = 256

func treePlace(room id.RoomID, ref []byte) []byte {
	return place("trees", room.String(), string(ref))
}

// PutTree writes the tree of an epoch.
func (s *Store) PutTree(ctx context.Context, t *Tree) error {
	sealed, err := s.seal(t.Data, treePlace(t.Room, t.Ref))
	if err != nil {
		return err
	}
	return s.exec(ctx, "trees", putTreeQuery, t.Room, t.Ref, blob(t.Parent), t.Whole, t.Depth, t.Bytes, sealed)
}

// TreeOf returns the tree of an epoch as it is stored, or ErrNotFound.
func (s *Store) TreeOf(ctx context.Context, room id.RoomID, ref []byte) (*Tree, error) {
	t := &Tree{Room: room, Ref: ref}
	var sealed []byte
	if err := s.one(ctx, "trees", getTreeQuery, []any{room, ref}, &t.Parent, &t.Whole, &t.Depth, &t.Bytes, &sealed); err != nil {
		return nil, err
	}
	var err error
	t.Data, err = s.open(sealed, treePlace(room, ref))
	return t, err
}

// Tree returns what the tree of an epoch is made of: a whole tree, and the
// differences from there, in order. The last two results are Depth and Bytes of
// the epoch's own row.
func (s *Store) Tree(ctx context.Context, room id.RoomID, ref []byte) (whole []byte, deltas [][]byte, depth, bytes int, err error) {
	at := ref
	for n := 0; n <= MaxTreeDepth; n++ {
		t, err := s.TreeOf(ctx, room, at)
		if err != nil {
			return nil, nil, 0, 0, err
		}
		if n == 0 {
			depth, bytes = t.Depth, t.Bytes
		}
		if t.Whole {
			for i, j := 0, len(deltas)-1; i < j; i, j = i+1, j-1 {
				deltas[i], deltas[j] = deltas[j], deltas[i]
			}
			return t.Data, deltas, depth, bytes, nil
		}
		deltas = append(deltas, t.Data)
		at = t.Parent
	}
	return nil, nil, 0, 0, fmt.Errorf("store: a tree of %s leads to no whole one", room)
}

// PruneTrees removes the trees that no epoch of the room needs any more.
func (s *Store) PruneTrees(ctx context.Context, room id.RoomID) error {
	epochs, err := s.Epochs(ctx, room)
	if err != nil {
		return err
	}
	parents := map[string]string{} // of differences
	var all [][]byte
	if err := s.each(ctx, "trees", listTreesQuery, []any{room}, func(row dbutil.Scannable) error {
		var t Tree
		if err := row.Scan(&t.Ref, &t.Parent, &t.Whole); err != nil {
			return err
		}
		all = append(all, t.Ref)
		if !t.Whole {
			parents[string(t.Ref)] = string(t.Parent)
		}
		return nil
	}); err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, e := range epochs {
		for at, more := string(e.Ref), true; more && !needed[at]; at, more = parents[at] {
			needed[at] = true
		}
	}
	for _, ref := range all {
		if !needed[string(ref)] {
			if err := s.exec(ctx, "trees", deleteTreeQuery, room, ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// RatchetPage is a part of the ratchets of an epoch. One without data is removed.
type RatchetPage struct {
	ID   uint64
	Data []byte
}

func pagePlace(room id.RoomID, ref []byte, page uint64) []byte {
	return place("ratchet_pages", room.String(), string(ref), fmt.Sprint(page))
}

// PutRatchetPages writes the parts of an epoch's ratchets that have changed. They
// only ever move forward: nothing may write an older part over a newer one.
func (s *Store) PutRatchetPages(ctx context.Context, room id.RoomID, ref []byte, pages []RatchetPage) error {
	for _, p := range pages {
		if p.Data == nil {
			if err := s.exec(ctx, "ratchet_pages", deletePageQuery, room, ref, int64(p.ID)); err != nil {
				return err
			}
			continue
		}
		sealed, err := s.seal(p.Data, pagePlace(room, ref, p.ID))
		if err != nil {
			return err
		}
		if err := s.exec(ctx, "ratchet_pages", putPageQuery, room, ref, int64(p.ID), sealed); err != nil {
			return err
		}
	}
	return nil
}

// RatchetPages returns the parts of an epoch's ratchets.
func (s *Store) RatchetPages(ctx context.Context, room id.RoomID, ref []byte) (all []RatchetPage, err error) {
	err = s.sealedList(ctx, "ratchet_pages", listPagesQuery, []any{room, ref}, func(row dbutil.Scannable, sealed *[]byte) ([]byte, func([]byte), error) {
		var page int64
		err := row.Scan(&page, sealed)
		return pagePlace(room, ref, uint64(page)), func(plain []byte) { all = append(all, RatchetPage{ID: uint64(page), Data: plain}) }, err
	})
	return all, err
}

// SealedRatchets returns what the store's file holds of an epoch's ratchets, as
// it is there: for looking whether deleted secrets are gone.
func (s *Store) SealedRatchets(ctx context.Context, room id.RoomID, ref []byte) (all [][]byte, err error) {
	err = s.each(ctx, "ratchet_pages", listPagesQuery, []any{room, ref}, func(row dbutil.Scannable) error {
		var page int64
		var sealed []byte
		err := row.Scan(&page, &sealed)
		all = append(all, sealed)
		return err
	})
	return all, err
}
