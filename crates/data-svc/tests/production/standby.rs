//! PostgreSQL is a standby, becomes one, or goes back in time.

use std::time::Instant;

use devstack::postgres::Timeline;
use devstack::testing::{get, get_with, wait_until};
use devstack::{Postgres, Service};

use crate::{Fleet, HIT, NO_CACHE, WATCH, cache_status};

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
