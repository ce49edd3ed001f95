CREATE TABLE store (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    aggregate text NOT NULL -- whose events these are
);

CREATE TABLE events (
    transaction    xid8        NOT NULL DEFAULT pg_current_xact_id(), -- that wrote the event
    position       bigint      NOT NULL,                              -- within the transaction, from 1
    id             uuid        NOT NULL,
    stream         text        NOT NULL COLLATE "C",
    version        bigint      NOT NULL,
    type           text        NOT NULL,
    data           bytea       NOT NULL,
    occurred_at    timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL,
    correlation_id text        NOT NULL,
    causation_id   text        NOT NULL,
    trace_parent   text        NOT NULL,
    PRIMARY KEY (stream, version)
);
CREATE UNIQUE INDEX events_in_order ON events (transaction, position);

CREATE TABLE answers (
    key         text   PRIMARY KEY COLLATE "C",
    fingerprint bytea  NOT NULL,
    response    bytea  NOT NULL,
    stream      text   NOT NULL,
    version     bigint NOT NULL,
    transaction xid8   NOT NULL,
    position    bigint NOT NULL
);

CREATE TABLE snapshots (
    stream  text    PRIMARY KEY COLLATE "C",
    version bigint  NOT NULL,
    schema  integer NOT NULL,
    state   bytea   NOT NULL
);
