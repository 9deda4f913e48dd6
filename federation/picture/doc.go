// Package picture draws a room's epochs for people: the chain of commits, what
// branched off it, which branch the fork choice prefers and why, who accepted and
// voted for what, what is final, and which devices are known to have come how far.
//
//	p := picture.Of(machine.Survey(seen...), picture.Options{Title: "Lunch"})
//	fmt.Print(p.Text())  // at most 80 columns, ASCII but for names
//	file.Write(p.SVG())  // no script, nothing from elsewhere
//	w.Header().Set("Content-Security-Policy", picture.ContentSecurityPolicy())
//	w.Write(p.Page())    // the same as a page, with the text beside it
//
// The words are the same in all of them, and a mark or a colour says nothing that
// the words do not say. What others chose (user ids, names of servers and rooms,
// rules) is made harmless first. A picture is bounded, however many commits there
// are: what is old and uneventful is folded into one row.
//
// The package is pure: equal surveys and options give equal bytes.
package picture
