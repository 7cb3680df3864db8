//! The read flow, top to bottom: the near cache, Redis, the load, the fill.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use diesel::PgConnection;
use tokio::time::{sleep, timeout_at};

use super::singleflight::{Role, Shared};
use super::{CacheAside, CacheStatus, Found, Freshness, Repository};
use crate::cache::entry::{self, Entry, Held};
use crate::cache::{CacheError, Fill, Representation};
use crate::database::{Batch, Seen};
use crate::error::Error;

/// How long to wait for another replica's load, at least; at most twice as long. A load takes a few milliseconds.
const LEASE_WAIT: Duration = Duration::from_millis(20);
/// The share of a TTL that may be taken off at random, so that entries that were stored together do not end together.
const JITTER: f64 = 0.1;

/// Where a loaded copy is stored.
pub struct FillTarget {
    cache_key: String,
    /// What must still be there: a lease, or the head of an entry.
    expected: Bytes,
}

/// The result of a load.
pub struct LoadResult {
    answer: Option<Representation>,
    /// When the query was sent.
    as_of: Instant,
    /// Whether the copy was stored.
    stored: bool,
}

/// Keys that are loaded together.
type Loads<T> = Batch<<T as CacheAside>::Key, Option<FillTarget>, LoadResult>;

impl<T: CacheAside> Repository<T> {
    /// Finds the record of `key`.
    ///
    /// # Errors
    /// The database's, and [`Error::Overloaded`] if too many reads wait for Redis. A cache that fails makes this slower,
    /// by one time-out at most.
    pub async fn find(&self, key: &T::Key, freshness: Freshness) -> Result<Found, Error> {
        let cache_key = T::cache_key(key);
        // Boxed: most requests end at the near copy, and need not carry the rest.
        let found = match freshness {
            Freshness::Any => match self.near_copy(key, &cache_key) {
                Some(found) => return Ok(found),
                None => Box::pin(self.find_copy(key, cache_key)).await,
            },
            Freshness::Fresh => Box::pin(self.find_fresh(key, cache_key)).await,
        }?;
        self.0.requests.with_label_values(&[found.status.label()]).inc();
        Ok(found)
    }

    /// As [`Repository::find`], but only in this process' own memory, and at once. Must be called after the request has
    /// arrived, and within a runtime: it may start an early refresh.
    #[must_use]
    pub fn find_near(&self, key: &T::Key) -> Option<Found> {
        self.near_copy(key, &T::cache_key(key))
    }

    fn near_copy(&self, key: &T::Key, cache_key: &str) -> Option<Found> {
        let entry = self.0.near.get(cache_key)?;
        let ttl = entry.ttl();
        self.0.near_hits.inc();
        self.refresh_if_due(key, cache_key, &entry, ttl);
        Some(Found { status: CacheStatus::NearHit(ttl), answer: entry.into_representation() })
    }

    /// Reads Redis, or loads. All requests that arrived before the question was sent share the result.
    async fn find_copy(&self, key: &T::Key, cache_key: String) -> Result<Found, Error> {
        // Taken a little after the request arrived. That can only share less, never answer something too old.
        let arrival = Instant::now();
        let read = || self.clone().read_through(key.clone(), cache_key.clone());
        // A read has deadlines of its own. A request that joins a second one gets no more time for it.
        let mut call = self.0.reads.join(&cache_key, read).await;
        loop {
            let (role, shared) = call;
            let mut found = shared.result?;
            if role == Role::Leader {
                return Ok(found);
            }
            // A load that read before this request arrived may not contain a write that was already acknowledged.
            if shared.as_of >= arrival {
                if let CacheStatus::Miss { .. } = found.status {
                    found.status = CacheStatus::Collapsed;
                }
                return Ok(found);
            }
            let next = self.0.reads.join(&cache_key, read);
            let deadline = arrival + self.0.database.timeout();
            call = timeout_at(deadline.into(), next).await.map_err(|_| Error::waited_too_long())?;
        }
    }

    /// Takes a copy from Redis, or the lease; then loads, and fills. If another reader has the lease, this one waits a
    /// little for its copy, and loads without filling if there is none.
    async fn read_through(self, key: T::Key, cache_key: String) -> Shared<Found> {
        let mut waited = false;
        loop {
            let as_of = Instant::now();
            // Before Redis is asked: an invalidation that comes later makes the reply unfit for the near cache.
            let stamp = self.0.near.stamp(&cache_key);
            let lease = entry::lease(&entry::token());
            let held = match self.copy_or_lease(&cache_key, &lease).await {
                Ok(held) => held,
                // This request was admitted and has waited for another's load. Do not refuse it now; load without
                // filling.
                Err(_) if waited => return self.load_only(&key, CacheStatus::Bypass).await,
                Err(error) => return Shared { result: Err(error), as_of },
            };
            match held {
                Ok(Held::Entry(entry)) => {
                    let ttl = entry.ttl();
                    self.0.near.put(&cache_key, stamp, &entry);
                    self.refresh_if_due(&key, &cache_key, &entry, ttl);
                    let found = Found { status: CacheStatus::Hit(ttl), answer: entry.into_representation() };
                    return Shared { result: Ok(found), as_of };
                }
                Ok(Held::Empty) => return self.load_and_fill(&key, &cache_key, lease, Freshness::Any).await,
                // One wait: a load takes a few milliseconds, and a lease whose owner died is not worth more.
                Ok(Held::Lease) if !waited => {
                    waited = true;
                    sleep(LEASE_WAIT.mul_f64(rand::random_range(1.0..2.0))).await;
                }
                Ok(Held::Garbage(bytes)) => match self.0.cache.remove(&cache_key, &bytes).await {
                    Ok(true) => {}
                    Ok(false) => return self.load_only(&key, CacheStatus::Bypass).await,
                    Err(error) => return self.load_only(&key, error.into()).await,
                },
                Ok(Held::Lease | Held::Barrier | Held::OtherFormat) => {
                    return self.load_only(&key, CacheStatus::Bypass).await;
                }
                Err(error) => return self.load_only(&key, error.into()).await,
            }
        }
    }

    /// What Redis holds; if that is nothing, `lease` from now on. As many reads may wait for Redis as for PostgreSQL,
    /// which they need if Redis does not reply. Under overload this keeps the time of the others short.
    ///
    /// # Errors
    /// [`Error::Overloaded`], at once.
    async fn copy_or_lease(&self, cache_key: &str, lease: &[u8]) -> Result<Result<Held, CacheError>, Error> {
        let Ok(_permit) = self.0.reads_waiting.try_acquire() else {
            self.0.requests.with_label_values(&["refused"]).inc();
            return Err(Error::Overloaded);
        };
        Ok(self.0.cache.get_or_lease(cache_key, lease).await)
    }

    /// Reads the row, whatever copies there are, and refills the cache.
    async fn find_fresh(&self, key: &T::Key, cache_key: String) -> Result<Found, Error> {
        let this = self.clone();
        let key = key.clone();
        // A task of its own: a client that hangs up leaves no lease behind.
        let task = tokio::spawn(async move {
            // The row is read only after Redis' reply. So what Redis holds now, if it is still there at the fill, was
            // not overtaken by a write in between.
            let lease = entry::lease(&entry::token());
            let mut held = match this.copy_or_lease(&cache_key, &lease).await {
                Ok(held) => held,
                Err(error) => return Shared { result: Err(error), as_of: Instant::now() },
            };
            if let Ok(Held::Garbage(bytes)) = &held {
                held = match this.0.cache.remove(&cache_key, bytes).await {
                    Ok(_) => this.0.cache.get_or_lease(&cache_key, &lease).await,
                    Err(error) => Err(error),
                };
            }
            let expected = match held {
                Ok(Held::Empty) => lease,
                Ok(Held::Entry(entry)) => entry.head(),
                Ok(_) => return this.load_only(&key, CacheStatus::Bypass).await,
                Err(error) => return this.load_only(&key, error.into()).await,
            };
            this.load_and_fill(&key, &cache_key, expected, Freshness::Fresh).await
        });
        task.await.map_err(|panic| Error::Internal(panic.to_string()))?.result
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
        let head = entry.head();
        tokio::spawn(async move {
            let load = || {
                let this = this.clone();
                let cache_key = cache_key.clone();
                async move { this.load_and_fill(&key, &cache_key, head, Freshness::Fresh).await }
            };
            // No request waits for it; shared, since a second refresh of the key at the same time is one too many.
            this.0.refreshes.join(&cache_key, load).await;
        });
    }

    /// Loads, and answers whether or not the copy could be stored: it is, where `expected` is still there.
    async fn load_and_fill(
        &self,
        key: &T::Key,
        cache_key: &str,
        expected: Bytes,
        freshness: Freshness,
    ) -> Shared<Found> {
        let start = Instant::now();
        let target = FillTarget { cache_key: cache_key.to_owned(), expected: expected.clone() };
        match self.load(key, Some(target)).await {
            Ok(LoadResult { answer, as_of, stored }) => {
                let status = match freshness {
                    Freshness::Any => CacheStatus::Miss { stored },
                    Freshness::Fresh => CacheStatus::Fresh { stored },
                };
                if status == (CacheStatus::Fresh { stored: true }) {
                    self.0.near.invalidate(cache_key);
                }
                Shared { result: Ok(Found { answer, status }), as_of }
            }
            Err(error) => {
                // Gives the lease back; if Redis cannot be reached, it expires. A refresh passes only an entry's head,
                // which `remove` never equals, so the old entry stays.
                let this = self.clone();
                let cache_key = cache_key.to_owned();
                tokio::spawn(async move { this.0.cache.remove(&cache_key, &expected).await });
                Shared { result: Err(error), as_of: start }
            }
        }
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

    /// Sends one query for all keys that wait, and another, until none waits.
    async fn serve_loads(self) {
        while let Some(batch) = self.0.loads.next() {
            let batch = Arc::new(batch);
            let taken = batch.clone();
            let query = move |connection: &mut PgConnection| {
                let keys: Vec<&T::Key> = taken.waiters().iter().map(|waiter| &waiter.key).collect();
                if keys.is_empty() {
                    return Ok(HashMap::new()); // another worker's batch has taken them
                }
                let records = T::load(connection, &keys)?;
                Ok(records.iter().map(|record| (T::key(record).clone(), T::encode(record))).collect())
            };
            match self.0.database.read(batch.deadline, query).await {
                // The next query need not wait for Redis.
                Ok(seen) => {
                    tokio::spawn(self.clone().fill(batch, seen));
                }
                Err(error) => {
                    for waiter in batch.waiters() {
                        waiter.resolve(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Stores the copies of a batch, in one round trip, and resolves its waiters. Loaded rows are not put in the near
    /// cache: most are not read again within its five seconds.
    async fn fill(self, batch: Arc<Loads<T>>, seen: Seen<HashMap<T::Key, Representation>>) {
        let as_of = seen.as_of;
        let load_time = as_of.elapsed();
        let mut filling = Vec::new();
        let mut fills = Vec::new();
        for waiter in batch.waiters() {
            let answer = seen.value.get(&waiter.key).cloned();
            let Some(target) = &waiter.value else {
                waiter.resolve(Ok(LoadResult { answer, as_of, stored: false }));
                continue;
            };
            let ttl = if answer.is_some() { self.0.settings.ttl } else { self.0.settings.absent_ttl };
            let ttl = ttl.mul_f64(1.0 - rand::random_range(0.0..JITTER));
            let bytes = entry::encode(answer.as_ref(), load_time, ttl);
            fills.push(Fill { key: &target.cache_key, expected: &target.expected, bytes, ttl });
            filling.push((waiter, answer));
        }
        if fills.is_empty() {
            return;
        }
        let stored = self.0.cache.replace(&fills).await.unwrap_or_default();
        for (at, (waiter, answer)) in filling.into_iter().enumerate() {
            let stored = stored.get(at).is_some_and(|stored| *stored);
            waiter.resolve(Ok(LoadResult { answer, as_of, stored }));
        }
    }
}
