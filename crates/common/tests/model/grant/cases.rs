//! The grant with all its rules, and without each.

use super::{Grants, Rule};
use crate::check::{Promise, breaks, passes};

const PROTOCOL: Grants = Grants {
    promise: Promise::Visible,
    without: None,
    replicas: 1,
    loads: 1,
    writers: 2,
    commits: 1,
    changes: 2,
};

// With all rules, writes are visible too: linearizable requires that and more.
#[test]
fn reads_are_linearizable_with_a_promoted_process() {
    passes(Grants { promise: Promise::Linearizable, ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_two_writes() {
    passes(Grants { promise: Promise::Linearizable, commits: 2, ..PROTOCOL });
}

fn breaks_visible_without(rule: Rule) {
    breaks(Grants { without: Some(rule), ..PROTOCOL }, "visible");
}

#[test]
fn no_wait_after_a_suspension_breaks_visible() {
    breaks_visible_without(Rule::WaitAfterSuspension);
}

#[test]
fn no_wait_after_another_writers_suspension_breaks_visible() {
    breaks_visible_without(Rule::WaitAfterAnothersSuspension);
}

#[test]
fn a_grant_that_excludes_no_writes_breaks_visible() {
    breaks_visible_without(Rule::GrantExcludesWrites);
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
    breaks_visible_without(Rule::GrantReadAfterLock);
}

#[test]
fn validity_from_the_answer_breaks_visible() {
    breaks_visible_without(Rule::ValidFromQuestion);
}

#[test]
fn silence_taken_for_absence_breaks_visible() {
    breaks_visible_without(Rule::SilenceIsNotAbsence);
}

#[test]
fn a_grant_looked_at_before_a_follower_arrived_breaks_visible() {
    breaks_visible_without(Rule::LookAfterArrival);
}
