//! The monitor: a thread that looks at PostgreSQL four times a second, on a connection of its own.
//!
//! Each look says whether PostgreSQL can be used, and shows the grant (`grant.rs`). The same thread does what must not
//! wait for a busy connection: it changes the grant for user-svc, and asks what has become of transactions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use diesel::PgConnection;
use diesel::QueryResult;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::conninfo::hosts;
use super::grant::{Grant, Grants};
use super::grant_row::Reason;
use super::granter::{Granter, Offer};
use super::look::{Failure, Watched, is_refusal};
use super::migrations::Schema;
use super::outcome::{Outcome, Question};
use super::session::Pool;
use crate::config::{DatabaseSettings, Kept};
use crate::metrics::GrantMetrics;

/// How often the monitor queries PostgreSQL: a failure is noticed before most requests have waited for long.
const MONITOR_INTERVAL: Duration = Duration::from_millis(250);
/// How long a query of the monitor may take before PostgreSQL counts as away: as long as a request waits by default.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it waits for a connection of a worker: those are free after a statement.
const BORROW_TIMEOUT: Duration = Duration::from_millis(500);
/// How many reasons are logged during one outage at most: a server that comes up has a few, a loop has no end.
const REASONS: usize = 8;
/// Whether PostgreSQL can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It has not answered yet, or the schema is not there.
    Starting,
    /// It answers.
    Ready,
    /// It answered before, and does not now.
    Away,
}

/// Watches PostgreSQL on a connection of its own, so that busy worker threads do not look like an absent server.
pub struct Monitor {
    start: Instant,
    schema: Schema,
    kept: Kept,
    /// How many servers the connection string names.
    hosts: usize,
    /// The workers' connections.
    pool: Pool,
    /// What is known of the grant.
    pub grants: Grants,
    metrics: GrantMetrics,
    /// Whether PostgreSQL was ready before.
    was_ready: AtomicBool,
    /// Milliseconds from `start` to the end of the newest query that succeeded, plus one; 0 after one that failed.
    seen: AtomicU64,
    read_only: AtomicBool,
    obstacle: Mutex<Option<&'static str>>,
    /// The number of the monitor's connection; a new one is another session of the server.
    session: AtomicU64,
    orders: Mutex<Orders>,
    thread: Mutex<Option<Thread>>,
}

/// What the thread is to do beside looking.
#[derive(Default)]
struct Orders {
    suspend: Option<(i64, Reason)>,
    offer: Option<Offer>,
    questions: Vec<Question>,
}

impl Monitor {
    /// A monitor that has seen nothing yet.
    pub fn new(settings: &DatabaseSettings, schema: Schema, pool: Pool, metrics: GrantMetrics) -> Self {
        Self {
            start: Instant::now(),
            schema,
            kept: settings.kept,
            hosts: hosts(&settings.url),
            pool,
            grants: Grants::new(settings.without_postgres),
            metrics,
            was_ready: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            read_only: AtomicBool::new(false),
            obstacle: Mutex::new(None),
            session: AtomicU64::new(0),
            orders: Mutex::default(),
            thread: Mutex::new(None),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX) + 1
    }

    /// Whether PostgreSQL can be used now.
    pub fn status(&self) -> Status {
        if !self.was_ready.load(Ordering::Acquire) {
            return Status::Starting;
        }
        let seen = self.seen.load(Ordering::Acquire);
        // A frozen server lets no query fail; it makes the newest success old.
        let bound = u64::try_from((MONITOR_INTERVAL + MONITOR_TIMEOUT).as_millis()).unwrap_or(u64::MAX);
        if seen != 0 && self.now().saturating_sub(seen) <= bound { Status::Ready } else { Status::Away }
    }

    /// Whether it takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// Why the newest look met a database that is not used, for an operator; none if it did not.
    pub fn obstacle(&self) -> Option<&'static str> {
        *self.obstacle.lock()
    }

    /// The number of the monitor's session.
    fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    /// Has the grant of `epoch` suspended, as soon as PostgreSQL can be asked.
    pub fn suspend(&self, epoch: i64, reason: Reason) {
        self.orders.lock().suspend = Some((epoch, reason));
        self.wake();
    }

    /// Looks again at once, and lets no write begin under the grant of `tag`, which is over.
    pub fn look_beyond(&self, tag: u64) {
        self.grants.doubt(tag);
        self.wake();
    }

    /// Offers a Redis process for the grant, or none.
    pub fn offer(&self, offer: Option<Offer>) {
        let mut orders = self.orders.lock();
        let first = orders.offer.is_none() && offer.is_some();
        orders.offer = offer;
        drop(orders);
        if first {
            self.wake();
        }
    }

    /// What becomes of `transaction`, which was under way in the monitor's session `session` with the same server: sent
    /// when it has ended.
    pub fn outcome(&self, transaction: String, session: Option<u64>) -> oneshot::Receiver<Outcome> {
        let (answer, outcome) = oneshot::channel();
        self.orders.lock().questions.push(Question { transaction, session, answer });
        self.wake();
        outcome
    }

    fn wake(&self) {
        if let Some(thread) = &*self.thread.lock() {
            thread.unpark();
        }
    }

    /// Watches PostgreSQL at `url`, and changes the grant by `granter` if this is user-svc. Never returns.
    pub fn watch(&self, url: &str, mut granter: Granter) {
        *self.thread.lock() = Some(thread::current());
        // The reasons that were logged; several, since a server that comes up refuses in several ways in turn.
        let mut logged: Vec<String> = Vec::new();
        let mut failures = 0;
        let mut watched = None;
        loop {
            let was_connected = watched.is_some();
            let asked = Instant::now();
            let reason = match self.look(&mut watched, url, asked, &mut granter) {
                Ok(Looked::Unchanged) => {
                    logged.clear();
                    failures = 0;
                    thread::park_timeout(MONITOR_INTERVAL);
                    continue;
                }
                Ok(Looked::Changed) => continue,
                Err(error) => error.to_string(),
            };
            if was_connected {
                continue; // the connection is lost; the next attempt shows whether the server is
            }
            // A pooler may be down alone.
            if self.kept == Kept::Session && is_refusal(&reason, self.hosts) {
                self.grants.refused(asked);
            }
            // One failure may be the monitor's own: its connection was reset while it was made, or another client took
            // the last one.
            failures += 1;
            if failures > 1 {
                self.seen.store(0, Ordering::Release);
            }
            if !logged.contains(&reason) && logged.len() < REASONS {
                log::warn!("PostgreSQL cannot be used, trying on: {reason}");
                logged.push(reason);
            }
            thread::sleep(MONITOR_INTERVAL);
        }
    }

    /// Looks once, connecting first if there is no connection, and does what is to be done.
    fn look(
        &self,
        watched: &mut Option<Watched>,
        url: &str,
        asked: Instant,
        granter: &mut Granter,
    ) -> Result<Looked, Failure> {
        let mut current = match watched.take() {
            Some(watched) => watched,
            None => self.connect(url).inspect_err(|_| *self.obstacle.lock() = None)?,
        };
        let look = current.look()?;
        *self.obstacle.lock() = look.obstacle();
        if look.standby {
            self.metrics.standbys.inc();
        }
        if let Some(obstacle) = look.obstacle() {
            self.seen.store(0, Ordering::Release);
            return Err(obstacle.into());
        }
        let is_read_only = look.read_only;
        self.read_only.store(is_read_only, Ordering::Release);
        self.learn(look.into_grant(), asked);
        if self.status() != Status::Ready {
            log::info!("PostgreSQL is there");
        }
        self.seen.store(self.now(), Ordering::Release);
        self.was_ready.store(true, Ordering::Release);
        self.answer(current.connection())?;
        let looked = match self.schema {
            // The connection would stay so when the database no longer is: the next look needs a new one.
            Schema::Migrate if is_read_only => return Ok(Looked::Unchanged),
            Schema::Migrate => self.change(current.connection(), granter)?,
            Schema::Await => Looked::Unchanged,
        };
        *watched = current.keep();
        Ok(looked)
    }

    /// Connects, and prepares the schema the first time. If that is refused at once though PostgreSQL is up, as when the
    /// role has no connection left, a worker's connection is borrowed for a look. (A server that is silent would keep
    /// the look for longer.)
    fn connect(&self, url: &str) -> Result<Watched, Failure> {
        let was_ready = self.was_ready.load(Ordering::Acquire);
        let schema = if was_ready { None } else { Some(self.schema) };
        let start = Instant::now();
        let watched = match Watched::connect(url, self.kept, schema, MONITOR_TIMEOUT) {
            Err(error)
                if was_ready
                    && !is_refusal(&error.to_string(), self.hosts)
                    && start.elapsed() < BORROW_TIMEOUT =>
            {
                Watched::borrow(&self.pool, BORROW_TIMEOUT).map_err(|_| error)?
            }
            connected => connected?,
        };
        self.session.fetch_add(1, Ordering::AcqRel);
        Ok(watched)
    }

    fn learn(&self, grant: Option<Grant>, asked: Instant) {
        let before = self.grants.known();
        let is_granted = grant.as_ref().is_some_and(|grant| grant.redis.is_some());
        self.grants.learn(grant, asked, self.session());
        self.metrics.suspended.set(i64::from(!is_granted));
        let Some(after) = self.grants.known() else { return };
        if before.as_ref().is_some_and(|before| before.grant.epoch == after.grant.epoch) {
            return;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.metrics.since.set(i64::try_from(since).unwrap_or(i64::MAX));
        if !is_granted {
            log::warn!("the cache is suspended: reads use PostgreSQL");
        } else if before.is_some() {
            log::info!("the cache is granted again, under a new epoch");
        }
    }

    /// Sends the outcome of each transaction that was asked for and has ended.
    fn answer(&self, connection: &mut PgConnection) -> QueryResult<()> {
        let questions = std::mem::take(&mut self.orders.lock().questions);
        let session = match self.kept {
            Kept::Session => Some(self.session()),
            Kept::Nothing => None,
        };
        let mut lost = Ok(());
        for question in questions {
            let outcome = if lost.is_ok() { question.ask(connection, session) } else { Ok(None) };
            if let Ok(Some(outcome)) = outcome {
                // Its write may have been given up.
                let _ = question.answer.send(outcome);
            } else {
                self.orders.lock().questions.push(question);
                lost = lost.and(outcome.map(drop));
            }
        }
        lost
    }

    /// Changes the grant if a writer has ordered it, or if it must be changed.
    fn change(&self, connection: &mut PgConnection, granter: &mut Granter) -> QueryResult<Looked> {
        let (order, offer) = {
            let orders = self.orders.lock();
            (orders.suspend, orders.offer.clone())
        };
        let changed = if let Some((epoch, reason)) = order {
            granter.suspend(connection, epoch, reason)?;
            let mut orders = self.orders.lock();
            orders.suspend = orders.suspend.filter(|newer| *newer != (epoch, reason));
            true
        } else {
            granter.change(connection, self.grants.known(), offer)?
        };
        Ok(if changed { Looked::Changed } else { Looked::Unchanged })
    }
}

/// Whether a look has changed the grant: then the next one follows at once.
enum Looked {
    Unchanged,
    Changed,
}
