package rewrite

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/rooms"
)

func TestAListIsRewrittenAsItComes(t *testing.T) {
	_, encryption := evt(mlsRoom, "$e", "@a:x", "m.room.encryption", `{"algorithm":"`+rooms.Algorithm+`"}`, `,"state_key":""`)
	_, member := evt(mlsRoom, "$m", "@a:x", "m.room.member", `{"membership":"join"}`, `,"state_key":"@a:x"`)
	_, head := evt(mlsRoom, "$h", "@a:x", rooms.TypeHead, `{}`, `,"state_key":"@a:x"`)
	m := string(member)
	for _, tt := range []struct{ name, list, in, want string }{
		{"state", "", `[` + string(encryption) + `,` + m + ` , ` + string(head) + `,` + m + `]`, `[` + m + `,` + m + `]`},
		{"nothing is left", "", `[` + string(encryption) + `]`, `[]`},
		{"no event", "", ` [ ] `, `[]`},
		{"members", "chunk", `{"chunk":[` + string(head) + `,` + m + `],"n":{"a":[1]}}`, `{"chunk":[` + m + `],"n":{"a":[1]}}`},
		{"the list comes last", "chunk", `{"n":1, "chunk":[` + m + `]}`, `{"n":1,"chunk":[` + m + `]}`},
		{"without the list", "chunk", `{}`, `{}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			err := WriteList(&out, iotest(tt.in), mlsRoom, tt.list, view)
			if err != nil || out.String() != tt.want {
				t.Errorf("%s, %v\nwant %s", &out, err, tt.want)
			}
		})
	}
	for _, tt := range []struct{ name, list, in string }{
		{"an object where a list should be", "", `{}`},
		{"a list where an object should be", "chunk", `[]`},
		{"no list under the name", "chunk", `{"chunk":{}}`},
		{"broken off", "", `[` + m},
		{"broken off in an event", "chunk", `{"chunk":[` + m[:10]},
		{"no JSON", "", `nonsense`},
		{"nothing", "", ``},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := WriteList(io.Discard, strings.NewReader(tt.in), mlsRoom, tt.list, view); err == nil {
				t.Error("no error")
			}
		})
	}
}

// iotest gives out a text one byte at a time.
func iotest(s string) io.Reader { return &slow{s} }

type slow struct{ s string }

func (s *slow) Read(p []byte) (int, error) {
	if s.s == "" {
		return 0, io.EOF
	}
	n := copy(p[:1], s.s)
	s.s = s.s[n:]
	return n, nil
}

// endless gives out events without an end, and counts them.
type endless struct {
	event []byte
	at    int
	given int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.event[e.at:])
	if e.at += n; e.at == len(e.event) {
		e.at = 0
		e.given++
	}
	return n, nil
}

type full struct{ left int }

var errFull = errors.New("full")

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// TestAListOfAnyLengthIsNeverHeldWhole: what was written is gone, and one event that
// has no end ends the answer.
func TestAListOfAnyLengthIsNeverHeldWhole(t *testing.T) {
	_, member := evt(mlsRoom, "$m", "@a:x", "m.room.member", `{"membership":"join","displayname":"`+strings.Repeat("n", 1000)+`"}`, `,"state_key":"@a:x"`)
	members := &endless{event: append(member, ',')}
	in := io.MultiReader(strings.NewReader(`{"chunk":[`), members)
	if err := WriteList(&full{16 << 20}, in, mlsRoom, "chunk", view); !errors.Is(err, errFull) {
		t.Errorf("16 MiB of members: %v", err)
	}
	if ahead := members.given*len(member) - 16<<20; ahead > 2*maxValue {
		t.Errorf("%d bytes were read ahead", ahead)
	}
	one := &endless{event: []byte("x")}
	if err := WriteList(io.Discard, io.MultiReader(strings.NewReader(`{"chunk":["`), one), mlsRoom, "chunk", view); !errors.Is(err, errValueTooLarge) {
		t.Errorf("an event without an end: %v", err)
	}
	if one.given > 2*maxValue {
		t.Errorf("%d bytes of it were read", one.given)
	}
	var back struct{ Chunk []json.RawMessage }
	var out bytes.Buffer
	all := `{"chunk":[` + strings.TrimSuffix(strings.Repeat(string(member)+",", 3000), ",") + `]}`
	if err := WriteList(&out, strings.NewReader(all), mlsRoom, "chunk", view); err != nil || json.Unmarshal(out.Bytes(), &back) != nil || len(back.Chunk) != 3000 {
		t.Errorf("%d members, %v", len(back.Chunk), err)
	}
}
