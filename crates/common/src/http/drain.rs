//! Whether the service is stopping, and how many requests it still has to answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actix_web::rt::time::sleep;
use parking_lot::Mutex;

/// How often to check whether all requests are answered, before the end: short beside the grace period.
pub const ANSWERED_INTERVAL: Duration = Duration::from_millis(10);

/// Whether the service is stopping, and the requests that each worker still has to answer.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<Drain>);

#[derive(Debug, Default)]
struct Drain {
    begun: AtomicBool,
    workers: Mutex<Vec<InFlight>>,
}

/// The number of requests that a worker still has to answer.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<AtomicUsize>);

/// A request that is not answered yet. Its end is counted when this is dropped.
#[derive(Debug)]
pub struct Unanswered<'a>(&'a InFlight);

impl Draining {
    /// Begins to drain: on SIGTERM.
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::Relaxed);
    }

    /// Whether draining has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// The counter of one more worker.
    #[must_use]
    pub fn worker(&self) -> InFlight {
        let in_flight = InFlight::default();
        self.0.workers.lock().push(in_flight.clone());
        in_flight
    }

    /// Waits until every request is answered, until `deadline` at most.
    pub async fn answered(&self, deadline: Instant) {
        while !self.all_is_answered() && Instant::now() < deadline {
            sleep(ANSWERED_INTERVAL).await;
        }
    }

    /// Whether every request is answered.
    #[must_use]
    pub fn all_is_answered(&self) -> bool {
        self.0.workers.lock().iter().all(|InFlight(count)| count.load(Ordering::Relaxed) == 0)
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
