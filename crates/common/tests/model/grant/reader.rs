//! The replica that answers readers: its view of the grant, its hits in Redis and near. And the loads of any replica.

use super::{Action, Copy, Epoch, Grant, Grants, Held, NearCopy, Process, Rule, State};
use crate::check::Version;

/// The newest grant that the replica knows of; none if it was suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct View {
    process: Process,
    tag: Epoch,
    /// Ticks since its question was sent.
    age: u8,
}

/// A look at the grant whose answer is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Look {
    grant: Grant,
    age: u8,
}

impl View {
    pub fn tick(&mut self, validity: u8) {
        self.age = (self.age + 1).min(validity);
    }

    pub fn is_valid(&self, validity: u8) -> bool {
        self.age < validity
    }

    pub fn tag(self) -> Epoch {
        self.tag
    }
}

impl Look {
    pub fn tick(&mut self, validity: u8) {
        self.age = (self.age + 1).min(validity);
    }

    pub fn is_valid(&self, validity: u8) -> bool {
        self.age < validity
    }

    pub fn epoch(self) -> Epoch {
        self.grant.epoch
    }
}

/// A read of the key in Redis that is under way, for all requests that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Question {
    None,
    /// Only without [`Rule::LookAfterArrival`]: the grant was looked at, and requests still arrive.
    Early {
        process: Process,
        tag: Epoch,
    },
    /// `as_of` was taken, when `floor` was the newest version that a reader may know of, and the grant was looked at:
    /// the question is on its way to the process.
    Sent {
        floor: Version,
        process: Process,
        tag: Epoch,
    },
}

/// What the replica does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asks PostgreSQL for the grant, which answers.
    Look,
    /// The answer arrives.
    Learn,
    /// Asks PostgreSQL for the grant, and is refused: then the view is as good as if it were answered again.
    ///
    /// Without [`Rule::SilenceIsNotAbsence`], is not answered in time.
    Refused,
    /// Only without [`Rule::LookAfterArrival`]: looks at the grant before `as_of` is taken.
    LookEarly(Process),
    /// A question takes its `as_of`, looks at the grant, and is sent to this process.
    Send(Process),
    /// Redis executes it: a hit, if there is an entry to be used.
    Execute,
    /// A near hit.
    NearHit,
}

/// A load, from the lease to the fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Load {
    Idle,
    Leased { tag: Epoch },
    Selected { tag: Epoch, row: Version },
}

/// What a load does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadStep {
    /// Takes the lease in this process, with this tag.
    Lease(Process, Epoch),
    Select,
    /// The fill reaches this process, with this tag.
    Fill(Process, Epoch),
    /// The load fails, or its process ends.
    GiveUp,
}

impl Grants {
    /// The process and tag of the grant that the replica may use.
    fn usable(&self, state: &State) -> Option<(Process, Epoch)> {
        state.view.filter(|view| view.is_valid(self.validity)).map(|view| (view.process, view.tag))
    }

    /// The processes that the replica may send a question to.
    fn targets(&self, state: &State) -> impl Iterator<Item = Process> {
        let granted = self.usable(state).map(|(process, _)| process);
        let any = granted.is_some() && !self.keeps(Rule::ReadGranted);
        [Process::A, Process::B].into_iter().filter(move |&process| any || Some(process) == granted)
    }

    /// The tags that a load may use in `process`: it has looked at the grant at some time before.
    pub(super) fn tags(&self, state: &State, process: Process) -> impl Iterator<Item = Epoch> {
        let any = !self.keeps(Rule::ReadGranted);
        let granted = state.granted;
        (0..=state.grant.epoch).filter(move |&epoch| match granted[usize::from(epoch)] {
            Some(granted) => granted == process || any,
            None => false,
        })
    }

    fn is_usable(&self, copy: Copy, tag: Epoch) -> bool {
        copy.tag == tag || !self.keeps(Rule::Tags)
    }

    pub(super) fn reader_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut may = |step| actions.push(Action::Read(step));
        match state.look {
            None if state.is_up() => may(Step::Look),
            None => {}
            Some(_) => may(Step::Learn),
        }
        let may_renew = self.usable(state).is_some() || !self.keeps(Rule::RenewOnlyValidViews);
        if may_renew && (!state.is_up() || !self.keeps(Rule::SilenceIsNotAbsence)) {
            may(Step::Refused);
        }
        match state.question {
            Question::None if self.keeps(Rule::LookAfterArrival) => {
                self.targets(state).for_each(|process| may(Step::Send(process)));
            }
            Question::None => self.targets(state).for_each(|process| may(Step::LookEarly(process))),
            Question::Early { process, .. } => may(Step::Send(process)),
            Question::Sent { .. } => may(Step::Execute),
        }
        if let Some(NearCopy { copy, process }) = state.near {
            let granted = self.usable(state) == Some((process, copy.tag));
            if state.is_there(process) && (granted || !self.keeps(Rule::NearUnderGrant)) {
                may(Step::NearHit);
            }
        }
    }

    pub(super) fn load_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, load) in state.loads.iter().take(self.loads).enumerate() {
            let mut may = |step| actions.push(Action::Load(index, step));
            match *load {
                Load::Idle => {
                    for process in [Process::A, Process::B] {
                        for tag in self.tags(state, process) {
                            match state.key(process) {
                                Some(Held::Nothing) => may(LoadStep::Lease(process, tag)),
                                // Garbage of known bytes: a lease replaces it.
                                Some(Held::Entry(copy)) if !self.is_usable(copy, tag) => {
                                    may(LoadStep::Lease(process, tag));
                                }
                                _ => {}
                            }
                        }
                    }
                }
                Load::Leased { .. } => {
                    if state.is_up() {
                        may(LoadStep::Select);
                    }
                    may(LoadStep::GiveUp);
                }
                Load::Selected { tag, .. } => {
                    for process in [Process::A, Process::B] {
                        if state.key(process) != Some(Held::Lease(index)) {
                            continue;
                        }
                        if self.keeps(Rule::TagOfLease) {
                            may(LoadStep::Fill(process, tag));
                        } else {
                            self.tags(state, process).for_each(|tag| may(LoadStep::Fill(process, tag)));
                        }
                    }
                    may(LoadStep::GiveUp);
                }
            }
        }
    }

    pub(super) fn read(&self, state: &mut State, step: Step) {
        match step {
            Step::Look => state.look = Some(Look { grant: state.grant, age: 0 }),
            Step::Learn => {
                let Some(Look { grant, age }) = state.look.take() else { unreachable!("no answer") };
                let age = if self.keeps(Rule::ValidFromQuestion) { age } else { 0 };
                state.view = grant.process.map(|process| View { process, tag: grant.epoch, age });
                // A new epoch empties the near cache.
                if self.keeps(Rule::NearUnderGrant) {
                    state.near = state.near.filter(|near| near.copy.tag == grant.epoch);
                }
            }
            Step::Refused => {
                if let Some(view) = &mut state.view {
                    view.age = 0;
                }
            }
            Step::LookEarly(process) => {
                let Some((_, tag)) = self.usable(state) else { unreachable!("no grant") };
                state.question = Question::Early { process, tag };
            }
            Step::Send(process) => {
                let floor = state.history.newest();
                let tag = match state.question {
                    Question::Early { tag, .. } => Some(tag),
                    _ => self.usable(state).map(|(_, tag)| tag),
                };
                let Some(tag) = tag else { unreachable!("no grant") };
                state.question = Question::Sent { floor, process, tag };
            }
            Step::Execute => {
                let Question::Sent { floor, process, tag } = state.question else {
                    unreachable!("no question")
                };
                state.question = Question::None;
                if let Some(Held::Entry(copy)) = state.key(process)
                    && self.is_usable(copy, tag)
                {
                    state.history.returned_to(floor, copy.version, self.promise);
                    // An absence is not kept near.
                    if self.has_user(copy.version) {
                        state.near = Some(NearCopy { copy: Copy { tag, ..copy }, process });
                    }
                }
            }
            Step::NearHit => {
                let Some(NearCopy { copy, .. }) = state.near else { unreachable!("no copy") };
                state.history.returned(copy.version, self.promise);
            }
        }
    }

    pub(super) fn load(&self, state: &mut State, index: usize, step: LoadStep) {
        match (step, state.loads[index]) {
            (LoadStep::Lease(process, tag), _) => {
                state.set(process, Held::Lease(index));
                state.loads[index] = Load::Leased { tag };
            }
            (LoadStep::Select, Load::Leased { tag }) => {
                let row = state.committed;
                state.history.returned(row, self.promise);
                if self.is_clear(state) {
                    state.loads[index] = Load::Selected { tag, row };
                } else {
                    state.end_load(index);
                }
            }
            (LoadStep::Fill(process, tag), Load::Selected { row, .. }) => {
                state.set(process, Held::Entry(Copy { version: row, tag }));
                state.end_load(index);
            }
            (LoadStep::GiveUp, _) => state.end_load(index),
            (step, load) => unreachable!("{step:?} of {load:?}"),
        }
    }
}
