//go:build race

package appservice

const raceEnabled = true
