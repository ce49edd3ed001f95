-- What a service needs of its tables, and no more: events and answers are added and never changed. Who follows the log needs
-- to read the events alone. The roles are those of deploy/postgres/roles.sql; where there are none, nobody is granted anything.
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
