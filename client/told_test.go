package client

import (
	"strings"
	"testing"
	"time"
)

func TestRefusedMessageNobodyWaitsForIsShown(t *testing.T) {
	w := newWorld(t)
	room, _, bob, carol := w.three("shared")
	bob.hs.fail = errUnreachableNow
	bob.sendAlone(room, "never sent")
	rows := bob.roomRowsOf(room)
	if len(rows) != 1 {
		t.Fatalf("%d rows wait", len(rows))
	}
	mid := rows[0].data.Plain.MessageID
	bob.restart()
	w.now.add(10 * time.Second)
	bob.Step(w.ctx)
	bob.hs.fail = errRefused
	bob.Flush(w.ctx)
	w.settle()
	if rows := bob.roomRowsOf(room); len(rows) != 0 {
		t.Fatalf("%d rows wait", len(rows))
	}
	told := 0
	for _, u := range bob.got {
		if warning, ok := u.(*Warning); ok && warning.Rule == ruleSendRefused && warning.Room == room && strings.Contains(warning.Text, mid) {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times that message %s is lost, want 1", told, mid)
	}
	carol.wantTexts()
}
