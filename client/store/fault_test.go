package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/internal/faults"
)

// TestFault makes happen to a device's store what it has to survive.
func TestFault(t *testing.T) {
	faults.Run(t, "client/store", map[string]func(t *testing.T){
		"F05-failing-disk": faultFailingDisk,
		"F06-torn-file":    faultTornFile,
		"F06-damaged-log":  faultDamagedLog,
		"F22-schemas":      faultSchemas,
	})
}

// faultFailingDisk lets the device below the file system fail with I/O errors: what was said to be written is there
// afterwards, what was not is not, and the same store goes on when the device does. It needs root.
func faultFailingDisk(t *testing.T) {
	disk := faults.NewDisk(t)
	path := filepath.Join(disk.Dir, "store.db")
	s := openTest(t, path)
	put := func(n int) error { return s.PutKV(t.Context(), fmt.Sprint("key", n), make([]byte, 3000)) }
	written, failed := []int{}, []int{}
	for n := range 2000 {
		if n == 20 {
			disk.Fail()
		}
		switch err := put(n); {
		case err == nil:
			written = append(written, n)
		case !strings.HasPrefix(err.Error(), "store: "):
			t.Fatalf("a disk that fails is told as %v", err)
		default:
			failed = append(failed, n)
		}
		if len(failed) == 20 {
			break
		}
	}
	if len(failed) < 20 || len(written) < 20 {
		t.Fatalf("%d writes succeeded and %d failed", len(written), len(failed))
	}
	disk.Mend()
	if err := put(5000); err != nil {
		t.Fatalf("the disk works again, and the store says %v", err)
	}
	written = append(written, 5000)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	disk.Again()
	s = openTest(t, path)
	for _, n := range written {
		if _, err := s.GetKV(t.Context(), fmt.Sprint("key", n)); err != nil {
			t.Errorf("what was written is gone: key %d: %v", n, err)
		}
	}
	for _, n := range failed {
		if _, err := s.GetKV(t.Context(), fmt.Sprint("key", n)); !errors.Is(err, ErrNotFound) {
			t.Errorf("what was not written is there: key %d: %v", n, err)
		}
	}
	if err := s.Close(); err != nil { // before the disk goes
		t.Fatal(err)
	}
	t.Logf("figures: %d writes done, %d refused", len(written), len(failed))
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

// faultDamagedLog: the write-ahead log of a process that was killed is cut, torn or changed anywhere. The store is refused,
// or opens as it was after one of its transactions, whole.
func faultDamagedLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := openTest(t, path)
	if err := s.Close(); err != nil { // what is made when it is new is in the file
		t.Fatal(err)
	}
	s = openTest(t, path)
	const writes = 20
	for i := range writes {
		value := binary.BigEndian.AppendUint32(make([]byte, 5000), uint32(i+1)) // more than a page
		if err := s.Do(t.Context(), func(ctx context.Context) error {
			return errors.Join(s.PutKV(ctx, "first", value), s.PutKV(ctx, "second", value))
		}); err != nil {
			t.Fatal(err)
		}
	}
	db, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	dir, n := t.TempDir(), 0
	// opens returns after how many writes the store stands, -1 if it is refused.
	opens := func(what string, log []byte) int {
		path := filepath.Join(dir, fmt.Sprintf("%d.db", n))
		n++
		if err := errors.Join(os.WriteFile(path, db, 0o600), os.WriteFile(path+"-wal", log, 0o600)); err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), Options{Path: path, Key: testKey})
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: opening says %v, want %v, or nothing", what, err, ErrDamaged)
			}
			return -1
		}
		defer s.Close()
		var stands [2]int
		for i, key := range []string{"first", "second"} {
			value, err := s.GetKV(t.Context(), key)
			if err == nil {
				stands[i] = int(binary.BigEndian.Uint32(value[5000:]))
			} else if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if stands[0] != stands[1] {
			t.Errorf("%s: half of a transaction is there: %v", what, stands)
		}
		return stands[0]
	}
	if got := opens("as it was", log); got != writes {
		t.Fatalf("the log as it was gives %d writes, want %d: the test proves nothing", got, writes)
	}
	found := map[int]int{}
	for i := range 12 {
		at := len(log) * i / 12
		zeros, flipped := slices.Clone(log), slices.Clone(log)
		clear(zeros[at:min(at+2000, len(zeros))])
		flipped[at+i%7] ^= 1 << (i % 8)
		for what, damaged := range map[string][]byte{"cut": log[:at], "with zeros": zeros, "with another bit": flipped} {
			found[opens(fmt.Sprintf("a log %s at %d of %d", what, at, len(log)), damaged)]++
		}
	}
	if len(found) < 5 {
		t.Errorf("by the writes that were left, the damages were %v: the test proves nothing", found)
	}
	t.Logf("refused %d times; opened after so many writes: %v", found[-1], found)
}
