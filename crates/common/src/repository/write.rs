//! The write flow, top to bottom. Writes that wait share a transaction: the changes, the barriers, the acks of near
//! caches, COMMIT, the un-barrier. Each caller gets the answer that it would have got alone.
//!
//! A write whose row or key another session holds delays no other. It is tried again alone: first for as long as another
//! service's transaction may take, then for as long as the setting says. `apply.rs` finds such a row without waiting for
//! it. An INSERT of such a key makes the transaction fail, and then all its writes are tried alone.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use diesel::PgConnection;
use prometheus::IntGauge;
use tokio::time::{sleep, timeout_at};

use super::apply::{Applied, Verdict, apply};
use super::writes::{Settle, Writes};
use super::{CacheAside, Change, Repository};
use crate::cache::entry::Tag;
use crate::cache::{BARRIER, Barriers, CacheError, Changes, Ended, Representation};
use crate::database::{Batch, End, Late, LockWait, Outcome, Reason, UnderWay, Waited};
use crate::error::Error;

/// A barrier must have this much life left when COMMIT is sent: longer than a COMMIT usually takes.
const COMMIT_RESERVE: Duration = Duration::from_secs(5);
/// How often the barriers of a COMMIT that takes long are extended.
const EXTEND_INTERVAL: Duration = Duration::from_secs(3);
/// How long to wait between attempts to lower a barrier: long enough for Redis to recover from a burst, and short
/// beside the request's time-out.
const UNBARRIER_PAUSE: Duration = Duration::from_millis(20);

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

/// A verdict for each write, once there is one.
fn verdicts(guard: &Guard) -> &[Verdict] {
    guard.get().map_or(&[], |prepared| &prepared.verdicts)
}

impl<T: CacheAside> Repository<T> {
    /// Creates the record of `key`. When this returns `Ok`, it is committed, and no read that starts from now on
    /// returns what was before. So do the other writes.
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

    async fn serve_writes(self) {
        let begin = |batch, under_way: UnderWay| {
            let writes = Writes { batch: Arc::new(batch), only: None, lock_wait: LockWait::Skip };
            tokio::spawn(self.clone().run(writes, under_way));
        };
        self.0.writes.serve(begin).await;
    }

    /// Starts a transaction for the writes of each of `keys` in `batch` alone. A quarter of the connections are for those
    /// that wait for another session for long, a quarter for those that wait shortly; the others are free for the rest.
    fn run_alone(
        &self,
        batch: &Arc<Batch<T::Key, Change<T>, ()>>,
        keys: HashSet<T::Key>,
        lock_wait: LockWait,
    ) {
        let permits = if lock_wait == LockWait::Long { &self.0.patient } else { &self.0.alone };
        for key in keys {
            let this = self.clone();
            let permit = permits.clone().acquire_owned();
            let writes = Writes { batch: batch.clone(), only: Some(key), lock_wait };
            let run: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
                let waits = this.0.database.waits();
                let permit = timeout_at(writes.batch.deadline.into(), permit).await;
                drop(waits);
                match permit {
                    Ok(Ok(permit)) => this.run(writes, permit.into()).await,
                    _ => writes.settle(&[], &Err(this.0.database.too_late()), Settle::All),
                }
            });
            tokio::spawn(run);
        }
    }

    /// Runs the transaction of `writes`, again if the grant changes under it, and resolves them. It is `under_way` until
    /// its connection is free again, or its deadline is over.
    async fn run(self, writes: Writes<T>, under_way: UnderWay) {
        let mut under_way = Some(under_way);
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
                Err(error) => return writes.settle(&[], &Err(error), Settle::All),
            }
            let guard = Guard::default();
            let mut unfinished = None;
            let result = self.commit(&writes, &guard, deadline, &mut under_way, &mut unfinished).await;
            let prepared = guard.get();
            match result {
                // Nothing has happened, and the grant is another by now.
                Err(Error::Suspended) => continue,
                // Nothing has happened, and each is tried again.
                Err(Error::Held) => return,
                _ => {}
            }
            // While it held its rows, no load stored what was before. So nothing hangs on their barriers any more.
            writes.settle(verdicts(&guard), &result, Settle::AllButCreations);
            let barriers = prepared.and_then(|prepared| prepared.barriers.as_ref());
            let ended = if result.is_ok() { Ended::Committed } else { Ended::Otherwise };
            let lowered = self.lower(barriers, ended, deadline).await;
            // A creation had no row to lock. If its barrier was lost, an absence may have been stored, which is removed
            // by now.
            writes.settle(verdicts(&guard), &result, Settle::All);
            if lowered.is_err() && self.lower(barriers, ended, Instant::now() + BARRIER).await.is_err() {
                log::warn!("barriers could not be lowered, and stand until they expire");
            }
            return;
        }
    }

    /// Runs the transaction of `writes`, and returns when it has ended. At `deadline` they get an answer in any case.
    async fn commit(
        &self,
        writes: &Writes<T>,
        guard: &Guard,
        deadline: Instant,
        under_way: &mut Option<UnderWay>,
        unfinished: &mut Option<Unfinished>,
    ) -> Result<(), Error> {
        let taken = writes.clone();
        let lock_wait = writes.lock_wait;
        let until_dropped = under_way.clone();
        let change = move |connection: &mut PgConnection| {
            let _with_the_transaction = &until_dropped;
            apply(connection, &taken.get(), lock_wait)
        };
        let this = self.clone();
        let taken = writes.clone();
        let set = guard.clone();
        let before_commit = move |applied: Applied| this.prepare(&taken, applied, &set);
        let mut pending = self.0.database.write(deadline, lock_wait, change, before_commit)?;
        let result = match self.extending(guard, pending.before_deadline()).await {
            Ok(result) => {
                let result = result.flatten();
                self.go_on(writes, guard, &result);
                result
            }
            Err(late) => {
                under_way.take();
                writes.release_all_but(&HashSet::new());
                writes.settle(verdicts(guard), &Err(error_of(late)), Settle::All);
                writes.give_up();
                if late == Late::Committing {
                    *unfinished = Some(Unfinished::new(&self.0.metrics.unfinished, guard));
                }
                self.extending(guard, pending.whenever_done()).await.flatten()
            }
        };
        let (Err(Error::OutcomeUnknown(cause)), Some(prepared)) = (&result, guard.get()) else {
            return result;
        };
        let mut finding = Box::pin(self.extending(guard, self.find_outcome(prepared, cause)));
        match timeout_at(deadline.into(), &mut finding).await {
            Ok(result) => result,
            Err(_) => {
                writes.settle(verdicts(guard), &result, Settle::All);
                unfinished.get_or_insert_with(|| Unfinished::new(&self.0.metrics.unfinished, guard));
                finding.await
            }
        }
    }

    /// Lets others go on after the transaction of `writes`: those that wait for its keys, and those of its own that
    /// another session holds. Not if it is to be run again.
    fn go_on(&self, writes: &Writes<T>, guard: &Guard, result: &Result<(), Error>) {
        let again = match result {
            Err(Error::Suspended) => return,
            Err(Error::Held) => writes.keys(),
            _ => writes.held(verdicts(guard)),
        };
        let lock_wait = if writes.lock_wait == LockWait::Skip { LockWait::Short } else { LockWait::Long };
        writes.release_all_but(&again);
        self.run_alone(&writes.batch, again, lock_wait);
    }

    /// Between change and COMMIT, on the database's thread, with the rows locked: raises barriers, and waits until near
    /// caches have no copy. Not if the cache is suspended, and no reader uses it any more.
    fn prepare(&self, writes: &Writes<T>, applied: Applied, guard: &Guard) -> Result<End, Error> {
        let Applied { verdicts, keys, replaced_by, transaction } = applied;
        let Some(transaction) = transaction else {
            guard.get_or_init(|| Prepared { verdicts, barriers: None, transaction: None, session: None });
            return Ok(End::RollBack);
        };
        let database = &self.0.database;
        let Some(known) = database.grants().known() else { return Err(Error::Suspended) };
        let shown = known.shows(&transaction);
        // Without one, no copy is left. Not the tag that is current after COMMIT: that may be another epoch's.
        let tag = shown.then_some(known.grant.tag);
        let copy = |changed: usize| writes.copy(*replaced_by.get(changed)?);
        let barriers = match &transaction.redis {
            Some(granted) => Some(self.raise_barriers(keys, granted, tag, copy).map_err(|reason| {
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
    fn raise_barriers(
        &self,
        keys: Changes,
        granted: &str,
        tag: Option<Tag>,
        copy: impl Fn(usize) -> Option<Representation>,
    ) -> Result<Barriers, Reason> {
        match self.0.runtime.block_on(self.0.cache.raise_barriers(keys, tag, copy)) {
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

    /// What has become of a transaction after COMMIT did not say it. Returns when it has ended. If the server cannot
    /// say how, nobody can: a row that looks as this write would have left it may be another's.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if nothing was changed, [`Error::OutcomeUnknown`] because of `cause` if that cannot be
    /// said.
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

    /// Lowers the barriers of a transaction that has `ended`.
    ///
    /// # Errors
    /// Redis has not answered until `until`.
    async fn lower(
        &self,
        barriers: Option<&Barriers>,
        ended: Ended,
        until: Instant,
    ) -> Result<(), CacheError> {
        let Some(barriers) = barriers else { return Ok(()) };
        loop {
            match self.0.cache.lower_barriers(barriers, ended).await {
                Err(_) if Instant::now() < until => sleep(UNBARRIER_PAUSE).await,
                result => return result,
            }
        }
    }
}

/// The writes of a transaction in a gauge, until it has ended.
struct Unfinished(IntGauge, i64);

impl Unfinished {
    fn new(gauge: &IntGauge, guard: &Guard) -> Self {
        let writes = verdicts(guard).iter().filter(|verdict| **verdict == Verdict::Done).count();
        let writes = i64::try_from(writes).unwrap_or(i64::MAX);
        gauge.add(writes);
        Self(gauge.clone(), writes)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.sub(self.1);
    }
}

fn error_of(late: Late) -> Error {
    match late {
        Late::Undone => Error::waited_too_long(),
        Late::Committing => Error::OutcomeUnknown("COMMIT was under way at the deadline".into()),
    }
}
