//! Writes that wait together share a transaction, and each gets the answer that it would have got alone.

use std::collections::BTreeSet;
use std::thread::scope;

use devstack::http::{self, Connection};
use devstack::testing::{metric, register, wait_until};
use devstack::{Service, ServiceBuilder, Stack};

use crate::{JSON, NO_WRITES, Session, body, is_registered, unavailable, wait_for_locked};

/// A service with long time-outs, and with this one for locks.
fn with_lock_timeout(stack: &Stack, lock_timeout: &str) -> ServiceBuilder {
    let builder = stack.user_svc().env("DATABASE_DEADLINE", "9s").env("DATABASE_STATEMENT_TIMEOUT", "9s");
    builder.env("DATABASE_LOCK_TIMEOUT", lock_timeout)
}

/// The same, started, with one batch at a time.
fn one_batch_at_a_time(stack: &Stack, lock_timeout: &str) -> Service {
    with_lock_timeout(stack, lock_timeout).env("DATABASE_CONNECTIONS", "4").start()
}

/// A write of a user.
#[derive(Debug, Clone, Copy)]
enum Write {
    Register,
    Replace(&'static str),
    /// Only a user with this entity tag.
    ReplaceIf(&'static str, &'static str),
    Delete,
}

impl Write {
    fn send(self, service: &Service, name: &str) -> http::Response {
        let url = service.url_of(&format!("/user/{name}"));
        let body = |info: &str| serde_json::json!({ "info": info }).to_string();
        match self {
            Self::Register => register(service, name),
            Self::Replace(info) => http::send("PUT", &url, &[JSON], body(info)),
            Self::ReplaceIf(tag, info) => http::send("PUT", &url, &[JSON, ("If-Match", tag)], body(info)),
            Self::Delete => http::send("DELETE", &url, &[], ""),
        }
    }
}

use Write::{Delete, Register, Replace, ReplaceIf};

/// Sends `writes` all in one batch: they wait while no write can begin. Returns their statuses.
fn write_together(stack: &Stack, service: &Service, writes: &[(&'static str, Write)]) -> Vec<u16> {
    let lock = Session::holding(stack, NO_WRITES);
    scope(|scope| {
        let waiting: Vec<_> = (1..)
            .zip(writes)
            .map(|(number, (name, write))| {
                let request = scope.spawn(move || write.send(service, name));
                wait_until("the request waits", || metric(service, "database_queries_waiting") == number);
                request
            })
            .collect();
        drop(lock);
        waiting.into_iter().map(|request| request.join().expect("answered").status).collect()
    })
}

/// How many transactions have made the rows of these users what they are.
fn transactions(stack: &Stack, condition: &str) -> usize {
    let transactions = stack.sql(&format!("SELECT xmin::text FROM users WHERE {condition}"));
    transactions.lines().collect::<BTreeSet<_>>().len()
}

fn info(stack: &Stack, name: &str) -> String {
    stack.sql(&format!("SELECT info FROM users WHERE name = '{name}'"))
}

#[test]
fn registrations_that_wait_together_share_a_transaction() {
    let stack = Stack::shared();
    let service = one_batch_at_a_time(&stack, "9s");
    let names = ["d", "b", "a", "c"].map(|name| (name, Register));
    assert_eq!(write_together(&stack, &service, &names), [201; 4]);
    assert_eq!(transactions(&stack, "true"), 1);
}

#[test]
fn of_two_that_register_one_name_together_one_is_201_and_the_other_409() {
    let stack = Stack::shared();
    let service = one_batch_at_a_time(&stack, "9s");
    let names = ["ann", "bob", "ann", "ann"].map(|name| (name, Register));
    assert_eq!(write_together(&stack, &service, &names), [201, 201, 409, 409]);
}

#[test]
fn each_write_of_a_batch_gets_the_answer_that_it_would_have_got_alone() {
    let stack = Stack::shared();
    let service = one_batch_at_a_time(&stack, "9s");
    for name in ["taken", "old", "other", "gone"] {
        assert_eq!(register(&service, name).status, 201);
    }
    let writes = [
        ("new", Register),
        ("taken", Register),
        ("old", Replace("newer")),
        ("other", ReplaceIf("\"another\"", "never")),
        ("nobody", Replace("never")),
        ("gone", Delete),
        ("none", Delete),
    ];
    assert_eq!(write_together(&stack, &service, &writes), [201, 409, 200, 412, 404, 204, 404]);
    assert_eq!(transactions(&stack, "name IN ('new', 'old')"), 1);
    assert_eq!((info(&stack, "old"), info(&stack, "other")), ("newer".to_owned(), "some info".to_owned()));
    assert_eq!(stack.sql("SELECT count(*) FROM users"), "4");
}

#[test]
fn writes_of_one_user_in_a_batch_follow_each_other() {
    let stack = Stack::shared();
    let service = one_batch_at_a_time(&stack, "9s");
    for name in ["ann", "bob"] {
        assert_eq!(register(&service, name).status, 201);
    }
    let first = Replace("first").send(&service, "ann");
    let tag: &'static str = first.header("etag").expect("an ETag").to_owned().leak();
    let writes = [
        ("ann", Replace("second")),
        ("ann", ReplaceIf(tag, "never: it is the second by now")),
        ("ann", Replace("third")),
        ("bob", Replace("never seen")),
        ("bob", Delete),
        ("bob", Replace("never: there is none")),
    ];
    assert_eq!(write_together(&stack, &service, &writes), [200, 412, 200, 200, 204, 404]);
    assert_eq!((info(&stack, "ann"), info(&stack, "bob")), ("third".to_owned(), String::new()));
}

#[test]
fn many_replaces_at_once_share_a_few_commits() {
    let stack = Stack::shared();
    let service = &one_batch_at_a_time(&stack, "9s");
    let names: Vec<String> = (0..64).map(|number| format!("user-{number}")).collect();
    for name in &names {
        assert_eq!(register(service, name).status, 201);
    }
    let lock = Session::holding(&stack, NO_WRITES);
    scope(|scope| {
        let waiting: Vec<_> =
            names.iter().map(|name| scope.spawn(|| Replace("new").send(service, name))).collect();
        wait_until("all wait", || metric(service, "database_queries_waiting") == 64);
        drop(lock);
        for request in waiting {
            assert_eq!(request.join().expect("answered").status, 200);
        }
    });
    assert_eq!(stack.sql("SELECT count(*) FROM users WHERE info = 'new'"), "64");
    assert_eq!(transactions(&stack, "info = 'new'"), 1);
}

#[test]
fn what_another_session_holds_is_503_and_the_rest_of_its_batch_is_done() {
    let stack = Stack::shared();
    let service = one_batch_at_a_time(&stack, "2s");
    for name in ["locked", "free"] {
        assert_eq!(register(&service, name).status, 201);
    }
    let name = Session::holding(&stack, "INSERT INTO users (name, info) VALUES ('held', 'uncommitted')");
    let row = Session::holding(&stack, "SELECT FROM users WHERE name = 'locked' FOR UPDATE");
    let writes = [
        ("ann", Register),
        ("held", Register),
        ("locked", Replace("never")),
        ("free", Replace("new")),
        ("bob", Register),
    ];
    assert_eq!(write_together(&stack, &service, &writes), [201, 503, 503, 200, 201]);
    drop(row);
    drop(name);
    assert_eq!(register(&service, "held").status, 201, "the refused registration has not happened");
    assert_eq!(info(&stack, "locked"), "some info");
}

#[test]
fn a_write_that_waits_for_another_session_delays_no_other() {
    let stack = Stack::shared();
    // One connection may wait.
    let service = &one_batch_at_a_time(&stack, "9s");
    for name in ["locked", "free"] {
        assert_eq!(register(service, name).status, 201);
    }
    let row = Session::holding(&stack, "SELECT FROM users WHERE name = 'locked' FOR UPDATE");
    let name = Session::holding(&stack, "INSERT INTO users (name, info) VALUES ('held', 'uncommitted')");
    scope(|scope| {
        let replace = scope.spawn(|| Replace("new").send(service, "locked"));
        // For the row, by itself: in a batch it would be left out.
        wait_for_locked(&stack, 1);
        let rival = scope.spawn(|| Replace("newer").send(service, "locked"));
        let register_held = scope.spawn(|| register(service, "held"));
        // The rival for its key, and the registration for its turn to wait for the other session.
        wait_until("the queue holds only what must wait", || {
            metric(service, "database_queries_waiting") == 2
        });
        for number in 0..20 {
            assert_eq!(register(service, &format!("free-{number}")).status, 201);
            assert_eq!(Replace("new").send(service, "free").status, 200);
        }
        assert!(!replace.is_finished() && !register_held.is_finished(), "they still wait");
        drop(row);
        drop(name);
        assert_eq!(replace.join().expect("answered").status, 200);
        assert_eq!(register_held.join().expect("answered").status, 201);
        assert_eq!(rival.join().expect("answered").status, 200);
    });
    assert_eq!(info(&stack, "locked"), "newer");
}

#[test]
fn what_shares_a_batch_with_a_name_that_another_session_holds_does_not_wait_for_it() {
    let stack = Stack::shared();
    // One connection may wait.
    let service = &one_batch_at_a_time(&stack, "9s");
    assert_eq!(register(service, "free").status, 201);
    let names = "INSERT INTO users (name, info) VALUES ('held', 'uncommitted'), ('too', 'uncommitted')";
    let names = Session::holding(&stack, names);
    let no_writes = Session::holding(&stack, NO_WRITES);
    let waits = |count| wait_until("they wait", || metric(service, "database_queries_waiting") == count);
    scope(|scope| {
        let held = ["held", "too"].map(|name| scope.spawn(move || register(service, name)));
        waits(2);
        let others: Vec<_> = (0..20)
            .map(|number| scope.spawn(move || register(service, &format!("free-{number}")).status))
            .collect();
        let replace = scope.spawn(|| Replace("new").send(service, "free"));
        waits(23);
        drop(no_writes);
        assert!(others.into_iter().all(|other| other.join().expect("answered") == 201));
        assert_eq!(replace.join().expect("answered").status, 200);
        assert!(held.iter().all(|held| !held.is_finished()), "they still wait");
        drop(names);
        assert!(held.into_iter().all(|held| held.join().expect("answered").status == 201));
    });
}

#[test]
fn writes_of_one_user_by_two_services_follow_each_other() {
    let stack = Stack::shared();
    let services = &[stack.user_svc().start(), stack.user_svc().start()];
    assert_eq!(register(&services[0], "ann").status, 201);
    scope(|scope| {
        for client in 0..16 {
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(Replace("new").send(&services[client % 2], "ann").status, 200);
                }
            });
        }
    });
}

#[test]
fn writes_of_one_user_by_two_services_wait_for_no_other_user_that_another_session_holds() {
    let stack = Stack::shared();
    // One connection of each may wait for long.
    let services = &[one_batch_at_a_time(&stack, "9s"), one_batch_at_a_time(&stack, "9s")];
    for name in ["ann", "locked"] {
        assert_eq!(register(&services[0], name).status, 201);
    }
    let row = Session::holding(&stack, "SELECT FROM users WHERE name = 'locked' FOR UPDATE");
    scope(|scope| {
        let held = services.each_ref().map(|service| scope.spawn(|| Replace("new").send(service, "locked")));
        wait_for_locked(&stack, 2);
        let clients: Vec<_> = (0..4)
            .map(|client| {
                scope.spawn(move || {
                    for _ in 0..20 {
                        assert_eq!(Replace("new").send(&services[client % 2], "ann").status, 200);
                    }
                })
            })
            .collect();
        assert!(clients.into_iter().all(|client| client.join().is_ok()), "each is answered");
        assert!(held.iter().all(|held| !held.is_finished()), "they still wait");
        drop(row);
        assert!(held.into_iter().all(|held| held.join().expect("answered").status == 200));
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

#[test]
fn a_full_queue_refuses_replaces_as_well() {
    let stack = Stack::shared();
    let service = &one_batch_at_a_time(&stack, "9s");
    assert_eq!(register(service, "ann").status, 201);
    let service = &with_lock_timeout(&stack, "9s").env("DATABASE_QUEUE", "1").start();
    let lock = Session::holding(&stack, NO_WRITES);
    scope(|scope| {
        let first = scope.spawn(|| Replace("new").send(service, "ann"));
        wait_until("it waits", || metric(service, "database_queries_waiting") == 1);
        assert_eq!(unavailable(&Replace("never").send(service, "ann")), "overloaded");
        drop(lock);
        assert_eq!(first.join().expect("answered").status, 200);
    });
}

#[test]
fn a_write_whose_client_has_hung_up_while_it_waited_is_not_done() {
    let stack = Stack::shared();
    // With one worker a later answer shows that it has seen what came before.
    let builder = with_lock_timeout(&stack, "9s").env("DATABASE_CONNECTIONS", "4").env("WORKERS", "1");
    let service = &builder.start();
    let no_writes = Session::holding(&stack, NO_WRITES);
    let send = |name: &str| {
        let body = body(name);
        let mut connection = Connection::open(service.address());
        let head = "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
        connection.send(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        connection
    };
    let (mut first, gone, mut last) = (send("first"), send("gone"), send("last"));
    wait_until("all wait", || metric(service, "database_queries_waiting") == 3);
    gone.reset();
    assert_eq!(http::get(&service.url_of("/livez")).status, 200);
    drop(no_writes);
    for connection in [&mut first, &mut last] {
        assert_eq!(connection.receive().expect("an answer").status, 201);
    }
    assert!(!is_registered(&stack, "gone"));
}
