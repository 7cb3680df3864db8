//! Requests that ask to go on in another protocol, which the services do not: that changes nothing (RFC 9110, section
//! 7.8), and the answer says whether the connection lives on.

use std::io::Write;
use std::process::Command;

use devstack::http::{self, Connection};

use crate::{get, is_problem, register, running};

const H2C: &str = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n";
const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
/// The option `Upgrade` is missing, so it asks for nothing.
const WEBSOCKET_ALONE: &str = "Upgrade: websocket\r\n";

/// The answer to a request with these header lines, on a connection that must then be as the answer says.
fn exchange(address: &str, request: &str, headers: &str, body: &str) -> http::Response {
    let mut connection = Connection::open(address);
    connection.send(format!("{request} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n{body}"));
    let answer = connection.receive().unwrap_or_else(|error| panic!("{request}, {headers}: {error}"));
    assert!(!answer.header("connection").unwrap_or_default().to_lowercase().contains("upgrade"), "{headers}");
    if answer.header("connection") == Some("close") {
        assert!(connection.is_closed(), "{headers}");
    } else {
        connection.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(connection.receive().expect("the connection lives on").status, 200, "{headers}");
    }
    answer
}

#[test]
fn a_get_that_asks_for_an_upgrade_is_answered_and_says_that_the_connection_ends() {
    register("upgraded", "i");
    for headers in [
        H2C,
        WEBSOCKET,
        "Connection: upgrade\r\nUpgrade: foo/2, bar\r\n",
        "Connection: keep-alive, Upgrade\r\n",
    ] {
        for service in [&running().user_svc, &running().data_svc] {
            let answer = exchange(service.address(), "GET /livez", headers, "");
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{headers}");
            is_problem(&exchange(service.address(), "GET /nope", headers, ""), 404, "no-such-path");
        }
        for _ in ["a miss", "a hit", "a near hit"] {
            let answer = exchange(running().data_svc.address(), "GET /user/upgraded", headers, "");
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{headers}");
        }
    }
    let metrics = running().data_svc.metrics_url();
    let address = metrics.trim_start_matches("http://");
    assert_eq!(exchange(address, "GET /metrics", H2C, "").header("connection"), Some("close"));
}

#[test]
fn the_body_of_a_request_that_asks_for_an_upgrade_is_read_by_its_length() {
    let address = running().user_svc.address();
    for (kind, headers) in [("h2c", H2C), ("websocket", WEBSOCKET), ("alone", WEBSOCKET_ALONE)] {
        let body = |way: &str| format!(r#"{{"name":"{kind}-{way}","info":"i"}}"#);
        let json = "Content-Type: application/json\r\n";

        let with_length = body("length");
        let length = format!("{headers}{json}Content-Length: {}\r\n", with_length.len());
        assert_eq!(exchange(address, "POST /register", &length, &with_length).status, 201, "{kind}");
        assert_eq!(get(&format!("{kind}-length"), &[]).status, 200);

        let chunked = body("chunks");
        let chunks = format!("{:x}\r\n{chunked}\r\n0\r\n\r\n", chunked.len());
        let encoding = format!("{headers}{json}Transfer-Encoding: chunked\r\n");
        assert_eq!(exchange(address, "POST /register", &encoding, &chunks).status, 201, "{kind}");

        // Without a length there is no body, and nothing to wait for.
        let none = exchange(address, "POST /register", &format!("{headers}{json}"), "");
        is_problem(&none, 400, "malformed-body");

        // What follows the body does not belong to it.
        let (first, second) = (body("first"), "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let length = format!("{headers}{json}Content-Length: {}\r\n", first.len());
        let mut connection = Connection::open(address);
        connection.send(format!("POST /register HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{first}{second}"));
        assert_eq!(connection.receive().expect("an answer").status, 201, "{kind}");
    }
}

#[test]
fn a_connection_lives_on_whatever_other_options_a_request_names() {
    for headers in [
        "Connection: HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: TE, x-unknown\r\nTE: trailers\r\n",
        "Connection: keep-alive\r\n",
        "Upgrade: h2c\r\n",
        "HTTP2-Settings: AAMAAABk\r\n",
    ] {
        for service in [&running().user_svc, &running().data_svc] {
            let answer = exchange(service.address(), "GET /livez", headers, "");
            assert_eq!((answer.status, answer.header("connection")), (200, None), "{headers}");
        }
    }
}

#[test]
fn javas_own_client_gets_an_answer_to_every_request() {
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/Client.java");
    let urls = [running().user_svc.url(), running().data_svc.url()];
    match Command::new("java").arg(client).args(urls).output() {
        Ok(run) => assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr)),
        Err(_) => {
            // Not `eprintln!`, which the test harness shows only for tests that fail.
            let _ = writeln!(std::io::stderr(), "skipped, since there is no java on PATH: {client}");
        }
    }
}
