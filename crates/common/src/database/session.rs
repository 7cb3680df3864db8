//! The connection that a job has, and the transactions on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::r2d2::{ConnectionManager, CustomizeConnection, PooledConnection};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::{PgConnection, QueryResult};

use super::grant_row::GRANT_LOCK;
use crate::config::DatabaseSettings;
use crate::error::Error;

/// The server ends a transaction of ours that does nothing for so long: its process is gone or frozen. Longer than the
/// longest pause within a transaction, which is a step with Redis and the near wait.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);

/// How long a transaction waits for rows and keys that another session holds while other writes wait behind it: longer
/// than another service's transaction takes.
const SHORT_LOCK_WAIT: Duration = Duration::from_millis(50);

/// The beginning of a transaction that writes, in one round trip. The lock is the one of `grant_row.rs`. What is read
/// in a later statement is what was there after the lock was taken: a snapshot each is what READ COMMITTED means.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; EXECUTE take_grant_lock";
const BEGIN_WITH_SHORT_LOCK_WAIT: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; EXECUTE take_grant_lock_then_wait_shortly";

/// How long a transaction waits for what another session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockWait {
    /// Hardly: others wait behind it.
    Short,
    /// As long as the setting says.
    Long,
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With COMMIT.
    Commit,
    /// It has changed nothing.
    RollBack,
}

/// Refuses a server in recovery: it may lack what the primary has acknowledged. It cannot become one later, since a
/// server enters recovery only as it starts. Refuses a database that cannot hold every name.
const ONLY_A_USABLE_ONE: &str = "DO $$ BEGIN \
     IF pg_is_in_recovery() THEN RAISE EXCEPTION 'the server is a standby'; END IF; \
     IF current_setting('server_encoding') <> 'UTF8' THEN RAISE EXCEPTION 'the encoding is not UTF8'; END IF; END $$";

/// An acknowledged write must survive a crash of the server, whatever the role's defaults are.
pub const ALWAYS_DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local')";

/// Where connections come from.
pub type Pool = r2d2::Pool<ConnectionManager<PgConnection>>;

/// The result of a query, and when the query was sent: it has seen every transaction that was committed by then.
#[derive(Debug)]
pub struct Seen<T> {
    /// The result.
    pub value: T,
    /// When the query was sent.
    pub as_of: Instant,
}

/// The connection of a job, from when it needs one.
pub struct Session {
    pool: Pool,
    connection: Option<Pooled>,
}

/// A connection that goes back to the pool when it is dropped.
pub type Pooled = PooledConnection<ConnectionManager<PgConnection>>;

impl Session {
    /// A session that takes its connections from `pool`.
    pub fn new(pool: Pool) -> Self {
        Self { pool, connection: None }
    }

    /// Runs `query`, again on another connection if the first turns out to be dead.
    pub fn read<T>(
        &mut self,
        deadline: Instant,
        query: impl Fn(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<Seen<T>, Error> {
        self.retry_if_lost(deadline, |connection| {
            let as_of = Instant::now();
            query(connection).map(|value| Seen { value, as_of })
        })
    }

    /// Runs a transaction: `change`, again if the connection is lost under it, then `before_commit`, then COMMIT,
    /// unless `may_commit` returns false: then no caller waits any more.
    pub fn write<T>(
        &mut self,
        deadline: Instant,
        lock_wait: LockWait,
        may_commit: &dyn Fn() -> bool,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<T, Error>>,
        before_commit: impl FnOnce(T) -> Result<End, Error>,
    ) -> Result<(), Error> {
        let value = self.retry_if_lost(deadline, |connection| begin(connection, lock_wait, &change))??;
        let refused = match before_commit(value) {
            Ok(End::Commit) if may_commit() => None,
            Ok(End::Commit) => Some(Err(Error::waited_too_long())),
            Ok(End::RollBack) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        };
        if let Some(result) = refused {
            // If the rollback fails, nothing is committed either.
            let _ = self.end(AnsiTransactionManager::rollback_transaction);
            return result;
        }
        match self.end(AnsiTransactionManager::commit_transaction) {
            Ok(()) => Ok(()),
            Err(error) if is_undone(&error) => Err(error.into()),
            Err(error) => Err(Error::OutcomeUnknown(error.to_string())),
        }
    }

    /// Does `work`, and once more on another connection if the first was lost.
    fn retry_if_lost<T>(
        &mut self,
        deadline: Instant,
        work: impl Fn(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<T, Error> {
        let mut result = work(self.connection(deadline)?);
        if result.as_ref().is_err_and(is_lost) {
            self.discard();
            // What has ended one connection may have ended all. Those in use find out.
            while let Some(idle) = self.pool.try_get() {
                discard(idle);
            }
            result = work(self.connection(deadline)?);
        }
        self.discard_if_lost(&result);
        Ok(result?)
    }

    /// Ends the open transaction.
    fn end(&mut self, end: impl FnOnce(&mut PgConnection) -> QueryResult<()>) -> QueryResult<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let result = end(connection);
        self.discard_if_lost(&result);
        result
    }

    fn connection(&mut self, deadline: Instant) -> Result<&mut PgConnection, Error> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let timeout = deadline.saturating_duration_since(Instant::now());
                self.pool.get_timeout(timeout).map_err(|error| Error::Unavailable(error.to_string()))?
            }
        };
        Ok(self.connection.insert(connection))
    }

    fn discard_if_lost<T>(&mut self, result: &QueryResult<T>) {
        if result.as_ref().is_err_and(is_lost) {
            self.discard();
        }
    }

    /// Gives the connection back, for other jobs.
    pub fn release(&mut self) {
        self.connection = None;
    }

    /// Closes the connection.
    pub fn discard(&mut self) {
        if let Some(connection) = self.connection.take() {
            discard(connection);
        }
    }
}

/// Closes `connection`: it goes back as broken.
pub fn discard(mut connection: Pooled) {
    AnsiTransactionManager::transaction_manager_status_mut(&mut *connection).set_in_error();
}

/// Logs, once, that PostgreSQL gives the pool fewer connections than it would use. The monitor logs other failures.
#[derive(Debug, Default)]
pub struct Shortage(AtomicBool);

impl r2d2::HandleError<diesel::r2d2::Error> for Shortage {
    fn handle_error(&self, error: diesel::r2d2::Error) {
        let reason = error.to_string();
        if reason.contains("too many") && !self.0.swap(true, Ordering::Relaxed) {
            log::warn!("PostgreSQL gives fewer connections than DATABASE_CONNECTIONS: {reason}");
        }
    }
}

/// BEGIN, with the lock that keeps the grant from being given to another Redis meanwhile, then `change`. After an error
/// or a refusal the transaction is rolled back.
fn begin<T>(
    connection: &mut PgConnection,
    lock_wait: LockWait,
    change: impl Fn(&mut PgConnection) -> QueryResult<Result<T, Error>>,
) -> QueryResult<Result<T, Error>> {
    let sql = match lock_wait {
        LockWait::Short => BEGIN_WITH_SHORT_LOCK_WAIT,
        LockWait::Long => BEGIN,
    };
    if let Err(error) = AnsiTransactionManager::begin_transaction_sql(connection, sql) {
        // The lock may have failed after BEGIN. Diesel would not know of that transaction.
        let _ = connection.batch_execute("ROLLBACK");
        return Err(error);
    }
    let result = change(connection);
    if !matches!(result, Ok(Ok(_))) {
        // The first error says more than the error of a rollback on a dead connection.
        let _ = AnsiTransactionManager::rollback_transaction(connection);
    }
    result
}

/// Whether the connection can no longer be used: closed, or made while the database was read-only.
pub fn is_lost(error: &DieselError) -> bool {
    use DatabaseErrorKind::{ClosedConnection, ReadOnlyTransaction, UnableToSendCommand};
    matches!(
        error,
        DieselError::DatabaseError(ClosedConnection | ReadOnlyTransaction | UnableToSendCommand, _)
            | DieselError::BrokenTransactionManager
    )
}

/// Whether an error of COMMIT says that nothing was changed. After any other one it may have been.
fn is_undone(error: &DieselError) -> bool {
    use DatabaseErrorKind::{
        CheckViolation, ForeignKeyViolation, NotNullViolation, SerializationFailure, UniqueViolation,
    };
    matches!(
        error,
        DieselError::DatabaseError(
            CheckViolation | ForeignKeyViolation | NotNullViolation | SerializationFailure | UniqueViolation,
            _
        )
    )
}

/// Sets up a new connection.
#[derive(Debug)]
pub struct Setup(String);

impl Setup {
    /// Sets the server's own limits, from `settings`, and lets it plan each statement once. All our statements go by
    /// the primary key, so no other plan is ever better. By default, with few keys in a batch, the server would plan
    /// anew each time, which takes a fifth of its time; and a plan made while the table was empty might read all rows.
    /// No statement is worth being compiled. The beginning of a transaction is prepared, since it is sent as text.
    pub fn of(settings: &DatabaseSettings) -> Self {
        Self(format!(
            "{ONLY_A_USABLE_ONE}; {ALWAYS_DURABLE}; SET statement_timeout = {}; SET lock_timeout = {}; \
             SET idle_in_transaction_session_timeout = {}; \
             SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off; \
             PREPARE take_grant_lock AS SELECT pg_advisory_xact_lock_shared({GRANT_LOCK}); \
             PREPARE take_grant_lock_then_wait_shortly AS \
             SELECT pg_advisory_xact_lock_shared({GRANT_LOCK}), set_config('lock_timeout', '{}', true)",
            settings.statement_timeout.as_millis(),
            settings.lock_timeout.as_millis(),
            IDLE_IN_TRANSACTION.as_millis(),
            SHORT_LOCK_WAIT.as_millis(),
        ))
    }
}

impl CustomizeConnection<PgConnection, diesel::r2d2::Error> for Setup {
    fn on_acquire(&self, connection: &mut PgConnection) -> Result<(), diesel::r2d2::Error> {
        connection.batch_execute(&self.0).map_err(diesel::r2d2::Error::QueryError)
    }
}
