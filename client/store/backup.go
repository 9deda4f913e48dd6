package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/matrix-mls/matrix-mls/client/sealed"
)

// A backup is a sealed file (package sealed) that holds the store key and the
// SQLite file.
const (
	backupMagic    = "matrix-mls client backup v1\n"
	maxBackupBytes = 64 << 30
)

// Errors of backups.
var (
	// ErrBackupSecret reports that the passphrase or key does not open a backup, or
	// that the backup was changed or cut off.
	ErrBackupSecret = errors.New("store: the passphrase or key does not open this backup, or the file is damaged")
	// ErrNoBackup reports that a file is no backup.
	ErrNoBackup = errors.New("store: the file is no backup of a client")
	// ErrExists reports that something is where a backup is to be restored.
	ErrExists = errors.New("store: there is a store already")
)

// BackupSecret opens a backup: a passphrase or a key. One of the two is set.
type BackupSecret struct {
	Passphrase string
	Key        Key
}

// String returns a placeholder.
func (BackupSecret) String() string { return "[secret]" }

// Format writes a placeholder.
func (BackupSecret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[secret]")) }

func (b *BackupSecret) secret() (sealed.Secret, error) {
	s := sealed.Secret{Passphrase: b.Passphrase, Key: b.Key}
	if err := s.Check(); err != nil {
		return s, fmt.Errorf("store: the secret of a backup: %w", err)
	}
	return s, nil
}

// Backup writes a copy of the store as it is now, with its key. Keys and messages
// from before it can be read with it until they are deleted with it.
func (s *Store) Backup(ctx context.Context, w io.Writer, secret BackupSecret) error {
	opens, err := secret.secret()
	if err != nil {
		return err
	}
	// SQLite makes the copy; what it holds is sealed.
	dir, err := os.MkdirTemp(filepath.Dir(s.path), ".backup-")
	if err != nil {
		return fmt.Errorf("store: backup: %w", err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "copy.db")
	if _, err := s.db.Exec(ctx, "VACUUM INTO $1", file); err != nil {
		return fmt.Errorf("store: backup: copy the database: %w", err)
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("store: backup: %w", err)
	}
	defer f.Close()

	out, err := sealed.NewWriter(w, backupMagic, opens, rand.Reader)
	if err != nil {
		return fmt.Errorf("store: write the backup: %w", err)
	}
	if _, err = out.Write(s.key); err == nil {
		_, err = io.Copy(out, f)
	}
	if err == nil {
		err = out.Close()
	}
	if err != nil {
		return fmt.Errorf("store: write the backup: %w", err)
	}
	return nil
}

// Restore makes a store at path from a backup, and returns the store's key, which
// the caller keeps (see [SaveKey]). The store is marked: the client that opens it
// first makes fresh keys in every room before it sends, for the copy that the
// backup was made of may have gone on. Nothing must be at path.
func Restore(ctx context.Context, r io.Reader, path string, secret BackupSecret) (Key, error) {
	opens, err := secret.secret()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err == nil {
		return nil, fmt.Errorf("%w: %s", ErrExists, path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("store: restore: %w", err)
	}
	in, err := sealed.NewReader(r, backupMagic, opens, maxBackupBytes)
	if err != nil {
		return nil, backupError(err)
	}
	part := path + ".restoring"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: restore: %w", err)
	}
	defer os.Remove(part)
	key, err := openBackup(in, f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	// It is marked before it gets its name: no client ever opens it unmarked.
	s, err := Open(ctx, Options{Path: part, Key: key})
	if err != nil {
		return nil, fmt.Errorf("store: restore: %w", err)
	}
	err = s.PutKV(ctx, kvRestored, []byte{1})
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return nil, fmt.Errorf("store: restore: %w", err)
	}
	return key, nil
}

// openBackup writes the database of a backup, and returns the store key. Nothing
// of it is to be used before it returns nil.
func openBackup(in io.Reader, w io.Writer) (Key, error) {
	key := make(Key, KeySize)
	if _, err := io.ReadFull(in, key); err != nil {
		return nil, backupError(err)
	}
	if _, err := io.Copy(w, in); err != nil {
		return nil, backupError(err)
	}
	return key, nil
}

// backupError says of a backup what is wrong with a sealed file.
func backupError(err error) error {
	switch {
	case errors.Is(err, sealed.ErrFormat):
		return ErrNoBackup
	case errors.Is(err, sealed.ErrDamaged):
		return fmt.Errorf("%w (%w)", ErrBackupSecret, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrBackupSecret
	}
	return fmt.Errorf("store: restore: %w", err)
}

const kvRestored = "store/restored"

// Restored tells whether the store was restored from a backup and no client has
// acted on that yet.
func (s *Store) Restored(ctx context.Context) (bool, error) {
	_, err := s.GetKV(ctx, kvRestored)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// ClearRestored takes the mark of Restore away.
func (s *Store) ClearRestored(ctx context.Context) error { return s.DeleteKV(ctx, kvRestored) }

// SaveKey writes the key of a restored store where [LoadKey] finds it. A key file
// that is there already has to hold the same key.
func SaveKey(o KeyOptions, key Key) error {
	getenv := o.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	path := o.Path
	if env := getenv(KeyFileEnv); env != "" {
		path = env
	}
	if have, err := readKey(path); err == nil {
		defer clear(have)
		if !bytes.Equal(have, key) {
			return fmt.Errorf("%w: the key file %s belongs to another one", ErrExists, path)
		}
		return nil
	}
	return writeKey(path, key)
}

// ReadKeyFile returns the key of a file, as for [BackupSecret]. If make is set, a
// file that is missing is made.
func ReadKeyFile(path string, make bool) (Key, error) {
	if make {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return makeKey(path, "")
		}
	}
	return readKey(path)
}

func writeKey(path string, key Key) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("store: create the store key: %w", err)
	}
	_, err = f.WriteString(base64.RawStdEncoding.EncodeToString(key) + "\n")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("store: write the store key %s: %w", path, err)
	}
	return nil
}
