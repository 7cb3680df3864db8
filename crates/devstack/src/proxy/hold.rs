//! Which message is held, and how far it has come. It knows no thread and no socket: [`super::pump`] asks it.

use std::time::Duration;

/// The two ways through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the service to the store.
    ToUpstream,
    /// From the store to the service.
    FromUpstream,
}

impl Direction {
    pub(super) fn opposite(self) -> Direction {
        match self {
            Direction::ToUpstream => Direction::FromUpstream,
            Direction::FromUpstream => Direction::ToUpstream,
        }
    }
}

/// What is held once the message with the needle comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The message itself.
    Message,
    /// What is sent back next on its connection; the message itself passes.
    Reply,
}

/// What is to be held, and how far it has come. The proxy has at most one at a time.
#[derive(Debug)]
pub(super) struct Hold {
    direction: Direction,
    needle: Vec<u8>,
    target: Target,
    limit: Option<Duration>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// This many messages with the needle have yet to come, including the one that counts.
    Awaited(usize),
    /// The message has passed on this connection; what comes back on it will be held.
    Asked(u64),
    /// The proxy has it, with all that came after it on this connection in the same direction.
    Held(u64),
    /// It may go on.
    Released(u64),
    /// It is thrown away, and its connection is reset.
    Discarded(u64),
}

impl Hold {
    pub(super) fn new(direction: Direction, needle: &[u8], target: Target, nth: usize) -> Hold {
        assert!(nth > 0, "messages count from 1");
        Hold { direction, needle: needle.to_vec(), target, limit: None, phase: Phase::Awaited(nth) }
    }

    /// How long the message is held, unless it is released before.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    pub(super) fn set_limit(&mut self, limit: Duration) {
        self.limit = Some(limit);
    }

    /// Looks at a piece of data that is about to pass, and returns whether it is held.
    pub(super) fn takes(&mut self, connection: u64, direction: Direction, data: &[u8]) -> bool {
        let has_needle =
            || self.needle.is_empty() || data.windows(self.needle.len()).any(|bytes| bytes == self.needle);
        self.phase = match self.phase {
            Phase::Awaited(1) if direction == self.direction && has_needle() => match self.target {
                Target::Message => Phase::Held(connection),
                Target::Reply => Phase::Asked(connection),
            },
            Phase::Awaited(left) if direction == self.direction && has_needle() => Phase::Awaited(left - 1),
            Phase::Asked(asked) if asked == connection && direction != self.direction => {
                Phase::Held(connection)
            }
            phase => phase,
        };
        self.phase == Phase::Held(connection) && direction == self.held_direction()
    }

    /// Returns whether the proxy has the message, or has had it.
    pub(super) fn has_come(&self) -> bool {
        !matches!(self.phase, Phase::Awaited(_) | Phase::Asked(_))
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Held(_))
    }

    pub(super) fn is_discarded(&self) -> bool {
        matches!(self.phase, Phase::Discarded(_))
    }

    /// Returns whether the message came on this connection in this direction, and is held or about to go on.
    pub(super) fn has(&self, connection: u64, direction: Direction) -> bool {
        match self.phase {
            Phase::Awaited(_) | Phase::Asked(_) => false,
            Phase::Held(number) | Phase::Released(number) | Phase::Discarded(number) => {
                number == connection && direction == self.held_direction()
            }
        }
    }

    /// Lets the message go on, if it is held.
    pub(super) fn release(&mut self) {
        if let Phase::Held(connection) = self.phase {
            self.phase = Phase::Released(connection);
        }
    }

    /// Throws the message away, if it is held.
    pub(super) fn discard(&mut self) {
        if let Phase::Held(connection) = self.phase {
            self.phase = Phase::Discarded(connection);
        }
    }

    fn held_direction(&self) -> Direction {
        match self.target {
            Target::Message => self.direction,
            Target::Reply => self.direction.opposite(),
        }
    }
}
