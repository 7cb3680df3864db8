//! What `user-svc` does when parts of the system fail, are missing, or are hostile.

mod balancer;
mod batches;
mod cache;
mod clear;
mod commit;
mod grant;
mod memory;
mod overload;
mod pooler;
mod postgres;
mod race;
mod server;
mod settings;
mod slow;
mod start;
mod stop;
mod tls;
mod urls;

use std::io::Result;
use std::thread::{JoinHandle, spawn};

use devstack::http::{self, Response};
use devstack::testing::wait_until;
use devstack::{Service, Stack};

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn try_register(service: &Service, name: &str) -> Result<Response> {
    http::try_send("POST", &service.url_of("/register"), &[JSON], body(name))
}

fn body(name: &str) -> String {
    serde_json::json!({ "name": name, "info": "some info" }).to_string()
}

/// The slug of the problem in this 503. Panics unless the answer is a complete and correct 503.
fn unavailable(answer: &Response) -> String {
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.header("retry-after").is_some_and(|value| value.parse::<u32>().is_ok()));
    problem(answer)
}

fn problem(answer: &Response) -> String {
    let problem = answer.json();
    let slug = problem["type"].as_str().and_then(|path| path.strip_prefix("/problems/"));
    slug.unwrap_or_else(|| panic!("{problem}")).to_owned()
}

fn is_registered(stack: &Stack, name: &str) -> bool {
    stack.sql(&format!("SELECT count(*) FROM users WHERE name = '{name}'")) == "1"
}

/// Waits until this many of the stack's sessions wait for a lock: their statements are sent, so their batches are
/// taken.
fn wait_for_locked(stack: &Stack, count: usize) {
    wait_until("the sessions wait for a lock", || {
        stack.sql(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        ) == count.to_string()
    });
}

/// Keeps every write from beginning: the lock that keeps the grant from being changed meanwhile.
const NO_WRITES: &str = "SELECT pg_advisory_xact_lock(x'6772616e74'::bigint)";

/// Another session. It holds the locks of its statement until it is dropped.
struct Session<'a> {
    stack: &'a Stack,
    script: String,
    thread: Option<JoinHandle<()>>,
}

impl<'a> Session<'a> {
    /// Starts a transaction with `statement`. Returns once the statement is done.
    fn holding(stack: &'a Stack, statement: &str) -> Session<'a> {
        let script = format!("BEGIN; {statement}; SELECT pg_sleep(60)");
        let stores = stack.stores().clone();
        let database = stack.database().to_owned();
        let own = script.clone();
        let thread = spawn(move || {
            // An error: the session is terminated.
            let _ = stores.postgres().try_sql(&database, &own);
        });
        wait_until("the other session sleeps", || {
            stack.sql(&format!(
                "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND query = $${script}$$ AND wait_event = 'PgSleep'"
            )) == "1"
        });
        Session { stack, script, thread: Some(thread) }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        terminate(self.stack, &format!("query = $${}$$", self.script));
        if let Some(thread) = self.thread.take() {
            // A panic in it must not become a second one here.
            let _ = thread.join();
        }
    }
}

/// Ends the sessions on the stack's database that meet `condition`, as an administrator or a failover does. Returns how
/// many there were.
fn terminate(stack: &Stack, condition: &str) -> usize {
    // Chosen first: otherwise the planner may terminate sessions before it checks the conditions.
    let ended = stack.sql(&format!(
        "WITH chosen AS MATERIALIZED (SELECT pid FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}) \
         SELECT pid FROM chosen WHERE pg_terminate_backend(pid)"
    ));
    let pids = ended.replace('\n', ",");
    let left = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY('{{{pids}}}')");
    wait_until("the sessions have ended", || stack.sql(&left) == "0");
    ended.lines().count()
}
