package server

import (
	"fmt"
	"html/template"
	"strings"

	"rsc.io/qr"

	"github.com/matrix-mls/matrix-mls/client"
)

// quietZone is the light border that readers of QR codes need, in modules
// (ISO/IEC 18004, 5.3.8).
const quietZone = 4

// codeText is a comparison code as text, as its QR code holds it.
func codeText(c *client.ComparisonCode) string {
	return fmt.Sprintf("Epoch %d: %s", c.Epoch, strings.Join(c.Groups, " "))
}

// qrCode draws a text as a QR code, in SVG. It is empty if the text is too long
// for one.
func qrCode(text string) template.HTML {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return ""
	}
	var path strings.Builder
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			from := x
			for x < code.Size && code.Black(x, y) {
				x++
			}
			if x > from { // a run of dark modules
				fmt.Fprintf(&path, "M%d %dh%dv1h-%dz", from+quietZone, y+quietZone, x-from, x-from)
			}
		}
	}
	size := code.Size + 2*quietZone
	// Nothing of the text is in it but numbers.
	return template.HTML(fmt.Sprintf(`<svg id="qr" role="img" aria-label="QR code of the same text" width="%d" height="%d" viewBox="0 0 %d %d" shape-rendering="crispEdges">`+
		`<rect width="%d" height="%d" fill="#fff"/><path d="%s" fill="#000"/></svg>`, 4*size, 4*size, size, size, size, size, path.String()))
}
