//! Redis absent, frozen, killed, slow, garbled, full, read-only, or holding garbage: every request succeeds in time,
//! except those beyond the line for Redis.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use devstack::testing::{StopAtEnd, get, get_with, kind, metric_with, wait_until};
use devstack::{Redis, Service, ServiceBuilder, Stack};

use crate::{
    BREAKER_OPEN, BYPASS, ERROR, HIT, MISS, NO_CACHE, TIMEOUT, found, insert, is_hit, wait_for_a_hit,
    without_near,
};

/// How long an answer may take: one time-out of 50 ms with Redis, five times that as slack, and the rest for Postgres
/// on a busy machine.
const BOUND: Duration = Duration::from_secs(3);

/// A Redis of the test's own, to be disturbed. (A Postgres of its own would take seconds to start.)
fn with_own_redis() -> (Stack, Redis) {
    (Stack::shared(), Redis::start())
}

/// A service that uses this Redis, which is granted.
fn data_svc(stack: &Stack, redis: &Redis) -> ServiceBuilder {
    stack.grant_process(&redis.process().expect("it answers"));
    without_near(stack.data_svc()).env("REDIS_URL", redis.url(0))
}

fn with_john(stack: &Stack) {
    insert(stack, "john");
}

/// The `Cache-Status` of an answer about john, which must arrive in time.
fn john_in_time(service: &Service) -> String {
    let start = Instant::now();
    let answer = get(service, "john");
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    found(&answer, "john")
}

#[test]
fn without_redis_it_starts_and_serves_and_uses_redis_when_it_appears() {
    let stack = Stack::shared();
    with_john(&stack);
    let proxy = stack.redis_proxy();
    proxy.cut();
    let service = without_near(stack.data_svc()).redis_through(&proxy).start();
    for _ in 0..3 {
        assert_eq!(john_in_time(&service), BREAKER_OPEN);
    }
    service.wait_for_log("Redis cannot be used");
    proxy.restore();
    wait_for_a_hit(&service, "john");
}

#[test]
fn a_redis_that_cannot_be_reached_is_logged_once_not_at_every_attempt() {
    let stack = Stack::shared();
    let proxy = stack.redis_proxy();
    proxy.cut();
    let service = without_near(stack.data_svc()).redis_through(&proxy).start();
    service.wait_for_log("Redis cannot be used");
    // Time for four more attempts, which may fail in two ways here.
    sleep(Duration::from_secs(1));
    assert!(service.log().matches("Redis cannot be used").count() <= 2, "{}", service.log());
}

#[test]
fn a_redis_that_is_lost_costs_one_error_and_then_nothing_until_it_is_back() {
    let stack = Stack::shared();
    with_john(&stack);
    let proxy = stack.redis_proxy();
    let service = without_near(stack.data_svc()).redis_through(&proxy).start();
    wait_for_a_hit(&service, "john");
    proxy.cut();
    assert_eq!(john_in_time(&service), ERROR);
    for _ in 0..10 {
        assert_eq!(john_in_time(&service), BREAKER_OPEN);
    }
    proxy.restore();
    wait_for_a_hit(&service, "john");
    assert_eq!(service.log().matches("Redis is lost").count(), 1);
}

#[test]
fn a_redis_that_freezes_costs_one_time_out_and_then_nothing_until_it_thaws() {
    let (stack, redis) = with_own_redis();
    with_john(&stack);
    let service = data_svc(&stack, &redis).start();
    wait_for_a_hit(&service, "john");
    redis.freeze();
    assert_eq!(john_in_time(&service), TIMEOUT);
    for _ in 0..10 {
        assert_eq!(john_in_time(&service), BREAKER_OPEN);
    }
    redis.thaw();
    wait_for_a_hit(&service, "john");
}

#[test]
fn a_redis_that_freezes_under_load_fails_no_request() {
    let (stack, redis) = with_own_redis();
    with_john(&stack);
    let service = data_svc(&stack, &redis).start();
    wait_for_a_hit(&service, "john");
    let service = &service;
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for _ in 0..8 {
            scope.spawn(|| {
                let _stop = StopAtEnd(&stop);
                while !stop.load(Ordering::Relaxed) {
                    john_in_time(service);
                }
            });
        }
        for _ in 0..2 {
            redis.freeze();
            wait_until("the breaker is open", || found(&get(service, "john"), "john") == BREAKER_OPEN);
            redis.thaw();
            wait_for_a_hit(service, "john");
        }
    });
}

#[test]
fn reads_beyond_the_line_for_redis_are_refused_at_once_and_others_served() {
    // This many may wait for Redis even if fewer may wait for PostgreSQL.
    const MAY_WAIT: usize = 128;
    const READS: usize = MAY_WAIT + 10;
    let stack = Stack::shared();
    let proxy = stack.redis_proxy();
    let builder = without_near(stack.data_svc()).redis_through(&proxy).env("DATABASE_QUEUE", "1");
    let service = builder.env("CACHE_TIMEOUT", "9s").env("CACHE_ABSENT_TTL", "60s").start();
    for number in 0..READS {
        wait_for_a_hit(&service, &format!("{number}"));
    }
    proxy.stall();
    let refused = AtomicUsize::new(0);
    let served = AtomicUsize::new(0);
    scope(|scope| {
        for number in 0..READS {
            let (service, refused, served) = (&service, &refused, &served);
            scope.spawn(move || match get(service, &format!("{number}")) {
                answer if answer.status == 503 => {
                    assert_eq!(answer.json()["type"], "/problems/overloaded");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                answer => {
                    assert!(is_hit(&answer));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_until("those beyond the bound are refused", || {
            refused.load(Ordering::Relaxed) == READS - MAY_WAIT
        });
        assert_eq!(served.load(Ordering::Relaxed), 0, "the others wait");
        proxy.restore();
    });
    assert_eq!((refused.into_inner(), served.into_inner()), (READS - MAY_WAIT, MAY_WAIT));
    assert!(is_hit(&get(&service, "0")));
}

#[test]
fn a_redis_that_is_killed_and_started_again_empty_is_granted_and_used_again() {
    let (stack, redis) = with_own_redis();
    with_john(&stack);
    let users = stack.user_svc().env("REDIS_URL", redis.url(0)).start();
    let service = without_near(stack.data_svc()).env("REDIS_URL", redis.url(0)).start();
    wait_for_a_hit(&service, "john");
    redis.kill();
    assert_eq!(john_in_time(&service), ERROR);
    assert_eq!(john_in_time(&service), BREAKER_OPEN);
    redis.restart();
    // It is another process: no copy of it is used before user-svc has granted it.
    wait_until("it is filled again", || found(&get(&service, "john"), "john") == MISS);
    assert!(john_in_time(&service).starts_with(HIT));
    assert_eq!(metric_with(&users, "cache_grant_changes_total", "other_process"), 1);
    assert_eq!(metric_with(&users, "cache_grant_changes_total", "granted"), 1);
}

#[test]
fn a_redis_that_is_too_slow_is_left_alone_until_it_is_fast_again() {
    let stack = Stack::shared();
    with_john(&stack);
    let proxy = stack.redis_proxy();
    let service = without_near(stack.data_svc()).redis_through(&proxy).start();
    wait_for_a_hit(&service, "john");
    // A round trip of 500 ms: it answers, but too slowly for readers and for writers.
    proxy.delay(Duration::from_millis(250));
    assert_eq!(john_in_time(&service), TIMEOUT);
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        assert_eq!(john_in_time(&service), BREAKER_OPEN, "each further time-out would cost 50 ms again");
        sleep(Duration::from_millis(20));
    }
    proxy.restore();
    wait_for_a_hit(&service, "john");
}

#[test]
fn a_garbled_connection_to_redis_fails_no_request() {
    let stack = Stack::shared();
    with_john(&stack);
    let proxy = stack.redis_proxy();
    let service = without_near(stack.data_svc()).redis_through(&proxy).start();
    wait_for_a_hit(&service, "john");
    proxy.garble();
    for _ in 0..10 {
        assert!([ERROR, TIMEOUT, BREAKER_OPEN].contains(&john_in_time(&service).as_str()));
    }
    proxy.restore();
    wait_for_a_hit(&service, "john");
}

#[test]
fn a_connection_to_redis_that_was_closed_while_idle_costs_one_error_at_most() {
    let (stack, redis) = with_own_redis();
    with_john(&stack);
    let service = data_svc(&stack, &redis).start();
    wait_for_a_hit(&service, "john");
    for _ in 0..5 {
        redis.cli(0, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        let statuses = [john_in_time(&service), john_in_time(&service)];
        assert_ne!(statuses[1], ERROR, "{statuses:?}");
        wait_for_a_hit(&service, "john");
    }
}

#[test]
fn garbage_at_a_key_is_replaced_by_a_good_entry() {
    let stack = Stack::shared();
    let service = without_near(stack.data_svc()).start();
    service.wait_for_log("Redis is there");
    let ours = "V\u{2}0123456789abcdef";
    let kinds: [(&str, &[&str]); 10] = [
        ("text", &["SET", "{}", "hello"]),
        ("empty", &["SET", "{}", ""]),
        ("value-cut-off", &["SET", "{}", ours]),
        ("lease-too-short", &["SET", "{}", "L"]),
        ("barrier-too-long", &["SET", "{}", "B0123456789abcdefg"]),
        ("list", &["RPUSH", "{}", "a"]),
        ("hash", &["HSET", "{}", "a", "b"]),
        ("set", &["SADD", "{}", "a"]),
        ("sorted-set", &["ZADD", "{}", "1", "a"]),
        ("stream", &["XADD", "{}", "*", "a", "b"]),
    ];
    for (name, command) in kinds {
        insert(&stack, name);
        let key = format!("2:user:{{{name}}}");
        let command: Vec<&str> =
            command.iter().map(|&word| if word == "{}" { key.as_str() } else { word }).collect();
        stack.redis_cli(&command);
        assert_eq!(found(&get(&service, name), name), MISS, "{name}");
        assert!(found(&get(&service, name), name).starts_with(HIT), "{name}");
    }
    // A forced read finds the same.
    stack.redis_cli(&["SET", "2:user:{text}", "hello"]);
    assert_eq!(found(&get_with(&service, "text", &[NO_CACHE]), "text"), "data-svc; fwd=request; stored");
    assert!(found(&get(&service, "text"), "text").starts_with(HIT));
}

#[test]
fn an_entry_that_was_cut_or_added_to_is_not_served() {
    let stack = Stack::shared();
    let service = without_near(stack.data_svc()).start();
    service.wait_for_log("Redis is there");
    // What a manual mistake may do to an entry.
    let key = "2:user:{john}";
    insert(&stack, "john");
    for script in [
        "redis.call('SET', KEYS[1], string.sub(redis.call('GET', KEYS[1]), 1, -2))",
        "redis.call('APPEND', KEYS[1], 'x')",
    ] {
        wait_for_a_hit(&service, "john");
        stack.redis_cli(&["EVAL", script, "1", key]);
        assert_eq!(found(&get(&service, "john"), "john"), MISS, "{script}");
    }
}

#[test]
fn an_entry_of_another_format_is_left_alone_and_not_served() {
    let stack = Stack::shared();
    with_john(&stack);
    let service = without_near(stack.data_svc()).start();
    service.wait_for_log("Redis is there");
    stack.redis_cli(&["SET", "2:user:{john}", "V\u{3}something that only a newer version can read"]);
    for _ in 0..2 {
        assert_eq!(john_in_time(&service), BYPASS);
        assert_eq!(found(&get_with(&service, "john", &[NO_CACHE]), "john"), BYPASS);
    }
    assert_eq!(kind(&stack, "john"), "V");
}

#[test]
fn a_redis_out_of_memory_serves_what_it_has_and_postgres_the_rest() {
    let (stack, redis) = with_own_redis();
    with_john(&stack);
    insert(&stack, "jane");
    let service = data_svc(&stack, &redis).start();
    wait_for_a_hit(&service, "john");
    redis.cli(0, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.cli(0, &["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..3 {
        assert_eq!(found(&get(&service, "jane"), "jane"), ERROR);
        assert!(john_in_time(&service).starts_with(HIT), "Redis replies, so the breaker stays closed");
    }
    redis.cli(0, &["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(found(&get(&service, "jane"), "jane"), MISS);
    assert!(!service.log().contains("Redis is lost"), "{}", service.log());
}

#[test]
fn each_worker_has_its_own_connection_and_losing_them_fails_no_request() {
    let (stack, redis) = with_own_redis();
    with_john(&stack);
    let service = data_svc(&stack, &redis).env("WORKERS", "3").start();
    // One connection for each worker, and the one that all share.
    let all_connected = || {
        john_in_time(&service);
        let without_redis_cli = redis.cli(0, &["CLIENT", "LIST", "TYPE", "normal"]).lines().count() - 1;
        without_redis_cli == 4
    };
    wait_until("all workers have connected", all_connected);
    redis.cli(0, &["CLIENT", "KILL", "TYPE", "normal"]);
    wait_until("all workers have connected again", all_connected);
}

#[test]
fn a_redis_that_has_become_a_replica_is_not_used_until_it_is_granted_anew() {
    let (stack, redis) = with_own_redis();
    with_john(&stack);
    let service = data_svc(&stack, &redis).start();
    let users = stack.user_svc().env("REDIS_URL", redis.url(0)).start();
    wait_for_a_hit(&service, "john");
    // No server is at port 1: a replica without its primary, as after a failover to another server.
    redis.cli(0, &["REPLICAOF", "127.0.0.1", "1"]);
    for _ in 0..20 {
        found(&get(&service, "john"), "john");
        sleep(Duration::from_millis(20));
    }
    assert_eq!(john_in_time(&service), BREAKER_OPEN, "{}", service.log());
    assert!(service.log().matches("common::cache").count() <= 6, "{}", service.log());
    redis.cli(0, &["REPLICAOF", "NO", "ONE"]);
    // Its data may be of another time, so it is granted anew, and begins cold.
    wait_for_a_hit(&service, "john");
    assert_eq!(metric_with(&users, "cache_grant_changes_total", "granted"), 1);
}

#[test]
fn with_a_wrong_password_redis_is_not_used_and_the_log_says_why_without_it() {
    let stack = Stack::shared();
    let redis = Redis::start_with_password("right");
    with_john(&stack);
    let url = redis.url(0).replacen(":right@", ":hunter2@", 1);
    let service = without_near(stack.data_svc()).env("REDIS_URL", url).start();
    assert_eq!(john_in_time(&service), BREAKER_OPEN);
    let line = service.wait_for_log("Redis cannot be used").to_lowercase();
    assert!(line.contains("auth") || line.contains("password"), "{line}");
    assert!(!service.log().contains("hunter2"), "{line}");
}

#[test]
fn a_redis_without_a_free_connection_is_used_once_there_is_one() {
    let (stack, redis) = with_own_redis();
    with_john(&stack);
    let service = data_svc(&stack, &redis);
    // One connection, since redis-cli needs it before. (Redis reserves some for itself.)
    redis.cli(0, &["CONFIG", "SET", "maxclients", "1"]);
    let taken = TcpStream::connect(("127.0.0.1", redis.port())).expect("it listens");
    let service = service.start();
    assert_eq!(john_in_time(&service), BREAKER_OPEN);
    drop(taken);
    wait_for_a_hit(&service, "john");
}

#[test]
fn a_herd_at_one_cold_name_is_served_and_leaves_a_copy() {
    let stack = Stack::shared();
    with_john(&stack);
    let replicas = [without_near(stack.data_svc()).start(), stack.data_svc().start()];
    for replica in &replicas {
        replica.wait_for_log("Redis is there");
    }
    scope(|scope| {
        for number in 0..64 {
            let replica = &replicas[number % 2];
            scope.spawn(move || found(&get(replica, "john"), "john"));
        }
    });
    assert!(is_hit(&get(&replicas[0], "john")) && is_hit(&get(&replicas[1], "john")));
}
