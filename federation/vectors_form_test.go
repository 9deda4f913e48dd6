package federation

import (
	"crypto/ed25519"
	"fmt"
	"strings"
)

// formCase is a room of receipts and statements whose signatures are good and
// whose form is at the edge of what docs/epochs.md, section 4, allows, or beyond.
func formCase() VectorCase {
	w := newWorld()
	c := VectorCase{Name: "rule-form", About: "good signatures, and JSON at the edge of what is allowed or beyond it", Room: testRoom,
		Base: w.plainBase(), Edits: map[int]func(string) string{}}
	add := func(ev Event, edit func(string) string) {
		if edit != nil {
			c.Edits[len(c.Events)] = edit
		}
		c.Events = append(c.Events, ev)
	}
	replace := func(a, b string) func(string) string {
		return func(s string) string { return strings.Replace(s, a, b, 1) }
	}
	// before puts text in front of a key, value replaces a key's string or number.
	before := func(key, text string) func(string) string { return replace(`"`+key+`":`, text+`"`+key+`":`) }
	value := func(key string, f func(string) string) func(string) string {
		return func(s string) string {
			at := strings.Index(s, `"`+key+`":`) + len(key) + 3
			end := at + strings.IndexAny(s[at+1:], `,}"`) + 1
			if s[at] == '"' {
				end++
			}
			return s[:at] + f(s[at:end]) + s[end:]
		}
	}
	set := func(key, to string) func(string) string { return value(key, func(string) string { return to }) }
	vote := func(by string) *Vote { return w.vote("a", by, Ballot{}, nil) }

	for _, ev := range append(w.vouched("a", "root", "alice", "bob"), w.accept("a", "s1", Ballot{}, false, nil)) {
		add(ev, nil)
	}
	for i := range 4 {
		add(w.commit(fmt.Sprintf("x%d", i), "root", "alice", commitSpec{}), nil)
	}

	// Allowed. The two votes make a final.
	add(vote("s1"), replace(`"ballot":[0,0],`, ""))
	add(vote("s2"), replace(`"ballot":[0,0],`, `"ballot":null,"proofs":null,"commit_event":null,"more":{"a":[]},`))
	add(w.accept("a", "s1", Ballot{}, false, nil), replace(`{`, `{"provisional":false,"promises":[],"votes":null,`))
	first := vote("s3")
	first.Chain = Chain{Counter: 1}
	w.signed("s3", first)
	add(first, before("sig", `"prev":"`+strings.Repeat("A", 43)+`",`))
	add(w.one("s3", nil), replace(`{`, `{"last":null,`))
	many := vote("s3")
	many.Proofs = make([]Proof, maxProofs)
	for i := range many.Proofs {
		many.Proofs[i].Commit = testRef("a")
	}
	w.signed("s3", many)
	add(many, replace(`{`, `{"commit_event":"$x",`))

	// Beyond: base64, numbers, keys.
	pad := func(s string) string { return strings.TrimSuffix(s, `"`) + `=="` }
	spare := func(s string) string { // the last of 43 digits has two bits to spare
		at := len(s) - 2
		return s[:at] + string(s[at]+1) + s[at+1:]
	}
	add(vote("s1"), value("sig", pad))
	add(vote("s1"), value("ref", spare))
	add(vote("s1"), value("cfg", pad))
	add(vote("s1"), value("counter", func(s string) string { return s + ".0" }))
	add(vote("s1"), value("counter", func(s string) string { return s + "e0" }))
	add(vote("s1"), set("rank", "-0"))
	add(vote("s2"), set("rank", `"1"`))
	add(vote("s1"), replace(`{`, `{"rank":0,`))
	add(vote("s1"), replace(`{`, `{"more":[{"a":1,"a":1}],`))
	add(vote("s1"), replace(`{`, `{"more":1.5,`))
	add(vote("s1"), replace(`{`, `{"more":9007199254740992,`))
	add(vote("s1"), replace(`{`, `{"commit_event":"x",`))
	add(vote("s1"), replace(`{`, `{"commit_event":"$a b",`))
	add(vote("s1"), replace(`{`, `{"commit_event":"$`+strings.Repeat("x", 255)+`",`))
	add(vote("s1"), replace(`[0,0]`, `[0]`))
	add(vote("s1"), replace(`[0,0]`, `[0,0,0]`))
	chained := func(by string, chain Chain) *Vote {
		v := vote(by)
		v.Chain = chain
		w.signed(by, v)
		return v
	}
	add(chained("s1", Chain{}), nil)
	add(chained("s1", Chain{Counter: 1, Prev: testRef("a")}), nil)
	add(chained("s1", Chain{Counter: 2}), nil)
	add(chained("s1", Chain{Counter: 1 << 53, Prev: testRef("a")}), nil)
	add(chained("s1", Chain{Counter: 1<<53 - 1, Prev: testRef("a")}), nil) // the highest that is allowed

	// Beyond: accepts, proofs, statements.
	add(w.accept("a", "s1", Ballot{}, true, nil), replace(`"provisional":true`, `"ballot":[0,0],"provisional":true`))
	add(w.accept("a", "s1", Ballot{}, false, nil), replace(`{`, `{"provisional":0,`))
	add(w.accept("a", "s1", Ballot{}, false, nil), set("rank", "1"))
	carrying := w.accept("a", "s1", Ballot{}, false, nil)
	carrying.Votes = []*Vote{vote("s1")}
	w.signed("s1", carrying)
	add(carrying, replace(`"votes":[{`, `"votes":[{"commit_event":"x",`))
	proven := func() *Vote { return w.vote("a", "s1", Ballot{}, []Proof{{Applied: w.applied("a", "bob")}}) }
	add(proven(), replace(`{"applied"`, `{"commit":"`+strings.Repeat("A", 42)+`E","applied"`))
	add(proven(), replace(`"proofs":[`, `"proofs":[{},`))
	over := vote("s1")
	over.Proofs = make([]Proof, maxProofs+1)
	for i := range over.Proofs {
		over.Proofs[i].Commit = testRef("a")
	}
	w.signed("s1", over)
	add(over, nil)
	zero := w.applied("x0", "bob")
	zero.Hash = Ref{}
	zero.Signature = ed25519.Sign(testKey("leaf bob"), zero.Content(Scope{Room: testRoom, Group: w.group}))
	add(zero, nil)
	add(w.reject("x1", "bob", "two words"), nil)
	add(w.reject("x2", "bob", strings.Repeat("x", 101)), nil)
	add(w.reject("x3", "bob", strings.Repeat("x", 100)), nil) // allowed
	return c
}
