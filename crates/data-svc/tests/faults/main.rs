//! What `data-svc` does when parts of the system fail, are missing, or are hostile.

mod fake_redis;
mod leases;
mod postgres;
mod redis;
mod staleness;
mod steps;
mod tls;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use devstack::http::{self, Response};
use devstack::{Service, ServiceBuilder, Stack};

/// Five times the deadline of a query, and the bound of everything here that has no bound of its own.
const PATIENCE: Duration = Duration::from_secs(10);

const NO_CACHE: (&str, &str) = ("Cache-Control", "no-cache");
const MISS: &str = "data-svc; fwd=uri-miss; stored";
const MISS_NOT_STORED: &str = "data-svc; fwd=uri-miss";
const BYPASS: &str = "data-svc; fwd=bypass; detail=write-in-progress";
const BREAKER_OPEN: &str = "data-svc; fwd=bypass; detail=breaker-open";
const TIMEOUT: &str = "data-svc; fwd=miss; detail=redis-timeout";
const ERROR: &str = "data-svc; fwd=miss; detail=redis-error";
const HIT: &str = "data-svc; hit; ttl=";

/// Puts a user into the table as user-svc does. Where nobody has asked for it yet, no copy needs to be deleted.
fn insert(stack: &Stack, name: &str) {
    stack.sql(&format!("INSERT INTO users (name, info) VALUES ('{name}', 'some info')"));
}

fn get(service: &Service, name: &str) -> Response {
    get_with(service, name, &[])
}

/// Panics if no answer comes within 10 s, which is five times the deadline of a query.
fn get_with(service: &Service, name: &str, headers: &[(&str, &str)]) -> Response {
    http::send("GET", &service.url_of(&format!("/user/{name}")), headers, "")
}

/// The `Cache-Status` of an answer that holds the user whom [`insert`] has put there, and says truly whether it is a hit.
fn found(answer: &Response, name: &str) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let status = answer.header("cache-status").expect("each answer about a user has one").to_owned();
    let expected =
        serde_json::json!({ "name": name, "info": "some info", "cache_hit": status.starts_with(HIT) });
    assert_eq!(answer.json(), expected);
    status
}

/// Asserts that this is a whole and honest 503.
fn is_unavailable(answer: &Response) {
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.json()["type"], "/problems/unavailable");
    assert!(answer.header("retry-after").is_some_and(|value| value.parse::<u32>().is_ok()));
}

/// For tests of what Redis alone does: no copy in the replica's own memory answers in its place.
fn without_near(builder: ServiceBuilder) -> ServiceBuilder {
    builder.env("NEAR_CACHE_MIB", "0")
}

fn is_hit(answer: &Response) -> bool {
    answer.header("cache-status").is_some_and(|status| status.starts_with(HIT))
}

/// Looks until `condition` holds. Panics after five times the deadline: it must have been met by then.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5));
    }
}

fn wait_for_a_hit(service: &Service, name: &str) {
    wait_until("the cache is used again", || is_hit(&get(service, name)));
}

/// The first letter of what is at the key, which tells its kind; empty if there is nothing.
fn kind(stack: &Stack, name: &str) -> String {
    stack.redis_cli(&["GETRANGE", &format!("user:{{{name}}}"), "0", "0"])
}

/// Tells the other threads to stop, also when this one panics: the test must end.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The value of a metric without labels.
fn metric(service: &Service, name: &str) -> u64 {
    let text = http::get(&format!("{}/metrics", service.metrics_url())).text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
}
