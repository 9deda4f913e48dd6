package e2e_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/e2e"
)

// told builds journals by hand: one group of a, b, c and m; b's second message is of a branch that lost; m is banned.
type told struct {
	journals map[string]*e2e.Journal
	now      time.Duration
}

const checkedRoom = id.RoomID("!checked:lab")

func ref(s string) string { return strings.Repeat(s, 64/len(s)) }

func (w *told) write(who string, e e2e.Entry) {
	w.now += time.Millisecond
	e.Room, e.At = checkedRoom, w.now
	w.journals[who].Entries = append(w.journals[who].Entries, e)
}

func (w *told) enter(who, epoch, parent string, author id.UserID, lost bool, added []id.UserID, removed ...id.UserID) {
	e := e2e.Entry{Kind: e2e.Entered, Ref: ref(epoch), Sender: author, Lost: lost, Added: added, Removed: removed}
	if parent != "" {
		e.Parent = ref(parent)
	}
	w.write(who, e)
}

func (w *told) send(from, text, epoch string, gen uint32, to ...string) {
	began := w.now
	j := w.journals[from]
	got := e2e.Entry{Kind: e2e.Got, Mid: text, Digest: text, Sender: j.User, Device: j.Device, Ref: ref(epoch), Leaf: uint32(from[0]), Own: true, Event: id.EventID("$" + text)}
	w.write(from, got)
	w.write(from, e2e.Entry{Kind: e2e.Said, Digest: text, Began: began, Event: got.Event})
	got.Own, got.Gen = false, gen
	for _, who := range to {
		w.write(who, got)
	}
}

func (w *told) list() []*e2e.Journal {
	var out []*e2e.Journal
	for _, who := range []string{"a", "b", "c", "m"} {
		out = append(out, w.journals[who])
	}
	return out
}

func newTold() *told {
	w := &told{journals: map[string]*e2e.Journal{}}
	user := func(who string) id.UserID { return id.UserID("@" + who + ":lab") }
	for _, who := range []string{"a", "b", "c", "m"} {
		w.journals[who] = &e2e.Journal{Name: who, User: user(who), Device: "D"}
		w.write(who, e2e.Entry{Kind: e2e.Opened})
	}
	w.enter("a", "00aa", "", user("a"), false, nil)
	for _, who := range []string{"a", "b", "c", "m"} {
		w.enter(who, "01", "00aa", user("a"), false, []id.UserID{user("b"), user("c"), user("m")})
	}
	w.send("a", "one", "01", 0, "b", "c", "m")
	w.send("a", "two", "01", 1, "b", "c", "m")
	w.send("m", "before", "01", 0, "a", "b", "c")
	w.send("m", "unseen", "01", 1, "b", "c") // by who bans m
	w.enter("b", "02", "01", user("b"), false, nil)
	w.send("b", "on the side", "02", 0, "c")
	w.write("a", e2e.Entry{Kind: e2e.Did, Call: "ban", Target: user("m"), Began: w.now})
	for _, who := range []string{"a", "b", "c"} {
		w.enter(who, "03", "01", user("a"), who == "b", nil, user("m"))
	}
	w.write("m", e2e.Entry{Kind: e2e.Out})
	w.send("a", "three", "03", 0, "b", "c")
	late := w.journals["c"].Entries // a is shown b's message only now
	for _, e := range late {
		if e.Mid == "on the side" {
			e.Ref = ref("03")
			w.write("a", e)
		}
	}
	for _, who := range []string{"a", "b", "c"} {
		w.write(who, e2e.Entry{Kind: e2e.AtRest, Ref: ref("03"), Members: []string{"@a:lab/D", "@b:lab/D", "@c:lab/D"}})
	}
	return w
}

// find returns the first entry of a kind (and message).
func (w *told) find(who, kind, mid string) *e2e.Entry {
	for i := range w.journals[who].Entries {
		if e := &w.journals[who].Entries[i]; e.Kind == kind && (mid == "" || e.Mid == mid) {
			return e
		}
	}
	panic("no such entry")
}

// swap lets two messages that a device was shown come in the other order.
func (w *told) swap(who, first, second string) {
	a, b := w.find(who, e2e.Got, first), w.find(who, e2e.Got, second)
	*a, *b = *b, *a
	a.At, b.At = b.At, a.At
}

func (w *told) drop(who, kind, mid string) {
	e := *w.find(who, kind, mid)
	w.journals[who].Entries = slices.DeleteFunc(w.journals[who].Entries, func(x e2e.Entry) bool { return x.Kind == e.Kind && x.Mid == e.Mid })
}

// TestChecker: the checker is content with a good history, and notices each thing that can be wrong with one.
func TestChecker(t *testing.T) {
	good := e2e.Check(checkedRoom, newTold().list(), nil)
	if len(good.Problems) > 0 || good.Devices != 3 || good.Out != 1 || good.Messages != 6 || good.Lost != 1 || good.Deliveries != 15 {
		t.Fatalf("a good history: %v\n%s", good, strings.Join(good.Problems, "\n"))
	}
	for _, test := range []struct {
		name  string
		spoil func(w *told)
		want  string
	}{
		{"two heads", func(w *told) { w.find("c", e2e.AtRest, "").Ref = ref("02") }, "is on head"},
		{"two memberships", func(w *told) { w.find("c", e2e.AtRest, "").Members = nil }, "sees the members"},
		{"a stranger", func(w *told) {
			for _, who := range []string{"a", "b", "c"} {
				e := w.find(who, e2e.AtRest, "")
				e.Members = append(e.Members, "@x:lab/X")
			}
		}, "those who say that they are in the group"},
		{"out without a word", func(w *told) { w.find("c", e2e.AtRest, "").Ref = "" }, "was not told that it was removed"},
		{"no end", func(w *told) { w.drop("c", e2e.AtRest, "") }, "did not say what it holds"},
		{"two parents", func(w *told) {
			for i := range w.journals["c"].Entries {
				if e := &w.journals["c"].Entries[i]; e.Kind == e2e.Entered && e.Ref == ref("03") {
					e.Parent = ref("02")
				}
			}
		}, "has the parents"},
		{"a lost message", func(w *told) { w.drop("c", e2e.Got, "two") }, "was not shown message two"},
		{"a lost message of the banned, from before", func(w *told) { w.drop("c", e2e.Got, "before") }, "was not shown message before"},
		{"a lost message of the branch that lost", func(w *told) { w.drop("a", e2e.Got, "on the side") }, "was not shown message on the s"},
		{"an own message lost", func(w *told) { w.drop("a", e2e.Got, "two") }, "is not shown its own message"},
		{"twice", func(w *told) { w.write("c", *w.find("c", e2e.Got, "two")) }, "2 times"},
		{"out of order", func(w *told) {
			one, two := w.find("c", e2e.Got, "one"), w.find("c", e2e.Got, "two")
			one.Mid, two.Mid, one.Digest, two.Digest = two.Mid, one.Mid, two.Digest, one.Digest
		}, "which was sent later"},
		{"what the banned said out of order", func(w *told) { w.swap("c", "before", "unseen") }, "which was sent later"},
		{"of nobody", func(w *told) {
			w.write("c", e2e.Entry{Kind: e2e.Got, Mid: "forged", Sender: "@a:lab", Device: "D"})
		}, "nobody says to have sent"},
		{"of another", func(w *told) { w.find("c", e2e.Got, "two").Sender = "@b:lab" }, "not as a sent it"},
		{"another text", func(w *told) { w.find("c", e2e.Got, "two").Digest = "tow" }, "not as a sent it"},
		{"read by the banned", func(w *told) {
			e := *w.find("b", e2e.Got, "three")
			w.write("m", e)
		}, "knew since"},
		{"one key twice", func(w *told) { w.find("c", e2e.Got, "two").Gen = 0 }, "was used for"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newTold()
			test.spoil(w)
			v := e2e.Check(checkedRoom, w.list(), nil)
			if !slices.ContainsFunc(v.Problems, func(p string) bool { return strings.Contains(p, test.want) }) {
				t.Errorf("want a problem with %q, got:\n%s", test.want, strings.Join(v.Problems, "\n"))
			}
		})
	}
	// A message that is shown again after a restart, since the program ended before it noted that, is not twice.
	w := newTold()
	w.write("c", e2e.Entry{Kind: e2e.Opened})
	again := *w.find("c", e2e.Got, "three")
	w.write("c", again)
	w.write("c", e2e.Entry{Kind: e2e.AtRest, Ref: ref("03"), Members: []string{"@a:lab/D", "@b:lab/D", "@c:lab/D"}})
	if v := e2e.Check(checkedRoom, w.list(), nil); len(v.Problems) > 0 {
		t.Errorf("shown again after a restart: %v", v.Problems)
	}
	// What who banned them had not seen may come in any order.
	w = newTold()
	w.drop("a", e2e.Got, "before")
	w.swap("c", "before", "unseen")
	if v := e2e.Check(checkedRoom, w.list(), nil); len(v.Problems) > 0 || v.Late != 1 {
		t.Errorf("what was overtaken by a ban came out of order: %v", v.Problems)
	}
	// What was sent again may come late to a device whose homeserver refused what was sent first.
	w = newTold()
	one, two := w.find("c", e2e.Got, "one"), w.find("c", e2e.Got, "two")
	*one, *two = *two, *one
	one.At, two.At, two.Event = two.At, one.At, "$again"
	for _, refused := range []bool{false, true} {
		v := e2e.Check(checkedRoom, w.list(), func(j *e2e.Journal, event id.EventID) bool { return refused && j.Name == "c" && event == "$one" })
		if (len(v.Problems) == 0) != refused || (v.Late == 1) != refused {
			t.Errorf("sent again, and the first refused (%v): %d late, problems %v", refused, v.Late, v.Problems)
		}
	}
	// And to one who came in after it was sent first, and only if it was sent again.
	for _, resent := range []bool{false, true} {
		w = newTold()
		w.find("c", e2e.Entered, "").At = w.find("c", e2e.Got, "one").At - 1
		w.swap("c", "one", "two")
		if resent {
			w.find("c", e2e.Got, "one").Event = "$again"
		}
		v := e2e.Check(checkedRoom, w.list(), nil)
		if (len(v.Problems) == 0) != resent || (v.Late == 1) != resent {
			t.Errorf("sent before who got it came in, and again (%v): %d late, problems %v", resent, v.Late, v.Problems)
		}
	}
}
