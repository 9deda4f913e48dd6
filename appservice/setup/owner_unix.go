//go:build unix

package setup

import (
	"fmt"
	"os"
	"syscall"
)

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
