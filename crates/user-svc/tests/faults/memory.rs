//! Memory under clients who do not finish what they begin.

use std::env;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use devstack::http::{self, Connection};
use devstack::testing::{register, wait_until};
use devstack::{Service, Stack};

use crate::{Session, body, wait_for_locked};

/// How many clients are slow: 3,000, or what `SLOW_CLIENTS` says. Each is an open file for the test and for the service.
fn slow_client_count() -> usize {
    env::var("SLOW_CLIENTS").ok().and_then(|count| count.parse().ok()).unwrap_or(3_000)
}

/// What docs/operations.md gives as the memory of a user-svc with so many connections.
fn limit_kib(connections: usize) -> usize {
    // A build without optimisation has larger futures, and on a busy machine more of them at once.
    let per_connection = if cfg!(debug_assertions) { 80 } else { 48 };
    (32 + 16 + 2 * 32) * 1024 + connections * per_connection
}

/// The most memory that the service has had, in KiB.
fn peak_kib(service: &Service) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", service.pid().as_raw_nonzero()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Clients who send `start`, and then nothing.
fn slow_clients(service: &Service, start: &[u8]) -> Vec<TcpStream> {
    let open = || {
        let mut client = TcpStream::connect(service.address()).expect("it listens");
        client.set_nonblocking(true).expect("it is open");
        // What the service does not read stays with the client.
        let _ = client.write(start);
        client
    };
    (0..slow_client_count()).map(|_| open()).collect()
}

/// What the clients have been answered since the last call; empty for those that were closed.
fn answers(clients: &mut [TcpStream]) -> Vec<String> {
    let answer = |client: &mut TcpStream| {
        let mut start = [0; 2048];
        match client.read(&mut start) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Ok(count) => Some(String::from_utf8_lossy(&start[..count]).into_owned()),
            Err(_) => Some(String::new()),
        }
    };
    clients.iter_mut().filter_map(answer).collect()
}

/// Whether it is the 503 of a body that found no room. Panics if it is another answer.
fn is_refusal(answer: &str) -> bool {
    // Closed, or too late on a machine that is busy.
    if answer.is_empty() || answer.starts_with("HTTP/1.1 408") {
        return false;
    }
    let expected = ["HTTP/1.1 503", "connection: close", "retry-after: 1", "/problems/overloaded"];
    assert!(expected.iter().all(|part| answer.contains(part)), "{answer}");
    true
}

fn half_a_body(length: usize) -> Vec<u8> {
    let head = "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 131072\r\n\r\n";
    [head.as_bytes(), &vec![b' '; length]].concat()
}

#[test]
fn slow_bodies_share_a_budget_and_others_are_served() {
    let stack = Stack::shared();
    for length in [100, 60_000, 130_000] {
        let service = stack.user_svc().start();
        let mut clients = slow_clients(&service, &half_a_body(length));
        assert_eq!(register(&service, &format!("between-{length}")).status, 201);
        if length > 100 {
            let mut refused = Vec::new();
            wait_until("those beyond the budget are refused", || {
                refused.extend(answers(&mut clients));
                refused.iter().filter(|answer| is_refusal(answer)).count() > slow_client_count() / 10
            });
        }
        let (peak, limit) = (peak_kib(&service), limit_kib(slow_client_count()));
        println!("{length} bytes each: at most {peak} KiB of {limit}");
        assert!(peak < limit, "{length}: {peak} KiB");
        drop(clients);
        let large = format!(r#"{{"name": "large-{length}", "info": "{}"}}"#, "x".repeat(16_000));
        wait_until("the budget is free again", || {
            let json = [("Content-Type", "application/json")];
            http::send("POST", &service.url_of("/register"), &json, large.as_bytes()).status == 201
        });
    }
}

#[test]
fn slow_heads_share_a_budget_and_others_are_served() {
    let stack = Stack::shared();
    for length in [100, 8_000, 120_000] {
        let service = stack.user_svc().start();
        let start = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(length));
        let mut clients = slow_clients(&service, start.as_bytes());
        assert_eq!(register(&service, &format!("between-{length}")).status, 201);
        if length > 8_000 {
            let mut closed = Vec::new();
            wait_until("those beyond the budget are closed", || {
                closed.extend(answers(&mut clients));
                closed.iter().filter(|answer| answer.is_empty()).count() > slow_client_count() / 10
            });
        }
        let (peak, limit) = (peak_kib(&service), limit_kib(slow_client_count()));
        println!("{length} bytes each: at most {peak} KiB of {limit}");
        assert!(peak < limit, "{length}: {peak} KiB");
        drop(clients);
        let large = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(16_000));
        wait_until("the budget is free again", || {
            let mut connection = Connection::open(service.address());
            connection.send(&large);
            connection.receive().is_ok_and(|answer| answer.status == 200)
        });
    }
}

#[test]
fn what_is_not_read_ahead_of_a_request_that_waits_is_answered_after_it() {
    let stack = Stack::shared();
    let service = stack.user_svc().with_long_timeouts().start();
    let holder = Session::holding(&stack, "LOCK TABLE users IN EXCLUSIVE MODE");
    let waits = body("waits");
    let length = waits.len();
    let mut connection = Connection::open(service.address());
    connection.send(format!(
        "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{waits}"
    ));
    wait_for_locked(&stack, 1);
    // Several times as much as is read ahead.
    connection.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2_000));
    drop(holder);
    assert_eq!(connection.receive().expect("an answer").status, 201);
    for _ in 0..2_000 {
        assert_eq!(connection.receive().expect("an answer").status, 200);
    }
}
