//! The changes of a transaction, on the database's thread: locks the rows, judges each write by itself, and changes what is to
//! be changed, by one statement for each kind of write.

use std::collections::{HashMap, HashSet};

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::{PgConnection, QueryResult};

use super::write::Waiter;
use super::{CacheAside, Change};
use crate::cache::Changes;
use crate::database::{LockWait, Transaction};
use crate::error::Error;

/// What a transaction does with a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is part of the transaction.
    Done,
    /// It is not, and this is the answer.
    Refused(Error),
    /// It is not: another session holds its row.
    Held,
}

/// What a transaction has done, before COMMIT.
#[derive(Debug)]
pub struct Applied {
    /// A verdict for each write.
    pub verdicts: Vec<Verdict>,
    /// The Redis keys of what it has changed.
    pub keys: Changes,
    /// The transaction, and the grant that it sees; none if it has changed nothing.
    pub transaction: Option<Transaction>,
}

/// What becomes of those writes that are not done.
type Verdicts<'a, T> = HashMap<&'a <T as CacheAside>::Key, Verdict>;

/// Does those of `writes` that can be done. With [`LockWait::Short`], rows that another session holds are left out.
///
/// # Errors
/// The database's. [`Error::Held`] if a statement for several writes fails, perhaps because of one of them: each may be tried
/// alone. [`Error::Suspended`] if there is no grant.
pub fn apply<T: CacheAside>(
    connection: &mut PgConnection,
    writes: &[Waiter<T>],
    lock_wait: LockWait,
) -> QueryResult<Result<Applied, Error>> {
    match try_to_apply(connection, writes, lock_wait) {
        Err(DieselError::DatabaseError(DatabaseErrorKind::Unknown, _)) if lock_wait == LockWait::Short => {
            Ok(Err(Error::Held))
        }
        result => result,
    }
}

fn try_to_apply<T: CacheAside>(
    connection: &mut PgConnection,
    writes: &[Waiter<T>],
    lock_wait: LockWait,
) -> QueryResult<Result<Applied, Error>> {
    // In the order of their keys: two transactions that lock the same rows in different orders would wait for each other.
    let mut sorted: Vec<&Waiter<T>> = writes.iter().collect();
    sorted.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    let mut verdicts = judge(connection, &sorted, lock_wait)?;

    let mut created = Vec::new();
    let mut replaced = Vec::new();
    let mut deleted = Vec::new();
    for write in sorted.into_iter().filter(|write| !verdicts.contains_key(&write.key)) {
        match &write.value {
            Change::Create(value) => created.push((&write.key, value)),
            Change::Replace(value, _) => replaced.push((&write.key, value)),
            Change::Delete(_) => deleted.push(&write.key),
        }
    }
    let mut changed = Vec::new();
    // First, since it may wait for another session. While this one has only locked rows, nobody who inserts waits for it.
    if !created.is_empty() {
        changed = T::insert(connection, &created)?;
        let free: HashSet<&T::Key> = changed.iter().map(|(key, _)| key).collect();
        created.retain(|(key, _)| free.contains(key) || {
            verdicts.insert(key, Verdict::Refused(Error::AlreadyExists));
            false
        });
    }
    if !replaced.is_empty() {
        changed.extend(T::replace(connection, &replaced)?);
    }
    if !deleted.is_empty() {
        changed.extend(T::delete(connection, &deleted)?);
    }
    let transaction = changed.first().map(|(_, transaction)| transaction.as_deref().and_then(Transaction::parse));
    let transaction = match transaction {
        Some(None) => return Ok(Err(Error::Suspended)),
        transaction => transaction.flatten(),
    };
    let keys = Changes {
        created: created.iter().map(|(key, _)| T::cache_key(key)).collect(),
        changed: replaced.iter().map(|(key, _)| *key).chain(deleted).map(T::cache_key).collect(),
    };
    let verdict = |write: &Waiter<T>| verdicts.remove(&write.key).unwrap_or(Verdict::Done);
    Ok(Ok(Applied { verdicts: writes.iter().map(verdict).collect(), keys, transaction }))
}

/// Locks the rows that are to be replaced or deleted. Returns a verdict for each write that is not to be done.
fn judge<'a, T: CacheAside>(
    connection: &mut PgConnection,
    writes: &[&'a Waiter<T>],
    lock_wait: LockWait,
) -> QueryResult<Verdicts<'a, T>> {
    let conditions: Vec<(&T::Key, &T::Condition)> = writes
        .iter()
        .filter_map(|write| match &write.value {
            Change::Create(_) => None,
            Change::Replace(_, condition) | Change::Delete(condition) => Some((&write.key, condition)),
        })
        .collect();
    if conditions.is_empty() {
        return Ok(HashMap::new());
    }
    let keys: Vec<&T::Key> = conditions.iter().map(|(key, _)| *key).collect();
    let locked = T::lock(connection, &keys, lock_wait)?;
    let locked: HashMap<&T::Key, &T::Record> = locked.iter().map(|record| (T::key(record), record)).collect();
    let missing: Vec<&T::Key> = keys.into_iter().filter(|key| !locked.contains_key(key)).collect();
    let held = if missing.is_empty() || lock_wait == LockWait::Long {
        Vec::new()
    } else {
        T::load(connection, &missing)?
    };
    let held: HashSet<&T::Key> = held.iter().map(|(record, _)| T::key(record)).collect();
    let verdict = |key: &T::Key, condition: &T::Condition| match locked.get(key) {
        Some(record) if T::holds(condition, record) => None,
        Some(_) => Some(Verdict::Refused(Error::PreconditionFailed)),
        None if held.contains(key) => Some(Verdict::Held),
        None => Some(Verdict::Refused(Error::NotFound)),
    };
    let refused = conditions.into_iter().filter_map(|(key, condition)| Some((key, verdict(key, condition)?)));
    Ok(refused.collect())
}
