package federation_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/federation/picture"
)

var updatePictures = flag.Bool("update-pictures", false, "draw federation/picture/testdata and docs/epochs-healed.svg anew")

// drawn are the rooms that are drawn as SVG, too: a file of picture/testdata, and
// where its picture is.
var drawn = map[string]string{
	"healed": "../docs/epochs-healed.svg", "equivocation": "picture/testdata/equivocation.svg", "era_heirs": "picture/testdata/era_heirs.svg",
	"preference": "picture/testdata/preference.svg", "doubt": "picture/testdata/doubt.svg",
}

// TestPicturesOfStories draws the rooms that the stories end with.
func TestPicturesOfStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	files = append(files, "picture/testdata/healed.story")
	for _, file := range files {
		story := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
		t.Run(story, func(t *testing.T) {
			var text bytes.Buffer
			machines := federation.StoryMachines(t, file)
			for i, m := range machines {
				title := strings.ReplaceAll(story, "_", " ")
				if story == "healed" {
					title = "Lunch" // it stands in the manual
				}
				p := picture.Of(m.Survey(), picture.Options{Title: title})
				if i > 0 {
					text.WriteString("\n" + strings.Repeat("=", 80) + "\n\n")
				}
				text.WriteString(p.Text())
				checkSVG(t, p.SVG())
				if path := drawn[story]; path != "" && i == len(machines)-1 {
					golden(t, path, p.SVG())
				}
			}
			golden(t, "picture/testdata/"+story+".txt", text.Bytes())
		})
	}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *updatePictures {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is another picture (go test ./federation -run TestPictures -update-pictures):\n%s", path, diff)
	}
}

// checkSVG holds that a document is XML.
func checkSVG(t *testing.T, raw []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(raw))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("no XML: %v", err)
		}
	}
}
