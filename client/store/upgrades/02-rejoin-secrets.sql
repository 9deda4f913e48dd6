-- v1 -> v2: Keep what proves a device's membership when it comes back
CREATE TABLE rejoin_secrets (
	room_id TEXT NOT NULL,
	ref     BLOB NOT NULL,
	number  INTEGER NOT NULL,
	data    BLOB NOT NULL,
	PRIMARY KEY (room_id, ref)
) WITHOUT ROWID;
