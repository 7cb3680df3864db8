//! What is sent to PostgreSQL before a query of ours: as a connection is set up, and as a transaction begins.
//!
//! A connection that is a session of the server keeps its settings and statements. Behind a pooler in transaction mode
//! it keeps nothing, and the next transaction may be on another server. Then each job's transaction brings its settings,
//! makes sure of its server, and prepares nothing.

use std::time::Duration;

use diesel::PgConnection;
use diesel::connection::{CacheSize, Connection, SimpleConnection};
use diesel::r2d2::CustomizeConnection;

use super::grant_row::GRANT_LOCK;
use super::session::LockWait;
use crate::config::{DatabaseSettings, Kept};

/// The server ends a transaction of ours that does nothing for so long: its process is gone or frozen. Longer than the
/// longest pause within a transaction, which is a step with Redis and the near wait.
pub const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);

/// How long a transaction waits for what another session holds, unless it may wait for long: longer than another
/// service's transaction takes, with its wait for near caches.
const SHORT_LOCK_WAIT: Duration = Duration::from_millis(100);

/// The word that a session of ours is marked by. In another client's hands it is not that client's.
pub const MARK: &str = "users.session";

/// Refuses a server in recovery: it may lack what the primary has acknowledged. A session cannot become one later, since
/// a server enters recovery only as it starts. Refuses a database that cannot hold every name.
const ONLY_A_USABLE_ONE: &str = "DO $$ BEGIN \
     IF pg_is_in_recovery() THEN \
     RAISE EXCEPTION 'the server is a standby' USING ERRCODE = 'read_only_sql_transaction'; END IF; \
     IF current_setting('server_encoding') <> 'UTF8' THEN RAISE EXCEPTION 'the encoding is not UTF8'; END IF; END $$";

/// An acknowledged write must survive a crash of the server, whatever the role's defaults are. In a transaction.
pub const DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', true) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local')";
/// The same for a session.
const ALWAYS_DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local')";

/// Lets a session plan each statement once. All our statements go by the primary key, so no other plan is ever better.
/// By default, with few keys in a batch, the server would plan anew each time, which takes a fifth of its time; and a
/// plan made while the table was empty might read all rows. No statement is worth being compiled.
///
/// A server that lacks a setting is spared it, and Citus one that it fails with (its issue 7813).
const PLAN_ONCE: &str = "SELECT set_config(name, value, false) FROM (VALUES \
     ('plan_cache_mode', 'force_generic_plan'), ('enable_seqscan', 'off'), ('jit', 'off')) AS wanted (name, value) \
     JOIN pg_settings USING (name) \
     WHERE name <> 'plan_cache_mode' OR NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')";

/// Sets up a new connection of the pool.
#[derive(Debug)]
pub struct Setup(Option<String>);

impl Setup {
    /// Marks a session, sets the server's own limits from `settings`, and prepares the beginnings of transactions, which
    /// are sent as text. Does nothing where nothing is kept.
    pub fn of(settings: &DatabaseSettings) -> Self {
        let text = || {
            format!(
                "{ONLY_A_USABLE_ONE}; {ALWAYS_DURABLE}; {PLAN_ONCE}; {}; \
                 PREPARE take_grant_lock AS SELECT pg_advisory_xact_lock_shared({GRANT_LOCK}); \
                 PREPARE take_grant_lock_then_wait_shortly AS \
                 SELECT pg_advisory_xact_lock_shared({GRANT_LOCK}), set_config('lock_timeout', '{}', true)",
                limits("SET", settings),
                short_lock_wait(settings).as_millis(),
            )
        };
        Self((settings.kept == Kept::Session).then(text))
    }
}

impl CustomizeConnection<PgConnection, diesel::r2d2::Error> for Setup {
    fn on_acquire(&self, connection: &mut PgConnection) -> Result<(), diesel::r2d2::Error> {
        match &self.0 {
            None => {
                connection.set_prepared_statement_cache_size(CacheSize::Disabled);
                Ok(())
            }
            Some(setup) => connection.batch_execute(&format!("{}; {setup}", mark(&new_word()))),
        }
        .map_err(diesel::r2d2::Error::QueryError)
    }
}

/// How transactions begin: each text is one round trip.
///
/// One that writes takes the lock of `grant_row.rs`. What is read in a later statement is what was there after the lock
/// was taken: a snapshot each is what READ COMMITTED means.
#[derive(Debug)]
pub struct Beginnings {
    read: Option<String>,
    write: String,
    write_with_short_lock_wait: String,
}

impl Beginnings {
    /// Those for `settings`.
    pub fn of(settings: &DatabaseSettings) -> Self {
        const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
        match settings.kept {
            Kept::Session => Self {
                read: None,
                write: format!("{BEGIN}; EXECUTE take_grant_lock"),
                write_with_short_lock_wait: format!("{BEGIN}; EXECUTE take_grant_lock_then_wait_shortly"),
            },
            Kept::Nothing => {
                let limits = limits("SET LOCAL", settings);
                let write = format!(
                    "{BEGIN}; {ONLY_A_USABLE_ONE}; {DURABLE}; {limits}; \
                     SELECT pg_advisory_xact_lock_shared({GRANT_LOCK})"
                );
                let wait = short_lock_wait(settings).as_millis();
                Self {
                    read: Some(format!("{BEGIN} READ ONLY; {ONLY_A_USABLE_ONE}; {limits}")),
                    write_with_short_lock_wait: format!("{write}; SET LOCAL lock_timeout = {wait}"),
                    write,
                }
            }
        }
    }

    /// For a query that reads; none: it needs no transaction.
    pub fn read(&self) -> Option<&str> {
        self.read.as_deref()
    }

    /// For a transaction that writes.
    pub fn write(&self, lock_wait: LockWait) -> &str {
        match lock_wait {
            LockWait::Skip | LockWait::Short => &self.write_with_short_lock_wait,
            LockWait::Long => &self.write,
        }
    }
}

fn short_lock_wait(settings: &DatabaseSettings) -> Duration {
    SHORT_LOCK_WAIT.min(settings.lock_timeout)
}

/// The server's own limits, by `set`: for the session or for the transaction.
fn limits(set: &str, settings: &DatabaseSettings) -> String {
    format!(
        "{set} statement_timeout = {}; {set} lock_timeout = {}; {set} idle_in_transaction_session_timeout = {}",
        settings.statement_timeout.as_millis(),
        settings.lock_timeout.as_millis(),
        IDLE_IN_TRANSACTION.as_millis(),
    )
}

/// A new word for [`MARK`].
pub fn new_word() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// The statement that marks a session by `word`.
pub fn mark(word: &str) -> String {
    format!("SET {MARK} = '{word}'")
}
