//! PostgreSQL: the r2d2 pool, and the only bridge from async code to Diesel.
//!
//! Worker threads, one a connection, take jobs from one bounded queue. A job has a connection of the pool until it ends.
//! The pool opens connections when they are needed and validates none: a job finds out, and takes another. Work that can
//! be done for many requests at once waits in a [`Batcher`] instead.
//!
//! Every caller has a deadline of its own. When PostgreSQL is frozen a thread can be stuck in it for long, whatever
//! time-outs are set; but no request waits with it, and no more threads than the connections get stuck.

mod batch;
mod conninfo;
mod expression;
mod grant;
mod grant_row;
mod granter;
mod look;
mod migrations;
mod monitor;
mod outcome;
mod pending;
mod queue;
pub(crate) mod schema;
mod session;
mod statements;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{io, thread};

use diesel::r2d2::ConnectionManager;
use diesel::{PgConnection, QueryResult};
use prometheus::IntGauge;
use tokio::sync::{Semaphore, oneshot};

pub use self::batch::{Batch, Batcher, Repeats, UnderWay, Waiter};
use self::conninfo::connection_string;
pub use self::expression::{InTransaction, RowIsClear};
pub use self::grant::{Grants, Waited};
pub use self::grant_row::{Reason, Transaction, purge_all};
use self::granter::Granter;
pub use self::granter::Offer;
pub use self::migrations::{Schema, run_once};
use self::monitor::Monitor;
pub use self::monitor::Status;
pub use self::outcome::Outcome;
pub use self::pending::{Late, Pending};
use self::queue::{Job, WorkQueue};
pub use self::session::{End, LockWait, Seen};
use self::session::{Session, Shortage};
use self::statements::{Beginnings, Setup};
use crate::config::DatabaseSettings;
use crate::error::Error;
use crate::metrics::DatabaseMetrics;

/// A handle to PostgreSQL; clones share the worker threads.
#[derive(Clone)]
pub struct Database {
    queue: Arc<WorkQueue>,
    quarter: usize,
    /// A permit for each write that waits for the cache.
    places: Arc<Semaphore>,
    timeout: Duration,
    monitor: Arc<Monitor>,
    metrics: DatabaseMetrics,
}

impl Database {
    /// Starts the worker threads and the monitor. Does not wait for PostgreSQL, which need not be there yet.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(settings: &DatabaseSettings, schema: Schema, metrics: DatabaseMetrics) -> io::Result<Self> {
        let url = connection_string(settings);
        let pool = r2d2::Pool::builder()
            .max_size(u32::try_from(settings.connections).unwrap_or(u32::MAX))
            .min_idle(Some(0)) // the monitor's connection comes first, if the role may not have many
            .test_on_check_out(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connection_timeout(settings.timeout)
            .connection_customizer(Box::new(Setup::of(settings)))
            .error_handler(Box::new(Shortage::default()))
            .build_unchecked(ConnectionManager::new(&url));
        let queue = Arc::new(WorkQueue::new(settings.queue));
        let beginnings = Arc::new(Beginnings::of(settings));
        for number in 0..settings.connections {
            let session = Session::new(pool.clone(), beginnings.clone());
            let queue = Arc::downgrade(&queue);
            let metrics = metrics.clone();
            let thread = thread::Builder::new().name(format!("database-{number}"));
            thread.spawn(move || work(session, &queue, &metrics))?;
        }
        let monitor = Arc::new(Monitor::new(settings, schema, pool, metrics.grant.clone()));
        let granter = Granter::new(settings.grant_life, metrics.grant.clone());
        let watching = monitor.clone();
        let thread = thread::Builder::new().name("database-monitor".into());
        thread.spawn(move || watching.watch(&url, granter))?;
        let quarter = (settings.connections / 4).max(1);
        Ok(Self {
            queue,
            quarter,
            places: Arc::new(Semaphore::new(settings.queue)),
            timeout: settings.timeout,
            monitor,
            metrics,
        })
    }

    /// Whether PostgreSQL can be used now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.monitor.status()
    }

    /// Whether PostgreSQL can be read, or was read before; if not, why.
    ///
    /// # Errors
    /// What to tell an operator.
    pub fn is_readable(&self) -> Result<(), &'static str> {
        match self.status() {
            Status::Ready | Status::Away => Ok(()),
            Status::Starting => {
                Err(self.monitor.obstacle().unwrap_or("The service waits for PostgreSQL and its schema."))
            }
        }
    }

    /// Whether PostgreSQL takes writes now; if not, why.
    ///
    /// # Errors
    /// What to tell an operator.
    pub fn is_writable(&self) -> Result<(), &'static str> {
        self.is_readable()?;
        if self.status() == Status::Away {
            return Err(self.monitor.obstacle().unwrap_or("PostgreSQL is away."));
        }
        if self.monitor.is_read_only() {
            return Err("PostgreSQL is read-only.");
        }
        if self.grants().known().is_none() {
            return Err("The service waits to know which Redis may be used.");
        }
        Ok(())
    }

    /// What is known of the grant.
    #[must_use]
    pub fn grants(&self) -> &Grants {
        &self.monitor.grants
    }

    /// Has the grant of `epoch` suspended, as soon as PostgreSQL can be asked.
    pub fn suspend(&self, epoch: i64, reason: Reason) {
        self.monitor.suspend(epoch, reason);
    }

    /// Looks at the grant at once, and lets no write begin under that of `tag`, which is over.
    pub fn look_beyond(&self, tag: u64) {
        self.monitor.look_beyond(tag);
    }

    /// Offers a Redis process for the grant, or none.
    pub fn offer(&self, offer: Option<Offer>) {
        self.monitor.offer(offer);
    }

    /// Waits until `transaction` has ended, however long that takes. It began, or went on, while the newest look was in
    /// the monitor's session `session` with the same server; none if that is not known.
    pub async fn outcome(&self, transaction: String, session: Option<u64>) -> Outcome {
        self.monitor.outcome(transaction, session).await.unwrap_or(Outcome::Ended)
    }

    /// How long a request may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The deadline of a request that has just arrived.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Waits until `deadline` for the moment when a write may begin: Redis is granted, or no reader uses it any more.
    /// Returns whether that took time.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once if too many requests wait, [`Error::Unavailable`] at `deadline`.
    pub async fn writable(&self, deadline: Instant) -> Result<Waited, Error> {
        if self.grants().is_writable() {
            return Ok(Waited::No);
        }
        let Ok(_place) = self.places.try_acquire() else { return Err(self.refuse()) };
        let _waiting = self.waits();
        self.grants().writable(deadline).await
    }

    fn ensure_available(&self) -> Result<(), Error> {
        match self.status() {
            Status::Ready => Ok(()),
            Status::Starting => Err(Error::Unavailable("PostgreSQL has not been looked at yet".into())),
            Status::Away => Err(Error::Unavailable("PostgreSQL is away".into())),
        }
    }

    /// How many requests may wait.
    #[must_use]
    pub fn queue(&self) -> usize {
        self.queue.bound()
    }

    /// The error of a request that finds the queue full, counted.
    #[must_use]
    pub fn refuse(&self) -> Error {
        self.metrics.refused.inc();
        Error::Overloaded
    }

    /// The error of a request whose time is over, or too short, before its work has begun, counted.
    #[must_use]
    pub fn too_late(&self) -> Error {
        self.metrics.timeouts.inc();
        Error::waited_too_long()
    }

    /// Counts a request as waiting for as long as the value lives.
    #[must_use]
    pub fn waits(&self) -> Counted<'_> {
        Counted::new(&self.metrics.waiting)
    }

    /// A quarter of the connections, but one at least: the share that one purpose may take from the others.
    #[must_use]
    pub fn quarter(&self) -> usize {
        self.quarter
    }

    /// Runs `query`, which must only read: it runs once more if its connection turns out to be dead.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once when the queue is full, [`Error::Unavailable`] when PostgreSQL is away or
    /// `deadline` passes, and the error of `query`.
    pub async fn read<T: Send + 'static>(
        &self,
        deadline: Instant,
        query: impl Fn(&mut PgConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<Seen<T>, Error> {
        let mut pending =
            self.enqueue(deadline, move |session, deadline, _| session.read(deadline, query))?;
        match pending.before_deadline().await {
            Ok(result) => result?,
            Err(_) => Err(Error::waited_too_long()),
        }
    }

    /// Queues a transaction: `change`, which may be run a second time if the connection was lost under it, then
    /// `before_commit` with its result, which says how it ends and may still refuse, then COMMIT.
    ///
    /// Its result is [`Error::OutcomeUnknown`] if COMMIT fails in a way that leaves that open.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when the queue is full, [`Error::Unavailable`] when PostgreSQL is away or read-only.
    pub fn write<T: 'static>(
        &self,
        deadline: Instant,
        lock_wait: LockWait,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<T, Error>> + Send + 'static,
        before_commit: impl FnOnce(T) -> Result<End, Error> + Send + 'static,
    ) -> Result<Pending<Result<(), Error>>, Error> {
        if self.monitor.is_read_only() {
            return Err(Error::Unavailable("PostgreSQL is read-only".into()));
        }
        self.enqueue(deadline, move |session, deadline, may_commit| {
            session.write(deadline, lock_wait, may_commit, change, before_commit)
        })
    }

    fn enqueue<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&mut Session, Instant, &dyn Fn() -> bool) -> T + Send + 'static,
    ) -> Result<Pending<T>, Error> {
        self.ensure_available()?;
        let (reply, result) = oneshot::channel();
        let decided = Arc::new(AtomicBool::new(false));
        let job_decided = decided.clone();
        let job: Job = Box::new(move |session| {
            if !reply.is_closed() && Instant::now() < deadline {
                let may_commit = || !job_decided.swap(true, Ordering::AcqRel);
                // The caller may be gone by now.
                let _ = reply.send(work(session, deadline, &may_commit));
            }
        });
        self.metrics.waiting.inc();
        if !self.queue.push(job) {
            self.metrics.waiting.dec();
            return Err(self.refuse());
        }
        Ok(Pending { result, decided, deadline, timeouts: self.metrics.timeouts.clone() })
    }
}

/// One more in a gauge, until it is dropped.
pub struct Counted<'a>(&'a IntGauge);

impl<'a> Counted<'a> {
    fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One worker thread: takes jobs until every handle is gone.
fn work(mut session: Session, queue: &Weak<WorkQueue>, metrics: &DatabaseMetrics) {
    while let Some(job) = WorkQueue::next(queue) {
        metrics.waiting.dec();
        metrics.in_use.inc();
        match catch_unwind(AssertUnwindSafe(|| job(&mut session))) {
            Ok(()) => session.release(),
            // The job's reply is dropped with it, which its caller sees. Its connection may be in any state.
            Err(_) => session.discard(),
        }
        metrics.in_use.dec();
    }
}
