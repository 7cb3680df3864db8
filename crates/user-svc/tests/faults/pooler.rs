//! PgBouncer in transaction mode before PostgreSQL: Debian's 1.18, which knows nothing of prepared statements.

use std::collections::HashSet;
use std::thread::scope;

use devstack::testing::{get, register, wait_until};
use devstack::{Installed, PgBouncer, Service, ServiceBuilder, Stack, Stores, http};

use crate::{is_registered, unavailable};

/// A service whose way to PostgreSQL leads through `pooler`.
fn through(pooler: &PgBouncer, stack: &Stack, service: ServiceBuilder) -> ServiceBuilder {
    service.env("DATABASE_URL", pooler.url(stack.database()))
}

fn put(service: &Service, name: &str, info: &str) -> u16 {
    let json = [("Content-Type", "application/json")];
    let body = serde_json::json!({ "info": info }).to_string();
    http::send("PUT", &service.url_of(&format!("/user/{name}")), &json, body).status
}

#[test]
fn without_prepared_statements_everything_works_through_a_pooler() {
    let Some(program) = Installed::find("pgbouncer") else { return };
    let stack = Stack::shared();
    // Fewer sessions than the services have connections, so that those change from one to another.
    let pooler = PgBouncer::start_with(
        &program,
        stack.postgres().port(),
        &[("default_pool_size", &SESSIONS.to_string())],
    );
    let unprepared = |service| through(&pooler, &stack, service).env("DATABASE_PREPARED", "false");
    let writers = [(); 2].map(|()| unprepared(stack.user_svc()).start());
    let readers = [(); 2].map(|()| unprepared(stack.data_svc()).start());
    scope(|scope| {
        for client in 0..8 {
            let (writer, reader) = (&writers[client % 2], &readers[client / 2 % 2]);
            scope.spawn(move || {
                for number in 0..20 {
                    let name = format!("user-{client}-{number}");
                    assert_eq!(get(reader, &name).status, 404);
                    assert_eq!(register(writer, &name).status, 201, "{}", writer.log());
                    assert_eq!(get(reader, &name).json()["info"], "some info");
                    assert_eq!(put(writer, &name, "other"), 200, "{}", writer.log());
                    assert_eq!(get(reader, &name).json()["info"], "other");
                    let deleted = http::send("DELETE", &writer.url_of(&format!("/user/{name}")), &[], "");
                    assert_eq!(deleted.status, 204, "{}", writer.log());
                    assert_eq!(get(reader, &name).status, 404);
                }
            });
        }
    });
    for service in writers.iter().chain(&readers) {
        let log = service.log();
        // A busy machine may be slow with Redis.
        let complaints =
            log.lines().filter(|line| line.contains("common::database") && !line.contains("INFO"));
        assert_eq!(complaints.collect::<Vec<_>>(), Vec::<&str>::new());
    }
    let kept = kept_by_sessions(&stack, &pooler);
    assert_eq!(kept, ["0|0|0|0|0"; SESSIONS]);
}

/// How many sessions the pooler has.
const SESSIONS: usize = 4;

/// What each session of the pooler has: time-outs, prepared statements, advisory locks.
fn kept_by_sessions(stack: &Stack, pooler: &PgBouncer) -> Vec<String> {
    let kept = format!(
        "SELECT pg_backend_pid(), current_setting('statement_timeout'), current_setting('lock_timeout'), \
         current_setting('idle_in_transaction_session_timeout'), {LEFT}, pg_sleep(1)"
    );
    // As long as one looks, the others get another session.
    let looks: Vec<String> = scope(|scope| {
        let look = || stack.postgres().sql_at(&pooler.url(stack.database()), &kept);
        let looks: Vec<_> = (0..SESSIONS).map(|_| scope.spawn(look)).collect();
        looks.into_iter().map(|look| look.join().expect("no panic")).collect()
    });
    let looks = looks.iter().map(|look| look.trim_end_matches('|').split_once('|').expect("columns"));
    let (sessions, kept): (Vec<&str>, Vec<&str>) = looks.unzip();
    assert_eq!(sessions.iter().collect::<HashSet<_>>().len(), SESSIONS, "{sessions:?}");
    kept.into_iter().map(str::to_owned).collect()
}

/// Prepared statements of the session, and advisory locks of all.
const LEFT: &str = "(SELECT count(*) FROM pg_prepared_statements), \
     (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = \
     (SELECT oid FROM pg_database WHERE datname = current_database()))";

#[test]
fn with_prepared_statements_it_is_not_ready_behind_a_pooler_says_why_and_runs_none() {
    let Some(program) = Installed::find("pgbouncer") else { return };
    let stack = Stack::private();
    for settings in [&[][..], &[("server_round_robin", "1")], &[("default_pool_size", "1")]] {
        let pooler = PgBouncer::start_with(&program, stack.postgres().port(), settings);
        let services = [stack.user_svc(), stack.data_svc()].map(|it| through(&pooler, &stack, it).spawn());
        for service in &services {
            service.wait_for_log("set DATABASE_PREPARED=false");
            let answer = http::get(&service.url_of("/readyz"));
            assert_eq!(unavailable(&answer), "not-ready");
            assert!(answer.text().contains("DATABASE_PREPARED=false"), "{}", answer.text());
        }
        assert_eq!(unavailable(&register(&services[0], "john")), "unavailable");
        assert_eq!(unavailable(&get(&services[1], "john")), "unavailable");
        assert!(!is_registered(&stack, "john"));
    }
}

#[test]
fn a_pooler_that_comes_to_be_on_the_way_ends_the_readiness_and_the_queries() {
    let Some(program) = Installed::find("pgbouncer") else { return };
    let stack = Stack::private();
    let link = stack.postgres_proxy();
    let service = stack.user_svc().postgres_through(&link).start();
    assert_eq!(register(&service, "before").status, 201);
    let pooler = PgBouncer::start(&program, stack.postgres().port());
    link.retarget(("127.0.0.1", pooler.port()));
    link.reset();
    service.wait_for_log("set DATABASE_PREPARED=false");
    assert_eq!(unavailable(&register(&service, "john")), "unavailable");
    let answer = http::get(&service.url_of("/readyz"));
    assert!(answer.text().contains("DATABASE_PREPARED=false"), "{}", answer.text());
    link.retarget(("127.0.0.1", stack.postgres().port()));
    link.reset();
    wait_until("it is used again", || register(&service, "after").status == 201);
}

#[test]
fn twenty_services_that_migrate_through_a_pooler_leave_one_schema_and_no_lock() {
    let Some(program) = Installed::find("pgbouncer") else { return };
    let stores = Stores::private();
    let stack = Stack::unmigrated(stores);
    let pooler = PgBouncer::start_with(&program, stack.postgres().port(), &[("default_pool_size", "4")]);
    scope(|scope| {
        for number in 0..20 {
            let (stack, pooler) = (&stack, &pooler);
            scope.spawn(move || {
                // Migrations leave nothing prepared, whatever the setting is.
                let prepared = if number % 2 == 0 { "auto" } else { "false" };
                let service = through(pooler, stack, stack.user_svc()).env("DATABASE_PREPARED", prepared);
                let migrated = service.run(&["migrate"]);
                assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
            });
        }
    });
    assert_eq!(stack.sql(&format!("SELECT count(*), {LEFT} FROM __diesel_schema_migrations")), "2|0|0");
    let services = [(); 2]
        .map(|()| through(&pooler, &stack, stack.user_svc()).env("DATABASE_PREPARED", "false").start());
    assert_eq!(register(&services[0], "john").status, 201);
    assert_eq!(register(&services[1], "john").status, 409);
}

#[test]
fn a_standby_behind_a_pooler_is_not_read() {
    let Some(program) = Installed::find("pgbouncer") else { return };
    let stack = Stack::private();
    assert_eq!(register(&stack.user_svc().start(), "john").status, 201);
    let standby = devstack::Postgres::standby_of(stack.postgres());
    let reader = stack.data_svc().env("DATABASE_PREPARED", "false").env("NEAR_CACHE_MIB", "0");
    let link = stack.postgres_proxy();
    let pooler = PgBouncer::start(&program, link.port());
    let reader = through(&pooler, &stack, reader).start();
    assert_eq!(get(&reader, "john").status, 200);
    standby.detach(stack.postgres());
    stack.sql("UPDATE users SET info = 'new'; DELETE FROM cache_grant");
    // All sessions of the pooler are on the standby from now on, which shows what was before.
    link.retarget(("127.0.0.1", standby.port()));
    link.reset();
    for _ in 0..200 {
        let answer = http::send("GET", &reader.url_of("/user/john"), &[("Cache-Control", "no-cache")], "");
        assert!(answer.status == 503 || answer.json()["info"] == "new", "{}", answer.text());
    }
}
