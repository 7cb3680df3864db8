//! The near cache: copies in this process' own memory, answered without asking Redis, and still linearizable.
//!
//! Its listener (`listener.rs`) hears of each write, and proves again and again that it has missed none. A copy may be
//! used until [`PROOF_LIFE`] after the newest proof. So a writer that has published a key knows that no copy is left
//! when each replica has acknowledged the message, or when as much time has passed.
//!
//! A copy is used only under a grant of its own tag. One is stored only while the listener is connected to the Redis
//! process that is granted: from another one it would hear nothing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard, RwLock};
use quick_cache::Weighter;
use quick_cache::sync::Cache as Entries;

use super::Cache;
use super::entry::{Entry, Tag};
use super::listener::Listener;
use crate::config::CacheSettings;

/// How long a proof holds. Writers wait no longer than that. To raise it, change the writers first; to lower it, the
/// readers first.
pub const PROOF_LIFE: Duration = Duration::from_millis(50);
/// How much longer writers wait, since clocks do not run alike: a tenth of the proof's life.
pub const PROOF_MARGIN: Duration = Duration::from_millis(5);
/// How long a copy may live here at most. A hot copy is taken anew at little cost; a fault that the proof does not
/// cover ends with it.
const MAX_AGE: Duration = Duration::from_secs(5);
/// How many counts there are, each for the keys that hash to it: enough that two workers seldom wait for one lock.
const SHARDS: usize = 256;
/// What an entry costs beside its key and its bytes: the maps' own records, roughly.
const OVERHEAD_BYTES: u64 = 200;

/// The copies, and the proof that they are current.
pub struct Near {
    entries: Entries<String, NearEntry, Weight>,
    /// How often a key of each shard was invalidated. A shard's lock makes its count and its copies change together.
    counts: Vec<Mutex<u64>>,
    /// When the newest proof began, in microseconds since the start; 0 is out of use.
    proof: AtomicU64,
    /// The Redis process that the listener is connected to.
    process: RwLock<Option<Arc<str>>>,
    start: Instant,
}

#[derive(Clone)]
struct NearEntry {
    entry: Entry,
    until: Instant,
}

#[derive(Clone)]
struct Weight;

impl Weighter<String, NearEntry> for Weight {
    fn weight(&self, key: &String, near_entry: &NearEntry) -> u64 {
        (key.len() + near_entry.entry.size()) as u64 + OVERHEAD_BYTES
    }
}

/// A shard's count from before a key was read. What was read may be kept if the count has not changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(u64);

impl Near {
    /// Starts to listen, for copies of `capacity` bytes in all. Does not wait for Redis.
    ///
    /// # Errors
    /// A URL that Redis' client cannot use, a thread that cannot be started.
    pub fn start(
        settings: &CacheSettings,
        cache: &Cache,
        capacity: u64,
    ) -> Result<Arc<Self>, Box<dyn std::error::Error>> {
        let near = Arc::new(Self::new(capacity));
        Listener::start(settings, cache, near.clone())?;
        Ok(near)
    }

    /// A near cache that keeps nothing: it never listens, so nothing is ever proved.
    #[must_use]
    pub fn off() -> Arc<Self> {
        Arc::new(Self::new(0))
    }

    fn new(capacity: u64) -> Self {
        let estimate = usize::try_from(capacity / 1024).unwrap_or(usize::MAX);
        Self {
            entries: Entries::with_weighter(estimate, capacity, Weight),
            counts: (0..SHARDS).map(|_| Mutex::new(0)).collect(),
            proof: AtomicU64::new(0),
            process: RwLock::new(None),
            start: Instant::now(),
        }
    }

    /// The copy for `key` with the tag `tag`, if it is proved to be current. Must be called after the request has
    /// arrived: the proof holds for reads that began before this call.
    #[must_use]
    pub fn get(&self, key: &str, tag: Tag) -> Option<Entry> {
        // In this order: the proof, the copy, the clock. A removal that the proof covers is seen by what follows.
        let proof = self.proof.load(Ordering::Acquire);
        if proof == 0 {
            return None;
        }
        let near_entry = self.entries.get(key)?;
        let now = Instant::now();
        let proved = self.at(now) < proof + PROOF_LIFE.as_micros() as u64;
        (proved && now < near_entry.until && near_entry.entry.tag() == tag).then_some(near_entry.entry)
    }

    /// A stamp for `key`, to be taken before `key` is read from the Redis process `granted`. None while out of use, or
    /// while the listener hears another process.
    #[must_use]
    pub fn stamp(&self, key: &str, granted: &str) -> Option<Stamp> {
        // The count first: a break that begins after the other two were read moves it once more.
        let count = *self.count(key);
        let in_use =
            self.proof.load(Ordering::Acquire) != 0 && self.process.read().as_deref() == Some(granted);
        in_use.then_some(Stamp(count))
    }

    /// Keeps what Redis holds for `key`, unless `key` was invalidated since `stamp`. An absence is not kept: a register
    /// does not wait.
    pub fn put(&self, key: &str, stamp: Option<Stamp>, entry: &Entry) {
        let Some(stamp) = stamp.filter(|_| !entry.is_absence()) else { return };
        let until = Instant::now() + entry.ttl().min(MAX_AGE);
        let count = self.count(key);
        if *count == stamp.0 {
            self.entries.insert(key.to_owned(), NearEntry { entry: entry.clone(), until });
        }
    }

    /// Removes the copy for `key`, and makes stamps of it worthless.
    pub fn invalidate(&self, key: &str) {
        let mut count = self.count(key);
        *count += 1;
        self.entries.remove(key);
    }

    /// Notes that no message from the Redis process `process` is missed from now on.
    pub fn hear(&self, process: &Arc<str>) {
        *self.process.write() = Some(process.clone());
    }

    /// Notes that no message was missed that Redis had published by `time`.
    pub fn prove(&self, time: Instant) {
        self.proof.store(self.at(time), Ordering::Release);
    }

    /// Goes out of use, and makes every copy and every stamp worthless.
    pub fn forget(&self) {
        self.proof.store(0, Ordering::Release);
        *self.process.write() = None;
        for count in &self.counts {
            *count.lock() += 1;
        }
        self.entries.clear();
    }

    fn count(&self, key: &str) -> MutexGuard<'_, u64> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let shard = hasher.finish() as usize % SHARDS;
        self.counts[shard].lock()
    }

    /// Microseconds since the start, never 0.
    fn at(&self, time: Instant) -> u64 {
        u64::try_from(time.duration_since(self.start).as_micros()).unwrap_or(u64::MAX - 1) + 1
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::cache::entry::{Held, Representation, decode, encode};

    const TAG: Tag = 7;
    const PROCESS: &str = "run history";

    fn entry(ttl: Duration) -> Entry {
        let answer = Representation { etag: [0; 16], body: "{}".into() };
        let Held::Entry(entry) = decode(Some(encode(TAG, Some(&answer), Duration::ZERO, ttl))) else {
            panic!()
        };
        entry
    }

    /// In use, as if a renewal had just been answered.
    fn proved() -> Near {
        let near = Near::new(1 << 20);
        near.hear(&PROCESS.into());
        near.prove(Instant::now());
        near
    }

    #[test]
    fn a_copy_of_another_grant_is_not_used() {
        let near = proved();
        near.put("a", near.stamp("a", PROCESS), &entry(Duration::from_secs(60)));
        assert_eq!(near.get("a", TAG + 1), None);
        assert!(near.get("a", TAG).is_some());
    }

    #[test]
    fn a_copy_is_kept_only_if_the_listener_hears_the_granted_process() {
        assert_eq!(proved().stamp("a", "another process"), None);
    }

    #[test]
    fn a_copy_is_kept_unless_its_key_was_invalidated_since_the_stamp() {
        let (near, minute) = (proved(), entry(Duration::from_secs(60)));
        let stamp = near.stamp("a", PROCESS);
        near.put("a", stamp, &minute);
        assert_eq!(near.get("a", TAG), Some(minute.clone()));
        near.invalidate("a");
        assert_eq!(near.get("a", TAG), None);
        near.put("a", stamp, &minute);
        assert_eq!(near.get("a", TAG), None);
    }

    #[test]
    fn an_old_proof_proves_nothing() {
        let near = proved();
        near.put("a", near.stamp("a", PROCESS), &entry(Duration::from_secs(60)));
        near.proof.store(1, Ordering::Release);
        thread::sleep(PROOF_LIFE);
        assert_eq!(near.get("a", TAG), None);
    }

    #[test]
    fn a_break_makes_copies_and_stamps_worthless() {
        let (near, minute) = (proved(), entry(Duration::from_secs(60)));
        let stamp = near.stamp("b", PROCESS);
        near.put("a", near.stamp("a", PROCESS), &minute);
        near.forget();
        assert_eq!(near.stamp("a", PROCESS), None, "no stamp while out of use");
        near.prove(Instant::now());
        near.put("b", stamp, &minute);
        assert_eq!((near.get("a", TAG), near.get("b", TAG)), (None, None));
    }

    #[test]
    fn a_copy_does_not_outlive_its_entry_in_redis() {
        let near = proved();
        near.put("a", near.stamp("a", PROCESS), &entry(Duration::ZERO));
        assert_eq!(near.get("a", TAG), None);
    }

    #[test]
    fn an_absence_is_not_kept() {
        let near = proved();
        let Held::Entry(absent) = decode(Some(encode(TAG, None, Duration::ZERO, Duration::from_secs(60))))
        else {
            panic!()
        };
        near.put("a", near.stamp("a", PROCESS), &absent);
        assert_eq!(near.get("a", TAG), None);
    }

    #[test]
    fn copies_are_bounded_in_bytes() {
        let near = proved();
        for number in 0..10_000 {
            let key = format!("key {number}");
            near.put(&key, near.stamp(&key, PROCESS), &entry(Duration::from_secs(60)));
        }
        assert!(near.entries.weight() <= 1 << 20, "{}", near.entries.weight());
    }
}
