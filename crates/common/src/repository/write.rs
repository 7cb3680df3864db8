//! The write flow, top to bottom.

use std::thread;
use std::time::{Duration, Instant};

use diesel::{PgConnection, QueryResult};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::{CacheAside, Repository};
use crate::cache::{BARRIER, Barriers, near};
use crate::database::{Late, Pending, Written};
use crate::error::Error;

/// A barrier must have this much life left when COMMIT is sent.
const COMMIT_RESERVE: Duration = Duration::from_secs(5);
/// How long to wait between attempts to take a barrier down.
const UNBARRIER_PAUSE: Duration = Duration::from_millis(20);

/// What a write does to copies that others may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It creates: nobody holds an absence near, and nobody need be waited for.
    Create,
    /// It replaces or deletes: near copies must have run out before COMMIT.
    Replace,
}

/// What a change returns: a value for who asked for it, and the keys that it changed.
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
        effect: Effect,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<Changed<T, R>, Error>> + Send + 'static,
    ) -> Result<R, Error> {
        self.write_by(self.0.database.give_up(), effect, change).await
    }

    /// As [`Repository::write`], with a deadline of the caller's.
    ///
    /// # Errors
    /// As [`Repository::write`].
    pub async fn write_by<R: Send + Sync + 'static>(
        &self,
        give_up: Instant,
        effect: Effect,
        change: impl Fn(&mut PgConnection) -> QueryResult<Result<Changed<T, R>, Error>> + Send + 'static,
    ) -> Result<R, Error> {
        let turn = match effect {
            Effect::Create => None,
            // It holds a connection through the near wait.
            Effect::Replace => Some(self.0.database.turn(self.0.database.half_time(give_up)).await?),
        };
        let this = self.clone();
        let before_commit = move |(_, keys): &Changed<T, R>| {
            let _held_until_the_wait_is_over = turn;
            this.guard(effect, keys)
        };
        let pending = self.0.database.write(give_up, change, before_commit)?;
        // A task of its own: it goes on when the client hangs up, and when the client was told that the outcome is
        // unknown.
        let (tell, told) = oneshot::channel();
        tokio::spawn(self.clone().see_through(pending, give_up, tell));
        told.await.unwrap_or_else(|_| Err(Error::Internal("a write's task panicked".into())))
    }

    /// Between change and COMMIT, on the database's thread, with the rows locked: raises barriers, and lets near copies run out.
    fn guard(&self, effect: Effect, keys: &[T::Key]) -> Result<Barriers, Error> {
        let keys = keys.iter().map(T::cache_key).collect();
        let barriers = self.0.runtime.block_on(self.0.cache.raise_barriers(keys));
        if barriers.age().is_none() && self.0.settings.strict {
            return Err(Error::Unavailable(
                "Redis cannot be told of the write, and CACHE_STRICT is set".into(),
            ));
        }
        if effect == Effect::Replace {
            // Counted from the reply: by now the keys are published. If they could not be, the proofs of those who
            // hold copies run out all the same, as far as their Redis is ours.
            thread::sleep(near::LEASE + near::LEASE_MARGIN);
        }
        if barriers.age().is_some_and(|age| age > BARRIER - COMMIT_RESERVE) {
            return Err(Error::Unavailable("the barrier has become too old to commit under".into()));
        }
        Ok(barriers)
    }

    /// After COMMIT: takes the barriers down, and only then tells the client.
    async fn see_through<R>(
        self,
        mut pending: Pending<Written<Changed<T, R>, Barriers>>,
        give_up: Instant,
        tell: oneshot::Sender<Result<R, Error>>,
    ) {
        let result = match pending.by_deadline().await {
            Ok(Ok(written)) => {
                self.settle(&written.result, written.before_commit, give_up).await;
                written.result.map(|(value, _)| value)
            }
            Ok(Err(panic)) => Err(panic),
            Err(late) => {
                let error = match late {
                    Late::Undone => Error::waited_too_long(),
                    Late::Committing => Error::OutcomeUnknown("COMMIT was under way at the deadline".into()),
                };
                // The client is told now; the barriers come down when the thread knows more.
                drop(tell.send(Err(error)));
                if let Ok(written) = pending.at_last().await {
                    self.settle(&written.result, written.before_commit, give_up).await;
                }
                return;
            }
        };
        // Whoever asked may be gone: then nobody is left to tell.
        drop(tell.send(result));
    }

    /// Takes the barriers of a transaction down that has ended, for all that is known.
    async fn settle<R>(&self, result: &Result<R, Error>, barriers: Option<Barriers>, give_up: Instant) {
        let Some(barriers) = barriers else { return };
        if let Err(Error::OutcomeUnknown(_)) = result {
            return; // it may still happen: the barriers stand until they expire, which is later
        }
        loop {
            match self.0.cache.lower_barriers(&barriers).await {
                Ok(true) => return,
                Ok(false) => {
                    // A barrier was lost, and an old copy may have been taken meanwhile. The keys have been published
                    // once more: when the wait is over, no near copy is left.
                    return sleep(near::LEASE + near::LEASE_MARGIN).await;
                }
                // If it stands, it is worth the rest of the request's time. It also ends by itself.
                Err(_) if barriers.age().is_some() && Instant::now() < give_up => {
                    sleep(UNBARRIER_PAUSE).await
                }
                Err(error) => {
                    log::warn!("a write could not be told to Redis, trying again when it answers: {error:?}");
                    return self.0.cache.remember_untold(barriers);
                }
            }
        }
    }
}
