#!/bin/sh
# Run once by the postgres image, when it makes the database: the owner of the tables, and the
# application's log-in, which is a member of medichat_app and so can neither edit nor delete the log.
set -eu
owner=$(cat /run/secrets/medichat_database_owner_password)
application=$(cat /run/secrets/medichat_database_password)
psql -v ON_ERROR_STOP=1 -v owner="$owner" -v application="$application" --username "$POSTGRES_USER" <<'SQL'
CREATE ROLE medichat_owner LOGIN PASSWORD :'owner';
CREATE ROLE medichat_app NOLOGIN;
CREATE ROLE medichat LOGIN PASSWORD :'application' IN ROLE medichat_app;
CREATE DATABASE medichat OWNER medichat_owner;
\connect medichat
ALTER SCHEMA public OWNER TO medichat_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
SQL
