//! The grant: PostgreSQL says which Redis process may be used, and under which epoch.
//!
//! One row of PostgreSQL, one key of two Redis processes, replicas and writers. The second process is promoted from any
//! past state of the first, which may live on: so it also stands for a first process that is restarted with old data.
//! The network may be cut between any two, and a process may die: a step that needs an answer may just not happen.
//!
//! What keeps the states few, and hides no fault:
//! - *Time is one tick*, the validity of a grant. A view of the grant whose question was sent before a tick has expired
//!   after it. A writer that has known of a suspension since before a tick has waited long enough after it.
//! - *A barrier is kept until its COMMIT*, and is lowered before the acknowledgement; [`crate::one_key`] checks what
//!   happens otherwise. With it, all near copies that are watched over its process have run out at COMMIT;
//!   [`crate::near`] checks that.
//! - *A hit is one question at a time.* It is judged by what was newest at its `as_of`: every request that shares it
//!   has arrived by then.

mod cases;
mod reader;
mod writer;

use stateright::{Model, Property};

use crate::check::{History, Promise, Version};
use reader::{Load, Question, View};
use writer::Writer;

/// At most this many replicas, loads, and writers.
const SLOTS: usize = 2;

/// The number of changes of the grant before it: new at each change, as the random epoch is.
pub type Epoch = u8;

/// A Redis process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    A,
    /// Promoted from a past state of A.
    B,
}

/// The row of PostgreSQL that says which process may be used; none if the grant is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    process: Option<Process>,
    epoch: Epoch,
}

/// What the key holds in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    Nothing,
    Entry(Copy),
    /// The lease of the load with this index; [`SLOTS`] if that load has ended.
    Lease(usize),
    /// The barrier of the write that is to make this version. Writes hold the row's lock, so no other has the number.
    Barrier(Version),
}

/// A copy of the row, with the tag of its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Copy {
    version: Version,
    tag: Epoch,
}

/// A copy in the near cache of a replica, and the process whose renewals prove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NearCopy {
    copy: Copy,
    process: Process,
}

/// What the protocol requires. A model without one of these must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A writer writes without a barrier only when it has known of the suspension for the validity of a grant.
    WaitAfterSuspension,
    /// That includes a suspension that another writer made.
    WaitAfterAnothersSuspension,
    /// A process is granted only when no transaction is under way: under the exclusive lock.
    GrantExcludesWrites,
    /// A process is granted only when the suspension has been known for the validity of a grant.
    GrantWaits,
    /// Only entries with the tag of the grant are used.
    Tags,
    /// A fill carries the tag of its lease, not the one that is current when it is sent.
    TagOfLease,
    /// A replica uses only the granted process.
    ReadGranted,
    /// A near copy is used only under a valid grant with its tag.
    NearUnderGrant,
    /// A writer raises its barrier in the granted process.
    WriteGranted,
    /// A writer reads the grant in a statement after the one that takes its locks.
    GrantReadAfterLock,
    /// A grant is valid from when its question was sent, not from the answer.
    ValidFromQuestion,
    /// Without an answer of PostgreSQL a grant runs out.
    SilenceIsNotAbsence,
    /// The grant is looked at after `as_of` was taken, so after every request that shares the hit has arrived.
    LookAfterArrival,
}

/// A system to check.
#[derive(Clone, Copy, Debug)]
pub struct Grants {
    promise: Promise,
    without: Option<Rule>,
    replicas: usize,
    loads: usize,
    writers: usize,
    commits: Version,
    /// How often the grant may change.
    changes: Epoch,
}

/// Where the system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The row's version in PostgreSQL.
    committed: Version,
    grant: Grant,
    /// The key in each process; none in B before it is promoted. (A process that starts again is another one, with
    /// another identity.)
    keys: [Option<Held>; 2],
    /// Copies that A has held, of which B may be promoted: a bit for each version and tag.
    past: u32,
    /// Leases that A has held: a bit for each load.
    past_leases: u8,
    views: [View; SLOTS],
    near: [Option<NearCopy>; SLOTS],
    questions: [Question; SLOTS],
    loads: [Load; SLOTS],
    writers: [Writer; SLOTS],
    history: History,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The validity of a grant passes.
    Tick,
    /// B is promoted, holding this.
    Promote(Held),
    /// The key of a process vanishes: evicted, expired, flushed.
    Evict(Process),
    /// A request reads PostgreSQL and stores nothing.
    Bypass,
    Read(usize, reader::Step),
    Load(usize, reader::LoadStep),
    Write(usize, writer::Step),
    /// user-svc grants this process.
    Grant(Process),
}

impl Grants {
    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// The bit of `copy` in [`State::past`].
    fn bit(copy: Copy) -> u32 {
        1 << (u32::from(copy.version) * 8 + u32::from(copy.tag))
    }

    fn past_states(&self, state: &State) -> Vec<Held> {
        let mut past = vec![Held::Nothing];
        for version in 0..=self.commits {
            let copies = (0..=self.changes).map(|tag| Copy { version, tag });
            past.extend(copies.filter(|copy| state.past & Self::bit(*copy) != 0).map(Held::Entry));
        }
        past.extend((0..SLOTS).filter(|load| state.past_leases & (1 << load) != 0).map(Held::Lease));
        past
    }

    /// Whether user-svc may grant `process` now. It looks at the process' writes, so the process must be there.
    fn may_grant(&self, state: &State, process: Process) -> bool {
        let suspended = state.grant.process.is_none();
        let room = state.grant.epoch < self.changes;
        let free = state.writers.iter().all(|writer| !writer.has_lock());
        let waited = state.writers.iter().any(|writer| writer.has_waited_for(state.grant.epoch));
        suspended
            && room
            && state.is_there(process)
            && (free || !self.keeps(Rule::GrantExcludesWrites))
            && (waited || !self.keeps(Rule::GrantWaits))
    }
}

impl State {
    fn key(&self, process: Process) -> Option<Held> {
        self.keys[process as usize]
    }

    fn is_there(&self, process: Process) -> bool {
        self.key(process).is_some()
    }

    fn set(&mut self, process: Process, held: Held) {
        self.keys[process as usize] = Some(held);
        if process == Process::A {
            match held {
                Held::Entry(copy) => self.past |= Grants::bit(copy),
                Held::Lease(load) => self.past_leases |= 1 << load,
                Held::Nothing | Held::Barrier(_) => {}
            }
        }
    }

    /// Ends a load. Its token is used by no other: what is left of its lease is of no load.
    fn end_load(&mut self, load: usize) {
        self.loads[load] = Load::Idle;
        self.past_leases &= !(1 << load);
        for held in self.keys.iter_mut().flatten() {
            if *held == Held::Lease(load) {
                *held = Held::Lease(SLOTS);
            }
        }
    }

    fn change_grant(&mut self, process: Option<Process>) {
        self.grant = Grant { process, epoch: self.grant.epoch + 1 };
    }
}

impl Model for Grants {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            committed: 0,
            grant: Grant { process: Some(Process::A), epoch: 0 },
            keys: [Some(Held::Nothing), None],
            past: 0,
            past_leases: 0,
            views: [View::None; SLOTS],
            near: [None; SLOTS],
            questions: [Question::None; SLOTS],
            loads: [Load::Idle; SLOTS],
            writers: [Writer::IDLE; SLOTS],
            history: History::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.history.is_broken() {
            return;
        }
        actions.push(Action::Tick);
        for process in [Process::A, Process::B] {
            // A barrier outlives the COMMIT that it is for.
            let relied_on = state.writers.iter().any(|writer| writer.relies_on(process));
            match state.key(process) {
                None | Some(Held::Nothing) => {}
                Some(Held::Barrier(_)) if relied_on => {}
                Some(_) => actions.push(Action::Evict(process)),
            }
            if self.may_grant(state, process) {
                actions.push(Action::Grant(process));
            }
        }
        if !state.is_there(Process::B) {
            actions.extend(self.past_states(state).into_iter().map(Action::Promote));
        }
        if self.promise == Promise::Linearizable && state.history.newest() < state.committed {
            actions.push(Action::Bypass);
        }
        self.reader_actions(state, actions);
        self.write_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Tick => {
                if self.keeps(Rule::SilenceIsNotAbsence) {
                    state.views.iter_mut().for_each(View::age);
                }
                state.writers.iter_mut().for_each(Writer::tick);
            }
            Action::Promote(held) => state.set(Process::B, held),
            Action::Evict(process) => state.set(process, Held::Nothing),
            Action::Bypass => state.history.returned(state.committed, self.promise),
            Action::Grant(process) => state.change_grant(Some(process)),
            Action::Read(replica, step) => self.read(&mut state, replica, step),
            Action::Load(index, step) => self.load(&mut state, index, step),
            Action::Write(index, step) => self.write(&mut state, index, step),
        }
        // Which one is where means nothing, so sorted there are fewer states.
        state.writers.sort_unstable();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(self.promise.name(), |_, state: &State| !state.history.is_broken())]
    }
}
