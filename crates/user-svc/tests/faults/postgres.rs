//! Postgres killed, frozen, read-only, garbled: no acknowledged user is lost, no answer is a 500, and no service needs
//! a restart.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use devstack::testing::{StopAtEnd, metric, register, wait_until};
use devstack::{Service, Stack, http};
use parking_lot::Mutex;

use crate::{is_registered, terminate, try_register, unavailable};

/// The answers that clients got while they registered one name after the other.
#[derive(Default)]
struct Answers {
    /// The names that were answered with 201.
    acknowledged: Mutex<Vec<String>>,
    /// The names that were answered with a 503 which says that nothing has changed.
    unchanged: Mutex<Vec<String>>,
    count: AtomicUsize,
    refused: AtomicUsize,
    stop: AtomicBool,
}

impl Answers {
    /// Registers names until `stop` is set. Panics at any answer but 201 and a correct 503.
    fn client(&self, service: &Service, client: usize) {
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let name = format!("{client}-{number}");
            let answer = try_register(service, &name)
                .unwrap_or_else(|error| panic!("{name} was not answered: {error}"));
            if answer.status == 201 {
                self.acknowledged.lock().push(name);
                self.count.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if unavailable(&answer) == "unavailable" {
                self.unchanged.lock().push(name);
            }
            self.refused.fetch_add(1, Ordering::Relaxed);
            // Shorter than Retry-After, to send more requests during the outage.
            sleep(Duration::from_millis(10));
        }
    }

    fn wait_for_more(&self, what: &str, counter: &AtomicUsize, more: usize) {
        let goal = counter.load(Ordering::Relaxed) + more;
        wait_until(what, || counter.load(Ordering::Relaxed) >= goal || self.stop.load(Ordering::Relaxed));
    }
}

/// Lets clients register while `fault` runs, and then checks whether their answers were true.
fn under_load(stack: &Stack, service: &Service, fault: impl FnOnce(&Answers)) {
    let answers = Answers::default();
    scope(|scope| {
        let _stop = StopAtEnd(&answers.stop);
        for client in 0..6 {
            let answers = &answers;
            scope.spawn(move || {
                let _stop = StopAtEnd(&answers.stop);
                answers.client(service, client);
            });
        }
        answers.wait_for_more("registered before", &answers.count, 50);
        fault(&answers);
        answers.wait_for_more("registered afterwards", &answers.count, 50);
    });
    let stored = stack.sql("SELECT name FROM users");
    let stored: HashSet<&str> = stored.lines().collect();
    for name in answers.acknowledged.into_inner() {
        assert!(stored.contains(name.as_str()), "{name} was acknowledged and is lost");
    }
    for name in answers.unchanged.into_inner() {
        assert!(!stored.contains(name.as_str()), "{name} is stored, although the answer was a refusal");
    }
    assert_eq!(metric_500(service), 0, "{}", service.log());
}

/// How many routes have answered with status 500 so far.
fn metric_500(service: &Service) -> usize {
    let text = http::get(&format!("{}/metrics", service.metrics_url())).text();
    text.lines().filter(|line| line.contains("_count{") && line.contains(r#"status="500""#)).count()
}

#[test]
fn postgres_killed_under_load_and_restarted_loses_no_acknowledged_user() {
    let stack = Stack::private();
    let service = stack.user_svc().start();
    under_load(&stack, &service, |answers| {
        stack.postgres().kill();
        answers.wait_for_more("refused while Postgres is away", &answers.refused, 20);
        stack.postgres().restart();
        answers.wait_for_more("registered again", &answers.count, 50);
    });
}

#[test]
fn an_orderly_restart_of_postgres_under_load_loses_no_acknowledged_user() {
    let stack = Stack::private();
    let service = stack.user_svc().start();
    under_load(&stack, &service, |answers| {
        stack.postgres().restart();
        answers.wait_for_more("registered again", &answers.count, 50);
    });
}

#[test]
fn connections_reset_under_load_lose_no_acknowledged_user() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let service = stack.user_svc().with_long_timeouts().postgres_through(&proxy).start();
    under_load(&stack, &service, |answers| {
        for _ in 0..10 {
            proxy.reset();
            answers.wait_for_more("registered again", &answers.count, 5);
        }
    });
}

#[test]
fn sessions_terminated_under_load_lose_no_acknowledged_user() {
    let stack = Stack::shared();
    let service = stack.user_svc().start();
    under_load(&stack, &service, |answers| {
        for _ in 0..10 {
            terminate(&stack, "application_name = 'users'");
            answers.wait_for_more("registered again", &answers.count, 5);
        }
    });
}

#[test]
fn postgres_frozen_is_503_within_the_deadline_and_thawed_is_used_again() {
    let stack = Stack::private();
    // Two connections, so that some of the eight requests are in PostgreSQL and the others in the queue.
    let service = stack.user_svc().env("DATABASE_CONNECTIONS", "2").start();
    wait_until("it is registered", || register(&service, "before").status == 201);

    stack.postgres().freeze();
    let answers: Vec<(String, String)> = scope(|scope| {
        let clients = (0..8).map(|number| {
            let service = &service;
            scope.spawn(move || {
                let name = format!("frozen-{number}");
                // The client waits 10 s for the answer, five times the deadline.
                let slug = unavailable(&register(service, &name));
                (name, slug)
            })
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().map(|client| client.join().expect("answered")).collect()
    });
    service.wait_for_readiness(503);
    assert_eq!(http::get(&service.url_of("/livez")).status, 200);
    stack.postgres().thaw();

    service.wait_for_readiness(200);
    wait_until("it is registered", || register(&service, "after").status == 201);
    // The statements that had begun end now, one way or the other.
    wait_until("no work is left", || metric(&service, "database_connections_in_use") == 0);
    for (name, slug) in &answers {
        match slug.as_str() {
            "outcome-unknown" => {}
            "unavailable" => assert!(!is_registered(&stack, name), "{name} was refused, and is stored"),
            other => panic!("{name}: {other}"),
        }
    }
    let unknown = answers.iter().filter(|(_, slug)| slug == "outcome-unknown").count();
    assert!(unknown <= 2, "no more statements can be sent than there are connections: {answers:?}");
}

#[test]
fn while_postgres_is_known_to_be_away_no_request_waits_for_its_deadline() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let builder = stack.user_svc().postgres_through(&proxy);
    // With this deadline the client of this test would time out before the service.
    let service = builder.with_long_timeouts().env("DATABASE_DEADLINE", "60s").start();
    proxy.cut();
    service.wait_for_readiness(503);
    for number in 0..20 {
        assert_eq!(unavailable(&register(&service, &format!("cut-{number}"))), "unavailable");
    }
    proxy.restore();
    service.wait_for_readiness(200);
    assert_eq!(register(&service, "again").status, 201);
}

#[test]
fn a_connection_terminated_between_requests_is_replaced_and_no_client_notices() {
    let stack = Stack::shared();
    // One connection: with more, each request would get another one, which the pool has just checked.
    let builder = stack.user_svc().with_long_timeouts().env("DATABASE_CONNECTIONS", "1");
    for round in 0..5 {
        // A new one: its monitor would take PostgreSQL for down if it lost two connections in a row.
        let service = builder.start();
        assert_eq!(register(&service, &format!("before-{round}")).status, 201);
        assert!(terminate(&stack, "application_name = 'users'") > 0);
        assert_eq!(register(&service, &format!("after-{round}")).status, 201, "{}", service.log());
    }
}

#[test]
fn a_connection_reset_between_requests_is_replaced_and_no_client_notices() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    // One connection: with more, each request would get another one, which the pool has just checked.
    let builder = stack.user_svc().with_long_timeouts().postgres_through(&proxy);
    let builder = builder.env("DATABASE_CONNECTIONS", "1");
    for round in 0..5 {
        // As above.
        let service = builder.start();
        assert_eq!(register(&service, &format!("before-{round}")).status, 201);
        proxy.reset();
        assert_eq!(register(&service, &format!("after-{round}")).status, 201, "{}", service.log());
    }
}

#[test]
fn a_read_only_database_is_read_and_503_to_writes_until_it_can_be_written_again() {
    let stack = Stack::shared();
    let service = stack.user_svc().start();
    wait_until("it is registered", || register(&service, "before").status == 201);
    let set = |action: &str| {
        let statement = format!("ALTER DATABASE {} {action}", stack.database());
        stack.postgres().sql("postgres", &statement)
    };
    set("SET default_transaction_read_only = on");
    terminate(&stack, "application_name = 'users'");
    assert_eq!(unavailable(&register(&service, "one")), "unavailable");
    service.wait_for_readiness(503);
    let readiness = http::get(&service.url_of("/readyz"));
    assert!(readiness.text().contains("read-only"), "{}", readiness.text());
    assert_eq!(unavailable(&register(&service, "two")), "unavailable");
    // What is only read is not disturbed, also in new sessions.
    let reader = stack.data_svc().start();
    assert_eq!(http::get(&reader.url_of("/user/before")).status, 200);

    set("RESET default_transaction_read_only");
    // No restart and no help: the service discards connections to a server that has become read-only.
    wait_until("writable again", || register(&service, "three").status != 503);
    service.wait_for_readiness(200);
    assert!(is_registered(&stack, "three"));
    assert!(!is_registered(&stack, "one"));
}

#[test]
fn a_role_that_may_no_longer_connect_is_503_and_not_500() {
    let stack = Stack::shared();
    let url = stack.database_url().replacen("postgres@", "limited@", 1);
    stack.sql(
        "CREATE ROLE limited LOGIN; GRANT SELECT, INSERT ON users TO limited; \
               GRANT SELECT, INSERT, UPDATE ON cache_grant TO limited; \
               GRANT SELECT ON __diesel_schema_migrations TO limited",
    );
    let service = stack.user_svc().env("DATABASE_URL", url).env("DATABASE_DEADLINE", "500ms").start();
    wait_until("it is registered", || register(&service, "before").status == 201);
    // SQLSTATE 53300, as when Postgres is out of connections.
    stack.sql("ALTER ROLE limited CONNECTION LIMIT 0");
    terminate(&stack, "usename = 'limited'");
    assert_eq!(unavailable(&register(&service, "during")), "unavailable");
    service.wait_for_readiness(503);
    stack.sql("ALTER ROLE limited CONNECTION LIMIT -1");
    service.wait_for_readiness(200);
    wait_until("it is registered", || register(&service, "after").status == 201);
}

#[test]
fn a_role_that_may_not_insert_is_503_and_the_log_has_cause_and_request_id() {
    let stack = Stack::shared();
    let url = stack.database_url().replacen("postgres@", "reader@", 1);
    stack.sql(
        "CREATE ROLE reader LOGIN; GRANT SELECT ON users, cache_grant, __diesel_schema_migrations TO reader",
    );
    // By another user-svc, which may.
    stack.grant();
    let service = stack.user_svc().env("DATABASE_URL", url).start();
    let answer = register(&service, "nobody");
    unavailable(&answer);
    assert!(!answer.text().contains("permission"), "the cause goes to the log alone: {}", answer.text());
    let line = service.wait_for_log("permission denied");
    assert!(line.contains(answer.header("x-request-id").expect("an id")), "{line}");
    assert_eq!(service.log().matches("permission denied").count(), 1, "logged once");
}

#[test]
fn a_garbled_connection_to_postgres_is_503_and_never_500() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let service = stack.user_svc().postgres_through(&proxy).env("DATABASE_DEADLINE", "500ms").start();
    wait_until("it is registered", || register(&service, "before").status == 201);
    proxy.garble();
    for number in 0..3 {
        unavailable(&register(&service, &format!("garbled-{number}")));
    }
    proxy.restore();
    wait_until("it recovers", || register(&service, "after").status != 503);
    assert_eq!(http::get(&service.url_of("/livez")).status, 200);
}

#[test]
fn a_slow_postgres_is_waited_for_up_to_the_deadline() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let service = stack.user_svc().postgres_through(&proxy).start();
    // Six round trips of 100 ms are within 2 s: BEGIN, the row and the grant with their preparation, COMMIT.
    proxy.delay(Duration::from_millis(50));
    assert_eq!(register(&service, "slow").status, 201);
}
