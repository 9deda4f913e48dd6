package picture

import (
	"bytes"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/matrix-mls/matrix-mls/federation"
)

func ref(name string) federation.Ref { return sha256.Sum256([]byte(name)) }

// room is a survey that tests make by hand.
type room struct {
	federation.Survey
	index map[string]int // of commits
}

func newRoom() *room {
	r := &room{index: map[string]int{"root": 0}, Survey: federation.Survey{Room: "!room:one.example", Head: ref("root"), Safe: ref("root"), Usable: ref("root"), Final: ref("root"), Era: ref("root"), Base: ref("root"), FromRoot: true, Window: 16}}
	list := federation.List{{Server: "one.example"}, {Server: "two.example"}, {Server: "three.example"}}
	r.Sequencers = list
	r.Commits = []federation.Surveyed{{Ref: ref("root"), OnHead: true, Final: true, Status: federation.StatusFinal, Lists: list}}
	return r
}

// add adds a commit on another; on the head it becomes the head.
func (r *room) add(name, on string, status federation.Status, change func(c *federation.Surveyed)) {
	at, ok := r.index[on]
	if !ok {
		panic("no commit " + on)
	}
	up := r.Commits[at]
	c := federation.Surveyed{Ref: ref(name), Parent: up.Ref, Epoch: up.Epoch + 1, Depth: up.Depth + 1, Author: "@alice:one.example", Status: status, Quorum: 2}
	switch status {
	case federation.StatusFinal, federation.StatusVotable, federation.StatusAccepted, federation.StatusSideBranch:
		c.OnHead = true
		r.Head, r.Safe, r.Usable = c.Ref, c.Ref, c.Ref
		c.Accepts = []federation.SurveyedAccept{{Server: "one.example", Itself: true}}
	}
	if status == federation.StatusFinal {
		c.Final, r.Final, c.Votes = true, c.Ref, []string{"one.example", "two.example"}
	}
	if change != nil {
		change(&c)
	}
	r.index[name] = len(r.Commits)
	r.Commits = append(r.Commits, c)
}

// eventful is a room in which everything happened that a picture shows. All that
// others choose in it is made by word.
func eventful(word func(kind string) string) *room {
	r := newRoom()
	r.Room = word("!room:one.example")
	for i := range r.Sequencers {
		r.Sequencers[i].Server = word(r.Sequencers[i].Server)
		r.Sequencers[i].ReceiptKey = []byte{byte(i)}
	}
	on := "root"
	final := func(name string) {
		r.add(name, on, federation.StatusFinal, nil)
		on = name
	}
	for i := range 14 {
		final(fmt.Sprint("old", i))
	}
	// A split that healed, and who contradicted itself in it.
	r.add("side", on, federation.StatusDisplaced, func(c *federation.Surveyed) {
		c.Author, c.Adds, c.Removes = word("@carol:three.example"), []string{word("@dan:three.example"), word("@eve:three.example")}, []string{word("@bob:two.example")}
		c.Accepts = []federation.SurveyedAccept{{Server: word("three.example"), Liar: true, Itself: true}}
		c.Why, c.Beside = federation.ReasonEquivocation, ref("healed")
	})
	for i := range 6 {
		r.add(fmt.Sprint("side", i), map[bool]string{true: "side", false: fmt.Sprint("side", i-1)}[i == 0], federation.StatusDisplaced, nil)
	}
	final("healed")
	// Eras: one that counts for nothing, and the one that does.
	r.add("coup", on, federation.StatusWaiting, func(c *federation.Surveyed) {
		c.Era, c.ByHeirs, c.Why, c.Beside, c.Lists = 1, true, federation.ReasonEraRefused, ref("era"), federation.List{{Server: word("evil.example")}}
	})
	r.add("lost", on, federation.StatusDisplaced, func(c *federation.Surveyed) { c.Final, c.Why, c.Beside = true, federation.ReasonEra, ref("era") })
	r.add("era", on, federation.StatusFinal, func(c *federation.Surveyed) {
		c.Era, c.Lists, c.Author, c.Accepts, c.Votes, c.Quorum = 1, r.Sequencers, word("@alice:one.example"), nil, nil, 0
	})
	r.Era, r.EraNumber, r.Overridden = ref("era"), 1, []federation.Ref{ref("lost")}
	// What is open.
	r.add("votable", "era", federation.StatusVotable, func(c *federation.Surveyed) { c.Votes, c.External = []string{word("one.example")}, true })
	r.add("list", "votable", federation.StatusAccepted, func(c *federation.Surveyed) { c.ListChange, c.Lists, c.PolicyChange = true, r.Sequencers[:2], true })
	r.add("bad", "list", federation.StatusDoubt, func(c *federation.Surveyed) {
		c.OnHead, c.RejectedBy, c.RejectRule = true, word("@bob:two.example"), word("update-path/decrypt")
		c.Accepts = []federation.SurveyedAccept{{Server: word("two.example"), Ballot: federation.Ballot{Round: 1, Rank: 1}}}
	})
	r.add("alone", "bad", federation.StatusSideBranch, func(c *federation.Surveyed) {
		c.Accepts = []federation.SurveyedAccept{{Server: word("three.example"), Provisional: true, Itself: true}}
		c.Suite = 2
	})
	r.Safe, r.Usable, r.Provisional, r.Stalled = ref("list"), ref("votable"), true, true
	for i := range 6 {
		r.add(fmt.Sprint("open", i), "alone", federation.StatusWaiting, func(c *federation.Surveyed) {
			c.Author, c.Why = word("@frank:one.example"), federation.ReasonUnaccepted
		})
	}
	r.Asked = &federation.SurveyedBallot{Ballot: federation.Ballot{Round: 2, Rank: 2}, Server: word("three.example"), Promises: 1, Quorum: 2}
	r.Missing = []federation.Missing{{Ref: ref("gone"), Events: 1}, {Ref: ref("gone2"), Events: 3}}
	r.Liars = []federation.Liar{{Signer: federation.Sequencer{Server: word("three.example")}, Kind: federation.EvidenceAccepts}}
	for i, at := range []string{"alone", "bad", "era", "side", "alone", ""} {
		l := federation.SurveyedLeaf{Leaf: uint32(i), User: word(fmt.Sprintf("@user%d:one.example", i/2))}
		if at != "" {
			l.Reached = ref(at)
		}
		if at == "side" {
			l.Reached, l.Beside = ref("old13"), ref("side")
		}
		r.Devices = append(r.Devices, l)
	}
	return r
}

func options(word func(string) string) Options {
	return Options{
		Title: word("Lunch"), Source: word("as it is seen here"), Devices: map[uint32]string{0: word("PHONE"), 4: word("DESK")},
		Own:   func(leaf uint32) bool { return leaf == 4 },
		Liars: []federation.Liar{{Signer: federation.Sequencer{Server: word("two.example"), ReceiptKey: []byte{1}}, Kind: federation.EvidenceKind(word("another-kind"))}},
	}
}

func asItIs(s string) string { return s }

// checkText holds what every text has to be: narrow, and without anything that a
// terminal obeys.
func checkText(t *testing.T, text string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Fatal("the text is no UTF-8")
	}
	for n, line := range strings.Split(text, "\n") {
		if w := width(line); w > lineWidth {
			t.Errorf("line %d has %d columns: %s", n+1, w, line)
		}
		for _, r := range line {
			if !unicode.IsPrint(r) {
				t.Errorf("line %d holds %U", n+1, r)
			}
		}
		if n > 2 && strings.ContainsFunc(line, rightToLeft) { // room and source stand alone above
			t.Errorf("line %d turns around: %q", n+1, line)
		}
	}
}

// checkMarkup holds that a document has only what the package itself writes.
func checkMarkup(t *testing.T, raw []byte) {
	t.Helper()
	allowed := map[string][]string{
		"svg":   {"xmlns", "width", "height", "viewBox", "role", "aria-labelledby", "aria-describedby"},
		"title": {"id"}, "desc": {"id"}, "style": nil, "g": {"role", "aria-label", "aria-hidden"}, "text": {"x", "y", "class"},
		"rect": {"x", "y", "width", "height", "class"}, "circle": {"cx", "cy", "r", "class", "stroke-dasharray"}, "path": {"d", "class"},
		"html": {"lang"}, "head": nil, "meta": {"charset", "name", "content"}, "body": nil, "main": nil, "h1": nil, "figure": nil,
		"details": nil, "summary": nil, "pre": nil,
	}
	d := xml.NewDecoder(bytes.NewReader(raw))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	in := ""
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("no markup: %v", err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			in = tok.Name.Local
			attrs, ok := allowed[in]
			if !ok {
				t.Errorf("an element %s", in)
			}
			for _, a := range tok.Attr {
				if !slices.Contains(attrs, a.Name.Local) {
					t.Errorf("%s has an attribute %s=%q", in, a.Name.Local, a.Value)
				}
			}
		case xml.EndElement:
			in = ""
		case xml.CharData:
			if in == "style" && string(tok) != svgStyle && string(tok) != pageStyle {
				t.Errorf("another style: %s", tok)
			}
			if strings.ContainsFunc(string(tok), func(r rune) bool { return unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Cf, r) }) {
				t.Errorf("control characters: %q", tok)
			}
		case xml.Comment, xml.ProcInst:
			if _, ok := tok.(xml.ProcInst); !ok || !bytes.HasPrefix(raw, []byte("<?xml ")) {
				t.Errorf("%T", tok)
			}
		case xml.Directive:
			if string(tok) != "DOCTYPE html" {
				t.Errorf("a directive %s", tok)
			}
		}
	}
}

func TestEverythingIsSaidInWords(t *testing.T) {
	p := Of(&eventful(asItIs).Survey, options(asItIs))
	text := p.Text()
	checkText(t, text)
	checkMarkup(t, p.SVG())
	checkMarkup(t, p.Page(""))
	flat := strings.Join(strings.Fields(strings.NewReplacer("|", " ").Replace(text)), " ")
	for _, want := range []string{
		"Lunch", "as it is seen here", "!room:one.example",
		"The head is epoch 20, " + ref("alone").Short() + ", provisional.", "The newest final is epoch 16",
		"Era 1. It overrides 1 final commit: " + ref("lost").Short(), "2 of 3 make one final", "Frozen: members send in epoch 17",
		"In doubt: new commits are made on epoch 18", "goes on without a majority, for at most 16 commits", "nothing becomes final",
		"three.example asks to take over with ballot 2.2: 1 of 2 promises", "three.example signed accepts that exclude each other",
		"two.example signed another-kind", "is missing; 1 event waits", "is missing; 3 events wait",
		"HEAD, provisional", "accepted by three.example without a majority", "founds the group anew, with cipher suite 2",
		"in doubt", "rejected by @bob:two.example: update-path/decrypt", "two.example in ballot 1.1 (with one above it)",
		"changes who orders commits: one.example and two.example", "1 of 2 votes: one.example", "who let itself in",
		"opens era 1, ordered by one.example, two.example and three.example", "opens era 1 by the heirs, ordered by evil.example",
		"not counting", "heirs of too few servers", "displaced, though final in its era", "it leads to era 1",
		"adds @dan:three.example and @eve:three.example; removes @bob:two.example", "(contradicts itself there)", "only who contradicts itself accepted this",
		"4 commits, epochs 16 to 19, all displaced", "commits, epochs", "all final", "2 more commits beside the head, not drawn", "the founding epoch",
		"epoch 20, " + ref("alone").Short() + ", the head: @user2:one.example DESK (this device) and @user0:one.example PHONE",
		"epoch 16, " + ref("era").Short() + ", 4 behind: @user1:one.example", "beside the head: @user1:one.example", "not heard from yet: @user2:one.example",
		"? in doubt", "% provisional", "x displaced", ". not accepted (yet)", ": several in one", "o accepted", "# final",
	} {
		if !strings.Contains(flat, want) {
			t.Errorf("the text does not say %q", want)
		}
	}
	// Words and marks of the drawing are those of the text.
	svg := strings.Join(strings.Fields(string(p.SVG())), " ")
	for _, r := range p.Rows {
		if !strings.Contains(svg, xmlText(r.label())) {
			t.Errorf("the drawing does not say %q", r.label())
		}
	}
	if t.Failed() {
		t.Log("\n" + text)
	}
}

func TestEqualSurveysGiveEqualBytes(t *testing.T) {
	draw := func() string {
		p := Of(&eventful(asItIs).Survey, options(asItIs))
		return p.Text() + string(p.SVG()) + string(p.Page(""))
	}
	want := draw()
	for range 20 {
		if draw() != want {
			t.Fatal("two pictures of one room differ")
		}
	}
}

func TestNamesAreHarmless(t *testing.T) {
	for _, row := range []struct{ name, in, want string }{
		{"plain", "@alice:one.example", "@alice:one.example"},
		{"escape sequence", "\x1b[2J@a:b", "�[2J@a:b"},
		{"C1 control", "\u009b31m", "�31m"},
		{"right to left override", "@a\u202eb", "@a�b"},
		{"isolate", "\u2066@a", "�@a"},
		{"letters from the right", "@\u05d0\u05d1:b", "@��:b"},
		{"zero width", "@a\u200b\u200d\ufeff:b", "@a���:b"},
		{"tag characters", "@a\U000e0041", "@a�"},
		{"letters that draw nothing", "@\u3164\u115f:b", "@��:b"},
		{"space", "@a b", "@a�b"},
		{"no-break space", "@a\u00a0b", "@a�b"},
		{"line break", "@a\nfinal", "@a�final"},
		{"words of ours", "@a; final", `"@a;�final"`},
		{"quotation mark", `@a",b`, `"@a�,b"`},
		{"invalid UTF-8", "@a\xff", "@a�"},
		{"too long", "@" + strings.Repeat("a", 300), `"@` + strings.Repeat("a", 38) + `…"`},
		{"just fits", "@" + strings.Repeat("a", 39), "@" + strings.Repeat("a", 39)},
		{"heap of marks", "@a" + strings.Repeat("\u0301", 50) + "b", "@a\u0301\u0301b"},
		{"only marks", strings.Repeat("\u0301", 50), `""`},
		{"wide", strings.Repeat("界", 30), `"` + strings.Repeat("界", 19) + `…"`},
		{"empty", "", `""`},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := name(row.in); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
	if got := heading("\u05e9\u05dc\u05d5\u05dd\tto all\u202e\x1b[m \U0001f469\u200d\U0001f467"); got != "\u05e9\u05dc\u05d5\u05dd to all��[m \U0001f469\U0001f467" {
		t.Errorf("a heading: %q", got)
	}
}

func TestMarkupIsEscaped(t *testing.T) {
	evil := func(string) string {
		return `"><script>alert(1)</script><svg onload='x'/>&lt;]]><!--`
	}
	p := Of(&eventful(evil).Survey, options(evil))
	checkText(t, p.Text())
	for _, raw := range [][]byte{p.SVG(), p.Page("")} {
		checkMarkup(t, raw)
		for _, bad := range []string{"<script", "onload='", "]]>", "<!--", "<a", "href"} {
			if bytes.Contains(raw, []byte(bad)) {
				t.Errorf("a document holds %q", bad)
			}
		}
	}
}

func TestThePolicyAllowsOnlyTheStyles(t *testing.T) {
	got := ContentSecurityPolicy()
	if !strings.HasPrefix(got, "default-src 'none'; style-src 'sha256-") || strings.Count(got, "'sha256-") != 2 || strings.Contains(got, "unsafe") {
		t.Error(got)
	}
}

// TestColoursCanBeRead holds the contrast of text and marks to the ground, in light
// and in dark (WCAG 2.1: 4.5 : 1 for text, 3 : 1 for marks).
func TestColoursCanBeRead(t *testing.T) {
	for _, row := range []struct {
		ground string
		text   []string
	}{
		{"#ffffff", []string{"#1f2328", "#57606a", "#1a7f37", "#0969da", "#9a6700", "#cf222e"}},
		{"#0d1117", []string{"#e6edf3", "#9aa4af", "#3fb950", "#58a6ff", "#d29922", "#ff7b72"}},
	} {
		for _, c := range row.text {
			if !strings.Contains(svgStyle, c) {
				t.Errorf("%s is no colour of the drawing", c)
			}
			if got := contrast(t, c, row.ground); got < 4.5 {
				t.Errorf("%s on %s has a contrast of %.1f", c, row.ground, got)
			}
		}
	}
}

func contrast(t *testing.T, a, b string) float64 {
	light := func(c string) float64 {
		var rgb [3]uint8
		if _, err := fmt.Sscanf(c, "#%02x%02x%02x", &rgb[0], &rgb[1], &rgb[2]); err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
			v := float64(rgb[i]) / 255
			if v <= 0.04045 {
				v /= 12.92
			} else {
				v = math.Pow((v+0.055)/1.055, 2.4)
			}
			sum += weight * v
		}
		return sum
	}
	x, y := light(a), light(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// FuzzNames puts one hostile word everywhere that others choose words.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"@alice:one.example", "\x1b]0;title\a", "<script>", "\u202e\u2066", `"'&`, "]]>", "\x00", "a\xff", strings.Repeat("w", 500),
		strings.Repeat("界 ", 99), "\u05d0", "é\u0301\u0301\u0301", "; final", "\U0001f469\u200d\U0001f467", "\ud7ff\uffff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := Of(&eventful(func(string) string { return s }).Survey, options(func(string) string { return s }))
		checkText(t, p.Text())
		checkMarkup(t, p.SVG())
		checkMarkup(t, p.Page(""))
	})
}

func TestLongRoomsStaySmall(t *testing.T) {
	r := newRoom()
	on := "root"
	for i := range 5000 {
		name := fmt.Sprint("c", i)
		r.add(name, on, federation.StatusFinal, nil)
		if i%7 == 0 {
			side := on
			for j := range 6 {
				r.add(fmt.Sprint("b", i, "/", j), side, federation.StatusDisplaced, func(c *federation.Surveyed) {
					c.Accepts = []federation.SurveyedAccept{{Server: "three.example", Provisional: true, Itself: true}}
					if j == 0 {
						c.Why, c.Beside = federation.ReasonFinal, ref(name)
					}
				})
				side = fmt.Sprint("b", i, "/", j)
			}
		}
		on = name
	}
	for i := range 500 {
		r.add(fmt.Sprint("w", i), on, federation.StatusWaiting, func(c *federation.Surveyed) { c.Why = federation.ReasonUnaccepted })
	}
	for i := range 20_000 {
		l := federation.SurveyedLeaf{Leaf: uint32(i), User: fmt.Sprintf("@user%d:one.example", i)}
		if i%3 > 0 {
			l.Reached = ref(fmt.Sprint("c", 4999-i%40))
		}
		r.Devices = append(r.Devices, l)
	}
	p := Of(&r.Survey, Options{Title: "Long"})
	if len(p.Rows) > 150 || len(p.Devices) > 8 {
		t.Errorf("%d rows, %d lines about devices", len(p.Rows), len(p.Devices))
	}
	text, svg := p.Text(), p.SVG()
	if n := strings.Count(text, "\n"); n > 500 || len(svg) > 150_000 {
		t.Errorf("%d lines, %d bytes", n, len(svg))
	}
	if last := p.Rows[len(p.Rows)-1]; last.Ref != ref("root").String() {
		t.Errorf("the chain ends with %+v", last)
	}
	if !slices.ContainsFunc(p.Rows, func(r Row) bool {
		return r.Mark == MarkFold && r.Lane == 0 && strings.Contains(r.State, ", all final") && len(r.Text) == 1
	}) {
		t.Error("nothing of the chain is folded")
	}
	checkText(t, text)
	checkMarkup(t, svg)
}
