package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/matrix-mls/matrix-mls/client/sealed"
)

func TestBackupAndRestore(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s := openTest(t, filepath.Join(dir, "client.db"))
	big := bytes.Repeat([]byte("planted secret "), 20_000) // several pieces
	if err := errors.Join(s.PutKV(ctx, "big", big), s.PutRoom(ctx, room, []byte("record"))); err != nil {
		t.Fatal(err)
	}
	key := Key(bytes.Repeat([]byte{7}, KeySize))
	for _, tc := range []struct {
		name          string
		secret, wrong BackupSecret
	}{
		{"passphrase", BackupSecret{Passphrase: "correct horse battery"}, BackupSecret{Passphrase: "wrong horse battery"}},
		{"key", BackupSecret{Key: key}, BackupSecret{Key: make(Key, KeySize)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := s.Backup(ctx, &out, tc.secret); err != nil {
				t.Fatal(err)
			}
			raw := out.Bytes()
			if bytes.Contains(raw, []byte("planted secret")) || bytes.Contains(raw, testKey) || bytes.Contains(raw, []byte("SQLite format")) {
				t.Error("the backup shows what is in it")
			}
			at := filepath.Join(t.TempDir(), "restored", "client.db")
			got, err := Restore(ctx, bytes.NewReader(raw), at, tc.secret)
			if err != nil || !bytes.Equal(got, testKey) {
				t.Fatalf("restore: %v", err)
			}
			r, err := Open(ctx, Options{Path: at, Key: got})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if v, err := r.GetKV(ctx, "big"); err != nil || !bytes.Equal(v, big) {
				t.Errorf("the value is not the same (%v)", err)
			}
			if marked, err := r.Restored(ctx); err != nil || !marked {
				t.Errorf("the restored store is not marked (%v)", err)
			}
			if err := r.ClearRestored(ctx); err != nil {
				t.Fatal(err)
			}
			if marked, _ := r.Restored(ctx); marked {
				t.Error("the mark stays")
			}
			if _, err := Restore(ctx, bytes.NewReader(raw), at, tc.secret); !errors.Is(err, ErrExists) {
				t.Errorf("restored over a store: %v", err)
			}
			info, err := os.Stat(at)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v (%v)", info.Mode(), err)
			}

			refused := func(name string, raw []byte, secret BackupSecret, want error) {
				t.Helper()
				path := filepath.Join(t.TempDir(), "client.db")
				if _, err := Restore(ctx, bytes.NewReader(raw), path, secret); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", name, err, want)
				}
				if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
					t.Errorf("%s: left %q behind", name, left)
				}
			}
			refused("a wrong secret", raw, tc.wrong, ErrBackupSecret)
			if tc.secret.Passphrase != "" {
				return // what follows is the same, and scrypt takes its time
			}
			refused("another file", []byte("SQLite format 3\x00"), tc.secret, ErrNoBackup)
			refused("nothing", nil, tc.secret, ErrNoBackup)
			for _, n := range []int{(len(backupMagic) + 34), (len(backupMagic) + 34) + sealed.PieceSize + 16, len(raw) - 1} {
				refused("cut off", raw[:n], tc.secret, ErrBackupSecret)
			}
			for _, at := range []int{(len(backupMagic) + 34) - 1, (len(backupMagic) + 34) + 5, len(raw) - 3} {
				changed := bytes.Clone(raw)
				changed[at] ^= 1
				refused("changed", changed, tc.secret, ErrBackupSecret)
			}
			swapped := bytes.Clone(raw)
			copy(swapped[(len(backupMagic)+34)+sealed.PieceSize+16:], raw[(len(backupMagic)+34):(len(backupMagic)+34)+sealed.PieceSize+16])
			refused("a piece twice", swapped, tc.secret, ErrBackupSecret)
			refused("longer", append(bytes.Clone(raw), 0), tc.secret, ErrBackupSecret)
		})
	}
	if err := s.Backup(ctx, new(bytes.Buffer), BackupSecret{Passphrase: "short"}); err == nil {
		t.Error("a short passphrase was taken")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".backup-*")); len(left) > 0 {
		t.Errorf("backups leave %q behind", left)
	}
}

func TestSaveKeyKeepsAnotherKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.key")
	o := KeyOptions{Path: path, Getenv: func(string) string { return "" }}
	for range 2 { // the second time it is there
		if err := SaveKey(o, testKey); err != nil {
			t.Fatal(err)
		}
	}
	if err := SaveKey(o, make(Key, KeySize)); !errors.Is(err, ErrExists) {
		t.Errorf("another key was overwritten: %v", err)
	}
	if got, err := LoadKey(o); err != nil || !bytes.Equal(got, testKey) {
		t.Errorf("the key that was saved is not found: %v", err)
	}
}
