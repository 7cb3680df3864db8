//! More work than Postgres can do: the wait for a lock has a time-out, and the queue a bound.

use std::thread::scope;
use std::time::{Duration, Instant};

use devstack::testing::{metric, register, wait_until};
use devstack::{Stack, http};

use crate::{Session, is_registered, unavailable, wait_for_locked};

#[test]
fn writes_beyond_those_that_may_wait_while_the_cache_is_suspended_are_refused_at_once() {
    let stack = Stack::shared();
    let service = &stack.user_svc().env("DATABASE_QUEUE", "1").env("DATABASE_DEADLINE", "6s").start();
    // Readers may use what they know for a minute: no write may begin before.
    stack.sql("UPDATE cache_grant SET redis = NULL, epoch = epoch + 1, life_ms = 60000");
    wait_until("the service knows it", || metric(service, "cache_suspended") == 1);
    scope(|scope| {
        let first = scope.spawn(|| register(service, "first"));
        wait_until("the first waits", || metric(service, "database_queries_waiting") == 1);
        assert_eq!(unavailable(&register(service, "next")), "overloaded");
        assert_eq!(unavailable(&first.join().expect("answered")), "unavailable");
    });
}

#[test]
fn a_full_queue_refuses_at_once_and_what_waits_is_served() {
    let stack = Stack::shared();
    let mut builder = stack.user_svc().env("DATABASE_CONNECTIONS", "1").env("DATABASE_QUEUE", "2");
    // The test decides how long the lock is held.
    for name in ["DATABASE_DEADLINE", "DATABASE_STATEMENT_TIMEOUT", "DATABASE_LOCK_TIMEOUT"] {
        builder = builder.env(name, "9s");
    }
    let service = builder.start();
    let lock = Session::holding(&stack, "LOCK TABLE users");
    scope(|scope| {
        let service = &service;
        let first = scope.spawn(|| register(service, "first"));
        wait_for_locked(&stack, 1);
        // First shortly, then for long.
        wait_until("it waits patiently", || {
            stack.sql(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND xact_start < clock_timestamp() - interval '1 s'",
            ) == "1"
        });
        let waiting: Vec<_> =
            ["second", "third"].map(|name| scope.spawn(move || register(service, name))).into();
        wait_until("they and their batch wait", || metric(service, "database_queries_waiting") == 3);

        let start = Instant::now();
        for number in 0..20 {
            assert_eq!(unavailable(&register(service, &format!("more-{number}"))), "overloaded");
        }
        // 10 ms for each answer, and five times that as slack.
        assert!(start.elapsed() < 5 * 20 * Duration::from_millis(10), "{:?}", start.elapsed());
        // The health check does not wait in the queue.
        assert_eq!(http::get(&service.url_of("/livez")).status, 200);

        drop(lock);
        assert_eq!(first.join().expect("answered").status, 201);
        for request in waiting {
            assert_eq!(request.join().expect("answered").status, 201);
        }
    });
    assert_eq!(metric(&service, "database_refused_total"), 20);
    assert_eq!(stack.sql("SELECT count(*) FROM users"), "3");

    // One line a second with a count, and no line for each request.
    let logged = || -> u64 {
        let lines = service.log();
        let lines = lines.lines().filter(|line| line.contains("too many were waiting"));
        lines.filter_map(|line| line.rsplit_once("count=")?.1.trim().parse::<u64>().ok()).sum()
    };
    wait_until("all refusals are logged", || logged() == 20);
    let log = service.log();
    assert!(log.matches("too many were waiting").count() <= 5, "{log}");
    assert_eq!(log.matches("POST /register 503").count(), 0, "{log}");
}

#[test]
fn a_locked_table_is_503_and_then_works_again() {
    let stack = Stack::shared();
    // Long, so that only the lock time-out ends the wait.
    let builder = stack.user_svc().env("DATABASE_STATEMENT_TIMEOUT", "60s").env("DATABASE_DEADLINE", "60s");
    let service = builder.start();
    let lock = Session::holding(&stack, "LOCK TABLE users");
    // More requests than connections: no connection may get stuck.
    scope(|scope| {
        for number in 0..12 {
            let service = &service;
            scope.spawn(move || {
                let answer = register(service, &format!("locked-{number}"));
                assert_eq!(unavailable(&answer), "unavailable");
            });
        }
    });
    // The server has given up as well, although the lock is still held: no connection is stuck in it.
    wait_until("no connection is in use", || metric(&service, "database_connections_in_use") == 0);
    drop(lock);
    assert_eq!(register(&service, "after").status, 201);
    assert_eq!(stack.sql("SELECT count(*) FROM users"), "1", "the refused registrations have not happened");
}

#[test]
fn a_name_in_the_open_transaction_of_another_session_is_503_and_not_409() {
    let stack = Stack::shared();
    let service = stack.user_svc().env("DATABASE_DEADLINE", "9s").start();
    let insert = "INSERT INTO users (name, info) VALUES ('john', 'uncommitted')";
    let other = Session::holding(&stack, insert);
    // It is not decided yet whether the name is taken.
    assert_eq!(unavailable(&register(&service, "john")), "unavailable");
    assert_eq!(register(&service, "jane").status, 201, "no other registration waits");
    // The other session rolls back.
    drop(other);
    assert_eq!(register(&service, "john").status, 201);
}

#[test]
fn a_statement_that_takes_too_long_is_cancelled_and_503() {
    let stack = Stack::shared();
    stack.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$; \
         CREATE TRIGGER slow BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let service = stack.user_svc().start();
    assert_eq!(unavailable(&register(&service, "john")), "unavailable");
    // The statement is cancelled, and does not go on in the server.
    wait_until("the server has ended the statement", || {
        stack.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'",
        ) == "0"
    });
    stack.sql("DROP TRIGGER slow ON users");
    assert!(!is_registered(&stack, "john"));
    assert_eq!(register(&service, "john").status, 201);
}
