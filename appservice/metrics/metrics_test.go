package metrics

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestNamesAndLabels(t *testing.T) {
	forbidden := []string{"room", "user", "event", "device", "sender", "server"}
	for _, d := range Table {
		if !strings.HasPrefix(d.Name, "mls_") {
			t.Errorf("%s lacks the prefix mls_", d.Name)
		}
		if d.Kind == Counter && !strings.HasSuffix(d.Name, "_total") {
			t.Errorf("counter %s does not end in _total", d.Name)
		}
		if d.Kind == Histogram && !strings.HasSuffix(d.Name, "_seconds") {
			t.Errorf("histogram %s is not in seconds", d.Name)
		}
		for _, label := range d.Labels {
			for _, word := range forbidden {
				if strings.Contains(label, word) {
					t.Errorf("%s has the label %s, which grows with use", d.Name, label)
				}
			}
		}
	}
}

func TestRuleLabelIsBounded(t *testing.T) {
	m := New("test")
	m.Rejected("codec/varint-prefix-11")
	for _, rule := range []string{"", "!room:server", strings.Repeat("x", 81), "a b"} {
		m.Rejected(rule)
	}
	for i := range 2 * maxRules {
		m.Rejected(fmt.Sprintf("rule-%d", i))
	}
	if n := testutil.CollectAndCount(m.counters[RejectedName]); n > maxRules+1 {
		t.Errorf("%d label values, want at most %d", n, maxRules+1)
	}
	if got := testutil.ToFloat64(m.counters[RejectedName].WithLabelValues("codec/varint-prefix-11")); got != 1 {
		t.Errorf("a good rule counted %v times", got)
	}
	if got := testutil.ToFloat64(m.counters[RejectedName].WithLabelValues("other")); got < 4 {
		t.Errorf("bad rules counted %v times as other", got)
	}
}

func TestNilCountsNothing(t *testing.T) {
	var m *Metrics
	m.Inc(Panics)
	m.Set(Ready, 1)
	m.Observe(TransactionSeconds, 1)
	m.Rejected("x")
}
