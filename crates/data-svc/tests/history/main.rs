//! Histories: many clients read and write a few names through two replicas of each service, while faults happen. Then a
//! checker decides whether every answer can be explained.

mod bounds;
mod checker;
mod client;
mod cluster;
mod faults;
mod herd;
mod operation;
mod recorder;
mod report;
mod runs;
mod soak;
mod topologies;

use parking_lot::{Mutex, MutexGuard};

/// Waits until no other test has the machine. These tests need all of it: two at a time would only disturb each other.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock()
}
