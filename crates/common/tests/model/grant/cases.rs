//! The grant with all its rules, and without each.

use super::{Grants, Restarts, Rule};
use crate::check::{Promise, Write, breaks, passes};

const PROTOCOL: Grants = Grants {
    promise: Promise::Visible,
    without: None,
    restarts: Restarts::Never,
    writes: &[Write::Replace],
    loads: 1,
    writers: 2,
    changes: 2,
    validity: 1,
};

/// PostgreSQL restarts, and a refused look renews a view.
const RESTARTS: Grants = Grants { restarts: Restarts::Once, writers: 1, changes: 1, validity: 2, ..PROTOCOL };

/// The copy of one replace may arrive after another.
const LEFT_COPIES: Grants = Grants { writes: &[Write::Replace, Write::Replace], loads: 0, ..PROTOCOL };

// With all rules, writes are visible too: linearizable requires that and more.
#[test]
fn reads_are_linearizable_with_a_promoted_process() {
    passes(Grants { promise: Promise::Linearizable, ..PROTOCOL });
}

#[test]
fn reads_are_linearizable_with_two_replaces_that_leave_copies() {
    passes(Grants { promise: Promise::Linearizable, ..LEFT_COPIES });
}

#[test]
fn reads_are_linearizable_with_a_register() {
    passes(Grants { promise: Promise::Linearizable, writes: &[Write::Register], ..PROTOCOL });
}

#[test]
fn reads_are_linearizable_when_postgres_restarts() {
    passes(Grants { promise: Promise::Linearizable, ..RESTARTS });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_when_postgres_restarts_with_two_writers_and_a_new_grant() {
    passes(Grants { promise: Promise::Linearizable, writers: 2, changes: 2, ..RESTARTS });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_a_delete_and_a_register() {
    passes(Grants { promise: Promise::Linearizable, writes: &[Write::Delete, Write::Register], ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_a_register_and_a_replace() {
    passes(Grants { promise: Promise::Linearizable, writes: &[Write::Register, Write::Replace], ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_two_loads_and_writes() {
    let writes = &[Write::Replace, Write::Replace];
    passes(Grants { promise: Promise::Linearizable, writes, loads: 2, ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_four_changes_of_the_grant() {
    passes(Grants { promise: Promise::Linearizable, changes: 4, ..PROTOCOL });
}

// The rules, one by one.

fn breaks_visible_without(rule: Rule) {
    breaks(Grants { without: Some(rule), writers: 1, ..PROTOCOL }, "visible");
}

fn two_writers_break_visible_without(rule: Rule) {
    breaks(Grants { without: Some(rule), ..PROTOCOL }, "visible");
}

#[test]
fn no_wait_after_a_suspension_breaks_visible() {
    breaks_visible_without(Rule::WaitAfterSuspension);
}

#[test]
fn no_wait_after_another_writers_suspension_breaks_visible() {
    let without = Some(Rule::WaitAfterAnothersSuspension);
    breaks(Grants { without, changes: 1, ..PROTOCOL }, "visible");
}

#[test]
fn a_grant_that_excludes_no_writes_breaks_visible() {
    two_writers_break_visible_without(Rule::GrantExcludesWrites);
}

#[test]
fn a_grant_that_comes_too_early_breaks_visible() {
    breaks_visible_without(Rule::GrantWaits);
}

#[test]
fn entries_without_a_tag_break_visible() {
    breaks_visible_without(Rule::Tags);
}

#[test]
fn a_fill_with_the_tag_that_is_current_breaks_visible() {
    breaks_visible_without(Rule::TagOfLease);
}

#[test]
fn a_left_copy_with_the_tag_that_is_current_breaks_visible() {
    breaks(Grants { without: Some(Rule::TagOfTransaction), ..LEFT_COPIES }, "visible");
}

#[test]
fn a_replica_that_uses_another_process_breaks_visible() {
    breaks_visible_without(Rule::ReadGranted);
}

#[test]
fn a_near_copy_that_needs_no_grant_breaks_visible() {
    breaks_visible_without(Rule::NearUnderGrant);
}

#[test]
fn a_barrier_in_another_process_breaks_visible() {
    breaks_visible_without(Rule::WriteGranted);
}

#[test]
fn a_grant_read_before_the_locks_breaks_visible() {
    two_writers_break_visible_without(Rule::GrantReadAfterLock);
}

#[test]
fn validity_from_the_answer_breaks_visible() {
    breaks_visible_without(Rule::ValidFromQuestion);
}

#[test]
fn silence_taken_for_absence_breaks_visible() {
    breaks(Grants { without: Some(Rule::SilenceIsNotAbsence), ..RESTARTS }, "visible");
}

#[test]
fn a_grant_looked_at_before_a_follower_arrived_breaks_visible() {
    breaks_visible_without(Rule::LookAfterArrival);
}

#[test]
fn a_refused_look_that_renews_a_view_that_ran_out_breaks_visible() {
    breaks(Grants { without: Some(Rule::RenewOnlyValidViews), ..RESTARTS }, "visible");
}

#[test]
fn a_wait_that_goes_on_over_a_restart_of_postgres_breaks_visible() {
    breaks(Grants { without: Some(Rule::WaitAfterRestart), ..RESTARTS }, "visible");
}
