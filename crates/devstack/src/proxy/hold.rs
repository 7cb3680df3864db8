//! One message in the proxy's hands: what a process had sent, or was about to hear, when something happened to it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Direction, Shared, State};

/// How long a message may take to come, or to go on.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be held, and how far it has come. The proxy has one at a time.
#[derive(Debug)]
pub(super) struct Hold {
    direction: Direction,
    needle: Vec<u8>,
    /// Whether not the message is held, but what is sent back on its connection.
    reply: bool,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// So many messages with the needle have yet to come, the one that counts included.
    Awaited(usize),
    /// The message has passed on this connection: what comes back on it is held.
    Asked(u64),
    /// It is in our hands, with all that comes after it on this connection in the same direction.
    Held(u64),
    /// It goes on.
    Released(u64),
    /// It is thrown away, and its connection is reset.
    Discarded(u64),
}

impl Hold {
    pub(super) fn new(direction: Direction, needle: &[u8], reply: bool, nth: usize) -> Hold {
        assert!(nth > 0 && !needle.is_empty(), "which message?");
        Hold { direction, needle: needle.to_vec(), reply, phase: Phase::Awaited(nth) }
    }

    /// Looks at a piece of data that is about to pass; returns true if it is to be held.
    pub(super) fn takes(&mut self, connection: u64, direction: Direction, data: &[u8]) -> bool {
        let has_needle = || data.windows(self.needle.len()).any(|bytes| bytes == self.needle);
        self.phase = match self.phase {
            Phase::Awaited(left) if direction == self.direction && has_needle() => match left {
                1 if self.reply => Phase::Asked(connection),
                1 => Phase::Held(connection),
                _ => Phase::Awaited(left - 1),
            },
            Phase::Asked(asked) if asked == connection && direction != self.direction => {
                Phase::Held(connection)
            }
            phase => phase,
        };
        self.phase == Phase::Held(connection) && direction == self.held_direction()
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Held(_))
    }

    pub(super) fn is_discarded(&self) -> bool {
        matches!(self.phase, Phase::Discarded(_))
    }

    /// Whether it has, or is passing on, what came on this connection in this direction.
    pub(super) fn has(&self, connection: u64, direction: Direction) -> bool {
        match self.phase {
            Phase::Awaited(_) | Phase::Asked(_) => false,
            Phase::Held(number) | Phase::Released(number) | Phase::Discarded(number) => {
                number == connection && direction == self.held_direction()
            }
        }
    }

    fn held_direction(&self) -> Direction {
        if self.reply { self.direction.opposite() } else { self.direction }
    }
}

/// A message that the proxy holds, or will when it comes. Dropping it lets the message go on.
#[derive(Debug)]
#[must_use = "dropping it lets the message go on"]
pub struct Held {
    pub(super) shared: Arc<Shared>,
}

impl Held {
    /// Waits until the proxy has the message. Panics if it does not come within 10 s.
    pub fn wait(&self) {
        let come = self.settle(|hold| !matches!(hold.phase, Phase::Awaited(_) | Phase::Asked(_)));
        assert!(come, "no message to hold: {:?}", self.shared.lock().hold);
    }

    /// Lets the message go on, and returns when it has: also if who sent it has died. If who was to get it has died,
    /// it is lost. Panics if it never came.
    pub fn release(self) {
        self.end(Phase::Released);
    }

    /// Throws the message away and resets its connection; returns when that is done. Panics if it never came.
    pub fn discard(self) {
        self.end(Phase::Discarded);
    }

    fn end(&self, phase: fn(u64) -> Phase) {
        self.wait();
        if let Some(hold) = &mut self.shared.lock().hold
            && let Phase::Held(connection) = hold.phase
        {
            hold.phase = phase(connection);
        }
        self.shared.changed.notify_all();
        assert!(self.settle(|_| false), "what was held does not go on: {:?}", self.shared.lock().hold);
    }

    /// Waits until there is nothing to hold any more, or it is as `enough` wants it; returns false if that does not happen.
    fn settle(&self, enough: impl Fn(&Hold) -> bool) -> bool {
        let unsettled = |state: &mut State| state.hold.as_ref().is_some_and(|hold| !enough(hold));
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), PATIENCE, unsettled);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        match &mut state.hold {
            Some(Hold { phase: Phase::Awaited(_) | Phase::Asked(_), .. }) => state.hold = None,
            Some(Hold { phase, .. }) => {
                if let Phase::Held(connection) = *phase {
                    *phase = Phase::Released(connection);
                }
            }
            None => {}
        }
        self.shared.changed.notify_all();
    }
}
