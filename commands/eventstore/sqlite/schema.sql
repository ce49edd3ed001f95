-- The schema of one service's event store. PRAGMA user_version holds the number of the schema: 3.

CREATE TABLE store (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    aggregate TEXT NOT NULL, -- whose events these are
    epoch     TEXT NOT NULL DEFAULT '', -- a UUID that no other store has
    secret    BLOB NOT NULL DEFAULT x'' -- random; a copy has it too
) STRICT;

CREATE TABLE events (
    position       INTEGER PRIMARY KEY AUTOINCREMENT, -- the order in which they were committed: there is one writer
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
