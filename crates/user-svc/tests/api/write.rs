//! `PUT` and `DELETE /user/{name}`

use devstack::http;
use devstack::testing::register_with;
use serde_json::{Value, json};

use crate::{JSON, service};

fn register(name: &str) -> String {
    let response = register_with(service(), name, "first");
    assert_eq!(response.status, 201);
    response.header("etag").expect("an ETag").to_owned()
}

fn put(name: &str, headers: &[(&str, &str)], body: &str) -> http::Response {
    let headers = [&[JSON], headers].concat();
    http::send("PUT", &service().url_of(&format!("/user/{name}")), &headers, body)
}

fn delete(name: &str, headers: &[(&str, &str)]) -> http::Response {
    http::send("DELETE", &service().url_of(&format!("/user/{name}")), headers, "")
}

fn refused(response: &http::Response, status: u16, kind: &str) -> Value {
    let problem = response.json();
    assert_eq!((response.status, &problem["status"]), (status, &json!(status)), "{problem}");
    assert_eq!(problem["type"], format!("/problems/{kind}"), "{problem}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    problem
}

#[test]
fn a_replaced_user_is_answered_with_the_pair_and_a_new_etag() {
    let before = register("put-1");
    let response = put("put-1", &[], r#"{"info":"second"}"#);
    assert_eq!((response.status, response.json()), (200, json!({"name": "put-1", "info": "second"})));
    assert!(response.header("etag").is_some_and(|etag| etag != before && etag.starts_with("W/\"")));
}

#[test]
fn a_deleted_user_is_gone_and_the_name_is_free() {
    register("delete-1");
    let response = delete("delete-1", &[]);
    assert_eq!((response.status, response.body.len()), (204, 0));
    refused(&delete("delete-1", &[]), 404, "unknown-user");
    register("delete-1");
}

#[test]
fn an_unknown_user_is_404_whatever_if_match_says() {
    for condition in ["*", "\"x\""] {
        refused(&put("nobody", &[("If-Match", condition)], r#"{"info":"i"}"#), 404, "unknown-user");
        refused(&delete("nobody", &[("If-Match", condition)]), 404, "unknown-user");
    }
}

#[test]
fn if_match_admits_only_writes_that_are_based_on_the_newest_state() {
    let first = register("match-1");
    let second = put("match-1", &[("If-Match", &first)], r#"{"info":"second"}"#);
    let second = second.header("etag").expect("an ETag").to_owned();
    refused(&put("match-1", &[("If-Match", &first)], r#"{"info":"lost"}"#), 412, "precondition-failed");
    refused(&delete("match-1", &[("If-Match", &first)]), 412, "precondition-failed");
    refused(&delete("match-1", &[("If-Match", "nonsense")]), 412, "precondition-failed");
    let list = format!("{first}, {}", second.trim_start_matches("W/"));
    assert_eq!(put("match-1", &[("If-Match", &list)], r#"{"info":"third"}"#).status, 200);
    assert_eq!(delete("match-1", &[("If-Match", "*")]).status, 204);
}

#[test]
fn if_none_match_admits_only_writes_of_users_that_have_none_of_its_tags() {
    let tag = register("none-match");
    let strong = tag.trim_start_matches("W/").to_owned();
    let list = format!("\"x\", {tag}");
    // What cannot be read is not met: to ignore it would replace what the client wants to keep.
    for condition in ["*", &tag, &strong, &list, "nonsense", "\"x\", *"] {
        let condition = [("If-None-Match", condition)];
        refused(&put("none-match", &condition, r#"{"info":"lost"}"#), 412, "precondition-failed");
        refused(&delete("none-match", &condition), 412, "precondition-failed");
    }
    assert_eq!(put("none-match", &[("If-None-Match", "\"x\", W/\"y\"")], r#"{"info":"second"}"#).status, 200);
    assert_eq!(
        delete("none-match", &[("If-None-Match", &tag)]).status,
        204,
        "the user has another tag by now"
    );
}

#[test]
fn both_conditions_must_be_met_and_those_on_dates_are_ignored() {
    let tag = register("both");
    let write = |headers: &[(&str, &str)]| put("both", headers, r#"{"info":"first"}"#).status;
    assert_eq!(write(&[("If-Match", &tag), ("If-None-Match", &tag)]), 412);
    assert_eq!(write(&[("If-Match", "\"x\""), ("If-None-Match", "\"x\"")]), 412);
    assert_eq!(write(&[("If-Match", &tag), ("If-None-Match", "\"x\"")]), 200);
    // No client sees a date of a user (RFC 9110, section 13.1.4).
    assert_eq!(write(&[("If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT")]), 200);
}

#[test]
fn a_condition_creates_nobody_and_an_unknown_user_is_404_whatever_it_says() {
    for condition in [("If-None-Match", "*"), ("If-None-Match", "\"x\"")] {
        refused(&put("nobody", &[condition], r#"{"info":"i"}"#), 404, "unknown-user");
        refused(&delete("nobody", &[condition]), 404, "unknown-user");
    }
}

#[test]
fn a_refused_write_changes_nothing() {
    let etag = register("match-2");
    put("match-2", &[("If-Match", "\"x\"")], r#"{"info":"lost"}"#);
    assert_eq!(put("match-2", &[("If-Match", &etag)], r#"{"info":"second"}"#).status, 200);
}

#[test]
fn a_wrong_body_or_name_is_400() {
    register("put-2");
    let problem = refused(&put("put-2", &[], r#"{"name":"put-2"}"#), 400, "invalid-members");
    assert_eq!(problem["errors"], json!([{"detail": "must be there, and a string", "pointer": "#/info"}]));
    refused(&put("put-2", &[], r#"["i"]"#), 400, "malformed-body");
    refused(&put("a%00", &[], r#"{"info":"i"}"#), 400, "invalid-name");
    refused(&delete("%ff", &[]), 400, "invalid-name");
    let plain = http::send("PUT", &service().url_of("/user/put-2"), &[("Content-Type", "text/plain")], "x");
    refused(&plain, 415, "unsupported-media-type");
}

#[test]
fn other_methods_on_a_user_are_405_with_allow() {
    for method in ["GET", "POST", "PATCH"] {
        let response = http::send(method, &service().url_of("/user/x"), &[], "");
        assert_eq!((response.status, response.header("allow")), (405, Some("PUT, DELETE")), "{method}");
    }
}

#[test]
fn of_writers_with_the_same_etag_one_wins() {
    let etag = register("race-put");
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let put = |number: usize| {
            put("race-put", &[("If-Match", &etag)], &format!(r#"{{"info":"{number}"}}"#)).status
        };
        let writers: Vec<_> = (0..8).map(|number| scope.spawn(move || put(number))).collect();
        writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
    });
    let count = |status| statuses.iter().filter(|s| **s == status).count();
    assert_eq!((count(200), count(412)), (1, 7), "{statuses:?}");
}
