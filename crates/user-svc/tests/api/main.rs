//! The promises of `user-svc` over HTTP: docs/http.md, row by row.

mod register;
mod schema;
mod settings;
mod token;
mod write;

use std::sync::OnceLock;

use devstack::{Service, Stack, http};

/// One service for all tests that only register names of their own.
fn service() -> &'static Service {
    static RUNNING: OnceLock<(Stack, Service)> = OnceLock::new();
    let start = || {
        let stack = Stack::shared();
        let service = stack.user_svc().env("PUBLIC_DATA_URL", "https://data.example/").start();
        (stack, service)
    };
    &RUNNING.get_or_init(start).1
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn post(body: impl AsRef<[u8]>) -> http::Response {
    http::send("POST", &service().url_of("/register"), &[JSON], body)
}
