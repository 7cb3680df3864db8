//! PostgreSQL: the r2d2 pool, and the only bridge from async code to Diesel.
//!
//! A crew of threads, one a connection, takes work from one bounded queue. A thread checks its connection out once
//! and keeps it until it fails, so that the pool's validation query is paid after an error, not at each query. What
//! can be done for many at once waits in [`Batches`] instead.
//!
//! Every caller has a deadline of its own: when PostgreSQL is frozen a thread can be stuck in it for long, whatever
//! time-outs are set, but no request waits with it, and no more threads than the crew get stuck.

mod batch;
mod migrations;
mod monitor;
mod pending;
mod queue;
#[expect(missing_docs, reason = "printed by the Diesel CLI")]
pub mod schema;
mod session;
mod url;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{io, thread};

use diesel::r2d2::ConnectionManager;
use diesel::{PgConnection, QueryResult};
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout_at;

use self::monitor::Monitor;
use self::queue::{Job, Jobs};
use self::session::{Lane, Setup};
use self::url::connection_url;
use crate::config::DatabaseSettings;
use crate::error::Error;
use crate::metrics::DatabaseMetrics;

pub use self::batch::{Batch, Batches, Member};
pub use self::migrations::{Schema, run_once};
pub use self::monitor::Status;
pub use self::pending::{Late, Pending};
pub use self::session::{Seen, Written};

/// A handle to PostgreSQL; clones share one crew.
#[derive(Clone)]
pub struct Database {
    jobs: Arc<Jobs>,
    quarter: usize,
    /// For those who hold a connection for long.
    turns: Arc<Semaphore>,
    /// For those who wait for one of these turns.
    places: Arc<Semaphore>,
    deadline: Duration,
    monitor: Arc<Monitor>,
    metrics: DatabaseMetrics,
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
            .connection_customizer(Box::new(Setup::of(settings)))
            .error_handler(Box::new(r2d2::NopErrorHandler)) // the monitor tells, once
            .build_unchecked(ConnectionManager::new(&url));
        let jobs = Arc::new(Jobs::new(settings.queue));
        for number in 0..settings.connections {
            let (lane, jobs, metrics) = (Lane::new(pool.clone()), Arc::downgrade(&jobs), metrics.clone());
            let thread = thread::Builder::new().name(format!("database-{number}"));
            thread.spawn(move || work(lane, &jobs, &metrics))?;
        }
        let monitor = Arc::new(Monitor::new());
        let watching = monitor.clone();
        let thread = thread::Builder::new().name("database-monitor".into());
        thread.spawn(move || watching.watch(&url, schema))?;
        let quarter = (settings.connections / 4).max(1);
        Ok(Self {
            jobs,
            quarter,
            turns: Arc::new(Semaphore::new(quarter)),
            places: Arc::new(Semaphore::new(settings.queue)),
            deadline: settings.deadline,
            monitor,
            metrics,
        })
    }

    /// Whether PostgreSQL can be used now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.monitor.status()
    }

    /// How long a request may take.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// When a request that has just arrived is to give up.
    #[must_use]
    pub fn give_up(&self) -> Instant {
        Instant::now() + self.deadline
    }

    /// When a request that is to give up at `give_up` has used half of its time: who has got no further by then would
    /// hardly be done in the other half, and only take that time from those who come after.
    #[must_use]
    pub fn half_time(&self, give_up: Instant) -> Instant {
        give_up.checked_sub(self.deadline / 2).unwrap_or(give_up)
    }

    /// Waits until `patience` ends for leave to hold a connection for long. At most a quarter of all may be held so: the
    /// others must be free for the rest.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once if as many wait as may, [`Error::Unavailable`] when PostgreSQL is away or `patience` ends.
    pub async fn turn(&self, patience: Instant) -> Result<OwnedSemaphorePermit, Error> {
        self.check_there()?;
        let Ok(_place) = self.places.try_acquire() else { return Err(self.refuse()) };
        let _waiting = Counted::new(&self.metrics.waiting);
        match timeout_at(patience.into(), self.turns.clone().acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(self.too_late()),
        }
    }

    fn check_there(&self) -> Result<(), Error> {
        match self.status() {
            Status::Away => Err(Error::Unavailable("PostgreSQL is away".into())),
            Status::Starting | Status::Ready => Ok(()),
        }
    }

    /// How many may wait.
    #[must_use]
    pub fn queue(&self) -> usize {
        self.jobs.bound()
    }

    /// The error of a request that would wait with as many as may, counted.
    #[must_use]
    pub fn refuse(&self) -> Error {
        self.metrics.refused.inc();
        Error::Overloaded
    }

    /// The error of a request that is given up before its work has begun, since its time is over or too short, counted.
    #[must_use]
    pub fn too_late(&self) -> Error {
        self.metrics.timeouts.inc();
        Error::waited_too_long()
    }

    /// A quarter of the connections, but one at least: what may be used for one purpose while there are others.
    #[must_use]
    pub fn quarter(&self) -> usize {
        self.quarter
    }

    /// Runs `query`, which must only read: it is run once more if its connection turns out to be dead.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once when the queue is full, [`Error::Unavailable`] when PostgreSQL is away or
    /// `give_up` passes, and what `query` fails with.
    pub async fn read<T: Send + 'static>(
        &self,
        give_up: Instant,
        query: impl Fn(&mut PgConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<Seen<T>, Error> {
        let mut pending = self.enqueue(give_up, move |lane, give_up, _| lane.read(give_up, query))?;
        match pending.by_deadline().await {
            Ok(result) => result?,
            Err(_) => Err(Error::waited_too_long()),
        }
    }

    /// Queues a transaction: `change`, which may be run a second time if the connection was lost under it, then
    /// `before_commit` with its result, which may still refuse, then COMMIT.
    ///
    /// Its result is [`Error::OutcomeUnknown`] when the connection is lost during COMMIT.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when the queue is full, [`Error::Unavailable`] when PostgreSQL is away.
    pub fn write<T: Send + 'static, B: Send + 'static>(
        &self,
        give_up: Instant,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<T, Error>> + Send + 'static,
        before_commit: impl FnOnce(&T) -> Result<B, Error> + Send + 'static,
    ) -> Result<Pending<Written<T, B>>, Error> {
        self.enqueue(give_up, move |lane, give_up, may_commit| {
            lane.write(give_up, may_commit, change, before_commit)
        })
    }

    fn enqueue<T: Send + 'static>(
        &self,
        give_up: Instant,
        work: impl FnOnce(&mut Lane, Instant, &dyn Fn() -> bool) -> T + Send + 'static,
    ) -> Result<Pending<T>, Error> {
        self.check_there()?;
        let (reply, result) = oneshot::channel();
        let decided = Arc::new(AtomicBool::new(false));
        let job_decided = decided.clone();
        let job: Job = Box::new(move |lane| {
            if !reply.is_closed() && Instant::now() < give_up {
                let may_commit = || !job_decided.swap(true, Ordering::AcqRel);
                // The caller may be gone by now: nobody is left to tell.
                drop(reply.send(work(lane, give_up, &may_commit)));
            }
        });
        self.metrics.waiting.inc();
        if !self.jobs.push(job) {
            self.metrics.waiting.dec();
            return Err(self.refuse());
        }
        Ok(Pending { result, decided, give_up, metrics: self.metrics.clone() })
    }
}

/// One more in a gauge, until it is dropped.
struct Counted<'a>(&'a IntGauge);

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

/// One thread of the crew: takes jobs until every handle is gone.
fn work(mut lane: Lane, jobs: &Weak<Jobs>, metrics: &DatabaseMetrics) {
    while let Some(job) = Jobs::next(jobs) {
        metrics.waiting.dec();
        metrics.in_use.inc();
        if catch_unwind(AssertUnwindSafe(|| job(&mut lane))).is_err() {
            // The job's reply is dropped with it, which tells its caller. Its connection may be anywhere.
            lane.discard();
        }
        metrics.in_use.dec();
    }
}
