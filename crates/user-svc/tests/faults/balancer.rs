//! Two replicas of each service behind HAProxy, with the file that deploy/haproxy has for production. Each test says that
//! it was not run if HAProxy is missing.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use devstack::http::{self, Connection, Response};
use devstack::testing::{StopAtEnd, metric_with, register, wait_until};
use devstack::{Haproxy, Installed, Service, ServiceBuilder, Stack, free_port};

use crate::{JSON, Session, body, is_registered, problem, wait_for_locked};

/// What haproxy.cfg asks for: longer than two checks and the time of one.
const DRAIN_DELAY: &str = "2s";
const READERS: usize = 6;
/// So many that each replica is where the hashes of some lead.
const NAMES: usize = 16;
const WRITERS: usize = 4;

/// A service at a port that it keeps, so that HAProxy finds it again.
struct Replica {
    /// What HAProxy calls it.
    name: String,
    builder: ServiceBuilder,
    service: Option<Service>,
}

impl Replica {
    fn start(name: String, builder: ServiceBuilder, port: u16) -> Replica {
        let builder = builder.env("PORT", port.to_string()).env("DRAIN_DELAY", DRAIN_DELAY);
        Replica { name, service: Some(builder.start()), builder }
    }

    fn service(&self) -> &Service {
        self.service.as_ref().expect("it runs")
    }
}

struct Fleet {
    users: Vec<Replica>,
    data: Vec<Replica>,
    haproxy: Haproxy,
    stack: Stack,
}

impl Fleet {
    /// Starts two of each, with more settings, and HAProxy in front. Returns when it knows that all are ready.
    fn start(program: &Installed, settings: impl Fn(ServiceBuilder) -> ServiceBuilder) -> Fleet {
        let stack = Stack::shared();
        let [user_ports, data_ports] = [[free_port(), free_port()], [free_port(), free_port()]];
        let replicas = |name: &str, builder: ServiceBuilder, ports: [u16; 2]| {
            let named = ports.into_iter().zip(1..);
            named
                .map(|(port, number)| {
                    Replica::start(format!("{name}/{name}-{number}"), settings(builder.clone()), port)
                })
                .collect()
        };
        let users = replicas("user-svc", stack.user_svc(), user_ports);
        let data = replicas("data-svc", stack.data_svc(), data_ports);
        Fleet { users, data, haproxy: Haproxy::balance(program, &user_ports, &data_ports), stack }
    }

    /// How often HAProxy has noticed of the replicas with this number that they are `UP` or `DOWN`.
    fn noticed(&self, number: usize, state: &str) -> [usize; 2] {
        let log = self.haproxy.log();
        [&self.users, &self.data]
            .map(|replicas| log.matches(&format!("Server {} is {state}", replicas[number].name)).count())
    }

    /// Starts the replicas with this number, which have ended, and waits until HAProxy sends them requests again.
    fn start_again(&mut self, number: usize) {
        let before = self.noticed(number, "UP");
        for replicas in [&mut self.users, &mut self.data] {
            let replica = &mut replicas[number];
            replica.service = None;
            replica.service = Some(replica.builder.start());
        }
        self.wait_until_noticed(number, "UP", before);
    }

    fn wait_until_noticed(&self, number: usize, state: &str, before: [usize; 2]) {
        wait_until(&format!("HAProxy notices that replicas are {state}"), || {
            self.noticed(number, state).iter().zip(before).all(|(now, before)| *now > before)
        });
    }

    fn register(&self, name: &str) -> Response {
        http::send("POST", &format!("http://{}/register", self.haproxy.address()), &[JSON], body(name))
    }

    fn get(&self, name: &str, headers: &[(&str, &str)]) -> Response {
        http::send("GET", &format!("http://{}/user/{name}", self.haproxy.data_address()), headers, "")
    }

    /// How many reads each replica has answered.
    fn reads(&self) -> [u64; 2] {
        [0, 1].map(|number| {
            let (metric, labels) = ("http_request_duration_seconds_count", r#"route="/user/{name}""#);
            metric_with(self.data[number].service(), metric, labels)
        })
    }
}

/// What clients have seen.
#[derive(Default)]
struct Seen {
    reads: AtomicUsize,
    failed_reads: AtomicUsize,
    registered: AtomicUsize,
    failed_writes: AtomicUsize,
    /// 409 for a name that was sent once by its only client.
    sent_twice: AtomicUsize,
}

/// Sends requests on one connection until `stop`. A broken connection is replaced, and counts as a failure.
fn client(address: &str, stop: &AtomicBool, mut act: impl FnMut(&mut Connection) -> std::io::Result<()>) {
    let mut connection = Connection::open(address);
    while !stop.load(Ordering::Relaxed) {
        if act(&mut connection).is_err() {
            connection = Connection::open(address);
        }
        // Light load: what is looked for is a request that fails, and the machine has other work.
        sleep(Duration::from_millis(10));
    }
}

fn read(connection: &mut Connection, name: &str, seen: &Seen) -> std::io::Result<()> {
    connection.send(format!("GET /user/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    let answer = connection.receive();
    seen.reads.fetch_add(1, Ordering::Relaxed);
    if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
        return Ok(());
    }
    seen.failed_reads.fetch_add(1, Ordering::Relaxed);
    answer.map(drop)
}

fn write(connection: &mut Connection, name: &str, seen: &Seen) -> std::io::Result<()> {
    let body = body(name);
    let head = format!("Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    connection.send(format!("POST /register HTTP/1.1\r\n{head}\r\n\r\n{body}"));
    let answer = connection.receive();
    let counter = match answer.as_ref().map(|answer| answer.status) {
        Ok(201) => &seen.registered,
        Ok(409) => &seen.sent_twice,
        _ => &seen.failed_writes,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    answer.map(drop)
}

#[test]
fn a_rolling_restart_fails_no_request_and_a_kill_only_the_writes_that_it_met() {
    let Some(program) = Installed::find("haproxy") else { return };
    let mut fleet = Fleet::start(&program, |builder| builder);
    let names: Vec<String> = (0..NAMES).map(|number| format!("name-{number}")).collect();
    for name in &names {
        assert_eq!(fleet.register(name).status, 201);
    }
    let seen = Seen::default();
    let stop = AtomicBool::new(false);
    let [users, data] = [fleet.haproxy.address(), fleet.haproxy.data_address()];
    scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for reader in 0..READERS {
            let (seen, stop, data) = (&seen, &stop, &data);
            let mut names = names.iter().cycle().skip(reader);
            scope.spawn(move || {
                client(data, stop, |connection| read(connection, names.next().expect("no end"), seen));
            });
        }
        for writer in 0..WRITERS {
            let (seen, stop, users) = (&seen, &stop, &users);
            let mut number = 0;
            scope.spawn(move || {
                client(users, stop, |connection| {
                    number += 1;
                    write(connection, &format!("writer-{writer}-{number}"), seen)
                });
            });
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let goes_on = || {
            let before = [count(&seen.reads), count(&seen.registered)];
            wait_until("there is load", || {
                count(&seen.reads) > before[0] + 50 && count(&seen.registered) > before[1] + 20
            });
        };
        goes_on();
        for number in [0, 1] {
            let ending = [&fleet.users, &fleet.data].map(|replicas| replicas[number].service());
            ending.iter().for_each(|service| service.terminate());
            for service in ending {
                assert_eq!(service.wait().code(), Some(0));
            }
            goes_on();
            fleet.start_again(number);
            goes_on();
        }
        assert_eq!(count(&seen.failed_reads), 0, "{}", fleet.haproxy.log());
        assert_eq!(count(&seen.failed_writes), 0, "{}", fleet.haproxy.log());

        for number in [0, 1] {
            let before = fleet.noticed(number, "DOWN");
            for replicas in [&fleet.users, &fleet.data] {
                replicas[number].service().kill();
            }
            goes_on();
            fleet.wait_until_noticed(number, "DOWN", before);
            fleet.start_again(number);
            goes_on();
        }
    });
    let [reads, failed_reads, registered, failed_writes, sent_twice] =
        [&seen.reads, &seen.failed_reads, &seen.registered, &seen.failed_writes, &seen.sent_twice]
            .map(|counter| counter.load(Ordering::Relaxed));
    println!("{reads} reads, {registered} writes, of which {failed_writes} were in flight at a kill");
    assert_eq!(failed_reads, 0, "{}", fleet.haproxy.log());
    assert_eq!(sent_twice, 0);
    assert!(
        failed_writes <= 2 * WRITERS,
        "each had one in flight at each kill: {failed_writes}\n{}",
        fleet.haproxy.log()
    );
    let rows: usize = fleet.stack.sql("SELECT count(*) FROM users").parse().expect("a count");
    let certain = names.len() + registered;
    assert!((certain..=certain + failed_writes).contains(&rows), "{rows} rows, {certain} acknowledged");
}

#[test]
fn a_write_that_met_a_kill_is_not_sent_again_and_a_read_is() {
    let Some(program) = Installed::find("haproxy") else { return };
    let fleet = Fleet::start(&program, ServiceBuilder::with_long_timeouts);
    let lock = Session::holding(&fleet.stack, "LOCK TABLE users");
    scope(|scope| {
        let write = scope.spawn(|| fleet.register("john"));
        let read = scope.spawn(|| fleet.get("jane", &[]));
        wait_for_locked(&fleet.stack, 2);
        // With one request each, the first replica of user-svc has the write. The read is where its hash leads.
        let busy = |replica: &&Replica| {
            devstack::testing::metric(replica.service(), "database_connections_in_use") > 0
        };
        let both = [&fleet.users, &fleet.data]
            .map(|replicas| replicas.iter().find(busy).expect("a replica has the request").service());
        both.iter().for_each(|service| service.kill());
        let answer = write.join().expect("an answer, if not a good one");
        assert_eq!((answer.status, problem(&answer).as_str()), (502, "outcome-unknown"));
        drop(lock);
        assert_eq!(read.join().expect("an answer").status, 404);
    });
    let alive = fleet.users.iter().find(|replica| !replica.service().has_ended()).expect("one was killed");
    let sent = metric_with(alive.service(), "http_request_duration_seconds_count", r#"method="POST""#);
    assert_eq!(sent, 0, "the other replica has seen no write");
    assert!(!is_registered(&fleet.stack, "john"));
}

#[test]
fn reads_of_one_name_have_one_replica_until_it_has_more_than_its_share() {
    let Some(program) = Installed::find("haproxy") else { return };
    let fleet = Fleet::start(&program, |builder| builder);
    assert_eq!(register(fleet.users[0].service(), "hot").status, 201);
    for _ in 0..20 {
        assert_eq!(fleet.get("hot", &[]).status, 200);
    }
    let mut alone = fleet.reads();
    alone.sort_unstable();
    assert_eq!(alone, [0, 20], "one after the other, all go to one replica");
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for _ in 0..16 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // From PostgreSQL, so that many are under way at once.
                    assert_eq!(fleet.get("hot", &[("Cache-Control", "no-cache")]).status, 200);
                }
            });
        }
        wait_until("both replicas read the hot name", || fleet.reads().into_iter().all(|reads| reads > 100));
    });
}

/// Only Linux has more loopback addresses than one.
#[cfg(target_os = "linux")]
#[test]
fn a_client_has_the_address_that_haproxy_saw_and_not_one_that_it_claims() {
    let Some(program) = Installed::find("haproxy") else { return };
    let fleet = Fleet::start(&program, |builder| {
        builder.env("TRUSTED_PROXIES", "127.0.0.1").env("RATE_LIMIT", "1/m,burst=6")
    });
    let url = format!("http://{}/user/nobody", fleet.haproxy.data_address());
    let ask = |from: &str, claimed: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--interface", from]);
        for header in ["X-Forwarded-For: ", "Forwarded: for="] {
            curl.arg("-H").arg(format!("{header}{claimed}"));
        }
        let output = curl.arg(&url).output().expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for number in 0..6 {
        assert_eq!(ask("127.0.0.2", &format!("192.0.2.{number}")), "404");
    }
    assert_eq!(ask("127.0.0.2", "192.0.2.99"), "429", "the claims are not believed");
    assert_eq!(ask("127.0.0.3", "127.0.0.2"), "404", "another client has a budget of its own");
}
