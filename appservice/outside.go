package appservice

import (
	"context"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// outside is what is known of a commit whose parent is not held.
type outside struct {
	commit  federation.Outside
	settled bool // it never will be
	tell    bool // the machine has to know: a sequencer that comes back may report a vote for it
}

// outside says whether a commit whose parent is not held may still come. Epochs
// compare within a group: those of the next begin again.
func (e *Engine) outside(ctx context.Context, r *room, c *rooms.CommitContent) (outside, error) {
	base := r.m.Base()
	scope, _ := r.m.ScopeAt(base)
	var before []byte
	if tree, err := e.group(ctx, r, base); err == nil {
		if policy, err := rooms.PolicyOf(tree); err == nil && policy.Predecessor != nil && policy.Predecessor.Room == r.id {
			before = policy.Predecessor.Group
		}
	}
	o, ok, err := rooms.OutsideCommit(c, scope.Group, before)
	if err != nil || !ok {
		return outside{}, err
	}
	old := !o.Past && r.m.TooOld(o.Epoch)
	tell := o.Past || !old && r.m.Beside(o.Parent, o.Epoch)
	return outside{o, old || tell, tell}, nil
}

func (e *Engine) stepOutside(ctx context.Context, r *room, place outside) error {
	if !place.tell {
		return nil
	}
	r.retryWaiting = true // for what is built on it
	return e.step(ctx, r, place.commit)
}
