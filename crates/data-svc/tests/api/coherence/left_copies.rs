//! A replace leaves its new copy in place of its barrier, where a copy was before.

use std::thread::scope;

use devstack::testing::{kind, metric_with, wait_until};
use serde_json::json;

use super::Fleet;

/// Waits until the barrier of a write that was answered is gone, and returns what is there.
fn left(fleet: &Fleet, name: &str) -> String {
    wait_until("the barrier is gone", || kind(&fleet.stack, name) != "B");
    kind(&fleet.stack, name)
}

#[test]
fn a_replaced_user_that_was_cached_is_hit_through_every_replica() {
    let fleet = Fleet::start();
    fleet.register("ann", "0");
    for round in 1..=5 {
        fleet.warm_both("ann");
        fleet.replace("ann", &round.to_string());
        assert_eq!(left(&fleet, "ann"), "V");
        for replica in 0..2 {
            let answer = fleet.get(replica, "ann");
            let hit = json!({"name": "ann", "info": round.to_string(), "cache_hit": true});
            assert_eq!(answer.json(), hit);
            assert!(answer.header("cache-status").is_some_and(|s| s.starts_with("data-svc; hit; ttl=")));
        }
    }
}

/// Makes the copy of `name` one that ends in `ms`, and returns when that is, in the Unix milliseconds of Redis.
fn end_in(fleet: &Fleet, name: &str, ms: u64) -> u64 {
    // The expiry follows 34 bytes.
    let script = "local v = redis.call('GET', KEYS[1]); local t = redis.call('TIME'); \
        local ends = t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[1]; \
        v = string.sub(v, 1, 34) .. struct.pack('>I8', ends) .. string.sub(v, 43); \
        redis.call('SET', KEYS[1], v, 'PX', ARGV[1]); return string.format('%.0f', ends)";
    let ends = fleet.stack.redis_cli(&["EVAL", script, "1", &format!("2:user:{{{name}}}"), &ms.to_string()]);
    ends.trim().parse().expect("a time")
}

#[test]
fn a_left_copy_ends_when_the_one_before_it_would_have() {
    let fleet = Fleet::start();
    fleet.register("ann", "0");
    fleet.warm_near(0, "ann");
    end_in(&fleet, "ann", 60_000);
    fleet.replace("ann", "1");
    assert_eq!(left(&fleet, "ann"), "V");
    let status = fleet.cache_status(1, "ann");
    let ttl = status.strip_prefix("data-svc; hit; ttl=").and_then(|ttl| ttl.split(';').next());
    assert!(ttl.expect("a hit").parse::<u32>().expect("a number") <= 60, "by its head");
    let redis: u32 = fleet.stack.redis_cli(&["TTL", "2:user:{ann}"]).trim().parse().expect("a number");
    assert!((1..=60).contains(&redis), "{redis}");
}

/// A replica that still uses the epoch of a writer that was cut off would read it for longer than the TTL.
#[test]
fn nothing_is_left_by_a_replace_that_ends_after_the_copy_would_have() {
    let fleet = Fleet::start();
    fleet.register("ann", "old");
    fleet.warm_near(0, "ann");
    fleet.hold_commits();
    let ends = end_in(&fleet, "ann", 2_000);
    scope(|scope| {
        let writer = scope.spawn(|| fleet.replace("ann", "new"));
        fleet.wait_for_commit();
        wait_until("the copy would have ended", || {
            let time = fleet.stack.redis_cli(&["TIME"]);
            time.lines().next().and_then(|seconds| seconds.trim().parse::<u64>().ok()) > Some(ends / 1000)
        });
        fleet.release_commits();
        writer.join().expect("replaced");
    });
    assert_eq!(left(&fleet, "ann"), "");
}

#[test]
fn nothing_is_left_where_no_copy_was() {
    let fleet = Fleet::start();
    fleet.register("ann", "old");
    fleet.replace("ann", "new");
    assert_eq!(left(&fleet, "ann"), "");
}

#[test]
fn nothing_is_left_of_a_deleted_user() {
    let fleet = Fleet::start();
    fleet.register("ann", "old");
    fleet.warm_both("ann");
    assert_eq!(fleet.write("DELETE", "/user/ann", json!(null)), 204);
    assert_eq!(left(&fleet, "ann"), "");
}

#[test]
fn nothing_is_left_where_the_copy_of_another_grant_was() {
    let fleet = Fleet::start();
    fleet.register("ann", "old");
    fleet.warm_near(0, "ann");
    // The tag follows two bytes.
    fleet.stack.redis_cli(&["SETRANGE", "2:user:{ann}", "2", "12345678"]);
    fleet.replace("ann", "new");
    assert_eq!(left(&fleet, "ann"), "");
}

#[test]
fn nothing_is_left_by_a_replace_that_was_rolled_back() {
    let fleet = Fleet::start();
    fleet.register("ann", "old");
    fleet.warm_both("ann");
    fleet.hold_commits();
    scope(|scope| {
        let writer = scope.spawn(|| fleet.write("PUT", "/user/ann", json!({"info": "new"})));
        fleet.wait_for_commit();
        fleet.stack.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND state = 'active' AND query ILIKE 'commit%'",
        );
        assert_eq!(writer.join().expect("no panic"), 503);
    });
    assert_eq!(left(&fleet, "ann"), "");
    assert_eq!(fleet.get(0, "ann").json()["info"], "old");
}

/// Its barrier stands, but it has read the row before the purge: a copy would hide what was changed in SQL.
#[test]
fn nothing_is_left_by_a_replace_that_was_under_way_at_a_purge() {
    let fleet = Fleet::start();
    fleet.register("ann", "old");
    fleet.warm_near(0, "ann");
    fleet.hold_commits();
    scope(|scope| {
        let writer = scope.spawn(|| fleet.replace("ann", "new"));
        fleet.wait_for_commit();
        assert!(fleet.stack.data_svc().run(&["purge", "ann"]).status.success());
        fleet.release_commits();
        writer.join().expect("replaced");
    });
    let lost = || metric_with(&fleet.user_svc, "cache_barriers_total", "lost") == 1;
    wait_until("the writer has looked for its barrier, and has not found it", lost);
    assert_eq!(kind(&fleet.stack, "ann"), "B");
    fleet.stack.sql("UPDATE users SET info = 'by hand' WHERE name = 'ann'");
    assert_eq!(fleet.get(0, "ann").json()["info"], "by hand");
}
