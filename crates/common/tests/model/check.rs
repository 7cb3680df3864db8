//! Runs the checker: over all states that a model can reach, or until a promise is seen broken.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

/// A state of the row, by the number of COMMITs before it.
pub type Version = u8;

/// What the cache promises to its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// A read that starts after an acknowledgement never returns the older state.
    Visible,
    /// Also, no read returns an older state than one that an earlier read has returned.
    Linearizable,
}

impl Promise {
    /// The name of the property that a counterexample is found for.
    pub fn name(self) -> &'static str {
        match self {
            Self::Visible => "visible",
            Self::Linearizable => "linearizable",
        }
    }
}

/// What reads that start now must not fall behind, and whether one did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    newest: Version,
    broken: bool,
}

impl History {
    /// A write is acknowledged. True for both promises.
    pub fn acknowledged(&mut self, version: Version) {
        self.newest = self.newest.max(version);
    }

    /// A read that has just started returns `version`.
    pub fn returned(&mut self, version: Version, promise: Promise) {
        self.broken |= version < self.newest;
        if promise == Promise::Linearizable {
            self.newest = self.newest.max(version);
        }
    }

    /// The newest version that a read which starts now must return, or a newer one.
    pub fn newest(self) -> Version {
        self.newest
    }

    /// Whether a read fell behind.
    pub fn is_broken(self) -> bool {
        self.broken
    }
}

/// Asserts that no state of `model` breaks a property, after all of them were visited.
pub fn passes<M>(model: M)
where
    M: Model + Debug + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let (start, title) = (Instant::now(), format!("{model:?}"));
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "passes, {} states, depth {}, {:.1?}: {title}",
        checker.unique_state_count(),
        checker.max_depth(),
        start.elapsed(),
    );
    checker.assert_properties();
}

/// Asserts that `model` breaks the property of that name, and prints the shortest way there.
pub fn breaks<M>(model: M, property: &'static str)
where
    M: Model + Debug + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let (start, title) = (Instant::now(), format!("{model:?}"));
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let steps = checker.assert_any_discovery(property).into_actions();
    println!(
        "breaks {property} in {} steps, {} states, {:.1?}: {title}\n    {steps:?}",
        steps.len(),
        checker.unique_state_count(),
        start.elapsed(),
    );
}
