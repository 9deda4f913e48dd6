package mls

import "slices"

// draftRejects are the rows for what drafts add to RFC 9420.
var draftRejects = slices.Concat(pqRejects, selfRemoveRejects, appDataRejects)
