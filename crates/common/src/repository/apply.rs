//! The changes of a transaction, on the database's thread: locks the rows, judges each write by itself, and changes
//! what is to be changed, by one statement for each kind of write.

use std::collections::{BTreeMap, HashSet};

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::{PgConnection, QueryResult};

use super::writes::Waiter;
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
    /// The Redis keys of what it has changed; of what was there, first those of replaced records.
    pub keys: Changes,
    /// For each replaced record, the write whose value it holds now.
    pub replaced_by: Vec<usize>,
    /// The transaction, and the grant that it sees; none if it has changed nothing.
    pub transaction: Option<Transaction>,
}

/// What a transaction finds and leaves in the row of a key that is to be replaced or deleted.
enum Row<'a, V> {
    /// Locked, with what it holds.
    Found(V),
    /// Another session holds it.
    Held,
    Absent,
    /// By this value, of this write.
    Replaced(&'a V, usize),
    Deleted,
}

/// Does those of `writes` that can be done; several writes of one record one after the other. With [`LockWait::Skip`],
/// rows that another session holds are left out.
///
/// # Errors
/// The database's. [`Error::Held`] if a statement fails that would not have waited for long: each write may be tried
/// again alone. [`Error::Suspended`] if there is no grant.
pub fn apply<T: CacheAside>(
    connection: &mut PgConnection,
    writes: &[&Waiter<T>],
    lock_wait: LockWait,
) -> QueryResult<Result<Applied, Error>> {
    match try_to_apply(connection, writes, lock_wait) {
        Err(DieselError::DatabaseError(DatabaseErrorKind::Unknown, _)) if lock_wait != LockWait::Long => {
            Ok(Err(Error::Held))
        }
        result => result,
    }
}

fn try_to_apply<T: CacheAside>(
    connection: &mut PgConnection,
    writes: &[&Waiter<T>],
    lock_wait: LockWait,
) -> QueryResult<Result<Applied, Error>> {
    let mut rows = lock(connection, writes, lock_wait)?;
    // Rows are changed in the order of their keys: two transactions that lock the same rows in different orders would
    // wait for each other.
    let mut created = BTreeMap::new();
    let mut verdicts: Vec<Verdict> = writes
        .iter()
        .enumerate()
        .map(|(at, write)| match (&write.value, rows.get_mut(&write.key)) {
            (Change::Create(value), _) => {
                created.insert(&write.key, value);
                Verdict::Done
            }
            (Change::Replace(value, condition), Some(row)) => {
                judge::<T>(&write.key, row, condition, Row::Replaced(value, at))
            }
            (Change::Delete(condition), Some(row)) => judge::<T>(&write.key, row, condition, Row::Deleted),
            (Change::Replace(..) | Change::Delete(_), None) => Verdict::Refused(Error::NotFound),
        })
        .collect();
    let created: Vec<(&T::Key, &T::Value)> = created.into_iter().collect();
    let mut replaced: Vec<(&T::Key, &T::Value)> = Vec::new();
    let mut replaced_by = Vec::new();
    for (key, row) in &rows {
        if let Row::Replaced(value, by) = row {
            replaced.push((key, value));
            replaced_by.push(*by);
        }
    }
    let deleted: Vec<&T::Key> =
        rows.iter().filter(|(_, row)| matches!(row, Row::Deleted)).map(|(key, _)| *key).collect();

    let mut keys = Changes::default();
    let mut changed = Vec::new();
    // First, since it may wait for another session. While this one has only locked rows, nobody who inserts waits for
    // it.
    if !created.is_empty() {
        changed = T::insert(connection, &created)?;
        let free: HashSet<&T::Key> = changed.iter().map(|(key, _)| key).collect();
        for (write, verdict) in writes.iter().zip(&mut verdicts) {
            if matches!(write.value, Change::Create(_)) && !free.contains(&write.key) {
                *verdict = Verdict::Refused(Error::AlreadyExists);
            }
        }
        keys.created = free.into_iter().map(T::cache_key).collect();
    }
    if !replaced.is_empty() {
        changed.extend(T::replace(connection, &replaced)?);
    }
    if !deleted.is_empty() {
        changed.extend(T::delete(connection, &deleted)?);
    }
    keys.changed = replaced.iter().map(|(key, _)| *key).chain(deleted).map(T::cache_key).collect();
    let Some((_, seen)) = changed.first() else {
        return Ok(Ok(Applied { verdicts, keys, replaced_by, transaction: None }));
    };
    let transaction = seen.as_deref().and_then(Transaction::parse);
    Ok(match transaction {
        Some(_) => Ok(Applied { verdicts, keys, replaced_by, transaction }),
        None => Err(Error::Suspended),
    })
}

/// Locks the rows that are to be replaced or deleted.
fn lock<'a, T: CacheAside>(
    connection: &mut PgConnection,
    writes: &[&'a Waiter<T>],
    lock_wait: LockWait,
) -> QueryResult<BTreeMap<&'a T::Key, Row<'a, T::Value>>> {
    let changes = writes.iter().filter(|write| !matches!(write.value, Change::Create(_)));
    let mut rows: BTreeMap<&T::Key, Row<'_, T::Value>> =
        changes.map(|write| (&write.key, Row::Absent)).collect();
    if rows.is_empty() {
        return Ok(rows);
    }
    let keys: Vec<&T::Key> = rows.keys().copied().collect();
    for (key, value) in T::lock(connection, &keys, lock_wait)? {
        if let Some(row) = rows.get_mut(&key) {
            *row = Row::Found(value);
        }
    }
    let missing: Vec<&T::Key> =
        rows.iter().filter(|(_, row)| matches!(row, Row::Absent)).map(|(key, _)| *key).collect();
    if lock_wait == LockWait::Skip && !missing.is_empty() {
        for (key, ..) in T::load(connection, &missing)? {
            if let Some(row) = rows.get_mut(&key) {
                *row = Row::Held;
            }
        }
    }
    Ok(rows)
}

/// Leaves `after` in `row`, if there is one that meets `condition`.
fn judge<'a, T: CacheAside>(
    key: &T::Key,
    row: &mut Row<'a, T::Value>,
    condition: &T::Condition,
    after: Row<'a, T::Value>,
) -> Verdict {
    let holds = match row {
        Row::Found(value) => T::holds(condition, key, value),
        Row::Replaced(value, _) => T::holds(condition, key, value),
        Row::Held => return Verdict::Held,
        Row::Absent | Row::Deleted => return Verdict::Refused(Error::NotFound),
    };
    if !holds {
        return Verdict::Refused(Error::PreconditionFailed);
    }
    *row = after;
    Verdict::Done
}
