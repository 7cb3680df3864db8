//! One row of Postgres, one key of Redis, and all readers and writers of them.
//!
//! Three simplifications keep the states few and hide no fault:
//! - *A read is one step.* A hit is judged as if its read had started just now: a read that started earlier is promised
//!   less. So only loads have a state, and there may be any number of readers.
//! - *A row from the primary is never too old*, since no read can have returned a newer one. So the SELECT answers the
//!   reader, and the rest of the load is a fill that arrives soon, late, or never.
//! - *Bytes that are gone never come back.* Tokens and fill ids are random. So "the key still holds my bytes" is a
//!   flag, and every other load or writer that sets the key clears it.

mod cases;
mod load;
mod writer;

use stateright::{Model, Property};

use crate::check::{History, Promise, Version};
use load::Load;
use writer::Writer;

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
    /// Only without [`Rule::Leases`]: no entry, but the version that a fill must have.
    Version(Version),
}

/// What the protocol requires. A model without one of these must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Every fill has a lease token of its own, not one per process.
    TokenPerFill,
    /// Leases guard fills, not version numbers.
    Leases,
    /// The SELECT of a fill sees every COMMIT before its lease: no replica of Postgres, no older snapshot.
    FreshSnapshot,
    /// A refresh replaces only the bytes that it has read.
    CompareOnRefresh,
    /// A forced read sends its SELECT after the reply to its GET.
    SelectAfterReply,
    /// Every entry has the id of its fill, so that no two are the same bytes.
    FillId,
    /// The barrier is raised before COMMIT.
    BarrierBeforeCommit,
    /// The barrier is raised after the row is locked.
    BarrierAfterLock,
    /// A barrier outlives the COMMIT that it guards.
    BarrierOutlivesCommit,
    /// The un-barrier leaves another writer's barrier.
    SpareForeignBarriers,
    /// The un-barrier removes only a barrier whose SET was answered. A SET without an answer may arrive late, over the
    /// next writer's barrier, and must then stand in for that one. So a second attempt has a token of its own.
    SpareUnansweredBarriers,
    /// A write is acknowledged after its un-barrier.
    AcknowledgeLast,
    /// A writer leaves its copy only in place of its own barrier, by comparison.
    CopyOverOwnBarrier,
    /// A writer leaves its copy only if its transaction is known to be committed.
    CopyAfterCommit,
}

/// What may go wrong, besides what always may: eviction of entries and leases, crashes, unanswered calls of readers and
/// of barriers, late packets, COMMITs of unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// An un-barrier may stay unanswered: it arrives late, or never. Barriers are kept until their COMMIT.
    BarriersKept,
    /// A barrier may be lost before its COMMIT: eviction, FLUSHALL, restart. Un-barriers are answered.
    BarriersLost,
    /// Barriers and un-barriers may be lost.
    BothLost,
}

/// A system to check.
#[derive(Clone, Copy, Debug)]
pub struct OneKey {
    promise: Promise,
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
    key: Held,
    // Both are sorted: their order means nothing, so there are fewer states.
    loads: [Load; SLOTS],
    writers: [Writer; SLOTS],
    history: History,
}

/// A step. A number is the place of a load or of a writer in the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A reader returns the entry in Redis.
    Hit,
    /// A reader returns the row and fills nothing: it found a lease or a barrier, or Redis failed.
    Bypass,
    Load(usize, load::Step),
    Write(usize, writer::Step),
    /// The key expires, or is evicted, purged or flushed.
    Evict,
}

impl OneKey {
    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Whether what is at the key may vanish.
    fn may_vanish(&self, state: &State) -> bool {
        match state.key {
            Held::Nothing => false,
            // Another writer's barrier may be at the key instead of the one that is relied on: it expires even later.
            Held::Barrier
                if self.faults == Faults::BarriersKept && self.keeps(Rule::BarrierOutlivesCommit) =>
            {
                !state.writers.iter().any(|writer| writer.relies_on_barrier())
            }
            _ => true,
        }
    }
}

impl State {
    /// Sets the key to `held`. The bytes that loads and writers expect there are gone.
    fn set(&mut self, held: Held) {
        self.key = held;
        for load in &mut self.loads {
            load.lose_bytes();
        }
        for writer in &mut self.writers {
            writer.mine = false;
        }
    }
}

impl Model for OneKey {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            committed: 0,
            key: Held::Nothing,
            loads: [Load::Idle; SLOTS],
            writers: [Writer::IDLE; SLOTS],
            history: History::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.history.is_broken() {
            return;
        }
        if matches!(state.key, Held::Entry(_)) {
            actions.push(Action::Hit);
        }
        if self.promise == Promise::Linearizable && state.history.newest() < state.committed {
            actions.push(Action::Bypass);
        }
        if self.may_vanish(state) {
            actions.push(Action::Evict);
        }
        self.load_actions(state, actions);
        self.write_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Hit => {
                let Held::Entry(version) = state.key else { return None };
                state.history.returned(version, self.promise);
            }
            Action::Bypass => state.history.returned(state.committed, self.promise),
            Action::Evict => state.set(Held::Nothing),
            Action::Load(index, step) => self.load(&mut state, index, step),
            Action::Write(index, step) => self.write(&mut state, index, step),
        }
        state.loads.sort_unstable();
        state.writers.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(self.promise.name(), |_, state: &State| !state.history.is_broken())]
    }
}
