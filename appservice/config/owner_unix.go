//go:build unix

package config

import (
	"fmt"
	"os"
	"syscall"
)

// KeepOwner gives a file the owner and group of another. Without the right to
// do so it fails only if they differ.
func KeepOwner(path string, like os.FileInfo) error {
	want, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	have, ok := info.Sys().(*syscall.Stat_t)
	if !ok || have.Uid == want.Uid && have.Gid == want.Gid {
		return nil
	}
	if err := os.Chown(path, int(want.Uid), int(want.Gid)); err != nil {
		return fmt.Errorf("config: cannot keep the owner of %s: %w", path, err)
	}
	return nil
}
