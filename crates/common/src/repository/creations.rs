//! Creations: rows that are to be inserted share their transactions, their barriers and their round trips.
//!
//! It is the write flow of `repository.rs`, run for all who wait. What one of them is told is what it would have been
//! told alone: created, or that the key is taken.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::{PgConnection, QueryResult};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout_at;

use super::{CacheAside, Effect, Repository};
use crate::database::{Batch, Batches};
use crate::error::Error;

/// How rows are inserted.
type Insert<K, V> = fn(&mut PgConnection, &[(&K, &V)]) -> QueryResult<Vec<K>>;

/// Creates what is kept as `T` from a key and a `V`; clones share those who wait.
pub struct Creations<T: CacheAside, V> {
    repository: Repository<T>,
    waiting: Batches<T::Key, V, ()>,
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
    /// None yet. `insert` inserts those whose keys are free, and returns these keys.
    #[must_use]
    pub fn new(repository: Repository<T>, insert: Insert<T::Key, V>) -> Self {
        let database = repository.database();
        let (waiting, alone) = (Batches::new(database.clone()), Arc::new(Semaphore::new(database.quarter())));
        Self { repository, waiting, alone, insert }
    }

    /// Creates what `key` names. When this returns `Ok`, it is committed, and every read that starts from now on
    /// finds it.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if there was one before, and as [`Repository::write`].
    pub async fn create(&self, key: T::Key, value: V) -> Result<(), Error> {
        let serve = || drop(tokio::spawn(self.clone().serve()));
        self.waiting.join(key, value, serve).await
    }

    async fn serve(self) {
        while let Some(batch) = self.waiting.next() {
            let (working, free) = oneshot::channel();
            let give_up = batch.give_up;
            tokio::spawn(self.clone().create_all(Arc::new(batch), working));
            // The next transaction need not wait until this one's barriers are down.
            drop(timeout_at(give_up.into(), free).await);
        }
    }

    /// One transaction for `batch`. `working` is dropped when the connection is free again.
    async fn create_all(self, batch: Arc<Batch<T::Key, V, ()>>, working: oneshot::Sender<()>) {
        let progress = Arc::new(Mutex::new(Progress::NotInserted));
        let (taken, report, insert) = (batch.clone(), progress.clone(), self.insert);
        let change = move |connection: &mut PgConnection| {
            let _until_the_transaction_has_ended = &working;
            let rows: Vec<_> = taken.members().iter().map(|member| (&member.key, &member.value)).collect();
            let inserted = insert(connection, &rows);
            *lock(&report) = Progress::of(&inserted);
            inserted.map(changed)
        };
        let result = self.repository.write_by(batch.give_up, Effect::Create, change).await;
        let members = batch.members();
        match &*lock(&progress) {
            Progress::Inserted(keys) => members.iter().for_each(|member| match keys.contains(&member.key) {
                true => member.tell(result.clone()),
                // Whatever became of the others.
                false => member.tell(Err(Error::AlreadyExists)),
            }),
            Progress::Failed if members.len() > 1 => {
                (0..members.len())
                    .for_each(|at| drop(tokio::spawn(self.clone().create_alone(batch.clone(), at))));
            }
            _ => members.iter().for_each(|member| member.tell(result.clone())),
        }
    }

    /// A transaction for one of `batch` alone, which may wait for a lock as the batch did.
    async fn create_alone(self, batch: Arc<Batch<T::Key, V, ()>>, at: usize) {
        let result = match timeout_at(batch.give_up.into(), self.alone.clone().acquire_owned()).await {
            Ok(turn) => {
                let (taken, insert) = (batch.clone(), self.insert);
                let change = move |connection: &mut PgConnection| {
                    let _until_the_transaction_has_ended = &turn;
                    let member = &taken.members()[at];
                    insert(connection, &[(&member.key, &member.value)]).map(changed)
                };
                self.repository.write_by(batch.give_up, Effect::Create, change).await
            }
            Err(_) => Err(self.repository.database().too_late()),
        };
        batch.members()[at].tell(result);
    }
}

/// How far the rows of a batch came.
enum Progress<K> {
    /// Not to an answer.
    NotInserted,
    /// The statement failed. That may be for the sake of one row, whose key another transaction has not let go.
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

/// What a transaction that has inserted `keys` has changed. If all were taken there is nothing to commit.
fn changed<K>(keys: Vec<K>) -> Result<((), Vec<K>), Error> {
    if keys.is_empty() { Err(Error::AlreadyExists) } else { Ok(((), keys)) }
}

fn lock<P>(progress: &Mutex<P>) -> MutexGuard<'_, P> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}
