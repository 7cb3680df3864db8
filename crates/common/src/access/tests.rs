//! What is let in, and what the memo of a connection may answer.

use std::sync::Barrier;
use std::time::Duration;

use actix_web::http::header::HeaderValue;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::metrics::Metrics;

pub const NOW: fn() -> SystemTime = || SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);

/// A token that no generator would make, the same each time.
pub fn token(number: u8) -> Token {
    Token::parse(&format!("ut_{}{}A", "A".repeat(40), char::from(b'A' + number).to_string().repeat(2)))
        .expect("a token")
}

/// A list in which each of `tokens` allows to read.
pub fn list_of(tokens: &[&Token]) -> String {
    let lines = tokens.iter().map(|token| format!("billing sha256:{} read", token.digest().to_hex()));
    lines.collect::<Vec<_>>().join("\n")
}

pub fn access(list: &str) -> Access {
    limited(list, RateLimit::Off)
}

/// An access whose clients have the limit `limit` unless the list says otherwise.
pub fn limited(list: &str, limit: RateLimit) -> Access {
    Access::new(TokenList::parse(list).expect("a list"), limit, Metrics::new("test").expect("metrics").access)
}

fn headers(authorizations: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in authorizations {
        headers.append(AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    headers
}

pub fn with(token: &Token) -> HeaderMap {
    headers(&[&format!("Bearer {}", token.expose())])
}

/// The name of the client that is let in.
fn checked(access: &Access, headers: &HeaderMap, memo: &Memo, needs: Needs) -> Result<String, Refusal> {
    let principal = access.check(headers, memo, needs, NOW).map_err(|refused| refused.why)?;
    Ok(principal.map_or(String::new(), |principal| principal.name.to_string()))
}

/// How many requests came to each result: memo, verified, none, invalid, scope.
fn counts(access: &Access) -> [u64; 5] {
    let metrics = &access.metrics;
    [&metrics.memo, &metrics.verified, &metrics.none, &metrics.invalid, &metrics.scope].map(|it| it.get())
}

#[test]
fn a_token_is_let_in_for_its_scopes_and_for_nothing_else() {
    let access = access(&list_of(&[&token(1)]));
    let memo = Memo::default();
    let check = |needs| checked(&access, &with(&token(1)), &memo, needs);
    let insufficient = |scope| Err(Refusal::InsufficientScope(scope));
    // By the list, and then by the memo.
    for _ in 0..2 {
        assert_eq!(check(Needs::Scope(Scope::Write)), insufficient(Scope::Write));
        assert_eq!(check(Needs::Scope(Scope::Admin)), insufficient(Scope::Admin));
        assert_eq!(check(Needs::Scope(Scope::Read)), Ok("billing".to_owned()));
        assert_eq!(check(Needs::ValidToken), Ok("billing".to_owned()));
    }
    assert_eq!(counts(&access), [4, 0, 0, 0, 4]);
}

#[test]
fn what_needs_nothing_is_let_in_whatever_it_presents_and_not_counted() {
    let access = access(&list_of(&[&token(1)]));
    for headers in [headers(&[]), with(&token(1)), headers(&["Bearer x"]), headers(&["a", "b"])] {
        assert_eq!(checked(&access, &headers, &Memo::default(), Needs::Nothing), Ok(String::new()));
    }
    assert_eq!(counts(&access), [0; 5]);
}

#[test]
fn the_scheme_has_any_case_and_any_number_of_spaces_follow_it() {
    let access = access(&list_of(&[&token(1)]));
    let text = token(1).expose().to_owned();
    for header in [format!("bearer {text}"), format!("BEARER {text}"), format!("BeArEr    {text}")] {
        let found = checked(&access, &headers(&[&header]), &Memo::default(), Needs::ValidToken);
        assert_eq!(found, Ok("billing".to_owned()), "{header}");
    }
}

#[test]
fn every_other_form_of_the_header_is_refused() {
    let access = access(&list_of(&[&token(1)]));
    let text = token(1).expose().to_owned();
    let check = |authorizations: &[&str]| {
        checked(&access, &headers(authorizations), &Memo::default(), Needs::ValidToken)
    };
    assert_eq!(check(&[]), Err(Refusal::CredentialsNeeded));
    for other_scheme in
        ["Basic dXNlcjpwYXNz", "Digest x", "Bearerx", &text, &format!("Bearer{text}"), "token x"]
    {
        assert_eq!(check(&[other_scheme]), Err(Refusal::CredentialsNeeded), "{other_scheme}");
    }
    let good = format!("Bearer {text}");
    let spaces = " ".repeat(AUTHORIZATION_MAX_BYTES);
    let invalid = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        "Bearer    ".to_owned(),
        "Bearer x".to_owned(),
        format!("Bearer {}", &text[..45]),
        format!("{good}A"),
        format!("{good} "),
        format!("{good},"),
        format!("{good}, {good}"),
        format!("{good} {text}"),
        format!("Bearer \t{text}"),
        format!("Bearer \"{text}\""),
        format!("Bearer token={text}"),
        format!("Bearer {}", text.to_uppercase()),
        format!("Bearer ut_{}\u{661}", "A".repeat(41)),
        format!("Bearer {text}\u{e9}"),
        format!("Bearer{spaces}{text}"),
        format!("Bearer {}", "x".repeat(100 * 1024)),
        format!("Bearer {}", token(2).expose()),
    ];
    for header in &invalid {
        assert_eq!(check(&[header]), Err(Refusal::InvalidToken), "{header:?}");
    }
    for two in [[&*good, &*good], [&*good, "Basic x"], ["", ""], ["Basic x", &*good]] {
        assert_eq!(check(&two), Err(Refusal::TwoCredentials), "{two:?}");
    }
    assert_eq!(counts(&access), [0, 0, 7, invalid.len() as u64 + 4, 0]);
}

#[test]
fn the_longest_header_is_taken() {
    let access = access(&list_of(&[&token(1)]));
    let text = token(1).expose().to_owned();
    let spaces = " ".repeat(AUTHORIZATION_MAX_BYTES - "Bearer".len() - text.len());
    let header = format!("Bearer{spaces}{text}");
    assert!(checked(&access, &headers(&[&header]), &Memo::default(), Needs::ValidToken).is_ok());
}

#[test]
fn the_memo_answers_for_the_same_header_and_for_no_other() {
    let access = access(&list_of(&[&token(1), &token(2)]));
    let memo = Memo::default();
    let check = |headers: &HeaderMap| checked(&access, headers, &memo, Needs::ValidToken);
    assert!(check(&with(&token(1))).is_ok());
    assert!(check(&with(&token(1))).is_ok());
    assert_eq!(counts(&access), [1, 1, 0, 0, 0]);
    assert_eq!(check(&with(&token(3))), Err(Refusal::InvalidToken));
    assert_eq!(check(&headers(&[])), Err(Refusal::CredentialsNeeded));
    let twice = format!("Bearer {}", token(1).expose());
    assert_eq!(check(&headers(&[&twice, &twice])), Err(Refusal::TwoCredentials));
    // A refusal is not remembered, and what was remembered before it still is.
    assert!(check(&with(&token(1))).is_ok());
    assert!(check(&with(&token(2))).is_ok());
    assert!(check(&with(&token(2))).is_ok());
    assert_eq!(counts(&access), [3, 2, 1, 2, 0]);
}

#[test]
fn a_token_that_expires_is_refused_by_the_list_and_on_the_memo_that_holds_it() {
    let until = humantime::format_rfc3339(NOW() + Duration::from_secs(1));
    let access = access(&format!("{} until={until}", list_of(&[&token(1)])));
    let memo = Memo::default();
    let check = |memo: &Memo, seconds: u64| {
        let later = || NOW() + Duration::from_secs(seconds);
        access
            .check(&with(&token(1)), memo, Needs::ValidToken, later)
            .map(drop)
            .map_err(|refused| refused.why)
    };
    assert_eq!(check(&memo, 0), Ok(()));
    assert_eq!(check(&memo, 0), Ok(()));
    assert_eq!(check(&memo, 1), Err(Refusal::InvalidToken));
    assert_eq!(check(&Memo::default(), 1), Err(Refusal::InvalidToken));
    assert_eq!(counts(&access), [1, 1, 0, 2, 0]);
}

#[test]
fn a_token_that_is_revoked_is_refused_on_the_memo_that_holds_it() {
    let access = access(&list_of(&[&token(1), &token(2)]));
    let memo = Memo::default();
    let check = |token: &Token| checked(&access, &with(token), &memo, Needs::ValidToken);
    assert!(check(&token(1)).is_ok());
    assert_eq!(access.replace(TokenList::parse(&list_of(&[&token(2)])).expect("a list")), Change::Made);
    assert_eq!(check(&token(1)), Err(Refusal::InvalidToken));
    assert!(check(&token(2)).is_ok());
}

#[test]
fn a_memo_is_worthless_once_the_list_has_changed() {
    let read_only = list_of(&[&token(1)]);
    let access = access(&read_only);
    let memo = Memo::default();
    let check = |scope| checked(&access, &with(&token(1)), &memo, Needs::Scope(scope));
    assert!(check(Scope::Read).is_ok());
    assert!(check(Scope::Write).is_err());
    let writes = TokenList::parse(&read_only.replace("read", "write")).expect("a list");
    assert_eq!(access.replace(writes.clone()), Change::Made);
    assert!(check(Scope::Write).is_ok());
    assert!(check(Scope::Read).is_err());
    // The same list is no change: nothing is verified anew.
    assert_eq!(access.replace(writes), Change::None);
    assert!(check(Scope::Write).is_ok());
    assert_eq!(counts(&access), [1, 2, 0, 0, 2]);
}

#[test]
fn old_and_new_token_of_a_client_are_both_let_in_while_both_are_listed() {
    let access = access(&list_of(&[&token(1)]));
    let (old, new) = (Memo::default(), Memo::default());
    let check = |token: u8, memo: &Memo| {
        checked(&access, &with(&self::token(token)), memo, Needs::Scope(Scope::Read))
    };
    let lists = |tokens: &[&Token]| TokenList::parse(&list_of(tokens)).expect("a list");
    assert_eq!((check(1, &old).is_ok(), check(2, &new).is_ok()), (true, false));
    access.replace(lists(&[&token(1), &token(2)]));
    assert_eq!((check(1, &old).is_ok(), check(2, &new).is_ok()), (true, true));
    access.replace(lists(&[&token(2)]));
    assert_eq!((check(1, &old).is_ok(), check(2, &new).is_ok()), (false, true));
}

/// A change between a request's look at the epoch and its look at the list would be remembered wrongly if they came in
/// the other order.
#[test]
fn a_token_that_is_revoked_while_it_is_verified_is_not_remembered() {
    const ROUNDS: u64 = 1_000;
    let both = list_of(&[&token(1), &token(2)]);
    let access = access(&both);
    let lists = [list_of(&[&token(2)]), both].map(|text| TokenList::parse(&text).expect("a list"));
    let (begun, ended) = (Barrier::new(2), Barrier::new(2));
    let mut remembered = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                begun.wait();
                access.replace(lists[0].clone());
                ended.wait();
                access.replace(lists[1].clone());
            }
        });
        let headers = with(&token(1));
        let check = |memo: &Memo| checked(&access, &headers, memo, Needs::ValidToken);
        for round in 0..ROUNDS {
            begun.wait();
            let mut memo = Memo::default();
            while access.epoch.load(Ordering::Acquire) == 2 * round {
                memo = Memo::default();
                let _ = check(&memo);
            }
            remembered += u64::from(check(&memo).is_ok());
            ended.wait();
            while access.epoch.load(Ordering::Acquire) < 2 * (round + 1) {
                std::thread::yield_now();
            }
        }
    });
    assert_eq!(remembered, 0, "of {ROUNDS} changes");
}

#[test]
fn no_bytes_make_the_parsers_panic() {
    let mut random = StdRng::seed_from_u64(1);
    let good = format!(
        "billing sha256:{} read until=2027-01-31T00:00:00Z rate=9/s,burst=9",
        token(1).digest().to_hex()
    );
    let header = format!("Bearer {}", token(1).expose());
    for _ in 0..20_000 {
        // Half of them noise, half of them a right one with a few wrong bytes.
        let noise: Vec<u8> = (0..random.random_range(0..120)).map(|_| random.random()).collect();
        for seed in [good.as_bytes(), header.as_bytes(), &noise] {
            let mut bytes = seed.to_owned();
            for _ in 0..random.random_range(0..4) {
                if !bytes.is_empty() {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] = random.random();
                }
            }
            let _ = TokenList::parse(&String::from_utf8_lossy(&bytes));
            let _ = bearer(&bytes).map(|credentials| Token::parse(credentials).is_some());
        }
    }
}
