-- The epoch names this history of events, see Epoch. The relation is the table that the events were written to: a dump that is
-- restored makes another one, see Open.
ALTER TABLE store
    ADD COLUMN epoch    uuid NOT NULL DEFAULT gen_random_uuid(),
    ADD COLUMN relation oid  NOT NULL DEFAULT to_regclass('events')::oid;
