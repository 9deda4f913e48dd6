package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/appservice"
	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/lab"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// What members and servers do that are not what they seem to be, put together from the project's own parts: no program
// of it does any of this.

// CommitOn makes a commit on an epoch that the device keeps, as a changed client could at any time. A spoilt one nobody in
// the group can apply, and nobody outside of it can tell from a good one: its confirmation tag is wrong, in the commit and
// in the GroupInfo, which the device signs, and with it the membership tag. It returns the commit's ref and the content of its event.
func (d *Device) CommitOn(ctx context.Context, room id.RoomID, parent federation.Ref, spoilt bool) (federation.Ref, json.RawMessage, error) {
	g, err := d.loadGroup(ctx, room, parent[:])
	if err != nil {
		return federation.Ref{}, nil, err
	}
	aad := rooms.CommitAAD{Parent: parent}
	options := mls.CommitOptions{ForcePath: true}
	if options.AuthenticatedData, err = aad.Encode(); err != nil {
		return federation.Ref{}, nil, err
	}
	staged, err := g.Commit(options)
	if err != nil {
		return federation.Ref{}, nil, fmt.Errorf("e2e: %w", err)
	}
	info, err := staged.GroupInfo(mls.GroupInfoOptions{ExternalPub: true})
	if err != nil {
		return federation.Ref{}, nil, fmt.Errorf("e2e: %w", err)
	}
	message := bytes.Clone(staged.Message())
	if spoilt {
		if err := d.spoil(g, message, info); err != nil {
			return federation.Ref{}, nil, err
		}
	}
	msg, err := mls.ParseMessage(message)
	if err != nil {
		return federation.Ref{}, nil, fmt.Errorf("e2e: %w", err)
	}
	ref, err := rooms.CommitRef(msg)
	if err != nil {
		return federation.Ref{}, nil, err
	}
	content := &rooms.CommitContent{Epoch: g.Epoch() + 1, Parent: rooms.Hash(parent)}
	content.SetInline(&rooms.CommitBundle{Message: message, GroupInfo: info})
	raw, err := rooms.Encode(content)
	return ref, raw, err
}

// spoil makes the confirmation tag of a commit and of its GroupInfo wrong. RFC 9420, Section 6.2: a PublicMessage ends with
// the confirmation and the membership tag; Section 12.4.3: a GroupInfo with the confirmation tag, the signer and the
// signature. All lengths are those of cipher suite 1.
func (d *Device) spoil(g *mls.Group, message, info []byte) error {
	const header, tag, signer, sig = 4, 32, 4, 2 + ed25519.SignatureSize
	right := message[len(message)-1-2*tag : len(message)-1-tag]
	end := len(info) - sig - signer
	if g.CipherSuite() != mls.MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519 || !bytes.Equal(right, info[end-tag:end]) {
		return errors.New("e2e: the commit and its GroupInfo have not the form that is expected")
	}
	right[0] ^= 1
	info[end-tag] ^= 1
	key, err := d.Identity.SignatureKey(g.CipherSuite())
	if err != nil {
		return err
	}
	signature, err := mls.SignWithLabel(g.CipherSuite(), key, "GroupInfoTBS", info[header:len(info)-sig])
	if err != nil {
		return fmt.Errorf("e2e: %w", err)
	}
	copy(info[len(info)-ed25519.SignatureSize:], signature)
	return nil
}

// PostCommit sends a commit that was made by hand. The device's own client need not run.
func (d *Device) PostCommit(ctx context.Context, room id.RoomID, content json.RawMessage) error {
	_, err := SendPlain(ctx, d.Server, d.User, room, rooms.TypeCommit, rand.Text(), content)
	return err
}

// roomEvent is one as the client-server API shows it.
type roomEvent struct {
	EventID id.EventID      `json:"event_id"`
	Type    string          `json:"type"`
	Sender  id.UserID       `json:"sender"`
	Content json.RawMessage `json:"content"`
}

// eventsOf returns the newest events of some type that a user's homeserver has of a room, newest first.
func eventsOf(ctx context.Context, d *Device, room id.RoomID, eventType string) ([]roomEvent, error) {
	filter, err := json.Marshal(map[string]any{"types": []string{eventType}})
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	raw, err := API(ctx, d.Server, d.User, http.MethodGet,
		"/rooms/"+url.PathEscape(string(room))+"/messages?dir=b&limit=200&filter="+url.QueryEscape(string(filter)), nil)
	if err != nil {
		return nil, err
	}
	var page struct {
		Chunk []roomEvent `json:"chunk"`
	}
	if err := json.Unmarshal(raw, &page); err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	return page.Chunk, nil
}

// Equivocate lets the module that accepted a commit accept another one beside it, in the same ballot: with its own receipt
// key, as its own bot. d is any member, whose homeserver shows the first accept and whose state names the group. It returns
// the module's server.
func (w *World) Equivocate(ctx context.Context, d *Device, room id.RoomID, accepted, beside federation.Ref) (*lab.Server, error) {
	list, err := eventsOf(ctx, d, room, rooms.TypeAccept)
	if err != nil {
		return nil, err
	}
	var first *federation.Accept
	var server *lab.Server
	for _, ev := range list {
		content, err := rooms.DecodeAccept(ev.Content)
		if err != nil || federation.Ref(content.Ref) != accepted {
			continue
		}
		for _, s := range w.All() {
			if ev.Sender == bot(s) {
				first, server = content.Receipt(), s
			}
		}
	}
	if first == nil {
		return nil, fmt.Errorf("e2e: no module accepted %s, as far as %s sees", accepted.Short(), d.Server.Name)
	}
	g, err := d.loadGroup(ctx, room, accepted[:])
	if err != nil {
		return nil, err
	}
	seed, err := w.modules[server.Name].key(ctx, appservice.KeyReceipt)
	if err != nil {
		return nil, err
	}
	second := *first
	second.Ref, second.Votes, second.Signature, second.EventID = beside, nil, nil, ""
	second.Chain.Counter += 1000
	if err := second.Sign(federation.Scope{Room: string(room), Group: g.GroupID()}, ed25519.NewKeyFromSeed(seed)); err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	raw, err := rooms.Encode(rooms.AcceptOf(&second))
	if err != nil {
		return nil, err
	}
	return server, w.asBot(ctx, server.Name, room, rooms.TypeAccept, raw)
}

func bot(s *lab.Server) id.UserID { return id.NewUserID(rooms.BotLocalpart, s.ServerName) }

// key reads a key from a module's database.
func (m *Module) key(ctx context.Context, name string) ([]byte, error) {
	files, err := filepath.Glob(filepath.Join(m.Dir, "*.db"))
	if err != nil || len(files) != 1 {
		return nil, fmt.Errorf("e2e: the databases of %s are %v (%v)", m.Name, files, err)
	}
	db, err := sql.Open("sqlite", "file:"+files[0]+"?mode=ro&_pragma=busy_timeout(10000)")
	if err != nil {
		return nil, fmt.Errorf("e2e: %w", err)
	}
	defer db.Close()
	var value []byte
	if err := db.QueryRowContext(ctx, "SELECT secret FROM keys WHERE name = $1", name).Scan(&value); err != nil {
		return nil, fmt.Errorf("e2e: the key %s of %s: %w", name, m.Name, err)
	}
	return value, nil
}

var asToken = regexp.MustCompile(`(?m)^as_token: *"?([^"\s]+)`)

// asBot sends an event as a module's bot.
func (w *World) asBot(ctx context.Context, server string, room id.RoomID, eventType string, content json.RawMessage) error {
	raw, err := os.ReadFile(w.modules[server].Registration)
	if err != nil {
		return fmt.Errorf("e2e: %w", err)
	}
	token := asToken.FindSubmatch(raw)
	if token == nil {
		return fmt.Errorf("e2e: no as_token in %s", w.modules[server].Registration)
	}
	_, err = SendPlain(ctx, w.Server(server), lab.User{AccessToken: string(token[1])}, room, eventType, rand.Text(), content)
	return err
}

// ActAs is what a server's owner can do: it returns a token of one of the server's users, without their doing. The
// server's admin is made if there is none.
func (w *World) ActAs(ctx context.Context, server string, user lab.User) (lab.User, error) {
	s := w.Server(server)
	admin, ok := s.Users["admin"]
	if !ok {
		var err error
		if admin, err = w.AddUser(ctx, server, "admin"); err != nil {
			return lab.User{}, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.BaseURL+"/_synapse/admin/v1/users/"+url.PathEscape(user.UserID)+"/login", bytes.NewReader([]byte("{}")))
	if err != nil {
		return lab.User{}, fmt.Errorf("e2e: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+admin.AccessToken)
	resp, err := plain.Do(req)
	if err != nil {
		return lab.User{}, fmt.Errorf("e2e: %w", err)
	}
	defer resp.Body.Close()
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.AccessToken == "" {
		return lab.User{}, fmt.Errorf("e2e: act as %s: %s (%v)", user.UserID, resp.Status, err)
	}
	user.AccessToken = answer.AccessToken
	return user, nil
}
