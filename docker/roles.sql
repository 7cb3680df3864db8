-- The roles of the two services in PostgreSQL, with the least rights that they need: `user_svc` owns the tables, since
-- it runs the migrations, and `data_svc` may only SELECT.
--
-- A superuser runs this file by psql in the services' database. compose.yaml and `make up` do so at each start, since
-- a former release made the tables as `postgres`; docs/operations.md says how to do it by hand. A second run changes
-- nothing. PostgreSQL and psql 13 or newer.
\set ON_ERROR_STOP on

-- psql reads no variables of the environment before version 15, but runs a shell. An unset or empty one keeps the
-- password that the role has.
\set user_svc_password `printf %s "$USER_SVC_DATABASE_PASSWORD"`
\set data_svc_password `printf %s "$DATA_SVC_DATABASE_PASSWORD"`
SELECT :'user_svc_password' <> '' AS has_user_svc_password, :'data_svc_password' <> '' AS has_data_svc_password \gset

BEGIN;
-- A session that holds a table would otherwise hold up the start for ever.
SET LOCAL lock_timeout = '10s';

SELECT format('CREATE ROLE %I LOGIN', role) FROM unnest(ARRAY['user_svc', 'data_svc']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec
\if :has_user_svc_password
ALTER ROLE user_svc PASSWORD :'user_svc_password';
\endif
\if :has_data_svc_password
ALTER ROLE data_svc PASSWORD :'data_svc_password';
\endif

-- Before version 15 every role may create tables. Temporary ones take disk space too.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE TEMPORARY ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO user_svc;
GRANT USAGE ON SCHEMA public TO data_svc;

-- The tables of a former release. Without the conditions each start would lock every table.
SELECT format('ALTER TABLE %s OWNER TO user_svc', oid::regclass) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relowner <> 'user_svc'::regrole \gexec
SELECT format('GRANT SELECT ON %s TO data_svc', oid::regclass) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
    AND NOT has_table_privilege('data_svc', oid, 'SELECT') \gexec

-- The tables of migrations to come.
ALTER DEFAULT PRIVILEGES FOR ROLE user_svc IN SCHEMA public GRANT SELECT ON TABLES TO data_svc;
COMMIT;
