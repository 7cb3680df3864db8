//! The near cache: copies in this process' own memory, answered without asking Redis, and still linearizable.
//!
//! A thread listens on one connection for the keys that writers publish, and sends a PING on that same connection
//! again and again. Redis answers in order: a PONG proves that every key published before its PING was *sent* has
//! been received. So a copy may be used until [`LEASE`] after the newest PING that was answered, and a writer that
//! waits as long between publishing and COMMIT can know that all copies are gone.
//!
//! The thread is blocking and does one thing after the other: what it reads it applies before it reads on, so that
//! a removal is always done before a later PONG counts.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::sync::Cache as Entries;
use redis::{Client, Connection, ErrorKind, RedisError, cmd, from_redis_value};

use super::connection::{CONNECT_TIMEOUT, channel};
use super::entry::Filled;
use crate::config::CacheSettings;

/// How long a PING that was answered proves that nothing was missed. Writers wait so long: to change it, raise it at
/// the writers first, or lower it at the readers first.
pub const LEASE: Duration = Duration::from_millis(50);
/// What writers wait beyond it, for clocks that do not run alike.
pub const LEASE_MARGIN: Duration = Duration::from_millis(5);
/// How often a PING is sent.
const PING_INTERVAL: Duration = Duration::from_millis(10);
/// How long a reply may take before the connection is given up.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait before connecting again.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(250);
/// How long a copy may live here, whatever else: what is hot is taken anew at little cost.
const LIFE: Duration = Duration::from_secs(5);
/// Counts, each for the keys that fall to it.
const SHARDS: usize = 256;
/// What an entry costs beside its key and its bytes, roughly.
const OVERHEAD_BYTES: u64 = 200;

/// The copies, and the proof that they are current.
pub struct Near {
    entries: Entries<String, Kept, Weight>,
    /// How often a key of each shard was invalidated. A shard's lock makes its count and its copies change together.
    counts: Vec<Mutex<u64>>,
    /// When the newest answered PING was sent, in microseconds since the start; 0 is out of use.
    proof: AtomicU64,
    start: Instant,
}

#[derive(Clone)]
struct Kept {
    filled: Filled,
    until: Instant,
}

#[derive(Clone)]
struct Weight;

impl Weighter<String, Kept> for Weight {
    fn weight(&self, key: &String, kept: &Kept) -> u64 {
        (key.len() + kept.filled.size()) as u64 + OVERHEAD_BYTES
    }
}

/// A shard's count from before a key was read: what was read may be kept if the count has not moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note(u64);

impl Near {
    /// Starts to listen, for copies of `capacity` bytes in all. Does not wait for Redis.
    ///
    /// # Errors
    /// A URL that Redis' client cannot use, a thread that cannot be started.
    pub fn start(settings: &CacheSettings, capacity: u64) -> Result<Arc<Self>, Box<dyn std::error::Error>> {
        let client = Client::open(settings.url.expose()).map_err(|_| "REDIS_URL cannot be used")?;
        let channel = channel(settings)?;
        let near = Arc::new(Self::new(capacity));
        let listener = near.clone();
        thread::Builder::new()
            .name("near-listener".into())
            .spawn(move || listener.keep_listening(&client, &channel))?;
        Ok(near)
    }

    fn new(capacity: u64) -> Self {
        let estimate = usize::try_from(capacity / 1024).unwrap_or(usize::MAX);
        Self {
            entries: Entries::with_weighter(estimate, capacity, Weight),
            counts: (0..SHARDS).map(|_| Mutex::new(0)).collect(),
            proof: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// The copy for `key`, if it is proved to be current. To be called after the request has arrived: the verdict
    /// holds for reads that began before it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Filled> {
        // In this order: the proof, the copy, the clock. A removal that the proof covers is seen by what follows.
        let proof = self.proof.load(Ordering::Acquire);
        if proof == 0 {
            return None;
        }
        let kept = self.entries.get(key)?;
        let now = Instant::now();
        let proved = self.at(now) < proof + LEASE.as_micros() as u64;
        (proved && now < kept.until).then_some(kept.filled)
    }

    /// To be taken before `key` is read from Redis; none while out of use.
    #[must_use]
    pub fn note(&self, key: &str) -> Option<Note> {
        if self.proof.load(Ordering::Acquire) == 0 {
            return None;
        }
        Some(Note(*self.count(key)))
    }

    /// Keeps what Redis was seen to hold for `key`, unless it was invalidated since `note`. An absence is not kept:
    /// who registers does not wait.
    pub fn put(&self, key: &str, note: Option<Note>, filled: &Filled) {
        let Some(note) = note.filter(|_| !filled.is_absence()) else { return };
        let until = Instant::now() + filled.ttl().min(LIFE);
        let count = self.count(key);
        if *count == note.0 {
            self.entries.insert(key.to_owned(), Kept { filled: filled.clone(), until });
        }
    }

    /// Drops the copy for `key`, and what is on its way to be one.
    pub fn invalidate(&self, key: &str) {
        let mut count = self.count(key);
        *count += 1;
        self.entries.remove(key);
    }

    /// Goes out of use, and makes every copy and every note worthless.
    fn forget(&self) {
        self.proof.store(0, Ordering::Release);
        for count in &self.counts {
            *count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        }
        self.entries.clear();
    }

    fn count(&self, key: &str) -> MutexGuard<'_, u64> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let shard = hasher.finish() as usize % SHARDS;
        self.counts[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds since the start, never 0.
    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, time: Instant) -> u64 {
        u64::try_from(time.duration_since(self.start).as_micros()).unwrap_or(u64::MAX - 1) + 1
    }

    fn keep_listening(&self, client: &Client, channel: &str) {
        loop {
            let Err(error) = self.listen(client, channel);
            self.forget();
            log::debug!("the near cache is out of use: {error}");
            thread::sleep(RECONNECT_INTERVAL);
        }
    }

    /// Listens until the connection fails. No client that reconnects by itself: what was missed meanwhile would
    /// never be known.
    fn listen(&self, client: &Client, channel: &str) -> Result<Infallible, RedisError> {
        let mut connection = client.get_connection_with_timeout(CONNECT_TIMEOUT)?;
        connection.set_read_timeout(Some(REPLY_TIMEOUT))?;
        connection.set_write_timeout(Some(REPLY_TIMEOUT))?;
        connection.send_packed_command(&cmd("SUBSCRIBE").arg(channel).get_packed_command())?;
        while Message::read(&mut connection)? != Message::Subscribed {}
        // What was read from Redis before the subscription is under nobody's watch.
        self.forget();
        loop {
            let sent = self.now();
            connection.send_packed_command(&cmd("PING").get_packed_command())?;
            loop {
                match Message::read(&mut connection)? {
                    Message::Invalidation(key) => self.invalidate(&key),
                    Message::Pong => break,
                    Message::Subscribed => {}
                }
            }
            self.proof.store(sent, Ordering::Release);
            thread::sleep(PING_INTERVAL);
        }
    }
}

/// What comes on the listener's connection.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    Subscribed,
    Invalidation(String),
    Pong,
}

impl Message {
    fn read(connection: &mut Connection) -> Result<Self, RedisError> {
        let words: Vec<String> = from_redis_value(connection.recv_response()?)?;
        match words.as_slice() {
            [kind, ..] if kind == "subscribe" => Ok(Self::Subscribed),
            [kind, ..] if kind == "pong" => Ok(Self::Pong),
            [kind, _, key] if kind == "message" => Ok(Self::Invalidation(key.clone())),
            _ => Err((ErrorKind::UnexpectedReturnType, "not a message of pub/sub").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::{Answer, Slot, decode, encode};

    fn filled(ttl: Duration) -> Filled {
        let answer = Answer { etag: [0; 16], body: "{}".into() };
        let Slot::Filled(filled) = decode(Some(encode(Some(&answer), Duration::ZERO, ttl))) else { panic!() };
        filled
    }

    /// In use, as if a PING had just been answered.
    fn proved() -> Near {
        let near = Near::new(1 << 20);
        near.proof.store(near.now(), Ordering::Release);
        near
    }

    #[test]
    fn a_copy_is_kept_unless_its_key_was_invalidated_since_the_note() {
        let (near, minute) = (proved(), filled(Duration::from_secs(60)));
        let note = near.note("a");
        near.put("a", note, &minute);
        assert_eq!(near.get("a"), Some(minute.clone()));
        near.invalidate("a");
        assert_eq!(near.get("a"), None);
        near.put("a", note, &minute);
        assert_eq!(near.get("a"), None);
    }

    #[test]
    fn an_old_proof_proves_nothing() {
        let near = proved();
        near.put("a", near.note("a"), &filled(Duration::from_secs(60)));
        near.proof.store(1, Ordering::Release);
        thread::sleep(LEASE);
        assert_eq!(near.get("a"), None);
    }

    #[test]
    fn a_break_makes_copies_and_notes_worthless() {
        let (near, minute) = (proved(), filled(Duration::from_secs(60)));
        let note = near.note("b");
        near.put("a", near.note("a"), &minute);
        near.forget();
        assert_eq!(near.note("a"), None, "no note while out of use");
        near.proof.store(near.now(), Ordering::Release);
        near.put("b", note, &minute);
        assert_eq!((near.get("a"), near.get("b")), (None, None));
    }

    #[test]
    fn a_copy_does_not_outlive_its_entry_in_redis() {
        let near = proved();
        near.put("a", near.note("a"), &filled(Duration::ZERO));
        assert_eq!(near.get("a"), None);
    }

    #[test]
    fn an_absence_is_not_kept() {
        let near = proved();
        let Slot::Filled(absent) = decode(Some(encode(None, Duration::ZERO, Duration::from_secs(60)))) else {
            panic!()
        };
        near.put("a", near.note("a"), &absent);
        assert_eq!(near.get("a"), None);
    }

    #[test]
    fn copies_are_bounded_in_bytes() {
        let near = proved();
        for number in 0..10_000 {
            let key = format!("key {number}");
            near.put(&key, near.note(&key), &filled(Duration::from_secs(60)));
        }
        assert!(near.entries.weight() <= 1 << 20, "{}", near.entries.weight());
    }
}
