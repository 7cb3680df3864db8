//! The linearizability checker against stateright's, on many small random histories.

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use super::cases::{done, refused, unknown};
use super::{linearizable, visible};
use crate::operation::{Action, OPEN, Operation, Outcome, State};

const HISTORIES: u64 = 2_000;

/// A name as a plain variable.
#[derive(Debug, Clone, PartialEq)]
struct Name(State);

/// What was asked for, without the answer.
#[derive(Debug, Clone, PartialEq)]
enum Asked {
    Register(u32),
    Replace(u32),
    Delete,
    Read,
}

#[derive(Debug, Clone, PartialEq)]
enum Answered {
    Done,
    Refused,
    State(State),
}

impl SequentialSpec for Name {
    type Op = Asked;
    type Ret = Answered;

    fn invoke(&mut self, asked: &Asked) -> Answered {
        let (possible, next) = match asked {
            Asked::Read => return Answered::State(self.0),
            Asked::Register(info) => (self.0.is_none(), Some(*info)),
            Asked::Replace(info) => (self.0.is_some(), Some(*info)),
            Asked::Delete => (self.0.is_some(), None),
        };
        if !possible {
            return Answered::Refused;
        }
        self.0 = next;
        Answered::Done
    }
}

/// What stateright says. Each operation has a thread of its own, since one that is unknown occupies its thread.
fn is_linearizable(operations: &[Operation]) -> bool {
    let mut tester = LinearizabilityTester::new(Name(None));
    let mut events: Vec<(u64, usize)> = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        events.push((operation.start, at));
        if operation.end != OPEN {
            events.push((operation.end, at));
        }
    }
    events.sort_unstable();
    for (time, at) in events {
        let operation = &operations[at];
        let told = if time == operation.start {
            tester.on_invoke(at, asked(operation.action)).map(drop)
        } else {
            tester.on_return(at, answered(operation)).map(drop)
        };
        told.expect("each thread has one operation");
    }
    tester.is_consistent()
}

fn asked(action: Action) -> Asked {
    match action {
        Action::Register(info) => Asked::Register(info),
        Action::Replace(info) => Asked::Replace(info),
        Action::Delete => Asked::Delete,
        Action::Read(_) => Asked::Read,
    }
}

fn answered(operation: &Operation) -> Answered {
    match (operation.action, operation.outcome) {
        (Action::Read(state), _) => Answered::State(state),
        (_, Outcome::Refused) => Answered::Refused,
        _ => Answered::Done,
    }
}

/// Up to eight operations of which up to four overlap, at distinct times. They are what a plain variable would answer,
/// but for now and then one that sees an older state.
fn random_history(random: &mut impl RngExt) -> Vec<Operation> {
    let (mut name, mut older) = (Name(None), vec![None]);
    let mut operations = Vec::new();
    // Some histories hardly overlap.
    let spread = random.random_range(5..40);
    for number in 0..random.random_range(3..9_u64) {
        let info = number as u32 + 1;
        let effect = 20 * number + 10;
        let (before, after) = (random.random_range(1..spread), random.random_range(1..spread));
        let (start, end) = (effect.saturating_sub(before), effect + after);
        // Times with the operation's number as their last digit are distinct.
        let (start, end) = (start * 10 + number, end * 10 + number);
        let action = match random.random_range(0..10) {
            0..2 => Action::Register(info),
            2..4 => Action::Replace(info),
            4 => Action::Delete,
            _ => Action::Read(None),
        };
        let lost = random.random_bool(0.1);
        let stale = random.random_bool(0.3);
        operations.push(match (action, name.clone().invoke(&asked(action))) {
            (Action::Read(_), _) => {
                let state = if stale { *older.choose(random).expect("it began") } else { name.0 };
                done(start, end, Action::Read(state))
            }
            // Lost on its way, or only its answer.
            _ if lost => {
                if random.random() {
                    name.invoke(&asked(action));
                }
                unknown(start, action)
            }
            (_, Answered::Refused) => refused(start, end, action),
            _ if stale => done(start, end, action),
            _ => {
                name.invoke(&asked(action));
                done(start, end, action)
            }
        });
        older.push(name.0);
    }
    operations
}

#[test]
fn the_checker_and_stateright_agree_on_random_histories() {
    let mut verdicts = [0; 2];
    for seed in 0..HISTORIES {
        let history = random_history(&mut rand::rngs::StdRng::seed_from_u64(seed));
        let found = linearizable(&history);
        assert_eq!(found.is_none(), is_linearizable(&history), "seed {seed}: {found:?} in\n{history:#?}");
        if found.is_none() {
            assert_eq!(visible(&history), [], "seed {seed}: linearizable and not visible\n{history:#?}");
        }
        verdicts[usize::from(found.is_none())] += 1;
    }
    let [bad, good] = verdicts;
    println!("{good} linearizable, {bad} not");
    assert!(good > HISTORIES / 5 && bad > HISTORIES / 5, "{good} linearizable, {bad} not: too one-sided");
}
