package figures

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// A Curve is a line of a drawing: values by what stands on the horizontal axis.
type Curve struct {
	Name   string
	Points map[int]float64
	Dashed bool
}

// A Plot is a drawing with logarithmic axes.
type Plot struct {
	Title  string
	Across string               // what the horizontal axis counts
	Value  func(float64) string // how a value of the vertical axis is written
	Curves []Curve              // at most as many as there are colors
}

const (
	width, height            = 640, 400
	left, right, top, bottom = 70, 20, 40, 50
)

var colors = []string{"#1d5fa8", "#b5482a", "#3c7d3f", "#7a4fa3"}

// names returns down to where the names of the curves stand.
func (p *Plot) names() float64 { return float64(top + 16 + 20*len(p.Curves) - 10) }

// highest returns how high up a curve comes above or below the names of all.
func (p *Plot) highest(x func(int) float64, y func(float64) float64) float64 {
	longest := 0
	for _, c := range p.Curves {
		longest = max(longest, len(c.Name))
	}
	end := float64(left + 60 + 7*longest)
	high := math.Inf(1)
	for _, c := range p.Curves {
		across := slices.Sorted(maps.Keys(c.Points))
		for k, n := range across {
			px, py := x(n), y(c.Points[n])
			if px <= end {
				high = min(high, py)
			}
			if k == 0 {
				continue
			}
			if qx, qy := x(across[k-1]), y(c.Points[across[k-1]]); qx < end && end < px {
				high = min(high, qy+(py-qy)*(end-qx)/(px-qx))
			}
		}
	}
	return high
}

// SVG draws it.
func (p *Plot) SVG() string {
	across := make(map[int]bool)
	lowX, highX := math.Inf(1), math.Inf(-1)
	lowY, highY := math.Inf(1), math.Inf(-1)
	for _, c := range p.Curves {
		for n, v := range c.Points {
			across[n] = true
			lowX, highX = min(lowX, math.Log10(float64(n))), max(highX, math.Log10(float64(n)))
			lowY, highY = min(lowY, math.Log10(v)), max(highY, math.Log10(v))
		}
	}
	lowY, highY = math.Floor(lowY), math.Ceil(highY)
	x := func(n int) float64 {
		return left + (math.Log10(float64(n))-lowX)/(highX-lowX)*(width-left-right)
	}
	y := func(v float64) float64 {
		return height - bottom - (math.Log10(v)-lowY)/(highY-lowY)*(height-top-bottom)
	}
	for range 3 { // the names stand in the upper left corner: no curve goes through them
		if p.highest(x, y) > p.names() {
			break
		}
		highY++
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<title>%s</title>`+"\n", p.Title)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="16" fill="#222">%s</text>`+"\n", left, p.Title)
	for e := lowY; e <= highY; e++ {
		v := math.Pow(10, e)
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end" fill="#555">%s</text>`+"\n",
			left, y(v), width-right, left-8, y(v)+4, p.Value(v))
	}
	for _, n := range slices.Sorted(maps.Keys(across)) {
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle" fill="#555">%d</text>`+"\n",
			x(n), top, height-bottom, x(n), height-bottom+18, n)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle" fill="#555">%s</text>`+"\n", (left+width-right)/2, height-12, p.Across)
	for i, c := range p.Curves {
		color, dash := colors[i], ""
		if c.Dashed {
			dash = ` stroke-dasharray="6 4"`
		}
		var path strings.Builder
		for k, n := range slices.Sorted(maps.Keys(c.Points)) {
			fmt.Fprintf(&path, "%s%.1f %.1f", map[bool]string{true: "M", false: "L"}[k == 0], x(n), y(c.Points[n]))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", x(n), y(c.Points[n]), color)
		}
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n", path.String(), color, dash)
		ly := top + 16 + 20*i
		fmt.Fprintf(&b, `<path d="M%d %dh30" stroke="%s" stroke-width="2"%s/><text x="%d" y="%d" fill="#222">%s</text>`+"\n", left+14, ly, color, dash, left+52, ly+4, c.Name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
