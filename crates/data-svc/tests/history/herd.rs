//! Many clients that read the same name at once: how many of their reads reach Postgres.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, scope, sleep};
use std::time::{Duration, Instant};

use devstack::testing::{StopAtEnd, metric, wait_until_within};
use devstack::{Postgres, Redis, Service, Stack, Stores, http};

use crate::client::{Client, Reply};
use crate::one_at_a_time;

/// How long to wait for a condition: five hundred clients on two cores take seconds.
const TIMEOUT: Duration = Duration::from_secs(20);
const CLIENTS: usize = 500;
/// How many loads are [`waiting`] in each of two replicas, if there is one for each of four names.
const ALL: [u64; 2] = [4, 4];
const SELECT: &str = r#"FROM "users""#;

/// A stack whose Postgres writes every statement to its log.
fn talkative() -> Stack {
    let settings = [("fsync", "off"), ("log_statement", "all"), ("log_line_prefix", "%a|")];
    Stack::on(Stores::of(Postgres::start_with(&settings), Redis::start()))
}

/// A replica whose sessions in Postgres have this name. It sends one query at a time, and waits for a load as long as
/// the test holds it up.
fn replica(stack: &Stack, name: &str) -> Service {
    let timeouts =
        ["DATABASE_DEADLINE", "DATABASE_STATEMENT_TIMEOUT", "DATABASE_LOCK_TIMEOUT", "CACHE_TIMEOUT"];
    let url = format!("{}?application_name={name}", stack.database_url());
    let builder = stack.data_svc().env("DATABASE_URL", url).env("DATABASE_CONNECTIONS", "4");
    let service = timeouts.iter().fold(builder, |builder, name| builder.env(name, "60s")).start();
    service.wait_for_log("Redis is there");
    service
}

fn insert(stack: &Stack, names: &[String]) {
    for name in names {
        stack.sql(&format!("INSERT INTO users (name, info) VALUES ('{name}', 'w1')"));
    }
}

/// How many SELECTs of users Postgres has run so far.
fn selects(stack: &Stack) -> usize {
    stack.postgres().log().lines().filter(|line| line.contains(SELECT) && line.contains("execute")).count()
}

fn get(client: &mut Client, address: SocketAddr, name: &str) {
    let request = format!("GET /user/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let Reply::Answer(answer) = client.send(address, &request) else { panic!("no answer") };
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
}

fn address(service: &Service) -> SocketAddr {
    service.address().parse().expect("it listens at an IP address")
}

/// How many SELECTs these replicas need to answer 500 clients that read one uncached name at the same moment.
fn herd(stack: &Stack, replicas: &[Service], name: &str) -> usize {
    insert(stack, &[name.to_owned()]);
    let before = selects(stack);
    let together = Barrier::new(CLIENTS);
    scope(|scope| {
        for client in 0..CLIENTS {
            let together = &together;
            let address = address(&replicas[client % replicas.len()]);
            scope.spawn(move || {
                let mut client = Client::default();
                client.open(address);
                together.wait();
                get(&mut client, address, name);
            });
        }
    });
    selects(stack) - before
}

#[test]
fn one_replica_selects_an_uncached_name_once_for_500_clients() {
    let _turn = one_at_a_time();
    let stack = talkative();
    let replicas = [replica(&stack, "data-0")];
    for round in 0..3 {
        assert_eq!(herd(&stack, &replicas, &format!("herd-{round}")), 1);
    }
}

#[test]
fn two_replicas_select_an_uncached_name_twice_at_most_for_500_clients() {
    let _turn = one_at_a_time();
    let stack = talkative();
    let replicas = ["data-0", "data-1"].map(|name| replica(&stack, name));
    for round in 0..3 {
        let selects = herd(&stack, &replicas, &format!("herd-{round}"));
        assert!((1..=2).contains(&selects), "{selects} SELECTs");
    }
}

#[test]
fn twenty_reads_of_different_names_during_a_load_cost_one_more_select() {
    let _turn = one_at_a_time();
    let stack = talkative();
    let replica = &replica(&stack, "data-0");
    let names: Vec<String> = (0..20).map(|number| format!("together-{number}")).collect();
    insert(&stack, &names);
    let before = selects(&stack);
    scope(|scope| {
        let lock = Lock::taken(&stack, scope);
        let unknown = scope.spawn(|| http::get(&replica.url_of("/user/unknown")).status);
        lock.holds_up(1);
        for name in &names {
            scope.spawn(move || assert_eq!(http::get(&replica.url_of(&format!("/user/{name}"))).status, 200));
        }
        wait_until_within(TIMEOUT, "twenty wait", || waiting(replica) == 20);
        lock.release();
        assert_eq!(unknown.join().expect("answered"), 404);
    });
    assert_eq!(selects(&stack) - before, 2);
}

#[test]
fn after_flushall_at_load_each_replica_has_one_load_per_name_in_flight() {
    let _turn = one_at_a_time();
    let stack = talkative();
    let replicas = ["data-0", "data-1"].map(|name| replica(&stack, name));
    let names: Vec<String> = (0..4).map(|number| format!("flushed-{number}")).collect();
    insert(&stack, &names);
    for round in 0..3 {
        // Once every name is cached, the loads of the round before are over.
        for replica in &replicas {
            for name in &names {
                wait_until_within(TIMEOUT, "it is cached", || {
                    is_hit(&http::get(&replica.url_of(&format!("/user/{name}"))))
                });
            }
        }
        let stop = AtomicBool::new(false);
        let seen = scope(|scope| {
            let _stop = StopAtEnd(&stop);
            for number in 0..32_usize {
                // Four clients for each name at each replica.
                let stop = &stop;
                let name = &names[number / 2 % 4];
                let address = address(&replicas[number % 2]);
                scope.spawn(move || {
                    let mut client = Client::default();
                    while !stop.load(Ordering::SeqCst) {
                        get(&mut client, address, name);
                        // Near hits without a pause would leave no processor to psql, which must take the lock.
                        sleep(Duration::from_millis(5));
                    }
                });
            }
            flush_while_loads_are_held(&stack, &replicas, round)
        });
        assert_eq!(seen, ALL, "loads in flight of each replica");
    }
}

fn is_hit(answer: &http::Response) -> bool {
    answer.header("cache-status").is_some_and(|status| status.contains("; hit"))
}

/// Holds up one load of each replica, and so all its queries, and empties the caches. Returns how many loads wait in
/// each replica once no more are added.
fn flush_while_loads_are_held(stack: &Stack, replicas: &[Service; 2], round: usize) -> [u64; 2] {
    scope(|scope| {
        let lock = Lock::taken(stack, scope);
        for replica in replicas {
            let url = replica.url_of(&format!("/user/unknown-{round}"));
            scope.spawn(move || assert_eq!(http::get(&url).status, 404));
        }
        lock.holds_up(2);
        stack.redis_cli(&["FLUSHALL"]);
        // The near caches drop all copies.
        stack.redis_cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        // Until all wait, and a little longer: any further load would have begun by then.
        let counts = || replicas.each_ref().map(waiting);
        let deadline = Instant::now() + TIMEOUT;
        while counts() != ALL && Instant::now() < deadline {}
        sleep(Duration::from_millis(300));
        let seen = counts();
        lock.release();
        seen
    })
}

/// A lock on the table that another session holds.
struct Lock<'a>(&'a Stack);

impl<'a> Lock<'a> {
    /// Takes it, in a thread that ends when it is released.
    fn taken<'scope>(stack: &'a Stack, scope: &'scope Scope<'scope, 'a>) -> Self {
        let lock = "BEGIN; LOCK TABLE users; SELECT pg_sleep(60)";
        scope.spawn(|| {
            // An error: the session is terminated.
            let _ = stack.postgres().try_sql(stack.database(), lock);
        });
        wait_until_within(TIMEOUT, "the table is locked", || Self(stack).is_held());
        Self(stack)
    }

    fn is_held(&self) -> bool {
        let granted = "mode = 'AccessExclusiveLock' AND granted AND relation = 'users'::regclass";
        self.0.sql(&format!("SELECT count(*) FROM pg_locks WHERE {granted}")) == "1"
    }

    /// Waits until this many queries of the replicas wait for it.
    fn holds_up(&self, queries: usize) {
        let blocked = "wait_event_type = 'Lock' AND application_name LIKE 'data-%'";
        let count = format!("SELECT count(*) FROM pg_stat_activity WHERE {blocked}");
        wait_until_within(TIMEOUT, "it holds them up", || self.0.sql(&count) == queries.to_string());
    }

    fn release(self) {
        self.0.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
        wait_until_within(TIMEOUT, "the lock is gone", || !self.is_held());
    }
}

/// How many loads wait in `replica`.
fn waiting(replica: &Service) -> u64 {
    metric(replica, "database_queries_waiting")
}
