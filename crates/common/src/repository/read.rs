//! The read flow, top to bottom: the near cache, Redis, the load, the fill.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use diesel::PgConnection;
use tokio::time::{sleep, timeout_at};

use super::singleflight::{Role, Shared, SingleFlight};
use super::{CacheAside, CacheStatus, Found, Freshness, Repository};
use crate::cache::entry::{self, Entry, Held, Lease, Tag};
use crate::cache::{CacheError, Fill, Representation};
use crate::database::{Batch, Seen, UnderWay};
use crate::error::Error;

/// How long to wait for another replica's load, at least; at most twice as long. A load takes a few milliseconds.
const LEASE_WAIT: Duration = Duration::from_millis(20);
/// The share of a TTL that may be taken off at random, so that entries that were stored together do not end together.
const JITTER: f64 = 0.1;

/// Where a loaded copy is stored.
#[derive(Clone)]
pub struct FillTarget {
    cache_key: String,
    /// The Redis process that is granted.
    process: Arc<str>,
    /// What must still be there, and the tag of the copy: that of what it takes the place of, not of the time of the
    /// fill.
    place: Place,
}

/// What a loaded copy takes the place of.
#[derive(Clone)]
enum Place {
    Lease(Lease),
    Entry(Entry),
}

/// The result of a load.
pub struct LoadResult {
    answer: Option<Representation>,
    /// When the query was sent.
    as_of: Instant,
    stored: Stored,
}

/// What has become of a loaded copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Yes,
    No,
    /// A transaction under way has locked the row. It may have been acknowledged before the copy could be removed.
    NotClear,
}

/// Keys that are loaded together.
type Loads<T> = Batch<<T as CacheAside>::Key, Option<FillTarget>, LoadResult>;
/// Loaded rows, each with whether it is clear.
type Rows<T> = HashMap<<T as CacheAside>::Key, (Representation, bool)>;

impl<T: CacheAside> Repository<T> {
    /// Finds the record of `key`.
    ///
    /// # Errors
    /// The database's, and [`Error::Overloaded`] if too many reads wait for Redis. A cache that fails makes this
    /// slower, by one time-out at most.
    pub async fn find(&self, key: &T::Key, freshness: Freshness) -> Result<Found, Error> {
        let cache_key = T::cache_key(key);
        if freshness == Freshness::Any
            && let Some(found) = self.near_copy(key, &cache_key)
        {
            return Ok(found);
        }
        // Boxed: most requests end at the near copy, and need not carry the rest.
        let found = Box::pin(self.find_shared(key, cache_key, freshness)).await?;
        self.0.metrics.requests.with_label_values(&[found.status.label()]).inc();
        Ok(found)
    }

    /// As [`Repository::find`], but only in this process' own memory, and at once. Must be called after the request has
    /// arrived, and within a runtime: it may start an early refresh.
    #[must_use]
    pub fn find_near(&self, key: &T::Key) -> Option<Found> {
        self.near_copy(key, &T::cache_key(key))
    }

    fn near_copy(&self, key: &T::Key, cache_key: &str) -> Option<Found> {
        let tag = self.0.database.grants().tag()?;
        let entry = self.0.near.get(cache_key, tag)?;
        let ttl = self.ttl(&entry);
        self.0.near_hits.inc();
        self.refresh_if_due(key, cache_key, &entry, ttl);
        Some(Found { status: CacheStatus::NearHit(ttl), answer: entry.into_representation() })
    }

    /// Reads Redis, or loads. All requests that arrived before the question was sent share the result.
    async fn find_shared(
        &self,
        key: &T::Key,
        cache_key: String,
        freshness: Freshness,
    ) -> Result<Found, Error> {
        // Taken a little after the request arrived. That can only share less, never answer something too old.
        let arrival = Instant::now();
        let reads = self.reads(freshness);
        let read = || self.clone().read_through(key.clone(), cache_key.clone(), freshness);
        // A read has deadlines of its own. A request that joins a second one gets no more time for it.
        let mut call = reads.join(&cache_key, read).await;
        loop {
            let (role, shared) = call;
            let mut found = shared.result?;
            if role == Role::Leader {
                return Ok(found);
            }
            // What was read before this request arrived may not contain a write that was already acknowledged.
            if shared.as_of >= arrival {
                if let CacheStatus::Miss { .. } = found.status {
                    found.status = CacheStatus::Collapsed;
                }
                return Ok(found);
            }
            let next = reads.join(&cache_key, read);
            let deadline = arrival + self.0.database.timeout();
            call = timeout_at(deadline.into(), next).await.map_err(|_| Error::waited_too_long())?;
        }
    }

    fn reads(&self, freshness: Freshness) -> &SingleFlight<Found> {
        match freshness {
            Freshness::Any => &self.0.reads,
            Freshness::Fresh => &self.0.fresh_reads,
        }
    }

    /// Takes a copy from Redis, or the lease; then loads, and fills. If another reader has the lease, this one waits a
    /// little for its copy, and loads without filling if there is none. A fresh read loads whatever copies there are.
    async fn read_through(self, key: T::Key, cache_key: String, freshness: Freshness) -> Shared<Found> {
        let mut waited = false;
        loop {
            let as_of = Instant::now();
            // After all requests that share this have arrived, and again after each wait.
            let Some((grant, process)) = self.0.database.grants().current() else {
                return self.load_only(&key, CacheStatus::Suspended).await;
            };
            // Before Redis is asked: an invalidation that comes later makes the reply unfit for the near cache.
            let stamp = self.0.near.stamp(&cache_key, &process);
            let lease = Lease::new(grant.tag);
            let held = match self.copy_or_lease(&process, &cache_key, &lease).await {
                Ok(held) => held,
                // This request was admitted and has waited for another's load. Do not refuse it now; load without
                // filling.
                Err(_) if waited => return self.load_only(&key, CacheStatus::Bypass).await,
                Err(error) => return Shared { result: Err(error), as_of },
            };
            if let Ok(held) = &held
                && let Some(stale) = held.left_behind(grant.tag)
            {
                self.0.metrics.refused.inc();
                return match self.0.cache.take_over(&process, &cache_key, &stale, &lease).await {
                    Ok(true) => {
                        let target = FillTarget { cache_key, process, place: Place::Lease(lease) };
                        self.load_and_fill(&key, target, freshness).await
                    }
                    Ok(false) => self.load_only(&key, CacheStatus::Bypass).await,
                    Err(error) => self.load_only(&key, error.into()).await,
                };
            }
            let place = match held {
                Ok(Held::Entry(entry)) if freshness == Freshness::Any => {
                    let ttl = self.ttl(&entry);
                    self.0.near.put(&cache_key, stamp, &entry);
                    self.refresh_if_due(&key, &cache_key, &entry, ttl);
                    let found = Found { status: CacheStatus::Hit(ttl), answer: entry.into_representation() };
                    return Shared { result: Ok(found), as_of };
                }
                Ok(Held::Entry(entry)) => Place::Entry(entry),
                Ok(Held::Empty) => Place::Lease(lease),
                // One wait: a load takes a few milliseconds, and a lease whose owner died is not worth more.
                Ok(Held::Lease(_)) if freshness == Freshness::Any && !waited => {
                    waited = true;
                    sleep(LEASE_WAIT.mul_f64(rand::random_range(1.0..2.0))).await;
                    continue;
                }
                Ok(Held::Garbage(bytes)) => match self.0.cache.remove(&process, &cache_key, &bytes).await {
                    Ok(true) => continue,
                    Ok(false) => return self.load_only(&key, CacheStatus::Bypass).await,
                    Err(error) => return self.load_only(&key, error.into()).await,
                },
                Ok(Held::Lease(_) | Held::Barrier | Held::OtherFormat) => {
                    return self.load_only(&key, CacheStatus::Bypass).await;
                }
                Err(error) => return self.load_only(&key, error.into()).await,
            };
            let target = FillTarget { cache_key, process, place };
            return self.load_and_fill(&key, target, freshness).await;
        }
    }

    /// What Redis holds; if that is nothing, `lease` from now on. As many reads may wait for Redis as for PostgreSQL,
    /// which they need if Redis does not reply. Under overload this keeps the time of the others short.
    ///
    /// # Errors
    /// [`Error::Overloaded`], at once.
    async fn copy_or_lease(
        &self,
        process: &str,
        cache_key: &str,
        lease: &Lease,
    ) -> Result<Result<Held, CacheError>, Error> {
        let Ok(_permit) = self.0.reads_waiting.try_acquire() else {
            self.0.metrics.requests.with_label_values(&["refused"]).inc();
            return Err(Error::Overloaded);
        };
        Ok(self.0.cache.get_or_lease(process, cache_key, lease).await)
    }

    /// How long `entry` will live, as far as this clock can say: not longer than any does.
    fn ttl(&self, entry: &Entry) -> Duration {
        let longest = if entry.is_absence() { self.0.settings.absent_ttl } else { self.0.settings.ttl };
        entry.ttl().min(longest)
    }

    /// Early refresh: near its end, an entry is loaded anew by one of the requests that read it. It stays visible
    /// meanwhile, so that a key that is read often never misses.
    fn refresh_if_due(&self, key: &T::Key, cache_key: &str, entry: &Entry, ttl: Duration) {
        if !entry.is_due(ttl) {
            return;
        }
        let this = self.clone();
        let key = key.clone();
        let cache_key = cache_key.to_owned();
        // No request waits for it; shared, since a second refresh of the key at the same time is one too many.
        tokio::spawn(async move {
            let read = || this.clone().read_through(key.clone(), cache_key.clone(), Freshness::Fresh);
            this.0.fresh_reads.join(&cache_key, read).await;
        });
    }

    /// Loads, and answers whether or not the copy could be stored: it is, where `target` is still as it was.
    async fn load_and_fill(&self, key: &T::Key, target: FillTarget, freshness: Freshness) -> Shared<Found> {
        let start = Instant::now();
        match self.load(key, Some(target.clone())).await {
            Ok(LoadResult { answer, as_of, stored }) => {
                let status = match (stored, freshness) {
                    (Stored::NotClear, _) => CacheStatus::Bypass,
                    (_, Freshness::Any) => CacheStatus::Miss { stored: stored == Stored::Yes },
                    (_, Freshness::Fresh) => CacheStatus::Fresh { stored: stored == Stored::Yes },
                };
                if status == (CacheStatus::Fresh { stored: true }) {
                    self.0.near.invalidate(&target.cache_key);
                }
                Shared { result: Ok(Found { answer, status }), as_of }
            }
            Err(error) => {
                self.give_back(target);
                Shared { result: Err(error), as_of: start }
            }
        }
    }

    /// Removes a lease that will not be filled; if Redis cannot be reached, it expires. An entry stays.
    fn give_back(&self, target: FillTarget) {
        let FillTarget { cache_key, process, place: Place::Lease(lease) } = target else { return };
        let this = self.clone();
        tokio::spawn(async move { this.0.cache.remove(&process, &cache_key, lease.bytes()).await });
    }

    async fn load_only(&self, key: &T::Key, status: CacheStatus) -> Shared<Found> {
        match self.load(key, None).await {
            Ok(LoadResult { answer, as_of, .. }) => Shared { result: Ok(Found { answer, status }), as_of },
            Err(error) => Shared { result: Err(error), as_of: Instant::now() },
        }
    }

    /// Loads a row, together with all keys that wait, and stores a copy of it at `target`.
    async fn load(&self, key: &T::Key, target: Option<FillTarget>) -> Result<LoadResult, Error> {
        let serve = || {
            tokio::spawn(self.clone().serve_loads());
        };
        self.0.loads.join(key.clone(), target, serve).await
    }

    async fn serve_loads(self) {
        let begin = |batch, under_way: UnderWay| {
            tokio::spawn(self.clone().load_all(Arc::new(batch), under_way));
        };
        self.0.loads.serve(begin).await;
    }

    /// Loads all of `batch` by one query.
    async fn load_all(self, batch: Arc<Loads<T>>, under_way: UnderWay) {
        let taken = batch.clone();
        let query = move |connection: &mut PgConnection| {
            let keys: Vec<&T::Key> = taken.waiters().iter().map(|waiter| &waiter.key).collect();
            if keys.is_empty() {
                return Ok(HashMap::new()); // another batch has taken them
            }
            let rows = T::load(connection, &keys)?;
            let encoded = |(key, value, clear): (T::Key, T::Value, bool)| {
                let answer = T::encode(&key, &value);
                (key, (answer, clear))
            };
            Ok(rows.into_iter().map(encoded).collect())
        };
        let seen = self.0.database.read(batch.deadline, query).await;
        // The next query need not wait for Redis.
        drop(under_way);
        match seen {
            Ok(seen) => self.fill(batch, seen).await,
            Err(error) => {
                for waiter in batch.waiters() {
                    waiter.resolve(Err(error.clone()));
                }
            }
        }
    }

    /// Stores the copies of a batch, in one round trip, and resolves its waiters. Loaded rows are not put in the near
    /// cache: most are not read again within its five seconds.
    async fn fill(self, batch: Arc<Loads<T>>, seen: Seen<Rows<T>>) {
        let as_of = seen.as_of;
        let load_time = as_of.elapsed();
        let mut filling = Vec::new();
        let mut fills = Vec::new();
        for waiter in batch.waiters() {
            let row = seen.value.get(&waiter.key);
            let answer = row.map(|(answer, _)| answer.clone());
            let is_clear = row.is_none_or(|(_, clear)| *clear);
            let Some(target) = waiter.value.as_ref().filter(|_| is_clear) else {
                let stored = if is_clear { Stored::No } else { self.leave(&waiter.value) };
                waiter.resolve(Ok(LoadResult { answer, as_of, stored }));
                continue;
            };
            let ttl = if answer.is_some() { self.0.settings.ttl } else { self.0.settings.absent_ttl };
            let ttl = ttl.mul_f64(1.0 - rand::random_range(0.0..JITTER));
            let (tag, expected) = target.place.tag_and_expected();
            let bytes = entry::encode(tag, answer.as_ref(), load_time, ttl);
            fills.push(Fill { key: &target.cache_key, expected, bytes, ttl });
            filling.push((waiter, target, answer));
        }
        let Some((_, first, _)) = filling.first() else { return };
        // Other targets of the batch may be in another process, if the grant has just changed. There nothing is
        // expected that is also here.
        let stored = self.0.cache.replace(&first.process, &fills).await.unwrap_or_default();
        for (at, (waiter, target, answer)) in filling.into_iter().enumerate() {
            let stored = stored.get(at).is_some_and(|stored| *stored);
            if stored {
                self.check(target, &answer);
            }
            let stored = if stored { Stored::Yes } else { Stored::No };
            waiter.resolve(Ok(LoadResult { answer, as_of, stored }));
        }
    }

    /// Leaves a row that is not clear unstored, and its lease to others.
    fn leave(&self, target: &Option<FillTarget>) -> Stored {
        self.0.metrics.not_clear.inc();
        if let Some(target) = target {
            self.give_back(target.clone());
        }
        Stored::NotClear
    }

    /// Counts an entry that was wrong: `answer` has taken its place, so no write came in between, and yet they differ.
    fn check(&self, target: &FillTarget, answer: &Option<Representation>) {
        let Place::Entry(entry) = &target.place else { return };
        let is_current = self.0.database.grants().tag() == Some(entry.tag());
        if is_current && entry.etag() != answer.as_ref().map(|answer| answer.etag) {
            self.0.metrics.incoherent.inc();
            log::error!("an entry was wrong: was its row changed by SQL, without a purge?");
        }
    }
}

impl Place {
    /// The tag that the copy gets, and what must still be there.
    fn tag_and_expected(&self) -> (Tag, Bytes) {
        match self {
            Self::Lease(lease) => (lease.tag(), lease.bytes().clone()),
            Self::Entry(entry) => (entry.tag(), entry.head()),
        }
    }
}
