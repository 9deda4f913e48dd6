package identity

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/client/store"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	maxClaimsPerRequest = 500
	claimRounds         = 3               // when the homeserver serves unusable ones
	answerWait          = 8 * time.Second // for a device that is asked directly
	maxAnswers          = 200             // devices asked directly at once
	maxAsksPerUser      = 10              // requests for a key package in a minute
	maxAsks             = 60              // of all users together
	maxAskers           = 1000
)

// Target is a device to add to a group.
type Target struct {
	User   id.UserID
	Device id.DeviceID
	Room   id.RoomID          // named when the device is asked directly
	Need   rooms.Verification // what the room requires; zero is cross-signed
}

// Claimed is a device's key package, or the reason why there is none.
type Claimed struct {
	Target     Target
	KeyPackage *mls.KeyPackage
	Err        error
}

// ClaimKeyPackages takes a key package of each target from its homeserver and
// checks it: its form, its lifetime, that it is of the suite, and that its
// credential is bound to the target as target.Need says. A device without one
// left is asked by a to-device message and given a few seconds; meanwhile
// somebody must keep calling ProcessSync. The result has one entry per target,
// in order. The error is for failures that concern all.
func (i *Identity) ClaimKeyPackages(ctx context.Context, cs mls.CipherSuite, targets []Target) ([]Claimed, error) {
	if !rooms.UsableSuite(cs) || cs.Experimental() && !slices.Contains(i.suites, cs) {
		return nil, fmt.Errorf("identity: claim key packages: cipher suite %s is not supported", cs)
	}
	out := make([]Claimed, len(targets))
	users := make([]id.UserID, 0, len(targets))
	for n, t := range targets {
		out[n].Target = t
		users = append(users, t.User)
	}
	devices, err := i.DevicesOf(ctx, users)
	if err != nil {
		return nil, err
	}
	var open []int
	for n, t := range targets {
		switch d := devices[t.User].Devices[t.Device]; {
		case d == nil:
			out[n].Err = fmt.Errorf("identity: %s has no device %s", t.User, t.Device)
		case d.MLSKeys[cs] == nil:
			out[n].Err = fmt.Errorf("identity: device %s of %s does not support %s", t.Device, t.User, cs)
		default:
			// What the key package will be judged by is known already: do not
			// waste one on a device that may not be added.
			cred := &rooms.Credential{User: t.User, Device: t.Device, Key: d.MLSKeys[cs]}
			if out[n].Err = devices[t.User].Check(cred, cs, t.Need); out[n].Err == nil {
				open = append(open, n)
			}
		}
	}
	for round := 0; round < claimRounds && len(open) > 0; round++ {
		var again []int
		for len(open) > 0 {
			batch := open[:min(len(open), maxClaimsPerRequest)]
			open = open[len(batch):]
			keys, err := i.claim(ctx, cs, targets, batch)
			if err != nil {
				return nil, err
			}
			for _, n := range batch {
				t := targets[n]
				raw, ok := keys[t.User][t.Device]
				if !ok {
					out[n].Err = errors.Join(out[n].Err, ErrNoKeyPackage)
					continue
				}
				kp, err := i.checkClaimed(cs, t, devices[t.User], raw)
				if err != nil {
					// An expired one is followed by the next.
					out[n].Err = err
					again = append(again, n)
					continue
				}
				out[n].KeyPackage, out[n].Err = kp, nil
			}
		}
		open = again
	}
	return out, i.askDirectly(ctx, cs, out, devices)
}

// claim sends one POST /keys/claim. At most one key per device is returned.
func (i *Identity) claim(ctx context.Context, cs mls.CipherSuite, targets []Target, batch []int) (map[id.UserID]map[id.DeviceID]claimedKey, error) {
	_, cli, err := i.current()
	if err != nil {
		return nil, err
	}
	ask := make(map[id.UserID]map[id.DeviceID]id.KeyAlgorithm)
	for _, n := range batch {
		t := targets[n]
		if ask[t.User] == nil {
			ask[t.User] = make(map[id.DeviceID]id.KeyAlgorithm)
		}
		ask[t.User][t.Device] = rooms.SuiteKeyAlgorithm(cs)
	}
	var resp struct {
		OneTimeKeys map[id.UserID]map[id.DeviceID]map[id.KeyID]json.RawMessage `json:"one_time_keys"`
		Failures    map[string]json.RawMessage                                 `json:"failures"`
	}
	body := map[string]any{"one_time_keys": ask, "timeout": 10_000}
	if err := i.do(ctx, cli, http.MethodPost, cli.BuildClientURL("v3", "keys", "claim"), body, &resp); err != nil {
		return nil, fmt.Errorf("identity: claim key packages: %w", err)
	}
	out := make(map[id.UserID]map[id.DeviceID]claimedKey, len(resp.OneTimeKeys))
	for user, devices := range resp.OneTimeKeys {
		out[user] = make(map[id.DeviceID]claimedKey, len(devices))
		for device, keys := range devices {
			for keyID, raw := range keys {
				out[user][device] = claimedKey{id: keyID, raw: raw}
				break // one was asked for
			}
		}
	}
	return out, nil
}

type claimedKey struct {
	id  id.KeyID
	raw json.RawMessage
}

// checkClaimed reads a claimed key package and checks that it is what was
// asked for.
func (i *Identity) checkClaimed(cs mls.CipherSuite, t Target, devices *UserDevices, key claimedKey) (*mls.KeyPackage, error) {
	bad := func(err error) error {
		return fmt.Errorf("identity: key package of device %s of %s: %w", t.Device, t.User, err)
	}
	suite, ref, err := rooms.ParseKeyPackageID(key.id)
	if err != nil {
		return nil, bad(err)
	}
	if suite != cs {
		return nil, bad(fmt.Errorf("it is of %s, asked for %s", suite, cs))
	}
	if len(key.raw) > 2*rooms.MaxInline {
		return nil, bad(fmt.Errorf("it has %d bytes", len(key.raw)))
	}
	var text string
	if err := json.Unmarshal(key.raw, &text); err != nil {
		return nil, bad(errors.New("it is not a string"))
	}
	raw, err := rooms.DecodeBase64(text)
	if err != nil {
		return nil, bad(err)
	}
	kp, err := i.checkKeyPackage(cs, t, devices, raw)
	if err != nil {
		return nil, bad(err)
	}
	if string(kp.Ref()) != string(ref) {
		return nil, bad(errors.New("its id is not its reference"))
	}
	return kp, nil
}

func (i *Identity) checkKeyPackage(cs mls.CipherSuite, t Target, devices *UserDevices, raw []byte) (*mls.KeyPackage, error) {
	m, err := mls.ParseMessage(raw)
	if err != nil {
		return nil, err
	}
	kp := m.KeyPackage()
	if kp == nil {
		return nil, errors.New("it is another MLS message")
	}
	if err := kp.Validate(i.mlsConfig(), cs); err != nil {
		return nil, err
	}
	cred, err := rooms.CredentialOf(kp.LeafNode)
	if err != nil {
		return nil, err
	}
	if cred.User != t.User || cred.Device != t.Device {
		return nil, fmt.Errorf("its credential is of %s", cred)
	}
	if err := devices.Check(cred, cs, t.Need); err != nil {
		return nil, err
	}
	return kp, nil
}

// answer is a key package that came by to-device message.
type answer struct {
	sender  id.UserID
	message []byte
}

// askDirectly asks the devices that had none left, all at once.
func (i *Identity) askDirectly(ctx context.Context, cs mls.CipherSuite, out []Claimed, devices map[id.UserID]*UserDevices) error {
	type asked struct {
		n       int
		request string
		answers chan *answer
	}
	var open []asked
	messages := make(map[id.UserID]map[id.DeviceID]json.RawMessage)
	for n := range out {
		t := out[n].Target
		if out[n].KeyPackage != nil || !errors.Is(out[n].Err, ErrNoKeyPackage) || t.Room == "" || len(open) == maxAnswers {
			continue
		}
		a := asked{n: n, request: rand.Text(), answers: make(chan *answer, 1)}
		content, err := rooms.Encode(&rooms.KeyPackageContent{Room: t.Room, Suite: uint16(cs), RequestID: a.request})
		if err != nil {
			return err
		}
		if messages[t.User] == nil {
			messages[t.User] = make(map[id.DeviceID]json.RawMessage)
		}
		messages[t.User][t.Device] = content
		open = append(open, a)
	}
	if len(open) == 0 {
		return nil
	}
	i.packages.mu.Lock()
	for _, a := range open {
		i.packages.waiting[a.request] = a.answers
	}
	i.packages.mu.Unlock()
	defer func() {
		i.packages.mu.Lock()
		defer i.packages.mu.Unlock()
		for _, a := range open {
			delete(i.packages.waiting, a.request)
		}
	}()
	if err := i.sendToDevice(ctx, rooms.TypeKeyPackageRequest, messages); err != nil {
		i.log.Warn().Err(err).Msg("Devices without key packages could not be asked")
		return nil
	}
	deadline := time.NewTimer(answerWait)
	defer deadline.Stop()
	for _, a := range open {
		select {
		case got := <-a.answers:
			t := out[a.n].Target
			if got.sender != t.User {
				continue
			}
			kp, err := i.checkKeyPackage(cs, t, devices[t.User], got.message)
			if err != nil {
				out[a.n].Err = fmt.Errorf("identity: key package of device %s of %s: %w", t.Device, t.User, err)
				continue
			}
			out[a.n].KeyPackage, out[a.n].Err = kp, nil
		case <-deadline.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (i *Identity) sendToDevice(ctx context.Context, eventType string, messages map[id.UserID]map[id.DeviceID]json.RawMessage) error {
	_, cli, err := i.current()
	if err != nil {
		return err
	}
	target := cli.BuildURL(mautrix.ClientURLPath{"v3", "sendToDevice", eventType, rand.Text()})
	return i.do(ctx, cli, http.MethodPut, target, map[string]any{"messages": messages}, &struct{}{})
}

// keyPackageAnswered hands an answer to whoever waits for it.
func (i *Identity) keyPackageAnswered(sender id.UserID, raw json.RawMessage) {
	content, err := rooms.DecodeKeyPackage(raw)
	if err != nil || len(content.KeyPackage) == 0 {
		return
	}
	i.packages.mu.Lock()
	answers := i.packages.waiting[content.RequestID]
	i.packages.mu.Unlock()
	if answers == nil {
		return
	}
	select {
	case answers <- &answer{sender: sender, message: content.KeyPackage}:
	default: // one answer per request
	}
}

// keyPackageRequested answers another device's request with a fresh key
// package. Each user gets at most ten in a minute.
func (i *Identity) keyPackageRequested(ctx context.Context, sender id.UserID, raw json.RawMessage) error {
	content, err := rooms.DecodeKeyPackage(raw)
	if err != nil || rooms.CheckUserID(sender) != nil {
		i.log.Info().Stringer("sender", sender).Msg("A request for a key package is malformed")
		return nil
	}
	cs := mls.CipherSuite(content.Suite)
	if _, err := i.SignatureKey(cs); err != nil {
		i.log.Info().Stringer("sender", sender).Stringer("suite", cs).Msg("A key package of a suite that is not offered was asked for")
		return nil
	}
	now := i.now()
	if !i.packages.allow(sender, now) {
		i.log.Info().Stringer("sender", sender).Msg("Too many requests for key packages")
		return nil
	}
	bundle, err := i.makePackage(ctx, cs, false, store.KeyPackageDirect, now)
	if err != nil {
		return err
	}
	reply, err := rooms.Encode(&rooms.KeyPackageContent{Room: content.Room, Suite: content.Suite, RequestID: content.RequestID, KeyPackage: bundle.Message()})
	if err != nil {
		return err
	}
	// A to-device message does not say which device sent it.
	err = i.sendToDevice(ctx, rooms.TypeKeyPackage, map[id.UserID]map[id.DeviceID]json.RawMessage{sender: {"*": reply}})
	if err != nil {
		i.log.Warn().Err(err).Stringer("sender", sender).Msg("A request for a key package could not be answered")
	}
	return nil
}

// allow counts a request and tells whether it may be answered.
func (p *packages) allow(user id.UserID, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	total := 0
	for u, times := range p.asked {
		for len(times) > 0 && now.Sub(times[0]) >= time.Minute {
			times = times[1:]
		}
		if len(times) == 0 {
			delete(p.asked, u)
			continue
		}
		p.asked[u] = times
		total += len(times)
	}
	if total >= maxAsks || len(p.asked[user]) >= maxAsksPerUser || len(p.asked) >= maxAskers {
		return false
	}
	p.asked[user] = append(p.asked[user], now)
	return true
}
