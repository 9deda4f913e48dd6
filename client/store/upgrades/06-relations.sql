-- v5 -> v6: Find the edits of a message and the messages of a thread
ALTER TABLE timeline ADD COLUMN target TEXT NOT NULL DEFAULT '';
ALTER TABLE timeline ADD COLUMN relation TEXT NOT NULL DEFAULT '';
CREATE INDEX timeline_target ON timeline (room_id, target, relation, sender, ts, event_id) WHERE target <> '';
