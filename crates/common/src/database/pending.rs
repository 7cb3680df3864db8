//! Work that waits for a database thread, from the side of whoever waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::error::Error;
use crate::metrics::DatabaseMetrics;

/// Work that was queued.
#[derive(Debug)]
pub struct Pending<T> {
    pub(super) result: oneshot::Receiver<T>,
    /// Whoever sets it first, the thread to commit or the caller to give up, has decided: what a caller was told has
    /// not happened will not happen later.
    pub(super) decided: Arc<AtomicBool>,
    pub(super) give_up: Instant,
    pub(super) metrics: DatabaseMetrics,
}

/// Why there is no result at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// Nothing has been changed, and never will be.
    Undone,
    /// COMMIT was under way; it may still end well.
    Committing,
}

impl<T> Pending<T> {
    /// The result, if it is there by the deadline; an error in it says that the thread panicked.
    ///
    /// # Errors
    /// [`Late`]
    pub async fn by_deadline(&mut self) -> Result<Result<T, Error>, Late> {
        match timeout_at(self.give_up.into(), &mut self.result).await {
            Ok(Ok(result)) => return Ok(Ok(result)),
            // Dropped after the deadline, it was not begun.
            Ok(Err(_)) if Instant::now() < self.give_up => return Ok(Err(Error::thread_panicked())),
            Ok(Err(_)) | Err(_) => {}
        }
        self.metrics.timeouts.inc();
        match self.decided.swap(true, Ordering::AcqRel) {
            true => Err(Late::Committing),
            false => Err(Late::Undone),
        }
    }

    /// The result, whenever it is there.
    ///
    /// # Errors
    /// The thread panicked.
    pub async fn at_last(self) -> Result<T, Error> {
        self.result.await.map_err(|_| Error::thread_panicked())
    }
}
