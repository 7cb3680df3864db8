//! Batches from waiting: requests that want the same kind of thing from PostgreSQL wait in one queue, and a free
//! connection takes all of them, or as many as a statement should hold.
//!
//! No request waits for others to arrive. An idle service serves one at a time and adds no latency. A busy one gets
//! cheaper per request, since more requests wait while a batch is under way. For that one connection is best. When
//! a batch takes long, as when a connection hangs, the next one begins beside it: on a quarter of the connections at
//! most.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::pin::pin;
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
/// When a batch has been under way for so long, the next one begins beside it. A batch takes a few milliseconds, unless
/// it is stuck.
const SLOW_AFTER: Duration = Duration::from_millis(10);

/// A queue of requests for one kind of thing. Each brings a key and a value, and gets an `O`. Clones share the queue.
pub struct Batcher<K, V, O>(Arc<Inner<K, V, O>>);

struct Inner<K, V, O> {
    database: Database,
    repeats: Repeats<V>,
    waiting: Mutex<Waiting<K, V, O>>,
    /// A permit for each batch that is under way.
    under_way: Arc<Semaphore>,
    /// There may be a request whose key is free: one has come, or a batch has released a key.
    may_be_free: Notify,
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

/// A batch is under way, and uses a connection, until the first of the clones is dropped. One is with the connection's
/// thread, which is the first to know that the connection is free: the next batch begins a little earlier. The other is
/// with the task, which does not wait for a connection that hangs.
#[derive(Clone)]
pub struct UnderWay(Arc<Mutex<Option<Holding>>>);

struct Holding {
    _permit: OwnedSemaphorePermit,
    /// Dropped with it, which the receiver sees.
    _ended: Option<oneshot::Sender<()>>,
}

/// A request that waits.
pub struct Waiter<K, V, O> {
    /// What it is about.
    pub key: K,
    /// What it brings.
    pub value: V,
    deadline: Instant,
    result: Mutex<Option<oneshot::Sender<Result<O, Error>>>>,
}

impl UnderWay {
    fn new(permit: OwnedSemaphorePermit, ended: Option<oneshot::Sender<()>>) -> Self {
        Self(Arc::new(Mutex::new(Some(Holding { _permit: permit, _ended: ended }))))
    }
}

impl From<OwnedSemaphorePermit> for UnderWay {
    fn from(permit: OwnedSemaphorePermit) -> Self {
        Self::new(permit, None)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().take();
    }
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
        Self(Arc::new(Inner { database, repeats, waiting, under_way, may_be_free: Notify::new() }))
    }

    /// Waits for a result. Calls `serve` if nobody serves the queue, which must start a task for [`Batcher::serve`].
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once if too many wait, [`Error::Unavailable`] at the deadline if no batch has taken the
    /// request, and then none will; otherwise the batch's result.
    pub async fn join(&self, key: K, value: V, serve: impl FnOnce()) -> Result<O, Error> {
        let (sender, result) = oneshot::channel();
        if !self.enqueue(key, value, sender)? {
            serve();
        }
        result.await.unwrap_or_else(|_| Err(Error::thread_panicked()))
    }

    /// Returns whether the queue was served before. From now on it is.
    fn enqueue(&self, key: K, value: V, result: oneshot::Sender<Result<O, Error>>) -> Result<bool, Error> {
        let mut waiting = self.0.waiting.lock();
        // Under the lock, so that deadlines are in the order of the queue.
        let deadline = self.0.database.deadline();
        if waiting.waiters.len() >= self.0.database.queue() {
            return Err(self.0.database.refuse());
        }
        waiting.waiters.push_back(Waiter { key, value, deadline, result: Mutex::new(Some(result)) });
        self.0.database.metrics.waiting.inc();
        let was_served = std::mem::replace(&mut waiting.is_served, true);
        if was_served {
            // The keys of all that wait may be held.
            self.0.may_be_free.notify_one();
        }
        Ok(was_served)
    }

    /// Calls `begin` with one batch after the other, until no request waits. `begin` must start a task for the batch.
    pub async fn serve(&self, begin: impl Fn(Batch<K, V, O>, UnderWay)) {
        loop {
            let Ok(permit) = self.refusing_meanwhile(self.0.under_way.clone().acquire_owned()).await else {
                return;
            };
            let Some(deadline) = self.next_deadline().await else { return };
            let batch = Batch {
                batcher: self.clone(),
                deadline,
                waiters: OnceLock::new(),
                released: Mutex::default(),
            };
            let (sender, ended) = oneshot::channel();
            begin(batch, UnderWay::new(permit, Some(sender)));
            let _ = timeout(SLOW_AFTER, ended).await;
        }
    }

    /// Awaits `event`, and refuses requests at their deadlines meanwhile. A batch does that for those that it takes.
    async fn refusing_meanwhile<E>(&self, event: impl Future<Output = E>) -> E {
        let mut event = pin!(event);
        loop {
            let first = self.0.waiting.lock().waiters.front().map(|waiter| waiter.deadline);
            let deadline = first.unwrap_or_else(|| self.0.database.deadline());
            if let Ok(result) = timeout_at(deadline.into(), &mut event).await {
                return result;
            }
            let mut waiting = self.0.waiting.lock();
            while let Some(late) = waiting.waiters.pop_front_if(|waiter| waiter.deadline <= deadline) {
                self.0.database.metrics.waiting.dec();
                late.resolve(Err(self.0.database.too_late()));
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
                    return Some(first.deadline.max(self.earliest_deadline()));
                }
                if waiters.is_empty() {
                    *is_served = false;
                    return None;
                }
            }
            self.refusing_meanwhile(self.0.may_be_free.notified()).await;
        }
    }

    /// A waiter with an earlier deadline has waited for half of its time, and is refused: a batch that begins now could
    /// not be done by then.
    fn earliest_deadline(&self) -> Instant {
        Instant::now() + self.0.database.timeout / 2
    }

    /// Takes the waiters that can be served by `deadline`, in the order in which they came. Those whose clients have hung
    /// up are dropped.
    fn take(&self, deadline: Instant) -> Vec<Waiter<K, V, O>> {
        let mut taken: Vec<Waiter<K, V, O>> = Vec::new();
        // The place of the last waiter for each key.
        let mut last: HashMap<K, usize> = HashMap::new();
        let mut later = Vec::new();
        let mut waiting = self.0.waiting.lock();
        let earliest = self.earliest_deadline();
        while taken.len() < BATCH_MAX
            && let Some(waiter) = waiting.waiters.pop_front()
        {
            if waiter.is_abandoned() {
                self.0.database.metrics.waiting.dec();
                continue;
            }
            let is_free = match (&self.0.repeats, last.get(&waiter.key)) {
                (Repeats::Independent, _) => true,
                (Repeats::Rivals(may_follow), Some(first)) => may_follow(&taken[*first].value, &waiter.value),
                (Repeats::Rivals(_), None) => !waiting.held.contains(&waiter.key),
            };
            // A waiter whose key was held when the batch got its deadline may have an earlier one.
            if !is_free || (earliest..deadline).contains(&waiter.deadline) {
                later.push(waiter);
                continue;
            }
            self.0.database.metrics.waiting.dec();
            if waiter.deadline < deadline {
                waiter.resolve(Err(self.0.database.too_late()));
                continue;
            }
            if let Repeats::Rivals(_) = self.0.repeats {
                last.insert(waiter.key.clone(), taken.len());
            }
            taken.push(waiter);
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
    /// Whether the request ended before it had a result: its client has hung up.
    fn is_abandoned(&self) -> bool {
        self.result.lock().as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    /// Sends the request its result. Only the first call has an effect.
    pub fn resolve(&self, result: Result<O, Error>) {
        if let Some(sender) = self.result.lock().take() {
            // The client may have hung up meanwhile.
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
        self.batcher.0.may_be_free.notify_one();
    }
}

impl<K: Clone + Eq + Hash, V, O> Drop for Batch<K, V, O> {
    fn drop(&mut self) {
        if let (Repeats::Rivals(_), Some(waiters)) = (&self.batcher.0.repeats, self.waiters.get()) {
            self.release(waiters.iter().map(|waiter| &waiter.key));
        }
    }
}
