package client

import (
	"cmp"
	"context"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// Files come from servers that others name, and such a server may take its time.
// A client that was started fetches them beside the engine's turns, so that no room
// waits for another's server. What comes is handed to the room under the lock, and
// the engine is woken. Whoever calls Step by hand has them fetched within it.

// Bounds of the files that are fetched at the same time.
const (
	maxFetches   = 16
	maxRefetches = maxFetches / 2  // of these, of files that could not be had before
	maxFetchesIn = 4               // for one room
	maxFetchesOf = 2               // from one server
	maxFetchesBy = 2               // for one room, because of one sender's events
	fileTimeout  = 2 * time.Minute // for one of them
)

// fetches counts the files that are being fetched.
type fetches struct {
	all, again int
	in         map[id.RoomID]int
	of         map[string]int
}

// take counts one more, if there is place for it.
func (f *fetches) take(room id.RoomID, server string, again bool) bool {
	if f.all >= maxFetches || again && f.again >= maxRefetches || f.in[room] >= maxFetchesIn || f.of[server] >= maxFetchesOf {
		return false
	}
	if f.in == nil {
		f.in, f.of = map[id.RoomID]int{}, map[string]int{}
	}
	f.count(room, server, again, 1)
	return true
}

func (f *fetches) count(room id.RoomID, server string, again bool, n int) {
	f.all += n
	if again {
		f.again += n
	}
	if f.in[room] += n; f.in[room] == 0 {
		delete(f.in, room)
	}
	if f.of[server] += n; f.of[server] == 0 {
		delete(f.of, server)
	}
}

// fetchFiles begins to fetch the files among what is due in a room, as far as there is
// place for them, and returns what else is due. Senders take turns, those first for
// whom the least is being fetched, with what failed the least often: who names many
// files that do not come holds up nobody else's. The caller holds c.mu.
func (c *Client) fetchFiles(ctx context.Context, r *room, due []string) []string {
	var files, rest []string
	for _, key := range due {
		if r.needs[key].file != nil {
			files = append(files, key)
		} else {
			rest = append(rest, key)
		}
	}
	if len(files) == 0 {
		return rest
	}
	flying := map[id.UserID]int{}
	for _, n := range r.needs {
		if n.busy {
			flying[n.by]++
		}
	}
	slices.SortFunc(files, func(a, b string) int {
		n, o := r.needs[a], r.needs[b]
		return cmp.Or(cmp.Compare(flying[n.by], flying[o.by]), r.beforeNeed(a, b))
	})
	for range maxFetchesBy {
		served := map[id.UserID]bool{}
		files = slices.DeleteFunc(files, func(key string) bool {
			n := r.needs[key]
			if served[n.by] || flying[n.by] >= maxFetchesBy || !c.fetchBeside(ctx, r.id, key, n) {
				return false
			}
			served[n.by] = true
			flying[n.by]++
			return true
		})
	}
	return rest
}

// fetchBeside begins to fetch a file for a room, if there is place for it. The
// engine is woken when one is done, and looks again then. The caller holds c.mu.
func (c *Client) fetchBeside(ctx context.Context, roomID id.RoomID, key string, n *need) bool {
	server, again := fileServer(n.file), n.fail > 0
	if !c.fetches.take(roomID, server, again) {
		return false
	}
	n.busy = true
	c.done.Go(func() {
		c.fetch(ctx, roomID, key, n)
		c.mu.Lock()
		n.busy = false
		c.fetches.count(roomID, server, again, -1)
		c.mu.Unlock()
		c.poke()
	})
	return true
}

// askAhead has a newcomer's identity ask for the devices of who is in the room, beside the engine's turns, while
// somebody adds this device: it checks them all before it sends, and they are many in a large room. Where an answer
// does not come, they are asked for again when they are needed. The caller holds c.mu.
func (c *Client) askAhead(ctx context.Context, r *room) {
	if !c.beside || r.askedAhead || r.machine != nil || r.rec.Membership != "join" || !r.state.Known || !r.state.isMLS() {
		return
	}
	r.askedAhead = true
	var users []id.UserID
	for user, member := range r.state.view.Members {
		if member.Membership == rooms.MembershipJoin && !r.isModule(user) && c.devs[user] == nil {
			users = append(users, user)
		}
	}
	slices.Sort(users)
	roomID := r.id
	c.done.Go(func() {
		if _, err := c.ident.DevicesOf(ctx, users); err != nil {
			c.log.Debug().Err(err).Stringer("room_id", roomID).Msg("The devices of a room's members could not be asked for ahead")
		}
	})
}

// download fetches a file, within bounds of size and time.
func (c *Client) download(ctx context.Context, n *need) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fileTimeout)
	defer cancel()
	data, err := c.hs.Download(ctx, string(n.file.MXC), n.file.Size)
	if err == nil {
		err = n.file.Check(data)
	}
	return data, err
}
