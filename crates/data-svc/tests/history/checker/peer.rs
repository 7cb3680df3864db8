//! The linearizability checker compared with stateright's, on many small random histories.

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

/// What was requested, without the answer.
#[derive(Debug, Clone, PartialEq)]
enum Call {
    Register(u32),
    Replace(u32),
    Delete,
    Read,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq)]
enum Return {
    Done,
    Refused,
    State(State),
}

impl SequentialSpec for Name {
    type Op = Call;
    type Ret = Return;

    fn invoke(&mut self, call: &Call) -> Return {
        let (possible, next) = match call {
            Call::Read => return Return::State(self.0),
            Call::Register(info) => (self.0.is_none(), Some(*info)),
            Call::Replace(info) => (self.0.is_some(), Some(*info)),
            Call::Delete => (self.0.is_some(), None),
        };
        if !possible {
            return Return::Refused;
        }
        self.0 = next;
        Return::Done
    }
}

/// stateright's verdict. Each operation has a thread of its own, since an unknown operation never leaves its thread.
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
        let recorded = if time == operation.start {
            tester.on_invoke(at, call(operation.action))
        } else {
            tester.on_return(at, result(operation))
        };
        recorded.expect("each thread has one operation");
    }
    tester.is_consistent()
}

fn call(action: Action) -> Call {
    match action {
        Action::Register(info) => Call::Register(info),
        Action::Replace(info) => Call::Replace(info),
        Action::Delete => Call::Delete,
        Action::Read(_) => Call::Read,
    }
}

fn result(operation: &Operation) -> Return {
    match (operation.action, operation.outcome) {
        (Action::Read(state), _) => Return::State(state),
        (_, Outcome::Refused) => Return::Refused,
        _ => Return::Done,
    }
}

/// Up to eight operations, of which up to four overlap, at distinct times. Their answers are those of a plain variable,
/// but now and then an operation sees an older state.
fn random_history(random: &mut impl RngExt) -> Vec<Operation> {
    let mut name = Name(None);
    let mut older = vec![None];
    let mut operations = Vec::new();
    // Some histories hardly overlap.
    let spread = random.random_range(5..40);
    for number in 0..random.random_range(3..9_u64) {
        let info = number as u32 + 1;
        let effect = 20 * number + 10;
        let before = random.random_range(1..spread);
        let after = random.random_range(1..spread);
        // Times with the operation's number as their last digit are distinct.
        let start = effect.saturating_sub(before) * 10 + number;
        let end = (effect + after) * 10 + number;
        let action = match random.random_range(0..10) {
            0..2 => Action::Register(info),
            2..4 => Action::Replace(info),
            4 => Action::Delete,
            _ => Action::Read(None),
        };
        let lost = random.random_bool(0.1);
        let stale = random.random_bool(0.3);
        operations.push(match (action, name.clone().invoke(&call(action))) {
            (Action::Read(_), _) => {
                let state =
                    if stale { *older.choose(random).expect("it has the first state") } else { name.0 };
                done(start, end, Action::Read(state))
            }
            // The request was lost, or only its answer.
            _ if lost => {
                if random.random() {
                    name.invoke(&call(action));
                }
                unknown(start, action)
            }
            (_, Return::Refused) => refused(start, end, action),
            _ if stale => done(start, end, action),
            _ => {
                name.invoke(&call(action));
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
