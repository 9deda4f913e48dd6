package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/verificationhelper"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// VerifyUI is a person at this device during an interactive verification
// (Matrix client-server API, "Short Authentication String (SAS)
// verification"). Its methods are called one after the other, from a goroutine
// that may block.
type VerifyUI interface {
	// Asked says that a device asks to be verified, or to verify us; false
	// declines.
	Asked(ctx context.Context, user id.UserID, device id.DeviceID) bool
	// Compare shows what both devices must show; false says that they differ. An
	// error says that nobody compared them, which ends the verification without
	// telling the other side of a difference.
	Compare(ctx context.Context, user id.UserID, emoji []Emoji, decimals []int) (same bool, err error)
	// Ended says how it ended: nil when both sides confirmed. It must not block.
	Ended(ctx context.Context, user id.UserID, err error)
}

// Emoji is one of seven in a comparison.
type Emoji struct {
	Symbol rune
	Name   string
}

// ErrVerificationEnded reports a verification that the other side ended.
var ErrVerificationEnded = errors.New("identity: the verification was ended")

// ErrVerificationStopped reports a verification that was stopped on this side.
var ErrVerificationStopped = errors.New("identity: the verification was stopped")

// stoppedReason is what the other side is told then.
const stoppedReason = "the verification was stopped"

// verifier runs interactive verifications.
type verifier struct {
	mu     sync.Mutex
	ui     VerifyUI
	helper *verificationhelper.VerificationHelper
	mach   *crypto.OlmMachine
	client *mautrix.Client
	syncer *mautrix.DefaultSyncer
	txns   map[id.VerificationTransactionID]*verification

	// step is held while the helper works: it reads a run, lets its own lock
	// go, and writes the run back, so two at once would lose a step.
	step sync.Mutex
}

// verification is one run.
type verification struct {
	user     id.UserID
	ours     bool // we asked for it
	masterID string
	macs     bool // the other side vouched for the master key
	peer     id.DeviceID
	at       time.Time // when it was asked for

	cancelled bool // by the other side, or because it took too long

	// The helper takes the wrong master key when the other side confirms
	// first, so its message waits until we have.
	confirmed bool
	early     *event.Event
}

const (
	maxVerifications = 50
	// maxOfUser bounds those that one user asks for, so that nobody alone keeps others from asking.
	maxOfUser = 5
	// verificationTime is how long one may take, and verificationAhead by how much a request's clock may be ahead: the
	// specification's limits.
	verificationTime  = 10 * time.Minute
	verificationAhead = 5 * time.Minute
)

// reset drops the helper, so that the next verification sees new keys. Running
// ones go on with the old.
func (v *verifier) reset() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.txns) == 0 {
		v.helper = nil
	}
}

// SetVerifyUI sets who answers when another device asks for a verification.
// Without one, requests are left unanswered.
func (i *Identity) SetVerifyUI(ui VerifyUI) {
	i.verifier.mu.Lock()
	defer i.verifier.mu.Unlock()
	i.verifier.ui = ui
}

// StartVerification asks the other devices of a user, or of our own, for an
// interactive verification. The person set with SetVerifyUI goes through it
// while somebody calls ProcessSync.
func (i *Identity) StartVerification(ctx context.Context, user id.UserID) error {
	ctx = i.quiet(ctx)
	helper, err := i.verificationHelper(ctx)
	if err != nil {
		return err
	}
	// The devices to ask are those of now.
	if _, err := i.verifier.mach.FetchKeys(ctx, []id.UserID{user}, true); err != nil {
		return fmt.Errorf("identity: ask for the devices of %s: %w", user, err)
	}
	devices, err := i.verifier.mach.CryptoStore.GetDevices(ctx, user)
	if err != nil {
		return fmt.Errorf("identity: ask for the devices of %s: %w", user, err)
	}
	delete(devices, i.DeviceID())
	if len(devices) == 0 {
		return fmt.Errorf("identity: %s has no other device that could take part", user)
	}
	// An answer can come before the helper knows what it asked.
	i.verifier.step.Lock()
	defer i.verifier.step.Unlock()
	txn, err := helper.StartVerification(ctx, user)
	if err != nil {
		return fmt.Errorf("identity: ask for a verification: %w", err)
	}
	i.verifier.mu.Lock()
	defer i.verifier.mu.Unlock()
	i.verifier.txns[txn] = &verification{user: user, ours: true, at: i.now()}
	return nil
}

// StopVerifications declines whatever verification is under way, and forgets it. Its
// person is told by Ended, with [ErrVerificationStopped].
func (i *Identity) StopVerifications(ctx context.Context) {
	v := &i.verifier
	v.mu.Lock()
	helper, ui := v.helper, v.ui
	var open []id.VerificationTransactionID
	for txn := range v.txns {
		open = append(open, txn)
	}
	v.mu.Unlock()
	v.step.Lock()
	defer v.step.Unlock()
	for _, txn := range open {
		_ = helper.CancelVerification(ctx, txn, event.VerificationCancelCodeUser, stoppedReason)
		(&verifyCallbacks{i: i}).end(ctx, ui, txn, ErrVerificationStopped)
	}
}

// verificationHelper returns the running helper or makes one.
func (i *Identity) verificationHelper(ctx context.Context) (*verificationhelper.VerificationHelper, error) {
	v := &i.verifier
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.helper != nil {
		return v.helper, nil
	}
	mach, cli, err := i.machine(ctx)
	if err != nil {
		return nil, err
	}
	v.mach, v.client = mach, cli
	v.syncer = cli.Syncer.(*mautrix.DefaultSyncer)
	v.txns = make(map[id.VerificationTransactionID]*verification)
	helper := verificationhelper.NewVerificationHelper(cli, mach, nil, &verifyCallbacks{i: i}, false, false, true)
	if err := helper.Init(i.quiet(ctx)); err != nil {
		return nil, fmt.Errorf("identity: prepare verification: %w", err)
	}
	v.helper = helper
	return helper, nil
}

// quiet returns a context with a logger that takes warnings only.
func (i *Identity) quiet(ctx context.Context) context.Context {
	log := i.log.Level(zerolog.WarnLevel) // the library logs whole contents below
	return log.WithContext(ctx)
}

// verificationEvent hands a to-device event to the helper.
func (i *Identity) verificationEvent(ctx context.Context, evt *event.Event) {
	v := &i.verifier
	v.mu.Lock()
	idle := v.ui == nil
	v.mu.Unlock()
	if idle {
		return
	}
	if _, err := i.verificationHelper(ctx); err != nil {
		i.log.Warn().Err(err).Msg("A verification could not be prepared")
		return
	}
	if evt.Content.VeryRaw == nil || !json.Valid(evt.Content.VeryRaw) || len(evt.Content.VeryRaw) > 65536 {
		return
	}
	if err := json.Unmarshal(evt.Content.VeryRaw, &evt.Content); err != nil {
		return
	}
	if err := evt.Content.ParseRaw(evt.Type); err != nil {
		i.log.Info().Str("type", evt.Type.Type).Stringer("sender", evt.Sender).Msg("A verification message is malformed")
		return
	}
	v.step.Lock()
	defer v.step.Unlock()
	if i.noteVerificationEvent(evt) {
		i.dispatch(ctx, evt)
	}
}

// dispatch hands an event to the helper. The caller holds verifier.step.
func (i *Identity) dispatch(ctx context.Context, evt *event.Event) {
	defer func() {
		// The library trusts the shape of what the other side sends.
		if r := recover(); r != nil {
			i.log.Error().Str("type", evt.Type.Type).Msg("A verification message was refused by a panic")
		}
	}()
	i.verifier.syncer.Dispatch(i.quiet(ctx), evt)
}

// noteVerificationEvent keeps what is needed after the end, and drops what is
// not from the user of the transaction.
func (i *Identity) noteVerificationEvent(evt *event.Event) bool {
	content, ok := evt.Content.Parsed.(event.VerificationTransactionable)
	if !ok {
		return false
	}
	v := &i.verifier
	v.mu.Lock()
	defer v.mu.Unlock()
	txn := v.txns[content.GetTransactionID()]
	if txn == nil {
		request := evt.Type.Type == event.ToDeviceVerificationRequest.Type
		if c, ok := evt.Content.Parsed.(*event.VerificationRequestEventContent); ok && c.Timestamp.Sub(i.now()) > verificationAhead {
			return false // the helper would hold it until then
		}
		open, ofServer := 0, 0
		for txnID, other := range v.txns {
			if i.now().Sub(other.at) > verificationTime { // nobody answered, or went through it
				delete(v.txns, txnID)
				continue
			}
			if other.user == evt.Sender {
				open++
			}
			if other.user.Homeserver() == evt.Sender.Homeserver() {
				ofServer++
			}
		}
		// A server's users take at most half of what others leave; own devices ask whatever others do.
		fair := ofServer < maxVerifications-len(v.txns) || evt.Sender == i.UserID()
		return request && open < maxOfUser && fair
	}
	if txn.user != evt.Sender {
		return false
	}
	switch c := evt.Content.Parsed.(type) {
	case *event.VerificationReadyEventContent:
		txn.peer = c.FromDevice
	case *event.VerificationMACEventContent:
		// The helper ends the run when any of these does not fit.
		for keyID := range c.MAC {
			if _, name := keyID.Parse(); name != txn.peer.String() {
				txn.macs, txn.masterID = true, name
			}
		}
		if !txn.confirmed {
			txn.early = evt
			return false
		}
	}
	return true
}

// verifyCallbacks is called by the helper, partly with its lock held: what
// calls it back runs in a goroutine.
type verifyCallbacks struct{ i *Identity }

var (
	_ verificationhelper.RequiredCallbacks = (*verifyCallbacks)(nil)
	_ verificationhelper.ShowSASCallbacks  = (*verifyCallbacks)(nil)
)

func (c *verifyCallbacks) run(ctx context.Context, fn func(ctx context.Context, ui VerifyUI, helper *verificationhelper.VerificationHelper)) {
	v := &c.i.verifier
	v.mu.Lock()
	ui, helper := v.ui, v.helper
	v.mu.Unlock()
	if ui == nil || helper == nil {
		return
	}
	ctx = context.WithoutCancel(ctx)
	go func() {
		ctx, cancel := context.WithTimeout(ctx, verificationTime)
		defer cancel()
		fn(ctx, ui, helper)
	}()
}

func (c *verifyCallbacks) txn(txnID id.VerificationTransactionID) *verification {
	v := &c.i.verifier
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.txns[txnID]
}

// VerificationRequested implements verificationhelper.RequiredCallbacks.
func (c *verifyCallbacks) VerificationRequested(ctx context.Context, txnID id.VerificationTransactionID, from id.UserID, device id.DeviceID) {
	v := &c.i.verifier
	v.mu.Lock()
	v.txns[txnID] = &verification{user: from, peer: device, at: c.i.now()}
	v.mu.Unlock()
	c.run(ctx, func(ctx context.Context, ui VerifyUI, helper *verificationhelper.VerificationHelper) {
		accepted := ui.Asked(ctx, from, device)
		v.step.Lock()
		defer v.step.Unlock()
		var err error
		if accepted {
			err = helper.AcceptVerification(ctx, txnID)
		} else {
			err = helper.CancelVerification(ctx, txnID, event.VerificationCancelCodeUser, "the user declined")
			c.forget(txnID)
		}
		if err != nil {
			c.end(ctx, ui, txnID, fmt.Errorf("identity: answer the request: %w", err))
		}
	})
}

// VerificationReady implements verificationhelper.RequiredCallbacks.
func (c *verifyCallbacks) VerificationReady(ctx context.Context, txnID id.VerificationTransactionID, device id.DeviceID, sas, _ bool, _ *verificationhelper.QRCode) {
	t := c.txn(txnID)
	if t == nil || !t.ours {
		return // who asked starts
	}
	c.run(ctx, func(ctx context.Context, ui VerifyUI, helper *verificationhelper.VerificationHelper) {
		if !sas {
			c.end(ctx, ui, txnID, errors.New("identity: the other device cannot compare emoji"))
			return
		}
		v := &c.i.verifier
		v.step.Lock()
		defer v.step.Unlock()
		if err := helper.StartSAS(ctx, txnID); err != nil {
			c.end(ctx, ui, txnID, fmt.Errorf("identity: start the comparison: %w", err))
		}
	})
}

// ShowSAS implements verificationhelper.ShowSASCallbacks.
func (c *verifyCallbacks) ShowSAS(ctx context.Context, txnID id.VerificationTransactionID, emojis []rune, names []string, decimals []int) {
	t := c.txn(txnID)
	if t == nil {
		return
	}
	c.run(ctx, func(ctx context.Context, ui VerifyUI, helper *verificationhelper.VerificationHelper) {
		shown := make([]Emoji, min(len(emojis), len(names)))
		for n := range shown {
			shown[n] = Emoji{Symbol: emojis[n], Name: names[n]}
		}
		same, stop := ui.Compare(ctx, t.user, shown, slices.Clone(decimals))
		v := &c.i.verifier
		v.step.Lock()
		defer v.step.Unlock()
		if stop != nil {
			// It may have been told already, by StopVerifications.
			_ = helper.CancelVerification(context.WithoutCancel(ctx), txnID, event.VerificationCancelCodeUser, stoppedReason)
			c.end(ctx, ui, txnID, fmt.Errorf("%w: %w", ErrVerificationStopped, stop))
			return
		}
		if !same {
			err := helper.CancelVerification(ctx, txnID, event.VerificationCancelCodeSASMismatch, "the emoji differ")
			c.end(ctx, ui, txnID, errors.Join(errors.New("identity: the emoji differ: somebody may be in between, or the other device showed another comparison"), err))
			return
		}
		err := helper.ConfirmSAS(ctx, txnID)
		if errors.Is(err, verificationhelper.ErrUnknownVerificationTransaction) {
			v.mu.Lock()
			cancelled := t.cancelled
			v.mu.Unlock()
			if cancelled {
				return // VerificationCancelled tells, with the other side's reason
			}
			err = ErrVerificationEnded
		}
		if err != nil {
			c.end(ctx, ui, txnID, fmt.Errorf("identity: confirm the comparison: %w", err))
			return
		}
		v.mu.Lock()
		early := t.early
		t.confirmed, t.early = true, nil
		v.mu.Unlock()
		if early != nil {
			c.i.dispatch(ctx, early)
		}
	})
}

// VerificationCancelled implements verificationhelper.RequiredCallbacks.
func (c *verifyCallbacks) VerificationCancelled(ctx context.Context, txnID id.VerificationTransactionID, code event.VerificationCancelCode, reason string) {
	v := &c.i.verifier
	v.mu.Lock()
	if t := v.txns[txnID]; t != nil {
		t.cancelled = true
	}
	v.mu.Unlock()
	if len(reason) > 200 {
		reason = reason[:200]
	}
	if c.nobody() {
		c.forget(txnID)
		return
	}
	c.run(ctx, func(ctx context.Context, ui VerifyUI, _ *verificationhelper.VerificationHelper) {
		c.end(ctx, ui, txnID, fmt.Errorf("%w: %q (%s)", ErrVerificationEnded, reason, code))
	})
}

// VerificationDone implements verificationhelper.RequiredCallbacks.
func (c *verifyCallbacks) VerificationDone(ctx context.Context, txnID id.VerificationTransactionID, _ event.VerificationMethod) {
	t := c.txn(txnID)
	if t == nil {
		return
	}
	if c.nobody() {
		c.forget(txnID)
		return
	}
	c.run(ctx, func(ctx context.Context, ui VerifyUI, _ *verificationhelper.VerificationHelper) {
		c.end(ctx, ui, txnID, c.i.verified(ctx, t))
	})
}

func (c *verifyCallbacks) forget(txnID id.VerificationTransactionID) *verification {
	v := &c.i.verifier
	v.mu.Lock()
	defer v.mu.Unlock()
	t := v.txns[txnID]
	delete(v.txns, txnID)
	if len(v.txns) == 0 {
		v.helper = nil // the next one sees the keys of then
	}
	return t
}

// nobody tells whether there is nobody to tell how a run ends.
func (c *verifyCallbacks) nobody() bool {
	v := &c.i.verifier
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ui == nil
}

// end forgets a run and tells the person, if there is one, once.
func (c *verifyCallbacks) end(ctx context.Context, ui VerifyUI, txnID id.VerificationTransactionID, err error) {
	if t := c.forget(txnID); t != nil && ui != nil {
		ui.Ended(ctx, t.user, err)
	}
}

// verified keeps what a comparison showed: the master key of ours that the
// other device vouched for. The signatures were uploaded by the helper.
func (i *Identity) verified(ctx context.Context, t *verification) error {
	if t.user != i.UserID() {
		i.lists.outdate(t.user)
		if err := i.st.MarkDeviceListOutdated(ctx, t.user); err != nil {
			return err
		}
		i.notifyChanged(t.user)
		return nil
	}
	if t.macs && t.masterID != "" {
		if err := i.st.PutKV(ctx, kvTrustedMaster, []byte(t.masterID)); err != nil {
			return err
		}
	}
	return i.ownListChanged(ctx)
}

// noCrypto stands where mautrix wants a helper for encrypted rooms:
// verification here runs over to-device messages only.
type noCrypto struct{}

var errNoRooms = errors.New("identity: verification inside rooms is not supported")

func (noCrypto) Encrypt(context.Context, id.RoomID, event.Type, any) (*event.EncryptedEventContent, error) {
	return nil, errNoRooms
}
func (noCrypto) Decrypt(context.Context, *event.Event) (*event.Event, error) { return nil, errNoRooms }
func (noCrypto) WaitForSession(context.Context, id.RoomID, id.SenderKey, id.SessionID, time.Duration) bool {
	return false
}
func (noCrypto) RequestSession(context.Context, id.RoomID, id.SenderKey, id.SessionID, id.UserID, id.DeviceID) {
}
func (noCrypto) Init(context.Context) error { return nil }
