//go:build !crashpoints

package appservice

// atPoint is called at each of crashPoints. In a build with the tag crashpoints,
// which tests make, a file says where the process ends.
func atPoint(string) {}
