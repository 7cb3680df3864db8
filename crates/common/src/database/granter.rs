//! How user-svc changes the grant, on the monitor's connection: it suspends a Redis that cannot be used, and grants one
//! that can, when no reader uses another one any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::QueryResult;

use super::grant::Known;
use super::grant_row::{self, Reason};
use super::session::is_lost;
use crate::metrics::GrantMetrics;

/// How long to wait for Redis before a new database begins suspended, and how old an offer of Redis may be.
const OFFER_LIFE: Duration = Duration::from_secs(1);
/// How long to wait before granting again: a suspension has a least duration, and writes under way may take long.
const RETRY: Duration = Duration::from_secs(1);

/// A Redis process that could be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its `run_id` and `master_replid`.
    pub redis: Arc<str>,
    /// Since when writes to it have succeeded in time.
    pub since: Instant,
    /// When the newest one did.
    pub newest: Instant,
}

/// Changes the grant.
pub struct Granter {
    /// Since when no grant is known.
    unknown_since: Option<Instant>,
    /// For how long a look at a grant that this process makes is valid.
    life: Duration,
    metrics: GrantMetrics,
    /// When to try to grant again.
    next: Instant,
}

impl Granter {
    /// One whose grants are valid for `life`.
    pub fn new(life: Duration, metrics: GrantMetrics) -> Self {
        Self { unknown_since: None, life, metrics, next: Instant::now() }
    }

    /// Suspends the grant of `epoch`, if it is still that one.
    ///
    /// # Errors
    /// The database's.
    pub fn suspend(&self, connection: &mut PgConnection, epoch: i64, reason: Reason) -> QueryResult<()> {
        if grant_row::suspend(connection, Some(epoch))? {
            self.count(reason.label());
        }
        Ok(())
    }

    /// Changes the grant that is known if it must be changed, given the Redis process that is offered. Returns whether
    /// it did.
    ///
    /// # Errors
    /// The database's.
    pub fn change(
        &mut self,
        connection: &mut PgConnection,
        known: Option<Known>,
        offer: Option<Offer>,
    ) -> QueryResult<bool> {
        let now = Instant::now();
        let offer = offer.filter(|offer| now.duration_since(offer.newest) < OFFER_LIFE);
        let Some(mut known) = known else {
            // A new database. If there is no Redis it begins suspended, so that writes can begin soon.
            let since = *self.unknown_since.get_or_insert(now);
            if offer.is_none() && now.duration_since(since) < OFFER_LIFE {
                return Ok(false);
            }
            grant_row::create(connection, offer.as_ref().map(|offer| &*offer.redis), self.life)?;
            return Ok(true);
        };
        self.unknown_since = None;
        let Some(offer) = offer else { return Ok(false) };
        if let Some(granted) = &known.grant.redis {
            if *granted == offer.redis {
                return Ok(false);
            }
            self.suspend(connection, known.grant.epoch, Reason::OtherProcess)?;
            return Ok(true);
        }
        known.since = known.since.max(offer.since);
        if now < known.free_at() || now < self.next {
            return Ok(false);
        }
        self.next = now + RETRY;
        match grant_row::grant(connection, known.grant.epoch, &offer.redis, self.life) {
            Ok(granted) => {
                if granted {
                    self.count("granted");
                }
                Ok(granted)
            }
            Err(error) if is_lost(&error) => Err(error),
            Err(error) => {
                log::debug!("the cache stays suspended: {error}");
                Ok(false)
            }
        }
    }

    fn count(&self, reason: &str) {
        self.metrics.changes.with_label_values(&[reason]).inc();
    }
}
