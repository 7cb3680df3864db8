//! The promises of `data-svc` over HTTP, and those of both services: docs/http.md, row by row.

mod coherence;
mod cors;
mod description;
mod every_service;
mod get_user;
mod names;
mod prefix;
mod upgrade;

use std::sync::OnceLock;

use devstack::{Service, Stack, http, testing};
use serde_json::{Value, json};

/// Both services over one database and one key space, for all tests that use only names of their own.
struct Running {
    user_svc: Service,
    data_svc: Service,
    stack: Stack,
}

fn running() -> &'static Running {
    static RUNNING: OnceLock<Running> = OnceLock::new();
    RUNNING.get_or_init(|| {
        let stack = Stack::shared();
        let data_svc = stack.data_svc().with_long_timeouts().start();
        let user_svc = stack.user_svc().with_long_timeouts().env("PUBLIC_DATA_URL", data_svc.url()).start();
        Running { user_svc, data_svc, stack }
    })
}

fn register(name: &str, info: &str) -> http::Response {
    testing::register_with(&running().user_svc, name, info)
}

/// GET of a name that needs no percent-encoding.
fn get(name: &str, headers: &[(&str, &str)]) -> http::Response {
    testing::get_with(&running().data_svc, name, headers)
}

fn cache_status(response: &http::Response) -> &str {
    response.header("cache-status").unwrap_or_default()
}

fn is_problem(response: &http::Response, status: u16, kind: &str) -> Value {
    let problem = response.json();
    assert_eq!((response.status, &problem["status"]), (status, &json!(status)), "{problem}");
    assert_eq!(problem["type"], format!("/problems/{kind}"), "{problem}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    problem
}
