//! Redis alone: it restarts with old data, loses a packet, or is shared by two installations.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use devstack::testing::get;
use devstack::{Direction, Redis, Stack};
use serde_json::json;

use crate::{Fleet, WATCH, WRITER, cache_status, write_until_acknowledged};

/// After how long a lost packet is sent again.
const LOST: Duration = Duration::from_millis(250);

/// H1: the default configuration of Redis saves snapshots.
#[test]
fn a_redis_that_restarts_from_a_snapshot_brings_no_older_user_back() {
    let fleet = Fleet::start(Redis::start_with_defaults());
    fleet.register_and_warm("john", "old");
    fleet.redis.save();
    fleet.replace("john", "new");
    fleet.redis.kill();
    fleet.redis.restart();
    fleet.must_be("john", "new", WATCH);
    fleet.replace_and_watch("john", "newer");
}

/// H5: TCP sends a lost packet again after 200 ms or more, and then what came after it. The packets that open another
/// connection meanwhile meet the same path.
#[test]
fn a_path_from_the_writer_to_redis_that_stalls_for_a_moment_is_followed_by_no_older_user() {
    let fleet = Fleet::start(Redis::start());
    fleet.register_and_warm("john", "0");
    for round in 1..=5 {
        let info = round.to_string();
        let path = &fleet.links[WRITER];
        path.stall();
        scope(|scope| {
            scope.spawn(|| {
                sleep(LOST);
                path.restore();
            });
            fleet.replace("john", &info);
            fleet.must_be("john", &info, 2 * LOST);
        });
        fleet.warm("john");
    }
}

/// H5 with a single packet: all else between the writer and Redis passes.
#[test]
fn a_packet_between_the_writer_and_redis_that_is_lost_is_followed_by_no_older_user() {
    let fleet = Fleet::start(Redis::start());
    let path = &fleet.links[WRITER];
    for round in 0..3 {
        let [john, jane] = ["john", "jane"].map(|name| format!("{name}-{round}"));
        for name in [&john, &jane] {
            fleet.register_and_warm(name, "old");
        }
        let lost = path.hold(Direction::ToUpstream, &john, 1).at_most(LOST);
        fleet.replace(&john, "new");
        fleet.must_be(&john, "new", 2 * LOST);
        drop(lost);
        let lost = path.hold_reply(&jane, 1).at_most(LOST);
        fleet.replace(&jane, "new");
        fleet.must_be(&jane, "new", 2 * LOST);
        drop(lost);
    }
}

/// H7: two databases, and one Redis with one database number.
#[test]
fn two_installations_on_one_redis_never_serve_each_others_users() {
    let stacks = [Stack::shared(), Stack::shared()];
    let redis = Redis::start();
    let url = redis.url(0);
    let writers = stacks.each_ref().map(|stack| stack.user_svc().env("REDIS_URL", &url).start());
    let readers = stacks.each_ref().map(|stack| stack.data_svc().env("REDIS_URL", &url).start());
    for (number, writer) in writers.iter().enumerate() {
        let body = json!({ "name": "john", "info": format!("of {number}") });
        assert_eq!(write_until_acknowledged(writer, "POST", "/register", &body), 201);
    }
    let check = |expected: [&str; 2]| {
        let start = Instant::now();
        while start.elapsed() < WATCH {
            for (reader, expected) in readers.iter().zip(expected) {
                let answer = get(reader, "john");
                assert_eq!(answer.json()["info"], expected, "{}", cache_status(&answer));
            }
            sleep(Duration::from_millis(2));
        }
    };
    check(["of 0", "of 1"]);
    assert_eq!(write_until_acknowledged(&writers[0], "PUT", "/user/john", &json!({ "info": "new" })), 200);
    check(["new", "of 1"]);
}
