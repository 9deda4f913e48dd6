package client

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestUnsignedNeverSpoilsAnEvent: what a server wrote beside an event is used, or left.
func TestUnsignedNeverSpoilsAnEvent(t *testing.T) {
	for raw, want := range map[string]string{
		`{"transaction_id":"mls1.0"}`:    "mls1.0",
		`{"age":5,"transaction_id":"a"}`: "a",
		`{"transaction_id":7}`:           "",
		`{"transaction_id":{"a":[]}}`:    "",
		`[]`:                             "",
		`"text"`:                         "",
		`null`:                           "",
		`{"transaction_id":"` + strings.Repeat("x", maxTxnID+1) + `"}`: "",
	} {
		evt := new(Event)
		if err := json.Unmarshal([]byte(`{"event_id":"$e","type":"t","unsigned":`+raw+`}`), evt); err != nil || evt.ID != "$e" || evt.Unsigned.TransactionID != want {
			t.Errorf("%s: %+v, want the transaction id %q (%v)", raw, evt, want, err)
		}
	}
	for _, evt := range []*Event{{ID: "$e"}, {ID: "$e", Unsigned: Unsigned{TransactionID: "mls1.0"}}} {
		raw, err := json.Marshal(evt)
		if err != nil || strings.Contains(string(raw), "unsigned") != (evt.Unsigned != Unsigned{}) {
			t.Errorf("it is stored as %s (%v)", raw, err)
		}
		again := new(Event)
		if err := json.Unmarshal(raw, again); err != nil || again.Unsigned != evt.Unsigned {
			t.Errorf("%s is read as %+v (%v)", raw, again, err)
		}
	}
}
