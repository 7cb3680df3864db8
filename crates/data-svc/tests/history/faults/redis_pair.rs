//! Faults of two Redis servers behind HAProxy, which leads everyone to the first one while it is a primary, and otherwise
//! to the second one.

use std::sync::Arc;
use std::thread::sleep;

use devstack::Redis;

use super::random_ms;
use crate::cluster::Cluster;

/// Which of the two is used, and which one follows it.
fn roles(cluster: &Cluster) -> [Arc<Redis>; 2] {
    let [first, second] = &cluster.balancers.as_ref().expect("Redis is behind HAProxy").pair;
    let used = cluster.stores.redis();
    let other = if Arc::ptr_eq(&used, first) { second } else { first };
    [used, other.clone()]
}

/// The one that HAProxy uses while both are primaries.
fn preferred(cluster: &Cluster) -> Arc<Redis> {
    cluster.balancers.as_ref().expect("Redis is behind HAProxy").pair[0].clone()
}

pub fn fail_over(cluster: &Cluster) -> String {
    let [used, other] = roles(cluster);
    other.detach();
    // It misses these writes; and the snapshot, with which the dead one comes back, misses some too.
    sleep(random_ms(0, 300));
    used.save();
    sleep(random_ms(0, 300));
    used.kill();
    sleep(random_ms(0, 300));
    other.promote();
    cluster.stores.set_redis(other.clone());
    sleep(random_ms(500, 2_500));
    used.restart();
    // For some of this HAProxy may lead everyone back to it, if it is the first one.
    sleep(random_ms(0, 2_000));
    used.follow(&other);
    "to one that has missed writes".into()
}

pub fn two_primaries(cluster: &Cluster) -> String {
    let [used, other] = roles(cluster);
    other.detach();
    sleep(random_ms(0, 300));
    other.promote();
    // HAProxy notices, and moves everyone or nobody.
    sleep(random_ms(500, 3_000));
    let preferred = preferred(cluster);
    let last = if Arc::ptr_eq(&preferred, &used) { &other } else { &used };
    cluster.stores.set_redis(preferred.clone());
    last.follow(&preferred);
    "of which one has missed writes".into()
}
