//! Whether a row is *clear*, as PostgreSQL sees it: no load stores a copy of a row that a transaction under way has
//! locked.

use std::sync::Arc;
use std::thread::scope;
use std::time::Duration;

use common::database::RowIsClear;
use devstack::testing::{get, kind, metric, wait_until_within};
use devstack::{Direction, Postgres, Redis, Stack, Stores, http};

use crate::{JSON, Session};

/// Longer than a message takes, and shorter than a lease lives (3 s).
const AT_ONCE: Duration = Duration::from_secs(2);

fn is_clear(stack: &Stack, name: &str) -> bool {
    match stack.sql(&format!("SELECT {} FROM users WHERE name = '{name}'", RowIsClear::SQL)).as_str() {
        "t" => true,
        "f" => false,
        other => panic!("{other:?}"),
    }
}

fn xmax(stack: &Stack, name: &str) -> String {
    stack.sql(&format!("SELECT xmax FROM users WHERE name = '{name}'"))
}

fn insert(stack: &Stack, name: &str) {
    stack.sql(&format!("INSERT INTO users (name, info) VALUES ('{name}', 'old')"));
}

#[test]
fn a_hanging_replace_leaves_its_top_level_transaction_id_at_the_row_and_the_row_is_not_clear() {
    let stack = Stack::shared();
    let proxy = stack.postgres_proxy();
    let service = stack.user_svc().with_long_timeouts().postgres_through(&proxy).start();
    insert(&stack, "ann");
    let commit = proxy.hold(Direction::ToUpstream, "COMMIT\0", 1);
    scope(|scope| {
        let url = service.url_of("/user/ann");
        let writer = scope.spawn(move || http::send("PUT", &url, &[JSON], r#"{"info":"new"}"#).status);
        commit.wait();
        let writers = "SELECT backend_xid FROM pg_stat_activity \
            WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()";
        assert_eq!(xmax(&stack, "ann"), stack.sql(writers));
        assert!(!is_clear(&stack, "ann"));
        commit.release();
        assert_eq!(writer.join().expect("no panic"), 200);
    });
    assert!(is_clear(&stack, "ann"));
}

/// With an old transaction open elsewhere, which keeps every snapshot's xmin low.
fn check_rows(stack: &Stack) {
    insert(stack, "locked");
    insert(stack, "replaced");
    assert!(is_clear(stack, "locked"), "never locked");
    let _old = Session::holding(stack, "SELECT pg_current_xact_id()");

    let lock = Session::holding(stack, "SELECT FROM users WHERE name = 'locked' FOR UPDATE");
    assert!(!is_clear(stack, "locked"), "locked");
    drop(lock);
    assert!(is_clear(stack, "locked"), "its locker was rolled back");
    stack.sql("BEGIN; SELECT FROM users WHERE name = 'locked' FOR UPDATE; COMMIT");
    assert_ne!(xmax(stack, "locked"), "0");
    assert!(is_clear(stack, "locked"), "its locker was committed");

    let users = stack.user_svc().with_long_timeouts().start();
    let put = || http::send("PUT", &users.url_of("/user/replaced"), &[JSON], r#"{"info":"new"}"#).status;
    assert_eq!((put(), put()), (200, 200));
    assert_ne!(
        xmax(stack, "replaced"),
        "0",
        "the writer's own id: it has locked the row and then replaced it"
    );
    assert!(is_clear(stack, "replaced"));
}

#[test]
fn a_row_is_clear_unless_a_transaction_under_way_has_locked_it() {
    check_rows(&Stack::shared());
}

#[test]
fn a_row_is_clear_unless_a_transaction_under_way_has_locked_it_past_32_bits() {
    let stores: Arc<Stores> = Stores::of(Postgres::start_past_32_bits(), Redis::start());
    let stack = Stack::on(stores);
    let next: u64 = stack.sql("SELECT pg_current_xact_id()").parse().expect("a number");
    assert!(next > 1 << 32, "{next}");
    check_rows(&stack);
}

#[test]
fn a_load_of_a_locked_row_is_answered_and_not_stored_and_its_lease_is_removed_at_once() {
    let stack = Stack::shared();
    insert(&stack, "ann");
    let reader = stack.data_svc().with_long_timeouts().start();
    reader.wait_for_log("Redis is there");
    let lock = Session::holding(&stack, "SELECT FROM users WHERE name = 'ann' FOR UPDATE");
    for round in 1..=3 {
        let answer = get(&reader, "ann");
        assert_eq!((answer.status, &answer.json()["info"]), (200, &"old".into()));
        assert_eq!(answer.header("cache-status"), Some("data-svc; fwd=bypass; detail=write-in-progress"));
        wait_until_within(AT_ONCE, "its lease is removed", || kind(&stack, "ann").is_empty());
        assert_eq!(metric(&reader, "cache_rows_not_clear_total"), round);
    }
    drop(lock);
    assert_eq!(get(&reader, "ann").header("cache-status"), Some("data-svc; fwd=uri-miss; stored"));
}
