//! Creations: rows that are to be inserted share their transactions, their barriers and their round trips.
//!
//! It is the write flow of `write.rs`, run for all creations that wait. Each caller gets the result that it would have
//! got alone: created, or key taken.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::{PgConnection, QueryResult};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout_at;

use super::{CacheAside, Effect, Repository};
use crate::database::{Batch, Batcher};
use crate::error::Error;

/// How rows are inserted.
type Insert<K, V> = fn(&mut PgConnection, &[(&K, &V)]) -> QueryResult<Vec<K>>;

/// Creates records of `T` from a key and a `V`; clones share the queue.
pub struct Creations<T: CacheAside, V> {
    repository: Repository<T>,
    waiting: Batcher<T::Key, V, ()>,
    /// For rows that are tried alone: they may wait for locks, and the other connections must be free for the rest.
    alone: Arc<Semaphore>,
    insert: Insert<T::Key, V>,
}

impl<T: CacheAside, V> Clone for Creations<T, V> {
    fn clone(&self) -> Self {
        Self {
            repository: self.repository.clone(),
            waiting: self.waiting.clone(),
            alone: self.alone.clone(),
            insert: self.insert,
        }
    }
}

impl<T: CacheAside, V: Send + Sync + 'static> Creations<T, V> {
    /// No creation waits yet. `insert` inserts the rows whose keys are free, and returns these keys.
    #[must_use]
    pub fn new(repository: Repository<T>, insert: Insert<T::Key, V>) -> Self {
        let database = &repository.0.database;
        let waiting = Batcher::new(database.clone());
        let alone = Arc::new(Semaphore::new(database.quarter()));
        Self { repository, waiting, alone, insert }
    }

    /// Creates the record of `key`. When this returns `Ok`, it is committed, and every read that starts from now on
    /// finds it.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if there was one before, and as [`Repository::write`].
    pub async fn create(&self, key: T::Key, value: V) -> Result<(), Error> {
        // Here, so that each waits for its own time and not for its batch's.
        let database = &self.repository.0.database;
        database.writable(database.deadline()).await?;
        let serve = || {
            tokio::spawn(self.clone().serve());
        };
        self.waiting.join(key, value, serve).await
    }

    async fn serve(self) {
        while let Some(batch) = self.waiting.next() {
            let (working, free) = oneshot::channel();
            let deadline = batch.deadline;
            tokio::spawn(self.clone().create_all(Arc::new(batch), working));
            // The next transaction need not wait until this one's barriers are down. After the deadline it goes on as
            // well: this batch has failed.
            let _ = timeout_at(deadline.into(), free).await;
        }
    }

    /// One transaction for `batch`. `working` is dropped when the connection is free again.
    async fn create_all(self, batch: Arc<Batch<T::Key, V, ()>>, working: oneshot::Sender<()>) {
        let progress = Arc::new(Mutex::new(Progress::NotInserted));
        let taken = batch.clone();
        let report = progress.clone();
        let insert = self.insert;
        let change = move |connection: &mut PgConnection| {
            let _until_the_transaction_has_ended = &working;
            let rows: Vec<_> = taken.waiters().iter().map(|waiter| (&waiter.key, &waiter.value)).collect();
            // Without rows another worker's batch has taken them.
            let inserted = if rows.is_empty() { Ok(Vec::new()) } else { insert(connection, &rows) };
            *report.lock() = Progress::of(&inserted);
            inserted.map(changed)
        };
        let result = self.repository.write(batch.deadline, Effect::Create, change).await;
        let waiters = batch.waiters();
        match &*progress.lock() {
            Progress::Inserted(keys) => {
                for waiter in waiters {
                    if keys.contains(&waiter.key) {
                        waiter.resolve(result.clone());
                    } else {
                        // Taken, whatever the result of the others is.
                        waiter.resolve(Err(Error::AlreadyExists));
                    }
                }
            }
            Progress::Failed if waiters.len() > 1 => {
                for at in 0..waiters.len() {
                    tokio::spawn(self.clone().create_alone(batch.clone(), at));
                }
            }
            Progress::NotInserted | Progress::Failed => {
                for waiter in waiters {
                    waiter.resolve(result.clone());
                }
            }
        }
    }

    /// A transaction for one row of `batch` alone, which may wait for a lock as the batch did.
    async fn create_alone(self, batch: Arc<Batch<T::Key, V, ()>>, at: usize) {
        let result = match timeout_at(batch.deadline.into(), self.alone.clone().acquire_owned()).await {
            Ok(permit) => {
                let taken = batch.clone();
                let insert = self.insert;
                let change = move |connection: &mut PgConnection| {
                    let _until_the_transaction_has_ended = &permit;
                    let waiter = &taken.waiters()[at];
                    insert(connection, &[(&waiter.key, &waiter.value)]).map(changed)
                };
                self.repository.write(batch.deadline, Effect::Create, change).await
            }
            Err(_) => Err(self.repository.0.database.too_late()),
        };
        batch.waiters()[at].resolve(result);
    }
}

/// How far the rows of a batch came.
enum Progress<K> {
    /// No result of the statement yet.
    NotInserted,
    /// The statement failed. One row may be the cause: another transaction holds its key.
    Failed,
    /// These keys were free.
    Inserted(HashSet<K>),
}

impl<K: Clone + Eq + Hash> Progress<K> {
    fn of(inserted: &QueryResult<Vec<K>>) -> Self {
        match inserted {
            Ok(keys) => Self::Inserted(keys.iter().cloned().collect()),
            Err(DieselError::DatabaseError(DatabaseErrorKind::Unknown, _)) => Self::Failed,
            Err(_) => Self::NotInserted,
        }
    }
}

/// What a transaction that has inserted `keys` has changed. If all keys were taken there is nothing to commit.
fn changed<K>(keys: Vec<K>) -> Result<Vec<K>, Error> {
    if keys.is_empty() { Err(Error::AlreadyExists) } else { Ok(keys) }
}
