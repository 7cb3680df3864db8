//! The write flow, top to bottom. Writes that wait share a transaction: the changes, the barriers, the acks of near caches,
//! COMMIT, the un-barrier. Each caller gets the answer that it would have got alone.
//!
//! Nobody waits for a row or a key that another session holds: such a write is tried again alone (`apply.rs` finds it).

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use diesel::PgConnection;
use prometheus::IntGauge;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout_at};

use super::apply::{Applied, Verdict, apply};
use super::{CacheAside, Change, Repository};
use crate::cache::{BARRIER, Barriers, Changes};
use crate::database::{Batch, End, Late, LockWait, Outcome, Reason, Waited};
use crate::error::Error;

/// A barrier must have this much life left when COMMIT is sent: longer than a COMMIT usually takes.
const COMMIT_RESERVE: Duration = Duration::from_secs(5);
/// How often the barriers of a COMMIT that takes long are extended.
const EXTEND_INTERVAL: Duration = Duration::from_secs(3);
/// How long to wait between attempts to lower a barrier: long enough for Redis to recover from a burst, and short
/// beside the request's time-out.
const UNBARRIER_PAUSE: Duration = Duration::from_millis(20);

/// A write that waits.
pub type Waiter<T> = crate::database::Waiter<<T as CacheAside>::Key, Change<T>, ()>;

/// The writes of a transaction: those of a batch, or one of them.
struct Writes<T: CacheAside> {
    batch: Arc<Batch<T::Key, Change<T>, ()>>,
    /// The only one, by its place in the batch.
    only: Option<usize>,
}

impl<T: CacheAside> Clone for Writes<T> {
    fn clone(&self) -> Self {
        Self { batch: self.batch.clone(), only: self.only }
    }
}

/// What a transaction's thread knows before COMMIT.
struct Prepared {
    /// A verdict for each write.
    verdicts: Vec<Verdict>,
    /// None if the cache is suspended, or nothing is changed.
    barriers: Option<Barriers>,
    /// The transaction's id.
    transaction: Option<String>,
    /// A session of the monitor with the same server while the transaction was under way.
    session: Option<u64>,
}

/// Set by the database's thread before COMMIT.
type Guard = Arc<OnceLock<Prepared>>;

impl<T: CacheAside> Repository<T> {
    /// Creates the record of `key`. When this returns `Ok`, it is committed, and no read that starts from now on returns what
    /// was before. So do the other writes.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if there was one before, and the database's: nothing has happened then.
    /// [`Error::OutcomeUnknown`]: it may have happened, or may still.
    pub async fn create(&self, key: T::Key, value: T::Value) -> Result<(), Error> {
        self.write(key, Change::Create(value)).await
    }

    /// Replaces the record of `key`, if it meets `condition`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::PreconditionFailed`], and as [`Repository::create`].
    pub async fn replace(&self, key: T::Key, value: T::Value, condition: T::Condition) -> Result<(), Error> {
        self.write(key, Change::Replace(value, condition)).await
    }

    /// Deletes the record of `key`, if it meets `condition`.
    ///
    /// # Errors
    /// As [`Repository::replace`].
    pub async fn delete(&self, key: T::Key, condition: T::Condition) -> Result<(), Error> {
        self.write(key, Change::Delete(condition)).await
    }

    async fn write(&self, key: T::Key, change: Change<T>) -> Result<(), Error> {
        // Here, so that each waits for its own time and not for its batch's.
        self.0.database.writable(self.0.database.deadline()).await?;
        let serve = || {
            tokio::spawn(self.clone().serve_writes());
        };
        self.0.writes.join(key, change, serve).await
    }

    /// Runs one transaction for all writes that wait, and another, until none waits.
    async fn serve_writes(self) {
        while let Some(batch) = self.0.writes.next() {
            let deadline = batch.deadline;
            let (working, free) = oneshot::channel::<()>();
            let writes = Writes { batch: Arc::new(batch), only: None };
            tokio::spawn(self.clone().run(writes, working));
            // The next transaction need not wait until this one's barriers are down. After the deadline it goes on as
            // well: this batch has failed.
            let _ = timeout_at(deadline.into(), free).await;
        }
    }

    /// Starts a transaction for each of `writes` alone, which may wait for another session. A quarter of the connections are for
    /// these, and the others are free for the rest.
    fn run_alone(&self, writes: impl Iterator<Item = Writes<T>>) {
        for write in writes {
            let this = self.clone();
            let run: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
                let permit = timeout_at(write.batch.deadline.into(), this.0.alone.clone().acquire_owned());
                match permit.await {
                    Ok(permit) => this.run(write, permit).await,
                    Err(_) => settle(&write, None, &Err(this.0.database.too_late()), Settle::All),
                }
            });
            tokio::spawn(run);
        }
    }

    /// Runs the transaction of `writes`, again if the grant changes under it, and resolves them. `connection` is dropped when
    /// its connection is free again.
    async fn run(self, writes: Writes<T>, connection: impl Send) {
        let mut deadline = writes.batch.deadline;
        let mut has_waited = false;
        loop {
            match self.0.database.writable(deadline).await {
                Ok(Waited::Yes) if !has_waited => {
                    // It has its whole time for PostgreSQL from now on; once, so that there is an end.
                    has_waited = true;
                    deadline = self.deadline();
                }
                Ok(_) => {}
                Err(error) => return settle(&writes, None, &Err(error), Settle::All),
            }
            let guard = Guard::default();
            let mut unfinished = None;
            let result = self.commit(&writes, &guard, deadline, &mut unfinished).await;
            let prepared = guard.get();
            let alone = match &result {
                // Nothing has happened, and the grant is another by now.
                Err(Error::Suspended) => continue,
                Err(Error::Held) => (0..writes.get().len()).collect(),
                _ => held(prepared),
            };
            drop(connection);
            self.run_alone(alone.into_iter().map(|at| writes.alone(at)));
            if result == Err(Error::Held) {
                return;
            }
            // While it held its rows, no load stored what was before. So nothing hangs on their barriers any more.
            settle(&writes, prepared, &result, Settle::AllButCreations);
            if let Some(barriers) = prepared.and_then(|prepared| prepared.barriers.as_ref()) {
                self.lower(barriers, deadline).await;
            }
            // A creation had no row to lock. If its barrier was lost, an absence may have been stored, which is removed by now.
            settle(&writes, prepared, &result, Settle::All);
            return;
        }
    }

    /// Runs the transaction of `writes`, and returns when it has ended. At `deadline` they get an answer in any case.
    async fn commit(
        &self,
        writes: &Writes<T>,
        guard: &Guard,
        deadline: Instant,
        unfinished: &mut Option<Unfinished>,
    ) -> Result<(), Error> {
        let taken = writes.clone();
        let lock_wait = writes.lock_wait();
        let change = move |connection: &mut PgConnection| apply(connection, taken.get(), lock_wait);
        let this = self.clone();
        let set = guard.clone();
        let before_commit = move |applied: Applied| this.prepare(applied, &set);
        let mut pending = self.0.database.write(deadline, lock_wait, change, before_commit)?;
        let result = match self.extending(guard, pending.before_deadline()).await {
            Ok(result) => result.flatten(),
            Err(late) => {
                settle(writes, guard.get(), &Err(error_of(late)), Settle::All);
                if late == Late::Committing {
                    *unfinished = Some(Unfinished::new(&self.0.metrics.unfinished));
                }
                self.extending(guard, pending.whenever_done()).await.flatten()
            }
        };
        let (Err(Error::OutcomeUnknown(cause)), Some(prepared)) = (&result, guard.get()) else { return result };
        let mut finding = Box::pin(self.extending(guard, self.find_outcome(prepared, cause)));
        match timeout_at(deadline.into(), &mut finding).await {
            Ok(result) => result,
            Err(_) => {
                settle(writes, Some(prepared), &result, Settle::All);
                unfinished.get_or_insert_with(|| Unfinished::new(&self.0.metrics.unfinished));
                finding.await
            }
        }
    }

    /// Between change and COMMIT, on the database's thread, with the rows locked: raises barriers, and waits until near caches
    /// have no copy. Not if the cache is suspended, and no reader uses it any more.
    fn prepare(&self, applied: Applied, guard: &Guard) -> Result<End, Error> {
        let Applied { verdicts, keys, transaction } = applied;
        let Some(transaction) = transaction else {
            guard.get_or_init(|| Prepared { verdicts, barriers: None, transaction: None, session: None });
            return Ok(End::RollBack);
        };
        let database = &self.0.database;
        let Some(known) = database.grants().known() else { return Err(Error::Suspended) };
        let shown = known.shows(&transaction);
        let barriers = match &transaction.redis {
            Some(granted) => Some(self.raise_barriers(keys, granted).map_err(|reason| {
                database.suspend(transaction.epoch, reason);
                database.look_beyond(known.grant.tag);
                Error::Suspended
            })?),
            // It must have been known for so long that no reader uses the cache.
            None if shown && known.free_at() <= Instant::now() => None,
            None => {
                if !shown {
                    database.look_beyond(known.grant.tag);
                }
                return Err(Error::Suspended);
            }
        };
        let session = shown.then_some(known.session);
        let prepared =
            guard.get_or_init(|| Prepared { verdicts, barriers, transaction: Some(transaction.id), session });
        let Some(barriers) = &prepared.barriers else { return Ok(End::Commit) };
        if let Some(published) = &barriers.published {
            self.0.runtime.block_on(self.0.cache.wait_for_acks(published));
        }
        if barriers.age() > BARRIER - COMMIT_RESERVE {
            return Err(Error::Unavailable("the barrier has become too old to commit under".into()));
        }
        Ok(End::Commit)
    }

    /// Raises barriers in the process `granted`.
    ///
    /// # Errors
    /// Why the grant must be suspended: no replica may use what this writer cannot guard.
    fn raise_barriers(&self, keys: Changes, granted: &str) -> Result<Barriers, Reason> {
        match self.0.runtime.block_on(self.0.cache.raise_barriers(keys)) {
            Ok(barriers) if *barriers.process == *granted => Ok(barriers),
            Ok(_) => Err(Reason::OtherProcess),
            Err(error) => {
                log::warn!("barriers could not be raised: {error:?}");
                Err(Reason::Unreachable)
            }
        }
    }

    /// Awaits `end`, and extends the barriers meanwhile: a COMMIT may wait for its standby, or for the disk, for longer
    /// than they live.
    async fn extending<R>(&self, guard: &Guard, end: impl Future<Output = R>) -> R {
        let mut end = Box::pin(end);
        loop {
            tokio::select! {
                result = &mut end => return result,
                () = sleep(EXTEND_INTERVAL) => {}
            }
            if let Some(barriers) = guard.get().and_then(|prepared| prepared.barriers.as_ref())
                && let Err(error) = self.0.cache.extend_barriers(barriers).await
            {
                log::warn!("barriers of a long COMMIT could not be extended: {error:?}");
            }
        }
    }

    /// What has become of a transaction after COMMIT did not say it. Returns when it has ended. If the server cannot say how,
    /// nobody can: a row that looks as this write would have left it may be another's.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if nothing was changed, [`Error::OutcomeUnknown`] because of `cause` if that cannot be said.
    async fn find_outcome(&self, prepared: &Prepared, cause: &str) -> Result<(), Error> {
        let outcome = match &prepared.transaction {
            Some(transaction) => self.0.database.outcome(transaction.clone(), prepared.session).await,
            None => Outcome::Ended,
        };
        let (resolution, result) = match outcome {
            Outcome::Committed => ("committed", Ok(())),
            Outcome::Aborted => ("aborted", Err(Error::Unavailable(cause.to_owned()))),
            Outcome::Ended => ("unknown", Err(Error::OutcomeUnknown(cause.to_owned()))),
        };
        self.0.metrics.outcomes.with_label_values(&[resolution]).inc();
        result
    }

    /// Lowers the barriers of a transaction that has ended. If Redis does not answer, they stand until they expire.
    async fn lower(&self, barriers: &Barriers, until: Instant) {
        while let Err(error) = self.0.cache.lower_barriers(barriers).await {
            if Instant::now() >= until {
                return log::warn!("barriers could not be lowered, and stand until they expire: {error:?}");
            }
            sleep(UNBARRIER_PAUSE).await;
        }
    }
}

impl<T: CacheAside> Writes<T> {
    fn get(&self) -> &[Waiter<T>] {
        let all = self.batch.waiters();
        match self.only {
            Some(at) => std::slice::from_ref(&all[at]),
            None => all,
        }
    }

    fn alone(&self, at: usize) -> Self {
        Self { batch: self.batch.clone(), only: Some(at) }
    }

    fn lock_wait(&self) -> LockWait {
        if self.only.is_some() { LockWait::Long } else { LockWait::Short }
    }
}

/// Which writes get their results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settle {
    AllButCreations,
    All,
}

/// Sends each of `writes` what it would have got alone, given the result of the transaction. Who has a result keeps it.
fn settle<T: CacheAside>(
    writes: &Writes<T>,
    prepared: Option<&Prepared>,
    result: &Result<(), Error>,
    settle: Settle,
) {
    let verdicts = prepared.map_or(&[][..], |prepared| &prepared.verdicts);
    for (at, waiter) in writes.get().iter().enumerate() {
        match verdicts.get(at) {
            Some(Verdict::Refused(error)) => waiter.resolve(Err(error.clone())),
            Some(Verdict::Held) => {}
            _ if settle == Settle::AllButCreations && matches!(waiter.value, Change::Create(_)) => {}
            Some(Verdict::Done) | None => waiter.resolve(result.clone()),
        }
    }
}

/// The places of those writes that wait for another session.
fn held(prepared: Option<&Prepared>) -> Vec<usize> {
    let verdicts = prepared.map_or(&[][..], |prepared| &prepared.verdicts);
    (0..verdicts.len()).filter(|at| verdicts[*at] == Verdict::Held).collect()
}

/// One more transaction in a gauge, until it has ended.
struct Unfinished(IntGauge);

impl Unfinished {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn error_of(late: Late) -> Error {
    match late {
        Late::Undone => Error::waited_too_long(),
        Late::Committing => Error::OutcomeUnknown("COMMIT was under way at the deadline".into()),
    }
}
