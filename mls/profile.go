package mls

import (
	"bytes"
	"maps"
	"slices"
)

// A profileSet counts the members by what they support and by the type of
// credential they use, so that questions such as "does every member support
// this extension?" cost the number of different answers and not the number of
// members.
type profileSet struct {
	capabilities map[string]profile // by the encoding of Capabilities
	credentials  map[CredentialType]int
	edit         *editToken
}

type profile struct {
	capabilities *Capabilities
	members      int
}

// sameProfile tells whether two leaves count alike.
func sameProfile(a, b *treeLeaf) bool {
	return a.credentialType() == b.credentialType() && bytes.Equal(a.caps(), b.caps())
}

func (p *profileSet) own(edit *editToken) {
	if p.edit == edit {
		return
	}
	p.edit = edit
	p.capabilities = maps.Clone(p.capabilities)
	p.credentials = maps.Clone(p.credentials)
	if p.capabilities == nil {
		p.capabilities = make(map[string]profile)
		p.credentials = make(map[CredentialType]int)
	}
}

func (p *profileSet) add(l *treeLeaf, edit *editToken) { p.addAlike(l, 1, edit) }

// addAlike adds n members, at least one, of the profile of l.
func (p *profileSet) addAlike(l *treeLeaf, n int, edit *editToken) {
	p.own(edit)
	e, ok := p.capabilities[string(l.caps())]
	if !ok {
		e.capabilities = &l.node(nil).Capabilities
	}
	e.members += n
	p.capabilities[string(l.caps())] = e
	p.credentials[l.credentialType()] += n
}

func (p *profileSet) remove(l *treeLeaf, edit *editToken) {
	p.own(edit)
	e := p.capabilities[string(l.caps())]
	if e.members--; e.members > 0 {
		p.capabilities[string(l.caps())] = e
	} else {
		delete(p.capabilities, string(l.caps()))
	}
	t := l.credentialType()
	if p.credentials[t]--; p.credentials[t] <= 0 {
		delete(p.credentials, t)
	}
}

// every reports whether ok holds for the capabilities of all members.
func (p *profileSet) every(ok func(*Capabilities) bool) bool {
	for _, e := range p.capabilities {
		if !ok(e.capabilities) {
			return false
		}
	}
	return true
}

// first returns the error that f gives for any profile; of several always the
// same one, whatever the order of the map.
func (p *profileSet) first(f func(*Capabilities) error) error {
	var first error
	for _, e := range p.capabilities {
		if err := f(e.capabilities); err != nil && (first == nil || err.Error() < first.Error()) {
			first = err
		}
	}
	return first
}

// credentialTypes returns the credential types in use, in order.
func (p *profileSet) credentialTypes() []CredentialType {
	return slices.Sorted(maps.Keys(p.credentials))
}

// supportsCredentials checks that all members support the credential types of
// all. RFC 9420, Section 7.3.
func (p *profileSet) supportsCredentials() error {
	types := p.credentialTypes()
	return p.first(func(c *Capabilities) error {
		for _, t := range types {
			if !c.SupportsCredential(t) {
				return invalid("leaf-node/credential-type-unsupported-by-members", "7.3", "a member does not support credential type %d, which is in use", t)
			}
		}
		return nil
	})
}
