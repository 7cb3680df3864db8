//! The grant: PostgreSQL says which Redis process may be used, and under which epoch.
//!
//! One row of PostgreSQL, one key of two Redis processes, replicas and writers. The second process is promoted from any
//! past state of the first, which may live on: so it also stands for a first process that is restarted with old data.
//! The network may be cut between any two, and a process may die: a step that needs an answer may just not happen.
//!
//! What keeps the states few, and hides no fault:
//! - *One replica answers readers, and any number load.* What another replica returns is no newer than the row, which
//!   anybody may read. A load may have looked at the grant long before its lease is taken: so it may carry the tag of
//!   any epoch that was granted to its process so far, and needs no view of its own.
//! - *Time is a clock of few ticks*, the same for all: a grant is valid for one, or for two where a view may be renewed
//!   meanwhile. A writer that has known of a suspension for as long has waited long enough.
//! - *A question to PostgreSQL is answered when it is sent*: one that is answered later is valid for less long.
//! - *A question to Redis takes its `as_of` when it looks at the grant*: with an earlier one, less is promised.
//! - *A COMMIT is acknowledged as it takes effect.* Before it, it may be undecided for long, its writer dead or not. The
//!   barrier of a register is kept until then; that of a replace or delete may vanish, and the row lock is its barrier:
//!   [`crate::long_commit`] checks both. With a barrier, all near copies that are watched over its process have run
//!   out at COMMIT; [`crate::near`] checks that.

mod cases;
mod reader;
mod writer;

use stateright::{Model, Property};

use crate::check::{History, Promise, Version, Write};
use reader::{Load, Look, Question, View};
use writer::Writer;

/// At most this many loads, and writers.
const SLOTS: usize = 2;
/// At most this many epochs.
const EPOCHS: usize = 5;

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
    Barrier,
}

/// A copy of the row, or a cached absence, with the tag of its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Copy {
    version: Version,
    tag: Epoch,
}

/// A copy in the near cache of the replica, and the process whose renewals prove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NearCopy {
    copy: Copy,
    process: Process,
}

/// Whether PostgreSQL answers. While it is down it refuses, and no transaction is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Postgres {
    Up,
    Down,
    /// Up again. One restart is enough.
    Restarted,
}

/// Whether PostgreSQL restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restarts {
    Never,
    Once,
}

/// What the protocol requires. A model without one of these must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A writer writes without a barrier only when it has known of the suspension for the validity of a grant.
    WaitAfterSuspension,
    /// That includes a suspension that another writer made.
    WaitAfterAnothersSuspension,
    /// That wait starts again when PostgreSQL has restarted.
    WaitAfterRestart,
    /// A process is granted only when no transaction is under way: under the exclusive lock.
    GrantExcludesWrites,
    /// A process is granted only when the suspension has been known for the validity of a grant.
    GrantWaits,
    /// Only entries with the tag of the grant are used.
    Tags,
    /// A fill carries the tag of its lease, not the one that is current when it is sent.
    TagOfLease,
    /// The copy that a replace leaves carries the tag of the grant that its transaction has read.
    TagOfTransaction,
    /// A replica uses only the granted process.
    ReadGranted,
    /// A near copy is used only under a valid grant with its tag.
    NearUnderGrant,
    /// A writer commits only if the grant names the process that has its barrier.
    WriteGranted,
    /// A writer reads the grant in a statement after the one that takes the advisory lock.
    GrantReadAfterLock,
    /// A grant is valid from when its question was sent, not from the answer.
    ValidFromQuestion,
    /// Only a refusal renews a view, not silence: PostgreSQL may serve a writer meanwhile.
    SilenceIsNotAbsence,
    /// A refused look renews only a view that is still valid: PostgreSQL may have served a writer before it was down.
    RenewOnlyValidViews,
    /// The grant is looked at after `as_of` was taken, so after every request that shares the hit has arrived.
    LookAfterArrival,
}

/// A system to check.
#[derive(Clone, Copy, Debug)]
pub struct Grants {
    promise: Promise,
    without: Option<Rule>,
    restarts: Restarts,
    /// The writes, in their order.
    writes: &'static [Write],
    loads: usize,
    writers: usize,
    /// How often the grant may change.
    changes: Epoch,
    /// How many ticks a grant is valid for.
    validity: u8,
}

/// Where the system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The row's version in PostgreSQL.
    committed: Version,
    postgres: Postgres,
    grant: Grant,
    /// Which process each epoch was granted to.
    granted: [Option<Process>; EPOCHS],
    /// The key in each process; none in B before it is promoted. (A process that starts again is another one, with
    /// another identity.)
    keys: [Option<Held>; 2],
    /// Copies that A has held, of which B may be promoted: a bit for each version and tag.
    past: u32,
    /// Leases that A has held: a bit for each load.
    past_leases: u8,
    view: Option<View>,
    look: Option<Look>,
    near: Option<NearCopy>,
    question: Question,
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
    Read(reader::Step),
    Load(usize, reader::LoadStep),
    Write(usize, writer::Step),
    /// user-svc grants this process.
    Grant(Process),
    PostgresStops,
    PostgresStarts,
}

impl Grants {
    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// The write that makes the next version.
    fn next_write(&self, state: &State) -> Option<Write> {
        self.writes.get(usize::from(state.committed)).copied()
    }

    fn has_user(&self, version: Version) -> bool {
        match version.checked_sub(1) {
            Some(index) => self.writes[usize::from(index)] != Write::Delete,
            None => self.writes[0] != Write::Register,
        }
    }

    /// The bit of `copy` in [`State::past`].
    fn bit(copy: Copy) -> u32 {
        1 << (u32::from(copy.version) * 8 + u32::from(copy.tag))
    }

    fn past_states(state: &State) -> Vec<Held> {
        let mut past = vec![Held::Nothing];
        for version in 0..=state.committed {
            let copies = (0..=state.grant.epoch).map(|tag| Copy { version, tag });
            past.extend(copies.filter(|copy| state.past & Self::bit(*copy) != 0).map(Held::Entry));
        }
        past.extend((0..SLOTS).filter(|load| state.past_leases & (1 << load) != 0).map(Held::Lease));
        past.extend(state.writers.iter().any(|writer| writer.barriers.was_in_a).then_some(Held::Barrier));
        past
    }

    /// Whether user-svc may grant `process` now. It looks at the process' writes, so the process must be there.
    fn may_grant(&self, state: &State, process: Process) -> bool {
        let suspended = state.grant.process.is_none();
        let room = state.grant.epoch < self.changes;
        let free = !state.writers.iter().any(Writer::has_transaction);
        let waited = state.writers.iter().any(|writer| self.has_waited(*writer, state.grant.epoch));
        suspended
            && room
            && state.is_there(process)
            && (free || !self.keeps(Rule::GrantExcludesWrites))
            && (waited || !self.keeps(Rule::GrantWaits))
    }

    /// A barrier in `process` outlives the COMMIT that it is for, if no row lock takes its place.
    fn keeps_barrier(&self, state: &State, process: Process) -> bool {
        let relied_on = state.writers.iter().any(|writer| writer.has_barrier(process));
        relied_on && self.next_write(state) == Some(Write::Register)
    }

    fn postgres_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let idle = !state.writers.iter().any(Writer::has_transaction);
        match state.postgres {
            // Transactions that are under way end before, either way.
            Postgres::Up if idle && self.restarts != Restarts::Never => actions.push(Action::PostgresStops),
            Postgres::Up | Postgres::Restarted => {}
            Postgres::Down => actions.push(Action::PostgresStarts),
        }
        if !state.is_up() {
            return;
        }
        for process in [Process::A, Process::B] {
            if self.may_grant(state, process) {
                actions.push(Action::Grant(process));
            }
        }
        if self.promise == Promise::Linearizable && state.history.newest() < state.committed {
            actions.push(Action::Bypass);
        }
    }

    /// Forgets what can make no difference any more.
    fn forget(&self, state: &mut State) {
        if state.is_there(Process::B) {
            state.past = 0;
            state.past_leases = 0;
            state.writers.iter_mut().for_each(|writer| writer.barriers.was_in_a = false);
        }
        for index in 0..SLOTS {
            let has_lease = state.keys.contains(&Some(Held::Lease(index)));
            if !has_lease && state.past_leases & (1 << index) == 0 {
                state.loads[index] = Load::Idle;
            }
        }
        for writer in &mut state.writers {
            writer.forget(state.grant.epoch);
            writer.forget_barriers();
        }
        if self.keeps(Rule::ValidFromQuestion) {
            state.look = state.look.filter(|look| look.is_valid(self.validity));
        }
        if self.keeps(Rule::RenewOnlyValidViews) {
            state.view = state.view.filter(|view| view.is_valid(self.validity));
        }
        if self.keeps(Rule::NearUnderGrant) {
            let tag_lives = |tag| {
                state.grant.epoch == tag
                    || state.view.is_some_and(|view| view.tag() == tag)
                    || state.look.is_some_and(|look| look.epoch() == tag)
            };
            state.near = state.near.filter(|near| tag_lives(near.copy.tag));
        }
        // Which one is where means nothing, so sorted there are fewer states.
        state.writers[..self.writers].sort_unstable();
    }
}

impl State {
    fn key(&self, process: Process) -> Option<Held> {
        self.keys[process as usize]
    }

    fn is_there(&self, process: Process) -> bool {
        self.key(process).is_some()
    }

    fn is_up(&self) -> bool {
        self.postgres != Postgres::Down
    }

    fn set(&mut self, process: Process, held: Held) {
        self.keys[process as usize] = Some(held);
        self.writers.iter_mut().for_each(|writer| writer.barriers.stand[process as usize] = false);
        if process == Process::A {
            match held {
                Held::Entry(copy) => self.past |= Grants::bit(copy),
                Held::Lease(load) => self.past_leases |= 1 << load,
                Held::Nothing | Held::Barrier => {}
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
        let epoch = self.grant.epoch + 1;
        self.grant = Grant { process, epoch };
        self.granted[usize::from(epoch)] = process;
    }
}

impl Model for Grants {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            committed: 0,
            postgres: Postgres::Up,
            grant: Grant { process: Some(Process::A), epoch: 0 },
            granted: [Some(Process::A), None, None, None, None],
            keys: [Some(Held::Nothing), None],
            past: 0,
            past_leases: 0,
            view: None,
            look: None,
            near: None,
            question: Question::None,
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
            match state.key(process) {
                None | Some(Held::Nothing) => {}
                Some(Held::Barrier) if self.keeps_barrier(state, process) => {}
                Some(_) => actions.push(Action::Evict(process)),
            }
        }
        if !state.is_there(Process::B) {
            actions.extend(Self::past_states(state).into_iter().map(Action::Promote));
        }
        self.postgres_actions(state, actions);
        self.reader_actions(state, actions);
        self.load_actions(state, actions);
        self.write_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Tick => {
                state.view.iter_mut().for_each(|view| view.tick(self.validity));
                state.look.iter_mut().for_each(|look| look.tick(self.validity));
                state.writers.iter_mut().for_each(|writer| writer.tick(self.validity));
            }
            Action::Promote(held) => {
                state.set(Process::B, held);
                if held == Held::Barrier {
                    state.writers.iter_mut().for_each(Writer::promote_barrier);
                }
            }
            Action::Evict(process) => state.set(process, Held::Nothing),
            Action::Bypass => state.history.returned(state.committed, self.promise),
            Action::Grant(process) => state.change_grant(Some(process)),
            Action::PostgresStops => state.postgres = Postgres::Down,
            Action::PostgresStarts => {
                state.postgres = Postgres::Restarted;
                if self.keeps(Rule::WaitAfterRestart) {
                    state.writers.iter_mut().for_each(Writer::forget_suspension);
                }
            }
            Action::Read(step) => self.read(&mut state, step),
            Action::Load(index, step) => self.load(&mut state, index, step),
            Action::Write(index, step) => self.write(&mut state, index, step),
        }
        self.forget(&mut state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(self.promise.name(), |_, state: &State| !state.history.is_broken())]
    }
}
