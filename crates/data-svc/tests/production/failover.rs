//! Redis fails over: to a replica that missed writes, with the old server dead or alive, or as planned.

use std::time::Duration;

use devstack::Redis;
use devstack::testing::{get, wait_until};

use crate::{Fleet, READERS_AND_WRITER, WATCH, WRITER, cache_status};

/// A fleet whose copies of john are also in a replica of its Redis.
fn with_replica() -> (Fleet, Redis) {
    let primary = Redis::start_with_defaults();
    // First: a server that gets its first replica begins another history, and must be granted anew.
    let replica = Redis::replica_of(&primary);
    let fleet = Fleet::start(primary);
    fleet.register_and_warm("john", "old");
    // Replication has no other message that could be waited for.
    wait_until("the replica has the copy", || replica.cli(0, &["DBSIZE"]) == fleet.redis.cli(0, &["DBSIZE"]));
    (fleet, replica)
}

/// H2, with the old server dead.
#[test]
fn a_failover_to_a_replica_that_missed_writes_brings_no_older_user_back() {
    let (fleet, replica) = with_replica();
    replica.detach();
    fleet.replace("john", "new");
    fleet.redis.kill();
    replica.promote();
    fleet.move_to(&replica, &READERS_AND_WRITER);
    fleet.must_be("john", "new", WATCH);
    fleet.replace_and_watch("john", "newer");
}

/// H2, with the old server alive: services use both for a while.
#[test]
fn while_two_redis_servers_are_primaries_no_older_user_is_served_from_either() {
    let (fleet, replica) = with_replica();
    replica.detach();
    replica.promote();
    fleet.move_to(&replica, &[1]);
    fleet.replace_and_watch("john", "new");
    let old = &fleet.readers[0];
    wait_until("the old one is used", || cache_status(&get(old, "john")).ends_with("; detail=near"));
    fleet.move_to(&replica, &[WRITER]);
    fleet.replace_and_watch("john", "newer");
    fleet.move_to(&replica, &READERS_AND_WRITER);
    fleet.must_be("john", "newer", WATCH / 4);
}

/// H3: a demoted server still answers PING. It cannot reach the new primary, so it hears of no write.
#[test]
fn a_near_cache_whose_listener_stays_on_a_demoted_redis_serves_no_older_user() {
    let (fleet, replica) = with_replica();
    replica.promote();
    fleet.redis.follow(&replica);
    fleet.redis.detach();
    leave_the_listeners_on_the_demoted_server(&fleet, &replica);
    for round in 0..6 {
        let info = format!("round {round}");
        fleet.replace("john", &info);
        fleet.must_be("john", &info, Duration::from_millis(500));
    }
}

/// H3 with a demoted server that follows the new primary, which passes on what is published.
#[test]
fn a_planned_failover_is_followed_by_no_older_user() {
    let (fleet, replica) = with_replica();
    replica.promote();
    fleet.redis.follow(&replica);
    leave_the_listeners_on_the_demoted_server(&fleet, &replica);
    for round in 0..4 {
        let info = format!("round {round}");
        fleet.replace("john", &info);
        fleet.must_be("john", &info, Duration::from_millis(500));
    }
}

/// All connections move to the new primary, but those that have subscribed.
fn leave_the_listeners_on_the_demoted_server(fleet: &Fleet, primary: &Redis) {
    for link in &fleet.links {
        link.retarget(("127.0.0.1", primary.port()));
    }
    fleet.redis.cli(0, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
}

/// `run_id` names a process, not a state of its data.
#[test]
fn a_redis_that_is_demoted_and_promoted_again_keeps_its_run_id_and_brings_no_older_user_back() {
    let (fleet, replica) = with_replica();
    let run = fleet.redis.info("run_id");
    replica.promote();
    fleet.redis.follow(&replica);
    fleet.redis.detach();
    fleet.move_to(&replica, &READERS_AND_WRITER);
    fleet.replace("john", "new");
    fleet.must_be("john", "new", WATCH / 4);
    // The demoted server has missed that write.
    fleet.redis.promote();
    assert_eq!(fleet.redis.info("run_id"), run);
    fleet.move_to(&fleet.redis, &READERS_AND_WRITER);
    fleet.must_be("john", "new", WATCH);
    fleet.replace_and_watch("john", "newer");
}
