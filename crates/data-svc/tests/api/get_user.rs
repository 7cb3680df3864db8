//! `GET /user/{name}`

use devstack::http;
use serde_json::json;

use crate::{cache_status, get, is_problem, register, running};

#[test]
fn the_first_get_is_a_miss_that_fills_and_the_second_a_hit() {
    assert_eq!(register("first", "i").status, 201);
    let miss = get("first", &[]);
    let hit = get("first", &[]);
    assert_eq!(miss.json(), json!({"name": "first", "info": "i", "cache_hit": false}));
    assert_eq!(cache_status(&miss), "data-svc; fwd=uri-miss; stored");
    assert_eq!(hit.json(), json!({"name": "first", "info": "i", "cache_hit": true}));
    // From Redis, or from the replica's own memory.
    let hit_status = cache_status(&hit).trim_end_matches("; detail=near");
    let ttl = hit_status.strip_prefix("data-svc; hit; ttl=").map(str::parse::<u64>);
    assert!(matches!(ttl, Some(Ok(250..=300))), "{}", cache_status(&hit));
}

#[test]
fn register_does_not_warm_the_cache() {
    assert_eq!(register("cold", "i").status, 201);
    assert_eq!(running().stack.redis_cli(&["EXISTS", "2:user:{cold}"]).trim(), "0");
}

#[test]
fn an_answer_has_the_etag_of_its_registration_and_says_how_it_may_be_kept() {
    let registered = register("tagged", "i");
    let found = get("tagged", &[]);
    assert_eq!(found.status, 200);
    assert_eq!(found.header("etag"), registered.header("etag"));
    assert_eq!(found.header("cache-control"), Some("private, no-cache"));
    assert_eq!(found.header("content-type"), Some("application/json"));
}

#[test]
fn a_current_etag_is_answered_with_304_whether_hit_or_miss() {
    let tag = register("current", "i").header("etag").expect("an ETag").to_owned();
    let strong = tag.trim_start_matches("W/").to_owned();
    let list = format!("\"x\", {tag}");
    for condition in [tag.as_str(), &strong, &list, "*"] {
        let answer = get("current", &[("If-None-Match", condition)]);
        assert_eq!((answer.status, answer.body.len()), (304, 0), "{condition}");
        assert_eq!(answer.header("etag"), Some(tag.as_str()));
        assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
        assert!(cache_status(&answer).starts_with("data-svc; "));
    }
    for other in ["\"x\"", "W/\"x\", \"y\"", "nonsense"] {
        assert_eq!(get("current", &[("If-None-Match", other)]).status, 200, "{other}");
    }
}

#[test]
fn if_match_allows_reading_only_a_user_that_has_one_of_its_tags() {
    let tag = register("read-match", "i").header("etag").expect("an ETag").to_owned();
    for _ in ["a miss", "a hit"] {
        assert_eq!(get("read-match", &[("If-Match", &tag)]).status, 200);
        is_problem(&get("read-match", &[("If-Match", "\"x\"")]), 412, "precondition-failed");
        // If-Match comes first (RFC 9110, section 13.2.2).
        let both = [("If-Match", "\"x\""), ("If-None-Match", tag.as_str())];
        is_problem(&get("read-match", &both), 412, "precondition-failed");
        assert_eq!(get("read-match", &[("If-Match", "*"), ("If-None-Match", &tag)]).status, 304);
    }
    is_problem(&get("read-match-nobody", &[("If-Match", "\"x\"")]), 404, "unknown-user");
    // No client sees a date of a user.
    let since = ("If-Modified-Since", "Thu, 01 Jan 2099 00:00:00 GMT");
    assert_eq!(get("read-match", &[since]).status, 200);
}

#[test]
fn names_from_before_a_rule_can_be_read_replaced_and_deleted() {
    let user = |name: &str| running().user_svc.url_of(&format!("/user/{name}"));
    for (name, path) in [
        ("\u{3164}", "%E3%85%A4"),
        ("a\u{fe0f}", "a%EF%B8%8F"),
        ("a\u{a0}b", "a%C2%A0b"),
        ("x/../y", "x%2F..%2Fy"),
        ("/z", "%2Fz"),
    ] {
        running().stack.sql(&format!("INSERT INTO users (name, info) VALUES ('{name}', 'old')"));
        assert_eq!(register(name, "i").status, 400);
        assert_eq!(get(path, &[]).json(), json!({"name": name, "info": "old", "cache_hit": false}));
        let json = [("Content-Type", "application/json")];
        assert_eq!(http::send("PUT", &user(path), &json, r#"{"info":"new"}"#).status, 200);
        assert_eq!(get(path, &[]).json()["info"], "new");
        assert_eq!(http::send("DELETE", &user(path), &[], "").status, 204);
        assert_eq!(get(path, &[]).status, 404);
    }
}

#[test]
fn equal_users_have_equal_tags_and_different_users_different_tags() {
    let tag = |name, info| register(name, info).header("etag").map(str::to_owned);
    assert_ne!(tag("tag-a", "i"), tag("tag-b", "i"));
    assert_ne!(tag("tag-c", "i"), tag("tag-cc", "i"));
    assert_eq!(get("tag-a", &[]).header("etag"), get("tag-a", &[]).header("etag"));
}

#[test]
fn no_cache_reads_the_row_and_refills_the_cache() {
    register("fresh", "old");
    get("fresh", &[]);
    running().stack.sql("UPDATE users SET info = 'by hand' WHERE name = 'fresh'");
    assert_eq!(get("fresh", &[]).json()["info"], "old");
    for control in ["no-cache", "max-age=0, no-cache"] {
        let forced = get("fresh", &[("Cache-Control", control)]);
        assert_eq!(forced.json(), json!({"name": "fresh", "info": "by hand", "cache_hit": false}));
        assert_eq!(cache_status(&forced), "data-svc; fwd=request; stored");
    }
    assert_eq!(get("fresh", &[]).json(), json!({"name": "fresh", "info": "by hand", "cache_hit": true}));
}

#[test]
fn no_cache_on_a_cold_name_fills_the_cache() {
    register("fresh-cold", "i");
    assert_eq!(
        cache_status(&get("fresh-cold", &[("Cache-Control", "no-cache")])),
        "data-svc; fwd=request; stored"
    );
    assert!(cache_status(&get("fresh-cold", &[])).starts_with("data-svc; hit"));
}

#[test]
fn an_unknown_name_is_404_and_that_is_cached_for_a_short_time() {
    let miss = get("nobody", &[]);
    let hit = get("nobody", &[]);
    assert_eq!(is_problem(&miss, 404, "unknown-user")["instance"], "/user/nobody");
    assert_eq!(cache_status(&miss), "data-svc; fwd=uri-miss; stored");
    is_problem(&hit, 404, "unknown-user");
    let ttl = cache_status(&hit)
        .strip_prefix("data-svc; hit; ttl=")
        .and_then(|rest| rest.strip_suffix("; detail=negative"));
    assert!(matches!(ttl.map(str::parse::<u64>), Some(Ok(0..=10))), "{}", cache_status(&hit));
}

#[test]
fn a_name_that_was_cached_as_absent_is_found_after_its_registration() {
    assert_eq!(get("late", &[]).status, 404);
    assert_eq!(register("late", "i").status, 201);
    assert_eq!(get("late", &[]).json()["info"], "i");
}

#[test]
fn head_answers_as_get_without_a_body() {
    register("head", "i");
    get("head", &[]);
    let get = get("head", &[]);
    let head = http::send("HEAD", &running().data_svc.url_of("/user/head"), &[], "");
    assert_eq!((head.status, head.body.len()), (200, 0));
    for name in ["etag", "content-type", "content-length", "cache-control"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
    assert_eq!(http::send("HEAD", &running().data_svc.url_of("/user/none"), &[], "").status, 404);
}

#[test]
fn a_name_that_cannot_exist_is_400() {
    let long = "n".repeat(129);
    for name in ["%ff", "a%00", "%2e%2e", "..", "%20a", "a%0A", "%e2%80%8d", "%c3%28", &long] {
        is_problem(&get(name, &[]), 400, "invalid-name");
    }
}

#[test]
fn a_slash_or_a_percent_sign_in_a_name_is_found_by_its_encoding() {
    for (name, path) in [
        ("a/b", "a%2Fb"),
        ("a/b/...c", "a%2fb%2F...c"),
        ("50%", "50%25"),
        ("%2F", "%252F"),
        ("q?a=b#c", "q%3Fa=b%23c"),
        ("x+y z", "x+y%20z"),
    ] {
        assert_eq!(register(name, "i").status, 201, "{name}");
        assert_eq!(get(path, &[]).json()["name"], name);
    }
    assert_eq!(get("a/b", &[]).json()["type"], "/problems/no-such-path");
}

#[test]
fn a_name_is_found_by_every_form_of_its_characters() {
    register("Bj\u{f6}rn", "i");
    assert_eq!(get("Bj%C3%B6rn", &[]).json()["name"], "Bj\u{f6}rn");
    assert!(cache_status(&get("Bjo%CC%88rn", &[])).starts_with("data-svc; hit"));
}

#[test]
fn a_query_string_does_not_change_the_name() {
    register("query", "i");
    assert_eq!(get("query?x=1", &[]).json()["name"], "query");
}

#[test]
fn a_near_hit_of_the_fast_path_is_answered_like_a_routed_one() {
    let tag = register("shortcut", "i").header("etag").expect("an ETag").to_owned();
    let plain = "shortcut";
    // A percent-encoded name is not for the fast path.
    let routed = "%73hortcut";
    let near = |name: &str, headers: &[(&str, &str)]| {
        let answers = (0..3000).map(|_| get(name, headers));
        let mut near = answers.filter(|answer| cache_status(answer).ends_with("; detail=near"));
        near.next().expect("the near cache is used")
    };
    let comparable_head = |answer: &http::Response| {
        let mut head = answer.headers.clone();
        head.retain(|(name, _)| !matches!(name.as_str(), "date" | "cache-status"));
        head.sort();
        head
    };
    for headers in
        [[("X-Request-Id", "a"), ("Accept", "*/*")], [("X-Request-Id", "a"), ("If-None-Match", &tag)]]
    {
        let fast = near(plain, &headers);
        let by_route = near(routed, &headers);
        assert_eq!((fast.status, &fast.body), (by_route.status, &by_route.body));
        assert_eq!(comparable_head(&fast), comparable_head(&by_route));
    }
    let fresh = get(plain, &[("Cache-Control", "no-cache")]);
    assert_eq!(cache_status(&fresh), "data-svc; fwd=request; stored");
}

/// Moves the end of the entry of `name` by so many ms, as a service with another clock would have written it.
fn move_end(name: &str, ms: i64) {
    let script = "local entry = redis.call('GET', KEYS[1]); \
        local ends = struct.unpack('>I8', string.sub(entry, 35, 42)) + tonumber(ARGV[1]); \
        entry = string.sub(entry, 1, 34) .. struct.pack('>I8', ends) .. string.sub(entry, 43); \
        return redis.call('SET', KEYS[1], entry, 'KEEPTTL')";
    let key = format!("2:user:{{{name}}}");
    assert_eq!(running().stack.redis_cli(&["EVAL", script, "1", &key, &ms.to_string()]).trim(), "OK");
}

#[test]
fn a_clock_that_differs_by_an_hour_shows_no_longer_ttl_and_refreshes_nothing_early() {
    let service = running().stack.data_svc().env("NEAR_CACHE_MIB", "0").start();
    let read = || devstack::testing::get(&service, "other-clock");
    register("other-clock", "i");
    assert_eq!(cache_status(&read()), "data-svc; fwd=uri-miss; stored");
    move_end("other-clock", 3_600_000);
    assert_eq!(cache_status(&read()), "data-svc; hit; ttl=300");
    move_end("other-clock", -2 * 3_600_000);
    let entry = || running().stack.redis_cli(&["GET", "2:user:{other-clock}"]);
    let before = entry();
    for _ in 0..20 {
        assert_eq!(cache_status(&read()), "data-svc; hit; ttl=0");
    }
    // A fresh read is answered after those refreshes that began before it.
    let fresh = devstack::testing::get_with(&service, "nobody-else", &[("Cache-Control", "no-cache")]);
    assert_eq!(fresh.status, 404);
    assert_eq!(entry(), before);

    assert_eq!(devstack::testing::get(&service, "other-absence").status, 404);
    move_end("other-absence", 3_600_000);
    let absence = devstack::testing::get(&service, "other-absence");
    assert_eq!(cache_status(&absence), "data-svc; hit; ttl=10; detail=negative");
}
