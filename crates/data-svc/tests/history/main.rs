//! Histories: many clients read and write a few names through two replicas of each service, while faults happen; then a
//! checker looks whether every answer can be explained.

mod checker;
mod client;
mod cluster;
mod faults;
mod herd;
mod operation;
mod recorder;
mod report;
mod runs;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A turn for a test that takes the whole machine: more than one at a time would only disturb each other.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
