//! Batches from waiting: requests that want the same kind of thing from PostgreSQL wait in one queue, and a free
//! connection takes all of them, or as many as a statement should hold.
//!
//! No request waits for others to arrive. An idle service serves one at a time and adds no latency. A busy one gets
//! cheaper per request, since more requests wait while a batch is under way. For that one connection is best. Only
//! while a batch takes long, as when a connection hangs, does the next one begin beside it: on a quarter of the
//! connections at most.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{timeout, timeout_at};

use super::Database;
use crate::error::Error;

/// How many waiters a statement serves at most. Most of the gain is there with 16 rows; a longer statement makes its
/// first waiter wait.
const BATCH_MAX: usize = 64;
/// When a request has waited for so long, the next batch begins beside the one that is under way. A batch takes a few
/// milliseconds, unless it is stuck.
const SLOW_AFTER: Duration = Duration::from_millis(10);

/// A queue of requests for one kind of thing. Each brings a key and a value, and gets an `O`. Clones share the queue.
pub struct Batcher<K, V, O>(Arc<Inner<K, V, O>>);

struct Inner<K, V, O> {
    database: Database,
    repeats: Repeats<V>,
    waiting: Mutex<Waiting<K, V, O>>,
    /// A permit for each batch that is under way.
    under_way: Arc<Semaphore>,
    /// A batch has released a key.
    released: Notify,
    /// A request has waited for [`SLOW_AFTER`].
    slow: Notify,
}

struct Waiting<K, V, O> {
    waiters: VecDeque<Waiter<K, V, O>>,
    /// The keys of which a batch has the only requests that are under way.
    held: HashSet<K>,
    /// Whether a task takes batches now.
    is_served: bool,
}

/// What several requests for one key are to each other.
#[derive(Debug, Clone, Copy)]
pub enum Repeats<V> {
    /// Nothing.
    Independent,
    /// Rivals: a batch holds the key, and other batches leave it alone. A second one may be in the batch if this
    /// function says so of the first and the second.
    Rivals(fn(&V, &V) -> bool),
}

/// A batch is under way, and uses a connection, until this is dropped.
pub struct UnderWay {
    _permit: Option<OwnedSemaphorePermit>,
    /// Dropped with it, which the receiver sees.
    _ended: oneshot::Sender<()>,
}

/// A request that waits.
pub struct Waiter<K, V, O> {
    /// What it is about.
    pub key: K,
    /// What it brings.
    pub value: V,
    deadline: Instant,
    /// Set once: by the batch that takes the waiter, or by its request at the deadline.
    settled: Arc<AtomicBool>,
    result: Mutex<Option<oneshot::Sender<Result<O, Error>>>>,
}

impl<K, V, O> Clone for Batcher<K, V, O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Clone + Eq + Hash, V, O> Batcher<K, V, O> {
    /// An empty queue.
    #[must_use]
    pub fn new(database: Database, repeats: Repeats<V>) -> Self {
        let waiting = Waiting { waiters: VecDeque::new(), held: HashSet::new(), is_served: false };
        let under_way = Arc::new(Semaphore::new(database.quarter()));
        let waiting = Mutex::new(waiting);
        let (released, slow) = (Notify::new(), Notify::new());
        Self(Arc::new(Inner { database, repeats, waiting, under_way, released, slow }))
    }

    /// Waits for a result. Calls `serve` if nobody serves the queue, which must start a task for [`Batcher::serve`].
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once if too many wait, [`Error::Unavailable`] at the deadline if no batch has taken the
    /// request, and then none will; otherwise the batch's result.
    pub async fn join(&self, key: K, value: V, serve: impl FnOnce()) -> Result<O, Error> {
        let settled = Arc::new(AtomicBool::new(false));
        let (sender, mut result) = oneshot::channel();
        let (is_served, deadline) = self.enqueue(key, value, settled.clone(), sender)?;
        if !is_served {
            serve();
        }
        if let Ok(result) = timeout(SLOW_AFTER, &mut result).await {
            return result.unwrap_or_else(|_| Err(Error::thread_panicked()));
        }
        self.0.slow.notify_one();
        match timeout_at(deadline.into(), &mut result).await {
            Ok(result) => result.unwrap_or_else(|_| Err(Error::thread_panicked())),
            Err(_) if !settled.swap(true, Ordering::AcqRel) => Err(self.0.database.too_late()),
            // A batch ends at the first deadline of its waiters: this takes no longer.
            Err(_) => result.await.unwrap_or_else(|_| Err(Error::thread_panicked())),
        }
    }

    /// Returns whether the queue was served before, and the new waiter's deadline. From now on it is.
    fn enqueue(
        &self,
        key: K,
        value: V,
        settled: Arc<AtomicBool>,
        result: oneshot::Sender<Result<O, Error>>,
    ) -> Result<(bool, Instant), Error> {
        let mut waiting = self.0.waiting.lock();
        // Under the lock, so that deadlines are in the order of the queue.
        let deadline = self.0.database.deadline();
        if waiting.waiters.len() >= self.0.database.queue() {
            return Err(self.0.database.refuse());
        }
        waiting.waiters.push_back(Waiter { key, value, deadline, settled, result: Mutex::new(Some(result)) });
        self.0.database.metrics.waiting.inc();
        Ok((std::mem::replace(&mut waiting.is_served, true), deadline))
    }

    /// Calls `begin` with one batch after the other, until no request waits. `begin` must start a task for the batch,
    /// which drops what it is given when its connection is free.
    pub async fn serve(&self, begin: impl Fn(Batch<K, V, O>, UnderWay)) {
        loop {
            let permit = self.0.under_way.clone().acquire_owned().await.ok();
            let Some(deadline) = self.next_deadline().await else { return };
            let batch = Batch {
                batcher: self.clone(),
                deadline,
                waiters: OnceLock::new(),
                released: Mutex::default(),
            };
            let (sender, ended) = oneshot::channel();
            begin(batch, UnderWay { _permit: permit, _ended: sender });
            tokio::select! {
                _ = ended => {}
                () = self.0.slow.notified() => {}
            }
        }
    }

    /// The deadline of the next batch, when there is one; none if no request waits, and then the queue is no longer
    /// served.
    async fn next_deadline(&self) -> Option<Instant> {
        loop {
            {
                let mut waiting = self.0.waiting.lock();
                let Waiting { waiters, held, is_served } = &mut *waiting;
                if let Some(first) = waiters.iter().find(|waiter| !held.contains(&waiter.key)) {
                    // A waiter that has waited for half of its time will be refused: the batch could not be done by its
                    // deadline.
                    return Some(first.deadline.max(Instant::now() + self.0.database.timeout / 2));
                }
                if waiters.is_empty() {
                    *is_served = false;
                    return None;
                }
            }
            self.0.released.notified().await;
        }
    }

    /// Takes the waiters that can be served by `deadline`, in the order in which they came.
    fn take(&self, deadline: Instant) -> Vec<Waiter<K, V, O>> {
        let mut taken: Vec<Waiter<K, V, O>> = Vec::new();
        // The place of the last waiter for each key.
        let mut last: HashMap<K, usize> = HashMap::new();
        let mut later = Vec::new();
        let mut waiting = self.0.waiting.lock();
        while taken.len() < BATCH_MAX
            && let Some(waiter) = waiting.waiters.pop_front()
        {
            let may_be_taken = match (&self.0.repeats, last.get(&waiter.key)) {
                (Repeats::Independent, _) => true,
                (Repeats::Rivals(may_follow), Some(first)) => may_follow(&taken[*first].value, &waiter.value),
                (Repeats::Rivals(_), None) => !waiting.held.contains(&waiter.key),
            };
            if !may_be_taken {
                later.push(waiter);
                continue;
            }
            self.0.database.metrics.waiting.dec();
            if waiter.settled.swap(true, Ordering::AcqRel) {
                continue; // its request has ended at the deadline
            }
            if waiter.deadline < deadline {
                waiter.resolve(Err(self.0.database.too_late()));
            } else {
                if let Repeats::Rivals(_) = self.0.repeats {
                    last.insert(waiter.key.clone(), taken.len());
                }
                taken.push(waiter);
            }
        }
        waiting.held.extend(last.into_keys());
        // Back to the front, in their order.
        for waiter in later.into_iter().rev() {
            waiting.waiters.push_front(waiter);
        }
        taken
    }
}

impl<K, V, O> Waiter<K, V, O> {
    /// Sends the request its result. Only the first call has an effect.
    pub fn resolve(&self, result: Result<O, Error>) {
        if let Some(sender) = self.result.lock().take() {
            // The client may have hung up.
            let _ = sender.send(result);
        }
    }
}

/// A batch. It takes its waiters only when they are asked for: that is when its connection is free.
pub struct Batch<K: Clone + Eq + Hash, V, O> {
    batcher: Batcher<K, V, O>,
    /// When the first of its waiters must have a result.
    pub deadline: Instant,
    waiters: OnceLock<Vec<Waiter<K, V, O>>>,
    /// The keys that it has released.
    released: Mutex<HashSet<K>>,
}

impl<K: Clone + Eq + Hash, V, O> Batch<K, V, O> {
    /// Its waiters: the requests that wait when this is first called.
    pub fn waiters(&self) -> &[Waiter<K, V, O>] {
        self.waiters.get_or_init(|| self.batcher.take(self.deadline))
    }

    /// Lets other batches have requests for `keys`. Only the first call for a key has an effect; what is left is
    /// released when the batch is dropped.
    pub fn release<'a>(&self, keys: impl Iterator<Item = &'a K>)
    where
        K: 'a,
    {
        let mut released = self.released.lock();
        let mut waiting = self.batcher.0.waiting.lock();
        for key in keys {
            if released.insert(key.clone()) {
                waiting.held.remove(key);
            }
        }
        self.batcher.0.released.notify_one();
    }
}

impl<K: Clone + Eq + Hash, V, O> Drop for Batch<K, V, O> {
    fn drop(&mut self) {
        if let (Repeats::Rivals(_), Some(waiters)) = (&self.batcher.0.repeats, self.waiters.get()) {
            self.release(waiters.iter().map(|waiter| &waiter.key));
        }
    }
}
