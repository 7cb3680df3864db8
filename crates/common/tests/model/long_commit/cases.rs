//! The protocol with all its rules, and without each.

use super::{Absences, COHERENT, Faults, LongCommit, Rule};
use crate::check::{breaks, passes};

const PROTOCOL: LongCommit = LongCommit {
    absences: Absences::Linearizable,
    faults: Faults::RegistersLive,
    without: None,
    loads: 3,
    writers: 3,
    commits: 3,
};

/// Also if any barrier of a replace or delete is lost: the row lock is their barrier.
#[test]
fn reads_are_linearizable_while_registers_extend_their_barriers() {
    passes(PROTOCOL);
}

#[test]
fn reads_are_linearizable_when_barriers_are_lost_and_absences_are_not_cached() {
    passes(LongCommit { absences: Absences::NotCached, faults: Faults::BarriersLost, ..PROTOCOL });
}

/// Then a register needs none of its own rules.
#[test]
fn registers_may_answer_at_commit_if_absences_are_not_cached() {
    passes(LongCommit {
        absences: Absences::NotCached,
        faults: Faults::BarriersLost,
        without: Some(Rule::RegisterAnswersLast),
        ..PROTOCOL
    });
}

#[test]
fn only_absences_are_late_and_visible_when_barriers_of_registers_are_lost() {
    passes(LongCommit { absences: Absences::Visible, faults: Faults::BarriersLost, ..PROTOCOL });
}

#[test]
fn only_absences_are_late_and_visible_when_registers_die() {
    passes(LongCommit { absences: Absences::Visible, faults: Faults::RegistersDie, ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_five_writes() {
    passes(LongCommit { commits: 5, ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn only_absences_are_late_and_visible_with_five_writes() {
    passes(LongCommit { absences: Absences::Visible, faults: Faults::BarriersLost, commits: 5, ..PROTOCOL });
}

// The limits: an absence that was stored while a register was under way is older than what another read returned, for
// as long as absences are kept.

#[test]
fn a_lost_barrier_of_a_register_breaks_linearizable() {
    breaks(LongCommit { faults: Faults::BarriersLost, ..PROTOCOL }, COHERENT);
}

#[test]
fn a_register_whose_writer_dies_in_a_long_commit_breaks_linearizable() {
    breaks(LongCommit { faults: Faults::RegistersDie, ..PROTOCOL }, COHERENT);
}

/// Two faults at once, and only for a register.
#[test]
fn a_lost_barrier_and_a_lost_un_barrier_of_a_register_break_visible() {
    breaks(LongCommit { absences: Absences::Visible, faults: Faults::BothLost, ..PROTOCOL }, COHERENT);
}

// The rules, one by one.

fn breaks_linearizable_without(rule: Rule) {
    breaks(LongCommit { without: Some(rule), ..PROTOCOL }, COHERENT);
}

fn breaks_visible_without(rule: Rule) {
    breaks(
        LongCommit {
            absences: Absences::Visible,
            faults: Faults::BarriersLost,
            without: Some(rule),
            ..PROTOCOL
        },
        COHERENT,
    );
}

#[test]
fn a_stored_row_that_is_not_clear_breaks_visible() {
    breaks_visible_without(Rule::StoreOnlyClearRows);
}

#[test]
fn a_barrier_before_the_lock_breaks_visible() {
    breaks_visible_without(Rule::BarrierAfterLock);
}

#[test]
fn no_wait_for_near_copies_breaks_visible() {
    breaks_visible_without(Rule::Wait);
}

#[test]
fn a_register_that_answers_at_commit_breaks_visible() {
    breaks_visible_without(Rule::RegisterAnswersLast);
}

#[test]
fn no_extension_of_a_registers_barrier_breaks_linearizable() {
    breaks_linearizable_without(Rule::ExtendForRegister);
}

#[test]
fn an_extension_that_spares_anothers_late_barrier_breaks_linearizable() {
    breaks_linearizable_without(Rule::ExtendAnyBarrier);
}

#[test]
fn an_un_barrier_that_removes_a_registers_barrier_breaks_linearizable() {
    breaks_linearizable_without(Rule::SpareForeignBarriers);
}

#[test]
fn a_copy_left_over_anothers_barrier_breaks_visible() {
    breaks_visible_without(Rule::CopyOverOwnBarrier);
}
