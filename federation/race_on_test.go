//go:build race

package federation

// raceEnabled is set in tests with the race detector, which is ten times slower.
const raceEnabled = true
