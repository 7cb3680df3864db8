//! Batches from waiting: requests that want the same kind of thing from PostgreSQL wait in one queue, and a free
//! connection takes all of them, or as many as a statement should hold.
//!
//! No request waits for others to arrive. An idle service serves one at a time and adds no latency. A busy one gets
//! cheaper per request, since more requests wait while a statement runs. For that one connection is best. More workers
//! join, up to a quarter of the connections, only while many requests wait, or while one waits for long, as when a
//! statement is stuck at another transaction's lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{timeout, timeout_at};

use super::Database;
use crate::error::Error;

/// How many waiters a statement serves at most. Most of the gain is there with 16 rows; a longer statement makes its
/// first waiter wait.
const BATCH_MAX: usize = 64;
/// With this many waiters one more worker joins: a quarter of a batch, so that a second one is worth its statement.
const BUSY_AT: usize = 16;
/// After this wait one more worker joins. A statement takes a few milliseconds at most, unless it is stuck.
const SLOW_AFTER: Duration = Duration::from_millis(10);

/// A queue of requests for one kind of thing. Each brings a key and a value, and gets an `O`. Clones share the queue.
pub struct Batcher<K, V, O>(Arc<Inner<K, V, O>>);

struct Inner<K, V, O> {
    database: Database,
    waiting: Mutex<Waiting<K, V, O>>,
}

struct Waiting<K, V, O> {
    waiters: VecDeque<Waiter<K, V, O>>,
    /// How many tasks take batches now.
    workers: usize,
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

impl<K: PartialEq, V, O> Batcher<K, V, O> {
    /// An empty queue.
    #[must_use]
    pub fn new(database: Database) -> Self {
        let waiting = Mutex::new(Waiting { waiters: VecDeque::new(), workers: 0 });
        Self(Arc::new(Inner { database, waiting }))
    }

    /// Waits for a result. Calls `serve` if a worker is needed, which takes [`Batcher::next`] until it is none.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once if too many wait, [`Error::Unavailable`] at the deadline if no batch has taken the
    /// request, and then none will; otherwise the batch's result.
    pub async fn join(&self, key: K, value: V, serve: impl Fn()) -> Result<O, Error> {
        let settled = Arc::new(AtomicBool::new(false));
        let (sender, mut result) = oneshot::channel();
        let (worker_needed, deadline) = self.enqueue(key, value, settled.clone(), sender)?;
        if worker_needed {
            serve();
        }
        if let Ok(result) = timeout(SLOW_AFTER, &mut result).await {
            return result.unwrap_or_else(|_| Err(Error::thread_panicked()));
        }
        if !settled.load(Ordering::Acquire) && self.claim_worker(&mut self.0.waiting.lock()) {
            serve();
        }
        match timeout_at(deadline.into(), &mut result).await {
            Ok(result) => result.unwrap_or_else(|_| Err(Error::thread_panicked())),
            Err(_) if !settled.swap(true, Ordering::AcqRel) => Err(self.0.database.too_late()),
            // A batch ends at the first deadline of its waiters: this takes no longer.
            Err(_) => result.await.unwrap_or_else(|_| Err(Error::thread_panicked())),
        }
    }

    /// Returns whether one more worker is needed, and the new waiter's deadline.
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
        let needed = waiting.workers == 0 || waiting.waiters.len() >= BUSY_AT;
        Ok((needed && self.claim_worker(&mut waiting), deadline))
    }

    /// Returns whether one more worker may serve, and counts it then.
    fn claim_worker(&self, waiting: &mut Waiting<K, V, O>) -> bool {
        let allowed = waiting.workers < self.0.database.quarter();
        waiting.workers += usize::from(allowed);
        allowed
    }

    /// The next batch for a worker; none if no request waits, and then the worker is no longer counted.
    pub fn next(&self) -> Option<Batch<K, V, O>> {
        let mut waiting = self.0.waiting.lock();
        let Some(first) = waiting.waiters.front() else {
            waiting.workers -= 1;
            return None;
        };
        // A waiter that has waited for half of its time will be refused: the batch could not be done by its deadline.
        let deadline = first.deadline.max(Instant::now() + self.0.database.timeout / 2);
        Some(Batch { batcher: self.clone(), deadline, waiters: OnceLock::new() })
    }

    /// Takes the waiters that can be served by `deadline`, in the order in which they came, each key once.
    fn take(&self, deadline: Instant) -> Vec<Waiter<K, V, O>> {
        let mut taken: Vec<Waiter<K, V, O>> = Vec::new();
        let mut waiting = self.0.waiting.lock();
        let mut later = Vec::new();
        while taken.len() < BATCH_MAX
            && let Some(waiter) = waiting.waiters.pop_front()
        {
            if taken.iter().any(|other| other.key == waiter.key) {
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
                taken.push(waiter);
            }
        }
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
pub struct Batch<K, V, O> {
    batcher: Batcher<K, V, O>,
    /// When the first of its waiters must have a result.
    pub deadline: Instant,
    waiters: OnceLock<Vec<Waiter<K, V, O>>>,
}

impl<K: PartialEq, V, O> Batch<K, V, O> {
    /// Its waiters: the requests that wait when this is first called.
    pub fn waiters(&self) -> &[Waiter<K, V, O>] {
        self.waiters.get_or_init(|| self.batcher.take(self.deadline))
    }
}
