package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/matrix-mls/matrix-mls/internal/faults"
)

// TestFault makes happen to a device's store what it has to survive.
func TestFault(t *testing.T) {
	faults.Run(t, "client/store", map[string]func(t *testing.T){
		"F06-torn-file": faultTornFile,
		"F22-schemas":   faultSchemas,
	})
}

// faultTornFile: a file that was cut is never taken for a store.
func faultTornFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := openTest(t, path)
	for i := range 100 {
		if err := s.PutKV(t.Context(), string(rune('a'+i)), make([]byte, 3000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	zeros := append(append(append([]byte(nil), db[:len(db)/2]...), make([]byte, len(db)/4)...), db[len(db)/2+len(db)/4:]...)
	for name, raw := range map[string][]byte{
		"half of the file": db[:len(db)/2], "all but a page": db[:len(db)-4096], "half a page": db[:2000], "its beginning only": db[:50],
		"zeros in a quarter": zeros, "another file": []byte("this is no store, but somebody's notes that lay in the way\n"),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "torn.db")
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err := Open(t.Context(), Options{Path: path, Key: testKey}); !errors.Is(err, ErrDamaged) {
				t.Errorf("opening says %v, want %v", err, ErrDamaged)
				if err == nil {
					s.Close()
				}
			}
		})
	}
	openTest(t, path)
}
