package store

import (
	"context"
	"fmt"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/id"
)

const (
	getAccountQuery = `SELECT user_id, device_id, homeserver, data FROM account WHERE id = 1`
	putAccountQuery = `INSERT INTO account (id, user_id, device_id, homeserver, data) VALUES (1, $1, $2, $3, $4)
		ON CONFLICT (id) DO UPDATE SET user_id = excluded.user_id, device_id = excluded.device_id,
			homeserver = excluded.homeserver, data = excluded.data`
	deleteAccountQuery = `DELETE FROM account`

	getKVQuery     = `SELECT data FROM kv WHERE key = $1`
	putKVQuery     = `INSERT INTO kv (key, data) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET data = excluded.data`
	deleteKVQuery  = `DELETE FROM kv WHERE key = $1`
	deleteKVsQuery = `DELETE FROM kv WHERE key >= $1 AND key < $2`
	kvKeysQuery    = `SELECT key FROM kv WHERE key >= $1 AND key < $2 ORDER BY key LIMIT $3`

	getDeviceListQuery = `SELECT outdated, data FROM device_lists WHERE user_id = $1`
	putDeviceListQuery = `INSERT INTO device_lists (user_id, outdated, data) VALUES ($1, $2, $3)
		ON CONFLICT (user_id) DO UPDATE SET outdated = excluded.outdated, data = excluded.data`
	markOutdatedQuery     = `UPDATE device_lists SET outdated = 1 WHERE user_id = $1`
	outdatedDevicesQuery  = `SELECT user_id FROM device_lists WHERE outdated = 1 ORDER BY user_id`
	allDeviceListsQuery   = `SELECT user_id FROM device_lists ORDER BY user_id`
	deleteDeviceListQuery = `DELETE FROM device_lists WHERE user_id = $1`
)

// Account is the logged-in device. Data holds its secrets (access token, keys)
// in the form the identity package gives them.
type Account struct {
	UserID     id.UserID
	DeviceID   id.DeviceID
	Homeserver string
	Data       []byte
}

// Account returns the account, or ErrNotFound when nobody is logged in.
func (s *Store) Account(ctx context.Context) (*Account, error) {
	var a Account
	var sealed []byte
	if err := s.one(ctx, "account", getAccountQuery, nil, &a.UserID, &a.DeviceID, &a.Homeserver, &sealed); err != nil {
		return nil, err
	}
	var err error
	if a.Data, err = s.open(sealed, place("account", a.UserID.String(), a.DeviceID.String(), a.Homeserver)); err != nil {
		return nil, err
	}
	return &a, nil
}

// PutAccount writes the account.
func (s *Store) PutAccount(ctx context.Context, a *Account) error {
	sealed, err := s.seal(a.Data, place("account", a.UserID.String(), a.DeviceID.String(), a.Homeserver))
	if err != nil {
		return err
	}
	return s.exec(ctx, "account", putAccountQuery, a.UserID, a.DeviceID, a.Homeserver, sealed)
}

// Wipe empties the store after a logout: account, keys, groups and messages.
func (s *Store) Wipe(ctx context.Context) error {
	return s.Do(ctx, func(ctx context.Context) error {
		for _, table := range []string{
			"account", "key_packages", "device_lists", "rooms", "machines", "epochs", "trees", "ratchets", "ratchet_pages", "rejoin_secrets",
			"pending_commits", "outbox", "inbox", "seen", "timeline",
		} {
			if err := s.exec(ctx, table, "DELETE FROM "+table); err != nil {
				return err
			}
		}
		return s.exec(ctx, "kv", `DELETE FROM kv WHERE key <> $1`, kvCheck)
	})
}

// GetKV returns the value of a key, or ErrNotFound.
func (s *Store) GetKV(ctx context.Context, key string) ([]byte, error) {
	var sealed []byte
	if err := s.one(ctx, "kv", getKVQuery, []any{key}, &sealed); err != nil {
		return nil, err
	}
	return s.open(sealed, place("kv", key))
}

// PutKV writes the value of a key.
func (s *Store) PutKV(ctx context.Context, key string, value []byte) error {
	sealed, err := s.seal(value, place("kv", key))
	if err != nil {
		return err
	}
	return s.exec(ctx, "kv", putKVQuery, key, sealed)
}

// DeleteKV removes a key; an absent one is no error.
func (s *Store) DeleteKV(ctx context.Context, key string) error {
	return s.exec(ctx, "kv", deleteKVQuery, key)
}

// DeleteKVs removes all keys that begin with a prefix, which ends with a character
// of ASCII.
func (s *Store) DeleteKVs(ctx context.Context, prefix string) error {
	return s.exec(ctx, "kv", deleteKVsQuery, prefix, afterPrefix(prefix))
}

// afterPrefix is the first key after all that begin with a prefix.
func afterPrefix(prefix string) string {
	return prefix[:len(prefix)-1] + string(rune(prefix[len(prefix)-1]+1))
}

// KVKeys returns the first keys, in their order, that begin with a prefix, which ends
// with a character of ASCII.
func (s *Store) KVKeys(ctx context.Context, prefix string, limit int) (keys []string, err error) {
	err = s.each(ctx, "kv", kvKeysQuery, []any{prefix, afterPrefix(prefix), limit}, func(row dbutil.Scannable) error {
		var key string
		err := row.Scan(&key)
		keys = append(keys, key)
		return err
	})
	return keys, err
}

// DeviceList returns what is stored about a user's devices and whether it is
// outdated, or ErrNotFound.
func (s *Store) DeviceList(ctx context.Context, user id.UserID) (data []byte, outdated bool, err error) {
	var sealed []byte
	if err := s.one(ctx, "device_lists", getDeviceListQuery, []any{user}, &outdated, &sealed); err != nil {
		return nil, false, err
	}
	data, err = s.open(sealed, place("device_lists", user.String()))
	return data, outdated, err
}

// PutDeviceList writes what is known about a user's devices.
func (s *Store) PutDeviceList(ctx context.Context, user id.UserID, data []byte, outdated bool) error {
	sealed, err := s.seal(data, place("device_lists", user.String()))
	if err != nil {
		return err
	}
	return s.exec(ctx, "device_lists", putDeviceListQuery, user, outdated, sealed)
}

// MarkDeviceListOutdated notes that a stored device list must be fetched again.
// A user who is not stored stays so.
func (s *Store) MarkDeviceListOutdated(ctx context.Context, user id.UserID) error {
	return s.exec(ctx, "device_lists", markOutdatedQuery, user)
}

// OutdatedDeviceLists returns the users whose stored lists are outdated.
func (s *Store) OutdatedDeviceLists(ctx context.Context) ([]id.UserID, error) {
	return s.users(ctx, outdatedDevicesQuery)
}

// DeviceListUsers returns every user with a stored device list.
func (s *Store) DeviceListUsers(ctx context.Context) ([]id.UserID, error) {
	return s.users(ctx, allDeviceListsQuery)
}

func (s *Store) users(ctx context.Context, query string) (users []id.UserID, err error) {
	err = s.each(ctx, "device_lists", query, nil, func(row dbutil.Scannable) error {
		var u id.UserID
		if err := row.Scan(&u); err != nil {
			return err
		}
		users = append(users, u)
		return nil
	})
	return users, err
}

// DeleteDeviceList forgets a user's devices.
func (s *Store) DeleteDeviceList(ctx context.Context, user id.UserID) error {
	return s.exec(ctx, "device_lists", deleteDeviceListQuery, user)
}

// sealedList reads a query whose last column is sealed. scan receives the row
// and a place to scan the blob into; at names the place once the key is known.
func (s *Store) sealedList(ctx context.Context, table, query string, args []any,
	scan func(row dbutil.Scannable, sealed *[]byte) (at []byte, set func(plain []byte), err error)) error {
	return s.each(ctx, table, query, args, func(row dbutil.Scannable) error {
		var sealed []byte
		at, set, err := scan(row, &sealed)
		if err != nil {
			return err
		}
		plain, err := s.open(sealed, at)
		if err != nil {
			return fmt.Errorf("a value of %s: %w", table, err)
		}
		set(plain)
		return nil
	})
}
