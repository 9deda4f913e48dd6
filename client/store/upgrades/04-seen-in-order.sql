-- v3 -> v4: Keep the order of processed events, so that the oldest can be forgotten
CREATE TABLE seen_in_order (
	seq      INTEGER PRIMARY KEY AUTOINCREMENT,
	room_id  TEXT NOT NULL,
	event_id TEXT NOT NULL,
	UNIQUE (room_id, event_id)
);
INSERT INTO seen_in_order (room_id, event_id) SELECT room_id, event_id FROM seen;
DROP TABLE seen;
ALTER TABLE seen_in_order RENAME TO seen;
CREATE INDEX seen_room ON seen (room_id, seq);
