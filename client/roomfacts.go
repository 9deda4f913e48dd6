package client

import (
	"encoding/json"

	"maunium.net/go/mautrix/id"

	"github.com/matrix-mls/matrix-mls/rooms"
)

// RoomFacts is what push rules ask of a room (Matrix client-server API,
// "Conditions").
type RoomFacts struct {
	Joined      int             // users, without the modules' bots
	DisplayName string          // own
	Power       json.RawMessage // content of m.room.power_levels, nil if it is not known
	Version     string          // of the room
	Creators    []id.UserID
}

// Facts returns what push rules ask of a room. It reads what is in memory.
func (c *Client) Facts(roomID id.RoomID) (RoomFacts, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rooms[roomID]
	if r == nil {
		return RoomFacts{}, false
	}
	view := r.state.view
	facts := RoomFacts{Power: r.state.content(rooms.TypePowerLevels, ""), Version: view.RoomVersion}
	if view.Creator != "" {
		facts.Creators = append([]id.UserID{view.Creator}, view.MoreCreators...)
	}
	for user, member := range view.Members {
		if member.Membership == rooms.MembershipJoin && !isBot(user) {
			facts.Joined++
		}
	}
	var own struct {
		DisplayName string `json:"displayname"`
	}
	if json.Unmarshal(r.state.content(rooms.TypeMember, string(c.UserID())), &own) == nil {
		facts.DisplayName = own.DisplayName
	}
	return facts, true
}
