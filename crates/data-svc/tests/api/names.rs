//! Any valid pair survives the round trip through register, Postgres, Redis and GET; any other is 400, never 500.

use common::users::{Info, UserName};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult};

use crate::{get, register};

/// Text of every kind: any characters, and more often those near the limit of a rule.
fn text(longest: usize) -> impl Strategy<Value = String> {
    let close = prop::sample::select(vec![
        'a',
        'Z',
        '0',
        ' ',
        '/',
        '%',
        '.',
        '"',
        '\\',
        '{',
        '}',
        '\u{301}',
        '\u{e9}',
        '\u{958}',
        '\u{1f600}',
        '\u{a0}',
        '\u{ad}',
        '\u{200c}',
        '\u{200d}',
        '\u{94d}',
        '\u{628}',
        '\u{3164}',
        '\u{fe0f}',
        '\u{2764}',
        '\u{e000}',
        '\u{378}',
        '\n',
        '\0',
        '\u{7f}',
        '\u{2028}',
        '\u{fffd}',
        '\u{ffff}',
    ]);
    let character = prop_oneof![4 => any::<char>(), 3 => close, 3 => proptest::char::range('a', 'z')];
    prop::collection::vec(character, 0..=longest).prop_map(String::from_iter)
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn holds(name: &str, info: &str) -> TestCaseResult {
    let answer = register(name, info);
    let (Ok(stored), Ok(_)) = (UserName::parse_new(name), Info::parse(info.to_owned())) else {
        prop_assert_eq!(answer.status, 400, "{}", answer.text());
        return Ok(());
    };
    // 409 when an earlier case had the same name.
    if answer.status == 409 {
        return Ok(());
    }
    prop_assert_eq!(answer.status, 201, "{}", answer.text());
    for cache_hit in [false, true] {
        let found = get(&percent_encoded(name), &[]);
        prop_assert_eq!(found.status, 200, "{}", found.text());
        let expected = serde_json::json!({"name": stored.as_str(), "info": info, "cache_hit": cache_hit});
        prop_assert_eq!(found.json(), expected);
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 300, failure_persistence: None, ..Config::default() })]

    #[test]
    fn any_pair_is_either_valid_and_comes_back_or_is_400(name in text(12), info in text(40)) {
        holds(&name, &info)?;
    }

    #[test]
    fn a_name_in_a_path_is_400_exactly_if_nobody_can_have_it(name in text(40)) {
        prop_assume!(!name.is_empty());
        let status = get(&percent_encoded(&name), &[]).status;
        let expected: &[u16] = if UserName::parse(&name).is_ok() { &[200, 404] } else { &[400] };
        prop_assert!(expected.contains(&status), "{status} for {name:?}");
    }

    #[test]
    fn any_bytes_in_a_path_are_answered_and_never_with_500(bytes in prop::collection::vec(any::<u8>(), 1..60)) {
        let path: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
        let status = get(&path, &[]).status;
        prop_assert!([200, 400, 404].contains(&status), "{status}");
    }
}
