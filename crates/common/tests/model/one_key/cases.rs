//! wip
use super::*;
use crate::check::{breaks, passes};
const F: OneKey = OneKey {
    promise: Promise::Linearizable,
    barriers: Barriers::Kept,
    without: None,
    loads: 2,
    writers: 2,
    commits: 2,
};
#[test]
fn kept() {
    passes(F);
}
#[test]
fn kept3() {
    passes(OneKey { loads: 3, ..F });
}
#[test]
fn kept33() {
    passes(OneKey { loads: 3, commits: 3, ..F });
}
#[test]
fn kept333() {
    passes(OneKey { loads: 3, commits: 3, writers: 3, ..F });
}
#[test]
fn lost() {
    passes(OneKey { promise: Promise::Visible, barriers: Barriers::Lost, ..F });
}
#[test]
fn lost3() {
    passes(OneKey { promise: Promise::Visible, barriers: Barriers::Lost, loads: 3, ..F });
}
#[test]
fn lost33() {
    passes(OneKey { promise: Promise::Visible, barriers: Barriers::Lost, loads: 3, commits: 3, ..F });
}
fn v(rule: Rule) {
    breaks(OneKey { without: Some(rule), promise: Promise::Visible, ..F }, "visible")
}
fn l(rule: Rule) {
    breaks(OneKey { without: Some(rule), ..F }, "linearizable")
}
#[test]
fn a1() {
    v(Rule::TokenPerFill)
}
#[test]
fn a2() {
    v(Rule::Leases)
}
#[test]
fn a3() {
    v(Rule::FreshSnapshot)
}
#[test]
fn a4() {
    v(Rule::CompareOnRefresh)
}
#[test]
fn a5() {
    v(Rule::SelectAfterReply)
}
#[test]
fn a6() {
    v(Rule::FillId)
}
#[test]
fn a7() {
    l(Rule::BarrierBeforeCommit)
}
#[test]
fn a8() {
    l(Rule::BarrierAfterLock)
}
#[test]
fn a9() {
    l(Rule::BarrierOutlivesCommit)
}
#[test]
fn a10() {
    l(Rule::SpareForeignBarriers)
}
#[test]
fn a11() {
    l(Rule::SpareUnansweredBarriers)
}
#[test]
fn a12() {
    breaks(
        OneKey {
            promise: Promise::Visible,
            barriers: Barriers::Lost,
            without: Some(Rule::AcknowledgeLast),
            ..F
        },
        "visible",
    );
}
#[test]
fn a13() {
    breaks(OneKey { promise: Promise::Visible, barriers: Barriers::LostTwice, ..F }, "visible");
}
#[test]
fn a14() {
    breaks(OneKey { barriers: Barriers::Lost, ..F }, "linearizable");
}
