-- The role that Grafana reads with. Run it with psql in the service's database, as the role that owns the schema, before
-- or after the first start of the server, as often as you like:
--
--   GRAFANA_READER_PASSWORD=... psql "$DATABASE_URL" -f grafana/reader.sql
--
-- The password comes from the file that GRAFANA_READER_PASSWORD_FILE names, else from GRAFANA_READER_PASSWORD; without
-- either nobody can log in with one. In a container of PostgreSQL, mount this file in /docker-entrypoint-initdb.d/.

\set ON_ERROR_STOP on
\set password `cat "$GRAFANA_READER_PASSWORD_FILE" 2>/dev/null || printenv GRAFANA_READER_PASSWORD`

SELECT 'CREATE ROLE grafana_reader' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana_reader') \gexec

-- A panel that asks for too much is cut short, and the service keeps its connections.
ALTER ROLE grafana_reader LOGIN PASSWORD :'password' CONNECTION LIMIT 10;
ALTER ROLE grafana_reader SET default_transaction_read_only = on;
ALTER ROLE grafana_reader SET statement_timeout = '10s';

-- What is there, and what migrations and the partition job of this role will make.
GRANT USAGE ON SCHEMA public TO grafana_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO grafana_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO grafana_reader;
