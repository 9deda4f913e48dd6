package store

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// KeySize is the length of a store key in bytes.
const KeySize = 32

// KeyFileEnv names the environment variable with the path of the key file.
const KeyFileEnv = "MLS_STORE_KEY_FILE"

// CredentialName is the name under which systemd may hand in the store key
// (LoadCredential= or LoadCredentialEncrypted=).
const CredentialName = "mls-store-key"

// Key is the secret under which a store is sealed. It never prints.
type Key []byte

// String returns a placeholder.
func (Key) String() string { return "[secret]" }

// GoString returns a placeholder.
func (Key) GoString() string { return "[secret]" }

// Format writes a placeholder.
func (Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[secret]")) }

// MarshalJSON writes a placeholder.
func (Key) MarshalJSON() ([]byte, error) { return []byte(`"[secret]"`), nil }

// KeyOptions says where the store key is.
type KeyOptions struct {
	// Path is the key file to use when neither the environment variable
	// MLS_STORE_KEY_FILE nor a systemd credential names one. It is made on
	// first use.
	Path string
	// Store is the database file the key belongs to: when that exists and the
	// key file does not, LoadKey refuses to make a new key, which could not
	// open it.
	Store string
	// Getenv is os.Getenv when nil.
	Getenv func(string) string
}

// LoadKey finds the store key: the file named by MLS_STORE_KEY_FILE, else the
// systemd credential mls-store-key, else o.Path, which is created with mode
// 0600 when it does not exist. A key file that others may read is refused.
func LoadKey(o KeyOptions) (Key, error) {
	getenv := o.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	if path := getenv(KeyFileEnv); path != "" {
		k, err := readKey(path)
		if errors.Is(err, fs.ErrNotExist) {
			return makeKey(path, o.Store)
		}
		return k, err
	}
	if dir := getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		k, err := readKey(filepath.Join(dir, CredentialName))
		if !errors.Is(err, fs.ErrNotExist) {
			return k, err
		}
	}
	k, err := readKey(o.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(o.Path, o.Store)
	}
	return k, err
}

func readKey(path string) (Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("store: read the store key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("store: read the store key: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("store: the key file %s can be read by others (mode %#o); run chmod 600 on it", path, perm)
	}
	buf := make([]byte, 256)
	n, err := f.Read(buf)
	if err != nil {
		return nil, fmt.Errorf("store: read the store key %s: %w", path, err)
	}
	defer clear(buf)
	key, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(string(buf[:n])), "="))
	if err != nil || len(key) != KeySize {
		return nil, fmt.Errorf("store: the key file %s does not hold %d bytes in base64", path, KeySize)
	}
	return key, nil
}

func makeKey(path, storePath string) (Key, error) {
	if storePath != "" {
		if info, err := os.Stat(storePath); err == nil && info.Size() > 0 {
			return nil, fmt.Errorf("store: the key file %s is missing, and %s cannot be opened without it; restore the key file, or move the database away to start anew", path, storePath)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("store: create the directory of the store key: %w", err)
	}
	key := make(Key, KeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("store: draw the store key: %w", err)
	}
	if err := writeKey(path, key); err != nil {
		return nil, err
	}
	return key, nil
}
