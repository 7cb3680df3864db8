//! Redis, step by step: the commands of a reader and of a writer.
//!
//! `entry.rs` has the bytes at a key, `connection.rs` the time-out and the breaker, `near.rs` the copies in this process'
//! own memory. Redis runs the scripts in the Lua files.

mod connection;
pub(crate) mod entry;
pub(crate) mod near;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Script, cmd, pipe};
use tokio::sync::Notify;
use tokio::time::timeout;

use self::connection::{Redis, channel};
use self::entry::{Held, Token};
use crate::config::CacheSettings;

pub use self::connection::CacheError;
pub use self::entry::Representation;
pub use self::near::Near;

/// How long a lease holds: longer than a load may take with the default time-outs (2 s).
const LEASE: Duration = Duration::from_secs(3);
/// How long a barrier stands: longer than a COMMIT may take.
pub const BARRIER: Duration = Duration::from_secs(10);
/// How many keys of writes that Redis could not be told of are remembered at most: 20 MB of memory.
const UNTOLD_MAX: usize = 100_000;
/// How many of these keys one round trip purges: a script of 100 keys is short beside the time-out.
const TOLD_AT_ONCE: usize = 100;
/// How often they are retried. Each reconnect retries too; this is for a Redis that refuses writes and stays connected.
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
    /// The keys of writes that Redis could not be told of.
    untold: Mutex<HashSet<String>>,
    /// Notified when Redis is connected and `untold` can be sent.
    connected: Notify,
}

/// A copy that is to be stored.
#[derive(Debug)]
pub struct Fill<'a> {
    /// The Redis key.
    pub key: &'a str,
    /// What must be there now: a lease, or the head of an entry.
    pub expected: &'a [u8],
    /// The entry.
    pub bytes: Bytes,
    /// How long the entry is to live.
    pub ttl: Duration,
}

/// A writer's marks at the keys that it changes, from before COMMIT until its outcome is known.
#[derive(Debug)]
pub struct Barriers {
    keys: Vec<String>,
    /// The token, and when it was sent; none if Redis did not confirm it.
    raised: Option<(Token, Instant)>,
}

impl Barriers {
    /// How long ago they were sent; none if they may not stand.
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
        let keeper = cache.clone();
        tokio::spawn(async move { keeper.0.redis.keep_connected(&keeper.0.connected).await });
        tokio::spawn(cache.clone().keep_telling());
        Ok(cache)
    }

    /// What `key` holds; if that is nothing, `lease` from now on.
    ///
    /// # Errors
    /// [`CacheError`]; a value of the wrong type is no error, but garbage.
    pub async fn get_or_lease(&self, key: &str, lease: &[u8]) -> Result<Held, CacheError> {
        let mut command = cmd("SET");
        command.arg(key).arg(lease).arg("NX").arg("GET").arg("PX").arg(LEASE.as_millis() as u64);
        match held(
            self.0
                .redis
                .call(|mut connection| async move { command.query_async(&mut connection).await })
                .await,
        ) {
            // A Redis that is full refuses the lease, but may have a copy.
            Err(CacheError::Failed(error)) if error.contains("OOM") => match self.get(key).await {
                Ok(Held::Empty) => Err(CacheError::Failed(error)),
                found => found,
            },
            found => found,
        }
    }

    async fn get(&self, key: &str) -> Result<Held, CacheError> {
        let mut command = cmd("GET");
        command.arg(key);
        held(
            self.0
                .redis
                .call(|mut connection| async move { command.query_async(&mut connection).await })
                .await,
        )
    }

    /// Stores each of `fills` whose key still holds what it expects there, in one round trip. Returns for each whether
    /// it was stored.
    ///
    /// # Errors
    /// [`CacheError`]; some may have been stored.
    pub async fn replace(&self, fills: &[Fill<'_>]) -> Result<Vec<bool>, CacheError> {
        let mut call = self.0.replace.prepare_invoke();
        for fill in fills {
            call.key(fill.key);
            call.arg(fill.expected).arg(fill.bytes.as_ref()).arg(fill.ttl.as_millis() as u64);
        }
        self.0.redis.call(|mut connection| async move { call.invoke_async(&mut connection).await }).await
    }

    /// Removes `key` if it holds exactly `expected`, or something that is no string.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn remove(&self, key: &str, expected: &[u8]) -> Result<bool, CacheError> {
        let mut call = self.0.remove.key(key);
        call.arg(expected);
        self.0.redis.call(|mut connection| async move { call.invoke_async(&mut connection).await }).await
    }

    /// Raises barriers at `keys`, over whatever is there, and then publishes the keys, in one round trip.
    pub async fn raise_barriers(&self, keys: Vec<String>) -> Barriers {
        let attempt = |mut connection: MultiplexedConnection| {
            // New for each attempt: an attempt that was given up may arrive late, over another writer's barrier, and
            // must not be taken for the one that was confirmed.
            let token = entry::token();
            let sent = Instant::now();
            let mut commands = pipe();
            let barrier = entry::barrier(&token);
            for key in &keys {
                let life = BARRIER.as_millis() as u64;
                commands.cmd("SET").arg(key).arg(barrier.as_ref()).arg("PX").arg(life).ignore();
            }
            for key in &keys {
                commands.cmd("PUBLISH").arg(&self.0.channel).arg(key).ignore();
            }
            async move { commands.query_async::<()>(&mut connection).await.map(|()| (token, sent)) }
        };
        let raised = self.0.redis.call_or_connect(attempt).await;
        if let Err(error) = &raised {
            log::warn!("barriers could not be raised: {error:?}");
        }
        Barriers { keys, raised: raised.ok() }
    }

    /// Removes `barriers`, and any copy found in place of one. Returns whether all were still there.
    ///
    /// Barriers that Redis did not confirm are not looked for: one of them may have arrived late, over another
    /// writer's.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn lower_barriers(&self, barriers: &Barriers) -> Result<bool, CacheError> {
        match &barriers.raised {
            Some((token, _)) => self.unbarrier(&barriers.keys, &entry::barrier(token)).await,
            None => self.unbarrier(&barriers.keys, b"").await,
        }
    }

    /// Deletes what is cached at `keys`, except barriers, and publishes the keys to the near caches.
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
        let stood: usize = self
            .0
            .redis
            .call_or_connect(|mut connection| async move { call.invoke_async(&mut connection).await })
            .await?;
        Ok(stood == keys.len())
    }

    /// Remembers the keys of a write that Redis could not be told of, and purges them when Redis takes writes again.
    pub fn remember_untold(&self, barriers: Barriers) {
        self.remember(barriers.keys);
    }

    fn remember(&self, keys: Vec<String>) {
        let mut untold = self.0.untold.lock();
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

    /// Purges the remembered keys as soon as Redis takes writes. Never returns.
    async fn keep_telling(self) {
        loop {
            // Whether connected or timed out: it is time to try.
            let _ = timeout(TELL_INTERVAL, self.0.connected.notified()).await;
            let mut told = 0;
            loop {
                // Taken out first: a key whose next write cannot be told meanwhile is put in anew, and stays.
                let some: Vec<String> = {
                    let mut untold = self.0.untold.lock();
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
}

fn held(bytes: Result<Option<Vec<u8>>, CacheError>) -> Result<Held, CacheError> {
    match bytes {
        Ok(bytes) => Ok(entry::decode(bytes.map(Bytes::from))),
        // The error of Redis when the key holds a list, a hash, ...
        Err(CacheError::Failed(error)) if error.contains("WRONGTYPE") => Ok(Held::Garbage(Bytes::new())),
        Err(error) => Err(error),
    }
}
