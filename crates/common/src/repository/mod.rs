//! The heart: cache-aside, written once, and coherent.
//!
//! An entity says, as [`CacheAside`], what its key is, how it is loaded and how it is encoded. [`Repository`] does the
//! rest: it reads in `read.rs` and writes in `write.rs`. It knows nothing of users or HTTP. docs/cache-protocol.md
//! says why the protocol is right, with a diagram of each flow; this is the protocol itself.
//!
//! PostgreSQL is the truth. Redis holds copies, and so does the near cache. The promise: once a write is acknowledged,
//! no read that starts later returns what was before it. Four things keep it:
//!
//! - the **grant**: PostgreSQL says which Redis process may be used, and under which epoch. A reader uses copies only
//!   under a grant that it has just looked at. A writer that cannot reach that process suspends the grant, and waits
//!   until no reader can still use it;
//! - a **lease** (Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013): a reader that finds nothing puts a
//!   random token at the key before it loads, and its copy is stored only if the token is still there;
//! - a **barrier**: a writer puts another mark over whatever is at the key, after it has the row's lock and before
//!   COMMIT, and removes it when the outcome is known. While the barrier stands, readers use PostgreSQL and store
//!   nothing. A row that a transaction under way has locked is not stored either, barrier or not. An insert has no row
//!   to lock, so it is acknowledged after its barrier is removed;
//! - **acks**: near copies may be used for 50 ms after a proof that nothing was missed. A writer that changes what
//!   replicas may hold publishes the key, and waits before COMMIT until all of them have acknowledged it, or for as
//!   long.

mod apply;
mod offer;
mod read;
mod singleflight;
mod write;
mod writes;

use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::{PgConnection, QueryResult};
use prometheus::IntCounter;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub use self::offer::keep_offering;
use self::read::{FillTarget, LoadResult};
use self::singleflight::SingleFlight;
use crate::cache::{Cache, CacheError, Near, Representation};
use crate::config::CacheSettings;
use crate::database::{Batcher, Database, LockWait, Repeats};
use crate::metrics::CacheMetrics;

/// How many reads may wait for Redis at least, however short the line for PostgreSQL is: a short line must not refuse
/// hits, which take Redis a few microseconds each.
const READS_WAITING_MIN: usize = 128;

/// Changed keys, each with the value of [`crate::database::InTransaction`] in the same statement.
pub type Changed<K> = Vec<(K, Option<String>)>;

/// Records as they were loaded: the key, the value, and whether the row is clear.
pub type Loaded<K, V> = Vec<(K, V, bool)>;

/// What can be kept in a [`Repository`]: its key, its codec, and its statements. Each is for several keys, in their
/// order.
///
/// All errors are the database's.
#[expect(clippy::missing_errors_doc, reason = "the trait's documentation says it once")]
pub trait CacheAside: Send + Sync + 'static {
    /// What a record is found by.
    type Key: Clone + Eq + Hash + Ord + Send + Sync + 'static;
    /// What a record holds beside its key.
    type Value: Send + Sync + 'static;
    /// What a replace or delete requires of the row that is there.
    type Condition: Send + Sync + 'static;

    /// The Redis key of `key`: [`crate::cache::EDITION`], the entity's name, and the key within braces (a cluster hash
    /// tag).
    fn cache_key(key: &Self::Key) -> String;

    /// The finished answer for the record of `key` that holds `value`, which is sent as it is on every hit.
    fn encode(key: &Self::Key, value: &Self::Value) -> Representation;

    /// Whether the row of `key` that holds `value` meets `condition`.
    fn holds(condition: &Self::Condition, key: &Self::Key, value: &Self::Value) -> bool;

    /// Loads those of `keys` that exist, in any order, each with whether its row is clear: the value of
    /// [`crate::database::RowIsClear`] in the same statement. Outside of any older snapshot.
    fn load(
        connection: &mut PgConnection,
        keys: &[&Self::Key],
    ) -> QueryResult<Loaded<Self::Key, Self::Value>>;

    /// Loads those of `keys` that exist and locks them `FOR UPDATE`, one after the other; with [`LockWait::Skip`]
    /// without those that another session has locked (`SKIP LOCKED`).
    fn lock(
        connection: &mut PgConnection,
        keys: &[&Self::Key],
        lock_wait: LockWait,
    ) -> QueryResult<Vec<(Self::Key, Self::Value)>>;

    /// Inserts the rows whose keys are free, and returns these keys.
    fn insert(
        connection: &mut PgConnection,
        rows: &[(&Self::Key, &Self::Value)],
    ) -> QueryResult<Changed<Self::Key>>;

    /// Replaces rows that are locked, and returns their keys.
    fn replace(
        connection: &mut PgConnection,
        rows: &[(&Self::Key, &Self::Value)],
    ) -> QueryResult<Changed<Self::Key>>;

    /// Deletes rows that are locked, and returns their keys.
    fn delete(connection: &mut PgConnection, keys: &[&Self::Key]) -> QueryResult<Changed<Self::Key>>;
}

/// A write of one record.
enum Change<T: CacheAside> {
    Create(T::Value),
    Replace(T::Value, T::Condition),
    Delete(T::Condition),
}

impl<T: CacheAside> Change<T> {
    /// Whether the second of two changes of one record may be in a transaction with the first: it needs no statement of
    /// its own then. A record that many replace at the same time would otherwise wait for as many COMMITs.
    fn may_follow(first: &Self, second: &Self) -> bool {
        matches!((first, second), (Self::Replace(..), Self::Replace(..) | Self::Delete(..)))
    }
}

/// How the cache took part in a read, in the words of `Cache-Status` (RFC 9211).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheStatus {
    /// From Redis, where the entry lives for this long.
    Hit(Duration),
    /// From this process' memory; the entry in Redis lives for this long.
    NearHit(Duration),
    /// Loaded.
    Miss {
        /// Whether the copy was stored: the lease still held.
        stored: bool,
    },
    /// Loaded by another request that came at the same time.
    Collapsed,
    /// Loaded, since the client asked for a fresh read.
    Fresh {
        /// Whether the copy was stored: no write came in between.
        stored: bool,
    },
    /// Loaded and not stored, since another request is loading or writing.
    Bypass,
    /// Loaded; no Redis may be used now, or none that this process reaches.
    Suspended,
    /// Loaded; Redis did not reply in time.
    Timeout,
    /// Loaded; Redis failed.
    Error,
    /// Loaded; Redis was not asked.
    BreakerOpen,
}

impl CacheStatus {
    /// The value of the metric's label `result`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit(_) => "hit",
            Self::NearHit(_) => "near_hit",
            Self::Miss { .. } => "miss",
            Self::Collapsed => "collapsed",
            Self::Fresh { .. } => "forced",
            Self::Bypass => "bypass",
            Self::Suspended => "suspended",
            Self::Timeout => "timeout",
            Self::Error => "error",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

impl From<CacheError> for CacheStatus {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Timeout => Self::Timeout,
            CacheError::Failed(_) => Self::Error,
            CacheError::BreakerOpen => Self::BreakerOpen,
            CacheError::NotGranted => Self::Suspended,
        }
    }
}

/// What a read may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// A copy, if there is one.
    Any,
    /// The row itself.
    Fresh,
}

/// The result of a read, and where it came from.
#[derive(Debug, Clone)]
pub struct Found {
    /// The answer; none if there is no such record.
    pub answer: Option<Representation>,
    /// Where it came from.
    pub status: CacheStatus,
}

/// Finds and changes records of `T`; clones share everything.
pub struct Repository<T: CacheAside>(Arc<Inner<T>>);

struct Inner<T: CacheAside> {
    database: Database,
    loads: Batcher<T::Key, Option<FillTarget>, LoadResult>,
    writes: Batcher<T::Key, Change<T>, ()>,
    /// A permit for each transaction of one record that may wait for another session: for a moment, and for long.
    alone: Arc<Semaphore>,
    patient: Arc<Semaphore>,
    cache: Cache,
    near: Arc<Near>,
    /// Reads that requests share: of a copy, and of the row itself. An early refresh is one of the second kind.
    reads: SingleFlight<Found>,
    fresh_reads: SingleFlight<Found>,
    /// A permit for each read that waits for Redis.
    reads_waiting: Semaphore,
    settings: CacheSettings,
    metrics: CacheMetrics,
    /// The counter of requests that is used most.
    near_hits: IntCounter,
    runtime: Handle,
}

// Derived, it would require `T: Clone`.
impl<T: CacheAside> Clone for Repository<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: CacheAside> Repository<T> {
    /// A repository over `database`, `cache` and `near`. Must be called within a runtime.
    #[must_use]
    pub fn new(
        database: Database,
        cache: Cache,
        near: Arc<Near>,
        settings: &CacheSettings,
        metrics: CacheMetrics,
    ) -> Self {
        let inner = Inner {
            loads: Batcher::new(database.clone(), Repeats::Independent),
            writes: Batcher::new(database.clone(), Repeats::Rivals(Change::may_follow)),
            alone: Arc::new(Semaphore::new(database.quarter())),
            patient: Arc::new(Semaphore::new(database.quarter())),
            reads_waiting: Semaphore::new(database.queue().max(READS_WAITING_MIN)),
            database,
            cache,
            near,
            reads: SingleFlight::default(),
            fresh_reads: SingleFlight::default(),
            settings: settings.clone(),
            near_hits: metrics.requests.with_label_values(&[CacheStatus::NearHit(Duration::ZERO).label()]),
            metrics,
            runtime: Handle::current(),
        };
        Self(Arc::new(inner))
    }

    /// The deadline of a request that has just arrived.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.0.database.deadline()
    }
}
