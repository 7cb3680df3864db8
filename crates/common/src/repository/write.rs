//! The write flow, top to bottom: the wait while Redis changes, the change, the barriers, the near wait, COMMIT, the
//! un-barrier.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use diesel::{PgConnection, QueryResult};
use prometheus::IntGauge;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout_at};

use super::{CacheAside, Repository};
use crate::cache::{BARRIER, Barriers, near};
use crate::database::{Late, Outcome, Pending, Reason, Waited, read_grant};
use crate::error::Error;

/// A barrier must have this much life left when COMMIT is sent: longer than a COMMIT usually takes.
const COMMIT_RESERVE: Duration = Duration::from_secs(5);
/// How often the barriers of a COMMIT that takes long are extended.
const EXTEND_INTERVAL: Duration = Duration::from_secs(3);
/// How long to wait between attempts to lower a barrier: long enough for Redis to recover from a burst, and short
/// beside the request's time-out.
const UNBARRIER_PAUSE: Duration = Duration::from_millis(20);

/// What a write does to copies that replicas may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// An insert. Near caches hold no absences, so there is nothing to wait for.
    Create,
    /// It replaces or deletes: near copies must have run out before COMMIT.
    Replace,
}

/// The keys that a write changes.
pub type Changes<T> = Vec<<T as CacheAside>::Key>;

/// What a write knows between its change and its end.
struct Guarded {
    /// None if the cache is suspended.
    barriers: Option<Barriers>,
    /// The transaction's id.
    transaction: Option<String>,
    /// A session of the monitor with the same server while the transaction was under way.
    session: Option<u64>,
}

/// Set by the database's thread before COMMIT.
type Guard = Arc<OnceLock<Guarded>>;

impl<T: CacheAside> Repository<T> {
    /// Runs `change` in a transaction, with the keys that it returns guarded. When this returns `Ok`, it is committed,
    /// and no read that starts from now on sees what was before.
    ///
    /// # Errors
    /// The database's, and what `change` refuses with: nothing has happened then. [`Error::OutcomeUnknown`]: it may
    /// have happened, or may still.
    pub async fn write(
        &self,
        mut deadline: Instant,
        effect: Effect,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<Changes<T>, Error>> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let change = Arc::new(change);
        let mut has_waited = false;
        loop {
            if self.0.database.writable(deadline).await? == Waited::Yes && !has_waited {
                // It has its whole time for PostgreSQL from now on; once, so that there is an end.
                has_waited = true;
                deadline = self.deadline();
            }
            let change = change.clone();
            match self.write_once(deadline, effect, move |connection| change(connection)).await {
                // Nothing has happened, and the grant is another by now.
                Err(Error::Suspended) => {}
                result => return result,
            }
        }
    }

    async fn write_once(
        &self,
        deadline: Instant,
        effect: Effect,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<Changes<T>, Error>> + Send + 'static,
    ) -> Result<(), Error> {
        let turn = match effect {
            Effect::Create => None,
            // It holds a connection through the near wait.
            Effect::Replace => Some(self.0.database.turn(self.0.database.halfway(deadline)).await?),
        };
        let this = self.clone();
        let guard = Guard::default();
        let set = guard.clone();
        let before_commit = move |connection: &mut PgConnection, changes: &Changes<T>| {
            let _held_until_the_wait_is_over = turn;
            this.guard(effect, changes, connection, &set)
        };
        let pending = self.0.database.write(deadline, change, before_commit)?;
        // A task of its own: it goes on when the client hangs up, and after the answer that the outcome is unknown.
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(self.clone().finish_write(effect, pending, guard, deadline, sender));
        receiver.await.unwrap_or_else(|_| Err(Error::Internal("a write's task panicked".into())))
    }

    /// Between change and COMMIT, on the database's thread, with the rows locked: raises barriers, and lets near copies
    /// run out. Not if the cache is suspended, and no reader uses it any more.
    fn guard(
        &self,
        effect: Effect,
        changes: &Changes<T>,
        connection: &mut PgConnection,
        guard: &Guard,
    ) -> Result<(), Error> {
        let database = &self.0.database;
        let known = database.grants().known();
        let (Some(known), Some(grant)) = (known, read_grant(connection)?) else {
            return Err(Error::Suspended);
        };
        let barriers = match &grant.redis {
            Some(granted) => {
                let barriers = self.raise_barriers(changes, granted);
                Some(barriers.map_err(|reason| {
                    database.suspend(grant.epoch, reason);
                    database.look_beyond(known.grant.tag);
                    Error::Suspended
                })?)
            }
            // It must have been known for so long that no reader uses the cache.
            None if known.shows(&grant) && known.free_at() <= Instant::now() => None,
            None => {
                if !known.shows(&grant) {
                    database.look_beyond(known.grant.tag);
                }
                return Err(Error::Suspended);
            }
        };
        let guarded = guard.get_or_init(|| Guarded {
            barriers,
            session: known.shows(&grant).then_some(known.session),
            transaction: grant.transaction,
        });
        let Some(barriers) = &guarded.barriers else { return Ok(()) };
        if effect == Effect::Replace {
            // The wait starts at Redis' reply, when the keys have been published.
            thread::sleep(near::PROOF_LIFE + near::PROOF_MARGIN);
        }
        if barriers.age() > BARRIER - COMMIT_RESERVE {
            return Err(Error::Unavailable("the barrier has become too old to commit under".into()));
        }
        Ok(())
    }

    /// Raises barriers in the process `granted`.
    ///
    /// # Errors
    /// Why the grant must be suspended: no replica may use what this writer cannot guard.
    fn raise_barriers(&self, changes: &Changes<T>, granted: &str) -> Result<Barriers, Reason> {
        let keys = changes.iter().map(T::cache_key).collect();
        match self.0.runtime.block_on(self.0.cache.raise_barriers(keys)) {
            Ok(barriers) if *barriers.process == *granted => Ok(barriers),
            Ok(_) => Err(Reason::OtherProcess),
            Err(error) => {
                log::warn!("barriers could not be raised: {error:?}");
                Err(Reason::Unreachable)
            }
        }
    }

    /// Waits for the end of the transaction, lowers the barriers, and sends the result to the caller: last for an insert.
    /// It had no row to lock, and if its barrier was lost, an absence may have been stored, which is removed with it.
    async fn finish_write(
        self,
        effect: Effect,
        mut pending: Pending<Result<Changes<T>, Error>>,
        guard: Guard,
        deadline: Instant,
        caller: oneshot::Sender<Result<(), Error>>,
    ) {
        // A service that stops waits for it, since it keeps barriers up.
        let mut unfinished = None;
        let mut caller = Some(caller);
        let result = match self.extending(&guard, pending.before_deadline()).await {
            Ok(result) => result.flatten(),
            Err(late) => {
                if late == Late::Committing {
                    unfinished = Some(Unfinished::new(&self.0.metrics.unfinished));
                }
                answer(&mut caller, Err(error_of(late)));
                self.extending(&guard, pending.whenever_done()).await.flatten()
            }
        };
        let result = match (result.map(drop), guard.get()) {
            (Err(Error::OutcomeUnknown(cause)), Some(guarded)) => {
                let mut finding = Box::pin(self.extending(&guard, self.find_outcome(guarded, &cause)));
                match timeout_at(deadline.into(), &mut finding).await {
                    Ok(result) => result,
                    Err(_) => {
                        unfinished.get_or_insert_with(|| Unfinished::new(&self.0.metrics.unfinished));
                        answer(&mut caller, Err(Error::OutcomeUnknown(cause.clone())));
                        finding.await
                    }
                }
            }
            (result, _) => result,
        };
        if effect == Effect::Replace {
            // While it held its row, no load stored what was before. So nothing hangs on its barriers any more.
            answer(&mut caller, result.clone());
        }
        if let Some(barriers) = guard.get().and_then(|guarded| guarded.barriers.as_ref()) {
            // When the caller has its answer already, there is as much time as the barriers live.
            let until = if caller.is_some() { deadline } else { Instant::now() + BARRIER };
            self.lower(barriers, until).await;
        }
        answer(&mut caller, result);
        drop(unfinished);
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
            if let Some(barriers) = guard.get().and_then(|guarded| guarded.barriers.as_ref())
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
    async fn find_outcome(&self, guarded: &Guarded, cause: &str) -> Result<(), Error> {
        let outcome = match &guarded.transaction {
            Some(transaction) => self.0.database.outcome(transaction.clone(), guarded.session).await,
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

/// One more write in a gauge, until it has ended.
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

/// Sends a write's caller its result, if it has none yet.
fn answer(caller: &mut Option<oneshot::Sender<Result<(), Error>>>, result: Result<(), Error>) {
    if let Some(caller) = caller.take() {
        // The client may have hung up.
        let _ = caller.send(result);
    }
}

fn error_of(late: Late) -> Error {
    match late {
        Late::Undone => Error::waited_too_long(),
        Late::Committing => Error::OutcomeUnknown("COMMIT was under way at the deadline".into()),
    }
}
