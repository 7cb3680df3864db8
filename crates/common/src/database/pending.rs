//! Work that waits for a worker thread, as its caller sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use prometheus::IntCounter;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::error::Error;

/// Work that was queued.
#[derive(Debug)]
pub struct Pending<T> {
    pub(super) result: oneshot::Receiver<T>,
    /// Set once: by the thread before COMMIT, or by the caller at the deadline. So a write that was reported as undone
    /// does not happen later.
    pub(super) decided: Arc<AtomicBool>,
    pub(super) deadline: Instant,
    pub(super) timeouts: IntCounter,
}

/// Why there is no result at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// Nothing has been changed, and nothing will be.
    Undone,
    /// COMMIT was under way; it may still succeed.
    Committing,
}

impl<T> Pending<T> {
    /// The result, if it is there by the deadline; an error in it means that the thread panicked.
    ///
    /// # Errors
    /// [`Late`]
    pub async fn before_deadline(&mut self) -> Result<Result<T, Error>, Late> {
        match timeout_at(self.deadline.into(), &mut self.result).await {
            Ok(Ok(result)) => return Ok(Ok(result)),
            // After the deadline, a job that was dropped was not begun.
            Ok(Err(_)) if Instant::now() < self.deadline => return Ok(Err(Error::thread_panicked())),
            Ok(Err(_)) | Err(_) => {}
        }
        self.timeouts.inc();
        let committing = self.decided.swap(true, Ordering::AcqRel);
        Err(if committing { Late::Committing } else { Late::Undone })
    }

    /// The result, whenever it is there.
    ///
    /// # Errors
    /// The work was not begun by the deadline, or the thread panicked.
    pub async fn whenever_done(self) -> Result<T, Error> {
        if self.result.is_terminated() {
            return Err(Error::waited_too_long()); // seen by `before_deadline`
        }
        self.result.await.map_err(|_| Error::thread_panicked())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_is_dropped_at_its_deadline_is_undone_and_never_has_a_result() {
        let (reply, result) = oneshot::channel::<()>();
        let timeouts = IntCounter::new("timeouts", "of this test").expect("a valid name");
        let mut pending = Pending { result, decided: Arc::default(), deadline: Instant::now(), timeouts };
        // As a worker does that takes a job too late.
        drop(reply);
        assert_eq!(pending.before_deadline().await.err(), Some(Late::Undone));
        assert!(pending.whenever_done().await.is_err());
    }
}
