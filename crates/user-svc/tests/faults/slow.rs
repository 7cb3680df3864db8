//! Slow clients, and connections that send no whole request.

use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::thread::{scope, sleep, spawn};
use std::time::{Duration, Instant};

use devstack::http::{self, Connection, Response};
use devstack::testing::register;
use devstack::{Service, Stack};

use crate::{body, problem};

/// How long an answer may take: five times as long as a head or a body.
const BOUND: Duration = Duration::from_secs(25);

fn service() -> (Stack, Service) {
    let stack = Stack::shared();
    let service = stack.user_svc().start();
    (stack, service)
}

/// What happened to a client that was too slow.
struct Slow {
    answer: Response,
    took: Duration,
    closed: bool,
}

/// Sends `start` at once, and then `rest` byte by byte for six seconds: each byte soon after the last, but the whole
/// too late.
fn slow_client(address: &str, start: &str, rest: &str) -> Slow {
    let begin = Instant::now();
    let mut connection = Connection::open(address);
    connection.send(start);
    for byte in rest.bytes().take(12) {
        sleep(Duration::from_millis(500));
        connection.send([byte]);
    }
    let answer = connection.receive().expect("an answer");
    Slow { answer, took: begin.elapsed(), closed: connection.is_closed() }
}

/// Three slow clients at the same time, since each takes more than five seconds.
fn slow_clients() -> &'static [Slow; 3] {
    static ENDED: OnceLock<[Slow; 3]> = OnceLock::new();
    ENDED.get_or_init(|| {
        let (_stack, service) = service();
        let head =
            "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 40\r\n";
        let whole_head = format!("{head}\r\n");
        let trickling = body("john");
        scope(|scope| {
            let clients = [(head, ""), (&whole_head, ""), (&whole_head, &trickling)];
            let clients =
                clients.map(|(start, rest)| scope.spawn(|| slow_client(service.address(), start, rest)));
            clients.map(|client| client.join().expect("it was answered"))
        })
    })
}

#[test]
fn a_later_head_that_does_not_end_has_as_long_as_an_idle_connection() {
    let stack = Stack::shared();
    let service = stack.user_svc().env("WORKERS", "1").env("MAX_CONNECTIONS", "1").start();
    let mut connection = Connection::open(service.address());
    connection.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(connection.receive().expect("an answer").status, 200);
    let answered = Instant::now();
    connection.send("GET /livez HTTP/1.1\r\nHos");
    // 80 s, and up to 5 s until the next check. Each call waits for 10 s.
    assert!((0..12).any(|_| connection.is_closed()));
    assert!(answered.elapsed() > Duration::from_secs(75), "an idle connection is kept as long");
    assert_eq!(http::get(&service.url_of("/livez")).status, 200, "its place is free");
}

#[test]
fn a_head_that_does_not_end_is_408_and_the_connection_is_closed() {
    let [slow, _, _] = slow_clients();
    assert_eq!((slow.answer.status, slow.closed), (408, true));
    assert!(slow.took < BOUND);
}

#[test]
fn a_body_that_does_not_arrive_is_408_and_the_connection_is_closed() {
    let [_, slow, _] = slow_clients();
    assert_eq!(
        (slow.answer.status, problem(&slow.answer).as_str(), slow.closed),
        (408, "body-timeout", true)
    );
    assert_eq!(slow.answer.header("connection"), Some("close"));
    assert!(slow.took < BOUND);
}

#[test]
fn a_body_that_trickles_is_408_since_the_whole_must_arrive_in_time() {
    let [_, _, slow] = slow_clients();
    assert_eq!(
        (slow.answer.status, problem(&slow.answer).as_str(), slow.closed),
        (408, "body-timeout", true)
    );
    assert!(slow.took < BOUND);
}

#[test]
fn a_client_that_hangs_up_in_the_middle_of_its_body_does_no_harm() {
    let (stack, service) = service();
    for _ in 0..50 {
        let mut connection = Connection::open(service.address());
        connection.send("POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n{\"name\":\"cut\"");
    }
    assert_eq!(register(&service, "john").status, 201);
    assert_eq!(stack.sql("SELECT count(*) FROM users"), "1");
    assert!(!service.log().contains("ERROR"), "{}", service.log());
}

#[test]
fn connections_are_bounded_and_a_free_place_is_taken_again() {
    let stack = Stack::shared();
    let service = stack.user_svc().env("WORKERS", "1").env("MAX_CONNECTIONS", "4").start();
    let held: Vec<Connection> = (0..4)
        .map(|_| {
            let mut connection = Connection::open(service.address());
            connection.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(connection.receive().expect("an answer").status, 200);
            connection
        })
        .collect();
    // The kernel accepts a fifth connection, the service does not.
    let mut fifth = Connection::open(service.address());
    fifth.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (sender, answers) = channel();
    spawn(move || sender.send(fifth.receive()));
    assert!(answers.recv_timeout(Duration::from_millis(300)).is_err(), "four are the bound");
    drop(held);
    let answer = answers.recv_timeout(BOUND).expect("it is accepted").expect("an answer");
    assert_eq!(answer.status, 200);
}

#[test]
fn a_request_within_a_refused_body_is_not_served() {
    let (stack, service) = service();
    let hidden = body("hidden");
    let inner = format!(
        "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{hidden}",
        hidden.len()
    );
    // The body of each is a request, and each is refused before its body is read.
    let refused = [
        format!("POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", inner.len()),
        format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", inner.len()),
        format!("DELETE /register HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", inner.len()),
        // Two lengths that differ: request smuggling relies on them (RFC 9112, section 6.3).
        "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n".to_owned(),
    ];
    for head in &refused {
        let mut connection = Connection::open(service.address());
        connection.send(format!("{head}{inner}"));
        let answer = connection.receive().expect("an answer");
        assert!((400..500).contains(&answer.status), "{head}: {}", answer.status);
    }
    assert_eq!(register(&service, "visible").status, 201);
    assert_eq!(stack.sql("SELECT name FROM users"), "visible");
}
