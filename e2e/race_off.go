//go:build !race

package e2e

// raceEnabled: the modules are built with the race detector, too.
const raceEnabled = false
