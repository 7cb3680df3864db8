//! Two checkers over the operations of one name, which starts without a user.
//!
//! *Visible* ([`stale_reads`]): no read returns a state that an acknowledged write had certainly overwritten before the
//! read began. The checker judges each read alone, by the intervals of the writes.
//!
//! *Linearizable* ([`linearizable`]): there is an order of all operations, each within its interval, that a plain
//! variable could have gone through. This checker also finds a read that goes back in time, a lost update, a second
//! 201.
//!
//! The second checker goes through the calls and returns in the order of time. It keeps every configuration that the
//! name can be in: its state, and which of the operations under way have taken effect. A write takes effect as late as
//! possible, when an operation that returns needs it (Lowe, "Testing for Linearizability", 2016, calls this
//! just-in-time; the search for one name alone is Horn and Kroening's partition, 2015). A read takes effect as early as
//! possible, since it changes nothing. The search stays small with many unknown outcomes because infos are unique: an
//! unknown write whose info was read has taken effect before that read ended, and all unknown writes of one kind whose
//! info was never read are interchangeable.

mod cases;
mod peer;

use std::collections::{HashMap, HashSet};

use crate::operation::{Action, OPEN, Operation, Outcome, State};

/// Why a history is wrong, and the operation that shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its place in the list of operations.
    pub operation: usize,
    /// What is wrong.
    pub why: String,
}

/// What the reads prove about the times at which writes took effect.
struct Evidence {
    /// The write of each info.
    writes: HashMap<u32, usize>,
    /// When the first read of each info ended.
    first_read: HashMap<u32, u64>,
}

impl Evidence {
    fn of(operations: &[Operation]) -> Self {
        let writes = operations.iter().enumerate().filter_map(|(at, it)| Some((it.writes()?, at))).collect();
        let mut first_read = HashMap::new();
        for operation in operations {
            if let Action::Read(Some(info)) = operation.action {
                let first = first_read.entry(info).or_insert(operation.end);
                *first = operation.end.min(*first);
            }
        }
        Self { writes, first_read }
    }

    /// When this write had certainly taken effect: when it was acknowledged, or when a read of its info had ended.
    fn certain(&self, write: &Operation) -> u64 {
        let read = write.writes().and_then(|info| self.first_read.get(&info));
        read.map_or(write.end, |read| write.end.min(*read))
    }

    /// Reads of an info that was never written: its write was refused, began later, or does not exist.
    fn never_written(&self, operations: &[Operation]) -> Vec<Violation> {
        let never_written = |operation: &Operation| {
            let Action::Read(Some(info)) = operation.action else { return None };
            let Some(&write) = self.writes.get(&info) else {
                return Some("it reads an info that was never written, or whose write was refused with 503");
            };
            let write = &operations[write];
            if write.outcome == Outcome::Refused {
                return Some("it reads the info of a write that was refused");
            }
            (operation.end < write.start).then_some("it reads an info before its write began")
        };
        let found = operations.iter().enumerate();
        found
            .filter_map(|(at, it)| Some(Violation { operation: at, why: never_written(it)?.to_owned() }))
            .collect()
    }
}

/// Acknowledged writes by their start, each with the earliest end among itself and all that began later. They show when
/// a state had certainly been overwritten.
struct Overwritten(Vec<(u64, u64)>);

impl Overwritten {
    fn by(writes: impl Iterator<Item = (u64, u64)>) -> Self {
        let mut writes: Vec<(u64, u64)> = writes.collect();
        writes.sort_unstable();
        let mut earliest = OPEN;
        for (_, end) in writes.iter_mut().rev() {
            earliest = earliest.min(*end);
            *end = earliest;
        }
        Self(writes)
    }

    /// When a state was certainly overwritten, if it had certainly been written by `certain`.
    fn at(&self, certain: u64) -> u64 {
        let later = self.0.partition_point(|(start, _)| *start <= certain);
        self.0.get(later).map_or(OPEN, |(_, end)| *end)
    }
}

/// A read of a state that had certainly been overwritten before the read began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale {
    /// Its place in the list of operations.
    pub operation: usize,
    /// For how long the state had been overwritten when the read began, in nanoseconds.
    pub age: u64,
}

/// What shows that a write has taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It was acknowledged.
    Acknowledged,
    /// That, or its info was read.
    AcknowledgedOrRead,
}

/// All reads that break *visible*.
pub fn stale_reads(operations: &[Operation]) -> Vec<Stale> {
    stale_after(operations, Proof::Acknowledged)
}

/// All reads of a state that had been overwritten when they began, as `proof` shows it.
pub fn stale_after(operations: &[Operation], proof: Proof) -> Vec<Stale> {
    let evidence = Evidence::of(operations);
    let written = || {
        let writes = operations.iter().filter(|it| match proof {
            Proof::Acknowledged => it.is_acknowledged_write(),
            Proof::AcknowledgedOrRead => it.is_effective_write(),
        });
        let end = |it: &Operation| match proof {
            Proof::Acknowledged => it.end,
            Proof::AcknowledgedOrRead => evidence.certain(it),
        };
        writes.map(move |it| (it.action, it.start, end(it)))
    };
    let overwritten = Overwritten::by(written().map(|(_, start, end)| (start, end)));
    // After a register or a replace there is a user, until a delete.
    let present = written().filter(|(action, ..)| *action != Action::Delete);
    let present = Overwritten::by(present.map(|(_, start, end)| (start, end)));
    // Deletes by their start, each with the latest end among itself and those that began before.
    let deletes = operations.iter().filter(|it| it.action == Action::Delete && it.is_effective_write());
    let mut deletes: Vec<(u64, u64)> = deletes.map(|it| (it.start, it.end)).collect();
    deletes.sort_unstable();
    let mut latest = 0;
    for (_, end) in &mut deletes {
        latest = latest.max(*end);
        *end = latest;
    }
    let age = |read: &Operation| {
        let gone = match read.action {
            Action::Read(Some(info)) => {
                let write = &operations[*evidence.writes.get(&info)?];
                overwritten.at(evidence.certain(write))
            }
            Action::Read(None) => {
                let before = deletes.partition_point(|(start, _)| *start <= read.end);
                match before.checked_sub(1).map(|last| deletes[last].1) {
                    Some(OPEN) => OPEN,
                    Some(deleted) => present.at(deleted),
                    // No delete: only the beginning had no user, and it was before every write.
                    None => present.0.first().map_or(OPEN, |(_, end)| *end),
                }
            }
            _ => return None,
        };
        (gone < read.start).then(|| read.start - gone)
    };
    let found = operations.iter().enumerate();
    found.filter_map(|(operation, it)| Some(Stale { operation, age: age(it)? })).collect()
}

/// All reads that break *visible*, also those of an info that was never written.
pub fn visible(operations: &[Operation]) -> Vec<Violation> {
    let stale = stale_reads(operations).into_iter().map(|Stale { operation, age }| {
        let why = format!("it reads what had been overwritten for {} us when it began", age / 1000);
        Violation { operation, why }
    });
    Evidence::of(operations).never_written(operations).into_iter().chain(stale).collect()
}

/// What an operation does to the state, or requires of it.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// There was no user. Now there is one with this info.
    Create(u32),
    /// There was a user. Now it has this info.
    Change(u32),
    /// There was a user. Now there is none.
    Remove,
    /// The state is this one.
    Is(State),
    /// There is a user.
    Present,
    /// There is no user.
    Absent,
}

impl Step {
    fn of(operation: &Operation) -> Self {
        match (operation.action, operation.outcome) {
            (Action::Read(state), _) => Self::Is(state),
            (Action::Register(_), Outcome::Refused) => Self::Present,
            (Action::Replace(_) | Action::Delete, Outcome::Refused) => Self::Absent,
            (Action::Register(info), _) => Self::Create(info),
            (Action::Replace(info), _) => Self::Change(info),
            (Action::Delete, _) => Self::Remove,
        }
    }

    fn changes(self) -> bool {
        matches!(self, Self::Create(_) | Self::Change(_) | Self::Remove)
    }

    /// The state after it, if it is possible in `state`.
    fn apply(self, state: State) -> Option<State> {
        match self {
            Self::Create(info) => state.is_none().then_some(Some(info)),
            Self::Change(info) => state.is_some().then_some(Some(info)),
            Self::Remove => state.is_some().then_some(None),
            Self::Is(wanted) => (state == wanted).then_some(state),
            Self::Present => state.is_some().then_some(state),
            Self::Absent => state.is_none().then_some(state),
        }
    }
}

/// The info of all unknown registers whose info was never read.
const UNREAD: u32 = u32::MAX;

/// The two ends of an operation. A call is sorted before a return at the same time: operations that touch overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Call,
    Return,
}

/// One situation that the name may be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Configuration {
    state: State,
    /// Which of the operations under way have taken effect, one bit each.
    done: u128,
    /// How many of the unknown deletes, and of the unknown registers whose info was never read, have taken effect.
    deletes: u32,
    registers: u32,
}

#[derive(Default)]
struct Search {
    /// The operations under way, by their bits.
    under_way: Vec<Option<Step>>,
    /// How many unknown deletes, and how many unknown registers, have begun.
    deletes: u32,
    registers: u32,
    configurations: HashSet<Configuration>,
}

/// The first operation that no order can explain, if there is one.
pub fn linearizable(operations: &[Operation]) -> Option<Violation> {
    let evidence = Evidence::of(operations);
    if let Some(violation) = evidence.never_written(operations).into_iter().next() {
        return Some(violation);
    }
    let mut search = Search::default();
    let beginning = Configuration { state: None, done: 0, deletes: 0, registers: 0 };
    search.configurations.insert(beginning);
    let mut events = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        let end = evidence.certain(operation);
        let step = Step::of(operation);
        // An unknown replace whose info was never read explains nothing that its absence would not.
        if end != OPEN || !matches!(step, Step::Change(_)) {
            events.push((operation.start, End::Call, at, step));
        }
        if end != OPEN {
            events.push((end, End::Return, at, step));
        }
    }
    events.sort_unstable_by_key(|(time, end, at, _)| (*time, *end, *at));
    let mut bits = HashMap::new();
    for (_, end, at, step) in events {
        match (end, step, evidence.certain(&operations[at])) {
            (End::Call, Step::Remove, OPEN) => search.deletes += 1,
            (End::Call, Step::Create(_), OPEN) => search.registers += 1,
            (End::Call, ..) => {
                bits.insert(at, search.call(step));
            }
            (End::Return, ..) => {
                if let Some(bit) = bits.remove(&at)
                    && !search.returns(bit)
                {
                    let why = "no order of the operations explains it".to_owned();
                    return Some(Violation { operation: at, why });
                }
            }
        }
    }
    None
}

impl Search {
    fn call(&mut self, step: Step) -> usize {
        let free = self.under_way.iter().position(Option::is_none);
        let bit = free.unwrap_or(self.under_way.len());
        assert!(bit < 128, "more than 128 operations at once on one name");
        if bit == self.under_way.len() {
            self.under_way.push(None);
        }
        self.under_way[bit] = Some(step);
        if !step.changes() {
            let after_reads = self.configurations.iter().map(|it| self.apply_reads(*it)).collect();
            self.configurations = after_reads;
        }
        bit
    }

    /// Lets the reads under way that return this state take effect: no later moment is better.
    fn apply_reads(&self, mut configuration: Configuration) -> Configuration {
        for (bit, step) in self.under_way.iter().enumerate() {
            if let Some(step) = step.filter(|step| !step.changes())
                && step.apply(configuration.state).is_some()
            {
                configuration.done |= 1 << bit;
            }
        }
        configuration
    }

    /// Keeps the configurations in which this operation has taken effect, or takes effect now. Returns whether there
    /// are any.
    fn returns(&mut self, bit: usize) -> bool {
        let mask = 1 << bit;
        let mut kept = HashSet::new();
        let mut seen = HashSet::new();
        let mut open: Vec<Configuration> = self.configurations.iter().copied().collect();
        while let Some(configuration) = open.pop() {
            if configuration.done & mask != 0 {
                kept.insert(Configuration { done: configuration.done & !mask, ..configuration });
                continue;
            }
            open.extend(self.next(configuration).filter(|next| seen.insert(*next)));
        }
        self.under_way[bit] = None;
        self.configurations = self.without_worse(kept);
        !self.configurations.is_empty()
    }

    /// The configurations after one more write.
    fn next(&self, from: Configuration) -> impl Iterator<Item = Configuration> {
        let under_way = self.under_way.iter().enumerate().filter_map(move |(bit, step)| {
            let step = step.filter(|step| step.changes() && from.done & (1 << bit) == 0)?;
            Some(Configuration { state: step.apply(from.state)?, done: from.done | 1 << bit, ..from })
        });
        let delete = (from.deletes < self.deletes && from.state.is_some()).then(|| Configuration {
            state: None,
            deletes: from.deletes + 1,
            ..from
        });
        let register = (from.registers < self.registers && from.state.is_none()).then(|| Configuration {
            state: Some(UNREAD),
            registers: from.registers + 1,
            ..from
        });
        under_way.chain(delete).chain(register).map(|it| self.apply_reads(it))
    }

    /// Drops each configuration for which another one does as well, with fewer unknown writes used or more reads done.
    fn without_worse(&self, all: HashSet<Configuration>) -> HashSet<Configuration> {
        let writes = self.under_way.iter().enumerate().filter(|(_, step)| step.is_some_and(Step::changes));
        let writes = writes.fold(0, |mask, (bit, _)| mask | 1u128 << bit);
        let better = |one: &Configuration, other: &Configuration| {
            one != other
                && one.state == other.state
                && one.done & writes == other.done & writes
                && one.done | other.done == one.done
                && one.deletes <= other.deletes
                && one.registers <= other.registers
        };
        all.iter().filter(|it| !all.iter().any(|one| better(one, it))).copied().collect()
    }
}
