package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// ErrHeirsWait is what OpenEra says to an heir whose clock does not let it open
// an era yet.
var ErrHeirsWait = errors.New("client: heirs open an era only once nothing became final for a while although something waits")

// heirsEra is an era of heirs that our user proposes.
type heirsEra struct {
	Number  uint64                 `json:"number"`
	Parent  rooms.Hash             `json:"parent"`
	List    []federation.Sequencer `json:"list"`
	Signers map[id.UserID]coSigned `json:"signers"` // the own user among them
}

type coSigned struct {
	Leaf uint32      `json:"leaf"`
	Sig  rooms.Bytes `json:"sig"`
}

// openHeirsEra proposes an era of heirs, and opens it once heirs of enough
// servers support it.
func (c *Client) openHeirsEra(ctx context.Context, roomID id.RoomID, servers []string) error {
	c.mu.Lock()
	err := c.proposeEra(ctx, roomID, servers)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.poke()
	return c.await(ctx, roomID, func(r *room) error {
		if r.rec.HeirsEra != nil {
			if missing := r.heirsMissing(); len(missing) > 0 {
				return fmt.Errorf("client: the new era waits for the consent of an heir of one of %v; their programs give it by themselves once they have seen the room stand still for long enough", missing)
			}
		}
		return c.eraOpen(r)
	})
}

func (c *Client) proposeEra(ctx context.Context, roomID id.RoomID, servers []string) error {
	r, _, err := c.standsAt(roomID)
	if err != nil {
		return err
	}
	if !r.machine.HeirsDue() {
		policy, _ := r.machine.PolicyAt(r.machine.NewestFinal())
		return fmt.Errorf("%w (%v so far, %v has to pass; an admin may open one at any time)", ErrHeirsWait, r.machine.Stalled().Round(time.Second), policy.HeirsWait)
	}
	list, err := r.listOf(servers)
	if err != nil {
		return err
	}
	e := r.epochs[r.machine.SafeHead()]
	if e == nil {
		return ErrNoGroup
	}
	number, _ := r.machine.EraOf()
	support, err := c.signEra(e, number+1, list)
	if err != nil {
		return err
	}
	r.rec.HeirsEra = &heirsEra{
		Number: number + 1, Parent: rooms.Hash(e.ref), List: list,
		Signers: map[id.UserID]coSigned{c.UserID(): {support.Leaf, support.Sig}},
	}
	r.policyError = nil
	b := &batch{}
	if p := r.pending; p != nil && !p.Era && !p.External {
		c.loseCommit(r, b)
	}
	if len(r.heirsMissing()) > 0 {
		if err := c.postSupport(r, e, support, b); err != nil {
			return err
		}
	}
	return c.commitBatch(ctx, r, b)
}

// heirsMissing returns the servers of which heirs have to consent yet to the era
// that our user proposes; enough of them, not all.
func (r *room) heirsMissing() []string {
	need := r.machine.HeirServers()
	var missing []string
	for _, server := range need {
		yes := false
		for user := range r.rec.HeirsEra.Signers {
			yes = yes || serverOf(user) == server
		}
		if !yes {
			missing = append(missing, server)
		}
	}
	if len(need)-len(missing) > len(need)/2 {
		return nil
	}
	return missing
}

func (c *Client) signEra(e *epoch, number uint64, list []federation.Sequencer) (*rooms.EraSupport, error) {
	key, err := c.ident.SignatureKey(e.group.CipherSuite())
	if err != nil {
		return nil, err
	}
	return rooms.SupportEra(e.group, e.group.OwnLeafIndex(), key, number, e.ref, list)
}

func (c *Client) postSupport(r *room, e *epoch, support *rooms.EraSupport, b *batch) error {
	raw, err := rooms.Encode(support)
	if err != nil {
		return err
	}
	_, err = c.addRow(b, r, kindProof, stateReady, e.ref, outData{Type: rooms.TypeEra, Content: raw})
	return err
}

// maxEraProposals bounds the proposals of heirs that are kept.
const maxEraProposals = 16

// handleEra takes an heir's statement: consent to what our user proposes, or a
// proposal that this device may consent to.
func (c *Client) handleEra(ctx context.Context, r *room, evt *Event, b *batch) error {
	support, err := rooms.DecodeEraSupport(evt.Content)
	if err != nil {
		return err
	}
	if r.machine == nil {
		return errWaitGroup
	}
	parent := federation.Ref(support.Parent)
	if !r.machine.Held(parent) {
		return nil // from before this device was there, or never a commit
	}
	e, err := c.enter(ctx, r, parent, b)
	if err != nil || e == nil {
		return err
	}
	cred, err := support.Verify(e.group)
	if err != nil {
		return err
	}
	policy, err := e.policy()
	if err != nil {
		return err
	}
	if !policy.IsHeir(cred.User) {
		return errRefusedUpdate(rooms.RuleEraNotEntitled, fmt.Sprintf("%s is no heir of the group", cred.User))
	}
	own := r.rec.HeirsEra
	if own != nil && own.Number == support.Era && own.Parent == support.Parent && federation.List(own.List).Equal(support.List()) {
		own.Signers[cred.User] = coSigned{support.Leaf, support.Sig}
		r.planned = false
		b.then(r.notify)
		return nil
	}
	if cred.User == c.UserID() || !policy.IsHeir(c.UserID()) {
		return nil
	}
	if len(r.rec.EraProposals) < maxEraProposals {
		raw, err := json.Marshal(support)
		if err != nil {
			return err
		}
		r.rec.EraProposals = append(r.rec.EraProposals, raw)
	}
	return nil
}

// supportEras consents to eras that other heirs propose, once the condition of
// an heirs' era holds on this device's own clock.
func (c *Client) supportEras(ctx context.Context, r *room) error {
	if len(r.rec.EraProposals) == 0 || !r.machine.HeirsDue() {
		return nil
	}
	b := &batch{}
	number, _ := r.machine.EraOf()
	signed := map[string]bool{}
	for _, raw := range r.rec.EraProposals {
		var support rooms.EraSupport
		if json.Unmarshal(raw, &support) != nil || support.Era != number+1 {
			continue
		}
		parent := federation.Ref(support.Parent)
		e := r.epochs[parent]
		if e == nil || !r.machine.Extends(r.machine.Head(), parent) || !r.machine.Extends(parent, r.machine.NewestFinal()) {
			continue // it would leave behind what this device sees as final
		}
		list := support.List()
		key := fmt.Sprintf("%x", rooms.EraContent(e.group.GroupID(), support.Era, parent, list))
		if signed[key] || !r.allModules(list) {
			continue
		}
		signed[key] = true
		own, err := c.signEra(e, support.Era, list)
		if err != nil {
			return err
		}
		if err := c.postSupport(r, e, own, b); err != nil {
			return err
		}
		c.warn(r, "heirs/"+key[:min(len(key), 200)], &Warning{
			Rule: ruleHeirs, Kind: HeirsWarning, Servers: serversOfList(list), Text: fmt.Sprintf("the room stands still, and an heir wants to go on in a new era with the modules of %v; this device, an heir's too, consents", serversOfList(list)),
		})
	}
	r.rec.EraProposals = nil
	return c.commitBatch(ctx, r, b)
}

// ruleHeirs is the rule of an heir's consent to a new era.
const ruleHeirs = "client/heirs-era"

func serversOfList(list []federation.Sequencer) []string {
	var out []string
	for _, s := range list {
		out = append(out, s.Server)
	}
	return out
}

// allModules tells whether every entry of a list is a module in the room, with
// the key it announces.
func (r *room) allModules(list []federation.Sequencer) bool {
	present := r.modules()
	return !slices.ContainsFunc(list, func(s federation.Sequencer) bool {
		return !slices.ContainsFunc(present, func(m federation.Sequencer) bool {
			return m.Server == s.Server && m.User == s.User && string(m.ReceiptKey) == string(s.ReceiptKey)
		})
	})
}

// heirsEraDue returns the epoch that the era our user proposes is opened on, once
// enough heirs consent.
func (c *Client) heirsEraDue(r *room) *epoch {
	own := r.rec.HeirsEra
	if own == nil {
		return nil
	}
	if number, _ := r.machine.EraOf(); number >= own.Number {
		r.rec.HeirsEra = nil // somebody was faster
		return nil
	}
	if len(r.heirsMissing()) > 0 {
		return nil
	}
	return r.epochs[federation.Ref(own.Parent)]
}

// makeHeirsEra makes the commit of an heirs' era. It changes nothing but the list.
func (c *Client) makeHeirsEra(ctx context.Context, r *room, e *epoch) error {
	own := r.rec.HeirsEra
	policy, err := e.policy()
	if err != nil {
		return err
	}
	policy.Sequencers = own.List
	extensions, err := c.nextExtensions(r, e, policy)
	if err != nil {
		r.rec.HeirsEra, r.policyError = nil, err
		r.notify()
		return err
	}
	aad := rooms.CommitAAD{Parent: e.ref, Era: own.Number, ByHeirs: true}
	options := mls.CommitOptions{Proposals: []mls.Proposal{mls.GroupContextExtensions(extensions)}, ForcePath: true}
	if options.AuthenticatedData, err = aad.Encode(); err != nil {
		return err
	}
	staged, err := e.group.Commit(options)
	if err != nil {
		return fmt.Errorf("client: era in %s: %w", r.id, err)
	}
	content := &rooms.CommitContent{Epoch: e.number + 1, Parent: rooms.Hash(e.ref), ParentEvent: c.commitEvent(r, e.ref)}
	users := make([]id.UserID, 0, len(own.Signers))
	for user := range own.Signers {
		users = append(users, user)
	}
	slices.Sort(users)
	for _, user := range users {
		if user != c.UserID() {
			content.CoSignatures = append(content.CoSignatures, rooms.CoSignature{Leaf: own.Signers[user].Leaf, Sig: own.Signers[user].Sig})
		}
	}
	r.rec.NewEra = true
	return c.postCommit(ctx, r, staged, &pending{Parent: rooms.Hash(e.ref), Era: true}, content, &batch{})
}
