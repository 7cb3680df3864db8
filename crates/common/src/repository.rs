//! The heart: cache-aside, written once.
//!
//! What is cached says, as [`CacheAside`], what its key is, how it is loaded and how it is encoded. [`Repository`]
//! does the rest. It knows nothing of users or HTTP.
//!
//! PostgreSQL is the truth; Redis holds copies. The rule that keeps a copy from being older than the truth is the
//! *lease* (Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013): a reader that finds nothing puts a random
//! token at the key before it loads, and its copy goes in only if the token is still there. A writer deletes the key
//! after COMMIT and before it acknowledges, token and all. So a copy that was loaded before the COMMIT either goes in
//! before the deletion and is deleted, or comes after it and is refused.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use diesel::{PgConnection, QueryResult};
use prometheus::IntCounterVec;

use crate::cache::{Cache, CacheError};
use crate::config::CacheSettings;
use crate::database::Database;
use crate::entry::{self, Answer, Filled, Slot};
use crate::error::Error;

/// How long to wait for another reader's load, at least; at most twice as long.
const LEASE_WAIT: Duration = Duration::from_millis(20);
/// The share of a TTL that may be taken off at random, so that what was filled together does not end together.
const JITTER: f64 = 0.1;

/// What can be kept in a [`Repository`].
pub trait CacheAside: Send + Sync + 'static {
    /// What it is found by.
    type Key: Clone + PartialEq + Send + Sync + 'static;
    /// A row.
    type Record: Send + 'static;

    /// The Redis key of `key`: a prefix, and the key within braces (a cluster hash tag).
    fn cache_key(key: &Self::Key) -> String;

    /// Loads those of `keys` that exist, in any order.
    ///
    /// # Errors
    /// The database's.
    fn load(connection: &mut PgConnection, keys: &[Self::Key]) -> QueryResult<Vec<Self::Record>>;

    /// The finished answer for `record`, to be sent as it is on every hit.
    fn encode(record: &Self::Record) -> Answer;
}

/// How an answer was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From the cache, where it will live for this long.
    Hit(Duration),
    /// Loaded.
    Miss {
        /// Whether the copy went in: the lease held.
        stored: bool,
    },
    /// Loaded, since the client wanted it fresh.
    Forced {
        /// Whether the copy went in: nobody came in between.
        stored: bool,
    },
    /// Loaded, since somebody else is loading or writing; not stored.
    WriteInProgress,
    /// Loaded; Redis did not answer in time.
    CacheTimeout,
    /// Loaded; Redis failed.
    CacheError,
    /// Loaded; Redis was not asked.
    BreakerOpen,
}

impl Source {
    /// The value of the metric's label `result`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit(_) => "hit",
            Self::Miss { .. } => "miss",
            Self::Forced { .. } => "forced",
            Self::WriteInProgress => "bypass",
            Self::CacheTimeout => "timeout",
            Self::CacheError => "error",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

impl From<CacheError> for Source {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Timeout => Self::CacheTimeout,
            CacheError::Failed(_) => Self::CacheError,
            CacheError::BreakerOpen => Self::BreakerOpen,
        }
    }
}

/// An answer, or that there is none, and where it came from.
#[derive(Debug, Clone)]
pub struct Found {
    /// The answer.
    pub answer: Option<Answer>,
    /// How it was come by.
    pub source: Source,
}

impl Found {
    fn hit(filled: Filled) -> Self {
        let source = Source::Hit(filled.ttl());
        Self { answer: filled.answer, source }
    }
}

/// Finds and changes what is kept as `T`.
pub struct Repository<T> {
    database: Database,
    cache: Cache,
    ttl: Duration,
    absent_ttl: Duration,
    requests: IntCounterVec,
    kept: PhantomData<fn() -> T>,
}

// Derived, it would ask `T: Clone`.
impl<T> Clone for Repository<T> {
    fn clone(&self) -> Self {
        Self {
            database: self.database.clone(),
            cache: self.cache.clone(),
            requests: self.requests.clone(),
            ..*self
        }
    }
}

impl<T: CacheAside> Repository<T> {
    /// A repository over `database` and `cache`; `requests` counts finds by their [`Source::label`].
    #[must_use]
    pub fn new(database: Database, cache: Cache, settings: &CacheSettings, requests: IntCounterVec) -> Self {
        Self {
            database,
            cache,
            ttl: settings.ttl,
            absent_ttl: settings.absent_ttl,
            requests,
            kept: PhantomData,
        }
    }

    /// Finds what `key` names: a copy, or with `fresh` the row itself.
    ///
    /// # Errors
    /// Only the database's: a cache that fails makes this slower, by one time-out at most.
    pub async fn find(&self, key: &T::Key, fresh: bool) -> Result<Found, Error> {
        let found = self.look_up(key, fresh).await?;
        self.requests.with_label_values(&[found.source.label()]).inc();
        Ok(found)
    }

    async fn look_up(&self, key: &T::Key, fresh: bool) -> Result<Found, Error> {
        let cache_key = T::cache_key(key);
        match self.cache.get(&cache_key).await {
            Ok(Slot::Filled(filled)) if !fresh => Ok(Found::hit(filled)),
            Err(error) => self.load_only(key, error.into()).await,
            // A task of its own: a client that hangs up, at whatever moment, must not leave its lease behind.
            slot => {
                let (this, key) = (self.clone(), key.clone());
                let task = tokio::spawn(async move { this.fill(&key, cache_key, slot, fresh).await });
                task.await.map_err(|panic| Error::Internal(panic.to_string()))?
            }
        }
    }

    /// Goes on from a `slot` that gave no answer.
    async fn fill(
        &self,
        key: &T::Key,
        cache_key: String,
        mut slot: Result<Slot, CacheError>,
        fresh: bool,
    ) -> Result<Found, Error> {
        let mut waited = false;
        loop {
            match slot {
                Ok(Slot::Filled(filled)) if !fresh => return Ok(Found::hit(filled)),
                // The row is read after the copy was seen, and goes in only over that very copy.
                Ok(Slot::Filled(filled)) => return self.load_into(key, cache_key, filled.bytes, fresh).await,
                Ok(Slot::Empty) => {
                    let lease = entry::lease(&entry::token());
                    match self.cache.take_lease(&cache_key, &lease).await {
                        Ok(Slot::Empty) => return self.load_into(key, cache_key, lease, fresh).await,
                        found_instead => slot = found_instead,
                    }
                }
                Ok(Slot::Garbage(bytes)) => {
                    slot = match self.cache.remove(&cache_key, &bytes).await {
                        Ok(true) => Ok(Slot::Empty),
                        Ok(false) => return self.load_only(key, Source::WriteInProgress).await,
                        Err(error) => Err(error),
                    };
                }
                // One wait: a load takes a few milliseconds, and a lease whose owner died is not worth more.
                Ok(Slot::Lease) if !waited && !fresh => {
                    waited = true;
                    tokio::time::sleep(LEASE_WAIT.mul_f64(rand::random_range(1.0..2.0))).await;
                    slot = self.cache.get(&cache_key).await;
                }
                Ok(Slot::Lease | Slot::Barrier | Slot::OtherFormat) => {
                    return self.load_only(key, Source::WriteInProgress).await;
                }
                Err(error) => return self.load_only(key, error.into()).await,
            }
        }
    }

    /// Loads, and answers whatever becomes of the copy: it goes in where `expected` is, if it still is.
    async fn load_into(
        &self,
        key: &T::Key,
        cache_key: String,
        expected: Bytes,
        fresh: bool,
    ) -> Result<Found, Error> {
        let start = Instant::now();
        let answer = match self.load(key).await {
            Ok(answer) => answer,
            Err(error) => {
                // A copy stays: others are served from it. Whatever Redis says, a lease ends by itself.
                if entry::decode(Some(expected.clone())) == Slot::Lease {
                    drop(self.cache.remove(&cache_key, &expected).await);
                }
                return Err(error);
            }
        };
        let ttl = if answer.is_some() { self.ttl } else { self.absent_ttl };
        let ttl = ttl.mul_f64(1.0 - rand::random_range(0.0..JITTER));
        let copy = entry::encode(answer.as_ref(), start.elapsed(), ttl);
        let stored = self.cache.replace(&cache_key, &expected, &copy, ttl).await;
        let stored = stored.unwrap_or(false);
        let source = if fresh { Source::Forced { stored } } else { Source::Miss { stored } };
        Ok(Found { answer, source })
    }

    async fn load_only(&self, key: &T::Key, source: Source) -> Result<Found, Error> {
        Ok(Found { answer: self.load(key).await?, source })
    }

    async fn load(&self, key: &T::Key) -> Result<Option<Answer>, Error> {
        let key = key.clone();
        let query = move |connection: &mut PgConnection| T::load(connection, std::slice::from_ref(&key));
        let records = self.database.read(query).await?;
        Ok(records.first().map(T::encode))
    }

    /// Runs `change` in a transaction; when this returns, it is committed, and no copy of the `keys` that it changed
    /// is left in the cache.
    ///
    /// A task of its own: a client that hangs up must not leave copies behind.
    ///
    /// # Errors
    /// The database's, and what `change` fails with: nothing has happened then, except after
    /// [`Error::OutcomeUnknown`]. A cache that fails is no error: copies then live to the end of their TTL.
    pub async fn write(
        &self,
        keys: Vec<T::Key>,
        change: impl Fn(&mut PgConnection) -> QueryResult<()> + Send + 'static,
    ) -> Result<(), Error> {
        let this = self.clone();
        let task = tokio::spawn(async move {
            this.database.write(change).await?;
            let keys: Vec<String> = keys.iter().map(T::cache_key).collect();
            if let Err(error) = this.cache.delete(&keys).await {
                log::warn!("a write could not be told to Redis, copies may live to their TTL: {error:?}");
            }
            Ok(())
        });
        task.await.map_err(|panic| Error::Internal(panic.to_string()))?
    }
}
