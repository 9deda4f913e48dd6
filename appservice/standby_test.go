package appservice

import (
	"testing"
	"time"

	"github.com/matrix-mls/matrix-mls/appservice/store"
)

func TestStandbyTakesOverWhen(t *testing.T) {
	type look struct {
		h  store.Holder
		at time.Duration
	}
	alive := func(beat string, at time.Duration) look {
		return look{store.Holder{Process: "a", Beat: beat, Connected: true}, at}
	}
	gone := func(at time.Duration) look { return look{store.Holder{Process: "a", Beat: "1"}, at} }
	for name, c := range map[string]struct {
		looks []look
		due   bool // after the last
	}{
		"nobody works":                  {[]look{{store.Holder{}, 0}}, true},
		"one that beats":                {[]look{alive("1", 0), alive("2", 2*time.Second), alive("3", 4*time.Second), alive("4", 6*time.Second)}, false},
		"one that hangs":                {[]look{alive("1", 0), alive("1", time.Second), alive("1", 2*time.Second), alive("1", standbyStill)}, true},
		"one that hangs for a moment":   {[]look{alive("1", 0), alive("1", time.Second), alive("1", 2*time.Second), alive("1", standbyStill-1)}, false},
		"one, after standing still":     {[]look{alive("1", 0), alive("1", time.Second), alive("1", time.Minute)}, false},
		"one without connections":       {[]look{alive("1", 0), gone(1), gone(2)}, true},
		"one that connects again":       {[]look{gone(0), alive("1", 1), gone(2)}, false},
		"another that took over before": {[]look{alive("1", 0), {store.Holder{Process: "b", Beat: "1", Connected: true}, standbyStill}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var w watch
			for i, l := range c.looks {
				if got := w.due(l.h, l.at); got != (c.due && i == len(c.looks)-1) {
					t.Errorf("look %d at %v: due %v", i, l.at, got)
				}
			}
		})
	}
}
