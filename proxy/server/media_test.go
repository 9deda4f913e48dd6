package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/crypto/attachment"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/proxy/account"
	"github.com/matrix-mls/matrix-mls/proxy/rewrite"
)

type mapOfMedia map[string]*account.Media

func (m mapOfMedia) Media(_ context.Context, mxc string) (*account.Media, error) { return m[mxc], nil }

func (m mapOfMedia) KeepMedia(_ context.Context, mxc string, media *account.Media) error {
	if known := m[mxc]; known != nil {
		known.Single = media.Single
		return nil
	}
	m[mxc] = media
	return nil
}

// TestFilesOfClientsThatEncryptThemAreEncryptedOnce: a client that encrypts its files by itself uploads them through a
// proxy that does so as well; who gets the message opens the file with the one key that it names.
func TestFilesOfClientsThatEncryptThemAreEncryptedOnce(t *testing.T) {
	const plain = "what the file says"
	files, uploads := map[string][]byte{}, 0
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = w.Write(files[path.Base(r.URL.Path)])
			return
		}
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		uploads++
		name := fmt.Sprintf("file%d", uploads)
		files[name] = data
		fmt.Fprintf(w, `{"content_uri":"mxc://h/%s"}`, name)
	}))
	t.Cleanup(hs.Close)
	base, err := url.Parse(hs.URL)
	if err != nil {
		t.Fatal(err)
	}
	s, sess, keys := New(Options{Homeserver: base, Log: zerolog.Nop()}), &session{token: "t"}, mapOfMedia{}

	// The client encrypts, then the proxy.
	theirs, ours := attachment.NewEncryptedFile(), attachment.NewEncryptedFile()
	data := []byte(plain)
	theirs.EncryptInPlace(data)
	ours.EncryptInPlace(data)
	files["own"] = data
	stored := func(mxc id.ContentURIString) *account.Media {
		raw, err := json.Marshal(&event.EncryptedFileInfo{EncryptedFile: *ours, URL: mxc})
		media := &account.Media{Own: true}
		if err == nil {
			err = json.Unmarshal(raw, &media.File)
		}
		if err != nil {
			t.Fatal(err)
		}
		return media
	}
	keys["mxc://h/own"] = stored("mxc://h/own")
	message := func(file *attachment.EncryptedFile, mxc id.ContentURIString) json.RawMessage {
		raw, err := json.Marshal(map[string]any{"body": "x", "file": &event.EncryptedFileInfo{EncryptedFile: *file, URL: mxc}})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	var first json.RawMessage
	for range 2 {
		got, err := s.single(t.Context(), sess, keys, message(theirs, "mxc://h/own"))
		if err != nil {
			t.Fatal(err)
		}
		var m struct {
			File event.EncryptedFileInfo `json:"file"`
		}
		if err := json.Unmarshal(got, &m); err != nil || m.File.URL != "mxc://h/file1" || m.File.Key.Key == theirs.Key.Key {
			t.Fatalf("the message became %s, %v", got, err)
		}
		opened := bytes.Clone(files["file1"])
		if err := m.File.DecryptInPlace(opened); err != nil || string(opened) != plain {
			t.Errorf("who gets %s reads %q, %v", got, opened, err)
		}
		if first != nil && string(got) != string(first) {
			t.Errorf("the same message again became %s, and was %s", got, first)
		}
		first = got
	}
	if uploads != 1 {
		t.Errorf("%d files were uploaded, want 1", uploads)
	}
	if own := keys["mxc://h/file1"]; own == nil || !own.Own {
		t.Errorf("the file is not known as an own one: %+v", own)
	}

	files["other"] = files["own"]
	keys["mxc://h/other"] = stored("mxc://h/other")
	if _, err := s.single(t.Context(), sess, keys, message(ours, "mxc://h/other")); !errors.Is(err, errOtherKey) {
		t.Errorf("with a key that does not open the file: %v", err)
	}
	if uploads != 1 {
		t.Error("a file that could not be opened was uploaded")
	}
	strange := message(theirs, "mxc://h/somebody")
	if got, err := s.single(t.Context(), sess, keys, strange); err != nil || string(got) != string(strange) {
		t.Errorf("a file that was not uploaded here: %s, %v", got, err)
	}
}

// TestALargeFileIsOpenedWhileItsClientComesAgain: what takes longer than a client
// waits goes on, once, and is there when the client comes again.
func TestALargeFileIsOpenedWhileItsClientComesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s singles
		var made atomic.Int32
		upload := func(ctx context.Context) (json.RawMessage, error) {
			<-time.After(time.Minute)
			made.Add(1)
			return json.RawMessage(`{}`), ctx.Err()
		}
		ask := func(key string) error {
			ctx, cancel := context.WithTimeout(t.Context(), sendWait)
			defer cancel()
			_, err := s.do(ctx, key, upload)
			return err
		}
		for n := range 3 {
			err := ask("file")
			if last := n == 2; last != (err == nil) || !last && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("try %d: %v", n, err)
			}
		}
		if made.Load() != 1 || len(s.under) != 0 {
			t.Errorf("it was made %d times, %d are under way", made.Load(), len(s.under))
		}
		for n := range maxSingles {
			go ask(fmt.Sprint(n))
		}
		synctest.Wait()
		if err := ask("more"); !errors.Is(err, errManyFiles) {
			t.Errorf("one more than may be under way: %v", err)
		}
		<-time.After(2 * time.Minute)
		synctest.Wait()
		if _, err := s.do(t.Context(), "bad", func(context.Context) (json.RawMessage, error) { panic("of a test") }); err == nil || len(s.under) != 0 {
			t.Errorf("a panic: %v, %d are under way", err, len(s.under))
		}
	})
}

// TestAFileWithoutItsKeyIsNotSent: whoever got its address alone could not open it.
func TestAFileWithoutItsKeyIsNotSent(t *testing.T) {
	file := &event.EncryptedFileInfo{EncryptedFile: *attachment.NewEncryptedFile()}
	const plain = "mxc://a.example/own"
	keyed := rewrite.Keyed(plain, json.RawMessage(`{}`))
	for _, tt := range []struct {
		name, mxc string
		media     *account.Media
		want      error
		file      bool
	}{
		{"own", plain, &account.Media{File: file, Own: true}, nil, true},
		{"seen", keyed, &account.Media{File: file}, nil, true},
		{"never encrypted", plain, nil, nil, false},
		{"no file", "https://a.example/x", nil, nil, false},
		{"seen, and its key is gone", keyed, nil, errNoKey, false},
		{"own, and its key is gone", plain, &account.Media{Public: "mxc://a.example/open"}, errNoKey, false},
		{"as the client uploaded it", plain, &account.Media{Own: true, Raw: true}, errAsItIs, false},
	} {
		for where, content := range map[string]string{
			"file": `{"url":%q}`, "thumbnail": `{"info":{"thumbnail_url":%q}}`, "edit": `{"m.new_content":{"url":%q}}`,
		} {
			out, err := attach(json.RawMessage(fmt.Sprintf(content, tt.mxc)), func(mxc string) (*account.Media, error) {
				if mxc != tt.mxc {
					t.Errorf("asked for %s", mxc)
				}
				return tt.media, nil
			})
			if !errors.Is(err, tt.want) || err == nil && strings.Contains(string(out), `"key"`) != tt.file {
				t.Errorf("%s, %s: %s, %v", tt.name, where, out, err)
			}
		}
	}
}

// TestOwnFilesAreKnownByEitherAddress: one's own file, seen in a room, has an
// address that names its key; whoever uses that one where nothing is encrypted
// means the same file.
func TestOwnFilesAreKnownByEitherAddress(t *testing.T) {
	file := func(key, iv string) *event.EncryptedFileInfo {
		f := &event.EncryptedFileInfo{EncryptedFile: *attachment.NewEncryptedFile()}
		f.Key.Key, f.InitVector = key, iv
		return f
	}
	const plain = "mxc://a.example/own"
	keyed := rewrite.Keyed(plain, json.RawMessage(`{}`))
	for _, tt := range []struct {
		name string
		ask  string
		own  *account.Media
		seen *account.Media
		want bool
	}{
		{"as it was uploaded", plain, &account.Media{File: file("k", "i"), Own: true}, nil, true},
		{"as it was seen", keyed, &account.Media{File: file("k", "i"), Own: true}, &account.Media{File: file("k", "i")}, true},
		{"with another key", keyed, &account.Media{File: file("k", "i"), Own: true}, &account.Media{File: file("x", "i")}, false},
		{"with another vector", keyed, &account.Media{File: file("k", "i"), Own: true}, &account.Media{File: file("k", "x")}, false},
		{"somebody else's", keyed, &account.Media{File: file("k", "i")}, &account.Media{File: file("k", "i")}, false},
		{"unknown", keyed, nil, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ownMedia(t.Context(), mapOfMedia{plain: tt.own, keyed: tt.seen}, tt.ask)
			if err != nil || (got != nil) != tt.want || got != nil && got != tt.own {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestFilesThatCouldRunInTheProxysNameAreOnlySaved(t *testing.T) {
	for _, tt := range []struct{ claimed, kind, disposition string }{
		{"image/png", "image/png", "inline"},
		{"video/mp4; codecs=x", "video/mp4", "inline"},
		{"text/html", "application/octet-stream", "attachment"},
		{"image/svg+xml", "application/octet-stream", "attachment"},
		{"application/xhtml+xml", "application/octet-stream", "attachment"},
		{"application/pdf", "application/pdf", "attachment"},
		{"", "application/octet-stream", "attachment"},
		{"text/html\r\nX: y", "application/octet-stream", "attachment"},
	} {
		if kind, disposition := shownAs(tt.claimed); kind != tt.kind || disposition != tt.disposition {
			t.Errorf("%q is shown as %s, %s; want %s, %s", tt.claimed, kind, disposition, tt.kind, tt.disposition)
		}
	}
}

// ciphertext is what a client's encryption makes of a file: any bytes.
func ciphertext(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(data)
	return data
}

func TestFilesThatLookEncrypted(t *testing.T) {
	zip := append([]byte("PK\x03\x04"), ciphertext(5000)...)
	image := make([]byte, 5000)
	for i := range image {
		image[i] = byte(i % 200)
	}
	for _, tt := range []struct {
		name, kind, file string
		data             []byte
		want             bool
	}{
		{"a ciphertext", anyMIME, "", ciphertext(100_000), true},
		{"the smallest that is taken for one", anyMIME, "", ciphertext(minEncrypted), true},
		{"a smaller one", anyMIME, "", ciphertext(minEncrypted - 1), false},
		{"random bytes of 3 KiB", anyMIME, "", ciphertext(3 << 10), false},
		{"a key", anyMIME, "", ciphertext(32), false},
		{"a short text in another encoding", anyMIME, "", []byte("Gr\xf6\xdfe 12"), false},
		{"another", anyMIME, "", []byte("Passw\xf6rter: hunter2"), false},
		{"what begins as a text in UTF-16", anyMIME, "", append([]byte("\xff\xfe"), ciphertext(5000)...), false},
		{"with a name that tells nothing", anyMIME, "a.bin", ciphertext(5000), false},
		{"with a name without an end", anyMIME, "jpg", ciphertext(5000), false},
		{"with a picture's name", anyMIME, "a.JPG", ciphertext(5000), true},
		{"with a text's name", anyMIME, "notes.txt", ciphertext(5000), true},
		{"a picture", anyMIME, "a.jpg", append([]byte("\xff\xd8\xff\xe0"), ciphertext(5000)...), false},
		{"a film", anyMIME, "a.mp4", append([]byte("\x00\x00\x00\x18ftypisom"), ciphertext(5000)...), false},
		{"with a type", "image/png", "", ciphertext(5000), false},
		{"a text", anyMIME, "", []byte("a text, which a client may send as a file without a name"), false},
		{"a text in another encoding", anyMIME, "", bytes.Repeat([]byte("gr\xfc\xdfe "), 100), false},
		{"an archive", anyMIME, "", zip, false},
		{"another archive", anyMIME, "", append([]byte("\xfd7zXZ\x00"), ciphertext(5000)...), false},
		{"pixels", anyMIME, "", image, false},
		{"nothing", anyMIME, "", nil, false},
	} {
		if got := looksEncrypted(tt.kind, tt.file, tt.data); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
	// Random bytes hardly ever look like anything else.
	random := rand.New(rand.NewChaCha8([32]byte{8}))
	for range 2000 {
		data := make([]byte, minEncrypted+random.IntN(4000))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		if !looksEncrypted(anyMIME, "", data) {
			t.Fatalf("%d random bytes do not look encrypted: %x…", len(data), data[:16])
		}
	}
}

// mapOfKeys notes whose clients have keys, too.
type mapOfKeys struct {
	mapOfMedia
	noted map[id.DeviceID]bool
}

func (m mapOfKeys) NoteKeys(_ context.Context, session id.DeviceID) error {
	m.noted[session] = true
	return nil
}

func (m mapOfKeys) HasKeys(_ context.Context, session id.DeviceID) (bool, error) {
	return m.noted[session], nil
}

// TestWhatAClientHasEncryptedLiesAsItIs: a client that encrypts by itself, in rooms whose messages nobody reads here,
// has its files opened by the keys that it names there. A file is taken for one of those only if that client published
// keys through the proxy, whatever the homeserver says.
func TestWhatAClientHasEncryptedLiesAsItIs(t *testing.T) {
	var lies []byte
	var asked []string
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		lies, asked = data, append(asked, path.Base(r.URL.Path))
		fmt.Fprint(w, `{"content_uri":"mxc://h/file","device_keys":{"@a:x":{"DEV":{"keys":{"ed25519:DEV":"K"}}}}}`)
	}))
	t.Cleanup(hs.Close)
	base, err := url.Parse(hs.URL)
	if err != nil {
		t.Fatal(err)
	}
	s, sess := New(Options{Homeserver: base, Log: zerolog.Nop()}), &session{user: "@a:x", device: "DEV", token: "t"}
	device := func(user, device, keys string) string {
		return fmt.Sprintf(`{"device_keys":{"user_id":%q,"device_id":%q,"keys":%s},"one_time_keys":{}}`, user, device, keys)
	}
	const some = `{"ed25519:DEV":"K"}`
	for _, tt := range []struct {
		name, published, kind string
		raw                   bool
	}{
		{"a client with keys", device("@a:x", "DEV", some), anyMIME, true},
		{"a client without", "", anyMIME, false},
		{"another device's keys", device("@a:x", "OTHER", some), anyMIME, false},
		{"another user's keys", device("@b:x", "DEV", some), anyMIME, false},
		{"no keys", device("@a:x", "DEV", `{}`), anyMIME, false},
		{"one-time keys alone", `{"one_time_keys":{"signed_curve25519:A":{}}}`, anyMIME, false},
		{"more than is looked at", device("@a:x", "DEV", some) + strings.Repeat(" ", maxRequest), anyMIME, false},
		{"a file with a type", device("@a:x", "DEV", some), "text/plain", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			keys, data := mapOfKeys{mapOfMedia{}, map[id.DeviceID]bool{}}, ciphertext(minEncrypted)
			asked = nil
			if tt.published != "" {
				const path = "/_matrix/client/v3/keys/upload"
				r := httptest.NewRequestWithContext(context.WithValue(t.Context(), pathKey{}, path), "POST", "http://localhost"+path, strings.NewReader(tt.published))
				w := httptest.NewRecorder()
				if s.uploadKeys(w, r, sess, keys); w.Code != http.StatusOK || string(lies) != tt.published {
					t.Fatalf("%d %s; %d bytes of %d came", w.Code, w.Body, len(lies), len(tt.published))
				}
				asked = asked[1:]
			}
			r := httptest.NewRequestWithContext(t.Context(), "POST", "http://localhost"+uploadPath, bytes.NewReader(data))
			r.Header.Set("Content-Type", tt.kind)
			w := httptest.NewRecorder()
			s.uploadTo(w, r, sess, keys)
			if len(asked) != 1 || asked[0] != "upload" {
				t.Errorf("the homeserver was asked for %q", asked)
			}
			media := keys.mapOfMedia["mxc://h/file"]
			if w.Code != http.StatusOK || media == nil || !media.Own || media.Raw != tt.raw || (media.File == nil) != tt.raw || bytes.Equal(lies, data) != tt.raw {
				t.Fatalf("%d %s, kept as %+v", w.Code, w.Body, media)
			}
			if !tt.raw {
				return
			}
			// With its key it goes as it is, in a room with MLS too.
			theirs := json.RawMessage(`{"file":{"url":"mxc://h/file","key":{"k":"theirs"}}}`)
			if got, err := s.single(t.Context(), sess, keys, theirs); err != nil || string(got) != string(theirs) {
				t.Errorf("%s, %v", got, err)
			}
		})
	}
}

// TestTheHomeserverIsAskedForTheFileAlone: without a token for the ciphertext. What a client calls a file is not looked at.
func TestTheHomeserverIsAskedForTheFileAlone(t *testing.T) {
	const keyed = "abc_mls_00112233445566778899aabbccddeeff"
	for path, want := range map[string]string{
		"/_matrix/client/v1/media/download/hs/" + keyed:                             "/_matrix/client/v1/media/download/hs/abc",
		"/_matrix/client/v1/media/download/hs/" + keyed + "/a%2Fb":                  "/_matrix/client/v1/media/download/hs/abc/a%2Fb",
		"/_matrix/media/v3/download/hs/abc/.._mls_00112233445566778899aabbccddeeff": "/_matrix/media/v3/download/hs/abc/.._mls_00112233445566778899aabbccddeeff",
		"/_matrix/media/v3/thumbnail/hs/" + keyed:                                   "/_matrix/media/v3/thumbnail/hs/abc",
	} {
		w := newWorld(t)
		w.do("GET", path)
		if len(w.asked) != 1 || w.asked[0] != "GET "+want+"  " {
			t.Errorf("%s: the homeserver was asked %q, want %s", path, w.asked, want)
		}
	}
}
