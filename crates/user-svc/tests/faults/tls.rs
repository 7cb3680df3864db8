//! TLS to Postgres, with a certificate authority of the test's own.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use devstack::testing::register;
use devstack::{Certificates, Postgres, Redis, Service, ServiceBuilder, Stack, Stores, http};

use crate::problem;

/// One Postgres that accepts only TLS, for all tests here.
fn stack() -> (&'static Certificates, Stack) {
    static RUNNING: OnceLock<(Certificates, Arc<Stores>)> = OnceLock::new();
    let (certificates, stores) = RUNNING.get_or_init(|| {
        let certificates = Certificates::new();
        let stores = Stores::of(Postgres::start_tls(&certificates), Redis::start());
        (certificates, stores)
    });
    (certificates, Stack::on(stores.clone()))
}

fn with(stack: &Stack, mode: &str, authority: Option<&Path>) -> ServiceBuilder {
    let authority = authority.map(|path| format!("&sslrootcert={}", path.display())).unwrap_or_default();
    stack.user_svc().env("DATABASE_URL", format!("{}?sslmode={mode}{authority}", stack.database_url()))
}

fn works_encrypted(stack: &Stack, service: &Service) {
    assert_eq!(register(service, "john").status, 201);
    let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                 WHERE application_name = 'users' AND datname = current_database() AND NOT ssl";
    assert_eq!(stack.sql(plain), "0");
}

fn stays_without(service: &Service, why: &str) {
    let line = service.wait_for_log("PostgreSQL cannot be used");
    assert!(line.contains(why), "{line}");
    let readiness = http::get(&service.url_of("/readyz"));
    assert_eq!((readiness.status, problem(&readiness).as_str()), (503, "not-ready"));
    assert_eq!(register(service, "john").status, 503);
}

#[test]
fn sslmode_require_encrypts() {
    let (_, stack) = stack();
    works_encrypted(&stack, &with(&stack, "require", None).start());
}

#[test]
fn sslmode_verify_ca_works_with_the_right_authority() {
    let (certificates, stack) = stack();
    works_encrypted(&stack, &with(&stack, "verify-ca", Some(&certificates.ca())).start());
}

#[test]
fn sslmode_verify_full_works_with_the_right_authority_and_name() {
    let (certificates, stack) = stack();
    works_encrypted(&stack, &with(&stack, "verify-full", Some(&certificates.ca())).start());
}

#[test]
fn sslmode_verify_full_refuses_another_authority() {
    let (_, stack) = stack();
    let other = Certificates::new();
    stays_without(&with(&stack, "verify-full", Some(&other.ca())).spawn(), "SSL error");
}

#[test]
fn sslmode_verify_full_without_an_authority_is_refused() {
    let (_, stack) = stack();
    stays_without(&with(&stack, "verify-full", None).spawn(), "root certificate");
}

#[test]
fn sslmode_disable_is_refused_by_a_server_that_requires_tls() {
    let (_, stack) = stack();
    stays_without(&with(&stack, "disable", None).spawn(), "no encryption");
}
