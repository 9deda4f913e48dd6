package main

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/canonicaljson"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/e2e"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	sharedSecret = "shared-secret" // of the lab's homeservers, for registering users
	suite        = mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519
	packages     = 6 // key packages of a device that nobody runs: more than one, for others may claim one, and a claim be lost with a killed client
	oneTimeKeys  = 3 // the same for Olm
)

// each does something for every item, some of each server at the same time, and shows how far it is.
func each[T any](s *scale, ctx context.Context, what string, items []T, server func(T) string, do func(context.Context, T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queues := map[string]chan T{}
	for _, item := range items {
		name := server(item)
		if queues[name] == nil {
			queues[name] = make(chan T, len(items))
		}
		queues[name] <- item
	}
	var done atomic.Int64
	var wg sync.WaitGroup
	for _, queue := range queues {
		close(queue)
		for range s.atOnce {
			wg.Go(func() {
				for item := range queue {
					if ctx.Err() != nil {
						return
					}
					if err := do(ctx, item); err != nil {
						cancel(err)
						return
					}
					s.say.show(what, int(done.Add(1)), len(items))
				}
			})
		}
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// register makes an account. Where the name is taken, by a program that was killed before it wrote it down, another
// is used.
func (s *scale) register(ctx context.Context, server *lab.Server, name string) (lab.User, error) {
	url := server.BaseURL + "/_synapse/admin/v1/register"
	for attempt := range 10 {
		localpart := name
		if attempt > 0 {
			localpart = fmt.Sprintf("%s-%d", name, attempt+1)
		}
		var nonce struct {
			Nonce string `json:"nonce"`
		}
		if err := s.http.call(ctx, http.MethodGet, url, "", struct{}{}, &nonce); err != nil {
			return lab.User{}, err
		}
		u := lab.User{Localpart: localpart, Password: "password-" + localpart}
		mac := hmac.New(sha1.New, []byte(sharedSecret))
		mac.Write([]byte(strings.Join([]string{nonce.Nonce, localpart, u.Password, "notadmin"}, "\x00")))
		err := s.http.call(ctx, http.MethodPost, url, "", map[string]any{
			"nonce": nonce.Nonce, "username": localpart, "password": u.Password, "admin": false, "mac": hex.EncodeToString(mac.Sum(nil)),
		}, &u)
		var refused *answerError
		if errors.As(err, &refused) && refused.code == "M_USER_IN_USE" {
			continue
		}
		return u, err
	}
	return lab.User{}, fmt.Errorf("%s is taken on %s, and so are the names after it", name, server.Name)
}

// people makes everybody and their devices, or starts those that are there.
func (s *scale) people(ctx context.Context) error {
	var left []*member
	for _, m := range s.st.Crowd {
		if m.Devices == nil {
			left = append(left, m)
		}
	}
	index := map[*member]int{}
	for n, m := range s.st.Crowd {
		index[m] = n
	}
	err := s.account("make the users that nobody runs", len(left) > 0, func() error {
		return each(s, ctx, "users that nobody runs", left, func(m *member) string { return m.Server }, func(ctx context.Context, m *member) error {
			return s.makeMember(ctx, m, fmt.Sprintf("leaf%d", index[m]), s.devicesOf(index[m]))
		})
	})
	if err != nil {
		return err
	}
	all := append([]*driven{s.st.Late}, s.st.Driven...)
	running := make(map[*driven]*e2e.Device, len(all))
	fresh := false
	for _, d := range all {
		fresh = fresh || !d.Made
	}
	err = s.account("make the whole clients", fresh, func() error {
		return each(s, ctx, "whole clients", all, func(d *driven) string { return d.Server }, func(ctx context.Context, d *driven) error {
			device, err := s.drive(ctx, d)
			s.mu.Lock()
			defer s.mu.Unlock()
			if device != nil {
				s.more = append(s.more, device)
			}
			running[d] = device
			return err
		})
	})
	if err != nil {
		return err
	}
	for _, d := range s.st.Driven {
		s.online = append(s.online, running[d])
	}
	s.late = running[s.st.Late]
	return s.save(true)
}

// drive starts a whole client, and makes its user and device if they are not there.
func (s *scale) drive(ctx context.Context, d *driven) (*e2e.Device, error) {
	options := e2e.DeviceOptions{HTTP: s.http.client(), Suites: []mls.CipherSuite{suite}}
	if d.Made {
		return s.w.ReopenDevice(ctx, d.Server, d.User, d.User.Localpart, options)
	}
	server := s.w.Server(d.Server)
	user, err := s.register(ctx, server, d.Name)
	if err != nil {
		return nil, err
	}
	device, err := s.w.NewDeviceOf(ctx, server.Name, user, user.Localpart, options)
	if err != nil {
		return nil, err
	}
	return device, s.update(func() { d.User, d.Recovery, d.Made = user, device.Recovery, true })
}

// makeMember makes a user with cross-signing keys and devices that nobody runs.
func (s *scale) makeMember(ctx context.Context, m *member, name string, count int) error {
	server := s.w.Server(m.Server)
	user, err := s.register(ctx, server, name)
	if err != nil {
		return err
	}
	signer, err := s.crossSign(ctx, server, user)
	if err != nil {
		return err
	}
	devices := make([]id.DeviceID, 0, count)
	for n := range count {
		token, device := user.AccessToken, id.DeviceID(user.DeviceID)
		if n > 0 {
			var login struct {
				Token  string      `json:"access_token"`
				Device id.DeviceID `json:"device_id"`
			}
			if err := s.http.call(ctx, http.MethodPost, server.BaseURL+"/_matrix/client/v3/login", "", map[string]any{
				"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": user.Localpart}, "password": user.Password,
			}, &login); err != nil {
				return err
			}
			token, device = login.Token, login.Device
		}
		keys, err := deviceKeys(id.UserID(user.UserID), device, signer)
		if err != nil {
			return err
		}
		if err := s.http.call(ctx, http.MethodPost, server.BaseURL+"/_matrix/client/v3/keys/upload", token, keys, nil); err != nil {
			return err
		}
		devices = append(devices, device)
	}
	return s.update(func() { m.User, m.Devices = user, devices })
}

func public(key ed25519.PrivateKey) string {
	return rooms.EncodeBase64(key.Public().(ed25519.PublicKey))
}

// crossSign publishes cross-signing keys for a user, and returns the one that signs devices.
func (s *scale) crossSign(ctx context.Context, server *lab.Server, user lab.User) (ed25519.PrivateKey, error) {
	var keys [3]ed25519.PrivateKey
	for n := range keys {
		var err error
		if _, keys[n], err = ed25519.GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	body := map[string]any{}
	for n, usage := range []string{"master", "self_signing", "user_signing"} {
		key := map[string]any{
			"user_id": user.UserID, "usage": []string{usage}, "keys": map[string]string{"ed25519:" + public(keys[n]): public(keys[n])},
		}
		if n > 0 {
			canonical, err := canonicaljson.Marshal(key)
			if err != nil {
				return nil, err
			}
			key["signatures"] = map[string]any{user.UserID: map[string]string{"ed25519:" + public(keys[0]): rooms.EncodeBase64(ed25519.Sign(keys[0], canonical))}}
		}
		body[usage+"_key"] = key
	}
	url := server.BaseURL + "/_matrix/client/v3/keys/device_signing/upload"
	var asked struct {
		Session string `json:"session"`
	}
	err := s.http.call(ctx, http.MethodPost, url, user.AccessToken, body, &asked)
	if err != nil && asked.Session != "" {
		body["auth"] = map[string]any{
			"type": "m.login.password", "session": asked.Session, "password": user.Password,
			"identifier": map[string]string{"type": "m.id.user", "user": user.Localpart},
		}
		err = s.http.call(ctx, http.MethodPost, url, user.AccessToken, body, nil)
	}
	return keys[1], err
}

// deviceKeys makes a device and returns what it uploads: its keys, signed by itself and by its user, key packages, and
// one-time keys for Olm. The private keys are forgotten.
func deviceKeys(user id.UserID, device id.DeviceID, signer ed25519.PrivateKey) (map[string]any, error) {
	account := crypto.NewOlmAccount()
	key, err := mls.GenerateSignatureKey(suite, rand.Reader)
	if err != nil {
		return nil, err
	}
	keys := &mautrix.DeviceKeys{
		UserID: user, DeviceID: device,
		Algorithms: []id.Algorithm{rooms.Algorithm, id.AlgorithmOlmV1, id.AlgorithmMegolmV1},
		Keys: mautrix.KeyMap{
			id.NewDeviceKeyID(id.KeyAlgorithmEd25519, device):    account.SigningKey().String(),
			id.NewDeviceKeyID(id.KeyAlgorithmCurve25519, device): account.IdentityKey().String(),
			id.DeviceKeyID(rooms.DeviceKeyID(suite, device)):     rooms.EncodeBase64(key.Public()),
		},
	}
	canonical, err := canonicaljson.Marshal(map[string]any{"user_id": user, "device_id": device, "algorithms": keys.Algorithms, "keys": keys.Keys})
	if err != nil {
		return nil, err
	}
	own, err := account.SignJSON(keys)
	if err != nil {
		return nil, err
	}
	keys.Signatures = signatures.NewSingleSignature(user, id.KeyAlgorithmEd25519, string(device), own)
	keys.Signatures[user][id.NewKeyID(id.KeyAlgorithmEd25519, public(signer))] = rooms.EncodeBase64(ed25519.Sign(signer, canonical))
	once := map[id.KeyID]any{}
	cfg := &mls.Config{Rand: rand.Reader, Now: time.Now, Authenticator: rooms.Authenticator{}}
	leaf := rooms.LeafOptions(rooms.Credential{User: user, Device: device, Key: key.Public()})
	leaf.Capabilities.CipherSuites = []mls.CipherSuite{suite}
	for range packages {
		bundle, err := mls.NewKeyPackage(cfg, suite, key, leaf)
		if err != nil {
			return nil, err
		}
		once[rooms.KeyPackageID(suite, bundle.Ref())] = rooms.EncodeBase64(bundle.Message())
	}
	if err := account.Internal.GenOneTimeKeys(oneTimeKeys); err != nil {
		return nil, err
	}
	have, err := account.Internal.OneTimeKeys()
	if err != nil {
		return nil, err
	}
	for keyID, public := range have {
		one := mautrix.OneTimeKey{Key: public, IsSigned: true}
		sig, err := account.SignJSON(mautrix.OneTimeKey{Key: public})
		if err != nil {
			return nil, err
		}
		one.Signatures = signatures.NewSingleSignature(user, id.KeyAlgorithmEd25519, string(device), sig)
		once[id.NewKeyID(id.KeyAlgorithmSignedCurve25519, keyID)] = one
	}
	return map[string]any{"device_keys": keys, "one_time_keys": once}, nil
}
