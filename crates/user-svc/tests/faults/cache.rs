//! Redis absent, frozen, slow or garbled: a registration is acknowledged all the same, as soon as no reader uses the
//! cache.

use std::time::{Duration, Instant};

use devstack::testing::{metric, metric_with, register, wait_until_within};
use devstack::{Redis, Service, Stack};

use crate::unavailable;

/// How long an answer may take while the cache is suspended and no reader uses it: no time-out of Redis, and five times
/// what PostgreSQL needs on a busy machine.
const BOUND: Duration = Duration::from_secs(1);
/// How long writes may be refused: `CACHE_GRANT` (3 s), the attempts to reach Redis, and the same again as slack.
const SUSPENSION: Duration = Duration::from_secs(8);

/// Registers users until one is acknowledged, and then more: each is acknowledged in time.
fn registers_in_time(service: &Service, name: &str) {
    wait_until_within(SUSPENSION, "a registration is acknowledged", || {
        let answer = register(service, &format!("{name}-first"));
        if answer.status != 201 {
            assert_eq!(unavailable(&answer), "unavailable", "nothing has happened");
        }
        answer.status == 201
    });
    for number in 0..5 {
        let start = Instant::now();
        assert_eq!(register(service, &format!("{name}-{number}")).status, 201);
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
    assert_eq!(metric(service, "cache_suspended"), 1);
}

/// Waits until Redis is granted again.
fn is_granted_again(service: &Service, name: &str) {
    wait_until_within(SUSPENSION, "it is granted", || metric(service, "cache_suspended") == 0);
    assert_eq!(register(service, name).status, 201);
}

#[test]
fn without_redis_a_user_is_registered_in_time_after_the_suspension() {
    let stack = Stack::shared();
    let proxy = stack.redis_proxy();
    proxy.cut();
    let service = stack.user_svc().redis_through(&proxy).start();
    registers_in_time(&service, "absent");
    assert_eq!(metric_with(&service, "cache_grant_changes_total", ""), 0, "it was never granted");
    proxy.restore();
    is_granted_again(&service, "there");
}

#[test]
fn with_redis_frozen_a_user_is_registered_in_time_after_the_suspension() {
    let stack = Stack::shared();
    let redis = Redis::start();
    let service = stack.user_svc().env("REDIS_URL", redis.url(0)).start();
    service.wait_for_log("Redis is there");
    redis.freeze();
    registers_in_time(&service, "frozen");
    redis.thaw();
    is_granted_again(&service, "thawed");
}

#[test]
fn with_redis_slow_a_user_is_registered_in_time_after_the_suspension() {
    let stack = Stack::shared();
    let proxy = stack.redis_proxy();
    let service = stack.user_svc().redis_through(&proxy).start();
    service.wait_for_log("Redis is there");
    proxy.delay(Duration::from_millis(250));
    registers_in_time(&service, "slow");
    proxy.restore();
    is_granted_again(&service, "fast");
}

#[test]
fn with_redis_garbled_a_user_is_registered_in_time_after_the_suspension() {
    let stack = Stack::shared();
    let proxy = stack.redis_proxy();
    let service = stack.user_svc().redis_through(&proxy).start();
    service.wait_for_log("Redis is there");
    proxy.garble();
    registers_in_time(&service, "garbled");
    proxy.restore();
    is_granted_again(&service, "plain");
}

#[test]
fn a_registration_is_seen_although_its_redis_connection_broke_unnoticed() {
    let stack = Stack::shared();
    let proxy = stack.redis_proxy();
    let data = stack.data_svc().start();
    let users = stack.user_svc().with_long_timeouts().redis_through(&proxy).start();
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
