//! SIGTERM: every accepted request is answered, answers say `Connection: close`, and the process ends in time with 0.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use devstack::http::{self, Connection};
use devstack::testing::{StopAtEnd, metric, register, wait_until};
use devstack::{Signal, Stack, free_port};

use crate::{Session, body, problem, wait_for_locked};

/// The default grace period.
const GRACE: Duration = Duration::from_secs(10);

fn request(name: &str) -> String {
    let body = body(name);
    let length = body.len();
    format!(
        "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn says_close(answer: &http::Response) -> bool {
    answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

#[test]
fn sigterm_under_load_answers_every_request_that_was_sent_and_ends_with_0() {
    let stack = Stack::shared();
    let service = stack.user_svc().env("DRAIN_DELAY", "1s").start();
    let answered = AtomicUsize::new(0);
    let closing = AtomicUsize::new(0);
    scope(|scope| {
        for client in 0..8 {
            let (service, answered, closing) = (&service, &answered, &closing);
            scope.spawn(move || {
                let mut connection = Connection::open(service.address());
                for number in 0.. {
                    connection.send(request(&format!("{client}-{number}")));
                    let answer = connection.receive().expect("every request is answered");
                    assert_eq!(answer.status, 201);
                    answered.fetch_add(1, Ordering::Relaxed);
                    if says_close(&answer) {
                        closing.fetch_add(1, Ordering::Relaxed);
                        assert!(connection.is_closed());
                        return;
                    }
                }
            });
        }
        wait_until("there is load", || answered.load(Ordering::Relaxed) > 50);
        service.terminate();
    });
    assert_eq!(closing.load(Ordering::Relaxed), 8, "each connection got a `close` before it was closed");
    assert_eq!(service.wait().code(), Some(0));
    let stored: usize = stack.sql("SELECT count(*) FROM users").parse().expect("a count");
    assert_eq!(stored, answered.load(Ordering::Relaxed));
}

#[test]
fn sigterm_without_drain_delay_still_answers_every_request_that_has_begun() {
    let stack = Stack::shared();
    let builder = stack.user_svc().env("DATABASE_LOCK_TIMEOUT", "9s").env("DATABASE_STATEMENT_TIMEOUT", "9s");
    let service = builder.env("DATABASE_DEADLINE", "9s").start();
    let lock = Session::holding(&stack, "LOCK TABLE users");
    let begin = |number: usize| {
        let mut connection = Connection::open(service.address());
        connection.send(request(&format!("begun-{number}")));
        connection
    };
    let mut connections = vec![begin(0)];
    wait_for_locked(&stack, 1);
    connections.push(begin(1));
    wait_for_locked(&stack, 2);
    connections.extend((2..8).map(begin));
    wait_until("six requests wait to share a transaction", || {
        metric(&service, "database_queries_waiting") == 6
    });
    service.terminate();
    service.wait_for_log("stopping");
    drop(lock);
    for connection in &mut connections {
        let answer = connection.receive().expect("an answer");
        assert_eq!(answer.status, 201);
        assert!(says_close(&answer));
    }
    assert_eq!(service.wait().code(), Some(0));
}

#[test]
fn no_worker_ends_while_a_request_of_another_worker_waits_for_its_work() {
    let stack = Stack::shared();
    let builder = stack.user_svc().env("DATABASE_LOCK_TIMEOUT", "9s").env("DATABASE_STATEMENT_TIMEOUT", "9s");
    // One batch at a time: the second register cannot start a task for a batch of its own.
    let builder = builder.env("DATABASE_DEADLINE", "9s").env("DATABASE_CONNECTIONS", "4");
    let service = builder.env("WORKERS", "2").start();
    let lock = Session::holding(&stack, "LOCK TABLE users");
    // The workers get connections by turns.
    let mut connections = [(); 2].map(|()| Connection::open(service.address()));
    connections[0].send(request("first"));
    wait_for_locked(&stack, 1);
    connections[1].send(request("second"));
    wait_until("the second request waits", || metric(&service, "database_queries_waiting") == 1);
    // The worker whose task serves both batches has no client connection left.
    let [first, mut second] = connections;
    first.reset();
    service.terminate();
    service.wait_for_log("stopping");
    wait_until("new connections are refused", || TcpStream::connect(service.address()).is_err());
    // Time in which that worker could end.
    sleep(Duration::from_millis(500));
    drop(lock);
    assert_eq!(second.receive().expect("an answer").status, 201);
    assert_eq!(service.wait().code(), Some(0));
}

#[test]
fn during_the_drain_delay_readiness_is_503_work_goes_on_and_answers_say_close() {
    let stack = Stack::shared();
    let service = stack.user_svc().env("DRAIN_DELAY", "1s").start();
    let before = register(&service, "before");
    assert!(!says_close(&before));
    service.terminate();
    service.wait_for_readiness(503);
    let readiness = http::get(&service.url_of("/readyz"));
    assert_eq!((readiness.status, problem(&readiness).as_str()), (503, "not-ready"));
    assert!(says_close(&readiness));
    // A new connection, as from a balancer that has not checked readiness yet.
    let during = register(&service, "during");
    assert_eq!(during.status, 201);
    assert!(says_close(&during));
    assert_eq!(http::get(&service.url_of("/livez")).status, 200);
    assert_eq!(service.wait().code(), Some(0));
}

#[test]
fn an_idle_connection_does_not_delay_the_end() {
    let stack = Stack::shared();
    let service = stack.user_svc().start();
    let mut idle = Connection::open(service.address());
    idle.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(idle.receive().expect("an answer").status, 200);
    let mut silent = Connection::open(service.address());
    let start = Instant::now();
    service.terminate();
    assert_eq!(service.wait().code(), Some(0));
    assert!(start.elapsed() < GRACE, "no request was under way: {:?}", start.elapsed());
    assert!(idle.is_closed() && silent.is_closed());
}

#[test]
fn a_request_that_never_ends_is_cut_off_by_the_grace_period() {
    let stack = Stack::shared();
    let service = stack.user_svc().env("GRACE_PERIOD", "1s").start();
    let mut stuck = Connection::open(service.address());
    stuck.send(
        "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n{",
    );
    assert_eq!(http::get(&service.url_of("/livez")).status, 200);
    let start = Instant::now();
    service.terminate();
    assert_eq!(service.wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn sigterm_ends_a_service_that_waits_for_postgres_with_0() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    proxy.stall();
    let service = stack.user_svc().postgres_through(&proxy).spawn();
    let start = Instant::now();
    service.terminate();
    assert_eq!(service.wait().code(), Some(0));
    assert!(start.elapsed() < GRACE);
}

#[test]
fn sigterm_with_postgres_frozen_during_a_request_still_ends_with_0_in_time() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let service = stack.user_svc().postgres_through(&proxy).env("DATABASE_DEADLINE", "500ms").start();
    proxy.stall();
    let mut client = Connection::open(service.address());
    client.send(request("stalled"));
    let busy = || metric(&service, "database_connections_in_use") > 0;
    wait_until("the request has begun", busy);
    let start = Instant::now();
    service.terminate();
    assert_eq!(client.receive().expect("an answer, if not a good one").status, 503);
    assert_eq!(service.wait().code(), Some(0));
    assert!(start.elapsed() < GRACE);
}

#[test]
fn sigint_ends_a_service_as_sigterm_does() {
    let stack = Stack::shared();
    let service = stack.user_svc().start();
    service.signal(Signal::INT);
    assert_eq!(service.wait().code(), Some(0));
    assert!(service.log().contains("stopped"));
}

#[test]
fn a_client_that_leaves_at_readiness_503_sees_no_failure_when_a_replica_goes() {
    let stack = Stack::shared();
    let replicas = [stack.data_svc().env("DRAIN_DELAY", "2s").start(), stack.data_svc().start()];
    let users = stack.user_svc().start();
    assert_eq!(register(&users, "john").status, 201);
    let answered = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let gone = AtomicBool::new(false);
    scope(|scope| {
        let _stop = StopAtEnd(&stop);
        // As a balancer does, it checks readiness many times in the drain delay.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                gone.store(!replicas[0].is_ready(), Ordering::Relaxed);
                sleep(Duration::from_millis(100));
            }
        });
        for client in 0..4 {
            let (replicas, answered, stop, gone) = (&replicas, &answered, &stop, &gone);
            scope.spawn(move || {
                let _stop = StopAtEnd(stop);
                for number in client.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let first = number % 2 == 0 && !gone.load(Ordering::Relaxed);
                    let replica = if first { &replicas[0] } else { &replicas[1] };
                    let answer = http::try_send("GET", &replica.url_of("/user/john"), &[], "");
                    assert_eq!(answer.expect("no request fails").status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_until("there is load", || answered.load(Ordering::Relaxed) > 50);
        replicas[0].terminate();
        let status = replicas[0].wait();
        let so_far = answered.load(Ordering::Relaxed);
        wait_until("the other replica serves on", || answered.load(Ordering::Relaxed) > so_far + 50);
        assert_eq!(status.code(), Some(0));
    });
}

#[test]
fn a_second_interrupt_ends_a_drain_and_a_second_sigterm_does_not() {
    let stack = Stack::shared();
    let start = || stack.user_svc().env("DRAIN_DELAY", "1h").start();

    let service = start();
    service.signal(Signal::INT);
    service.wait_for_log("stopping");
    assert_eq!(http::get(&service.url_of("/livez")).status, 200, "it drains");
    service.signal(Signal::INT);
    assert_eq!(service.wait().code(), Some(0));
    assert!(service.log().contains("stopped at once, by a second signal"), "{}", service.log());

    let service = start();
    service.terminate();
    service.wait_for_log("stopping");
    service.terminate();
    assert_eq!(http::get(&service.url_of("/livez")).status, 200, "it drains");
    service.signal(Signal::INT);
    assert_eq!(service.wait().code(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_stops_neither_requests_nor_the_end() {
    let stack = Stack::shared();
    let [port, metrics_port] = [free_port(), free_port()].map(|port| port.to_string());
    let url = |port: &str, path: &str| format!("http://127.0.0.1:{port}{path}");
    let service = stack
        .user_svc()
        .env("PORT", &port)
        .env("METRICS_PORT", &metrics_port)
        .env("RUST_LOG", "trace,actix_http=trace");
    let mut service = service.command(&[] as &[&str]).stderr(Stdio::piped()).spawn().expect("it starts");
    let status = |path| http::try_send("GET", &url(&port, path), &[], "").map_or(0, |answer| answer.status);
    wait_until("it is ready", || status("/readyz") == 200);
    wait_until("lines are dropped", || {
        // Each request logs several lines at this level.
        assert!((0..100).all(|_| status("/livez") == 200));
        let metrics = http::get(&url(&metrics_port, "/metrics")).text();
        !metrics.contains("log_lines_dropped_total 0")
    });
    let json = [("Content-Type", "application/json")];
    assert_eq!(http::send("POST", &url(&port, "/register"), &json, body("unread")).status, 201);

    let kill = Command::new("kill").args(["-TERM", &service.id().to_string()]).status();
    assert!(kill.expect("kill runs").success());
    let mut code = None;
    wait_until("it ends", || {
        code = service.try_wait().expect("it is our child").map(|status| status.code());
        code.is_some()
    });
    assert_eq!(code, Some(Some(0)));
}
