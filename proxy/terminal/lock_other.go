//go:build !unix

package terminal

import "os"

// lockFile opens the file alone: this system has no locks of that kind.
func lockFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}
