package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/mls"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// waitMissing lets time pass, in which everybody acts, until what did not come would have been told.
func (w *world) waitMissing() {
	w.t.Helper()
	for range 16 {
		w.settle()
		w.now.add(missingWait / 12)
	}
	w.settle()
}

// encryptedOf counts the messages that a device sent.
func (w *world) encryptedOf(d *testDevice) (n int) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for _, evt := range w.s.log {
		if evt.Type == rooms.TypeEncrypted && evt.Sender == d.UserID() {
			n++
		}
	}
	return n
}

// question has a device ask for messages of another one.
func (w *world) question(d *testDevice, room id.RoomID, list ...rooms.MissingMessages) {
	w.t.Helper()
	w.forge(d, room, &rooms.ReceiptPayload{Acks: []rooms.Ack{}, Missing: list})
}

// TestWhatAServerKeepsIsSentAgain: a message that the homeserver never gives is asked for, and comes back under its id.
func TestWhatAServerKeepsIsSentAgain(t *testing.T) {
	for _, kept := range []int{1, 3} {
		t.Run(fmt.Sprint(kept), func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.telling(Limits{})
			w.send(alice, room, "before")
			w.settle()
			want := []string{"before", "after"}
			for i := range kept {
				w.sendHidden(alice, room, fmt.Sprint("kept ", i))
				want = append(want, fmt.Sprint("kept ", i))
			}
			w.send(alice, room, "after")
			w.settle()
			sent := w.encryptedOf(alice)
			bob.restart() // before it has asked
			w.waitMissing()
			for _, d := range []*testDevice{bob, carol} {
				got := d.received()
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("%s got %q, want %q", d.ident.device, got, want)
				}
				if told := d.missed(); told != nil {
					t.Errorf("%s was told %q", d.ident.device, told)
				}
				if left := d.rooms[room].rec.Missing; len(left) != 0 {
					t.Errorf("%s has gaps left: %+v", d.ident.device, left)
				}
			}
			if n := w.encryptedOf(alice) - sent; n != kept {
				t.Errorf("alice sent %d messages again, want %d", n, kept)
			}
			if n := questions(room, alice.UserID(), bob, carol); n != 1 {
				t.Errorf("%d questions", n)
			}
			if list, err := alice.Messages(w.ctx, room, "", 20); err != nil || len(list) != len(want) {
				t.Errorf("alice has %d messages, %v", len(list), err)
			}
		})
	}
}

// questions counts the devices that asked one for messages since their start.
func questions(room id.RoomID, asked id.UserID, devices ...*testDevice) (n int) {
	for _, d := range devices {
		d.mu.Lock()
		if d.rooms[room].askedAt[asked] > 0 {
			n++
		}
		d.mu.Unlock()
	}
	return n
}

// TestWhoMissesTheSameDoesNotAskAllAtOnce: another's question puts the own one off, and two end it.
func TestWhoMissesTheSameDoesNotAskAllAtOnce(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.telling(Limits{})
	w.sendHidden(alice, room, "kept")
	w.send(alice, room, "after")
	w.all = []*testDevice{bob, carol} // the author answers nobody
	w.settle()
	bob.mu.Lock()
	r := bob.rooms[room]
	if len(r.rec.Missing) != 1 {
		t.Fatalf("bob's gaps: %+v", r.rec.Missing)
	}
	m := &r.rec.Missing[0]
	other := rooms.MissingMessages{Ref: m.Ref, Leaf: m.Leaf, Generations: []uint32{m.From}}
	before := m.ask
	b := &batch{}
	bob.handleQuestion(r, carol.UserID(), carol.DeviceID(), []rooms.MissingMessages{{Ref: m.Ref, Leaf: m.Leaf + 1, Generations: []uint32{m.From}}, {Ref: m.Ref, Leaf: m.Leaf, Generations: []uint32{m.Below}}}, b)
	if m.Asks != nil || m.ask != before {
		t.Errorf("put off by a question for something else: %+v", m)
	}
	bob.handleQuestion(r, carol.UserID(), carol.DeviceID(), []rooms.MissingMessages{other}, b)
	if m.Asked || m.ask < bob.mono()+missingAgain {
		t.Errorf("not put off: %+v, now %s", m, bob.mono())
	}
	for range maxQuestions {
		bob.handleQuestion(r, carol.UserID(), carol.DeviceID(), []rooms.MissingMessages{other}, b)
	}
	if m.Asked {
		t.Errorf("one user alone kept it from asking: %+v", m)
	}
	bob.handleQuestion(r, "@dave:"+testServer, "DAVE1", []rooms.MissingMessages{other}, b)
	if !m.Asked {
		t.Errorf("asks though two others did: %+v", m)
	}
	bob.mu.Unlock()
}

// TestALiarWhoAsksForEverythingGetsLittle: each message goes out once more at most, few for one user, and none for what was
// no message of this device or has come to an end.
func TestALiarWhoAsksForEverythingGetsLittle(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.telling(Limits{})
	for i := range maxResendsFor + 5 {
		w.send(alice, room, fmt.Sprint(i))
	}
	w.settle()
	msg, err := alice.Messages(w.ctx, room, "", 1)
	if err != nil || len(msg) != 1 {
		t.Fatal(err)
	}
	sent := w.encryptedOf(alice)
	all := rooms.MissingMessages{Ref: rooms.Hash(msg[0].Ref), Leaf: msg[0].Leaf}
	for g := range uint32(rooms.MaxMissingOf) {
		all.Generations = append(all.Generations, g)
	}
	strange := all
	strange.Ref = rooms.Hash{1}
	others := all
	others.Leaf++
	for i := range 3 {
		w.question(bob, room, all, strange, others)
		if w.settle(); i == 0 {
			w.waitMissing()
		}
		bob.restart()
	}
	if n := w.encryptedOf(alice) - sent; n != maxResendsFor {
		t.Errorf("alice sent %d again for one user, want %d", n, maxResendsFor)
	}
	for range 3 {
		w.question(carol, room, all)
		w.settle()
	}
	w.waitMissing()
	if n := w.encryptedOf(alice) - sent; n != maxResendsFor+5 {
		t.Errorf("alice sent %d again in all, want each once: %d", n, maxResendsFor+5)
	}
	alice.restart()
	w.question(carol, room, all)
	w.now.add(resendSpan)
	w.question(bob, room, all)
	w.settle()
	if n := w.encryptedOf(alice) - sent; n != maxResendsFor+5 {
		t.Errorf("after a restart and an hour: %d", n)
	}
	for _, d := range []*testDevice{bob, carol} {
		got := slices.DeleteFunc(d.received(), func(text string) bool { return text == "" }) // its own questions
		if len(got) != maxResendsFor+5 {
			t.Errorf("%s was shown %q", d.ident.device, got)
		}
	}
	var s resends
	for i := range 3 * maxResends {
		if s.may(id.UserID(fmt.Sprint(i)), time.Hour) != (i < maxResends) {
			t.Fatalf("the room's bound: %d", i)
		}
	}
}

// TestNothingIsSentAgainToNewcomers: who came in after a message does not get it because somebody says that it did not come.
func TestNothingIsSentAgainToNewcomers(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.telling(Limits{})
	evt := w.send(alice, room, "before dave")
	w.settle()
	msg, err := alice.Message(w.ctx, room, evt)
	if err != nil {
		t.Fatal(err)
	}
	dave := w.device("dave", "DAVE1")
	w.must(func() error { return alice.Invite(w.ctx, room, dave.UserID()) })
	w.settle()
	w.join(dave, room)
	w.settle()
	sent := w.encryptedOf(alice)
	w.question(bob, room, rooms.MissingMessages{Ref: rooms.Hash(msg.Ref), Leaf: msg.Leaf, Generations: []uint32{msg.Generation}})
	w.settle()
	if n := w.encryptedOf(alice) - sent; n != 0 {
		t.Errorf("alice sent %d messages again", n)
	}
	if got := strings.Join(dave.received(), ","); strings.Contains(got, "before dave") {
		t.Errorf("dave got %s", got)
	}
}

// TestWhoComesInMeanwhileGetsNothingOld: somebody comes into the group after a message was asked for, and before it has gone
// out again. It stays as it was sent.
func TestWhoComesInMeanwhileGetsNothingOld(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprintf("encrypted %t", encrypted), func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.telling(Limits{})
			evt := w.send(alice, room, "before dave")
			w.settle()
			msg, err := alice.Message(w.ctx, room, evt)
			if err != nil {
				t.Fatal(err)
			}
			sent := w.encryptedOf(alice)
			held := func(long time.Duration) {
				alice.mu.Lock()
				defer alice.mu.Unlock()
				alice.resendAt = alice.mono() + long
				if alice.limited = 0; encrypted {
					alice.resendAt, alice.limited = 0, alice.mono()+long
				}
			}
			row := func() *outRow {
				rows := alice.roomRows(room)
				if len(rows) != 1 {
					t.Fatalf("alice has %d rows", len(rows))
				}
				return rows[0]
			}
			held(time.Hour)
			w.question(bob, room, rooms.MissingMessages{Ref: rooms.Hash(msg.Ref), Leaf: msg.Leaf, Generations: []uint32{msg.Generation}})
			w.settle()
			alice.mu.Lock()
			if r := alice.rooms[room]; encrypted {
				alice.limited = 0
				if err := errors.Join(alice.resendMissed(w.ctx, r), alice.encryptQueued(w.ctx, r)); err != nil {
					t.Fatal(err)
				}
				alice.limited = alice.mono() + time.Hour
			}
			if row := row(); row.data.Missed == nil || (row.item.State == stateReady) != encrypted {
				t.Fatalf("before dave, it is %s, %+v", row.item.State, row.data)
			}
			alice.mu.Unlock()
			dave := w.device("dave", "DAVE1")
			w.must(func() error { return carol.Invite(w.ctx, room, dave.UserID()) })
			w.settle()
			w.join(dave, room)
			w.settle()
			held(0)
			w.settle()
			if n := w.encryptedOf(alice) - sent; n != 0 {
				t.Errorf("alice sent %d messages again", n)
			}
			alice.mu.Lock()
			if row := row(); row.item.State != stateSent || row.data.Missed != nil || row.data.EventID != evt || row.ref() != msg.Ref || row.data.Gen != msg.Generation || row.data.Plain.Again != nil {
				t.Errorf("afterwards it is %s, %+v", row.item.State, row.data)
			}
			alice.mu.Unlock()
			alice.restart()
			w.send(alice, room, "for dave")
			w.settle()
			if got := dave.received(); !slices.Equal(got, []string{"for dave"}) {
				t.Errorf("dave got %q", got)
			}
		})
	}
}

// TestWhatIsAskedForGoesOutOneByOne: a member who asks for much does not keep the one who is asked from talking, and what goes
// out again goes out over a restart, too.
func TestWhatIsAskedForGoesOutOneByOne(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.telling(Limits{})
	const some = 6
	for i := range some {
		w.send(alice, room, fmt.Sprint(i))
	}
	w.settle()
	list, err := alice.Messages(w.ctx, room, "", 1)
	if err != nil || len(list) != 1 {
		t.Fatal(err)
	}
	sent := w.encryptedOf(alice)
	all := rooms.MissingMessages{Ref: rooms.Hash(list[0].Ref), Leaf: list[0].Leaf}
	for g := range uint32(rooms.MaxMissingOf) {
		all.Generations = append(all.Generations, g)
	}
	start := w.now.get()
	w.question(bob, room, all)
	for w.encryptedOf(alice) == sent {
		bob.turn()
		alice.turn()
	}
	w.send(alice, room, "at once")
	if n, most := w.encryptedOf(alice)-sent, 2+int((w.now.get()-start)/resendPace); n > most {
		t.Errorf("after %s alice has sent %d", w.now.get()-start, n)
	}
	alice.restart()
	w.waitMissing()
	if n := w.encryptedOf(alice) - sent; n != some+1 {
		t.Errorf("alice sent %d, want %d", n, some+1)
	}
}

// TestWhatWasRedactedIsNotSentAgain: who asks for a message that was redacted gets nothing, also if it is redacted between the
// question and its turn.
func TestWhatWasRedactedIsNotSentAgain(t *testing.T) {
	for _, before := range []bool{true, false} {
		t.Run(fmt.Sprintf("before the question %t", before), func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, _ := w.telling(Limits{})
			evt := w.send(alice, room, "taken back")
			w.settle()
			msg, err := alice.Message(w.ctx, room, evt)
			if err != nil {
				t.Fatal(err)
			}
			sent := w.encryptedOf(alice)
			redact := func() {
				w.must(func() error { _, err := alice.Redact(w.ctx, room, evt, ""); return err })
				w.settle()
			}
			if before {
				redact()
			}
			alice.mu.Lock()
			alice.resendAt = alice.mono() + time.Minute
			alice.mu.Unlock()
			w.question(bob, room, rooms.MissingMessages{Ref: rooms.Hash(msg.Ref), Leaf: msg.Leaf, Generations: []uint32{msg.Generation}})
			if w.settle(); !before {
				redact()
			}
			w.waitMissing()
			if n := w.encryptedOf(alice) - sent; n != 0 {
				t.Errorf("alice sent %d messages again", n)
			}
		})
	}
}

// TestQuestionsLeadToFewQuestions: what a delivery receipt shows to be missing is asked for seldom, or questions that are
// lost would lead to questions, without an end.
func TestQuestionsLeadToFewQuestions(t *testing.T) {
	w := newWorld(t)
	room, _, bob, carol := w.telling(Limits{})
	bob.mu.Lock()
	defer bob.mu.Unlock()
	r := bob.rooms[room]
	for i, evtType := range []string{rooms.TypeEncrypted, rooms.TypeReceipt} {
		bob.noteMissing(r, r.head(), evtType, &rooms.Credential{User: carol.UserID(), Device: "CAROL1"},
			&mls.ApplicationMessage{Sender: 2, Generation: uint32(2 + 2*i), Skipped: 1})
	}
	message, receipt := &r.rec.Missing[0], &r.rec.Missing[1]
	now := bob.mono()
	for _, m := range []*missing{message, receipt} {
		if at := r.askTime(m); at < now+missingAsk || at > now+missingAsk+missingTurns*rooms.CommitterSpan {
			t.Errorf("the first question is in %s", at-now)
		}
	}
	r.askedAt = map[id.UserID]time.Duration{carol.UserID(): now + time.Minute, "@other:" + testServer: now + time.Hour}
	if m, r := r.askTime(message)-now, r.askTime(receipt)-now; m != time.Minute+askPause || r != time.Minute+askPauseSlow {
		t.Errorf("the next questions are in %s and %s", m, r)
	}
}

// TestAQuestionIsAskedAnewInAnotherEpoch: one that could not go out before the group changed is made again.
func TestAQuestionIsAskedAnewInAnotherEpoch(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, carol := w.telling(Limits{})
	w.sendHidden(alice, room, "kept")
	w.send(alice, room, "after")
	w.all = []*testDevice{carol, bob}
	w.settle()
	bob.mu.Lock()
	r := bob.rooms[room]
	r.rec.Missing[0].ask, r.rec.Acks, bob.receiptsAt = 1, nil, 0
	r.looked = max(r.looked, r.rec.Missing[0].noted)
	if err := bob.askMissing(w.ctx, r); err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(bob.rows, func(row *outRow) bool { return len(row.data.Missing) > 0 })
	if at < 0 || !r.rec.Missing[0].Asked {
		t.Fatalf("bob has no question in the outbox: %+v", r.rec.Missing[0])
	}
	bob.rows[at].item.Ref = refBytes(federation.Ref{1})
	if err := bob.sendReceipt(w.ctx, r); err != nil {
		t.Fatal(err)
	}
	if len(bob.roomRows(room)) != 0 || r.rec.Missing[0].Asked || r.askTime(&r.rec.Missing[0]) > bob.mono() {
		t.Errorf("it is not asked anew: %+v", r.rec.Missing[0])
	}
	bob.mu.Unlock()
	w.all = []*testDevice{alice, bob, carol}
	w.waitMissing()
	if got := bob.received(); !slices.Contains(got, "kept") {
		t.Errorf("bob got %q", got)
	}
}

// only names one message of a device as missing.
func only(ref federation.Ref, leaf, generation uint32) rooms.MissingMessages {
	return rooms.MissingMessages{Ref: rooms.Hash(ref), Leaf: leaf, Generations: []uint32{generation}}
}

// TestABotsMessageThatIsNotOutIsLeftToIt: what a bot's own client sends, and may still send or give up, is not sent for it.
func TestABotsMessageThatIsNotOutIsLeftToIt(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.telling(Limits{})
	w.must(func() error {
		_, err := alice.EncryptEvent(w.ctx, room, "m.room.message", map[string]string{"msgtype": "m.text", "body": "not out"})
		return err
	})
	rows := alice.keptMessages(room)
	if len(rows) != 1 {
		t.Fatalf("alice keeps %d messages", len(rows))
	}
	sent := w.encryptedOf(alice)
	w.question(bob, room, only(rows[0].ref(), uint32(alice.rooms[room].head().group.OwnLeafIndex()), rows[0].data.Gen))
	w.waitMissing()
	if n := w.encryptedOf(alice) - sent; n != 0 {
		t.Errorf("alice sent %d messages again", n)
	}
}

// TestWhatWasReplacedIsNotSentAgain: an edit, or an answer to a poll, that is sent again would be newer than a later one. The
// latest one is sent again.
func TestWhatWasReplacedIsNotSentAgain(t *testing.T) {
	for _, relation := range []string{RelationEdit, relationReference} {
		for _, forgotten := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, the outbox forgot the later one %t", relation, forgotten), func(t *testing.T) {
				w := newWorld(t)
				room, alice, bob, _ := w.telling(Limits{})
				send := func(target id.EventID, text string) *Message {
					var evt id.EventID
					w.must(func() (err error) {
						content := map[string]any{"body": text, "m.new_content": map[string]string{"body": text}, "m.relates_to": map[string]any{"rel_type": relation, "event_id": target}}
						evt, err = alice.Send(w.ctx, room, "m.room.message", content)
						return err
					})
					msg, err := alice.Message(w.ctx, room, evt)
					if err != nil {
						t.Fatal(err)
					}
					return msg
				}
				of, other := w.send(alice, room, "first"), w.send(alice, room, "other")
				old, latest, unlike := send(of, "old"), send(of, "new"), send(other, "of another")
				w.settle()
				if alice.mu.Lock(); forgotten {
					b := &batch{}
					for _, row := range alice.roomRows(room) {
						if row.data.EventID == latest.EventID {
							alice.deleteRow(b, row)
						}
					}
					if err := alice.commitBatch(w.ctx, alice.rooms[room], b); err != nil {
						t.Fatal(err)
					}
				}
				alice.mu.Unlock()
				sent := w.encryptedOf(alice)
				w.question(bob, room, only(old.Ref, old.Leaf, old.Generation))
				w.waitMissing()
				if n := w.encryptedOf(alice) - sent; n != 0 {
					t.Errorf("alice sent %d messages again that another one replaces", n)
				}
				w.question(bob, room, only(unlike.Ref, unlike.Leaf, unlike.Generation))
				w.waitMissing()
				if n := w.encryptedOf(alice) - sent; n != 1 {
					t.Errorf("alice sent %d messages again, want the last one of another target", n)
				}
			})
		}
	}
}

// TestAGapIsAskedForBeforeItIsTold: also one that the history could not be read for in time, or that is there since before a
// restart.
func TestAGapIsAskedForBeforeItIsTold(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %t", restart), func(t *testing.T) {
			w := newWorld(t)
			room, alice, bob, carol := w.telling(Limits{})
			w.send(alice, room, "before")
			w.settle()
			w.sendHidden(alice, room, "kept")
			w.all = []*testDevice{alice, bob}
			bob.hs.noHistory = room
			w.send(alice, room, "after")
			w.settle()
			if restart {
				w.all = []*testDevice{alice}
			}
			for range 15 {
				w.now.add(missingWait / 12)
				w.settle()
			}
			if restart {
				bob.restart()
			}
			bob.hs.noHistory = ""
			w.all = []*testDevice{alice, bob, carol}
			w.waitMissing()
			if got := bob.received(); !slices.Contains(got, "kept") {
				t.Errorf("bob got %q", got)
			}
			if told := bob.missed(); told != nil {
				t.Errorf("bob was told %q", told)
			}
		})
	}
}

// TestAGapIsToldThoughItWasNotAskedFor: what cannot be asked for in some minutes is told, and what was asked for some time
// after the question, whatever becomes of it.
func TestAGapIsToldThoughItWasNotAskedFor(t *testing.T) {
	for _, slow := range []bool{false, true} {
		w := newWorld(t)
		room, _, bob, carol := w.telling(Limits{})
		bob.mu.Lock()
		r := bob.rooms[room]
		evtType := rooms.TypeEncrypted
		if slow {
			evtType = rooms.TypeReceipt
		}
		leaf := rooms.LeavesOf(r.head().group, carol.UserID())[0].Index
		bob.noteMissing(r, r.head(), evtType, &rooms.Credential{User: carol.UserID(), Device: "CAROL1"}, &mls.ApplicationMessage{Sender: leaf, Generation: 2, Skipped: 1})
		m := &r.rec.Missing[0]
		if got, want := m.longer() >= askPauseSlow, slow; got != want {
			t.Errorf("slow %t: it is kept for %s", slow, m.longer())
		}
		again := *m
		bob.tellLater(m)
		if m.due < bob.mono()+missingWait || !m.Later {
			t.Errorf("slow %t: told %s after the question", slow, m.due-bob.mono())
		}
		w.now.add(time.Hour)
		due := m.due
		if bob.tellLater(m); m.due != due {
			t.Errorf("slow %t: put off more than once", slow)
		}
		r.rec.Missing[0], r.looked = again, bob.mono()
		delete(r.needs, lookNow)
		delete(r.needs, lookLater)
		if told := bob.tellMissing(r); !told || len(r.rec.Missing) != 0 {
			t.Errorf("slow %t: an hour later it is not told", slow)
		}
		bob.mu.Unlock()
	}
}

// TestASecondSendingThatIsRefused: the message was sent, and stays so. Who sends it once more by its key learns its event
// at once, also while it is to be sent again.
func TestASecondSendingThatIsRefused(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.telling(Limits{})
	once := func(ctx context.Context) (evt id.EventID, err error) {
		return alice.SendOnce(ctx, room, "m.room.message", map[string]string{"msgtype": "m.text", "body": "once"}, "key")
	}
	var evt id.EventID
	w.must(func() (err error) { evt, err = once(w.ctx); return err })
	w.settle()
	msg, err := alice.Message(w.ctx, room, evt)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(w.ctx)
	cancel()
	tries := 0
	alice.hs.before = func(kind string) {
		if kind != "send/"+rooms.TypeEncrypted {
			return
		}
		tries++
		if again, err := once(ended); err != nil || again != evt {
			t.Errorf("while it is sent again: %s, %v, want %s", again, err, evt)
		}
		alice.hs.fail = errRefused
	}
	w.question(bob, room, only(msg.Ref, msg.Leaf, msg.Generation))
	w.waitMissing()
	if tries != 1 {
		t.Errorf("sent again %d times", tries)
	}
	if alice.warned(ruleSendRefused) {
		t.Error("alice was told that it is not sent")
	}
	rows := alice.keptMessages(room)
	if len(rows) != 1 || rows[0].item.State != stateSent || rows[0].data.EventID != evt || rows[0].data.Missed != nil {
		t.Errorf("alice keeps %d messages: %+v", len(rows), rows)
	}
}

// TestNothingIsSentAgainForWhoIsOut: a device that is in the group no more gets no message by asking.
func TestNothingIsSentAgainForWhoIsOut(t *testing.T) {
	w := newWorld(t)
	room, alice, bob, _ := w.telling(Limits{})
	evt := w.send(alice, room, "sent")
	w.settle()
	msg, err := alice.Message(w.ctx, room, evt)
	if err != nil {
		t.Fatal(err)
	}
	alice.mu.Lock()
	defer alice.mu.Unlock()
	for device, want := range map[id.DeviceID]bool{"GONE": false, bob.DeviceID(): true} {
		b := &batch{}
		alice.handleQuestion(alice.rooms[room], bob.UserID(), device, []rooms.MissingMessages{only(msg.Ref, msg.Leaf, msg.Generation)}, b)
		if got := len(b.ops) > 0; got != want {
			t.Errorf("asked by %s, alice sends again: %t", device, got)
		}
	}
}
