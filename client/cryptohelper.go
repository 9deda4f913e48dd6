package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// CryptoHelper gives a mautrix client MLS rooms: set it as the client's Crypto
// field and call Init. The bot goes on using its own syncer and its own calls;
// messages it sends into an MLS room are encrypted, and decrypted events reach
// its handlers as if they had come in clear, with Mautrix.WasEncrypted set.
//
// The bot's syncer and the engine share one device and so one /sync: Init
// registers with the syncer and feeds the engine from it. The engine stores a
// response before the bot's handlers see it.
//
// mautrix never passes reactions to a CryptoHelper. Init therefore also puts a
// [Guard] around the client's HTTP transport, which encrypts them, and
// anything else that would leave in clear.
type CryptoHelper struct {
	c   *Client
	cli *mautrix.Client

	// Fallback handles rooms that are not MLS rooms, such as mautrix's own
	// helper for Megolm. It may be nil.
	Fallback mautrix.CryptoHelper
	// DecryptError is called for events that cannot be decrypted. It may be nil.
	DecryptError func(evt *Undecryptable)
}

var _ mautrix.CryptoHelper = (*CryptoHelper)(nil)

// NewCryptoHelper returns a helper for cli, whose device must be the one of
// c's identity.
func NewCryptoHelper(cli *mautrix.Client, c *Client) *CryptoHelper {
	return &CryptoHelper{c: c, cli: cli}
}

// Client returns the engine: for creating rooms, inviting and so on.
func (h *CryptoHelper) Client() *Client { return h.c }

// Init hooks the engine into the client's syncer and transport and starts it.
// The engine stops when ctx ends.
func (h *CryptoHelper) Init(ctx context.Context) error {
	syncer, ok := h.cli.Syncer.(mautrix.ExtensibleSyncer)
	if !ok {
		return errors.New("client: the mautrix client's syncer must be an ExtensibleSyncer, such as mautrix.NewDefaultSyncer()")
	}
	if h.cli.UserID != h.c.UserID() || h.cli.DeviceID != h.c.DeviceID() {
		return fmt.Errorf("client: the mautrix client is %s %s, the store belongs to %s %s", h.cli.UserID, h.cli.DeviceID, h.c.UserID(), h.c.DeviceID())
	}
	if h.cli.Client == nil {
		h.cli.Client = &http.Client{}
	}
	guarded := *h.cli.Client
	guarded.Transport = &Guard{Client: h.c, Base: guarded.Transport}
	h.cli.Client = &guarded
	h.cli.StateStore = &guardedState{StateStore: h.cli.StateStore, c: h.c}
	syncer.OnSync(func(ctx context.Context, resp *mautrix.RespSync, since string) bool {
		for ctx.Err() == nil {
			err := h.c.Feed(ctx, resp)
			if err == nil {
				return true
			}
			// The response must not be lost: the bot's syncer would not ask
			// for it again.
			h.c.log.Warn().Err(err).Msg("Failed to store a sync response, will try again")
			if sleep(ctx, time.Second) != nil {
				return false
			}
		}
		return false
	})
	h.c.mu.Lock()
	inner := h.c.handler
	h.c.handler = func(ctx context.Context, update Update) {
		if inner != nil {
			inner(ctx, update)
		}
		h.dispatch(ctx, update)
	}
	h.c.mu.Unlock()
	if h.Fallback != nil {
		if err := h.Fallback.Init(ctx); err != nil {
			return err
		}
	}
	return h.c.StartFed(ctx)
}

// dispatch hands decrypted events to the bot's handlers.
func (h *CryptoHelper) dispatch(ctx context.Context, update Update) {
	switch u := update.(type) {
	case *Message:
		if evt, err := h.event(u); err == nil {
			if syncer, ok := h.cli.Syncer.(mautrix.DispatchableSyncer); ok {
				syncer.Dispatch(ctx, evt)
			}
		}
	case *Undecryptable:
		if h.DecryptError != nil {
			h.DecryptError(u)
		}
	}
}

// event makes a mautrix event of a decrypted message.
func (h *CryptoHelper) event(msg *Message) (*event.Event, error) {
	evt := &event.Event{
		ID: msg.EventID, RoomID: msg.Room, Sender: msg.Sender, Timestamp: msg.Timestamp,
		Type: event.NewEventType(msg.Type),
	}
	evt.Type.Class = event.MessageEventType
	if err := json.Unmarshal(msg.Content, &evt.Content); err != nil {
		return nil, fmt.Errorf("client: content of %s: %w", msg.EventID, err)
	}
	if err := evt.Content.ParseRaw(evt.Type); err != nil && !errors.Is(err, event.ErrUnsupportedContentType) {
		return nil, fmt.Errorf("client: content of %s: %w", msg.EventID, err)
	}
	evt.Mautrix.WasEncrypted = true
	evt.Mautrix.EventSource = event.SourceDecrypted | event.SourceJoin | event.SourceTimeline
	evt.Mautrix.TrustSource = &id.Device{UserID: msg.Sender, DeviceID: msg.Device}
	switch msg.Verification {
	case VerifiedUser:
		evt.Mautrix.TrustState = id.TrustStateCrossSignedVerified
	case VerifiedDevice:
		evt.Mautrix.TrustState = id.TrustStateCrossSignedTOFU
	default:
		evt.Mautrix.TrustState = id.TrustStateUnset
	}
	return evt, nil
}

// Encrypt encrypts an event for an MLS room. It waits, as long as ctx lets it,
// until the room can send.
func (h *CryptoHelper) Encrypt(ctx context.Context, roomID id.RoomID, evtType event.Type, content any) (*event.EncryptedEventContent, error) {
	if !h.c.IsMLS(roomID) {
		if h.Fallback != nil {
			return h.Fallback.Encrypt(ctx, roomID, evtType, content)
		}
		return nil, fmt.Errorf("%w (%s)", ErrNotMLS, roomID)
	}
	raw, err := h.c.EncryptEvent(ctx, roomID, evtType.Type, content)
	if err != nil {
		return nil, err
	}
	out := new(event.EncryptedEventContent)
	// commit_event has no field there: it is a hint, the ciphertext names its epoch.
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	return out, nil
}

// Decrypt returns the plaintext of an event. Keys work once, so it comes from
// what the engine stored; an event that the engine has not opened yet gives
// ErrNotDecrypted.
func (h *CryptoHelper) Decrypt(ctx context.Context, evt *event.Event) (*event.Event, error) {
	if !h.c.IsMLS(evt.RoomID) && h.Fallback != nil {
		return h.Fallback.Decrypt(ctx, evt)
	}
	msg, err := h.c.Message(ctx, evt.RoomID, evt.ID)
	if err != nil {
		return nil, fmt.Errorf("%w (%s)", ErrNotDecrypted, evt.ID)
	}
	return h.event(msg)
}

// ErrNotDecrypted reports an event that has not been decrypted (yet).
var ErrNotDecrypted = errors.New("client: the event has not been decrypted")

// WaitForSession reports false: MLS rooms have no sessions to wait for, the
// engine opens what it can by itself.
func (h *CryptoHelper) WaitForSession(ctx context.Context, roomID id.RoomID, key id.SenderKey, session id.SessionID, timeout time.Duration) bool {
	if h.Fallback != nil && !h.c.IsMLS(roomID) {
		return h.Fallback.WaitForSession(ctx, roomID, key, session, timeout)
	}
	return false
}

// RequestSession does nothing in MLS rooms: what is missing is fetched by the
// engine, and nobody sends keys on request.
func (h *CryptoHelper) RequestSession(ctx context.Context, roomID id.RoomID, key id.SenderKey, session id.SessionID, user id.UserID, device id.DeviceID) {
	if h.Fallback != nil && !h.c.IsMLS(roomID) {
		h.Fallback.RequestSession(ctx, roomID, key, session, user, device)
	}
}

// guardedState answers mautrix's question whether a room is encrypted from the
// group, so that a server cannot turn encryption off for the bot.
type guardedState struct {
	mautrix.StateStore
	c *Client
}

func (s *guardedState) IsEncrypted(ctx context.Context, roomID id.RoomID) (bool, error) {
	if s.c.IsMLS(roomID) {
		return true, nil
	}
	if s.StateStore == nil {
		return false, nil
	}
	return s.StateStore.IsEncrypted(ctx, roomID)
}

// IsMLS tells whether a room has, or by its state should have, an MLS group. A
// room that has a group never goes back.
func (c *Client) IsMLS(roomID id.RoomID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	return r != nil && r.isMLS()
}

// algorithmOf is used by the guard to recognise ciphertexts of ours.
func algorithmOf(content json.RawMessage) bool {
	_, err := rooms.DecodeEncrypted(content)
	return err == nil
}
