//! Whether PostgreSQL can be used. A thread watches it, on a connection of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection};

use super::migrations::Schema;
use crate::error::CommandResult;

/// How often the monitor queries PostgreSQL: a failure is noticed before most requests have waited for long.
const MONITOR_INTERVAL: Duration = Duration::from_millis(250);
/// How long a query of the monitor may take before PostgreSQL counts as away: as long as a request waits by default.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(2);
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
#[derive(Debug)]
pub struct Monitor {
    start: Instant,
    /// Whether PostgreSQL was ready before.
    was_ready: AtomicBool,
    /// Milliseconds from `start` to the end of the newest query that succeeded, plus one; 0 after one that failed.
    seen: AtomicU64,
}

impl Monitor {
    /// A monitor that has seen nothing yet.
    pub fn new() -> Self {
        Self { start: Instant::now(), was_ready: AtomicBool::new(false), seen: AtomicU64::new(0) }
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

    /// Watches PostgreSQL at `url`. Never returns.
    pub fn watch(&self, url: &str, schema: Schema) {
        // The reasons that were logged; several, since a server that comes up refuses in several ways in turn.
        let mut logged: Vec<String> = Vec::new();
        let mut failures = 0;
        loop {
            let reason = match self.watch_connection(url, schema) {
                Ok(()) => {
                    logged.clear();
                    failures = 0;
                    continue; // the connection is lost; the next attempt shows whether the server is
                }
                Err(error) => error.to_string(),
            };
            // One failure may be the monitor's own: its connection was reset while it was made, or another client took the
            // last one.
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

    /// Connects, prepares the schema the first time, and queries until the connection is lost.
    fn watch_connection(&self, url: &str, schema: Schema) -> CommandResult {
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
