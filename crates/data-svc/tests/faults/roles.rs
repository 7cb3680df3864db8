//! Both services under the roles of docker/roles.sql, which have the least rights.

use devstack::testing::{get, register, wait_until};
use devstack::{Stack, Stores, http};

use crate::{insert, is_hit, wait_for_a_hit};

/// Starts both services, each under its own role, and has them do all that they do.
fn both_do_their_work(stack: &Stack) {
    let writer = stack.user_svc().env("DATABASE_URL", stack.database_url_of("user_svc")).start();
    let reader = stack.data_svc().env("DATABASE_URL", stack.database_url_of("data_svc")).start();
    let json = [("Content-Type", "application/json")];
    let path = writer.url_of("/user/jane");

    assert_eq!(register(&writer, "jane").status, 201);
    wait_for_a_hit(&reader, "jane");
    assert_eq!(http::send("PUT", &path, &json, r#"{"info":"replaced"}"#).status, 200);
    assert_eq!(get(&reader, "jane").json()["info"], "replaced");
    wait_until("it is cached", || is_hit(&get(&reader, "jane")));
    assert_eq!(http::send("DELETE", &path, &[], "").status, 204);
    assert_eq!(get(&reader, "jane").status, 404);

    let purge =
        stack.user_svc().env("DATABASE_URL", stack.database_url_of("user_svc")).run(&["purge", "--all"]);
    assert!(purge.status.success(), "{}", String::from_utf8_lossy(&purge.stderr));
    for service in [&writer, &reader] {
        assert!(!service.log().contains("permission denied"), "{}", service.log());
    }
    is_refused(stack, "INSERT INTO users (name, info) VALUES ('x', 'y')");
    is_refused(stack, "UPDATE cache_grant SET life_ms = 1");
    is_refused(stack, "CREATE TABLE mine ()");
}

/// Asserts that data_svc may not run the statement.
fn is_refused(stack: &Stack, statement: &str) {
    let as_reader = format!("SET ROLE data_svc; {statement}");
    let error = stack.postgres().try_sql(stack.database(), &as_reader).expect_err("not allowed");
    assert!(error.contains("permission denied"), "{error}");
}

#[test]
fn the_two_roles_are_enough_for_both_services_on_an_empty_database() {
    let stack = Stack::unmigrated(Stores::private());
    stack.make_roles();
    both_do_their_work(&stack);
    assert_eq!(
        stack.sql("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"),
        "user_svc"
    );
}

#[test]
fn the_two_roles_are_enough_for_both_services_on_a_database_that_the_superuser_migrated() {
    let stack = Stack::private();
    insert(&stack, "john");
    stack.make_roles();
    both_do_their_work(&stack);
    assert_eq!(
        stack.sql("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"),
        "user_svc"
    );
    assert_eq!(stack.sql("SELECT name FROM users"), "john");
}
