-- v0 -> v6: Latest schema
-- Columns named "data" or "state" hold sealed blobs: nonce and XChaCha20-Poly1305 ciphertext.
CREATE TABLE account (
	id          INTEGER PRIMARY KEY CHECK (id = 1),
	user_id     TEXT NOT NULL,
	device_id   TEXT NOT NULL,
	homeserver  TEXT NOT NULL,
	data        BLOB NOT NULL
);

CREATE TABLE kv (
	key  TEXT PRIMARY KEY,
	data BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE key_packages (
	ref          BLOB PRIMARY KEY,
	suite        INTEGER NOT NULL,
	last_resort  INTEGER NOT NULL,
	state        INTEGER NOT NULL,
	created_at   INTEGER NOT NULL,
	expires_at   INTEGER NOT NULL,
	data         BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE device_lists (
	user_id  TEXT PRIMARY KEY,
	outdated INTEGER NOT NULL,
	data     BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE rooms (
	room_id TEXT PRIMARY KEY,
	data    BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE machines (
	room_id TEXT PRIMARY KEY,
	data    BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE epochs (
	room_id TEXT NOT NULL,
	ref     BLOB NOT NULL,
	parent  BLOB NOT NULL,
	number  INTEGER NOT NULL,
	state   BLOB NOT NULL,
	whole   BOOLEAN NOT NULL DEFAULT FALSE, -- the state holds the tree: written before v3
	PRIMARY KEY (room_id, ref)
) WITHOUT ROWID;

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

CREATE TABLE ratchets (
	room_id TEXT NOT NULL,
	ref     BLOB NOT NULL,
	state   BLOB NOT NULL,
	PRIMARY KEY (room_id, ref)
) WITHOUT ROWID;

CREATE TABLE rejoin_secrets (
	room_id TEXT NOT NULL,
	ref     BLOB NOT NULL,
	number  INTEGER NOT NULL,
	data    BLOB NOT NULL,
	PRIMARY KEY (room_id, ref)
) WITHOUT ROWID;

CREATE TABLE pending_commits (
	room_id  TEXT NOT NULL,
	ref      BLOB NOT NULL,
	parent   BLOB NOT NULL,
	event_id TEXT NOT NULL,
	data     BLOB NOT NULL,
	PRIMARY KEY (room_id, ref)
) WITHOUT ROWID;

CREATE TABLE outbox (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	room_id TEXT NOT NULL,
	txn_id  TEXT NOT NULL UNIQUE,
	kind    TEXT NOT NULL,
	ref     BLOB NOT NULL,
	state   TEXT NOT NULL,
	data    BLOB NOT NULL
);
CREATE INDEX outbox_room ON outbox (room_id, id);

CREATE TABLE inbox (
	seq       INTEGER PRIMARY KEY AUTOINCREMENT,
	room_id   TEXT NOT NULL,
	event_id  TEXT NOT NULL,
	waits_for TEXT NOT NULL,
	data      BLOB NOT NULL,
	UNIQUE (room_id, event_id)
);
CREATE INDEX inbox_waits ON inbox (waits_for);

CREATE TABLE seen (
	seq      INTEGER PRIMARY KEY AUTOINCREMENT,
	room_id  TEXT NOT NULL,
	event_id TEXT NOT NULL,
	UNIQUE (room_id, event_id)
);
CREATE INDEX seen_room ON seen (room_id, seq);

CREATE TABLE timeline (
	seq      INTEGER PRIMARY KEY AUTOINCREMENT,
	room_id  TEXT NOT NULL,
	event_id TEXT NOT NULL,
	mid      TEXT NOT NULL,
	sender   TEXT NOT NULL,
	ts       INTEGER NOT NULL,
	epoch    INTEGER NOT NULL,
	ref      BLOB NOT NULL,
	data     BLOB NOT NULL,
	target   TEXT NOT NULL DEFAULT '', -- the event that an edit is of, or that a thread begins with: homeservers see that, too
	relation TEXT NOT NULL DEFAULT '',
	UNIQUE (room_id, event_id)
);
CREATE INDEX timeline_room ON timeline (room_id, seq);
CREATE INDEX timeline_mid ON timeline (room_id, sender, mid);
CREATE INDEX timeline_target ON timeline (room_id, target, relation, sender, ts, event_id) WHERE target <> '';
