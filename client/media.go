package client

import (
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/federation"
	"github.com/matrix-mls/matrix-mls/rooms"
)

// Bounds of the files that events and heads name.
const (
	maxMediaCache = 4  // files of a room that are kept for the events that wait for them
	maxFilesBy    = 32 // that are asked for at a time because of one sender's events in a room
	// filesAtOnce of one sender are asked for as often as they would be alone. More of
	// them are asked for that much less often each.
	filesAtOnce = 8
	maxFileWait = 15 * time.Minute // between two requests for one of so many
	// fileRest is for how long a file that cannot be had leaves its place to others of
	// its sender, if there are more than maxFilesBy.
	fileRest = time.Hour
	restFail = 5 // as if it had failed as often, when it is asked for again
)

// fileKey names a file by where it is and by what it has to be: nobody can speak of
// somebody else's file by naming its address with another hash.
func fileKey(f *rooms.File) string {
	return string(f.MXC) + "/" + hex.EncodeToString(f.SHA256[:]) + "/" + strconv.FormatInt(f.Size, 10)
}

// fileServer returns the server that a file is on.
func fileServer(f *rooms.File) string {
	server, _, _ := strings.Cut(strings.TrimPrefix(string(f.MXC), "mxc://"), "/")
	return server
}

// keepFile keeps a file for what waits for it, in place of the oldest one.
func (r *room) keepFile(f *rooms.File, data []byte) {
	key := fileKey(f)
	if _, kept := r.media[key]; !kept {
		if len(r.mediaOrder) >= maxMediaCache {
			delete(r.media, r.mediaOrder[0])
			r.mediaOrder = slices.Delete(r.mediaOrder, 0, 1)
		}
		r.mediaOrder = append(r.mediaOrder, key)
	}
	r.media[key] = data
}

// mediaOf returns a file that an event names. As long as the event matters it waits
// for the file, which a homeserver may not get before a cut is mended; else it is
// refused once the file cannot be had. It is refused in any case if another file is
// there. Events of a sender who names too many wait for these.
func (c *Client) mediaOf(r *room, file *rooms.File, evt *Event, matters bool) ([]byte, error) {
	key, by := "media:"+fileKey(file), evt.poster()
	if data, ok := r.media[fileKey(file)]; ok {
		return data, nil
	}
	now := c.mono()
	if r.tried["wrong/"+key] > now || !matters && r.tried["need/"+key] > now {
		return nil, errRefusedUpdate(rooms.RuleMediaHash, "a file that it names cannot be had")
	}
	n := r.needs[key]
	if n == nil {
		rests, rested := r.tried["rest/"+key]
		if rests > now || r.filesBy(by) >= maxFilesBy {
			r.crowd(by)
			return nil, &errWait{"files:" + string(by)}
		}
		n = &need{file: file, by: by, since: now}
		if rested {
			n.fail = restFail
		}
		r.want(key, n)
		n = r.needs[key]
	}
	if n != nil && matters {
		n.lasts = true
		if n.by != by && r.filesBy(by) < r.filesBy(n.by) {
			n.by = by // who named it first may have named many
		}
	}
	return nil, &errWait{key}
}

// crowd notes that events of a sender wait for the files that others of theirs name.
func (r *room) crowd(by id.UserID) {
	if r.crowded == nil || len(r.crowded) >= maxTried {
		r.crowded = map[id.UserID]bool{}
	}
	r.crowded[by] = true
}

// restFile lets a file that cannot be had leave its place to another one of its
// sender for a while, if one waits.
func (r *room) restFile(key string, n *need, now time.Duration) {
	if n.file != nil && n.fail >= maxNeedFails && r.crowded[n.by] {
		delete(r.needs, key)
		delete(r.crowded, n.by)
		r.avoid("rest/"+key, now, now+fileRest)
	}
}

// filesBy counts the files that are asked for because of a sender's events.
func (r *room) filesBy(user id.UserID) (count int) {
	for _, n := range r.needs {
		if n.file != nil && n.by == user {
			count++
		}
	}
	return count
}

// lacksCommit tells whether a commit is asked for, or a file, which is a commit's as a rule.
func (r *room) lacksCommit() bool {
	for _, n := range r.needs {
		if n.file != nil || n.event != "" && !n.commit.IsZero() {
			return true
		}
	}
	return false
}

// fileWait returns how long to wait before a file that matters is asked for again.
func (r *room) fileWait(n *need) time.Duration {
	share := max(1, (r.filesBy(n.by)+filesAtOnce-1)/filesAtOnce)
	return min(time.Second<<min(n.fail-1, 10), maxFileWait) * time.Duration(share)
}

// nextFile asks at once for one more file of a server that has just given one.
func (r *room) nextFile(server string, now time.Duration) {
	var next *need
	for _, key := range slices.Sorted(maps.Keys(r.needs)) {
		if n := r.needs[key]; n.file != nil && n.notFor > now && fileServer(n.file) == server && (next == nil || n.notFor < next.notFor) {
			next = n
		}
	}
	if next != nil {
		next.notFor = now
	}
}

// awaitsFile tells whether an event that matters waits for a file, of somebody whose
// files were not waited for in vain lately.
func (r *room) awaitsFile(now time.Duration) bool {
	for _, n := range r.needs {
		if n.file != nil && n.lasts && r.tried["lag/"+string(n.by)] <= now {
			return true
		}
	}
	return false
}

// lagVain is for how long nobody waits with joining again for the files of whoever
// that was done for in vain.
const lagVain = time.Hour

// waitedInVain notes whose files did not come before this device joined again.
func (r *room) waitedInVain(now time.Duration) {
	for _, n := range r.needs {
		if n.file != nil && n.lasts {
			r.avoid("lag/"+string(n.by), now, now+lagVain)
		}
	}
}

// avoid notes that something failed and is not tried before a time.
func (r *room) avoid(key string, now, until time.Duration) {
	if len(r.tried) >= maxTried {
		maps.DeleteFunc(r.tried, func(_ string, until time.Duration) bool { return until <= now })
	}
	if len(r.tried) < 2*maxTried {
		r.tried[key] = until
	}
}

// matters tells whether a commit may still come into the group: it lies neither
// below what is kept nor on a branch that the room left. In the group that follows
// a ReInit epochs begin again.
func (c *Client) matters(r *room, content *rooms.CommitContent) bool {
	if r.machine == nil || content.Founding {
		return true
	}
	if _, closed := r.closing(); closed {
		return true
	}
	return !r.machine.TooOld(content.Epoch) && !r.machine.Beside(federation.Ref(content.Parent), content.Epoch)
}
