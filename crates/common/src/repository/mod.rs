//! The heart: cache-aside, written once, and coherent.
//!
//! What is cached says, as [`CacheAside`], what its key is, how it is loaded and how it is encoded. [`Repository`]
//! does the rest. It knows nothing of users or HTTP. docs/cache-protocol.md tells why it is right, with a diagram of
//! each flow; this is the protocol itself.
//!
//! PostgreSQL is the truth; Redis holds copies, and so does the near cache. The promise: once a write is acknowledged,
//! no read that starts later returns what was before it. Three things keep it:
//!
//! - a **lease** (Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013): a reader that finds nothing puts a
//!   random token at the key before it loads, and its copy goes in only if the token is still there;
//! - a **barrier**: a writer puts another mark over whatever is at the key, after it has the row's lock and before
//!   COMMIT, and takes it away before it acknowledges. While it stands, readers use PostgreSQL and keep nothing. If
//!   the writer dies, the barrier outlives its transaction;
//! - a **wait**: near copies may be used for [`near::LEASE`] after a proof that nothing was missed. A writer that
//!   changes what others may hold waits as long between publishing the key and COMMIT.

mod creations;
mod read;
mod singleflight;
mod write;

use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use diesel::{PgConnection, QueryResult};
use prometheus::{IntCounter, IntCounterVec};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub use self::creations::Creations;
use self::singleflight::Flights;
pub use self::write::{Changed, Effect};
use crate::cache::entry::Answer;
use crate::cache::near::Near;
use crate::cache::{Cache, CacheError};
use crate::config::CacheSettings;
use crate::database::{Batch, Batches, Database};

/// So many may wait for Redis, whatever the bound of those who wait for PostgreSQL: a short line must not refuse hits.
const ASKING_MIN: usize = 128;

/// What can be kept in a [`Repository`].
pub trait CacheAside: Send + Sync + 'static {
    /// What it is found by.
    type Key: Clone + Eq + Hash + Send + Sync + 'static;
    /// A row.
    type Record;

    /// The Redis key of `key`: a prefix, and the key within braces (a cluster hash tag).
    fn cache_key(key: &Self::Key) -> String;

    /// Loads those of `keys` that exist, in any order. Only from the primary, and outside of any older snapshot.
    ///
    /// # Errors
    /// The database's.
    fn load(connection: &mut PgConnection, keys: &[&Self::Key]) -> QueryResult<Vec<Self::Record>>;

    /// The key of `record`.
    fn key(record: &Self::Record) -> &Self::Key;

    /// The finished answer for `record`, to be sent as it is on every hit.
    fn encode(record: &Self::Record) -> Answer;
}

/// How an answer was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From Redis, where it will live for this long.
    Hit(Duration),
    /// From this process' memory; Redis has it for this long.
    NearHit(Duration),
    /// Loaded.
    Miss {
        /// Whether the copy went in: the lease held.
        stored: bool,
    },
    /// Loaded by another request that came at the same time.
    Collapsed,
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
            Self::NearHit(_) => "near_hit",
            Self::Miss { .. } => "miss",
            Self::Collapsed => "collapsed",
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

/// Finds and changes what is kept as `T`; clones share everything.
pub struct Repository<T: CacheAside>(Arc<Parts<T>>);

/// Keys that are loaded together.
type Loads<T> = Batch<<T as CacheAside>::Key, Option<Place>, Loaded>;

/// Where a copy is to go.
struct Place {
    cache_key: String,
    /// What must still be there.
    expected: Bytes,
}

/// What a load came to.
struct Loaded {
    answer: Option<Answer>,
    /// When the query was sent.
    as_of: Instant,
    /// Whether the copy went in.
    stored: bool,
}

struct Parts<T: CacheAside> {
    database: Database,
    loads: Batches<T::Key, Option<Place>, Loaded>,
    cache: Cache,
    near: Option<Arc<Near>>,
    flights: Flights<Found>,
    refreshes: Flights<Found>,
    /// For those who wait for Redis.
    asking: Semaphore,
    settings: CacheSettings,
    requests: IntCounterVec,
    /// The one of them that counts most.
    near_hits: IntCounter,
    runtime: Handle,
}

// Derived, it would ask `T: Clone`.
impl<T: CacheAside> Clone for Repository<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: CacheAside> Repository<T> {
    /// A repository over `database`, `cache` and perhaps a near cache; `requests` counts finds by their
    /// [`Source::label`]. Must be called within a runtime.
    #[must_use]
    pub fn new(
        database: Database,
        cache: Cache,
        near: Option<Arc<Near>>,
        settings: &CacheSettings,
        requests: IntCounterVec,
    ) -> Self {
        let parts = Parts {
            loads: Batches::new(database.clone()),
            asking: Semaphore::new(database.queue().max(ASKING_MIN)),
            database,
            cache,
            near,
            flights: Flights::default(),
            refreshes: Flights::default(),
            settings: settings.clone(),
            near_hits: requests.with_label_values(&[Source::NearHit(Duration::ZERO).label()]),
            requests,
            runtime: Handle::current(),
        };
        Self(Arc::new(parts))
    }

    /// The database under it, for those who wait together for a write.
    pub(crate) fn database(&self) -> &Database {
        &self.0.database
    }
}
