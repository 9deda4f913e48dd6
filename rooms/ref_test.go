package rooms

import (
	"bytes"
	"testing"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
)

// TestOutsideCommit: what a commit says of its place is what its author signed.
func TestOutsideCommit(t *testing.T) {
	g := newGroup(t, testPolicy())
	m := g.commit(g.creator, nil, mls.CommitOptions{ForcePath: true})
	group := g.creator.group.GroupID()
	got, ok, err := OutsideCommit(m.in.Content, group, []byte("before"))
	must(t, err)
	if want := (federation.Outside{Ref: m.in.Ref, Parent: g.head, Epoch: m.staged.Epoch()}); got != want || !ok {
		t.Errorf("got %v, %v, want %v", got, ok, want)
	}
	if _, ok, err := OutsideCommit(m.in.Content, []byte("another"), nil); ok || err != nil {
		t.Errorf("a commit of another group: %v, %v", ok, err)
	}
	if got, ok, err := OutsideCommit(m.in.Content, []byte("another"), group); !ok || !got.Past || err != nil {
		t.Errorf("a commit of the group before: %v, %v, %v", got, ok, err)
	}
	for name, change := range map[string]func(*CommitContent){
		"another parent": func(c *CommitContent) { c.Parent[0]++ },
		"another epoch":  func(c *CommitContent) { c.Epoch++ },
	} {
		c := *m.in.Content
		change(&c)
		_, _, err := OutsideCommit(&c, group, nil)
		if RuleOf(err) != RuleParentMismatch {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSameButTags: a homeserver can change the tags of a commit, which its author's
// signature does not cover, and nothing else.
func TestSameButTags(t *testing.T) {
	g := newGroup(t, testPolicy())
	raw := g.commit(g.creator, nil, mls.CommitOptions{ForcePath: true}).in.Content.Message
	other := g.commit(g.creator, nil, mls.CommitOptions{ForcePath: true}).in.Content.Message
	parse := func(raw []byte) *mls.Message {
		m, err := mls.ParseMessage(raw)
		must(t, err)
		return m
	}
	const tag = 1 + 32
	for at := 1; at <= 3*tag; at++ {
		if at%tag == 0 && at <= 2*tag {
			continue // the length of a tag
		}
		changed := bytes.Clone(raw)
		changed[len(changed)-at] ^= 1
		m, err := mls.ParseMessage(changed)
		if err != nil {
			continue
		}
		if got, want := SameButTags(parse(raw), m), at < 2*tag; got != want {
			t.Errorf("changed %d bytes before the end: %v", at, got)
		}
	}
	if end := parse(raw).SignatureEnd(); end != len(raw)-2*tag {
		t.Errorf("the signature ends at %d of %d bytes", end, len(raw))
	}
	for name, tags := range map[string][]byte{
		"a shorter first tag":                  append([]byte{2, 7, 7}, raw[len(raw)-tag:]...),
		"a shorter second tag":                 append(bytes.Clone(raw[len(raw)-2*tag:len(raw)-tag]), 2, 7, 7),
		"a second tag in which the first lies": {2, 7, 7, 7, 9, 2, 7, 7, 9, 9, 9},
	} {
		changed := append(bytes.Clone(raw[:len(raw)-2*tag]), tags...)
		m, err := mls.ParseMessage(changed)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !SameButTags(parse(raw), m) {
			t.Errorf("%s: another commit", name)
		}
	}
	if SameButTags(parse(raw), parse(other)) {
		t.Error("another commit of the same device is the same")
	}
}
