package simulation

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"hash/fnv"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/internal/simnet"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// What members and servers do that lie.

// tamper changes what is sent: of the commits of a bad member half are such that
// nobody can apply them, or only some. Of the first kind the confirmation tag is
// wrong, and the member's signature of it right, so that servers and modules see
// nothing of it.
func (w *world) tamper(d *device, kind string, content json.RawMessage) json.RawMessage {
	if kind != rooms.TypeCommit || !w.lying || !d.bad || w.rng.IntN(2) == 0 {
		return content
	}
	c, err := rooms.DecodeCommit(content)
	if err != nil || c.File != nil {
		return content
	}
	msg, err := mls.ParseMessage(c.Message)
	if err != nil {
		return content
	}
	if s, ok := msg.Sender(); !ok || s.Type != mls.SenderTypeMember {
		return content
	}
	if f := w.script.faults; f.half && (!f.bad || w.rng.IntN(2) == 0) {
		w.halve(d, msg)
		return content
	}
	const tag = 1 + 32 // a length and a SHA-256
	c.Message[len(c.Message)-tag-1] ^= 1
	key := w.net.User(d.user).Devices[d.id].MLS[suite]
	resign(c.GroupInfo, ed25519.NewKeyFromSeed(key.Bytes()[:ed25519.SeedSize]))
	if msg, err = mls.ParseMessage(c.Message); err != nil {
		w.fail("a tag that was swapped: %v", err)
	}
	ref, err := rooms.CommitRef(msg)
	if err != nil {
		w.fail("a tag that was swapped: %v", err)
	}
	raw, err := rooms.Encode(c)
	if err != nil {
		w.fail("%v", err)
	}
	w.spoiled[ref] = true
	w.stats.lies++
	w.trace("%s spoils its commit: %s", d.name, ref.Short())
	w.vouch(d, ref)
	return raw
}

// resign changes the confirmation tag in a GroupInfo as its commit's was, and signs
// it anew: an MLSMessage that ends with tag, signer and a signature of Ed25519.
func resign(info []byte, key ed25519.PrivateKey) {
	const signature, signer, header = 2 + ed25519.SignatureSize, 4, 4
	signed := info[header : len(info)-signature]
	signed[len(signed)-signer-1] ^= 1
	label := "MLS 1.0 GroupInfoTBS"
	tbs := append([]byte{byte(len(label))}, label...)
	tbs = append(tbs, 0x80|byte(len(signed)>>24), byte(len(signed)>>16), byte(len(signed)>>8), byte(len(signed)))
	switch n := len(signed); {
	case n < 1<<6:
		tbs = append(tbs[:1+len(label)], byte(n))
	case n < 1<<14:
		tbs = append(tbs[:1+len(label)], 0x40|byte(n>>8), byte(n))
	}
	copy(info[len(info)-ed25519.SignatureSize:], ed25519.Sign(key, append(tbs, signed...)))
}

// softFail lets servers keep of each hundred events of ours so many to themselves
// that come from others. Which ones differs between them.
func (w *world) softFail(percent int) {
	if percent == 0 {
		w.net.Hide = nil
		return
	}
	w.net.Hide = func(at *simnet.Server, e *simnet.Event) bool {
		switch e.Type {
		case rooms.TypeCommit, rooms.TypeAccept, rooms.TypeVote, rooms.TypePromise, rooms.TypeReady, rooms.TypeApplied, rooms.TypeReject, rooms.TypeProposal:
		default:
			return false
		}
		h := fnv.New32a()
		fmt.Fprintf(h, "%d %s %s", w.script.seed, at.Name, e.ID)
		return int(h.Sum32()%100) < percent
	}
}

// forgeInvite lets a server invite a stranger in the name of one of its users, who
// knows nothing of it. The stranger comes.
func (w *world) forgeInvite(n uint32) {
	victim := pick(w.devices, n, func(d *device) bool {
		return !d.stranger && d.server.Membership(w.room, d.user) == "join"
	})
	if victim == nil || len(w.devices) >= 8 {
		return
	}
	s := victim.server
	user := id.UserID(fmt.Sprintf("@stranger%d:%s", len(w.devices), s.Name))
	w.net.Register(user, w.reader(string(user)))
	d := w.newDevice(user, "D1")
	d.stranger = true
	d.start()
	key := string(user)
	s.Send(victim.user, w.room, rooms.TypeMember, &key, json.RawMessage(`{"membership":"invite"}`))
	w.stats.lies++
	_ = w.join(d)
}

// strangersDevice adds a device to a user's list that is none of theirs, with key packages: signed by the key that signs the
// user's devices, which was stolen, or as a server can do it, without.
func (w *world) strangersDevice(d *device, signed bool) {
	name := id.DeviceID(fmt.Sprintf("STRANGER%d", len(w.net.User(d.user).Devices)))
	random := w.reader("stranger")
	at, err := w.net.Login(d.user, name, random, suite)
	if err != nil {
		w.fail("%v", err)
	}
	at.Unsigned = !signed
	w.net.DevicesChanged(d.user)
	w.stats.lies++
	leaf := rooms.LeafOptions(rooms.Credential{User: d.user, Device: name, Key: at.MLS[suite].Public()})
	bundle, err := mls.NewKeyPackage(&mls.Config{Rand: random, Now: d.clock.wall}, suite, at.MLS[suite], leaf)
	if err != nil {
		w.fail("%v", err)
	}
	at.Packages = append(at.Packages, bundle.KeyPackage())
}

// honest ends what lies do: who lied is off from now on.
func (w *world) honest() {
	w.lying = false
	clear(w.swapping)
	if m := w.liar(); m != nil {
		m.stop()
		m.lost = true
	}
	for _, d := range w.devices {
		if d.bad || d.stranger || d.keeps {
			d.stop()
			d.gone = true
		}
	}
}
