package store

import (
	"context"
	"time"

	"go.mau.fi/util/dbutil"
)

// KeyPackageState is how far a key package of our own has come.
type KeyPackageState int

const (
	// KeyPackageMade is stored, but perhaps not at the homeserver.
	KeyPackageMade KeyPackageState = iota
	// KeyPackageUploaded is at the homeserver.
	KeyPackageUploaded
	// KeyPackageDirect was handed out to whoever asked this device for one.
	KeyPackageDirect
	// KeyPackageUsed is one of last resort that opened an epoch, which may come again.
	KeyPackageUsed
	// KeyPackageShared may have opened an epoch that the store does not know of: it is in
	// another copy of the store, too, or was used, and what it opened is forgotten.
	KeyPackageShared
)

const (
	putKeyPackageQuery = `INSERT INTO key_packages (ref, suite, last_resort, state, created_at, expires_at, data)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`
	getKeyPackageQuery    = `SELECT ref, suite, last_resort, state, created_at, expires_at, data FROM key_packages WHERE ref = $1`
	listKeyPackagesQuery  = `SELECT ref, suite, last_resort, state, created_at, expires_at, '' FROM key_packages ORDER BY created_at, ref`
	keyPackageStateQuery  = `UPDATE key_packages SET state = $2 WHERE ref = $1 AND state < $2`
	shareKeyPackagesQuery = `UPDATE key_packages SET state = $1 WHERE state < $1 AND state >= $2`
	deleteKeyPackageQuery = `DELETE FROM key_packages WHERE ref = $1`
)

// KeyPackage is one key package of our own with its private parts.
type KeyPackage struct {
	Ref        []byte
	Suite      uint16
	LastResort bool
	State      KeyPackageState
	Created    time.Time
	Expires    time.Time
	Bundle     []byte // sealed at rest; empty in [Store.KeyPackages]
}

// AddKeyPackage stores a new key package. That happens before it is uploaded: a
// Welcome for it may come at once.
func (s *Store) AddKeyPackage(ctx context.Context, kp *KeyPackage) error {
	sealed, err := s.seal(kp.Bundle, place("key_packages", string(kp.Ref)))
	if err != nil {
		return err
	}
	return s.exec(ctx, "key_packages", putKeyPackageQuery, kp.Ref, int(kp.Suite), kp.LastResort, int(kp.State),
		kp.Created.UnixMilli(), kp.Expires.UnixMilli(), sealed)
}

// KeyPackage returns the key package with the reference, or ErrNotFound.
func (s *Store) KeyPackage(ctx context.Context, ref []byte) (*KeyPackage, error) {
	var out *KeyPackage
	err := s.each(ctx, "key_packages", getKeyPackageQuery, []any{ref}, func(row dbutil.Scannable) error {
		kp, sealed, err := scanKeyPackage(row)
		if err != nil {
			return err
		}
		kp.Bundle, err = s.open(sealed, place("key_packages", string(kp.Ref)))
		out = kp
		return err
	})
	if err == nil && out == nil {
		err = ErrNotFound
	}
	return out, err
}

// KeyPackages lists all key packages, oldest first, without their bundles.
func (s *Store) KeyPackages(ctx context.Context) (all []*KeyPackage, err error) {
	err = s.each(ctx, "key_packages", listKeyPackagesQuery, nil, func(row dbutil.Scannable) error {
		kp, _, err := scanKeyPackage(row)
		all = append(all, kp)
		return err
	})
	return all, err
}

func scanKeyPackage(row dbutil.Scannable) (*KeyPackage, []byte, error) {
	var kp KeyPackage
	var created, expires int64
	var sealed []byte
	if err := row.Scan(&kp.Ref, &kp.Suite, &kp.LastResort, &kp.State, &created, &expires, &sealed); err != nil {
		return nil, nil, err
	}
	kp.Created, kp.Expires = time.UnixMilli(created), time.UnixMilli(expires)
	return &kp, sealed, nil
}

// MarkKeyPackageUploaded notes that the homeserver has the key package.
func (s *Store) MarkKeyPackageUploaded(ctx context.Context, ref []byte) error {
	return s.exec(ctx, "key_packages", keyPackageStateQuery, ref, int(KeyPackageUploaded))
}

// MarkKeyPackageUsed notes that a key package of last resort opened an epoch.
func (s *Store) MarkKeyPackageUsed(ctx context.Context, ref []byte) error {
	return s.exec(ctx, "key_packages", keyPackageStateQuery, ref, int(KeyPackageUsed))
}

// ShareKeyPackages notes that all key packages there are are [KeyPackageShared].
func (s *Store) ShareKeyPackages(ctx context.Context) error {
	return s.exec(ctx, "key_packages", shareKeyPackagesQuery, int(KeyPackageShared), int(KeyPackageMade))
}

// DeleteKeyPackage removes a key package and its private parts.
func (s *Store) DeleteKeyPackage(ctx context.Context, ref []byte) error {
	return s.exec(ctx, "key_packages", deleteKeyPackageQuery, ref)
}
