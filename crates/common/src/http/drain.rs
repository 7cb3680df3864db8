//! Whether the service is stopping, and how many requests it still has to answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::rt::time::sleep;

/// How often it is looked whether all is answered, before the end.
pub const ANSWERED_INTERVAL: Duration = Duration::from_millis(10);

/// Whether the service was told to stop, and what it has still to answer.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<Drain>);

#[derive(Debug, Default)]
struct Drain {
    told: AtomicBool,
    workers: Mutex<Vec<InFlight>>,
}

/// How many requests of a worker are to be answered.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<AtomicUsize>);

/// A request that is to be answered, until this is dropped.
#[derive(Debug)]
pub struct Unanswered<'a>(&'a InFlight);

impl Draining {
    /// True from SIGTERM on.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.told.load(Ordering::Relaxed)
    }

    /// What one more worker is to count its requests with.
    #[must_use]
    pub fn worker(&self) -> InFlight {
        let in_flight = InFlight::default();
        self.workers().push(in_flight.clone());
        in_flight
    }

    /// From now on it is.
    pub fn set(&self) {
        self.0.told.store(true, Ordering::Relaxed);
    }

    /// Waits until every request is answered, but not beyond `end`.
    pub async fn answered(&self, end: Instant) {
        while !self.all_is_answered() && Instant::now() < end {
            sleep(ANSWERED_INTERVAL).await;
        }
    }

    /// Whether no request is to be answered.
    #[must_use]
    pub fn all_is_answered(&self) -> bool {
        self.workers().iter().all(|InFlight(count)| count.load(Ordering::Relaxed) == 0)
    }

    fn workers(&self) -> MutexGuard<'_, Vec<InFlight>> {
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    /// Counts a request.
    #[must_use]
    pub fn request(&self) -> Unanswered<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Unanswered(self)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
