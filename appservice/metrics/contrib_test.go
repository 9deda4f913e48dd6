package metrics

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

const (
	rulesFile     = "../../contrib/prometheus/matrix-mls.rules.yml"
	dashboardFile = "../../contrib/grafana/matrix-mls.json"
)

var nameInQuery = regexp.MustCompile(`\bmls_[a-z_]+`)

// known tells whether a query may name a series.
func known(name string) bool {
	for _, d := range Table {
		if name == d.Name {
			return d.Kind != Histogram
		}
		if d.Kind == Histogram && (name == d.Name+"_bucket" || name == d.Name+"_sum" || name == d.Name+"_count") {
			return true
		}
	}
	return false
}

// labelIn finds the labels that a query asks a metric for.
var labelIn = regexp.MustCompile(`(mls_[a-z_]+)\{([^}]*)\}`)

func checkQuery(t *testing.T, where, query string) {
	t.Helper()
	names := nameInQuery.FindAllString(query, -1)
	if len(names) == 0 {
		t.Errorf("%s: %q names no metric of the module", where, query)
	}
	for _, name := range names {
		if !known(name) {
			t.Errorf("%s: %s is no metric of the module", where, name)
		}
	}
	for _, m := range labelIn.FindAllStringSubmatch(query, -1) {
		for _, matcher := range strings.Split(m[2], ",") {
			label := strings.TrimSpace(strings.SplitN(strings.SplitN(matcher, "=", 2)[0], "!", 2)[0])
			ok := label == "job"
			for _, d := range Table {
				if strings.HasPrefix(m[1], d.Name) {
					for _, l := range d.Labels {
						ok = ok || l == label
					}
				}
			}
			if !ok {
				t.Errorf("%s: %s has no label %q", where, m[1], label)
			}
		}
	}
}

func TestAlertRulesNameWhatExists(t *testing.T) {
	raw, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr string
				For         string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	d := yaml.NewDecoder(strings.NewReader(string(raw)))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	alerts := make(map[string]bool)
	anyTakeover := false
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			checkQuery(t, r.Alert, r.Expr)
			anyTakeover = anyTakeover || r.Labels["severity"] == "info" && r.Expr == "increase("+Takeovers+"[1h]) > 0"
			if alerts[r.Alert] {
				t.Errorf("%s stands twice", r.Alert)
			}
			alerts[r.Alert] = true
			switch r.Labels["severity"] {
			case "critical", "warning", "info":
			default:
				t.Errorf("%s has severity %q", r.Alert, r.Labels["severity"])
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s does not say what happened and what to do", r.Alert)
			}
		}
	}
	for _, want := range []string{RoomsTroubled, KeysRetired, Evidence, Forks, Takeovers, Eras, MembershipsSetBack, Doubts, FinalitySeconds, Ready, InboxAge, OutboxAge, Panics} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("no alert looks at %s", want)
		}
	}
	if !anyTakeover {
		t.Error("no alert tells of a single takeover, by this module or by another: one that replaces a dead sequencer happens once")
	}
	// Frozen rooms and the like are an alert each.
	for _, trouble := range []string{"stalled", "frozen", "provisional", "unvouched", "held"} {
		if !strings.Contains(string(raw), RoomsTroubled+`{trouble="`+trouble+`"}`) {
			t.Errorf("no alert looks at rooms that are %s", trouble)
		}
	}
	// A counter that an alert wants to rise has to stand at 0 before it counts.
	families, err := New("test").Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	begun := make(map[string]int)
	for _, f := range families {
		begun[f.GetName()] = len(f.GetMetric())
	}
	for _, m := range increase.FindAllStringSubmatch(string(raw), -1) {
		if begun[m[1]] == 0 {
			t.Errorf("%s is not there before it first counts: an alert misses the first time", m[1])
		}
	}
}

var increase = regexp.MustCompile(`increase\((mls_[a-z_]+)`)

func TestDashboardShowsWhatExists(t *testing.T) {
	raw, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Title  string
		Panels []struct {
			ID      int
			Type    string
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(raw, &board); err != nil {
		t.Fatal(err)
	}
	shown := make(map[string]bool)
	ids := make(map[int]bool)
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			checkQuery(t, p.Title, target.Expr)
			for _, name := range nameInQuery.FindAllString(target.Expr, -1) {
				shown[strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")] = true
			}
		}
	}
	for _, d := range Table {
		if !shown[d.Name] {
			t.Errorf("no panel shows %s", d.Name)
		}
	}
}
