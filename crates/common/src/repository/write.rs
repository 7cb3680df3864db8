//! The write flow, top to bottom: the change, the barriers, the near wait, COMMIT, the un-barrier.

use std::thread;
use std::time::{Duration, Instant};

use diesel::{PgConnection, QueryResult};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::{CacheAside, Repository};
use crate::cache::{BARRIER, Barriers, near};
use crate::database::{Late, Pending, Written};
use crate::error::Error;

/// A barrier must have this much life left when COMMIT is sent: longer than a COMMIT may take.
const COMMIT_RESERVE: Duration = Duration::from_secs(5);
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

/// What a change returns: a value for the caller, and the keys that it changed.
pub type Changed<T, R> = (R, Vec<<T as CacheAside>::Key>);

impl<T: CacheAside> Repository<T> {
    /// Runs `change` in a transaction, with the keys that it returns guarded. When this returns `Ok`, it is committed,
    /// and no read that starts from now on sees what was before.
    ///
    /// # Errors
    /// The database's, and what `change` refuses with: nothing has happened then. [`Error::OutcomeUnknown`]: it may
    /// have happened, or may still.
    pub async fn write<R: Send + Sync + 'static>(
        &self,
        deadline: Instant,
        effect: Effect,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<Changed<T, R>, Error>> + Send + 'static,
    ) -> Result<R, Error> {
        let turn = match effect {
            Effect::Create => None,
            // It holds a connection through the near wait.
            Effect::Replace => Some(self.0.database.turn(self.0.database.halfway(deadline)).await?),
        };
        let this = self.clone();
        let before_commit = move |(_, keys): &Changed<T, R>| {
            let _held_until_the_wait_is_over = turn;
            this.guard(effect, keys)
        };
        let pending = self.0.database.write(deadline, change, before_commit)?;
        // A task of its own: it goes on when the client hangs up, and after the answer that the outcome is unknown.
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(self.clone().finish_write(pending, deadline, sender));
        receiver.await.unwrap_or_else(|_| Err(Error::Internal("a write's task panicked".into())))
    }

    /// Between change and COMMIT, on the database's thread, with the rows locked: raises barriers, and lets near copies
    /// run out.
    fn guard(&self, effect: Effect, keys: &[T::Key]) -> Result<Barriers, Error> {
        let keys = keys.iter().map(T::cache_key).collect();
        let barriers = self.0.runtime.block_on(self.0.cache.raise_barriers(keys));
        if barriers.age().is_none() && self.0.settings.strict {
            return Err(Error::Unavailable(
                "Redis cannot be told of the write, and CACHE_STRICT is set".into(),
            ));
        }
        if effect == Effect::Replace {
            // The wait starts at Redis' reply, when the keys have been published. If they could not be, replicas on
            // the same Redis lose their proof in the same time.
            thread::sleep(near::PROOF_LIFE + near::PROOF_MARGIN);
        }
        if barriers.age().is_some_and(|age| age > BARRIER - COMMIT_RESERVE) {
            return Err(Error::Unavailable("the barrier has become too old to commit under".into()));
        }
        Ok(barriers)
    }

    /// After COMMIT: lowers the barriers, and only then sends the result to the caller.
    async fn finish_write<R>(
        self,
        mut pending: Pending<Written<Changed<T, R>, Barriers>>,
        deadline: Instant,
        sender: oneshot::Sender<Result<R, Error>>,
    ) {
        let result = match pending.before_deadline().await {
            Ok(Ok(written)) => {
                self.settle(&written.result, written.before_commit, deadline).await;
                written.result.map(|(value, _)| value)
            }
            Ok(Err(panic)) => Err(panic),
            Err(late) => {
                let error = match late {
                    Late::Undone => Error::waited_too_long(),
                    Late::Committing => Error::OutcomeUnknown("COMMIT was under way at the deadline".into()),
                };
                // The caller gets its answer now; the barriers are lowered when the thread knows more.
                let _ = sender.send(Err(error));
                if let Ok(written) = pending.whenever_done().await {
                    self.settle(&written.result, written.before_commit, deadline).await;
                }
                return;
            }
        };
        // The client may have hung up: then no caller is left.
        let _ = sender.send(result);
    }

    /// Lowers the barriers of a transaction that has ended, as far as we know.
    async fn settle<R>(&self, result: &Result<R, Error>, barriers: Option<Barriers>, deadline: Instant) {
        let Some(barriers) = barriers else { return };
        if let Err(Error::OutcomeUnknown(_)) = result {
            return; // it may still happen: the barriers stand until they expire, which is later
        }
        loop {
            match self.0.cache.lower_barriers(&barriers).await {
                Ok(true) => return,
                Ok(false) => {
                    // A barrier was lost, and an old copy may have been stored meanwhile. The keys have been published
                    // once more: when the wait is over, no near copy is left.
                    return sleep(near::PROOF_LIFE + near::PROOF_MARGIN).await;
                }
                // A barrier that stands is worth the rest of the request's time. It also expires.
                Err(_) if barriers.age().is_some() && Instant::now() < deadline => {
                    sleep(UNBARRIER_PAUSE).await;
                }
                Err(error) => {
                    log::warn!("a write could not be told to Redis, trying again when it answers: {error:?}");
                    return self.0.cache.remember_untold(barriers);
                }
            }
        }
    }
}
