-- The roles of the event store, each with no more than it needs. Run this as a superuser in Millrace's database, which is
-- Millrace's alone; it may be run again at any time:
--
--     psql -v ON_ERROR_STOP=1 -d millrace -f roles.sql
--
-- Then give each role that logs in a password (\password millrace_order), and run `millrace migrate` as millrace_owner: it
-- makes the tables, and grants on them what the comments below say.
--
--     millrace_owner      owns schemas and tables. Migrations run as it; no service does.
--     millrace_<service>  adds events and answers and replaces snapshots, in its own schema. It can change or remove no
--                         event, and sees nothing of other services.
--     millrace_reader     reads the events of all services: for the relay and `millrace verify`.
DO $$
DECLARE
    services constant text[] := ARRAY['catalog', 'customer', 'inventory', 'order'];
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

    -- The relay says whose open transaction holds events back, which takes seeing the transactions of others.
    GRANT pg_read_all_stats TO millrace_reader;
END
$$;
