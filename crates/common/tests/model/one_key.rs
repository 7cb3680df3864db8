//! One row of Postgres, one key of Redis, and all who read and write them.
//!
//! What keeps the states few, and hides no fault:
//! - *A read is one step.* A hit is judged as if its reader had started just now: to one that started earlier less is
//!   promised. So readers have no state, and there may be any number of them; only their loads have.
//! - *A row from the primary is never too old*, for nothing newer was ever shown. So a load's reader is answered by
//!   the SELECT, and what is left of the load is a fill that comes soon, late, or never.
//! - *Nobody's bytes come back.* Tokens and fill ids are random, so "is it still what I put there?" is a flag that
//!   everything that is put there by others clears.

mod cases;
mod load;
mod writer;

use stateright::{Model, Property};

use crate::check::{History, Promise, Version};
use load::Load;
use writer::Writer;

/// At most so many loads, and writers, at a time.
const SLOTS: usize = 3;

/// What the key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    Nothing,
    /// A copy of the row, or the note that there is none.
    Value(Version),
    Lease,
    Barrier,
    /// Only without [`Rule::Leases`]: no copy, but the version that a fill must have.
    Version(Version),
}

/// What the protocol asks for. A model without one of these must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Every fill has a lease token of its own, not one per process.
    TokenPerFill,
    /// Leases guard fills, not version numbers.
    Leases,
    /// The SELECT of a fill sees all that was committed before its lease: no SQL replica, no older snapshot.
    FreshSnapshot,
    /// A refresh replaces only the bytes that it has read.
    CompareOnRefresh,
    /// A forced read sends its SELECT after the reply to its GET.
    SelectAfterReply,
    /// Every copy carries the id of its fill, so that no two are the same bytes.
    FillId,
    /// The barrier is set before COMMIT.
    BarrierBeforeCommit,
    /// The barrier is set after the row is locked.
    BarrierAfterLock,
    /// A barrier outlives the COMMIT that it is for.
    BarrierOutlivesCommit,
    /// The un-barrier leaves another writer's barrier.
    SpareForeignBarriers,
    /// The un-barrier takes away only a barrier whose SET was answered. One that was not may arrive late, over the
    /// barrier of the next writer, and then has to stand for it: a second attempt is made with a new token.
    SpareUnansweredBarriers,
    /// A write is acknowledged after its un-barrier.
    AcknowledgeLast,
}

/// What may go wrong, besides all that may always: eviction of copies and leases, crashes, unanswered calls of readers
/// and of barriers, late packets, COMMITs of unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// An un-barrier may stay unanswered: it comes late, or never. Barriers are kept until their COMMIT.
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

/// Where the system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The row's version in Postgres.
    committed: Version,
    key: Slot,
    // Both sorted: which one is where means nothing, so there are fewer states.
    loads: [Load; SLOTS],
    writers: [Writer; SLOTS],
    history: History,
}

/// A step. Loads and writers are told by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A reader returns the copy in Redis.
    Hit,
    /// A reader returns the row and fills nothing: it met a lease or a barrier, or Redis failed it.
    Bypass,
    Load(usize, load::Step),
    Write(usize, writer::Step),
    /// The key's time is over, or its memory is needed, or someone purges or flushes.
    Evict,
}

impl OneKey {
    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Whether what is at the key may vanish.
    fn may_vanish(&self, state: &State) -> bool {
        match state.key {
            Slot::Nothing => false,
            // Its own writer's, or one set over it: that one ends even later.
            Slot::Barrier
                if self.faults == Faults::BarriersKept && self.keeps(Rule::BarrierOutlivesCommit) =>
            {
                !state.writers.iter().any(|writer| writer.relies_on_barrier())
            }
            _ => true,
        }
    }
}

impl State {
    /// Puts `slot` at the key: whoever had the bytes there in mind will not find them again.
    fn set(&mut self, slot: Slot) {
        self.key = slot;
        self.loads.iter_mut().for_each(Load::forget_bytes);
        self.writers.iter_mut().for_each(|writer| writer.mine = false);
    }
}

impl Model for OneKey {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            committed: 0,
            key: Slot::Nothing,
            loads: [Load::Idle; SLOTS],
            writers: [Writer::IDLE; SLOTS],
            history: History::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.history.is_broken() {
            return;
        }
        if matches!(state.key, Slot::Value(_)) {
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
                let Slot::Value(version) = state.key else { return None };
                state.history.returned(version, self.promise);
            }
            Action::Bypass => state.history.returned(state.committed, self.promise),
            Action::Evict => state.set(Slot::Nothing),
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
