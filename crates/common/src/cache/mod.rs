//! Redis, step by step: the commands of a reader and of a writer.
//!
//! `entry.rs` has the bytes at a key, `connection.rs` the time-out and the breaker, `near.rs` the copies in this
//! process' own memory, `listener.rs` and `acks.rs` what readers and writers do about them. Redis runs the scripts in
//! the Lua files.

mod acks;
mod connection;
pub(crate) mod entry;
mod listener;
mod near;
mod permissions;
mod subscription;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Script, cmd};

use self::acks::{Acks, MEMBERS, Published};
use self::connection::Redis;
use self::entry::{Held, Lease, Token};
use self::subscription::Channel;
use crate::config::CacheSettings;
use crate::metrics::CacheMetrics;

pub use self::connection::CacheError;
pub use self::entry::Representation;
pub use self::near::Near;

/// How the protocol's keys and channels begin: its edition. Editions with different beginnings do not see each other.
pub const EDITION: &str = "2:";
/// How long a lease holds: longer than a load may take with the default time-outs (2 s).
const LEASE: Duration = Duration::from_secs(3);
/// How long a barrier stands, unless it is extended: longer than a COMMIT usually takes.
pub const BARRIER: Duration = Duration::from_secs(10);
/// How long Redis may take longer for barriers than readers would wait, before it counts as unusable.
const SLOW: Duration = Duration::from_secs(1);
/// How many barriers must have been late within that time. A few may be late because this process was.
const SLOW_CALLS: u32 = 4;

/// A handle to Redis; clones share its connections.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    redis: Arc<Redis>,
    timeout: Duration,
    invalidation_channel: Channel,
    ack_channel: Channel,
    acks: Acks,
    replace: Script,
    remove: Script,
    raise: Script,
    extend: Script,
    unbarrier: Script,
    rename: Script,
    metrics: CacheMetrics,
    /// Barriers that took longer than the time-out.
    slow: Mutex<Option<Slow>>,
}

/// Several slow calls, without a faster one in between.
#[derive(Debug, Clone, Copy)]
struct Slow {
    /// When the first was sent.
    first: Instant,
    /// When the last was answered.
    last: Instant,
    calls: u32,
}

impl Slow {
    /// What there is after a call that was sent at `sent` and answered at `now`. Calls that are far apart show nothing.
    fn after(before: Option<Self>, sent: Instant, now: Instant, timeout: Duration) -> Option<Self> {
        let lasting = before.filter(|slow| now.duration_since(slow.last) < SLOW);
        let Self { first, calls, .. } = lasting.unwrap_or(Self { first: sent, last: now, calls: 0 });
        (now.duration_since(sent) > timeout).then_some(Self { first, last: now, calls: calls + 1 })
    }

    /// Whether Redis has been slow for so long that it would keep every writer waiting.
    fn is_lasting(self) -> bool {
        self.calls >= SLOW_CALLS && self.last.duration_since(self.first) > SLOW
    }
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

/// The Redis keys that a transaction changes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Those of records that are new. No near cache holds their absence, and no row lock keeps loads from storing it.
    pub created: Vec<String>,
    /// Those of records that were there.
    pub changed: Vec<String>,
}

impl Changes {
    fn all(&self) -> impl Iterator<Item = &str> {
        self.created.iter().chain(&self.changed).map(String::as_str)
    }
}

/// A writer's marks at the keys that it changes, from before COMMIT until its outcome is known.
#[derive(Debug)]
pub struct Barriers {
    keys: Changes,
    token: Token,
    sent: Instant,
    /// The Redis process that has confirmed them.
    pub process: Arc<str>,
    /// What was published with them; none if no near cache can hold a copy.
    pub published: Option<Published>,
}

impl Barriers {
    /// How long ago they were sent.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.sent.elapsed()
    }
}

/// What one call has done.
struct Raised {
    token: Token,
    sent: Instant,
    process: Arc<str>,
    published: Option<Published>,
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
            invalidation_channel,
            ack_channel,
            acks: Acks::default(),
            replace: Script::new(include_str!("replace.lua")),
            remove: Script::new(include_str!("remove.lua")),
            raise: Script::new(include_str!("raise.lua")),
            extend: Script::new(include_str!("extend.lua")),
            unbarrier: Script::new(include_str!("unbarrier.lua")),
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

    /// Raises barriers at `keys`, over whatever is there, and publishes those that near caches may hold, in one round
    /// trip.
    ///
    /// # Errors
    /// [`CacheError`]: also if Redis has been slow for so long that it would keep every writer waiting.
    pub async fn raise_barriers(&self, keys: Changes) -> Result<Barriers, CacheError> {
        let start = Instant::now();
        let all: Vec<&str> = keys.all().collect();
        let raised = self.raise(&all, &keys.changed).await?;
        self.count("raised", all.len());
        let mut slow = self.0.slow.lock();
        *slow = Slow::after(*slow, start, Instant::now(), self.0.timeout);
        if slow.is_some_and(Slow::is_lasting) {
            // It is measured anew when it is granted again.
            *slow = None;
            return Err(CacheError::Timeout);
        }
        let Raised { token, sent, process, published } = raised;
        Ok(Barriers { keys, token, sent, process, published })
    }

    /// Raises barriers at `keys`, and then publishes `changed`, if there are any.
    async fn raise(&self, keys: &[&str], changed: &[String]) -> Result<Raised, CacheError> {
        let message = match changed {
            [] => String::new(),
            keys => serde_json::to_string(keys).unwrap_or_default(), // texts can always be written
        };
        let message = message.as_str();
        let before = self.0.acks.newest();
        let attempt = |mut connection: MultiplexedConnection| {
            // New for each attempt: an attempt that was given up may arrive late, over another writer's barrier, and
            // must not be taken for the one that was confirmed.
            let token = entry::token();
            let sent = Instant::now();
            let mut call = self.0.raise.key(MEMBERS);
            for key in keys {
                call.key(*key);
            }
            call.arg(entry::barrier(&token).as_ref()).arg(BARRIER.as_millis() as u64).arg(message);
            call.arg(acks::new_roll()).arg(&self.0.invalidation_channel.name).arg(&self.0.ack_channel.name);
            async move { call.invoke_async(&mut connection).await.map(|members| (token, sent, members)) }
        };
        let ((token, sent, members), process) = self.0.redis.call_or_connect(attempt).await?;
        let published = match message {
            "" => None,
            _ => Some(self.0.acks.note(&process, members, before.as_ref())),
        };
        let published = match published.transpose() {
            Ok(published) => published,
            Err(replaced) => {
                // Other writers may trust a list that is not the one they know.
                self.rename_members(&replaced, &[]).await?;
                Some(Published::to_nobody_known())
            }
        };
        Ok(Raised { token, sent, process, published })
    }

    /// Gives the list of near members a new roll, and removes `members` from it, if its roll is still `roll`. Returns
    /// whether it was.
    async fn rename_members(&self, roll: &str, members: &[&str]) -> Result<bool, CacheError> {
        let mut call = self.0.rename.key(MEMBERS);
        let new_roll = acks::new_roll();
        call.arg(roll).arg(&new_roll);
        for member in members {
            call.arg(*member);
        }
        let call = &call;
        let ask = |mut connection| async move { call.invoke_async(&mut connection).await };
        let (renamed, process) = self.0.redis.call_or_connect(ask).await?;
        if renamed {
            self.0.acks.note_rename(&process, roll, new_roll);
        }
        Ok(renamed)
    }

    /// Lets the barriers of new records live as long as new ones, and raises those that were lost. The others need not
    /// stand: their rows are locked.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn extend_barriers(&self, barriers: &Barriers) -> Result<(), CacheError> {
        let created = &barriers.keys.created;
        if created.is_empty() {
            return Ok(());
        }
        let mut call = self.0.extend.prepare_invoke();
        for key in created {
            call.key(key);
        }
        call.arg(entry::barrier(&barriers.token).as_ref()).arg(BARRIER.as_millis() as u64);
        let call = &call;
        let ask = |mut connection| async move { call.invoke_async(&mut connection).await };
        let (lost, _): (usize, _) = self.0.redis.call_or_connect(ask).await?;
        self.count("lost", lost);
        self.count("extended", created.len());
        Ok(())
    }

    /// Removes `barriers`, and any copy found in place of one.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn lower_barriers(&self, barriers: &Barriers) -> Result<(), CacheError> {
        let keys: Vec<&str> = barriers.keys.all().collect();
        let stood = self.unbarrier(&keys, &entry::barrier(&barriers.token)).await?;
        self.count("lost", keys.len().saturating_sub(stood));
        Ok(())
    }

    /// Deletes what is cached at `keys`, except barriers, and publishes the keys to the near caches. When this returns,
    /// no near copy of them is left.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn purge(&self, keys: &[String]) -> Result<(), CacheError> {
        let all: Vec<&str> = keys.iter().map(String::as_str).collect();
        self.unbarrier(&all, b"").await?;
        if let Some(published) = self.raise(&[], keys).await?.published {
            self.wait_for_acks(&published).await;
        }
        log::info!(target: "audit", count = keys.len(); "purge of users by name");
        Ok(())
    }

    /// Returns how many barriers stood.
    async fn unbarrier(&self, keys: &[&str], barrier: &[u8]) -> Result<usize, CacheError> {
        let mut call = self.0.unbarrier.prepare_invoke();
        for key in keys {
            call.key(*key);
        }
        call.arg(barrier);
        let call = &call;
        let ask = |mut connection| async move { call.invoke_async(&mut connection).await };
        self.0.redis.call_or_connect(ask).await.map(|(stood, _)| stood)
    }

    fn count(&self, event: &str, barriers: usize) {
        if barriers > 0 {
            self.0.metrics.barriers.with_label_values(&[event]).inc_by(barriers as u64);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether Redis counts as unusable after calls that were each sent when the one before was answered.
    fn is_unusable(milliseconds: &[u64]) -> bool {
        let mut now = Instant::now();
        let mut slow = None;
        for time in milliseconds {
            let sent = now;
            now += Duration::from_millis(*time);
            slow = Slow::after(slow, sent, now, Duration::from_millis(50));
        }
        slow.is_some_and(Slow::is_lasting)
    }

    #[test]
    fn a_redis_that_is_slow_for_a_second_is_unusable() {
        assert!(is_unusable(&[300; 4]));
        assert!(!is_unusable(&[300; 3]), "less than a second");
        assert!(!is_unusable(&[600; 2]), "a few may be late because this process was");
        assert!(!is_unusable(&[300, 300, 10, 300, 300]), "a fast one in between");
        assert!(!is_unusable(&[40; 100]));
        assert!(!is_unusable(&[1100; 4]), "each is too far from the one before");
    }
}
