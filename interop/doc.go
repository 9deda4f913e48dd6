// Package interop drives foreign MLS implementations, OpenMLS and mls-rs, as live partners of package mls in tests.
//
// Both sit in one Rust program (peer/), which [Program] builds when its sources changed; [Start] runs it. It takes one
// JSON object a line and answers with one; peer/README.md lists the commands.
package interop
