package federation

import "time"

// Machine is the state of one room's coordination. It is not safe for
// concurrent use.
type Machine struct {
	cfg Config
}

// New makes a machine that starts at base.
func New(cfg Config, base Base) (*Machine, error) { return &Machine{cfg: cfg}, nil }

// Unmarshal restores a machine that MarshalBinary saved. A module's machine
// signs nothing until it is given Resume.
func Unmarshal(cfg Config, data []byte) (*Machine, error) { return &Machine{cfg: cfg}, nil }

// MarshalBinary returns the machine's state; equal states give equal bytes.
func (m *Machine) MarshalBinary() ([]byte, error) { return nil, nil }

// Step applies one input and returns what the caller must now do, in order:
// first persist every Save, then send every Send. An error means: nothing
// changed.
func (m *Machine) Step(ev Event) ([]Action, error) { return nil, nil }

// Tick lets time pass: now is a monotonic clock's reading, with any origin.
func (m *Machine) Tick(now time.Duration) []Action { return nil }

// Head returns the head: what the fork choice gives.
func (m *Machine) Head() Ref { return Ref{} }

// SafeHead returns the head cut back below the lowest commit in doubt: what new
// commits, snapshots and external joins build on.
func (m *Machine) SafeHead() Ref { return Ref{} }

// NewestFinal returns the newest final commit of the head's era.
func (m *Machine) NewestFinal() Ref { return Ref{} }

// EraOf returns the number and the base of the head's era.
func (m *Machine) EraOf() (number uint64, base Ref) { return 0, Ref{} }

// Status returns where a commit stands.
func (m *Machine) Status(ref Ref) Status { return StatusUnknown }

// Accepted reports whether a commit is accepted.
func (m *Machine) Accepted(ref Ref) bool { return false }

// Votable reports whether a commit and all below it are vouched for.
func (m *Machine) Votable(ref Ref) bool { return false }

// Final reports whether a commit is final.
func (m *Machine) Final(ref Ref) bool { return false }

// InDoubt reports whether a commit was rejected and nobody vouched for it.
func (m *Machine) InDoubt(ref Ref) bool { return false }

// Known returns the commit event of a ref, if it is held.
func (m *Machine) Known(ref Ref) (*Commit, bool) { return nil, false }

// Path returns the refs from the commit above from up to to, nil if from is no
// ancestor of to.
func (m *Machine) Path(from, to Ref) []Ref { return nil }

// Extends reports whether ref is base or a descendant of it.
func (m *Machine) Extends(ref, base Ref) bool { return false }

// PolicyAt returns the policy from a commit on.
func (m *Machine) PolicyAt(ref Ref) (Policy, bool) { return Policy{}, false }

// ConfigAt returns the ref that names the list governing the commit's children.
func (m *Machine) ConfigAt(ref Ref) (Ref, bool) { return Ref{}, false }

// ScopeAt returns what receipts and statements about a commit are bound to.
func (m *Machine) ScopeAt(ref Ref) (Scope, bool) { return Scope{}, false }

// NeedsVouching returns the commits that are waiting for a member to vouch, in
// order of depth: accepted ones on the head, and eras that would count.
func (m *Machine) NeedsVouching() []Ref { return nil }
