//! PostgreSQL as operators have set it up: its encoding, few connections, sessions that hold locks for long.

use std::sync::mpsc;
use std::thread::scope;

use devstack::testing::{metric, register, wait_until};
use devstack::{ServiceBuilder, Stack, Stores, http};

use crate::{NO_WRITES, Session, unavailable};

/// The sessions of the role `role`; and those of them that look, as the monitor does.
fn sessions(stack: &Stack, role: &str) -> (usize, usize) {
    let counts = stack.sql(&format!(
        "SELECT count(*), count(*) FILTER (WHERE query LIKE 'SELECT pg_is_in_recovery%') \
         FROM pg_stat_activity WHERE usename = '{role}'"
    ));
    let (all, looking) = counts.split_once('|').expect("two counts");
    (all.parse().expect("a count"), looking.parse().expect("a count"))
}

/// Makes INSERT take so long that batches begin beside each other, and many threads want a connection.
fn slow_inserts(stack: &Stack) {
    stack.sql(
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_sleep(0.15); RETURN NULL; END'; \
         CREATE TRIGGER pause BEFORE INSERT ON users FOR EACH STATEMENT EXECUTE FUNCTION pause()",
    );
}

/// A user-svc whose role may have `limit` connections.
fn limited(stack: &Stack, role: &str, limit: usize) -> ServiceBuilder {
    stack.sql(&format!(
        "CREATE ROLE {role} LOGIN CONNECTION LIMIT {limit}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON users TO {role}; \
         GRANT SELECT, INSERT, UPDATE ON cache_grant TO {role}; \
         GRANT SELECT ON __diesel_schema_migrations TO {role}"
    ));
    let service = stack.user_svc().env("DATABASE_CONNECTIONS", "40");
    service.env("DATABASE_URL", stack.database_url().replace("//postgres@", &format!("//{role}@")))
}

#[test]
fn a_database_whose_encoding_is_not_utf8_is_not_ready_and_says_so() {
    let stack = Stack::shared();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let database = format!("{}_{}", stack.database(), encoding.to_lowercase());
        stack.sql(&format!(
            "CREATE DATABASE {database} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
        ));
        for name in ["user-svc", "data-svc"] {
            let url = stack.postgres().url(&database);
            let service =
                ServiceBuilder::new(name).env("DATABASE_URL", url).env("REDIS_URL", stack.redis_url());
            let service = service.spawn();
            service.wait_for_log("The encoding of the database is not UTF8");
            let answer = http::get(&service.url_of("/readyz"));
            assert_eq!(unavailable(&answer), "not-ready");
            assert!(answer.text().contains("encoding"), "{}", answer.text());
        }
        let tables =
            stack.postgres().sql(&database, "SELECT count(*) FROM pg_tables WHERE tablename = 'users'");
        assert_eq!(tables, "0");
        stack.sql(&format!("DROP DATABASE {database} WITH (FORCE)"));
    }
}

#[test]
fn a_role_that_may_have_fewer_connections_than_the_pool_is_served_with_those() {
    let stack = Stack::private();
    slow_inserts(&stack);
    let service = limited(&stack, "few", 2).start();
    scope(|scope| {
        for client in 0..40 {
            let service = &service;
            scope.spawn(move || {
                for number in 0..4 {
                    let answer = register(service, &format!("{client}-{number}"));
                    assert_eq!(answer.status, 201, "{}\n{}", answer.text(), service.log());
                }
            });
        }
    });
    service.wait_for_log("PostgreSQL gives fewer connections than DATABASE_CONNECTIONS");
    assert_eq!(sessions(&stack, "few"), (2, 1));
}

#[test]
fn the_monitors_connection_lost_beside_those_of_the_workers_is_no_outage() {
    let stack = Stack::private();
    slow_inserts(&stack);
    let service = limited(&stack, "monitored", 4).start();
    // A write that waits gets one connection after the other, until the pool has all that the monitor leaves.
    let no_writes = Session::holding(&stack, NO_WRITES);
    scope(|scope| {
        // Its answer does not matter: it may have waited for too long.
        scope.spawn(|| register(&service, "first"));
        wait_until("the role has all its connections", || sessions(&stack, "monitored").0 == 4);
        drop(no_writes);
    });
    for round in 0..5 {
        // One less from now on, so that the monitor cannot have its connection back beside those.
        stack.sql("ALTER ROLE monitored CONNECTION LIMIT 3");
        wait_until("the monitor looks, and its session is ended", || {
            let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE usename = 'monitored' AND query LIKE 'SELECT pg_is_in_recovery%'";
            stack.sql(ended) == "1"
        });
        let (stop, stopped) = mpsc::channel::<()>();
        scope(|scope| {
            let service = &service;
            scope.spawn(move || {
                let mut number = 0;
                while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    number += 1;
                    let answer = register(service, &format!("{round}-{number}"));
                    assert_eq!(answer.status, 201, "{}\n{}", answer.text(), service.log());
                    assert!(service.is_ready());
                }
            });
            wait_until("the monitor looks on a connection of its own", || {
                sessions(&stack, "monitored") == (3, 1) || sessions(&stack, "monitored") == (2, 1)
            });
            drop(stop);
        });
        stack.sql("ALTER ROLE monitored CONNECTION LIMIT 4");
    }
    assert_eq!(metric(&service, "cache_suspended"), 0);
}

#[test]
fn a_request_that_waits_while_the_monitor_has_the_last_connection_gets_the_next() {
    let stack = Stack::private();
    let proxy = stack.postgres_proxy();
    let service = limited(&stack, "lent", 2).postgres_through(&proxy).with_long_timeouts();
    let service = &service.env("DATABASE_CONNECTIONS", "1").start();
    assert_eq!(register(service, "before").status, 201);
    // The monitor's connection is lost, cannot be had again, and so it borrows the other one.
    let borrowed = proxy.hold_reply("has_table_privilege", 1);
    stack.sql("ALTER ROLE lent CONNECTION LIMIT 1");
    wait_until("the monitor's session is ended", || {
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE usename = 'lent' AND query LIKE 'SELECT pg_is_in_recovery%'";
        stack.sql(ended) == "1"
    });
    borrowed.wait();
    stack.sql("ALTER ROLE lent CONNECTION LIMIT 2");
    scope(|scope| {
        let waiting = scope.spawn(|| register(service, "waiting"));
        wait_until("it waits for the connection", || metric(service, "database_connections_in_use") == 1);
        borrowed.release();
        let answer = waiting.join().expect("answered");
        assert_eq!(answer.status, 201, "{}\n{}", answer.text(), service.log());
    });
}

#[test]
fn no_write_waits_for_a_lock_for_longer_than_the_setting() {
    let stack = Stack::shared();
    stack.sql(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN NEW.info := current_setting('lock_timeout'); RETURN NEW; END$$; \
         CREATE TRIGGER note BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION note()",
    );
    for prepared in ["auto", "false"] {
        for (setting, first) in [("500ms", "100ms"), ("20ms", "20ms")] {
            let builder = stack.user_svc().env("DATABASE_PREPARED", prepared);
            let service = builder.env("DATABASE_LOCK_TIMEOUT", setting).start();
            let name = format!("{prepared}-{setting}");
            assert_eq!(register(&service, &name).status, 201);
            assert_eq!(stack.sql(&format!("SELECT info FROM users WHERE name = '{name}'")), first);
        }
    }
}

/// What a session of the database waits for.
fn waiting_locks(stack: &Stack) -> String {
    stack.sql(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database \
         WHERE NOT granted AND datname = current_database()",
    )
}

#[test]
fn a_migration_waits_shortly_for_locks_and_lets_others_go_on_before_it_tries_again() {
    let stack = Stack::unmigrated(Stores::shared());
    stack.sql(
        "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY, \
         run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)",
    );
    let holder = Session::holding(&stack, "LOCK TABLE __diesel_schema_migrations IN SHARE MODE");
    let service = stack.user_svc().spawn();
    service.wait_for_log("migrations wait for a lock");
    assert_eq!(waiting_locks(&stack), "0");
    drop(holder);
    service.wait_for_log("ran 2 migration(s)");
    service.wait_for_readiness(200);
}

#[test]
fn the_lock_of_migrations_is_waited_for_shortly_too_and_ends_with_their_transaction() {
    let stack = Stack::unmigrated(Stores::shared());
    let holder = Session::holding(&stack, "SELECT pg_advisory_xact_lock(504447201907)");
    let service = stack.user_svc().spawn();
    service.wait_for_log("migrations wait for a lock");
    assert_eq!(waiting_locks(&stack), "0");
    drop(holder);
    service.wait_for_readiness(200);
    let advisory = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database \
         WHERE locktype = 'advisory' AND datname = current_database()";
    assert_eq!(stack.sql(advisory), "0");
}

/// The planner settings in a session of a user-svc on this stack.
fn planner_settings(stack: &Stack) -> String {
    assert_eq!(register(&stack.user_svc().start(), "john").status, 201);
    let seen = stack.sql("SELECT settings FROM seen");
    stack.sql("TRUNCATE users, seen");
    seen
}

#[test]
fn statements_are_planned_once_but_by_citus_which_cannot_do_that() {
    let stack = Stack::private();
    stack.sql(
        "CREATE TABLE seen (settings text); \
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen SELECT \
         concat_ws(' ', current_setting('plan_cache_mode'), current_setting('enable_seqscan'), \
         current_setting('jit')); RETURN NULL; END $$; \
         CREATE TRIGGER see BEFORE INSERT ON users FOR EACH STATEMENT EXECUTE FUNCTION see()",
    );
    assert_eq!(planner_settings(&stack), "force_generic_plan off off");
    // No package has it, so its entry must do.
    stack.sql(
        "SET allow_system_table_mods = on; \
         INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion) \
         VALUES (99999, 'citus', 10, 11, false, '1')",
    );
    assert_eq!(planner_settings(&stack), "auto off off");
}
