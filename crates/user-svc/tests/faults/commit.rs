//! The moments around COMMIT, hit exactly by triggers. A connection lost before COMMIT does no harm. A connection lost
//! during COMMIT leaves the outcome open: the service finds out, and says so if it cannot.

use devstack::testing::{metric, metric_with, register, wait_until};
use devstack::{Service, Stack, http};

use crate::{is_registered, problem, unavailable};

/// When a trigger runs.
enum When {
    DuringInsert,
    DuringCommit,
}

use When::{DuringCommit, DuringInsert};

/// Creates a trigger on users that runs `body`.
fn trigger(stack: &Stack, when: When, body: &str) {
    let (kind, timing) = match when {
        DuringInsert => ("TRIGGER", ""),
        DuringCommit => ("CONSTRAINT TRIGGER", "DEFERRABLE INITIALLY DEFERRED"),
    };
    stack.sql(&format!(
        "CREATE SEQUENCE calls; \
         CREATE FUNCTION hurt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$; \
         CREATE {kind} hurt AFTER INSERT ON users {timing} FOR EACH ROW EXECUTE FUNCTION hurt()"
    ));
}

#[test]
fn a_registration_whose_connection_is_lost_before_commit_is_done_again() {
    let stack = Stack::shared();
    // A sequence does not roll back: only the first call ends its session.
    trigger(
        &stack,
        DuringInsert,
        "IF nextval('calls') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF",
    );
    let service = stack.user_svc().start();
    assert_eq!(register(&service, "john").status, 201);
    assert!(is_registered(&stack, "john"));
    assert_eq!(stack.sql("SELECT last_value FROM calls"), "2");
}

#[test]
fn losing_each_connection_before_commit_is_unavailable_and_changes_nothing() {
    let stack = Stack::shared();
    trigger(&stack, DuringInsert, "PERFORM pg_terminate_backend(pg_backend_pid())");
    let service = stack.user_svc().start();
    assert_eq!(unavailable(&register(&service, "john")), "unavailable");
    assert!(!is_registered(&stack, "john"));
}

#[test]
fn a_connection_lost_during_a_commit_that_the_server_rolls_back_is_unavailable_and_changed_nothing() {
    let stack = Stack::shared();
    trigger(
        &stack,
        DuringCommit,
        "IF nextval('calls') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF",
    );
    let service = stack.user_svc().with_long_timeouts().start();
    assert_eq!(unavailable(&register(&service, "john")), "unavailable");
    assert!(!is_registered(&stack, "john"));
    assert_eq!(metric_with(&service, "writes_in_doubt_total", "aborted"), 1);
    assert_eq!(register(&service, "john").status, 201);
}

/// COMMIT waits for a lock that another session holds. `lose` takes away its reply; then it goes on.
fn lose_the_answer(stack: &Stack, service: &Service, lose: impl FnOnce()) -> http::Response {
    trigger(stack, DuringCommit, "PERFORM pg_advisory_xact_lock(7)");
    let held = crate::Session::holding(stack, "SELECT pg_advisory_xact_lock(7)");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| register(service, "john"));
        let waiting = "SELECT count(*) FROM pg_stat_activity \
             WHERE wait_event = 'advisory' AND query = 'COMMIT' AND datname = current_database()";
        wait_until("COMMIT waits", || stack.sql(waiting) == "1");
        lose();
        drop(held);
        client.join().expect("answered")
    })
}

#[test]
fn a_commit_whose_answer_is_lost_with_all_connections_is_outcome_unknown_and_a_retry_is_safe() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let service = stack.user_svc().with_long_timeouts().postgres_through(&proxy).start();
    // The monitor's too: a new session cannot know whether the server has crashed in between, and given the id out
    // again.
    let answer = lose_the_answer(&stack, &service, || proxy.reset());
    assert_eq!(unavailable(&answer), "outcome-unknown");
    assert_eq!(metric_with(&service, "writes_in_doubt_total", "unknown"), 1);
    let stored = is_registered(&stack, "john");
    let again = register(&service, "john");
    assert_eq!(again.status, if stored { 409 } else { 201 }, "{}", again.text());
}

#[test]
fn a_commit_whose_answer_alone_is_lost_is_acknowledged() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let service = stack.user_svc().with_long_timeouts().postgres_through(&proxy).start();
    let reply = proxy.hold_reply("COMMIT\0", 1);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| register(&service, "john"));
        reply.wait();
        assert!(is_registered(&stack, "john"));
        reply.discard();
        assert_eq!(client.join().expect("answered").status, 201);
    });
    assert_eq!(metric_with(&service, "writes_in_doubt_total", "committed"), 1);
}

#[test]
fn a_commit_that_the_server_cancels_is_unavailable_and_changed_nothing() {
    let stack = Stack::shared();
    trigger(&stack, DuringCommit, "PERFORM pg_sleep(30)");
    let service = stack.user_svc().start();
    // Cancelled by the test, since Postgres' statement time-out does not cover COMMIT.
    std::thread::scope(|scope| {
        let client = scope.spawn(|| register(&service, "john"));
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                      WHERE query = 'COMMIT' AND wait_event = 'PgSleep' AND datname = current_database()";
        wait_until("COMMIT is cancelled", || stack.sql(cancel) == "t");
        assert_eq!(unavailable(&client.join().expect("answered")), "unavailable");
    });
    assert!(!is_registered(&stack, "john"));
    // The connection is sound, and stays in use.
    stack.sql("DROP TRIGGER hurt ON users");
    assert_eq!(register(&service, "john").status, 201);
}

#[test]
fn a_commit_that_takes_longer_than_the_deadline_is_outcome_unknown() {
    let stack = Stack::shared();
    trigger(&stack, DuringCommit, "PERFORM pg_sleep(4)");
    let builder = stack.user_svc().env("DATABASE_DEADLINE", "2s");
    let service = builder.env("DATABASE_STATEMENT_TIMEOUT", "5s").start();
    assert_eq!(unavailable(&register(&service, "john")), "outcome-unknown");
    wait_until("it was committed all the same", || is_registered(&stack, "john"));
    // "A registration that did happen is then answered with 409."
    stack.sql("DROP TRIGGER hurt ON users");
    let again = register(&service, "john");
    assert_eq!((again.status, problem(&again).as_str()), (409, "name-taken"));
}

#[test]
fn a_deadline_passed_before_commit_is_unavailable_and_nothing_happens_later() {
    let stack = Stack::shared();
    let builder = stack.user_svc().env("DATABASE_DEADLINE", "1s").env("DATABASE_LOCK_TIMEOUT", "9s");
    let service = builder.env("DATABASE_STATEMENT_TIMEOUT", "9s").start();
    let lock = crate::Session::holding(&stack, "LOCK TABLE users");
    assert_eq!(unavailable(&register(&service, "john")), "unavailable");
    assert_ne!(metric(&service, "database_connections_in_use"), 0, "it still waits for the lock");
    drop(lock);
    // The INSERT succeeds now, but it must not be committed: the client's answer was that nothing has changed.
    wait_until("the transaction has ended", || metric(&service, "database_connections_in_use") == 0);
    assert!(!is_registered(&stack, "john"));
    wait_until("it is registered", || register(&service, "john").status == 201);
}
