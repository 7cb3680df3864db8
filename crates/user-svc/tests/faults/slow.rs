//! Clients that take their time, and connections that are kept for nothing.

use std::sync::OnceLock;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use devstack::http::{self, Connection, Response};
use devstack::testing::register;
use devstack::{Service, Stack};

use crate::{body, problem};

/// Five times what a head or a body may take.
const BOUND: Duration = Duration::from_secs(25);

fn service() -> (Stack, Service) {
    let stack = Stack::shared();
    let service = stack.user_svc().start();
    (stack, service)
}

/// What became of a client that was too slow.
struct Slow {
    answer: Response,
    took: Duration,
    closed: bool,
}

/// Sends `start` at once, then the rest byte by byte for six seconds: each soon after the last, the whole too late.
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

/// Three slow clients, all at once: each takes more than five seconds, in which nothing else happens.
fn slow_clients() -> &'static [Slow; 3] {
    static ENDED: OnceLock<[Slow; 3]> = OnceLock::new();
    ENDED.get_or_init(|| {
        let (_stack, service) = service();
        let head =
            "POST /register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 40\r\n";
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
fn a_later_head_that_does_not_come_whole_is_given_as_long_as_an_idle_connection_and_no_longer() {
    let stack = Stack::shared();
    let service = stack.user_svc().env("WORKERS", "1").env("MAX_CONNECTIONS", "1").start();
    let mut connection = Connection::open(service.address());
    connection.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(connection.receive().expect("an answer").status, 200);
    let answered = Instant::now();
    connection.send("GET /livez HTTP/1.1\r\nHos");
    // 80 s, and 5 until it is looked at; each of these waits for 10.
    assert!((0..12).any(|_| connection.is_closed()));
    assert!(answered.elapsed() > Duration::from_secs(75), "it would be kept so long without a request");
    assert_eq!(http::get(&service.url_of("/livez")).status, 200, "its place is free");
}

#[test]
fn a_head_that_does_not_come_whole_is_408_and_the_connection_is_closed() {
    let [slow, _, _] = slow_clients();
    assert_eq!((slow.answer.status, slow.closed), (408, true));
    assert!(slow.took < BOUND);
}

#[test]
fn a_body_that_does_not_come_is_408_and_the_connection_is_closed() {
    let [_, slow, _] = slow_clients();
    assert_eq!(
        (slow.answer.status, problem(&slow.answer).as_str(), slow.closed),
        (408, "body-timeout", true)
    );
    assert_eq!(slow.answer.header("connection"), Some("close"));
    assert!(slow.took < BOUND);
}

#[test]
fn a_body_that_trickles_is_408_since_the_whole_must_come_in_time() {
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
        connection.send("POST /register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n{\"name\":\"cut\"");
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
            connection.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(connection.receive().expect("an answer").status, 200);
            connection
        })
        .collect();
    // The kernel takes a fifth, the service does not.
    let mut fifth = Connection::open(service.address());
    fifth.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    let (sender, answers) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(fifth.receive()));
    assert!(answers.recv_timeout(Duration::from_millis(300)).is_err(), "four were the bound");
    drop(held);
    let answer = answers.recv_timeout(BOUND).expect("its turn comes").expect("an answer");
    assert_eq!(answer.status, 200);
}

#[test]
fn a_request_behind_a_refused_body_is_not_read_as_one() {
    let (stack, service) = service();
    let hidden = body("hidden");
    let inner = format!(
        "POST /register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{hidden}",
        hidden.len()
    );
    // The body of each is a request, and each is refused before its body is read.
    let refused = [
        format!("POST /register HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", inner.len()),
        format!("POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", inner.len()),
        format!("DELETE /register HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", inner.len()),
        // Which length holds is what smuggling is about (RFC 9112, section 6.3).
        "POST /register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "POST /register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n".to_owned(),
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
