//! The protocol with all its rules, and without each.

use super::{Rule, SERVED, Sharing};
use crate::check::{Promise, breaks, passes};

const PROTOCOL: Sharing = Sharing { promise: Promise::Linearizable, without: None, callers: 3, commits: 3 };

#[test]
fn shared_loads_are_linearizable_and_serve_every_caller() {
    passes(PROTOCOL);
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn shared_loads_are_linearizable_with_four_callers() {
    passes(Sharing { callers: 4, commits: 4, ..PROTOCOL });
}

#[test]
fn a_hit_shared_with_a_caller_that_arrived_after_its_get_breaks_visible() {
    let without = Some(Rule::HitsAreForThoseBeforeGet);
    breaks(Sharing { promise: Promise::Visible, without, ..PROTOCOL }, "visible");
}

#[test]
fn a_row_shared_with_a_caller_that_arrived_after_its_select_breaks_visible() {
    let without = Some(Rule::RowsAreForThoseBeforeSelect);
    breaks(Sharing { promise: Promise::Visible, without, ..PROTOCOL }, "visible");
}

#[test]
fn a_load_that_ends_with_its_leader_strands_its_followers() {
    breaks(Sharing { without: Some(Rule::OwnTask), ..PROTOCOL }, SERVED);
}
