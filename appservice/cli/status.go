package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice"
	"github.com/matrix-mls/matrix-mls/appservice/config"
	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// runStatus says what the database knows of the module and its rooms.
func runStatus(ctx context.Context, env Env, verb string, o options) error {
	loaded, err := config.Load(o.config, config.Options{NoUpdate: true, Environ: env.Environ})
	if err != nil {
		return err
	}
	if loaded.Database.Type != "postgres" {
		if _, err := os.Stat(store.SQLitePath(loaded.Database.URI)); err != nil {
			return &failure{BadDatabase, fmt.Errorf("there is no database: %w", err), "is this the configuration that the module runs with (-c)?"}
		}
	}
	st, err := openForBackup(ctx, loaded.Config)
	if err != nil {
		return err
	}
	defer st.Close()
	if version, err := st.Version(ctx); err != nil {
		return err
	} else if version != store.SchemaVersion() {
		return &failure{BadDatabase, fmt.Errorf("the database has schema %d, this program reads %d", version, store.SchemaVersion()), "start the module of this version once, or use the version that runs"}
	}
	var text string
	switch {
	case verb == "status":
		text, err = appservice.StatusText(ctx, st, time.Now())
	case o.file == "":
		text, err = appservice.RoomsText(ctx, st, 1)
	default:
		if page, bad := strconv.Atoi(o.file); bad == nil && page > 0 {
			text, err = appservice.RoomsText(ctx, st, page)
			break
		}
		text, err = appservice.RoomText(ctx, st, id.RoomID(o.file))
		if errors.Is(err, appservice.ErrNoRoom) {
			return &failure{Failed, err, "`matrix-mls rooms` lists those it knows"}
		}
	}
	if err != nil {
		return err
	}
	fmt.Fprint(env.Stdout, text)
	return nil
}
