//! How a copy comes into the near cache: from a hit in Redis, or from an accepted fill or swap.

use super::{Action, Near, Rule, Slot, State};
use crate::check::Version;

/// Where a fetch is. Those that cannot put anything anywhere any more are dropped: their readers ask for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fetch {
    Idle,
    /// The count is noted, the GET comes next.
    Noted,
    /// Has a copy, and put it near if the count has not moved.
    Putting(Version),
    /// Took the lease, or read a copy that it is going to replace. The SELECT comes next.
    Loading,
    /// Has the row, and may fill.
    Loaded(Version),
    /// The same, and the count is noted.
    Filling(Version),
    /// Only without [`Rule::NoteBeforeGet`]: has a copy, the count is yet to be noted.
    Unnoted(Version),
    /// Only without [`Rule::CheckWithPut`]: has found the count unmoved.
    Checked(Version),
    /// Only without [`Rule::TimeBeforeEntry`]: took the near entry, which was too old for this reader, or was not.
    Taken {
        version: Version,
        too_old: bool,
    },
}

/// What a fetch does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Note,
    Get,
    /// Takes the lease, or reads the copy that it is going to replace.
    Lease,
    Select,
    Fill,
    Put,
    /// Only without [`Rule::TimeBeforeEntry`].
    TakeEntry,
    GiveUp,
}

impl Fetch {
    /// What it would compare with is gone from the key.
    pub fn lose_key(&mut self) {
        if matches!(self, Self::Loading | Self::Loaded(_) | Self::Filling(_)) {
            *self = Self::Idle;
        }
    }

    /// The count that it noted has moved.
    pub fn lose_note(&mut self) {
        *self = match *self {
            Self::Noted | Self::Putting(_) => Self::Idle,
            Self::Filling(row) => Self::Loaded(row),
            other => other,
        };
    }
}

impl Near {
    pub(super) fn fetch_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let may_note = state.replica.is_in_use() || !self.keeps(Rule::NoteInUse);
        let busy = state.fetches.iter().filter(|&&fetch| fetch != Fetch::Idle).count();
        // The idle ones are sorted to the front.
        if busy < self.fetches {
            if may_note {
                actions.push(Action::Fetch(0, Step::Note));
            }
            if matches!(state.key, Slot::Nothing | Slot::Value(_)) && state.is_redis_up() {
                actions.push(Action::Fetch(0, Step::Lease));
            }
            if !self.keeps(Rule::NoteBeforeGet) && matches!(state.key, Slot::Value(_)) {
                actions.push(Action::Fetch(0, Step::Get));
            }
            if !self.keeps(Rule::TimeBeforeEntry) && state.replica.entry().is_some() {
                actions.push(Action::Fetch(0, Step::TakeEntry));
            }
        }
        for (index, fetch) in state.fetches.iter().enumerate() {
            let mut may = |step| actions.push(Action::Fetch(index, step));
            match fetch {
                Fetch::Idle => continue,
                Fetch::Noted => may(Step::Get),
                Fetch::Putting(_) | Fetch::Checked(_) => may(Step::Put),
                Fetch::Loading => may(Step::Select),
                Fetch::Loaded(_) => {
                    may(Step::Fill);
                    if may_note {
                        may(Step::Note);
                    }
                }
                Fetch::Filling(_) => may(Step::Fill),
                Fetch::Unnoted(_) if may_note => may(Step::Note),
                Fetch::Unnoted(_) => {}
                Fetch::Taken { .. } if self.lease_holds(&state.replica) => may(Step::TakeEntry),
                Fetch::Taken { .. } => {}
            }
            may(Step::GiveUp);
        }
    }

    pub(super) fn fetch(&self, state: &mut State, index: usize, step: Step) {
        let fetch = state.fetches[index];
        state.fetches[index] = match (step, fetch) {
            (Step::Note, Fetch::Idle) => Fetch::Noted,
            (Step::Note, Fetch::Loaded(row)) => Fetch::Filling(row),
            (Step::Note, Fetch::Unnoted(version)) => Fetch::Putting(version),
            (Step::Get, _) => match state.key {
                Slot::Value(version) if fetch == Fetch::Idle => Fetch::Unnoted(version),
                Slot::Value(version) => Fetch::Putting(version),
                Slot::Barrier if !self.keeps(Rule::NoFillFromBypass) => Fetch::Putting(state.committed),
                _ => Fetch::Idle,
            },
            (Step::Lease, _) => {
                if state.key == Slot::Nothing {
                    state.set(Slot::Lease);
                }
                Fetch::Loading
            }
            (Step::Select, _) => {
                state.history.returned(state.committed, self.promise);
                Fetch::Loaded(state.committed)
            }
            (Step::Fill, Fetch::Loaded(row)) => {
                state.set(Slot::Value(row));
                Fetch::Idle
            }
            (Step::Fill, Fetch::Filling(row)) => {
                state.set(Slot::Value(row));
                Fetch::Putting(row)
            }
            (Step::Put, Fetch::Putting(version)) if !self.keeps(Rule::CheckWithPut) => {
                Fetch::Checked(version)
            }
            (Step::Put, Fetch::Putting(version) | Fetch::Checked(version)) => {
                if state.has_user(version) || !self.keeps(Rule::AbsentNotNear) {
                    state.replica.put(version);
                }
                Fetch::Idle
            }
            (Step::TakeEntry, Fetch::Idle) => match state.replica.entry() {
                Some(version) => Fetch::Taken { version, too_old: version < state.history.newest() },
                None => Fetch::Idle,
            },
            (Step::TakeEntry, Fetch::Taken { version, too_old }) => {
                if too_old {
                    state.history.returned(version, self.promise);
                }
                Fetch::Idle
            }
            (Step::GiveUp, _) => Fetch::Idle,
            _ => unreachable!("{step:?} of {fetch:?}"),
        };
    }
}
