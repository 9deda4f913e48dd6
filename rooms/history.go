package rooms

import (
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/json"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/mls"
)

// MaxHistoryPart bounds the sealed archive that one [HistoryBundleContent] names,
// in bytes.
const MaxHistoryPart = 6 << 20

// maxHistoryParts bounds the bundles that answer one request.
const maxHistoryParts = 256

// HistoryRequestContent is the content of a [TypeHistoryRequest] to-device event: a
// device asks another for the messages of a room that it cannot read. Signed by
// the device's MLS signature key of the suite.
type HistoryRequestContent struct {
	Room    id.RoomID   `json:"room_id"`
	Request string      `json:"request_id"`
	Device  id.DeviceID `json:"device_id"` // that asks
	Suite   uint16      `json:"suite"`     // of the signature key
	Key     Bytes       `json:"key"`       // X25519: made for this request alone
	Sig     Bytes       `json:"sig"`
}

// HistoryBundleContent is the content of a [TypeHistoryBundle] to-device event: a
// part of the answer. The file is an archive of messages, sealed with a key of its
// own; Key is that key, encrypted to the request's (HPKE base mode,
// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305). Signed by the giver's
// MLS signature key of the suite.
type HistoryBundleContent struct {
	Room    id.RoomID   `json:"room_id"`
	Request string      `json:"request_id"`
	Device  id.DeviceID `json:"device_id"` // that gives
	Suite   uint16      `json:"suite"`     // of the signature key
	Part    uint32      `json:"part"`      // counted from 0, the newest messages first
	Last    bool        `json:"last,omitempty"`
	Key     Bytes       `json:"key"`
	File    File        `json:"file"`
	Sig     Bytes       `json:"sig"`
}

// HistoryPeers are the two ends of a bundle. What a bundle says holds between them
// alone.
type HistoryPeers struct {
	Giver, Taker id.UserID
	TakerDevice  id.DeviceID
}

// DecodeHistoryRequest reads the content of a [TypeHistoryRequest] to-device event.
func DecodeHistoryRequest(raw json.RawMessage) (*HistoryRequestContent, error) {
	return decodeContent[HistoryRequestContent]("history request", raw)
}

// DecodeHistoryBundle reads the content of a [TypeHistoryBundle] to-device event.
func DecodeHistoryBundle(raw json.RawMessage) (*HistoryBundleContent, error) {
	return decodeContent[HistoryBundleContent]("history bundle", raw)
}

func (h *HistoryRequestContent) validate() error {
	if len(h.Key) != 32 {
		return malformed("key", "%d bytes, want 32", len(h.Key))
	}
	return firstError(checkID("room_id", string(h.Room), '!'), checkRequestID(h.Request), checkDeviceID(h.Device), needBytes("sig", h.Sig, maxKeySize))
}

func (h *HistoryBundleContent) validate() error {
	if len(h.Key) != sealedHistoryKey {
		return malformed("key", "%d bytes, want %d", len(h.Key), sealedHistoryKey)
	}
	if h.Part >= maxHistoryParts {
		return malformed("part", "%d, at most %d", h.Part, maxHistoryParts)
	}
	if h.File.Size > MaxHistoryPart {
		return malformed("file", "%d bytes, at most %d", h.File.Size, MaxHistoryPart)
	}
	return firstError(checkID("room_id", string(h.Room), '!'), checkRequestID(h.Request), checkDeviceID(h.Device), h.File.validate(), needBytes("sig", h.Sig, maxKeySize))
}

func checkRequestID(s string) error {
	if s == "" || len(s) > 64 {
		return malformed("request_id", "has to have 1 to 64 bytes")
	}
	return nil
}

func addStrings(b *cryptobyte.Builder, list ...string) {
	for _, s := range list {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
	}
}

func (h *HistoryRequestContent) content(user id.UserID) ([]byte, error) {
	var b cryptobyte.Builder
	addStrings(&b, "matrix-mls history request v1", string(h.Room), h.Request, string(user), string(h.Device), string(h.Key))
	b.AddUint16(h.Suite)
	return b.Bytes()
}

// Sign signs a request of a user's device.
func (h *HistoryRequestContent) Sign(user id.UserID, key mls.SignaturePrivateKey) error {
	content, err := h.content(user)
	if err != nil {
		return fmt.Errorf("rooms: sign a history request: %w", err)
	}
	h.Sig, err = mls.SignWithLabel(mls.CipherSuite(h.Suite), key, LabelHistory, content)
	return err
}

// Verify checks the signature of a request by a user's device. Another key's is
// refused with [RuleReceiptForged].
func (h *HistoryRequestContent) Verify(user id.UserID, key mls.SignaturePublicKey) error {
	content, err := h.content(user)
	if err == nil {
		err = mls.VerifyWithLabel(mls.CipherSuite(h.Suite), key, LabelHistory, content, h.Sig)
	}
	if err != nil {
		return &Refusal{Rule: RuleReceiptForged, What: "history request", Err: err}
	}
	return nil
}

// info is what the encryption of a bundle's key is bound to.
func (h *HistoryBundleContent) info(p HistoryPeers) ([]byte, error) {
	var b cryptobyte.Builder
	addStrings(&b, "matrix-mls history bundle v1", string(h.Room), h.Request, string(p.Giver), string(h.Device), string(p.Taker), string(p.TakerDevice))
	b.AddUint32(h.Part)
	if h.Last {
		b.AddUint8(1)
	} else {
		b.AddUint8(0)
	}
	addStrings(&b, string(h.File.MXC))
	b.AddBytes(h.File.SHA256[:])
	b.AddUint64(uint64(h.File.Size))
	return b.Bytes()
}

func (h *HistoryBundleContent) content(p HistoryPeers) ([]byte, error) {
	info, err := h.info(p)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddBytes(info)
	addStrings(&b, string(h.Key))
	b.AddUint16(h.Suite)
	return b.Bytes()
}

const (
	historyKey       = 32
	sealedHistoryKey = 32 + historyKey + 16 // KEM output, key, tag
)

func historyHPKE() (hpke.KDF, hpke.AEAD) { return hpke.HKDFSHA256(), hpke.ChaCha20Poly1305() }

// NewHistoryKey returns a private key for a request.
func NewHistoryKey(random io.Reader) (private []byte, err error) {
	private = make([]byte, 32)
	if _, err := io.ReadFull(random, private); err != nil {
		return nil, fmt.Errorf("rooms: randomness: %w", err)
	}
	return private, nil
}

// HistoryPublicKey returns the Key of a request with a private key.
func HistoryPublicKey(private []byte) ([]byte, error) {
	k, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("rooms: history key: %w", err)
	}
	return k.PublicKey().Bytes(), nil
}

// Seal encrypts the key of the bundle's file to a request's key and signs the
// bundle. Everything but Key and Sig is set before.
func (h *HistoryBundleContent) Seal(p HistoryPeers, to, fileKey []byte, key mls.SignaturePrivateKey) error {
	info, err := h.info(p)
	if err != nil {
		return fmt.Errorf("rooms: seal history: %w", err)
	}
	pub, err := ecdh.X25519().NewPublicKey(to)
	if err != nil {
		return &Refusal{Rule: RuleContentMalformed, What: "key of a history request", Err: err}
	}
	kem, err := hpke.NewDHKEMPublicKey(pub)
	if err != nil {
		return &Refusal{Rule: RuleContentMalformed, What: "key of a history request", Err: err}
	}
	kdf, aead := historyHPKE()
	if h.Key, err = hpke.Seal(kem, kdf, aead, info, fileKey); err != nil {
		return &Refusal{Rule: RuleContentMalformed, What: "key of a history request", Err: err}
	}
	content, err := h.content(p)
	if err != nil {
		return fmt.Errorf("rooms: seal history: %w", err)
	}
	h.Sig, err = mls.SignWithLabel(mls.CipherSuite(h.Suite), key, LabelHistory, content)
	return err
}

// Open checks the signature by the giver's key and returns the key of the file,
// with the private key of the request. What was made by or for others is refused
// with [RuleReceiptForged].
func (h *HistoryBundleContent) Open(p HistoryPeers, private []byte, giver mls.SignaturePublicKey) ([]byte, error) {
	content, err := h.content(p)
	if err == nil {
		err = mls.VerifyWithLabel(mls.CipherSuite(h.Suite), giver, LabelHistory, content, h.Sig)
	}
	if err != nil {
		return nil, &Refusal{Rule: RuleReceiptForged, What: "history bundle", Err: err}
	}
	info, err := h.info(p)
	if err != nil {
		return nil, fmt.Errorf("rooms: open history: %w", err)
	}
	k, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("rooms: history key: %w", err)
	}
	kem, err := hpke.NewDHKEMPrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("rooms: history key: %w", err)
	}
	kdf, aead := historyHPKE()
	fileKey, err := hpke.Open(kem, kdf, aead, info, h.Key)
	if err != nil || len(fileKey) != historyKey {
		return nil, &Refusal{Rule: RuleReceiptForged, What: "key of a history bundle", Err: err}
	}
	return fileKey, nil
}
