//! A load: from the lease, or from the entry to be replaced, to the conditional fill.

use super::{Action, Held, OneKey, Rule, State};
use crate::check::Version;

/// How far a load is. Its reader is answered as soon as there is a row; the fill may arrive late, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Load {
    Idle,
    /// Only without [`Rule::SelectAfterReply`]: has the row, but no reply yet about the key.
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

/// What a fill requires at the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expected {
    /// The load's own lease.
    Lease { still_there: bool },
    /// The entry that the load has read. Its user has the info `info`, which the writes 0, 2, 4... have in common, and
    /// so have the writes 1, 3, 5...
    Entry { info: u8, still_there: bool },
}

/// What a load does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Finds nothing, and takes the lease. (A read that finds something is [`Action::Hit`] or [`Action::Bypass`].)
    TakeLease,
    /// Finds an entry that it will replace: a forced read, or an early refresh.
    ReadEntry,
    /// Only without [`Rule::SelectAfterReply`].
    SelectAhead,
    /// Gets this row.
    Select(Version),
    /// Sets the key to its entry, if it may.
    Fill,
    /// Fails, or its process ends. A lease stays until it expires.
    GiveUp,
}

impl Load {
    /// The bytes that it expects are gone from the key.
    pub fn lose_bytes(&mut self) {
        if let Self::Loading { expected } | Self::Filling { expected, .. } = self {
            let (Expected::Lease { still_there } | Expected::Entry { still_there, .. }) = expected;
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
        // Idle loads are sorted to the front.
        if busy < self.loads {
            match state.key {
                Held::Nothing | Held::Version(_) => actions.push(Action::Load(0, Step::TakeLease)),
                Held::Entry(_) => actions.push(Action::Load(0, Step::ReadEntry)),
                Held::Lease | Held::Barrier => {}
            }
            if !self.keeps(Rule::SelectAfterReply) {
                actions.push(Action::Load(0, Step::SelectAhead));
            }
        }
        for (index, load) in state.loads.iter().enumerate() {
            match load {
                Load::Idle => continue,
                Load::Ahead { .. } if matches!(state.key, Held::Entry(_)) => {
                    actions.push(Action::Load(index, Step::ReadEntry));
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
                    state.set(Held::Lease);
                }
                Load::Loading { expected: Expected::Lease { still_there: true } }
            }
            (Step::ReadEntry, _) => {
                let Held::Entry(version) = state.key else { unreachable!("no entry to read") };
                let expected = Expected::Entry { info: info(version), still_there: true };
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
                    state.set(Held::Entry(row));
                }
                Load::Idle
            }
            (Step::GiveUp, _) => Load::Idle,
            (Step::Select(_) | Step::Fill, _) => unreachable!("{step:?} of {load:?}"),
        };
    }

    /// The comparison in Redis.
    fn may_fill(&self, key: Held, row: Version, expected: Expected) -> bool {
        match expected {
            Expected::Lease { .. } if !self.keeps(Rule::TokenPerFill) => key == Held::Lease,
            Expected::Lease { .. } if !self.keeps(Rule::Leases) => match key {
                Held::Nothing => true,
                Held::Entry(there) => there < row,
                Held::Version(there) => there <= row,
                Held::Lease | Held::Barrier => false,
            },
            Expected::Entry { .. } if !self.keeps(Rule::CompareOnRefresh) => true,
            Expected::Entry { info: expected, .. } if !self.keeps(Rule::FillId) => {
                matches!(key, Held::Entry(there) if info(there) == expected)
            }
            Expected::Lease { still_there } | Expected::Entry { still_there, .. } => still_there,
        }
    }
}
