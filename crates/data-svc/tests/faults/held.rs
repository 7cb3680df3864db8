//! A user that another session holds: only the writes of that user wait for it.

use std::thread::scope;

use devstack::Stack;
use devstack::http;
use devstack::testing::{register_with, wait_until};
use serde_json::json;

#[test]
fn a_user_that_another_session_holds_delays_no_write_of_another() {
    let stack = Stack::shared();
    // One transaction for all that wait, and one for those that wait for another session.
    let service = stack.user_svc().with_long_timeouts().env("DATABASE_CONNECTIONS", "4").start();
    for name in ["ann", "bob", "eve"] {
        assert_eq!(register_with(&service, name, "before").status, 201);
    }
    let send = |method: &str, name: &str| {
        let json = [("Content-Type", "application/json")];
        let body = json!({ "info": "after" }).to_string();
        http::send(method, &service.url_of(&format!("/user/{name}")), &json, body).status
    };
    let sessions = |condition: &str| {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND ";
        stack.sql(&format!("{count}{condition}"))
    };
    scope(|scope| {
        scope.spawn(|| {
            let hold = "BEGIN; SELECT FROM users WHERE name = 'ann' FOR UPDATE; SELECT pg_sleep(60)";
            // An error: the session is terminated.
            let _ = stack.postgres().try_sql(stack.database(), hold);
        });
        wait_until("ann is held", || sessions("wait_event = 'PgSleep'") == "1");
        let waits = scope.spawn(|| send("PUT", "ann"));
        wait_until("a write waits for it", || sessions("wait_event_type = 'Lock'") == "1");
        assert_eq!(send("PUT", "bob"), 200);
        assert_eq!(send("DELETE", "eve"), 204);
        assert_eq!(register_with(&service, "new", "i").status, 201);
        assert!(!waits.is_finished());
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        stack.sql(&format!("{end} AND datname = current_database()"));
        assert_eq!(waits.join().expect("answered"), 200);
    });
    assert_eq!(stack.sql("SELECT name, info FROM users ORDER BY name"), "ann|after\nbob|after\nnew|i");
}
