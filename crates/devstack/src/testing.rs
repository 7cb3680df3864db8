//! What the tests of both services do: register and read users, look at metrics and cache entries, wait for a condition.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::http::{self, Response};
use crate::process::until;
use crate::service::Service;
use crate::stack::Stack;

/// How long [`wait_until`] waits: five times the services' deadline for a query, so what a test waits for must have
/// happened by then.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Registers `name` with the info `some info`. Panics with the service's log if no answer comes.
pub fn register(service: &Service, name: &str) -> Response {
    register_with(service, name, "some info")
}

/// Registers `name` with this info. Panics with the service's log if no answer comes.
pub fn register_with(service: &Service, name: &str, info: &str) -> Response {
    let body = serde_json::json!({ "name": name, "info": info }).to_string();
    let json = [("Content-Type", "application/json")];
    let answer = http::try_send("POST", &service.url_of("/register"), &json, body);
    answer.unwrap_or_else(|error| panic!("{name}: {error}\n{}", service.log()))
}

/// Reads the user `name`, which must need no percent-encoding. Panics if no answer comes.
pub fn get(service: &Service, name: &str) -> Response {
    get_with(service, name, &[])
}

/// Reads the user `name`, which must need no percent-encoding, with these headers. Panics if no answer comes.
pub fn get_with(service: &Service, name: &str, headers: &[(&str, &str)]) -> Response {
    http::send("GET", &service.url_of(&format!("/user/{name}")), headers, "")
}

/// The value of a metric without labels. Panics if there is none.
pub fn metric(service: &Service, name: &str) -> u64 {
    let text = http::get(&format!("{}/metrics", service.metrics_url())).text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
}

/// The first letter of what Redis has at the key of the user `name`, which gives its kind: `V` a value, `A` an absence,
/// `L` a lease, `B` a barrier. Empty if the key is missing.
pub fn kind(stack: &Stack, name: &str) -> String {
    stack.redis_cli(&["GETRANGE", &format!("2:user:{{{name}}}"), "0", "0"])
}

/// Puts another replica's lease at the key of the user `name`, under the current grant: its tag is that of the entry or
/// the lease of the user `other`. Panics if Redis has none.
pub fn place_lease(stack: &Stack, name: &str, other: &str) {
    let script = "local there = redis.call('GET', KEYS[2]); \
        local at = string.sub(there, 1, 1) == 'L' and 2 or 3; \
        return redis.call('SET', KEYS[1], 'L' .. string.sub(there, at, at + 7) .. '0123456789abcdef')";
    let [key, source] = [name, other].map(|name| format!("2:user:{{{name}}}"));
    assert_eq!(stack.redis_cli(&["EVAL", script, "2", &key, &source]).trim(), "OK");
}

/// The sum of a metric's samples whose labels contain `labels`; 0 if there is none.
pub fn metric_with(service: &Service, name: &str, labels: &str) -> u64 {
    let text = http::get(&format!("{}/metrics", service.metrics_url())).text();
    let samples =
        text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("} "));
    samples
        .filter(|(found, _)| found.contains(labels))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

/// Polls `condition` until it holds. Panics after 10 s.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_until_within(TIMEOUT, what, condition);
}

/// Polls `condition` until it holds. Panics after `timeout`.
pub fn wait_until_within(timeout: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(until(timeout, condition), "not within {timeout:?}: {what}");
}

/// Sets the flag when dropped, also when its thread panics, so that the other threads stop and the test ends.
#[derive(Debug)]
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
