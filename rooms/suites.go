package rooms

import "github.com/matrix-mls/matrix-mls/mls"

// Suite is a cipher suite of RFC 9420.
type Suite = mls.CipherSuite

// DefaultSuiteOrder returns the order of preference of a new room.
func DefaultSuiteOrder() []Suite { return []Suite{1, 3, 4, 6, 2, 5, 7} }
