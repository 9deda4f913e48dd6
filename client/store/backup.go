package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/scrypt"
)

// A backup is one file:
//
//	"matrix-mls client backup v1\n", kind of secret (1 octet), scrypt's log2(N)
//	(1 octet), 32 random octets; then pieces of at most 64 KiB, each sealed with
//	ChaCha20-Poly1305: the store key and the SQLite file.
//
// The sealing key is HKDF-SHA-256 of scrypt(passphrase) or of the key file, with
// the random octets as salt. The nonce counts the pieces; its last octet is 1 for
// the last one, so that nothing can be cut off. The header is the first piece's
// additional data.
const (
	backupMagic    = "matrix-mls client backup v1\n"
	backupPiece    = 64 << 10
	backupPass     = 1
	backupKey      = 2
	backupLogN     = 17
	maxBackupLogN  = 20
	backupSalt     = 32
	backupHeader   = len(backupMagic) + 2 + backupSalt
	minPassphrase  = 12
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

func (b *BackupSecret) kind() (byte, error) {
	switch {
	case len(b.Key) == KeySize && b.Passphrase == "":
		return backupKey, nil
	case len(b.Key) == 0 && len(b.Passphrase) >= minPassphrase:
		return backupPass, nil
	case len(b.Key) == 0:
		return 0, fmt.Errorf("store: a backup needs a passphrase of at least %d characters", minPassphrase)
	}
	return 0, fmt.Errorf("store: a backup needs a passphrase or a key of %d bytes", KeySize)
}

func (b *BackupSecret) aead(header []byte) (cipher.AEAD, error) {
	kind, logN, salt := header[len(backupMagic)], header[len(backupMagic)+1], header[len(backupMagic)+2:]
	ikm := []byte(b.Key)
	if kind == backupPass {
		var err error
		if ikm, err = scrypt.Key([]byte(b.Passphrase), salt, 1<<logN, 8, 1, 32); err != nil {
			return nil, fmt.Errorf("store: derive the backup's key: %w", err)
		}
		defer clear(ikm)
	}
	key, err := hkdf.Key(sha256.New, ikm, salt, backupMagic, chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("store: derive the backup's key: %w", err)
	}
	defer clear(key)
	return chacha20poly1305.New(key)
}

func backupNonce(n uint64, last bool) []byte {
	nonce := binary.BigEndian.AppendUint64(make([]byte, 3, chacha20poly1305.NonceSize), n)
	if last {
		return append(nonce, 1)
	}
	return append(nonce, 0)
}

// Backup writes a copy of the store as it is now, with its key. Keys and messages
// from before it can be read with it until they are deleted with it.
func (s *Store) Backup(ctx context.Context, w io.Writer, secret BackupSecret) error {
	kind, err := secret.kind()
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

	header := append([]byte(backupMagic), kind, backupLogN)
	salt := make([]byte, backupSalt)
	if _, err := rand.Read(salt); err != nil {
		return fmt.Errorf("store: backup: randomness: %w", err)
	}
	header = append(header, salt...)
	aead, err := secret.aead(header)
	if err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return fmt.Errorf("store: write the backup: %w", err)
	}
	in := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(s.key), f), backupPiece+1)
	piece := make([]byte, backupPiece)
	var sealed []byte
	for n := uint64(0); ; n++ {
		k, err := io.ReadFull(in, piece)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return fmt.Errorf("store: backup: %w", err)
		}
		_, err = in.Peek(1)
		last := errors.Is(err, io.EOF)
		var ad []byte
		if n == 0 {
			ad = header
		}
		sealed = aead.Seal(sealed[:0], backupNonce(n, last), piece[:k], ad)
		clear(piece[:k])
		if _, err := w.Write(sealed); err != nil {
			return fmt.Errorf("store: write the backup: %w", err)
		}
		if last {
			return nil
		}
	}
}

// Restore makes a store at path from a backup, and returns the store's key, which
// the caller keeps (see [SaveKey]). The store is marked: the client that opens it
// first makes fresh keys in every room before it sends, for the copy that the
// backup was made of may have gone on. Nothing must be at path.
func Restore(ctx context.Context, r io.Reader, path string, secret BackupSecret) (Key, error) {
	if _, err := secret.kind(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err == nil {
		return nil, fmt.Errorf("%w: %s", ErrExists, path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("store: restore: %w", err)
	}
	header := make([]byte, backupHeader)
	if _, err := io.ReadFull(r, header); err != nil || !bytes.HasPrefix(header, []byte(backupMagic)) {
		return nil, ErrNoBackup
	}
	kind, _ := secret.kind()
	switch at := header[len(backupMagic):]; {
	case at[0] != kind && at[0] == backupPass:
		return nil, fmt.Errorf("%w: it was made with a passphrase", ErrBackupSecret)
	case at[0] != kind && at[0] == backupKey:
		return nil, fmt.Errorf("%w: it was made with a key file", ErrBackupSecret)
	case at[0] != kind || at[1] > maxBackupLogN || at[1] == 0:
		return nil, ErrNoBackup
	}
	aead, err := secret.aead(header)
	if err != nil {
		return nil, err
	}
	part := path + ".restoring"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: restore: %w", err)
	}
	defer os.Remove(part)
	key, err := openBackup(r, f, aead, header)
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
func openBackup(r io.Reader, w io.Writer, aead cipher.AEAD, header []byte) (Key, error) {
	in := bufio.NewReaderSize(r, backupPiece+aead.Overhead()+1)
	sealed := make([]byte, backupPiece+aead.Overhead())
	var key Key
	for n := uint64(0); n < maxBackupBytes/backupPiece; n++ {
		k, err := io.ReadFull(in, sealed)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, ErrBackupSecret // cut off between two pieces, too
		}
		_, err = in.Peek(1)
		last := errors.Is(err, io.EOF)
		var ad []byte
		if n == 0 {
			ad = header
		}
		plain, err := aead.Open(sealed[:0], backupNonce(n, last), sealed[:k], ad)
		if err != nil {
			return nil, ErrBackupSecret
		}
		if n == 0 {
			if len(plain) < KeySize {
				return nil, ErrBackupSecret
			}
			key, plain = bytes.Clone(plain[:KeySize]), plain[KeySize:]
		}
		if _, err := w.Write(plain); err != nil {
			return nil, fmt.Errorf("store: restore: %w", err)
		}
		if last {
			return key, nil
		}
	}
	return nil, errors.New("store: the backup is too large")
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
