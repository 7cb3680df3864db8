//! A load: from the lease, or the copy to be replaced, to the conditional fill.

use super::{Action, OneKey, Rule, Slot, State};
use crate::check::Version;

/// Where a load is. Its reader is answered as soon as there is a row; the fill may come late, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Load {
    Idle,
    /// Only without [`Rule::SelectAfterReply`]: has the row, but does not know yet what is at the key.
    Ahead {
        row: Version,
    },
    /// The SELECT is next.
    Loading {
        expected: Expected,
    },
    /// The fill is next.
    Filling {
        row: Version,
        expected: Expected,
    },
}

/// What a fill has to find at the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expected {
    /// The load's own lease.
    Lease { still_there: bool },
    /// The copy that it has read, of a user whose info is `info`: writes 0, 2, 4... say the same, and 1, 3, 5...
    Copy { info: u8, still_there: bool },
}

/// What a load does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Finds nothing, and takes the lease. (That it finds something is [`Action::Hit`] or [`Action::Bypass`].)
    TakeLease,
    /// Finds a copy that it is going to replace: a forced read, or an early refresh.
    ReadCopy,
    /// Only without [`Rule::SelectAfterReply`].
    SelectAhead,
    /// Gets this row.
    Select(Version),
    /// Puts its copy at the key, if it may.
    Fill,
    /// Fails, or its process ends. A lease stays behind until it expires.
    GiveUp,
}

impl Load {
    /// The bytes that it would compare with are gone from the key.
    pub fn forget_bytes(&mut self) {
        if let Self::Loading { expected } | Self::Filling { expected, .. } = self {
            let (Expected::Lease { still_there } | Expected::Copy { still_there, .. }) = expected;
            *still_there = false;
        }
    }
}

fn info(version: Version) -> u8 {
    version % 2
}

impl OneKey {
    pub(super) fn load_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let busy = state.loads.iter().filter(|&&load| load != Load::Idle).count();
        // The idle ones are sorted to the front.
        if busy < self.loads {
            match state.key {
                Slot::Nothing | Slot::Version(_) => actions.push(Action::Load(0, Step::TakeLease)),
                Slot::Value(_) => actions.push(Action::Load(0, Step::ReadCopy)),
                Slot::Lease | Slot::Barrier => {}
            }
            if !self.keeps(Rule::SelectAfterReply) {
                actions.push(Action::Load(0, Step::SelectAhead));
            }
        }
        for (index, load) in state.loads.iter().enumerate() {
            match load {
                Load::Idle => continue,
                Load::Ahead { .. } if matches!(state.key, Slot::Value(_)) => {
                    actions.push(Action::Load(index, Step::ReadCopy));
                }
                Load::Ahead { .. } => {}
                Load::Loading { .. } => {
                    let oldest = if self.keeps(Rule::FreshSnapshot) { state.committed } else { 0 };
                    let rows = oldest..=state.committed;
                    actions.extend(rows.map(|row| Action::Load(index, Step::Select(row))));
                }
                Load::Filling { .. } => actions.push(Action::Load(index, Step::Fill)),
            }
            actions.push(Action::Load(index, Step::GiveUp));
        }
    }

    pub(super) fn load(&self, state: &mut State, index: usize, step: Step) {
        let load = state.loads[index];
        state.loads[index] = match (step, load) {
            (Step::TakeLease, _) => {
                if self.keeps(Rule::Leases) {
                    state.set(Slot::Lease);
                }
                Load::Loading { expected: Expected::Lease { still_there: true } }
            }
            (Step::ReadCopy, _) => {
                let Slot::Value(version) = state.key else { unreachable!("no copy to read") };
                let expected = Expected::Copy { info: info(version), still_there: true };
                match load {
                    Load::Ahead { row } => Load::Filling { row, expected },
                    _ => Load::Loading { expected },
                }
            }
            (Step::SelectAhead, _) => Load::Ahead { row: state.committed },
            (Step::Select(row), Load::Loading { expected }) => {
                if row == state.committed {
                    state.history.returned(row, self.promise);
                }
                Load::Filling { row, expected }
            }
            (Step::Fill, Load::Filling { row, expected }) => {
                if self.may_fill(state.key, row, expected) {
                    state.set(Slot::Value(row));
                }
                Load::Idle
            }
            (Step::GiveUp, _) => Load::Idle,
            (Step::Select(_) | Step::Fill, _) => unreachable!("{step:?} of {load:?}"),
        };
    }

    /// The comparison in Redis.
    fn may_fill(&self, key: Slot, row: Version, expected: Expected) -> bool {
        match expected {
            Expected::Lease { .. } if !self.keeps(Rule::TokenPerFill) => key == Slot::Lease,
            Expected::Lease { .. } if !self.keeps(Rule::Leases) => match key {
                Slot::Nothing => true,
                Slot::Value(there) => there < row,
                Slot::Version(there) => there <= row,
                Slot::Lease | Slot::Barrier => false,
            },
            Expected::Copy { .. } if !self.keeps(Rule::CompareOnRefresh) => true,
            Expected::Copy { info: expected, .. } if !self.keeps(Rule::FillId) => {
                matches!(key, Slot::Value(there) if info(there) == expected)
            }
            Expected::Lease { still_there } | Expected::Copy { still_there, .. } => still_there,
        }
    }
}
