package simrecord

import "testing"

// TestAdd: a row comes below the last one of its table; what is missing is made;
// what else the page says stays.
func TestAdd(t *testing.T) {
	const head = "| a | b |"
	text := "# Page\n\n## One\n\nText.\n\n## Two\n\nMore.\n"
	for _, step := range []struct{ section, row, want string }{
		{"One", "| 1 | 2 |", "# Page\n\n## One\n\nText.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n## Two\n\nMore.\n"},
		{"One", "| 3 | 4 |", "# Page\n\n## One\n\nText.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n## Two\n\nMore.\n"},
		{"Three", "| 5 | 6 |", "# Page\n\n## One\n\nText.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n## Two\n\nMore.\n\n## Three\n\nHow.\n\n| a | b |\n|---|---|\n| 5 | 6 |\n"},
	} {
		if text = add(text, step.section, "How.", head, step.row); text != step.want {
			t.Errorf("after %s in %s:\ngot  %q\nwant %q", step.row, step.section, text, step.want)
		}
	}
}
