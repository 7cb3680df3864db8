//! PostgreSQL: the r2d2 pool, and the only bridge from async code to Diesel.
//!
//! A crew of threads, one a connection, takes work from one bounded queue. A thread checks its connection out once
//! and keeps it until it fails, so that the pool's validation query is paid after an error, not at each query.
//!
//! Every caller has a deadline of its own: when PostgreSQL is frozen a thread can be stuck in it for long, whatever
//! time-outs are set, but no request waits with it, and no more threads than the crew get stuck.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use crossbeam_channel::{Receiver, Sender, bounded};
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::r2d2::{ConnectionManager, CustomizeConnection, PooledConnection};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::{Connection, PgConnection, QueryResult};
use tokio::sync::oneshot;
use url::Url;

use crate::config::DatabaseSettings;
use crate::error::Error;
use crate::metrics::DatabaseMetrics;
use crate::migrations::Schema;

/// How often the monitor looks whether PostgreSQL is there.
const MONITOR_INTERVAL: Duration = Duration::from_millis(250);
/// How long a look may take before PostgreSQL counts as away.
const MONITOR_PATIENCE: Duration = Duration::from_secs(2);
/// Reasons why PostgreSQL cannot be used that are told during one outage, at most.
const REASONS: usize = 8;
/// An open transaction of ours that does nothing for so long is ended by the server: its process is gone or frozen.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);

type Pool = r2d2::Pool<ConnectionManager<PgConnection>>;

/// A handle to PostgreSQL; clones share one crew.
#[derive(Clone, Debug)]
pub struct Database {
    queue: Sender<Job>,
    deadline: Duration,
    monitor: Arc<Monitor>,
    metrics: DatabaseMetrics,
}

/// Whether PostgreSQL can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// There was no contact yet, or the schema is not there.
    Starting,
    /// It answers.
    Ready,
    /// It answered once, and does not now.
    Away,
}

type Job = Box<dyn FnOnce(&mut Lane) + Send>;

/// What a caller of [`Database::submit`] can come back with when there is no result.
enum Missed {
    /// Nothing has been changed, and never will be.
    Undone(Error),
    /// COMMIT was under way; it may still end well.
    Committing,
}

impl Database {
    /// Starts the crew and the monitor. Does not wait for PostgreSQL, which need not be there yet.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(settings: &DatabaseSettings, schema: Schema, metrics: DatabaseMetrics) -> io::Result<Self> {
        let url = connection_url(settings);
        let pool = r2d2::Pool::builder()
            .max_size(u32::try_from(settings.connections).unwrap_or(u32::MAX))
            .connection_timeout(settings.deadline)
            .connection_customizer(Box::new(TimeOuts::of(settings)))
            .error_handler(Box::new(r2d2::NopErrorHandler)) // the monitor tells, once
            .build_unchecked(ConnectionManager::new(&url));
        let (queue, jobs) = bounded(settings.queue);
        for number in 0..settings.connections {
            let lane = Lane { pool: pool.clone(), connection: None };
            let (jobs, metrics) = (jobs.clone(), metrics.clone());
            thread::Builder::new()
                .name(format!("database-{number}"))
                .spawn(move || work(lane, &jobs, &metrics))?;
        }
        let monitor = Arc::new(Monitor::new());
        let watching = monitor.clone();
        thread::Builder::new().name("database-monitor".into()).spawn(move || watching.watch(&url, schema))?;
        Ok(Self { queue, deadline: settings.deadline, monitor, metrics })
    }

    /// Whether PostgreSQL can be used now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.monitor.status()
    }

    /// Runs `query`, which must only read: it is run once more if its connection turns out to be dead.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once when the queue is full, [`Error::Unavailable`] when PostgreSQL is away or the
    /// deadline passes, and what `query` fails with.
    pub async fn read<T: Send + 'static>(
        &self,
        query: impl Fn(&mut PgConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, Error> {
        let result = self.submit(move |lane, give_up, _| lane.read(give_up, query)).await;
        result.unwrap_or_else(|missed| match missed {
            Missed::Undone(error) => Err(error),
            Missed::Committing => Err(Error::Internal("a read has nothing to commit".into())),
        })
    }

    /// Runs `change` in a transaction of its own, and commits it. `change` may be run a second time, if the
    /// connection was lost before COMMIT.
    ///
    /// # Errors
    /// As [`Database::read`]; and [`Error::OutcomeUnknown`] when the connection is lost during COMMIT, or the
    /// deadline passes during it.
    pub async fn write<T: Send + 'static>(
        &self,
        change: impl Fn(&mut PgConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, Error> {
        let result = self.submit(move |lane, give_up, may_commit| lane.write(give_up, may_commit, change)).await;
        result.unwrap_or_else(|missed| match missed {
            Missed::Undone(error) => Err(error),
            Missed::Committing => Err(Error::OutcomeUnknown("COMMIT was under way at the deadline".into())),
        })
    }

    /// Queues `work`, and waits for its result until the deadline.
    async fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Lane, Instant, &dyn Fn() -> bool) -> Result<T, Error> + Send + 'static,
    ) -> Result<Result<T, Error>, Missed> {
        if self.status() == Status::Away {
            return Err(Missed::Undone(Error::Unavailable("PostgreSQL is away".into())));
        }
        let give_up = Instant::now() + self.deadline;
        let (reply, result) = oneshot::channel();
        // Whoever sets it first, the thread to commit or the caller to give up, has decided: what a caller was told
        // has not happened will not happen later.
        let decided = Arc::new(AtomicBool::new(false));
        let job_decided = decided.clone();
        let job: Job = Box::new(move |lane| {
            if !reply.is_closed() {
                let may_commit = || !job_decided.swap(true, Ordering::AcqRel);
                // The caller may be gone by now: nobody is left to tell.
                drop(reply.send(work(lane, give_up, &may_commit)));
            }
        });
        if self.queue.try_send(job).is_err() {
            self.metrics.refused.inc();
            return Err(Missed::Undone(Error::Overloaded));
        }
        self.metrics.waiting.set(self.queue.len().try_into().unwrap_or(i64::MAX));

        match tokio::time::timeout_at(give_up.into(), result).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Ok(Err(Error::Internal("a database thread panicked".into()))),
            Err(_) => {
                self.metrics.timeouts.inc();
                let committing = decided.swap(true, Ordering::AcqRel);
                let late = || Error::Unavailable("queue and query took longer than the deadline".into());
                Err(if committing { Missed::Committing } else { Missed::Undone(late()) })
            }
        }
    }
}

/// One thread of the crew: takes jobs until every handle is gone.
fn work(mut lane: Lane, jobs: &Receiver<Job>, metrics: &DatabaseMetrics) {
    for job in jobs {
        metrics.waiting.set(jobs.len().try_into().unwrap_or(i64::MAX));
        metrics.in_use.inc();
        if catch_unwind(AssertUnwindSafe(|| job(&mut lane))).is_err() {
            // The job's reply is dropped with it, which tells its caller. Its connection may be anywhere.
            lane.discard();
        }
        metrics.in_use.dec();
    }
}

/// A thread's connection, checked out until it fails.
struct Lane {
    pool: Pool,
    connection: Option<PooledConnection<ConnectionManager<PgConnection>>>,
}

impl Lane {
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

    /// Gives the connection back as broken, so that the pool drops it and opens another.
    fn discard(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            AnsiTransactionManager::transaction_manager_status_mut(&mut *connection).set_in_error();
        }
    }

    fn read<T>(
        &mut self,
        give_up: Instant,
        query: impl Fn(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<T, Error> {
        let mut result = query(self.connection(give_up)?);
        if result.as_ref().is_err_and(is_lost) {
            self.discard();
            result = query(self.connection(give_up)?);
        }
        self.keep_if_sound(&result);
        Ok(result?)
    }

    fn write<T>(
        &mut self,
        give_up: Instant,
        may_commit: &dyn Fn() -> bool,
        change: impl Fn(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<T, Error> {
        let mut result = begin_and(self.connection(give_up)?, &change);
        if result.as_ref().is_err_and(is_lost) {
            self.discard();
            result = begin_and(self.connection(give_up)?, &change);
        }
        self.keep_if_sound(&result);
        let value = result?;
        if !may_commit() {
            let rollback = AnsiTransactionManager::rollback_transaction(self.connection(give_up)?);
            self.keep_if_sound(&rollback);
            return Err(Error::Unavailable("the deadline passed before COMMIT".into()));
        }
        let commit = AnsiTransactionManager::commit_transaction(self.connection(give_up)?);
        self.keep_if_sound(&commit);
        match commit {
            Ok(()) => Ok(value),
            Err(error) if is_lost(&error) => Err(Error::OutcomeUnknown(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    fn keep_if_sound<T>(&mut self, result: &QueryResult<T>) {
        if result.as_ref().is_err_and(is_lost) {
            self.discard();
        }
    }
}

/// BEGIN, then `change`; after an error the transaction is rolled back.
fn begin_and<T>(
    connection: &mut PgConnection,
    change: impl Fn(&mut PgConnection) -> QueryResult<T>,
) -> QueryResult<T> {
    AnsiTransactionManager::begin_transaction(connection)?;
    let result = change(connection);
    if result.is_err() {
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

/// Sets the server's own limits on a new connection.
#[derive(Debug)]
struct TimeOuts(String);

impl TimeOuts {
    fn of(settings: &DatabaseSettings) -> Self {
        Self(format!(
            "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}",
            settings.statement_timeout.as_millis(),
            settings.lock_timeout.as_millis(),
            IDLE_IN_TRANSACTION.as_millis(),
        ))
    }
}

impl CustomizeConnection<PgConnection, diesel::r2d2::Error> for TimeOuts {
    fn on_acquire(&self, connection: &mut PgConnection) -> Result<(), diesel::r2d2::Error> {
        connection.batch_execute(&self.0).map_err(diesel::r2d2::Error::QueryError)
    }
}

/// The URL with what bounds a connection to a server that has vanished, unless it says so itself.
#[must_use]
pub fn connection_url(settings: &DatabaseSettings) -> String {
    let Ok(mut url) = Url::parse(settings.url.expose()) else { return settings.url.expose().to_owned() };
    let bounds = [
        ("connect_timeout", "2"), // seconds, the least that libpq takes
        ("keepalives_idle", "5"),
        ("keepalives_interval", "2"),
        ("keepalives_count", "3"),
        ("tcp_user_timeout", "10000"),
        ("fallback_application_name", "users"),
    ];
    for (name, value) in bounds {
        if !url.query_pairs().any(|(given, _)| given == name) {
            url.query_pairs_mut().append_pair(name, value);
        }
    }
    url.into()
}

/// Watches PostgreSQL on a connection of its own, so that a busy crew does not look like an absent server.
#[derive(Debug)]
struct Monitor {
    start: Instant,
    /// Whether it was ready once.
    was_ready: AtomicBool,
    /// Milliseconds from `start` to the end of the newest look that went well, plus one; 0 after one that failed.
    seen: AtomicU64,
}

impl Monitor {
    fn new() -> Self {
        Self { start: Instant::now(), was_ready: AtomicBool::new(false), seen: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX) + 1
    }

    fn status(&self) -> Status {
        if !self.was_ready.load(Ordering::Acquire) {
            return Status::Starting;
        }
        let seen = self.seen.load(Ordering::Acquire);
        // A frozen server makes no look fail; it makes the newest good one old.
        let bound = u64::try_from((MONITOR_INTERVAL + MONITOR_PATIENCE).as_millis()).unwrap_or(u64::MAX);
        if seen != 0 && self.now().saturating_sub(seen) <= bound { Status::Ready } else { Status::Away }
    }

    fn watch(&self, url: &str, schema: Schema) {
        // Reasons that were told already; more than one, since a server that comes up refuses in several ways by turns.
        let mut told: Vec<String> = Vec::new();
        let mut failures = 0;
        loop {
            let why = match self.watch_connection(url, schema) {
                Ok(()) => {
                    told.clear();
                    failures = 0;
                    continue; // the connection is lost: the next attempt tells whether the server is
                }
                Err(error) => error.to_string(),
            };
            // One failure may be the monitor's own: its connection reset while it was made, the last one taken by another.
            failures += 1;
            if failures > 1 {
                self.seen.store(0, Ordering::Release);
            }
            if !told.contains(&why) && told.len() < REASONS {
                log::warn!("PostgreSQL cannot be used, trying on: {why}");
                told.push(why);
            }
            thread::sleep(MONITOR_INTERVAL);
        }
    }

    /// Connects, prepares the schema the first time, and looks until the connection is lost.
    fn watch_connection(&self, url: &str, schema: Schema) -> crate::start::Outcome {
        let mut connection = PgConnection::establish(url)?;
        if !self.was_ready.load(Ordering::Acquire) {
            schema.prepare(&mut connection)?;
        }
        connection.batch_execute("SELECT 1")?;
        log::info!("PostgreSQL is there");
        loop {
            self.seen.store(self.now(), Ordering::Release);
            self.was_ready.store(true, Ordering::Release);
            thread::sleep(MONITOR_INTERVAL);
            if connection.batch_execute("SELECT 1").is_err() {
                return Ok(());
            }
        }
    }
}
