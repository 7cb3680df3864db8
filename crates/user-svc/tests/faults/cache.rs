//! Redis absent, frozen, slow or garbled: a registration is acknowledged all the same.

use std::time::{Duration, Instant};

use devstack::testing::register;
use devstack::{Redis, Service, Stack};

/// How long an answer may take: one time-out of 50 ms with Redis, five times that as slack, and the rest for Postgres
/// on a busy machine.
const BOUND: Duration = Duration::from_secs(1);

fn registers_in_time(service: &Service, name: &str) {
    for number in 0..5 {
        let start = Instant::now();
        assert_eq!(register(service, &format!("{name}-{number}")).status, 201);
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
}

#[test]
fn without_redis_a_user_is_registered_in_time() {
    let stack = Stack::shared();
    let proxy = stack.redis_proxy();
    proxy.cut();
    let service = stack.user_svc().redis_through(&proxy).start();
    registers_in_time(&service, "absent");
}

#[test]
fn with_redis_frozen_a_user_is_registered_in_time() {
    let stack = Stack::shared();
    let redis = Redis::start();
    let service = stack.user_svc().env("REDIS_URL", redis.url(0)).start();
    service.wait_for_log("Redis is there");
    redis.freeze();
    registers_in_time(&service, "frozen");
    redis.thaw();
    registers_in_time(&service, "thawed");
}

#[test]
fn with_redis_slow_a_user_is_registered_in_time() {
    let stack = Stack::shared();
    let proxy = stack.redis_proxy();
    let service = stack.user_svc().redis_through(&proxy).start();
    service.wait_for_log("Redis is there");
    proxy.delay(Duration::from_millis(200));
    registers_in_time(&service, "slow");
}

#[test]
fn with_redis_garbled_a_user_is_registered_in_time() {
    let stack = Stack::shared();
    let proxy = stack.redis_proxy();
    let service = stack.user_svc().redis_through(&proxy).start();
    service.wait_for_log("Redis is there");
    proxy.garble();
    registers_in_time(&service, "garbled");
}

#[test]
fn a_registration_is_seen_although_its_redis_connection_broke_unnoticed() {
    let stack = Stack::shared();
    let proxy = stack.redis_proxy();
    let data = stack.data_svc().start();
    let users = stack.user_svc().redis_through(&proxy).start();
    users.wait_for_log("Redis is there");
    for round in 0..5 {
        let path = format!("/user/unnoticed-{round}");
        assert_eq!(devstack::http::get(&data.url_of(&path)).status, 404, "cached as absent");
        // As a firewall, or Redis' own `timeout`, does to an idle connection. Redis itself can be reached.
        proxy.reset();
        assert_eq!(register(&users, &format!("unnoticed-{round}")).status, 201);
        assert_eq!(devstack::http::get(&data.url_of(&path)).status, 200, "{}", users.log());
    }
}
