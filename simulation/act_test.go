package simulation

import (
	"context"
	"errors"
	"fmt"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// What people do, through the methods of the SDK.

func (w *world) create(d *device) {
	err := d.act(func(ctx context.Context) error {
		_, err := d.c.CreateRoom(ctx, client.CreateOptions{Policy: w.script.faults.policy, History: w.script.faults.history})
		return err
	})
	if !errors.Is(err, client.ErrNoModule) {
		w.fail("create: %v", err)
	}
}

func (w *world) invite(d *device, user id.UserID) error {
	return d.act(func(ctx context.Context) error {
		err := d.c.Invite(ctx, w.room, user)
		switch {
		case errors.Is(err, client.ErrNotAllowed) || errors.Is(err, client.ErrNoGroup) || errors.Is(err, client.ErrRemoved):
		case d.dead:
			w.begun[user] = true // the admission may be written
		default:
			w.allow(d.user, user)
		}
		return err
	})
}

func (w *world) join(d *device) error {
	return d.act(func(ctx context.Context) error {
		_, err := d.c.Join(ctx, string(w.room), nil)
		return err
	})
}

func (w *world) send(d *device) error {
	text := fmt.Sprintf("%s-%d-%d", planted, w.script.seed, len(w.messages))
	return d.act(func(ctx context.Context) error {
		_, err := d.c.SendText(ctx, w.room, text)
		if errors.Is(err, context.Canceled) && !d.dead {
			w.queued(d, text)
		}
		return err
	})
}

// renew commits with a fresh path.
func (w *world) renew(d *device) error {
	return d.act(func(ctx context.Context) error { return d.c.Refresh(ctx, w.room) })
}

func (w *world) policy(d *device, change func(p *rooms.Policy)) error {
	return d.act(func(ctx context.Context) error { return d.c.ChangePolicy(ctx, w.room, change) })
}

func (w *world) list(d *device, servers []string) error {
	return d.act(func(ctx context.Context) error { return d.c.SetSequencers(ctx, w.room, servers...) })
}

func (w *world) era(d *device, servers []string) error {
	return d.act(func(ctx context.Context) error { return d.c.OpenEra(ctx, w.room, servers...) })
}

func (w *world) leave(d *device) error {
	return d.act(func(ctx context.Context) error { return d.c.Leave(ctx, w.room) })
}

func (w *world) expel(d *device, user id.UserID, ban bool) error {
	return d.act(func(ctx context.Context) error {
		if ban {
			return d.c.Ban(ctx, w.room, user, "")
		}
		return d.c.Kick(ctx, w.room, user, "")
	})
}

// logout ends a device for good.
func (w *world) logout(d *device) {
	d.stop()
	d.gone = true
	w.net.Logout(d.user, d.id)
}
