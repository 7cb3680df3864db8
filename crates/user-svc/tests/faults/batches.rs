//! Registrations that wait together share a transaction, and each gets the answer that it would have got alone.

use std::thread::scope;

use devstack::testing::{metric, register, wait_until};
use devstack::{Service, ServiceBuilder, Stack, http};

use crate::{Session, unavailable, wait_for_locked};

/// A service with long time-outs, and with this one for locks.
fn with_lock_timeout(stack: &Stack, lock_timeout: &str) -> ServiceBuilder {
    let builder = stack.user_svc().env("DATABASE_DEADLINE", "9s").env("DATABASE_STATEMENT_TIMEOUT", "9s");
    builder.env("DATABASE_LOCK_TIMEOUT", lock_timeout)
}

/// The same, started, with one batch at a time.
fn one_batch_at_a_time(stack: &Stack, lock_timeout: &str) -> Service {
    with_lock_timeout(stack, lock_timeout).env("DATABASE_CONNECTIONS", "4").start()
}

/// Registers `names`, all in one batch: they wait while a lock on the table holds up the batch before them.
fn register_together(stack: &Stack, service: &Service, names: &[&'static str]) -> Vec<http::Response> {
    let lock = Session::holding(stack, "LOCK TABLE users");
    scope(|scope| {
        let first = scope.spawn(|| register(service, "first"));
        wait_for_locked(stack, 1);
        let waiting: Vec<_> = (1..)
            .zip(names)
            .map(|(number, name)| {
                let request = scope.spawn(move || register(service, name));
                wait_until("the request waits", || metric(service, "database_queries_waiting") == number);
                request
            })
            .collect();
        drop(lock);
        assert_eq!(first.join().expect("answered").status, 201);
        waiting.into_iter().map(|request| request.join().expect("answered")).collect()
    })
}

fn statuses(answers: &[http::Response]) -> Vec<u16> {
    answers.iter().map(|answer| answer.status).collect()
}

#[test]
fn registrations_that_wait_together_share_a_transaction() {
    let stack = Stack::shared();
    let service = one_batch_at_a_time(&stack, "9s");
    let answers = register_together(&stack, &service, &["d", "b", "a", "c"]);
    assert_eq!(statuses(&answers), [201; 4]);
    assert_eq!(stack.sql("SELECT count(DISTINCT xmin::text) FROM users WHERE length(name) = 1"), "1");
}

#[test]
fn of_two_that_register_one_name_together_one_is_201_and_the_other_409() {
    let stack = Stack::shared();
    let service = one_batch_at_a_time(&stack, "9s");
    let answers = register_together(&stack, &service, &["ann", "bob", "ann", "ann"]);
    assert_eq!(statuses(&answers), [201, 201, 409, 409]);
}

#[test]
fn a_name_that_is_taken_is_409_and_the_rest_of_its_batch_201() {
    let stack = Stack::shared();
    let service = one_batch_at_a_time(&stack, "9s");
    assert_eq!(register(&service, "taken").status, 201);
    let answers = register_together(&stack, &service, &["ann", "taken", "bob"]);
    assert_eq!(statuses(&answers), [201, 409, 201]);
}

#[test]
fn a_name_that_another_session_holds_is_503_and_the_rest_of_its_batch_201() {
    let stack = Stack::shared();
    let service = one_batch_at_a_time(&stack, "2s");
    let other = Session::holding(&stack, "INSERT INTO users (name, info) VALUES ('held', 'uncommitted')");
    // Not `register_together`, whose lock on the table would wait for `other`. The first registration holds up the
    // rest.
    scope(|scope| {
        let first = scope.spawn(|| register(&service, "held"));
        wait_for_locked(&stack, 1);
        let service = &service;
        let waiting = ["ann", "held", "bob"].map(|name| scope.spawn(move || register(service, name)));
        wait_until("three wait", || metric(service, "database_queries_waiting") == 3);
        assert_eq!(unavailable(&first.join().expect("answered")), "unavailable");
        let answers = waiting.map(|request| request.join().expect("answered"));
        assert_eq!(statuses(&answers), [201, 503, 201]);
    });
    drop(other);
    assert_eq!(register(&service, "held").status, 201, "the refused registrations have not happened");
}

#[test]
fn a_batch_that_is_stuck_at_a_name_holds_up_no_later_registration() {
    let stack = Stack::shared();
    let service = with_lock_timeout(&stack, "9s").start();
    let other = Session::holding(&stack, "INSERT INTO users (name, info) VALUES ('held', 'uncommitted')");
    scope(|scope| {
        let stuck = scope.spawn(|| register(&service, "held"));
        wait_for_locked(&stack, 1);
        assert_eq!(register(&service, "free").status, 201);
        assert!(!stuck.is_finished(), "it still waits for the other session");
        drop(other);
        assert_eq!(stuck.join().expect("answered").status, 201);
    });
}

#[test]
fn each_of_many_registrations_at_the_same_time_succeeds() {
    let stack = Stack::shared();
    let service = &stack.user_svc().start();
    scope(|scope| {
        for client in 0..32 {
            scope.spawn(move || {
                for number in 0..40 {
                    assert_eq!(register(service, &format!("user-{client}-{number}")).status, 201);
                }
            });
        }
    });
    assert_eq!(stack.sql("SELECT count(*) FROM users"), "1280");
}
