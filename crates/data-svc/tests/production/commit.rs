//! H4: a COMMIT waits for a synchronous standby for longer than a barrier lives.

use std::sync::OnceLock;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use devstack::http;
use devstack::testing::{get, wait_until};
use devstack::{Postgres, Proxy, Service};
use serde_json::json;

use crate::{Fleet, WATCH, cache_status};

/// How long the COMMITs are held: longer than a barrier (10 s) lives.
const HELD: Duration = Duration::from_secs(11);

/// What happens to a writer while its COMMITs are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It lives, and hears of the COMMIT a little late.
    Lives,
    Killed,
    /// Its connections to PostgreSQL are reset.
    Cut,
}

/// H4 with the writer alive.
#[test]
fn a_commit_that_outlasts_its_barrier_is_followed_by_no_older_user() {
    assert_eq!(older_users_after(Fate::Lives), [""; 0]);
}

/// H4 with the writer killed.
#[test]
fn a_commit_that_outlasts_its_barrier_and_its_writer_is_followed_by_no_older_user() {
    assert_eq!(older_users_after(Fate::Killed), [""; 0]);
}

/// H4 with the writer's connection cut.
#[test]
fn a_commit_that_outlasts_its_barrier_and_its_connection_is_followed_by_no_older_user() {
    assert_eq!(older_users_after(Fate::Cut), [""; 0]);
}

/// A register has no row that it could lock. A reader that found its barrier gone would store that there is no such user.
/// A service that stops goes on with it.
#[test]
fn the_barrier_of_a_register_stands_for_as_long_as_its_commit_takes() {
    let fleet = Fleet::with_own_postgres();
    let postgres = fleet.stack.postgres();
    let standby = Postgres::standby_of(postgres);
    postgres.commit_on_standbys();
    fleet.register("bob", "i");
    standby.detach(postgres);
    let cli = |command: &str| fleet.redis.cli(0, &[command, "2:user:{ann}"]).trim().to_owned();
    let life = || cli("PTTL").parse::<i64>().expect("milliseconds");
    scope(|scope| {
        let url = fleet.writer.url_of("/register");
        let body = json!({ "name": "ann", "info": "i" }).to_string();
        let json = [("Content-Type", "application/json")];
        let registered = scope.spawn(move || http::send("POST", &url, &json, body));
        postgres.wait_for_held_commits(1);
        wait_until_extended(life);
        let answer = registered.join().expect("it does not panic");
        assert_eq!(answer.json()["type"], "/problems/outcome-unknown", "{}", answer.text());
    });
    fleet.writer.terminate();
    wait_until_extended(life);
    standby.attach();
    assert_eq!(fleet.writer.wait().code(), Some(0));
    wait_until("the barrier is removed", || cli("EXISTS") == "0");
    fleet.must_be("ann", "i", WATCH);
}

/// Waits until a barrier, with this `life` left, gets a longer one.
fn wait_until_extended(life: impl Fn() -> i64) {
    let mut last = life();
    wait_until("the barrier is extended", || {
        let before = std::mem::replace(&mut last, life());
        last > before
    });
}

/// The first older users that were read after the COMMITs of the writer with this fate.
fn older_users_after(fate: Fate) -> &'static [String] {
    // Each takes long, and most of it is waiting: so they happen at the same time, once.
    static WRITERS: OnceLock<[HeldWriter; 3]> = OnceLock::new();
    let writers = WRITERS.get_or_init(hold_commits);
    let writer = writers.iter().find(|writer| writer.fate == fate).expect("one of each");
    &writer.older
}

/// A user-svc that replaces one user and deletes another, with both COMMITs held.
struct HeldWriter {
    fate: Fate,
    service: Service,
    /// Between the service and PostgreSQL.
    link: Proxy,
    /// Reads that returned an older user after the COMMIT.
    older: Vec<String>,
}

impl HeldWriter {
    fn start(fleet: &Fleet, fate: Fate) -> HeldWriter {
        let link = fleet.stack.postgres_proxy();
        let service = fleet.more(fleet.stack.user_svc()).postgres_through(&link).start();
        HeldWriter { fate, service, link, older: Vec::new() }
    }

    fn replaced(&self) -> String {
        format!("replaced-{:?}", self.fate)
    }

    fn deleted(&self) -> String {
        format!("deleted-{:?}", self.fate)
    }

    /// Sends both writes, one after the other. Returns when the client has what it can get, with both COMMITs held.
    fn write(&self, postgres: &Postgres) {
        let held = postgres.held_commits();
        scope(|scope| {
            let json = [("Content-Type", "application/json")];
            let url = |name: &str| self.service.url_of(&format!("/user/{name}"));
            let body = json!({ "info": "new" }).to_string();
            let replaced = scope.spawn(move || http::try_send("PUT", &url(&self.replaced()), &json, body));
            postgres.wait_for_held_commits(held + 1);
            let deleted = scope.spawn(move || http::try_send("DELETE", &url(&self.deleted()), &[], ""));
            postgres.wait_for_held_commits(held + 2);
            match self.fate {
                Fate::Lives => {}
                Fate::Killed => self.service.kill(),
                Fate::Cut => self.link.reset(),
            }
            for answer in [replaced, deleted].map(|thread| thread.join().expect("it does not panic")) {
                // The client of a dead service has no answer.
                if self.fate != Fate::Killed {
                    let answer = answer.expect("an answer");
                    assert_eq!(answer.json()["type"], "/problems/outcome-unknown", "{}", answer.text());
                }
            }
        });
    }

    /// Reads both users through a replica. Remembers what is older than the COMMIT.
    fn read(&mut self, reader: &Service, committed: Instant) {
        let after = committed.elapsed();
        let [replaced, deleted] = [self.replaced(), self.deleted()].map(|name| get(reader, &name));
        let is_new = replaced.status == 200 && replaced.json()["info"] == "new";
        for (answer, is_right) in [(&replaced, is_new), (&deleted, deleted.status == 404)] {
            if !is_right && self.older.len() < 3 {
                let what =
                    format!("{after:?}: {} {}, {}", answer.status, answer.text(), cache_status(answer));
                self.older.push(what);
            }
        }
    }
}

fn hold_commits() -> [HeldWriter; 3] {
    let fleet = Fleet::with_own_postgres();
    let postgres = fleet.stack.postgres();
    let standby = Postgres::standby_of(postgres);
    postgres.commit_on_standbys();
    let mut writers = [Fate::Lives, Fate::Killed, Fate::Cut].map(|fate| HeldWriter::start(&fleet, fate));
    let names: Vec<String> =
        writers.iter().flat_map(|writer| [writer.replaced(), writer.deleted()]).collect();
    for name in &names {
        fleet.register_and_warm(name, "old");
    }
    standby.detach(postgres);
    for writer in &writers {
        writer.write(postgres);
    }
    let start = Instant::now();
    while start.elapsed() < HELD {
        for reader in &fleet.readers {
            for name in &names {
                assert_eq!(get(reader, name).json()["info"], "old", "it is not committed");
            }
        }
        sleep(Duration::from_millis(50));
    }
    assert_eq!(postgres.held_commits(), 6);
    for writer in writers.iter().filter(|writer| writer.fate == Fate::Lives) {
        writer.link.delay(Duration::from_millis(250));
    }
    standby.attach();
    let old = "SELECT count(*) FROM users WHERE info = 'old'";
    wait_until("all are committed", || fleet.stack.sql(old) == "0");
    let committed = Instant::now();
    for writer in &writers {
        let url = fleet.writer.url_of(&format!("/user/{}", writer.deleted()));
        assert_eq!(http::send("DELETE", &url, &[], "").status, 404);
    }
    while committed.elapsed() < WATCH {
        for reader in &fleet.readers {
            for writer in &mut writers {
                writer.read(reader, committed);
            }
        }
    }
    writers
}
