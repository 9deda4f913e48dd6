package mls

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Code points that draft-ietf-mls-extensions-10 suggests for application data.
// They are not assigned yet. A leaf that supports them lists them in its
// Capabilities; DefaultCapabilities leave them out.
const (
	ExtensionTypeAppDataDictionary ExtensionType = 0x0006 // Section 4.6
	ProposalTypeAppDataUpdate      ProposalType  = 0x0008 // Section 4.7
	ProposalTypeAppEphemeral       ProposalType  = 0x0009 // Section 4.8
)

// A ComponentID names a part of the application (draft-ietf-mls-extensions,
// Section 4.1).
type ComponentID uint16

// ComponentLastResort marks a KeyPackage of last resort, as the component of an
// app_data_dictionary extension (draft-ietf-mls-extensions, Section 6.4).
const ComponentLastResort ComponentID = 0x0004

// ComponentData is what an AppDataDictionary holds for one component.
type ComponentData struct {
	Component ComponentID
	Data      []byte
}

// An AppDataDictionary is the body of an app_data_dictionary extension: the
// application's data by component, sorted (draft-ietf-mls-extensions, Section
// 4.6).
type AppDataDictionary []ComponentData

// maxComponents bounds a dictionary when it is read.
const maxComponents = 1 << 10

// ParseAppDataDictionary reads the body of an app_data_dictionary extension.
func ParseAppDataDictionary(data []byte) (AppDataDictionary, error) {
	var d AppDataDictionary
	if err := unmarshalExtension(&Extension{Type: ExtensionTypeAppDataDictionary, Data: data}, &d); err != nil {
		return nil, err
	}
	return d, nil
}

// Extension returns the dictionary as an extension. The components are sorted;
// of several with one ID the first counts.
func (d AppDataDictionary) Extension() Extension {
	d = slices.Clone(d)
	slices.SortStableFunc(d, func(a, b ComponentData) int { return int(a.Component) - int(b.Component) })
	d = slices.CompactFunc(d, func(a, b ComponentData) bool { return a.Component == b.Component })
	return Extension{Type: ExtensionTypeAppDataDictionary, Data: d.appendTo(nil)}
}

// Get returns the data of a component, if there is any.
func (d AppDataDictionary) Get(c ComponentID) ([]byte, bool) {
	for i := range d {
		if d[i].Component == c {
			return d[i].Data, true
		}
	}
	return nil, false
}

func (d *AppDataDictionary) unmarshal(s *reader) bool {
	*d = nil
	return readVector(s, func(s *reader) bool {
		var c ComponentData
		if !s.ReadUint16((*uint16)(&c.Component)) || !readOpaqueVec(s, &c.Data) {
			return false
		}
		if n := len(*d); n > 0 && (*d)[n-1].Component >= c.Component {
			return s.fail("app-data/dictionary-order", "", "component %d follows component %d", c.Component, (*d)[n-1].Component)
		}
		if len(*d) >= maxComponents {
			return s.fail("codec/vector-over-limit", "", "a dictionary of more than %d components", maxComponents)
		}
		*d = append(*d, c)
		return true
	})
}

func (d AppDataDictionary) appendTo(b []byte) []byte {
	return appendVector(b, func(b []byte) []byte {
		for i := range d {
			b = binary.BigEndian.AppendUint16(b, uint16(d[i].Component))
			b = appendOpaqueVec(b, d[i].Data)
		}
		return b
	})
}

// An AppDataUpdate changes what the group's dictionary holds for a component
// (draft-ietf-mls-extensions, Section 4.7).
type AppDataUpdate struct {
	Component ComponentID
	Remove    bool   // delete the data; Update does not count
	Update    []byte // what the application makes the new data of
}

// Proposal returns the proposal to make the update. It needs a group whose
// members all list ProposalTypeAppDataUpdate and the dictionary's extension.
func (u *AppDataUpdate) Proposal() Proposal {
	return Proposal{Type: ProposalTypeAppDataUpdate, AppDataUpdate: u}
}

// Operations of an AppDataUpdate.
const (
	appDataUpdate = 1
	appDataRemove = 2
)

func (u *AppDataUpdate) unmarshal(s *reader) bool {
	var op uint8
	if !s.ReadUint16((*uint16)(&u.Component)) || !s.ReadUint8(&op) {
		return false
	}
	switch op {
	case appDataUpdate:
		return readOpaqueVecMax(s, &u.Update, defaultMaxExtensionSize)
	case appDataRemove:
		u.Remove = true
		return true
	}
	return s.fail("codec/unknown-app-data-operation", "", "AppDataUpdate operation %d is not defined", op)
}

func (u *AppDataUpdate) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(u.Component))
	if u.Remove {
		return append(b, appDataRemove)
	}
	return appendOpaqueVec(append(b, appDataUpdate), u.Update)
}

// An AppEphemeral takes application data along with a Commit and changes no
// state (draft-ietf-mls-extensions, Section 4.8).
type AppEphemeral struct {
	Component ComponentID
	Data      []byte
}

// Proposal returns the proposal to send the data along. It needs a group whose
// members all list ProposalTypeAppEphemeral.
func (a *AppEphemeral) Proposal() Proposal {
	return Proposal{Type: ProposalTypeAppEphemeral, AppEphemeral: a}
}

func (a *AppEphemeral) unmarshal(s *reader) bool {
	return s.ReadUint16((*uint16)(&a.Component)) && readOpaqueVecMax(s, &a.Data, defaultMaxExtensionSize)
}

func (a *AppEphemeral) appendTo(b []byte) []byte {
	return appendOpaqueVec(binary.BigEndian.AppendUint16(b, uint16(a.Component)), a.Data)
}

// AppData is the application's end of AppDataUpdate and AppEphemeral proposals.
// All members must decide alike, or they part: what its methods return follows
// from their arguments alone. They must not change or keep what they are given.
type AppData interface {
	// UpdateAppData returns the new data of a component, made of the old
	// (nil if there is none) and all updates of one Commit in their order.
	// For a removal there are no updates, and the result does not count. An
	// error refuses the Commit, and is due for unknown components.
	UpdateAppData(component ComponentID, old []byte, updates [][]byte) ([]byte, error)

	// CheckAppEphemeral refuses data of an AppEphemeral by an error, which
	// is due for unknown components.
	CheckAppEphemeral(component ComponentID, data []byte) error
}

// validateAppDataUpdate checks what concerns one update alone: a removal needs
// something to remove.
func (pc *proposalContext) validateAppDataUpdate(u *AppDataUpdate) error {
	if pc.cfg == nil || pc.cfg.AppData == nil {
		return invalid("app-data/component-unknown", "", "component %d is unknown: there is no Config.AppData", u.Component)
	}
	if !u.Remove {
		return nil
	}
	d, err := groupDictionary(pc.ctx.extensions)
	if err != nil {
		return err
	}
	if _, ok := d.Get(u.Component); !ok {
		return invalid("app-data/remove-absent", "", "an AppDataUpdate removes data of component %d, which has none", u.Component)
	}
	return nil
}

// validateAppEphemeral asks the application.
func (pc *proposalContext) validateAppEphemeral(a *AppEphemeral) error {
	if pc.cfg == nil || pc.cfg.AppData == nil {
		return invalid("app-data/component-unknown", "", "component %d is unknown: there is no Config.AppData", a.Component)
	}
	if err := pc.cfg.AppData.CheckAppEphemeral(a.Component, a.Data); err != nil {
		return invalid("app-data/ephemeral-refused", "", "data of component %d: %w", a.Component, err)
	}
	return nil
}

// groupDictionary returns the dictionary of a GroupContext, empty if it has none.
func groupDictionary(exts []Extension) (AppDataDictionary, error) {
	data, ok := findExtension(exts, ExtensionTypeAppDataDictionary)
	if !ok {
		return nil, nil
	}
	return ParseAppDataDictionary(data)
}

// updateAppData carries out the AppDataUpdate proposals of a Commit, in their
// order, on the extensions that the other proposals lead to.
// draft-ietf-mls-extensions, Section 4.7.
func (c *Config) updateAppData(exts []Extension, updates []*AppDataUpdate) ([]Extension, error) {
	if len(updates) == 0 {
		return exts, nil
	}
	if c == nil || c.AppData == nil {
		return nil, invalid("app-data/component-unknown", "", "component %d is unknown: there is no Config.AppData", updates[0].Component)
	}
	d, err := groupDictionary(exts)
	if err != nil {
		return nil, err
	}
	d = slices.Clone(d)
	var order []ComponentID
	removed := make(map[ComponentID]bool)
	byComponent := make(map[ComponentID][][]byte)
	for _, u := range updates {
		_, updated := byComponent[u.Component]
		if removed[u.Component] || updated && u.Remove {
			return nil, invalid("app-data/remove-with-others", "", "an AppDataUpdate that removes data of component %d beside others of it", u.Component)
		}
		if !updated {
			order = append(order, u.Component)
		}
		if u.Remove {
			removed[u.Component] = true
		} else {
			byComponent[u.Component] = append(byComponent[u.Component], u.Update)
		}
	}
	for _, id := range order {
		i, ok := slices.BinarySearchFunc(d, id, func(e ComponentData, id ComponentID) int { return int(e.Component) - int(id) })
		var old []byte
		if ok {
			old = d[i].Data
		} else if removed[id] {
			return nil, invalid("app-data/remove-absent", "", "an AppDataUpdate removes data of component %d, which has none", id)
		}
		data, err := c.AppData.UpdateAppData(id, old, byComponent[id])
		switch {
		case err != nil:
			return nil, invalid("app-data/update-refused", "", "component %d: %w", id, err)
		case removed[id]:
			d = slices.Delete(d, i, i+1)
		case ok:
			d[i].Data = bytes.Clone(data)
		default:
			d = slices.Insert(d, i, ComponentData{id, bytes.Clone(data)})
		}
	}
	e := Extension{Type: ExtensionTypeAppDataDictionary, Data: d.appendTo(nil)}
	// Else who joins could not read the GroupContext.
	if len(e.Data) > defaultMaxExtensionSize || len(d) > maxComponents {
		return nil, invalid("app-data/dictionary-too-large", "", "a dictionary of %d components in %d bytes is over the limits of %d and %d", len(d), len(e.Data), maxComponents, defaultMaxExtensionSize)
	}
	out := slices.Clone(exts)
	if i := slices.IndexFunc(out, func(x Extension) bool { return x.Type == e.Type }); i >= 0 {
		out[i] = e
	} else {
		out = append(out, e)
	}
	return out, nil
}

// keepsDictionary refuses a GroupContextExtensions proposal that touches the
// dictionary where AppDataUpdate is a required capability.
// draft-ietf-mls-extensions, Section 4.7.
func keepsDictionary(old, next []Extension) error {
	req, err := requiredCapabilities(old)
	if err != nil {
		return err
	}
	if req == nil || !slices.Contains(req.Proposals, ProposalTypeAppDataUpdate) {
		return nil
	}
	a, had := findExtension(old, ExtensionTypeAppDataDictionary)
	b, has := findExtension(next, ExtensionTypeAppDataDictionary)
	if had != has || !bytes.Equal(a, b) {
		return invalid("app-data/gce-changes-dictionary", "", "a GroupContextExtensions proposal changes the app_data_dictionary, which is for AppDataUpdate proposals")
	}
	return nil
}

// applyAppData carries out what the application's proposals ask for. The tree
// is without those who are removed and those who are added, who need not know
// these types. RFC 9420, Section 12.2.
func (c *change) applyAppData(cfg *Config, old []Extension) error {
	if c.gce {
		if err := keepsDictionary(old, c.extensions); err != nil {
			return err
		}
	}
	var updates []*AppDataUpdate
	for i := range c.proposals {
		p := &c.proposals[i].Proposal
		switch p.Type {
		case ProposalTypeAppDataUpdate:
			updates = append(updates, p.AppDataUpdate)
		case ProposalTypeAppEphemeral:
		default:
			continue
		}
		if !c.tree.profiles.every(func(k *Capabilities) bool { return k.SupportsProposal(p.Type) }) {
			return invalid("proposal/type-unsupported", "12.2", "a member does not support proposal type %d", p.Type)
		}
	}
	var err error
	c.extensions, err = cfg.updateAppData(c.extensions, updates)
	return err
}
