//! Leases: a copy is stored only if no other reader or writer changed the key meanwhile, and a client that hangs up
//! leaves no lease.

use std::thread::{scope, sleep};
use std::time::Duration;

use devstack::http::{self, Connection};
use devstack::testing::{get, get_with, kind, metric, place_lease, wait_until};
use devstack::{Proxy, Service, Stack};

use crate::{
    BYPASS, HIT, MISS, MISS_NOT_STORED, NO_CACHE, found, insert, is_hit, is_unavailable, wait_for_a_hit,
    without_near,
};

/// A token that belongs to no process: with `L` before it a lease, with `B` a barrier.
const STRANGER: &str = "0123456789abcdef";

fn behind_a_proxy() -> (Stack, Proxy, Service) {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    // Only the test decides how long a load takes.
    let service = without_near(stack.data_svc()).postgres_through(&proxy).with_long_timeouts().start();
    service.wait_for_log("Redis is there");
    insert(&stack, "john");
    insert(&stack, "jane");
    (stack, proxy, service)
}

/// The `Cache-Status` of a GET of john. `meanwhile` runs during its load.
fn loading(service: &Service, proxy: &Proxy, headers: &[(&str, &str)], meanwhile: impl FnOnce()) -> String {
    proxy.stall();
    scope(|scope| {
        let reader = scope.spawn(|| found(&get_with(service, "john", headers), "john"));
        wait_until("it loads", || metric(service, "database_connections_in_use") > 0);
        meanwhile();
        proxy.restore();
        reader.join().expect("answered")
    })
}

#[test]
fn a_copy_whose_lease_is_gone_is_not_stored() {
    let (stack, proxy, service) = behind_a_proxy();
    let status = loading(&service, &proxy, &[], || {
        assert_eq!(kind(&stack, "john"), "L");
        stack.redis_cli(&["DEL", "2:user:{john}"]);
    });
    assert_eq!(status, MISS_NOT_STORED);
    assert_eq!(kind(&stack, "john"), "");
    assert_eq!(found(&get(&service, "john"), "john"), MISS);
}

#[test]
fn a_copy_whose_lease_was_replaced_by_anothers_is_not_stored() {
    let (stack, proxy, service) = behind_a_proxy();
    for kind_of_other in ["L", "B"] {
        stack.redis_cli(&["DEL", "2:user:{john}"]);
        let other = format!("{kind_of_other}{STRANGER}");
        let status = loading(&service, &proxy, &[], || {
            stack.redis_cli(&["SET", "2:user:{john}", &other]);
        });
        assert_eq!(status, MISS_NOT_STORED);
        assert_eq!(stack.redis_cli(&["GET", "2:user:{john}"]), other, "it has not changed");
    }
}

#[test]
fn two_loads_of_one_process_have_leases_of_their_own() {
    let (stack, proxy, service) = behind_a_proxy();
    let lease = || stack.redis_cli(&["GET", "2:user:{john}"]);
    proxy.stall();
    scope(|scope| {
        let first_reader = scope.spawn(|| get(&service, "john"));
        wait_until("the first has its lease", || kind(&stack, "john") == "L");
        let first = lease();
        stack.redis_cli(&["DEL", "2:user:{john}"]);
        let second_reader = scope.spawn(|| get_with(&service, "john", &[NO_CACHE]));
        wait_until("the second has its lease", || kind(&stack, "john") == "L");
        assert_ne!(first, lease());
        proxy.restore();
        first_reader.join().expect("answered");
        second_reader.join().expect("answered");
    });
}

#[test]
fn of_two_readers_only_the_one_that_holds_the_lease_stores_its_copy() {
    let (stack, first_proxy, first) = behind_a_proxy();
    let second_proxy = stack.postgres_proxy();
    let builder = without_near(stack.data_svc()).postgres_through(&second_proxy).with_long_timeouts();
    let second = builder.start();
    second.wait_for_log("Redis is there");
    second_proxy.stall();
    first_proxy.stall();
    scope(|scope| {
        let early = scope.spawn(|| found(&get(&first, "john"), "john"));
        wait_until("the first loads", || kind(&stack, "john") == "L");
        // A registration does the same. The next reader takes a lease of its own.
        stack.redis_cli(&["DEL", "2:user:{john}"]);
        let late = scope.spawn(|| found(&get(&second, "john"), "john"));
        wait_until("the second loads", || kind(&stack, "john") == "L");
        first_proxy.restore();
        assert_eq!(early.join().expect("answered"), MISS_NOT_STORED);
        second_proxy.restore();
        assert_eq!(late.join().expect("answered"), MISS);
    });
}

#[test]
fn a_load_that_fails_removes_no_lease_but_its_own() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let service = without_near(stack.data_svc())
        .postgres_through(&proxy)
        .with_long_timeouts()
        .env("DATABASE_DEADLINE", "500ms")
        .start();
    service.wait_for_log("Redis is there");
    let other = format!("L{STRANGER}");
    proxy.stall();
    scope(|scope| {
        let reader = scope.spawn(|| get(&service, "john"));
        wait_until("it loads", || kind(&stack, "john") == "L");
        stack.redis_cli(&["SET", "2:user:{john}", &other]);
        is_unavailable(&reader.join().expect("answered"));
    });
    assert_eq!(stack.redis_cli(&["GET", "2:user:{john}"]), other);
}

#[test]
fn a_registration_during_a_load_keeps_its_copy_out() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let service = without_near(stack.data_svc()).postgres_through(&proxy).with_long_timeouts().start();
    let users = stack.user_svc().with_long_timeouts().start();
    service.wait_for_log("Redis is there");
    users.wait_for_log("Redis is there");
    proxy.stall();
    scope(|scope| {
        let reader = scope.spawn(|| get(&service, "jane"));
        wait_until("it loads", || kind(&stack, "jane") == "L");
        let body = r#"{"name":"jane","info":"some info"}"#;
        let json = [("Content-Type", "application/json")];
        let answer = http::send("POST", &users.url_of("/register"), &json, body);
        assert_eq!(answer.status, 201);
        assert_eq!(kind(&stack, "jane"), "", "the lease is deleted with the key");
        proxy.restore();
        let answer = reader.join().expect("answered");
        assert_eq!(answer.header("cache-status"), Some(MISS_NOT_STORED));
    });
    assert_eq!(found(&get(&service, "jane"), "jane"), MISS);
}

#[test]
fn a_forced_read_stores_only_over_the_entry_that_it_read() {
    let (stack, proxy, service) = behind_a_proxy();
    wait_for_a_hit(&service, "john");
    let gone = loading(&service, &proxy, &[NO_CACHE], || {
        stack.redis_cli(&["DEL", "2:user:{john}"]);
    });
    assert_eq!(gone, "data-svc; fwd=request");
    assert_eq!(kind(&stack, "john"), "");

    wait_for_a_hit(&service, "john");
    let other = without_near(stack.data_svc()).start();
    other.wait_for_log("Redis is there");
    let replaced = loading(&service, &proxy, &[NO_CACHE], || {
        // The user is the same, but the fill is another: the row of the fill on its way may be the older one.
        let status = found(&get_with(&other, "john", &[NO_CACHE]), "john");
        assert_eq!(status, "data-svc; fwd=request; stored");
    });
    assert_eq!(replaced, "data-svc; fwd=request");

    let undisturbed = loading(&service, &proxy, &[NO_CACHE], || {
        assert!(is_hit(&get(&service, "john")), "meanwhile other reads are served from the entry");
    });
    assert_eq!(undisturbed, "data-svc; fwd=request; stored");
}

#[test]
fn a_barrier_or_lease_without_an_owner_is_waited_for_briefly_then_bypassed() {
    let (stack, _proxy, service) = behind_a_proxy();
    wait_for_a_hit(&service, "jane");
    for letter in ["B", "L"] {
        match letter {
            "B" => drop(stack.redis_cli(&["SET", "2:user:{john}", &format!("B{STRANGER}")])),
            _ => place_lease(&stack, "john", "jane"),
        }
        for headers in [&[][..], &[NO_CACHE]] {
            assert_eq!(found(&get_with(&service, "john", headers), "john"), BYPASS);
        }
        assert_eq!(kind(&stack, "john"), letter, "it belongs to another");
    }
}

#[test]
fn a_client_that_hangs_up_during_a_load_leaves_a_copy_and_no_lease() {
    let (stack, proxy, service) = behind_a_proxy();
    proxy.stall();
    let mut client = Connection::open(service.address());
    client.send("GET /user/john HTTP/1.1\r\nHost: localhost\r\n\r\n");
    wait_until("it loads", || kind(&stack, "john") == "L");
    drop(client);
    proxy.restore();
    wait_until("the copy is there", || kind(&stack, "john") == "V");
    assert!(found(&get(&service, "john"), "john").starts_with(HIT));
}

#[test]
fn a_client_that_hangs_up_at_any_moment_leaves_no_lease() {
    let stack = Stack::shared();
    let postgres = stack.postgres_proxy();
    let redis = stack.redis_proxy();
    let builder = without_near(stack.data_svc()).postgres_through(&postgres).redis_through(&redis);
    let service = builder.env("CACHE_TIMEOUT", "1s").start();
    service.wait_for_log("Redis is there");
    // Each step takes 20 ms or more, so that a client can leave between any two: GET, lease, load, fill.
    redis.delay(Duration::from_millis(10));
    postgres.delay(Duration::from_millis(10));
    scope(|scope| {
        for number in 0..40 {
            let service = &service;
            scope.spawn(move || {
                // Dropping the proxy resets the connection. The service notices a reset sooner than a normal close.
                let proxy = Proxy::start(service.address());
                let mut client = Connection::open(proxy.address());
                client.send(format!("GET /user/left-{number} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
                sleep(Duration::from_millis(10 * number));
                drop(proxy);
            });
        }
    });
    // This read starts last. Once it has ended, the others have ended as well.
    redis.restore();
    postgres.restore();
    assert_eq!(get(&service, "last").status, 404);
    let kinds = |letter: &str| -> usize {
        (0..40).filter(|number| kind(&stack, &format!("left-{number}")) == letter).count()
    };
    let first = kinds("L");
    // A lease expires after 3 s. It must be gone much sooner.
    sleep(Duration::from_millis(500));
    assert_eq!(kinds("L"), 0, "leases without an owner (at first {first}; {} copies)", kinds("A"));
    assert!(kinds("A") > 0, "no client stayed long enough");
}
