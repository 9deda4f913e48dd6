// Package matrixmls holds what the programs of this module carry inside them.
package matrixmls

import _ "embed"

// ExampleConfig is config.example.yaml: every key of the homeserver module's
// configuration with its default and what it does.
//
//go:embed config.example.yaml
var ExampleConfig string
