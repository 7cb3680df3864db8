//! Runs the checker: over all states that a model can reach, or until a promise is broken.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

/// A state of the row, by the number of COMMITs before it. Two versions may have the same content. A read of the older
/// one counts as a fault all the same, which makes the checks stricter than the promises.
pub type Version = u8;

/// A kind of write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    /// From no user to one. There is no row to lock: until COMMIT, a SELECT finds nothing.
    Register,
    Replace,
    Delete,
}

impl Write {
    /// Whether a SELECT can see that the write is under way: its row is not clear.
    pub fn locks_row(self) -> bool {
        self != Self::Register
    }
}

/// What the cache promises to its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// A read that starts after an acknowledgement never returns the older state.
    Visible,
    /// In addition, no read returns an older state than a read that ended before it started.
    Linearizable,
}

impl Promise {
    /// The name of the property that the checker looks for a counterexample to.
    pub fn name(self) -> &'static str {
        match self {
            Self::Visible => "visible",
            Self::Linearizable => "linearizable",
        }
    }
}

/// All of the past that matters: the version that a read which starts now must not fall behind, and whether a read did.
///
/// Rows are locked, so versions are in the order of the writes, and reads that follow that order are linearizable. A
/// write may be seen before it is acknowledged. Later reads must not go back then either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    newest: Version,
    broken: bool,
}

impl History {
    /// A write is acknowledged.
    pub fn acknowledged(&mut self, version: Version) {
        self.newest = self.newest.max(version);
    }

    /// A read that started just now returns `version`.
    pub fn returned(&mut self, version: Version, promise: Promise) {
        self.returned_to(self.newest, version, promise);
    }

    /// A read returns `version`; when it started, `floor` was the newest.
    pub fn returned_to(&mut self, floor: Version, version: Version, promise: Promise) {
        self.broken |= version < floor;
        if promise == Promise::Linearizable {
            self.newest = self.newest.max(version);
        }
    }

    /// The oldest version that a read which starts now may return.
    pub fn newest(self) -> Version {
        self.newest
    }

    /// Whether a read fell behind.
    pub fn is_broken(self) -> bool {
        self.broken
    }
}

/// Asserts that `model` keeps all its properties in all states that it can reach.
pub fn passes<M>(model: M)
where
    M: Model + Debug + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let start = Instant::now();
    let title = format!("{model:?}");
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("passes: {} states, {:.1?}: {title}", checker.unique_state_count(), start.elapsed());
    checker.assert_properties();
}

/// Asserts that `model` breaks the property of this name, and prints a short way there.
pub fn breaks<M>(model: M, property: &'static str)
where
    M: Model + Debug + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let start = Instant::now();
    let title = format!("{model:?}");
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let steps = checker.assert_any_discovery(property).into_actions();
    println!(
        "breaks {property}: {} states, {:.1?}: {title}\n    in {} steps: {steps:?}",
        checker.unique_state_count(),
        start.elapsed(),
        steps.len(),
    );
}
