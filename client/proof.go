package client

import (
	"crypto/sha256"
	"errors"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/internal/probe"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// errProofComing: a proof chain, or the devices it rests on, are being fetched.
var errProofComing = errors.New("client: the proof of a module's head is being fetched")

// headProof remembers what a head's proof chain shows.
type headProof struct {
	claims headClaims
	proven *rooms.Proven
	err    error
}

// headClaims is all that the check of a head compares: the chain, by its hash or by
// the file that holds it, and what the head says beside it.
type headClaims struct {
	chain                      string
	accepted, final, root, cfg rooms.Hash
	era                        uint64
}

func claimsOf(head *rooms.HeadContent) headClaims {
	claims := headClaims{cfg: head.Cfg, era: head.Era}
	if head.ProofFile != nil {
		claims.chain = fileKey(head.ProofFile)
	} else {
		sum := sha256.Sum256(head.Proof)
		claims.chain = string(sum[:])
	}
	refOf := func(at *rooms.EventRef) (ref rooms.Hash) {
		if at != nil {
			ref = at.Ref
		}
		return ref
	}
	claims.accepted, claims.final, claims.root = refOf(head.Accepted), refOf(head.Final), refOf(head.Root)
	return claims
}

// proofOf checks the proof chain that a module's head shows: from the group's
// beginning, which a device of the room's creator signed, to its newest final
// commit, and the accepted one above that. The error is [rooms.RuleFinalNotProven]
// if the head shows nothing wrong and too little, and errProofComing while
// something has to be fetched.
func (c *Client) proofOf(r *room, bot id.UserID, head *rooms.HeadContent) (*rooms.Proven, error) {
	known, claims := r.proofs[bot], claimsOf(head)
	if known == nil || known.claims != claims { // else the file, if there is one, is not needed again
		raw := []byte(head.Proof)
		if file := head.ProofFile; file != nil {
			var ok bool
			key := "media:" + fileKey(file)
			if raw, ok = r.media[fileKey(file)]; !ok {
				if r.tried["need/"+key] > c.mono() {
					return nil, &rooms.Refusal{Rule: rooms.RuleFinalNotProven, What: "head of " + string(bot) + ": its proof cannot be had"}
				}
				r.want(key, &need{file: file, by: bot})
				return nil, errProofComing
			}
		}
		known = &headProof{claims: claims}
		known.proven, known.err = head.Check(r.id, raw)
		if c.without[probe.Proof] && known.err != nil && head.Final != nil && head.Claimed(bot) != nil {
			known.proven, known.err = head.Claimed(bot), nil
		}
		if r.proofs == nil {
			r.proofs = map[id.UserID]*headProof{}
		}
		if len(r.proofs) >= maxProofs {
			clear(r.proofs)
		}
		r.proofs[bot] = known
		if known.err != nil && rooms.RuleOf(known.err) != rooms.RuleFinalNotProven {
			c.count(ruleOf(known.err))
			// Once, however many such heads it makes.
			c.warn(r, "proof/"+string(bot), &Warning{Sender: bot, Rule: ruleOf(known.err), Kind: ProofWarning, Detail: known.err.Error(), Text: "a module's head does not follow from the room's beginning; it is not used: " + known.err.Error()})
		}
	}
	if known.err != nil {
		return known.proven, known.err
	}
	if c.without[probe.Proof] {
		return known.proven, nil
	}
	return known.proven, c.attested(r, bot, known.proven)
}

const maxProofs = 64

// attested looks for the devices that a chain rests on among those of their
// users, who have to be whom they are for: the group's founder the room's
// creator, or who may turn it into an encrypted one.
func (c *Client) attested(r *room, bot id.UserID, p *rooms.Proven) error {
	if !r.mayBeFounder(p.Creator) {
		return &rooms.Refusal{Rule: rooms.RuleRoomNotGroup, What: "head of " + string(bot) + ": its group was founded by " + string(p.Creator) + ", who neither created the room nor may change its encryption"}
	}
	var users []id.UserID
	for _, a := range p.Attested {
		if list := c.devs[a.User]; (list == nil || !r.devices[a.User]) && !slices.Contains(users, a.User) {
			users = append(users, a.User)
		}
	}
	if len(users) > 0 {
		if r.tried["need/proof-devices"] > c.mono() {
			return notAttested(bot, users[0])
		}
		r.want("proof-devices", &need{users: users})
		return errProofComing
	}
	for _, a := range p.Attested {
		if !c.crossSigned(a) {
			return notAttested(bot, a.User)
		}
	}
	return nil
}

// mayBeFounder tells whether the room's group may have been founded by a user.
func (r *room) mayBeFounder(user id.UserID) bool {
	return r.state.view.MayFound(user) || slices.Contains(r.state.view.MoreCreators, user)
}

// isAttested tells whether the devices that a chain rests on are known for what they have to be.
func (c *Client) isAttested(r *room, p *rooms.Proven) bool {
	return r.mayBeFounder(p.Creator) && !slices.ContainsFunc(p.Attested, func(a rooms.Attested) bool { return c.devs[a.User] == nil || !c.crossSigned(a) })
}

func notAttested(bot, user id.UserID) error {
	return &rooms.Refusal{Rule: rooms.RuleFinalNotProven, What: "head of " + string(bot) + ": it rests on a device of " + string(user) + " that is not among their cross-signed devices"}
}

func (c *Client) crossSigned(a rooms.Attested) bool {
	for _, d := range c.devs[a.User].Devices {
		if d.CrossSigned && string(d.MLSKeys[mls.CipherSuite(a.Suite)]) == string(a.Key) {
			return true
		}
	}
	return false
}

// shown is what the heads of a room show together.
type shown struct {
	coming bool // something is being fetched
	era    uint64
	best   *rooms.Proven // with the newest final in that era
	by     map[id.UserID]*rooms.Proven
	bad    map[id.UserID]bool // heads that show something wrong
	// What heads say that show nothing wrong and too little.
	unproven map[id.UserID]*rooms.Proven
}

// stale tells whether a head lies below a final commit that another one proves.
func (s *shown) stale(head *rooms.HeadContent, proven *rooms.Proven) bool {
	switch best := s.best; {
	case best == nil || head.Era > best.Era:
		return false
	case head.Era < best.Era:
		return true
	case proven != nil && len(proven.Groups) != len(best.Groups):
		return len(proven.Groups) < len(best.Groups)
	case string(head.Group) == string(best.Groups[len(best.Groups)-1]):
		return head.Accepted.Epoch < best.Epoch
	default: // of a group that was closed
		return slices.ContainsFunc(best.Groups, func(id []byte) bool { return string(id) == string(head.Group) })
	}
}

// shownBy checks the heads of all modules: of the given group if it is known, or
// of one that is proven to continue it.
func (c *Client) shownBy(r *room, group []byte) *shown {
	s := &shown{by: map[id.UserID]*rooms.Proven{}, bad: map[id.UserID]bool{}, unproven: map[id.UserID]*rooms.Proven{}}
	for _, bot := range r.state.bots() {
		head := r.state.head(bot)
		if head == nil || len(head.Group) == 0 || group != nil && string(head.Group) != string(group) && !r.isModule(bot) {
			continue
		}
		p, err := c.proofOf(r, bot, head)
		switch {
		case errors.Is(err, errProofComing):
			s.coming = true
		case err == nil && group != nil && !continues(p, head.Group, group):
		case err == nil:
			s.by[bot] = p
			s.era = max(s.era, p.Era)
			if s.best == nil || newer(p, s.best) {
				s.best = p
			}
		case rooms.RuleOf(err) != rooms.RuleFinalNotProven:
			s.bad[bot] = true
		default:
			if p == nil {
				p = head.Claimed(bot)
			}
			if p != nil && (group == nil || slices.ContainsFunc(p.Groups, func(id []byte) bool { return string(id) == string(group) })) {
				s.unproven[bot] = p
			}
		}
	}
	return s
}

// confirm ends the time in which the epoch this device joined at could still be
// displaced: a module's proof shows that it, or one above it, is final, and no
// other one leads to a newer era.
func (c *Client) confirm(r *room) {
	r.beside = false
	if !r.rec.Unconfirmed {
		return
	}
	s := c.shownBy(r, r.rec.Group)
	r.noteShown(s, r.rec.Group)
	era, _ := r.machine.EraOf()
	for _, p := range s.by {
		if s.era == era && p.Era == era && r.machine.Held(p.Final) && r.machine.Extends(p.Final, federation.Ref(r.rec.JoinRef)) {
			r.rec.Unconfirmed, r.rec.OldHeads, r.stuckTimes = false, nil, 0
			return
		}
	}
	r.beside = r.provenBeside(s)
}

// provenBeside tells whether a module proves a final commit that this device should
// hold where it came in at the right place, and does not: it was let in at an accepted
// commit that may lie on a branch that lost, and has not come up to what is final. Until
// it has, or joins again, it encrypts nothing.
func (r *room) provenBeside(s *shown) bool {
	best := s.best
	if best == nil {
		return false
	}
	if era, _ := r.machine.EraOf(); best.Era != era {
		return best.Era > era
	}
	join := federation.Ref(r.rec.JoinRef)
	if slices.ContainsFunc(best.Chain, func(at rooms.ProvenCommit) bool { return at.Ref == join }) || r.machine.Held(best.Final) && r.machine.Extends(best.Final, join) {
		return false
	}
	level, ok := r.level(best.Groups[len(best.Groups)-1], best.Epoch)
	return !ok || level >= r.rec.JoinEpoch
}

// confirmFinal ends that time when what this device joined with became final
// under the list that it was told: never on a branch that a proven era left. The
// base of an era is final without a vote, and another era of the same number,
// beside the commit this device joined at, may be the one that counts: of that
// only a module's proof tells.
func (c *Client) confirmFinal(r *room) {
	if !r.rec.Unconfirmed {
		return
	}
	era, base := r.machine.EraOf()
	if r.machine.NewestFinal() == base {
		return
	}
	if c.shownBy(r, r.rec.Group).era <= era {
		r.rec.Unconfirmed, r.rec.OldHeads, r.stuckTimes = false, nil, 0
	}
}
