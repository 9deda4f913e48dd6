package client_test

import (
	"context"
	"log"
	"os"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"

	"github.com/matrix-mls/matrix-mls/client"
	"github.com/matrix-mls/matrix-mls/client/identity"
	"github.com/matrix-mls/matrix-mls/client/store"
)

// A bot written with mautrix-go gets MLS rooms: everything between "begin" and
// "end" is new, the rest is the bot as it was.
func Example() {
	ctx := context.Background()
	cli, err := mautrix.NewClient("https://matrix.example.org", "@bot:example.org", os.Getenv("BOT_TOKEN"))
	if err != nil {
		log.Fatal(err)
	}
	cli.DeviceID = "BOTDEVICE"
	syncer := mautrix.NewDefaultSyncer()
	cli.Syncer = syncer

	// begin
	key, err := store.LoadKey(store.KeyOptions{Path: "bot.key", Store: "bot.db"})
	if err != nil {
		log.Fatal(err)
	}
	st, err := store.Open(ctx, store.Options{Path: "bot.db", Key: key})
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	ident, err := identity.Open(ctx, identity.Options{Store: st})
	if err != nil {
		log.Fatal(err)
	}
	if !ident.LoggedIn() {
		if err := ident.LoginToken(ctx, cli.HomeserverURL.String(), cli.AccessToken); err != nil {
			log.Fatal(err)
		}
	}
	// Rooms let in only devices that their user has signed. The recovery key is
	// that of the bot's account; Bootstrap makes one for an account without.
	if status, err := ident.Status(ctx); err != nil {
		log.Fatal(err)
	} else if !status.DeviceSigned {
		if err := ident.Recover(ctx, os.Getenv("BOT_RECOVERY_KEY")); err != nil {
			log.Fatal(err)
		}
	}
	engine, err := client.Open(ctx, client.Options{Store: st, Identity: ident, Log: zerolog.New(os.Stderr)})
	if err != nil {
		log.Fatal(err)
	}
	helper := client.NewCryptoHelper(cli, engine)
	if err := helper.Init(ctx); err != nil {
		log.Fatal(err)
	}
	cli.Crypto = helper
	syncer.OnEventType(event.StateMember, func(ctx context.Context, evt *event.Event) {
		if evt.GetStateKey() != cli.UserID.String() || evt.Content.AsMember().Membership != event.MembershipInvite {
			return
		}
		go func() { // the group is entered while the sync goes on
			if _, err := engine.Join(ctx, evt.RoomID.String(), nil); err != nil {
				log.Print(err)
			}
		}()
	})
	// end

	syncer.OnEventType(event.EventMessage, func(ctx context.Context, evt *event.Event) {
		if evt.Sender == cli.UserID || !evt.Mautrix.WasEncrypted {
			return
		}
		if _, err := cli.SendReaction(ctx, evt.RoomID, evt.ID, "👍"); err != nil {
			log.Print(err)
		}
		if _, err := cli.SendText(ctx, evt.RoomID, "I heard you"); err != nil {
			log.Print(err)
		}
	})
	if err := cli.SyncWithContext(ctx); err != nil {
		log.Fatal(err)
	}
}
