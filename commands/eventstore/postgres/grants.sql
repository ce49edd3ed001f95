-- Grants each role the privileges that it needs, and no others. A service adds events and answers, but
-- never changes them. The reader role reads events, and the store's identity. The roles are created by
-- deploy/postgres/roles.sql. If a role does not exist, it is skipped.
DO $$
DECLARE
    service constant text := current_schema();
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = service) THEN
        EXECUTE format('GRANT SELECT ON migrations, store TO %I', service);
        EXECUTE format('GRANT SELECT, INSERT ON events, answers TO %I', service);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON snapshots TO %I', service);
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'millrace_reader') THEN
        GRANT SELECT ON migrations, store, events TO millrace_reader;
    END IF;
END
$$;
