//! Redis, step by step: the commands of a reader, and in `barriers.rs` those of a writer.
//!
//! `entry.rs` has the bytes at a key, `connection.rs` the time-out and the breaker, `near.rs` the copies in this
//! process' own memory, `listener.rs` and `acks.rs` what readers and writers do about them. Redis runs the scripts in
//! the Lua files.

mod acks;
mod barriers;
mod connection;
pub(crate) mod entry;
mod listener;
mod near;
mod permissions;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

use actix_web::web::Bytes;
use parking_lot::Mutex;
use redis::{Script, cmd};

use self::acks::Acks;
use self::barriers::Slow;
use self::connection::Redis;
use self::entry::{Held, Lease};
use self::subscription::Channel;
use crate::config::CacheSettings;
use crate::metrics::CacheMetrics;

pub use self::barriers::{BARRIER, Barriers, Changes, Ended};
pub use self::connection::CacheError;
pub use self::entry::Representation;
pub use self::near::Near;

/// How the protocol's keys and channels begin: its edition. Editions with different beginnings do not see each other.
pub const EDITION: &str = "2:";
/// How long a lease holds: longer than a load may take with the default time-outs (2 s).
const LEASE: Duration = Duration::from_secs(3);
/// A handle to Redis; clones share its connections.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    redis: Arc<Redis>,
    timeout: Duration,
    ttl: Duration,
    invalidation_channel: Channel,
    ack_channel: Channel,
    acks: Acks,
    replace: Script,
    remove: Script,
    raise: Script,
    extend: Script,
    unbarrier: Script,
    purge: Script,
    rename: Script,
    metrics: CacheMetrics,
    /// Barriers that took longer than the time-out.
    slow: Mutex<Option<Slow>>,
}

/// A copy that is to be stored.
#[derive(Debug)]
pub struct Fill<'a> {
    /// The Redis key.
    pub key: &'a str,
    /// What must be there now: a lease, or the head of an entry.
    pub expected: Bytes,
    /// The entry.
    pub bytes: Bytes,
    /// How long the entry is to live.
    pub ttl: Duration,
}

impl Cache {
    /// Starts to connect. Does not wait for Redis, which need not be there. Must be called within a runtime.
    ///
    /// # Errors
    /// A URL that Redis' client cannot use.
    pub fn start(
        settings: &CacheSettings,
        metrics: CacheMetrics,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let invalidation_channel = Channel::invalidations(settings)?;
        let ack_channel = Channel::acks(settings)?;
        let commands = permissions::needed(&invalidation_channel.name, &ack_channel.name);
        let cache = Self(Arc::new(Inner {
            redis: Arc::new(Redis::new(settings, commands)?),
            timeout: settings.timeout,
            ttl: settings.ttl,
            invalidation_channel,
            ack_channel,
            acks: Acks::default(),
            replace: Script::new(include_str!("replace.lua")),
            remove: Script::new(include_str!("remove.lua")),
            raise: Script::new(include_str!("raise.lua")),
            extend: Script::new(include_str!("extend.lua")),
            unbarrier: Script::new(include_str!("unbarrier.lua")),
            purge: Script::new(include_str!("purge.lua")),
            rename: Script::new(include_str!("rename.lua")),
            metrics,
            slow: Mutex::new(None),
        }));
        tokio::spawn(cache.0.redis.clone().keep_connected());
        Ok(cache)
    }

    /// Which Redis process is connected now.
    #[must_use]
    pub fn process(&self) -> Option<Arc<str>> {
        self.0.redis.process()
    }

    /// Whether Redis takes a write in time now, and which process does.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn probe(&self) -> Result<Arc<str>, CacheError> {
        let process = self.process().ok_or(CacheError::BreakerOpen)?;
        let mut command = cmd("SET");
        command.arg([EDITION, "probe"].concat()).arg("").arg("PX").arg(BARRIER.as_millis() as u64);
        let ask = |mut connection| async move { command.query_async::<()>(&mut connection).await };
        self.0.redis.call(&process, ask).await.map(|()| process)
    }

    /// What `key` holds in the Redis process `granted`; if that is nothing, `lease` from now on.
    ///
    /// # Errors
    /// [`CacheError`]; a value of the wrong type is no error, but garbage.
    pub async fn get_or_lease(&self, granted: &str, key: &str, lease: &Lease) -> Result<Held, CacheError> {
        let mut command = cmd("SET");
        command
            .arg(key)
            .arg(lease.bytes().as_ref())
            .arg("NX")
            .arg("GET")
            .arg("PX")
            .arg(LEASE.as_millis() as u64);
        let ask = |mut connection| async move { command.query_async(&mut connection).await };
        match held(self.0.redis.call(granted, ask).await) {
            // A Redis that is full refuses the lease, but may have a copy.
            Err(CacheError::Failed(error)) if error.contains("OOM") => match self.get(granted, key).await {
                Ok(Held::Empty) => Err(CacheError::Failed(error)),
                found => found,
            },
            found => found,
        }
    }

    async fn get(&self, granted: &str, key: &str) -> Result<Held, CacheError> {
        let mut command = cmd("GET");
        command.arg(key);
        let ask = |mut connection| async move { command.query_async(&mut connection).await };
        held(self.0.redis.call(granted, ask).await)
    }

    /// Puts `lease` where `key` holds an entry or a lease that begins with `stale`. Returns whether it did.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn take_over(
        &self,
        granted: &str,
        key: &str,
        stale: &Bytes,
        lease: &Lease,
    ) -> Result<bool, CacheError> {
        let fill = Fill { key, expected: stale.clone(), bytes: lease.bytes().clone(), ttl: LEASE };
        Ok(self.replace(granted, &[fill]).await?.contains(&true))
    }

    /// Stores each of `fills` whose key still holds what it expects there, in one round trip. Returns for each whether
    /// it was stored.
    ///
    /// # Errors
    /// [`CacheError`]; some may have been stored.
    pub async fn replace(&self, granted: &str, fills: &[Fill<'_>]) -> Result<Vec<bool>, CacheError> {
        let mut call = self.0.replace.prepare_invoke();
        for fill in fills {
            call.key(fill.key);
            call.arg(fill.expected.as_ref()).arg(fill.bytes.as_ref()).arg(fill.ttl.as_millis() as u64);
        }
        let ask = |mut connection| async move { call.invoke_async(&mut connection).await };
        self.0.redis.call(granted, ask).await
    }

    /// Removes `key` if it holds exactly `expected`, or something that is no string.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn remove(&self, granted: &str, key: &str, expected: &[u8]) -> Result<bool, CacheError> {
        let mut call = self.0.remove.key(key);
        call.arg(expected);
        let ask = |mut connection| async move { call.invoke_async(&mut connection).await };
        self.0.redis.call(granted, ask).await
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
