package terminal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/matrix-mls/matrix-mls/client/store"
)

// backupSecret asks for what opens a backup, or another file.
func (c *call) backupSecret(ctx context.Context, what, keyFile, passFile string, making bool) (store.BackupSecret, error) {
	if keyFile != "" && passFile != "" {
		return store.BackupSecret{}, usagef("%s takes one of --key-file and --passphrase-file", c.verb.name)
	}
	if keyFile != "" {
		if !filepath.IsAbs(keyFile) {
			keyFile = filepath.Join(c.env.Cwd, keyFile)
		}
		key, err := store.ReadKeyFile(keyFile, making)
		return store.BackupSecret{Key: key}, err
	}
	pass, err := c.secret(ctx, passFile, "Passphrase of the "+what+": ", "passphrase")
	if err != nil || !making || passFile != "" {
		return store.BackupSecret{Passphrase: pass}, err
	}
	again, err := c.secret(ctx, "", "The same again: ", "passphrase")
	if err == nil && again != pass {
		err = usagef("the two passphrases differ")
	}
	return store.BackupSecret{Passphrase: pass}, err
}

func runBackup(ctx context.Context, c *call) error {
	keyFile := c.flags.String("key-file", "", "seal with the key in `FILE`, which is made if it is missing")
	passFile := c.flags.String("passphrase-file", "", "read the passphrase from `FILE` (- is standard input)")
	if err := c.parse(ctx, 1, 1); err != nil {
		return err
	}
	path := c.args[0]
	if !filepath.IsAbs(path) {
		path = filepath.Join(c.env.Cwd, path)
	}
	secret, err := c.backupSecret(ctx, "backup", *keyFile, *passFile, true)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	err = c.s.st.Backup(ctx, f, secret)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path)
		return err
	}
	if c.json {
		return c.printJSON(map[string]any{"file": path})
	}
	c.printf("Wrote %s: the keys and messages of %s, device %s.\n", clean(path), clean(c.s.ident.UserID().String()), clean(c.s.ident.DeviceID().String()))
	return nil
}

func runRestore(ctx context.Context, c *call) error {
	keyFile := c.flags.String("key-file", "", "the key that opens the backup is in `FILE`")
	passFile := c.flags.String("passphrase-file", "", "read the passphrase from `FILE` (- is standard input)")
	if err := c.parse(ctx, 1, 1); err != nil {
		return err
	}
	path := c.args[0]
	if !filepath.IsAbs(path) {
		path = filepath.Join(c.env.Cwd, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the backup: %w", err)
	}
	defer f.Close()
	at := filepath.Join(c.state, storeName)
	if _, err := os.Stat(at); err == nil {
		return fmt.Errorf("%w: %s", store.ErrExists, at)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	secret, err := c.backupSecret(ctx, "backup", *keyFile, *passFile, false)
	if err != nil {
		return err
	}
	key, err := store.Restore(ctx, f, at, secret)
	if err != nil {
		return err
	}
	defer clear(key)
	if err := store.SaveKey(store.KeyOptions{Path: filepath.Join(c.state, storeKeyName), Store: at, Getenv: c.env.Getenv}, key); err != nil {
		_ = os.Remove(at)
		return err
	}
	if c.json {
		return c.printJSON(map[string]any{"state": c.state})
	}
	c.printf("Restored to %s. In each room this device makes fresh keys before it sends.\n", clean(c.state))
	c.notef("never run the copy that the backup was made of again: two copies of one device put each other out")
	return nil
}
