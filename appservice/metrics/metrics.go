// Package metrics counts what the module does. No label holds a room, a user
// or anything else that grows with use.
package metrics

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/matrix-mls/matrix-mls/federation"
)

// Kind is what a metric measures.
type Kind string

// The kinds of metrics.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// Definition describes one metric; docs/admin.md lists them from this table.
type Definition struct {
	Name    string
	Kind    Kind
	Labels  []string
	Help    string
	Buckets []float64 // of a histogram
	// From are values of the labels of a counter that stand at 0 from the start: what
	// rises from nothing to 1 does not rise, for an alert.
	From [][]string
}

var seconds = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}

// Names of the metrics.
const (
	Transactions       = "mls_transactions_total"
	TransactionSeconds = "mls_transaction_seconds"
	Events             = "mls_events_total"
	RejectedName       = "mls_rejected_total"
	Panics             = "mls_panics_total"
	InboxRows          = "mls_inbox_events"
	InboxAge           = "mls_inbox_oldest_seconds"
	OutboxRows         = "mls_outbox_events"
	OutboxAge          = "mls_outbox_oldest_seconds"
	SentName           = "mls_sent_total"
	RateLimited        = "mls_rate_limited_total"
	RequestSeconds     = "mls_homeserver_request_seconds"
	Rooms              = "mls_rooms"
	Commits            = "mls_commits_total"
	Receipts           = "mls_receipts_total"
	Heads              = "mls_heads_total"
	Gaps               = "mls_gaps_total"
	Removals           = "mls_removal_proposals_total"
	Snapshots          = "mls_snapshots_total"
	KeysRetired        = "mls_receipt_keys_retired_total"
	Forks              = "mls_forks_total"
	Takeovers          = "mls_takeovers_total"
	Provisional        = "mls_provisional_accepts_total"
	Evidence           = "mls_evidence_total"
	Doubts             = "mls_doubts_total"
	ListChanges        = "mls_list_changes_total"
	Eras               = "mls_eras_total"
	MembershipsSetBack = "mls_memberships_set_back_total"
	FinalitySeconds    = "mls_finality_seconds"
	RoomsTroubled      = "mls_rooms_troubled"
	EngineSeconds      = "mls_engine_step_seconds"
	EngineErrors       = "mls_engine_errors_total"
	Ready              = "mls_ready"
	BuildInfo          = "mls_build_info"
)

// kindsOfEvidence are those of package federation.
var kindsOfEvidence = [][]string{
	{string(federation.EvidenceAccepts)}, {string(federation.EvidenceVotes)}, {string(federation.EvidencePromises)},
	{string(federation.EvidenceHidden)}, {string(federation.EvidenceOwner)},
}

// Table holds every metric of the module.
var Table = []Definition{
	{Name: Transactions, Kind: Counter, Labels: []string{"result"}, Help: "Transactions from the homeserver: ok, refused (bad token or request), skipped (unreadable, answered and counted) or failed (storage)."},
	{Name: TransactionSeconds, Kind: Histogram, Help: "Time to take in a transaction, to the committed database row.", Buckets: seconds},
	{Name: Events, Kind: Counter, Labels: []string{"result"}, Help: "Events looked at: stored, repeated, filtered (none of ours) or malformed."},
	{Name: RejectedName, Kind: Counter, Labels: []string{"rule"}, Help: "Inputs refused, by the rule they broke."},
	{Name: Panics, Kind: Counter, Help: "Broken invariants of the module itself. Any value above 0 is a bug: please report it."},
	{Name: InboxRows, Kind: Gauge, Labels: []string{"status"}, Help: "Events taken in and not dealt with: new, or waiting for something missing."},
	{Name: InboxAge, Kind: Gauge, Help: "Age of the oldest new event in seconds; 0 if there is none."},
	{Name: OutboxRows, Kind: Gauge, Labels: []string{"status"}, Help: "Events to send (waiting) and those the homeserver refused for good (failed)."},
	{Name: OutboxAge, Kind: Gauge, Help: "Age of the oldest event to send in seconds; 0 if there is none."},
	{Name: SentName, Kind: Counter, Labels: []string{"result"}, Help: "Attempts to send an event: sent, retry (failed for now) or refused (for good)."},
	{Name: RateLimited, Kind: Counter, Help: "Requests that the homeserver rate limited. It should stay 0: the registration says rate_limited: false."},
	{Name: RequestSeconds, Kind: Histogram, Labels: []string{"op", "result"}, Help: "Requests to the homeserver, by what was asked and what came of it.", Buckets: seconds},
	{Name: Rooms, Kind: Gauge, Labels: []string{"status"}, Help: "Rooms by the module's part in them: invited, joined, serving or left."},
	{Name: Commits, Kind: Counter, Labels: []string{"result"}, Help: "Commits: accepted, final, or lost (a sibling won)."},
	{Name: Receipts, Kind: Counter, Labels: []string{"kind"}, Help: "Receipts signed by this module: accept, vote, promise or ready."},
	{Name: Heads, Kind: Counter, Help: "Heads published."},
	{Name: Gaps, Kind: Counter, Labels: []string{"result"}, Help: "Gaps in what the homeserver pushed: found, filled, asked (in the room) or reposted (for others that asked)."},
	{Name: Removals, Kind: Counter, Help: "Remove proposals posted for leaves without an entitled member."},
	{Name: Snapshots, Kind: Counter, Help: "Tree snapshots uploaded."},
	{Name: Forks, Kind: Counter, Help: "Times that a room's head left its branch: after a split, or since a commit was displaced."},
	{Name: Takeovers, Kind: Counter, Labels: []string{"by"}, From: [][]string{{"own"}, {"other"}}, Help: "Ballots asked for, since a sequencer was silent or a commit in doubt: by this module (own) or by another (other)."},
	{Name: Provisional, Kind: Counter, Help: "Accepts without a majority, by this module. They are usable, and lose to any other after the heal."},
	{Name: Evidence, Kind: Counter, Labels: []string{"kind"}, From: kindsOfEvidence, Help: "Pairs of receipts that prove a sequencer a liar, by what they prove. The log names it."},
	{Name: Doubts, Kind: Counter, Help: "Commits that a member could not apply and nobody had vouched for."},
	{Name: ListChanges, Kind: Counter, Help: "Changes of a room's list of sequencers that came onto the head."},
	{Name: Eras, Kind: Counter, Help: "New eras that came onto the head: an admin or heirs replaced a lost majority."},
	{Name: MembershipsSetBack, Kind: Counter, Help: "Memberships that a room's state does not show any more although nothing took their place: state resolution forgot them. The log names room and user."},
	{Name: FinalitySeconds, Kind: Histogram, Help: "Time from a commit's arrival to its finality, as this module sees both.", Buckets: []float64{1, 2.5, 5, 7.5, 10, 15, 30, 60, 120, 300, 900, 3600}},
	{Name: RoomsTroubled, Kind: Gauge, Labels: []string{"trouble"}, Help: "Rooms in trouble for a minute or longer: stalled (something waits and nothing becomes final), frozen (the head cannot be used), provisional (no majority answers), unvouched (whoever could vouch for a commit has left) or held (the module may not sign before it is compared)."},
	{Name: KeysRetired, Kind: Counter, Help: "Rooms in which the module's receipt key was retired, since the database turned out to be older than what it had signed."},
	{Name: EngineSeconds, Kind: Histogram, Help: "Time of one round over the inbox.", Buckets: seconds},
	{Name: EngineErrors, Kind: Counter, Help: "Rounds over the inbox, or work on one room, that failed and were repeated."},
	{Name: Ready, Kind: Gauge, Help: "1 once the database is up to date, the homeserver's link works and the inbox was read, while the homeserver answers."},
	{Name: BuildInfo, Kind: Gauge, Labels: []string{"version"}, Help: "Always 1; the version is the label."},
}

// Metrics is a set of the module's metrics. The zero value is not usable; the
// nil pointer is, and counts nothing.
type Metrics struct {
	registry   *prometheus.Registry
	counters   map[string]*prometheus.CounterVec
	gauges     map[string]*prometheus.GaugeVec
	histograms map[string]*prometheus.HistogramVec

	mu    sync.Mutex
	rules map[string]struct{}
}

// New makes a set of its own, with the process's and the runtime's metrics.
func New(version string) *Metrics {
	m := &Metrics{
		registry:   prometheus.NewRegistry(),
		counters:   make(map[string]*prometheus.CounterVec),
		gauges:     make(map[string]*prometheus.GaugeVec),
		histograms: make(map[string]*prometheus.HistogramVec),
		rules:      make(map[string]struct{}),
	}
	for _, d := range Table {
		switch d.Kind {
		case Counter:
			m.counters[d.Name] = prometheus.NewCounterVec(prometheus.CounterOpts{Name: d.Name, Help: d.Help}, d.Labels)
			m.registry.MustRegister(m.counters[d.Name])
			if len(d.Labels) == 0 {
				m.counters[d.Name].WithLabelValues()
			}
			for _, values := range d.From {
				m.counters[d.Name].WithLabelValues(values...)
			}
		case Gauge:
			m.gauges[d.Name] = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: d.Name, Help: d.Help}, d.Labels)
			m.registry.MustRegister(m.gauges[d.Name])
			if len(d.Labels) == 0 {
				m.gauges[d.Name].WithLabelValues()
			}
		case Histogram:
			m.histograms[d.Name] = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: d.Name, Help: d.Help, Buckets: d.Buckets}, d.Labels)
			m.registry.MustRegister(m.histograms[d.Name])
			if len(d.Labels) == 0 {
				m.histograms[d.Name].WithLabelValues()
			}
		}
	}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.Set(BuildInfo, 1, version)
	return m
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Registry is where the metrics are registered, for tests.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// Inc adds one to a counter of the table.
func (m *Metrics) Inc(name string, labels ...string) { m.Add(name, 1, labels...) }

// Add adds to a counter of the table.
func (m *Metrics) Add(name string, n float64, labels ...string) {
	if m == nil {
		return
	}
	c, ok := m.counters[name]
	if !ok {
		panic(fmt.Sprintf("metrics: internal: %s is no counter", name))
	}
	c.WithLabelValues(labels...).Add(n)
}

// Set sets a gauge of the table.
func (m *Metrics) Set(name string, value float64, labels ...string) {
	if m == nil {
		return
	}
	g, ok := m.gauges[name]
	if !ok {
		panic(fmt.Sprintf("metrics: internal: %s is no gauge", name))
	}
	g.WithLabelValues(labels...).Set(value)
}

// Observe adds a value to a histogram of the table.
func (m *Metrics) Observe(name string, value float64, labels ...string) {
	if m == nil {
		return
	}
	h, ok := m.histograms[name]
	if !ok {
		panic(fmt.Sprintf("metrics: internal: %s is no histogram", name))
	}
	h.WithLabelValues(labels...).Observe(value)
}

// maxRules bounds the values of the rule label, whatever the code hands in.
const maxRules = 512

// Rejected counts an input that broke a rule.
func (m *Metrics) Rejected(rule string) {
	if m == nil {
		return
	}
	m.Inc(RejectedName, m.rule(rule))
}

func (m *Metrics) rule(rule string) string {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '/' || r == '_' || r == '.')
	}
	if rule == "" || len(rule) > 80 || strings.ContainsFunc(rule, bad) {
		return "other"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.rules[rule]; !known {
		if len(m.rules) >= maxRules {
			return "other"
		}
		m.rules[rule] = struct{}{}
	}
	return rule
}

// Markdown is the list of metrics for the manual.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| metric | kind | labels | meaning |\n|---|---|---|---|\n")
	table := slices.Clone(Table)
	slices.SortFunc(table, func(a, b Definition) int { return strings.Compare(a.Name, b.Name) })
	for _, d := range table {
		labels := strings.Join(d.Labels, ", ")
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Name, d.Kind, labels, d.Help)
	}
	return b.String()
}
