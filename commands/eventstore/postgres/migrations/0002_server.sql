-- The server whose transaction ids the positions are made of. See Open.
ALTER TABLE store ADD COLUMN server bigint NOT NULL DEFAULT (pg_control_system()).system_identifier;
