//! Redis, step by step: what a reader and a writer of `repository.rs` ask of it.
//!
//! [`entry`] has the bytes at a key, [`connection`] the time-out and the breaker, [`near`] the copies in this
//! process' own memory.

mod connection;
pub mod entry;
pub mod near;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Script, cmd, pipe};
use tokio::sync::Notify;
use tokio::time::timeout;

use self::connection::{Redis, channel};
use self::entry::{Slot, Token};
use crate::config::CacheSettings;

pub use self::connection::CacheError;
pub use self::entry::Answer;
pub use self::near::Near;

/// How long a lease holds: longer than a load may take.
const LEASE: Duration = Duration::from_secs(3);
/// How long a barrier stands: longer than any COMMIT may take.
pub const BARRIER: Duration = Duration::from_secs(10);
/// Keys to be remembered at most for writes that Redis could not be told of.
const UNTOLD_MAX: usize = 100_000;
/// So many of them are told in one round trip.
const TOLD_AT_ONCE: usize = 100;
/// How often it is tried to tell them, beside whenever Redis is connected to: it may refuse writes and stay connected.
const TELL_INTERVAL: Duration = Duration::from_millis(250);

/// A handle to Redis; clones share its connections.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    redis: Arc<Redis>,
    channel: String,
    replace: Script,
    remove: Script,
    unbarrier: Script,
    /// Keys that were written, and Redis could not be told.
    untold: Mutex<HashSet<String>>,
    /// Tells that they may be told now.
    connected: Notify,
}

/// A copy that is to go in.
#[derive(Debug)]
pub struct Copy<'a> {
    /// Where.
    pub key: &'a str,
    /// What must be there: a lease, or the head of an entry.
    pub expected: &'a [u8],
    /// The entry.
    pub bytes: Bytes,
    /// How long it is to live.
    pub ttl: Duration,
}

/// A writer's marks at the keys that it changes, from before COMMIT until it is known.
#[derive(Debug)]
pub struct Barriers {
    keys: Vec<String>,
    /// The token, and when it was sent; none, if Redis did not confirm it.
    raised: Option<(Token, Instant)>,
}

impl Barriers {
    /// How long ago they were sent; none, if they may not stand.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.raised.map(|(_, sent)| sent.elapsed())
    }
}

impl Cache {
    /// Starts to connect. Does not wait for Redis, which need not be there. Must be called within a runtime.
    ///
    /// # Errors
    /// A URL that Redis' client cannot use.
    pub fn start(settings: &CacheSettings) -> Result<Self, Box<dyn std::error::Error>> {
        let cache = Self(Arc::new(Inner {
            redis: Arc::new(Redis::new(settings)?),
            channel: channel(settings)?,
            replace: Script::new(include_str!("replace.lua")),
            remove: Script::new(include_str!("remove.lua")),
            unbarrier: Script::new(include_str!("unbarrier.lua")),
            untold: Mutex::new(HashSet::new()),
            connected: Notify::new(),
        }));
        let (keeper, teller) = (cache.clone(), cache.clone());
        tokio::spawn(async move { keeper.0.redis.keep_connected(&keeper.0.connected).await });
        tokio::spawn(teller.keep_telling());
        Ok(cache)
    }

    /// What `key` holds; if that is nothing, `lease` from now on.
    ///
    /// # Errors
    /// [`CacheError`]; a value of the wrong type is none, but garbage.
    pub async fn get_or_lease(&self, key: &str, lease: &[u8]) -> Result<Slot, CacheError> {
        let mut command = cmd("SET");
        command.arg(key).arg(lease).arg("NX").arg("GET").arg("PX").arg(LEASE.as_millis() as u64);
        match slot(self.0.redis.step(|mut link| async move { command.query_async(&mut link).await }).await) {
            // A Redis that is full takes no lease, but may have a copy.
            Err(CacheError::Failed(error)) if error.contains("OOM") => match self.get(key).await {
                Ok(Slot::Empty) => Err(CacheError::Failed(error)),
                found => found,
            },
            found => found,
        }
    }

    async fn get(&self, key: &str) -> Result<Slot, CacheError> {
        let mut command = cmd("GET");
        command.arg(key);
        slot(self.0.redis.step(|mut link| async move { command.query_async(&mut link).await }).await)
    }

    /// Puts each of `copies` in if what is at its key begins with what it expects there, in one round trip; tells
    /// of each whether it went in.
    ///
    /// # Errors
    /// [`CacheError`]; some may have gone in.
    pub async fn replace(&self, copies: &[Copy<'_>]) -> Result<Vec<bool>, CacheError> {
        let mut call = self.0.replace.prepare_invoke();
        for copy in copies {
            call.key(copy.key);
            call.arg(copy.expected).arg(copy.bytes.as_ref()).arg(copy.ttl.as_millis() as u64);
        }
        self.0.redis.step(|mut link| async move { call.invoke_async(&mut link).await }).await
    }

    /// Removes `key` if exactly `expected` is there, or something that is no string.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn remove(&self, key: &str, expected: &[u8]) -> Result<bool, CacheError> {
        let mut call = self.0.remove.key(key);
        call.arg(expected);
        self.0.redis.step(|mut link| async move { call.invoke_async(&mut link).await }).await
    }

    /// Raises barriers at `keys`, over whatever is there, and then publishes the keys, in one round trip.
    pub async fn raise_barriers(&self, keys: Vec<String>) -> Barriers {
        let attempt = |mut link: MultiplexedConnection| {
            // New for each attempt: one that is lost may arrive late, over another writer's barrier, and must not be
            // taken for the one that was confirmed.
            let (token, sent, mut steps) = (entry::token(), Instant::now(), pipe());
            let barrier = entry::barrier(&token);
            for key in &keys {
                let life = BARRIER.as_millis() as u64;
                steps.cmd("SET").arg(key).arg(barrier.as_ref()).arg("PX").arg(life).ignore();
            }
            for key in &keys {
                steps.cmd("PUBLISH").arg(&self.0.channel).arg(key).ignore();
            }
            async move { steps.query_async::<()>(&mut link).await.map(|()| (token, sent)) }
        };
        let raised = self.0.redis.insist(attempt).await;
        if let Err(error) = &raised {
            log::warn!("barriers could not be raised: {error:?}");
        }
        Barriers { keys, raised: raised.ok() }
    }

    /// Takes `barriers` down, and copies that were taken in their stead; tells whether they had all stood.
    ///
    /// Those that Redis did not confirm are not looked for: one of them may have come late, over another writer's.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn lower_barriers(&self, barriers: &Barriers) -> Result<bool, CacheError> {
        match &barriers.raised {
            Some((token, _)) => self.unbarrier(&barriers.keys, &entry::barrier(token)).await,
            None => self.unbarrier(&barriers.keys, b"").await,
        }
    }

    /// Deletes what is cached at `keys`, but for barriers, and tells the near caches.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn purge(&self, keys: &[String]) -> Result<(), CacheError> {
        self.unbarrier(keys, b"").await.map(drop)
    }

    async fn unbarrier(&self, keys: &[String], barrier: &[u8]) -> Result<bool, CacheError> {
        let mut call = self.0.unbarrier.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        call.arg(barrier).arg(&self.0.channel);
        let call = &call;
        let stood: usize =
            self.0.redis.insist(|mut link| async move { call.invoke_async(&mut link).await }).await?;
        Ok(stood == keys.len())
    }

    /// Remembers the keys of a write that Redis could not be told of, to purge them when it takes writes again.
    pub fn remember_untold(&self, barriers: Barriers) {
        self.remember(barriers.keys);
    }

    fn remember(&self, keys: Vec<String>) {
        let mut untold = self.untold();
        for key in keys {
            if untold.len() >= UNTOLD_MAX {
                log::error!(
                    "too many writes that Redis was not told of: copies of some may live to their TTL"
                );
                return;
            }
            untold.insert(key);
        }
    }

    /// Purges what is remembered as soon as Redis lets it. Never returns.
    async fn keep_telling(self) {
        loop {
            // A time-out is as good: it is time to try.
            drop(timeout(TELL_INTERVAL, self.0.connected.notified()).await);
            let mut told = 0;
            loop {
                // Taken out first: a key whose next write cannot be told meanwhile is put in anew, and stays.
                let some: Vec<String> = {
                    let mut untold = self.untold();
                    let some: Vec<String> = untold.iter().take(TOLD_AT_ONCE).cloned().collect();
                    for key in &some {
                        untold.remove(key);
                    }
                    some
                };
                if some.is_empty() {
                    break;
                }
                if self.purge(&some).await.is_err() {
                    self.remember(some);
                    break;
                }
                told += some.len();
            }
            if told > 0 {
                log::info!("Redis was told of {told} write(s) that it had missed");
            }
        }
    }

    fn untold(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slot(bytes: Result<Option<Vec<u8>>, CacheError>) -> Result<Slot, CacheError> {
    match bytes {
        Ok(bytes) => Ok(entry::decode(bytes.map(Bytes::from))),
        // What Redis says when the key holds a list, a hash, ...
        Err(CacheError::Failed(error)) if error.contains("WRONGTYPE") => Ok(Slot::Garbage(Bytes::new())),
        Err(error) => Err(error),
    }
}
