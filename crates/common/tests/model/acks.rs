//! Acks: a writer waits until each near cache in its list has applied its message, or until their proofs have run out.
//!
//! One near cache, the hash in Redis that lists near members, processes of user-svc. The hash may vanish, Redis may
//! restart, take over a past state, or be succeeded by a copy of one. [`near`](crate::near) has the rules of a near
//! cache itself: stamps, counts, breaks.
//!
//! What keeps the states few, and hides no fault:
//! - *One replica has a near cache*, on one connection at a time. Every other member of the hash is [`Hash::dead`]: an
//!   id that a connection left behind, or a replica that died. It never acknowledges. A live one that does is as if it
//!   were not there.
//! - *Time is a clock of few ticks*, the same for all: a proof lives for [`PROOF_LIFE`] ticks.
//! - *A renewal is executed when it is sent*, and so is a writer's script, whose reply arrives at once. A renewal that
//!   takes longer proves less, and a script that takes longer only adds to the wait.
//! - *An ack is sent as the message is applied*, and heard at any later time, or never.
//! - *A load is one step*: a lease that a barrier replaces fills nothing, and while the row is locked, nothing is
//!   filled, whether there is a barrier or not. [`one_key`](crate::one_key) and [`long_commit`](crate::long_commit)
//!   check that.
//! - *A replace or delete is answered as its COMMIT takes effect*, which may be long after COMMIT is sent. Its
//!   un-barrier is an eviction of the key, which may come at any time. Where it leaves the new copy, that is a load just
//!   after COMMIT: no other writer has raised a barrier since.
//! - *A near copy is fetched in one step*: a put that a message overtook is refused.
//! - *An epoch's validity is one step*: a view is valid until it lapses, and writers wait for that where they must.
//!   [`grant`](crate::grant) checks the clock, and that an entry of an older epoch is never used.
//! - *Rolls and numbers are renamed* in each state to the smallest that are in the same order.

mod cases;
mod replica;
mod system;
mod writer;

use stateright::{Model, Property};

use crate::check::{History, Promise, Version, Write};
use replica::Replica;
pub use system::{Acks, Fault, Numbers, Others, Past, Rule};
use writer::Writer;

/// How many processes of user-svc there are at most.
const PROCESSES: usize = 2;
/// How long a proof lives, and how long writers wait, in ticks. Two, so that a renewal may be sent during a wait, and
/// its proof may still hold after it.
const PROOF_LIFE: u8 = 2;

/// A Redis process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    A,
    /// Follows A, with some past state of it, until it is granted. It takes no writes before.
    B,
}

/// What the hash says when a message leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    roll: u8,
    seq: u8,
}

/// The hash of near members in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Members {
    /// `roll` and `seq`; none before the first script.
    stamp: Option<Stamp>,
    /// The field of the replica's connection.
    live: bool,
    /// A field of anybody who will not acknowledge.
    dead: bool,
}

/// What the key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    Nothing,
    /// An entry of the epoch that is granted to its process.
    Entry(Version),
    /// The barrier of a register. That of a replace or delete may vanish at any time, and there is nothing then: the
    /// row lock keeps loads out, whether it is there or not.
    Barrier,
}

/// What a Redis process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    key: Held,
    hash: Members,
}

/// The row of PostgreSQL that says which process may be used; none if the grant is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    process: Option<Process>,
    /// The number of changes before it.
    epoch: u8,
}

/// A state of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The row's version in PostgreSQL.
    committed: Version,
    grant: Grant,
    stores: [Store; 2],
    /// For how many ticks A has refused writes.
    refuses: Option<u8>,
    /// A has taken over its past state. Once is enough.
    is_replaced: bool,
    replica: Replica,
    // Sorted: their order means nothing, so there are fewer states.
    writers: [Writer; PROCESSES],
    history: History,
}

/// A step. A number is the place of a writer in the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Tick,
    /// A reader returns the near copy.
    NearHit,
    /// A reader returns the entry in Redis.
    Hit,
    /// A reader returns the row and stores nothing.
    Bypass,
    /// The row is loaded and stored.
    Load(Process),
    /// The key expires, or is evicted, removed by an un-barrier, or flushed.
    EvictKey(Process),
    /// The hash is evicted or flushed. Without [`Rule::OneKey`], its members alone.
    EvictHash(Process),
    /// B takes over the state of A.
    Follow,
    Restart,
    Rewind,
    Demote,
    Promote,
    Suspend,
    Grant(Process),
    Replica(replica::Step),
    Write(usize, writer::Step),
}

impl Acks {
    /// Whether all writes are acknowledged, and no older version is anywhere: then none comes back.
    fn is_over(&self, state: &State) -> bool {
        let is_old = |store: &Store| matches!(store.key, Held::Entry(version) if version != state.committed);
        self.next_write(state).is_none()
            && state.history.newest() == state.committed
            && !state.replica.has_other(state.committed)
            && !state.stores.iter().any(is_old)
    }

    fn may_load(&self, state: &State, process: Process) -> bool {
        let locked = self.next_write(state).is_some_and(Write::locks_row)
            && state.writers.iter().any(Writer::has_row)
            && self.keeps(Rule::ClearRows);
        let used = state.replica.views(process) || state.grant.process == Some(process);
        used && !locked && state.store(process).key == Held::Nothing
    }

    fn redis_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for process in [Process::A, Process::B] {
            let store = state.store(process);
            let relied_on = self.next_write(state) == Some(Write::Register)
                && state.writers.iter().any(|writer| writer.has_barrier(process));
            if store.key != Held::Nothing && !(relied_on && store.key == Held::Barrier) {
                actions.push(Action::EvictKey(process));
            }
            let granted = state.grant.process == Some(process);
            if granted && self.has(Fault::HashLost) && store.hash != Members::NONE {
                actions.push(Action::EvictHash(process));
            }
            if self.may_load(state, process) {
                actions.push(Action::Load(process));
            }
        }
        let replaced =
            [Fault::Restart, Fault::Rewind, Fault::Resync].into_iter().any(|fault| self.has(fault));
        if state.refuses == Some(PROOF_LIFE) {
            actions.push(Action::Promote);
        }
        if state.is_replaced || state.refuses.is_some() {
            return;
        }
        let follows = replaced || self.has(Fault::Suspension) && state.grant.process == Some(Process::A);
        if follows && self.past == Past::Any && state.store(Process::B).hash == Members::NONE {
            actions.push(Action::Follow);
        }
        for (fault, action) in [
            (Fault::Restart, Action::Restart),
            (Fault::Rewind, Action::Rewind),
            (Fault::Resync, Action::Demote),
        ] {
            if self.has(fault) {
                actions.push(action);
            }
        }
    }

    fn tick(&self, state: &mut State) {
        state.refuses = state.refuses.map(|ticks| (ticks + 1).min(PROOF_LIFE));
        self.age_replica(&mut state.replica);
        state.writers.iter_mut().for_each(|writer| self.age_writer(writer));
    }

    fn grant_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !self.has(Fault::Suspension) || state.grant.epoch == self.changes {
            return;
        }
        match state.grant.process {
            Some(_) => actions.push(Action::Suspend),
            None if state.replica.has_view() || state.writers.iter().any(Writer::has_row) => {}
            None => actions.extend([Action::Grant(Process::A), Action::Grant(Process::B)]),
        }
    }

    /// Forgets what can make no difference any more, and gives everything its smallest name.
    fn settle(&self, state: &mut State) {
        if state.grant.epoch == self.changes && self.has(Fault::Suspension) {
            // A process that is never granted again.
            for process in [Process::A, Process::B] {
                if state.grant.process != Some(process) {
                    *state.store_mut(process) = Store { key: Held::Nothing, hash: Members::NONE };
                }
            }
        }
        let last = state.stores.map(|store| store.hash.stamp);
        for writer in &mut state.writers {
            self.settle_writer(writer, last);
        }
        self.settle_acks(state);
        state.rename();
        state.writers[..self.processes].sort_unstable();
    }
}

impl Members {
    const NONE: Self = Self { stamp: None, live: false, dead: false };
}

impl State {
    fn store(&self, process: Process) -> &Store {
        &self.stores[process as usize]
    }

    fn store_mut(&mut self, process: Process) -> &mut Store {
        &mut self.stores[process as usize]
    }

    /// A takes over the past state that B has.
    fn replace(&mut self, key: Held) {
        let hash = std::mem::replace(&mut self.stores[1].hash, Members::NONE);
        self.stores[0] = Store { key, hash };
        self.is_replaced = true;
    }

    fn has_room(&self) -> bool {
        self.replica.has_room()
    }

    fn takes_writes(&self, process: Process) -> bool {
        process == Process::B || self.refuses.is_none()
    }

    /// All stamps that something remembers.
    fn stamps(&mut self) -> Vec<&mut Stamp> {
        let hashes = self.stores.iter_mut().filter_map(|store| store.hash.stamp.as_mut());
        hashes.chain(self.replica.stamps()).chain(self.writers.iter_mut().flat_map(Writer::stamps)).collect()
    }

    /// A roll that nothing remembers.
    fn new_roll(&mut self) -> u8 {
        self.stamps().into_iter().map(|stamp| stamp.roll + 1).max().unwrap_or(0)
    }

    /// Rolls are numbered as they are met, and the numbers under each from zero.
    fn rename(&mut self) {
        let mut stamps = self.stamps();
        let old: Vec<Stamp> = stamps.iter().map(|stamp| **stamp).collect();
        let mut rolls: Vec<u8> = Vec::with_capacity(old.len());
        for (stamp, was) in stamps.iter_mut().zip(&old) {
            let known = rolls.iter().position(|roll| *roll == was.roll);
            stamp.roll = known.unwrap_or(rolls.len()) as u8;
            if known.is_none() {
                rolls.push(was.roll);
            }
            let mut smaller: u16 = 0;
            for other in old.iter().filter(|other| other.roll == was.roll && other.seq < was.seq) {
                smaller |= 1 << other.seq;
            }
            stamp.seq = smaller.count_ones() as u8;
        }
    }
}

impl Model for Acks {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // All have known each other for long.
        let stamp = Stamp { roll: 0, seq: 0 };
        let before = Members { stamp: Some(stamp), ..Members::NONE };
        let past = if self.past == Past::BeforeJoin { before } else { Members::NONE };
        let key = if self.has_user(0) { Held::Entry(0) } else { Held::Nothing };
        vec![State {
            committed: 0,
            grant: Grant { process: Some(Process::A), epoch: 0 },
            stores: [
                Store { key, hash: Members { live: true, ..before } },
                Store { key: Held::Nothing, hash: past },
            ],
            refuses: None,
            is_replaced: false,
            replica: Replica::start(self),
            writers: [Writer::start(stamp); PROCESSES],
            history: History::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.history.is_broken() || self.is_over(state) {
            return;
        }
        actions.push(Action::Tick);
        if self.near_answer(state).is_some() {
            actions.push(Action::NearHit);
        }
        if self.answer_of_redis(state).is_some() {
            actions.push(Action::Hit);
        }
        if self.promise == Promise::Linearizable && state.history.newest() < state.committed {
            actions.push(Action::Bypass);
        }
        self.redis_actions(state, actions);
        self.grant_actions(state, actions);
        self.replica_actions(state, actions);
        self.write_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Tick => self.tick(&mut state),
            Action::NearHit => state.history.returned(self.near_answer(last)?, self.promise),
            Action::Hit => state.history.returned(self.answer_of_redis(last)?, self.promise),
            Action::Bypass => state.history.returned(state.committed, self.promise),
            Action::Load(process) => {
                state.history.returned(state.committed, self.promise);
                state.store_mut(process).key = Held::Entry(last.committed);
            }
            Action::EvictKey(process) => state.store_mut(process).key = Held::Nothing,
            Action::EvictHash(process) => {
                let hash = &mut state.store_mut(process).hash;
                let stamp = hash.stamp.filter(|_| !self.keeps(Rule::OneKey));
                *hash = Members { stamp, ..Members::NONE };
            }
            Action::Follow => state.stores[1].hash = state.stores[0].hash,
            Action::Restart => {
                state.replace(Held::Nothing);
                state.replica.cut();
                if self.keeps(Rule::TrustIsOfConnection) {
                    state.writers.iter_mut().for_each(Writer::lose_trust);
                }
            }
            Action::Rewind => state.replace(last.stores[0].key),
            Action::Demote => state.refuses = Some(0),
            Action::Promote => {
                state.refuses = None;
                state.replace(Held::Nothing);
            }
            Action::Suspend => state.grant = Grant { process: None, epoch: last.grant.epoch + 1 },
            Action::Grant(process) => {
                state.grant = Grant { process: Some(process), epoch: last.grant.epoch + 1 };
                // Entries of an older epoch are never used.
                state.store_mut(process).key = Held::Nothing;
            }
            Action::Replica(step) => self.replica(&mut state, step),
            Action::Write(index, step) => self.write(&mut state, index, step),
        }
        self.settle(&mut state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(self.promise.name(), |_, state: &State| !state.history.is_broken())]
    }
}
