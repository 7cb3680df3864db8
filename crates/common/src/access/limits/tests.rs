//! Whose budget a request takes from.

use std::rc::Rc;

use actix_web::rt;
use governor::clock::FakeRelativeClock;

use super::super::tests::{NOW, limited, list_of, token, with};
use super::super::{Access, Memo, Needs, Scope, TokenList};
use super::*;

fn limits(limit: &str, failures: &str) -> (Limits<FakeRelativeClock>, FakeRelativeClock) {
    let clock = FakeRelativeClock::default();
    let rate = |text: &str| text.parse().expect("a rate");
    let settings = RateSettings { limit: rate(limit), failures: rate(failures), trusted_proxies: Vec::new() };
    (Limits::with_clock(&settings, clock.clone()), clock)
}

/// How many of a hundred requests are allowed.
fn allowed(limits: &Limits<FakeRelativeClock>, checked: &Checked, address: &str) -> usize {
    let address = address.parse().expect("an address");
    let decisions = (0..100).map(|_| limits.check(checked, || address));
    decisions.filter(|decision| matches!(decision, Decision::Allowed(_))).count()
}

fn check(access: &Access, number: u8, needs: Scope) -> Checked {
    access.check(&with(&token(number)), &Memo::default(), Needs::Scope(needs), NOW)
}

fn refused(why: Refusal) -> Checked {
    Err(why.into())
}

#[test]
fn without_limits_the_address_is_not_looked_at() {
    let (limits, _clock) = limits("off", "off");
    for checked in [Ok(None), refused(Refusal::CredentialsNeeded), refused(Refusal::InvalidToken)] {
        assert_eq!(limits.check(&checked, || panic!("looked at")), Decision::Allowed(None));
    }
}

#[test]
fn a_request_without_a_token_takes_from_its_address_and_is_no_failure() {
    let (limits, clock) = limits("20/s", "5/s,burst=5");
    assert_eq!(allowed(&limits, &Ok(None), "192.0.2.1"), 20);
    assert_eq!(allowed(&limits, &refused(Refusal::CredentialsNeeded), "192.0.2.1"), 0);
    assert_eq!(allowed(&limits, &refused(Refusal::CredentialsNeeded), "192.0.2.2"), 20);
    clock.advance(Duration::from_secs(1));
    assert_eq!(allowed(&limits, &Ok(None), "192.0.2.1"), 20);
}

#[test]
fn failures_are_counted_by_address() {
    let (limits, clock) = limits("off", "20/s");
    assert_eq!(allowed(&limits, &refused(Refusal::InvalidToken), "192.0.2.1"), 20);
    assert_eq!(allowed(&limits, &refused(Refusal::TwoCredentials), "192.0.2.1"), 0);
    assert_eq!(allowed(&limits, &refused(Refusal::TwoCredentials), "192.0.2.2"), 20);
    assert_eq!(allowed(&limits, &refused(Refusal::CredentialsNeeded), "192.0.2.1"), 100);
    clock.advance(Duration::from_secs(1));
    assert_eq!(allowed(&limits, &refused(Refusal::InvalidToken), "192.0.2.1"), 20);
}

#[test]
fn a_failure_takes_from_the_address_as_well() {
    let (limits, _clock) = limits("10/s", "off");
    assert_eq!(allowed(&limits, &refused(Refusal::InvalidToken), "192.0.2.1"), 10);
    assert_eq!(allowed(&limits, &Ok(None), "192.0.2.1"), 0);
}

#[test]
fn a_valid_token_is_not_affected_by_failures_or_by_others_from_its_address() {
    let access = limited(&list_of(&[&token(1)]), "1/m,burst=30".parse().expect("a rate"));
    let (limits, _clock) = limits("10/s", "20/s");
    assert_eq!(allowed(&limits, &refused(Refusal::InvalidToken), "192.0.2.1"), 10);
    assert_eq!(allowed(&limits, &Ok(None), "192.0.2.1"), 0);
    assert_eq!(allowed(&limits, &check(&access, 1, Scope::Read), "192.0.2.1"), 30);
}

#[test]
fn a_token_without_the_scope_takes_from_its_own_budget() {
    let access = limited(&list_of(&[&token(1)]), "1/m,burst=30".parse().expect("a rate"));
    let (limits, _clock) = limits("10/s", "20/s");
    assert_eq!(allowed(&limits, &check(&access, 1, Scope::Write), "192.0.2.1"), 30);
    assert_eq!(allowed(&limits, &check(&access, 1, Scope::Read), "192.0.2.2"), 0);
}

#[test]
fn tokens_of_one_name_share_a_budget_and_other_names_have_their_own() {
    let list = list_of(&[&token(1), &token(2)]);
    let other = list_of(&[&token(3)]).replace("billing", "other");
    let access = limited(&format!("{list}\n{other}"), "1/m,burst=30".parse().expect("a rate"));
    let (limits, _clock) = limits("off", "off");
    assert_eq!(allowed(&limits, &check(&access, 1, Scope::Read), "192.0.2.1"), 30);
    assert_eq!(allowed(&limits, &check(&access, 2, Scope::Read), "192.0.2.1"), 0);
    assert_eq!(allowed(&limits, &check(&access, 3, Scope::Read), "192.0.2.1"), 30);
}

#[test]
fn the_rate_of_a_line_goes_before_the_one_of_all() {
    let lines = ["one", "two", "three"].into_iter().zip(1..).map(|(name, number)| {
        let rate = ["", " rate=1/m,burst=5", " rate=off"][usize::from(number) - 1];
        list_of(&[&token(number)]).replace("billing", name) + rate
    });
    let access = limited(&lines.collect::<Vec<_>>().join("\n"), "1/m,burst=30".parse().expect("a rate"));
    let (limits, _clock) = limits("off", "off");
    let passed = [1, 2, 3].map(|number| allowed(&limits, &check(&access, number, Scope::Read), "192.0.2.1"));
    assert_eq!(passed, [30, 5, 100]);
}

#[test]
fn a_reload_of_the_list_keeps_the_budget_of_a_client_unless_its_rate_has_changed() {
    let list = |tokens: &[&super::super::Token], rate: &str| {
        list_of(tokens).lines().map(|line| format!("{line} rate={rate}\n")).collect::<String>()
    };
    let access = limited(&list(&[&token(1)], "1/m,burst=30"), RateLimit::Off);
    let reload = |text: &str| {
        let _ = access.replace(TokenList::parse(text).expect("a list"));
    };
    let (limits, _clock) = limits("off", "off");
    let passed = |number| allowed(&limits, &check(&access, number, Scope::Read), "192.0.2.1");
    assert_eq!(passed(1), 30);
    reload(&list(&[&token(1), &token(2)], "1/m,burst=30"));
    assert_eq!((passed(1), passed(2)), (0, 0));
    reload(&list(&[&token(2)], "1/m,burst=30"));
    assert_eq!(passed(2), 0);
    reload(&list(&[&token(2)], "1/m,burst=40"));
    assert_eq!(passed(2), 40);
}

#[test]
fn a_spoofed_header_from_a_peer_that_is_not_trusted_gives_no_other_budget() {
    let (limits, _clock) = limits("20/s", "off");
    let peer = "192.0.2.1".parse().expect("an address");
    let passed = (0..100).filter(|number| {
        let mut headers = HeaderMap::new();
        let spoofed = format!("203.0.113.{number}").parse().expect("a value");
        headers.insert(actix_web::http::header::X_FORWARDED_FOR, spoofed);
        let decision = limits.check(&Ok(None), || limits.client_address(peer, &headers));
        matches!(decision, Decision::Allowed(_))
    });
    assert_eq!(passed.count(), 20);
}

#[test]
fn the_memo_reaches_the_budget_that_the_list_gave() {
    let access = limited(&list_of(&[&token(1)]), "1/m,burst=30".parse().expect("a rate"));
    let memo = Memo::default();
    let check =
        || access.check(&with(&token(1)), &memo, Needs::ValidToken, NOW).ok().flatten().expect("let in");
    let (first, second) = (check(), check());
    assert!(Rc::ptr_eq(&first, &second), "by the memo");
    let passed = (0..100).filter(|_| matches!(check().take(), Decision::Allowed(_)));
    assert_eq!(passed.count(), 30);
}

#[test]
fn a_map_that_is_full_is_swept_at_once() {
    let (limits, clock) = limits("1/s,burst=1", "off");
    let limits = Arc::new(limits);
    let is_allowed = |number: u32| {
        let address = std::net::Ipv4Addr::from_bits(number).into();
        matches!(limits.check(&Ok(None), || address), Decision::Allowed(_))
    };
    rt::System::new().block_on(async {
        rt::spawn(limits.clone().keep_small());
        assert!((0..200_000).any(|number| !is_allowed(number)), "there was room for all");
        clock.advance(Duration::from_secs(10));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!((300_000..310_000).filter(|&number| is_allowed(number)).count(), 10_000);
    });
}
