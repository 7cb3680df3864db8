//! Shared loads: callers of one replica that read the same name at the same time.
//!
//! This model relies on the model of one key: every other fill stores the row as it is, and never while a barrier
//! stands. So one writer is enough, and loads need not fill.

mod cases;

use stateright::{Model, Property};

use crate::check::{History, Promise, Version};

/// The property that a load is under way while a caller waits.
pub const SERVED: &str = "served";

/// How many callers there are at a time at most.
const SLOTS: usize = 4;

/// What the key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    Nothing,
    Entry(Version),
    Barrier,
}

/// What the protocol requires. A model without one of these must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A caller that arrived after the load's GET was sent does not share its hit.
    HitsAreForThoseBeforeGet,
    /// A caller that arrived after the load's SELECT was sent does not share its row.
    RowsAreForThoseBeforeSelect,
    /// A load is a task of its own: it ends when it has an answer, not when its leader hangs up.
    OwnTask,
}

/// A system to check.
#[derive(Clone, Copy, Debug)]
pub struct Sharing {
    promise: Promise,
    without: Option<Rule>,
    callers: usize,
    commits: Version,
}

/// A state of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The row's version in Postgres.
    committed: Version,
    key: Held,
    writer: Writer,
    load: Load,
    // Sorted: their order means nothing, so there are fewer states.
    callers: [Caller; SLOTS],
    history: History,
}

/// How far the writer is, by the steps that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    /// COMMIT is next.
    Barriered,
    /// The un-barrier is next.
    Committed,
}

/// The replica's load of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Load {
    None,
    /// The GET is not sent yet.
    Starting,
    /// The GET is under way.
    Getting,
    Hit(Version),
    /// No entry. The SELECT is not sent yet: it may wait for a connection.
    Missed,
    /// The SELECT is under way.
    Selecting,
    Row(Version),
}

/// A caller, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Caller {
    Idle,
    Waiting {
        arrived: Arrival,
        /// The oldest version that it may get.
        floor: Version,
        role: Role,
    },
}

/// Whether a caller started the load or joined it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Role {
    Follower,
    Leader,
}

/// At which point of the load a caller arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Arrival {
    BeforeGet,
    BeforeSelect,
    AfterSelect,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Arrive,
    HangUp(usize),
    SendGet,
    GetArrives,
    SendSelect,
    SelectArrives,
    /// The load ends: it answers the callers that may share it, and starts again if any are left.
    Answer,
    /// Another replica's load.
    FillElsewhere,
    /// A reader of another replica returns the row.
    BypassElsewhere,
    Evict,
    SetBarrier,
    Commit,
    UnBarrier,
}

impl Sharing {
    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Whether a caller that arrived at `arrived` may share the result of `load`.
    fn may_share(&self, load: Load, arrived: Arrival) -> bool {
        match load {
            Load::Hit(_) if self.keeps(Rule::HitsAreForThoseBeforeGet) => arrived == Arrival::BeforeGet,
            Load::Hit(_) => arrived <= Arrival::BeforeSelect,
            _ => arrived <= Arrival::BeforeSelect || !self.keeps(Rule::RowsAreForThoseBeforeSelect),
        }
    }

    fn answer(&self, state: &mut State, answer: Version) {
        let load = std::mem::replace(&mut state.load, Load::None);
        let mut newest = state.history;
        for caller in &mut state.callers {
            let Caller::Waiting { arrived, floor, .. } = *caller else { continue };
            if self.may_share(load, arrived) {
                newest.returned_to(floor, answer, self.promise);
                *caller = Caller::Idle;
            } else {
                *caller = Caller::Waiting { arrived: Arrival::BeforeGet, floor, role: Role::Follower };
                state.load = Load::Starting;
            }
        }
        state.history = newest;
    }
}

impl State {
    fn is_stranded(&self) -> bool {
        self.load == Load::None && self.callers.iter().any(|&caller| caller != Caller::Idle)
    }
}

impl Model for Sharing {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            committed: 0,
            key: Held::Nothing,
            writer: Writer::Idle,
            load: Load::None,
            callers: [Caller::Idle; SLOTS],
            history: History::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.history.is_broken() || state.is_stranded() {
            return;
        }
        let busy = state.callers.iter().filter(|&&caller| caller != Caller::Idle).count();
        if busy < self.callers {
            actions.push(Action::Arrive);
        }
        let waiting = state.callers.iter().enumerate().filter(|(_, caller)| **caller != Caller::Idle);
        actions.extend(waiting.map(|(index, _)| Action::HangUp(index)));
        match state.load {
            Load::None => {}
            Load::Starting => actions.push(Action::SendGet),
            Load::Getting => actions.push(Action::GetArrives),
            Load::Missed => actions.push(Action::SendSelect),
            Load::Selecting => actions.push(Action::SelectArrives),
            Load::Hit(_) | Load::Row(_) => actions.push(Action::Answer),
        }
        match state.key {
            Held::Nothing => actions.push(Action::FillElsewhere),
            // In this model barriers are kept.
            Held::Barrier if state.writer == Writer::Barriered => {}
            Held::Entry(_) | Held::Barrier => actions.push(Action::Evict),
        }
        actions.push(Action::BypassElsewhere);
        match state.writer {
            Writer::Idle if state.committed < self.commits => actions.push(Action::SetBarrier),
            Writer::Idle => {}
            Writer::Barriered => actions.push(Action::Commit),
            Writer::Committed => actions.push(Action::UnBarrier),
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Arrive => {
                let arrived = match state.load {
                    Load::None | Load::Starting => Arrival::BeforeGet,
                    Load::Getting | Load::Hit(_) | Load::Missed => Arrival::BeforeSelect,
                    Load::Selecting | Load::Row(_) => Arrival::AfterSelect,
                };
                let role = if state.load == Load::None { Role::Leader } else { Role::Follower };
                if role == Role::Leader {
                    state.load = Load::Starting;
                }
                // Idle callers are sorted to the front.
                state.callers[0] = Caller::Waiting { arrived, floor: state.history.newest(), role };
            }
            Action::HangUp(index) => {
                let caller = std::mem::replace(&mut state.callers[index], Caller::Idle);
                let is_leader = matches!(caller, Caller::Waiting { role: Role::Leader, .. });
                if is_leader && !self.keeps(Rule::OwnTask) {
                    state.load = Load::None;
                }
            }
            Action::SendGet => state.load = Load::Getting,
            Action::GetArrives => {
                state.load = match state.key {
                    Held::Entry(version) => Load::Hit(version),
                    Held::Nothing | Held::Barrier => Load::Missed,
                }
            }
            Action::SendSelect => state.load = Load::Selecting,
            Action::SelectArrives => state.load = Load::Row(state.committed),
            Action::Answer => {
                let (Load::Hit(answer) | Load::Row(answer)) = state.load else { return None };
                self.answer(&mut state, answer);
            }
            Action::FillElsewhere => state.key = Held::Entry(state.committed),
            Action::BypassElsewhere => state.history.returned(state.committed, self.promise),
            Action::Evict => state.key = Held::Nothing,
            Action::SetBarrier => {
                state.key = Held::Barrier;
                state.writer = Writer::Barriered;
            }
            Action::Commit => {
                state.committed += 1;
                state.writer = Writer::Committed;
            }
            Action::UnBarrier => {
                state.key = Held::Nothing;
                state.writer = Writer::Idle;
                state.history.acknowledged(state.committed);
            }
        }
        state.callers.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(self.promise.name(), |_, state: &State| !state.history.is_broken()),
            Property::always(SERVED, |_, state: &State| !state.is_stranded()),
        ]
    }
}
