//! The grant: PostgreSQL says which Redis process may be used as the cache, and under which epoch.
//!
//! [`Grants`] is what this process knows of it. Readers use a copy only under a grant that is valid, and writers do
//! without Redis only under a suspension that every reader knows by now. `grant_row.rs` has the statements,
//! `granter.rs` what user-svc does with them. docs/cache-protocol.md says why it is right.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::grant_row::Transaction;
use crate::config::WithoutPostgres;
use crate::error::Error;

/// How much longer than a grant's life writers wait, since clocks do not run alike: a hundredth of it, and at least
/// this.
const MARGIN_MIN: Duration = Duration::from_millis(20);
/// Which Redis process may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// New at each change of the grant.
    pub epoch: i64,
    /// The one Redis process that may be used: its `run_id` and `master_replid`. None: the cache is suspended.
    pub redis: Option<Arc<str>>,
    /// For how long a look at the grant is valid, from when it was asked for.
    pub life: Duration,
    /// What the entries that are stored under this grant hold. Other epochs, other databases, and the same one before
    /// it was restored or failed over, have other tags.
    pub tag: u64,
    /// When the server has started that was asked.
    pub server_start: String,
}

impl Grant {
    /// The grant of `epoch` in the database with the number `database`, whose server has started at `server_start`.
    ///
    /// Whatever takes data back to an earlier time, or to another server, starts one.
    #[must_use]
    pub fn new(
        epoch: i64,
        redis: Option<&str>,
        life: Duration,
        database: &str,
        server_start: String,
    ) -> Self {
        let hash = Sha256::new().chain_update(epoch.to_be_bytes());
        let digest = hash.chain_update(database).chain_update([0]).chain_update(&server_start).finalize();
        let mut tag = [0; 8];
        tag.copy_from_slice(&digest[..8]);
        Self { epoch, redis: redis.map(Arc::from), life, tag: u64::from_be_bytes(tag), server_start }
    }
}

/// How long a writer must know of a suspension before it writes without Redis: until no reader's look is valid.
pub fn wait(life: Duration) -> Duration {
    life + (life / 100).max(MARGIN_MIN)
}

/// A grant, and since when it is known here.
#[derive(Debug, Clone)]
pub struct Known {
    /// The grant.
    pub grant: Arc<Grant>,
    /// When the first answer arrived that showed its epoch, from this start of the server: after another start, readers
    /// may have been refused meanwhile, and so have gone on.
    pub since: Instant,
    /// The monitor's session in which the newest look was.
    pub session: u64,
}

impl Known {
    /// Whether a transaction sees the same grant, on a server that has not started anew.
    #[must_use]
    pub fn shows(&self, seen: &Transaction) -> bool {
        self.grant.epoch == seen.epoch && self.grant.server_start == seen.server_start
    }

    /// When a writer may write without Redis, if the grant is suspended.
    #[must_use]
    pub fn free_at(&self) -> Instant {
        self.since + wait(self.grant.life)
    }
}

/// What this process knows of the grant.
#[derive(Debug)]
pub struct Grants {
    start: Instant,
    without_postgres: WithoutPostgres,
    /// Until when the newest grant may be used, in microseconds since the start; 0: it may not.
    until: AtomicU64,
    /// The newest grant's tag.
    tag: AtomicU64,
    known: watch::Sender<Option<Known>>,
    /// The tag of the grant that a write has found to be over, or unusable: the next one is waited for.
    doubted: Mutex<Option<u64>>,
}

impl Grants {
    /// Nothing is known yet.
    pub fn new(without_postgres: WithoutPostgres) -> Self {
        Self {
            start: Instant::now(),
            without_postgres,
            until: AtomicU64::new(0),
            tag: AtomicU64::new(0),
            known: watch::Sender::new(None),
            doubted: Mutex::new(None),
        }
    }

    /// The tag of the entries that may be used now. Must be called after the request has arrived.
    #[must_use]
    pub fn tag(&self) -> Option<u64> {
        // In this order: a tag that is newer than the time read is one that was valid later.
        let until = self.until.load(Ordering::Acquire);
        let tag = self.tag.load(Ordering::Acquire);
        (self.micros(Instant::now()) < until).then_some(tag)
    }

    /// The grant, and the Redis process, that may be used now. Must be called after the request has arrived.
    #[must_use]
    pub fn current(&self) -> Option<(Arc<Grant>, Arc<str>)> {
        let until = self.until.load(Ordering::Acquire);
        let grant = self.known()?.grant;
        let redis = grant.redis.clone()?;
        (self.micros(Instant::now()) < until).then_some((grant, redis))
    }

    /// The newest grant, valid or not.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        self.known.borrow().clone()
    }

    /// Whether a write may begin now: Redis is granted, or it has been suspended for so long that no reader uses it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable_at().is_some_and(|time| time <= Instant::now())
    }

    /// When a write may begin, as far as is known.
    fn writable_at(&self) -> Option<Instant> {
        let known = self.known().filter(|known| *self.doubted.lock() != Some(known.grant.tag))?;
        Some(if known.grant.redis.is_some() { known.since } else { known.free_at() })
    }

    /// Waits until a write may begin. Returns whether that took time.
    ///
    /// # Errors
    /// [`Error::Unavailable`] at `deadline`.
    pub async fn writable(&self, deadline: Instant) -> Result<Waited, Error> {
        let mut changes = self.known.subscribe();
        let mut waited = Waited::No;
        while !self.is_writable() {
            waited = Waited::Yes;
            let next = self.writable_at().map_or(deadline, |time| time.min(deadline));
            if timeout_at(next.into(), changes.changed()).await.is_err() && next == deadline {
                return Err(Error::Unavailable(
                    "the cache is suspended, and readers may not know yet".into(),
                ));
            }
        }
        Ok(waited)
    }

    /// Makes [`Grants::writable`] wait until another grant than that of `tag` is known.
    pub fn doubt(&self, tag: u64) {
        *self.doubted.lock() = Some(tag);
    }

    /// Notes the result of a look in the monitor's session `session`: `grant`, if the table has one, asked for at
    /// `asked`.
    pub fn learn(&self, grant: Option<Grant>, asked: Instant, session: u64) {
        let end = match &grant {
            Some(Grant { redis: Some(_), life, .. }) => self.micros(asked + *life),
            _ => 0,
        };
        let Some(grant) = grant else {
            self.until.store(0, Ordering::Release);
            self.known.send_if_modified(|known| known.take().is_some());
            return;
        };
        let is_new = self.known().is_none_or(|known| *known.grant != grant);
        if is_new {
            // In this order: no reader takes the new tag with the old one's time, or the other way round.
            self.until.store(0, Ordering::Release);
            self.tag.store(grant.tag, Ordering::Release);
            let since = Instant::now();
            self.known.send_replace(Some(Known { grant: Arc::new(grant), since, session }));
        } else {
            self.known.send_if_modified(|known| {
                let known = known.as_mut().filter(|known| known.session != session);
                known.map(|known| known.session = session).is_some()
            });
        }
        let until = match self.without_postgres {
            WithoutPostgres::GoOn if end != 0 => u64::MAX,
            WithoutPostgres::GoOn | WithoutPostgres::Stop => end,
        };
        self.until.store(until, Ordering::Release);
    }

    /// Notes that PostgreSQL has refused a look that was asked for at `asked`: it is down, and takes no writes. So what
    /// was valid until now stays valid, as after an answer. What has run out stays so: a write may have come in
    /// between.
    pub fn refused(&self, asked: Instant) {
        let Some(Known { grant, .. }) = self.known() else { return };
        let until = self.until.load(Ordering::Acquire);
        if until > self.micros(Instant::now()) {
            self.until.store(until.max(self.micros(asked + grant.life)), Ordering::Release);
        }
    }

    fn micros(&self, time: Instant) -> u64 {
        u64::try_from(time.duration_since(self.start).as_micros()).unwrap_or(u64::MAX - 1)
    }
}

/// Whether a write had to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// It did not.
    No,
    /// It did: its time for PostgreSQL begins now.
    Yes,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    fn grants() -> Grants {
        Grants::new(WithoutPostgres::Stop)
    }

    fn granted(epoch: i64) -> Option<Grant> {
        Some(Grant::new(epoch, Some("run history"), LIFE, "1", "start".into()))
    }

    fn suspended(epoch: i64, life: Duration) -> Option<Grant> {
        Some(Grant::new(epoch, None, life, "1", "start".into()))
    }

    fn a_life_ago() -> Instant {
        Instant::now().checked_sub(LIFE).expect("the machine has run for a minute")
    }

    #[test]
    fn a_look_is_valid_from_when_it_was_asked_for() {
        let grants = grants();
        grants.learn(granted(1), Instant::now(), 1);
        assert!(grants.tag().is_some() && grants.current().is_some());
        grants.learn(granted(1), a_life_ago(), 1);
        assert!(grants.tag().is_none() && grants.current().is_none());
    }

    #[test]
    fn what_is_suspended_or_unknown_is_not_used() {
        let grants = grants();
        for grant in [None, suspended(2, LIFE), None] {
            grants.learn(granted(1), Instant::now(), 1);
            assert!(grants.tag().is_some());
            grants.learn(grant, Instant::now(), 1);
            assert!(grants.tag().is_none() && grants.current().is_none());
        }
    }

    #[test]
    fn a_refusal_renews_only_what_is_still_valid() {
        let grants = grants();
        grants.learn(granted(1), Instant::now(), 1);
        let before = grants.until.load(Ordering::Acquire);
        grants.refused(Instant::now() + Duration::from_millis(1));
        assert!(grants.until.load(Ordering::Acquire) > before);
        grants.learn(granted(1), a_life_ago(), 1);
        grants.refused(Instant::now());
        assert!(grants.tag().is_none(), "a write may have come in between");
        grants.learn(suspended(2, LIFE), Instant::now(), 1);
        grants.refused(Instant::now());
        assert!(grants.tag().is_none());
    }

    #[test]
    fn epochs_databases_and_starts_of_the_server_have_tags_of_their_own() {
        let tag = |epoch, database, start: &str| Grant::new(epoch, None, LIFE, database, start.into()).tag;
        let tags = [tag(1, "1", "a"), tag(2, "1", "a"), tag(1, "2", "a"), tag(1, "1", "b"), tag(1, "1a", "")];
        for (at, tag) in tags.iter().enumerate() {
            assert!(!tags[..at].contains(tag));
        }
    }

    #[tokio::test]
    async fn a_write_waits_until_a_suspension_has_been_known_for_long_enough() {
        let grants = grants();
        let deadline = || Instant::now() + Duration::from_millis(100);
        grants.learn(granted(1), Instant::now(), 1);
        assert_eq!(grants.writable(deadline()).await, Ok(Waited::No));
        grants.learn(suspended(2, Duration::ZERO), Instant::now(), 1);
        assert_eq!(grants.writable(deadline()).await, Ok(Waited::Yes));
        assert_eq!(grants.writable(deadline()).await, Ok(Waited::No));
        grants.learn(suspended(3, LIFE), Instant::now(), 1);
        assert!(grants.writable(deadline()).await.is_err());
    }

    #[tokio::test]
    async fn a_write_waits_for_another_grant_than_one_that_is_over() {
        let grants = grants();
        let deadline = || Instant::now() + Duration::from_millis(100);
        grants.learn(granted(1), Instant::now(), 1);
        grants.doubt(grants.tag().expect("valid"));
        grants.learn(granted(1), Instant::now(), 1);
        assert!(grants.writable(deadline()).await.is_err());
        let (written, ()) = tokio::join!(grants.writable(Instant::now() + LIFE), async {
            grants.learn(granted(2), Instant::now(), 1);
        });
        assert_eq!(written, Ok(Waited::Yes));
    }
}
