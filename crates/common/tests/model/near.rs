//! The near cache of one replica: its invalidation channel, its lease, and what writers do for it.
//!
//! What keeps the states few, and hides no fault:
//! - *One replica has a near cache.* Writers do not know how many there are, and whatever another one does to Redis or
//!   answers, a reader without a near cache can do as well. Those need no state: see [`one_key`](crate::one_key).
//! - *Time is a clock of few ticks*, the same for all: `LEASE` ticks are d. Ages beyond d are alike.
//! - *A PING is answered at once*, a PUBLISH too; and of what waits in the replica's buffer, the first of two
//!   invalidations in a row, or of two PONGs, is left out. What takes longer only proves less.
//! - *A near hit is one step*: a proof read earlier holds no longer, a clock read later shows no less.
//! - *Loads are told in [`one_key`](crate::one_key)*: here one ends as soon as its fill would be refused.

mod cases;
mod fetch;
mod replica;
mod writer;

use stateright::{Model, Property};

use crate::check::{History, Promise, Version};
use fetch::Fetch;
use replica::Replica;
use writer::Writer;

/// At most so many fetches, and writers, at a time.
const SLOTS: usize = 2;
/// The near lease, d, in ticks. Two, so that a PING may be sent while a writer waits, and hold when it has waited.
const LEASE: u8 = 2;

/// What the key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    Nothing,
    /// A copy of the row, or the note that there is none.
    Value(Version),
    Lease,
    Barrier,
}

/// What the protocol asks for. A model without one of these must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A replace or delete waits.
    Wait,
    /// It waits even if it could not reach Redis.
    WaitWithoutRedis,
    /// It waits before COMMIT.
    WaitBeforeCommit,
    /// The wait is counted from the reply to PUBLISH, not from BEGIN.
    WaitFromPublish,
    /// It waits even if PUBLISH says that nobody listens.
    WaitForNobody,
    /// PUBLISH comes with the barrier, or after it.
    BarrierFirst,
    /// A writer that finds its barrier lost publishes again, and waits again.
    SecondRound,
    /// The lease is counted from when the PING was sent, not from the PONG's arrival.
    LeaseFromSending,
    /// PING goes over the connection that invalidations come on.
    SameConnection,
    /// No PING counts that was sent before SUBSCRIBE.
    SubscribeFirst,
    /// The replica's lease is no longer than the writers' wait.
    OneLength,
    /// A put checks the count.
    CheckCount,
    /// The check and the put are one step.
    CheckWithPut,
    /// An invalidation moves the count and removes the entry in one step.
    RemoveWithCount,
    /// The count is noted before the GET is sent.
    NoteBeforeGet,
    /// A break moves every count.
    BreakMovesCounts,
    /// Counts are noted only while the near cache is in use.
    NoteInUse,
    /// A break empties the near cache.
    BreakForgets,
    /// What was read past a barrier is not kept.
    NoFillFromBypass,
    /// The PING's time is read before the entry is taken.
    TimeBeforeEntry,
    /// "Absent" is not kept.
    AbsentNotNear,
}

/// What may go wrong, besides all that may always: eviction of copies and leases, breaks of the replica's connection, at
/// either end first, crashes, COMMITs of unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// An un-barrier may stay unanswered. Barriers are kept until their COMMIT.
    BarriersKept,
    /// A barrier may be lost before its COMMIT: eviction, FLUSHALL. Un-barriers are answered.
    BarriersLost,
    /// Redis may stop, for everyone, and come back empty. Writers go on without it. It answers whenever it is there.
    RedisRestarts,
}

/// Which writes there are, and which of them wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// All, as the protocol has it: registers need not wait.
    All,
    /// No deletes: after a register there are only replaces.
    NoDeletes,
    /// All, and registers wait as well.
    RegistersWait,
}

/// A system to check.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    promise: Promise,
    faults: Faults,
    writes: Writes,
    without: Option<Rule>,
    fetches: usize,
    writers: usize,
    commits: Version,
    /// PONGs on their way to the replica, at most.
    pongs: usize,
}

/// Where the system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The row's version in Postgres.
    committed: Version,
    /// For each version, a bit: whether there is a user.
    users: u8,
    key: Slot,
    // Both sorted: which one is where means nothing, so there are fewer states.
    fetches: [Fetch; SLOTS],
    writers: [Writer; SLOTS],
    replica: Replica,
    redis: Redis,
    history: History,
}

/// Whether Redis is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Redis {
    Up,
    Down,
    /// Up again. Once is enough: with an outage for each of a write's steps there would be no promise to keep.
    Restarted,
}

/// A step. Fetches and writers are told by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A reader returns the near copy.
    NearHit,
    /// A reader returns the copy in Redis.
    Hit,
    /// A reader returns the row and fills nothing: it met a lease or a barrier, or Redis failed it.
    Bypass,
    Fetch(usize, fetch::Step),
    Write(usize, writer::Step),
    Replica(replica::Step),
    /// The key's time is over, or its memory is needed, or someone purges or flushes.
    Evict,
    /// Time passes.
    Tick,
    RedisStops,
    RedisStarts,
}

impl Near {
    fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Whether what is at the key may vanish.
    fn may_vanish(&self, state: &State) -> bool {
        match state.key {
            Slot::Nothing => false,
            Slot::Barrier if self.faults != Faults::BarriersLost => {
                !state.writers.iter().any(|writer| writer.relies_on_barrier())
            }
            _ => true,
        }
    }
}

impl State {
    fn is_redis_up(&self) -> bool {
        self.redis != Redis::Down
    }

    fn has_user(&self, version: Version) -> bool {
        self.users & 1 << version != 0
    }

    fn commit(&mut self, user: bool) {
        self.committed += 1;
        self.users |= u8::from(user) << self.committed;
    }

    /// Puts `slot` at the key: whoever had the bytes there in mind will not find them again.
    fn set(&mut self, slot: Slot) {
        self.key = slot;
        self.fetches.iter_mut().for_each(Fetch::lose_key);
        self.writers.iter_mut().for_each(|writer| writer.mine = false);
    }

    /// Every count moves: what was noted before does not match any more.
    fn move_counts(&mut self) {
        self.fetches.iter_mut().for_each(Fetch::lose_note);
    }
}

impl Model for Near {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // With a user, and without.
        [1, 0]
            .map(|users| State {
                committed: 0,
                users,
                key: Slot::Nothing,
                fetches: [Fetch::Idle; SLOTS],
                writers: [Writer::IDLE; SLOTS],
                replica: Replica::start(self),
                redis: Redis::Up,
                history: History::default(),
            })
            .to_vec()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.history.is_broken() {
            return;
        }
        if self.near_answer(state).is_some() {
            actions.push(Action::NearHit);
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
        match state.redis {
            Redis::Up if self.faults == Faults::RedisRestarts => actions.push(Action::RedisStops),
            Redis::Up | Redis::Restarted => {}
            Redis::Down => actions.push(Action::RedisStarts),
        }
        actions.push(Action::Tick);
        self.fetch_actions(state, actions);
        self.write_actions(state, actions);
        self.replica_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::NearHit => state.history.returned(self.near_answer(last)?, self.promise),
            Action::Hit => {
                let Slot::Value(version) = state.key else { return None };
                state.history.returned(version, self.promise);
            }
            Action::Bypass => state.history.returned(state.committed, self.promise),
            Action::Evict => state.set(Slot::Nothing),
            Action::Tick => {
                self.age_replica(&mut state.replica);
                state.writers.iter_mut().for_each(|writer| self.age_writer(writer));
            }
            Action::RedisStops => {
                state.set(Slot::Nothing);
                state.replica.cut();
                state.redis = Redis::Down;
            }
            Action::RedisStarts => state.redis = Redis::Restarted,
            Action::Fetch(index, step) => self.fetch(&mut state, index, step),
            Action::Write(index, step) => self.write(&mut state, index, step),
            Action::Replica(step) => self.replica(&mut state, step),
        }
        state.fetches.sort_unstable();
        state.writers.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(self.promise.name(), |_, state: &State| !state.history.is_broken())]
    }
}
