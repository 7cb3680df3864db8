//! The protocol with all its rules, and without each.

use super::{Faults, OneKey, Rule};
use crate::check::{Promise, breaks, passes};

const PROTOCOL: OneKey = OneKey {
    promise: Promise::Linearizable,
    faults: Faults::BarriersKept,
    without: None,
    loads: 2,
    writers: 2,
    commits: 2,
};

#[test]
fn reads_are_linearizable_while_barriers_are_kept() {
    passes(OneKey { loads: 3, ..PROTOCOL });
}

#[test]
fn reads_are_linearizable_with_three_writers() {
    passes(OneKey { writers: 3, commits: 3, ..PROTOCOL });
}

#[test]
fn writes_are_visible_when_barriers_are_lost() {
    passes(OneKey { promise: Promise::Visible, faults: Faults::BarriersLost, loads: 3, ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_three_loads_and_writers() {
    passes(OneKey { loads: 3, writers: 3, commits: 4, ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn writes_are_visible_with_three_loads_and_writers() {
    let faults = Faults::BarriersLost;
    passes(OneKey { promise: Promise::Visible, faults, loads: 3, writers: 3, commits: 4, ..PROTOCOL });
}

// The limits that the documentation of the protocol states.

#[test]
fn a_lost_barrier_breaks_linearizable() {
    breaks(OneKey { faults: Faults::BarriersLost, ..PROTOCOL }, "linearizable");
}

#[test]
fn a_lost_barrier_and_a_lost_un_barrier_break_visible() {
    let faults = Faults::BothLost;
    breaks(OneKey { promise: Promise::Visible, faults, ..PROTOCOL }, "visible");
}

// The rules, one by one.

fn breaks_visible_without(rule: Rule) {
    breaks(OneKey { promise: Promise::Visible, without: Some(rule), ..PROTOCOL }, "visible");
}

fn breaks_linearizable_without(rule: Rule) {
    breaks(OneKey { without: Some(rule), ..PROTOCOL }, "linearizable");
}

#[test]
fn one_token_for_all_fills_of_a_process_breaks_visible() {
    breaks_visible_without(Rule::TokenPerFill);
}

#[test]
fn version_numbers_instead_of_leases_break_visible() {
    breaks_visible_without(Rule::Leases);
}

#[test]
fn a_fill_from_a_replica_or_an_older_snapshot_breaks_visible() {
    breaks_visible_without(Rule::FreshSnapshot);
}

#[test]
fn a_blind_set_on_refresh_breaks_visible() {
    breaks_visible_without(Rule::CompareOnRefresh);
}

#[test]
fn a_forced_select_sent_before_the_reply_to_its_get_breaks_visible() {
    breaks_visible_without(Rule::SelectAfterReply);
}

#[test]
fn bytes_without_a_fill_id_break_visible() {
    breaks_visible_without(Rule::FillId);
}

#[test]
fn no_barrier_before_commit_breaks_linearizable() {
    breaks_linearizable_without(Rule::BarrierBeforeCommit);
}

#[test]
fn a_barrier_before_the_lock_breaks_linearizable() {
    breaks_linearizable_without(Rule::BarrierAfterLock);
}

#[test]
fn a_barrier_that_ends_before_its_commit_breaks_linearizable() {
    breaks_linearizable_without(Rule::BarrierOutlivesCommit);
}

#[test]
fn an_un_barrier_that_removes_anothers_barrier_breaks_linearizable() {
    breaks_linearizable_without(Rule::SpareForeignBarriers);
}

#[test]
fn an_un_barrier_that_removes_an_unanswered_barrier_breaks_linearizable() {
    breaks_linearizable_without(Rule::SpareUnansweredBarriers);
}

#[test]
fn an_acknowledgement_before_the_un_barrier_breaks_visible() {
    let without = Some(Rule::AcknowledgeLast);
    breaks(
        OneKey { promise: Promise::Visible, faults: Faults::BarriersLost, without, ..PROTOCOL },
        "visible",
    );
}

#[test]
fn a_copy_left_over_anothers_barrier_breaks_visible() {
    breaks_visible_without(Rule::CopyOverOwnBarrier);
}

#[test]
fn a_copy_left_by_a_transaction_that_was_rolled_back_breaks_linearizable() {
    breaks_linearizable_without(Rule::CopyAfterCommit);
}
