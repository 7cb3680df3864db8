//! The schema: its migrations are embedded in the binary, and run under a lock.

use std::collections::HashSet;

use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::Text;
use diesel::{Connection, PgConnection, QueryableByName, RunQueryDsl, sql_query};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::conninfo::connection_string;
use crate::config::DatabaseSettings;
use crate::error::CommandResult;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../../migrations");
/// Any number that no other program locks in the same database: "users" in ASCII.
const ADVISORY_LOCK: i64 = 0x75_73_65_72_73;

/// What to do about the schema before serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// Run the pending migrations.
    Migrate,
    /// Wait until user-svc has run them: a role that may only read can do no more.
    Await,
}

impl Schema {
    /// Does it, once; returns an error while there is nothing to do but wait.
    ///
    /// # Errors
    /// The database's, or that the schema is not complete yet.
    pub fn prepare(self, connection: &mut PgConnection) -> CommandResult {
        // Checked first, so that a role without the right to create tables can serve a complete schema.
        if is_complete(connection)? {
            return Ok(());
        }
        match self {
            Self::Migrate => migrate(connection),
            Self::Await => Err("the schema is not there yet: user-svc brings it".into()),
        }
    }
}

/// Runs the pending migrations. Processes that start together wait for each other: diesel_migrations has no lock.
fn migrate(connection: &mut PgConnection) -> CommandResult {
    sql_query("SET lock_timeout = '60s'").execute(connection)?;
    sql_query("SELECT pg_advisory_lock($1)")
        .bind::<diesel::sql_types::BigInt, _>(ADVISORY_LOCK)
        .execute(connection)?;
    let done = connection.run_pending_migrations(MIGRATIONS).map(|versions| versions.len());
    // The lock also ends with the connection, which the caller drops after an error.
    sql_query("SELECT pg_advisory_unlock($1)")
        .bind::<diesel::sql_types::BigInt, _>(ADVISORY_LOCK)
        .execute(connection)?;
    sql_query("RESET lock_timeout").execute(connection)?;
    let count = done.map_err(|error| error.to_string())?;
    if count > 0 {
        log::info!("ran {count} migration(s)");
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

fn is_complete(connection: &mut PgConnection) -> Result<bool, Box<dyn std::error::Error>> {
    #[derive(QueryableByName)]
    struct Exists {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        exists: bool,
    }
    let table: Exists = sql_query("SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL AS exists")
        .get_result(connection)?;
    if !table.exists {
        return Ok(false);
    }
    let applied: Vec<Version> =
        sql_query("SELECT version FROM __diesel_schema_migrations").load(connection)?;
    let applied: HashSet<String> = applied.into_iter().map(|row| row.version).collect();
    let needed: Vec<Box<dyn Migration<Pg>>> = MIGRATIONS.migrations().map_err(|error| error.to_string())?;
    Ok(needed.iter().all(|migration| applied.contains(&migration.name().version().to_string())))
}

/// The `migrate` sub-command: runs the pending migrations, and returns.
///
/// # Errors
/// The database's.
pub fn run_once(settings: &DatabaseSettings) -> CommandResult {
    let mut connection = PgConnection::establish(&connection_string(settings))?;
    Schema::Migrate.prepare(&mut connection)
}
