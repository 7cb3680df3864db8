//! What `data-svc` does when parts of the system fail, are missing, or are hostile.

mod acks;
mod fake_redis;
mod fanout;
mod held;
mod leases;
mod permissions;
mod postgres;
mod postgres_away;
mod redis;
mod roles;
mod staleness;
mod steps;
mod suspension;
mod tls;

use devstack::http::Response;
use devstack::testing::{get, wait_until};
use devstack::{Service, ServiceBuilder, Stack};

const NO_CACHE: (&str, &str) = ("Cache-Control", "no-cache");
const MISS: &str = "data-svc; fwd=uri-miss; stored";
const MISS_NOT_STORED: &str = "data-svc; fwd=uri-miss";
const BYPASS: &str = "data-svc; fwd=bypass; detail=write-in-progress";
const BREAKER_OPEN: &str = "data-svc; fwd=bypass; detail=breaker-open";
const TIMEOUT: &str = "data-svc; fwd=miss; detail=redis-timeout";
const ERROR: &str = "data-svc; fwd=miss; detail=redis-error";
const HIT: &str = "data-svc; hit; ttl=";

/// Inserts a user into the table as user-svc does. The name must not have been read before, since no entry is deleted.
fn insert(stack: &Stack, name: &str) {
    stack.sql(&format!("INSERT INTO users (name, info) VALUES ('{name}', 'some info')"));
}

/// The `Cache-Status` of an answer. Panics unless the answer is the user that [`insert`] inserted, and its `cache_hit`
/// is true exactly for a hit.
fn found(answer: &Response, name: &str) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let status = answer.header("cache-status").expect("each answer about a user has one").to_owned();
    let expected =
        serde_json::json!({ "name": name, "info": "some info", "cache_hit": status.starts_with(HIT) });
    assert_eq!(answer.json(), expected);
    status
}

/// Asserts that this is a complete and correct 503 of the kind `unavailable`.
fn is_unavailable(answer: &Response) {
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.json()["type"], "/problems/unavailable");
    assert!(answer.header("retry-after").is_some_and(|value| value.parse::<u32>().is_ok()));
}

/// For tests of Redis alone: no copy in the replica's own memory answers in its place.
fn without_near(builder: ServiceBuilder) -> ServiceBuilder {
    builder.env("NEAR_CACHE_MIB", "0")
}

fn is_hit(answer: &Response) -> bool {
    answer.header("cache-status").is_some_and(|status| status.starts_with(HIT))
}

fn wait_for_a_hit(service: &Service, name: &str) {
    wait_until("the cache is used again", || is_hit(&get(service, name)));
}
