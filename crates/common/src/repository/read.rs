//! The read flow, top to bottom.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use diesel::PgConnection;
use tokio::time::{sleep, timeout_at};

use super::singleflight::{Landed, Seat};
use super::{CacheAside, Found, Loaded, Loads, Place, Repository, Source};
use crate::cache::entry::{self, Answer, Filled, Slot};
use crate::cache::{CacheError, Copy, near};
use crate::database::Seen;
use crate::error::Error;

/// How long to wait for another replica's load, at least; at most twice as long.
const LEASE_WAIT: Duration = Duration::from_millis(20);
/// The share of a TTL that may be taken off at random, so that what was filled together does not end together.
const JITTER: f64 = 0.1;

impl<T: CacheAside> Repository<T> {
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
            flight = timeout_at(give_up.into(), next).await.map_err(|_| Error::waited_too_long())?;
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
}
