package appservice

import (
	"bytes"
	"encoding/json"
	"io"
	"testing"

	"github.com/rs/zerolog"

	"github.com/matrix-mls/matrix-mls/appservice/store"
)

// checkedLines hands a log's lines of a level on, and fails the test for any line that
// has a field twice.
type checkedLines struct {
	t     *testing.T
	out   io.Writer
	least zerolog.Level
}

func (c checkedLines) Write(line []byte) (int, error) { return c.WriteLevel(zerolog.NoLevel, line) }

// WriteLevel implements zerolog.LevelWriter.
func (c checkedLines) WriteLevel(level zerolog.Level, line []byte) (int, error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	seen := make(map[string]bool)
	for depth, key := 0, false; ; {
		token, err := dec.Token()
		if err != nil {
			break
		}
		switch v := token.(type) {
		case json.Delim:
			if v == '{' || v == '[' {
				depth++
			} else {
				depth--
			}
			key = depth == 1
			continue
		case string:
			if depth == 1 && key {
				if seen[v] {
					c.t.Errorf("a line has %q twice: %s", v, line)
				}
				seen[v] = true
			}
		}
		if depth == 1 {
			key = !key
		}
	}
	if level < c.least {
		return len(line), nil
	}
	return c.out.Write(line)
}

func TestALineNamesItsRoomOnce(t *testing.T) {
	var out bytes.Buffer
	ctx, _ := eventLog(zerolog.New(checkedLines{t: t, out: &out}).WithContext(t.Context()), &store.InboxEvent{Room: "!a", EventID: "$e", Type: "t"})
	roomLog(ctx, "!a").Info().Any("list", []any{map[string]string{"room_id": "!b"}}).Msg("within")
	roomLog(zerolog.New(&out).WithContext(t.Context()), "!b").Info().Msg("without")
	want := `{"level":"info","room_id":"!a","event_id":"$e","event_type":"t","list":[{"room_id":"!b"}],"message":"within"}
{"level":"info","room_id":"!b","message":"without"}
`
	if out.String() != want {
		t.Errorf("got %s", out.String())
	}
}
