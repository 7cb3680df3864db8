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

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use diesel::{PgConnection, QueryResult};
use prometheus::{IntCounter, IntCounterVec};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout_at};

use crate::cache::entry::{self, Answer, Filled, Slot};
use crate::cache::near::{self, Near};
use crate::cache::{BARRIER, Barriers, Cache, CacheError, Copy};
use crate::config::CacheSettings;
use crate::database::{Batch, Batches, Database, Late, Pending, Seen, Written, waited_too_long};
use crate::error::Error;
use crate::flights::{Flights, Landed, Seat};

/// So many may wait for Redis, whatever the bound of those who wait for PostgreSQL: a short line must not refuse hits.
const ASKING_MIN: usize = 128;
/// How long to wait for another replica's load, at least; at most twice as long.
const LEASE_WAIT: Duration = Duration::from_millis(20);
/// The share of a TTL that may be taken off at random, so that what was filled together does not end together.
const JITTER: f64 = 0.1;
/// A barrier must have this much life left when COMMIT is sent.
const COMMIT_RESERVE: Duration = Duration::from_secs(5);
/// How long to wait between attempts to take a barrier down.
const UNBARRIER_PAUSE: Duration = Duration::from_millis(20);

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

/// What a write does to copies that others may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It creates: nobody holds an absence near, and nobody need be waited for.
    Create,
    /// It replaces or deletes: near copies must have run out before COMMIT.
    Replace,
}

/// What a change returns: a value for who asked for it, and the keys that it changed.
pub type Changed<T, R> = (R, Vec<<T as CacheAside>::Key>);

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

    // ---------------------------------------------------------------- reading

    /// Finds what `key` names: a copy, or with `fresh` the row itself.
    ///
    /// # Errors
    /// The database's, and [`Error::Overloaded`] if too many wait for Redis. A cache that fails makes this slower, by one
    /// time-out at most.
    pub async fn find(&self, key: &T::Key, fresh: bool) -> Result<Found, Error> {
        let cache_key = T::cache_key(key);
        if !fresh && let Some(found) = self.near_copy(key, &cache_key) {
            return Ok(found);
        }
        // Boxed: most requests end above, and need not carry it.
        let found = match fresh {
            true => Box::pin(self.find_fresh(key, cache_key)).await,
            false => Box::pin(self.find_copy(key, cache_key)).await,
        }?;
        self.0.requests.with_label_values(&[found.source.label()]).inc();
        Ok(found)
    }

    /// As [`Repository::find`], but only in this process' own memory, and at once. To be called after the request has
    /// arrived, within a runtime: it may start an early refresh.
    #[must_use]
    pub fn find_near(&self, key: &T::Key) -> Option<Found> {
        self.near_copy(key, &T::cache_key(key))
    }

    fn near_copy(&self, key: &T::Key, cache_key: &str) -> Option<Found> {
        let filled = self.0.near.as_ref()?.get(cache_key)?;
        let ttl = filled.ttl();
        self.0.near_hits.inc();
        self.refresh_if_due(key, cache_key, &filled, ttl);
        Some(Found { source: Source::NearHit(ttl), answer: filled.into_answer() })
    }

    /// From Redis, or by a load, which all share who have come before it.
    async fn find_copy(&self, key: &T::Key, cache_key: String) -> Result<Found, Error> {
        // Late for an arrival, which errs on the safe side.
        let arrival = Instant::now();
        let read = || self.clone().read_through(key.clone(), cache_key.clone());
        // A flight has deadlines of its own. Who takes a second one gets no more time for it.
        let mut flight = self.0.flights.board(&cache_key, read).await;
        loop {
            let (seat, landed) = flight;
            let mut found = landed.result?;
            if seat == Seat::Pilot {
                return Ok(found);
            }
            // One that had read before this request came may have missed a write that was acknowledged by then.
            if landed.as_of >= arrival {
                if let Source::Miss { .. } = found.source {
                    found.source = Source::Collapsed;
                }
                return Ok(found);
            }
            let next = self.0.flights.board(&cache_key, read);
            let give_up = arrival + self.0.database.deadline();
            flight = timeout_at(give_up.into(), next).await.map_err(|_| waited_too_long())?;
        }
    }

    /// Takes a copy from Redis, or the lease; then loads, and fills. If somebody else is at it, it waits a little for
    /// their copy, and loads without filling if there is none.
    async fn read_through(self, key: T::Key, cache_key: String) -> Landed<Found> {
        let mut waited = false;
        loop {
            let as_of = Instant::now();
            // Before Redis is asked: an invalidation that comes after it makes what is read not worth keeping.
            let note = self.note(&cache_key);
            let lease = entry::lease(&entry::token());
            let slot = match self.copy_or_lease(&cache_key, &lease).await {
                Ok(slot) => slot,
                // It was let in, and has waited: it is not sent away now.
                Err(_) if waited => return self.load_only(&key, Source::WriteInProgress).await,
                Err(error) => return Landed { result: Err(error), as_of },
            };
            match slot {
                Ok(Slot::Filled(filled)) => {
                    let ttl = filled.ttl();
                    self.keep_near(&cache_key, note, &filled);
                    self.refresh_if_due(&key, &cache_key, &filled, ttl);
                    let found = Found { source: Source::Hit(ttl), answer: filled.into_answer() };
                    return Landed { result: Ok(found), as_of };
                }
                Ok(Slot::Empty) => return self.load_and_fill(&key, &cache_key, lease, false).await,
                // One wait: a load takes a few milliseconds, and a lease whose owner died is not worth more.
                Ok(Slot::Lease) if !waited => {
                    waited = true;
                    sleep(LEASE_WAIT.mul_f64(rand::random_range(1.0..2.0))).await;
                }
                Ok(Slot::Garbage(bytes)) => match self.0.cache.remove(&cache_key, &bytes).await {
                    Ok(true) => {}
                    Ok(false) => return self.load_only(&key, Source::WriteInProgress).await,
                    Err(error) => return self.load_only(&key, error.into()).await,
                },
                Ok(Slot::Lease | Slot::Barrier | Slot::OtherFormat) => {
                    return self.load_only(&key, Source::WriteInProgress).await;
                }
                Err(error) => return self.load_only(&key, error.into()).await,
            }
        }
    }

    /// What Redis holds; if that is nothing, `lease` from now on. No more may wait for it than could wait for PostgreSQL,
    /// as they will if it does not answer. Under overload this keeps the time short in which the others are served.
    ///
    /// # Errors
    /// [`Error::Overloaded`], at once.
    async fn copy_or_lease(&self, cache_key: &str, lease: &[u8]) -> Result<Result<Slot, CacheError>, Error> {
        let Ok(_place) = self.0.asking.try_acquire() else {
            self.0.requests.with_label_values(&["refused"]).inc();
            return Err(Error::Overloaded);
        };
        Ok(self.0.cache.get_or_lease(cache_key, lease).await)
    }

    /// Reads the row, whatever copies there are, and refills the cache.
    async fn find_fresh(&self, key: &T::Key, cache_key: String) -> Result<Found, Error> {
        let (this, key) = (self.clone(), key.clone());
        // A task of its own: a client that hangs up leaves no lease behind.
        let task = tokio::spawn(async move {
            // The row is read only after this was answered: what is there now and still there then was not overtaken
            // by a write in between.
            let lease = entry::lease(&entry::token());
            let mut slot = match this.copy_or_lease(&cache_key, &lease).await {
                Ok(slot) => slot,
                Err(error) => return Landed { result: Err(error), as_of: Instant::now() },
            };
            if let Ok(Slot::Garbage(bytes)) = &slot {
                slot = match this.0.cache.remove(&cache_key, bytes).await {
                    Ok(_) => this.0.cache.get_or_lease(&cache_key, &lease).await,
                    Err(error) => Err(error),
                };
            }
            match slot {
                Ok(Slot::Empty) => this.load_and_fill(&key, &cache_key, lease, true).await,
                Ok(Slot::Filled(filled)) => this.load_and_fill(&key, &cache_key, filled.head(), true).await,
                Ok(_) => this.load_only(&key, Source::WriteInProgress).await,
                Err(error) => this.load_only(&key, error.into()).await,
            }
        });
        task.await.map_err(|panic| Error::Internal(panic.to_string()))?.result
    }

    /// Early refresh: near its end, an entry is loaded anew by one of those who read it. It stays visible meanwhile,
    /// so that a key that is read often never misses.
    fn refresh_if_due(&self, key: &T::Key, cache_key: &str, filled: &Filled, ttl: Duration) {
        if !filled.is_due(ttl) {
            return;
        }
        let (this, key, cache_key, head) = (self.clone(), key.clone(), cache_key.to_owned(), filled.head());
        tokio::spawn(async move {
            let load = || {
                let (this, cache_key) = (this.clone(), cache_key.clone());
                async move { this.load_and_fill(&key, &cache_key, head, true).await }
            };
            // Nobody waits for it, but two at a time would be one too many.
            this.0.refreshes.board(&cache_key, load).await;
        });
    }

    /// Loads, and answers whatever becomes of the copy: it goes in where `expected` is, if it still is.
    async fn load_and_fill(
        &self,
        key: &T::Key,
        cache_key: &str,
        expected: Bytes,
        fresh: bool,
    ) -> Landed<Found> {
        let start = Instant::now();
        let place = Place { cache_key: cache_key.to_owned(), expected: expected.clone() };
        match self.load(key, Some(place)).await {
            Ok(Loaded { answer, as_of, stored }) => {
                if fresh && stored {
                    self.forget_near(cache_key);
                }
                let source = if fresh { Source::Forced { stored } } else { Source::Miss { stored } };
                Landed { result: Ok(Found { answer, source }), as_of }
            }
            Err(error) => {
                // A lease ends by itself if Redis does not hear of it; a copy is not the whole of its bytes and stays.
                let (this, cache_key) = (self.clone(), cache_key.to_owned());
                tokio::spawn(async move { this.0.cache.remove(&cache_key, &expected).await });
                Landed { result: Err(error), as_of: start }
            }
        }
    }

    async fn load_only(&self, key: &T::Key, source: Source) -> Landed<Found> {
        match self.load(key, None).await {
            Ok(Loaded { answer, as_of, .. }) => Landed { result: Ok(Found { answer, source }), as_of },
            Err(error) => Landed { result: Err(error), as_of: Instant::now() },
        }
    }

    /// Loads a row, together with all that wait for theirs, and puts a copy of it in `place`.
    async fn load(&self, key: &T::Key, place: Option<Place>) -> Result<Loaded, Error> {
        let serve = || drop(tokio::spawn(self.clone().serve_loads()));
        self.0.loads.join(key.clone(), place, serve).await
    }

    /// Sends one query for all who wait, and another, until nobody does.
    async fn serve_loads(self) {
        while let Some(batch) = self.0.loads.next() {
            let batch = Arc::new(batch);
            let taken = batch.clone();
            let query = move |connection: &mut PgConnection| {
                let keys: Vec<&T::Key> = taken.members().iter().map(|member| &member.key).collect();
                let records = T::load(connection, &keys)?;
                Ok(records.iter().map(|record| (T::key(record).clone(), T::encode(record))).collect())
            };
            match self.0.database.read(batch.give_up, query).await {
                // The next query need not wait for Redis.
                Ok(seen) => drop(tokio::spawn(self.clone().fill(batch, seen))),
                Err(error) => batch.members().iter().for_each(|member| member.tell(Err(error.clone()))),
            }
        }
    }

    /// Puts the copies of a batch in their places, in one round trip, and tells its members. None is kept near: most
    /// names are not asked for a second time while they could be.
    async fn fill(self, batch: Arc<Loads<T>>, seen: Seen<HashMap<T::Key, Answer>>) {
        let (load_time, as_of) = (seen.as_of.elapsed(), seen.as_of);
        let (mut filling, mut copies) = (Vec::new(), Vec::new());
        for member in batch.members() {
            let answer = seen.value.get(&member.key).cloned();
            let Some(place) = &member.value else {
                member.tell(Ok(Loaded { answer, as_of, stored: false }));
                continue;
            };
            let ttl = if answer.is_some() { self.0.settings.ttl } else { self.0.settings.absent_ttl };
            let ttl = ttl.mul_f64(1.0 - rand::random_range(0.0..JITTER));
            let bytes = entry::encode(answer.as_ref(), load_time, ttl);
            copies.push(Copy { key: &place.cache_key, expected: &place.expected, bytes, ttl });
            filling.push((member, answer));
        }
        if copies.is_empty() {
            return;
        }
        let stored = self.0.cache.replace(&copies).await.unwrap_or_default();
        for (at, (member, answer)) in filling.into_iter().enumerate() {
            let stored = stored.get(at).is_some_and(|stored| *stored);
            member.tell(Ok(Loaded { answer, as_of, stored }));
        }
    }

    fn note(&self, cache_key: &str) -> Option<near::Note> {
        self.0.near.as_ref().and_then(|near| near.note(cache_key))
    }

    fn keep_near(&self, cache_key: &str, note: Option<near::Note>, filled: &Filled) {
        if let Some(near) = &self.0.near {
            near.put(cache_key, note, filled);
        }
    }

    fn forget_near(&self, cache_key: &str) {
        if let Some(near) = &self.0.near {
            near.invalidate(cache_key);
        }
    }

    // ---------------------------------------------------------------- writing

    /// Runs `change` in a transaction, with the keys that it returns guarded. When this returns `Ok`, it is committed,
    /// and no read that starts from now on sees what was before.
    ///
    /// # Errors
    /// The database's, and what `change` refuses with: nothing has happened then. [`Error::OutcomeUnknown`]: it may
    /// have happened, or may still.
    pub async fn write<R: Send + Sync + 'static>(
        &self,
        effect: Effect,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<Changed<T, R>, Error>> + Send + 'static,
    ) -> Result<R, Error> {
        self.write_by(self.0.database.give_up(), effect, change).await
    }

    /// As [`Repository::write`], with a deadline of the caller's.
    ///
    /// # Errors
    /// As [`Repository::write`].
    pub async fn write_by<R: Send + Sync + 'static>(
        &self,
        give_up: Instant,
        effect: Effect,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<Changed<T, R>, Error>> + Send + 'static,
    ) -> Result<R, Error> {
        let turn = match effect {
            Effect::Create => None,
            // It holds a connection through the near wait.
            Effect::Replace => Some(self.0.database.turn(self.0.database.half_time(give_up)).await?),
        };
        let this = self.clone();
        let before_commit = move |(_, keys): &Changed<T, R>| {
            let _held_until_the_wait_is_over = turn;
            this.guard(effect, keys)
        };
        let pending = self.0.database.write(give_up, change, before_commit)?;
        // A task of its own: it goes on when the client hangs up, and when the client was told that the outcome is
        // unknown.
        let (tell, told) = oneshot::channel();
        tokio::spawn(self.clone().see_through(pending, give_up, tell));
        told.await.unwrap_or_else(|_| Err(Error::Internal("a write's task panicked".into())))
    }

    /// Between change and COMMIT, on the database's thread, with the rows locked: raises barriers, and lets near copies run out.
    fn guard(&self, effect: Effect, keys: &[T::Key]) -> Result<Barriers, Error> {
        let keys = keys.iter().map(T::cache_key).collect();
        let barriers = self.0.runtime.block_on(self.0.cache.raise_barriers(keys));
        if barriers.age().is_none() && self.0.settings.strict {
            return Err(Error::Unavailable(
                "Redis cannot be told of the write, and CACHE_STRICT is set".into(),
            ));
        }
        if effect == Effect::Replace {
            // Counted from the reply: by now the keys are published. If they could not be, the proofs of those who
            // hold copies run out all the same, as far as their Redis is ours.
            thread::sleep(near::LEASE + near::LEASE_MARGIN);
        }
        if barriers.age().is_some_and(|age| age > BARRIER - COMMIT_RESERVE) {
            return Err(Error::Unavailable("the barrier has become too old to commit under".into()));
        }
        Ok(barriers)
    }

    /// After COMMIT: takes the barriers down, and only then tells the client.
    async fn see_through<R>(
        self,
        mut pending: Pending<Written<Changed<T, R>, Barriers>>,
        give_up: Instant,
        tell: oneshot::Sender<Result<R, Error>>,
    ) {
        let result = match pending.by_deadline().await {
            Ok(Ok(written)) => {
                self.settle(&written.result, written.before_commit, give_up).await;
                written.result.map(|(value, _)| value)
            }
            Ok(Err(panic)) => Err(panic),
            Err(late) => {
                let error = match late {
                    Late::Undone => waited_too_long(),
                    Late::Committing => Error::OutcomeUnknown("COMMIT was under way at the deadline".into()),
                };
                // The client is told now; the barriers come down when the thread knows more.
                drop(tell.send(Err(error)));
                if let Ok(written) = pending.at_last().await {
                    self.settle(&written.result, written.before_commit, give_up).await;
                }
                return;
            }
        };
        // Whoever asked may be gone: then nobody is left to tell.
        drop(tell.send(result));
    }

    /// Takes the barriers of a transaction down that has ended, for all that is known.
    async fn settle<R>(&self, result: &Result<R, Error>, barriers: Option<Barriers>, give_up: Instant) {
        let Some(barriers) = barriers else { return };
        if let Err(Error::OutcomeUnknown(_)) = result {
            return; // it may still happen: the barriers stand until they expire, which is later
        }
        loop {
            match self.0.cache.lower_barriers(&barriers).await {
                Ok(true) => return,
                Ok(false) => {
                    // A barrier was lost, and an old copy may have been taken meanwhile. The keys have been published
                    // once more: when the wait is over, no near copy is left.
                    return sleep(near::LEASE + near::LEASE_MARGIN).await;
                }
                // If it stands, it is worth the rest of the request's time. It also ends by itself.
                Err(_) if barriers.age().is_some() && Instant::now() < give_up => {
                    sleep(UNBARRIER_PAUSE).await
                }
                Err(error) => {
                    log::warn!("a write could not be told to Redis, trying again when it answers: {error:?}");
                    return self.0.cache.remember_untold(barriers);
                }
            }
        }
    }
}
