//! The protocol with all its rules, and without each.

use super::{Faults, Near, Protection, Rule, Writes};
use crate::check::{Promise, breaks, passes};

const PROTOCOL: Near = Near {
    promise: Promise::Linearizable,
    protection: Protection::Barrier,
    faults: Faults::BarriersKept,
    writes: Writes::All,
    without: None,
    fetches: 1,
    writers: 1,
    commits: 1,
    pongs: 1,
};

#[test]
fn reads_are_linearizable_while_barriers_are_kept() {
    passes(Near { fetches: 2, pongs: 2, ..PROTOCOL });
}

#[test]
fn reads_are_linearizable_with_two_writers() {
    passes(Near { writers: 2, commits: 2, ..PROTOCOL });
}

#[test]
fn writes_are_visible_when_barriers_are_lost_and_nothing_is_deleted() {
    passes(Near {
        promise: Promise::Visible,
        faults: Faults::BarriersLost,
        writes: Writes::NoDeletes,
        writers: 2,
        commits: 2,
        ..PROTOCOL
    });
}

#[test]
fn writes_are_visible_when_barriers_are_lost_and_registers_wait() {
    passes(Near {
        promise: Promise::Visible,
        faults: Faults::BarriersLost,
        writes: Writes::RegistersWait,
        writers: 2,
        commits: 2,
        ..PROTOCOL
    });
}

#[test]
fn writes_are_visible_when_redis_restarts() {
    passes(Near { promise: Promise::Visible, faults: Faults::RedisRestarts, ..PROTOCOL });
}

/// The price of "a register need not wait": it relies on the wait of the delete before it. That delete has waited. But
/// if its barrier was lost, it must wait again after its COMMIT, and the name is free by then. A register in that time
/// is acknowledged while a replica may still return the deleted user, until its proof ends.
#[test]
fn a_register_over_a_delete_whose_barrier_was_lost_breaks_visible() {
    breaks(
        Near { promise: Promise::Visible, faults: Faults::BarriersLost, writers: 2, commits: 2, ..PROTOCOL },
        "visible",
    );
}

/// With the rows locked there is no such price, and no second wait.
#[test]
fn writes_are_visible_when_barriers_are_lost_and_rows_are_locked() {
    passes(Near {
        promise: Promise::Visible,
        protection: Protection::RowLock,
        faults: Faults::BarriersLost,
        writers: 2,
        commits: 2,
        ..PROTOCOL
    });
}

// Larger bounds.

const LARGER: Near = Near { fetches: 2, writers: 2, commits: 2, pongs: 2, ..PROTOCOL };

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_two_writers_and_fetches() {
    passes(LARGER);
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_three_writes() {
    passes(Near { fetches: 1, commits: 3, ..LARGER });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn writes_are_visible_with_two_fetches_lost_barriers_and_no_deletes() {
    passes(Near {
        promise: Promise::Visible,
        faults: Faults::BarriersLost,
        writes: Writes::NoDeletes,
        ..LARGER
    });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn writes_are_visible_with_two_fetches_lost_barriers_and_waiting_registers() {
    passes(Near {
        promise: Promise::Visible,
        faults: Faults::BarriersLost,
        writes: Writes::RegistersWait,
        ..LARGER
    });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn writes_are_visible_with_three_writes_lost_barriers_and_waiting_registers() {
    passes(Near {
        promise: Promise::Visible,
        faults: Faults::BarriersLost,
        writes: Writes::RegistersWait,
        fetches: 1,
        commits: 3,
        ..LARGER
    });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn writes_are_visible_with_two_writers_redis_restarts_and_waiting_registers() {
    passes(Near {
        promise: Promise::Visible,
        faults: Faults::RedisRestarts,
        writes: Writes::RegistersWait,
        ..LARGER
    });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn writes_are_visible_with_two_fetches_lost_barriers_and_locked_rows() {
    passes(Near {
        promise: Promise::Visible,
        protection: Protection::RowLock,
        faults: Faults::BarriersLost,
        ..LARGER
    });
}

// The rules, one by one.

fn breaks_visible_without(rule: Rule) {
    breaks(Near { promise: Promise::Visible, without: Some(rule), ..PROTOCOL }, "visible");
}

#[test]
fn no_wait_breaks_visible() {
    breaks_visible_without(Rule::Wait);
}

#[test]
fn no_wait_of_a_writer_that_cannot_reach_redis_breaks_visible() {
    breaks(
        Near {
            promise: Promise::Visible,
            faults: Faults::RedisRestarts,
            without: Some(Rule::WaitWithoutRedis),
            ..PROTOCOL
        },
        "visible",
    );
}

#[test]
fn a_wait_after_commit_breaks_linearizable() {
    breaks(Near { without: Some(Rule::WaitBeforeCommit), ..PROTOCOL }, "linearizable");
}

#[test]
fn a_wait_counted_from_begin_breaks_visible() {
    breaks_visible_without(Rule::WaitFromPublish);
}

#[test]
fn a_wait_skipped_when_publish_reached_no_subscriber_breaks_visible() {
    breaks_visible_without(Rule::WaitWithoutSubscribers);
}

#[test]
fn a_publish_before_the_barrier_breaks_visible() {
    breaks_visible_without(Rule::BarrierFirst);
}

#[test]
fn no_second_publish_and_wait_after_a_lost_barrier_breaks_visible() {
    breaks(
        Near {
            promise: Promise::Visible,
            faults: Faults::BarriersLost,
            without: Some(Rule::SecondRound),
            ..PROTOCOL
        },
        "visible",
    );
}

#[test]
fn a_proof_counted_from_the_arrival_of_the_pong_breaks_visible() {
    breaks_visible_without(Rule::ProofFromSending);
}

#[test]
fn a_ping_on_another_connection_breaks_visible() {
    breaks_visible_without(Rule::SameConnection);
}

#[test]
fn a_ping_sent_before_subscribe_breaks_visible() {
    breaks_visible_without(Rule::SubscribeFirst);
}

#[test]
fn a_proof_that_outlives_the_wait_breaks_visible() {
    breaks_visible_without(Rule::OneLength);
}

#[test]
fn no_check_of_the_count_breaks_visible() {
    breaks_visible_without(Rule::CheckCount);
}

#[test]
fn a_check_apart_from_its_put_breaks_visible() {
    breaks_visible_without(Rule::CheckWithPut);
}

#[test]
fn a_copy_removed_before_the_count_moves_breaks_visible() {
    breaks_visible_without(Rule::RemoveWithCount);
}

#[test]
fn a_stamp_taken_after_the_get_breaks_visible() {
    breaks_visible_without(Rule::StampBeforeGet);
}

#[test]
fn a_fill_that_outlives_a_break_breaks_visible() {
    breaks_visible_without(Rule::BreakMovesCounts);
}

#[test]
fn a_stamp_taken_while_out_of_use_breaks_visible() {
    breaks_visible_without(Rule::StampInUse);
}

#[test]
fn copies_kept_across_a_break_break_visible() {
    breaks_visible_without(Rule::BreakForgets);
}

#[test]
fn a_fill_from_a_bypass_breaks_visible() {
    breaks_visible_without(Rule::NoFillFromBypass);
}

#[test]
fn a_copy_taken_before_the_proof_is_read_breaks_visible() {
    breaks_visible_without(Rule::ProofBeforeCopy);
}

#[test]
fn an_absence_kept_near_breaks_visible() {
    breaks_visible_without(Rule::AbsentNotNear);
}
