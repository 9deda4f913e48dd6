package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/route"
)

const (
	devicesPath       = "/_matrix/client/v3/devices"
	deleteDevicesPath = "/_matrix/client/v3/delete_devices"
)

// beside finds whose request it is, and the MLS device that the account has here, ""
// if none. It has answered the client if it returns false.
func (s *Server) beside(w http.ResponseWriter, r *http.Request) (o owner, device id.DeviceID, ok bool) {
	token := tokenOf(r.Header, r.URL.Query())
	if token == "" {
		return owner{}, "", true
	}
	o, err := s.owner(r.Context(), w, token)
	if errors.Is(err, errAnswered) {
		return owner{}, "", false
	}
	if err != nil {
		s.failed(w, r, err)
		return owner{}, "", false
	}
	switch a, err := s.o.Accounts.Get(o.user); {
	case errors.Is(err, account.ErrNoDevice):
		return o, "", true
	case err != nil:
		refuse(w, http.StatusServiceUnavailable, "M_UNKNOWN", "the MLS device of this account cannot be used now, and which one it is is not known; what the proxy printed when it started says why")
		return owner{}, "", false
	default:
		return o, a.Client().DeviceID(), true
	}
}

// endDevices ends sessions, but never the MLS device's: with it went the keys of all
// that was written, and the client would not know why.
func (s *Server) endDevices(w http.ResponseWriter, r *http.Request, m route.Match) {
	_, own, ok := s.beside(w, r)
	if !ok {
		return
	}
	body, ok := read(w, r, maxRequest)
	if !ok {
		return
	}
	named := []id.DeviceID{id.DeviceID(m.Params["device"])}
	if m.Kind == route.EndDevices {
		var req struct {
			Devices []id.DeviceID `json:"devices"`
		}
		_ = json.Unmarshal(body, &req) // the homeserver says what is wrong with it
		named = req.Devices
	}
	if own != "" && slices.Contains(named, own) {
		refuse(w, http.StatusForbidden, "M_FORBIDDEN", "nothing was ended: "+own.String()+" is the proxy's own device, with the keys of your encrypted rooms, which your clients here read by it; leave it out. It ends when the last of them logs out")
		return
	}
	resp, err := s.again(r, body)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	resp.pass(w)
}

// password changes the password (Matrix client-server API, "POST
// /_matrix/client/v3/account/password"). A homeserver ends all other sessions then,
// unless it is told not to: the MLS device's, too, with its keys. So it is told, and all
// others are ended then, unless the client wants them to stay.
func (s *Server) password(w http.ResponseWriter, r *http.Request) {
	o, own, ok := s.beside(w, r)
	if !ok {
		return
	}
	body, ok := read(w, r, maxLogin)
	if !ok {
		return
	}
	var req struct {
		Password string `json:"new_password"`
		End      *bool  `json:"logout_devices"`
		Auth     struct {
			Session string `json:"session"`
		} `json:"auth"`
	}
	var full map[string]json.RawMessage
	if err := json.Unmarshal(body, &full); err != nil || full == nil {
		refuse(w, http.StatusBadRequest, "M_NOT_JSON", "the new password did not come as JSON")
		return
	}
	_ = json.Unmarshal(body, &req)     // the homeserver says what is wrong with it
	ends := req.End == nil || *req.End // all others end unless a client says that they do not
	_, answers := full["auth"]
	known, begun := s.changing.find(req.Auth.Session, time.Now())
	switch {
	case answers && len(full) == 1 && own != "" && !begun: // whether other sessions are to end is not known any more
		refuse(w, http.StatusBadRequest, "M_UNKNOWN", "the password is not changed: the proxy does not know what this request goes on with, as it was started anew or a quarter of an hour went by; begin the change of the password anew")
		return
	case answers && len(full) == 1: // the homeserver keeps what an earlier request said
		req.Password, ends = known.password, known.later
	case own != "", req.End == nil: // without a session here it is ended only for who says that all are to end
		full["logout_devices"] = json.RawMessage("false")
		var err error
		if body, err = json.Marshal(full); err != nil {
			s.failed(w, r, err)
			return
		}
	}
	resp, err := s.again(r, body)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	switch {
	case resp.status == http.StatusUnauthorized:
		var said struct {
			Session string `json:"session"`
		}
		_ = json.Unmarshal(resp.body, &said)
		if own != "" {
			s.changing.keep(said.Session, req.Password, ends, time.Now())
		}
	case resp.status == http.StatusOK:
		s.changing.done(req.Auth.Session)
		if own == "" || !ends {
			break
		}
		if err := s.endOthers(r, o, own, req.Password); err != nil {
			s.o.Log.Warn().Str("error", redact(err)).Msg("The password is changed, and the other sessions could not be ended")
			refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the password is changed, but your other sessions are not ended: "+strings.TrimPrefix(plain(err), "server: ")+"; end them one by one, but for the proxy's device "+own.String())
			return
		}
	}
	resp.pass(w)
}

// endOthers ends the sessions of a user but for the one that asks and the MLS device's,
// by the password.
func (s *Server) endOthers(r *http.Request, o owner, own id.DeviceID, password string) error {
	ctx, token := context.WithoutCancel(r.Context()), tokenOf(r.Header, r.URL.Query())
	resp, err := s.ask(ctx, http.MethodGet, devicesPath, nil, token, nil)
	if err != nil {
		return err
	}
	var list struct {
		Devices []struct {
			ID id.DeviceID `json:"device_id"`
		} `json:"devices"`
	}
	if err := json.Unmarshal(resp.body, &list); err != nil || resp.status != http.StatusOK {
		return errors.New("server: the homeserver does not say which sessions there are")
	}
	ending := map[string]any{}
	var others []id.DeviceID
	for _, d := range list.Devices {
		if d.ID != o.device && d.ID != own {
			others = append(others, d.ID)
		}
	}
	if len(others) == 0 {
		return nil
	}
	ending["devices"] = others
	for range 2 { // the second time with what the homeserver asks for
		body, err := json.Marshal(ending)
		if err != nil {
			return err
		}
		if resp, err = s.ask(ctx, http.MethodPost, deleteDevicesPath, nil, token, body); err != nil {
			return err
		}
		if resp.status != http.StatusUnauthorized {
			break
		}
		var asks struct {
			Session string `json:"session"`
		}
		_ = json.Unmarshal(resp.body, &asks)
		ending["auth"] = map[string]any{
			"type": passwordLogin, "session": asks.Session, "password": password,
			"identifier": map[string]string{"type": "m.id.user", "user": o.user.String()},
		}
	}
	if resp.status != http.StatusOK {
		return errors.New("server: the homeserver refuses it (" + resp.code() + ")")
	}
	return nil
}
