//! A database thread's connection: checked out once, kept until it fails, and the work done on it.

use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::r2d2::{ConnectionManager, CustomizeConnection, PooledConnection};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::{PgConnection, QueryResult};

use crate::config::DatabaseSettings;
use crate::error::Error;

/// An open transaction of ours that does nothing for so long is ended by the server: its process is gone or frozen.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);

/// Where connections come from.
pub type Pool = r2d2::Pool<ConnectionManager<PgConnection>>;

/// What a query came to, and when it was sent: it has seen every transaction that was committed by then.
#[derive(Debug)]
pub struct Seen<T> {
    /// The result.
    pub value: T,
    /// When the query was sent.
    pub as_of: Instant,
}

/// How a transaction ended.
pub struct Written<T, B> {
    /// What the change returned, if it is committed.
    pub result: Result<T, Error>,
    /// What was done before COMMIT, if it came so far.
    pub before_commit: Option<B>,
}

/// A thread's connection.
pub struct Lane {
    pool: Pool,
    connection: Option<PooledConnection<ConnectionManager<PgConnection>>>,
}

impl Lane {
    /// A lane that takes its connections from `pool`.
    pub fn new(pool: Pool) -> Self {
        Self { pool, connection: None }
    }

    /// Runs `query`, again on another connection if the first turns out to be dead.
    pub fn read<T>(
        &mut self,
        give_up: Instant,
        query: impl Fn(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<Seen<T>, Error> {
        self.again_if_lost(give_up, |connection| {
            let as_of = Instant::now();
            query(connection).map(|value| Seen { value, as_of })
        })
    }

    /// Runs a transaction: `change`, again if the connection is lost under it, then `before_commit`, then COMMIT,
    /// unless `may_commit` says that nobody waits for it any more.
    pub fn write<T, B>(
        &mut self,
        give_up: Instant,
        may_commit: &dyn Fn() -> bool,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<T, Error>>,
        before_commit: impl FnOnce(&T) -> Result<B, Error>,
    ) -> Written<T, B> {
        let refused = |error| Written { result: Err(error), before_commit: None };
        let value = match self.again_if_lost(give_up, |connection| begin_and(connection, &change)) {
            Ok(Ok(value)) => value,
            Ok(Err(error)) | Err(error) => return refused(error),
        };
        let before_commit = match before_commit(&value) {
            Ok(before_commit) => before_commit,
            Err(error) => {
                // Whatever becomes of it, nothing is committed.
                drop(self.end(AnsiTransactionManager::rollback_transaction));
                return refused(error);
            }
        };
        if !may_commit() {
            drop(self.end(AnsiTransactionManager::rollback_transaction));
            return Written { result: Err(Error::waited_too_long()), before_commit: Some(before_commit) };
        }
        let result = match self.end(AnsiTransactionManager::commit_transaction) {
            Ok(()) => Ok(value),
            Err(error) if is_lost(&error) => Err(Error::OutcomeUnknown(error.to_string())),
            Err(error) => Err(error.into()),
        };
        Written { result, before_commit: Some(before_commit) }
    }

    /// Does `work`, and once more on another connection if the first was lost.
    fn again_if_lost<T>(
        &mut self,
        give_up: Instant,
        work: impl Fn(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<T, Error> {
        let mut result = work(self.connection(give_up)?);
        if result.as_ref().is_err_and(is_lost) {
            self.discard();
            result = work(self.connection(give_up)?);
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

    fn connection(&mut self, give_up: Instant) -> Result<&mut PgConnection, Error> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let patience = give_up.saturating_duration_since(Instant::now());
                self.pool.get_timeout(patience).map_err(|error| Error::Unavailable(error.to_string()))?
            }
        };
        Ok(self.connection.insert(connection))
    }

    fn discard_if_lost<T>(&mut self, result: &QueryResult<T>) {
        if result.as_ref().is_err_and(is_lost) {
            self.discard();
        }
    }

    /// Gives the connection back as broken, so that the pool drops it and opens another.
    pub fn discard(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            AnsiTransactionManager::transaction_manager_status_mut(&mut *connection).set_in_error();
        }
    }
}

/// BEGIN, then `change`; after an error or a refusal the transaction is rolled back.
fn begin_and<T>(
    connection: &mut PgConnection,
    change: impl Fn(&mut PgConnection) -> QueryResult<Result<T, Error>>,
) -> QueryResult<Result<T, Error>> {
    AnsiTransactionManager::begin_transaction(connection)?;
    let result = change(connection);
    if !matches!(result, Ok(Ok(_))) {
        // The first error tells more than what a rollback on a dead connection says.
        drop(AnsiTransactionManager::rollback_transaction(connection));
    }
    result
}

/// Whether the connection is of no more use: closed, or to a server that has become a read-only standby.
fn is_lost(error: &DieselError) -> bool {
    use DatabaseErrorKind::{ClosedConnection, ReadOnlyTransaction, UnableToSendCommand};
    matches!(
        error,
        DieselError::DatabaseError(ClosedConnection | ReadOnlyTransaction | UnableToSendCommand, _)
            | DieselError::BrokenTransactionManager
    )
}

/// Sets up a new connection.
#[derive(Debug)]
pub struct Setup(String);

impl Setup {
    /// The server's own limits, from `settings`; and that it plans each statement once. All of ours go by the primary key, so
    /// that no other plan is ever better; but with few keys in a batch the server would plan anew each time, which takes
    /// a fifth of its time, and on a table that was empty when it planned it might read all rows.
    pub fn of(settings: &DatabaseSettings) -> Self {
        Self(format!(
            "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
             SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off",
            settings.statement_timeout.as_millis(),
            settings.lock_timeout.as_millis(),
            IDLE_IN_TRANSACTION.as_millis(),
        ))
    }
}

impl CustomizeConnection<PgConnection, diesel::r2d2::Error> for Setup {
    fn on_acquire(&self, connection: &mut PgConnection) -> Result<(), diesel::r2d2::Error> {
        connection.batch_execute(&self.0).map_err(diesel::r2d2::Error::QueryError)
    }
}
