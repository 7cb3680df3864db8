//! The schema: its migrations are embedded in the binary, and run under a lock.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::Text;
use diesel::{Connection, PgConnection, QueryableByName, RunQueryDsl, sql_query};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::conninfo::connect;
use super::statements::DURABLE;
use crate::config::DatabaseSettings;
use crate::error::CommandResult;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../../migrations");
/// Any number that no other program locks in the same database: "users" in ASCII.
const ADVISORY_LOCK: i64 = 0x75_73_65_72_73;
/// How long a migration waits for a lock. The requests that want the same table wait behind it, for 2 s by default.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// How long it then leaves the table to those requests.
const PAUSE: Duration = Duration::from_secs(3);
/// For how long it tries.
const PATIENCE: Duration = Duration::from_secs(60);

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
            Self::Migrate => migrate(connection).map_err(|error| error as _),
            Self::Await => Err("the schema is not there yet: user-svc brings it".into()),
        }
    }
}

/// Runs the pending migrations, for a minute again and again if it must wait for locks.
fn migrate(connection: &mut PgConnection) -> Result<(), Failure> {
    let patience = Instant::now() + PATIENCE;
    loop {
        let start = Instant::now();
        let error = match run_pending(connection) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                log::info!("ran {count} migration(s)");
                return Ok(());
            }
            Err(error) => error,
        };
        // Diesel hides the SQLSTATE, and messages come in the server's language. Other errors come at once.
        if start.elapsed() < LOCK_WAIT || Instant::now() > patience {
            return Err(error);
        }
        log::warn!("migrations wait for a lock that another session holds, trying again: {error}");
        thread::sleep(PAUSE);
    }
}

/// Runs the pending migrations in one transaction, and returns how many. Processes that start together wait for each
/// other: diesel_migrations has no lock. It ends with the transaction, so that no pooler keeps it.
fn run_pending(connection: &mut PgConnection) -> Result<usize, Failure> {
    connection.transaction(|connection| {
        let lock_wait = LOCK_WAIT.as_millis();
        connection.batch_execute(&format!(
            "{DURABLE}; SET LOCAL lock_timeout = {lock_wait}; SET LOCAL statement_timeout = 0; \
             SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"
        ))?;
        connection.run_pending_migrations(MIGRATIONS).map(|versions| versions.len())
    })
}

/// What a migration fails with.
type Failure = Box<dyn std::error::Error + Send + Sync>;

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
    let mut connection = connect(settings)?;
    Schema::Migrate.prepare(&mut connection)
}
