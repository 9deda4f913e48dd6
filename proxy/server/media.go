package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"maunium.net/go/mautrix/crypto/attachment"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
	"github.com/matrix-mls/matrix-mls/proxy/route"
	"github.com/matrix-mls/matrix-mls/rooms"
)

const (
	maxMedia   = 100 << 20 // bytes of one file
	anyMIME    = "application/octet-stream"
	uploadPath = "/_matrix/media/v3/upload"
	// minEncrypted is of how many bytes a file must be to be taken for a client's
	// ciphertext: the bytes of a shorter one, a key or a text, may well be as even.
	minEncrypted = 4 << 10
)

// upload encrypts every file, since nobody knows yet what it is for. It is
// uploaded once more, in clear, if it is then used where nothing is encrypted:
// see publish. What the client has encrypted by itself stays as it is: in a room
// with Megolm, whose messages nobody reads here, it has to be opened by the
// client's key alone.
func (s *Server) upload(w http.ResponseWriter, r *http.Request, sess *session) {
	s.uploadTo(w, r, sess, sess.account)
}

func (s *Server) uploadTo(w http.ResponseWriter, r *http.Request, sess *session, keys uploads) {
	data, ok := read(w, r, maxMedia)
	if !ok {
		return
	}
	kind := r.Header.Get("Content-Type")
	if kind == "" {
		kind = anyMIME
	}
	media := &account.Media{MIME: kind, Own: true}
	if looksEncrypted(kind, r.URL.Query().Get("filename"), data) {
		var err error
		if media.Raw, err = keys.HasKeys(r.Context(), sess.device); err != nil {
			s.o.Log.Err(err).Msg("Whether a client encrypts by itself cannot be read")
		}
	}
	if !media.Raw {
		media.File = &event.EncryptedFileInfo{EncryptedFile: *attachment.NewEncryptedFile()}
		media.File.EncryptInPlace(data)
	}
	// Its name and type stay here.
	mxc, resp, err := s.put(r.Context(), sess, anyMIME, data)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	if mxc == "" {
		s.passed(w, resp, sess)
		return
	}
	if media.File != nil {
		media.File.URL = id.ContentURIString(mxc)
	}
	if err := keys.KeepMedia(context.WithoutCancel(r.Context()), mxc, media); err != nil {
		s.o.Log.Err(err).Msg("The key of a file could not be stored")
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the key of the file could not be stored; is the disk full?")
		return
	}
	answer(w, http.StatusOK, map[string]string{"content_uri": mxc})
}

// plainMarks begin files that http.DetectContentType does not tell, and that are as
// even as a ciphertext.
var plainMarks = []string{"\xfd7zXZ\x00", "7z\xbc\xaf\x27\x1c", "\x28\xb5\x2f\xfd", "BZh", "age-encryption.org/", "\x1aE\xdf\xa3", "OggS", "fLaC"}

// telling are ends of names of files whose beginning, or text, tells what they are.
var telling = []string{
	".jpg", ".jpeg", ".png", ".gif", ".webp", ".pdf", ".mp4", ".mov", ".webm", ".zip", ".docx", ".xlsx", ".pptx", ".odt", ".ods", ".txt", ".md", ".html", ".json", ".csv",
}

// looksEncrypted tells whether a file may be one that its client has encrypted by
// itself: each byte in it is as likely as any other, and it has no type. It has no
// name either, or, with some clients, that of a file that would begin in another way.
func looksEncrypted(kind, name string, data []byte) bool {
	if len(data) < minEncrypted || kind != anyMIME || utf8.Valid(data) || name != "" && !slices.Contains(telling, strings.ToLower(path.Ext(name))) {
		return false
	}
	if len(data) >= 8 && string(data[4:8]) == "ftyp" { // a film
		return false
	}
	if http.DetectContentType(data) != anyMIME {
		return false
	}
	for _, mark := range plainMarks {
		if bytes.HasPrefix(data, []byte(mark)) {
			return false
		}
	}
	return even(data)
}

// even tells whether bytes are spread as at random: Pearson's chi-squared of the
// counts of the 256 values. Its mean is 255; of random bytes one file in about a
// hundred million has more than 400.
func even(data []byte) bool {
	var counts [256]int
	for _, b := range data {
		counts[b]++
	}
	want := float64(len(data)) / 256
	sum := 0.0
	for _, n := range counts {
		sum += (float64(n) - want) * (float64(n) - want) / want
	}
	return sum < 400
}

// ownKeys is where it is noted which clients encrypt by themselves.
type ownKeys interface {
	NoteKeys(ctx context.Context, session id.DeviceID) error
	HasKeys(ctx context.Context, session id.DeviceID) (bool, error)
}

// uploadKeys passes on what a client publishes of its own keys (POST /keys/upload),
// and notes it if the keys of its own device are among them. The homeserver is not
// asked for that: what it says decides whether a file is encrypted.
func (s *Server) uploadKeys(w http.ResponseWriter, r *http.Request, sess *session, keys ownKeys) {
	body := r.Body
	head, err := io.ReadAll(io.LimitReader(body, maxRequest+1))
	if err != nil {
		refuse(w, http.StatusBadRequest, "M_NOT_JSON", "the request broke off")
		return
	}
	if len(head) <= maxRequest && namesDevice(head, sess) {
		if err := keys.NoteKeys(context.WithoutCancel(r.Context()), sess.device); err != nil {
			s.o.Log.Err(err).Msg("That a client encrypts by itself could not be noted")
		}
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), body), body}
	s.stream.ServeHTTP(w, r)
}

// namesDevice tells whether a client publishes the keys of its own device.
func namesDevice(body []byte, sess *session) bool {
	var published struct {
		Device struct {
			User   id.UserID         `json:"user_id"`
			Device id.DeviceID       `json:"device_id"`
			Keys   map[string]string `json:"keys"`
		} `json:"device_keys"`
	}
	err := json.Unmarshal(body, &published)
	d := published.Device
	return err == nil && d.User == sess.user && d.Device == sess.device && len(d.Keys) > 0
}

// put uploads a file. Without an error and an address, the homeserver refused.
func (s *Server) put(ctx context.Context, sess *session, kind string, data []byte) (mxc string, resp *reply, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.o.Homeserver.String(), bytes.NewReader(data))
	if err != nil {
		return "", nil, fmt.Errorf("server: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+sess.token)
	req.Header.Set("Content-Type", kind)
	s.direct(req, uploadPath)
	if resp, err = s.do(req, maxRequest); err != nil || resp.status != http.StatusOK {
		return "", resp, err
	}
	var made struct {
		URI string `json:"content_uri"`
	}
	if json.Unmarshal(resp.body, &made) != nil || !strings.HasPrefix(made.URI, "mxc://") {
		return "", nil, errors.New("server: the homeserver answered an upload without an address")
	}
	return made.URI, resp, nil
}

// do makes a request and reads an answer of at most limit bytes.
func (s *Server) do(req *http.Request, limit int64) (*reply, error) {
	resp, err := s.o.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return readReply(resp, limit)
}

// open fetches an encrypted file and decrypts it. A file that is not the one its
// sender encrypted is refused. Without data and error, the homeserver refused.
func (s *Server) open(ctx context.Context, sess *session, mxc string, media *account.Media) (data []byte, resp *reply, err error) {
	mxc = rewrite.Unkeyed(mxc)
	uri, err := id.ParseContentURI(mxc)
	if err == nil && !rooms.IsMediaAddress(mxc) {
		err = id.ErrInvalidContentURI
	}
	if err != nil {
		return nil, nil, fmt.Errorf("server: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.o.Homeserver.String(), nil)
	if err != nil {
		return nil, nil, fmt.Errorf("server: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+sess.token)
	s.direct(req, "/_matrix/client/v1/media/download/"+url.PathEscape(uri.Homeserver)+"/"+url.PathEscape(uri.FileID))
	if resp, err = s.do(req, maxMedia); err != nil || resp.status != http.StatusOK {
		return nil, resp, err
	}
	file := media.File.EncryptedFile
	if err := file.DecryptInPlace(resp.body); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNotTheFile, err)
	}
	return resp.body, resp, nil
}

var errNotTheFile = errors.New("server: the file at the homeserver is not the one that was encrypted")

// known finds the key of a file: one that this user's client uploaded, or one at
// an address that the client was given together with that key.
func known(ctx context.Context, sess *session, mxc string) (*account.Media, error) {
	media, err := sess.account.Media(ctx, mxc)
	if media != nil && !media.Own && rewrite.Unkeyed(mxc) == mxc {
		return nil, err // a member named it; it may be anybody's
	}
	return media, err
}

// mediaKeys is where the keys of files are.
type mediaKeys interface {
	Media(ctx context.Context, mxc string) (*account.Media, error)
}

// ownMedia finds the key of a file that a client of this proxy uploaded, nil if
// it is not one. Seen in a room, such a file has an address with its key's hash.
func ownMedia(ctx context.Context, keys mediaKeys, mxc string) (*account.Media, error) {
	seen, err := keys.Media(ctx, mxc)
	if err != nil || seen == nil || seen.Own {
		return seen, err
	}
	own, err := keys.Media(ctx, rewrite.Unkeyed(mxc))
	if err != nil || own == nil || !own.Own || own.Raw || own.File == nil || seen.File == nil || own.File.Key.Key != seen.File.Key.Key || own.File.InitVector != seen.File.InitVector {
		return nil, err
	}
	return own, nil
}

// ciphertext hands on a file as the homeserver has it.
func (s *Server) ciphertext(w http.ResponseWriter, r *http.Request, m route.Match) {
	segments := strings.Split(m.Path, "/")
	at := len(segments) - 1
	if m.Params["name"] != "" {
		at--
	}
	segments[at] = rewrite.Unkeyed(segments[at])
	s.file(w, r.WithContext(context.WithValue(r.Context(), pathKey{}, strings.Join(segments, "/"))))
}

// file hands on a file of the homeserver's.
func (s *Server) file(w http.ResponseWriter, r *http.Request) {
	fileHeaders(w.Header())
	s.files.ServeHTTP(w, r)
}

// fileHeaders let a browser show a file, also in pages of other origins, and let
// nothing in it do anything.
func fileHeaders(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", fileSandbox)
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
}

// download decrypts files whose key this device has. A thumbnail of one is the
// file itself: the homeserver cannot make another.
func (s *Server) download(w http.ResponseWriter, r *http.Request, sess *session, m route.Match) {
	mxc := "mxc://" + m.Params["server"] + "/" + m.Params["media"]
	media, err := known(r.Context(), sess, mxc)
	if err != nil {
		s.o.Log.Err(err).Msg("The key of a file cannot be read")
		refuse(w, http.StatusInternalServerError, "M_UNKNOWN", "the key of the file cannot be read")
		return
	}
	if media == nil || media.Raw {
		s.file(w, r)
		return
	}
	data, resp, err := s.open(r.Context(), sess, mxc, media)
	switch {
	case errors.Is(err, errNotTheFile):
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the file at the homeserver is not the one that its sender encrypted")
		return
	case errors.Is(err, errTooLarge):
		refuse(w, http.StatusBadGateway, "M_TOO_LARGE", fmt.Sprintf("the file has more than %d bytes", maxMedia))
		return
	case err != nil:
		s.failed(w, r, err)
		return
	case data == nil && resp.status != http.StatusOK:
		s.passed(w, resp, sess)
		return
	}
	h := w.Header()
	kind, disposition := shownAs(media.MIME)
	h.Set("Content-Type", kind)
	h.Set("Content-Disposition", disposition)
	fileHeaders(h)
	h.Set("Cache-Control", "private, no-store")
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(data)
}

// shownAs says how a browser may show a file: what could run in the proxy's name
// is only saved.
func shownAs(claimed string) (kind, disposition string) {
	kind, _, err := mime.ParseMediaType(claimed)
	if err != nil {
		return anyMIME, "attachment"
	}
	switch major, minor, _ := strings.Cut(kind, "/"); {
	case major == "image" && (minor == "jpeg" || minor == "png" || minor == "gif" || minor == "webp" || minor == "avif"), major == "audio", major == "video":
		return kind, "inline"
	case major == "image" || major == "text" || major == "application" && (strings.Contains(minor, "xml") || strings.Contains(minor, "script")):
		return anyMIME, "attachment"
	}
	return kind, "attachment"
}

// attach gives a message for an MLS room the keys of the files that the client
// uploaded for it.
func (s *Server) attach(ctx context.Context, sess *session, content json.RawMessage) (json.RawMessage, error) {
	return attach(content, func(mxc string) (*account.Media, error) { return known(ctx, sess, mxc) })
}

func attach(content json.RawMessage, find func(mxc string) (*account.Media, error)) (json.RawMessage, error) {
	var failed error
	out := rewrite.Attach(content, func(mxc string) (json.RawMessage, bool) {
		media, err := find(mxc)
		switch {
		case err != nil:
		case media != nil && media.Raw:
			err = errAsItIs
		case media != nil && media.File == nil, media == nil && rewrite.Unkeyed(mxc) != mxc:
			err = errNoKey // whoever got the address alone could not open the file
		}
		if err != nil || media == nil {
			failed = errors.Join(failed, err)
			return nil, false
		}
		raw, err := json.Marshal(media.File)
		failed = errors.Join(failed, err)
		return raw, err == nil
	})
	return out, failed
}

// mediaKeeper is where the keys of files are put, too.
type mediaKeeper interface {
	mediaKeys
	KeepMedia(ctx context.Context, mxc string, m *account.Media) error
}

// uploads is what an upload needs of an account.
type uploads interface {
	mediaKeeper
	ownKeys
}

// single gives a message for an MLS room files that are encrypted once. A client
// that encrypts its files by itself, in rooms without encryption too, has uploaded
// what the proxy encrypted once more: nobody could open it with the key that the
// message names. Such a file is opened with both keys, and uploaded with a new one.
func (s *Server) single(ctx context.Context, sess *session, keys mediaKeeper, content json.RawMessage) (json.RawMessage, error) {
	return rewrite.Encrypted(content, func(raw json.RawMessage) (json.RawMessage, error) {
		var theirs event.EncryptedFileInfo
		if json.Unmarshal(raw, &theirs) != nil {
			return raw, nil
		}
		mxc := string(theirs.URL)
		media, err := ownMedia(ctx, keys, mxc)
		if err != nil || media == nil || media.Raw {
			return raw, err
		}
		if media.Single != nil {
			return json.Marshal(media.Single)
		}
		return s.singles.do(ctx, string(sess.user)+" "+string(raw), func(ctx context.Context) (json.RawMessage, error) {
			return s.makeSingle(ctx, sess, keys, mxc, media, theirs)
		})
	})
}

// makeSingle opens a file with both keys, and uploads it with a new one.
func (s *Server) makeSingle(ctx context.Context, sess *session, keys mediaKeeper, mxc string, media *account.Media, theirs event.EncryptedFileInfo) (json.RawMessage, error) {
	data, resp, err := s.open(ctx, sess, mxc, media)
	if err == nil && resp.status != http.StatusOK {
		err = fmt.Errorf("server: the homeserver answers %d when a file is fetched", resp.status)
	}
	if err != nil {
		return nil, err
	}
	if err := theirs.DecryptInPlace(data); err != nil {
		return nil, fmt.Errorf("%w: %w", errOtherKey, err)
	}
	file := attachment.NewEncryptedFile()
	file.EncryptInPlace(data)
	fresh, resp, err := s.put(ctx, sess, anyMIME, data)
	if err == nil && fresh == "" {
		err = fmt.Errorf("server: the homeserver answers %d when a file is uploaded", resp.status)
	}
	if err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	one := &event.EncryptedFileInfo{EncryptedFile: *file, URL: id.ContentURIString(fresh)}
	err = keys.KeepMedia(ctx, fresh, &account.Media{File: one, MIME: anyMIME, Own: true, Of: rewrite.Unkeyed(mxc)})
	if err == nil {
		err = keys.KeepMedia(ctx, rewrite.Unkeyed(mxc), &account.Media{Single: one})
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(one)
}

// maxSingles bounds the files that are uploaded anew at once; each may take twice
// its size in memory.
const maxSingles = 4

// singles are the files that are being opened and uploaded anew.
type singles struct {
	mu    sync.Mutex
	under map[string]*singling
}

type singling struct {
	done chan struct{}
	out  json.RawMessage
	err  error
}

// do makes a file, for all who ask for it meanwhile, and goes on if nobody waits
// any longer: what it made is kept, so that the next who asks has it.
func (s *singles) do(ctx context.Context, key string, upload func(context.Context) (json.RawMessage, error)) (json.RawMessage, error) {
	s.mu.Lock()
	one := s.under[key]
	if one == nil {
		if len(s.under) >= maxSingles {
			s.mu.Unlock()
			return nil, errManyFiles
		}
		if s.under == nil {
			s.under = map[string]*singling{}
		}
		one = &singling{done: make(chan struct{})}
		s.under[key] = one
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeWait)
			defer cancel()
			defer func() {
				if cause := recover(); cause != nil { // of one file, not of the program
					one.err = fmt.Errorf("server: internal: panic while a file was opened: %v", cause)
				}
				s.mu.Lock()
				delete(s.under, key)
				s.mu.Unlock()
				close(one.done)
			}()
			one.out, one.err = upload(ctx)
		}()
	}
	s.mu.Unlock()
	select {
	case <-one.done:
		return one.out, one.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

var errManyFiles = errors.New("server: many files are being uploaded")

// errAsItIs reports a file that was taken for one that its client had encrypted.
var errAsItIs = errors.New("server: the file lies at the homeserver as the client uploaded it")

// errNoKey reports a file that is encrypted, and whose key is gone.
var errNoKey = errors.New("server: the key of the file is not there any more")

var errOtherKey = errors.New("server: the key that the message names does not open the file")

// notSingle tells the client why its file could not be sent.
func (s *Server) notSingle(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, errManyFiles), errors.Is(err, context.DeadlineExceeded) && r.Context().Err() == nil:
		wait(w, "the attached file is being uploaded once more")
	case errors.Is(err, errOtherKey):
		refuse(w, http.StatusBadRequest, "M_BAD_JSON", "the attached file cannot be opened with the key that the message names")
	case errors.Is(err, errNotTheFile):
		refuse(w, http.StatusBadGateway, "M_UNKNOWN", "the attached file at the homeserver is not the one that was uploaded")
	default:
		s.failed(w, r, err)
	}
}

// publish uploads files once more, in clear, that the client uses where nothing
// is encrypted: in a room without MLS, as an avatar, in the state of a room.
func (s *Server) publish(ctx context.Context, sess *session, body json.RawMessage) (json.RawMessage, error) {
	return rewrite.Publish(body, func(mxc string) (string, error) {
		media, err := ownMedia(ctx, sess.account, mxc)
		if err != nil || media == nil || media.Raw {
			return rewrite.Unkeyed(mxc), err // of others, what they encrypted stays so
		}
		if media.Public != "" {
			return media.Public, nil
		}
		data, resp, err := s.open(ctx, sess, mxc, media)
		if err == nil && resp.status != http.StatusOK {
			err = fmt.Errorf("server: the homeserver answers %d when a file is fetched", resp.status)
		}
		if err != nil {
			return "", err
		}
		public, resp, err := s.put(ctx, sess, media.MIME, data)
		if err == nil && public == "" {
			err = fmt.Errorf("server: the homeserver answers %d when a file is uploaded", resp.status)
		}
		if err != nil {
			return "", err
		}
		return public, sess.account.KeepMedia(context.WithoutCancel(ctx), rewrite.Unkeyed(mxc), &account.Media{Public: public})
	})
}

// published makes the client's request with a body in which files are public.
func (s *Server) published(w http.ResponseWriter, r *http.Request, sess *session, body []byte) {
	out, err := s.publish(r.Context(), sess, body)
	if err != nil {
		s.unpublished(w, err)
		return
	}
	s.forward(w, r, sess, out)
}

func (s *Server) unpublished(w http.ResponseWriter, err error) {
	s.o.Log.Warn().Str("error", redact(err)).Msg("A file could not be made public")
	refuse(w, http.StatusBadGateway, "M_UNKNOWN", "a file that this names could not be uploaded unencrypted; try again")
}
