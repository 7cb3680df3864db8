//! The moments around COMMIT, hit exactly by triggers: before it a lost connection is no matter, during it the outcome
//! is unknown and must be called so.

use devstack::Stack;
use devstack::testing::{metric, register, wait_until};

use crate::{is_registered, problem, unavailable};

/// A trigger on users that does `body`; with `deferred` during COMMIT, else during INSERT.
fn trigger(stack: &Stack, deferred: bool, body: &str) {
    let kind = if deferred { "CONSTRAINT TRIGGER" } else { "TRIGGER" };
    let when = if deferred { "DEFERRABLE INITIALLY DEFERRED" } else { "" };
    stack.sql(&format!(
        "CREATE SEQUENCE calls; \
         CREATE FUNCTION hurt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$; \
         CREATE {kind} hurt AFTER INSERT ON users {when} FOR EACH ROW EXECUTE FUNCTION hurt()"
    ));
}

#[test]
fn a_connection_lost_before_commit_is_replaced_and_the_registration_done_once_more() {
    let stack = Stack::shared();
    // A sequence does not roll back: only the first call ends its session.
    trigger(
        &stack,
        false,
        "IF nextval('calls') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF",
    );
    let service = stack.user_svc().start();
    assert_eq!(register(&service, "john").status, 201);
    assert!(is_registered(&stack, "john"));
    assert_eq!(stack.sql("SELECT last_value FROM calls"), "2");
}

#[test]
fn a_connection_lost_again_and_again_before_commit_is_unavailable_and_changed_nothing() {
    let stack = Stack::shared();
    trigger(&stack, false, "PERFORM pg_terminate_backend(pg_backend_pid())");
    let service = stack.user_svc().start();
    assert_eq!(unavailable(&register(&service, "john")), "unavailable");
    assert!(!is_registered(&stack, "john"));
}

#[test]
fn a_connection_lost_during_commit_is_outcome_unknown() {
    let stack = Stack::shared();
    trigger(
        &stack,
        true,
        "IF nextval('calls') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF",
    );
    let service = stack.user_svc().start();
    assert_eq!(unavailable(&register(&service, "john")), "outcome-unknown");
    // The answer says that a retry is safe. This one was rolled back by the server.
    assert_eq!(register(&service, "john").status, 201);
}

#[test]
fn a_commit_whose_answer_is_lost_is_outcome_unknown_and_a_retry_says_409() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let service = stack.user_svc().postgres_through(&proxy).start();
    // During COMMIT it waits for a lock that this session holds, so that the connection can be cut just then.
    trigger(&stack, true, "PERFORM pg_advisory_xact_lock(7)");
    let held = crate::Session::holding(&stack, "SELECT pg_advisory_xact_lock(7)");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| register(&service, "john"));
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query = 'COMMIT'";
        wait_until("COMMIT waits", || stack.sql(waiting) == "1");
        // Its answer will not come through, but the server goes on with it.
        proxy.reset();
        drop(held);
        assert_eq!(unavailable(&client.join().expect("answered")), "outcome-unknown");
    });
    wait_until("the server has ended it", || {
        stack.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"
    });
    let stored = is_registered(&stack, "john");
    let again = register(&service, "john");
    assert_eq!(again.status, if stored { 409 } else { 201 }, "{}", again.text());
}

#[test]
fn a_commit_that_the_server_cancels_is_unavailable_and_changed_nothing() {
    let stack = Stack::shared();
    trigger(&stack, true, "PERFORM pg_sleep(30)");
    let service = stack.user_svc().start();
    // By hand: Postgres' statement time-out does not cover COMMIT.
    std::thread::scope(|scope| {
        let client = scope.spawn(|| register(&service, "john"));
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                      WHERE query = 'COMMIT' AND wait_event = 'PgSleep' AND datname = current_database()";
        wait_until("COMMIT is cancelled", || stack.sql(cancel) == "t");
        assert_eq!(unavailable(&client.join().expect("answered")), "unavailable");
    });
    assert!(!is_registered(&stack, "john"));
    // The connection is sound, and used on.
    stack.sql("DROP TRIGGER hurt ON users");
    assert_eq!(register(&service, "john").status, 201);
}

#[test]
fn a_commit_that_takes_longer_than_the_deadline_is_outcome_unknown() {
    let stack = Stack::shared();
    trigger(&stack, true, "PERFORM pg_sleep(1)");
    let builder = stack.user_svc().env("DATABASE_DEADLINE", "300ms");
    let service = builder.env("DATABASE_STATEMENT_TIMEOUT", "5s").start();
    assert_eq!(unavailable(&register(&service, "john")), "outcome-unknown");
    wait_until("it was committed all the same", || is_registered(&stack, "john"));
    // "A registration that did happen is then answered with 409."
    stack.sql("DROP TRIGGER hurt ON users");
    let again = register(&service, "john");
    assert_eq!((again.status, problem(&again).as_str()), (409, "name-taken"));
}

#[test]
fn a_deadline_that_passes_before_commit_is_unavailable_and_nothing_happens_later() {
    let stack = Stack::shared();
    let builder = stack.user_svc().env("DATABASE_DEADLINE", "300ms").env("DATABASE_LOCK_TIMEOUT", "9s");
    let service = builder.env("DATABASE_STATEMENT_TIMEOUT", "9s").start();
    let lock = crate::Session::holding(&stack, "LOCK TABLE users");
    assert_eq!(unavailable(&register(&service, "john")), "unavailable");
    assert_eq!(metric(&service, "database_connections_in_use"), 1, "it waits for the lock still");
    drop(lock);
    // The INSERT goes through now, but what the client was told must stay true.
    wait_until("it has ended", || metric(&service, "database_connections_in_use") == 0);
    assert!(!is_registered(&stack, "john"));
    assert_eq!(register(&service, "john").status, 201);
}
