//go:build unix

package setup

import (
	"fmt"
	"os"
	"syscall"
)

// keepOwner gives a file the owner and group of another. Without the right to
// do so it fails only if they differ.
func keepOwner(path string, like os.FileInfo) error {
	want, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("setup: %w", err)
	}
	have, ok := info.Sys().(*syscall.Stat_t)
	if !ok || have.Uid == want.Uid && have.Gid == want.Gid {
		return nil
	}
	if err := os.Chown(path, int(want.Uid), int(want.Gid)); err != nil {
		return fmt.Errorf("setup: cannot keep the owner of %s: %w", path, err)
	}
	return nil
}

// shareWith lets the group of another file read this one, so that a homeserver
// under its own account reads the registration.
func shareWith(path string, like os.FileInfo) error {
	want, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	if err := os.Chown(path, -1, int(want.Gid)); err != nil {
		return fmt.Errorf("setup: the homeserver's group cannot be given the right to read %s: %w", path, err)
	}
	return os.Chmod(path, 0o640)
}
