package identity

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// SyncRequest is one GET /sync.
type SyncRequest struct {
	Since   string
	Filter  string // a filter id or a filter as JSON
	Timeout time.Duration
}

// SyncResponse is the answer to GET /sync, with the parts that mautrix's type
// loses: it counts only the one-time keys of Olm.
type SyncResponse struct {
	mautrix.RespSync
	OTKCounts      map[string]int `json:"device_one_time_keys_count"`
	UnusedFallback []string       `json:"device_unused_fallback_key_types"`
	// First is set when the request named no position: changes of device
	// lists since the last sync may be missing.
	First bool `json:"-"`
}

// Sync asks the homeserver for news once. It does not process them.
func (i *Identity) Sync(ctx context.Context, req SyncRequest) (*SyncResponse, error) {
	_, cli, err := i.current()
	if err != nil {
		return nil, err
	}
	query := map[string]string{"timeout": strconv.FormatInt(req.Timeout.Milliseconds(), 10)}
	if req.Since != "" {
		query["since"] = req.Since
	}
	if req.Filter != "" {
		query["filter"] = req.Filter
	}
	resp := &SyncResponse{First: req.Since == ""}
	err = i.doLimit(ctx, cli, http.MethodGet, cli.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "sync"}, query), nil, resp, maxSync)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// ProcessSync takes what concerns the device from a sync response: changed
// device lists, the stock of key packages, verification and requests for key
// packages. It returns errors of the store; what the homeserver refuses is
// logged and tried again after the next sync.
func (i *Identity) ProcessSync(ctx context.Context, resp *SyncResponse) error {
	if err := i.process(ctx, &resp.RespSync, resp.First); err != nil {
		return err
	}
	i.packages.counted(resp.OTKCounts, resp.UnusedFallback)
	return i.upkeep(ctx)
}

// ProcessRespSync does what [Identity.ProcessSync] does for a program that
// syncs with mautrix itself. The stock of key packages is then asked for now
// and then.
func (i *Identity) ProcessRespSync(ctx context.Context, resp *mautrix.RespSync) error {
	if err := i.process(ctx, resp, false); err != nil {
		return err
	}
	i.packages.expireCounts(i.now(), 5*time.Minute)
	return i.upkeep(ctx)
}

func (i *Identity) process(ctx context.Context, resp *mautrix.RespSync, first bool) error {
	if _, _, err := i.current(); err != nil {
		return err
	}
	if err := i.listsChanged(ctx, resp.DeviceLists.Changed, resp.DeviceLists.Left, first); err != nil {
		return err
	}
	for _, evt := range resp.ToDevice.Events {
		if evt == nil {
			continue
		}
		switch name := evt.Type.Type; {
		case name == rooms.TypeKeyPackageRequest:
			if err := i.keyPackageRequested(ctx, evt.Sender, evt.Content.VeryRaw); err != nil {
				return err
			}
		case name == rooms.TypeKeyPackage:
			i.keyPackageAnswered(evt.Sender, evt.Content.VeryRaw)
		case strings.HasPrefix(name, "m.key.verification."):
			// A copy: reading the content changes the event.
			i.verificationEvent(ctx, &event.Event{
				Type: event.Type{Type: name, Class: event.ToDeviceEventType}, Sender: evt.Sender,
				Content: event.Content{VeryRaw: evt.Content.VeryRaw, Raw: evt.Content.Raw},
			})
		}
	}
	return nil
}

// upkeep repeats what the homeserver has not taken yet.
func (i *Identity) upkeep(ctx context.Context) error {
	if err := i.PublishDeviceKeys(ctx); err != nil {
		i.log.Warn().Err(err).Msg("The device keys could not be published, trying again after the next sync")
		return ctx.Err()
	}
	if i.lists.get(i.UserID()) == nil { // our own devices changed, or this is the start
		if err := i.publishSignature(ctx); err != nil {
			i.log.Warn().Err(err).Msg("The signature of this device could not be published, trying again after a later sync")
		}
	}
	if err := i.refill(ctx); err != nil {
		i.log.Warn().Err(err).Msg("The key packages could not be refilled, trying again after the next sync")
	}
	return ctx.Err()
}
