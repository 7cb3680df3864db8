//! The writes of a transaction: which of a batch they are, and which result each of them gets.

use std::collections::HashSet;
use std::sync::Arc;

use super::apply::Verdict;
use super::{CacheAside, Change};
use crate::cache::Representation;
use crate::database::{Batch, LockWait};
use crate::error::Error;

/// A write that waits.
pub type Waiter<T> = crate::database::Waiter<<T as CacheAside>::Key, Change<T>, ()>;

/// The writes of a transaction.
pub struct Writes<T: CacheAside> {
    /// Where they waited.
    pub batch: Arc<Batch<T::Key, Change<T>, ()>>,
    /// They are those of the batch that are for this key; without one, all.
    pub only: Option<T::Key>,
    /// How long they may wait for another session.
    pub lock_wait: LockWait,
}

impl<T: CacheAside> Clone for Writes<T> {
    fn clone(&self) -> Self {
        Self { batch: self.batch.clone(), only: self.only.clone(), lock_wait: self.lock_wait }
    }
}

/// Which of the writes get their results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// Those of keys that were there before.
    AllButCreations,
    /// All.
    All,
}

impl<T: CacheAside> Writes<T> {
    /// Themselves, in the order in which they came.
    pub fn get(&self) -> Vec<&Waiter<T>> {
        let only = self.only.as_ref();
        self.batch.waiters().iter().filter(|write| only.is_none_or(|key| write.key == *key)).collect()
    }

    /// What they are about.
    pub fn keys(&self) -> HashSet<T::Key> {
        self.get().into_iter().map(|write| write.key.clone()).collect()
    }

    /// A copy of the record that the replace at this place has left.
    pub fn copy(&self, at: usize) -> Option<Representation> {
        let write = *self.get().get(at)?;
        if let Change::Replace(value, _) = &write.value { Some(T::encode(&write.key, value)) } else { None }
    }

    /// The keys whose rows another session holds, by the `verdicts` of the writes.
    pub fn held(&self, verdicts: &[Verdict]) -> HashSet<T::Key> {
        let writes = self.get().into_iter().zip(verdicts);
        writes.filter(|(_, verdict)| **verdict == Verdict::Held).map(|(write, _)| write.key.clone()).collect()
    }

    /// Lets others write, but not what is under `keys`.
    pub fn release_all_but(&self, keys: &HashSet<T::Key>) {
        let writes = self.get();
        self.batch.release(writes.iter().map(|write| &write.key).filter(|key| !keys.contains(key)));
    }

    /// Sends those writes that have no result yet that they have waited for too long: they were left out.
    pub fn give_up(&self) {
        for write in self.get() {
            write.resolve(Err(Error::waited_too_long()));
        }
    }

    /// Sends each write the result that it would have got alone, given its verdict and the `result` of the transaction.
    /// Without a verdict, that result is its own. A result that was sent stays.
    pub fn settle(&self, verdicts: &[Verdict], result: &Result<(), Error>, settle: Settle) {
        for (at, write) in self.get().into_iter().enumerate() {
            match verdicts.get(at) {
                Some(Verdict::Refused(error)) => write.resolve(Err(error.clone())),
                Some(Verdict::Held) => {}
                _ if settle == Settle::AllButCreations && matches!(write.value, Change::Create(_)) => {}
                Some(Verdict::Done) | None => write.resolve(result.clone()),
            }
        }
    }
}
