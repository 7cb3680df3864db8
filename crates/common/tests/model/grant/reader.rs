//! A replica: its view of the grant, its hits in Redis and near, and its loads.

use super::{Action, Copy, Grant, Grants, Held, NearCopy, Process, Rule, State};
use crate::check::Version;

/// What a replica knows of the grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum View {
    None,
    /// The question is on its way to PostgreSQL. `valid` until a tick passes.
    Asked {
        valid: bool,
    },
    /// PostgreSQL has read the grant; the answer is on its way.
    Answered {
        grant: Grant,
        valid: bool,
    },
    Known {
        grant: Grant,
        valid: bool,
    },
}

impl View {
    /// A tick passes: a grant whose question was sent before it is no longer valid.
    pub fn age(&mut self) {
        match self {
            Self::None => {}
            Self::Asked { valid } | Self::Answered { valid, .. } | Self::Known { valid, .. } => {
                *valid = false
            }
        }
    }

    /// The process that may be used, and the epoch; none if suspended or not valid.
    fn usable(self) -> Option<(Process, u8)> {
        match self {
            Self::Known { grant: Grant { process: Some(process), epoch }, valid: true } => {
                Some((process, epoch))
            }
            _ => None,
        }
    }
}

/// A read of the key in Redis that is under way, for all requests that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Question {
    None,
    /// `as_of` was taken, when this was the newest version that a reader may know of.
    Arrived {
        floor: Version,
    },
    /// Only without [`Rule::LookAfterArrival`]: the grant was looked at, and requests still arrive.
    Early {
        process: Process,
        tag: u8,
    },
    /// The grant was looked at: the question is on its way to the process.
    Sent {
        floor: Version,
        process: Process,
        tag: u8,
    },
}

/// What a replica does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asks for the grant.
    Ask,
    /// PostgreSQL reads the grant.
    Answer,
    /// The answer arrives.
    Learn,
    /// A question to Redis takes its `as_of`.
    Arrive,
    /// It looks at the grant, and is sent to this process.
    Look(Process),
    /// Redis executes it: a hit, if there is an entry to be used.
    Execute,
    /// A near hit.
    NearHit,
}

/// A load, from the lease to the fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Load {
    Idle,
    Leased { replica: usize, tag: u8 },
    Selected { replica: usize, tag: u8, row: Version },
}

/// What a load does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadStep {
    /// A replica takes the lease in this process.
    Lease(usize, Process),
    Select,
    /// The fill reaches this process.
    Fill(Process),
    /// The load fails, or its process ends.
    GiveUp,
}

impl Grants {
    /// The processes that `replica` may send a command to, with the tag that it uses there.
    fn targets(&self, state: &State, replica: usize) -> Vec<(Process, u8)> {
        let Some((granted, tag)) = state.views[replica].usable() else { return Vec::new() };
        let processes = [Process::A, Process::B].into_iter();
        let allowed = processes.filter(|process| *process == granted || !self.keeps(Rule::ReadGranted));
        allowed.map(|process| (process, tag)).collect()
    }

    fn is_usable(&self, copy: Copy, tag: u8) -> bool {
        copy.tag == tag || !self.keeps(Rule::Tags)
    }

    pub(super) fn reader_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for replica in 0..self.replicas {
            let mut may = |step| actions.push(Action::Read(replica, step));
            match state.views[replica] {
                View::None | View::Known { .. } => may(Step::Ask),
                View::Asked { .. } => may(Step::Answer),
                View::Answered { .. } => may(Step::Learn),
            }
            let targets = self.targets(state, replica);
            match state.questions[replica] {
                Question::None if self.keeps(Rule::LookAfterArrival) => may(Step::Arrive),
                Question::None | Question::Arrived { .. } => {
                    for (process, _) in &targets {
                        may(Step::Look(*process));
                    }
                }
                Question::Early { .. } => may(Step::Arrive),
                Question::Sent { .. } => may(Step::Execute),
            }
            if let Some(NearCopy { copy, process }) = state.near[replica] {
                let granted = state.views[replica].usable() == Some((process, copy.tag));
                if state.is_there(process) && (granted || !self.keeps(Rule::NearUnderGrant)) {
                    may(Step::NearHit);
                }
            }
        }
        for (index, load) in state.loads.iter().take(self.loads).enumerate() {
            let mut may = |step| actions.push(Action::Load(index, step));
            match *load {
                Load::Idle => {
                    for replica in 0..self.replicas {
                        for (process, tag) in self.targets(state, replica) {
                            match state.key(process) {
                                Some(Held::Nothing) => may(LoadStep::Lease(replica, process)),
                                // Garbage of known bytes: a lease replaces it.
                                Some(Held::Entry(copy)) if !self.is_usable(copy, tag) => {
                                    may(LoadStep::Lease(replica, process));
                                }
                                _ => {}
                            }
                        }
                    }
                }
                Load::Leased { .. } => {
                    may(LoadStep::Select);
                    may(LoadStep::GiveUp);
                }
                Load::Selected { .. } => {
                    for process in [Process::A, Process::B] {
                        if state.key(process) == Some(Held::Lease(index)) {
                            may(LoadStep::Fill(process));
                        }
                    }
                    may(LoadStep::GiveUp);
                }
            }
        }
    }

    pub(super) fn read(&self, state: &mut State, replica: usize, step: Step) {
        match step {
            Step::Ask => state.views[replica] = View::Asked { valid: true },
            Step::Answer => {
                let View::Asked { valid } = state.views[replica] else { unreachable!("no question") };
                state.views[replica] = View::Answered { grant: state.grant, valid };
            }
            Step::Learn => {
                let View::Answered { grant, valid } = state.views[replica] else { unreachable!("no answer") };
                let valid = valid || !self.keeps(Rule::ValidFromQuestion);
                state.views[replica] = View::Known { grant, valid };
                // A new epoch empties the near cache.
                if self.keeps(Rule::NearUnderGrant)
                    && state.near[replica].is_some_and(|near| near.copy.tag != grant.epoch)
                {
                    state.near[replica] = None;
                }
            }
            Step::Arrive => {
                let floor = state.history.newest();
                state.questions[replica] = match state.questions[replica] {
                    Question::Early { process, tag } => Question::Sent { floor, process, tag },
                    _ => Question::Arrived { floor },
                };
            }
            Step::Look(process) => {
                let Some((_, tag)) = state.views[replica].usable() else { unreachable!("no grant") };
                state.questions[replica] = match state.questions[replica] {
                    Question::Arrived { floor } => Question::Sent { floor, process, tag },
                    _ => Question::Early { process, tag },
                };
            }
            Step::Execute => {
                let Question::Sent { floor, process, tag } = state.questions[replica] else {
                    unreachable!("no question")
                };
                state.questions[replica] = Question::None;
                if let Some(Held::Entry(copy)) = state.key(process)
                    && self.is_usable(copy, tag)
                {
                    state.history.returned_to(floor, copy.version, self.promise);
                    state.near[replica] = Some(NearCopy { copy: Copy { tag, ..copy }, process });
                }
            }
            Step::NearHit => {
                let Some(NearCopy { copy, .. }) = state.near[replica] else { unreachable!("no copy") };
                state.history.returned(copy.version, self.promise);
            }
        }
    }

    pub(super) fn load(&self, state: &mut State, index: usize, step: LoadStep) {
        match (step, state.loads[index]) {
            (LoadStep::Lease(replica, process), _) => {
                let Some((_, tag)) = state.views[replica].usable() else { unreachable!("no grant") };
                state.set(process, Held::Lease(index));
                state.loads[index] = Load::Leased { replica, tag };
            }
            (LoadStep::Select, Load::Leased { replica, tag }) => {
                let row = state.committed;
                state.history.returned(row, self.promise);
                state.loads[index] = Load::Selected { replica, tag, row };
            }
            (LoadStep::Fill(process), Load::Selected { replica, tag, row }) => {
                let now = state.views[replica].usable().map_or(tag, |(_, tag)| tag);
                let tag = if self.keeps(Rule::TagOfLease) { tag } else { now };
                state.set(process, Held::Entry(Copy { version: row, tag }));
                state.end_load(index);
            }
            (LoadStep::GiveUp, _) => state.end_load(index),
            (step, load) => unreachable!("{step:?} of {load:?}"),
        }
    }
}
