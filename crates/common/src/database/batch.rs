//! Batches from waiting: who wants the same kind of thing from PostgreSQL waits together, and a connection that is
//! free takes all who wait, or as many as a statement should hold.
//!
//! Nobody waits for others to come. An idle service serves one at a time and adds no latency; a busy one gets cheaper
//! per request, since more wait while a statement runs. For that one connection is best; more are taken, up to a
//! quarter of all, only while many wait, or while somebody waits for long, as when a statement is stuck at another
//! transaction's lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::{timeout, timeout_at};

use super::Database;
use crate::error::Error;

/// How many a statement serves at most.
const BATCH_MAX: usize = 64;
/// When so many wait, one more is to serve.
const MANY: usize = 16;
/// Whoever has waited for so long sends for one more to serve.
const PATIENCE: Duration = Duration::from_millis(10);

/// Those who wait for one kind of thing: each brings a key and a value, and is to get an `O`. Clones share them.
pub struct Batches<K, V, O>(Arc<Inner<K, V, O>>);

struct Inner<K, V, O> {
    database: Database,
    waiting: Mutex<Waiting<K, V, O>>,
}

struct Waiting<K, V, O> {
    members: VecDeque<Member<K, V, O>>,
    /// How many serve now.
    at_work: usize,
}

/// One who waits.
pub struct Member<K, V, O> {
    /// What it is about.
    pub key: K,
    /// What it brings.
    pub value: V,
    give_up: Instant,
    /// Set by who comes first: the batch that takes it, or the member that gives up.
    settled: Arc<AtomicBool>,
    tell: Mutex<Option<oneshot::Sender<Result<O, Error>>>>,
}

impl<K, V, O> Clone for Batches<K, V, O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: PartialEq, V, O> Batches<K, V, O> {
    /// Nobody yet.
    #[must_use]
    pub fn new(database: Database) -> Self {
        let waiting = Mutex::new(Waiting { members: VecDeque::new(), at_work: 0 });
        Self(Arc::new(Inner { database, waiting }))
    }

    /// Waits to be served. Calls `serve` if somebody is needed who takes [`Batches::next`] again and again until it
    /// is none.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at once if too many wait, [`Error::Unavailable`] at the deadline if no batch has taken
    /// it, and then none will; what it is told otherwise.
    pub async fn join(&self, key: K, value: V, serve: impl Fn()) -> Result<O, Error> {
        let settled = Arc::new(AtomicBool::new(false));
        let (tell, mut told) = oneshot::channel();
        let (needed, give_up) = self.enlist(key, value, settled.clone(), tell)?;
        if needed {
            serve();
        }
        if let Ok(result) = timeout(PATIENCE, &mut told).await {
            return result.unwrap_or_else(|_| Err(Error::thread_panicked()));
        }
        if !settled.load(Ordering::Acquire) && self.one_more() {
            serve();
        }
        match timeout_at(give_up.into(), &mut told).await {
            Ok(result) => result.unwrap_or_else(|_| Err(Error::thread_panicked())),
            Err(_) if !settled.swap(true, Ordering::AcqRel) => Err(self.0.database.too_late()),
            // A batch gives up when the first of its members has to: this takes no longer.
            Err(_) => told.await.unwrap_or_else(|_| Err(Error::thread_panicked())),
        }
    }

    /// Returns whether one more is needed to serve, and when the new member gives up.
    fn enlist(
        &self,
        key: K,
        value: V,
        settled: Arc<AtomicBool>,
        tell: oneshot::Sender<Result<O, Error>>,
    ) -> Result<(bool, Instant), Error> {
        let mut waiting = self.lock();
        // Under the lock: who stands before others must not give up after them.
        let give_up = self.0.database.give_up();
        if waiting.members.len() >= self.0.database.queue() {
            return Err(self.0.database.refuse());
        }
        waiting.members.push_back(Member { key, value, give_up, settled, tell: Mutex::new(Some(tell)) });
        self.0.database.metrics.waiting.inc();
        let needed = waiting.at_work == 0 || waiting.members.len() >= MANY;
        Ok((needed && self.one_more_of(&mut waiting), give_up))
    }

    /// Whether one more may serve; then it is at work.
    fn one_more(&self) -> bool {
        self.one_more_of(&mut self.lock())
    }

    fn one_more_of(&self, waiting: &mut Waiting<K, V, O>) -> bool {
        let allowed = waiting.at_work < self.0.database.quarter();
        waiting.at_work += usize::from(allowed);
        allowed
    }

    /// The next batch for one who serves; none if nobody waits, and then the server's place is free again.
    pub fn next(&self) -> Option<Batch<K, V, O>> {
        let mut waiting = self.lock();
        let Some(first) = waiting.members.front() else {
            waiting.at_work -= 1;
            return None;
        };
        // Whoever has waited for half of its time will be refused: with its deadline the batch could not be done.
        let give_up = first.give_up.max(Instant::now() + self.0.database.deadline / 2);
        Some(Batch { batches: self.clone(), give_up, members: OnceLock::new() })
    }

    /// Takes those who can be served by `give_up`, in the order in which they came, each key once.
    fn take(&self, give_up: Instant) -> Vec<Member<K, V, O>> {
        let mut taken: Vec<Member<K, V, O>> = Vec::new();
        let mut waiting = self.lock();
        let mut later = Vec::new();
        while taken.len() < BATCH_MAX
            && let Some(member) = waiting.members.pop_front()
        {
            if taken.iter().any(|other| other.key == member.key) {
                later.push(member);
                continue;
            }
            self.0.database.metrics.waiting.dec();
            if member.settled.swap(true, Ordering::AcqRel) {
                continue; // it has given up
            }
            match member.give_up < give_up {
                true => member.tell(Err(self.0.database.too_late())),
                false => taken.push(member),
            }
        }
        // Back to where they stood.
        later.into_iter().rev().for_each(|member| waiting.members.push_front(member));
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<K, V, O>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V, O> Member<K, V, O> {
    /// Tells the member its result. Only the first counts.
    pub fn tell(&self, result: Result<O, Error>) {
        let tell = self.tell.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tell) = tell {
            // Whoever asked may be gone: then nobody is left to tell.
            drop(tell.send(result));
        }
    }
}

/// A batch, which has no members before it is asked for them: that is when its connection is free.
pub struct Batch<K, V, O> {
    batches: Batches<K, V, O>,
    /// When the first of its members must be told.
    pub give_up: Instant,
    members: OnceLock<Vec<Member<K, V, O>>>,
}

impl<K: PartialEq, V, O> Batch<K, V, O> {
    /// Its members: who waits when this is called first.
    pub fn members(&self) -> &[Member<K, V, O>] {
        self.members.get_or_init(|| self.batches.take(self.give_up))
    }
}
