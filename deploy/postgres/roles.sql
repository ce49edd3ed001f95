-- The roles of the event store, each with minimal rights. Run this as a superuser in Millrace's
-- database, which nothing else uses. It can be run again at any time:
--
--     psql -v ON_ERROR_STOP=1 -d millrace -f roles.sql
--
-- Then set a password for each role that logs in (\password millrace_order), and run `millrace
-- migrate` as millrace_owner. It creates the tables and grants these rights on them:
--
--     millrace_owner      owns schemas and tables. Migrations run as it; no service does.
--     millrace_<service>  adds events and answers, and replaces snapshots, in its own schema. It
--                         cannot change or remove events, and cannot read other services.
--     millrace_reader     reads the events of all services: for the relay and `millrace verify`.
DO $$
DECLARE
    services constant text[] := ARRAY['catalog', 'customer', 'identity', 'inventory', 'order'];
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['millrace_owner', 'millrace_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
    END LOOP;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO millrace_owner, millrace_reader', current_database());
    REVOKE ALL ON SCHEMA public FROM PUBLIC;

    FOREACH role IN ARRAY services LOOP
        role := 'millrace_' || role;
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
        EXECUTE format('CREATE SCHEMA IF NOT EXISTS %I AUTHORIZATION millrace_owner', role);
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I, millrace_reader', role, role);
    END LOOP;

    -- The relay reports which open transaction delays events. For that, it must see other roles' transactions.
    GRANT pg_read_all_stats TO millrace_reader;
END
$$;
