package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/lab"
)

// API makes one request of the client-server API, below /_matrix/client/v3, as a user does with a client that knows
// nothing of MLS, and decodes the answer.
func API(ctx context.Context, s *lab.Server, user lab.User, method, path string, body any) (json.RawMessage, error) {
	var in io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("e2e: %w", err)
		}
		in = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.BaseURL+"/_matrix/client/v3"+path, in)
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+user.AccessToken)
	resp, err := plain.Do(req)
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("e2e: %s %s: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("e2e: %s %s: %s: %.500s", method, path, resp.Status, answer)
	}
	return answer, nil
}

// Ask makes a request that needs no account, and tells whether it was answered well.
func Ask(ctx context.Context, s *lab.Server, path string) error { return get(ctx, s.BaseURL+path) }

// Ciphertext returns the MLS message in an encrypted room event, as the user's homeserver has it.
func Ciphertext(ctx context.Context, s *lab.Server, user lab.User, room id.RoomID, event id.EventID) ([]byte, error) {
	raw, err := API(ctx, s, user, http.MethodGet, "/rooms/"+url.PathEscape(string(room))+"/event/"+url.PathEscape(string(event)), nil)
	if err != nil {
		return nil, err
	}
	var ev struct {
		Type    string `json:"type"`
		Content struct {
			Ciphertext string `json:"ciphertext"`
		} `json:"content"`
	}
	if err := json.Unmarshal(raw, &ev); err != nil {
		return nil, fmt.Errorf("e2e: event %s: %w", event, err)
	}
	if ev.Type != "m.room.encrypted" {
		return nil, fmt.Errorf("e2e: event %s is a %s, not encrypted", event, ev.Type)
	}
	return base64.RawStdEncoding.DecodeString(ev.Content.Ciphertext)
}

// SendPlain sends an unencrypted message, as a client without MLS does.
func SendPlain(ctx context.Context, s *lab.Server, user lab.User, room id.RoomID, eventType, txn string, content any) (id.EventID, error) {
	raw, err := API(ctx, s, user, http.MethodPut, "/rooms/"+url.PathEscape(string(room))+"/send/"+eventType+"/"+url.PathEscape(txn), content)
	if err != nil {
		return "", err
	}
	var sent struct {
		EventID id.EventID `json:"event_id"`
	}
	if err := json.Unmarshal(raw, &sent); err != nil {
		return "", fmt.Errorf("e2e: %w", err)
	}
	return sent.EventID, nil
}

// CreatePlainRoom makes an unencrypted private room and invites users.
func CreatePlainRoom(ctx context.Context, s *lab.Server, user lab.User, invite ...id.UserID) (id.RoomID, error) {
	raw, err := API(ctx, s, user, http.MethodPost, "/createRoom", map[string]any{"preset": "private_chat", "invite": append([]id.UserID{}, invite...)})
	if err != nil {
		return "", err
	}
	var made struct {
		RoomID id.RoomID `json:"room_id"`
	}
	if err := json.Unmarshal(raw, &made); err != nil {
		return "", fmt.Errorf("e2e: %w", err)
	}
	return made.RoomID, nil
}
