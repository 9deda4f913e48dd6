package store

import (
	"context"
	"errors"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	putRejoinQuery = `INSERT INTO rejoin_secrets (room_id, ref, number, data) VALUES ($1, $2, $3, $4)
		ON CONFLICT (room_id, ref) DO UPDATE SET number = excluded.number, data = excluded.data`
	getRejoinQuery    = `SELECT data FROM rejoin_secrets WHERE room_id = $1 AND ref = $2`
	newestRejoinQuery = `SELECT ref, data FROM rejoin_secrets WHERE room_id = $1 ORDER BY number DESC, ref LIMIT 1`
	pruneRejoinQuery  = `DELETE FROM rejoin_secrets WHERE room_id = $1 AND number < $2`
)

// PutRejoinSecret writes the secret by which a device shows, or checks, that it
// was in an epoch. It opens no message of that epoch and outlives it.
func (s *Store) PutRejoinSecret(ctx context.Context, room id.RoomID, ref []byte, number uint64, secret []byte) error {
	sealed, err := s.seal(secret, place("rejoin_secrets", room.String(), string(ref)))
	if err != nil {
		return err
	}
	return s.exec(ctx, "rejoin_secrets", putRejoinQuery, room, ref, int64(number), sealed)
}

// RejoinSecret returns the rejoin secret of an epoch, or ErrNotFound.
func (s *Store) RejoinSecret(ctx context.Context, room id.RoomID, ref []byte) ([]byte, error) {
	return s.sealedOne(ctx, "rejoin_secrets", getRejoinQuery, []any{room, ref}, place("rejoin_secrets", room.String(), string(ref)))
}

// NewestRejoinSecret returns the rejoin secret of the highest epoch held of a
// room, or ErrNotFound.
func (s *Store) NewestRejoinSecret(ctx context.Context, room id.RoomID) (ref, secret []byte, err error) {
	err = s.sealedList(ctx, "rejoin_secrets", newestRejoinQuery, []any{room}, func(row dbutil.Scannable, sealed *[]byte) ([]byte, func([]byte), error) {
		var at []byte
		err := row.Scan(&at, sealed)
		return place("rejoin_secrets", room.String(), string(at)), func(plain []byte) { ref, secret = at, plain }, err
	})
	if err == nil && secret == nil {
		err = ErrNotFound
	}
	return ref, secret, err
}

// PruneRejoinSecrets removes the secrets of a room's epochs below a number. They showed
// which epochs a key package opened: those that were used are [KeyPackageShared] from then on.
func (s *Store) PruneRejoinSecrets(ctx context.Context, room id.RoomID, below uint64) error {
	return errors.Join(
		s.exec(ctx, "rejoin_secrets", pruneRejoinQuery, room, int64(below)),
		s.exec(ctx, "key_packages", shareKeyPackagesQuery, int(KeyPackageShared), int(KeyPackageUsed)),
	)
}
