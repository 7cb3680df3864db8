//! The grant at the start of a service, and the rights and settings that it needs.

use devstack::testing::{get, metric, metric_with, register, wait_until};
use devstack::{Service, ServiceBuilder, Stack, Stores, http};

use crate::terminate;

/// A role that may do what a user-svc of the first edition did, and no more.
fn with_role(stack: &Stack, builder: ServiceBuilder, role: &str) -> ServiceBuilder {
    stack.sql(&format!(
        "CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON users TO {role}; \
         GRANT SELECT ON __diesel_schema_migrations TO {role}"
    ));
    builder.env("DATABASE_URL", stack.database_url().replacen("postgres@", &format!("{role}@"), 1))
}

fn readiness(service: &Service) -> String {
    http::get(&service.url_of("/readyz")).text()
}

#[test]
fn user_svc_is_ready_only_when_it_knows_the_grant() {
    let stack = Stack::shared();
    stack.grant();
    let service = with_role(&stack, stack.user_svc(), "knows_no_grant").spawn();
    service.wait_for_log("no right to SELECT from the table cache_grant");
    service.wait_for_log("PostgreSQL is there");
    service.wait_for_readiness(503);
    assert!(readiness(&service).contains("which Redis"), "{}", readiness(&service));
    stack.sql("GRANT SELECT, INSERT, UPDATE ON cache_grant TO knows_no_grant");
    terminate(&stack, "usename = 'knows_no_grant'");
    service.wait_for_readiness(200);
}

#[test]
fn in_a_new_database_redis_is_granted_at_once() {
    let stack = Stack::unmigrated(Stores::shared());
    let proxy = stack.postgres_proxy();
    proxy.cut();
    let service = stack.user_svc().with_long_timeouts().postgres_through(&proxy).spawn();
    service.wait_for_log("Redis is there");
    proxy.restore();
    service.wait_for_readiness(200);
    assert_eq!(metric(&service, "cache_suspended"), 0);
    assert_eq!(register(&service, "john").status, 201);
    assert_eq!(metric_with(&service, "cache_grant_changes_total", ""), 0, "it was never suspended");
}

#[test]
fn a_data_svc_that_may_not_read_the_grant_serves_suspended_and_names_the_right() {
    let stack = Stack::shared();
    stack.sql("INSERT INTO users (name, info) VALUES ('john', 'some info')");
    let service = with_role(&stack, stack.data_svc(), "reads_no_grant").start();
    service.wait_for_log("no right to SELECT from the table cache_grant");
    for _ in 0..3 {
        let answer = get(&service, "john");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("cache-status"), Some("data-svc; fwd=bypass; detail=suspended"));
    }
    assert_eq!(metric(&service, "cache_suspended"), 1);
}

#[test]
fn the_migration_grants_select_on_the_grant_to_whoever_may_select_users() {
    let stack = Stack::shared();
    // As the first edition has left it.
    stack.sql(
        "DROP TABLE cache_grant; DELETE FROM __diesel_schema_migrations WHERE version = '20261127000000'; \
         CREATE ROLE \"selects users\" LOGIN; CREATE ROLE selects_nothing LOGIN; \
         GRANT SELECT ON users TO \"selects users\"",
    );
    assert!(stack.user_svc().run(&["migrate"]).status.success());
    let may =
        |role: &str| stack.sql(&format!("SELECT has_table_privilege('{role}', 'cache_grant', 'SELECT')"));
    assert_eq!((may("selects users").as_str(), may("selects_nothing").as_str()), ("t", "f"));
}

#[test]
fn synchronous_commit_is_on_in_all_sessions_whatever_the_database_and_the_role_say() {
    for value in ["off", "local"] {
        let stack = Stack::shared();
        let database = stack.database();
        stack.sql(&format!(
            "CREATE TABLE seen (by_table text, value text); \
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 INSERT INTO seen VALUES (TG_TABLE_NAME, current_setting('synchronous_commit')); RETURN NEW; END $$; \
             CREATE TRIGGER note AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION note(); \
             CREATE TRIGGER note AFTER INSERT OR UPDATE ON cache_grant FOR EACH ROW EXECUTE FUNCTION note(); \
             ALTER DATABASE {database} SET synchronous_commit = {value}; \
             ALTER ROLE postgres IN DATABASE {database} SET synchronous_commit = {value}"
        ));
        assert_eq!(stack.sql("SHOW synchronous_commit"), value, "a session that sets nothing");
        let service = stack.user_svc().with_long_timeouts().start();
        assert_eq!(register(&service, "john").status, 201);
        wait_until("both tables were changed", || {
            stack.sql("SELECT count(DISTINCT by_table) FROM seen") == "2"
        });
        assert_eq!(stack.sql("SELECT DISTINCT value FROM seen"), "on");
    }
}
