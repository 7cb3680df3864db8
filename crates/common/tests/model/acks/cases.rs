//! The protocol with all its rules, and without each.

use super::{Acks, Fault, Numbers, Others, Past, Rule};
use crate::check::{Promise, Write, breaks, passes};

const PROTOCOL: Acks = Acks {
    promise: Promise::Linearizable,
    faults: &[],
    past: Past::Any,
    numbers: Numbers::Count,
    without: None,
    writes: &[Write::Replace],
    others: Others::Write,
    processes: 1,
    changes: 0,
};

const TWO_PROCESSES: Acks = Acks { others: Others::None, processes: 2, ..PROTOCOL };

const SUSPENSION: Acks = Acks {
    faults: &[Fault::Suspension],
    past: Past::BeforeJoin,
    others: Others::None,
    changes: 2,
    ..PROTOCOL
};

#[test]
fn reads_are_linearizable_when_the_hash_is_lost() {
    passes(Acks { faults: &[Fault::HashLost], ..PROTOCOL });
}

#[test]
fn reads_are_linearizable_with_two_writes_of_two_processes() {
    passes(Acks { faults: &[Fault::HashLost], writes: &[Write::Replace, Write::Replace], ..TWO_PROCESSES });
}

/// A register neither publishes nor waits, and answers after its un-barrier.
#[test]
fn reads_are_linearizable_with_a_delete_a_register_and_a_replace() {
    let writes = &[Write::Delete, Write::Register, Write::Replace];
    passes(Acks { writes, others: Others::None, ..PROTOCOL });
}

#[test]
fn reads_are_linearizable_when_redis_restarts_from_before_the_replica_joined() {
    passes(Acks { faults: &[Fault::Restart], past: Past::BeforeJoin, others: Others::None, ..PROTOCOL });
}

#[test]
fn reads_are_linearizable_when_the_grant_changes() {
    passes(SUSPENSION);
}

// Larger bounds.

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_two_processes_that_write_other_keys() {
    passes(Acks { others: Others::Write, faults: &[Fault::HashLost], ..TWO_PROCESSES });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_with_late_renewals_and_two_writes() {
    let writes = &[Write::Replace, Write::Replace];
    passes(Acks { faults: &[Fault::HashLost, Fault::LateRenewal], writes, ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_when_redis_restarts_from_any_past() {
    passes(Acks { faults: &[Fault::Restart], ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_when_any_past_of_redis_is_granted() {
    passes(Acks { past: Past::Any, ..SUSPENSION });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_when_the_grant_changes_and_the_hash_is_lost() {
    passes(Acks { faults: &[Fault::Suspension, Fault::HashLost], ..SUSPENSION });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_when_the_grant_changes_four_times() {
    passes(Acks { changes: 4, ..SUSPENSION });
}

// What only costs time when it is missing.

/// Members that are dropped too early come back with their next renewal, and nobody trusts the new roll before.
#[test]
fn members_dropped_by_one_that_has_not_waited_cost_only_time() {
    passes(Acks { without: Some(Rule::DropAfterWait), faults: &[Fault::HashLost], ..PROTOCOL });
}

#[test]
fn members_dropped_under_a_roll_of_others_cost_only_time() {
    passes(Acks { without: Some(Rule::DropUnderOwnRoll), faults: &[Fault::HashLost], ..PROTOCOL });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn members_dropped_by_another_process_that_has_not_waited_cost_only_time() {
    passes(Acks { without: Some(Rule::DropAfterWait), others: Others::Write, ..TWO_PROCESSES });
}

#[test]
#[ignore = "a larger bound: see main.rs"]
fn members_dropped_by_another_process_under_a_roll_of_others_cost_only_time() {
    passes(Acks { without: Some(Rule::DropUnderOwnRoll), others: Others::Write, ..TWO_PROCESSES });
}

/// A granted process has no member of before: what was known of its roll elsewhere does no harm.
#[test]
#[ignore = "a larger bound: see main.rs"]
fn a_roll_known_on_another_connection_costs_nothing_under_a_new_grant() {
    passes(Acks { without: Some(Rule::TrustIsOfConnection), ..SUSPENSION });
}

// The limits: a hash that goes back under open connections. The grant does not let it, for longer than it takes to see
// that `master_replid` is another.

/// [`Rule::SeqGrows`] does not help: a member may have joined since, and no number have been given.
#[test]
fn a_hash_that_goes_back_at_once_breaks_visible() {
    breaks(Acks { faults: &[Fault::Rewind], promise: Promise::Visible, ..PROTOCOL }, "visible");
}

/// After a proof's life members have joined anew. But a number is given a second time, and the ack of the first counts.
#[test]
#[ignore = "a larger bound: see main.rs"]
fn a_hash_that_goes_back_by_a_resync_breaks_visible() {
    breaks(
        Acks { faults: &[Fault::Resync], others: Others::None, promise: Promise::Visible, ..PROTOCOL },
        "visible",
    );
}

/// It would help if no number were given twice.
#[test]
#[ignore = "a larger bound: see main.rs"]
fn reads_are_linearizable_after_a_resync_if_numbers_are_those_of_a_clock() {
    passes(Acks { faults: &[Fault::Resync], numbers: Numbers::Clock, others: Others::None, ..PROTOCOL });
}

// The rules, one by one.

fn breaks_visible_without(rule: Rule, faults: &'static [Fault]) {
    breaks(Acks { promise: Promise::Visible, without: Some(rule), faults, ..PROTOCOL }, "visible");
}

#[test]
fn no_wait_breaks_visible() {
    breaks_visible_without(Rule::Wait, &[]);
}

#[test]
fn a_list_trusted_at_once_after_a_flush_breaks_visible() {
    breaks_visible_without(Rule::TrustIsKnown, &[Fault::HashLost]);
}

#[test]
fn a_list_trusted_at_once_after_a_restart_breaks_visible() {
    breaks_visible_without(Rule::TrustIsKnown, &[Fault::Restart]);
}

#[test]
fn a_list_trusted_at_once_after_members_were_dropped_breaks_visible() {
    breaks_visible_without(Rule::TrustIsKnown, &[]);
}

#[test]
fn trust_that_outlives_a_flush_breaks_visible() {
    breaks_visible_without(Rule::TrustIsOfRoll, &[Fault::HashLost]);
}

#[test]
fn trust_that_outlives_a_new_roll_breaks_visible() {
    breaks_visible_without(Rule::TrustIsOfRoll, &[]);
}

#[test]
fn trust_that_outlives_a_restart_breaks_visible() {
    breaks_visible_without(Rule::TrustIsOfConnection, &[Fault::Restart]);
}

#[test]
fn trust_counted_from_the_sending_of_the_script_breaks_visible() {
    breaks_visible_without(Rule::TrustFromReply, &[Fault::HashLost]);
}

#[test]
fn a_wait_counted_from_the_sending_of_the_script_breaks_visible() {
    breaks_visible_without(Rule::WaitFromReply, &[]);
}

#[test]
fn members_dropped_under_the_same_roll_break_visible() {
    breaks_visible_without(Rule::DropUnderNewRoll, &[]);
}

#[test]
fn members_dropped_instead_of_a_wait_break_visible() {
    breaks_visible_without(Rule::DroppedAreAwaited, &[]);
}

#[test]
fn an_ack_before_its_message_is_applied_breaks_visible() {
    breaks_visible_without(Rule::AckAfterApply, &[]);
}

#[test]
fn an_ack_without_its_number_breaks_visible() {
    breaks_visible_without(Rule::AckHasSeq, &[]);
}

#[test]
fn an_ack_without_its_roll_breaks_visible() {
    breaks_visible_without(Rule::AckHasRoll, &[Fault::HashLost]);
}

#[test]
fn messages_that_leave_out_of_order_break_visible() {
    let without = Some(Rule::OneScript);
    breaks(Acks { promise: Promise::Visible, without, processes: 2, ..PROTOCOL }, "visible");
}

#[test]
fn members_read_before_the_barrier_break_visible() {
    breaks_visible_without(Rule::MembersAfterBarrier, &[]);
}

#[test]
fn a_roll_that_outlives_the_members_breaks_visible() {
    breaks_visible_without(Rule::OneKey, &[Fault::HashLost]);
}

#[test]
fn a_renewal_that_does_not_add_the_member_breaks_visible() {
    breaks_visible_without(Rule::RenewalAdds, &[Fault::HashLost]);
}

#[test]
fn a_proof_counted_from_the_answer_breaks_visible() {
    breaks_visible_without(Rule::ProofFromSending, &[]);
}

#[test]
fn a_renewal_on_another_connection_breaks_visible() {
    breaks_visible_without(Rule::SameConnection, &[]);
}

#[test]
fn a_renewal_before_subscribe_is_answered_breaks_visible() {
    breaks_visible_without(Rule::SubscribeFirst, &[]);
}

#[test]
fn a_reply_looked_at_before_the_message_ahead_of_it_breaks_visible() {
    breaks_visible_without(Rule::WireOrder, &[]);
}

#[test]
fn one_id_for_all_connections_breaks_visible() {
    breaks_visible_without(Rule::NewIds, &[]);
}

#[test]
fn a_former_id_removed_while_its_copies_are_used_breaks_visible() {
    breaks_visible_without(Rule::BreakForgets, &[]);
}

#[test]
fn a_load_of_a_row_that_is_not_clear_breaks_visible() {
    breaks_visible_without(Rule::ClearRows, &[]);
}

#[test]
fn a_near_copy_that_needs_no_grant_breaks_visible() {
    let without = Some(Rule::NearUnderGrant);
    breaks(Acks { promise: Promise::Visible, without, ..SUSPENSION }, "visible");
}

#[test]
fn a_write_under_a_suspension_that_does_not_wait_breaks_visible() {
    let without = Some(Rule::SuspensionWaits);
    breaks(Acks { promise: Promise::Visible, without, ..SUSPENSION }, "visible");
}
