//! The start of a service: alone, together with others, and before the stores are there.

use std::net::TcpListener;
use std::thread::{scope, sleep};
use std::time::Duration;

use devstack::http;
use devstack::testing::register;
use devstack::{Stack, Stores};

use crate::{is_registered, problem, unavailable};

/// Few connections each, so that twenty services fit into Postgres' limit of 200.
const CONNECTIONS: (&str, &str) = ("DATABASE_CONNECTIONS", "1");

fn tables(stack: &Stack) -> String {
    stack.sql(
        "SELECT (SELECT count(*) FROM pg_tables WHERE tablename = 'users'), \
         (SELECT count(*) - count(DISTINCT version) FROM __diesel_schema_migrations)",
    )
}

#[test]
fn twenty_services_that_start_at_once_on_an_empty_database_all_become_ready() {
    let stack = Stack::unmigrated(Stores::shared());
    let builder = stack.user_svc().env(CONNECTIONS.0, CONNECTIONS.1);
    scope(|scope| {
        let starts: Vec<_> = (0..20).map(|_| scope.spawn(|| builder.start())).collect();
        let services: Vec<_> = starts.into_iter().map(|start| start.join().expect("it starts")).collect();
        let ran = services.iter().filter(|service| service.log().contains("migration(s)")).count();
        assert_eq!(ran, 1, "services that migrated");
    });
    assert_eq!(tables(&stack), "1|0");
}

#[test]
fn twenty_migrations_at_once_on_an_empty_database_all_succeed() {
    let stack = Stack::unmigrated(Stores::shared());
    let builder = stack.user_svc();
    scope(|scope| {
        let runs: Vec<_> = (0..20).map(|_| scope.spawn(|| builder.run(&["migrate"]))).collect();
        for run in runs {
            let output = run.join().expect("it runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    });
    assert_eq!(tables(&stack), "1|0");
}

#[test]
fn a_migration_without_postgres_fails_and_says_why() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    proxy.cut();
    let output = stack.user_svc().postgres_through(&proxy).run(&["migrate"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stderr.is_empty());
}

#[test]
fn it_starts_without_postgres_and_is_ready_by_itself_when_postgres_appears() {
    let stack = Stack::unmigrated(Stores::shared());
    let proxy = stack.postgres_proxy();
    proxy.cut();
    let service = stack.user_svc().postgres_through(&proxy).env("DATABASE_DEADLINE", "500ms").spawn();

    assert_eq!(http::get(&service.url_of("/livez")).status, 200);
    assert_eq!(unavailable(&http::get(&service.url_of("/readyz"))), "not-ready");
    // No work can have begun. So the answer must be that nothing has changed.
    assert_eq!(unavailable(&register(&service, "early")), "unavailable");
    service.wait_for_log("PostgreSQL cannot be used");

    proxy.restore();
    service.wait_for_readiness(200);
    assert_eq!(register(&service, "late").status, 201);
    assert!(!is_registered(&stack, "early"));
}

#[test]
fn a_service_that_waits_for_postgres_logs_it_once_not_at_every_attempt() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    proxy.cut();
    let service = stack.user_svc().postgres_through(&proxy).spawn();
    service.wait_for_log("PostgreSQL cannot be used");
    // Time for six more attempts of the monitor, which fail in two or three ways here.
    sleep(Duration::from_millis(1500));
    let lines = service.log().matches("PostgreSQL cannot be used").count();
    assert!(lines <= 3, "{}", service.log());
}

#[test]
fn a_postgres_that_accepts_connections_and_stays_silent_hangs_no_service() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    proxy.stall();
    let service = stack.user_svc().postgres_through(&proxy).env("DATABASE_DEADLINE", "500ms").spawn();
    assert_eq!(unavailable(&register(&service, "early")), "unavailable");
    assert_eq!(problem(&http::get(&service.url_of("/readyz"))), "not-ready");
    proxy.restore();
    service.wait_for_readiness(200);
    assert_eq!(register(&service, "late").status, 201);
}

#[test]
fn a_port_that_is_taken_ends_the_service_with_its_address_in_the_message() {
    let stack = Stack::shared();
    let first = stack.user_svc().start();
    let (_, port) = first.address().rsplit_once(':').expect("a port");
    let output = stack.user_svc().env("PORT", port).run(&[]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(first.address()), "{text}");
}

#[test]
fn a_service_that_ends_while_its_threads_connect_to_postgres_ends_by_no_signal() {
    let stack = Stack::shared();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let service = stack.user_svc().env("PORT", &port);
    // One in thirty was killed when exit handlers freed the memory of libraries that the threads still used.
    for _ in 0..100 {
        assert_eq!(service.run(&[]).status.code(), Some(1));
    }
}
