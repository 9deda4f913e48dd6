-- v2 -> v3: Store of an epoch, and of a message, what changes with it
ALTER TABLE epochs ADD COLUMN whole BOOLEAN NOT NULL DEFAULT FALSE;
UPDATE epochs SET whole = TRUE;

CREATE TABLE trees (
	room_id TEXT NOT NULL,
	ref     BLOB NOT NULL,
	parent  BLOB NOT NULL,
	whole   BOOLEAN NOT NULL,
	depth   INTEGER NOT NULL,
	bytes   INTEGER NOT NULL,
	data    BLOB NOT NULL,
	PRIMARY KEY (room_id, ref)
) WITHOUT ROWID;

CREATE TABLE ratchet_pages (
	room_id TEXT NOT NULL,
	ref     BLOB NOT NULL,
	page    INTEGER NOT NULL,
	data    BLOB NOT NULL,
	PRIMARY KEY (room_id, ref, page)
) WITHOUT ROWID;
