//! One thing that a client did to one name, and what it saw of it: what histories are made of.

/// A state of a name: the number of the write whose info it has, or no user.
pub type State = Option<u32>;

/// The end of an operation that nobody saw end: it may take effect at any later time, or never.
pub const OPEN: u64 = u64::MAX;

/// What was asked for. Every write brings an info of its own, so that a read tells which write it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// POST /register with this info.
    Register(u32),
    /// PUT with this info.
    Replace(u32),
    /// DELETE.
    Delete,
    /// GET, and what it answered.
    Read(State),
}

/// What came of it. What was certainly not done (503 with "unavailable" or "overloaded") is not in a history at all:
/// whoever reads its info has read what nobody wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// 201, 200, 204; a read is always done.
    Done,
    /// 409 for a register: there was a user. 404 for a replace or delete: there was none.
    Refused,
    /// No answer, or 503 "outcome-unknown".
    Unknown,
}

/// An operation on one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// When the client was about to send it, in nanoseconds since the recording began.
    pub start: u64,
    /// When the client had the whole answer; [`OPEN`] if the outcome is unknown.
    pub end: u64,
    /// What was asked for.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
    /// Which replica was asked, and how it came by its answer: for people who read a trace.
    pub via: Via,
}

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Via {
    /// Such as `data-0`.
    pub replica: &'static str,
    /// What `Cache-Status` said, in a word.
    pub source: &'static str,
}

impl Operation {
    /// The info that it writes.
    pub fn writes(&self) -> Option<u32> {
        match self.action {
            Action::Register(info) | Action::Replace(info) => Some(info),
            Action::Delete | Action::Read(_) => None,
        }
    }

    /// Whether it is a write that was acknowledged.
    pub fn is_acknowledged_write(&self) -> bool {
        self.outcome == Outcome::Done && !matches!(self.action, Action::Read(_))
    }

    /// Whether it is a write that has changed the state, or may.
    pub fn is_effective_write(&self) -> bool {
        self.outcome != Outcome::Refused && !matches!(self.action, Action::Read(_))
    }
}
