package picture

import (
	"strings"
)

// lineWidth is how many columns the text takes.
const lineWidth = 80

// glyphs are the marks of the text; the words beside them say the same.
var glyphs = map[Mark]string{
	MarkFinal: "#", MarkAccepted: "o", MarkProvisional: "%", MarkDoubt: "?", MarkDisplaced: "x", MarkWaiting: ".", MarkFold: ":",
}

// legend explains the marks that a picture uses, in this order.
var legend = []struct {
	mark Mark
	text string
}{
	{MarkFinal, "final"},
	{MarkAccepted, "accepted"},
	{MarkProvisional, "provisional (no majority)"},
	{MarkDoubt, "in doubt"},
	{MarkDisplaced, "displaced by another"},
	{MarkWaiting, "not accepted (yet)"},
	{MarkFold, "several in one"},
}

// uses reports whether a mark is in the picture.
func (p *Picture) uses(m Mark) bool {
	for i := range p.Rows {
		if p.Rows[i].Mark == m {
			return true
		}
	}
	return false
}

// Text returns the picture for a terminal: lines of at most 80 columns, without
// colour or any other escape sequence.
func (p *Picture) Text() string {
	var b strings.Builder
	line := func(s string) { b.WriteString(strings.TrimRight(s, " ") + "\n") }
	para := func(s string) {
		for i, l := range wrap(s, lineWidth-2) {
			if i > 0 {
				l = "  " + l
			}
			line(l)
		}
	}
	if p.Title != "" {
		line(p.Title)
	}
	if p.Room != "" {
		line(p.Room)
	}
	if p.Source != "" {
		line(p.Source)
	}
	line("")
	for _, s := range p.Summary {
		para(s)
	}
	line("")
	p.graph(line)
	line("")
	if len(p.Devices) > 0 {
		line("Applied, as far as is known here:")
		for _, s := range p.Devices {
			for i, l := range wrap(s, lineWidth-6) {
				if i > 0 {
					l = "  " + l
				}
				line("  " + l)
			}
		}
		line("")
	}
	var key []string
	for _, l := range legend {
		if p.uses(l.mark) {
			key = append(key, glyphs[l.mark]+" "+l.text)
		}
	}
	para("Marks: " + strings.Join(key, ", "))
	return b.String()
}

// graph draws the rows: the chain in the first column, branches in the third.
func (p *Picture) graph(line func(string)) {
	digits := 1
	for i := range p.Rows {
		digits = max(digits, len(number(p.Rows[i].Epoch)))
	}
	last := -1 // the lowest row of the chain
	for i := range p.Rows {
		if p.Rows[i].Lane == 0 {
			last = i
		}
	}
	begun := false // the chain
	for i := range p.Rows {
		r := &p.Rows[i]
		down := " "
		if begun {
			down = "|"
		}
		first, more := glyphs[r.Mark]+"   ", "|   "
		if r.Lane == 0 {
			begun = true
			if i == last {
				more = "    "
			}
		} else {
			first, more = down+" "+glyphs[r.Mark]+" ", down+" | "
			if r.Joins {
				more = down + " | "
			}
		}
		head := ""
		if r.Mark != MarkFold {
			epoch := number(r.Epoch)
			head = strings.Repeat(" ", digits-len(epoch)) + epoch + " " + r.short() + " "
		}
		indent := strings.Repeat(" ", digits+1)
		for j, l := range wrap(head+r.State, lineWidth-len(first)-len(indent)) {
			switch {
			case j == 0 && r.Mark != MarkFold:
				line(first + strings.Repeat(" ", digits-len(number(r.Epoch))) + l)
			case j == 0:
				line(first + indent + l)
			default:
				line(more + indent + "  " + l)
			}
		}
		for _, s := range r.Text {
			for j, l := range wrap(s, lineWidth-len(more)-len(indent)-2) {
				if j > 0 {
					l = "  " + l
				}
				line(more + indent + l)
			}
		}
		if r.Joins {
			line(down + "/")
		}
	}
}
