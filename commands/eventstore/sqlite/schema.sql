-- The schema of one service's event store, version 3 (PRAGMA user_version).

CREATE TABLE store (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    aggregate TEXT NOT NULL, -- the aggregate that owns this store
    epoch     TEXT NOT NULL DEFAULT '', -- UUID of this history
    secret    BLOB NOT NULL DEFAULT x'' -- random key; copies of the file share it
) STRICT;

CREATE TABLE events (
    position       INTEGER PRIMARY KEY AUTOINCREMENT, -- commit order, since there is one writer at a time
    id             BLOB    NOT NULL,                  -- UUIDv7, 16 bytes
    stream         TEXT    NOT NULL,
    version        INTEGER NOT NULL,
    type           TEXT    NOT NULL,
    data           BLOB    NOT NULL,
    occurred_at    INTEGER NOT NULL,                  -- microseconds since 1970, UTC
    recorded_at    INTEGER NOT NULL,
    correlation_id TEXT    NOT NULL,
    causation_id   TEXT    NOT NULL,
    trace_parent   TEXT    NOT NULL,
    UNIQUE (stream, version)
) STRICT;

CREATE TABLE answers (
    key         TEXT    PRIMARY KEY,
    fingerprint BLOB    NOT NULL,
    response    BLOB    NOT NULL,
    stream      TEXT    NOT NULL,
    version     INTEGER NOT NULL,
    position    INTEGER NOT NULL
) STRICT;

CREATE TABLE snapshots (
    stream  TEXT    PRIMARY KEY,
    version INTEGER NOT NULL,
    schema  INTEGER NOT NULL,
    state   BLOB    NOT NULL
) STRICT;
