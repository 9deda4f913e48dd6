//go:build unix

package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
)

// minFree is what a module needs to go on for long.
const minFree = 200 << 20

func probeDisk(_ context.Context, d *doctor, r *Result) {
	path := d.st.Path()
	if path == "" {
		r.Status, r.Detail = Skip, "the database is on a server of its own"
		return
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &fs); err != nil {
		r.warn(err.Error(), "the folder cannot be examined", "see that the module's account may enter it")
		return
	}
	free := uint64(fs.Bavail) * uint64(fs.Bsize)
	if free < minFree {
		r.fail(fmt.Sprintf("%d MiB free", free>>20), "the disk is nearly full; a module that cannot write stops signing", "make room on "+filepath.Dir(path))
		return
	}
	r.ok("%d MiB free", free>>20)
}
