//! The marks of a writer, step by step: it raises barriers before COMMIT, extends them while that is undecided, and
//! lowers them when the outcome is known. A replace leaves its new copy where a copy was before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::Bytes;
use redis::aio::MultiplexedConnection;

use super::acks::{self, MEMBERS, Published};
use super::entry::{self, Tag, Token};
use super::{Cache, CacheError, Representation};

/// How long a barrier stands, unless it is extended: longer than a COMMIT usually takes.
pub const BARRIER: Duration = Duration::from_secs(10);
/// How long Redis may take longer for barriers than readers would wait, before it counts as unusable.
const SLOW: Duration = Duration::from_secs(1);
/// How many barriers must have been late within that time. A few may be late because this process was.
const SLOW_CALLS: u32 = 4;

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
    /// What to leave in place of the barrier at each of the keys, by its place among them.
    copies: HashMap<usize, LeftCopy>,
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

/// A new copy, which lives for as long as the one before it would have.
#[derive(Debug)]
struct LeftCopy {
    bytes: Bytes,
    /// From when the barriers were sent.
    ttl: Duration,
}

/// How the transaction of a writer has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With COMMIT, which is certain.
    Committed,
    /// Otherwise, or nobody knows.
    Otherwise,
}

/// What one call has done.
struct Raised {
    token: Token,
    sent: Instant,
    process: Arc<str>,
    /// How the copies began that were there, by the place of their keys.
    heads: HashMap<usize, Vec<u8>>,
    published: Option<Published>,
}

/// Several slow calls, without a faster one in between.
#[derive(Debug, Clone, Copy)]
pub struct Slow {
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

impl Cache {
    /// Raises barriers at `keys`, over whatever is there, and publishes those that near caches may hold, in one round
    /// trip. Where there was a copy under the grant of `tag`, which the transaction has read, `copy` returns the new one
    /// for that changed key, if there is one.
    ///
    /// # Errors
    /// [`CacheError`]: also if Redis has been slow for so long that it would keep every writer waiting.
    pub async fn raise_barriers(
        &self,
        keys: Changes,
        tag: Option<Tag>,
        copy: impl Fn(usize) -> Option<Representation>,
    ) -> Result<Barriers, CacheError> {
        let start = Instant::now();
        let all: Vec<&str> = keys.all().collect();
        let raised = self.raise(&all, &keys.changed, tag).await?;
        self.count("raised", all.len());
        let mut slow = self.0.slow.lock();
        *slow = Slow::after(*slow, start, Instant::now(), self.0.timeout);
        if slow.is_some_and(Slow::is_lasting) {
            // It is measured anew when it is granted again.
            *slow = None;
            return Err(CacheError::Timeout);
        }
        let Raised { token, sent, process, heads, published } = raised;
        let left = |(at, head): (usize, Vec<u8>)| {
            // The clocks of both services decide, and this one's setting: no correctness depends on it.
            let ttl = entry::ttl_of(&head).min(self.0.ttl);
            let copy = copy(at.checked_sub(keys.created.len())?)?;
            let bytes = entry::encode(tag?, Some(&copy), Duration::ZERO, ttl);
            Some((at, LeftCopy { bytes, ttl }))
        };
        let copies = heads.into_iter().filter_map(left).collect();
        Ok(Barriers { keys, copies, token, sent, process, published })
    }

    /// Raises barriers at `keys`, and then publishes `changed`, if there are any.
    async fn raise(&self, keys: &[&str], changed: &[String], tag: Option<Tag>) -> Result<Raised, CacheError> {
        let message = match changed {
            [] => String::new(),
            keys => serde_json::to_string(keys).unwrap_or_default(), // texts can always be written
        };
        let message = message.as_str();
        let before = self.0.acks.newest();
        let head_of_copies = tag.map(entry::head_of_values).unwrap_or_default();
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
            call.arg(head_of_copies.as_ref()).arg(entry::HEAD_BYTES);
            async move {
                call.invoke_async(&mut connection).await.map(|(heads, members)| (token, sent, heads, members))
            }
        };
        let ((token, sent, heads, members), process) = self.0.redis.call_or_connect(attempt).await?;
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
        Ok(Raised { token, sent, process, heads, published })
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

    /// Removes `barriers`, and any copy found in place of one. Where a copy was before, and the transaction is committed,
    /// the new copy takes the barrier's place.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn lower_barriers(&self, barriers: &Barriers, ended: Ended) -> Result<(), CacheError> {
        let mut call = self.0.unbarrier.prepare_invoke();
        call.arg(entry::barrier(&barriers.token).as_ref());
        // A writer that was cut off comes late: a reader that still uses its epoch is to see no copy for longer than a TTL.
        let age = barriers.age();
        for (at, key) in barriers.keys.all().enumerate() {
            call.key(key);
            match barriers.copies.get(&at) {
                Some(copy) if ended == Ended::Committed && copy.ttl > age => {
                    call.arg(copy.bytes.as_ref()).arg((copy.ttl - age).as_millis() as u64)
                }
                _ => call.arg("").arg(""),
            };
        }
        let call = &call;
        let ask = |mut connection| async move { call.invoke_async(&mut connection).await };
        let (stood, _): (usize, _) = self.0.redis.call_or_connect(ask).await?;
        self.count("lost", barriers.keys.all().count().saturating_sub(stood));
        Ok(())
    }

    /// Deletes what is cached at `keys`, except barriers, whose writers will leave no copy. Publishes the keys to the
    /// near caches: when this returns, no near copy of them is left.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn purge(&self, keys: &[String]) -> Result<(), CacheError> {
        let mut call = self.0.purge.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        call.arg(entry::barrier(&entry::token()).as_ref());
        let call = &call;
        let ask = |mut connection| async move { call.invoke_async::<()>(&mut connection).await };
        self.0.redis.call_or_connect(ask).await?;
        if let Some(published) = self.raise(&[], keys, None).await?.published {
            self.wait_for_acks(&published).await;
        }
        log::info!(target: "audit", count = keys.len(); "purge of users by name");
        Ok(())
    }

    /// Counts what has become of barriers.
    fn count(&self, event: &str, barriers: usize) {
        if barriers > 0 {
            self.0.metrics.barriers.with_label_values(&[event]).inc_by(barriers as u64);
        }
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
