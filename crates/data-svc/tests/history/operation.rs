//! One request of a client about one name, and its outcome: the element of a history.

/// A state of a name: the number of the write whose info it has, or no user.
pub type State = Option<u32>;

/// The end of an operation whose end no client saw: it may take effect at any later time, or never.
pub const OPEN: u64 = u64::MAX;

/// What was requested. Every write has an info of its own, so that a read shows which write it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// POST /register with this info.
    Register(u32),
    /// PUT with this info.
    Replace(u32),
    /// DELETE.
    Delete,
    /// GET, and the state that it returned.
    Read(State),
}

/// The outcome of an operation. A write that was certainly not done (503 with "unavailable" or "overloaded") is not in
/// a history at all: a read that returns its info has read what was never written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// 201, 200 or 204. A read is always done.
    Done,
    /// 409 for a register: there was a user. 404 for a replace or a delete: there was none.
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
    /// What was requested.
    pub action: Action,
    /// The outcome.
    pub outcome: Outcome,
    /// Which replica answered, and how: for the reader of a trace.
    pub via: Via,
}

/// How an operation was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Via {
    /// Such as `data-0`.
    pub replica: &'static str,
    /// `Cache-Status` in a word, or the method of a write.
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

    /// Whether it is a write that has changed the state, or may have.
    pub fn is_effective_write(&self) -> bool {
        self.outcome != Outcome::Refused && !matches!(self.action, Action::Read(_))
    }
}
