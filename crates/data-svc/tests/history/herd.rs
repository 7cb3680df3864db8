//! Many who ask for the same thing at once: who reaches Postgres, and how often.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use devstack::{Postgres, Redis, Service, Stack, Stores};

use crate::client::{Client, Reply};
use crate::one_at_a_time;

const PATIENCE: Duration = Duration::from_secs(20);
const CLIENTS: usize = 500;
/// What [`waiting`] says of four names.
const ALL: &str = "data-0|4\ndata-1|4";
const SELECT: &str = r#"FROM "users""#;

/// A stack whose Postgres writes every statement to its log.
fn talkative() -> Stack {
    let settings = [("fsync", "off"), ("log_statement", "all"), ("log_line_prefix", "%a|")];
    Stack::on(Stores::of(Postgres::start_with(&settings), Redis::start()))
}

/// A replica that tells Postgres its name, and lets a load take as long as the test wants.
fn replica(stack: &Stack, name: &str) -> Service {
    let patient =
        ["DATABASE_DEADLINE", "DATABASE_STATEMENT_TIMEOUT", "DATABASE_LOCK_TIMEOUT", "CACHE_TIMEOUT"];
    let url = format!("{}?application_name={name}", stack.database_url());
    let builder = stack.data_svc().env("DATABASE_URL", url);
    let service = patient.iter().fold(builder, |builder, name| builder.env(name, "60s")).start();
    service.wait_for_log("Redis is there");
    service
}

fn insert(stack: &Stack, names: &[String]) {
    for name in names {
        stack.sql(&format!("INSERT INTO users (name, info) VALUES ('{name}', 'w1')"));
    }
}

/// How many times users were selected so far.
fn selects(stack: &Stack) -> usize {
    stack.postgres().log().lines().filter(|line| line.contains(SELECT) && line.contains("execute")).count()
}

fn get(client: &mut Client, address: SocketAddr, name: &str) {
    let Reply::Answer(answer) = client.ask(address, &format!("GET /user/{name} HTTP/1.1\r\nHost: x\r\n\r\n"))
    else {
        panic!("no answer")
    };
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
}

fn address(service: &Service) -> SocketAddr {
    service.address().parse().expect("it listens at an IP address")
}

/// How many SELECTs it takes to answer 500 who ask these replicas for one uncached name at the same moment.
fn herd(stack: &Stack, replicas: &[Service], name: &str) -> usize {
    insert(stack, &[name.to_owned()]);
    let before = selects(stack);
    let together = Barrier::new(CLIENTS);
    scope(|scope| {
        for client in 0..CLIENTS {
            let (together, address) = (&together, address(&replicas[client % replicas.len()]));
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
fn five_hundred_who_ask_one_replica_for_an_uncached_name_cost_one_select() {
    let _turn = one_at_a_time();
    let stack = talkative();
    let replicas = [replica(&stack, "data-0")];
    for round in 0..3 {
        assert_eq!(herd(&stack, &replicas, &format!("herd-{round}")), 1);
    }
}

#[test]
fn five_hundred_who_ask_two_replicas_for_an_uncached_name_cost_two_selects_at_most() {
    let _turn = one_at_a_time();
    let stack = talkative();
    let replicas = ["data-0", "data-1"].map(|name| replica(&stack, name));
    for round in 0..3 {
        let selects = herd(&stack, &replicas, &format!("herd-{round}"));
        assert!((1..=2).contains(&selects), "{selects} SELECTs");
    }
}

#[test]
fn after_flushall_at_load_each_replica_has_one_load_per_name_in_flight() {
    let _turn = one_at_a_time();
    let stack = talkative();
    let replicas = ["data-0", "data-1"].map(|name| replica(&stack, name));
    let names: Vec<String> = (0..4).map(|number| format!("flushed-{number}")).collect();
    insert(&stack, &names);
    let stop = AtomicBool::new(false);
    scope(|scope| {
        for number in 0..32_usize {
            // Four clients for each name at each replica.
            let (stop, name, address) = (&stop, &names[number / 2 % 4], address(&replicas[number % 2]));
            scope.spawn(move || {
                let mut client = Client::default();
                while !stop.load(Ordering::SeqCst) {
                    get(&mut client, address, name);
                }
            });
        }
        let seen: Vec<String> = (0..3).map(|_| flush_while_loads_are_held(&stack)).collect();
        stop.store(true, Ordering::SeqCst);
        assert_eq!(seen, [ALL; 3], "loads in flight of each replica");
    });
}

/// Holds every load, empties the caches, and returns how many loads of each replica wait when no more come.
fn flush_while_loads_are_held(stack: &Stack) -> String {
    let lock = "BEGIN; LOCK TABLE users; SELECT pg_sleep(60)";
    let locks = || {
        let granted = "mode = 'AccessExclusiveLock' AND granted AND relation = 'users'::regclass";
        stack.sql(&format!("SELECT count(*) FROM pg_locks WHERE {granted}"))
    };
    scope(|scope| {
        scope.spawn(|| drop(stack.postgres().try_sql(stack.database(), lock)));
        wait_until("the table is locked", || locks() == "1");
        stack.redis_cli(&["FLUSHALL"]);
        // The near caches forget what they hold.
        stack.redis_cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        // Until all are there, and a little longer: whoever else would load has done so by then.
        let end = Instant::now() + PATIENCE;
        while waiting(stack) != ALL && Instant::now() < end {}
        sleep(Duration::from_millis(300));
        let seen = waiting(stack);
        stack.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
        wait_until("the lock is gone", || locks() == "0");
        seen
    })
}

fn waiting(stack: &Stack) -> String {
    stack.sql(
        "SELECT application_name, count(*) FROM pg_stat_activity \
         WHERE wait_event_type = 'Lock' AND application_name LIKE 'data-%' GROUP BY 1 ORDER BY 1",
    )
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
    }
}
