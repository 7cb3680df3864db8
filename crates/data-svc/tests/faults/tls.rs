//! TLS to Redis, with a certificate authority of the test's own.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use devstack::testing::get;
use devstack::{Certificates, Postgres, Redis, ServiceBuilder, Stack, Stores, http};

use crate::{BREAKER_OPEN, MISS, found, insert, is_hit};

/// One Redis that accepts only TLS, for all tests here.
fn stack() -> (&'static Certificates, Stack) {
    static RUNNING: OnceLock<(Certificates, Arc<Stores>)> = OnceLock::new();
    let (certificates, stores) = RUNNING.get_or_init(|| {
        let certificates = Certificates::new();
        let stores = Stores::of(Postgres::start(), Redis::start_tls(&certificates));
        (certificates, stores)
    });
    (certificates, Stack::on(stores.clone()))
}

fn trusting(builder: ServiceBuilder, authority: &Path) -> ServiceBuilder {
    builder.env("SSL_CERT_FILE", authority.display().to_string())
}

#[test]
fn a_redis_with_a_certificate_that_is_trusted_is_used_by_both_services() {
    let (certificates, stack) = stack();
    let data = trusting(stack.data_svc(), &certificates.ca()).start();
    let users = trusting(stack.user_svc(), &certificates.ca()).start();
    data.wait_for_log("Redis is there");
    users.wait_for_log("Redis is there");
    assert_eq!(get(&data, "john").status, 404);
    assert!(is_hit(&get(&data, "john")));
    let body = r#"{"name":"john","info":"some info"}"#;
    let json = [("Content-Type", "application/json")];
    assert_eq!(http::send("POST", &users.url_of("/register"), &json, body).status, 201);
    assert_eq!(found(&get(&data, "john"), "john"), MISS, "user-svc has deleted the cached absence");
    assert!(is_hit(&get(&data, "john")));
}

#[test]
fn a_redis_certified_by_another_authority_is_not_used_and_the_log_says_why() {
    let (_, stack) = stack();
    insert(&stack, "john");
    let other = Certificates::new();
    let data = trusting(stack.data_svc(), &other.ca()).start();
    let line = data.wait_for_log("Redis cannot be used").to_lowercase();
    assert!(line.contains("certificate"), "{line}");
    assert_eq!(found(&get(&data, "john"), "john"), BREAKER_OPEN);
}

#[test]
fn a_redis_that_accepts_only_tls_is_not_used_without_it() {
    let (_, stack) = stack();
    insert(&stack, "john");
    let data = stack.data_svc().env("REDIS_URL", stack.redis_url().replacen("rediss", "redis", 1)).start();
    data.wait_for_log("Redis cannot be used");
    assert_eq!(found(&get(&data, "john"), "john"), BREAKER_OPEN);
}
