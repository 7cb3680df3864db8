//! Shared loads: callers of one replica who want the same name at the same time.
//!
//! What the model of one key has proved is taken as given here: whatever else fills the key fills it with the row
//! as it is, and never while a barrier stands. So one writer will do, and loads need not fill.

mod cases;

use stateright::{Model, Property};

use crate::check::{History, Promise, Version};

/// The property that someone works for everyone who waits.
pub const SERVED: &str = "served";

/// At most so many callers at a time.
const SLOTS: usize = 4;

/// What the key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    Nothing,
    Value(Version),
    Barrier,
}

/// What the protocol asks for. A model without one of these must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Who came after the load's GET was sent does not share what it hit.
    HitsAreForThoseBeforeGet,
    /// Who came after the load's SELECT was sent does not share the row.
    RowsAreForThoseBeforeSelect,
    /// A load is a task of its own: it ends when it has an answer, not when its caller hangs up.
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

/// Where the system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The row's version in Postgres.
    committed: Version,
    key: Slot,
    writer: Writer,
    load: Load,
    // Sorted: which one is where means nothing, so there are fewer states.
    callers: [Caller; SLOTS],
    history: History,
}

/// The writer, between the steps that matter here.
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
    /// Nothing to hit. The SELECT is not sent yet: it may wait for a connection.
    Missed,
    /// The SELECT is under way.
    Selecting,
    Row(Version),
}

/// A caller, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Caller {
    Idle,
    Waiting {
        arrived: Arrival,
        /// What it must see at least.
        floor: Version,
        /// It is the one who started the load.
        first: bool,
    },
}

/// When a caller arrived, as the load goes.
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
    /// The load ends: answers whom it may, and starts again if someone is left.
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

    /// Whether a caller who came at `arrived` may have what `load` found.
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
                *caller = Caller::Waiting { arrived: Arrival::BeforeGet, floor, first: false };
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
            key: Slot::Nothing,
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
            Slot::Nothing => actions.push(Action::FillElsewhere),
            // This model is about barriers that are kept.
            Slot::Barrier if state.writer == Writer::Barriered => {}
            Slot::Value(_) | Slot::Barrier => actions.push(Action::Evict),
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
                let first = state.load == Load::None;
                if first {
                    state.load = Load::Starting;
                }
                // The idle ones are sorted to the front.
                state.callers[0] = Caller::Waiting { arrived, floor: state.history.newest(), first };
            }
            Action::HangUp(index) => {
                let caller = std::mem::replace(&mut state.callers[index], Caller::Idle);
                let takes_load_along = matches!(caller, Caller::Waiting { first: true, .. });
                if takes_load_along && !self.keeps(Rule::OwnTask) {
                    state.load = Load::None;
                }
            }
            Action::SendGet => state.load = Load::Getting,
            Action::GetArrives => {
                state.load = match state.key {
                    Slot::Value(version) => Load::Hit(version),
                    Slot::Nothing | Slot::Barrier => Load::Missed,
                }
            }
            Action::SendSelect => state.load = Load::Selecting,
            Action::SelectArrives => state.load = Load::Row(state.committed),
            Action::Answer => {
                let (Load::Hit(answer) | Load::Row(answer)) = state.load else { return None };
                self.answer(&mut state, answer);
            }
            Action::FillElsewhere => state.key = Slot::Value(state.committed),
            Action::BypassElsewhere => state.history.returned(state.committed, self.promise),
            Action::Evict => state.key = Slot::Nothing,
            Action::SetBarrier => {
                state.key = Slot::Barrier;
                state.writer = Writer::Barriered;
            }
            Action::Commit => {
                state.committed += 1;
                state.writer = Writer::Committed;
            }
            Action::UnBarrier => {
                state.key = Slot::Nothing;
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
