package picture

import "flag"

// go test ./federation/... -run TestSimulate -sim.seeds=N hands its flags to each package there.
func init() {
	for _, name := range []string{"sim.seeds", "sim.steps", "sim.first"} {
		flag.String(name, "", "of package federation")
	}
}
