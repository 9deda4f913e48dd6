package faults

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A Disk is a file system on a device that can be made to fail. It needs root, on Linux.
type Disk struct {
	Dir    string // where it is mounted
	t      *testing.T
	image  string // what it is in: a file with holes, on a tmpfs
	filler string // a file that leaves no room there
	there  bool
}

// NewDisk mounts a small disk for as long as the test runs.
func NewDisk(t *testing.T) *Disk {
	t.Helper()
	below := t.TempDir()
	d := &Disk{Dir: t.TempDir(), t: t, image: filepath.Join(below, "image"), filler: filepath.Join(below, "filler")}
	d.root("mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", below)
	t.Cleanup(func() { d.root("umount", below) })
	f, err := os.Create(d.image)
	if err == nil {
		err = f.Truncate(64 << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	d.root("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "nodiscard", d.image)
	d.mount()
	t.Cleanup(func() {
		if d.there {
			d.unmount()
		}
	})
	return d
}

func (d *Disk) root(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %s: %v: %s\nhint: this test needs root, mkfs.ext4 and loop devices", name, strings.Join(args, " "), err, out)
	}
}

func (d *Disk) mount() {
	d.root("mount", "-o", "loop", d.image, d.Dir)
	d.there = true
}

func (d *Disk) unmount() {
	d.root("umount", d.Dir)
	d.there = false
}

// Fail lets what is written to parts of the device that were never written before be lost, and every fsync of it end with
// an I/O error (EIO).
func (d *Disk) Fail() {
	d.t.Helper()
	f, err := os.Create(d.filler)
	if err != nil {
		d.t.Fatal(err)
	}
	for block := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(block)
	}
	_ = f.Close()
}

// Mend lets the device work again.
func (d *Disk) Mend() {
	d.t.Helper()
	if err := os.Remove(d.filler); err != nil {
		d.t.Fatal(err)
	}
}

// Again takes the disk off and mounts it again, so that nothing is there but what the device holds.
func (d *Disk) Again() {
	d.t.Helper()
	d.unmount()
	d.mount()
}
