-- The databases of a deployment and their roles: once, as the administrator of the server, by psql 15 or newer.
-- Passwords come from the environment. Compose runs this file when it creates the server.
\set ON_ERROR_STOP on
\getenv dagster_password DAGSTER_PG_PASSWORD
\getenv owner_password LEDGER_OWNER_PASSWORD
\getenv ledger_password LEDGER_PASSWORD

-- Dagster's own storage.
CREATE ROLE dagster LOGIN PASSWORD :'dagster_password';
CREATE DATABASE dagster;
REVOKE ALL ON DATABASE dagster FROM PUBLIC;
GRANT CONNECT ON DATABASE dagster TO dagster;

-- The ledger. Its owner upgrades the tables; the role `llm_batch`, by which everything else runs, reads and writes rows.
CREATE ROLE llm_batch_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE llm_batch LOGIN PASSWORD :'ledger_password';
CREATE DATABASE llm_batch;
REVOKE ALL ON DATABASE llm_batch FROM PUBLIC;
GRANT CONNECT ON DATABASE llm_batch TO llm_batch_owner, llm_batch;

\connect dagster
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT CREATE, USAGE ON SCHEMA public TO dagster;

\connect llm_batch
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT CREATE, USAGE ON SCHEMA public TO llm_batch_owner;
GRANT USAGE ON SCHEMA public TO llm_batch;
-- Default privileges of a role can be set by that role alone, or by a member of it.
GRANT llm_batch_owner TO CURRENT_USER;
ALTER DEFAULT PRIVILEGES FOR ROLE llm_batch_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO llm_batch;
