//! wip
use super::*;
use crate::check::{breaks, passes};
const F: Near = Near {
    promise: Promise::Linearizable,
    barriers: Barriers::Kept,
    without: None,
    fetches: 1,
    writers: 1,
    commits: 1,
    registers_wait: false,
};
#[test]
fn kept1() {
    passes(F);
}
#[test]
fn kept2() {
    passes(Near { fetches: 2, ..F });
}
#[test]
fn kept22() {
    passes(Near { writers: 2, commits: 2, ..F });
}
#[test]
fn kept222() {
    passes(Near { fetches: 2, writers: 2, commits: 2, ..F });
}
#[test]
fn lost22() {
    passes(Near { promise: Promise::Visible, barriers: Barriers::Lost, writers: 2, commits: 2, ..F });
}
#[test]
fn lost22w() {
    passes(Near {
        promise: Promise::Visible,
        barriers: Barriers::Lost,
        writers: 2,
        commits: 2,
        registers_wait: true,
        ..F
    });
}
fn l(rule: Rule) {
    breaks(Near { without: Some(rule), ..F }, "linearizable")
}
fn v(rule: Rule) {
    breaks(Near { without: Some(rule), promise: Promise::Visible, ..F }, "visible")
}
macro_rules! t { ($($n:ident $r:ident;)*) => { $( #[test] fn $n() { v(Rule::$r) } )* } }
t! { b1 Wait; b2 WaitBeforeCommit; b3 WaitFromPublish; b4 WaitForNobody; b5 BarrierFirst; b7 LeaseFromSending; b8 SameConnection; b9 SubscribeFirst;
c1 OneLength; c2 CheckCount; c3 CheckWithPut; c4 RemoveWithCount; c5 NoteBeforeGet; c6 BreakMovesCounts; c7 NoteInUse; c8 BreakForgets; c9 NoFillFromBypass; d1 TimeBeforeEntry; d2 AbsentNotNear; }
#[test]
fn l2() {
    l(Rule::WaitBeforeCommit);
}
#[test]
fn b6() {
    breaks(
        Near { without: Some(Rule::SecondRound), promise: Promise::Visible, barriers: Barriers::Lost, ..F },
        "visible",
    )
}
