package client

import (
	"encoding/json"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"
)

// TestEditsAndThreadsAreFound: what a message is an edit of, and which thread it is in, is found in the store, also in one from
// before that was kept, and no more once it was redacted.
func TestEditsAndThreadsAreFound(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.three("shared")
	root := w.send(alice, room, "first")
	var thread id.EventID
	w.must(func() error { _, err := alice.Edit(w.ctx, room, root, "anew"); return err })
	w.must(func() (err error) {
		thread, err = bob.Send(w.ctx, room, "m.room.message", json.RawMessage(`{"body":"reply","m.relates_to":{"rel_type":"m.thread","event_id":"`+string(root)+`"}}`))
		return err
	})
	w.must(func() error {
		_, err := bob.Send(w.ctx, room, "m.room.message", json.RawMessage(`{"body":"no edit","m.relates_to":{"rel_type":"m.replace","event_id":"`+string(root)+`"}}`))
		return err
	})
	w.settle()
	check := func(when string, want ...string) {
		t.Helper()
		for _, d := range []*testDevice{alice, bob} {
			got, err := d.st.Relations(w.ctx, room, root)
			if slices.Sort(got); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s %s knows %q, %v", when, d.ident.device, got, err)
			}
			edits, err := d.st.NewestBy(w.ctx, room, root, RelationEdit, alice.UserID(), 9)
			if others, err2 := d.st.NewestBy(w.ctx, room, root, RelationEdit, bob.UserID(), 9); err != nil || err2 != nil || len(edits) != 1 || len(others) != 0 {
				t.Errorf("%s %s knows %d and %d edits, %v, %v", when, d.ident.device, len(edits), len(others), err, err2)
			}
		}
	}
	check("at first", RelationEdit, RelationThread)
	for _, d := range []*testDevice{alice, bob} { // as if from before
		all, err := d.st.Timeline(w.ctx, room, 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range all {
			if err := d.st.Relate(w.ctx, item.Seq, "", ""); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.st.DeleteKV(w.ctx, relationsIndexed); err != nil {
			t.Fatal(err)
		}
		if left, err := d.st.Relations(w.ctx, room, root); err != nil || len(left) != 0 {
			t.Fatalf("%q are left, %v: the test shows nothing", left, err)
		}
		d.restart()
	}
	check("from an old store", RelationEdit, RelationThread)
	w.must(func() error { _, err := bob.Redact(w.ctx, room, thread, ""); return err })
	w.settle()
	check("after a redaction", RelationEdit)
}
