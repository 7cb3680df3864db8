//! The near cache of one replica: its invalidation channel, its proof, and the wait of writers.
//!
//! The writers here wait the whole time, always. That is what is left when no list of near members can be trusted;
//! [`acks`](crate::acks) says when less is enough, and takes from here that a near cache keeps its own rules: stamps,
//! counts, breaks. A PING stands for a *renewal*: a reply on the connection that messages arrive on. Replaces and
//! deletes are [`Protection::RowLock`]. [`Protection::Barrier`], with the second wait of [`Rule::SecondRound`], is what
//! a store without row locks would need.
//!
//! Five simplifications keep the states few and hide no fault:
//! - *One replica has a near cache.* Writers do not know how many there are. A reader without a near cache can return
//!   and store all that another replica can, and needs no state: see [`one_key`](crate::one_key).
//! - *Time is a clock of few ticks*, the same for all: a proof lives for [`PROOF_LIFE`] ticks. All ages beyond that are
//!   alike.
//! - *A PING is answered at once*, and so is a PUBLISH. Of two invalidations in a row in the replica's buffer, or of
//!   two PONGs, the first is left out. A message that takes longer only proves less.
//! - *A near hit is one step*: a proof that is read earlier holds no longer, and a clock that is read later shows no
//!   less.
//! - *Loads are checked in [`one_key`](crate::one_key)*: here a load ends as soon as its fill would be refused.

mod cases;
mod fetch;
mod replica;
mod writer;

use stateright::{Model, Property};

use crate::check::{History, Promise, Version};
use fetch::Fetch;
use replica::Replica;
use writer::Writer;

/// How many fetches, and how many writers, there are at a time at most.
const SLOTS: usize = 2;
/// How long a proof lives, and how long writers wait, in ticks. Two, so that a PING may be sent during a wait, and its
/// proof may still hold after it.
const PROOF_LIFE: u8 = 2;

/// What the key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    Nothing,
    /// An entry: a copy of the row, or a cached absence.
    Entry(Version),
    Lease,
    Barrier,
}

/// What the protocol requires. A model without one of these must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A replace or delete waits.
    Wait,
    /// A writer waits even if it could not reach Redis.
    WaitWithoutRedis,
    /// A writer waits before COMMIT.
    WaitBeforeCommit,
    /// The wait is counted from the reply to PUBLISH, not from BEGIN.
    WaitFromPublish,
    /// A writer waits even if PUBLISH says that it reached no subscriber.
    WaitWithoutSubscribers,
    /// PUBLISH is sent with the barrier, or after it.
    BarrierFirst,
    /// A writer that finds its barrier lost publishes again, and waits again.
    SecondRound,
    /// The proof is counted from the time at which the PING was sent, not from the PONG's arrival.
    ProofFromSending,
    /// PING is sent over the connection that invalidations arrive on.
    SameConnection,
    /// A PING that was sent before SUBSCRIBE proves nothing.
    SubscribeFirst,
    /// The replica's proof lives no longer than the writers' wait.
    OneLength,
    /// A put compares its stamp with the count.
    CheckCount,
    /// The comparison and the put are one step.
    CheckWithPut,
    /// An invalidation moves the count and removes the copy in one step.
    RemoveWithCount,
    /// The stamp is taken before the GET is sent.
    StampBeforeGet,
    /// A break moves every count.
    BreakMovesCounts,
    /// Stamps are taken only while the near cache is in use.
    StampInUse,
    /// A break empties the near cache.
    BreakForgets,
    /// A row that a bypass loaded is not kept near.
    NoFillFromBypass,
    /// The proof is read before the copy is taken.
    ProofBeforeCopy,
    /// An absence is not kept near.
    AbsentNotNear,
}

/// What may go wrong, besides what always may: eviction of entries and leases, breaks of the replica's connection, at
/// either end first, crashes, COMMITs of unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// An un-barrier may stay unanswered. Barriers are kept until their COMMIT.
    BarriersKept,
    /// A barrier may be lost before its COMMIT: eviction, FLUSHALL. Un-barriers are answered.
    BarriersLost,
    /// Redis may stop, for all clients, and start again empty. Writers go on without it. It replies whenever it is up.
    RedisRestarts,
}

/// Which writes there are, and which of them wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// All, as in the protocol: registers need not wait.
    All,
    /// No deletes: after a register there are only replaces.
    NoDeletes,
    /// All, and registers wait too.
    RegistersWait,
}

/// What protects a replace or delete from loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Its barrier: a write whose barrier was lost publishes and waits again.
    Barrier,
    /// The lock of its row: no load stores a row that is not clear. It is answered at COMMIT, whatever became of its
    /// barrier. See [`long_commit`](crate::long_commit).
    RowLock,
}

/// A system to check.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    promise: Promise,
    protection: Protection,
    faults: Faults,
    writes: Writes,
    without: Option<Rule>,
    fetches: usize,
    writers: usize,
    commits: Version,
    /// How many PONGs are on their way to the replica at most.
    pongs: usize,
}

/// A state of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The row's version in Postgres.
    committed: Version,
    /// For each version, a bit: whether there is a user.
    users: u8,
    key: Held,
    // Both are sorted: their order means nothing, so there are fewer states.
    fetches: [Fetch; SLOTS],
    writers: [Writer; SLOTS],
    replica: Replica,
    redis: Redis,
    history: History,
}

/// Whether Redis is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Redis {
    Up,
    Down,
    /// Up again. One outage is enough: with one for each step of a write there would be no promise to keep.
    Restarted,
}

/// A step. A number is the place of a fetch or of a writer in the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A reader returns the near copy.
    NearHit,
    /// A reader returns the entry in Redis.
    Hit,
    /// A reader returns the row and fills nothing: it found a lease or a barrier, or Redis failed.
    Bypass,
    Fetch(usize, fetch::Step),
    Write(usize, writer::Step),
    Replica(replica::Step),
    /// The key expires, or is evicted, purged or flushed.
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
            Held::Nothing => false,
            Held::Barrier if self.faults != Faults::BarriersLost => {
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

    /// Whether a load finds a row that is not clear: a register has no row to lock.
    fn is_row_locked(&self) -> bool {
        self.has_user(self.committed) && self.writers.iter().any(Writer::has_lock)
    }

    fn commit(&mut self, user: bool) {
        self.committed += 1;
        self.users |= u8::from(user) << self.committed;
    }

    /// Sets the key to `held`. The bytes that fetches and writers expect there are gone.
    fn set(&mut self, held: Held) {
        self.key = held;
        for fetch in &mut self.fetches {
            fetch.lose_bytes();
        }
        for writer in &mut self.writers {
            writer.mine = false;
        }
    }

    /// Every count moves: no earlier stamp equals it any more.
    fn move_counts(&mut self) {
        for fetch in &mut self.fetches {
            fetch.lose_stamp();
        }
    }
}

impl Model for Near {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // With a user, and without one.
        [1, 0]
            .map(|users| State {
                committed: 0,
                users,
                key: Held::Nothing,
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
        if matches!(state.key, Held::Entry(_)) {
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
                let Held::Entry(version) = state.key else { return None };
                state.history.returned(version, self.promise);
            }
            Action::Bypass => state.history.returned(state.committed, self.promise),
            Action::Evict => state.set(Held::Nothing),
            Action::Tick => {
                self.age_replica(&mut state.replica);
                for writer in &mut state.writers {
                    self.age_writer(writer);
                }
            }
            Action::RedisStops => {
                state.set(Held::Nothing);
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
