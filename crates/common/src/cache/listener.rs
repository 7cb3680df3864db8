//! The listener of a near cache: one connection on which it hears of writes, proves that it has missed none, and
//! acknowledges what it has applied.
//!
//! The proof is a *renewal*: a command whose reply shows that every message which was published before it was sent has
//! been applied. It also keeps the near cache listed as a *member* in Redis, so that writers know for whose
//! acknowledgements they wait. And it is a write: a server that is demoted, paused or cut off from its replicas answers
//! a PING, but refuses this. The leases of Gray and Cheriton ("Leases", SOSP 1989) are the model.
//!
//! A thread of its own: neither a busy worker nor a slow request delays an ack.

use std::convert::Infallible;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use redis::{RedisError, cmd};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::time::{sleep, timeout_at};

use super::Cache;
use super::acks::{MEMBERS, Message, Position};
use super::connection::process;
use super::near::Near;
use super::subscription::{Channel, RECONNECT_INTERVAL};
use crate::config::CacheSettings;

/// How often the proof is renewed while there are few near caches: a fifth of its life, so that a late reply does not end
/// it.
const RENEWAL_INTERVAL: Duration = Duration::from_millis(10);
/// What a renewal is reckoned to take of Redis' one thread. docs/scaling.md has what it takes, which is less.
const RENEWAL_COST: Duration = Duration::from_micros(25);
/// The renewals of all near caches take one part in so many of that thread.
const RENEWAL_SHARE: u32 = 10;
/// How often the near caches are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// More are not told apart: a second between renewals is enough to do Redis no harm.
const LISTENERS_MAX: u32 = 4_000;

/// What the connection has brought and the near cache has applied.
#[derive(Debug, Clone)]
enum Heard {
    /// Nothing yet.
    Nothing,
    /// All messages up to this one.
    Applied(Position),
    /// Something that is no message: what it invalidates is not known.
    Garbage,
}

/// Listens for a near cache.
pub struct Listener {
    near: Arc<Near>,
    cache: Cache,
    invalidations: Channel,
    acks: Channel,
}

impl Listener {
    /// Starts to listen for `near`, on a thread that never ends.
    ///
    /// # Errors
    /// A URL that Redis' client cannot use, a thread that cannot be started.
    pub fn start(
        settings: &CacheSettings,
        cache: &Cache,
        near: Arc<Near>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let listener = Self {
            near,
            cache: cache.clone(),
            invalidations: Channel::invalidations(settings)?,
            acks: Channel::acks(settings)?,
        };
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("near-listener".into());
        thread.spawn(move || runtime.block_on(listener.keep_listening()))?;
        Ok(())
    }

    async fn keep_listening(self) {
        let mut former = None;
        loop {
            let Err(error) = self.listen(&mut former).await;
            self.near.forget();
            log::debug!("the near cache is out of use: {error}");
            sleep(RECONNECT_INTERVAL).await;
        }
    }

    /// Listens until the connection fails, as a member of its own. Not with a client that reconnects by itself: it
    /// would not show what was missed meanwhile. `former` is the member that this near cache was before.
    async fn listen(&self, former: &mut Option<String>) -> Result<Infallible, Failure> {
        let (sender, mut heard) = watch::channel(Heard::Nothing);
        let near = self.near.clone();
        let apply = move |message: &[u8]| {
            let Some(Message { position, keys }) = Message::parse(message) else {
                near.forget();
                return drop(sender.send_replace(Heard::Garbage));
            };
            for key in &keys {
                near.invalidate(key);
            }
            // Only now: an ack says that it is done.
            sender.send_replace(Heard::Applied(position));
        };
        let mut connection = self.invalidations.subscribe(apply).await?;
        let process: Arc<str> = process(&cmd("INFO").query_async(&mut connection).await?)?.into();
        // What was read from Redis before the subscription was not watched.
        self.near.forget();
        self.near.hear(&process);
        if let Some(member) = former.as_deref() {
            cmd("HDEL").arg(MEMBERS).arg(member).exec_async(&mut connection).await?;
        }
        let member = format!("{:016x}", rand::random::<u64>());
        *former = Some(member.clone());
        // At once: many may come back together, as after a restart of Redis.
        let mut interval = renewal_interval(self.listeners(&mut connection).await?);
        let mut counted = Instant::now();
        loop {
            // The cache's connections are watched for a server that has become another. This one is not.
            if self.cache.process().is_some_and(|now| now != process) {
                return Err("another Redis answers now".into());
            }
            self.renew(&mut connection, &member).await?;
            if counted.elapsed() >= COUNT_INTERVAL {
                interval = renewal_interval(self.listeners(&mut connection).await?);
                counted = Instant::now();
            }
            let next = Instant::now() + interval;
            while let Ok(changed) = timeout_at(next.into(), heard.changed()).await {
                changed?;
                let newest = heard.borrow_and_update().clone();
                let Heard::Applied(position) = newest else {
                    return Err("something was published that is no message".into());
                };
                // What arrives until the reply is acknowledged together.
                self.acknowledge(&mut connection, &member, &position).await?;
            }
        }
    }

    /// How many near caches listen. (The list of members may have some that are gone.)
    async fn listeners(&self, connection: &mut MultiplexedConnection) -> Result<u32, RedisError> {
        let name = &self.invalidations.name;
        let (_, count): (String, u32) = cmd("PUBSUB").arg("NUMSUB").arg(name).query_async(connection).await?;
        Ok(count)
    }

    /// Renews the proof. On a field that is there, it changes nothing.
    async fn renew(&self, connection: &mut MultiplexedConnection, member: &str) -> Result<(), RedisError> {
        let sent = Instant::now();
        cmd("HSETNX").arg(MEMBERS).arg(member).arg(1).exec_async(connection).await?;
        self.near.prove(sent);
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.cache.0.metrics.near_proof.set(began.saturating_sub(sent.elapsed()).as_secs_f64());
        Ok(())
    }

    async fn acknowledge(
        &self,
        connection: &mut MultiplexedConnection,
        member: &str,
        position: &Position,
    ) -> Result<(), RedisError> {
        cmd("PUBLISH").arg(&self.acks.name).arg(position.ack(member)).exec_async(connection).await
    }
}

/// How often each of `listeners` near caches renews its proof, so that Redis has time for other work.
///
/// From 200 of them on that is longer than a proof holds. Then copies are used for a part of the time, and reads ask
/// Redis for the rest of it.
fn renewal_interval(listeners: u32) -> Duration {
    RENEWAL_INTERVAL.max(RENEWAL_COST * RENEWAL_SHARE * listeners.min(LISTENERS_MAX))
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_take_a_tenth_of_redis_at_most_however_many_near_caches_there_are() {
        assert_eq!(renewal_interval(1), RENEWAL_INTERVAL);
        for listeners in [1, 10, 40, 41, 100, 400, LISTENERS_MAX] {
            let of_a_second =
                f64::from(listeners) * RENEWAL_COST.as_secs_f64() / renewal_interval(listeners).as_secs_f64();
            assert!(of_a_second <= 0.1 + f64::EPSILON, "{listeners}: {of_a_second}");
        }
        assert_eq!(renewal_interval(u32::MAX), Duration::from_secs(1));
    }
}
