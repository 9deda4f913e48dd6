package appservice

import (
	"encoding/json"
	"errors"
	"fmt"
)

// maxTransactionEvents bounds the events of one transaction. Synapse sends at
// most 100, Dendrite 50 stream messages with some state each.
const maxTransactionEvents = 10_000

var errTooManyEvents = fmt.Errorf("transaction has more than %d events", maxTransactionEvents)

// transactionEvents takes a transaction's body apart. Whatever one event holds,
// the others come out: a standard decoder refuses a whole body for one event
// nested too deeply, so where it refuses, brackets are counted instead.
func transactionEvents(body []byte) ([]json.RawMessage, error) {
	var txn struct {
		Events []json.RawMessage `json:"events"`
	}
	err := json.Unmarshal(body, &txn)
	if err != nil {
		if txn.Events, err = scanEvents(body); err != nil {
			return nil, err
		}
	}
	if len(txn.Events) > maxTransactionEvents {
		return txn.Events[:maxTransactionEvents], errTooManyEvents
	}
	return txn.Events, nil
}

var errNoTransaction = errors.New("body is no JSON object with a list of events")

// scanEvents finds the list under the key "events" of the outermost object and
// cuts it at its commas, without looking into its elements.
func scanEvents(body []byte) ([]json.RawMessage, error) {
	var (
		out      []json.RawMessage
		depth    int
		inList   bool // at depth 2, in the list of events
		key      string
		expected bool // the next string at depth 1 is a key
		start    = -1 // of the element being read
	)
	for i := 0; i < len(body); i++ {
		c := body[i]
		if depth == 0 && c != '{' && !isSpace(c) {
			return nil, errNoTransaction
		}
		switch c {
		case '"':
			end := endOfString(body, i)
			if end < 0 {
				return nil, errNoTransaction
			}
			if depth == 1 && expected {
				key, expected = string(body[i+1:end]), false
			}
			i = end
		case '{', '[':
			depth++
			switch {
			case depth == 1:
				expected = true
			case depth == 2 && c == '[' && key == "events":
				inList, start = true, i+1
			}
		case '}', ']':
			if depth == 2 && inList && c == ']' {
				out = appendElement(out, body[start:i])
				inList = false
			}
			depth--
			if depth == 0 {
				return out, nil
			}
		case ',':
			switch {
			case depth == 1:
				expected, key = true, ""
			case depth == 2 && inList:
				out = appendElement(out, body[start:i])
				if len(out) > maxTransactionEvents {
					return out, nil
				}
				start = i + 1
			}
		}
	}
	return nil, errNoTransaction
}

// endOfString returns the index of the quote that ends the string begun at i.
func endOfString(body []byte, i int) int {
	for i++; i < len(body); i++ {
		switch body[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

func appendElement(out []json.RawMessage, element []byte) []json.RawMessage {
	for _, c := range element {
		if !isSpace(c) {
			return append(out, json.RawMessage(element))
		}
	}
	return out
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
