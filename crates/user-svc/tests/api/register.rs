//! `POST /register`

use devstack::http;
use serde_json::{Value, json};

use crate::{JSON, post, service};

/// The pointers of the members that a 400 names.
fn wrong_members(response: &http::Response) -> Vec<String> {
    assert_eq!(response.status, 400);
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    let problem = response.json();
    assert_eq!(problem["type"], "/problems/invalid-members", "{problem}");
    let errors = problem["errors"].as_array().cloned().unwrap_or_default();
    errors.iter().map(|error| error["pointer"].as_str().unwrap_or_default().to_owned()).collect()
}

fn refused(response: &http::Response, status: u16, kind: &str) -> Value {
    let problem = response.json();
    assert_eq!((response.status, &problem["status"]), (status, &json!(status)), "{problem}");
    assert_eq!(problem["type"], format!("/problems/{kind}"), "{problem}");
    assert_eq!(problem["instance"], "/register");
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    problem
}

#[test]
fn a_valid_pair_is_stored_and_answered_with_201_location_and_etag() {
    let response = post(r#"{"name":"a/b \u00fc","info":"i"}"#);
    assert_eq!(response.status, 201);
    assert_eq!(response.json(), json!({"name": "a/b \u{fc}", "info": "i"}));
    assert_eq!(response.header("location"), Some("https://data.example/user/a%2Fb%20%C3%BC"));
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert!(response.header("etag").is_some_and(|etag| etag.starts_with("W/\"")));
}

#[test]
fn the_name_is_returned_as_it_is_stored_in_normal_form_c() {
    let response = post(r#"{"name":"Zoe\u0308","info":"i"}"#);
    assert_eq!(response.json()["name"], "Zo\u{eb}");
    refused(&post(r#"{"name":"Zo\u00eb","info":"i"}"#), 409, "name-taken");
}

#[test]
fn a_name_that_is_taken_is_409_and_changes_nothing() {
    assert_eq!(post(r#"{"name":"taken","info":"first"}"#).status, 201);
    refused(&post(r#"{"name":"taken","info":"second"}"#), 409, "name-taken");
    assert_eq!(post(r#"{"name":"Taken","info":"case matters"}"#).status, 201);
}

#[test]
fn every_wrong_member_is_named_at_once() {
    assert_eq!(wrong_members(&post("{}")), ["#/name", "#/info"]);
    assert_eq!(wrong_members(&post(r#"{"name":"x"}"#)), ["#/info"]);
    assert_eq!(wrong_members(&post(r#"{"name":7,"info":["x"]}"#)), ["#/name", "#/info"]);
    assert_eq!(wrong_members(&post(r#"{"name":"","info":""}"#)), ["#/name", "#/info"]);
    assert_eq!(wrong_members(&post(r#"{"name":"a\u0007","info":"a\u0000"}"#)), ["#/name", "#/info"]);
    assert_eq!(wrong_members(&post(r#"{"name":"\udc00","info":"x\ud800"}"#)), ["#/name", "#/info"]);
    let long = json!({"name": "n".repeat(129), "info": "i".repeat(16 * 1024 + 1)});
    assert_eq!(wrong_members(&post(long.to_string())), ["#/name", "#/info"]);
}

#[test]
fn the_longest_pair_fits_however_it_is_escaped() {
    let name = r"\u00fc".repeat(64);
    let info = r"\u0001".repeat(16 * 1024);
    let body = format!(r#"{{"name":"{name}","info":"{info}"}}"#);
    assert!(body.len() > 98_000);
    assert_eq!(post(body).status, 201);
}

#[test]
fn a_body_that_is_no_json_object_is_400() {
    let bodies: [&[u8]; 9] = [
        b"",
        b"{",
        b"[\"a\",\"b\"]",
        b"\"x\"",
        b"null",
        b"{\"name\":\"a\",\"info\":\"\xff\"}",
        b"{\"name\":\"a\",\"name\":\"b\",\"info\":\"i\"}",
        b"{\"name\":\"a\",\"info\":\"i\"} x",
        b"\xef\xbb\xbf[]",
    ];
    for body in bodies {
        refused(&post(body), 400, "malformed-body");
    }
}

#[test]
fn a_byte_order_mark_before_a_body_is_ignored_and_only_there() {
    assert_eq!(post("\u{feff}{\"name\":\"marked\",\"info\":\"i\"}").status, 201);
    assert_eq!(wrong_members(&post("\u{feff}{}")), ["#/name", "#/info"]);
    for other in ["\u{feff}\u{feff}{}", " \u{feff}{}", "{\u{feff}}", "{}\u{feff}"] {
        refused(&post(other), 400, "malformed-body");
    }
    // UTF-16 is no JSON text, whatever its mark.
    refused(&post(b"\xff\xfe{\0}\0"), 400, "malformed-body");
}

#[test]
fn a_new_name_that_deceives_is_400_and_the_answer_says_why() {
    for (name, reason) in [
        ("\u{3164}", "invisible"),
        ("a\u{ffa0}", "invisible"),
        ("a\u{34f}b", "invisible"),
        ("a\u{e0101}", "invisible"),
        ("a\u{2028}b", "blanks"),
        ("a\u{a0}b", "blanks"),
        ("\u{2800}", "blanks"),
        ("a\u{fe0f}", "U+FE0F"),
        ("a\u{200d}b", "U+200D"),
        ("\u{1f468}\u{200d}\u{1f469}", "U+200D"),
        ("a\u{200c}b", "U+200C"),
        ("x/../y", "segment"),
        ("x/./y", "segment"),
        ("/y", "segment"),
        ("x//y", "segment"),
    ] {
        let response = post(json!({"name": name, "info": "i"}).to_string());
        assert_eq!(wrong_members(&response), ["#/name"], "{name:?}");
        assert!(
            response.json()["errors"][0]["detail"].to_string().contains(reason),
            "{name:?}: {}",
            response.text()
        );
    }
}

#[test]
fn names_that_need_a_joiner_or_an_emoji_style_are_registered() {
    for name in [
        "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
        "\u{dc1}\u{dca}\u{200d}\u{dbb}\u{dd3}",
        "\u{915}\u{94d}\u{200d}\u{937}",
        "\u{2764}\u{fe0f}",
        "1\u{fe0f}\u{20e3}",
        "a/b",
        "x/...",
    ] {
        assert_eq!(post(json!({"name": name, "info": "i"}).to_string()).status, 201, "{name:?}");
    }
}

#[test]
fn a_condition_on_a_registration_is_that_of_its_path_where_nothing_can_be_read() {
    let register = |name: &str, condition: (&str, &str)| {
        let body = json!({"name": name, "info": "i"}).to_string();
        http::send("POST", &service().url_of("/register"), &[JSON, condition], body)
    };
    refused(&register("conditional", ("If-Match", "*")), 412, "precondition-failed");
    refused(&register("conditional", ("If-Match", "\"x\"")), 412, "precondition-failed");
    assert_eq!(register("conditional", ("If-None-Match", "*")).status, 201);
}

#[test]
fn members_that_are_not_known_are_ignored() {
    let body = r#"{"id":[[[{}]]],"name":"extra","info":"i","admin":true}"#;
    assert_eq!(post(body).status, 201);
}

#[test]
fn only_plain_application_json_is_accepted() {
    let url = service().url_of("/register");
    let send = |headers: &[(&str, &str)]| http::send("POST", &url, headers, r#"{"name":"","info":"i"}"#);
    for accepted in ["application/json", "application/json; charset=utf-8", "Application/JSON"] {
        assert_eq!(send(&[("Content-Type", accepted)]).status, 400, "{accepted}");
    }
    for other in ["text/plain", "application/jsonx", "application/problem+json", "multipart/form-data"] {
        refused(&send(&[("Content-Type", other)]), 415, "unsupported-media-type");
    }
    refused(&send(&[]), 415, "unsupported-media-type");
    refused(&send(&[JSON, ("Content-Encoding", "gzip")]), 415, "unsupported-media-type");
    refused(&send(&[JSON, ("Content-Encoding", "identity")]), 415, "unsupported-media-type");
}

#[test]
fn a_body_over_128_kib_is_413_with_a_length_and_chunked() {
    let huge = format!(r#"{{"name":"huge","info":"i","x":"{}"}}"#, "x".repeat(128 * 1024));
    refused(&post(&huge), 413, "body-too-large");
    let head = "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let chunked = format!("{head}{:x}\r\n{huge}\r\n0\r\n\r\n", huge.len());
    refused(&http::raw(service().address(), chunked), 413, "body-too-large");
}

#[test]
fn a_body_that_is_certain_to_be_refused_is_not_waited_for() {
    for (headers, status) in [
        ("Content-Type: application/json\r\nContent-Length: 200000", 413),
        ("Content-Type: text/plain\r\nContent-Length: 10", 415),
    ] {
        let mut connection = http::Connection::open(service().address());
        let head = format!(
            "POST /register HTTP/1.1\r\nHost: localhost\r\n{headers}\r\nExpect: 100-continue\r\n\r\n"
        );
        connection.send(head);
        assert_eq!(connection.receive().expect("to go on").status, 100);
        let refusal = connection.receive().expect("a refusal, though no body has come");
        assert_eq!((refusal.status, refusal.header("connection")), (status, Some("close")));
    }
}

#[test]
fn a_body_sent_in_chunks_is_read_whole() {
    let head = "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let body = "8\r\n{\"name\":\r\n14\r\n\"chunked\",\"info\":\"i\"\r\n1\r\n}\r\n0\r\n\r\n";
    assert_eq!(http::raw(service().address(), format!("{head}{body}")).status, 201);
}

#[test]
fn other_methods_are_405_with_allow() {
    for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "FROB"] {
        let response = http::send(method, &service().url_of("/register"), &[], "");
        assert_eq!((response.status, response.header("allow")), (405, Some("POST")), "{method}");
        if method != "HEAD" {
            refused(&response, 405, "method-not-allowed");
        }
    }
}
