package cli

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/matrix-mls/matrix-mls/appservice/doctor"
	"github.com/matrix-mls/matrix-mls/appservice/metrics"
)

var update = flag.Bool("update", false, "write the lists into the manual")

const manual = "../../docs/admin.md"

// TestManualListsWhatThereIs keeps the lists of the manual equal to the code.
func TestManualListsWhatThereIs(t *testing.T) {
	var probes, codes strings.Builder
	probes.WriteString("| probe | checks |\n|---|---|\n")
	for _, p := range doctor.Probes() {
		fmt.Fprintf(&probes, "| `%s` | %s |\n", p[0], p[1])
	}
	codes.WriteString("| code | meaning |\n|---|---|\n")
	for _, c := range Codes {
		fmt.Fprintf(&codes, "| %d | %s |\n", c.Code, c.Text)
	}
	data, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for name, want := range map[string]string{"probes": probes.String(), "exit-codes": codes.String(), "metrics": metrics.Markdown()} {
		begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
		i, j := strings.Index(text, begin), strings.Index(text, end)
		if i < 0 || j < i {
			t.Fatalf("docs/admin.md lacks the marks of the list of %s", name)
		}
		i += len(begin)
		if text[i:j] == want {
			continue
		}
		if !*update {
			t.Errorf("the list of %s in docs/admin.md is out of date: run this test with -update", name)
			continue
		}
		text = text[:i] + want + text[j:]
	}
	if *update && text != string(data) {
		if err := os.WriteFile(manual, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
