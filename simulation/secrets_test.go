package simulation

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/matrix-mls/matrix-mls/internal/simnet"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// secrets are bytes that no server may ever see: 5, server blindness.
type secrets struct {
	known   map[[32]byte]string // what each is, and who held it first
	carried [][]byte            // what servers carried between devices
}

func (s *secrets) init() { s.known = map[[32]byte]string{} }

// add takes down a secret. All of the suite that the simulation uses have 32 bytes; of
// a signature key it is the seed.
func (s *secrets) add(name string, secret []byte) {
	if len(secret) != 32 {
		return // it is gone
	}
	if key := [32]byte(secret); s.known[key] == "" {
		s.known[key] = name
	}
}

// bundle takes down the private keys of a key package, which end its stored form.
func (s *secrets) bundle(name string, raw []byte, public *mls.KeyPackage) error {
	r := stored{rest: raw}
	r.take(1 + len(public.Message()) - 4) // the format; the package is without the four bytes before a message
	for _, what := range []string{"init key", "leaf key", "signature key"} {
		s.add(fmt.Sprintf("the %s of a key package of %s", what, name), r.vector())
	}
	return r.end()
}

// epochSecretNames are in the order in which a group stores them.
var epochSecretNames = []string{
	"joiner secret", "welcome secret", "sender data secret", "encryption secret", "exporter secret", "external secret", "confirmation key",
	"membership key", "resumption PSK", "epoch authenticator", "init secret",
}

// group takes down the secrets of an epoch that a device holds: those of the key
// schedule, its leaf's and its path's private keys and its signature key.
func (s *secrets) group(name string, g *mls.Group) error {
	if g.ResumptionPSK() == nil {
		return nil // an epoch whose secrets are wiped
	}
	held, err := secretsOf(g)
	for _, h := range held {
		s.add(fmt.Sprintf("the %s of %s in epoch %d", h.what, name, g.Epoch()), h.secret)
	}
	return err
}

type heldSecret struct {
	what   string
	secret []byte
}

// secretsOf reads the secrets of a group out of what it stores (mls.Group.EpochHead).
func secretsOf(g *mls.Group) (out []heldSecret, err error) {
	r := stored{rest: g.EpochHead()}
	add := func(what string, secret []byte) { out = append(out, heldSecret{what, secret}) }
	r.take(1)
	r.vector() // group context, confirmation tag, interim transcript hash
	r.vector()
	r.vector()
	if closed := r.take(1); len(closed) == 1 && closed[0] != 0 {
		return nil, fmt.Errorf("a group that is closed, which the simulation does not expect")
	}
	r.take(4)
	add("signature key", r.vector())
	for path := (stored{rest: r.vector()}); len(path.rest) > 0; {
		node := path.take(4)
		add(fmt.Sprintf("private key of node %x", node), path.vector())
		r.short = r.short || path.short
	}
	for _, what := range epochSecretNames {
		add(what, r.vector())
	}
	r.vector() // PSKs of epochs before, which are these epochs' own
	if err := r.end(); err != nil {
		return nil, err
	}
	// Of the encryption secret, which is used up, the nodes below it that are left.
	r = stored{rest: g.RatchetState()}
	r.take(1 + 8) // format and epoch
	r.vector()    // transcript hash
	r.take(1 + 4 + 8)
	for tree := (stored{rest: r.vector()}); len(tree.rest) > 0; {
		node := tree.take(4)
		add(fmt.Sprintf("secret of node %x in the secret tree", node), tree.take(32))
		r.short = r.short || tree.short
	}
	if r.short {
		return nil, fmt.Errorf("a stored secret tree that the simulation cannot read")
	}
	// If the form of what is stored changes, this must not look past the secrets.
	for what, want := range map[string][]byte{"epoch authenticator": g.EpochAuthenticator(), "resumption PSK": g.ResumptionPSK()} {
		if !slices.ContainsFunc(out, func(h heldSecret) bool { return h.what == what && bytes.Equal(h.secret, want) }) {
			return nil, fmt.Errorf("a stored group whose %s is not where it was", what)
		}
	}
	return out, nil
}

// stored reads the parts of a stored form.
type stored struct {
	rest  []byte
	short bool
}

func (r *stored) take(n int) []byte {
	if n > len(r.rest) {
		r.short, r.rest = true, nil
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

// vector reads a vector with its length before it (RFC 9420, Section 2.1.2).
func (r *stored) vector() []byte {
	if len(r.rest) == 0 {
		r.short = true
		return nil
	}
	size := 1 << (r.rest[0] >> 6)
	n := 0
	for i, b := range r.take(size) {
		if i == 0 {
			b &= 0x3f
		}
		n = n<<8 | int(b)
	}
	return r.take(n)
}

func (r *stored) end() error {
	if r.short || len(r.rest) > 0 {
		return fmt.Errorf("a stored form that the simulation cannot read: %d bytes are left", len(r.rest))
	}
	return nil
}

// forms are the ways in which a secret may be written, wherever it begins in what is
// encoded: in hexadecimal, and in base64 at each of three places.
func forms(secret []byte) [][]byte {
	upper := func(s string) []byte { return bytes.ToUpper([]byte(s)) }
	out := [][]byte{secret, []byte(hex.EncodeToString(secret)), upper(hex.EncodeToString(secret))}
	for skip := range 3 {
		whole := secret[skip:]
		whole = whole[:len(whole)/3*3]
		out = append(out, []byte(base64.RawStdEncoding.EncodeToString(whole)), []byte(base64.RawURLEncoding.EncodeToString(whole)))
	}
	return out
}

// finder looks for many secrets at once: a bit for the first bytes of each form of
// each half of a secret, so that one that is torn in two shows as well, and behind
// the bit a map.
type finder struct {
	bits [1 << (finderBits - 6)]uint64
	at   map[uint64][]sought
}

const finderBits = 20

type sought struct {
	name string
	form []byte
}

func finderBit(head uint64) uint64 { return head * 0x9e3779b97f4a7c15 >> (64 - finderBits) }

func (s *secrets) finder() *finder {
	f := &finder{at: map[uint64][]sought{}}
	for secret, name := range s.known {
		for _, half := range [][]byte{secret[:16], secret[16:]} {
			for _, form := range forms(half) {
				head := binary.LittleEndian.Uint64(form)
				f.at[head] = append(f.at[head], sought{name, form})
				bit := finderBit(head)
				f.bits[bit/64] |= 1 << (bit % 64)
			}
		}
	}
	return f
}

// find names a secret that is in some data, "" if none is.
func (f *finder) find(data []byte) string {
	for ; len(data) >= 8; data = data[1:] {
		head := binary.LittleEndian.Uint64(data)
		if bit := finderBit(head); f.bits[bit/64]>>(bit%64)&1 == 0 {
			continue
		}
		for _, s := range f.at[head] {
			if bytes.HasPrefix(data, s.form) {
				return s.name
			}
		}
	}
	return ""
}

// sealedIn: 5, no text of a message is in what servers carry, when they get it.
func sealedIn(where string, data []byte) {
	if bytes.Contains(data, []byte(planted)) {
		broken("5 server blindness", "a message is in %s", where)
	}
}

// blind: 5, no plaintext and no secret is in what servers carried, nor in the
// databases and logs of modules. Whose secrets these are is known at the end only, and
// nothing that was carried is forgotten until then.
func (w *world) blind() {
	f := w.secrets.finder()
	look := func(where string, data []byte) {
		sealedIn(where, data)
		if name := f.find(data); name != "" {
			broken("5 server blindness", "%s is in %s", name, where)
		}
	}
	seen := map[*simnet.Event]bool{}
	for _, s := range w.net.Servers {
		for _, e := range s.All(w.room) {
			if !seen[e] {
				seen[e] = true
				look("an event of type "+e.Type, e.Content)
			}
		}
	}
	media := w.net.Media()
	for _, mxc := range sortedKeys(media) {
		look(mxc, media[mxc])
	}
	for _, content := range w.secrets.carried {
		look("what is sent to a device", content)
	}
	for _, user := range w.net.Users() {
		u := w.net.User(user)
		for _, name := range sortedKeys(u.Devices) {
			for _, kp := range u.Devices[name].Packages {
				look("a key package", kp.Message())
			}
		}
	}
	for _, m := range w.modules {
		image := m.copy()
		for _, suffix := range sortedKeys(image) {
			look("the database of "+m.name+suffix, image[suffix])
		}
	}
	look("the logs", w.log.Bytes())
}

// leak says in the clear what a device encrypts, or a secret that it holds.
func (w *world) leak(d *device) {
	if !w.lying {
		return
	}
	told := func(what string) []byte {
		h := d.held()
		held, err := secretsOf(h.Epochs[h.Machine.Head()])
		if err != nil {
			w.fail("%v", err)
		}
		for _, h := range held {
			if h.what == what {
				return h.secret
			}
		}
		w.fail("%s holds no %s", d.name, what)
		return nil
	}
	switch w.script.without {
	case plaintext:
		d.server.Send(d.user, w.room, "m.room.message", nil, json.RawMessage(`{"body":"`+planted+`"}`))
	case exporterTold:
		bundle := base64.RawStdEncoding.EncodeToString(slices.Concat([]byte("with "), told("exporter secret"), []byte(" in it")))
		d.server.Send(d.user, w.room, "m.room.message", nil, json.RawMessage(`{"body":"`+bundle+`"}`))
	case keyUploaded:
		d.server.Upload(slices.Concat([]byte("\x00"), told("signature key")))
	}
}

// TestSecretsAreFound: each secret of a group is found in each form, wherever it
// begins, and torn in two.
func TestSecretsAreFound(t *testing.T) {
	w := newWorld(script{seed: 1}, "")
	key, err := mls.GenerateSignatureKey(suite, w.reader("key"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := &mls.Config{Rand: w.reader("group"), Now: w.newClock().wall, Authenticator: rooms.Authenticator{}}
	leaf := rooms.LeafOptions(rooms.Credential{User: "@u:s1.test", Device: "D1", Key: key.Public()})
	g, err := mls.CreateGroup(cfg, suite, []byte("group"), key, leaf, nil)
	if err != nil {
		t.Fatal(err)
	}
	kp, err := mls.NewKeyPackage(cfg, suite, key, leaf)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := kp.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.secrets.group("u", g); err != nil {
		t.Fatal(err)
	}
	if err := w.secrets.bundle("u", raw, kp.KeyPackage()); err != nil {
		t.Fatal(err)
	}
	if got := len(w.secrets.known); got < len(epochSecretNames)-3+1+4 { // no two for a Welcome, and in the place of the encryption secret a node
		t.Errorf("%d secrets are known: %q", got, w.secrets.known)
	}
	f := w.secrets.finder()
	for _, public := range [][]byte{g.Public().GroupID(), g.TreeHash(), key.Public(), kp.KeyPackage().Message()} {
		if name := f.find(public); name != "" {
			t.Errorf("%s is public", name)
		}
	}
	for secret, name := range w.secrets.known {
		for skip := range 4 {
			text := slices.Concat([]byte("abc")[:skip%4], secret[:], []byte("xyz"))
			for how, data := range map[string][]byte{
				"as it is": text, "in hexadecimal": []byte(hex.EncodeToString(text)), "in base64": []byte(base64.StdEncoding.EncodeToString(text)),
				"in base64 for addresses": []byte(base64.URLEncoding.EncodeToString(text)), "in its first half": text[:skip+20], "in its second half": text[skip+12:],
			} {
				if got := f.find(data); got != name {
					t.Errorf("%s %s after %d bytes: found %q", name, how, skip, got)
				}
			}
		}
	}
}
