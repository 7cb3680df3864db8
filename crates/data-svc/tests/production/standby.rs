//! PostgreSQL is a standby, becomes one, or goes back in time.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use devstack::http;
use devstack::postgres::Timeline;
use devstack::testing::{StopAtEnd, get, get_with, wait_until};
use devstack::{Postgres, Proxy, Redis, Service, ServiceBuilder, Stack, free_port};
use serde_json::json;

use crate::{Fleet, HIT, NO_CACHE, WATCH, WRITER, cache_status};

/// A fleet, and a standby of its PostgreSQL that has the users of now.
fn with_standby() -> (Fleet, Postgres) {
    let fleet = Fleet::with_own_postgres();
    fleet.register_and_warm("john", "old");
    let standby = Postgres::standby_of(fleet.stack.postgres());
    (fleet, standby)
}

/// H6: neither is a user from the standby served, nor one stored in Redis for the others.
#[test]
fn a_data_svc_on_a_standby_is_not_ready_says_why_and_never_serves_from_it() {
    let (fleet, standby) = with_standby();
    let service =
        fleet.more(fleet.stack.data_svc()).env("DATABASE_URL", standby.url(fleet.stack.database())).spawn();
    standby.detach(fleet.stack.postgres());
    let explains = |text: &str| {
        let text = text.to_lowercase();
        text.contains("standby") || text.contains("recovery")
    };
    wait_until("it is looked at, and the reason is said", || explains(&service.log()) || service.is_ready());
    for info in ["new", "newer"] {
        fleet.replace("john", info);
        // Before the others, so that it could store what it has.
        is_not_served(&service, &[]);
        is_not_served(&service, &[NO_CACHE]);
        fleet.must_be("john", info, WATCH / 2);
        is_not_served(&service, &[]);
        assert!(!service.is_ready() && explains(&service.log()), "{}", service.log());
    }
}

fn is_not_served(service: &Service, headers: &[(&str, &str)]) {
    let answer = get_with(service, "john", headers);
    assert_eq!(answer.status, 503, "{}, {}", answer.text(), cache_status(&answer));
}

/// H6: the address of its database leads to a standby from some moment on.
#[test]
fn a_data_svc_whose_database_turns_into_a_standby_serves_no_older_user() {
    let (fleet, standby) = with_standby();
    let link = fleet.stack.postgres_proxy();
    let moved = fleet.more(fleet.stack.data_svc()).postgres_through(&link).start();
    wait_until("it has a copy", || cache_status(&get(&moved, "john")).starts_with(HIT));
    standby.detach(fleet.stack.postgres());
    link.retarget(("127.0.0.1", standby.port()));
    link.reset();
    for round in 0..4 {
        let info = format!("round {round}");
        fleet.replace("john", &info);
        let start = Instant::now();
        while start.elapsed() < WATCH / 2 {
            let answer = get(&moved, "john");
            let is_refused = answer.status == 503;
            assert!(is_refused || answer.json()["info"] == info.as_str(), "{}", answer.text());
            fleet.must_be("john", &info, WATCH / 100);
        }
    }
}

/// What a recovery from an archive takes away may have been cached.
#[test]
fn a_user_that_a_restore_takes_back_is_not_served_from_a_cache_for_long() {
    let fleet = Fleet::with_own_postgres();
    fleet.register("john", "old");
    let backup = fleet.stack.postgres().backup();
    fleet.replace("john", "lost");
    fleet.warm("john");
    fleet.stack.postgres().restore(&backup, Timeline::New);
    // Both, and then for good.
    wait_until("both serve what the database has", || {
        fleet.readers.iter().all(|reader| get(reader, "john").json()["info"] == "old")
    });
    fleet.must_be("john", "old", WATCH);
    fleet.replace_and_watch("john", "new");
}

/// A fleet with a synchronous standby, and services that have the hosts of both in `DATABASE_URL`.
fn with_both_hosts() -> (Fleet, Postgres) {
    let (stack, redis) = (Stack::private(), Redis::start());
    let primary = stack.postgres();
    let standby = Postgres::standby_of(primary);
    primary.commit_on_standbys();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.port(), standby.port());
    let url = format!("postgres://postgres@{hosts}/{}", stack.database());
    let start = |service: ServiceBuilder| {
        service.env("DATABASE_URL", url.as_str()).env("REDIS_URL", redis.url(0)).start()
    };
    let writer = start(stack.user_svc());
    let readers = [start(stack.data_svc()), start(stack.data_svc())];
    let links = [(); 3].map(|()| Proxy::start(("127.0.0.1", redis.port())));
    (Fleet { readers, writer, links, redis, stack }, standby)
}

/// A user whose infos are numbers that grow. One client writes it.
struct Counter {
    name: String,
    /// The newest info that was acknowledged.
    acknowledged: AtomicU32,
}

impl Counter {
    fn register(fleet: &Fleet, number: usize) -> Counter {
        let name = format!("user-{number}");
        fleet.register(&name, "0");
        Counter { name, acknowledged: AtomicU32::new(0) }
    }

    fn acknowledged(&self) -> u32 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Replaces the info again and again until the primary fails: what was acknowledged then is replaced by nothing.
    fn replace(&self, writer: &Service, primary_fails: &AtomicBool) {
        let url = writer.url_of(&format!("/user/{}", self.name));
        for info in (1..).take_while(|_| !primary_fails.load(Ordering::SeqCst)) {
            let json = [("Content-Type", "application/json")];
            let answer = http::send("PUT", &url, &json, json!({ "info": info.to_string() }).to_string());
            match answer.status {
                200 => self.acknowledged.store(info, Ordering::SeqCst),
                status => assert_eq!(status, 503, "{}", answer.text()),
            }
        }
    }

    /// Reads it. Panics if the answer is older than what was acknowledged before. Returns whether there was one.
    fn read(&self, reader: &Service, headers: &[(&str, &str)]) -> bool {
        let acknowledged = self.acknowledged();
        let answer = get_with(reader, &self.name, headers);
        let found = answer.json()["info"].as_str().and_then(|info| info.parse::<u32>().ok());
        let is_right = answer.status == 503 || found.is_some_and(|found| found >= acknowledged);
        assert!(is_right, "after {acknowledged}: {}, {}", answer.text(), cache_status(&answer));
        answer.status == 200
    }
}

/// What Patroni does, without it (`scripts/patroni-drill` has the rest). The standby is cut off a moment before the primary
/// dies: what it lacks must not have been acknowledged.
#[test]
fn a_synchronous_standby_promoted_under_load_loses_nothing_acknowledged_and_is_found_without_a_restart() {
    let (fleet, standby) = with_both_hosts();
    let primary = fleet.stack.postgres();
    let users: Vec<Counter> = (0..4).map(|number| Counter::register(&fleet, number)).collect();
    let (stop, primary_fails) = (AtomicBool::new(false), AtomicBool::new(false));
    scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for (reader, headers) in fleet.readers.iter().flat_map(|it| [(it, &[][..]), (it, &[NO_CACHE][..])]) {
            let (users, stop) = (&users, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    for user in users {
                        user.read(reader, headers);
                    }
                    // As many requests as there can be would leave the writers no time.
                    sleep(Duration::from_millis(2));
                }
            });
        }
        let write = |user: &Counter| user.replace(&fleet.writer, &primary_fails);
        let clients: Vec<_> = users.iter().map(|user| scope.spawn(move || write(user))).collect();
        wait_until("all are written", || users.iter().all(|user| user.acknowledged() >= 10));
        standby.detach(primary);
        wait_until("COMMITs wait for the standby", || primary.held_commits() > 0);
        primary_fails.store(true, Ordering::SeqCst);
        primary.kill();
        standby.promote();
        // No service is started again.
        let promoted = Instant::now();
        fleet.register("next", "new");
        println!("a write is acknowledged {:?} after the promotion", promoted.elapsed());
        for client in clients {
            client.join().expect("it does not panic");
        }
        for user in &users {
            let row = format!("SELECT info FROM users WHERE name = '{}'", user.name);
            let found: u32 = standby.sql(fleet.stack.database(), &row).parse().expect("a number");
            assert!(found >= user.acknowledged(), "{}: {found} of {}", user.name, user.acknowledged());
        }
        for reader in &fleet.readers {
            wait_until("it loads from the new primary", || {
                users.iter().all(|user| user.read(reader, &[NO_CACHE]))
            });
        }
        fleet.replace_and_watch("next", "newer");
    });
}

/// A replica takes PostgreSQL for down only if each of its servers says so.
#[test]
fn a_server_that_is_down_beside_a_primary_that_is_cut_off_is_no_outage_of_postgresql() {
    let fleet = Fleet::with_own_postgres();
    let link = fleet.stack.postgres_proxy();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", free_port(), link.port());
    let url = format!("postgres://postgres@{hosts}/{}", fleet.stack.database());
    let lonely = fleet.more(fleet.stack.data_svc()).env("DATABASE_URL", url).start();
    fleet.register_and_warm("john", "old");
    wait_until("it has a copy", || cache_status(&get(&lonely, "john")).starts_with(HIT));
    link.cut();
    // Writers go on without Redis, and without barriers, when no reader uses it.
    fleet.links[WRITER].cut();
    fleet.replace("john", "new");
    let answer = get(&lonely, "john");
    assert!(answer.status == 503 || answer.json()["info"] == "new", "{}", answer.text());
}
