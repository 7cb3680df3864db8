//! A COMMIT that takes long: for a standby, a disk, a paused host; also when its writer is dead or cut off meanwhile.
//!
//! Barriers expire under such a COMMIT. Then the row lock is the barrier: a load that finds its row locked, so *not
//! clear*, stores nothing. Hence replaces and deletes are answered at COMMIT, and send no second message when their
//! barrier was lost. A register has no row to lock.
//!
//! What keeps the states few, and hides no fault:
//! - *A read is one step*, and *a row from the primary is never too old*: see [`one_key`](crate::one_key).
//! - *A load that can store nothing any more is over*: its reader is answered already. The lease of a load that found
//!   its row not clear may vanish, as any lease may.
//! - *A SELECT is one step.* A lock that is taken between its snapshot and its look at the row makes the row not clear.
//! - *A near copy's proof always holds*, until the wait of a writer: those that were stored before its barrier and its
//!   message have run out then. [`near`](crate::near) checks that.
//! - *All barriers of a writer are alike.* What is still on its way of a writer that has ended is in `late`.

mod cases;
mod writer;

use stateright::{Model, Property};

use crate::check::{History, Promise, Version};
use writer::Writer;

/// The property that no read returns what it must not.
pub const COHERENT: &str = "coherent";

/// How many loads, and how many writers, there are at a time at most.
const SLOTS: usize = 3;

/// What the key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    Nothing,
    /// An entry: a copy of the row, or a cached absence.
    Entry(Version),
    Lease,
    Barrier,
}

/// A load that may still store its row. Else it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Load {
    Idle,
    /// Has the lease, or has read the entry that it is to replace. The SELECT is next.
    Loading,
    /// The fill is next.
    Filling(Version),
}

/// A copy in the near cache of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NearCopy {
    version: Version,
    /// It was stored before the newest barrier and message of a replace or delete.
    before_message: bool,
}

/// What the protocol requires. A model without one of these must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A row that is not clear is not stored.
    StoreOnlyClearRows,
    /// The barrier is raised after the row is locked.
    BarrierAfterLock,
    /// A replace or delete waits for near copies before COMMIT.
    Wait,
    /// A register is answered after its un-barrier.
    RegisterAnswersLast,
    /// While the COMMIT of a register is undecided, its living writer extends the barrier.
    ExtendForRegister,
    /// It extends the barrier that it finds, even if that is another's, whose SET came late over its own.
    ExtendAnyBarrier,
    /// The un-barrier leaves another writer's barrier.
    SpareForeignBarriers,
    /// A replace leaves its copy only in place of its own barrier, by comparison.
    CopyOverOwnBarrier,
}

/// What may go wrong, besides what always may: eviction of entries and leases; replaces and deletes that lose their
/// barrier, or whose writer dies, at any time; COMMITs that end whenever they like, either way; un-barriers that are
/// late, or never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Faults {
    /// The barrier of a register is kept while its writer lives, and the writer lives while its COMMIT is undecided.
    RegistersLive,
    /// A register's writer may die while its COMMIT is undecided; the barrier expires then.
    RegistersDie,
    /// The barrier of a register may be lost at any time. Its un-barrier is answered, or it is not acknowledged.
    BarriersLost,
    /// Its barrier may be lost, and its un-barrier stay unanswered.
    BothLost,
}

/// What is promised of cached absences. Reads of users are linearizable always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absences {
    NotCached,
    Linearizable,
    /// An absence may be older than what an earlier read returned, and never than an acknowledged write.
    Visible,
}

/// A system to check.
#[derive(Clone, Copy, Debug)]
pub struct LongCommit {
    absences: Absences,
    faults: Faults,
    without: Option<Rule>,
    loads: usize,
    writers: usize,
    commits: Version,
}

/// A state of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The row's version in Postgres.
    committed: Version,
    /// For each version, a bit: whether there is a user.
    users: u8,
    key: Held,
    near: Option<NearCopy>,
    // Both are sorted: their order means nothing, so there are fewer states.
    loads: [Load; SLOTS],
    writers: [Writer; SLOTS],
    /// For reads that are linearizable.
    history: History,
    /// For reads that see all that was acknowledged.
    acknowledged: History,
}

/// A step. A number is the place of a load or of a writer in the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A reader returns the entry in Redis.
    Hit,
    /// A replica keeps the entry in Redis near.
    KeepNear,
    /// A reader returns the near copy.
    NearHit,
    /// A reader returns the row and fills nothing.
    Bypass,
    /// A load takes the lease, or reads an entry that it is to replace.
    StartLoad,
    Select(usize),
    Fill(usize),
    /// A load fails, or its process ends.
    GiveUp(usize),
    Write(usize, writer::Step),
    /// The key expires, or is evicted, purged or flushed.
    Evict,
}

impl LongCommit {
    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Whether what is at the key may vanish.
    fn may_vanish(&self, state: &State) -> bool {
        match state.key {
            Held::Nothing => false,
            Held::Barrier if self.faults < Faults::BarriersLost => {
                !state.writers.iter().any(|writer| self.keeps_barrier(writer))
            }
            _ => true,
        }
    }

    /// A load may store this row, which it has just read.
    fn may_store(&self, state: &State) -> bool {
        let clear = !state.writers.iter().any(Writer::has_row_lock);
        let cached = state.has_user(state.committed) || self.absences != Absences::NotCached;
        cached && (clear || !self.keeps(Rule::StoreOnlyClearRows))
    }
}

impl State {
    fn has_user(&self, version: Version) -> bool {
        self.users & 1 << version != 0
    }

    /// Sets the key to `held`. The bytes that loads and writers expect there are gone.
    fn set(&mut self, held: Held) {
        self.key = held;
        self.loads = [Load::Idle; SLOTS];
        for writer in &mut self.writers {
            writer.mine = false;
        }
    }
}

impl Model for LongCommit {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // With a user, and without one.
        [1, 0]
            .map(|users| State {
                committed: 0,
                users,
                key: Held::Nothing,
                near: None,
                loads: [Load::Idle; SLOTS],
                writers: [Writer::IDLE; SLOTS],
                history: History::default(),
                acknowledged: History::default(),
            })
            .to_vec()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.history.is_broken() || state.acknowledged.is_broken() {
            return;
        }
        if let Held::Entry(version) = state.key {
            actions.push(Action::Hit);
            // An absence is not kept near.
            if state.has_user(version) {
                actions.push(Action::KeepNear);
            }
        }
        if state.near.is_some() {
            actions.push(Action::NearHit);
        }
        if state.history.newest() < state.committed {
            actions.push(Action::Bypass);
        }
        if self.may_vanish(state) {
            actions.push(Action::Evict);
        }
        let busy = state.loads.iter().filter(|&&load| load != Load::Idle).count();
        if busy < self.loads && matches!(state.key, Held::Nothing | Held::Entry(_)) {
            actions.push(Action::StartLoad);
        }
        for (index, load) in state.loads.iter().enumerate() {
            match load {
                Load::Idle => continue,
                Load::Loading => actions.push(Action::Select(index)),
                Load::Filling(_) => actions.push(Action::Fill(index)),
            }
            actions.push(Action::GiveUp(index));
        }
        self.write_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Hit => {
                let Held::Entry(version) = state.key else { return None };
                if state.has_user(version) || self.absences != Absences::Visible {
                    state.history.returned(version, Promise::Linearizable);
                } else {
                    state.acknowledged.returned(version, Promise::Visible);
                }
            }
            Action::KeepNear => {
                let Held::Entry(version) = state.key else { return None };
                state.near = Some(NearCopy { version, before_message: false });
            }
            Action::NearHit => state.history.returned(state.near?.version, Promise::Linearizable),
            Action::Bypass => state.history.returned(state.committed, Promise::Linearizable),
            Action::Evict => state.set(Held::Nothing),
            Action::StartLoad => {
                if state.key == Held::Nothing {
                    state.set(Held::Lease);
                }
                // Idle loads are sorted to the front.
                state.loads[0] = Load::Loading;
            }
            Action::Select(index) => {
                state.history.returned(state.committed, Promise::Linearizable);
                let may_store = self.may_store(&state);
                state.loads[index] = if may_store { Load::Filling(state.committed) } else { Load::Idle };
            }
            Action::Fill(index) => {
                let Load::Filling(row) = state.loads[index] else { return None };
                state.set(Held::Entry(row));
            }
            Action::GiveUp(index) => state.loads[index] = Load::Idle,
            Action::Write(index, step) => self.write(&mut state, index, step),
        }
        state.loads.sort_unstable();
        state.writers.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(COHERENT, |_, state: &State| {
            !state.history.is_broken() && !state.acknowledged.is_broken()
        })]
    }
}
