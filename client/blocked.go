package client

import (
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// BlockKind says why messages of a room wait.
type BlockKind string

// The reasons for which messages wait.
const (
	BlockLeft     BlockKind = "left"     // User has left the room, and can still read
	BlockBanned   BlockKind = "banned"   // User is banned from the room, and can still read
	BlockDevice   BlockKind = "device"   // Device of User fails its check
	BlockServer   BlockKind = "server"   // the devices of User cannot be checked, their server does not answer
	BlockDoubt    BlockKind = "doubt"    // a commit is in doubt
	BlockMajority BlockKind = "majority" // this side of the room does not reach a majority of the modules of Servers
)

// A Block is a reason for which messages of a room wait.
type Block struct {
	Kind    BlockKind
	User    id.UserID
	Device  id.DeviceID
	Servers []string
	Text    string // in English
}

// String is the reason in English.
func (b Block) String() string { return b.Text }

// barrier is what of a plan keeps messages from going out, if anything does.
func barrier(plan *rooms.Plan) []Block {
	err := plan.Barrier()
	if err == nil {
		return nil
	}
	rm := plan.InTheWay()
	b := Block{Kind: BlockDevice, User: rm.Cred.User, Device: rm.Cred.Device, Text: err.Error()}
	switch rm.Reason {
	case rooms.RemoveLeft:
		b.Kind = BlockLeft
	case rooms.RemoveBanned:
		b.Kind = BlockBanned
	}
	return []Block{b}
}

// uncheckedBlock is the reason that the devices of a user cannot be checked.
func uncheckedBlock(user id.UserID) Block {
	return Block{Kind: BlockServer, User: user, Text: fmt.Sprintf("the devices of %s cannot be checked, their server does not answer; it is asked again every minute", user)}
}

// blocks are the reasons for which messages of a room wait.
func (c *Client) blocks(r *room) []Block {
	out := slices.Clone(r.blocked)
	if why, servers := c.noMajority(r); why != "" && len(out) > 0 {
		out = append(out, Block{Kind: BlockMajority, Servers: servers, Text: why})
	}
	return out
}
