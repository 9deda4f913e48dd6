package cli

import (
	"context"
	"encoding/json"
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
	if verb == "epochs" && (o.file == "" || o.json && o.svg != "") {
		return usagef("epochs needs a room, and --svg FILE or --json, not both")
	}
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
	case verb == "epochs":
		return drawEpochs(ctx, env, st, loaded.Homeserver.Domain, o)
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

// drawEpochs prints a room's epochs, or writes a picture of them. The text has no
// colours.
func drawEpochs(ctx context.Context, env Env, st *store.Store, server string, o options) error {
	p, err := appservice.EpochPicture(ctx, st, id.RoomID(o.file), server, 0)
	switch {
	case errors.Is(err, appservice.ErrNoRoom):
		return &failure{Failed, err, "`matrix-mls rooms` lists those it knows"}
	case errors.Is(err, appservice.ErrNoGroup):
		return &failure{Failed, err, "a member's device has to make one; `matrix-mls rooms ROOM` shows the module's part in the room"}
	case err != nil:
		return err
	case o.json:
		enc := json.NewEncoder(env.Stdout)
		enc.SetEscapeHTML(false)
		return enc.Encode(p)
	case o.svg == "-":
		_, err = env.Stdout.Write(p.SVG())
		return err
	case o.svg == "":
		fmt.Fprint(env.Stdout, p.Text())
		return nil
	}
	f, err := os.OpenFile(o.svg, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return &failure{Conflict, fmt.Errorf("%s exists already", o.svg), "name another file, or move the old one away"}
	}
	if err != nil {
		return err
	}
	_, err = f.Write(p.SVG())
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		fmt.Fprintf(env.Stdout, "wrote %s\n", o.svg)
	}
	return err
}
