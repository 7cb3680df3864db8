//! How a copy gets into the near cache: from a hit in Redis, or from a fill or a refresh that Redis accepted.

use super::{Action, Held, Near, Protection, Rule, State};
use crate::check::Version;

/// How far a fetch is. A fetch that can store nothing any more ends at once: its reader is answered already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fetch {
    Idle,
    /// Has a stamp. The GET is next.
    Stamped,
    /// Has an entry and a stamp. It puts a copy near if the count has not moved.
    Putting(Version),
    /// Took the lease, or read an entry that it will replace. The SELECT is next.
    Loading,
    /// Has the row, and may fill.
    Loaded(Version),
    /// Has the row and a stamp, and may fill.
    Filling(Version),
    /// Only without [`Rule::StampBeforeGet`]: has an entry, and no stamp yet.
    Unstamped(Version),
    /// Only without [`Rule::CheckWithPut`]: has found the count unmoved.
    Checked(Version),
    /// Only without [`Rule::ProofBeforeCopy`]: took the near copy, which was too old for this reader, or was not.
    Taken {
        version: Version,
        too_old: bool,
    },
}

/// What a fetch does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Stamp,
    Get,
    /// Takes the lease, or reads the entry that it will replace.
    Lease,
    Select,
    Fill,
    Put,
    /// Only without [`Rule::ProofBeforeCopy`].
    TakeCopy,
    GiveUp,
}

impl Fetch {
    /// The bytes that it expects are gone from the key.
    pub fn lose_bytes(&mut self) {
        if matches!(self, Self::Loading | Self::Loaded(_) | Self::Filling(_)) {
            *self = Self::Idle;
        }
    }

    /// The count has moved since its stamp.
    pub fn lose_stamp(&mut self) {
        *self = match *self {
            Self::Stamped | Self::Putting(_) => Self::Idle,
            Self::Filling(row) => Self::Loaded(row),
            other => other,
        };
    }
}

impl Near {
    pub(super) fn fetch_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let may_stamp = state.replica.is_in_use() || !self.keeps(Rule::StampInUse);
        let busy = state.fetches.iter().filter(|&&fetch| fetch != Fetch::Idle).count();
        // Idle fetches are sorted to the front.
        if busy < self.fetches {
            if may_stamp {
                actions.push(Action::Fetch(0, Step::Stamp));
            }
            if matches!(state.key, Held::Nothing | Held::Entry(_)) && state.is_redis_up() {
                actions.push(Action::Fetch(0, Step::Lease));
            }
            if !self.keeps(Rule::StampBeforeGet) && matches!(state.key, Held::Entry(_)) {
                actions.push(Action::Fetch(0, Step::Get));
            }
            if !self.keeps(Rule::ProofBeforeCopy) && state.replica.copy().is_some() {
                actions.push(Action::Fetch(0, Step::TakeCopy));
            }
        }
        for (index, fetch) in state.fetches.iter().enumerate() {
            let mut may = |step| actions.push(Action::Fetch(index, step));
            match fetch {
                Fetch::Idle => continue,
                Fetch::Stamped => may(Step::Get),
                Fetch::Putting(_) | Fetch::Checked(_) => may(Step::Put),
                Fetch::Loading => may(Step::Select),
                Fetch::Loaded(_) => {
                    may(Step::Fill);
                    if may_stamp {
                        may(Step::Stamp);
                    }
                }
                Fetch::Filling(_) => may(Step::Fill),
                Fetch::Unstamped(_) if may_stamp => may(Step::Stamp),
                Fetch::Unstamped(_) => {}
                Fetch::Taken { .. } if self.proof_holds(&state.replica) => may(Step::TakeCopy),
                Fetch::Taken { .. } => {}
            }
            may(Step::GiveUp);
        }
    }

    pub(super) fn fetch(&self, state: &mut State, index: usize, step: Step) {
        let fetch = state.fetches[index];
        state.fetches[index] = match (step, fetch) {
            (Step::Stamp, Fetch::Idle) => Fetch::Stamped,
            (Step::Stamp, Fetch::Loaded(row)) => Fetch::Filling(row),
            (Step::Stamp, Fetch::Unstamped(version)) => Fetch::Putting(version),
            (Step::Get, _) => match state.key {
                Held::Entry(version) if fetch == Fetch::Idle => Fetch::Unstamped(version),
                Held::Entry(version) => Fetch::Putting(version),
                Held::Barrier if !self.keeps(Rule::NoFillFromBypass) => Fetch::Putting(state.committed),
                _ => Fetch::Idle,
            },
            (Step::Lease, _) => {
                if state.key == Held::Nothing {
                    state.set(Held::Lease);
                }
                Fetch::Loading
            }
            (Step::Select, _) => {
                state.history.returned(state.committed, self.promise);
                let may_store = self.protection == Protection::Barrier || !state.is_row_locked();
                if may_store { Fetch::Loaded(state.committed) } else { Fetch::Idle }
            }
            (Step::Fill, Fetch::Loaded(row)) => {
                state.set(Held::Entry(row));
                Fetch::Idle
            }
            (Step::Fill, Fetch::Filling(row)) => {
                state.set(Held::Entry(row));
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
            (Step::TakeCopy, Fetch::Idle) => match state.replica.copy() {
                Some(version) => Fetch::Taken { version, too_old: version < state.history.newest() },
                None => Fetch::Idle,
            },
            (Step::TakeCopy, Fetch::Taken { version, too_old }) => {
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
