#!/bin/sh
# Creates databases and roles, and sets the roles' passwords. A repeated run only updates changed
# passwords. The image runs it if the data folder is new. Later, run it inside the container.
#
#   database  role                                   may
#   millrace  see roles.sql                          events
#   lake      lake, lake_reader                      Iceberg's catalog: write; read
#   registry  registry                               the registry's schemas
set -eu
secrets=${SECRETS:-/run/secrets}
here=${HERE:-/etc/millrace/postgres}
sql() { psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname "$1"; }

for database in millrace lake registry; do
  sql postgres <<EOF
SELECT 'CREATE DATABASE $database ENCODING ''UTF8'' TEMPLATE template0' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '$database') \gexec
EOF
done
sql millrace < "$here/roles.sql"
sql postgres <<'EOF'
SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest(ARRAY['lake', 'lake_reader', 'registry']) AS name
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
REVOKE ALL ON DATABASE lake, registry FROM PUBLIC;
GRANT CONNECT ON DATABASE lake TO lake, lake_reader;
GRANT CONNECT ON DATABASE registry TO registry;
EOF
sql lake <<'EOF'
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO lake;
GRANT USAGE ON SCHEMA public TO lake_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO lake_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE lake IN SCHEMA public GRANT SELECT ON TABLES TO lake_reader;
EOF
sql registry <<'EOF'
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO registry;
EOF

password() { # ROLE FILE; psql reads the file, so the password is neither on a command line nor in the server's log
  sql postgres <<EOF
SET log_min_duration_statement = -1;
SET log_min_error_statement = panic;
\\set password \`cat '$secrets/$2'\`
ALTER ROLE $1 PASSWORD :'password';
EOF
}
for service in order catalog customer inventory identity; do
  password "millrace_$service" "postgres_$service"
done
password millrace_owner postgres_owner
password millrace_reader postgres_reader
password lake postgres_lake
password lake_reader postgres_lake_reader
password registry postgres_registry
echo "PostgreSQL: databases and roles stand"
