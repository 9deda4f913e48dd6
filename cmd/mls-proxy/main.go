// Command mls-proxy is the user's program: a device of a Matrix account that
// talks in MLS rooms, on a terminal. Run mls-proxy help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/matrix-mls/matrix-mls/proxy/terminal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := terminal.Main(ctx, os.Args[1:], terminal.System())
	stop()
	os.Exit(code)
}
