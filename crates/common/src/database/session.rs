//! The connection that a job has, and the transactions on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::r2d2::{ConnectionManager, PooledConnection};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::{PgConnection, QueryResult};

use super::statements::Beginnings;
use crate::error::Error;

/// How often a job that waits for a connection asks the pool for one. The pool opens a connection when it is asked, and
/// not when one is closed while jobs wait: that one may be the last, lent to the monitor.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How long a transaction waits for what another session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockWait {
    /// Not for rows, which are left out (`SKIP LOCKED`). For keys, which cannot be, as [`LockWait::Short`].
    Skip,
    /// Longer than another service's transaction takes.
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
    beginnings: Arc<Beginnings>,
    connection: Option<Pooled>,
}

/// A connection that goes back to the pool when it is dropped.
pub type Pooled = PooledConnection<ConnectionManager<PgConnection>>;

impl Session {
    /// A session that takes its connections from `pool`, and begins transactions by `beginnings`.
    pub fn new(pool: Pool, beginnings: Arc<Beginnings>) -> Self {
        Self { pool, beginnings, connection: None }
    }

    /// Runs `query`, again on another connection if the first turns out to be dead. It is one statement, or a
    /// transaction of its own if settings must travel with that.
    pub fn read<T>(
        &mut self,
        deadline: Instant,
        query: impl Fn(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<Seen<T>, Error> {
        let beginnings = self.beginnings.clone();
        let Some(sql) = beginnings.read() else {
            return self.retry_if_lost(deadline, |connection| {
                let as_of = Instant::now();
                query(connection).map(|value| Seen { value, as_of })
            });
        };
        let seen = self.retry_if_lost(deadline, |connection| {
            let as_of = Instant::now();
            begin(connection, sql, |connection| query(connection).map(|value| Ok(Seen { value, as_of })))
        })?;
        // It has changed nothing, so that its end says nothing.
        let _ = self.end(AnsiTransactionManager::commit_transaction);
        seen
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
        let beginnings = self.beginnings.clone();
        let sql = beginnings.write(lock_wait);
        let value = self.retry_if_lost(deadline, |connection| begin(connection, sql, &change))??;
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
            None => take(&self.pool, deadline)?,
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

/// A connection of `pool`, by `deadline`.
fn take(pool: &Pool, deadline: Instant) -> Result<Pooled, Error> {
    let mut reason = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match pool.get_timeout(left.min(ASK_AGAIN)) {
            Ok(connection) => return Ok(connection),
            Err(error) => error.to_string(),
        };
        // Only an answer that follows a failed attempt to connect has its cause, after the usual words.
        if error.len() >= reason.len() {
            reason = error;
        }
        if left <= ASK_AGAIN {
            return Err(Error::Unavailable(reason));
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

/// BEGIN by `sql`, then `change`. After an error or a refusal the transaction is rolled back.
fn begin<T>(
    connection: &mut PgConnection,
    sql: &str,
    change: impl Fn(&mut PgConnection) -> QueryResult<Result<T, Error>>,
) -> QueryResult<Result<T, Error>> {
    if let Err(error) = AnsiTransactionManager::begin_transaction_sql(connection, sql) {
        // What follows BEGIN in the text may have failed. Diesel would not know of that transaction.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_who_gets_no_connection_has_the_reason_of_an_earlier_attempt() {
        let manager = ConnectionManager::new("postgres://127.0.0.1:1/none");
        let pool = Pool::builder().max_size(1).min_idle(Some(0)).error_handler(Box::<Shortage>::default());
        let pool = pool.build_unchecked(manager);
        // The pool tries at once, and pauses for longer each time: there is no attempt shortly before the end.
        let result = take(&pool, Instant::now() + 8 * ASK_AGAIN);
        let Err(Error::Unavailable(reason)) = result.map(drop) else { panic!("there is no server") };
        assert!(reason.contains("refused"), "{reason}");
    }
}
