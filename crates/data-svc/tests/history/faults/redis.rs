//! Faults of Redis itself.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use devstack::Redis;

use super::{any_of, random_ms};
use crate::cluster::Cluster;

/// How long the grant may take to return.
const RECOVERY: Duration = Duration::from_secs(20);

/// Whether eviction takes barriers too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barriers {
    Spared,
    Evicted,
}

/// Deletes each key with probability ARGV[2], but with ARGV[1] = 1 only users, and no barriers. One script, so that a key
/// cannot change between the look and the DEL.
const EVICT: &str = "\
local evicted = 0
for _, key in ipairs(redis.call('KEYS', ARGV[1] == '0' and '2:*' or '2:user:*')) do
  if math.random() < tonumber(ARGV[2]) and (ARGV[1] == '0' or redis.call('GETRANGE', key, 0, 0) ~= 'B') then
    evicted = evicted + redis.call('DEL', key)
  end
end
return evicted";

pub fn freeze(cluster: &Cluster, time: Duration) -> String {
    let redis = cluster.stores.redis();
    redis.freeze();
    sleep(time);
    redis.thaw();
    format!("for {time:?}")
}

pub fn pause(cluster: &Cluster, kind: &str) -> String {
    let time = random_ms(20, 300);
    cluster.stores.redis().cli(0, &["CLIENT", "PAUSE", &time.as_millis().to_string(), kind]);
    sleep(time);
    format!("for {time:?}")
}

pub fn evict(cluster: &Cluster, barriers: Barriers) -> String {
    let spares_barriers = if barriers == Barriers::Spared { "1" } else { "0" };
    let mut evicted = 0;
    for _ in 0..20 {
        sleep(random_ms(5, 30));
        let count = cluster.stores.redis().cli(0, &["EVAL", EVICT, "0", spares_barriers, "0.5"]);
        evicted += count.parse::<u64>().unwrap_or(0);
    }
    format!("of {evicted} keys")
}

pub fn flush(cluster: &Cluster) -> String {
    for _ in 0..5 {
        sleep(random_ms(5, 100));
        cluster.stores.redis().cli(0, &["FLUSHALL"]);
    }
    "five times".into()
}

pub fn restart(cluster: &Cluster) -> String {
    let redis = cluster.stores.redis();
    redis.kill();
    sleep(random_ms(0, 100));
    redis.restart();
    format!("with {} keys", redis.cli(0, &["DBSIZE"]))
}

pub fn restore(cluster: &Cluster) -> String {
    cluster.stores.redis().save();
    sleep(random_ms(100, 1_000));
    restart(cluster)
}

/// A replica that has missed a moment of writes.
fn replica(cluster: &Cluster) -> Redis {
    let replica = Redis::replica_of(&cluster.stores.redis());
    sleep(random_ms(100, 300));
    replica.detach();
    sleep(random_ms(100, 500));
    replica
}

pub fn fail_over(cluster: &Cluster) -> String {
    let replica = replica(cluster);
    cluster.stores.redis().kill();
    sleep(random_ms(0, 300));
    replica.promote();
    cluster.use_redis(Arc::new(replica), || {});
    "to one that has missed writes".into()
}

pub fn split(cluster: &Cluster) -> String {
    let replica = replica(cluster);
    replica.promote();
    let slowly = *any_of(&[0, 50, 600]);
    // The old one ends when it is dropped, after all have left it.
    let _old = cluster.use_redis(Arc::new(replica), || sleep(random_ms(slowly, slowly + 50)));
    sleep(random_ms(0, 500));
    format!("with {slowly} ms between one replica and the next")
}

pub fn demote(cluster: &Cluster) -> String {
    let replica = Arc::new(Redis::replica_of(&cluster.stores.redis()));
    replica.promote();
    let old = cluster.stores.set_redis(replica.clone());
    old.follow(&replica);
    for service in cluster.replicas() {
        service.redis.proxy.retarget(("127.0.0.1", replica.port()));
    }
    old.cli(0, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    // The connections that listen are still there.
    sleep(random_ms(500, 1_500));
    "with the listeners left behind".into()
}

/// Waits until a Redis is granted again, if none is. A suspension lasts the longer the more there were of late, which
/// guards nothing but the load on PostgreSQL: it is made as short as that of a first one, so that one recording sees many.
pub fn recover(cluster: &Cluster) -> String {
    let start = Instant::now();
    let statement = "UPDATE cache_grant SET pause_ms = 0 RETURNING redis";
    while start.elapsed() < RECOVERY {
        sleep(random_ms(50, 100));
        // A fault of PostgreSQL may be under way.
        let redis = cluster.stores.try_sql(statement).unwrap_or_default();
        let name = || {
            let redis = cluster.stores.redis();
            format!("{} {}", redis.info("run_id"), redis.info("master_replid"))
        };
        if !redis.is_empty() && redis == name() {
            sleep(random_ms(500, 1_000));
            return "Redis was granted again".into();
        }
    }
    "no Redis was granted in time".into()
}
