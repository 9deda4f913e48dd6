package main

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

const (
	serverName = "many.test"
	bot        = id.UserID("@_mls_bot:" + serverName)
	// transactionEvents is what one transaction holds at most; Synapse's own number.
	transactionEvents = 100
)

// event is an event as its homeserver stores it.
type event struct {
	ID       id.EventID      `json:"event_id"`
	Room     id.RoomID       `json:"room_id"`
	Sender   id.UserID       `json:"sender"`
	Type     string          `json:"type"`
	StateKey *string         `json:"state_key,omitempty"`
	Content  json.RawMessage `json:"content"`
	Time     int64           `json:"origin_server_ts"`
}

// homeserver serves what the module asks of one, over HTTP, out of memory: it takes no noticeable time of its own, which
// one of the real ones would with so many rooms and members. It pushes events to the module as the application service
// API wants it: one transaction at a time, again until it is taken.
type homeserver struct {
	asToken, hsToken string
	client           *http.Client
	modules          []string // addresses of the module's processes; who is not ready answers with an error

	mu      sync.Mutex
	rooms   map[id.RoomID]*roomEvents
	media   map[string][]byte
	txns    map[string]id.EventID
	queue   []*event
	next    int
	calls   map[string]int // by method and kind
	fromBot int            // events
	heard   func(*event)   // of every event, in order, with the lock held
	wake    chan struct{}
}

type roomEvents struct {
	timeline []*event
	state    map[[2]string]*event
}

func newHomeserver(asToken, hsToken string, client *http.Client, modules ...string) *homeserver {
	return &homeserver{asToken: asToken, hsToken: hsToken, client: client, modules: modules, rooms: map[id.RoomID]*roomEvents{}, media: map[string][]byte{},
		txns: map[string]id.EventID{}, calls: map[string]int{}, wake: make(chan struct{}, 1)}
}

// add puts an event into a room; it is pushed to the module if the bot is in the room or invited.
func (h *homeserver) add(room id.RoomID, sender id.UserID, kind string, stateKey *string, content any) (id.EventID, error) {
	raw, ok := content.(json.RawMessage)
	if !ok {
		var err error
		if raw, err = json.Marshal(content); err != nil {
			return "", err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.put(room, sender, kind, stateKey, raw), nil
}

func (h *homeserver) put(room id.RoomID, sender id.UserID, kind string, stateKey *string, content json.RawMessage) id.EventID {
	h.next++
	ev := &event{ID: id.EventID(fmt.Sprintf("$%043d", h.next)), Room: room, Sender: sender, Type: kind, StateKey: stateKey, Content: content, Time: time.Now().UnixMilli()}
	r := h.rooms[room]
	if r == nil {
		r = &roomEvents{state: map[[2]string]*event{}}
		h.rooms[room] = r
	}
	r.timeline = append(r.timeline, ev)
	if stateKey != nil {
		r.state[[2]string{kind, *stateKey}] = ev
	}
	if r.state[[2]string{"m.room.member", string(bot)}] != nil {
		h.queue = append(h.queue, ev)
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
	if sender == bot {
		h.fromBot++
	}
	if h.heard != nil {
		h.heard(ev)
	}
	return ev.ID
}

// push sends the module what it has to know, until the context ends.
func (h *homeserver) push(ctx context.Context) {
	for txn := 1; ; txn++ {
		h.mu.Lock()
		batch := slices.Clone(h.queue[:min(len(h.queue), transactionEvents)])
		h.mu.Unlock()
		if len(batch) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-h.wake:
				continue
			}
		}
		body, err := json.Marshal(map[string]any{"events": batch})
		if err != nil {
			panic("manyrooms: an event does not encode: " + err.Error())
		}
		for at := 0; h.transaction(ctx, h.client, h.modules[at%len(h.modules)], txn, body) != nil; at++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
		h.mu.Lock()
		h.queue = h.queue[len(batch):]
		h.mu.Unlock()
	}
}

func (h *homeserver) transaction(ctx context.Context, client *http.Client, module string, txn int, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, fmt.Sprintf("%s/_matrix/app/v1/transactions/%d", module, txn), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+h.hsToken)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err = io.Copy(io.Discard, resp.Body); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the module answers %s", resp.Status)
	}
	return err
}

// answer serves one kind of request. Its error is an error code of the specification and a status.
type answer func(r *http.Request, body json.RawMessage) (any, *refusal)

type refusal struct {
	status int
	code   string
}

var notFound = &refusal{http.StatusNotFound, "M_NOT_FOUND"}

// handler routes what the module asks.
func (h *homeserver) handler() http.Handler {
	mux := http.NewServeMux()
	on := func(pattern string, serve answer) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			h.serve(w, r, pattern, serve)
		})
	}
	const v3, room = "/_matrix/client/v3", "/_matrix/client/v3/rooms/{room}"
	on("GET /_matrix/client/versions", func(*http.Request, json.RawMessage) (any, *refusal) {
		return map[string]any{"versions": []string{"v1.11", "v1.12"}}, nil
	})
	on("GET "+v3+"/account/whoami", func(*http.Request, json.RawMessage) (any, *refusal) {
		return map[string]any{"user_id": bot, "device_id": "MLSMODULE"}, nil
	})
	on("POST "+v3+"/register", func(*http.Request, json.RawMessage) (any, *refusal) {
		return nil, &refusal{http.StatusBadRequest, "M_USER_IN_USE"}
	})
	on("POST /_matrix/client/v1/appservice/{id}/ping", h.ping)
	on("GET "+v3+"/joined_rooms", h.joinedRooms)
	on("POST "+v3+"/createRoom", h.createRoom)
	on("POST "+v3+"/join/{room}", h.join)
	on("GET "+room+"/state", h.state)
	on("GET "+room+"/state/{type}/{key...}", h.stateContent)
	on("PUT "+room+"/state/{type}/{key...}", h.send)
	on("PUT "+room+"/send/{type}/{txn}", h.send)
	on("GET "+room+"/event/{event}", h.event)
	on("GET "+room+"/messages", h.messages)
	on("GET "+room+"/members", h.members)
	on("POST /_matrix/media/v3/upload", h.upload)
	on("GET /_matrix/client/v1/media/config", func(*http.Request, json.RawMessage) (any, *refusal) {
		return map[string]any{"m.upload.size": 50 << 20}, nil
	})
	on("GET "+v3+"/profile/{user}/{field}", func(*http.Request, json.RawMessage) (any, *refusal) { return nil, notFound })
	on("PUT "+v3+"/profile/{user}/{field}", func(*http.Request, json.RawMessage) (any, *refusal) { return struct{}{}, nil })
	mux.HandleFunc("GET /_matrix/client/v1/media/download/{server}/{file}", func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		data, ok := h.media[r.PathValue("file")]
		h.calls["GET media"]++
		h.mu.Unlock()
		if !ok {
			http.Error(w, `{"errcode":"M_NOT_FOUND"}`, http.StatusNotFound)
			return
		}
		_, _ = w.Write(data) // the module that hung up asks again
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.calls["unknown "+r.Method+" "+r.URL.Path]++
		h.mu.Unlock()
		http.Error(w, `{"errcode":"M_UNRECOGNIZED"}`, http.StatusNotFound)
	})
	return mux
}

func (h *homeserver) serve(w http.ResponseWriter, r *http.Request, pattern string, serve answer) {
	h.mu.Lock()
	h.calls[pattern]++
	h.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	var out any
	failed := &refusal{http.StatusUnauthorized, "M_UNKNOWN_TOKEN"}
	if err == nil && (pattern == "GET /_matrix/client/versions" || subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+h.asToken)) == 1) {
		out, failed = serve(r, body)
	}
	w.Header().Set("Content-Type", "application/json")
	if failed != nil {
		w.WriteHeader(failed.status)
		out = map[string]string{"errcode": failed.code, "error": http.StatusText(failed.status)}
	}
	_ = json.NewEncoder(w).Encode(out) // the module that hung up asks again
}

func (h *homeserver) ping(r *http.Request, body json.RawMessage) (any, *refusal) {
	began := time.Now()
	for _, module := range h.modules {
		req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, module+"/_matrix/app/v1/ping", bytes.NewReader(body))
		if err != nil {
			continue
		}
		req.Header.Set("Authorization", "Bearer "+h.hsToken)
		resp, err := h.client.Do(req)
		if err != nil {
			continue
		}
		_ = resp.Body.Close() // the status is all of it
		if resp.StatusCode == http.StatusOK {
			return map[string]int64{"duration_ms": time.Since(began).Milliseconds()}, nil
		}
	}
	return nil, &refusal{http.StatusBadGateway, "M_BAD_STATUS"}
}

func (h *homeserver) joinedRooms(*http.Request, json.RawMessage) (any, *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := []id.RoomID{}
	for room, r := range h.rooms {
		var member struct {
			Membership string `json:"membership"`
		}
		if ev := r.state[[2]string{"m.room.member", string(bot)}]; ev != nil && json.Unmarshal(ev.Content, &member) == nil && member.Membership == "join" {
			list = append(list, room)
		}
	}
	slices.Sort(list)
	return map[string]any{"joined_rooms": list}, nil
}

var joined = json.RawMessage(`{"membership":"join"}`)

func (h *homeserver) createRoom(*http.Request, json.RawMessage) (any, *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	room, key, empty := id.RoomID("!probe:"+serverName), string(bot), ""
	h.put(room, bot, "m.room.create", &empty, json.RawMessage(`{"room_version":"10"}`))
	h.put(room, bot, "m.room.member", &key, joined)
	return map[string]any{"room_id": room}, nil
}

func (h *homeserver) join(r *http.Request, _ json.RawMessage) (any, *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	room, key := id.RoomID(r.PathValue("room")), string(bot)
	if h.rooms[room] == nil {
		return nil, notFound
	}
	h.put(room, bot, "m.room.member", &key, joined)
	return map[string]any{"room_id": room}, nil
}

func (h *homeserver) state(r *http.Request, _ json.RawMessage) (any, *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	found := h.rooms[id.RoomID(r.PathValue("room"))]
	if found == nil {
		return nil, notFound
	}
	return sorted(found.state, func(*event) bool { return true }), nil
}

func sorted(state map[[2]string]*event, want func(*event) bool) []*event {
	out := make([]*event, 0, len(state))
	for _, ev := range state {
		if want(ev) {
			out = append(out, ev)
		}
	}
	slices.SortFunc(out, func(a, b *event) int { return bytes.Compare([]byte(a.ID), []byte(b.ID)) })
	return out
}

func (h *homeserver) members(r *http.Request, _ json.RawMessage) (any, *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	found := h.rooms[id.RoomID(r.PathValue("room"))]
	if found == nil {
		return nil, notFound
	}
	return map[string]any{"chunk": sorted(found.state, func(ev *event) bool { return ev.Type == "m.room.member" })}, nil
}

func (h *homeserver) stateContent(r *http.Request, _ json.RawMessage) (any, *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	found := h.rooms[id.RoomID(r.PathValue("room"))]
	if found == nil || found.state[[2]string{r.PathValue("type"), r.PathValue("key")}] == nil {
		return nil, notFound
	}
	return found.state[[2]string{r.PathValue("type"), r.PathValue("key")}].Content, nil
}

func (h *homeserver) send(r *http.Request, body json.RawMessage) (any, *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	room, txn := id.RoomID(r.PathValue("room")), r.PathValue("txn")
	if h.rooms[room] == nil {
		return nil, notFound
	}
	if known, ok := h.txns[txn]; ok && txn != "" {
		return map[string]any{"event_id": known}, nil
	}
	var stateKey *string
	if txn == "" {
		key := r.PathValue("key")
		stateKey = &key
	}
	made := h.put(room, bot, r.PathValue("type"), stateKey, body)
	if txn != "" {
		h.txns[txn] = made
	}
	return map[string]any{"event_id": made}, nil
}

func (h *homeserver) event(r *http.Request, _ json.RawMessage) (any, *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if found := h.rooms[id.RoomID(r.PathValue("room"))]; found != nil {
		for _, ev := range slices.Backward(found.timeline) {
			if string(ev.ID) == r.PathValue("event") {
				return ev, nil
			}
		}
	}
	return nil, notFound
}

func (h *homeserver) messages(r *http.Request, _ json.RawMessage) (any, *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	found := h.rooms[id.RoomID(r.PathValue("room"))]
	if found == nil {
		return nil, notFound
	}
	query := r.URL.Query()
	var filter struct {
		Types []string `json:"types"`
	}
	if raw := query.Get("filter"); raw != "" && json.Unmarshal([]byte(raw), &filter) != nil {
		return nil, &refusal{http.StatusBadRequest, "M_BAD_JSON"}
	}
	limit, err := strconv.Atoi(query.Get("limit"))
	if err != nil || limit < 1 {
		limit = 10
	}
	back := query.Get("dir") == "b"
	at := 0
	if back {
		at = len(found.timeline)
	}
	if from := query.Get("from"); from != "" {
		if at, err = strconv.Atoi(from); err != nil || at < 0 || at > len(found.timeline) {
			return nil, &refusal{http.StatusBadRequest, "M_INVALID_PARAM"}
		}
	}
	page := struct {
		Start string   `json:"start"`
		End   string   `json:"end,omitempty"`
		Chunk []*event `json:"chunk"`
	}{Start: strconv.Itoa(at), Chunk: []*event{}}
	for len(page.Chunk) < limit && (back && at > 0 || !back && at < len(found.timeline)) {
		var ev *event
		if back {
			at--
			ev = found.timeline[at]
		} else {
			ev = found.timeline[at]
			at++
		}
		if len(filter.Types) == 0 || slices.Contains(filter.Types, ev.Type) {
			page.Chunk = append(page.Chunk, ev)
		}
	}
	if back && at > 0 || !back && at < len(found.timeline) {
		page.End = strconv.Itoa(at)
	}
	return page, nil
}

func (h *homeserver) upload(_ *http.Request, body json.RawMessage) (any, *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	name := fmt.Sprintf("file%d", h.next)
	h.media[name] = body
	return map[string]any{"content_uri": "mxc://" + serverName + "/" + name}, nil
}

// asked returns how many requests the module has made so far.
func (h *homeserver) asked() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, calls := range h.calls {
		n += calls
	}
	return n
}

// unknown names the requests that nothing here serves.
func (h *homeserver) unknown() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []string
	for call := range h.calls {
		if request, ok := strings.CutPrefix(call, "unknown "); ok {
			list = append(list, request)
		}
	}
	slices.Sort(list)
	return list
}

// sent returns how many events the module has sent so far.
func (h *homeserver) sent() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fromBot
}
