package server

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"rsc.io/qr"
)

var qrRun = regexp.MustCompile(`M(\d+) (\d+)h(\d+)v1h-(\d+)z`)

// TestQRCodeIsDrawnAsItIsEncoded: each dark module of the code is dark in the picture, no other is, and there is a light
// border around it.
func TestQRCodeIsDrawnAsItIsEncoded(t *testing.T) {
	const text = "Epoch 7: 00001 22222 33333 44444 55555 66666 77777 88888 99999 00000 11111 12345"
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		t.Fatal(err)
	}
	drawn := string(qrCode(text))
	size := code.Size + 8
	if want := fmt.Sprintf(`viewBox="0 0 %d %d"`, size, size); !strings.Contains(drawn, want) {
		t.Errorf("%s is not in %.200s", want, drawn)
	}
	dark := map[[2]int]bool{}
	for _, m := range qrRun.FindAllStringSubmatch(drawn, -1) {
		var n [4]int
		for i := range n {
			n[i], _ = strconv.Atoi(m[i+1])
		}
		if n[2] != n[3] {
			t.Errorf("a run goes %d right and %d back", n[2], n[3])
		}
		for x := n[0]; x < n[0]+n[2]; x++ {
			dark[[2]int{x - 4, n[1] - 4}] = true
		}
	}
	for y := -4; y < code.Size+4; y++ {
		for x := -4; x < code.Size+4; x++ {
			if dark[[2]int{x, y}] != code.Black(x, y) {
				t.Fatalf("the module at %d, %d is drawn dark: %v", x, y, dark[[2]int{x, y}])
			}
		}
	}
	if len(dark) == 0 {
		t.Error("nothing is dark")
	}
	if got := qrCode(strings.Repeat("long", 2000)); got != "" {
		t.Errorf("a text that is too long became %.100s", got)
	}
}
