//! Whether PostgreSQL is there: watched by a thread, on a connection of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection};

use super::migrations::Schema;
use crate::error::Outcome;

/// How often the monitor looks whether PostgreSQL is there.
const MONITOR_INTERVAL: Duration = Duration::from_millis(250);
/// How long a look may take before PostgreSQL counts as away.
const MONITOR_PATIENCE: Duration = Duration::from_secs(2);
/// Reasons why PostgreSQL cannot be used that are told during one outage, at most.
const REASONS: usize = 8;

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

/// Watches PostgreSQL on a connection of its own, so that a busy crew does not look like an absent server.
#[derive(Debug)]
pub struct Monitor {
    start: Instant,
    /// Whether it was ready once.
    was_ready: AtomicBool,
    /// Milliseconds from `start` to the end of the newest look that went well, plus one; 0 after one that failed.
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
        // A frozen server makes no look fail; it makes the newest good one old.
        let bound = u64::try_from((MONITOR_INTERVAL + MONITOR_PATIENCE).as_millis()).unwrap_or(u64::MAX);
        if seen != 0 && self.now().saturating_sub(seen) <= bound { Status::Ready } else { Status::Away }
    }

    /// Watches. Never returns.
    pub fn watch(&self, url: &str, schema: Schema) {
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
    fn watch_connection(&self, url: &str, schema: Schema) -> Outcome {
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
