//! A replace or delete waits until every near cache has acknowledged it, or for as long as a proof holds. What is lost or
//! late between them costs time, and never an old user.
//!
//! No test measures time: a busy machine would fail it. What a write has waited for is seen in the metrics of user-svc.

mod disturbed;
mod lists;

use std::collections::HashSet;
use std::thread::{scope, sleep};
use std::time::Duration;

use devstack::testing::{get, metric, metric_with, register_with, wait_until};
use devstack::{Direction, Proxy, Redis, Service, ServiceBuilder, Stack, http};
use serde_json::json;

use crate::without_near;

/// How often a replica falls silent.
const ROUNDS: u32 = 4;

/// The near caches that writers wait for: the fields of the list without its name and its count.
pub fn members(stack: &Stack) -> HashSet<String> {
    members_in(stack.redis(), stack.redis_database())
}

fn members_in(redis: &Redis, database: u32) -> HashSet<String> {
    let fields = redis.cli(database, &["HKEYS", "2:members"]);
    let fields = fields.lines().filter(|field| !["", "roll", "seq"].contains(field));
    fields.map(str::to_owned).collect()
}

/// A user-svc, and a Redis of its own, which may be flushed or restarted.
struct Writer {
    service: Service,
    /// Between it and Redis.
    link: Proxy,
    redis: Redis,
    stack: Stack,
}

impl Writer {
    fn start() -> Self {
        Self::with_redis(Redis::start())
    }

    fn with_redis(redis: Redis) -> Self {
        let stack = Stack::shared();
        let link = Proxy::start(("127.0.0.1", redis.port()));
        let builder = stack.user_svc().with_long_timeouts().env("REDIS_URL", redis.url(0));
        let service = builder.redis_through(&link).start();
        service.wait_for_log("Redis is there");
        Self { service, link, redis, stack }
    }

    fn data_svc(&self) -> ServiceBuilder {
        self.stack.data_svc().env("REDIS_URL", self.redis.url(0))
    }

    fn members(&self) -> HashSet<String> {
        members_in(&self.redis, 0)
    }

    fn roll(&self) -> String {
        self.redis.cli(0, &["HGET", "2:members", "roll"])
    }

    fn register(&self, name: &str, info: &str) {
        assert_eq!(register_with(&self.service, name, info).status, 201);
    }

    fn replace(&self, name: &str, info: &str) {
        replace(&self.service, name, info);
    }

    fn metric(&self, name: &str) -> u64 {
        metric(&self.service, name)
    }

    /// How many transactions have waited for nearly as long as a proof holds, or longer.
    fn long_waits(&self) -> u64 {
        let short = metric_with(&self.service, "ack_wait_seconds_bucket", r#"le="0.05""#);
        self.metric("ack_wait_seconds_count") - short
    }
}

fn replace(service: &Service, name: &str, info: &str) {
    let json = [("Content-Type", "application/json")];
    let url = service.url_of(&format!("/user/{name}"));
    let answer = http::send("PUT", &url, &json, json!({ "info": info }).to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// A data-svc with a near cache, which reaches Redis through a proxy of its own. Its time-outs are the default ones: if it
/// does not reach Redis, it reads PostgreSQL soon.
struct Reader {
    service: Service,
    link: Proxy,
}

impl Reader {
    fn start(writer: &Writer) -> Self {
        let link = Proxy::start(("127.0.0.1", writer.redis.port()));
        let before = writer.members();
        let service = writer.data_svc().redis_through(&link).start();
        wait_until("it is a member", || writer.members().difference(&before).count() == 1);
        Self { service, link }
    }

    /// Reads until the answer is a near copy.
    fn warm(&self, name: &str) {
        wait_until("it has a near copy", || {
            let answer = get(&self.service, name);
            answer.header("cache-status").is_some_and(|status| status.ends_with("near"))
        });
    }

    fn must_read(&self, name: &str, info: &str) {
        let answer = get(&self.service, name);
        assert_eq!(answer.json()["info"], info, "{:?}", answer.header("cache-status"));
    }
}

#[test]
fn a_write_waits_for_nobody_when_there_is_no_near_cache() {
    let writer = Writer::start();
    let reader = without_near(writer.data_svc()).start();
    writer.register("ann", "0");
    // The first does, since the list is new to it.
    writer.replace("ann", "1");
    let mut round = 1;
    wait_until("a write does not wait", || {
        round += 1;
        let before = writer.long_waits();
        writer.replace("ann", &round.to_string());
        assert_eq!(get(&reader, "ann").json()["info"], round.to_string());
        writer.long_waits() == before
    });
    assert_eq!(writer.metric("near_members"), 0);
    assert_eq!(writer.metric("acks_missed_total"), 0);
    assert_eq!(writer.members().len(), 0);
}

#[test]
fn a_write_is_acknowledged_by_the_near_caches_of_all_replicas() {
    let writer = Writer::start();
    let readers = [Reader::start(&writer), Reader::start(&writer)];
    writer.register("ann", "0");
    let mut round = 0;
    // A busy machine may delay some acks.
    wait_until("ten writes in a row are acknowledged by both", || {
        let before = (writer.metric("acks_missed_total"), writer.long_waits());
        for _ in 0..10 {
            round += 1;
            for reader in &readers {
                reader.warm("ann");
            }
            writer.replace("ann", &round.to_string());
            for reader in &readers {
                reader.must_read("ann", &round.to_string());
            }
        }
        let after = (writer.metric("acks_missed_total"), writer.long_waits());
        before == after && writer.metric("near_members") == 2
    });
}

#[test]
fn a_replica_that_is_frozen_costs_one_write_its_wait_and_is_a_member_again_when_it_goes_on() {
    let writer = Writer::start();
    let reader = Reader::start(&writer);
    writer.register("ann", "0");
    let mut waits_again = 0;
    for round in 1..=ROUNDS {
        reader.warm("ann");
        reader.service.freeze();
        is_missed_once(&writer);
        // The list has a new name, which is trusted once it has been known for as long as a proof holds. A write that
        // begins before that waits for the rest. Later ones do not wait, though a busy machine may hold one up.
        sleep(Duration::from_millis(100));
        let (missed, long) = (writer.metric("acks_missed_total"), writer.long_waits());
        for write in 0..10 {
            writer.replace("ann", &format!("{round}, {write}"));
        }
        assert_eq!(writer.metric("acks_missed_total"), missed, "no other write has waited for it");
        assert_eq!(writer.metric("near_members"), 0);
        waits_again += u32::from(writer.long_waits() > long);
        scope(|scope| {
            // Sent while it cannot be answered, so that it is perhaps the first thing that the replica does.
            let client = scope.spawn(|| reader.must_read("ann", &format!("{round}, 9")));
            sleep(Duration::from_millis(20));
            reader.service.thaw();
            client.join().expect("no old user");
        });
        wait_until("it is a member again", || writer.members().len() == 1);
        reader.must_read("ann", &format!("{round}, 9"));
    }
    assert!(waits_again < ROUNDS, "a later write waits each time");
}

/// Writes once with a member that is silent, and sees that this write waits and drops it.
fn is_missed_once(writer: &Writer) {
    let [missed, dropped] =
        ["acks_missed_total", "near_members_dropped_total"].map(|name| writer.metric(name));
    let long = writer.long_waits();
    writer.replace("ann", "first");
    assert_eq!(writer.metric("acks_missed_total"), missed + 1, "it does not answer");
    assert_eq!(writer.long_waits(), long + 1);
    // Unless user-svc has not heard its own echo in time, on a busy machine.
    wait_until("it is dropped", || {
        let is_dropped = writer.metric("near_members_dropped_total") == dropped + 1;
        if !is_dropped {
            writer.replace("ann", "again");
        }
        is_dropped
    });
}

#[test]
fn a_user_svc_that_hears_no_acks_waits_and_drops_nobody() {
    let writer = Writer::start();
    let reader = Reader::start(&writer);
    writer.register("ann", "0");
    let subscribers = || writer.redis.cli(0, &["PUBSUB", "NUMSUB", "2:acks:0"]).ends_with("\n1");
    for round in 1..=3 {
        wait_until("it hears acks", subscribers);
        reader.warm("ann");
        let missed = writer.metric("acks_missed_total");
        let dropped = writer.metric("near_members_dropped_total");
        let long = writer.long_waits();
        let held = writer.link.hold(Direction::FromUpstream, "2:acks:", 1);
        writer.replace("ann", &round.to_string());
        reader.must_read("ann", &round.to_string());
        assert_eq!(writer.metric("acks_missed_total"), missed + 1);
        assert_eq!(writer.metric("near_members_dropped_total"), dropped, "it hears nobody, not even itself");
        assert_eq!(writer.long_waits(), long + 1);
        held.discard();
        assert_eq!(writer.members().len(), 1);
    }
}

#[test]
fn a_replica_that_loses_its_connection_again_and_again_leaves_no_members_behind() {
    let writer = Writer::start();
    let reader = Reader::start(&writer);
    let mut seen = HashSet::new();
    writer.register("ann", "0");
    let mut round = 0;
    wait_until("it has been eight members", || {
        let there = writer.members();
        assert!(there.len() <= 1, "{there:?}");
        // Those that are gone would be waited for.
        if seen.is_superset(&there) {
            return false;
        }
        seen.extend(there);
        round += 1;
        reader.link.reset();
        if round % 4 == 0 {
            writer.replace("ann", &round.to_string());
            reader.must_read("ann", &round.to_string());
        }
        seen.len() >= 8
    });
}

#[test]
fn a_purge_leaves_no_near_copy_when_it_returns() {
    let writer = Writer::start();
    let reader = Reader::start(&writer);
    writer.register("ann", "0");
    for round in 1..=4 {
        let by_hand = format!("by hand {round}");
        reader.warm("ann");
        writer.stack.sql(&format!("UPDATE users SET info = '{by_hand}'"));
        // Every second time its message does not arrive in time.
        let held = (round % 2 == 0).then(|| reader.link.hold(Direction::FromUpstream, "2:user:{ann}", 1));
        let purge = writer.data_svc().run(&["purge", "ann"]);
        reader.must_read("ann", &by_hand);
        assert!(purge.status.success(), "{}", String::from_utf8_lossy(&purge.stderr));
        drop(held);
    }
}

#[test]
fn something_published_that_is_no_message_ends_the_use_of_near_copies() {
    let writer = Writer::start();
    let reader = Reader::start(&writer);
    writer.register("ann", "0");
    for garbage in ["garbage", "", "roll 1 2:user:{ann}", "roll 1 [\"2:user:{ann}\""] {
        reader.warm("ann");
        let before = writer.members();
        writer.redis.cli(0, &["PUBLISH", "2:invalidations:0", garbage]);
        wait_until("it is another member", || {
            let now = writer.members();
            !now.is_empty() && now.is_disjoint(&before)
        });
    }
}
