//! The checkers on histories made by hand: each kind of violation, and cases that only look like one.

use super::{linearizable, stale_reads, visible};
use crate::operation::{Action, OPEN, Operation, Outcome, State, Via};

fn operation(start: u64, end: u64, action: Action, outcome: Outcome) -> Operation {
    Operation { start, end, action, outcome, via: Via { replica: "", source: "" } }
}

pub fn done(start: u64, end: u64, action: Action) -> Operation {
    operation(start, end, action, Outcome::Done)
}

pub fn refused(start: u64, end: u64, action: Action) -> Operation {
    operation(start, end, action, Outcome::Refused)
}

pub fn unknown(start: u64, action: Action) -> Operation {
    operation(start, OPEN, action, Outcome::Unknown)
}

fn read(start: u64, end: u64, state: State) -> Operation {
    done(start, end, Action::Read(state))
}

/// Whether the history is *visible*, and whether it is *linearizable*.
fn verdicts(operations: &[Operation]) -> (bool, bool) {
    (visible(operations).is_empty(), linearizable(operations).is_none())
}

const GOOD: (bool, bool) = (true, true);
const BAD: (bool, bool) = (false, false);
/// *Visible* holds, *linearizable* does not.
const OUT_OF_ORDER: (bool, bool) = (true, false);

use Action::{Delete, Register, Replace};

#[test]
fn one_after_the_other_is_good() {
    let history = [
        read(0, 1, None),
        done(2, 3, Register(1)),
        read(4, 5, Some(1)),
        refused(6, 7, Register(2)),
        done(8, 9, Replace(3)),
        read(10, 11, Some(3)),
        done(12, 13, Delete),
        read(14, 15, None),
        refused(16, 17, Replace(4)),
        refused(18, 19, Delete),
        done(20, 21, Register(5)),
        read(22, 23, Some(5)),
    ];
    assert_eq!(verdicts(&history), GOOD);
    assert_eq!(verdicts(&[]), GOOD);
}

#[test]
fn a_read_during_a_write_may_see_either_state() {
    for state in [Some(1), Some(2)] {
        let history = [done(0, 1, Register(1)), done(2, 9, Replace(2)), read(3, 8, state)];
        assert_eq!(verdicts(&history), GOOD);
    }
    // Touching is overlapping.
    let history = [done(0, 1, Register(1)), done(2, 5, Replace(2)), read(5, 6, Some(1))];
    assert_eq!(verdicts(&history), GOOD);
}

#[test]
fn a_stale_read_after_the_acknowledgement_is_bad() {
    let history = [done(0, 1, Register(1)), done(2, 5, Replace(2)), read(8, 9, Some(1))];
    assert_eq!(verdicts(&history), BAD);
    assert_eq!(stale_reads(&history)[0].age, 3, "since the acknowledgement");
    assert_eq!(linearizable(&history).map(|it| it.operation), Some(2));
}

#[test]
fn an_absence_after_a_201_is_bad() {
    let history = [done(0, 1, Register(1)), read(2, 3, None)];
    assert_eq!(verdicts(&history), BAD);
    // An acknowledged replace shows as well that there is a user.
    let history = [unknown(0, Register(1)), done(1, 2, Replace(2)), read(3, 4, None)];
    assert_eq!(verdicts(&history), BAD);
}

#[test]
fn an_absence_is_good_if_a_delete_may_have_happened_in_between() {
    for delete in [unknown(0, Delete), unknown(5, Delete), done(1, 4, Delete), done(5, 9, Delete)] {
        let history = [done(2, 3, Register(1)), delete, read(6, 7, None)];
        assert!(visible(&history).is_empty(), "{delete:?}");
    }
    // This delete cannot.
    let history = [done(0, 1, Register(1)), done(2, 3, Delete), done(4, 5, Register(2)), read(6, 7, None)];
    assert_eq!(verdicts(&history), BAD);
}

#[test]
fn a_user_that_returns_after_its_delete_is_bad() {
    let history = [done(0, 1, Register(1)), done(2, 3, Delete), read(4, 5, Some(1))];
    assert_eq!(verdicts(&history), BAD);
}

#[test]
fn two_reads_that_see_new_and_then_old_are_out_of_order() {
    let history =
        [done(0, 1, Register(1)), done(2, 20, Replace(2)), read(3, 4, Some(2)), read(5, 6, Some(1))];
    assert_eq!(verdicts(&history), OUT_OF_ORDER);
    // If the two overlap, they are not.
    let history =
        [done(0, 1, Register(1)), done(2, 20, Replace(2)), read(3, 6, Some(2)), read(5, 7, Some(1))];
    assert_eq!(verdicts(&history), GOOD);
}

#[test]
fn a_read_proves_that_an_unknown_write_happened() {
    let history = [
        done(0, 1, Register(1)),
        unknown(2, Replace(2)),
        read(3, 4, Some(2)),
        done(5, 6, Replace(3)),
        read(7, 8, Some(2)),
    ];
    assert_eq!(verdicts(&history), BAD);
    // Without the read in between it may happen as late as this.
    let late = [done(0, 1, Register(1)), unknown(2, Replace(2)), done(5, 6, Replace(3)), read(7, 8, Some(2))];
    assert_eq!(verdicts(&late), GOOD);
}

#[test]
fn a_lost_update_is_out_of_order() {
    // The second replace was acknowledged, but what it wrote is never seen: two reads see the first, which overlaps it.
    let history = [
        done(0, 1, Register(1)),
        done(2, 6, Replace(2)),
        done(3, 4, Replace(3)),
        read(4, 5, Some(3)),
        read(7, 8, Some(2)),
        read(9, 10, Some(3)),
    ];
    assert_eq!(verdicts(&history), OUT_OF_ORDER);
    // An acknowledged delete, and a replace that still found the user.
    let history = [done(0, 1, Register(1)), done(2, 3, Delete), done(4, 5, Replace(2))];
    assert_eq!(verdicts(&history), OUT_OF_ORDER);
}

#[test]
fn a_second_201_without_a_delete_is_out_of_order() {
    let history = [done(0, 5, Register(1)), done(1, 6, Register(2))];
    assert_eq!(verdicts(&history), OUT_OF_ORDER);
    let history = [done(0, 5, Register(1)), done(1, 6, Register(2)), unknown(2, Delete)];
    assert_eq!(verdicts(&history), GOOD);
    // One delete explains one of them.
    let history =
        [done(0, 5, Register(1)), done(1, 6, Register(2)), done(1, 7, Register(3)), unknown(2, Delete)];
    assert_eq!(verdicts(&history), OUT_OF_ORDER);
}

#[test]
fn a_409_without_a_user_is_out_of_order() {
    assert_eq!(verdicts(&[refused(0, 1, Register(1))]), OUT_OF_ORDER);
    assert_eq!(verdicts(&[refused(0, 5, Register(1)), unknown(4, Register(2))]), GOOD);
    assert_eq!(verdicts(&[refused(0, 3, Register(1)), unknown(4, Register(2))]), OUT_OF_ORDER);
}

#[test]
fn a_read_of_an_info_that_was_never_written_is_bad() {
    assert_eq!(verdicts(&[read(0, 1, Some(7))]), BAD);
    // Before its write began.
    assert_eq!(verdicts(&[read(0, 1, Some(7)), done(2, 3, Register(7))]), BAD);
    // Its write was refused.
    let history = [done(0, 1, Register(1)), refused(2, 3, Register(2)), read(4, 5, Some(2))];
    assert_eq!(verdicts(&history), BAD);
}

#[test]
fn hundreds_of_unknown_writes_do_not_slow_the_check_down() {
    let mut history = vec![done(0, 1, Register(1))];
    for number in 0..300 {
        let at = 10 + 10 * u64::from(number);
        history.push(unknown(
            at,
            [Delete, Register(1000 + number), Replace(2000 + number)][number as usize % 3],
        ));
        history.push(unknown(at + 1, Replace(3000 + number)));
        history.push(done(at + 1, at + 5, Replace(4000 + number)));
        history.push(read(at + 2, at + 6, Some(4000 + number)));
        history.push(read(at + 2, at + 6, Some(3000 + number)));
        // Nine readers at a time, which all overlap the next round.
        history.extend((0..9).map(|_| read(at + 6, at + 15, Some(4000 + number))));
    }
    let start = std::time::Instant::now();
    // Each round has two replaces, one of them unknown, and reads of both infos. The checker must find the order of the
    // two that explains the reads at the end of the round.
    let verdict = linearizable(&history);
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    assert_eq!(verdict, None);
}
