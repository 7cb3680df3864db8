//! Postgres away, frozen, not migrated, or read-only.

use std::thread::scope;

use devstack::testing::{get, get_with, kind, metric, wait_until};
use devstack::{ServiceBuilder, Stack, Stores, http};

use crate::{
    BREAKER_OPEN, HIT, MISS, NO_CACHE, found, insert, is_hit, is_unavailable, wait_for_a_hit, without_near,
};

/// With a shorter deadline, for tests that wait until it has passed.
fn with_short_deadline(builder: ServiceBuilder) -> ServiceBuilder {
    builder.env("DATABASE_DEADLINE", "500ms")
}

/// Grants Redis for so long that no grant ends during the test: `postgres_away.rs` has the tests about that.
fn with_a_long_grant(stack: &Stack) {
    stack.grant();
    stack.sql("UPDATE cache_grant SET life_ms = 60000");
}

#[test]
fn without_postgres_hits_are_served_misses_are_503_and_it_stays_ready() {
    let stack = Stack::shared();
    with_a_long_grant(&stack);
    insert(&stack, "cached");
    insert(&stack, "other");
    let proxy = stack.postgres_proxy();
    let service = with_short_deadline(stack.data_svc().postgres_through(&proxy)).start();
    wait_for_a_hit(&service, "cached");
    wait_for_a_hit(&service, "nobody");

    proxy.cut();
    for _ in 0..3 {
        assert!(found(&get(&service, "cached"), "cached").starts_with(HIT));
        assert_eq!(get(&service, "nobody").status, 404, "absence is cached as well");
        is_unavailable(&get(&service, "other"));
    }
    // A balancer must not drop all replicas at once.
    assert_eq!(http::get(&service.url_of("/readyz")).status, 200);

    proxy.restore();
    wait_until("misses are served again", || get(&service, "other").status == 200);
}

#[test]
fn a_load_that_fails_leaves_no_lease_behind() {
    let stack = Stack::shared();
    insert(&stack, "john");
    let proxy = stack.postgres_proxy();
    let service = with_short_deadline(stack.data_svc().postgres_through(&proxy)).start();
    service.wait_for_log("Redis is there");
    proxy.cut();
    is_unavailable(&get(&service, "john"));
    assert_eq!(kind(&stack, "john"), "");
    proxy.restore();
    let mut last = None;
    wait_until("it is served again", || {
        let answer = get(&service, "john");
        let is_there = answer.status == 200;
        last = Some(answer);
        is_there
    });
    assert_eq!(found(&last.expect("an answer"), "john"), MISS);
}

#[test]
fn a_forced_read_that_fails_leaves_the_copy_to_others() {
    let stack = Stack::shared();
    with_a_long_grant(&stack);
    insert(&stack, "john");
    let proxy = stack.postgres_proxy();
    let service = with_short_deadline(stack.data_svc().postgres_through(&proxy)).start();
    wait_for_a_hit(&service, "john");
    proxy.cut();
    is_unavailable(&get_with(&service, "john", &[NO_CACHE]));
    // Nothing can have been committed meanwhile. The entry is still current, and the only one there is.
    assert!(is_hit(&get(&service, "john")));
}

#[test]
fn with_postgres_frozen_a_miss_is_503_within_the_deadline_and_a_hit_is_served() {
    let stack = Stack::private();
    with_a_long_grant(&stack);
    insert(&stack, "cached");
    insert(&stack, "other");
    let service = stack.data_svc().start();
    wait_for_a_hit(&service, "cached");
    stack.postgres().freeze();
    scope(|scope| {
        for _ in 0..20 {
            let service = &service;
            // The client waits 10 s for the answer, five times the deadline.
            scope.spawn(move || is_unavailable(&get(service, "other")));
        }
        for _ in 0..20 {
            assert!(is_hit(&get(&service, "cached")));
        }
    });
    assert_eq!(http::get(&service.url_of("/readyz")).status, 200);
    stack.postgres().thaw();
    wait_until("misses are served again", || get(&service, "other").status == 200);
}

#[test]
fn with_neither_store_a_read_is_503_and_the_service_recovers() {
    let stack = Stack::shared();
    insert(&stack, "john");
    let postgres = stack.postgres_proxy();
    let redis = stack.redis_proxy();
    let service =
        with_short_deadline(without_near(stack.data_svc().postgres_through(&postgres).redis_through(&redis)))
            .start();
    wait_for_a_hit(&service, "john");
    postgres.cut();
    redis.cut();
    for _ in 0..5 {
        is_unavailable(&get(&service, "john"));
    }
    postgres.restore();
    wait_until("it is served again", || get(&service, "john").status == 200);
    assert_eq!(found(&get(&service, "john"), "john"), BREAKER_OPEN);
    redis.restore();
    wait_for_a_hit(&service, "john");
}

#[test]
fn it_becomes_ready_by_itself_once_the_schema_is_there_and_not_before() {
    let stack = Stack::unmigrated(Stores::shared());
    let service = stack.data_svc().spawn();
    service.wait_for_log("the schema is not there yet");
    let readiness = http::get(&service.url_of("/readyz"));
    assert_eq!((readiness.status, &readiness.json()["type"]), (503, &"/problems/not-ready".into()));
    is_unavailable(&get(&service, "john"));
    assert_eq!(
        stack.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"),
        "0",
        "it migrates nothing"
    );

    assert!(stack.user_svc().run(&["migrate"]).status.success());
    service.wait_for_readiness(200);
    assert_eq!(get(&service, "john").status, 404);
}

#[test]
fn a_role_that_may_only_select_is_enough() {
    let stack = Stack::shared();
    insert(&stack, "john");
    stack.sql(
        "CREATE ROLE only_reads LOGIN; \
         GRANT SELECT ON users, cache_grant, __diesel_schema_migrations TO only_reads; \
         ALTER ROLE only_reads SET default_transaction_read_only = on",
    );
    let url = stack.database_url().replacen("postgres@", "only_reads@", 1);
    let service = stack.data_svc().env("DATABASE_URL", url).start();
    service.wait_for_log("Redis is there");
    assert_eq!(found(&get(&service, "john"), "john"), MISS);
    assert_eq!(get(&service, "nobody").status, 404);
}

#[test]
fn a_connection_reset_between_requests_is_replaced_and_no_client_notices() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    // One connection: with more, each request would get another one, which the pool has just checked.
    let service = stack.data_svc().postgres_through(&proxy).env("DATABASE_CONNECTIONS", "1").start();
    for round in 0..5 {
        assert_eq!(get(&service, &format!("before-{round}")).status, 404);
        proxy.reset();
        assert_eq!(get(&service, &format!("after-{round}")).status, 404);
    }
}

#[test]
fn a_full_queue_refuses_misses_at_once_and_hits_are_served() {
    let stack = Stack::shared();
    with_a_long_grant(&stack);
    insert(&stack, "cached");
    let proxy = stack.postgres_proxy();
    let builder = stack.data_svc().postgres_through(&proxy).env("DATABASE_DEADLINE", "9s");
    let service = builder.env("DATABASE_CONNECTIONS", "1").env("DATABASE_QUEUE", "1").start();
    wait_for_a_hit(&service, "cached");
    proxy.stall();
    scope(|scope| {
        let service = &service;
        let first = scope.spawn(move || get(service, "first"));
        let waiting = || metric(service, "database_queries_waiting");
        wait_until("one load is under way", || {
            metric(service, "database_connections_in_use") > 0 && waiting() == 0
        });
        let second = scope.spawn(move || get(service, "second"));
        wait_until("one load waits", || waiting() == 1);
        for number in 0..10 {
            let answer = get(service, &format!("more-{number}"));
            assert_eq!((answer.status, &answer.json()["type"]), (503, &"/problems/overloaded".into()));
            wait_until("the refused read leaves no lease", || {
                kind(&stack, &format!("more-{number}")).is_empty()
            });
        }
        assert!(is_hit(&get(service, "cached")));
        proxy.restore();
        assert_eq!(first.join().expect("answered").status, 404);
        assert_eq!(second.join().expect("answered").status, 404);
    });
}
