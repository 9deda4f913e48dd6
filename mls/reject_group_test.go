package mls

import "slices"

// groupRejects are the rows about leaves, trees, proposals, Commits and joins.
var groupRejects = slices.Concat(leafRejects, keyPackageRejects, proposalRejects, listRejects, externalRejects, commitRejects, treeRejects, welcomeRejects, dutyRejects)
